//! The lmpatch binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = lmpatch::cli::Cli::parse();
    lmpatch::run(&cli).map_or_else(|error| lmpatch::ui::last_words(&error), ExitCode::from)
}
