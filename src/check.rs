//! `lmpatch --check`: shows every backend and says what is wrong. Only reads.

use std::path::Path;
use std::thread;

use anyhow::{Result, bail};

use crate::cli::Cli;
use crate::effect;
use crate::lmstudio::backends::{Absent, INSTALL, amphibian};
use crate::lmstudio::home;
use crate::lmstudio::workers;
use crate::marker;
use crate::output::Level::Warning;
use crate::output::{Exit, Output};
use crate::patch;
use crate::patch::backend::Surveyed;
use crate::patch::file::State;
use crate::patch::sites::compile_patterns;
use crate::report::{BackendReport, Report, notes, table};

/// Shows every backend; with a size, tells whether every one of them has it.
pub fn run(cli: &Cli, output: &Output, home: &Path, report: &mut Report) -> Result<Exit> {
    // Both while the files are found and read. If the thread cannot start, each is done where it is needed.
    let scan = || {
        compile_patterns();
        workers::snapshot(home)
    };
    let (survey, seen) = thread::scope(|scope| {
        let is_shown = cli.json || !cli.quiet;
        let scanning = is_shown.then(|| thread::Builder::new().spawn_scoped(scope, scan));
        let survey = survey(cli, home, report);
        (survey, scanning.and_then(|thread| thread.ok()?.join().ok()))
    });
    report.backends = survey?.into_iter().map(BackendReport::surveyed).collect();
    effect::add(cli, home, report, seen);
    notes::on_check(report);
    if let Some(command) = marker::interrupted(home) {
        let next = format!("{command} restores them");
        let what = "a benchmark was interrupted, and its sizes may still be set";
        report.findings.add(Warning, None, what, &next);
    }
    let mut shown = Ok(());
    if cli.shows_text() {
        let mut text = table::backends(report, output);
        text.extend(effect::summary(report).map(|line| line.to_owned() + "\n"));
        shown = output.print(&text);
    }
    report.findings.print(output);
    if let Some(size) = report.size {
        output.say(&table::verdict(size, report));
    }
    shown.map(|()| exit(report))
}

/// The backends that were asked for; the report gets what is absent. Fails if there is none, or none for a pattern.
pub fn survey(cli: &Cli, home: &Path, report: &mut Report) -> Result<Vec<Surveyed>> {
    let survey = patch::survey(home, &cli.backend)?;
    report.absent = survey.absent;
    let Absent {
        missing, left_out, ..
    } = &report.absent;
    let amphibian = amphibian(home);
    let directory = amphibian.display();
    let found = survey.backends.iter().map(|one| &one.backend.name);
    let names: Vec<_> = found.chain(missing.iter().map(|one| &one.name)).collect();
    let are_some = !survey.backends.is_empty() || !left_out.is_empty();
    for pattern in cli.backend.iter().filter(|_| are_some) {
        if !names.iter().any(|name| pattern.matches(name)) {
            let next = "`lmpatch --check` shows them all";
            bail!("no backend in {directory} matches '{pattern}'; {next}");
        }
    }
    if survey.backends.is_empty() {
        let missing = missing.iter();
        let wanted = missing.filter(|one| patch::is_wanted(&one.name, &cli.backend));
        if let Some(missing) = wanted.min_by_key(|one| !one.selected) {
            let (what, next) = notes::missing(missing);
            bail!("no MLX backend found in {directory}: {what}; {next}");
        }
        let hint = cli.home.is_none().then(|| home::hint(home));
        let hint = hint.unwrap_or_default();
        bail!("no MLX backend found in {directory}; {INSTALL}{hint}");
    }
    Ok(survey.backends)
}

fn exit(report: &Report) -> Exit {
    let rows: Vec<_> = report.counted().collect();
    let is_part = rows.is_empty() || report.is_selected_missing();
    match report.size {
        _ if rows.iter().any(|row| row.state == State::Refused) => Exit::Failed,
        Some(size) if is_part || !rows.iter().all(|row| row.has(size)) => Exit::OtherValue,
        _ => Exit::Done,
    }
}
