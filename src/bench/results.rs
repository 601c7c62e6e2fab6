//! What a benchmark found: one type, from which every export is made. What is unknown is `None`.

use serde::Serialize;

use super::race::{Cut, median, spread};

/// A whole benchmark, also one that is not finished.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Results {
    /// It grows when a field changes its meaning or goes away.
    pub schema: u32,
    pub lmpatch: &'static str,
    pub machine: String,
    pub model: String,
    pub runtime: Option<String>,
    /// `v1`, `openai` or `direct`.
    pub api: &'static str,
    pub context_length: Option<u64>,
    pub prompt_tokens: u64,
    pub runs_per_size: u32,
    /// The chunk that the backend in use ships with, in tokens.
    pub stock: Option<u64>,
    pub seconds: f64,
    #[serde(rename = "results")]
    pub rows: Vec<Row>,
    pub verdict: Verdict,
    pub notes: Vec<String>,
    /// Why it ended early.
    pub error: Option<String>,
}

/// Which size to keep, in tokens, and why; `None` if the measurements do not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub keep: Option<u64>,
    pub reason: String,
}

/// What was found about one size.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// The chunk that was set, in tokens.
    pub size: Option<u64>,
    /// The chunk that the engine really used, and the steps of a prefill.
    pub observed_chunk: Option<u64>,
    pub observed_steps: Option<u64>,
    pub median_tokens_per_second: Option<f64>,
    pub median_prefill_seconds: Option<f64>,
    /// As a fraction of the median: 0.01 is 1 %.
    pub spread: Option<f64>,
    /// The speed as a multiple of that of the stock size.
    pub times_stock: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub cut: Option<Cut>,
    pub failed: Option<String>,
    pub runs: Vec<Run>,
}

/// One whole prefill.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Run {
    /// As the engine counted them.
    pub prompt_tokens: u64,
    pub prefill_seconds: f64,
    pub tokens_per_second: f64,
    /// Whose clock measured it: `server` or `client`.
    pub source: &'static str,
    pub cached_tokens: Option<u64>,
    pub peak_memory_bytes: Option<u64>,
    /// Why it does not count.
    pub ignored: Option<String>,
}

impl Row {
    pub fn name(&self) -> String {
        self.size.map_or("as it is".to_owned(), |n| n.to_string())
    }

    /// The speed to show: of whole prefills, or up to where it was cut short.
    pub fn speed(&self) -> Option<f64> {
        let cut = self.cut.map(|cut| cut.tokens_per_second);
        self.median_tokens_per_second.or(cut)
    }

    pub fn shown_speed(&self) -> Option<String> {
        let speed = self.speed()?;
        let digits = usize::from(speed < 100.0);
        let cut = if self.cut.is_some() { " (cut)" } else { "" };
        Some(format!("{speed:.digits$}{cut}"))
    }

    /// Computes everything that follows from its runs.
    pub fn summarize(&mut self) {
        let runs = || self.runs.iter().filter(|run| run.ignored.is_none());
        let speeds: Vec<f64> = runs().map(|run| run.tokens_per_second).collect();
        let seconds: Vec<f64> = runs().map(|run| run.prefill_seconds).collect();
        self.peak_memory_bytes = runs().filter_map(|run| run.peak_memory_bytes).max();
        self.median_tokens_per_second = median(&speeds);
        self.median_prefill_seconds = median(&seconds);
        self.spread = spread(&speeds);
    }

    fn remark(&self) -> Option<String> {
        let name = self.name();
        if let Some(why) = &self.failed {
            return Some(format!("{name} failed: {why}"));
        }
        let cut = self.cut?;
        let (at, here) = (cut.tokens, cut.tokens_per_second);
        let best = cut.best_tokens_per_second;
        let speeds = format!("{here:.1} tok/s there, {best:.1} for the best");
        Some(format!("{name} was cut short at {at:.0} tokens: {speeds}"))
    }
}

impl Results {
    /// The row of `size`, added if there is none.
    pub fn row(&mut self, size: Option<u64>) -> &mut Row {
        if !self.rows.iter().any(|row| row.size == size) {
            let row = Row::default();
            self.rows.push(Row { size, ..row });
        }
        let mut rows = self.rows.iter_mut();
        rows.find(|row| row.size == size).expect("it was made")
    }

    /// The speed of a row as a fraction of the fastest.
    pub fn part(&self, row: &Row) -> f64 {
        let speeds = self.rows.iter().filter_map(Row::speed);
        row.speed().unwrap_or_default() / speeds.fold(f64::MIN_POSITIVE, f64::max)
    }

    /// What was measured, and on which machine.
    pub fn subject(&self) -> String {
        let (tokens, runs, lmpatch) = (self.prompt_tokens, self.runs_per_size, self.lmpatch);
        let runtime = self.runtime.as_deref().unwrap_or("unknown runtime");
        let on = format!("{}, {runtime}, lmpatch {lmpatch}", self.machine);
        format!("{tokens} prompt tokens, at most {runs} runs per size, {on}")
    }

    /// What is said below the rows.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<_> = self.rows.iter().filter_map(Row::remark).collect();
        let runs = self.rows.iter().flat_map(|row| &row.runs);
        let ignored = runs.filter_map(|run| run.ignored.as_ref());
        remarks.extend(ignored.map(|why| format!("a run does not count: {why}")));
        let verdict = || format!("Verdict: {}.", self.verdict.reason);
        remarks.extend((!self.rows.is_empty()).then(verdict));
        remarks
    }

    /// Whether anything was not measured as requested.
    pub fn has_failures(&self, asked: usize) -> bool {
        let has_failed = self.rows.iter().any(|row| row.failed.is_some());
        self.error.is_some() || has_failed || asked > 1 && self.verdict.keep.is_none()
    }
}
