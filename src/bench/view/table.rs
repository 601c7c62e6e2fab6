//! The table for the terminal.

use crate::bench::record::Record;
use crate::report::human::{self, Layout};
use crate::ui::printable;

use super::{HEADER, cells};

/// The table, one line per size.
#[must_use]
pub fn render(record: &Record, layout: Layout) -> String {
    let rows = cells(record)
        .into_iter()
        .map(|row| row.map(|cell| printable(&cell)));
    human::table(HEADER, &[1, 2, 3, 4, 5, 6], rows, layout).to_string() + "\n"
}
