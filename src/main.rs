//! The lmpatch binary: parse, run, exit code.

use std::process::ExitCode;

use lmpatch::{cli::Cli, output};

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|answer| answer.exit());
    match lmpatch::run(&cli) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => output::print_fatal(&error),
    }
}
