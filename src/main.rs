//! The lmpatch binary: parse, run, exit code.

use std::process::ExitCode;

use lmpatch::cli::Cli;
use lmpatch::output::{Exit, Output};

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|answer| answer.exit());
    let exit = lmpatch::run(&cli).unwrap_or_else(|error| {
        Output::default().error(&format!("{error:#}"));
        Exit::Failed
    });
    ExitCode::from(exit as u8)
}
