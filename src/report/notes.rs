//! What is wrong, or good to know: one line each, with its next step, and only if it applies.

use std::path::Path;

use super::{Action, BackendReport, Findings, ReloadReport, Report};
use crate::agent;
use crate::files::resolved;
use crate::lmstudio::backends::{Absent, MissingBackend};
use crate::lmstudio::workers::{LoadState, Worker};
use crate::output::Level::{Error, Note, Warning};
use crate::output::flag;
use crate::patch::Outcome;
use crate::patch::backend::{State, VendorFile};
use crate::patch::settings::{DEFAULT_SIZE, SIZES};

/// Prompt-cache checkpoints are kept on a grid of this many tokens (mlx-engine's vision kit).
const CHECKPOINT_GRID: u64 = 256;
/// Engines with this file fit the context to memory with the chunk in the formula (2026-07-14 to 2026-08-21).
const CONTEXT_FIT: &str = "mlx_engine/model_kit/batched_vision/context_fit.py";

/// All that there is to tell of a run besides its table.
pub fn of(report: &Report) -> Findings {
    let mut found = Findings::default();
    for row in &report.backends {
        on_blocked(&mut found, report, row);
        on_originals(&mut found, row);
        on_loaded(&mut found, row, report.reload.is_some());
        if report.action == Action::Check {
            on_values(&mut found, report, row);
        }
    }
    for row in report.used().filter(|row| row.why.is_none()) {
        on_size(&mut found, row);
    }
    on_absent(&mut found, &report.absent, report.action);
    on_agent(&mut found, report);
    if let Some(reload) = &report.reload {
        on_reload(&mut found, reload);
    }
    found
}

fn on_blocked(found: &mut Findings, report: &Report, row: &BackendReport) {
    let Some(why) = &row.why else { return };
    let what = match row.result {
        Some(Outcome::Refused | Outcome::Incomplete) if row.now.backend.selected => {
            let apps = row.now.backend.selected_by().join(" and ");
            format!("in use by {apps}, and it was not changed: {why}")
        }
        _ => why.clone(),
    };
    let unfinished = "let LM Studio finish its update, or reinstall the runtime in it";
    let is_unfinished = |row: &BackendReport| row.state == State::Incomplete;
    let matters = row.now.backend.selected || report.backends.iter().all(is_unfinished);
    let (level, next) = match row.result {
        Some(Outcome::Failed) => (Error, "run lmpatch again when that is fixed"),
        // What to do depends on why.
        Some(Outcome::Refused) => (Error, ""),
        None if row.state == State::Refused => (Error, ""),
        _ if !matters => (Note, unfinished),
        None => (Warning, unfinished),
        Some(_) => (Error, unfinished),
    };
    found.add(level, Some(row), &what, next);
}

fn on_originals(found: &mut Findings, row: &BackendReport) {
    for source in row.now.files.iter().filter_map(VendorFile::source) {
        if let Err(why) = &source.receipt {
            let what = format!("the receipt is ignored: {why}");
            // Moving it away is no advice: what is there now would be taken for what lmpatch first found.
            let next = "for the vendor's file, reinstall the runtime in LM Studio";
            found.add(Note, Some(row), &what, next);
        }
    }
    if row.came_edited {
        let what = "it had been edited: --revert restores it as lmpatch first found it";
        let next = "for the vendor's file, reinstall the runtime in LM Studio";
        found.add(Note, Some(row), what, next);
    }
}

fn on_loaded(found: &mut Findings, row: &BackendReport, is_reloaded: bool) {
    match &row.in_effect {
        Some(LoadState::Unknown(why)) => {
            let what = format!("it is unknown whether loaded models have its values: {why}");
            found.add(Note, Some(row), &what, "load them again to be sure");
        }
        Some(LoadState::ReloadNeeded(older)) => {
            let pids: Vec<_> = older.iter().map(|worker| worker.pid.to_string()).collect();
            let why = format!("worker {} started before the last edit", pids.join(", "));
            let what = format!("a loaded model may still have the old values: {why}");
            // What has just failed is no advice, and `lms` knows LM Studio's models only.
            let may_help = !is_reloaded && older.iter().all(Worker::is_lm_studios);
            let or = if may_help { ", or use --reload" } else { "" };
            let level = if is_reloaded { Error } else { Warning };
            let next = format!("load it again in its app{or}");
            found.add(level, Some(row), &what, &next);
        }
        // If it was refused, say, what was asked for is in no model.
        Some(LoadState::InEffect) if row.why.is_none() => {
            found.add(Note, Some(row), "loaded models have its values", "");
        }
        _ => {}
    }
}

fn on_values(found: &mut Findings, report: &Report, row: &BackendReport) {
    let only = flag(&row.now.backend.name);
    let patched = |row: &&BackendReport| row.state == State::Patched;
    let mut patched = report.backends.iter().filter(patched);
    if row.state == State::Mixed {
        let what = "its sites have different values, so it is set only in part";
        let size = size_set(row).unwrap_or(DEFAULT_SIZE);
        let next = format!("`lmpatch {size}{only}` sets them all");
        found.add(Warning, Some(row), what, &next);
    } else if row.state == State::Stock
        && row.now.backend.selected
        && let Some(size) = patched.find_map(size_set)
        && row.chunk != Some(size)
    {
        let apps = row.now.backend.selected_by().join(" and ");
        let what = format!("in use by {apps}, and at stock while others are set");
        let next = format!("`lmpatch {size}{only}` sets it");
        found.add(Warning, Some(row), &what, &next);
    }
}

/// What somebody has set it to, in tokens, if lmpatch can do that too.
fn size_set(row: &BackendReport) -> Option<u64> {
    let is_set = |chunk: &u64| Some(*chunk) != row.stock && SIZES.contains(chunk);
    row.chunk.filter(is_set)
}

fn on_size(found: &mut Findings, row: &BackendReport) {
    let (Some(size), Some(stock)) = (size_set(row), row.stock) else {
        return;
    };
    let only = flag(&row.now.backend.name);
    if !size.is_multiple_of(CHECKPOINT_GRID) {
        let why = "so hybrid models lose their prompt cache on disk";
        let what = format!("{size} is not a multiple of {CHECKPOINT_GRID}, {why}");
        let below = (size / CHECKPOINT_GRID).max(1) * CHECKPOINT_GRID;
        let next = format!("`lmpatch {below}{only}` keeps it");
        found.add(Note, None, &what, &next);
    }
    let mut packages = row.now.backend.site_packages.iter().flatten();
    if size < stock {
        let what = format!("{size} is below its stock {stock}: prefill may be slower");
        let next = format!("`lmpatch {stock}{only}` sets that again");
        found.add(Note, Some(row), &what, &next);
    } else if packages.any(|packages| packages.join(CONTEXT_FIT).exists()) {
        let what =
            "a larger chunk leaves less memory for context: 58,880 tokens at 2048, 34,304 at 4096";
        let next = format!("if you need the longer context: `lmpatch {stock}{only}`");
        found.add(Note, Some(row), what, &next);
    }
}

fn on_absent(found: &mut Findings, absent: &Absent, action: Action) {
    for one in &absent.missing {
        let level = match action {
            _ if !one.selected => Note,
            Action::Set => Error,
            // A backend that is not on disk needs no revert.
            Action::Check | Action::Revert => Warning,
        };
        let (what, next) = missing(one);
        found.add(level, None, &what, &next);
    }
    for backend in absent.left_out.iter().filter(|backend| backend.selected) {
        let what = format!("{} is selected, but --backend omits it", backend.name);
        found.add(Warning, None, &what, "`lmpatch --check` shows it");
    }
    for (app, selected) in &absent.selections {
        let Err(why) = selected else { continue };
        let what = format!("the runtime of {app} is unknown: its preferences {why}");
        let next = "choose one under Runtime in that app (in LM Studio: or `lms runtime select`)";
        found.add(Note, None, &what, next);
    }
}

/// What a missing backend means, and what to do.
pub fn missing(missing: &MissingBackend) -> (String, String) {
    let (runtime, name, spec) = (&missing.runtime, &missing.name, &missing.specifier);
    let selected = missing.selected.then_some(", the selected runtime,");
    let selected = selected.unwrap_or_default();
    let why = "which is not on disk: an unfinished update";
    let what = format!("{runtime}{selected} needs {name}, {why}");
    let again = format!("`lms runtime remove {spec}`, then `lms runtime get {spec}`");
    (what, format!("to download it again: {again}"))
}

fn on_agent(found: &mut Findings, report: &Report) {
    let home = Path::new(report.home.as_deref().unwrap_or_default());
    let is_here = |of: &str| resolved(Path::new(of)) == resolved(home);
    let agent = agent::status().ok();
    let agent = agent.filter(|agent| agent.home.as_deref().is_none_or(is_here));
    let Some(agent) = agent else { return };
    if let Some(problem) = &agent.problem {
        found.add(Warning, None, problem, &agent.fix);
        return;
    }
    let Some(size) = agent.size else { return };
    let other = |chunk: &u64| *chunk != size && SIZES.contains(chunk);
    let rows = &report.backends;
    let mut selected = rows.iter().filter(|row| row.now.backend.selected);
    if rows.iter().any(|row| agent::will_set(&row.now, size)) {
        let what = format!("the agent will set {size} again");
        found.add(Note, None, &what, "`lmpatch agent uninstall` ends that");
    } else if let Some(chunk) = selected.find_map(|row| row.chunk.filter(other)) {
        let what = format!("the agent sets {size}, and the selected backend has {chunk}");
        let keep = format!("`lmpatch agent install {chunk}` keeps {chunk}");
        let next = format!("{keep}, `lmpatch {size}` sets {size}");
        found.add(Note, None, &what, &next);
    }
}

fn on_reload(found: &mut Findings, reload: &ReloadReport) {
    if let Some(error) = &reload.error {
        let what = format!("no model was loaded again: {error}");
        found.add(Error, None, &what, "");
    }
    for done in &reload.models {
        let level = if done.failed.is_some() { Error } else { Note };
        let as_before = || format!("{} was reloaded as it was", done.model.identifier);
        let what = done.problem().unwrap_or_else(as_before);
        found.add(level, None, &what, "");
    }
}
