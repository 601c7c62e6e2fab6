//! A chart that needs nothing else and looks right on light and on dark ground.

use std::fmt::Write as _;

use crate::bench::record::{Record, Row};

use super::{md, remarks, speed};

const WIDTH: usize = 720;
const STEP: usize = 34;
const BAR: usize = 22;
/// Where the bars begin, and how long the longest is.
const LEFT: usize = 110;
const ROOM: f64 = 380.0;

const STYLE: &str = "\
text{font-family:system-ui,sans-serif;font-size:13px;fill:#24292f}
.title{font-size:16px;font-weight:600}.faint{fill:#57606a;font-size:12px}
.ground{fill:#ffffff}.bar{fill:#8c959f}.keep{fill:#1a7f37}.mark{stroke:#24292f}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#9198a1}.ground{fill:#0d1117}.bar{fill:#656c76}\
.keep{fill:#3fb950}.mark{stroke:#e6edf3}}";

/// How many characters a line of small text has room for, and one of the title; an average for common fonts.
const SMALL: usize = 105;
const LARGE: usize = 75;
const LINE: usize = 20;

/// The chart: one bar per size, the one to keep in green, the spread as a line at its end.
#[must_use]
pub fn render(record: &Record) -> String {
    let title = format!("Prefill speed of {}", record.model);
    let mut text = String::new();
    let mut y = 12;
    y = lines(&mut text, "title", &title, LARGE, y);
    y = lines(&mut text, "faint", &md::subject(record), SMALL, y) + LINE;
    let longest = record
        .results
        .iter()
        .filter_map(|row| row.median_tokens_per_second)
        .fold(f64::MIN_POSITIVE, f64::max);
    for row in &record.results {
        text.push_str(&bar(row, record, y, longest));
        y += STEP;
    }
    for remark in remarks(record) {
        y = lines(&mut text, "faint", &remark, SMALL, y);
    }
    let height = y + LINE;
    let title = escaped(&title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-label=\"{title}\">\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n{text}</svg>\n"
    )
}

/// Adds text, wrapped, below `y`; where it ends.
fn lines(svg: &mut String, class: &str, text: &str, width: usize, mut y: usize) -> usize {
    for line in textwrap::wrap(text, width) {
        y += LINE;
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text class=\"{class}\" x=\"16\" y=\"{y}\">{}</text>",
            escaped(&line)
        );
    }
    y
}

fn bar(row: &Row, record: &Record, top: usize, longest: f64) -> String {
    let size = row
        .size
        .map_or_else(|| "as it is".to_owned(), |size| size.to_string());
    let middle = top + BAR / 2 + 5;
    let label = format!(
        "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{size}</text>\n",
        LEFT - 10
    );
    let Some(value) = row.median_tokens_per_second else {
        let why: String = row
            .failed
            .as_deref()
            .unwrap_or("not measured")
            .chars()
            .take(85)
            .collect();
        let why = escaped(&why);
        return format!(
            "{label}<text class=\"faint\" x=\"{LEFT}\" y=\"{middle}\">failed: {why}</text>\n"
        );
    };
    let length = value / longest * ROOM;
    let class = if row.size.is_some() && record.verdict.keep == row.size {
        "keep"
    } else {
        "bar"
    };
    let spread = row.spread.unwrap_or_default() * length;
    let end = f64::from(u32::try_from(LEFT).unwrap_or_default()) + length;
    let (from, to, line) = (end - spread, end + spread, top + BAR / 2);
    let mark = if spread > 0.5 {
        format!(
            "<line class=\"mark\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{line}\" y2=\"{line}\"/>\n"
        )
    } else {
        String::new()
    };
    let times = row
        .times_stock
        .map(|times| format!(" · {times:.2} × stock"))
        .unwrap_or_default();
    let doubt = if row.is_not_in_effect() {
        " · not in effect"
    } else {
        ""
    };
    let after = end + spread + 8.0;
    format!(
        "{label}<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"3\"/>\n{mark}\
         <text x=\"{after:.1}\" y=\"{middle}\">{} tok/s{times}{doubt}</text>\n",
        speed(value)
    )
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn it_stands_alone_and_names_both_grounds() {
        let svg = render(&record());
        assert!(svg.starts_with("<svg xmlns") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("prefers-color-scheme:dark"));
        assert_eq!(svg.matches("http").count(), 1);
        assert!(svg.contains("org/model &lt;4bit&gt; &quot;x&quot;"));
    }

    #[test]
    fn every_size_has_its_bar_or_says_why_not() {
        let svg = render(&record());
        assert_eq!(
            svg.matches("<rect class=\"bar\"").count()
                + svg.matches("<rect class=\"keep\"").count(),
            3
        );
        assert_eq!(svg.matches("<rect class=\"keep\"").count(), 1);
        assert!(svg.contains("width=\"380.0\"") && svg.contains("width=\"95.0\""));
        assert!(svg.contains("failed: out of memory") && svg.contains("not in effect"));
        assert!(svg.contains("2.00 × stock"));
    }
}
