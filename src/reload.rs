//! Makes new values take effect: loads models again, restarts the app and loads what was loaded, or runs a command.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::command::{self, retry};
use crate::lmstudio::lms::{Lms, LoadedModel, find_loaded};
use crate::lmstudio::workers::{self, Worker};
use crate::output::quoted;

const GRACE: Duration = Duration::from_secs(2);
const LEAVING: Duration = Duration::from_secs(10);
/// After this long a new worker is known to be newer than an edit: start times are whole seconds, on Linux at times one early.
const UNTIL_NEWER: Duration = Duration::from_secs(2);

/// What makes new values take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Unload and load each loaded MLX model
    Models,
    /// Quit and open the app, and load what was loaded
    App,
}

/// One model as it is now, or as it was and why it was not loaded again.
#[derive(Debug, Clone, Serialize)]
pub struct Reloaded {
    #[serde(flatten)]
    pub model: LoadedModel,
    pub failed: Option<String>,
    pub note: Option<String>,
    /// Whether something else loaded it first, and otherwise than wanted.
    #[serde(skip)]
    pub is_foreign: bool,
}

impl Reloaded {
    /// What is not as it was, if anything.
    pub fn problem(&self) -> Option<String> {
        let id = &self.model.identifier;
        let failed = self.failed.as_ref();
        let failed = failed.map(|why| format!("{id} was not loaded again: {why}"));
        let note = || Some(format!("{id}: {}", self.note.as_ref()?));
        failed.or_else(note)
    }
}

pub struct Reloader {
    pub home: PathBuf,
    pub lms: Lms,
    /// What to do about a model that cannot be loaded with the new values.
    pub advice: String,
}

impl Reloader {
    /// Reloads what is loaded. If no worker of this home is running, nothing is loaded, and nothing is started.
    pub fn run(&self, how: How) -> Result<Vec<Reloaded>> {
        let seen = workers::snapshot(&self.home);
        match (&seen.workers[..], seen.foreign.first()) {
            ([], Some((pid, _))) => bail!("process {pid} may run an engine; restart it"),
            ([], None) => return Ok(Vec::new()),
            _ => {}
        }
        let by_hand = "unload and load the models in LM Studio, or restart it";
        let mut loaded = self.loaded_here(by_hand)?;
        if how == How::App {
            return self.restart(&seen.workers, &loaded);
        }
        loaded.retain(LoadedModel::is_mlx);
        Ok(loaded.iter().map(|model| self.reload(model)).collect())
    }

    /// Unloads the model when it is idle, if it is loaded, and loads it as `wanted` says.
    pub fn reload(&self, wanted: &LoadedModel) -> Reloaded {
        self.try_reload(wanted).unwrap_or_else(|error| Reloaded {
            model: wanted.clone(),
            failed: Some(format!("{error:#}")),
            note: None,
            is_foreign: false,
        })
    }

    /// Loads those models again that are gone, or that are not to be kept as they are now; each once.
    pub fn restore(
        &self,
        before: &[LoadedModel],
        keeps: impl Fn(&Reloaded) -> bool,
    ) -> Vec<Reloaded> {
        let restore = |was: &LoadedModel| {
            let now = self.loaded().unwrap_or_default();
            let now = find_loaded(&now, &was.identifier);
            let now = now.map(|now| with_differences(now, was, Vec::new()));
            now.filter(&keeps).unwrap_or_else(|| self.reload(was))
        };
        before.iter().map(restore).collect()
    }

    pub fn try_reload(&self, wanted: &LoadedModel) -> Result<Reloaded> {
        let before = self.wait_idle(wanted)?;
        if find_loaded(&before, &wanted.identifier).is_some() {
            let unloaded = self.lms.unload(&wanted.identifier);
            if let Some(now) = self.wait_unloaded(&wanted.identifier) {
                unloaded.context("it was not unloaded")?;
                let what = "it was not unloaded, or something loaded it again; try again";
                let now = with_differences(&now, wanted, vec![what.to_owned()]);
                bail!(now.note.unwrap_or_default());
            }
        }
        thread::sleep(UNTIL_NEWER);
        let result = self.lms.load(wanted);
        let after = self.loaded().context("it may not be loaded again")?;
        let mut notes = Vec::new();
        for other in after.iter().filter(|other| other.path == wanted.path) {
            let id = &other.identifier;
            if other.is_here() && *id != wanted.identifier && find_loaded(&before, id).is_none() {
                let end = format!("`lms unload {}` ends it", quoted(id));
                notes.push(format!("another copy was loaded in between: {end}"));
            }
        }
        let error = result.err().map(|error| format!("{error:#}"));
        let Some(now) = find_loaded(&after, &wanted.identifier) else {
            notes.insert(0, error.unwrap_or("`lms ps` does not list it".to_owned()));
            bail!("{}; {}", notes.join("; "), self.advice);
        };
        let is_foreign = error.is_some() && with_differences(now, wanted, vec![]).note.is_some();
        notes.extend(error.map(|error| format!("something else loaded it in between ({error})")));
        let now = with_differences(now, wanted, notes);
        Ok(Reloaded { is_foreign, ..now })
    }

    /// What is loaded on this Mac. Fails if `lms` does not tell; if it is not there, with what to do `instead`.
    pub fn loaded_here(&self, instead: &str) -> Result<Vec<LoadedModel>> {
        let lms = self.lms.program.display();
        ensure!(self.lms.program.is_file(), "{lms} is not there; {instead}");
        let mut loaded = self.lms.loaded()?;
        loaded.retain(LoadedModel::is_here);
        Ok(loaded)
    }

    /// What is loaded. One failure of `lms` says nothing.
    pub fn loaded(&self) -> Result<Vec<LoadedModel>> {
        retry(GRACE, || self.lms.loaded())
    }

    /// The model under each of its names on this Mac. Fails if something else uses it.
    pub fn instances(&self, of: &LoadedModel) -> Result<Vec<LoadedModel>> {
        // LM Studio may call a model busy a moment after the answer.
        retry(GRACE, || {
            let mut loaded = self.lms.loaded()?;
            loaded.retain(|model| model.is_here() && model.path == of.path);
            let is_used = loaded.iter().any(LoadedModel::is_busy);
            ensure!(!is_used, "something else uses the model");
            Ok(loaded)
        })
    }

    /// Runs a command that makes new values take effect in its own way.
    pub fn run_command(&self, text: &str) -> Result<()> {
        let mut shell = Command::new("sh");
        let ran = command::output(shell.args(["-c", text]), self.lms.load_timeout);
        ran.with_context(|| format!("--reload '{text}'")).map(drop)
    }

    /// The model if it does not go after an unload. What cannot be seen may be unloaded, so that it has to be loaded.
    fn wait_unloaded(&self, identifier: &str) -> Option<LoadedModel> {
        let mut left = None;
        // It may leave the list a moment after `lms unload` has ended.
        let _ = retry(self.lms.wait_timeout.min(LEAVING), || {
            left = None;
            left = find_loaded(&self.lms.loaded()?, identifier).cloned();
            ensure!(left.is_none(), "it is still loaded");
            Ok(())
        });
        left
    }

    /// What is loaded once the model is idle. Fails if anything needed to load it again is unknown.
    pub fn wait_idle(&self, wanted: &LoadedModel) -> Result<Vec<LoadedModel>> {
        let left = "it was left as it is";
        if wanted.path.is_none() || wanted.context_length.is_none() {
            bail!("`lms ps` does not tell its path and context; {left}");
        }
        let limit = self.lms.wait_timeout;
        let loaded = retry(limit, || match self.loaded() {
            Ok(now) if find_loaded(&now, &wanted.identifier).is_some_and(LoadedModel::is_busy) => {
                bail!("still busy after {limit:?}, {left}; try again when it is idle");
            }
            loaded => Ok(loaded),
        })??;
        let same = loaded.iter().filter(|m| m.identifier == wanted.identifier);
        ensure!(same.count() < 2, "another has the same identifier; {left}");
        Ok(loaded)
    }

    fn restart(&self, old: &[Worker], before: &[LoadedModel]) -> Result<Vec<Reloaded>> {
        let apps: BTreeSet<_> = old.iter().map(|worker| worker.app.as_str()).collect();
        let no_app = "has no app to restart; use --reload";
        ensure!(!apps.contains(""), "a worker {no_app}");
        ensure!(!apps.contains("llmster"), "llmster {no_app}");
        // Only `lms ps` tells how a model has to be loaded again.
        ensure!(
            before.len() >= old.len(),
            "a worker has a model that `lms ps` does not list, or not yet; try again, or use --reload"
        );
        for model in before {
            let idle = self.wait_idle(model);
            idle.with_context(|| model.identifier.clone())?;
        }
        let names: Vec<_> = before.iter().map(|m| m.identifier.as_str()).collect();
        let was = || format!("what was loaded: {}", names.join(", "));
        let limit = self.lms.wait_timeout;
        let call = |program: &str, words: &[&str]| {
            command::output(Command::new(program).args(words), limit)
        };
        let quit = |app| call("osascript", &["-e", &format!("quit app \"{app}\"")]).map(drop);
        let check_ended = || {
            let now = workers::snapshot(&self.home).workers;
            if old.iter().any(|worker| now.contains(worker)) {
                bail!("a worker still runs after {limit:?}, perhaps in a service; use --reload");
            }
            Ok(())
        };
        let ended = apps.iter().try_for_each(quit);
        let ended = ended.and_then(|()| retry(limit, check_ended));
        thread::sleep(UNTIL_NEWER);
        // Also if one could not be quit: none is left closed. macOS may refuse one that is still on its way out.
        let opening = limit.min(Duration::from_secs(10));
        for app in &apps {
            retry(opening, || call("open", &["-a", app])).with_context(was)?;
        }
        let back = ended.and_then(|()| retry(limit, || self.lms.loaded()));
        back.with_context(was)?;
        Ok(self.restore(before, |now| now.note.is_none()))
    }
}

fn with_differences(now: &LoadedModel, before: &LoadedModel, mut notes: Vec<String>) -> Reloaded {
    let shown = |value: Option<u64>| value.map_or("none".to_owned(), |n| n.to_string());
    let mut compare = |what, before, now| {
        if before != now {
            let (before, now) = (shown(before), shown(now));
            notes.push(format!("its {what} is {now} instead of {before}"));
        }
    };
    compare("context length", before.context_length, now.context_length);
    compare("parallelism", before.parallel, now.parallel);
    compare("TTL in ms", before.ttl_ms, now.ttl_ms);
    Reloaded {
        model: now.clone(),
        failed: None,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        is_foreign: false,
    }
}
