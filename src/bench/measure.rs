//! Measures sizes in the order that the race asks for, with any engine.

use std::iter;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::engine::{Engine, Prefill};
use super::race::{Position, Race, Step, as_f64, as_u64};
use super::results::Row;
use super::{Bench, Plan, export};

/// The tokens of the first prefill of all, which shows that everything works, and about how fast.
const PROBE_TOKENS: u64 = 1024;
/// After so many runs that do not count, a size is given up.
const MAX_IGNORED: usize = 3;

impl Bench {
    /// Probes, says how long it takes at most, and races until the answer is settled.
    pub fn race(&self, plan: &Plan, engine: &mut dyn Engine) -> Result<()> {
        let (args, count) = (&self.args, plan.sizes.len());
        let mut race = Race::new(&plan.sizes, plan.tokens, args.runs, !args.direct);
        let model = self.update(|results| {
            results.prompt_tokens = plan.tokens;
            results.model.clone()
        })?;
        let probe = engine.prefill(PROBE_TOKENS.min(plan.tokens), &mut |_| true)?;
        let at_most = as_f64(race.tokens_at_most()) / probe.run.tokens_per_second;
        let budget = args.budget.map_or(f64::INFINITY, |b| b.as_secs_f64());
        let (minutes, tokens) = ((at_most.min(budget) / 60.0).ceil(), plan.tokens);
        self.output.say(&format!(
            "{model}, {tokens} prompt tokens, sizes: {count}; at most {minutes} minutes of prefill"
        ));
        self.bar.set_length(race.tokens_at_most());
        // The clock keeps running even if a server reports no progress.
        self.bar.enable_steady_tick(Duration::from_millis(250));
        let is_size_known = !args.sizes.is_empty() || plan.in_use.is_some();
        while let Some(step) = race.next() {
            let row = is_size_known.then_some(step.size);
            let done = self.step(engine, &mut race, step, row);
            self.update(|results| {
                if let Err(why) = done {
                    results.row(row).failed = Some(format!("{why:#}"));
                    race.drop_out(step.size);
                }
                results.seconds = self.start.elapsed().as_secs_f64();
                results.conclude(race.standing(), count);
                export::write(&args.output, results, &self.output);
            })?;
        }
        Ok(())
    }

    fn step(
        &self,
        engine: &mut dyn Engine,
        race: &mut Race,
        step: Step,
        row: Option<u64>,
    ) -> Result<()> {
        let size = step.size;
        if race.current() != Some(size) {
            self.bar.set_message(format!("{size}, loading"));
            engine.prepare(size)?;
            race.prepared(size);
        }
        self.bar.set_message(size.to_string());
        let (mut cut, mut last) = (None, 0.0);
        let prefill = engine.prefill(step.tokens, &mut |position| {
            self.bar.inc(as_u64(position.tokens - last));
            last = position.tokens;
            cut = race.cut(size, position).filter(|_| step.is_measured);
            cut.is_none()
        });
        if cut.is_some() {
            race.drop_out(size);
            return self.update(|results| results.row(row).cut = cut);
        }
        let prefill = prefill?;
        if step.is_measured {
            return self.update(|results| take(results.row(row), race, size, prefill))?;
        }
        race.warmed_up(size);
        Ok(())
    }
}

/// Adds a whole prefill to the row and, if it counts, to the race.
fn take(row: &mut Row, race: &mut Race, size: u64, prefill: Prefill) -> Result<()> {
    let (mut run, course) = (prefill.run, prefill.course);
    if run.ignored.is_none() && starts_in_cache(&course) {
        run.ignored = Some("its beginning came out of the prompt cache".to_owned());
    }
    let observed = match prefill.bare_steps {
        0 => observed(&course),
        steps => counted(run.prompt_tokens, steps, size).map(|chunk| (chunk, steps)),
    };
    row.runs.push(run.clone());
    if let Some(why) = run.ignored {
        let count = row.runs.iter().filter(|run| run.ignored.is_some()).count();
        ensure!(count < MAX_IGNORED, "{count} runs do not count: {why}");
        return Ok(());
    }
    if let Some((chunk, steps)) = observed {
        (row.observed_chunk, row.observed_steps) = (Some(chunk), Some(steps));
        // Some engines report progress as a rounded fraction.
        ensure!(
            row.size.is_none() || chunk.abs_diff(size) * 100 <= size,
            "it did not take effect: the engine used {chunk}; load the model again, or restart LM Studio, and see \
             that --home is the home of the app that answers"
        );
    }
    race.measured_run(size, run.tokens_per_second, course);
    Ok(())
}

/// The chunk and the number of steps that the positions of a prefill show.
///
/// An engine that reports every chunk makes equal steps, the last ones possibly smaller. If a server leaves some out,
/// steps grow again after a smaller one, or there are none: then nothing is claimed.
fn observed(course: &[Position]) -> Option<(u64, u64)> {
    let steps = steps(course);
    let chunk = *steps.first()?;
    let is_same = |one: f64, other: f64| (one - other).abs() <= f64::max(2.0, 0.01 * one);
    let shrinks = |pair: &[f64]| pair[1] <= pair[0] || is_same(pair[0], pair[1]);
    let full = steps.iter().filter(|step| is_same(chunk, **step)).count();
    let is_seen = full > 1 && steps.windows(2).all(shrinks);
    is_seen.then_some((as_u64(chunk), steps.len() as u64))
}

/// The chunk that makes `steps` steps of `tokens` tokens: the one that was set, or else the power of two that does.
fn counted(tokens: u64, steps: u64, set: u64) -> Option<u64> {
    let fits = |chunk: &u64| chunk * (steps - 1) < tokens && tokens <= chunk * steps + 1;
    let power = tokens.div_ceil(steps).next_power_of_two();
    [set, power].into_iter().find(fits)
}

/// Whether the first step was far larger than the others and took almost no time.
fn starts_in_cache(course: &[Position]) -> bool {
    let mut told = course.iter().filter(|position| position.tokens > 0.0);
    let (Some(first), Some(last)) = (told.next(), course.last()) else {
        return false;
    };
    let pace = (last.seconds - first.seconds) / (last.tokens - first.tokens);
    let later = steps(course).into_iter().skip(1).fold(0.0, f64::max);
    let is_jump = later > 0.0 && first.tokens > 2.0 * later;
    is_jump && first.seconds < 0.25 * pace * first.tokens
}

/// The tokens between successive positions. The very last token is computed on its own and is not a step.
fn steps(course: &[Position]) -> Vec<f64> {
    let tokens = || course.iter().map(|position| position.tokens);
    let before = iter::once(0.0).chain(tokens());
    let steps = tokens().zip(before).map(|(now, before)| now - before);
    steps.filter(|step| *step > 2.0).collect()
}
