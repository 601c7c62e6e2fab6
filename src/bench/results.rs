//! What a benchmark found, what is unknown being `None`; and that as a table with bars, JSON, CSV, Markdown, SVG.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::engine::Run;
use crate::output::{printable, with_home};
use crate::report::table::layout;

/// A benchmark's results so far; while it runs, its rows are in the order of their first runs.
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
    #[serde(rename = "results")]
    pub rows: Vec<Row>,
    pub verdict: Verdict,
    pub notes: Vec<String>,
    /// Why it ended early or has no answer, and what is not as it was.
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

/// What was found about one size.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// The chunk that was set, in tokens.
    pub size: Option<u64>,
    /// The chunk that the engine really used (after a cut, the one that was set, if it fits), and the steps of a prefill.
    pub observed_chunk: Option<u64>,
    pub observed_steps: Option<u64>,
    pub median_tokens_per_second: Option<f64>,
    pub median_prefill_seconds: Option<f64>,
    /// As a fraction of the median: 0.01 is 1 %.
    pub spread: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    /// What LM Studio loaded the model with at this size, in tokens.
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

    /// What is said below the rows.
    pub fn remarks(&self) -> Vec<String> {
        let mut said = Vec::new();
        for row in &self.rows {
            let name = row.name();
            if let Some(why) = &row.failed {
                said.push(format!("{name} failed: {why}"));
                continue;
            }
            if let Some(cut) = row.cut {
                let (here, best) = (cut.tokens_per_second, cut.best_tokens_per_second);
                let what = format!("{name} was cut short at {:.0} tokens", cut.tokens);
                said.push(format!(
                    "{what}: {here:.1} tok/s there, {best:.1} for the best"
                ));
            }
            let before = self.context_length.unwrap_or_default();
            let now = row.context_length.unwrap_or(before);
            if now < before {
                let with = format!("with {name} the model has a context");
                said.push(format!("{with} of {now} instead of {before}"));
            }
            let whys = row.runs.iter().filter_map(|run| run.ignored.as_ref());
            said.extend(whys.map(|why| format!("a run does not count: {why}")));
        }
        said.extend(self.notes.iter().cloned());
        if !self.verdict.reason.is_empty() {
            said.push(format!("Verdict: {}.", self.verdict.reason));
        }
        said
    }
}

/// The path of a file to write, whose extension names the format. Fails if it could not be written; writes nothing yet.
pub fn parse_path(path: &str) -> Result<PathBuf, String> {
    let there = Path::new(".").join(path);
    let Some("json" | "csv" | "md" | "svg") = there.extension().and_then(OsStr::to_str) else {
        return Err("the name must end in .json, .csv, .md or .svg".to_owned());
    };
    let tried = match there.parent() {
        Some(directory) if !there.exists() => tempfile::tempfile_in(directory),
        _ => File::options().append(true).open(path),
    };
    tried.map_err(|error| format!("it cannot be written ({error})"))?;
    Ok(path.into())
}

/// Writes every file, if there are results.
pub fn write(paths: &[PathBuf], results: &Results) -> Result<()> {
    for path in paths.iter().filter(|_| !results.is_empty()) {
        let text = match path.extension().and_then(OsStr::to_str) {
            Some("csv") => csv(results)?,
            Some("md") => markdown(results),
            Some("svg") => svg(results),
            _ => serde_json::to_string_pretty(results)? + "\n",
        };
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The table for people, with a bar in each row, in as many columns as there are.
pub fn table(results: &Results, columns: usize) -> String {
    let trimmed = |line: String| line.trim_end().to_owned() + "\n";
    let header = cells(results, 0.0).lines().next().unwrap_or_default();
    let room = columns.saturating_sub(header.trim_end().chars().count() + 2);
    let table = cells(results, room.min(24) as f64);
    table.lines().map(trimmed).collect()
}

fn cells(results: &Results, longest: f64) -> Table {
    let header = "size|seconds|tok/s|× stock|spread|memory|observed|";
    let mut table = layout(header.split('|').collect(), 1..7);
    let speeds = results.rows.iter().map(Row::speed);
    let fastest = speeds.fold(f64::MIN_POSITIVE, f64::max);
    let is_stock = |row: &&Row| row.size.is_some() && row.size == results.stock;
    let at_stock = results.rows.iter().find(is_stock).map_or(0.0, Row::speed);
    for row in &results.rows {
        let stock = if is_stock(&row) { " (stock)" } else { "" };
        let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / f64::from(1 << 30));
        let unseen = row.valid().next().map(|_| "not observable".to_owned());
        let speed = row.speed();
        let digits = usize::from(speed < 100.0);
        let shown = match row.cut {
            Some(_) => format!("~{speed:.digits$} (cut)"),
            None => format!("{speed:.digits$}"),
        };
        let bar = (longest * speed / fastest).round();
        let cells = [
            Some(row.name() + stock),
            row.median_prefill_seconds.map(|s| format!("{s:.2}")),
            (speed > 0.0).then_some(shown),
            (speed * at_stock > 0.0).then(|| format!("{:.2}", speed / at_stock)),
            row.spread.map(|part| format!("±{:.1} %", part * 100.0)),
            row.peak_memory_bytes.map(gigabytes),
            row.observed_chunk.map(|c| c.to_string()).or(unseen),
            Some("█".repeat(bar as usize)),
        ];
        table.add_row(cells.map(|cell| cell.unwrap_or("–".to_owned())));
    }
    table
}

fn csv(results: &Results) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = "size,tokens_per_second,prefill_seconds,spread,runs,observed_chunk,observed_steps,\
                  peak_memory_bytes,cut_at_tokens,failed,model,runtime,machine,prompt_tokens,lmpatch";
    writer.write_record(header.split(','))?;
    for row in &results.rows {
        let cut = row.cut.map(|cut| cut.tokens);
        let speed = Some(row.speed()).filter(|speed| *speed > 0.0);
        let (seconds, runs) = (row.median_prefill_seconds, row.valid().count());
        writer.serialize((
            (row.size, speed, seconds, row.spread, runs),
            (row.observed_chunk, row.observed_steps),
            (row.peak_memory_bytes, cut, &row.failed),
            (&results.model, &results.runtime, &results.machine),
            (results.prompt_tokens, results.lmpatch),
        ))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn heading(results: &Results) -> String {
    let (tokens, runs) = (results.prompt_tokens, results.runs_per_size);
    let (model, machine, lmpatch) = (&results.model, &results.machine, results.lmpatch);
    let runtime = results.runtime.as_deref().unwrap_or("unknown runtime");
    format!(
        "Prefill speed of {model}\n{tokens} prompt tokens, at most {runs} runs per size\n\
         {machine}, {runtime}, lmpatch {lmpatch}"
    )
}

fn below(results: &Results) -> impl Iterator<Item = String> {
    let remarks = results.remarks().into_iter();
    remarks.chain(results.error.clone())
}

fn markdown(results: &Results) -> String {
    let escape = |text: String, c: char| text.replace(c, &format!("\\{c}"));
    let escaped = |text: String| r"\|<*_`".chars().fold(printable(&text), escape);
    let mut table = cells(results, 24.0);
    table.load_style(presets::ASCII_MARKDOWN);
    for column in table.column_iter_mut() {
        column.set_padding((1, 1));
    }
    let heading = heading(results).replace('\n', ", ");
    let mut text = escaped(heading);
    text += &format!("\n\n{table}\n\n");
    for remark in below(results) {
        text += &format!("- {}\n", escaped(remark));
    }
    text
}

const STYLE: &str = "text{font:13px ui-monospace,monospace;fill:#24292f}rect{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}rect{fill:#0d1117}}";

/// A picture of all that is said, which looks right on a light and on a dark background.
fn svg(results: &Results) -> String {
    let texts = [heading(results), table(results, 100)];
    let text = texts
        .into_iter()
        .chain(below(results))
        .collect::<Vec<_>>()
        .join("\n");
    let (lines, mut body) = (textwrap::wrap(&text, 100), String::new());
    let size = format!("width=\"840\" height=\"{}\"", 20 * lines.len() + 28);
    for (line, y) in lines.iter().zip((28..).step_by(20)) {
        let line = printable(line).replace('&', "&amp;").replace('<', "&lt;");
        body += &format!("<text x=\"16\" y=\"{y}\">{line}</text>\n");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} xml:space=\"preserve\" role=\"img\">\n\
         <style>{STYLE}</style>\n<rect {size}/>\n{body}</svg>\n"
    )
}
