//! The report for people: tables, and the lines below them.

use std::collections::BTreeMap;
use std::ops::Range;

use anstyle::Style;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{Action, BackendReport, Report};
use crate::lmstudio::runtimes::Runtime;
use crate::output::{BAD, GOOD, NOTE, Output, STRONG, printable};
use crate::patch::backend::VendorFile;
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
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let mut text = format!("{STRONG}{}{STRONG:#}\n", header.trim_end());
    for line in lines {
        let (start, word) = line.trim_end().rsplit_once("  ").unwrap_or_default();
        let style = match word {
            "changed" | "patched" => GOOD,
            "incomplete" | "mixed" => NOTE,
            "failed" | "refused" => BAD,
            _ => Style::new(),
        };
        text += &format!("{start}  {style}{word}{style:#}\n");
    }
    if output.is_verbose {
        let files = report.backends.iter().flat_map(|row| &row.now.files);
        text.extend(files.map(details));
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
    let backend = &row.now.backend;
    let label = |runtime: &Runtime| printable(&runtime.label());
    let runtimes: Vec<_> = backend.runtimes.iter().map(label).collect();
    let selected = if backend.selected { "yes" } else { "" };
    let mut chunk = number(row.chunk);
    if row.chunk_before != row.chunk {
        chunk = format!("{} → {chunk}", number(row.chunk_before));
    }
    let name = printable(&backend.name);
    let mut cells = vec![name, runtimes.join("\n"), selected.to_owned(), chunk];
    if row.result.is_none() {
        cells.push(number(row.stock));
    }
    cells.push(last_word(row));
    cells
}

fn last_word(row: &BackendReport) -> String {
    row.result.map_or_else(|| words(row.state), words)
}

/// An outcome, a state or a proof as it is printed: its JSON name with spaces.
fn words(value: impl Serialize) -> String {
    let name = serde_json::to_value(value).unwrap_or_default();
    name.as_str().unwrap_or_default().replace('-', " ")
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

/// What was done, in one line: "Backends: 2 changed, 1 unchanged".
pub fn summary(report: &Report) -> String {
    let mut counts = BTreeMap::new();
    for row in &report.backends {
        *counts.entry(last_word(row)).or_insert(0) += 1;
    }
    let counted = |(word, n): (String, u32)| format!("{n} {word}");
    let counts: Vec<_> = counts.into_iter().map(counted).collect();
    format!("Backends: {}", counts.join(", "))
}

fn details(file: &VendorFile) -> String {
    let path = printable(&file.path.display().to_string());
    let mut text = format!("\n{STRONG}{path}{STRONG:#}  {}\n", words(file.state()));
    let Some(source) = file.source() else {
        return text;
    };
    let original = match &source.original {
        None => "unknown".to_owned(),
        Some((Proof::Untouched, _)) => "this file, as far as is known".to_owned(),
        Some((proof, _)) => words(proof),
    };
    text += &format!("  original: {original}\n");
    if source.differs_from_record {
        text += "  it differs from the file that its package's RECORD lists\n";
    }
    for site in &source.sites {
        let (line, value, stock) = (site.line, site.value, site.stock);
        let owner = printable(&site.owner);
        text += &format!("  line {line:>5}  {value:>6}  {owner}  stock {stock}\n");
    }
    text
}
