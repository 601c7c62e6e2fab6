//! A table in Markdown, for an issue or a note.

use crate::bench::record::Record;

use super::{HEADER, cells, remarks};

/// The table, what it was measured on, and the verdict.
#[must_use]
pub fn render(record: &Record) -> String {
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let mut lines = vec![
        format!(
            "**{}**, {}",
            escaped(&record.model),
            escaped(&subject(record))
        ),
        String::new(),
        line(HEADER.map(str::to_owned).to_vec()),
        format!("|{}", "---:|".repeat(HEADER.len())),
    ];
    lines.extend(cells(record).into_iter().map(|row| line(row.to_vec())));
    lines.push(String::new());
    lines.extend(
        super::failures(record)
            .iter()
            .map(|failure| format!("- {}", escaped(failure))),
    );
    lines.extend(
        remarks(record)
            .iter()
            .map(|remark| format!("- {}", escaped(remark))),
    );
    lines.join("\n") + "\n"
}

/// What was measured, on what: one line.
#[must_use]
pub fn subject(record: &Record) -> String {
    let prompt = format!("{} prompt tokens", record.prompt_tokens);
    let runs = format!("{} runs per size", record.runs_per_size);
    let version = format!("lmpatch {}", record.lmpatch);
    let parts = [
        Some(prompt),
        Some(runs),
        Some(record.machine.label()),
        record.runtime.clone(),
        Some(version),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        if matches!(c, '|' | '<' | '>' | '*' | '_' | '`' | '\\' | '[' | ']') {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() { ' ' } else { c });
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn it_is_a_table_with_a_verdict() {
        let text = render(&record());
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with(
                r#"**org/model \<4bit\> "x", y\|z**, 10000 prompt tokens, 2 runs per size"#
            ),
            "{text}"
        );
        assert_eq!(
            lines[4],
            "| 512 | 20.00 | 500 | 0.50 | ±0.0 % | 1.50 GB | 512 |"
        );
        assert!(
            lines
                .iter()
                .filter(|line| line.starts_with('|'))
                .all(|line| line.matches('|').count() == 8)
        );
        assert!(text.contains("- 8192 failed: out of memory\n"), "{text}");
        assert!(
            text.contains("- Verdict: keep stock: 2048 is the fastest"),
            "{text}"
        );
    }
}
