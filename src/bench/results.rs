//! What a benchmark found, what is unknown being `None`; and that as a table with bars, JSON, CSV, Markdown, SVG.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::output::{printable, with_home};
use crate::report::table::layout;

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
    #[serde(rename = "results")]
    pub rows: Vec<Row>,
    pub verdict: Verdict,
    pub notes: Vec<&'static str>,
    pub error: Option<String>,
    /// The sizes that the engine has prefilled at since a model was last loaded.
    #[serde(skip)]
    pub warm: Vec<Option<u64>>,
}

/// Which size to keep, in tokens, and why; `None` without a reason if the measurements do not tell.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    pub keep: Option<u64>,
    pub reason: String,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    pub size: Option<u64>,
    /// The chunk that the engine really used (the one that was set, if it fits), and the steps of a prefill.
    pub observed_chunk: Option<u64>,
    pub observed_steps: Option<u64>,
    pub median_tokens_per_second: Option<f64>,
    pub median_prefill_seconds: Option<f64>,
    /// As a fraction of the median: 0.01 is 1 %.
    pub spread: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub context_length: Option<u64>,
    pub cut: Option<Cut>,
    pub failed: Option<String>,
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

/// How far a prefill is: prompt tokens done, and seconds since the request was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Position {
    pub tokens: f64,
    pub seconds: f64,
}

/// One whole prefill.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    pub prompt_tokens: u64,
    pub prefill_seconds: f64,
    pub tokens_per_second: f64,
    /// Whose clock measured it: `server` or `client`.
    pub source: &'static str,
    pub cached_tokens: Option<u64>,
    pub peak_memory_bytes: Option<u64>,
    pub ignored: Option<String>,
    #[serde(skip)]
    pub model: Option<String>,
    #[serde(skip)]
    pub positions: Vec<Position>,
    /// The number of steps, if the engine told them without their positions.
    #[serde(skip)]
    pub bare_steps: u64,
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
}

impl Results {
    /// Adds why it ended early, or what is not as it was, if so.
    pub fn note_error<T>(&mut self, ended: Result<T>) {
        if let Err(why) = ended {
            let before = self.error.take().map(|error| error + "; ");
            self.error = Some(before.unwrap_or_default() + &with_home(&format!("{why:#}")));
        }
    }

    pub fn is_empty(&self) -> bool {
        let is_unknown = |row: &Row| row.failed.is_none() && row.speed() == 0.0;
        self.rows.iter().all(is_unknown)
    }

    pub fn remarks(&self) -> Vec<String> {
        let mut said = Vec::new();
        for row in &self.rows {
            let name = row.name();
            let failed = row.failed.iter();
            said.extend(failed.map(|why| format!("{name} failed: {why}")));
            if let Some(cut) = row.cut {
                let (here, best) = (cut.tokens_per_second, cut.best_tokens_per_second);
                let what = format!("{name} was cut short at {:.0} tokens", cut.tokens);
                said.push(format!("{what}: {here:.1} tok/s, the best {best:.1}"));
            }
            let before = self.context_length.unwrap_or_default();
            let now = row.context_length.unwrap_or(before);
            if now < before {
                said.push(format!("with {name} the context is {now}, not {before}"));
            }
            let whys = row.runs.iter().filter_map(|run| run.ignored.as_ref());
            said.extend(whys.map(|why| format!("a run does not count: {why}")));
        }
        said.extend(self.notes.iter().map(ToString::to_string));
        if !self.verdict.reason.is_empty() {
            said.push(format!("Verdict: {}.", self.verdict.reason));
        }
        said
    }
}

/// The results in the format that a path's extension names. Fails if that is none of four.
pub fn rendered(path: &Path, results: &Results) -> Result<String> {
    match path.extension().and_then(OsStr::to_str) {
        Some("json") => Ok(serde_json::to_string_pretty(results)? + "\n"),
        Some("csv") => csv(results),
        // A block of preformatted text, in which nothing is markup.
        Some("md") => Ok(textwrap::indent(&lines(results).join("\n"), "    ") + "\n"),
        Some("svg") => Ok(svg(results)),
        _ => bail!("{} must end in .json, .csv, .md or .svg", path.display()),
    }
}

/// The table for people, with a bar in each row, in 80 columns.
pub fn table(results: &Results) -> String {
    let header = "size|seconds|tok/s|× stock|spread|memory|observed|";
    let mut table = layout(header.split('|').collect(), 1..7);
    let speeds = results.rows.iter().map(Row::speed);
    let fastest = speeds.fold(f64::MIN_POSITIVE, f64::max);
    let is_stock = |row: &&Row| row.size.is_some() && row.size == results.stock;
    let at_stock = results.rows.iter().find(is_stock).map_or(0.0, Row::speed);
    for row in &results.rows {
        let speed = row.speed();
        let stock = if is_stock(&row) { " (stock)" } else { "" };
        let about = if row.cut.is_some() { "~" } else { "" };
        let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / f64::from(1 << 30));
        let unseen = row.valid().next().map(|_| "not observable".to_owned());
        let cells = [
            Some(row.name() + stock),
            row.median_prefill_seconds.map(|s| format!("{s:.2}")),
            (speed > 0.0).then(|| format!("{about}{speed:.1}")),
            (speed * at_stock > 0.0).then(|| format!("{:.2}", speed / at_stock)),
            row.spread.map(|part| format!("±{:.1} %", part * 100.0)),
            row.peak_memory_bytes.map(gigabytes),
            row.observed_chunk.map(|c| c.to_string()).or(unseen),
            Some("█".repeat((8.0 * speed / fastest).round() as usize)),
        ];
        table.add_row(cells.map(|cell| cell.unwrap_or("–".to_owned())));
    }
    table.trim_fmt() + "\n"
}

/// All that is known for people, in lines of 100 columns.
fn lines(results: &Results) -> Vec<String> {
    let (model, machine, lmpatch) = (&results.model, &results.machine, results.lmpatch);
    let (tokens, runs) = (results.prompt_tokens, results.runs_per_size);
    let runtime = results.runtime.as_deref().unwrap_or("unknown runtime");
    let mut text = format!(
        "Prefill speed of {model}\n{tokens} prompt tokens, at most {runs} runs per size\n\
         {machine}, {runtime}, lmpatch {lmpatch}\n\n{}",
        table(results)
    );
    for remark in results.remarks().iter().chain(&results.error) {
        text += &format!("\n{remark}");
    }
    let lines = textwrap::wrap(&text, 100);
    lines.iter().map(|line| printable(line)).collect()
}

const STYLE: &str = "text{font:13px ui-monospace,monospace;fill:#24292f}rect{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}rect{fill:#0d1117}}";

/// A picture that looks right on a light and on a dark background.
fn svg(results: &Results) -> String {
    let (lines, mut body) = (lines(results), String::new());
    let size = format!("width=\"840\" height=\"{}\"", 20 * lines.len() + 28);
    for (line, y) in lines.iter().zip((28..).step_by(20)) {
        let line = line.replace('&', "&amp;").replace('<', "&lt;");
        body += &format!("<text x=\"16\" y=\"{y}\">{line}</text>\n");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} xml:space=\"preserve\" role=\"img\">\n\
         <style>{STYLE}</style>\n<rect {size}/>\n{body}</svg>\n"
    )
}

/// The names of the columns are those of the JSON.
const COLUMNS: &str = "size,median_tokens_per_second,median_prefill_seconds,spread,observed_chunk,observed_steps,\
                       peak_memory_bytes,context_length,cut/estimated_tokens_per_second,failed";

fn csv(results: &Results) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS.split(','))?;
    for row in &results.rows {
        let row = serde_json::to_value(row)?;
        let cell = |name| row.pointer(&format!("/{name}"));
        writer.serialize(COLUMNS.split(',').map(cell).collect::<Vec<_>>())?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}
