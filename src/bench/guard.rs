//! Owns what a sweep changes, the backends' files and the loaded models, and restores it whatever happens.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::args::BenchArgs;
use super::engine::context_for;
use super::results::{Results, Row};
use crate::lmstudio::api::Api;
use crate::lmstudio::lms::{Lms, LoadedModel, find_loaded};
use crate::lock::Lock;
use crate::marker;
use crate::output::Output;
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::{self, Applied};
use crate::reload::{Reloaded, Reloader};

/// What there was before, and how to restore it. One thread sets sizes; any other may restore the files.
pub struct Guard {
    lock: Lock,
    command: Option<String>,
    output: Output,
    before: Vec<Surveyed>,
    reloader: Reloader,
    /// Unless a command makes sizes take effect: what was loaded, and the measured model as the sweep loads it.
    loaded: Vec<LoadedModel>,
    wanted: Option<LoadedModel>,
    /// Whether the files are restored, so that no size is set any more; held while one is.
    is_over: Mutex<bool>,
    /// Whether a model was loaded; held while one is.
    is_reloaded: Mutex<bool>,
    server: Option<Api>,
}

impl Guard {
    /// Keeps what restoring needs, of these backends as they are under the lock. Fails if a sweep could not work; changes
    /// nothing yet.
    pub fn new(
        home: &Path,
        lock: Lock,
        backends: Vec<Surveyed>,
        args: &BenchArgs,
        results: &Results,
        server: Option<Api>,
        output: Output,
    ) -> Result<Self> {
        let mut before = Vec::new();
        for one in backends {
            let name = &one.backend.name;
            let sizes = results.rows.iter().map(Row::chunk);
            let mut tries = sizes.flat_map(|n| patch::dry_run(vec![one.clone()], Goal::Size(n)));
            match tries.find_map(|tried| tried.why) {
                None => before.push(one),
                Some(why) if one.backend.selected => {
                    bail!("{name} is selected but cannot be set: {why}")
                }
                Some(why) => output.note(&format!("{name} is not benchmarked: {why}")),
            }
        }
        ensure!(!before.is_empty(), "there is no backend that can be set");
        let mut lms = Lms::of(home);
        // A prefill that was cut short goes on to the end of its chunk.
        lms.wait_timeout = lms.wait_timeout.max(Duration::from_secs(args.timeout));
        let mut guard = Self {
            lock,
            command: args.reload.clone(),
            output,
            before,
            reloader: Reloader {
                home: home.to_owned(),
                lms,
                advice: "load it in LM Studio".to_owned(),
            },
            loaded: Vec::new(),
            wanted: None,
            is_over: Mutex::default(),
            is_reloaded: Mutex::default(),
            server,
        };
        if !results.is_direct() && args.reload.is_none() {
            guard.find_model(results)?;
        }
        Ok(guard)
    }

    /// Tells others that a benchmark is running, and how to restore the sizes if it does not come to its end.
    pub fn begin(&self) -> Result<()> {
        let commands = marker::commands(self.before.iter(), true);
        marker::add(&self.reloader.home, commands).context("cannot write beside the backends")
    }

    /// Finds the measured model. Fails if it could not be loaded again, with a context that is enough.
    fn find_model(&mut self, results: &Results) -> Result<()> {
        let name = &results.model;
        let other = "this server cannot load a model; give --reload a command that does";
        ensure!(results.api == "v1", other);
        let next = "give --reload a command that loads the model";
        let loaded = self.reloader.loaded_here(next)?;
        let wanted = find_loaded(&loaded, name).filter(|model| model.is_mlx());
        let missing = || format!("`lms ps` lists no MLX model {name} on this Mac");
        let mut wanted = wanted.with_context(missing)?.clone();
        let advice = "try again when it is idle";
        ensure!(!wanted.is_busy(), "{name} is at work; {advice}");
        let checked = self.reloader.wait_idle(&wanted);
        checked.with_context(|| name.clone())?;
        let has = wanted.context_length.unwrap_or_default();
        let needed = context_for(results.prompt_tokens);
        if has < needed {
            let meanwhile = format!("it is loaded with {needed} while it is measured");
            self.output
                .note(&format!("{name} has a context of {has}; {meanwhile}"));
            wanted.context_length = Some(needed);
        }
        (self.loaded, self.wanted) = (loaded, Some(wanted));
        Ok(())
    }

    /// Sets every backend to `size` and makes it take effect. Returns how the model is loaded then.
    pub fn switch_to(&self, size: u64) -> Result<Vec<LoadedModel>> {
        // Not with `is_reloaded`, for which `finish_models` waits.
        if let Some(model) = &self.wanted {
            self.reloader.wait_idle(model)?;
        }
        let mut is_reloaded = locked(&self.is_reloaded);
        let is_over = locked(&self.is_over);
        ensure!(!*is_over, "stopped");
        let mut applied = self.apply(Goal::Size(size));
        // The trouble of a backend that is not in use says nothing of a size.
        if self.before.iter().any(|one| one.backend.selected) {
            applied.retain(|one| one.before.backend.selected);
        }
        check(&applied)?;
        drop(is_over);
        *is_reloaded = true;
        self.run_command()?;
        if let Some(model) = &self.wanted {
            if self.reloader.try_reload(model)?.is_foreign {
                // Another client was first, with a context of its own.
                self.reloader.try_reload(model)?;
            }
            drop(is_reloaded);
            self.reloader.wait_idle(model)?;
        }
        self.instances()
    }

    fn apply(&self, goal: Goal<'_>) -> Vec<Applied> {
        let read = |one: &Surveyed| patch::survey::survey(one.backend.clone());
        patch::apply(&self.lock, self.before.iter().map(read).collect(), goal)
    }

    /// Runs the command that loads the model again, if there is one, and waits until the server is back.
    fn run_command(&self) -> Result<()> {
        if let (Some(text), Some(server)) = (&self.command, &self.server) {
            self.reloader.run_command(text)?;
            server.wait()?;
        }
        Ok(())
    }

    /// The measured model under each of its names, if `lms` tells. Fails if something else uses it.
    pub fn instances(&self) -> Result<Vec<LoadedModel>> {
        let wanted = self.wanted.as_ref();
        wanted.map_or(Ok(vec![]), |model| self.reloader.instances(model))
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
        let Some(size) = keep else {
            self.output.say("Every backend is as it was.");
            return Ok(());
        };
        let applied = self.apply(Goal::Size(size));
        let set = applied.iter().filter(|one| one.why.is_none());
        let set: Vec<_> = set.map(|one| &*one.before.backend.name).collect();
        if !set.is_empty() {
            let (names, effect) = (set.join(", "), "takes effect when a model is next loaded");
            self.output
                .say(&format!("{size} is set in {names}; it {effect}."));
        }
        check(&applied).with_context(|| format!("not set to {size}"))
    }

    /// Loads the measured model as it was and every other one that is gone, if a size was loaded; first waits for a load
    /// that is under way. Fails in the end if one is not as it was.
    pub fn finish_models(&self) -> Result<()> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        // A model that is still at work on a prompt could not be loaded again.
        server.hang_up();
        if self.is_reloaded.try_lock().map_or(true, |done| *done) {
            self.output.say("Restoring the models …");
        }
        if !*locked(&self.is_reloaded) {
            return Ok(());
        }
        let restored = self.run_command();
        restored.context("the model was not loaded again")?;
        let Some(wanted) = &self.wanted else {
            return Ok(());
        };
        let is_other = |now: &Reloaded| now.model.identifier != wanted.identifier;
        self.reloader.restore(&self.loaded, is_other);
        // Nothing else brings them back: another client may have been first, or a load may have made another model go.
        let keeps = |now: &Reloaded| is_other(now) || now.note.is_none();
        let models = self.reloader.restore(&self.loaded, keeps);
        let problems: Vec<_> = models.iter().filter_map(Reloaded::problem).collect();
        ensure!(problems.is_empty(), problems.join("; "));
        self.output.say("Every model is loaded as it was.");
        Ok(())
    }
}

fn check(applied: &[Applied]) -> Result<()> {
    let name = |one: &Applied| one.before.backend.name.clone();
    let why = |one: &Applied| Some(name(one) + ": " + one.why.as_ref()?);
    let whys: Vec<_> = applied.iter().filter_map(why).collect();
    ensure!(whys.is_empty(), whys.join("; "));
    Ok(())
}

/// Locks a mutex even if a thread panicked while it held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
