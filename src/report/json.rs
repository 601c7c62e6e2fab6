//! The report for scripts.

use super::Report;

/// The report as one indented JSON object with a final newline.
pub fn render(report: &Report) -> serde_json::Result<String> {
    serde_json::to_string_pretty(report).map(|text| text + "\n")
}
