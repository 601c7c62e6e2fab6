//! Whether loaded models have the values that are on disk.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::path::Path;

use crate::cli::Cli;
use crate::files;
use crate::lmstudio::lms::{Lms, LoadedModel};
use crate::lmstudio::runtimes::LM_STUDIO;
use crate::lmstudio::workers::LoadState::{InEffect, NotLoaded, ReloadNeeded, Unknown};
use crate::lmstudio::workers::{self, Worker, WorkerSnapshot};
use crate::output::Level::{self, Note};
use crate::output::{Output, flag};
use crate::patch::settings::SIZES;
use crate::report::{BackendReport, Findings, Report};

/// Adds to the report whether the values are in effect, going by the processes `seen`, or else by a look at them now.
pub fn add(cli: &Cli, home: &Path, report: &mut Report, seen: Option<WorkerSnapshot>) {
    // A run that prints only errors does not report it.
    if cli.quiet && !cli.json && cli.reload.is_none() {
        return;
    }
    let snapshot = seen.unwrap_or_else(|| workers::snapshot(home));
    let selections = &report.absent.selections;
    let loaded = LazyCell::new(|| loaded(home));
    for row in &mut report.backends {
        let state = snapshot.load_state(&row.backend, || written(row), selections, || *loaded);
        row.stale_workers = match &state {
            ReloadNeeded(older) => older.iter().map(|worker| worker.pid).collect(),
            _ => Vec::new(),
        };
        row.in_effect = Some(state);
    }
    report.workers = Some(snapshot.workers);
}

/// How many MLX models and how many others `lms` has loaded on this Mac.
fn loaded(home: &Path) -> Option<(usize, usize)> {
    let mut models = Lms::of(home).loaded().ok()?;
    models.retain(LoadedModel::is_here);
    let mlx = models.iter().filter(|model| model.is_mlx()).count();
    Some((mlx, models.len() - mlx))
}

/// When the last of a backend's files was written, in seconds since 1970; `None` if one has no date.
fn written(row: &BackendReport) -> Option<u64> {
    let times = row.files.iter().map(|file| files::modified(&file.path));
    times.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Adds a finding, of `level` at most, if loaded models do not have a backend's values, or if that is unknown.
pub fn on_row(found: &mut Findings, row: &BackendReport, level: Level) {
    match &row.in_effect {
        Some(Unknown(why)) => {
            let what = format!("it is unknown whether loaded models have its values: {why}");
            found.add(Note, Some(row), &what, "load them again to be sure");
        }
        Some(ReloadNeeded(older)) => {
            let pids: Vec<_> = older.iter().map(|worker| worker.pid.to_string()).collect();
            let pids = pids.join(", ");
            let why = format!("worker {pids} started before the last edit");
            let what = format!("a loaded model may still have the old values: {why}");
            let app = |worker| {
                if Worker::is_lm_studios(worker) {
                    LM_STUDIO
                } else {
                    &worker.app
                }
            };
            let apps: BTreeSet<_> = older.iter().map(app).collect();
            let apps: Vec<_> = apps.into_iter().collect();
            let mut next = format!("load it again in {}", apps.join(" and "));
            let chunk = row.chunk.filter(|n| row.has(*n) && SIZES.contains(n));
            // What has just failed is no advice.
            let is_sensible = level == Level::Warning && older.iter().all(Worker::is_lm_studios);
            if let Some(chunk) = chunk.filter(|_| is_sensible) {
                let only = flag(&row.backend.name);
                next = format!("`lmpatch {chunk}{only} --reload` reloads it");
            }
            found.add(level, Some(row), &what, &next);
        }
        _ => {}
    }
}

/// Says whether the values are in effect now, and returns whether they may be.
pub fn after_reload(output: &Output, report: &mut Report) -> bool {
    let mut found = Findings::default();
    for row in &report.backends {
        on_row(&mut found, row, Level::Error);
    }
    found.print(output);
    if let Some(line) = summary(report) {
        output.say(line);
    }
    report.findings.append(found);
    let mut rows = report.backends.iter();
    rows.all(|row| row.stale_workers.is_empty())
}

/// Whether the values are in effect, unless a finding already says so, or only some backends were looked at.
pub fn summary(report: &Report) -> Option<&'static str> {
    let is_told = |row: &BackendReport| match row.in_effect {
        // It was refused, say, so what was asked for is in no model.
        Some(InEffect) => row.why.is_some(),
        Some(NotLoaded) => false,
        _ => true,
    };
    let is_in_effect = |row: &BackendReport| row.in_effect == Some(InEffect);
    let rows = &report.backends;
    if rows.iter().any(is_told) || !report.flags.is_empty() {
        None
    } else if rows.iter().any(is_in_effect) {
        Some("Every loaded MLX model has these values.")
    } else if report.workers.as_ref().is_none_or(Vec::is_empty) {
        Some("No model is loaded.")
    } else {
        Some("No loaded model uses these backends.")
    }
}
