//! Owns what a sweep changes, the backends' files and the loaded models, and restores it whatever happens.

use std::path::Path;
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::args::BenchArgs;
use super::engine::context_for;
use super::results::{Results, Row};
use crate::command::retry;
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
    server: Api,
}

impl Guard {
    /// Keeps what restoring needs; changes nothing yet. Fails if a sweep could not work.
    pub fn new(
        home: &Path,
        lock: Lock,
        backends: Vec<Surveyed>,
        args: &BenchArgs,
        results: &Results,
        server: Api,
        output: Output,
    ) -> Result<Self> {
        let mut before = Vec::new();
        for one in backends {
            let name = &one.backend.name;
            let sizes = results.rows.iter().map(Row::chunk);
            let dry_run = |size| patch::dry_run(slice::from_ref(&one), Goal::Size(size));
            match sizes.flat_map(dry_run).find_map(|tried| tried.why) {
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
        let (home, advice) = (home.to_owned(), "load it in LM Studio".to_owned());
        let mut guard = Self {
            lock,
            command: args.reload.clone(),
            output,
            before,
            reloader: Reloader { home, lms, advice },
            loaded: Vec::new(),
            wanted: None,
            is_over: Mutex::default(),
            is_reloaded: Mutex::default(),
            server,
        };
        if !args.direct && args.reload.is_none() {
            guard.find_model(results)?;
        }
        Ok(guard)
    }

    /// Tells others that a benchmark is running, and how to restore the sizes if it does not come to its end.
    pub fn begin(&self) -> Result<()> {
        marker::add(&self.reloader.home, &self.before)
    }

    fn find_model(&mut self, results: &Results) -> Result<()> {
        let name = &results.model;
        let next = "give --reload a command that loads the model";
        ensure!(results.api == "v1", "this server cannot load it; {next}");
        let unknown = || format!("`lms` does not tell what is loaded; {next}");
        let loaded = self.reloader.lms.loaded().with_context(unknown)?;
        let wanted = find_loaded(&loaded, name).context("`lms ps` does not list the model")?;
        ensure!(!wanted.is_busy(), "{name} is at work; try again later");
        self.reloader.wait_idle(wanted)?;
        let mut wanted = wanted.clone();
        let needed = context_for(results.prompt_tokens);
        if wanted.context_length < Some(needed) {
            let what = format!("{name} is loaded with a context of {needed} while it is measured");
            self.output.note(&what);
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
        applied.retain(|one| one.before.backend.selected);
        check(&applied)?;
        drop(is_over);
        *is_reloaded = true;
        self.reload()?;
        if let Some(model) = &self.wanted {
            self.reloader.try_reload(model)?;
            drop(is_reloaded);
            self.reloader.wait_idle(model)?;
        }
        self.instances()
    }

    fn apply(&self, goal: Goal<'_>) -> Vec<Applied> {
        let read = |one: &Surveyed| patch::read_backend(&one.backend);
        let now: Vec<_> = self.before.iter().map(read).collect();
        patch::apply(&self.lock, &now, goal)
    }

    fn reload(&self) -> Result<()> {
        if let Some(text) = &self.command {
            self.reloader.run_command(text)?;
            // A restarted server takes a while.
            retry(self.reloader.lms.wait_timeout, || self.server.loaded())?;
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
        let applied = self.apply(Goal::Earlier(&self.before));
        marker::forget(&self.reloader.home, &applied);
        check(&applied).context("sizes not restored, `lmpatch --check` says how")?;
        let Some(size) = keep else {
            self.output.say("Every backend is as it was.");
            return Ok(());
        };
        let applied = self.apply(Goal::Size(size));
        for one in applied.iter().filter(|one| one.why.is_none()) {
            let (name, effect) = (&one.before.backend.name, "when a model is next loaded");
            let set = format!("{size} is set in {name}; it takes effect {effect}.");
            self.output.say(&set);
        }
        check(&applied).with_context(|| format!("not set to {size}"))
    }

    /// Loads every model as it was, after a load that is under way. Fails in the end if one is not as it was.
    pub fn finish_models(&self) -> Result<()> {
        // A model that is still at work on a prompt could not be loaded again.
        self.server.hang_up();
        if !*locked(&self.is_reloaded) {
            return Ok(());
        }
        self.output.say("Restoring the models …");
        self.reload().context("the model was not loaded again")?;
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
