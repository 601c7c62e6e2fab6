//! The report for people: tables, and the lines below them.

use std::ops::Range;

use anstyle::Style;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

use super::{Action, BackendReport, Report};
use crate::output::{BAD, FAINT, GOOD, NOTE, Output, STRONG, printable};
use crate::patch::Outcome::{Changed, Failed, Incomplete, Refused, Unchanged, WouldChange};
use crate::patch::file::{State, VendorFile};
use crate::patch::original::Proof;

/// The table of backends; with `--verbose`, the sites of each below it.
pub fn backends(report: &Report, output: &Output) -> String {
    let mut header = vec!["backend", "runtime", "selected", "chunk"];
    header.extend(match report.action {
        Action::Check => &["stock", "state"][..],
        Action::Set | Action::Revert => &["result"],
    });
    let numbers = 3..header.len() - 1;
    let mut table = layout(header, numbers);
    table.add_rows(report.backends.iter().map(cells));
    if let Some(width) = output.width() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width);
    }
    // A name or a number that is broken cannot be read; a list of runtimes can, and each is about as long as this.
    for column in table.column_iter_mut() {
        column.set_constraint(match column.index {
            1 => ColumnConstraint::LowerBoundary(Width::Fixed(12)),
            _ => ColumnConstraint::ContentWidth,
        });
    }
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let mut text = format!("{STRONG}{}{STRONG:#}\n", header.trim_end());
    let mut words = report.backends.iter().map(last_word).peekable();
    for line in lines {
        // A row that is wrapped ends in its last word only in its first line.
        let line = line.trim_end();
        let word = words.next_if(|(word, _)| line.ends_with(word));
        let (word, style) = word.unwrap_or_default();
        let start = &line[..line.len() - word.len()];
        text += &format!("{start}{style}{word}{style:#}\n");
    }
    if output.is_verbose {
        text.extend(report.backends.iter().map(details));
    }
    text
}

/// A table without rows or lines, its columns two spaces apart and `numbers` aligned to the right.
pub fn layout(header: Vec<&str>, numbers: Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn cells(row: &BackendReport) -> Vec<String> {
    let runtimes = row.backend.runtimes.iter();
    let runtimes: Vec<_> = runtimes.map(|runtime| printable(&runtime.label)).collect();
    let selected = if row.backend.selected { "yes" } else { "" };
    let mut chunk = number(row.chunk);
    if row.chunk_before != row.chunk {
        chunk = format!("{} → {chunk}", number(row.chunk_before));
    }
    let name = printable(&row.backend.name);
    let mut cells = vec![name, runtimes.join(", "), selected.to_owned(), chunk];
    if row.result.is_none() {
        cells.push(number(row.stock));
    }
    cells.push(last_word(row).0);
    cells
}

fn last_word(row: &BackendReport) -> (String, Style) {
    let style = match (row.result, row.state) {
        (Some(Changed), _) | (None, State::Patched) => GOOD,
        (Some(Incomplete), _) | (None, State::Incomplete | State::Mixed) => NOTE,
        (Some(Failed | Refused), _) | (None, State::Refused) => BAD,
        _ => Style::new(),
    };
    let word = row.result.map_or_else(|| words(row.state), words);
    (word, style)
}

/// An outcome or a state as it is printed: its JSON name with spaces.
fn words(value: impl Serialize) -> String {
    let name = serde_json::to_value(value).unwrap_or_default();
    name.as_str().unwrap_or_default().replace('-', " ")
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

/// What was done, in one line: "3 backends: 2 changed, 1 unchanged".
pub fn summary(report: &Report) -> String {
    let mut counts = Vec::new();
    for outcome in [Changed, WouldChange, Unchanged, Incomplete, Refused, Failed] {
        let count = report.with(&[outcome]).count();
        counts.extend((count > 0).then(|| format!("{count} {}", words(outcome))));
    }
    format!("{}: {}", counted(report.backends.len()), counts.join(", "))
}

/// How many of the backends have the size that was asked about, and what sets it in the others.
pub fn verdict(size: u64, report: &Report) -> String {
    let rows = &report.backends;
    let lacking: Vec<_> = rows.iter().filter(|row| !row.has(size)).collect();
    let having = rows.len() - lacking.len();
    let mut text = format!("{size} in {having} of {}", counted(rows.len()));
    if report.is_selected_missing() {
        text += ", and a part of the selected runtime is not on disk";
    }
    if lacking.iter().any(|row| row.why.is_none()) {
        text += &format!("; `lmpatch {size}{}` sets it", report.flags);
    }
    text
}

fn counted(backends: usize) -> String {
    format!("{backends} backend{}", if backends == 1 { "" } else { "s" })
}

fn details(row: &BackendReport) -> String {
    let name = printable(&row.backend.name);
    let path = printable(&row.backend.path.display().to_string());
    let files: String = row.files.iter().map(|f| file_details(row, f)).collect();
    format!("\n{STRONG}{name}{STRONG:#}\n  {path}\n{files}")
}

fn file_details(row: &BackendReport, file: &VendorFile) -> String {
    // Below the backend, since there may be several Pythons in it.
    let path = file.path.strip_prefix(&row.backend.real);
    let path = printable(&path.unwrap_or(&file.path).display().to_string());
    let state = words(file.state());
    let Some(source) = file.source() else {
        return format!("  {path}  {state}\n");
    };
    let unproven = "this file, as far as is known; a receipt is written before the first edit";
    let original = match source.original.as_ref().map(|original| original.proof) {
        Some(Proof::Record) => "known from the package's RECORD",
        Some(Proof::Release) => "known, a published release",
        Some(Proof::Receipt) if source.came_edited() => "as lmpatch first found it",
        Some(Proof::Receipt) => "known from lmpatch's receipt",
        None if source.is_stock() => unproven,
        None => "unknown",
    };
    let mut differs = "";
    if source.differs_from_record {
        differs = "\n    it differs from the file that its package's RECORD lists";
    }
    let name = source.sites.first().map_or("", |site| site.name);
    let mut text = format!("  {path}: {name}  {state}\n");
    text += &format!("    {FAINT}original: {original}{differs}{FAINT:#}\n");
    for site in &source.sites {
        let (line, value, owner) = (site.line, site.value, printable(&site.owner));
        let stock = format!("  {FAINT}stock {}{FAINT:#}", site.stock);
        let stock = if value == site.stock { "" } else { &stock };
        text += &format!("    line {line:>5}  {value:>6}  {owner}{stock}\n");
    }
    text
}
