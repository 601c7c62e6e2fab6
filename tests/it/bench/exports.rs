//! The results as a table and as files.

use crate::support::lines_on_terminal;
use serde_json::Value;

use super::{exact, rows, stage};

#[test]
fn the_result_is_a_table_and_a_verdict() {
    let stage = exact(&[(4096, 8), (512, 16)]);
    let ran = stage.run("--sizes 512,2048,4096 --runs 1").exits(0);
    // No bar of a size that was cut short is longer than that of the best.
    let expected = "\
size          seconds         tok/s  × stock  spread  memory  observed
512                 –  ~62500 (cut)     2.50       –       –       512  ████
2048 (stock)        –  ~25000 (cut)     1.00       –       –      2048  ██
4096             0.07        125000     5.00       –       –      4096  ████████
";
    assert_eq!(ran.stdout, expected);
    let expected = "\
qwen/tiny, 3 sizes, 8192 prompt tokens; about 1 min of prefill at most (going by a short prompt)
Every backend is as it was.
512 was cut short at 4096 tokens: 62500.0 tok/s there, 125000.0 for the best
2048 was cut short at 4096 tokens: 25000.0 tok/s there, 125000.0 for the best
Verdict: 4096 is the fastest, and no smaller size comes within the noise of it.
`lmpatch 4096 --reload` sets it.
Loading qwen/tiny again …
qwen/tiny is loaded again.
";
    assert_eq!(ran.stderr, expected);
}

#[test]
fn the_table_fits_into_80_columns() {
    let stage = stage().pace(&[(4096, 5), (512, 40)]);
    let command = stage.command("--sizes 512,4096 --runs 1");
    let Some(lines) = lines_on_terminal(&stage.env, &command) else {
        return;
    };
    let wide = lines.iter().filter(|line| line.chars().count() > 80);
    assert_eq!(wide.collect::<Vec<_>>(), Vec::<&String>::new());
    let mut best = lines.iter().filter(|line| line.contains("4096  "));
    assert!(best.any(|row| row.contains('█')), "{lines:#?}");
}

#[test]
fn exports_are_there_in_every_format() {
    let stage = stage();
    let mut command = stage.command("--sizes 512,2048 --runs 1 --output o.svg");
    for name in ["o.json", "o.csv", "o.md"] {
        command.arg("--output").arg(stage.env.user().join(name));
    }
    let ran = super::ran(&mut command).exits(0);
    assert_eq!(ran.stdout.lines().count(), 3);
    ran.shows("████").shows("2048 (stock)");
    let results: Value = serde_json::from_str(&stage.read("o.json")).unwrap();
    assert_eq!(results["schema"], 4);
    assert_eq!(rows(&results).len(), 2);
    let csv = stage.read("o.csv");
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!((lines.len(), lines[0].split(',').count()), (3, 15));
    assert!(lines[1].starts_with("512,99999.9"), "{csv}");
    let page = stage.read("o.md");
    assert!(page.contains("| 2048 (stock) |"), "{page}");
    assert!(page.contains("- Verdict: 512 is the fastest"), "{page}");
    let svg = stage.read("o.svg");
    assert!(svg.contains("prefers-color-scheme:dark"), "{svg}");
    assert_eq!(svg.matches("<rect class=\"keep\"").count(), 1, "{svg}");
    let ran = stage.run("--output o.txt").exits(2);
    ran.says(".json, .csv, .md or .svg");
}
