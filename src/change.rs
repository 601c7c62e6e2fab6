//! `lmpatch SIZE`, `lmpatch --revert` and their dry runs.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::thread;

use anyhow::{Result, ensure};
use similar::TextDiff;

use crate::cli::Cli;
use crate::files::resolved;
use crate::lmstudio::lms::Lms;
use crate::output::{Exit, Output, flag, printable};
use crate::patch::backend::Goal;
use crate::patch::settings::SIZES;
use crate::patch::sites::compile_patterns;
use crate::patch::{self, Applied, Outcome};
use crate::reload::{How, Reloaded, Reloader};
use crate::report::{BackendReport, ReloadReport, Report, notes, table};
use crate::{check, marker, signals};

/// Brings every backend to the goal, or shows what that would change.
pub fn run(cli: &Cli, output: &Output, home: &Path, report: &mut Report) -> Result<Exit> {
    let goal = report.size.map_or(Goal::Original, Goal::Size);
    let _ = thread::Builder::new().spawn(compile_patterns);
    let lock = (!cli.dry_run).then(|| marker::lock(home)).transpose()?;
    let backends = check::survey(cli, home, report)?;
    let applied = match &lock {
        Some(lock) => patch::apply(lock, &backends, goal),
        None => patch::dry_run(&backends, goal),
    };
    let row = |one: &Applied| BackendReport::new(one.after.clone(), Some(one));
    report.backends = applied.iter().map(row).collect();
    if lock.is_some() {
        marker::forget(home, &applied);
    }
    // With a lock, what is said of loaded models is said of these values.
    let _lock = lock.filter(|_| cli.reload.is_some());
    let shown = match cli.dry_run {
        _ if cli.json || cli.quiet => Ok(()),
        true => print_diff(output, home, &applied),
        false => output.print(&table::backends(report, output)),
    };
    if let Some(how) = cli.reload {
        let reloaded = reload(how, output, home, report);
        let error = reloaded.as_ref().err().map(|error| format!("{error:#}"));
        let models = reloaded.unwrap_or_default();
        report.reload = Some(ReloadReport { how, models, error });
    }
    if !cli.dry_run {
        check::add_load_states(cli, home, report, None);
    }
    report.findings = notes::of(report);
    report.findings.print(output);
    output.say(&table::summary(report));
    let is_changed = |row: &BackendReport| row.result == Some(Outcome::Changed);
    if cli.reload.is_none() && report.used().any(is_changed) {
        output.say("Takes effect when a model is next loaded; restart LM Studio to be sure.");
    }
    let has_failed = report.findings.has_error();
    shown.map(|()| if has_failed { Exit::Failed } else { Exit::Done })
}

/// Prints a diff that `patch -p1` in the home applies to the backends that are in there: byte for byte, but safe to show on
/// a terminal.
fn print_diff(output: &Output, home: &Path, applied: &[Applied]) -> Result<()> {
    let home = resolved(home);
    let mut bytes = Vec::new();
    // Two backends may be links to one directory.
    let mut shown = BTreeSet::new();
    let edits = applied.iter().flat_map(|applied| &applied.edits);
    for edit in edits.filter(|edit| edit.is_change() && shown.insert(&edit.path)) {
        let path = edit.path.strip_prefix(&home).unwrap_or(&edit.path);
        let path = printable(&path.display().to_string());
        let path = path.trim_start_matches('/');
        bytes.extend(format!("--- a/{path}\n+++ b/{path}\n").as_bytes());
        let diff = TextDiff::from_lines(edit.before.as_slice(), edit.after.bytes.as_slice());
        for hunk in diff.unified_diff().iter_hunks() {
            hunk.to_writer(&mut bytes)?;
        }
    }
    if !io::stdout().is_terminal() {
        return output.print_raw(&bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    output.print(&lines.join("\n"))
}

/// Makes the values take effect, if they are those of a backend that is used.
fn reload(how: How, output: &Output, home: &Path, report: &Report) -> Result<Vec<Reloaded>> {
    let is_set = |row: &BackendReport| row.why.is_none();
    ensure!(report.used().any(is_set), "no selected backend was set");
    output.say("Loading again what is loaded, if anything; a large model takes minutes …");
    signals::end_on_second(*output);
    let reloader = Reloader {
        home: home.to_owned(),
        lms: Lms::of(home),
        advice: advice(report),
    };
    reloader.run(how)
}

/// What to do about a model that cannot be loaded with the new values.
fn advice(report: &Report) -> String {
    let mut used = report.used();
    let row = used.find(|row| row.result == Some(Outcome::Changed));
    let before = row.and_then(|row| row.chunk_before.filter(|size| SIZES.contains(size)));
    let mut back = "if it does not fit, set a smaller size".to_owned();
    if let (Some(row), Some(size)) = (row, before) {
        back = format!("`lmpatch {size}{}` goes back", flag(&row.now.backend.name));
    }
    back + ", then load it in LM Studio"
}
