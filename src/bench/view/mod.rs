//! A record for people and for other programs: one renderer per format, all of one model.

pub mod bars;
pub mod csv;
pub mod md;
pub mod svg;
pub mod table;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::{Builder, NamedTempFile};

use super::record::{Flag, Record};

/// What a file holds, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Everything.
    Json,
    /// One line per run.
    Csv,
    /// A table for an issue or a note.
    Md,
    /// A chart.
    Svg,
}

/// A file to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub format: Format,
}

impl Output {
    /// The output that a path names by its ending.
    pub fn parse(path: &str) -> Result<Self, String> {
        let ending = Path::new(path)
            .extension()
            .and_then(|ending| ending.to_str())
            .unwrap_or_default();
        let format = match ending.to_ascii_lowercase().as_str() {
            "json" => Format::Json,
            "csv" => Format::Csv,
            "md" => Format::Md,
            "svg" => Format::Svg,
            _ => return Err("the name must end in .json, .csv, .md or .svg".to_owned()),
        };
        Ok(Self {
            path: path.into(),
            format,
        })
    }

    /// Fails where the file cannot be written; told before anything takes time, and nothing is written yet.
    pub fn probe(&self) -> Result<()> {
        self.stage().map(drop)
    }

    /// Writes the file, which is at any moment wholly the one before or wholly this one.
    pub fn write(&self, record: &Record) -> Result<()> {
        let text = match self.format {
            Format::Json => json(record)?,
            Format::Csv => csv::render(record),
            Format::Md => md::render(record),
            Format::Svg => svg::render(record),
        };
        let mut file = self.stage()?;
        file.write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        file.persist(&self.path)
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(())
    }

    fn stage(&self) -> Result<NamedTempFile> {
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        // The usual mode of a new file; the system takes the user's mask off it.
        let mode = fs::Permissions::from_mode(0o666);
        let file = Builder::new()
            .prefix(".lmpatch-bench-")
            .permissions(mode)
            .tempfile_in(directory);
        file.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Everything, as one indented JSON object.
pub fn json(record: &Record) -> Result<String> {
    Ok(serde_json::to_string_pretty(record).context("cannot write the record as JSON")? + "\n")
}

/// The cells of one row, the same in the terminal and in Markdown.
pub const HEADER: [&str; 7] = [
    "size",
    "seconds",
    "tok/s",
    "× stock",
    "spread",
    "peak memory",
    "observed chunk",
];

/// What is not known.
pub const NONE: &str = "–";

/// The rows of a record as cells.
#[must_use]
pub fn cells(record: &Record) -> Vec<[String; 7]> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let rows = record.results.iter().map(|row| {
        let size = row
            .size
            .map_or_else(|| "as it is".to_owned(), |size| size.to_string());
        let is_stock = row.size.is_some() && row.size == record.stock;
        [
            if is_stock {
                format!("{size} (stock)")
            } else {
                size
            },
            or_none(
                row.median_prefill_seconds
                    .map(|seconds| format!("{seconds:.2}")),
            ),
            or_none(row.median_tokens_per_second.map(speed)),
            or_none(row.times_stock.map(|times| format!("{times:.2}"))),
            or_none(row.spread.map(|spread| format!("±{:.1} %", spread * 100.0))),
            or_none(row.peak_memory_bytes.map(memory)),
            row.observed(),
        ]
    });
    rows.collect()
}

/// Tokens per second with three figures that mean something.
#[must_use]
pub fn speed(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "a size to look at")]
fn memory(bytes: u64) -> String {
    let gigabytes = bytes as f64 / f64::from(1 << 30);
    if gigabytes < 1.0 {
        format!("{:.0} MB", gigabytes * 1024.0)
    } else {
        format!("{gigabytes:.2} GB")
    }
}

/// What every view says below its rows: the verdict, the drift, what failed, what is of note.
#[must_use]
pub fn remarks(record: &Record) -> Vec<String> {
    let mut remarks = Vec::new();
    if record.results.len() > 1 || record.verdict.keep.is_some() {
        remarks.push(format!("Verdict: {}.", record.verdict.reason));
    }
    if let (Some(drift), Some(size)) = (
        record.drift,
        record.results.first().and_then(|row| row.size),
    ) {
        remarks.push(format!(
            "Drift: {size}, measured again at the end, was {:+.1} %.",
            drift * 100.0
        ));
    }
    remarks
}

/// What went wrong, a line each: sizes that failed, that did not take effect, and runs that have flags.
#[must_use]
pub fn failures(record: &Record) -> Vec<String> {
    let mut lines = Vec::new();
    let again = record.first_again.iter().map(|row| (row, " (again)"));
    for (row, which) in record.results.iter().map(|row| (row, "")).chain(again) {
        let size = row
            .size
            .map_or_else(|| "the chunk as it is".to_owned(), |size| size.to_string());
        if let Some(why) = &row.failed {
            lines.push(format!("{size}{which} failed: {why}"));
        }
        if let Some(chunk) = row.observed_chunk.filter(|_| row.is_not_in_effect()) {
            lines.push(format!(
                "{size}{which} did not take effect: the engine used {chunk}; reload the model, or restart LM Studio, and \
                 see that --home is the home of the app that answers"
            ));
        }
        for (flag, what) in [
            (
                Flag::CacheHit,
                "served from the prompt cache and not counted",
            ),
            (Flag::Outlier, "far from the others"),
        ] {
            let count = row
                .runs
                .iter()
                .filter(|run| run.flags.contains(&flag))
                .count();
            if count > 0 {
                lines.push(format!(
                    "{size}{which}: {count} of {} runs {what} ({})",
                    row.runs.len(),
                    flag.word()
                ));
            }
        }
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::chunk::Observed;
    use crate::bench::record::{Row, Run, Source};

    /// A record with every kind of row.
    pub fn record() -> Record {
        let run = |size: u64, seconds: f64, flags: Vec<Flag>| Run {
            prompt_tokens: 10_000,
            prefill_seconds: seconds,
            tokens_per_second: 10_000.0 / seconds,
            source: Source::Server,
            flags,
            cached_tokens: None,
            peak_memory_bytes: Some(3 << 29),
            observed: Some(Observed {
                chunk: size,
                steps: 10_000_u64.div_ceil(size),
            }),
        };
        let mut record = Record::new("org/model <4bit> \"x\", y|z".to_owned(), 2);
        record.machine = crate::bench::machine::Machine {
            os: "macos",
            arch: "aarch64",
            ..Default::default()
        };
        record.prompt_tokens = 10_000;
        record.stock = Some(2048);
        record.runtime = Some("MLX 1.11.0".to_owned());
        record.results = vec![
            Row::of(
                Some(512),
                vec![run(512, 20.0, vec![]), run(512, 20.0, vec![])],
                None,
            ),
            Row::of(
                Some(2048),
                vec![
                    run(2048, 10.0, vec![]),
                    run(2048, 1.0, vec![Flag::CacheHit]),
                ],
                None,
            ),
            Row::of(
                Some(4096),
                vec![run(2048, 5.0, vec![]), run(2048, 5.0, vec![])],
                None,
            ),
            Row::failed(Some(8192), "out of memory".to_owned()),
        ];
        record.conclude();
        record
    }

    #[test]
    fn cells_say_what_is_known_and_a_dash_for_the_rest() {
        let cells = cells(&record());
        assert_eq!(
            cells[0],
            ["512", "20.00", "500", "0.50", "±0.0 %", "1.50 GB", "512"]
        );
        assert_eq!(
            cells[1],
            [
                "2048 (stock)",
                "10.00",
                "1000",
                "1.00",
                NONE,
                "1.50 GB",
                "2048"
            ]
        );
        assert_eq!(cells[2][6], "2048");
        assert_eq!(cells[3], ["8192", NONE, NONE, NONE, NONE, NONE, NONE]);
    }

    #[test]
    fn formats_go_by_the_ending() {
        for (path, format) in [
            ("a.json", Format::Json),
            ("b/c.CSV", Format::Csv),
            ("x.y.md", Format::Md),
            ("s.svg", Format::Svg),
        ] {
            assert_eq!(Output::parse(path).unwrap().format, format);
        }
        for path in ["", "json", ".json", "a.txt", "a.json/"] {
            let parsed = Output::parse(path);
            assert!(parsed.is_err() || path == "a.json/", "{path}: {parsed:?}");
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.csv");
        fs::write(&path, "old").unwrap();
        let output = Output::parse(path.to_str().unwrap()).unwrap();
        output.probe().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        output.write(&record()).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("size,"));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o022,
            0o644
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere =
            Output::parse(directory.path().join("no/such.json").to_str().unwrap()).unwrap();
        assert!(nowhere.probe().is_err());
    }

    #[test]
    fn json_has_the_names_that_scripts_rely_on() {
        let value: serde_json::Value = serde_json::from_str(&json(&record()).unwrap()).unwrap();
        assert_eq!(value["schema"], 1);
        let row = &value["results"][1];
        for name in [
            "size",
            "observed_chunk",
            "median_tokens_per_second",
            "failed",
            "runs",
        ] {
            assert!(row.get(name).is_some(), "{name}");
        }
        for name in [
            "prompt_tokens",
            "prefill_seconds",
            "tokens_per_second",
            "source",
            "flags",
        ] {
            assert!(row["runs"][1].get(name).is_some(), "{name}");
        }
        assert_eq!(
            (&row["runs"][1]["source"], &row["runs"][1]["flags"][0]),
            (&"server".into(), &"cache-hit".into())
        );
        assert!(value["verdict"].get("keep").is_some() && value["verdict"]["reason"].is_string());
        assert_eq!(value["results"][3]["failed"], "out of memory");
    }
}
