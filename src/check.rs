//! `lmpatch --check`: shows every backend and says what is wrong. Only reads.

use std::cell::LazyCell;
use std::path::Path;
use std::thread;

use anyhow::{Result, bail};

use crate::cli::Cli;
use crate::lmstudio::backends::{INSTALL, amphibian};
use crate::lmstudio::home;
use crate::lmstudio::lms::Lms;
use crate::lmstudio::workers::{self, LoadState, WorkerSnapshot};
use crate::output::Level::Warning;
use crate::output::{Exit, Output, flags};
use crate::patch::backend::{State, Surveyed};
use crate::patch::sites::compile_patterns;
use crate::report::{BackendReport, Report, notes, table};
use crate::{files, marker, patch};

/// Shows every backend; with a size, tells whether every one of them has it.
pub fn run(cli: &Cli, output: &Output, home: &Path, report: &mut Report) -> Result<Exit> {
    let (survey, seen) = thread::scope(|scope| {
        // Both while the files are found and read. If the thread cannot start, each is done where it is needed.
        let scan = || {
            compile_patterns();
            workers::snapshot(home)
        };
        let is_shown = cli.json || !cli.quiet;
        let scanning = is_shown.then(|| thread::Builder::new().spawn_scoped(scope, scan));
        let survey = survey(cli, home, report);
        (survey, scanning.and_then(|thread| thread.ok()?.join().ok()))
    });
    let row = |one| BackendReport::new(one, None);
    report.backends = survey?.into_iter().map(row).collect();
    add_load_states(cli, home, report, seen);
    report.findings = notes::of(report);
    if let Some(command) = marker::interrupted(home) {
        let next = format!("{command} restores them");
        let what = "a benchmark was interrupted, and its sizes may still be set";
        report.findings.add(Warning, None, what, &next);
    }
    let mut shown = Ok(());
    if !cli.json && !cli.quiet {
        shown = output.print(&table::backends(report, output));
    }
    report.findings.print(output);
    let is_as_asked = all_have_size(cli, output, report);
    shown.map(|()| match report.findings.has_error() {
        true => Exit::Failed,
        false if is_as_asked => Exit::Done,
        false => Exit::OtherValue,
    })
}

/// The backends that were asked for; the report gets what is absent. Fails if there is none, or none for a pattern.
pub fn survey(cli: &Cli, home: &Path, report: &mut Report) -> Result<Vec<Surveyed>> {
    let (backends, absent) = patch::survey(home, &cli.backend)?;
    report.absent = absent;
    let missing = &report.absent.missing;
    let amphibian = amphibian(home);
    let directory = amphibian.display();
    let found = backends.iter().map(|one| &one.backend.name);
    let names: Vec<_> = found.chain(missing.iter().map(|one| &one.name)).collect();
    for pattern in &cli.backend {
        if !names.iter().any(|name| pattern.matches(name)) {
            let next = "`lmpatch --check` shows them all";
            bail!("no backend in {directory} matches '{pattern}'; {next}");
        }
    }
    if backends.is_empty() {
        if let Some(missing) = missing.iter().min_by_key(|one| !one.selected) {
            let (what, next) = notes::missing(missing);
            bail!("no MLX backend found in {directory}: {what}; {next}");
        }
        let hint = cli.home.is_none().then(|| home::hint(home));
        let hint = hint.unwrap_or_default();
        bail!("no MLX backend found in {directory}; {INSTALL}{hint}");
    }
    Ok(backends)
}

/// Adds whether loaded models have the values, going by the processes `seen`, or else by a look at them now.
pub fn add_load_states(cli: &Cli, home: &Path, report: &mut Report, seen: Option<WorkerSnapshot>) {
    // A run that prints only errors does not report it.
    if cli.quiet && !cli.json && cli.reload.is_none() {
        return;
    }
    let seen = seen.unwrap_or_else(|| workers::snapshot(home));
    let chosen = &report.absent.selections;
    let loaded = LazyCell::new(|| loaded(home));
    for row in &mut report.backends {
        let backend = &row.now.backend;
        let state = seen.load_state(backend, || written(row), chosen, || *loaded);
        if let LoadState::ReloadNeeded(older) = &state {
            row.stale_workers = older.iter().map(|worker| worker.pid).collect();
        }
        row.in_effect = Some(state);
    }
    report.workers = Some(seen.workers);
}

/// How many MLX models and how many others `lms` has loaded on this Mac.
fn loaded(home: &Path) -> Option<(usize, usize)> {
    let models = Lms::of(home).loaded().ok()?;
    let mlx = models.iter().filter(|model| model.is_mlx()).count();
    Some((mlx, models.len() - mlx))
}

/// When the last of a backend's files was written, in seconds since 1970; `None` if one has no date.
fn written(row: &BackendReport) -> Option<u64> {
    let times = row.now.files.iter().map(|file| files::modified(&file.path));
    times.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Says how many backends have the size that was asked about, if one was. Returns whether all have it, except those that
/// are unfinished and not in use.
fn all_have_size(cli: &Cli, output: &Output, report: &Report) -> bool {
    let Some(size) = report.size else { return true };
    let rows = &report.backends;
    let (having, lacking): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.has(size));
    let mut text = format!("{size} in {} of {} backends", having.len(), rows.len());
    if lacking.iter().any(|row| row.why.is_none()) {
        text += &format!("; `lmpatch {size}{}` sets it", flags(&cli.backend));
    }
    output.say(&text);
    let is_aside =
        |row: &&BackendReport| !row.now.backend.selected && row.state == State::Incomplete;
    let is_whole = !report.absent.missing.iter().any(|one| one.selected);
    is_whole && !having.is_empty() && lacking.iter().all(is_aside)
}
