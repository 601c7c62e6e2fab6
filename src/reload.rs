//! Makes new values take effect: loads models again, restarts the app and loads what was loaded, or runs a command.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Serialize;

use crate::command::{self, retry};
use crate::lmstudio::lms::{Lms, LoadedModel, find_loaded};
use crate::lmstudio::workers::{self, Worker};
use crate::output::quoted;

const LEAVING: Duration = Duration::from_secs(10);
/// After this long a new worker is known to be newer than an edit: start times are whole seconds, on Linux at times one early.
const UNTIL_NEWER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Unload and load each loaded MLX model
    Models,
    /// Quit and open the app, and load what was loaded
    App,
}

/// One model as it is now, or as it was and why it was not loaded again.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Reloaded {
    #[serde(flatten)]
    pub model: LoadedModel,
    pub failed: Option<String>,
    pub note: Option<String>,
}

impl Reloaded {
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
        if seen.workers.is_empty() {
            return Ok(Vec::new());
        }
        let untold = "`lms` does not tell what is loaded; unload and load the models in LM Studio";
        let mut loaded = self.lms.loaded().context(untold)?;
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
            ..Reloaded::default()
        })
    }

    /// Loads those models again that are gone, or that are not to be kept as they are now; each once.
    pub fn restore(
        &self,
        before: &[LoadedModel],
        keeps: impl Fn(&Reloaded) -> bool,
    ) -> Vec<Reloaded> {
        let restore = |was: &LoadedModel| {
            let now = self.lms.loaded().unwrap_or_default();
            let now = find_loaded(&now, &was.identifier);
            let now = now.map(|now| with_differences(now, was, Vec::new()));
            now.filter(&keeps).unwrap_or_else(|| self.reload(was))
        };
        before.iter().map(restore).collect()
    }

    pub fn try_reload(&self, wanted: &LoadedModel) -> Result<Reloaded> {
        let id = &wanted.identifier;
        let before = self.wait_idle(wanted)?;
        if find_loaded(&before, id).is_some() {
            self.unload(id)?;
        }
        thread::sleep(UNTIL_NEWER);
        let error = self.lms.load(wanted).err();
        let after = self.lms.loaded().context("it may not be loaded again")?;
        let mut notes = Vec::new();
        for other in after.iter().filter(|other| other.path == wanted.path) {
            let other = &other.identifier;
            if other != id && find_loaded(&before, other).is_none() {
                let end = format!("`lms unload {}` ends it", quoted(other));
                notes.push(format!("another copy was loaded in between: {end}"));
            }
        }
        let Some(now) = find_loaded(&after, id) else {
            let error = error.unwrap_or(anyhow!("`lms ps` does not list it"));
            notes.insert(0, format!("{error:#}"));
            bail!("{}; {}", notes.join("; "), self.advice);
        };
        notes.extend(error.map(|error| format!("something else loaded it in between ({error:#})")));
        Ok(with_differences(now, wanted, notes))
    }

    /// The model under each of its names. Fails if something else uses it.
    pub fn instances(&self, of: &LoadedModel) -> Result<Vec<LoadedModel>> {
        // LM Studio may call a model busy a moment after the answer.
        retry(Duration::from_secs(2), || {
            let mut loaded = self.lms.loaded()?;
            loaded.retain(|model| model.path == of.path);
            let is_used = loaded.iter().any(LoadedModel::is_busy);
            ensure!(!is_used, "something else uses the model");
            Ok(loaded)
        })
    }

    pub fn run_command(&self, text: &str) -> Result<()> {
        let mut shell = Command::new("sh");
        let ran = command::output(shell.args(["-c", text]), self.lms.load_timeout);
        ran.with_context(|| format!("--reload '{text}'")).map(drop)
    }

    fn unload(&self, identifier: &str) -> Result<()> {
        let unloaded = self.lms.unload(identifier).context("it was not unloaded");
        let still = "it was not unloaded, or something loaded it again; try again";
        // It may leave the list a moment later. What cannot be seen may be gone, so that it has to be loaded.
        let gone = retry(self.lms.wait_timeout.min(LEAVING), || {
            let now = self.lms.loaded().unwrap_or_default();
            ensure!(find_loaded(&now, identifier).is_none(), still);
            Ok(())
        });
        gone.or_else(|why| unloaded.and(Err(why)))
    }

    /// What is loaded once the model is idle. Fails if anything needed to load it again is unknown.
    pub fn wait_idle(&self, wanted: &LoadedModel) -> Result<Vec<LoadedModel>> {
        let left = "it was left as it is";
        if wanted.path.is_none() || wanted.context_length.is_none() {
            bail!("`lms ps` does not tell its path and context; {left}");
        }
        let limit = self.lms.wait_timeout;
        let loaded = retry(limit, || match self.lms.loaded() {
            Ok(now) if find_loaded(&now, &wanted.identifier).is_some_and(LoadedModel::is_busy) => {
                bail!("still busy after {limit:?}, {left}; try again when it is idle");
            }
            loaded => Ok(loaded),
        })??;
        let all = self.lms.all_loaded()?;
        let same = all.iter().filter(|one| one.identifier == wanted.identifier);
        ensure!(same.count() < 2, "another has the same identifier; {left}");
        Ok(loaded)
    }

    fn restart(&self, old: &[Worker], before: &[LoadedModel]) -> Result<Vec<Reloaded>> {
        let app = &old[0].app;
        let is_app = !["", "llmster"].contains(&app.as_str());
        let is_one = old.iter().all(|worker| worker.app == *app);
        let why = "one app can be restarted, and llmster has none; use --reload";
        ensure!(is_app && is_one, why);
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
        let reopened = self.quit_and_open(app, old);
        reopened.with_context(|| format!("what was loaded: {}", names.join(", ")))?;
        Ok(self.restore(before, |now| now.note.is_none()))
    }

    fn quit_and_open(&self, app: &str, old: &[Worker]) -> Result<()> {
        let limit = self.lms.wait_timeout;
        let call = |program: &str, words: &[&str]| {
            command::output(Command::new(program).args(words), limit)
        };
        call("osascript", &["-e", &format!("quit app \"{app}\"")])?;
        let still = format!("a worker still runs after {limit:?}, perhaps in a service");
        let ended = retry(limit, || {
            let mut now = workers::snapshot(&self.home).workers.into_iter();
            ensure!(!now.any(|one| old.contains(&one)), "{still}; use --reload");
            Ok(())
        });
        thread::sleep(UNTIL_NEWER);
        // Also if a worker still runs. macOS may refuse an app that is still on its way out.
        retry(limit.min(LEAVING), || call("open", &["-a", app]))?;
        ended.and_then(|()| retry(limit, || self.lms.loaded().map(drop)))
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
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        ..Reloaded::default()
    }
}
