//! PURE: from the progress that an engine tells to the chunk that it really uses.

use serde::Serialize;

/// One piece of progress of a prefill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// When it came, in seconds since the request was sent.
    pub seconds: f64,
    /// Prompt tokens done.
    pub done: f64,
}

/// What the progress of a prefill tells about the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The largest step that the engine made, in tokens: its chunk.
    pub chunk: u64,
    /// How many steps it made.
    pub steps: u64,
}

/// Steps that differ by less than this part are the same: some engines tell their progress as a rounded fraction.
const SAME: f64 = 0.01;
const SAME_TOKENS: f64 = 2.0;

/// A prompt whose first tokens took less than this part of the time that they would take at the pace of the rest was
/// not computed from its start.
const CACHED_PACE: f64 = 0.25;

/// The chunk that an engine used for a prompt, if its progress shows it.
///
/// An engine that tells of every chunk makes equal steps, the last ones possibly smaller (the rest of the prompt, and
/// plans that shrink). Where a server leaves out some of the events, steps grow again after a smaller one, or there
/// are none: then nothing is claimed. The very last token is computed on its own and is no step.
#[must_use]
pub fn observed(progress: &[Progress]) -> Option<Observed> {
    let steps = steps(progress);
    let shrinks = steps.windows(2).all(|pair| match pair {
        [before, after] => *after <= *before || is_same(*before, *after),
        _ => true,
    });
    let chunk = steps.first().copied()?;
    let full = steps.iter().filter(|step| is_same(**step, chunk)).count();
    // One full step and a smaller one may be two chunks, or a throttled pair: two full ones, or a nearly full second.
    if steps.len() < 2 || !shrinks || full < 2 {
        return None;
    }
    Some(Observed {
        chunk: whole(chunk),
        steps: whole(f64::from(u32::try_from(steps.len()).ok()?)),
    })
}

/// Whether the prompt's start came out of a cache: the first step is far larger than the others and took no time.
#[must_use]
pub fn starts_in_cache(progress: &[Progress]) -> bool {
    let mut told = progress.iter().filter(|progress| progress.done > 0.0);
    let (Some(first), Some(last)) = (told.next(), progress.last()) else {
        return false;
    };
    let rest = last.done - first.done;
    let pace = (last.seconds - first.seconds) / rest;
    let steps = steps(progress);
    let largest_later = steps.iter().skip(1).copied().fold(0.0, f64::max);
    largest_later > 0.0
        && first.done > 2.0 * largest_later
        && first.seconds < CACHED_PACE * pace * first.done
}

/// The tokens between each two pieces of progress, from the prompt's start.
fn steps(progress: &[Progress]) -> Vec<f64> {
    let mut before = 0.0;
    let mut steps = Vec::new();
    for now in progress {
        let step = now.done - before;
        if step > SAME_TOKENS {
            steps.push(step);
        }
        before = f64::max(before, now.done);
    }
    steps
}

fn is_same(one: f64, other: f64) -> bool {
    (one - other).abs() <= f64::max(SAME_TOKENS, SAME * one)
}

/// The number of tokens next to `value`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "token counts, far below 2^53"
)]
fn whole(value: f64) -> u64 {
    value.round().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(done: &[f64]) -> Vec<Progress> {
        let at = |(index, done): (usize, &f64)| Progress {
            seconds: f64::from(u32::try_from(index).unwrap()),
            done: *done,
        };
        done.iter().enumerate().map(at).collect()
    }

    /// What an engine tells that computes `total` tokens in chunks, as mlx-lm does.
    fn engine(total: u32, chunk: u32) -> Vec<Progress> {
        let mut done: Vec<f64> = (0..total - 1)
            .step_by(chunk as usize)
            .map(f64::from)
            .collect();
        done.extend([f64::from(total - 1), f64::from(total)]);
        told(&done)
    }

    #[test]
    fn the_chunk_is_the_step_between_events() {
        for (chunk, steps) in [(512, 20), (2048, 5), (4096, 3)] {
            assert_eq!(
                observed(&engine(10_000, chunk)),
                Some(Observed {
                    chunk: chunk.into(),
                    steps
                })
            );
        }
        assert_eq!(
            observed(&engine(8_192, 4096)),
            Some(Observed {
                chunk: 4096,
                steps: 2
            })
        );
    }

    #[test]
    fn a_plan_that_shrinks_shows_its_largest_chunk() {
        let found = observed(&told(&[0.0, 4096.0, 8192.0, 9216.0, 9728.0, 9800.0]));
        assert_eq!(
            found,
            Some(Observed {
                chunk: 4096,
                steps: 5
            })
        );
    }

    #[test]
    fn rounded_fractions_still_show_the_chunk() {
        let found = observed(&told(&[4100.0, 8190.0, 12_290.0, 16_380.0, 20_000.0]));
        assert!(
            found.is_some_and(|found| found.chunk.abs_diff(4096) < 10),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_missing_or_throttled_is_not_observable() {
        assert_eq!(observed(&[]), None);
        assert_eq!(observed(&told(&[0.0, 9999.0, 10_000.0])), None);
        assert_eq!(observed(&told(&[0.0, 512.0, 2048.0, 2560.0, 4096.0])), None);
        assert_eq!(observed(&told(&[0.0, 4096.0, 5000.0])), None);
    }

    #[test]
    fn a_first_step_that_took_no_time_was_cached() {
        let at = |seconds, done| Progress { seconds, done };
        assert!(starts_in_cache(&[
            at(0.0, 8000.0),
            at(1.0, 8512.0),
            at(2.0, 9000.0)
        ]));
        assert!(!starts_in_cache(&[
            at(16.0, 8000.0),
            at(17.0, 8512.0),
            at(18.0, 9000.0)
        ]));
        assert!(!starts_in_cache(&[
            at(0.0, 0.0),
            at(1.0, 512.0),
            at(2.0, 1000.0)
        ]));
        assert!(!starts_in_cache(&[at(1.0, 4096.0), at(1.1, 4097.0)]));
        assert!(!starts_in_cache(&[]));
    }
}
