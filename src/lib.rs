//! lmpatch sets the prefill chunk size of LM Studio's MLX backends: `lmstudio` knows where the files are in which it is a
//! constant, `patch` how to edit them, `report` how to print that.

pub mod agent;
pub mod bench;
mod change;
mod check;
pub mod cli;
pub mod command;
pub mod files;
pub mod lmstudio;
pub mod lock;
pub mod marker;
pub mod output;
pub mod patch;
pub mod reload;
pub mod report;
mod signals;

use anyhow::Result;

use cli::{Cli, Command};
use lmstudio::home;
use output::{Exit, Output};
use patch::settings::DEFAULT_SIZE;
use report::{Action, Report, SCHEMA};

/// Runs the command and reports on it. An error is one that has not been printed yet.
pub fn run(cli: &Cli) -> Result<Exit> {
    cli.color.write_global();
    let output = Output {
        is_quiet: cli.quiet,
        is_verbose: cli.verbose,
    };
    let (home, json) = (cli.home.as_deref(), cli.json);
    if let Some(home) = home {
        output::advise_for(home);
    }
    let text = match &cli.command {
        None => return check_or_change(cli, &output),
        Some(Command::Bench(args)) => return bench::run(home, json, args, &output),
        Some(Command::Agent(command)) => return agent::run(home, json, &output, command),
        Some(Command::Completions { shell }) => cli::completions(*shell),
        Some(Command::Man) => cli::manual_page(),
    };
    output.print_raw(text.as_bytes()).map(|()| Exit::Done)
}

fn check_or_change(cli: &Cli, output: &Output) -> Result<Exit> {
    let (action, size) = match (cli.check, cli.revert) {
        (true, _) => (Action::Check, cli.size),
        (_, true) => (Action::Revert, None),
        _ => (Action::Set, Some(cli.size.unwrap_or(DEFAULT_SIZE))),
    };
    let mut report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        action,
        dry_run: cli.dry_run,
        size,
        ..Report::default()
    };
    let done = home::find(cli.home.as_deref()).and_then(|home| {
        report.home = Some(home.display().to_string());
        match action {
            Action::Check => check::run(cli, output, &home, &mut report),
            _ => change::run(cli, output, &home, &mut report),
        }
    });
    let exit = done.unwrap_or_else(|error| {
        let why = format!("{error:#}");
        output.error(&why);
        report.error = Some(output::with_home(&why));
        Exit::Failed
    });
    report.exit_code = exit as u8;
    if cli.json {
        output.print_json(&report)?;
    }
    Ok(exit)
}
