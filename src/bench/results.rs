//! What a benchmark found: one type, of which every export is made. What is not known is none.

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::race::{Cut, Standing, median, spread};

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

/// Which size to keep, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In tokens; none where the measurements do not tell.
    pub keep: Option<u64>,
    /// Whether that is what the backend ships with.
    pub is_stock: bool,
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

    /// What follows from its runs.
    fn summarize(&mut self) {
        let runs = || self.runs.iter().filter(|run| run.ignored.is_none());
        let speeds: Vec<f64> = runs().map(|run| run.tokens_per_second).collect();
        let seconds: Vec<f64> = runs().map(|run| run.prefill_seconds).collect();
        self.peak_memory_bytes = runs().filter_map(|run| run.peak_memory_bytes).max();
        self.median_tokens_per_second = median(&speeds);
        self.median_prefill_seconds = median(&seconds);
        self.spread = spread(&speeds);
    }

    fn remarks(&self) -> Vec<String> {
        let name = self.name();
        let mut remarks = Vec::new();
        if let Some(why) = &self.failed {
            remarks.push(format!("{name} failed: {why}"));
        } else if let Some(cut) = self.cut {
            let (at, here, best) = (
                cut.tokens,
                cut.tokens_per_second,
                cut.best_tokens_per_second,
            );
            let speeds = format!("{here:.1} tok/s there, {best:.1} for the best");
            remarks.push(format!("{name} was cut short at {at:.0} tokens: {speeds}"));
        }
        let ignored = self.runs.iter().filter_map(|run| run.ignored.as_ref());
        remarks.extend(ignored.map(|why| format!("a run does not count: {why}")));
        remarks
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

    /// Brings everything that follows from the runs up to date; `asked` sizes were to be compared.
    pub fn conclude(&mut self, standing: Option<Standing>, asked: usize) {
        self.rows.sort_by_key(|row| row.size);
        self.rows.iter_mut().for_each(Row::summarize);
        let mut rows = self.rows.iter();
        let stock = rows.find(|row| row.size.is_some() && row.size == self.stock);
        let stock = stock.and_then(|row| row.median_tokens_per_second);
        for row in &mut self.rows {
            let speeds = row.median_tokens_per_second.zip(stock);
            row.times_stock = speeds.map(|(speed, stock)| speed / stock);
        }
        self.verdict = self.verdict(standing, asked);
    }

    fn verdict(&self, standing: Option<Standing>, asked: usize) -> Verdict {
        let cut = self.rows.iter().filter(|row| row.cut.is_some()).count();
        let known = cut + standing.map_or(0, |standing| standing.measured);
        let is_unseen = self.rows.iter().all(|row| row.observed_chunk.is_none());
        let nothing = match standing {
            None => "no size could be measured",
            Some(_) if asked < 2 => "one size was measured; give several with --sizes to compare",
            Some(_) if known < 2 => {
                "only one size could be measured, so there is nothing to compare it with"
            }
            // The size of a direct run is an argument: it needs no proof of effect.
            Some(_) if is_unseen && self.api != "direct" => {
                "the engine's chunk could not be observed at any size, so nothing shows that a size took effect"
            }
            Some(standing) => return self.keep(standing, known < asked),
        };
        Verdict {
            reason: nothing.to_owned(),
            ..Verdict::default()
        }
    }

    fn keep(&self, standing: Standing, is_partial: bool) -> Verdict {
        let (keep, best) = (standing.keep, standing.best);
        let noise = format!("within the noise ({:.1} %) of", standing.noise * 100.0);
        let is_stock = self.stock == Some(keep);
        let stock = if is_stock { "keep stock: " } else { "" };
        let partial = "of the sizes that could be measured, ";
        let partial = if is_partial { partial } else { "" };
        let why = if keep == best {
            format!("the fastest, and no smaller size comes {noise} it")
        } else {
            let cost = "a larger chunk costs memory and context";
            format!("the smallest size {noise} the fastest, {best}; {cost}")
        };
        Verdict {
            keep: Some(keep),
            is_stock,
            reason: format!("{stock}{partial}{keep} is {why}"),
        }
    }

    /// What is said below the rows.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<_> = self.rows.iter().flat_map(Row::remarks).collect();
        if !self.rows.is_empty() {
            remarks.push(format!("Verdict: {}.", self.verdict.reason));
        }
        remarks
    }

    /// Whether something was not measured as it was asked for.
    pub fn has_failures(&self, asked: usize) -> bool {
        let has_no_verdict = asked > 1 && self.verdict.keep.is_none();
        let has_failed = self.rows.iter().any(|row| row.failed.is_some());
        self.error.is_some() || has_no_verdict || has_failed
    }
}

/// The machine that this runs on, in a line.
pub fn machine() -> String {
    let what = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
    let system =
        System::new_with_specifics(what.with_memory(MemoryRefreshKind::nothing().with_ram()));
    let cpu = system.cpus().first().map(|cpu| cpu.brand().to_owned());
    let os = System::long_os_version().unwrap_or_default();
    let (cpu, gigabytes) = (cpu.unwrap_or_default(), system.total_memory() >> 30);
    format!("{cpu}, {gigabytes} GB, {os}")
}
