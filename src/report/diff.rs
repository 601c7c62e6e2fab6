//! The unified diff of a dry run.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use similar::TextDiff;

use crate::files::resolved;
use crate::output::{BAD, FAINT, GOOD, Output, printable};
use crate::patch::Applied;

/// Prints the diff of all backends; `patch -p1` in the home would apply it to those that are in there. On a terminal it is
/// coloured and safe to show, otherwise byte for byte.
pub fn print(output: &Output, home: &Path, applied: &[Applied]) -> Result<()> {
    let home = resolved(home);
    let mut bytes = Vec::new();
    let edits = applied.iter().flat_map(|applied| &applied.edits);
    // Two backends, or two Pythons of one, may be links to one directory.
    let mut shown = BTreeSet::new();
    for change in edits.filter(|edit| edit.is_change() && shown.insert(&edit.path)) {
        let path = change.path.strip_prefix(&home).unwrap_or(&change.path);
        let path = printable(&path.display().to_string());
        let path = path.trim_start_matches('/');
        let diff = TextDiff::from_lines(change.before.as_slice(), change.after.bytes.as_slice());
        bytes.extend(format!("--- a/{path}\n+++ b/{path}\n").as_bytes());
        for hunk in diff.unified_diff().iter_hunks() {
            hunk.to_writer(&mut bytes).expect("a Vec never fails");
        }
    }
    if !output.has_colour() && output.width().is_none() {
        return output.print_raw(&bytes);
    }
    let mut painted = String::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let style = match line.as_bytes() {
            [b'-', ..] => BAD,
            [b'+', ..] => GOOD,
            [b'@', ..] => FAINT,
            _ => anstyle::Style::new(),
        };
        let line = printable(&line.replace('\t', "    "));
        painted += &format!("{style}{line}{style:#}\n");
    }
    output.print(&painted)
}
