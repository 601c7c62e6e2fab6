//! `lmpatch SIZE`, `lmpatch --revert` and their dry runs.

use anyhow::Result;

use crate::bench::marker;
use crate::check;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::lmstudio::home::Home;
use crate::lmstudio::lms::{Lms, LoadedModel};
use crate::output::Output;
use crate::patch::backend::Goal;
use crate::patch::{self, Applied, Outcome, Survey};
use crate::reload::{How, Reloaded, Reloader};
use crate::report::{BackendReport, ReloadReport, Report, diff, notes, table};

/// Brings every backend to the goal, or shows what that would change.
pub fn run(
    cli: &Cli,
    output: &Output,
    home: &Home,
    report: &mut Report,
    goal: Goal<'_>,
) -> Result<Exit> {
    let lock = (!cli.dry_run)
        .then(|| marker::lock(&home.path))
        .transpose()?;
    let mut survey = patch::survey(&home.path, &cli.backend)?;
    let backends = std::mem::take(&mut survey.backends);
    let applied = match &lock {
        Some(lock) => {
            let applied = patch::apply(lock, backends, goal);
            marker::forget(&home.path);
            applied
        }
        None => patch::dry_run(backends, goal),
    };
    report.backends = applied.iter().map(BackendReport::applied).collect();
    cli.require_backends(report, home)?;
    let reloads = cli.reload;
    if reloads.is_none() && !cli.dry_run {
        let after: Vec<_> = applied.iter().map(|applied| &applied.after).collect();
        check::look_at_workers(cli, output, home, report, &after);
    }
    notes::on_change(report, &survey, &applied);
    let shown = if cli.dry_run {
        print_diff(cli, output, &diff::unified(&home.path, &applied))
    } else {
        cli.show(output, || table::backends(report, output))
    };
    // Also where stdout is of no use: what was done to people's files is not kept from them.
    report.findings.tell(output);
    tell_summary(cli, output, report, &survey, reloads);
    report.missing_backends = survey.home.missing;
    let mut exit = exit(report);
    if let Some(how) = reloads {
        let set = report.count(Outcome::Changed) + report.count(Outcome::Unchanged);
        if set == 0 || !reload(output, home, report, how, advice(&applied)) {
            exit = Exit::Failed;
        }
    }
    shown.map(|()| exit)
}

/// On a terminal painted and safe to show; else byte for byte, so that `patch` can apply it.
fn print_diff(cli: &Cli, output: &Output, diff: &[u8]) -> Result<()> {
    if output.is_quiet || cli.json {
        Ok(())
    } else if output.has_colour() || output.width().is_some() {
        output.print(&diff::paint(diff))
    } else {
        output.print_raw(diff)
    }
}

fn tell_summary(
    cli: &Cli,
    output: &Output,
    report: &Report,
    survey: &Survey,
    reloads: Option<How>,
) {
    output.say(&table::summary(report));
    if report.count(Outcome::Refused) > 0 {
        output.say("If a refused backend came like that with a current LM Studio, please report what was found.");
    }
    if cli.dry_run {
        output.say("Dry run: nothing was written.");
    } else if reloads.is_none() && is_in_use_changed(report, survey) {
        output.say("It takes effect when a model is next loaded; restarting LM Studio makes sure.");
    }
}

/// Whether the run changed what LM Studio uses, or may have where it is unknown what that is.
fn is_in_use_changed(report: &Report, survey: &Survey) -> bool {
    let is_known = report.backends.iter().any(|row| row.backend.selected)
        || survey.home.missing.iter().any(|missing| missing.selected)
        || !survey.home.left_out.is_empty();
    let is_it = |row: &BackendReport| {
        row.result == Some(Outcome::Changed) && (row.backend.selected || !is_known)
    };
    report.backends.iter().any(is_it)
}

/// Leaving a half-unpacked update alone is no failure, unless it is the backend in use or all that there was.
fn exit(report: &Report) -> Exit {
    let is_left = |row: &BackendReport| row.result == Some(Outcome::Incomplete);
    let is_failed = |row: &BackendReport| match row.result {
        Some(Outcome::Refused | Outcome::Failed) => true,
        _ => is_left(row) && row.backend.selected,
    };
    if report.backends.iter().any(is_failed) || report.backends.iter().all(is_left) {
        Exit::Failed
    } else {
        Exit::Done
    }
}

/// What to do about a model that cannot be loaded with the new values: go back, where something was changed.
fn advice(applied: &[Applied]) -> String {
    let changed = applied
        .iter()
        .filter(|applied| applied.outcome == Outcome::Changed);
    let most_used = changed.max_by_key(|applied| applied.before.backend.selected);
    let sizes = most_used.and_then(|applied| applied.before.chunk_and_stock());
    let back =
        sizes.map(|(size, _)| format!("`lmpatch {size} --reload` goes back to {size}, then "));
    back.unwrap_or_default() + "load it in LM Studio"
}

/// Makes the values take effect and tells of it; whether that worked.
fn reload(output: &Output, home: &Home, report: &mut Report, how: How, advice: String) -> bool {
    let reloader = Reloader {
        home: &home.path,
        lms: Lms::of(&home.path),
        advice,
    };
    let (models, error) = match reloader.run(how) {
        Ok(models) => (models, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    match (&error, how) {
        (Some(error), _) => output.error(&format!(
            "the files are done, but no model was loaded again: {error}"
        )),
        (None, _) if models.is_empty() => {
            output.say("No model is loaded; the next one takes these values.");
        }
        (None, How::App) => output.say("The app was restarted."),
        (None, How::Models) => {}
    }
    for model in &models {
        tell_reloaded(output, model);
    }
    let worked = error.is_none() && models.iter().all(|model| model.failed.is_none());
    report.reload = Some(ReloadReport { how, models, error });
    worked
}

fn tell_reloaded(output: &Output, reloaded: &Reloaded) {
    let LoadedModel {
        identifier,
        context_length,
        parallel,
        ..
    } = &reloaded.model;
    if let Some(why) = &reloaded.failed {
        output.error(&format!(
            "the files are done, but {identifier} was not loaded again: {why}"
        ));
        return;
    }
    let number = |value: &Option<u64>| value.map_or("unknown".to_owned(), |n| n.to_string());
    let (context, parallel) = (number(context_length), number(parallel));
    output.say(&format!(
        "{identifier} is loaded again (context {context}, parallel {parallel})."
    ));
    if let Some(note) = &reloaded.note {
        output.note(&format!("{identifier}: {note}"));
    }
}
