//! What the agent remembers and what it has done: two small files in the user's Application Support.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::parse_borrowed;

use crate::files;

/// The log is cut to half of this when it is longer, in bytes: about a thousand lines.
const LOG_BYTES: usize = 64 * 1024;

/// Which layers the agent has dealt with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// LM Studio's home that this is about.
    pub home: String,
    /// What each layer, by its name, was when it was dealt with.
    pub layers: BTreeMap<String, Identity>,
    /// The layers that were reported as incomplete, so that they are reported once.
    #[serde(default)]
    pub reported: BTreeMap<String, u64>,
}

/// What tells a layer from a later one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// When its directory was made, in nanoseconds, where the file system knows; else its inode number.
    pub born: u64,
    /// The SHA-256 of its vendor files without the values of the settings; none where they are not readable as such.
    pub vendor: Option<String>,
}

/// Where the agent keeps its files.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// That of this user.
    #[must_use]
    pub fn of(user: &Path) -> Self {
        Self {
            directory: user.join("Library/Application Support/lmpatch"),
        }
    }

    /// Where the log is.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    fn memory_path(&self) -> PathBuf {
        self.directory.join("agent.json")
    }

    /// What is remembered, if it can be read.
    #[must_use]
    pub fn load(&self) -> Option<Memory> {
        serde_json::from_slice(&files::read(&self.memory_path()).ok()?).ok()
    }

    /// Remembers.
    pub fn save(&self, memory: &Memory) -> Result<()> {
        write(
            &self.memory_path(),
            serde_json::to_string_pretty(memory)?.as_bytes(),
        )
    }

    /// Adds a line to the log, with the time; the oldest half goes when it is too long.
    pub fn log(&self, text: &str) -> Result<()> {
        let format = parse_borrowed::<2>("[year]-[month]-[day] [hour]:[minute]:[second]Z")?;
        let line = format!("{} {text}\n", OffsetDateTime::now_utc().format(&format)?);
        let path = self.log_path();
        let old = files::read(&path).unwrap_or_default();
        if old.len() + line.len() > LOG_BYTES {
            let rest = old
                .split_at_checked(old.len().saturating_sub(LOG_BYTES / 2))
                .map_or(old.as_slice(), |cut| cut.1);
            let from_line = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(rest.len(), |at| at + 1);
            let kept = rest.get(from_line..).unwrap_or_default();
            return write(&path, &[kept, line.as_bytes()].concat());
        }
        fs::create_dir_all(&self.directory)
            .and_then(|()| {
                File::options()
                    .create(true)
                    .append(true)
                    .open(&path)?
                    .write_all(line.as_bytes())
            })
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The last lines of the log.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let log = files::read(&self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().map(str::to_owned).collect();
        lines.into_iter().rev().take(count).rev().collect()
    }

    /// Removes both files and their directory; whether there was anything.
    pub fn remove(&self) -> Result<bool> {
        let was_there = self.directory.exists();
        for path in [self.memory_path(), self.log_path()] {
            super::remove(&path)?;
        }
        match fs::remove_dir(&self.directory) {
            // Something else is in it: that is not the agent's.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) => {}
            other => {
                other.with_context(|| format!("cannot remove {}", self.directory.display()))?
            }
        }
        Ok(was_there)
    }
}

/// Writes a file of the agent's own as a whole, its directory too where that is not there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path
        .parent()
        .with_context(|| format!("{} has no directory", path.display()))?;
    let all = || {
        fs::create_dir_all(directory)?;
        let mut temp = tempfile::Builder::new()
            .prefix(".lmpatch-tmp.")
            .tempfile_in(directory)?;
        temp.write_all(bytes)?;
        temp.as_file().sync_all()?;
        temp.persist(path).map_err(|error| error.error)?;
        Ok::<_, io::Error>(())
    };
    all().with_context(|| format!("cannot write {}", path.display()))
}
