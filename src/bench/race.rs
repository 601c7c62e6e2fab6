//! PURE: which size is measured next, when a prefill is cut short, and when the answer is settled.

use anyhow::{Context as _, Result, ensure};

use super::results::{Cut, Position, Results, Row, Run, Verdict};
use crate::patch::settings::DEFAULT_SIZE;

/// Speeds within this fraction count as equal.
const LEAST_NOISE: f64 = 0.02;
/// Where runs differ more than this, no smaller size is kept because of them.
const MOST_NOISE: f64 = 0.15;
/// A prefill this much slower than the best is cut short: two that are alike, with 1 % noise, are so in one of 5,000.
const CUT_MARGIN: f64 = 0.05;
/// No prefill is cut short before this fraction of it.
const CUT_FROM: f64 = 0.25;
/// How many standard errors a pair must be from the limit for another run not to matter.
const CERTAIN: f64 = 1.5;

impl Results {
    pub fn new(sizes: impl IntoIterator<Item = Option<u64>>) -> Self {
        let row = |size| Row {
            size,
            ..Row::default()
        };
        let mut rows: Vec<_> = sizes.into_iter().map(row).collect();
        // The default first, then its half and its double, and so on.
        rows.sort_by_key(|row| {
            let (small, large) = (row.chunk().min(DEFAULT_SIZE), row.chunk().max(DEFAULT_SIZE));
            (1000 * large / small, row.size)
        });
        Self {
            schema: 5,
            lmpatch: env!("CARGO_PKG_VERSION"),
            rows,
            ..Self::default()
        }
    }

    /// The size that is measured next; `None` once the answer is settled.
    pub fn next_row(&self) -> Option<&Row> {
        let can_run = |row: &&Row| {
            // A run that does not count still uses up a turn.
            row.failed.is_none() && row.runs.len() < self.runs_per_size as usize
        };
        // What is warm needs neither another load nor another warm-up.
        let turn = |row: &&Row| (row.valid().count(), !self.warm.contains(&row.size));
        let open = self.undecided().into_iter();
        open.filter(can_run).min_by_key(turn)
    }

    /// The sizes of which another run could change the verdict, if they can run again.
    fn undecided(&self) -> Vec<&Row> {
        let rows = || self.rows.iter();
        let Some((keep, best)) = self.standing().filter(|_| self.rows.len() > 1) else {
            return rows().collect();
        };
        // What was cut short runs again if it is near the best as that is now, after further runs.
        let is_open = |row: &&Row| row.speed() == 0.0 || row.cut.is_some() && is_near(row, best);
        let mut open: Vec<_> = rows().filter(is_open).collect();
        // That all others were cut short must not depend on one lucky run.
        if best.valid().count() == 1 && rows().any(|row| row.cut.is_some()) {
            open.push(best);
        }
        for row in self.measured().filter(|row| row.size != keep.size) {
            let is_small = row.size < keep.size;
            let (small, large) = if is_small { (row, best) } else { (keep, row) };
            if is_close(small, large) {
                open.extend([small, large]);
            }
        }
        open
    }

    /// How a prefill of `size` that has come this far is cut short; `None` if it goes on.
    pub fn cut(&self, size: Option<u64>, Position { tokens, seconds }: Position) -> Option<Cut> {
        let (_, best) = self.standing()?;
        let is_measured = self.measured().any(|row| row.size == size);
        if is_measured || tokens < CUT_FROM * self.prompt_tokens as f64 {
            return None;
        }
        let run = best.valid().last()?;
        // Where the best usually is by then: that run may have been a fast or a slow one.
        let usual = run.tokens_per_second / best.speed();
        let best_seconds = seconds_at(&run.positions, tokens)? * usual;
        let cut = Cut {
            tokens,
            tokens_per_second: tokens / seconds,
            best_tokens_per_second: tokens / best_seconds,
            estimated_tokens_per_second: best.speed() * best_seconds / seconds,
        };
        let margin = noise(None, best.spread).max(CUT_MARGIN);
        let limit = cut.best_tokens_per_second * (1.0 - margin);
        (cut.tokens_per_second < limit).then_some(cut)
    }

    pub fn row(&mut self, size: Option<u64>) -> &mut Row {
        let row = self.rows.iter_mut().find(|row| row.size == size);
        row.expect("only its sizes are asked for")
    }

    fn measured(&self) -> impl Iterator<Item = &Row> {
        let rows = self.rows.iter().filter(|row| row.failed.is_none());
        rows.filter(|row| row.median_tokens_per_second.is_some())
    }

    /// The smallest size within the noise of the fastest, and the fastest; `None` if nothing was measured.
    pub fn standing(&self) -> Option<(&Row, &Row)> {
        let by_speed = |one: &&Row, other: &&Row| one.speed().total_cmp(&other.speed());
        let best = self.measured().max_by(by_speed)?;
        let near = self.measured().filter(|row| is_near(row, best));
        Some((near.min_by_key(|row| row.size)?, best))
    }

    /// An upper bound on the tokens of the whole race.
    pub fn tokens_at_most(&self) -> u64 {
        let of_row = |row: &Row| self.prompt_tokens + row.chunk();
        u64::from(self.runs_per_size) * self.rows.iter().map(of_row).sum::<u64>()
    }

    /// Which size to keep, and why. Fails if the measurements do not tell.
    pub fn verdict(&self) -> Result<Verdict> {
        let verdict = |keep, reason| Ok(Verdict { keep, reason });
        let (keep, best) = self.standing().context("no size could be measured")?;
        let compared = self.rows.iter().filter(|row| row.speed() > 0.0).count();
        if compared == 1 {
            let alone = "one size was measured, so there is nothing to compare it with";
            return verdict(None, alone.to_owned());
        }
        let (name, noise) = (keep.name(), noise(keep.spread, best.spread));
        let (percent, is_best) = (noise * 100.0, keep.size == best.size);
        // The size of a direct run is an argument: it needs no proof of effect.
        ensure!(
            self.api == "direct" || keep.observed_chunk.is_some(),
            "the engine's chunk could not be observed at {name}, so nothing shows that it took effect"
        );
        ensure!(
            noise <= MOST_NOISE || is_best,
            "several sizes are within the noise of {percent:.0} %; measure again when the Mac is idle"
        );
        let mut why =
            format!("{name} is the smallest size within the noise ({percent:.1} %) of the fastest");
        if compared < self.rows.len() {
            why = format!("of the sizes that could be measured, {why}");
        }
        verdict(keep.size, why)
    }
}

impl Row {
    /// The chunk that prompts and warm-ups are measured by, in tokens.
    pub fn chunk(&self) -> u64 {
        self.size.unwrap_or(DEFAULT_SIZE)
    }

    /// Adds a run and computes everything that follows from the runs.
    pub fn add(&mut self, run: Run) {
        self.runs.push(run);
        let seconds: Vec<_> = self.valid().map(|run| run.prefill_seconds).collect();
        let speeds: Vec<_> = self.valid().map(|run| run.tokens_per_second).collect();
        self.peak_memory_bytes = self.valid().filter_map(|run| run.peak_memory_bytes).max();
        self.median_tokens_per_second = median(&speeds);
        self.median_prefill_seconds = median(&seconds);
        self.spread = spread(&speeds);
    }

    pub fn valid(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.runs.iter().filter(|run| run.ignored.is_none())
    }
}

fn is_near(row: &Row, best: &Row) -> bool {
    row.speed() >= best.speed() * (1.0 - noise(row.spread, best.spread))
}

/// Whether one more run of either could move `small` to the other side of the noise of `large`.
fn is_close(small: &Row, large: &Row) -> bool {
    let noise = noise(small.spread, large.spread);
    let behind = 1.0 - small.speed() / large.speed();
    let part = |row: &Row| 1.0 / row.valid().count() as f64;
    let error = noise / 2.0 * (part(small) + part(large)).sqrt();
    (behind - noise).abs() < CERTAIN * error
}

/// The fraction by which two speeds with these spreads may differ by chance: the spreads' sum, at least 2 %.
pub fn noise(one: Option<f64>, other: Option<f64>) -> f64 {
    LEAST_NOISE.max(one.unwrap_or_default() + other.unwrap_or_default())
}

/// When a prefill was at `tokens`, interpolated between its steps; not within the first, a part of which is the start.
fn seconds_at(positions: &[Position], tokens: f64) -> Option<f64> {
    let is_around = |pair: &&[Position]| (pair[0].tokens..pair[1].tokens).contains(&tokens);
    let around = positions.windows(2).find(is_around)?;
    let (before, after) = (around[0], around[1]);
    let part = (tokens - before.tokens) / (after.tokens - before.tokens);
    (before.tokens > 0.0).then_some(before.seconds + part * (after.seconds - before.seconds))
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// The robust standard deviation (1.4826 × the median absolute deviation) as a fraction of the median.
pub fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values).filter(|middle| *middle > 0.0 && values.len() > 1)?;
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&distances).map(|deviation| 1.4826 * deviation / middle)
}
