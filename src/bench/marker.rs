//! What says on disk that a benchmark runs, or was cut off.

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
    /// What gives the sizes back.
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

/// What a benchmark left that was cut off is of no use once the sizes were set.
pub fn forget(home: &Path) {
    // Where it stays, the next `lmpatch --check` tells of it, and no more.
    let _ = fs::remove_file(home.join(MARKER));
}

/// The command that gives the sizes back after a benchmark that was cut off and runs no more.
pub fn interrupted(home: &Path) -> Option<String> {
    let marker = marker(home)?;
    Lock::try_take(home).ok().flatten()?;
    Some(marker.command)
}

/// Says on disk, before the first change, what gives the sizes back.
pub fn write(home: &Path, before: &[Surveyed]) -> Result<()> {
    let (pid, command) = (std::process::id(), way_back(before));
    let path = home.join(MARKER);
    let file = NamedTempFile::new_in(path.parent().unwrap_or(home))?;
    serde_json::to_writer(&file, &Marker { pid, command })?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

/// The command that gives these backends their sizes.
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
