//! Owns what a sweep changes, the backends' files and the loaded models, and restores it whatever happens.

use std::mem;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use glob::Pattern;

use super::marker;
use super::server::Server;
use crate::command;
use crate::lmstudio::lms::{Lms, LoadedModel, find};
use crate::lock::Lock;
use crate::output::Output;
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::{self, Applied, Outcome};
use crate::reload::{How, Reloader};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(1800);

/// How a size takes effect: through `lms`, by a restart of the app, or by a command for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    Model,
    App,
    Command(String),
}

impl From<&str> for Reload {
    fn from(text: &str) -> Self {
        match text {
            "model" | "models" => Self::Model,
            "app" => Self::App,
            command => Self::Command(command.to_owned()),
        }
    }
}

/// Whether the backends' files have the sizes that the benchmark sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Untouched,
    Changed,
    Over,
}

/// What there was before, and how to restore it. One thread sets sizes; any other may restore.
pub struct Guard {
    home: PathBuf,
    lock: Lock,
    how: Reload,
    before: Vec<Surveyed>,
    /// If `lms` reloads: what was loaded, and the measured model as the sweep loads it.
    loaded: Vec<LoadedModel>,
    wanted: Option<LoadedModel>,
    /// Held while files are changed.
    phase: Mutex<Phase>,
    /// Whether a model was loaded; held while one is.
    is_reloaded: Mutex<bool>,
    /// Waited for after a reload.
    pub server: Option<Server>,
}

impl Guard {
    /// Takes the lock and reads what restoring needs. Fails if a sweep could not work; changes nothing yet.
    pub fn new(home: &Path, wanted: &[Pattern], how: Reload, output: &Output) -> Result<Self> {
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
            how,
            before,
            loaded: Vec::new(),
            wanted: None,
            phase: Mutex::new(Phase::Untouched),
            is_reloaded: Mutex::new(false),
            server: None,
        })
    }

    /// Finds the measured model, which needs a context of `context` tokens, and everything that loads it again.
    pub fn hold_models(&mut self, identifier: &str, context: u64, output: &Output) -> Result<()> {
        if matches!(self.how, Reload::Command(_)) {
            return Ok(());
        }
        let lms = Lms::of(&self.home);
        let program = lms.program.display();
        ensure!(
            lms.program.is_file(),
            "{program} is not there, and nothing else loads a model again; give --reload a command that does"
        );
        self.loaded = lms.loaded()?;
        self.loaded
            .retain(|model| model.is_here() && model.is_mlx());
        let is_known = |model: &LoadedModel| model.path.is_some() && model.context_length.is_some();
        let unknown = "`lms ps` does not tell path and context of what is loaded";
        ensure!(self.loaded.iter().all(is_known), unknown);
        let wanted = find(&self.loaded, identifier).cloned();
        let missing = || format!("`lms ps` lists no MLX model {identifier} on this Mac");
        let mut wanted = wanted.with_context(missing)?;
        let advice = "try again when it is idle";
        ensure!(!wanted.is_busy(), "{identifier} is at work; {advice}");
        let has = wanted.context_length.unwrap_or_default();
        if has < context {
            output.note(&format!(
                "{identifier} has a context of {has}; it is loaded with {context} while it is measured"
            ));
            wanted.context_length = Some(context);
        }
        self.wanted = Some(wanted);
        Ok(())
    }

    /// Sets every backend to `size` and makes it take effect.
    pub fn prepare(&self, size: u64) -> Result<()> {
        let mut is_reloaded = locked(&self.is_reloaded);
        self.set(size)?;
        *is_reloaded = true;
        reload(&self.how, &self.home, self.wanted.as_ref())?;
        self.wait_for_server()
    }

    fn set(&self, size: u64) -> Result<()> {
        let mut phase = locked(&self.phase);
        ensure!(*phase != Phase::Over, "stopped");
        if *phase == Phase::Untouched {
            marker::write(&self.home, &self.before).context("cannot write beside the backends")?;
            *phase = Phase::Changed;
        }
        let applied = patch::apply(&self.lock, self.now()?, Goal::Size(size));
        check(applied.iter().filter(|one| one.before.backend.selected))
    }

    fn wait_for_server(&self) -> Result<()> {
        let server = self.server.as_ref();
        server.map_or(Ok(()), |server| server.wait().map(drop))
    }

    /// The backends of the sweep as they are now.
    fn now(&self) -> Result<Vec<Surveyed>> {
        let before: Vec<_> = self.before.iter().map(|one| &one.backend.path).collect();
        let mut backends = patch::survey(&self.home, &[])?.backends;
        backends.retain(|now| before.contains(&&now.backend.path));
        Ok(backends)
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
        let mut phase = locked(&self.phase);
        if mem::replace(&mut *phase, Phase::Over) == Phase::Changed {
            let goal = Goal::Earlier(&self.before);
            let restored = self.now().map(|now| patch::apply(&self.lock, now, goal));
            if let Err(why) = restored.and_then(|applied| check(applied.iter())) {
                let command = marker::way_back(&self.before);
                let advice = format!("`{command}` gives the sizes back");
                output.error(&format!("not as it was: {why:#}; {advice}"));
                return false;
            }
            marker::forget(&self.home);
            if keep.is_none() {
                output.say("Every backend is as it was.");
            }
        }
        let Some(size) = keep else { return true };
        let now = self.now().unwrap_or_default();
        set_best(&self.lock, now, size, output)
    }

    /// Loads the model as it was, if it was reloaded; first waits for a load that is under way.
    pub fn finish_models(&self, is_stopped: bool) -> Result<()> {
        if !*locked(&self.is_reloaded) {
            return Ok(());
        }
        let id = self.wanted.as_ref().map(|wanted| &wanted.identifier);
        let was = id.and_then(|id| find(&self.loaded, id));
        let failed = || format!("{} was not loaded again", id.map_or("the model", |id| id));
        reload(&self.how, &self.home, was).with_context(failed)?;
        // Leave the server as it was: answering.
        if is_stopped {
            Ok(())
        } else {
            self.wait_for_server()
        }
    }
}

fn reload(how: &Reload, home: &Path, wanted: Option<&LoadedModel>) -> Result<()> {
    if let Reload::Command(text) = how {
        let mut shell = Command::new("sh");
        let ran = command::output(shell.arg("-c").arg(text), COMMAND_TIMEOUT);
        return ran.map(drop).with_context(|| format!("--reload '{text}'"));
    }
    let Some(wanted) = wanted else { return Ok(()) };
    let reloader = Reloader {
        home,
        lms: Lms::of(home),
        advice: "load it in LM Studio".to_owned(),
    };
    if *how == Reload::App {
        let models = reloader.run(How::App)?;
        let failed = models.into_iter().find_map(|model| model.failed);
        failed.map_or(Ok(()), |why| bail!(why))?;
        let now = reloader.lms.loaded()?;
        let now = find(&now, &wanted.identifier);
        if now.is_some_and(|now| now.context_length == wanted.context_length) {
            return Ok(());
        }
    }
    let failed = reloader.reload(wanted).failed;
    failed.map_or(Ok(()), |why| bail!(why))
}

/// Fails if a backend is not as planned.
fn check<'a>(applied: impl Iterator<Item = &'a Applied>) -> Result<()> {
    let mut failed = Vec::new();
    for one in applied {
        if !matches!(one.outcome, Outcome::Changed | Outcome::Unchanged) {
            let why = one.why.as_deref().unwrap_or("unknown");
            failed.push(format!("{}: {why}", one.before.backend.name));
        }
    }
    ensure!(failed.is_empty(), failed.join("; "));
    Ok(())
}

/// Sets a size for good and says what was really set. Returns false if a selected backend was not.
fn set_best(lock: &Lock, backends: Vec<Surveyed>, size: u64, output: &Output) -> bool {
    let mut set = Vec::new();
    let mut is_right = true;
    for one in &patch::apply(lock, backends, Goal::Size(size)) {
        if let Err(why) = check([one].into_iter()) {
            output.error(&format!("not set to {size}: {why}"));
            is_right &= !one.before.backend.selected;
        } else {
            set.push(one.after.backend.name.clone());
        }
    }
    if !set.is_empty() {
        let effect = "it takes effect when a model is next loaded";
        output.say(&format!("{size} is set in {}; {effect}.", set.join(", ")));
    }
    is_right && !set.is_empty()
}

/// Locks a mutex even if a thread panicked while it held it.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
