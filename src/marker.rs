//! The file that says that a benchmark is running or was interrupted: for each backend what lmpatch is to be run with to
//! restore its size, a number of tokens or `--revert`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use glob::Pattern;

use crate::files;
use crate::lmstudio::backends::amphibian;
use crate::lock::Lock;
use crate::output::flags;
use crate::patch::Applied;
use crate::patch::backend::{State, Surveyed};
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
    let taken = format!("another process has locked {}", amphibian(home).display());
    let next =
        "wait for that lmpatch, which may be loading models, or end it (lsof shows who holds it)";
    Lock::take(home, Duration::from_secs(10), &format!("{taken}; {next}"))
}

/// Notes what restores these backends as they are; what is there may be for one whose disk is away.
pub fn add(home: &Path, before: &[Surveyed]) -> Result<()> {
    let mut ways = read(home).unwrap_or_default();
    for one in before {
        let is_vendors =
            one.state() == State::Stock && !one.sources().any(|source| source.came_edited);
        let way = match one.chunk_and_stock() {
            Some((chunk, _)) if !is_vendors && SIZES.contains(&chunk) => chunk.to_string(),
            _ => "--revert".to_owned(),
        };
        ways.insert(one.backend.name.clone(), way);
    }
    write(home, &ways)
}

/// Takes the backends that reached the goal of a run out of the marker: they need not be restored.
pub fn forget(home: &Path, applied: &[Applied]) {
    let Some(mut ways) = read(home) else { return };
    for one in applied.iter().filter(|one| one.why.is_none()) {
        ways.remove(&one.before.backend.name);
    }
    // If it stays, the next `lmpatch --check` mentions it, and no harm is done.
    let _ = match ways.len() {
        0 => fs::remove_file(marker(home)).map_err(Into::into),
        _ => write(home, &ways),
    };
}

fn write(home: &Path, ways: &BTreeMap<String, String>) -> Result<()> {
    files::replace(&marker(home), &serde_json::to_vec(ways)?)
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
    let mut ways = read(home)?;
    ways.retain(|name, _| amphibian(home).join(name).exists());
    let mut commands = Vec::new();
    for way in ways.values().collect::<BTreeSet<_>>() {
        let names = ways.iter().filter(|(_, its)| *its == way);
        let only = flags(names.map(|(name, _)| Pattern::escape(name)));
        commands.push(format!("`lmpatch {way}{only}`"));
    }
    (!commands.is_empty()).then(|| commands.join(", then "))
}
