//! Results for people and for other programs: a table with bars, JSON, CSV, Markdown, SVG.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use tempfile::{Builder, NamedTempFile};

use super::results::{Results, Row};
use crate::output::printable;

/// A file to write to; the ending of its name says what.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    render: fn(&Results) -> Result<String>,
}

impl File {
    pub fn parse(path: &str) -> Result<Self, String> {
        let ending = Path::new(path).extension().unwrap_or_default();
        let render = match ending.to_ascii_lowercase().to_str() {
            Some("json") => json,
            Some("csv") => csv,
            Some("md") => markdown,
            Some("svg") => svg,
            _ => return Err("the name must end in .json, .csv, .md or .svg".to_owned()),
        };
        let path = path.into();
        Ok(Self { path, render })
    }

    /// Writes the file, which is at any moment wholly the one before or wholly this one.
    pub fn write(&self, results: &Results) -> Result<()> {
        let text = (self.render)(results)?;
        let mut file = self.stage()?;
        file.write_all(text.as_bytes())?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// Fails where the file cannot be written; nothing is written yet.
    pub fn stage(&self) -> Result<NamedTempFile> {
        let directory = self.path.parent().filter(|path| *path != Path::new(""));
        let mut builder = Builder::new();
        // The usual mode of a new file; the system takes the user's mask off it.
        builder.permissions(Permissions::from_mode(0o666));
        let file = builder.tempfile_in(directory.unwrap_or(Path::new(".")));
        file.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

pub fn json(results: &Results) -> Result<String> {
    Ok(serde_json::to_string_pretty(results)? + "\n")
}

const HEADER: &str = "size|seconds|tok/s|× stock|spread|peak memory|observed chunk";

fn cells(results: &Results, row: &Row) -> Vec<String> {
    let is_stock = row.size.is_some() && row.size == results.stock;
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / f64::from(1 << 30));
    let unseen = (!row.runs.is_empty()).then(|| "not observable".to_owned());
    let cells = [
        Some(row.name() + if is_stock { " (stock)" } else { "" }),
        row.median_prefill_seconds.map(|s| format!("{s:.2}")),
        row.shown_speed(),
        row.times_stock.map(|times| format!("{times:.2}")),
        row.spread.map(|part| format!("±{:.1} %", part * 100.0)),
        row.peak_memory_bytes.map(gigabytes),
        row.observed_chunk.map(|c| c.to_string()).or(unseen),
    ];
    let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "–".to_owned());
    cells.into_iter().map(or_dash).collect()
}

/// The table for a terminal of this width, with a bar in each row.
pub fn table(results: &Results, width: Option<u16>) -> String {
    let room = width.unwrap_or(100).saturating_sub(74).min(24);
    let mut table = Table::new();
    let mut text = String::new();
    table
        .load_style(presets::NOTHING)
        .set_header(HEADER.split('|'));
    for row in &results.rows {
        let mut cells = cells(results, row);
        cells.push(bar(results.part(row) * f64::from(room)));
        table.add_row(cells.iter().map(|cell| printable(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if (1..7).contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        text = text + line.trim_end() + "\n";
    }
    text
}

fn bar(columns: f64) -> String {
    let eighths = (columns * 8.0).round() as usize;
    let last = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + last
}

fn csv(results: &Results) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = "size,tokens_per_second,prefill_seconds,spread,runs,observed_chunk,observed_steps,\
                  peak_memory_bytes,cut_at_tokens,failed,model,runtime,machine,prompt_tokens,lmpatch";
    writer.write_record(header.split(','))?;
    for row in &results.rows {
        let cut = row.cut.map(|cut| cut.tokens);
        writer.serialize((
            (
                row.size,
                row.speed(),
                row.median_prefill_seconds,
                row.spread,
            ),
            (row.runs.len(), row.observed_chunk, row.observed_steps),
            (row.peak_memory_bytes, cut, &row.failed),
            (&results.model, &results.runtime, &results.machine),
            (results.prompt_tokens, results.lmpatch),
        ))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// `text`, each of the characters replaced by what is beside it.
fn escaped(text: &str, characters: &[(char, &str)]) -> String {
    let mut escaped = String::new();
    for c in printable(text).chars() {
        match characters.iter().find(|(character, _)| *character == c) {
            Some((_, with)) => escaped.push_str(with),
            None => escaped.push(c),
        }
    }
    escaped
}

#[expect(clippy::unnecessary_wraps, reason = "one type for all")]
fn markdown(results: &Results) -> Result<String> {
    let escaped = |text: &str| {
        let special = [
            ('|', r"\|"),
            ('<', r"\<"),
            ('*', r"\*"),
            ('_', r"\_"),
            ('`', r"\`"),
        ];
        escaped(text, &special)
    };
    let (model, subject) = (escaped(&results.model), escaped(&results.subject()));
    let mut lines = vec![
        format!("**{model}**, {subject}\n"),
        format!("| {} |", HEADER.replace('|', " | ")),
        format!("|{}", "---:|".repeat(7)),
    ];
    for row in &results.rows {
        lines.push(format!("| {} |", cells(results, row).join(" | ")));
    }
    lines.push(String::new());
    for remark in results.remarks() {
        lines.push(format!("- {}", escaped(&remark)));
    }
    Ok(lines.join("\n") + "\n")
}

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#24292f}rect{fill:#8c959f}.keep{fill:#1a7f37}\
.ground{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#e6edf3}rect{fill:#656c76}.keep{fill:#3fb950}\
.ground{fill:#0d1117}}";

/// A chart that needs nothing else and looks right on light and on dark ground.
#[expect(clippy::unnecessary_wraps, reason = "one type for all")]
fn svg(results: &Results) -> Result<String> {
    let escaped = |text: &str| escaped(text, &[('&', "&amp;"), ('<', "&lt;"), ('"', "&quot;")]);
    let title = format!("Prefill speed of {}", results.model);
    let mut y = 28;
    let mut lines = Vec::new();
    let texts = [title.clone(), results.subject()];
    for text in texts.into_iter().chain(results.remarks()) {
        for line in textwrap::wrap(&text, 100) {
            lines.push(format!(
                "<text x=\"16\" y=\"{y}\">{}</text>",
                escaped(&line)
            ));
            y += 20;
        }
    }
    for row in &results.rows {
        let is_kept = row.size.is_some() && row.size == results.verdict.keep;
        let class = if is_kept { "keep" } else { "" };
        let (name, length, below) = (row.name(), 380.0 * results.part(row), y + 16);
        let speed = row.shown_speed().unwrap_or("failed".to_owned());
        let after = length + 98.0;
        lines.push(format!(
            "<text x=\"16\" y=\"{below}\">{name}</text><rect class=\"{class}\" x=\"90\" y=\"{y}\""
        ));
        lines.push(format!("width=\"{length:.1}\" height=\"22\"/>"));
        lines.push(format!(
            "<text x=\"{after:.1}\" y=\"{below}\">{speed}</text>"
        ));
        y += 34;
    }
    let body = lines.join("\n");
    let size = format!("width=\"720\" height=\"{y}\"");
    let label = escaped(&title);
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} role=\"img\" aria-label=\"{label}\">\n\
         <style>{STYLE}</style>\n<rect class=\"ground\" {size}/>\n{body}\n</svg>\n"
    ))
}
