//! Measures sizes in the order that the race asks for, with any engine.

use std::iter;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, ensure};
use indicatif::ProgressBar;

use super::engine::{Engine, Position, Run};
use super::guard::Guard;
use super::race::Step;
use super::results::{Results, Row};
use crate::output::Output;
use crate::reload::Disturbed;

/// The tokens of the first prefill, which shows that everything works, and about how fast. No usual size: `Server` learns
/// from two different lengths.
const PROBE_TOKENS: u64 = 1536;
/// How far an observed chunk may be off: some engines report progress as a rounded fraction.
const TOLERANCE: f64 = 0.01;
/// The same where a prefill was cut short: its tokens are not counted, but about those of the best.
const PARTIAL_TOLERANCE: f64 = 0.1;
/// How far the length of a prompt may be off.
const LENGTH_TOLERANCE: f64 = 0.05;

/// A benchmark that is under way.
pub struct Benchmark {
    pub engine: Box<dyn Engine>,
    /// Where sizes are changed.
    pub guard: Option<Arc<Guard>>,
    pub results: Results,
    /// How many tokens of the last warm-up came out of the prompt cache.
    pub template: u64,
    pub bar: ProgressBar,
}

impl Benchmark {
    /// Probes, says how long it takes at most, and races until the answer is settled. Sends what is known after each
    /// step, and fails once nobody receives it.
    pub fn run(mut self, budget: Duration, output: Output, known: &Sender<Results>) -> Result<()> {
        self.guard.iter().try_for_each(|guard| guard.begin())?;
        let results = &mut self.results;
        let (tokens, at_most) = (results.prompt_tokens, results.tokens_at_most());
        let probe_tokens = PROBE_TOKENS.min(tokens);
        let chunk = results.rows[0].chunk();
        let probe = self.engine.prefill(chunk, probe_tokens, &mut |_| true)?;
        let runtime = results.runtime.iter().chain(&probe.engine);
        let runtime: Vec<_> = runtime.map(String::as_str).collect();
        results.runtime = (!runtime.is_empty()).then(|| runtime.join(", "));
        let seconds = at_most as f64 / probe.tokens_per_second;
        let minutes = (seconds.min(budget.as_secs_f64()) / 60.0).ceil();
        let (model, count) = (&results.model, results.rows.len());
        let sizes = if count == 1 { "size" } else { "sizes" };
        output.say(&format!(
            "{model}, {count} {sizes}, {tokens} prompt tokens; about {minutes} min of prefill at most (going by a short prompt)"
        ));
        self.bar.set_length(at_most);
        // The clock keeps running even if a server reports no progress.
        self.bar.enable_steady_tick(Duration::from_millis(250));
        while let Some(step) = self.results.next_step() {
            if let Err(why) = self.step(step) {
                // What is loaded is unknown, and a process has been replaced.
                self.results.warm.clear();
                self.results.row(step.size).note_failure(&why);
            }
            known.send(self.results.known()).context("stopped")?;
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<()> {
        if !step.is_measured && self.results.is_reloading() {
            self.load(step.size)?;
        }
        let begun = self.bar.position();
        let run = self.prefill(step).map_err(|why| {
            // Once it is under way, a model that is gone or at work is the size's own doing: a crash, or silence.
            if !step.is_measured || self.bar.position() > begun {
                return why;
            }
            match self.disturbance(step.size) {
                Some(other) if other.is::<Disturbed>() => other.context(format!("{why:#}")),
                _ => why,
            }
        })?;
        let Some(mut run) = run else {
            return Ok(());
        };
        if !step.is_measured {
            self.results.warm.push(step.size);
            // After a load the cache is empty: only the next prompt finds the template in it.
            let is_cold = self.guard.is_some() && run.cached_tokens == Some(0);
            let again = if is_cold { self.prefill(step)? } else { None };
            self.template = again.unwrap_or(run).cached_tokens.unwrap_or_default();
            return Ok(());
        }
        if let Some(why) = self.disturbance(step.size) {
            run.ignored = Some(format!("{why:#}"));
            // So that it is loaded again as it has to be.
            self.results.warm.clear();
        }
        run.ignored = run.ignored.take().or_else(|| self.why_ignored(&run));
        let row = self.results.row(step.size);
        if let Err(why) = take(row, run) {
            row.failed = Some(format!("{why:#}"));
        }
        Ok(())
    }

    /// Why the model may not be as it was loaded for this size, if so.
    fn disturbance(&mut self, size: Option<u64>) -> Option<Error> {
        let context = self.results.row(size).context_length;
        self.guard.as_ref()?.ensure_undisturbed(context).err()
    }

    /// Sets the size and makes it take effect, if sizes are changed at all.
    fn load(&mut self, size: Option<u64>) -> Result<()> {
        let Some(guard) = &self.guard else {
            return Ok(());
        };
        let row = self.results.row(size);
        self.bar.set_message(format!("{}, loading", row.chunk()));
        row.context_length = guard.switch_to(row.chunk())?;
        let context = row.context_length.unwrap_or(u64::MAX);
        self.results.warm.clear();
        let needed = self.results.prompt_tokens;
        ensure!(
            context >= needed,
            "LM Studio gave the model a context of {context} at this size, less than the {needed} tokens of the prompt"
        );
        Ok(())
    }

    fn prefill(&mut self, step: Step) -> Result<Option<Run>> {
        let (results, bar) = (&mut self.results, &self.bar);
        let chunk = results.row(step.size).chunk();
        bar.set_message(chunk.to_string());
        let (mut cut, before) = (None, bar.position());
        let mut partial = Run::default();
        let run = self.engine.prefill(chunk, step.tokens, &mut |position| {
            bar.set_position(before.saturating_add(position.tokens as u64));
            partial.positions.push(position);
            if step.is_measured {
                cut = results.cut(step.size, &partial.positions);
            }
            cut.is_none()
        });
        if cut.is_none() {
            return run.map(Some);
        }
        let row = results.row(step.size);
        row.cut = cut;
        note_chunk(row, &partial)?;
        Ok(None)
    }

    fn why_ignored(&self, run: &Run) -> Option<String> {
        let (tokens, wanted) = (run.prompt_tokens, self.results.prompt_tokens);
        // Every prompt begins with the same chat template.
        let cached = run.cached_tokens.unwrap_or_default();
        if cached.saturating_sub(self.template) * 20 > tokens {
            Some("a part of it came out of the prompt cache".to_owned())
        } else if tokens.abs_diff(wanted) as f64 > LENGTH_TOLERANCE * wanted as f64 {
            Some(format!(
                "its prompt has {tokens} tokens instead of {wanted}"
            ))
        } else if starts_in_cache(&run.positions) {
            Some("its beginning came out of the prompt cache".to_owned())
        } else {
            None
        }
    }
}

impl Row {
    /// Gives a size up whose load or prefill failed, unless that may be another client's doing, or it has worked before.
    fn note_failure(&mut self, why: &Error) {
        let is_excused = why.is::<Disturbed>() || self.has_worked();
        let why = format!("{why:#}");
        if is_excused {
            self.disturbed.push(why.clone());
        }
        if !is_excused || self.is_hopeless() {
            self.failed = Some(why);
        }
    }
}

/// Adds a whole prefill to its row. Fails if the size is to be given up.
fn take(row: &mut Row, run: Run) -> Result<()> {
    if let Some(why) = run.ignored.clone() {
        row.add(run);
        let count = row.in_vain();
        ensure!(!row.is_hopeless(), "{count} runs do not count: {why}");
        return Ok(());
    }
    row.cut = None;
    let noted = note_chunk(row, &run);
    row.add(run);
    noted
}

/// Notes the chunk that a prefill shows, if it shows one. Fails if it is not the one that was set.
fn note_chunk(row: &mut Row, run: &Run) -> Result<()> {
    let Some((chunk, steps)) = observed(run, row.chunk()) else {
        return Ok(());
    };
    let is_partial = row.cut.is_some();
    let tolerance = if is_partial {
        PARTIAL_TOLERANCE
    } else {
        TOLERANCE
    };
    row.observed_chunk = Some(chunk);
    row.observed_steps = (!is_partial).then_some(steps);
    let off = row.size.map_or(0, |size| chunk.abs_diff(size));
    let mut memory = "";
    if row.size > Some(chunk) {
        memory = "it may lower it where memory is short; else ";
    }
    ensure!(
        off as f64 <= tolerance * row.chunk() as f64,
        "it did not take effect: the engine used {chunk}; {memory}load the model again, or restart LM Studio, and check \
         that --home is the home of the app that answers"
    );
    if is_partial {
        row.observed_chunk = row.size;
    }
    Ok(())
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
        let chunk = [set, power].into_iter().find(fits)?;
        return Some((chunk, count));
    }
    let steps = steps(&run.positions);
    let chunk = *steps.first()?;
    let is_same = |one: f64, other: f64| (one - other).abs() <= f64::max(2.0, 0.01 * one);
    let shrinks = |pair: &[f64]| pair[1] <= pair[0] || is_same(pair[0], pair[1]);
    let full = steps.iter().filter(|step| is_same(chunk, **step)).count();
    let is_seen = full > 1 && steps.windows(2).all(shrinks);
    is_seen.then_some((chunk.round() as u64, steps.len() as u64))
}

/// Whether the first step was far larger than the others and took almost no time.
fn starts_in_cache(positions: &[Position]) -> bool {
    let mut told = positions.iter().filter(|position| position.tokens > 0.0);
    let (Some(first), Some(last)) = (told.next(), positions.last()) else {
        return false;
    };
    let pace = (last.seconds - first.seconds) / (last.tokens - first.tokens);
    let later = steps(positions).into_iter().skip(1).fold(0.0, f64::max);
    let is_jump = later > 0.0 && first.tokens > 2.0 * later;
    is_jump && first.seconds < 0.25 * pace * first.tokens
}

/// The tokens between successive positions. The very last token is computed on its own and is not a step.
fn steps(positions: &[Position]) -> Vec<f64> {
    let tokens = || positions.iter().map(|position| position.tokens);
    let before = iter::once(0.0).chain(tokens());
    let steps = tokens().zip(before).map(|(now, before)| now - before);
    steps.filter(|step| *step > 2.0).collect()
}
