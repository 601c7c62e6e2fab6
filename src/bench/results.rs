//! What a benchmark found: one type, from which every export is made. What is unknown is `None`.

use serde::Serialize;

use super::engine::Run;
use crate::output::with_home;

/// It grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 4;

/// A benchmark's results so far; while it runs, its rows are in the order of their first runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Results {
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
    /// Why it ended early, and what is not as it was.
    pub error: Option<String>,
    /// The sizes that the engine has prefilled at since a model was last loaded.
    #[serde(skip)]
    pub warm: Vec<Option<u64>>,
    /// Whether there is a backend that a size could be set in.
    #[serde(skip)]
    pub has_backends: bool,
}

/// Which size to keep, in tokens, and why; `None` if the measurements do not tell.
#[derive(Debug, Clone, Default, Serialize)]
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
    /// The speed, as a table shows it, as a multiple of that of the stock size.
    pub times_stock: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    /// What LM Studio loaded the model with at this size, in tokens.
    pub context_length: Option<u64>,
    pub cut: Option<Cut>,
    pub failed: Option<String>,
    /// Why it could not be loaded or prefilled, where that says nothing of the size.
    pub disturbed: Vec<String>,
    pub runs: Vec<Run>,
}

/// Where a prefill was cut short, and both speeds there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cut {
    pub tokens: f64,
    pub tokens_per_second: f64,
    pub best_tokens_per_second: f64,
    /// What the whole prefill would have had, if it had stayed as far behind.
    pub estimated_tokens_per_second: f64,
}

impl Row {
    pub fn name(&self) -> String {
        self.size.map_or("as it is".to_owned(), |n| n.to_string())
    }

    /// In tokens per second: of whole prefills, or estimated from where it was cut short; 0 if it is unknown or failed.
    pub fn speed(&self) -> f64 {
        let cut = self.cut.map(|cut| cut.estimated_tokens_per_second);
        let known = self.median_tokens_per_second.or(cut);
        known.filter(|_| self.failed.is_none()).unwrap_or_default()
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
    /// The speed of a row as a fraction of the fastest.
    pub fn part(&self, row: &Row) -> f64 {
        let speeds = self.rows.iter().map(Row::speed);
        row.speed() / speeds.fold(f64::MIN_POSITIVE, f64::max)
    }

    /// Adds why it ended early, or what is not as it was.
    pub fn add_error(&mut self, why: &str) {
        let before = self.error.take().map(|error| error + "; ");
        self.error = Some(before.unwrap_or_default() + &with_home(why));
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
        for row in &self.rows {
            if let (Some(before), Some(now)) = (self.context_length, row.context_length)
                && now < before
            {
                let name = row.name();
                remarks.push(format!(
                    "with {name} the model has a context of {now} instead of {before}"
                ));
            }
        }
        // Why a row failed is told above.
        for row in self.rows.iter().filter(|row| row.failed.is_none()) {
            let ignored = row.runs.iter().filter_map(|run| run.ignored.as_ref());
            let whys = ignored.chain(&row.disturbed);
            remarks.extend(whys.map(|why| format!("a run does not count: {why}")));
        }
        let verdict = || format!("Verdict: {}.", self.verdict.reason);
        remarks.extend(self.notes.iter().cloned());
        remarks.extend((!self.rows.is_empty()).then(verdict));
        remarks
    }
}
