//! PURE: which size is measured next, when a prefill is cut short, and when the answer is settled.

use serde::Serialize;

/// Speeds closer than this part are never told apart.
const LEAST_NOISE: f64 = 0.02;
/// A prefill this much slower than the best one at the same position is cut short. Two runs of the same
/// speed, each with 1 % noise, are as far apart in one of five thousand.
const CUT_MARGIN: f64 = 0.05;
/// The part of a prompt that every prefill is given.
const CUT_FROM: f64 = 0.25;
/// How many standard errors a pair must be from the limit for another run not to matter.
const CERTAIN: f64 = 1.5;
/// The size that most machines like best.
const FAVOURITE: u64 = 4096;

/// How far a prefill is: prompt tokens done, and seconds since the request was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Position {
    pub tokens: f64,
    pub seconds: f64,
}

/// The prefill that is to come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub size: u64,
    pub tokens: u64,
    /// Whether it counts; else it is a warm-up.
    pub is_measured: bool,
}

/// Where a prefill was cut short, and both speeds there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cut {
    pub tokens: f64,
    pub tokens_per_second: f64,
    pub best_tokens_per_second: f64,
}

/// Which size to keep, the fastest, and the noise between the two as a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    pub keep: u64,
    pub best: u64,
    pub noise: f64,
}

/// What is known about a size.
#[derive(Debug, Default)]
struct Lane {
    size: u64,
    is_warm: bool,
    /// Tokens per second of every whole prefill, and the positions of the last.
    speeds: Vec<f64>,
    course: Vec<Position>,
}

impl Lane {
    fn speed(&self) -> f64 {
        median(&self.speeds).unwrap_or_default()
    }
}

/// A race between sizes.
#[derive(Debug)]
pub struct Race {
    /// Sizes that neither failed nor were cut short, in the order of their first runs.
    lanes: Vec<Lane>,
    /// One size is not compared: it is measured as often as may be.
    is_alone: bool,
    prompt_tokens: u64,
    max_runs: usize,
    /// Whether a change of the size loads the model again, which makes it cold.
    reloads: bool,
    current: Option<u64>,
}

impl Race {
    /// A race between `sizes` over prompts of `prompt_tokens`, each size measured `max_runs` times at most.
    pub fn new(sizes: &[u64], prompt_tokens: u64, max_runs: u32, reloads: bool) -> Self {
        let mut sizes = sizes.to_vec();
        // 4096 first, then its half and its double, and so on.
        sizes.sort_unstable_by_key(|size| {
            let ratio = 1000 * size.max(&FAVOURITE) / size.min(&FAVOURITE);
            (ratio, *size)
        });
        sizes.dedup();
        let lane = |&size| Lane {
            size,
            ..Lane::default()
        };
        Self {
            lanes: sizes.iter().map(lane).collect(),
            is_alone: sizes.len() == 1,
            prompt_tokens,
            max_runs: max_runs as usize,
            reloads,
            current: None,
        }
    }

    /// The next step; `None` once the answer is settled.
    pub fn next(&self) -> Option<Step> {
        let lane = self.next_lane()?;
        let (size, is_measured) = (lane.size, lane.is_warm);
        let tokens = if is_measured { u64::MAX } else { size }.min(self.prompt_tokens);
        Some(Step {
            size,
            tokens,
            is_measured,
        })
    }

    fn next_lane(&self) -> Option<&Lane> {
        let mut open = self.undecided();
        open.retain(|lane| lane.speeds.len() < self.max_runs);
        open.extend(self.lanes.iter().filter(|lane| lane.speeds.is_empty()));
        // What is loaded needs neither another load nor another warm-up.
        let turn = |lane: &&Lane| (lane.speeds.len(), self.current != Some(lane.size));
        open.into_iter().min_by_key(turn)
    }

    /// The sizes for which another run could change the verdict.
    fn undecided(&self) -> Vec<&Lane> {
        let (Some(keep), Some(best)) = (self.keep(), self.best()) else {
            return Vec::new();
        };
        let mut open = Vec::new();
        for lane in self.measured() {
            let below = lane.size < keep.size;
            let pair = if below { [lane, best] } else { [keep, lane] };
            if self.is_alone || lane.size != keep.size && is_close(pair) {
                open.extend(pair);
            }
        }
        open
    }

    /// How a prefill of `size` that has come to `position` is cut short, if it is.
    pub fn cut(&self, size: u64, position: Position) -> Option<Cut> {
        let best = self.best().filter(|best| best.size != size)?;
        let Position { tokens, seconds } = position;
        let lane = self.lanes.iter().find(|lane| lane.size == size)?;
        if !lane.speeds.is_empty() || tokens < CUT_FROM * as_f64(self.prompt_tokens) {
            return None;
        }
        let cut = Cut {
            tokens,
            tokens_per_second: tokens / seconds,
            best_tokens_per_second: tokens / seconds_at(&best.course, tokens)?,
        };
        let limit = cut.best_tokens_per_second * (1.0 - CUT_MARGIN);
        (cut.tokens_per_second < limit).then_some(cut)
    }

    /// The size that is set and loaded.
    pub fn current(&self) -> Option<u64> {
        self.current
    }

    /// `size` is set and loaded.
    pub fn prepared(&mut self, size: u64) {
        if self.reloads && self.current != Some(size) {
            self.lanes.iter_mut().for_each(|lane| lane.is_warm = false);
        }
        self.current = Some(size);
    }

    /// The warm-up of `size` is done.
    pub fn warmed_up(&mut self, size: u64) {
        self.lane(size).is_warm = true;
    }

    /// A whole prefill of `size`, at `speed` tokens per second.
    pub fn measured_run(&mut self, size: u64, speed: f64, course: Vec<Position>) {
        let lane = self.lane(size);
        lane.speeds.push(speed);
        lane.course = course;
    }

    /// `size` failed or was cut short, and is not measured any more.
    pub fn drop_out(&mut self, size: u64) {
        self.lanes.retain(|lane| lane.size != size);
    }

    fn lane(&mut self, size: u64) -> &mut Lane {
        let lane = self.lanes.iter_mut().find(|lane| lane.size == size);
        lane.expect("only sizes of the race are told about")
    }

    fn measured(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(|lane| !lane.speeds.is_empty())
    }

    fn best(&self) -> Option<&Lane> {
        let by_speed = |one: &&Lane, other: &&Lane| one.speed().total_cmp(&other.speed());
        self.measured().max_by(by_speed)
    }

    /// The smallest size within the noise of the best.
    fn keep(&self) -> Option<&Lane> {
        let best = self.best()?;
        let limit = |lane: &Lane| best.speed() * (1.0 - noise(&lane.speeds, &best.speeds));
        let near = self.measured().filter(|lane| lane.speed() >= limit(lane));
        near.min_by_key(|lane| lane.size)
    }

    /// How the sizes stand; `None` if nothing was measured.
    pub fn standing(&self) -> Option<Standing> {
        let (keep, best) = (self.keep()?, self.best()?);
        Some(Standing {
            keep: keep.size,
            best: best.size,
            noise: noise(&keep.speeds, &best.speeds),
        })
    }

    /// The tokens that are computed at most from here on.
    pub fn tokens_at_most(&self) -> u64 {
        let of_lane = |lane: &Lane| {
            let runs = self.max_runs.saturating_sub(lane.speeds.len()) as u64;
            let is_cold = self.reloads && !self.is_alone;
            let warm_ups = if is_cold { runs } else { runs.min(1) };
            runs * self.prompt_tokens + warm_ups * lane.size.min(self.prompt_tokens)
        };
        self.lanes.iter().map(of_lane).sum()
    }
}

/// Whether one more run of either could move `small` to the other side of the noise of `large`.
fn is_close([small, large]: [&Lane; 2]) -> bool {
    let noise = noise(&small.speeds, &large.speeds);
    let behind = 1.0 - small.speed() / large.speed();
    let part = |lane: &Lane| 1.0 / as_f64(lane.speeds.len() as u64);
    let error = noise / 2.0 * (part(small) + part(large)).sqrt();
    (behind - noise).abs() < CERTAIN * error
}

/// The part by which two sizes may differ by chance: both spreads, and never less than 2 %.
pub fn noise(one: &[f64], other: &[f64]) -> f64 {
    let spread = |speeds| spread(speeds).unwrap_or_default();
    LEAST_NOISE.max(spread(one) + spread(other))
}

/// When a prefill was at `tokens`, between the positions that it told.
fn seconds_at(course: &[Position], tokens: f64) -> Option<f64> {
    let mut before = Position::default();
    for now in course {
        if now.tokens >= tokens && now.tokens > before.tokens {
            let part = (tokens - before.tokens) / (now.tokens - before.tokens);
            return Some(before.seconds + part * (now.seconds - before.seconds));
        }
        before = *now;
    }
    None
}

/// The median; none of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// The robust standard deviation (1.4826 × the median absolute deviation) as a part of the median.
pub fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values).filter(|middle| *middle > 0.0 && values.len() > 1)?;
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&distances).map(|deviation| 1.4826 * deviation / middle)
}

/// Of token counts, far below 2^53.
pub fn as_f64(tokens: u64) -> f64 {
    tokens as f64
}

pub fn as_u64(tokens: f64) -> u64 {
    tokens.round().max(0.0) as u64
}
