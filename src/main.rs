//! The lmpatch binary: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match lmpatch::cli::Cli::read(std::env::args_os()) {
        Ok(cli) => lmpatch::run(&cli)
            .map_or_else(|error| lmpatch::output::print_fatal(&error), ExitCode::from),
        Err(answer) => lmpatch::output::print_clap(&answer),
    }
}
