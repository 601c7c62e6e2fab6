//! `lmpatch --check`: shows every backend and tells what is not as it should be. Reads only.

use std::thread;

use anyhow::{Result, bail};
use glob::Pattern;

use crate::bench::marker;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::files;
use crate::lmstudio::backends::{INSTALL, amphibian};
use crate::lmstudio::home::Home;
use crate::lmstudio::lms::Lms;
use crate::lmstudio::workers::{self, LoadState, WorkerSnapshot};
use crate::output::{Level, Output};
use crate::patch::backend::Surveyed;
use crate::patch::file::State;
use crate::patch::{self, Survey};
use crate::report::{BackendReport, Report, notes, table};

/// Shows every backend; with a size, tells whether every one of them has it.
pub fn run(cli: &Cli, output: &Output, home: &Home, report: &mut Report) -> Result<Exit> {
    let look = || workers::snapshot(&home.path);
    // Where this thread cannot be had, or is not needed, the processes are looked at later, or never.
    let (survey, seen) = thread::scope(|scope| {
        let seen = cli
            .wants_workers()
            .then(|| thread::Builder::new().spawn_scoped(scope, look));
        let survey = survey(cli, home);
        (survey, seen.and_then(|seen| seen.ok()?.join().ok()))
    });
    let survey = survey?;
    let rows = survey.backends.iter().map(BackendReport::surveyed);
    report.backends = rows.collect();
    let backends: Vec<_> = survey.backends.iter().collect();
    look_at_workers(cli, home, report, &backends, seen);
    notes::on_check(report, &survey);
    if let Some(command) = marker::interrupted(&home.path) {
        let next = format!("`{command}` gives the sizes back");
        let what = "a benchmark was cut off before it had put the sizes back";
        report.findings.add(Level::Warning, None, what, &next);
    }
    report.missing_backends = survey.home.missing;
    let mut shown = Ok(());
    if cli.shows_text() {
        shown = output.print(&(table::backends(report, output) + table::load_state(report)));
    }
    report.findings.tell(output);
    if let Some(size) = report.size {
        output.say(&table::verdict(size, &survey.backends));
    }
    shown.map(|()| exit(&survey.backends, report.size))
}

/// The home's backends that were asked for. Fails where there is none.
pub fn survey(cli: &Cli, home: &Home) -> Result<Survey> {
    let survey = patch::survey(&home.path, &cli.backend)?;
    if !survey.backends.is_empty() {
        return Ok(survey);
    }
    let amphibian = amphibian(&home.path);
    let directory = amphibian.display();
    let patterns: Vec<_> = cli.backend.iter().map(Pattern::as_str).collect();
    if patterns.is_empty() {
        let other = home.other();
        bail!("no MLX backend found in {directory}; {INSTALL}{other}");
    }
    let patterns = patterns.join(" or ");
    bail!("no backend in {directory} matches {patterns}; `lmpatch --check` shows them all")
}

/// Adds to the report whether the values are in effect, by what was `seen` already, or by what is seen now.
pub fn look_at_workers(
    cli: &Cli,
    home: &Home,
    report: &mut Report,
    backends: &[&Surveyed],
    seen: Option<WorkerSnapshot>,
) {
    if !cli.wants_workers() {
        return;
    }
    let mut snapshot = seen.unwrap_or_else(|| workers::snapshot(&home.path));
    let states = |snapshot: &WorkerSnapshot| -> Vec<LoadState> {
        let state = |of: &&Surveyed| snapshot.load_state(&of.backend, written(of));
        backends.iter().map(state).collect()
    };
    let mut found = states(&snapshot);
    // Only where it makes a difference, and where LM Studio runs: `lms` would start it.
    if found
        .iter()
        .any(|state| matches!(state, LoadState::ReloadNeeded(_)))
    {
        snapshot.ask(&Lms::of(&home.path));
        found = states(&snapshot);
    }
    for (row, state) in report.backends.iter_mut().zip(found) {
        if let LoadState::ReloadNeeded(pids) = &state {
            row.stale_workers.clone_from(pids);
        }
        row.in_effect = Some(state);
    }
    report.workers = Some(snapshot.workers);
}

/// When the last of a backend's files was written, in seconds since 1970; none where one has no date.
fn written(surveyed: &Surveyed) -> Option<u64> {
    let times = surveyed
        .files
        .iter()
        .map(|file| files::modified(&file.path));
    times.collect::<Option<Vec<_>>>()?.into_iter().max()
}

fn exit(backends: &[Surveyed], size: Option<u64>) -> Exit {
    let is_refused = |backend: &Surveyed| backend.state() == State::Refused;
    match size {
        _ if backends.iter().any(is_refused) => Exit::Failed,
        Some(size) if !backends.iter().all(|backend| backend.has(size)) => Exit::OtherValue,
        _ => Exit::Done,
    }
}
