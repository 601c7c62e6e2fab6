//! Owns what a sweep changes, the backends' files and the loaded models, and restores it whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::args::{BenchArgs, Reload};
use super::marker;
use super::server::Server;
use crate::command;
use crate::lmstudio::backends::Backend;
use crate::lmstudio::lms::{Lms, LoadedModel, find};
use crate::lock::Lock;
use crate::output::Output;
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::{self, Outcome};
use crate::reload::{How, Reloader};

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
    how: Reload,
    output: Output,
    before: Vec<Surveyed>,
    /// If `lms` reloads: what was loaded, and the measured model as the sweep loads it.
    loaded: Vec<LoadedModel>,
    wanted: Option<LoadedModel>,
    files: Mutex<Files>,
    /// Whether a model was loaded; held while one is.
    is_reloaded: Mutex<bool>,
    /// Waited for after a reload.
    pub server: Option<Server>,
}

impl Guard {
    /// Takes the lock and reads what restoring needs. Of `model`, that is its identifier and the context that it needs.
    /// Fails if a sweep could not work; changes nothing yet.
    pub fn new(
        home: &Path,
        args: &BenchArgs,
        model: Option<(&str, u64)>,
        output: Output,
    ) -> Result<Self> {
        let lock = marker::lock(home)?;
        let mut before = Vec::new();
        for backend in patch::survey(home, &args.backend)?.backends {
            let Some(blocked) = backend.blocked() else {
                before.push(backend);
                continue;
            };
            let (name, why) = (&backend.backend.name, blocked.why);
            let is_idle = !backend.backend.selected;
            ensure!(is_idle, "{name} is selected but cannot be set: {why}");
            output.note(&format!("{name} is not benchmarked: {why}"));
        }
        ensure!(!before.is_empty(), "there is no backend that can be set");
        let mut guard = Self {
            home: home.to_owned(),
            lock,
            how: args.reload.clone(),
            output,
            before,
            loaded: Vec::new(),
            wanted: None,
            files: Mutex::default(),
            is_reloaded: Mutex::default(),
            server: None,
        };
        let is_command = matches!(guard.how, Reload::Command(_));
        if let Some((identifier, context)) = model.filter(|_| !is_command) {
            guard.find_model(identifier, context)?;
        }
        Ok(guard)
    }

    fn find_model(&mut self, identifier: &str, context: u64) -> Result<()> {
        let reloader = self.reloader();
        let program = &reloader.lms.program;
        let missing =
            "is not there, and nothing else loads a model again; give --reload a command that does";
        ensure!(program.is_file(), "{} {missing}", program.display());
        let loaded = reloader.lms.loaded()?;
        let wanted = find(&loaded, identifier).filter(|model| model.is_mlx());
        let missing = || format!("`lms ps` lists no MLX model {identifier} on this Mac");
        let mut wanted = wanted.with_context(missing)?.clone();
        let advice = "try again when it is idle";
        ensure!(!wanted.is_busy(), "{identifier} is at work; {advice}");
        let known = reloader.wait_idle(&wanted);
        known.with_context(|| identifier.to_owned())?;
        let has = wanted.context_length.unwrap_or_default();
        if has < context {
            self.output.note(&format!(
                "{identifier} has a context of {has}; it is loaded with {context} while it is measured"
            ));
            wanted.context_length = Some(context);
        }
        (self.loaded, self.wanted) = (loaded, Some(wanted));
        Ok(())
    }

    /// Sets every backend to `size` and makes it take effect. Returns the context that the model has then.
    pub fn prepare(&self, size: u64) -> Result<Option<u64>> {
        let mut is_reloaded = locked(&self.is_reloaded);
        self.set(size)?;
        *is_reloaded = true;
        self.reload(self.wanted.as_ref())?;
        drop(is_reloaded);
        self.wait_for_server()?;
        self.context()
    }

    fn set(&self, size: u64) -> Result<()> {
        let mut files = locked(&self.files);
        ensure!(!files.is_over, "stopped");
        if !files.are_changed {
            let written = marker::write(&self.home, &marker::commands(&self.before));
            written.context("cannot write beside the backends")?;
            files.are_changed = true;
        }
        let mut done = self.apply(Goal::Size(size))?;
        done.retain(|(backend, _)| backend.selected);
        check(&done)
    }

    /// Applies `goal` to the backends in `before`. Returns each with why that failed, if it did.
    fn apply(&self, goal: Goal<'_>) -> Result<Vec<(&Backend, Option<String>)>> {
        let paths: Vec<_> = self.before.iter().map(|one| &one.backend.path).collect();
        let mut now = patch::survey(&self.home, &[])?.backends;
        now.retain(|now| paths.contains(&&now.backend.path));
        let applied = patch::apply(&self.lock, now, goal);
        let why = |path: &Path| {
            let mut applied = applied.iter();
            let Some(one) = applied.find(|one| one.before.backend.path == path) else {
                return Some("it is gone".to_owned());
            };
            let is_right = matches!(one.outcome, Outcome::Changed | Outcome::Unchanged);
            (!is_right).then(|| one.why.clone().unwrap_or_default())
        };
        let backends = self.before.iter().map(|one| &one.backend);
        Ok(backends.map(|one| (one, why(&one.path))).collect())
    }

    /// The context of the measured model, if `lms` tells. Fails if something else has loaded or uses the model.
    pub fn context(&self) -> Result<Option<u64>> {
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

    /// Restores the files, then sets `keep`; no size is set afterwards.
    pub fn finish_files(&self, keep: Option<u64>) -> Result<()> {
        let is_changed = self.restore_files()?;
        if let Some(size) = keep {
            return self.keep(size);
        }
        if is_changed {
            self.output.say("Every backend is as it was.");
        }
        Ok(())
    }

    /// Returns whether there was anything to restore.
    fn restore_files(&self) -> Result<bool> {
        let mut files = locked(&self.files);
        files.is_over = true;
        if !files.are_changed {
            return Ok(false);
        }
        let done = self.apply(Goal::Earlier(&self.before))?;
        let back = done.iter().filter(|(_, why)| why.is_none());
        marker::forget(&self.home, back.map(|(backend, _)| &*backend.name));
        check(&done).map_err(|why| match marker::restore_commands(&self.home) {
            Some(commands) => anyhow!("sizes not restored: {why:#}; {commands} restores them"),
            None => why.context("sizes not restored"),
        })?;
        Ok(true)
    }

    fn keep(&self, size: u64) -> Result<()> {
        let done = self.apply(Goal::Size(size))?;
        let set = done.iter().filter(|(_, why)| why.is_none());
        let set: Vec<_> = set.map(|(backend, _)| &*backend.name).collect();
        if !set.is_empty() {
            let effect = match self.server {
                Some(_) => "",
                None => "; it takes effect when a model is next loaded",
            };
            self.output
                .say(&format!("{size} is set in {}{effect}.", set.join(", ")));
        }
        let is_wrong = done.iter().any(|(one, why)| one.selected && why.is_some());
        match check(&done).with_context(|| format!("not set to {size}")) {
            Err(why) if !is_wrong && !set.is_empty() => self.output.note(&format!("{why:#}")),
            checked => return checked,
        }
        Ok(())
    }

    /// Loads the model again as it was, if it was reloaded; first waits for a load that is under way.
    pub fn finish_models(&self, is_stopped: bool) -> Result<()> {
        if let Err(TryLockError::WouldBlock) = self.is_reloaded.try_lock() {
            self.output.say("Waiting for the load that is under way …");
        }
        if !*locked(&self.is_reloaded) {
            return Ok(());
        }
        let id = self.wanted.as_ref().map(|wanted| &wanted.identifier);
        let was = id.and_then(|id| find(&self.loaded, id));
        let name = id.map_or("the model", |id| id);
        self.output.say(&format!("Loading {name} again …"));
        let reloaded = self.reload(was);
        if let Some(note) = reloaded.with_context(|| format!("{name} was not loaded again"))? {
            bail!("{name} is not as it was: {note}");
        }
        // Leave the server as it was: answering.
        if is_stopped {
            Ok(())
        } else {
            self.wait_for_server()
        }
    }

    /// Returns how the loaded model differs from `model`, if it does.
    fn reload(&self, model: Option<&LoadedModel>) -> Result<Option<String>> {
        if let Reload::Command(text) = &self.how {
            let mut shell = Command::new("sh");
            let ran = command::output(shell.arg("-c").arg(text), COMMAND_TIMEOUT);
            let ran = ran.with_context(|| format!("--reload '{text}'"));
            return ran.map(|_| None);
        }
        let Some(model) = model else { return Ok(None) };
        let reloader = self.reloader();
        if self.how == Reload::App {
            let models = reloader.run(How::App)?;
            let failed = models.into_iter().find_map(|model| model.failed);
            failed.map_or(Ok(()), |why| bail!(why))?;
            let now = reloader.lms.loaded()?;
            let now = find(&now, &model.identifier);
            if now.is_some_and(|now| now.context_length == model.context_length) {
                return Ok(None);
            }
        }
        let now = reloader.reload(model);
        now.failed.map_or(Ok(now.note), |why| bail!(why))
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

/// Fails if a backend did not reach the goal.
fn check(done: &[(&Backend, Option<String>)]) -> Result<()> {
    let failed = done.iter().filter_map(|(backend, why)| {
        let why = why.as_ref()?;
        Some(format!("{}: {why}", backend.name))
    });
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), failed.join("; "));
    Ok(())
}

/// Locks a mutex even if a thread panicked while it held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
