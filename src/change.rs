//! `lmpatch SIZE`, `lmpatch --revert` and their dry runs.

use std::path::Path;
use std::thread;

use anyhow::{Result, anyhow};

use crate::check;
use crate::cli::Cli;
use crate::effect;
use crate::lmstudio::lms::Lms;
use crate::marker;
use crate::output::{Exit, Level, Output};
use crate::patch::Outcome::{Changed, Unchanged};
use crate::patch::backend::Goal;
use crate::patch::sites::compile_patterns;
use crate::patch::{self, Applied, Outcome};
use crate::reload::Reloader;
use crate::report::{Action, BackendReport, ReloadReport, Report, diff, notes, table};
use crate::signals;

/// Brings every backend to the goal, or shows what that would change.
pub fn run(cli: &Cli, output: &Output, home: &Path, report: &mut Report) -> Result<Exit> {
    let goal = report.size.map_or(Goal::Original, Goal::Size);
    let _ = thread::Builder::new().spawn(compile_patterns);
    let lock = (!cli.dry_run).then(|| marker::lock(home)).transpose()?;
    let backends = check::survey(cli, home, report)?;
    let applied = match &lock {
        Some(lock) => patch::apply(lock, backends, goal),
        None => patch::dry_run(backends, goal),
    };
    report.backends = applied.iter().map(BackendReport::applied).collect();
    if lock.is_some() {
        marker::forget(home, &applied);
    }
    // With a lock, what is said of loaded models is said of these values.
    let _lock = lock.filter(|_| cli.reload.is_some());
    let shown = match cli.dry_run {
        _ if !cli.shows_text() => Ok(()),
        true => diff::print(output, home, &applied),
        false => output.print(&table::backends(report, output)),
    };
    // Only now: it may wait for `lms`. And even if stdout failed: people must learn what was done to their files.
    if cli.reload.is_none() && !cli.dry_run {
        effect::add(cli, home, report, None);
    }
    notes::on_change(report, &applied);
    report.findings.print(output);
    output.say(&table::summary(report));
    if cli.dry_run {
        output.say("Dry run: nothing was written.");
    } else if cli.reload.is_none() && selected_is(report, &[Changed]) {
        output.say("Takes effect when a model is next loaded; restart LM Studio to be sure.");
    }
    let is_reloaded = reload(cli, output, home, report, &applied);
    let is_done = is_reloaded && !has_failed(report);
    shown.map(|()| if is_done { Exit::Done } else { Exit::Failed })
}

/// Whether the selected backend has one of these outcomes; if it is unknown which one is selected, whether any has.
fn selected_is(report: &Report, outcomes: &[Outcome]) -> bool {
    let mut left_out = report.absent.left_out.iter();
    let is_known = report.backends.iter().any(|row| row.backend.selected)
        || report.is_selected_missing()
        || left_out.any(|backend| backend.selected);
    let mut rows = report.with(outcomes);
    rows.any(|row| row.backend.selected || !is_known)
}

fn has_failed(report: &Report) -> bool {
    // A backend that is not on disk needs no revert.
    let is_missing = report.action != Action::Revert && report.is_selected_missing();
    let rows: Vec<_> = report.counted().collect();
    is_missing || rows.is_empty() || rows.iter().any(|row| row.why.is_some())
}

/// With `--reload`, makes the values take effect, if they are those of the selected backend. Returns whether loaded models
/// may have them.
fn reload(cli: &Cli, output: &Output, home: &Path, report: &mut Report, all: &[Applied]) -> bool {
    let Some(how) = cli.reload else { return true };
    let result = if selected_is(report, &[Changed, Unchanged]) {
        output.say("Loading again what is loaded, if anything; a large model takes minutes …");
        // Without them a signal just ends lmpatch, between an unload and a load.
        if let Ok(signals) = signals::catch() {
            signals::end_on_second(signals, *output);
        }
        let reloader = Reloader {
            home: home.to_owned(),
            lms: Lms::of(home),
            advice: advice(cli, all),
        };
        reloader.run(how)
    } else {
        Err(anyhow!("no selected backend was set"))
    };
    let (models, error) = match result {
        Ok(models) => (models, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let has_worked = error.is_none() && models.iter().all(|model| model.failed.is_none());
    let done = ReloadReport { how, models, error };
    print_reloaded(output, &done);
    report.reload = Some(done);
    // A model of another app, which `lms` does not know, is still as it was.
    effect::add(cli, home, report, None);
    effect::after_reload(output, report) && has_worked
}

/// What to do about a model that cannot be loaded with the new values.
fn advice(cli: &Cli, applied: &[Applied]) -> String {
    let is_changed = |one: &&Applied| one.outcome == Changed;
    let before = applied.iter().filter(is_changed).map(|one| &one.before);
    let is_all = cli.backend.is_empty() && before.clone().count() == applied.len();
    let commands = marker::commands(before, is_all);
    let mut back = "if it does not fit, set a smaller size".to_owned();
    if !commands.is_empty() {
        back = format!("{} goes back", marker::shown(&commands));
    }
    back + ", then load it in LM Studio"
}

fn print_reloaded(output: &Output, report: &ReloadReport) {
    if let Some(error) = &report.error {
        output.error(&format!("no model was loaded again: {error}"));
    }
    let number = |value: Option<u64>| value.map_or("unknown".to_owned(), |n| n.to_string());
    for one in &report.models {
        let (id, mut level) = (&one.model.identifier, Level::Error);
        if one.failed.is_none() {
            let (context, parallel) = (one.model.context_length, one.model.parallel);
            let with = format!("context {}, parallel {}", number(context), number(parallel));
            output.say(&format!("{id} was reloaded ({with})."));
            level = Level::Note;
        }
        if let Some(problem) = one.problem() {
            output.message(level, &problem);
        }
    }
}
