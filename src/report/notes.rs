//! What is wrong, or good to know: one line each, with its next step, and only if it applies.

use std::path::Path;

use super::{Action, BackendReport, Findings, Report};
use crate::agent;
use crate::effect;
use crate::files::resolved;
use crate::lmstudio::backends::{Absent, Backend, MissingBackend};
use crate::output::Level::{self, Error, Note, Warning};
use crate::output::flag;
use crate::patch::file::{Source, State, VendorFile};
use crate::patch::settings::{DEFAULT_SIZE, SIZES};
use crate::patch::{Applied, Outcome};

/// Prompt-cache checkpoints are kept on a grid of this many tokens (mlx-engine's vision kit).
const CHECKPOINT_GRID: u64 = 256;
/// From this size on, reports of running out of memory begin (mlx-lm #943, lmstudio-bug-tracker #2240).
const MEMORY_CAUTION: u64 = 8192;

/// Engines with this file fit the context to memory with the chunk in the formula (2026-07-14 to 2026-08-21).
const CONTEXT_FIT: &str = "mlx_engine/model_kit/batched_vision/context_fit.py";

/// What a check finds.
pub fn on_check(report: &mut Report) {
    let (rows, found, flags) = (&report.backends, &mut report.findings, &report.flags);
    let is_set = |row: &&BackendReport| row.state == State::Patched && row.chunk != row.stock;
    let others = rows.iter().find(is_set).and_then(|row| row.chunk);
    let others = others.filter(|size| SIZES.contains(size));
    let are_alike = rows.iter().all(|row| row.chunk == rows[0].chunk);
    for row in rows {
        let only = flag(&row.backend.name);
        on_backend(found, row, row.chunk, if are_alike { flags } else { &only });
        on_values(found, row, others);
    }
    on_missing(found, &report.absent, Warning);
    for (app, selected) in &report.absent.selections {
        let Err(why) = selected else { continue };
        let what = format!("the runtime of {app} is unknown: its preferences {why}");
        let next =
            "choose one under Runtime in that app (for LM Studio also with `lms runtime select`)";
        found.add(Note, None, &what, next);
    }
    let Some(agent) = agent_of(report.home.as_deref()) else {
        return;
    };
    if let Some(problem) = &agent.problem {
        found.add(Warning, None, problem, &agent.fix());
    } else if let Some(size) = agent.size {
        let selected = rows.iter().filter(|row| row.backend.selected);
        for chunk in selected.filter_map(|row| row.chunk.filter(|chunk| *chunk != size)) {
            let what = format!("the agent sets {size}, and the selected backend has {chunk}");
            let mut next = format!("`lmpatch {size}` sets {size}");
            if SIZES.contains(&chunk) {
                next = format!("`lmpatch agent install {chunk}` keeps {chunk}, {next}");
            }
            found.add(Note, None, &what, &next);
        }
    }
}

/// What a run that sets or reverts tells besides its table.
pub fn on_change(report: &mut Report, applied: &[Applied]) {
    let (rows, found, flags) = (&report.backends, &mut report.findings, &report.flags);
    let is_revert = report.action == Action::Revert;
    for (row, applied) in rows.iter().zip(applied) {
        on_backend(found, row, report.size, flags);
        let files = applied.before.files.iter().chain(&row.files);
        for file in files.filter(|file| file.source().is_some_and(Source::came_edited)) {
            let path = file.setting.record_path();
            let what = format!("{path} had been edited before lmpatch first saw it");
            let next =
                "--revert restores that; for the vendor's, reinstall the runtime in LM Studio";
            found.add(Note, Some(row), &what, next);
        }
    }
    let left_out = report.absent.left_out.iter();
    for Backend { name, .. } in left_out.filter(|backend| backend.selected) {
        let what = format!("{name} is selected, but --backend omits it");
        found.add(Warning, None, &what, "`lmpatch --check` shows it");
    }
    let level = if is_revert { Warning } else { Error };
    on_missing(found, &report.absent, level);
    let agent = agent_of(report.home.as_deref()).filter(|agent| agent.problem.is_none());
    if let Some(size) = agent.and_then(|agent| agent.size) {
        let will_set = |one: &Applied| agent::will_set(&one.after, size);
        if !report.dry_run && applied.iter().any(will_set) {
            let what = format!("the agent will set {size} again");
            found.add(Note, None, &what, "`lmpatch agent uninstall` ends that");
        }
    }
}

fn agent_of(home: Option<&str>) -> Option<agent::Status> {
    let agent = agent::status().ok()?;
    let is_here =
        |of: &str| resolved(Path::new(of)) == resolved(Path::new(home.unwrap_or_default()));
    agent.home.as_deref().is_none_or(is_here).then_some(agent)
}

fn on_backend(found: &mut Findings, row: &BackendReport, size: Option<u64>, flags: &str) {
    on_blocked(found, row);
    if let ([file], None) = (&row.files[..], &row.why) {
        let what = format!(
            "of mlx_engine and mlx_lm only {} is there",
            file.setting.package
        );
        let next = "if LM Studio is updating it, run this again when that is done";
        found.add(Warning, Some(row), &what, next);
    }
    effect::on_row(found, row, Warning);
    for source in row.files.iter().filter_map(VendorFile::source) {
        if let Err(why) = &source.receipt {
            let what = format!("the receipt is ignored: {why}");
            // Without it, what is there now would be taken for what lmpatch first found.
            let next = if source.original.is_some() || source.is_stock() {
                "move it away"
            } else {
                "the original is unknown; reinstall the runtime in LM Studio to have it back"
            };
            found.add(Note, Some(row), &what, next);
        }
    }
    if let (Some(size), Some(stock), None) = (size, row.stock, &row.why)
        && size != stock
        && SIZES.contains(&size)
    {
        on_size(found, row, size, stock, flags);
    }
}

fn on_blocked(found: &mut Findings, row: &BackendReport) {
    let Some(why) = &row.why else { return };
    let (is_selected, apps_use_it) = (row.backend.selected, row.backend.apps_use_it());
    let what = match row.result {
        Some(Outcome::Failed) if is_selected => format!("{apps_use_it}, and it failed: {why}"),
        Some(_) if is_selected => format!("{apps_use_it}, and it was not changed: {why}"),
        _ => why.clone(),
    };
    let unfinished = "let LM Studio finish its update, or reinstall the runtime in it";
    let (level, next) = match (row.result, row.state) {
        (Some(Outcome::Failed), _) => (Error, "run lmpatch again when that is fixed"),
        // What to do depends on why.
        (Some(Outcome::Refused), _) | (None, State::Refused) => (Error, ""),
        _ if !is_selected => (Note, unfinished),
        (None, _) => (Warning, unfinished),
        (Some(_), _) => (Error, unfinished),
    };
    found.add(level, Some(row), &what, next);
}

fn on_values(found: &mut Findings, row: &BackendReport, others: Option<u64>) {
    if row.state == State::Mixed {
        let set = row
            .chunk
            .filter(|chunk| Some(*chunk) != row.stock && SIZES.contains(chunk));
        let what = "its sites have different values, so it is set only in part";
        let size = set.unwrap_or(DEFAULT_SIZE);
        let only = flag(&row.backend.name);
        let mut next = format!("`lmpatch {size}{only}` sets them all");
        if can_revert(row) {
            next += &format!(", `lmpatch --revert{only}` restores them");
        }
        found.add(Warning, Some(row), what, &next);
    } else if let Some(size) = others.filter(|size| row.chunk != Some(*size))
        && row.state == State::Stock
        && row.backend.selected
    {
        let apps_use_it = row.backend.apps_use_it();
        let what = format!("{apps_use_it}, and it is at stock while others are set");
        let next = format!("`lmpatch {size}{}` sets it", flag(&row.backend.name));
        found.add(Warning, Some(row), &what, &next);
    }
}

/// Whether a revert gives back what the vendor ships.
fn can_revert(row: &BackendReport) -> bool {
    let mut sources = row.files.iter().filter_map(VendorFile::source);
    sources.all(|source| !source.came_edited() && (source.is_stock() || source.original.is_some()))
}

fn on_size(found: &mut Findings, row: &BackendReport, size: u64, stock: u64, flags: &str) {
    if !size.is_multiple_of(CHECKPOINT_GRID) {
        let why = "so hybrid models lose their prompt cache on disk";
        let what = format!("{size} is not a multiple of {CHECKPOINT_GRID}, {why}");
        let below = (size / CHECKPOINT_GRID).max(1) * CHECKPOINT_GRID;
        let next = format!("`lmpatch {below}{flags}` keeps it");
        found.add(Note, None, &what, &next);
    }
    if size >= MEMORY_CAUTION {
        let why = "at this size and above, people have run out of memory without gaining speed";
        let what = format!("{size} may be too much: {why}");
        let lower = format!("`lmpatch {DEFAULT_SIZE}{flags}`");
        let next = format!("go lower if a model fails to load or answer: {lower}");
        found.add(Note, None, &what, &next);
    }
    let only = flag(&row.backend.name);
    let mut packages = row.backend.site_packages.iter().flatten();
    if size < stock {
        let but = "it saves memory, but prefill may be slower";
        let what = format!("{size} is below its stock {stock}: {but}");
        let next = if can_revert(row) {
            format!("`lmpatch --revert{flags}` restores the vendor's files")
        } else {
            format!("`lmpatch {stock}{only}` sets that again")
        };
        found.add(Note, Some(row), &what, &next);
    } else if packages.any(|packages| packages.join(CONTEXT_FIT).exists()) {
        // One worked case for engines with that file.
        let case = "for example 58,880 tokens at 2048, 34,304 at 4096";
        let what = format!("a larger chunk leaves less memory for context: {case}");
        let next = format!("if you need the longer context: `lmpatch {stock}{only}`");
        found.add(Note, Some(row), &what, &next);
    }
}

/// `level`: how serious it is if the backend is selected.
fn on_missing(found: &mut Findings, absent: &Absent, level: Level) {
    for missing in &absent.missing {
        let level = if missing.selected { level } else { Note };
        let (what, next) = self::missing(missing);
        found.add(level, None, &what, &next);
    }
}

/// What a missing backend means, and what to do.
pub fn missing(missing: &MissingBackend) -> (String, String) {
    let (runtime, name, spec) = (&missing.runtime, &missing.name, &missing.specifier);
    let selected = missing.selected.then_some(", the selected runtime,");
    let selected = selected.unwrap_or_default();
    let why = "which is not on disk: an unfinished update";
    let again = format!("`lms runtime remove {spec}`, then `lms runtime get {spec}`");
    (
        format!("{runtime}{selected} needs {name}, {why}"),
        format!("to download it again: {again}"),
    )
}
