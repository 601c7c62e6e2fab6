//! The file that says that a benchmark is running or was interrupted: it has the commands that restore the sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tempfile::NamedTempFile;

use crate::files;
use crate::lmstudio::backends::{amphibian, flag};
use crate::lock::Lock;
use crate::patch::backend::Surveyed;

/// Beside the backends, while a benchmark runs.
fn marker(home: &Path) -> PathBuf {
    home.join("extensions/backends/vendor/.lmpatch-bench")
}

/// The lock for a change; fails at once while a benchmark has it.
pub fn lock(home: &Path) -> Result<Lock> {
    if marker(home).exists() && Lock::try_take(home)?.is_none() {
        bail!("a benchmark is running; wait for it, or end it with Ctrl-C");
    }
    Lock::take(home)
}

/// Writes the marker, a command for each backend by its name, before the first change.
pub fn write(home: &Path, commands: &BTreeMap<String, String>) -> Result<()> {
    let path = marker(home);
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(home))?;
    file.write_all(&serde_json::to_vec(commands)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Takes backends that have been set since out of the marker of a benchmark that was interrupted.
pub fn forget<'n>(home: &Path, set: impl IntoIterator<Item = &'n str>) {
    let Some(mut commands) = read(home) else {
        return;
    };
    for name in set {
        commands.remove(name);
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
    let different: BTreeSet<_> = commands.into_values().collect();
    let quoted = different.iter().map(|command| format!("`{command}`"));
    let quoted = quoted.collect::<Vec<_>>().join(", then ");
    (!quoted.is_empty()).then_some(quoted)
}

/// What sets these backends to the sizes that they have here.
pub fn commands(before: &[Surveyed]) -> BTreeMap<String, String> {
    let command = |one: &Surveyed| match one.chunk_and_stock() {
        Some((chunk, stock)) if chunk != stock => format!("lmpatch {chunk}"),
        _ => "lmpatch --revert".to_owned(),
    };
    let first = command(&before[0]);
    let is_one = before.iter().all(|one| command(one) == first);
    let of = |one: &Surveyed| {
        let name = &one.backend.name;
        let limit = if is_one { String::new() } else { flag(name) };
        (name.clone(), command(one) + &limit)
    };
    before.iter().map(of).collect()
}
