//! The lmpatch binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match lmpatch::cli::Cli::try_parse() {
        Ok(cli) => lmpatch::run(&cli).map_or_else(|error| lmpatch::ui::last_words(&error), ExitCode::from),
        Err(answer) => lmpatch::ui::print_answer(&answer),
    }
}
