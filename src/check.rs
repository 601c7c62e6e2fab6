//! `lmpatch --check`: shows every backend and says what is wrong. Only reads.

use std::path::Path;
use std::thread;

use anyhow::{Result, bail};
use glob::Pattern;

use crate::bench::marker;
use crate::cli::Cli;
use crate::effect;
use crate::lmstudio::backends::{INSTALL, amphibian};
use crate::lmstudio::home;
use crate::lmstudio::workers;
use crate::output::{Exit, Level, Output};
use crate::patch::backend::Surveyed;
use crate::patch::file::State;
use crate::patch::{self, Survey};
use crate::report::{BackendReport, Report, notes, table};

/// Shows every backend; with a size, tells whether every one of them has it.
pub fn run(cli: &Cli, output: &Output, home: &Path, report: &mut Report) -> Result<Exit> {
    let scan = || workers::snapshot(home);
    // Without this thread, processes are looked at later; a quiet run never looks at them.
    let (survey, seen) = thread::scope(|scope| {
        let is_shown = cli.json || !cli.quiet;
        let seen = is_shown.then(|| thread::Builder::new().spawn_scoped(scope, scan));
        let survey = survey(cli, home);
        (survey, seen.and_then(|seen| seen.ok()?.join().ok()))
    });
    let survey = survey?;
    let rows = survey.backends.iter().map(BackendReport::surveyed);
    report.backends = rows.collect();
    let backends: Vec<_> = survey.backends.iter().collect();
    effect::add(cli, home, report, &backends, seen);
    notes::on_check(report, &survey);
    if let Some(command) = marker::interrupted(home) {
        let next = format!("{command} restores them");
        let what = "a benchmark was interrupted before restoring the sizes";
        report.findings.add(Level::Warning, None, what, &next);
    }
    report.missing_backends = survey.home.missing;
    let mut shown = Ok(());
    if cli.shows_text() {
        shown = output.print(&(table::backends(report, output) + effect::summary(report)));
    }
    report.findings.print(output);
    if let Some(size) = report.size {
        let command = cli.limited(format!("lmpatch {size}"));
        output.say(&table::verdict(size, &survey.backends, &command));
    }
    let is_missing = report.is_selected_missing();
    shown.map(|()| exit(&survey.backends, report.size, is_missing))
}

/// The backends that were asked for. Fails if there is none.
pub fn survey(cli: &Cli, home: &Path) -> Result<Survey> {
    let survey = patch::survey(home, &cli.backend)?;
    if !survey.backends.is_empty() {
        return Ok(survey);
    }
    let amphibian = amphibian(home);
    let directory = amphibian.display();
    let patterns: Vec<_> = cli.backend.iter().map(Pattern::as_str).collect();
    if patterns.is_empty() {
        let other = cli.home.is_none().then(|| home::other(home));
        let other = other.unwrap_or_default();
        bail!("no MLX backend found in {directory}; {INSTALL}{other}");
    }
    let patterns = patterns.join(" or ");
    bail!("no backend in {directory} matches {patterns}; `lmpatch --check` shows them all")
}

/// Whether a backend lacks the size. As in a set, an unfinished backend that is not in use does not count.
fn lacks_size(backends: &[Surveyed], size: u64) -> bool {
    let counts = |one: &Surveyed| one.state() != State::Incomplete || one.backend.selected;
    let lacks = |one: &Surveyed| !one.has(size) && counts(one);
    backends.iter().any(lacks) || !backends.iter().any(|one| one.has(size))
}

/// `is_missing`: whether the selected backend is not there at all.
fn exit(backends: &[Surveyed], size: Option<u64>, is_missing: bool) -> Exit {
    let is_refused = |backend: &Surveyed| backend.state() == State::Refused;
    match size {
        _ if backends.iter().any(is_refused) => Exit::Failed,
        Some(size) if is_missing || lacks_size(backends, size) => Exit::OtherValue,
        _ => Exit::Done,
    }
}
