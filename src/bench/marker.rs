//! The file that says that a benchmark is running, or was cut off: it has the command that gives the sizes back.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tempfile::NamedTempFile;

use crate::files;
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

/// Writes the marker, before the first change.
pub fn write(home: &Path, before: &[Surveyed]) -> Result<()> {
    let path = marker(home);
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(home))?;
    file.write_all(way_back(before).as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Removes the marker of a benchmark that was cut off: it is useless once sizes have been set.
pub fn forget(home: &Path) {
    // If it stays, the next `lmpatch --check` mentions it, and no harm is done.
    let _ = fs::remove_file(marker(home));
}

/// The command that restores the sizes after a benchmark that was cut off.
pub fn interrupted(home: &Path) -> Option<String> {
    let command = files::read(&marker(home)).ok()?;
    Lock::try_take(home).ok().flatten()?;
    String::from_utf8(command).ok()
}

/// The command that sets these backends to the sizes they have here.
pub fn way_back(before: &[Surveyed]) -> String {
    let command = |one: &Surveyed| match one.chunk_and_stock() {
        Some((chunk, stock)) if chunk != stock => format!("lmpatch {chunk}"),
        _ => "lmpatch --revert".to_owned(),
    };
    let first = command(&before[0]);
    if before.iter().all(|one| command(one) == first) {
        return first;
    }
    let named = |one: &Surveyed| format!("{} --backend '{}'", command(one), one.backend.name);
    before.iter().map(named).collect::<Vec<_>>().join(" && ")
}
