//! What launchd runs: waits until each new layer is complete, sets it, remembers it.
//!
//! A layer is new where the agent has not dealt with it yet. What it has dealt with stays as it is, whatever a person
//! does to it, until LM Studio brings another one; so does a new layer that somebody has set meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use glob::Pattern;
use walkdir::WalkDir;

use super::store::{Identity, Memory, Store};
use crate::cli::KeepArgs;
use crate::lmstudio::backends::{self, LAYER_PREFIX, Layer};
use crate::outcome::Outcome;
use crate::patch::backend::{Backend, State};
use crate::patch::inspect::inspect;
use crate::patch::original::{sha256_hex, with_values};
use crate::patch::plan::Goal;
use crate::patch::settings::SETTINGS;
use crate::patch::{self, Deed};
use crate::ui::Ui;

/// One run of the agent.
#[derive(Debug)]
pub struct Keeper<'a> {
    /// LM Studio's home.
    pub home: &'a Path,
    /// The size, and how long is waited.
    pub args: &'a KeepArgs,
    /// Its memory and its log.
    pub store: &'a Store,
    /// Where somebody who runs it by hand sees what it waits for.
    pub ui: &'a Ui,
}

/// A directory among the layers, whatever it is.
#[derive(Debug, Clone)]
struct Entry {
    name: OsString,
    path: PathBuf,
    born: u64,
}

/// A new layer that is waited for.
#[derive(Debug)]
struct Pending {
    born: u64,
    /// What its files looked like last.
    shot: Shot,
    /// Since when they have looked like that.
    since: Instant,
    /// Why it could not be dealt with so far.
    why: String,
}

/// What changes when any file below a directory does: how many there are, their bytes, and their latest change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shot {
    files: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Keeper<'_> {
    /// Waits for the new layers and sets them; ends when there are no more, or when time is up.
    pub fn run(&self) -> Result<Outcome> {
        let deadline = Instant::now() + self.args.patience;
        let mut pending = BTreeMap::new();
        let mut had_home = true;
        self.begin()?;
        loop {
            let is_there = self.look(&mut pending)?;
            if had_home && !is_there {
                self.ui.say(&format!(
                    "{} is not there; waiting for it",
                    backends::amphibian(self.home).display()
                ));
            }
            had_home = is_there;
            if is_there && pending.is_empty() {
                return Ok(Outcome::Done);
            }
            if Instant::now() >= deadline {
                return self.give_up(is_there, &pending);
            }
            thread::sleep(self.args.poll);
        }
    }

    /// Without a memory every layer would look new, also one that somebody has reverted: then none is.
    fn begin(&self) -> Result<()> {
        let memory = self
            .store
            .load()
            .filter(|memory| Path::new(&memory.home) == self.home);
        if memory.is_some() || !backends::amphibian(self.home).is_dir() {
            return Ok(());
        }
        self.store.log(
            "the agent remembers nothing of this home: the layers that are there stay as they are",
        )?;
        self.store.save(&remember_all(self.home)?)
    }

    /// Deals with the layers that are complete, and adds the others to those that are waited for.
    ///
    /// Returns whether there is a home at all.
    fn look(&self, pending: &mut BTreeMap<OsString, Pending>) -> Result<bool> {
        let Ok(entries) = list(self.home) else {
            return Ok(false);
        };
        let mut memory = self.store.load().unwrap_or_default();
        let new: Vec<_> = entries
            .iter()
            .filter(|entry| !is_known(&memory, entry))
            .collect();
        for name in pending
            .keys()
            .filter(|name| entries.iter().all(|entry| entry.name != **name))
        {
            self.store.log(&format!(
                "{}: gone before it was complete",
                name.to_string_lossy()
            ))?;
        }
        pending.retain(|name, _| new.iter().any(|entry| entry.name == *name));
        for entry in new {
            if !self.is_quiet(entry, pending) {
                continue;
            }
            match self.deal_with(entry) {
                Ok(lines) => {
                    lines.iter().try_for_each(|line| self.store.log(line))?;
                    pending.remove(&entry.name);
                    remember(&mut memory, entry);
                    self.store.save(&memory)?;
                }
                Err(why) => {
                    if let Some(pending) = pending.get_mut(&entry.name) {
                        pending.why = why;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether no file of the layer has changed for long enough.
    fn is_quiet(&self, entry: &Entry, pending: &mut BTreeMap<OsString, Pending>) -> bool {
        if !pending.contains_key(&entry.name) {
            self.ui.say(&format!(
                "{} is new; waiting until it is complete",
                entry.name.to_string_lossy()
            ));
        }
        let shot = shoot(&entry.path);
        let begin = || Pending {
            born: entry.born,
            shot,
            since: Instant::now(),
            why: "its files kept changing".to_owned(),
        };
        let seen = pending.entry(entry.name.clone()).or_insert_with(begin);
        if seen.shot != shot || seen.born != entry.born {
            *seen = begin();
        }
        seen.since.elapsed() >= self.args.settle
    }

    /// Sets a quiet layer, if it is a complete engine as the vendor ships it. Returns what to log, or why it cannot
    /// be dealt with yet.
    fn deal_with(&self, entry: &Entry) -> Result<Vec<String>, String> {
        let name = entry.name.to_string_lossy();
        let Some(backend) = backend(self.home, entry) else {
            let may_become_one = name.starts_with(LAYER_PREFIX);
            return if may_become_one {
                Err("it holds no MLX engine yet".to_owned())
            } else {
                Ok(Vec::new())
            };
        };
        if let Some(why) = what_is_missing(&backend) {
            return Err(why);
        }
        let chunk = backend
            .chunk_and_stock()
            .map(|(chunk, _)| chunk.to_string())
            .unwrap_or_default();
        if backend.state() != State::Stock {
            return Ok(vec![format!(
                "{name}: left as it is, somebody has set it to {chunk} already"
            )]);
        }
        let wanted = Pattern::new(&Pattern::escape(&name)).map_err(|error| error.to_string())?;
        let (done, _) = patch::carry_out(self.home, &[wanted], Goal::Size(self.args.size))
            .map_err(|error| format!("{error:#}"))?;
        let deed = done.into_iter().map(|done| done.deed).next();
        match deed {
            Some(Deed::Changed) => Ok(vec![format!("{name}: {chunk} → {}", self.args.size)]),
            Some(Deed::Unchanged) => Ok(vec![format!("{name}: has {chunk} as it ships")]),
            Some(Deed::Refused(why) | Deed::Failed(why) | Deed::LeftAlone(why)) => Err(why),
            Some(Deed::WouldChange(_)) | None => Err("it vanished".to_owned()),
        }
    }

    /// Says once what is left, so that a person can look at it.
    fn give_up(&self, has_home: bool, pending: &BTreeMap<OsString, Pending>) -> Result<Outcome> {
        let seconds = self.args.patience.as_secs_f64();
        if !has_home {
            let gone = backends::amphibian(self.home);
            self.store.log(&format!(
                "{} is not there after {seconds} seconds",
                gone.display()
            ))?;
            return Ok(Outcome::Failed);
        }
        let mut memory = self.store.load().unwrap_or_default();
        for (name, pending) in pending {
            let name = name.to_string_lossy().into_owned();
            if memory.reported.insert(name.clone(), pending.born) != Some(pending.born) {
                self.store.log(&format!(
                    "{name}: left alone after {seconds} seconds: {}",
                    pending.why
                ))?;
            }
        }
        self.store.save(&memory)?;
        Ok(Outcome::Failed)
    }
}

/// A memory in which every layer that is complete now has been dealt with.
pub fn remember_all(home: &Path) -> Result<Memory> {
    let mut memory = Memory {
        home: home.display().to_string(),
        ..Memory::default()
    };
    for entry in list(home)? {
        let is_dealt_with = match backend(home, &entry) {
            Some(backend) => what_is_missing(&backend).is_none(),
            None => !entry.name.to_string_lossy().starts_with(LAYER_PREFIX),
        };
        if is_dealt_with {
            remember(&mut memory, &entry);
        }
    }
    Ok(memory)
}

fn remember(memory: &mut Memory, entry: &Entry) {
    let name = entry.name.to_string_lossy().into_owned();
    memory.reported.remove(&name);
    memory.layers.insert(
        name,
        Identity {
            born: entry.born,
            vendor: vendor(entry),
        },
    );
}

fn is_known(memory: &Memory, entry: &Entry) -> bool {
    let known = memory.layers.get(&*entry.name.to_string_lossy());
    known.is_some_and(|known| known.born == entry.born && known.vendor == vendor(entry))
}

/// Every directory among the layers; those that begin with a dot are somebody's work in progress.
fn list(home: &Path) -> Result<Vec<Entry>> {
    let directory = backends::amphibian(home);
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let entry = |entry: fs::DirEntry| {
        let (name, path) = (entry.file_name(), entry.path());
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_dir)?;
        let made = metadata
            .created()
            .ok()
            .and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let born = made
            .and_then(|made| u64::try_from(made.as_nanos()).ok())
            .unwrap_or_else(|| metadata.ino());
        (!name.to_string_lossy().starts_with('.')).then_some(Entry { name, path, born })
    };
    let mut found: Vec<_> = entries.filter_map(|found| entry(found.ok()?)).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The layer as a backend, if it holds anything of an engine.
fn backend(home: &Path, entry: &Entry) -> Option<Backend> {
    let wanted = Pattern::new(&Pattern::escape(&entry.name.to_string_lossy())).ok()?;
    let layer = backends::find(home, &[wanted])
        .ok()?
        .layers
        .into_iter()
        .find(|layer| layer.name == entry.name)?;
    Some(inspect(layer))
}

/// Why the backend is not complete: both files must be there and be understood.
fn what_is_missing(backend: &Backend) -> Option<String> {
    let lacks = |setting: &&patch::settings::Setting| {
        !backend
            .files
            .iter()
            .any(|file| file.setting.package == setting.package && file.content().is_some())
    };
    let hindrance = backend.hindrance().map(patch::backend::Hindrance::into_why);
    hindrance.or_else(|| {
        SETTINGS
            .iter()
            .find(lacks)
            .map(|setting| format!("{} is not there", setting.record_path()))
    })
}

/// The SHA-256 of the vendor files with every setting at zero: a person changes it as little as lmpatch does.
fn vendor(entry: &Entry) -> Option<String> {
    let layer = Layer::at(&entry.path)?;
    let files = inspect(layer).files;
    let mut all = Vec::new();
    for file in &files {
        let content = file.content()?;
        all.extend(with_values(
            &content.bytes,
            &content.sites,
            &vec![0; content.sites.len()],
        ));
    }
    (!files.is_empty()).then(|| sha256_hex(&all))
}

fn shoot(layer: &Path) -> Shot {
    let mut shot = Shot {
        files: 0,
        bytes: 0,
        changed: (0, 0),
    };
    let root = fs::canonicalize(layer).unwrap_or_else(|_| layer.to_owned());
    for entry in WalkDir::new(root).into_iter().filter_map(Result::ok) {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        shot.files += 1;
        shot.bytes += metadata.len();
        shot.changed = shot.changed.max((metadata.ctime(), metadata.ctime_nsec()));
    }
    shot
}
