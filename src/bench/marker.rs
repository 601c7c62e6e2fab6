//! The file that says that a benchmark is running, or was cut off.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::files;
use crate::lock::Lock;
use crate::patch::backend::Surveyed;

/// Beside the backends while a benchmark runs, below the home.
const MARKER: &str = "extensions/backends/vendor/.lmpatch-bench.json";

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    pid: u32,
    /// What restores the sizes.
    command: String,
}

fn marker(home: &Path) -> Option<Marker> {
    serde_json::from_slice(&files::read(&home.join(MARKER)).ok()?).ok()
}

/// The lock for a change; fails at once while a benchmark has it.
pub fn lock(home: &Path) -> Result<Lock> {
    if let (Some(Marker { pid, .. }), None) = (marker(home), Lock::try_take(home)?) {
        bail!("a benchmark is running (process {pid}); wait for it, or end it with Ctrl-C");
    }
    Lock::take(home)
}

/// Removes the marker of a benchmark that was cut off: it is useless once sizes have been set.
pub fn forget(home: &Path) {
    // If it stays, the next `lmpatch --check` mentions it, and no harm is done.
    let _ = fs::remove_file(home.join(MARKER));
}

/// The command that restores the sizes after a benchmark that was cut off.
pub fn interrupted(home: &Path) -> Option<String> {
    let marker = marker(home)?;
    Lock::try_take(home).ok().flatten()?;
    Some(marker.command)
}

/// Writes the marker, before the first change.
pub fn write(home: &Path, before: &[Surveyed]) -> Result<()> {
    let (pid, command) = (std::process::id(), way_back(before));
    let path = home.join(MARKER);
    let file = NamedTempFile::new_in(path.parent().unwrap_or(home))?;
    serde_json::to_writer(&file, &Marker { pid, command })?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
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
