//! Owns what a sweep changes, the backends' files and the loaded models, and restores it whatever happens.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::args::BenchArgs;
use super::prompt::context_for;
use super::results::{Results, Row};
use super::server::Server;
use crate::command;
use crate::lmstudio::lms::{Lms, LoadedModel, find_loaded};
use crate::lock::Lock;
use crate::marker;
use crate::output::Output;
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::{self, Applied};
use crate::reload::{Disturbed, Reloader};

/// For what `lms ps` tells: LM Studio may call a model busy a moment after the answer.
const GRACE: Duration = Duration::from_secs(2);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1800);

/// What there was before, and how to restore it. One thread sets sizes; any other may restore the files.
pub struct Guard {
    lock: Lock,
    output: Output,
    before: Vec<Surveyed>,
    is_all: bool,
    reloader: Reloader,
    /// How long an engine may say nothing.
    silence: Duration,
    /// The user's own way to make a size take effect, instead of `lms`.
    command: Option<String>,
    /// Without it: what was loaded, and the measured model as the sweep loads it.
    loaded: Vec<LoadedModel>,
    wanted: Option<LoadedModel>,
    /// Whether the files are restored, so that no size is set any more; held while one is.
    is_over: Mutex<bool>,
    /// Whether a model was loaded; held while one is.
    is_reloaded: Mutex<bool>,
    server: Option<Server>,
}

impl Guard {
    /// Keeps what restoring needs, of these backends as they are under the lock. Fails if a sweep could not work; changes
    /// nothing yet.
    pub fn new(
        home: &Path,
        lock: Lock,
        mut before: Vec<Surveyed>,
        args: &BenchArgs,
        results: &Results,
        server: Option<Server>,
        output: Output,
    ) -> Result<Self> {
        let mut blocked = BTreeSet::new();
        for size in results.rows.iter().map(Row::chunk) {
            for one in patch::dry_run(before.clone(), Goal::Size(size)) {
                let (name, why) = (one.before.backend.name, one.why);
                let Some(why) = why.filter(|_| blocked.insert(name.clone())) else {
                    continue;
                };
                let is_idle = !one.before.backend.selected;
                ensure!(is_idle, "{name} is selected but cannot be set: {why}");
                output.note(&format!("{name} is not benchmarked: {why}"));
            }
        }
        before.retain(|one| !blocked.contains(&one.backend.name));
        ensure!(!before.is_empty(), "there is no backend that can be set");
        let mut guard = Self {
            lock,
            output,
            before,
            is_all: args.backend.is_empty(),
            reloader: Reloader {
                home: home.to_owned(),
                lms: Lms::of(home),
                advice: "load it in LM Studio".to_owned(),
            },
            silence: Duration::from_secs(args.timeout),
            command: args.reload.clone(),
            loaded: Vec::new(),
            wanted: None,
            is_over: Mutex::default(),
            is_reloaded: Mutex::default(),
            server,
        };
        if results.is_reloading() && guard.command.is_none() {
            let cannot = "this server cannot load a model again; give --reload a command that does";
            ensure!(results.api == "v1", cannot);
            guard.find_model(&results.model, context_for(results.prompt_tokens))?;
        }
        Ok(guard)
    }

    /// Finds the measured model, which needs a context of `context` tokens. Fails if it could not be loaded again.
    fn find_model(&mut self, identifier: &str, context: u64) -> Result<()> {
        let reloader = &self.reloader;
        let program = &reloader.lms.program;
        let missing =
            "is not there, and nothing else loads a model again; give --reload a command that does";
        ensure!(program.is_file(), "{} {missing}", program.display());
        let mut loaded = reloader.lms.loaded()?;
        loaded.retain(LoadedModel::is_here);
        let wanted = find_loaded(&loaded, identifier).filter(|model| model.is_mlx());
        let missing = || format!("`lms ps` lists no MLX model {identifier} on this Mac");
        let mut wanted = wanted.with_context(missing)?.clone();
        let advice = "try again when it is idle";
        ensure!(!wanted.is_busy(), "{identifier} is at work; {advice}");
        let idle = reloader.wait_idle(&wanted);
        idle.with_context(|| identifier.to_owned())?;
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

    /// Tells others that a benchmark is running, and how to restore the sizes if it does not come to its end.
    pub fn begin(&self) -> Result<()> {
        let is_over = locked(&self.is_over);
        ensure!(!*is_over, "stopped");
        let commands = marker::commands(self.before.iter(), self.is_all);
        marker::add(&self.reloader.home, commands).context("cannot write beside the backends")
    }

    /// Sets every backend to `size` and makes it take effect. Returns the context that the model has then.
    pub fn switch_to(&self, size: u64) -> Result<Option<u64>> {
        self.wait_idle()?;
        let mut is_reloaded = locked(&self.is_reloaded);
        self.set(size)?;
        *is_reloaded = true;
        self.reload()?;
        drop(is_reloaded);
        self.server.iter().try_for_each(Server::wait)?;
        self.context()
    }

    /// Waits for a prefill that was cut short, which goes on to the end of its chunk.
    fn wait_idle(&self) -> Result<()> {
        let is_busy = |wanted: &LoadedModel| {
            let loaded = self.reloader.lms.loaded().unwrap_or_default();
            find_loaded(&loaded, &wanted.identifier).is_some_and(LoadedModel::is_busy)
        };
        let was_over = *locked(&self.is_over);
        command::retry(self.silence, || {
            let is_ended = !was_over && *locked(&self.is_over);
            let is_idle = is_ended || !self.wanted.as_ref().is_some_and(is_busy);
            ensure!(is_idle, "the model is still at work");
            Ok(())
        })
    }

    fn set(&self, size: u64) -> Result<()> {
        let is_over = locked(&self.is_over);
        ensure!(!*is_over, "stopped");
        let mut applied = self.apply(Goal::Size(size));
        let is_selected = |one: &Applied| one.before.backend.selected;
        if applied.iter().any(is_selected) {
            applied.retain(is_selected);
        }
        check(&applied)
    }

    fn apply(&self, goal: Goal<'_>) -> Vec<Applied> {
        let read = |one: &Surveyed| patch::survey::survey(one.backend.clone());
        let now = self.before.iter().map(read).collect();
        let mut applied = patch::apply(&self.lock, now, goal);
        for one in &mut applied {
            if !one.before.backend.path.exists() {
                one.why = Some("it is gone".to_owned());
            }
        }
        applied
    }

    /// Fails if something else has loaded or uses the model since it was prepared with that context.
    pub fn ensure_undisturbed(&self, context: Option<u64>) -> Result<()> {
        let now = self.context()?;
        let what = "something else loaded the model again, with another context";
        ensure!(now == context, Disturbed(what.to_owned()));
        Ok(())
    }

    /// The context of the measured model, if `lms` tells. Fails if something else has loaded or uses the model.
    fn context(&self) -> Result<Option<u64>> {
        command::retry(GRACE, || self.context_now())
    }

    fn context_now(&self) -> Result<Option<u64>> {
        let Some(wanted) = &self.wanted else {
            return Ok(None);
        };
        let mut loaded = self.reloader.lms.loaded()?;
        loaded.retain(|model| model.is_here() && model.path == wanted.path);
        let name = &wanted.identifier;
        let measured = find_loaded(&loaded, name);
        let measured =
            measured.with_context(|| Disturbed(format!("something else unloaded {name}")))?;
        for LoadedModel { identifier: id, .. } in &loaded {
            let is_old = find_loaded(&self.loaded, id).is_some();
            ensure!(
                is_old,
                Disturbed(format!("something else loaded the model too, as {id}"))
            );
        }
        ensure!(
            !measured.is_busy(),
            Disturbed("something else uses the model".to_owned())
        );
        Ok(measured.context_length)
    }

    /// Restores the files, then sets `keep`; no size is set afterwards.
    pub fn finish_files(&self, keep: Option<u64>) -> Result<()> {
        *locked(&self.is_over) = true;
        let home = &self.reloader.home;
        let applied = self.apply(Goal::Earlier(&self.before));
        marker::forget(home, &applied);
        check(&applied).map_err(|why| match marker::restore_commands(home) {
            Some(commands) => anyhow!("sizes not restored: {why:#}; {commands} restores them"),
            None => why.context("sizes not restored"),
        })?;
        if let Some(size) = keep {
            return self.keep(size);
        }
        self.output.say("Every backend is as it was.");
        Ok(())
    }

    fn keep(&self, size: u64) -> Result<()> {
        let applied = self.apply(Goal::Size(size)).into_iter();
        let (set, failed): (Vec<_>, Vec<_>) = applied.partition(|one| one.why.is_none());
        if !set.is_empty() {
            let is_used = set.iter().any(|one| one.before.backend.selected);
            let effect = match self.server {
                None if is_used => "; it takes effect when a model is next loaded",
                _ => "",
            };
            let names = set.iter().map(|one| one.before.backend.name.clone());
            let names = names.collect::<Vec<_>>().join(", ");
            let said = format!("{size} is set in {names}{effect}.");
            self.output.say(&said);
        }
        check(&failed).with_context(|| format!("not set to {size}"))
    }

    /// Loads the measured model as it was and every other one that is gone, if a size was loaded; first waits for a load
    /// that is under way.
    pub fn finish_models(&self, is_stopped: bool) -> Result<()> {
        // A model that is still at work on a prompt could not be loaded again.
        self.server.iter().for_each(Server::hang_up);
        if let Err(TryLockError::WouldBlock) = self.is_reloaded.try_lock() {
            self.output.say("Waiting for the load that is under way …");
        }
        if !*locked(&self.is_reloaded) {
            return Ok(());
        }
        if self.command.is_some() {
            self.output.say("Loading the model again …");
            let reloaded = self.reload();
            reloaded.context("the model was not loaded again")?;
        } else {
            // If it stays at work, its load says so.
            let _ = self.wait_idle();
            self.load_again()?;
        }
        // Leave the server as it was: answering.
        let mut server = self.server.iter().filter(|_| !is_stopped);
        server.try_for_each(Server::wait)
    }

    /// Loads the measured model, and every other one that is gone. Fails in the end if one is not as it was.
    fn load_again(&self) -> Result<()> {
        let lms = &self.reloader.lms;
        let now = command::retry(lms.wait_timeout, || lms.loaded());
        let now = now.context("no model was loaded again")?;
        let measured = self.wanted.as_ref().map(|model| &model.identifier);
        let mut whys = Vec::new();
        for was in &self.loaded {
            let name = &was.identifier;
            if Some(name) != measured && find_loaded(&now, name).is_some() {
                continue;
            }
            self.output.say(&format!("Loading {name} again …"));
            let mut reloaded = self.reloader.try_reload(was);
            let is_done = reloaded.as_ref().is_ok_and(|now| !now.is_foreign);
            // Nothing else brings it back, and memory may be short for a moment.
            if !is_done {
                reloaded = self.reloader.try_reload(was);
            }
            let why = match reloaded {
                Ok(now) => now
                    .note
                    .map(|note| format!("{name} is not as it was: {note}")),
                Err(why) => Some(format!("{name} was not loaded again: {why:#}")),
            };
            if why.is_none() {
                self.output.say(&format!("{name} is loaded again."));
            }
            whys.extend(why);
        }
        ensure!(whys.is_empty(), whys.join("; "));
        Ok(())
    }

    /// Loads the measured model as the sweep needs it, or runs the command that does.
    fn reload(&self) -> Result<()> {
        if let Some(text) = &self.command {
            let ran = command::output(Command::new("sh").args(["-c", text]), COMMAND_TIMEOUT);
            ran.with_context(|| format!("--reload '{text}'"))?;
        }
        if let Some(model) = &self.wanted {
            let now = self.reloader.try_reload(model)?;
            ensure!(!now.is_foreign, Disturbed(now.note.unwrap_or_default()));
        }
        Ok(())
    }
}

fn check(applied: &[Applied]) -> Result<()> {
    let mut whys = Vec::new();
    for one in applied {
        let name = &one.before.backend.name;
        whys.extend(one.why.iter().map(|why| format!("{name}: {why}")));
    }
    ensure!(whys.is_empty(), whys.join("; "));
    Ok(())
}

/// Locks a mutex even if a thread panicked while it held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
