//! `lmpatch --check`: shows every backend and tells what is not as it should be. Reads only.

use anyhow::Result;

use crate::bench::marker;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::files;
use crate::lmstudio::home::Home;
use crate::lmstudio::lms::Lms;
use crate::lmstudio::workers::{self, LoadState};
use crate::output::Output;
use crate::patch;
use crate::patch::backend::{State, Surveyed};
use crate::report::findings::Level;
use crate::report::{BackendReport, Report, notes, table};

/// Shows every backend; with a size, tells whether every one of them has it.
pub fn run(cli: &Cli, output: &Output, home: &Home, report: &mut Report) -> Result<Exit> {
    let mut survey = patch::survey(&home.path, &cli.backend)?;
    let backends: Vec<_> = survey.backends.iter().collect();
    let rows = survey.backends.iter().map(BackendReport::surveyed);
    report.backends = rows.collect();
    cli.require_backends(report, home)?;
    look_at_workers(cli, output, home, report, &backends);
    notes::on_check(report, &survey);
    if let Some(command) = marker::interrupted(&home.path) {
        let next = format!("`{command}` gives the sizes back");
        let what = "a benchmark was cut off before it had put the sizes back";
        report.findings.add(Level::Warning, None, what, &next);
    }
    report.missing_backends = std::mem::take(&mut survey.home.missing);
    let shown = cli.show(output, || {
        table::backends(report, output) + table::load_state(report)
    });
    report.findings.tell(output);
    if let Some(size) = report.size {
        output.say(&table::verdict(size, &survey.backends));
    }
    shown.map(|()| exit(&survey.backends, report.size))
}

/// Adds to the report whether the values are in effect. A run that prints errors only has no use for it.
pub fn look_at_workers(
    cli: &Cli,
    output: &Output,
    home: &Home,
    report: &mut Report,
    backends: &[&Surveyed],
) {
    if output.is_quiet && !cli.json {
        return;
    }
    let mut snapshot = workers::snapshot(&home.path);
    let is_old = |surveyed: &&Surveyed| {
        let state = snapshot.load_state(&surveyed.backend, written(surveyed));
        matches!(state, LoadState::ReloadNeeded(_))
    };
    // Only where it makes a difference, and where LM Studio runs: `lms` would start it.
    if backends.iter().any(is_old) {
        snapshot.ask(&Lms::of(&home.path));
    }
    for (row, surveyed) in report.backends.iter_mut().zip(backends) {
        let state = snapshot.load_state(&surveyed.backend, written(surveyed));
        if let LoadState::ReloadNeeded(pids) = &state {
            row.stale_workers.clone_from(pids);
        }
        row.in_effect = Some(state);
    }
    report.workers = Some(snapshot.workers);
}

/// When the last of a backend's files was written, in seconds since 1970; none where one has no date.
fn written(surveyed: &Surveyed) -> Option<u64> {
    let mut last = None;
    for file in &surveyed.files {
        last = last.max(Some(files::modified(&file.path)?));
    }
    last
}

fn exit(backends: &[Surveyed], size: Option<u64>) -> Exit {
    let is_refused = |backend: &Surveyed| backend.state() == State::Refused;
    match size {
        _ if backends.iter().any(is_refused) => Exit::Failed,
        Some(size) if !backends.iter().all(|backend| backend.has(size)) => Exit::OtherValue,
        _ => Exit::Done,
    }
}
