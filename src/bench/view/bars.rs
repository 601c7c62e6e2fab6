//! Bars for the terminal.

use std::fmt::Write as _;

use crate::bench::record::Record;
use crate::ui::{FAINT, GOOD};

use super::speed;

/// Eighths of a block, so that a bar is as long as its value says.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// One bar per size, the longest as long as there is room for in `width` columns. The one to keep is painted.
#[must_use]
pub fn render(record: &Record, width: usize) -> String {
    let speeds: Vec<_> = record
        .results
        .iter()
        .filter_map(|row| Some((row.size?, row.median_tokens_per_second?)))
        .collect();
    let longest = speeds.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    if speeds.len() < 2 || longest <= 0.0 {
        return String::new();
    }
    let room = width.saturating_sub(22).clamp(8, 60);
    let mut text = String::new();
    for (size, value) in speeds {
        let style = if record.verdict.keep == Some(size) {
            GOOD
        } else {
            FAINT
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{size:>8} {style}{}{style:#} {} tok/s",
            bar(value / longest, room),
            speed(value)
        );
    }
    text
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few columns"
)]
#[expect(clippy::cast_precision_loss, reason = "a few columns")]
fn bar(part: f64, room: usize) -> String {
    let eighths = (part * (room * 8) as f64).round() as usize;
    let last = EIGHTHS.get(eighths % 8).filter(|last| **last != ' ');
    "█".repeat(eighths / 8) + &last.map(char::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values_say() {
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(0.5, 3), "█▌");
        assert_eq!(bar(0.0, 3), "");
        let text = anstream::adapter::strip_str(&render(&record(), 42)).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("     512 {} 500 tok/s", "█".repeat(5)));
        assert_eq!(lines[2], format!("    4096 {} 2000 tok/s", "█".repeat(20)));
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn one_size_has_no_bars() {
        let mut record = record();
        record.results.truncate(1);
        assert_eq!(render(&record, 80), "");
    }
}
