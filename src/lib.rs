//! lmpatch sets the prefill chunk size of LM Studio's MLX backends.
//!
//! LM Studio feeds a prompt to an MLX model in chunks whose size is a constant in the Python files of each backend.
//! `lmstudio` knows where those files are, `patch` how they are edited, `report` how that is told.

pub mod agent;
pub mod bench;
pub mod cli;
pub mod command;
pub mod doctor;
pub mod effect;
pub mod files;
pub mod lmstudio;
pub mod outcome;
pub mod patch;
pub mod reload;
pub mod report;
pub mod session;
pub mod shell;
pub mod side_by_side;
pub mod ui;

use anyhow::{Context as _, Result};

use cli::{Cli, Command, Request};
use lmstudio::home;
use outcome::Outcome;
use report::{Report, json};
use session::Session;
use ui::Ui;

/// Does what was asked and tells it. Fails only where nothing could be told.
pub fn run(cli: &Cli) -> Result<Outcome> {
    let ui = Ui::new(cli.stream_colour(), cli.quiet, cli.verbose);
    match &cli.command {
        None => look_or_change(cli, &ui),
        Some(Command::Bench(args)) => bench::run(cli, args, &ui),
        Some(Command::Agent(command)) => agent::run(cli, &ui, command),
        Some(Command::Doctor) => doctor::run(cli, &ui),
        Some(Command::Completions { shell }) => hand_out(&ui, &shell::completions(*shell)),
        Some(Command::Man) => hand_out(&ui, &shell::manual_page()?),
    }
}

fn hand_out(ui: &Ui, text: &[u8]) -> Result<Outcome> {
    ui.print_raw(text).context("cannot write to stdout")?;
    Ok(Outcome::Done)
}

fn look_or_change(cli: &Cli, ui: &Ui) -> Result<Outcome> {
    let mut report = Report::new(cli.request());
    let outcome = answer(cli, ui, &mut report).unwrap_or_else(|error| {
        report.error = Some(format!("{error:#}"));
        Outcome::Failed
    });
    report.exit_code = outcome.code();
    if let Some(error) = &report.error {
        ui.error(error);
    }
    if cli.json {
        ui.print(&json::render(&report)?)
            .context("cannot write the report to stdout")?;
    }
    Ok(outcome)
}

fn answer(cli: &Cli, ui: &Ui, report: &mut Report) -> Result<Outcome> {
    let home = home::find(cli.home.as_deref())?;
    if let Some(note) = &home.note {
        ui.note(note);
        report.notes.push(note.clone());
    }
    let session = Session {
        cli,
        ui,
        home: &home.path,
    };
    match cli.request() {
        Request::Check(size) => session.check(report, size),
        Request::Change(goal) => session.change(report, goal, patch::carry_out),
        Request::Rehearse(goal) => session.change(report, goal, patch::rehearse),
    }
}
