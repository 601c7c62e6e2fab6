//! Measures one size after another: set, reload, measure; and puts everything back as it was.

use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};
use glob::Pattern;

use super::interrupt::TICK;
use super::measure::{Engine, Prompts, nonce, row};
use super::progress::Bar;
use super::record::{Record, Row};
use super::reload::Reloader;
use crate::cli::Reload;
use crate::lmstudio::server::{Instance, Trouble};
use crate::patch::backend::Backend;
use crate::patch::plan::Goal;
use crate::patch::{self, Deed, Done};

/// One sweep against one home and one server.
pub struct Sweep<'a> {
    /// LM Studio's home.
    pub home: &'a Path,
    /// Which layers; all where there are none.
    pub layers: &'a [Pattern],
    /// Every backend as it was found.
    pub before: &'a [Backend],
    /// The sizes, in the order in which they are measured.
    pub sizes: &'a [u64],
    /// How many runs of each size count.
    pub runs: u32,
    /// Makes an edit take effect.
    pub reloader: Reloader<'a>,
    /// What is loaded while it is measured.
    pub loaded: Vec<Instance>,
}

/// Called after every size, with what is known until then.
pub type AfterSize<'a> = &'a mut dyn FnMut(&mut Record, &Bar);

impl Sweep<'_> {
    /// Measures every size, and the first one again. What fails is a row; nothing is put back yet.
    pub fn measure(
        &self,
        engine: &mut dyn Engine,
        prompts: &mut Prompts,
        record: &mut Record,
        bar: &mut Bar,
        after: AfterSize<'_>,
    ) {
        for size in self.sizes {
            let row = self.size(*size, engine, prompts, bar);
            record.results.push(row);
            after(record, bar);
            if self.reloader.interrupt.is_set() {
                return;
            }
        }
        let [first, _, ..] = self.sizes else { return };
        if record
            .results
            .first()
            .is_some_and(|row| row.median_tokens_per_second.is_some())
        {
            record.first_again = Some(self.size(*first, engine, prompts, bar));
            after(record, bar);
        }
    }

    fn size(
        &self,
        size: u64,
        engine: &mut dyn Engine,
        prompts: &mut Prompts,
        bar: &mut Bar,
    ) -> Row {
        bar.label(format!("{size}, loading"));
        match self.prepare(size, engine) {
            Ok(()) => row(engine, prompts, Some(size), self.runs, bar),
            Err(error) => Row::failed(Some(size), format!("{error:#}")),
        }
    }

    fn prepare(&self, size: u64, engine: &mut dyn Engine) -> Result<()> {
        let (done, _) = patch::carry_out(self.home, self.layers, Goal::Size(size))?;
        let is_set = |done: &&Done| matches!(done.deed, Deed::Changed | Deed::Unchanged);
        let wanted = done.iter().find(|done| done.before.layer.is_selected());
        if let Some((layer, why)) = wanted.filter(|done| !is_set(done)).and_then(trouble) {
            bail!("{layer}, the layer in use, could not be set: {why}");
        }
        if !done.iter().any(|done| is_set(&done)) {
            bail!("no backend could be set");
        }
        self.reloader.reload(&self.loaded)?;
        self.wait_for_answer(engine)
    }

    /// A server that was restarted takes a while; one that only loaded the model is there already.
    fn wait_for_answer(&self, engine: &mut dyn Engine) -> Result<()> {
        let deadline = Instant::now() + self.reloader.patience;
        loop {
            let Err(trouble) = engine.prefill(&nonce(), &mut |_| {}) else {
                return Ok(());
            };
            let may_pass = matches!(
                trouble,
                Trouble::NotRunning(_)
                    | Trouble::Busy(_)
                    | Trouble::CutOff(_)
                    | Trouble::Unreadable(_)
            );
            let is_starting = *self.reloader.how != Reload::Model && may_pass;
            if !is_starting || Instant::now() > deadline || self.reloader.interrupt.is_set() {
                return Err(trouble.into());
            }
            thread::sleep(4 * TICK);
        }
    }

    /// The sizes are tried on what is there; what cannot be changed is told before.
    #[must_use]
    pub fn hindered(&self) -> Vec<String> {
        let why = |backend: &Backend| {
            let why = backend.hindrance()?.into_why();
            Some(format!(
                "{} is not part of the sweep: {why}",
                backend.layer.name.to_string_lossy()
            ))
        };
        self.before.iter().filter_map(why).collect()
    }

    /// Gives every backend its bytes back; what could not be, in words.
    pub fn put_back(&self) -> Result<Vec<String>> {
        let done = patch::put_back(self.home, self.before)?;
        Ok(done
            .iter()
            .filter_map(trouble)
            .map(|(layer, why)| format!("{layer} is not as it was: {why}"))
            .collect())
    }
}

/// The layer and the reason, where a deed was not done.
#[must_use]
pub fn trouble(done: &Done) -> Option<(String, &str)> {
    let layer = || done.before.layer.name.to_string_lossy().into_owned();
    match &done.deed {
        Deed::Refused(why) | Deed::Failed(why) | Deed::LeftAlone(why) => Some((layer(), why)),
        Deed::Changed | Deed::Unchanged | Deed::WouldChange(_) => None,
    }
}
