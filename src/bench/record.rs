//! What a benchmark found: one model that every view renders.

use serde::Serialize;

use super::chunk::Observed;
use super::machine::Machine;
use super::stats;
use super::verdict::Verdict;
use crate::lmstudio::chat::Api;

/// The version of the JSON form. It grows when a field changes its meaning or goes away.
const SCHEMA: u32 = 1;

/// A whole benchmark, also one that is not finished.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// The version of this form.
    pub schema: u32,
    /// The version of lmpatch.
    pub lmpatch: &'static str,
    /// The machine that it ran on.
    pub machine: Machine,
    /// The model, as it was named.
    pub model: String,
    /// The runtime in use, where it is known.
    pub runtime: Option<String>,
    /// The interface of the server; none in direct runs.
    pub api: Option<Api>,
    /// The context that the model was loaded with, in tokens, where it is known.
    pub context_length: Option<u64>,
    /// The tokens that every prompt was to have.
    pub prompt_tokens: u64,
    /// How many runs of each size were to count.
    pub runs_per_size: u32,
    /// The chunk that the backend in use ships with, in tokens, where it is known.
    pub stock: Option<u64>,
    /// One row per size.
    pub results: Vec<Row>,
    /// The first size, measured again at the end.
    pub first_again: Option<Row>,
    /// How much faster (or slower, below 0) it was then, as a part: 0.01 is 1 %.
    pub drift: Option<f64>,
    /// Which size to keep.
    pub verdict: Verdict,
    /// What is good to know.
    pub notes: Vec<String>,
    /// Why it ended early, if it did.
    pub error: Option<String>,
}

/// What was found about one size.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// The chunk that was set, in tokens; none where it is not known.
    pub size: Option<u64>,
    /// The chunk that the engine really used, in tokens; none where that cannot be observed.
    pub observed_chunk: Option<u64>,
    /// How many steps a prefill took, where that can be observed.
    pub observed_steps: Option<u64>,
    /// Prompt tokens per second: the median of the runs.
    pub median_tokens_per_second: Option<f64>,
    /// The median time to the first token, in seconds.
    pub median_prefill_seconds: Option<f64>,
    /// The robust standard deviation of the speed as a part of its median: 0.01 is 1 %.
    pub spread: Option<f64>,
    /// The speed as a multiple of that of the stock size.
    pub times_stock: Option<f64>,
    /// The largest peak memory of its runs, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Why it could not be measured in whole.
    pub failed: Option<String>,
    /// Every run that counts or was flagged; the warm-up is not among them.
    pub runs: Vec<Run>,
}

/// One prefill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// The prompt's tokens, as the engine counted them.
    pub prompt_tokens: u64,
    /// The time to the first token, in seconds.
    pub prefill_seconds: f64,
    /// The quotient of the two.
    pub tokens_per_second: f64,
    /// Whose clock it was.
    pub source: Source,
    /// What is wrong with it.
    pub flags: Vec<Flag>,
    /// How many of the tokens were not computed but came out of a cache, where that is told.
    pub cached_tokens: Option<u64>,
    /// The peak memory, in bytes, where it is told.
    pub peak_memory_bytes: Option<u64>,
    /// What its progress showed.
    #[serde(skip)]
    pub observed: Option<Observed>,
}

/// Whose clock took a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The engine's own: the server's figure, or the script in the engine's process.
    Server,
    /// Ours, from the request sent to the first token received.
    Client,
}

impl Source {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// What is wrong with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// A part of the prompt came out of a cache: it is shown and does not count.
    CacheHit,
    /// It is far from the others ([`stats::outliers`]): it is shown and counts, since a median bears it.
    Outlier,
}

impl Flag {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::CacheHit => "cache-hit",
            Self::Outlier => "outlier",
        }
    }
}

impl Run {
    /// Whether it measured a prefill at all.
    #[must_use]
    pub fn counts(&self) -> bool {
        !self.flags.contains(&Flag::CacheHit)
    }
}

impl Row {
    /// The row of a size that failed before anything was measured.
    #[must_use]
    pub fn failed(size: Option<u64>, why: String) -> Self {
        Self {
            size,
            failed: Some(why),
            ..Self::default()
        }
    }

    /// What these runs say about a size; outliers among them get their flag.
    #[must_use]
    pub fn of(size: Option<u64>, mut runs: Vec<Run>, failed: Option<String>) -> Self {
        let speeds: Vec<f64> = runs
            .iter()
            .filter(|run| run.counts())
            .map(|run| run.tokens_per_second)
            .collect();
        let seconds: Vec<f64> = runs
            .iter()
            .filter(|run| run.counts())
            .map(|run| run.prefill_seconds)
            .collect();
        let outliers = stats::outliers(&speeds);
        let flagged = runs
            .iter_mut()
            .filter(|run| run.counts())
            .zip(outliers)
            .filter(|(_, is_outlier)| *is_outlier);
        flagged.for_each(|(run, _)| run.flags.push(Flag::Outlier));
        let observed = agreed(&runs);
        let all_cached = speeds.is_empty() && !runs.is_empty();
        let why = "every run was served from the server's prompt cache, so no prefill was measured";
        Self {
            size,
            observed_chunk: observed.map(|observed| observed.chunk),
            observed_steps: observed.map(|observed| observed.steps),
            median_tokens_per_second: stats::median(&speeds),
            median_prefill_seconds: stats::median(&seconds),
            spread: stats::spread(&speeds),
            times_stock: None,
            peak_memory_bytes: runs.iter().filter_map(|run| run.peak_memory_bytes).max(),
            failed: failed.or_else(|| all_cached.then(|| why.to_owned())),
            runs,
        }
    }

    /// Whether the engine is known to have used another chunk than the one that was set.
    #[must_use]
    pub fn is_not_in_effect(&self) -> bool {
        self.size
            .zip(self.observed_chunk)
            .is_some_and(|(size, observed)| {
                // Engines that tell a rounded part of the prompt are up to 1 % off.
                size.abs_diff(observed) * 100 > size
            })
    }

    /// The observed chunk in words, never claiming what was not seen.
    #[must_use]
    pub fn observed(&self) -> String {
        match self.observed_chunk {
            Some(chunk) => chunk.to_string(),
            None if self.runs.is_empty() => "–".to_owned(),
            None => "not observable".to_owned(),
        }
    }
}

/// What all runs whose progress could be read agree on.
fn agreed(runs: &[Run]) -> Option<Observed> {
    let mut seen = runs
        .iter()
        .filter(|run| run.counts())
        .filter_map(|run| run.observed);
    let first = seen.next()?;
    seen.all(|other| other.chunk.abs_diff(first.chunk) * 100 <= first.chunk)
        .then_some(first)
}

impl Record {
    /// A record with nothing measured yet.
    #[must_use]
    pub fn new(model: String, runs_per_size: u32) -> Self {
        Self {
            schema: SCHEMA,
            lmpatch: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            model,
            runtime: None,
            api: None,
            context_length: None,
            prompt_tokens: 0,
            runs_per_size,
            stock: None,
            results: Vec::new(),
            first_again: None,
            drift: None,
            verdict: Verdict::default(),
            notes: Vec::new(),
            error: None,
        }
    }

    /// Brings everything that follows from the rows up to date.
    pub fn conclude(&mut self) {
        let median = |row: &Row| {
            row.median_tokens_per_second
                .filter(|_| row.failed.is_none())
        };
        let stock = self
            .results
            .iter()
            .find(|row| row.size.is_some() && row.size == self.stock)
            .and_then(median);
        for row in &mut self.results {
            row.times_stock = median(row).zip(stock).map(|(speed, stock)| speed / stock);
        }
        let first = self.results.first().and_then(median);
        let again = self.first_again.as_ref().and_then(median);
        self.drift = first.zip(again).map(|(first, again)| again / first - 1.0);
        self.verdict = Verdict::of(&self.results, self.stock, self.drift);
    }

    /// Whether any size could not be measured as it was asked for.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        let is_bad = |row: &Row| row.failed.is_some() || row.is_not_in_effect();
        self.error.is_some() || self.results.iter().chain(&self.first_again).any(is_bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: f64, flags: Vec<Flag>) -> Run {
        Run {
            prompt_tokens: 1000,
            prefill_seconds: seconds,
            tokens_per_second: 1000.0 / seconds,
            source: Source::Server,
            flags,
            cached_tokens: None,
            peak_memory_bytes: None,
            observed: Some(Observed {
                chunk: 512,
                steps: 2,
            }),
        }
    }

    #[test]
    fn a_row_is_the_median_of_its_runs_outliers_flagged_and_kept() {
        let row = Row::of(
            Some(512),
            vec![run(2.0, vec![]), run(10.0, vec![]), run(2.0, vec![])],
            None,
        );
        assert_eq!(row.median_tokens_per_second, Some(500.0));
        assert_eq!(row.median_prefill_seconds, Some(2.0));
        assert_eq!(
            row.runs
                .iter()
                .map(|run| run.flags.clone())
                .collect::<Vec<_>>(),
            [vec![], vec![Flag::Outlier], vec![]]
        );
        assert_eq!(
            (row.observed_chunk, row.is_not_in_effect()),
            (Some(512), false)
        );
    }

    #[test]
    fn a_cache_hit_is_kept_and_does_not_count() {
        let row = Row::of(
            Some(4096),
            vec![
                run(0.1, vec![Flag::CacheHit]),
                run(2.0, vec![]),
                run(2.0, vec![]),
            ],
            None,
        );
        assert_eq!(
            (row.median_tokens_per_second, row.runs.len()),
            (Some(500.0), 3)
        );
        assert!(row.is_not_in_effect());
        let row = Row::of(Some(4096), vec![run(0.1, vec![Flag::CacheHit])], None);
        assert_eq!(
            (row.median_tokens_per_second, row.observed_chunk),
            (None, None)
        );
        assert!(row.failed.is_some_and(|why| why.contains("prompt cache")));
    }

    #[test]
    fn runs_that_disagree_about_the_chunk_show_none() {
        let mut other = run(2.0, vec![]);
        other.observed = Some(Observed {
            chunk: 1024,
            steps: 1,
        });
        let row = Row::of(Some(512), vec![run(2.0, vec![]), other], None);
        assert_eq!(
            (row.observed_chunk, row.observed().as_str()),
            (None, "not observable")
        );
    }

    #[test]
    fn speeds_are_told_as_multiples_of_stock_and_drift_by_the_first_size() {
        let mut record = Record::new("m".to_owned(), 1);
        record.stock = Some(2048);
        record.results = vec![
            Row::of(Some(512), vec![run(4.0, vec![])], None),
            Row::of(Some(2048), vec![run(2.0, vec![])], None),
        ];
        record.first_again = Some(Row::of(Some(512), vec![run(5.0, vec![])], None));
        record.conclude();
        assert_eq!(
            record
                .results
                .iter()
                .map(|row| row.times_stock)
                .collect::<Vec<_>>(),
            [Some(0.5), Some(1.0)]
        );
        assert!(
            record.drift.is_some_and(|drift| (drift + 0.2).abs() < 1e-9),
            "{:?}",
            record.drift
        );
    }
}
