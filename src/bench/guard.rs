//! Owns what a sweep changes, the backends' files and the loaded models, and restores it whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use glob::Pattern;

use super::marker;
use super::server::Server;
use crate::command;
use crate::lmstudio::lms::{Lms, LoadedModel, find};
use crate::lock::Lock;
use crate::output::Output;
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::{self, Applied, Outcome};
use crate::reload::Reloader;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(1800);

/// Whether the files have the sizes that the benchmark sets, and whether it is over, so that no more are set.
#[derive(Debug, Default)]
struct Files {
    are_changed: bool,
    is_over: bool,
}

/// What there was before, and how to restore it. One thread sets sizes; any other may restore the files.
pub struct Guard {
    home: PathBuf,
    lock: Lock,
    /// Reloads instead of `lms`.
    command: Option<String>,
    before: Vec<Surveyed>,
    /// If `lms` reloads: what was loaded, and the measured model as the sweep loads it.
    loaded: Vec<LoadedModel>,
    wanted: Option<LoadedModel>,
    files: Mutex<Files>,
    /// Held while a model is loaded.
    reloading: Mutex<()>,
    /// Waited for after a reload.
    pub server: Option<Server>,
}

impl Guard {
    /// Takes the lock and reads what restoring needs. Fails if a sweep could not work; changes nothing yet.
    pub fn new(
        home: &Path,
        wanted: &[Pattern],
        command: Option<String>,
        output: &Output,
    ) -> Result<Self> {
        let lock = marker::lock(home)?;
        let mut before = Vec::new();
        for backend in patch::survey(home, wanted)?.backends {
            let Some(blocked) = backend.blocked() else {
                before.push(backend);
                continue;
            };
            let (name, why) = (&backend.backend.name, blocked.why);
            let is_idle = !backend.backend.selected;
            ensure!(is_idle, "{name}, which is in use, cannot be set: {why}");
            output.note(&format!("{name} is not part of the sweep: {why}"));
        }
        ensure!(!before.is_empty(), "there is no backend that can be set");
        Ok(Self {
            home: home.to_owned(),
            lock,
            command,
            before,
            loaded: Vec::new(),
            wanted: None,
            files: Mutex::default(),
            reloading: Mutex::default(),
            server: None,
        })
    }

    /// Finds the measured model, which needs a context of `context` tokens. Fails if it could not be loaded again.
    pub fn hold_model(&mut self, identifier: &str, context: u64, output: &Output) -> Result<()> {
        if self.command.is_some() {
            return Ok(());
        }
        let reloader = self.reloader();
        let program = &reloader.lms.program;
        let missing =
            "is not there, and nothing else loads a model again; give --reload a command that does";
        ensure!(program.is_file(), "{} {missing}", program.display());
        let loaded = reloader.lms.loaded()?;
        let wanted = find(&loaded, identifier).filter(|model| model.is_mlx());
        let missing = || format!("`lms ps` lists no MLX model {identifier} on this Mac");
        let mut wanted = wanted.with_context(missing)?.clone();
        reloader.until_idle(&wanted)?;
        let has = wanted.context_length.unwrap_or_default();
        if has < context {
            output.note(&format!(
                "{identifier} has a context of {has}; it is loaded with {context} while it is measured"
            ));
            wanted.context_length = Some(context);
        }
        (self.loaded, self.wanted) = (loaded, Some(wanted));
        Ok(())
    }

    /// Sets every backend to `size` and makes it take effect.
    pub fn prepare(&self, size: u64) -> Result<()> {
        let _loading = locked(&self.reloading);
        self.set(size)?;
        self.reload(self.wanted.as_ref())?;
        self.wait_for_server()
    }

    fn set(&self, size: u64) -> Result<()> {
        let mut files = locked(&self.files);
        ensure!(!files.is_over, "stopped");
        if !files.are_changed {
            marker::write(&self.home, &self.before).context("cannot write beside the backends")?;
            files.are_changed = true;
        }
        let applied = self.apply(Goal::Size(size))?;
        let in_use = applied.iter().filter(|one| one.before.backend.selected);
        let failed: Vec<_> = in_use.filter_map(failure).collect();
        ensure!(failed.is_empty(), failed.join("; "));
        Ok(())
    }

    fn apply(&self, goal: Goal<'_>) -> Result<Vec<Applied>> {
        let mut now = patch::survey(&self.home, &[])?.backends;
        let is_ours = |now: &Surveyed| {
            self.before
                .iter()
                .any(|one| one.backend.path == now.backend.path)
        };
        now.retain(is_ours);
        Ok(patch::apply(&self.lock, now, goal))
    }

    /// The context of the measured model, if `lms` tells. Fails if something else has loaded or uses the model.
    pub fn look(&self) -> Result<Option<u64>> {
        let Some(wanted) = &self.wanted else {
            return Ok(None);
        };
        let mut loaded = Lms::of(&self.home).loaded()?;
        loaded.retain(|model| model.is_here() && model.path == wanted.path);
        let name = &wanted.identifier;
        let measured = find(&loaded, name);
        let measured = measured.with_context(|| format!("something else unloaded {name}"))?;
        for LoadedModel { identifier: id, .. } in &loaded {
            let is_old = find(&self.loaded, id).is_some();
            ensure!(is_old, "something else loaded the model too, as {id}");
        }
        ensure!(!measured.is_busy(), "something else uses the model");
        Ok(measured.context_length)
    }

    /// Restores the files, or sets `keep`; no size is set afterwards. Returns whether that worked.
    pub fn finish_files(&self, keep: Option<u64>, output: &Output) -> bool {
        let mut files = locked(&self.files);
        files.is_over = true;
        let goal = match keep {
            Some(size) => Goal::Size(size),
            None if files.are_changed => Goal::Earlier(&self.before),
            None => return true,
        };
        let (mut right, mut failed) = (Vec::new(), Vec::new());
        match self.apply(goal) {
            Ok(applied) => {
                for one in applied {
                    match failure(&one) {
                        Some(why) => failed.push(why),
                        None => right.push(one.after.backend.name),
                    }
                }
            }
            Err(why) => failed.push(format!("{why:#}")),
        }
        match keep {
            Some(size) if !right.is_empty() => {
                let effect = "it takes effect when a model is next loaded";
                output.say(&format!("{size} is set in {}; {effect}.", right.join(", ")));
            }
            None if failed.is_empty() => output.say("Every backend is as it was."),
            _ => {}
        }
        if failed.is_empty() {
            marker::forget(&self.home);
            return true;
        }
        let what = keep.map_or("as it was".to_owned(), |size| format!("set to {size}"));
        let (why, command) = (failed.join("; "), marker::way_back(&self.before));
        output.error(&format!(
            "not {what}: {why}; `{command}` gives the sizes back"
        ));
        false
    }

    /// Loads the model as it was, if sizes were changed; first waits for a load that is under way.
    pub fn finish_models(&self, is_stopped: bool) -> Result<()> {
        let _loading = locked(&self.reloading);
        if !locked(&self.files).are_changed {
            return Ok(());
        }
        let id = self.wanted.as_ref().map(|wanted| &wanted.identifier);
        let was = id.and_then(|id| find(&self.loaded, id));
        let failed = || format!("{} was not loaded again", id.map_or("the model", |id| id));
        self.reload(was).with_context(failed)?;
        // Leave the server as it was: answering.
        if is_stopped {
            Ok(())
        } else {
            self.wait_for_server()
        }
    }

    fn reload(&self, model: Option<&LoadedModel>) -> Result<()> {
        if let Some(text) = &self.command {
            let mut shell = Command::new("sh");
            let ran = command::output(shell.arg("-c").arg(text), COMMAND_TIMEOUT);
            return ran.map(drop).with_context(|| format!("--reload '{text}'"));
        }
        let failed = model.and_then(|model| self.reloader().reload(model).failed);
        failed.map_or(Ok(()), |why| Err(anyhow!(why)))
    }

    fn reloader(&self) -> Reloader<'_> {
        Reloader {
            home: &self.home,
            lms: Lms::of(&self.home),
            advice: "load it in LM Studio".to_owned(),
        }
    }

    fn wait_for_server(&self) -> Result<()> {
        let server = self.server.as_ref();
        server.map_or(Ok(()), |server| server.wait().map(drop))
    }
}

/// Why a backend is not as planned, if it is not.
fn failure(one: &Applied) -> Option<String> {
    let is_right = matches!(one.outcome, Outcome::Changed | Outcome::Unchanged);
    let why = one.why.as_deref().unwrap_or("unknown");
    (!is_right).then(|| format!("{}: {why}", one.before.backend.name))
}

/// Locks a mutex even if a thread panicked while it held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
