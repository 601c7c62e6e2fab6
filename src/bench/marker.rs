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
    let mut commands = Vec::new();
    for backend in before {
        let size = match backend.chunk_and_stock() {
            Some((chunk, stock)) if chunk != stock => chunk.to_string(),
            _ => "--revert".to_owned(),
        };
        commands.push((format!("lmpatch {size}"), &backend.backend.name));
    }
    let first = commands.first().map(|(command, _)| command.clone());
    let first = first.unwrap_or_default();
    if commands.iter().all(|(command, _)| *command == first) {
        return first;
    }
    let with_name = |(command, name): &(String, &String)| format!("{command} --backend '{name}'");
    commands
        .iter()
        .map(with_name)
        .collect::<Vec<_>>()
        .join(" && ")
}
