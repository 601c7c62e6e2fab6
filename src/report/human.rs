//! The report for people: tables, diffs, and the lines below them.

use std::path::Path;

use anstyle::Style;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use similar::TextDiff;

use super::{BackendReport, FileReport, Report, RuntimeReport, SiteReport};
use crate::effect::Effect;
use crate::patch::backend::State;
use crate::patch::original::Proof;
use crate::patch::{Change, Deed, Done};
use crate::ui::{BAD, FAINT, GOOD, NOTE, STRONG, printable};

/// How tables are laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// How many columns there are; none where it is no terminal.
    pub width: Option<u16>,
    /// Whether every site is shown.
    pub is_verbose: bool,
}

/// The table of `--check`.
#[must_use]
pub fn check(report: &Report, layout: Layout) -> String {
    let rows = report.backends.iter().map(|backend| {
        let selected = if backend.selected { "yes" } else { "" };
        [
            printable(&backend.layer),
            runtimes(&backend.runtimes),
            selected.to_owned(),
            number(backend.chunk),
            number(backend.stock),
            backend.state.word().to_owned(),
        ]
    });
    let table = table(
        ["layer", "runtime", "selected", "chunk", "stock", "state"],
        &[3, 4],
        rows,
        layout,
    );
    let paint = |backend: &BackendReport| match backend.state {
        State::Stock => None,
        State::Patched => Some(GOOD),
        State::Mixed | State::Incomplete => Some(NOTE),
        State::Refused => Some(BAD),
    };
    with_details(&table, report, layout, |backend| {
        (backend.state.word(), paint(backend))
    })
}

/// Whether the values are in effect: one line where it is the same for every backend, else one for each.
#[must_use]
pub fn effects(report: &Report) -> String {
    let mut effects: Vec<_> = report
        .backends
        .iter()
        .filter_map(|backend| backend.in_effect)
        .collect();
    effects.sort_unstable();
    effects.dedup();
    match effects.as_slice() {
        [] => String::new(),
        [only] => format!(
            "Loaded models: {}\n",
            effect(*only, &report.backends.iter().collect::<Vec<_>>())
        ),
        several => {
            let of = |wanted: &Effect| {
                let backends: Vec<_> = report
                    .backends
                    .iter()
                    .filter(|backend| backend.in_effect == Some(*wanted))
                    .collect();
                let names = backends
                    .iter()
                    .map(|backend| format!("\n  {}", printable(&backend.layer)));
                format!(
                    "{}{}\n",
                    effect(*wanted, &backends),
                    names.collect::<String>()
                )
            };
            format!(
                "Loaded models:\n{}",
                several.iter().map(of).collect::<String>()
            )
        }
    }
}

/// How many of the backends have the size that was asked about.
#[must_use]
pub fn verdict(size: u64, having: usize, all: usize) -> String {
    let found = match (all - having, all) {
        (0, 1) => format!("it has {size}"),
        (0, _) => format!("all have {size}"),
        (_, 1) => format!("it does not have {size}; `lmpatch {size}` sets it"),
        (lacking, _) => format!("{lacking} without {size}; `lmpatch {size}` sets it"),
    };
    format!("{}: {found}", backends(all))
}

fn backends(number: usize) -> String {
    format!(
        "{number} {}",
        if number == 1 { "backend" } else { "backends" }
    )
}

/// The words for it, and what they rest on.
fn effect(effect: Effect, backends: &[&BackendReport]) -> String {
    let (style, rest) = match effect {
        Effect::ReloadNeeded => (
            NOTE,
            format!("older than the files: worker {}", stale_workers(backends)),
        ),
        Effect::InEffect => (GOOD, "every loaded model has these values".to_owned()),
        Effect::NotRunning => (Style::new(), "no model is loaded there".to_owned()),
        Effect::Unknown => (Style::new(), "lmpatch doctor tells why".to_owned()),
    };
    format!("{style}{}{style:#} ({rest})", effect.words())
}

/// The workers that hold older values, each once: `812, 813`.
#[must_use]
pub fn stale_workers(backends: &[&BackendReport]) -> String {
    let mut pids: Vec<_> = backends
        .iter()
        .flat_map(|backend| &backend.stale_workers)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The table of a run that set or reverted.
#[must_use]
pub fn changes(report: &Report, layout: Layout) -> String {
    let rows = report.backends.iter().map(|backend| {
        let selected = if backend.selected { "yes" } else { "" };
        let chunk = match (backend.chunk_before, backend.chunk) {
            (before, now) if before == now => number(now),
            (before, now) => format!("{} → {}", number(before), number(now)),
        };
        [
            printable(&backend.layer),
            runtimes(&backend.runtimes),
            selected.to_owned(),
            chunk,
            result(backend).to_owned(),
        ]
    });
    let table = table(
        ["layer", "runtime", "selected", "chunk", "result"],
        &[3],
        rows,
        layout,
    );
    with_details(&table, report, layout, |backend| {
        let paint = match backend.result {
            Some("changed") => Some(GOOD),
            Some("refused" | "failed") => Some(BAD),
            Some("left-alone") => Some(NOTE),
            _ => None,
        };
        (result(backend), paint)
    })
}

/// The unified diff of a dry run; `patch -p1` in the home would apply it.
#[must_use]
pub fn diff(home: &Path, done: &[Done]) -> Vec<u8> {
    let real_home = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    let mut out = Vec::new();
    for done in done {
        let Deed::WouldChange(changes) = &done.deed else {
            continue;
        };
        for change in changes {
            out.extend(file_diff(&real_home, change));
        }
    }
    out
}

/// The same diff with colours, for a terminal: what could drive it is escaped.
#[must_use]
pub fn paint_diff(diff: &[u8]) -> String {
    let text = String::from_utf8_lossy(diff);
    let lines = text.split_inclusive('\n').map(|line| {
        let (content, end) = line
            .strip_suffix('\n')
            .map_or((line, ""), |content| (content, "\n"));
        let content = content
            .strip_suffix('\r')
            .unwrap_or(content)
            .replace('\t', "    ");
        let style = match content.as_bytes() {
            [b'-', b'-', b'-', ..] | [b'+', b'+', b'+', ..] => STRONG,
            [b'-', ..] => BAD,
            [b'+', ..] => GOOD,
            [b'@', ..] => FAINT,
            _ => return format!("{}{end}", printable(&content)),
        };
        format!("{style}{}{style:#}{end}", printable(&content))
    });
    lines.collect()
}

fn file_diff(home: &Path, change: &Change) -> Vec<u8> {
    let path = change
        .path
        .strip_prefix(home)
        .unwrap_or(&change.path)
        .display()
        .to_string();
    let path = printable(path.trim_start_matches('/'));
    let diff = TextDiff::from_lines(change.before.as_slice(), change.after.as_slice());
    let mut out = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = diff
        .unified_diff()
        .header(&format!("a/{path}"), &format!("b/{path}"))
        .to_writer(&mut out);
    out
}

/// What was done, in one line: "2 backends changed, 1 already so".
#[must_use]
pub fn summary(report: &Report) -> String {
    let count = |wanted: &str| {
        report
            .backends
            .iter()
            .filter(|backend| backend.result == Some(wanted))
            .count()
    };
    let words = [
        ("changed", "changed"),
        ("would-change", "would change"),
        ("unchanged", "already so"),
        ("left-alone", "left alone"),
        ("refused", "refused"),
        ("failed", "failed"),
    ];
    let counts = words
        .iter()
        .filter_map(|(result, words)| match count(result) {
            0 => None,
            number => Some(format!("{number} {words}")),
        });
    format!(
        "{}: {}",
        backends(report.backends.len()),
        counts.collect::<Vec<_>>().join(", ")
    )
}

fn result(backend: &BackendReport) -> &'static str {
    match backend.result {
        Some("unchanged") => "already so",
        Some("left-alone") => "left alone",
        Some("would-change") => "would change",
        other => other.unwrap_or_default(),
    }
}

fn runtimes(runtimes: &[RuntimeReport]) -> String {
    let names: Vec<_> = runtimes
        .iter()
        .map(|runtime| format!("MLX {}", printable(&runtime.version)))
        .collect();
    names.join(", ")
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

/// A table without lines; the columns with these numbers are set to the right.
#[must_use]
pub fn table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl Iterator<Item = [String; N]>,
    layout: Layout,
) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header)
        .add_rows(rows);
    table.set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = layout.width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table with its header and last words painted and, where asked for, the sites of each backend below it.
fn with_details<'r>(
    table: &Table,
    report: &'r Report,
    layout: Layout,
    word: impl Fn(&'r BackendReport) -> (&'static str, Option<Style>),
) -> String {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let mut out = vec![format!("{STRONG}{}{STRONG:#}", header.trim_end())];
    let mut words = report.backends.iter().map(word).peekable();
    for line in lines {
        let line = line.trim_end();
        // A row that is wrapped ends in its word only in its first line.
        let painted = words
            .peek()
            .and_then(|(word, style)| paint_end(line, word, *style));
        if painted.is_some() {
            words.next();
        }
        out.push(painted.unwrap_or_else(|| line.to_owned()));
    }
    if layout.is_verbose {
        out.extend(report.backends.iter().flat_map(details));
    }
    out.join("\n") + "\n"
}

/// `line` with the word at its end painted, if it ends in that word.
fn paint_end(line: &str, word: &str, style: Option<Style>) -> Option<String> {
    let start = line.strip_suffix(word)?;
    let style = style.unwrap_or_default();
    Some(format!("{start}{style}{word}{style:#}"))
}

fn details(backend: &BackendReport) -> Vec<String> {
    let title = format!(
        "\n{STRONG}{}{STRONG:#}\n  {}",
        printable(&backend.layer),
        printable(&backend.path)
    );
    std::iter::once(title)
        .chain(backend.files.iter().flat_map(file_details))
        .collect()
}

fn file_details(file: &FileReport) -> Vec<String> {
    let original = match file.original {
        Proof::Record => "original: known from the package's RECORD",
        Proof::Release => "original: known, a published release",
        Proof::Saved => "original: saved beside it",
        Proof::Found => "original: saved as first found, not known to be the vendor's",
        Proof::Unknown if file.state == State::Stock => {
            "original: this file, as far as can be told; a copy is saved before the first edit"
        }
        Proof::Unknown => "original: not known; it is saved before the first edit",
    };
    let name = file
        .sites
        .first()
        .map(|site| format!(": {}", site.name))
        .unwrap_or_default();
    let title = format!("  {}{name}  {}", file.file, file.state.word());
    let original = format!("    {FAINT}{original}{FAINT:#}");
    [title, original]
        .into_iter()
        .chain(file.sites.iter().map(site_details))
        .collect()
}

fn site_details(site: &SiteReport) -> String {
    let stock = if site.value == site.stock {
        String::new()
    } else {
        format!("  {FAINT}stock {}{FAINT:#}", site.stock)
    };
    format!(
        "    line {:>5}  {:>6}  {}{stock}",
        site.line,
        site.value,
        printable(&site.owner)
    )
}
