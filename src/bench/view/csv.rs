//! One line per run, with everything that tells it from the runs of other machines.

use crate::bench::record::{Flag, Record, Row, Run};

const HEADER: &str = "size,run,prompt_tokens,prefill_seconds,tokens_per_second,source,flags,observed_chunk,\
                      peak_memory_bytes,failed,model,runtime,cpu,memory_bytes,os,os_version,arch,lmpatch";

/// The runs as comma-separated values (RFC 4180). A size without any run has one line, which says why.
#[must_use]
pub fn render(record: &Record) -> String {
    let mut lines = vec![HEADER.to_owned()];
    for row in &record.results {
        let runs = (1..)
            .zip(&row.runs)
            .map(|(number, run)| line(record, row, Some((number, run))));
        lines.extend(runs);
        if row.runs.is_empty() {
            lines.push(line(record, row, None));
        }
    }
    lines.join("\r\n") + "\r\n"
}

fn line(record: &Record, row: &Row, run: Option<(u32, &Run)>) -> String {
    fn text(value: Option<impl ToString>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    let machine = &record.machine;
    let numbered = run.map(|(number, _)| number);
    let run = run.map(|(_, run)| run);
    let flags = run.map(|run| {
        run.flags
            .iter()
            .copied()
            .map(Flag::word)
            .collect::<Vec<_>>()
            .join(" ")
    });
    let observed = run
        .and_then(|run| run.observed)
        .map(|observed| observed.chunk);
    let fields = [
        text(row.size),
        text(numbered),
        text(run.map(|run| run.prompt_tokens)),
        text(run.map(|run| run.prefill_seconds)),
        text(run.map(|run| run.tokens_per_second)),
        text(run.map(|run| run.source.word())),
        text(flags),
        text(observed),
        text(run.and_then(|run| run.peak_memory_bytes)),
        text(row.failed.as_ref()),
        record.model.clone(),
        text(record.runtime.as_ref()),
        text(machine.cpu.as_ref()),
        text(machine.memory_bytes),
        machine.os.to_owned(),
        text(machine.os_version.as_ref()),
        machine.arch.to_owned(),
        record.lmpatch.to_owned(),
    ];
    fields.map(|field| quoted(&field)).join(",")
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn every_run_is_a_line_and_so_is_a_size_that_failed() {
        let text = render(&record());
        let lines: Vec<_> = text.split_terminator("\r\n").collect();
        assert_eq!(lines.len(), 1 + 2 + 2 + 2 + 1);
        let model = r#""org/model <4bit> ""x"", y|z""#;
        let tail = format!(
            ",{model},MLX 1.11.0,,,macos,,aarch64,{}",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(
            lines[4],
            format!("2048,2,10000,1,10000,server,cache-hit,2048,1610612736,{tail}")
        );
        assert_eq!(lines[7], format!("8192,,,,,,,,,out of memory{tail}"));
        assert_eq!(lines[0].split(',').count(), HEADER.split(',').count());
    }
}
