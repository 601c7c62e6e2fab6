//! The file that says that a benchmark is running or was interrupted: it has the commands that restore the sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::files;
use crate::lmstudio::backends::amphibian;
use crate::lock::Lock;
use crate::output::flag;
use crate::patch::Applied;
use crate::patch::backend::Surveyed;
use crate::patch::file::State;
use crate::patch::settings::SIZES;

fn marker(home: &Path) -> PathBuf {
    home.join("extensions/backends/vendor/.lmpatch-bench")
}

/// The lock for a change. Waits for another change, which on ten backends takes well under a second; not for a benchmark.
pub fn lock(home: &Path) -> Result<Lock> {
    if restore_commands(home).is_some() {
        // Anything else that has the lock beside the marker of an interrupted benchmark is done sooner.
        let is_running = "a benchmark is running; wait for it, or end it with Ctrl-C";
        return Lock::take(home, Duration::from_secs(1), is_running);
    }
    let (directory, limit) = (amphibian(home), Duration::from_secs(10));
    let taken = format!("another process has locked {}", directory.display());
    let next =
        "wait for that lmpatch, which may be loading models, or end it (lsof shows who holds it)";
    let taken = format!("{taken} for {} seconds; {next}", limit.as_secs());
    Lock::take(home, limit, &taken)
}

/// Adds a command for each of these backends, by its name, to the marker; what is there may be for one whose disk is away.
pub fn add(home: &Path, commands: BTreeMap<String, String>) -> Result<()> {
    let mut all = read(home).unwrap_or_default();
    all.extend(commands);
    write(home, &all)
}

fn write(home: &Path, commands: &BTreeMap<String, String>) -> Result<()> {
    let bytes = serde_json::to_vec(commands)?;
    files::replace(&marker(home), &bytes)
}

/// Takes the backends that reached the goal of a run out of the marker: they need not be restored.
pub fn forget(home: &Path, applied: &[Applied]) {
    let Some(mut commands) = read(home) else {
        return;
    };
    for one in applied.iter().filter(|one| one.why.is_none()) {
        commands.remove(&one.before.backend.name);
    }
    // If it stays, the next `lmpatch --check` mentions it, and no harm is done.
    let _ = match commands.len() {
        0 => fs::remove_file(marker(home)).map_err(Into::into),
        _ => write(home, &commands),
    };
}

fn read(home: &Path) -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(&files::read(&marker(home)).ok()?).ok()
}

/// How to restore the sizes after a benchmark that was interrupted.
pub fn interrupted(home: &Path) -> Option<String> {
    Lock::try_take(home).ok().flatten()?;
    restore_commands(home)
}

/// How to restore the sizes of the backends that the marker names; not of one whose disk is away.
pub fn restore_commands(home: &Path) -> Option<String> {
    let mut commands = read(home)?;
    commands.retain(|name, _| amphibian(home).join(name).exists());
    (!commands.is_empty()).then(|| shown(&commands))
}

/// The commands as a message has them.
pub fn shown(commands: &BTreeMap<String, String>) -> String {
    let different: BTreeSet<_> = commands.values().collect();
    let quoted = different.iter().map(|command| format!("`{command}`"));
    quoted.collect::<Vec<_>>().join(", then ")
}

/// What sets these backends to the sizes that they have here; `is_all`: whether there are no others.
pub fn commands<'s>(
    before: impl Iterator<Item = &'s Surveyed> + Clone,
    is_all: bool,
) -> BTreeMap<String, String> {
    let is_vendors = |one: &Surveyed| one.state() == State::Stock && !one.came_edited();
    let command = |one: &Surveyed| match one.chunk_and_stock() {
        Some((chunk, _)) if !is_vendors(one) && SIZES.contains(&chunk) => {
            format!("lmpatch {chunk}")
        }
        _ => "lmpatch --revert".to_owned(),
    };
    let different: BTreeSet<_> = before.clone().map(command).collect();
    let is_one = is_all && different.len() == 1;
    let of = |one: &Surveyed| {
        let name = &one.backend.name;
        let limit = if is_one { String::new() } else { flag(name) };
        (name.clone(), command(one) + &limit)
    };
    before.map(of).collect()
}
