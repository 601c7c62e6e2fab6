//! Measures sizes in the order that the race asks for, with any engine.

use std::iter;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::{Context as _, Result, ensure};

use super::args::BenchArgs;
use super::engine::Engine;
use super::guard::Guard;
use super::results::{Results, Row, Run};
use crate::lmstudio::lms::{LoadedModel, find_loaded};
use crate::lock::Lock;
use crate::output::Output;

/// The tokens of the first prefill. No usual size: `Server` learns from two different lengths.
const PROBE_TOKENS: u64 = 1536;

pub struct Benchmark {
    pub args: BenchArgs,
    pub output: Output,
    pub engine: Box<dyn Engine>,
    pub guard: Option<Arc<Guard>>,
    /// Where no size is changed; the guard has its own.
    pub lock: Option<Lock>,
    pub results: Results,
    pub loaded: Vec<LoadedModel>,
}

impl Benchmark {
    /// Races until the answer is settled. Sends what is known before and after each run; fails once nobody receives it.
    pub fn run(mut self, known: &Sender<Results>) -> Result<()> {
        let tokens = self.results.prompt_tokens;
        let (chunk, length) = (self.results.rows[0].chunk(), PROBE_TOKENS.min(tokens));
        let probe = self.engine.prefill(chunk, length, &mut |_| true)?;
        let minutes = self.results.tokens_at_most() as f64 / probe.tokens_per_second / 60.0;
        let minutes = minutes.min(self.args.budget.unwrap_or(f64::MAX)).ceil();
        let said = format!("{tokens} prompt tokens, about {minutes} min of prefill at most");
        self.output.say(&format!("{}: {said}", self.results.model));
        loop {
            known.send(self.results.clone()).context("stopped")?;
            let Some(size) = self.results.next_row().map(|row| row.size) else {
                return Ok(());
            };
            if let Err(why) = self.measure(size) {
                // It is unknown what is loaded now, and a direct process may have ended.
                self.results.warm.clear();
                self.results.row(size).failed = Some(format!("{why:#}"));
            }
        }
    }

    fn measure(&mut self, size: Option<u64>) -> Result<()> {
        let row = self.results.row(size);
        let (name, chunk) = (row.name(), row.chunk());
        self.output.say(&format!("Measuring {name} …"));
        if !self.results.warm.contains(&size) {
            self.warm_up(size, chunk)?;
        }
        let (tokens, mut cut, mut partial) = (self.results.prompt_tokens, None, Run::default());
        let run = self.engine.prefill(chunk, tokens, &mut |position| {
            partial.positions.push(position);
            cut = self.results.cut(size, position);
            cut.is_none()
        });
        if cut.is_some() {
            let row = self.results.row(size);
            row.cut = cut;
            row.note_chunk(&partial)?;
            row.observed_steps = None;
            return Ok(());
        }
        let mut run = run?;
        if let (None, Err(why)) = (&run.ignored, self.check(&run)) {
            run.ignored = Some(format!("{why:#}"));
            self.results.warm.clear();
        }
        let row = self.results.row(size);
        if run.ignored.is_none() {
            row.cut = None;
            row.note_chunk(&run)?;
        }
        row.add(run);
        Ok(())
    }

    fn warm_up(&mut self, size: Option<u64>, chunk: u64) -> Result<()> {
        if let Some(guard) = self.guard.as_ref().filter(|_| !self.args.direct) {
            self.results.warm.clear();
            self.loaded = guard.switch_to(chunk)?;
            let model = find_loaded(&self.loaded, &self.results.model);
            let context = model.and_then(|model| model.context_length);
            self.results.row(size).context_length = context;
            let (context, needed) = (context.unwrap_or(u64::MAX), self.results.prompt_tokens);
            let what = format!("LM Studio gave the model a context of {context} at this size");
            ensure!(context >= needed, "{what}, too little for {needed} tokens");
        }
        self.engine.prefill(chunk, chunk, &mut |_| true)?;
        self.results.warm.push(size);
        Ok(())
    }

    fn check(&self, run: &Run) -> Result<()> {
        if let Some(guard) = &self.guard {
            let is_same = guard.instances()? == self.loaded;
            ensure!(is_same, "something else loaded or unloaded the model");
        }
        let (tokens, wanted) = (run.prompt_tokens, self.results.prompt_tokens);
        let is_new = run.cached_tokens.unwrap_or(0) <= tokens / 20;
        ensure!(is_new, "a part of it came out of the prompt cache");
        let fits = tokens.abs_diff(wanted) <= wanted / 20;
        ensure!(fits, "its prompt has {tokens} tokens instead of {wanted}");
        ensure!(!jumps(run), "its beginning came out of the prompt cache");
        Ok(())
    }
}

impl Row {
    fn note_chunk(&mut self, run: &Run) -> Result<()> {
        let Some((chunk, steps)) = observed(run, self.chunk()) else {
            return Ok(());
        };
        let set = self.size.unwrap_or(chunk);
        ensure!(
            chunk.abs_diff(set) <= set / 20,
            "it did not take effect: the engine used {chunk}; it may lower it where memory is short; else load the \
             model again, or restart LM Studio, and check that --home is the home of the app that answers"
        );
        (self.observed_chunk, self.observed_steps) = (Some(set), Some(steps));
        Ok(())
    }
}

/// The chunk and the number of steps that a prefill shows: steps are equal, the last ones possibly smaller, and where a
/// server leaves some out nothing is claimed. If they were only counted, it is the chunk that was set or a power of two.
fn observed(run: &Run, set: u64) -> Option<(u64, u64)> {
    let (tokens, count) = (run.prompt_tokens, run.bare_steps);
    if count > 0 {
        let power = tokens.div_ceil(count).next_power_of_two();
        let fits = |chunk: &u64| chunk * (count - 1) < tokens && tokens <= chunk * count + 1;
        return Some(([set, power].into_iter().find(fits)?, count));
    }
    let tokens = || run.positions.iter().map(|position| position.tokens);
    let before = iter::once(0.0).chain(tokens());
    let steps = tokens().zip(before).map(|(now, before)| now - before);
    // The very last token is computed on its own and is not a step.
    let steps: Vec<_> = steps.filter(|step| *step > 2.0).collect();
    let chunk = *steps.first()?;
    let is_same = |one: f64, other: f64| (one - other).abs() <= f64::max(2.0, 0.01 * one);
    let shrinks = |pair: &[f64]| pair[1] <= pair[0] || is_same(pair[0], pair[1]);
    let full = steps.iter().filter(|step| is_same(chunk, **step)).count();
    let is_seen = full > 1 && steps.windows(2).all(shrinks);
    is_seen.then_some((chunk.round() as u64, steps.len() as u64))
}

/// Whether the progress of a run begins with a step that is far larger than the next one and took almost no time.
fn jumps(run: &Run) -> bool {
    let mut told = run.positions.iter().filter(|at| at.tokens > 0.0);
    let (Some(first), Some(second)) = (told.next(), told.next()) else {
        return false;
    };
    let step = second.tokens - first.tokens;
    let pace = (second.seconds - first.seconds) / step;
    first.tokens > 2.0 * step && first.seconds < 0.25 * pace * first.tokens
}
