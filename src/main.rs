//! The lmpatch binary: parse, run, exit code.

use std::process::ExitCode;

use lmpatch::{cli::Cli, output};

fn main() -> ExitCode {
    match Cli::read(std::env::args_os()).map(|cli| lmpatch::run(&cli)) {
        Ok(Ok(exit)) => ExitCode::from(exit as u8),
        Ok(Err(error)) => output::print_fatal(&error),
        Err(answer) => answer.exit(),
    }
}
