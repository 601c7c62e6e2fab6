//! Measures sizes in the order that the race asks for, through anything that prefills.

use std::ops::ControlFlow;

use super::progress::Bar;
use super::race::{Position, Race, Step, as_u64};
use super::results::{Results, Row, Run};

/// How many runs of a size may not count before it is given up.
const MAX_IGNORED: usize = 3;

/// One prefill, as an engine tells it.
#[derive(Debug, Clone, Default)]
pub struct Prefill {
    pub run: Run,
    pub course: Vec<Position>,
    /// The number of steps, where they were told without their positions.
    pub bare_steps: u64,
}

/// Why there is no prefill: this size cannot be measured, or `on_progress` ended it.
#[derive(Debug)]
pub enum Failure {
    Size(String),
    Ended,
}

/// Called with every position, and with none every now and then.
pub type OnProgress<'a> = &'a mut dyn FnMut(Option<Position>) -> ControlFlow<()>;

pub fn unless(is_over: bool) -> ControlFlow<()> {
    if is_over {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// What prefills: a server, a Python process, in tests a made-up one.
pub trait Engine {
    /// Seconds since the benchmark began.
    fn elapsed(&self) -> f64;
    /// Makes the engine use chunks of `size` tokens.
    fn prepare(&mut self, size: u64) -> Result<(), Failure>;
    /// One token behind a new prompt of about `tokens` tokens.
    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill, Failure>;
}

/// One benchmark.
pub struct Measuring<'a> {
    pub engine: &'a mut dyn Engine,
    pub race: &'a mut Race,
    pub results: &'a mut Results,
    pub bar: &'a Bar,
    /// Whether the size that is raced is known to be the engine's.
    pub is_size_known: bool,
    /// Asked whenever something is waited for: whether the user, or the budget, wants an end.
    pub wants_stop: &'a dyn Fn() -> bool,
    pub after_step: &'a mut dyn FnMut(&mut Results, &Race),
}

impl Measuring<'_> {
    /// Measures until the answer is settled, the time is over or the user wants to stop.
    pub fn run(&mut self) {
        while let Some(step) = self.race.next(self.engine.elapsed()) {
            let (Step::WarmUp { size, .. } | Step::Measure { size }) = step;
            match self.step(step, size) {
                Err(Failure::Ended) => return,
                _ if (self.wants_stop)() => return,
                Err(Failure::Size(why)) => {
                    self.row(size).failed = Some(why);
                    self.race.drop_out(size);
                }
                Ok(()) => {}
            }
            self.results.seconds = self.engine.elapsed();
            (self.after_step)(self.results, self.race);
        }
    }

    fn row(&mut self, size: u64) -> &mut Row {
        self.results.row(self.is_size_known.then_some(size))
    }

    fn step(&mut self, step: Step, size: u64) -> Result<(), Failure> {
        if self.race.current() != Some(size) {
            self.bar.set_message(format!("{size}, loading"));
            self.engine.prepare(size)?;
            self.race.prepared(size);
        }
        self.bar.set_message(size.to_string());
        let (bar, race, wants_stop) = (self.bar, &*self.race, self.wants_stop);
        if let Step::WarmUp { tokens, .. } = step {
            self.engine.prefill(tokens, &mut |_| unless(wants_stop()))?;
            bar.inc(tokens);
            self.race.warmed_up(size);
            return Ok(());
        }
        let (mut cut, mut last) = (None, 0.0);
        let tokens = self.results.prompt_tokens;
        let prefill = self.engine.prefill(tokens, &mut |position| {
            if let Some(position) = position {
                bar.inc(as_u64(position.tokens - last));
                last = position.tokens;
                cut = race.cut(size, position);
            }
            unless(cut.is_some() || wants_stop())
        });
        if cut.is_none() {
            return self.take(size, prefill?);
        }
        self.row(size).cut = cut;
        self.race.drop_out(size);
        Ok(())
    }

    fn take(&mut self, size: u64, prefill: Prefill) -> Result<(), Failure> {
        let Prefill {
            mut run,
            course,
            bare_steps,
        } = prefill;
        if run.ignored.is_none() && starts_in_cache(&course) {
            run.ignored = Some("its beginning came out of the prompt cache".to_owned());
        }
        let observed = match bare_steps {
            0 => observed(&course),
            steps => counted(run.prompt_tokens, steps, size).map(|chunk| (chunk, steps)),
        };
        let (speed, ignored) = (run.tokens_per_second, run.ignored.clone());
        let is_size_known = self.is_size_known;
        let row = self.row(size);
        row.runs.push(run);
        if let Some(why) = ignored {
            let count = row.runs.iter().filter(|run| run.ignored.is_some()).count();
            let is_enough = count >= MAX_IGNORED;
            let why = format!("{count} runs do not count: {why}");
            return if is_enough {
                Err(Failure::Size(why))
            } else {
                Ok(())
            };
        }
        if let Some((chunk, steps)) = observed {
            (row.observed_chunk, row.observed_steps) = (Some(chunk), Some(steps));
            // Some engines tell their progress as a rounded part.
            if is_size_known && chunk.abs_diff(size) * 100 > size {
                return Err(Failure::Size(format!(
                    "it did not take effect: the engine used {chunk}; load the model again, or restart LM Studio, \
                     and see that --home is the home of the app that answers"
                )));
            }
        }
        self.race.measured_run(size, speed, course);
        Ok(())
    }
}

/// The chunk and the number of steps that the positions of a prefill show.
///
/// An engine that tells of every chunk makes equal steps, the last ones possibly smaller. Where a server leaves out
/// some, steps grow again after a smaller one, or there are none: then nothing is claimed.
fn observed(course: &[Position]) -> Option<(u64, u64)> {
    let steps = steps(course);
    let chunk = *steps.first()?;
    let is_same = |one: f64, other: f64| (one - other).abs() <= f64::max(2.0, 0.01 * one);
    let shrinks = |pair: &[f64]| pair[1] <= pair[0] || is_same(pair[0], pair[1]);
    let full = steps.iter().filter(|step| is_same(chunk, **step)).count();
    let is_seen = full > 1 && steps.windows(2).all(shrinks);
    is_seen.then_some((as_u64(chunk), steps.len() as u64))
}

/// The chunk of so many steps without positions: the one that was set, or the one power of two that gives so many.
fn counted(tokens: u64, steps: u64, set: u64) -> Option<u64> {
    let fits = |chunk: &u64| chunk * (steps - 1) < tokens && tokens <= chunk * steps + 1;
    let power = tokens.div_ceil(steps).next_power_of_two();
    [set, power].into_iter().find(fits)
}

/// Whether the first step was far larger than the others and took no time.
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

/// The tokens between each two positions. The very last token is computed on its own and is no step.
fn steps(course: &[Position]) -> Vec<f64> {
    let mut before = 0.0;
    let mut steps = Vec::new();
    for position in course {
        steps.push(position.tokens - before);
        before = position.tokens;
    }
    steps.retain(|step| *step > 2.0);
    steps
}
