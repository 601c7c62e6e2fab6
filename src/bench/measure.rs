//! Measures sizes in the order that the race asks for, with any engine.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::{iter, mem};

use anyhow::{Context as _, Result, ensure};
use indicatif::ProgressBar;

use super::args::BenchArgs;
use super::engine::{Engine, Position, Run};
use super::guard::Guard;
use super::results::{Results, Row};
use crate::lmstudio::lms::{LoadedModel, find_loaded};
use crate::lock::Lock;
use crate::output::Output;

/// The tokens of the first prefill, which shows that everything works, and about how fast. No usual size: `Server` learns
/// from two different lengths.
const PROBE_TOKENS: u64 = 1536;
/// How far a prompt's length may be off, and a chunk that is observed: progress comes as a fraction of that length.
const TOLERANCE: f64 = 0.05;

pub struct Benchmark {
    pub args: BenchArgs,
    pub output: Output,
    pub engine: Box<dyn Engine>,
    pub guard: Option<Arc<Guard>>,
    /// Where no size is changed; the guard has its own.
    pub lock: Option<Lock>,
    pub results: Results,
    /// How the model was loaded for the current size.
    pub loaded: Vec<LoadedModel>,
    pub bar: ProgressBar,
}

impl Benchmark {
    /// Probes, says how long it takes at most, and races until the answer is settled. Sends what is known before and after
    /// each run, and fails once nobody receives it.
    pub fn run(mut self, known: &Sender<Results>) -> Result<()> {
        self.probe()?;
        loop {
            known.send(self.results.clone()).context("stopped")?;
            let Some(size) = self.results.next_row().map(|row| row.size) else {
                return Ok(());
            };
            if let Err(why) = self.measure(size) {
                // It is unknown what is loaded now, and a direct process may have ended.
                self.results.warm.clear();
                let (row, why) = (self.results.row(size), Some(format!("{why:#}")));
                if row.median_tokens_per_second.is_some() {
                    let ignored = why;
                    row.add(Run {
                        ignored,
                        ..Run::default()
                    });
                } else {
                    row.failed = why;
                }
            }
        }
    }

    fn probe(&mut self) -> Result<()> {
        let results = &mut self.results;
        let (tokens, at_most) = (results.prompt_tokens, results.tokens_at_most());
        let (chunk, length) = (results.rows[0].chunk(), PROBE_TOKENS.min(tokens));
        let probe = self.engine.prefill(chunk, length, &mut |_| true)?;
        let seconds = at_most as f64 / probe.tokens_per_second;
        let budget = self.args.budget.unwrap_or(Duration::MAX).as_secs_f64();
        let minutes = (seconds.min(budget) / 60.0).ceil();
        let sizes: Vec<_> = results.rows.iter().map(Row::name).collect();
        let what = format!("{} ({})", results.model, sizes.join(", "));
        let time = format!("{minutes} min of prefill at most (going by a short prompt)");
        self.output
            .say(&format!("{what}: {tokens} prompt tokens, about {time}"));
        self.bar.set_length(at_most);
        // The clock keeps running even if a server reports no progress.
        self.bar.enable_steady_tick(Duration::from_millis(250));
        Ok(())
    }

    /// Sets the size and makes it take effect, if that is needed, warms up, and prefills a whole prompt.
    fn measure(&mut self, size: Option<u64>) -> Result<()> {
        let chunk = self.results.row(size).chunk();
        if !self.results.warm.contains(&size) {
            let guard = self.guard.as_ref();
            if let Some(guard) = guard.filter(|_| !self.results.is_direct()) {
                self.results.warm.clear();
                self.bar.set_message(format!("{chunk}, loading"));
                self.loaded = guard.switch_to(chunk)?;
                let model = find_loaded(&self.loaded, &self.results.model);
                let context = model.and_then(|model| model.context_length);
                self.results.row(size).context_length = context;
                let (context, needed) = (context.unwrap_or(u64::MAX), self.results.prompt_tokens);
                let what = format!("LM Studio gave the model a context of {context} at this size");
                ensure!(context >= needed, "{what}, too little for {needed} tokens");
            }
            self.prefill(size, chunk)?;
            self.results.warm.push(size);
        }
        let Some(mut run) = self.prefill(size, self.results.prompt_tokens)? else {
            return Ok(());
        };
        if let (None, Err(why)) = (&run.ignored, self.check(&run)) {
            run.ignored = Some(format!("{why:#}"));
        }
        let row = self.results.row(size);
        if run.ignored.is_none() {
            row.cut = None;
            row.note_chunk(&run)?;
        }
        row.add(run);
        Ok(())
    }

    /// Prefills a prompt of `tokens` tokens. `None` if that was cut short.
    fn prefill(&mut self, size: Option<u64>, tokens: u64) -> Result<Option<Run>> {
        let results = &mut self.results;
        let chunk = results.row(size).chunk();
        let (bar, before) = (&self.bar, self.bar.position());
        bar.set_message(chunk.to_string());
        let (mut cut, mut partial) = (None, Run::default());
        let run = self.engine.prefill(chunk, tokens, &mut |position| {
            bar.set_position(before.saturating_add(position.tokens as u64));
            partial.positions.push(position);
            if tokens == results.prompt_tokens {
                cut = results.cut(size, &partial.positions);
            }
            cut.is_none()
        });
        if cut.is_none() {
            return run.map(Some);
        }
        let row = results.row(size);
        row.cut = cut;
        row.note_chunk(&partial)?;
        row.observed_steps = None;
        Ok(None)
    }

    /// Fails if a run does not count.
    fn check(&mut self, run: &Run) -> Result<()> {
        if let Some(guard) = &self.guard {
            // If it is not as it was loaded, it has to be loaded again.
            let warm = mem::take(&mut self.results.warm);
            let is_same = guard.instances()? == self.loaded;
            ensure!(is_same, "something else loaded or unloaded the model");
            self.results.warm = warm;
        }
        let (tokens, wanted) = (run.prompt_tokens, self.results.prompt_tokens);
        let is_new = run.cached_tokens.unwrap_or(0) <= tokens / 20;
        ensure!(is_new, "a part of it came out of the prompt cache");
        let fits = tokens.abs_diff(wanted) as f64 <= TOLERANCE * wanted as f64;
        ensure!(fits, "its prompt has {tokens} tokens instead of {wanted}");
        let is_jump = starts_in_cache(&run.positions);
        ensure!(!is_jump, "its beginning came out of the prompt cache");
        Ok(())
    }
}

impl Row {
    /// Notes the chunk that a prefill shows, if it shows one. Fails if it is not the one that was set.
    fn note_chunk(&mut self, run: &Run) -> Result<()> {
        let Some((chunk, steps)) = observed(run, self.chunk()) else {
            return Ok(());
        };
        // What was cut short has tokens that nobody counted.
        let set = self.size.unwrap_or(chunk);
        let shown = if self.cut.is_some() { set } else { chunk };
        ensure!(
            chunk.abs_diff(set) as f64 <= TOLERANCE * set as f64,
            "it did not take effect: the engine used {chunk}; it may lower it where memory is short; else load the \
             model again, or restart LM Studio, and check that --home is the home of the app that answers"
        );
        (self.observed_chunk, self.observed_steps) = (Some(shown), Some(steps));
        Ok(())
    }
}

/// The chunk and the number of steps that a prefill shows, of which `set` is the likely one.
///
/// An engine that reports every chunk makes equal steps, the last ones possibly smaller. If a server leaves some out,
/// steps grow again after a smaller one, or there are none: then nothing is claimed. If steps were only counted, the
/// chunk is the one that was set, or else the power of two that makes so many.
fn observed(run: &Run, set: u64) -> Option<(u64, u64)> {
    let (tokens, count) = (run.prompt_tokens, run.bare_steps);
    if count > 0 {
        let power = tokens.div_ceil(count).next_power_of_two();
        let fits = |chunk: &u64| chunk * (count - 1) < tokens && tokens <= chunk * count + 1;
        return Some(([set, power].into_iter().find(fits)?, count));
    }
    let steps = steps(&run.positions);
    let chunk = *steps.first()?;
    let is_same = |one: f64, other: f64| (one - other).abs() <= f64::max(2.0, 0.01 * one);
    let shrinks = |pair: &[f64]| pair[1] <= pair[0] || is_same(pair[0], pair[1]);
    let full = steps.iter().filter(|step| is_same(chunk, **step)).count();
    let is_seen = full > 1 && steps.windows(2).all(shrinks);
    is_seen.then_some((chunk.round() as u64, steps.len() as u64))
}

/// Whether the first step was far larger than the second one and took almost no time.
fn starts_in_cache(positions: &[Position]) -> bool {
    let mut told = positions.iter().filter(|position| position.tokens > 0.0);
    let (Some(first), Some(second)) = (told.next(), told.next()) else {
        return false;
    };
    let step = second.tokens - first.tokens;
    let pace = (second.seconds - first.seconds) / step;
    first.tokens > 2.0 * step && first.seconds < 0.25 * pace * first.tokens
}

/// The tokens between successive positions. The very last token is computed on its own and is not a step.
fn steps(positions: &[Position]) -> Vec<f64> {
    let tokens = || positions.iter().map(|position| position.tokens);
    let before = iter::once(0.0).chain(tokens());
    let steps = tokens().zip(before).map(|(now, before)| now - before);
    steps.filter(|step| *step > 2.0).collect()
}
