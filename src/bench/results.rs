//! What a benchmark found: one type, of which every export is made. What is not known is none.

use serde::Serialize;

use super::race::Cut;
use super::verdict::Verdict;

/// A whole benchmark, also one that is not finished.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Results {
    /// It grows when a field changes its meaning or goes away.
    pub schema: u32,
    pub lmpatch: &'static str,
    /// `Apple M3 Ultra, 256 GB, macOS 26.1`.
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
    /// As a part of the median: 0.01 is 1 %.
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
    /// Whose clock it was: `server` or `client`.
    pub source: &'static str,
    pub cached_tokens: Option<u64>,
    pub peak_memory_bytes: Option<u64>,
    /// Why it does not count.
    pub ignored: Option<String>,
}

impl Row {
    pub fn name(&self) -> String {
        let size = self.size.map(|size| size.to_string());
        size.unwrap_or_else(|| "as it is".to_owned())
    }

    /// The speed that it is shown with: of whole prefills, or where it was cut short.
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
}

impl Results {
    /// The row of `size`, made where there is none.
    pub fn row(&mut self, size: Option<u64>) -> &mut Row {
        let index = self.rows.iter().position(|row| row.size == size);
        let index = index.unwrap_or(self.rows.len());
        if index == self.rows.len() {
            let row = Row::default();
            self.rows.push(Row { size, ..row });
        }
        &mut self.rows[index]
    }

    /// The speed of a row as a part of the fastest.
    pub fn part(&self, row: &Row) -> f64 {
        let speeds = self.rows.iter().filter_map(Row::speed);
        row.speed().unwrap_or_default() / speeds.fold(f64::MIN_POSITIVE, f64::max)
    }

    /// What was measured, on what.
    pub fn subject(&self) -> String {
        let (tokens, runs, lmpatch) = (self.prompt_tokens, self.runs_per_size, self.lmpatch);
        let runtime = self.runtime.as_deref().unwrap_or("unknown runtime");
        let on = format!("{}, {runtime}, lmpatch {lmpatch}", self.machine);
        format!("{tokens} prompt tokens, at most {runs} runs per size, {on}")
    }
}
