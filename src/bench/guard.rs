//! Owns what a sweep changes, the backends' files and the loaded models, and puts it back whatever happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use glob::Pattern;

use super::interrupt::Interrupt;
use super::marker;
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

/// What there was, and how to go back to it.
pub struct Guard<'a> {
    home: PathBuf,
    output: &'a Output,
    interrupt: &'a Interrupt,
    lock: Lock,
    how: Reload,
    before: Vec<Surveyed>,
    /// Where `lms` reloads: what was loaded, and the measured one as the sweep loads it.
    loaded: Vec<LoadedModel>,
    wanted: Option<LoadedModel>,
    are_files_changed: bool,
    are_models_changed: bool,
}

impl<'a> Guard<'a> {
    /// Takes the lock and all that going back needs. Fails where a sweep could not work; changes nothing yet.
    pub fn new(
        home: &Path,
        wanted: &[Pattern],
        how: Reload,
        (output, interrupt): (&'a Output, &'a Interrupt),
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
            output,
            interrupt,
            lock,
            how,
            before,
            loaded: Vec::new(),
            wanted: None,
            are_files_changed: false,
            are_models_changed: false,
        })
    }

    /// Finds the measured model, which is to have a context of so many tokens, and all that loads it again.
    pub fn hold_models(&mut self, identifier: &str, context: u64) -> Result<()> {
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
            self.output.note(&format!(
                "{identifier} has a context of {has}; it is loaded with {context} while it is measured"
            ));
            wanted.context_length = Some(context);
        }
        self.wanted = Some(wanted);
        Ok(())
    }

    /// Sets every backend and makes it take effect.
    pub fn prepare(&mut self, size: u64) -> Result<()> {
        if !self.are_files_changed {
            marker::write(&self.home, &self.before).context("cannot write beside the backends")?;
            self.are_files_changed = true;
        }
        let applied = patch::apply(&self.lock, self.now()?, Goal::Size(size));
        check(applied.iter().filter(|one| one.before.backend.selected))?;
        self.are_models_changed = true;
        self.reload()
    }

    /// The backends of the sweep as they are now.
    fn now(&self) -> Result<Vec<Surveyed>> {
        let before: Vec<_> = self.before.iter().map(|one| &one.backend.path).collect();
        let mut backends = patch::survey(&self.home, &[])?.backends;
        backends.retain(|now| before.contains(&&now.backend.path));
        Ok(backends)
    }

    /// Where an end is asked for, the reload goes on and is not waited for.
    fn reload(&self) -> Result<()> {
        let (how, home, wanted) = (self.how.clone(), self.home.clone(), self.wanted.clone());
        let work = move || reload(&how, &home, wanted.as_ref());
        self.interrupt.attend(work)
    }

    /// The context of the measured model where `lms` tells; fails where something else loads or uses the model.
    pub fn look(&self) -> Result<Option<u64>> {
        let Some(wanted) = &self.wanted else {
            return Ok(None);
        };
        let lms = Lms::of(&self.home);
        let mut loaded = self.interrupt.attend(move || lms.loaded())?;
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

    /// Gives the files back, or sets `keep`; then loads the models as they were. Whether all of it worked.
    pub fn finish(mut self, keep: Option<u64>) -> bool {
        let are_files_right = self.finish_files(keep);
        self.finish_models() && are_files_right
    }

    fn finish_files(&mut self, keep: Option<u64>) -> bool {
        if !std::mem::take(&mut self.are_files_changed) {
            return keep.is_none();
        }
        let restored = self.now().and_then(|now| {
            let applied = patch::apply(&self.lock, now, Goal::Earlier(&self.before));
            check(applied.iter())
        });
        if let Err(why) = restored {
            let advice = format!("`{}` gives the sizes back", marker::way_back(&self.before));
            self.output
                .error(&format!("not as it was: {why:#}; {advice}"));
            return false;
        }
        marker::forget(&self.home);
        match (keep, self.now()) {
            (Some(size), Ok(now)) => set_best(&self.lock, now, size, self.output),
            (keep, _) => {
                self.output.say("Every backend is as it was.");
                keep.is_none()
            }
        }
    }

    /// One signal was answered by the files; another one ends this.
    fn finish_models(&mut self) -> bool {
        if !std::mem::take(&mut self.are_models_changed) {
            return true;
        }
        self.interrupt.tolerate_first();
        let what = self.wanted.take().map(|wanted| wanted.identifier);
        self.wanted = what.as_ref().and_then(|id| find(&self.loaded, id).cloned());
        let result = self.reload();
        if let Err(why) = &result {
            let what = what.as_deref().unwrap_or("the model");
            let text = format!("{what} was not loaded again: {why:#}; load it in LM Studio");
            self.output.error(&text);
        }
        result.is_ok()
    }
}

impl Drop for Guard<'_> {
    /// On errors and panics.
    fn drop(&mut self) {
        self.finish_files(None);
        self.finish_models();
    }
}

fn reload(how: &Reload, home: &Path, wanted: Option<&LoadedModel>) -> Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    // One that an interrupt did not wait for may still be under way.
    let _turn = TURN.lock();
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

/// Fails where a backend is not as it was to be.
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

/// Sets a size for good and says what was really set; false where a selected backend was not.
pub fn set_best(lock: &Lock, backends: Vec<Surveyed>, size: u64, output: &Output) -> bool {
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
