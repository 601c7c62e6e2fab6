//! Results for people and for other programs: a table with bars, JSON, CSV, Markdown, SVG.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::results::{Results, Row};
use crate::output::printable;
use crate::report::table::layout;

/// The path of a file to write, whose extension names the format.
pub fn parse_path(path: &str) -> Result<PathBuf, String> {
    match ending(Path::new(path)) {
        "json" | "csv" | "md" | "svg" => Ok(path.into()),
        _ => Err("the name must end in .json, .csv, .md or .svg".to_owned()),
    }
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

/// Fails if one of these files could not be written; writes nothing yet.
pub fn check(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let directory = path.parent().filter(|path| *path != Path::new(""));
        let tried = match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => bail!("{} is not a file", path.display()),
            Ok(_) => File::options().append(true).open(path),
            Err(_) => tempfile::tempfile_in(directory.unwrap_or(Path::new("."))),
        };
        tried.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Writes every file, if there are results. Fails in the end if one could not be written.
pub fn write(paths: &[PathBuf], results: &Results) -> Result<()> {
    let write = |path: &PathBuf| -> Result<()> {
        let text = match ending(path) {
            "csv" => csv(results)?,
            "md" => markdown(results),
            "svg" => svg(results),
            _ => serde_json::to_string_pretty(results)? + "\n",
        };
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let paths = paths.iter().filter(|_| !results.rows.is_empty());
    paths.map(write).fold(Ok(()), Result::and)
}

const HEADER: &str = "size|seconds|tok/s|× stock|spread|memory|observed";

fn cells(results: &Results, row: &Row) -> Vec<String> {
    let is_stock = row.size.is_some() && row.size == results.stock;
    let stock = if is_stock { " (stock)" } else { "" };
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / f64::from(1 << 30));
    let unseen = row.has_worked().then(|| "not observable".to_owned());
    let cells = [
        Some(row.name() + stock),
        row.median_prefill_seconds.map(|s| format!("{s:.2}")),
        shown_speed(row),
        row.times_stock.map(|times| format!("{times:.2}")),
        row.spread.map(|part| format!("±{:.1} %", part * 100.0)),
        row.peak_memory_bytes.map(gigabytes),
        row.observed_chunk.map(|c| c.to_string()).or(unseen),
    ];
    cells.map(|cell| cell.unwrap_or("–".to_owned())).into()
}

fn shown_speed(row: &Row) -> Option<String> {
    let (speed, is_cut) = (row.speed(), row.cut.is_some());
    let digits = usize::from(speed < 100.0);
    let (about, cut) = if is_cut { ("~", " (cut)") } else { ("", "") };
    (speed > 0.0).then(|| format!("{about}{speed:.digits$}{cut}"))
}

/// The table for a terminal of this width, with a bar in each row.
pub fn table(results: &Results, width: Option<u16>) -> String {
    let mut table = layout(HEADER.split('|').collect(), 1..7);
    table.add_rows(results.rows.iter().map(|row| cells(results, row)));
    let lines: Vec<_> = table.lines().collect();
    let taken = lines.iter().map(|line| line.chars().count()).max();
    let room = usize::from(width.unwrap_or(80))
        .saturating_sub(taken.unwrap_or(0))
        .min(24);
    let bar = |row: &Row| "█".repeat((results.part(row) * room as f64).round() as usize);
    let bars = std::iter::once(String::new()).chain(results.rows.iter().map(bar));
    let with_bar =
        |(line, bar): (String, String)| format!("{line}{bar}").trim_end().to_owned() + "\n";
    lines.into_iter().zip(bars).map(with_bar).collect()
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

/// What is said below the rows, and why it ended early.
fn remarks(results: &Results) -> Vec<String> {
    let mut remarks = results.remarks();
    remarks.extend(results.error.clone());
    remarks
}

fn markdown(results: &Results) -> String {
    let escaped = |text: &str| {
        let escape = |text: String, c: char| text.replace(c, &format!("\\{c}"));
        "|<*_`".chars().fold(printable(text), escape)
    };
    let (model, subject) = (escaped(&results.model), escaped(&results.subject()));
    let (header, alignment) = (HEADER.replace('|', " | "), "---:|".repeat(7));
    let mut text = format!("**{model}**, {subject}\n\n| {header} |\n|{alignment}\n");
    for row in &results.rows {
        text += &format!("| {} |\n", cells(results, row).join(" | "));
    }
    for remark in remarks(results) {
        text += &format!("\n- {}", escaped(&remark));
    }
    text + "\n"
}

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}rect{fill:#8c959f}.keep{fill:#1a7f37}\
.ground{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#e6edf3}rect{fill:#656c76}.keep{fill:#3fb950}\
.ground{fill:#0d1117}}";

/// A self-contained chart that looks right on a light and on a dark background.
fn svg(results: &Results) -> String {
    let escaped = |text: &str| printable(text).replace('&', "&amp;").replace('<', "&lt;");
    let (mut y, mut body) = (28, String::new());
    let title = format!("Prefill speed of {}", results.model);
    let texts = [vec![title, results.subject()], remarks(results)].concat();
    for line in textwrap::wrap(&texts.join("\n"), 100) {
        body += &format!("<text x=\"16\" y=\"{y}\">{}</text>\n", escaped(&line));
        y += 20;
    }
    for row in &results.rows {
        let is_kept = row.size.is_some() && row.size == results.verdict.keep;
        let class = if is_kept { "keep" } else { "" };
        let (name, length, below) = (row.name(), 380.0 * results.part(row), y + 16);
        let missing = if row.failed.is_some() {
            "failed"
        } else {
            "–"
        };
        let speed = shown_speed(row).unwrap_or(missing.to_owned());
        let after = length + 98.0;
        body += &format!(
            "<text x=\"16\" y=\"{below}\">{name}</text>\n\
             <rect class=\"{class}\" x=\"90\" y=\"{y}\" width=\"{length:.1}\" height=\"22\"/>\n\
             <text x=\"{after:.1}\" y=\"{below}\">{speed}</text>\n"
        );
        y += 34;
    }
    let size = format!("width=\"720\" height=\"{y}\"");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} role=\"img\">\n<style>{STYLE}</style>\n\
         <rect class=\"ground\" {size}/>\n{body}</svg>\n"
    )
}
