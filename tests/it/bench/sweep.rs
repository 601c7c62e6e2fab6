//! What a sweep sets, measures, observes, keeps and shows.

use std::collections::BTreeSet;
use std::sync::mpsc;

use crate::support::child::until;
use crate::support::lines_on_terminal;
use crate::support::server::{Meddle, Odd};
use lmpatch::bench::results::{Cut, Results, Row, Run, table};
use serde_json::Value;

use super::{
    NONE, Steady, begins, benchmark, column, exact, failed, keeps, ran, rows, runs, stage,
};

#[test]
fn a_sweep_sets_loads_measures_and_puts_everything_back() {
    let stage = stage();
    let results = stage.json("--model qwen/tiny --sizes 512,2048,4096", 0);
    assert_eq!(column(&results, "size"), [512, 2048, 4096]);
    assert_eq!(column(&results, "observed_chunk"), [512, 2048, 4096]);
    assert_eq!(column(&results, "observed_steps"), [16, 4, 2]);
    assert_eq!(column(&results, "failed"), [NONE, NONE, NONE]);
    assert_eq!(results["api"], "v1");
    assert_eq!(results["stock"], 2048);
    // Two chunks of the largest; near 4096 first; each once, since another run could change nothing.
    assert_eq!(results["prompt_tokens"], 8192);
    assert_eq!(stage.whole(), [4096, 2048, 512]);
    keeps(&results, 512);
    // Counted tokens over time to first token.
    for (row, pace) in rows(&results).iter().zip([10.0, 40.0, 100.0]) {
        let speed = row["median_tokens_per_second"].as_f64().unwrap();
        assert!((speed * pace / 1e6 - 1.0).abs() < 1e-9, "{row}");
        let tokens = row["runs"][0]["prompt_tokens"].as_u64().unwrap();
        assert!(tokens.abs_diff(8192) < 82, "{tokens}");
    }
    // Every prompt has a beginning of its own: a probe; one short warm-up for each load; three runs.
    let prefills = stage.state().prefills.clone();
    let starts: BTreeSet<_> = prefills.iter().map(|one| &one.prompt[..12]).collect();
    assert_eq!((starts.len(), prefills.len()), (7, 7));
    // A model that had to make room comes back as well.
    stage.fake.load("gemma/tiny", "mlx", 8192);
    stage.fake.load("llama/tiny", "gguf", 8192);
    let stage = stage.odd(|odd| odd.evicts = true);
    let ran = stage.run("--model qwen/tiny --sizes 512,2048 --runs 1");
    ran.exits(0).says("Every model is loaded as it was.");
}

#[test]
fn a_size_that_is_behind_is_cut_short_and_the_connection_closed() {
    let stage = stage().pace(&[(4096, 5), (512, 40)]);
    let results = stage.json("--sizes 512,4096 --runs 1", 0);
    let cut = &rows(&results)[0]["cut"];
    let number = |name: &str| cut[name].as_f64().unwrap();
    let tokens = number("tokens");
    // From a quarter on.
    assert!((2048.0..=4096.0).contains(&tokens), "{cut}");
    let best = number("best_tokens_per_second");
    assert!(number("tokens_per_second") < 0.95 * best, "{cut}");
    keeps(&results, 4096);
    assert_eq!(runs(&results, 0).len(), 0);
    let is_left = || !stage.state().left.is_empty();
    until("the server saw the connection end", is_left);
    assert!(stage.state().left[0].1 < 8192);
}

#[test]
fn equal_speeds_are_measured_again_in_turns_and_the_smallest_is_kept() {
    let stage = exact(&[(4096, 100), (2048, 101)]);
    let results = stage.json("--sizes 2048,4096 --runs 3", 0);
    assert_eq!([0, 1].map(|row| runs(&results, row).len()), [3, 3]);
    assert_eq!(stage.whole(), [4096, 2048, 2048, 4096, 4096, 2048]);
    keeps(&results, 2048);
    let why = "2048 is the smallest size within the noise (2.0 %)";
    begins(&results["verdict"]["reason"], why);
}

#[test]
fn as_it_is_nothing_is_changed_and_the_one_model_is_found() {
    let stage = stage();
    let ran = stage.run("").exits(0).shows("2048 (stock)");
    ran.says("qwen/tiny: 8192 prompt tokens, about 1 min of prefill at most")
        .says("Verdict: one size was measured, so there is nothing to compare it with.");
    // Nothing is loaded, so it is not needed.
    assert!(stage.state().lms.is_empty());
    let results = stage.json("--model qwen/tiny --runs 1", 0);
    assert_eq!(column(&results, "observed_chunk"), [2048]);
    assert_eq!(column(&results, "size"), [2048]);
    assert_eq!(results["verdict"]["keep"], NONE);
    assert_eq!(results["error"], NONE);
    for path in ["/", "/v1", "/v1/"] {
        let url = stage.fake.url() + path;
        stage.env.run(["bench", "--url", &url]).exits(0);
        let url = url.trim_start_matches("http://");
        stage.env.run(["bench", "--url", url]).exits(0);
    }
    // Four chunks of the size that is set, at least 8192 tokens.
    for (set, tokens) in [("4096", 16_384), ("512", 8192)] {
        stage.env.run([set]).exits(0);
        assert_eq!(stage.json("--runs 1", 1)["prompt_tokens"], tokens);
    }
    stage.env.run(["--revert"]).exits(0);
    // A size given twice is one size.
    let results = stage.json("--sizes 2048,2048 --runs 1", 0);
    assert_eq!(column(&results, "size"), [2048]);
}

#[test]
fn the_longest_that_it_can_take_is_said_first() {
    let stage = exact(&[]);
    // 1000 runs and warm-ups of both sizes at 40 µs a token, as the first prompt has it; what decides takes two runs.
    let ran = stage.run("--sizes 512,2048 --runs 1000").exits(0);
    ran.says("qwen/tiny: 8192 prompt tokens, about 13 min of prefill at most");
    assert_eq!(stage.whole().len(), 2);
    let ran = stage.run("--sizes 512,2048 --runs 1000 --budget 2.5");
    ran.exits(0).says("about 3 min of prefill at most");
}

#[test]
fn what_cannot_be_observed_is_no_verdict_about_sizes() {
    for change in [
        |odd: &mut Odd| odd.has_no_progress = true,
        |odd: &mut Odd| odd.is_throttled = true,
    ] {
        let stage = exact(&[]).odd(change);
        let ran = stage.run("--sizes 512,2048 --apply-best").exits(1);
        let ran = ran.shows("not observable");
        ran.says("the engine's chunk could not be observed at 512");
    }
    // One step, where the server leaves out what comes after it, may be two.
    let stage = exact(&[]).odd(|odd| odd.is_throttled = true);
    let results = stage.json("--sizes 4096 --runs 1", 0);
    assert_eq!(column(&results, "observed_chunk"), [NONE]);
}

#[test]
fn a_size_that_was_cut_short_and_then_ran_whole_is_like_any_other() {
    // What had cut it short is slow from its second run on.
    let slower: Meddle = |state| state.pace.extend([(4096, 20)]);
    let stage = exact(&[(4096, 8), (2048, 10)]).odd(|odd| odd.meddles = Some((3, slower)));
    let results = stage.json("--sizes 2048,4096", 0);
    let is_cut = || !stage.state().left.is_empty();
    until("the server saw the end of a prefill", is_cut);
    assert_eq!(column(&results, "cut"), [NONE, NONE]);
    assert_eq!(column(&results, "observed_steps"), [4, 2]);
    keeps(&results, 2048);
}

#[test]
fn a_size_that_does_not_take_effect_is_told() {
    let stage = stage().odd(|odd| odd.stuck_at = Some(2048));
    let results = stage.json("--sizes 512,4096 --runs 1", 1);
    failed(&results, 0, "it did not take effect: the engine used 2048");
    assert_eq!(results["verdict"]["keep"], NONE);
}

#[test]
fn a_size_that_is_cut_short_has_to_have_taken_effect_too() {
    let stage = stage().pace(&[(4096, 8), (512, 40)]);
    let stage = stage.odd(|odd| odd.uses.extend([(2048, 512)]));
    let results = stage.json("--sizes 2048,4096 --runs 1", 1);
    failed(&results, 0, "it did not take effect: the engine used 51");
    failed(&results, 0, "it may lower it where memory is short");
}

#[test]
fn after_a_load_that_failed_no_other_size_is_measured_in_its_place() {
    // The first two are too close to call, so one of them runs again after the third has failed.
    let stage = exact(&[(4096, 100), (2048, 101)]).odd(|odd| odd.fits.extend([(1024, 6144)]));
    let results = stage.json("--sizes 1024,2048,4096 --runs 2", 1);
    failed(&results, 0, "a context of 6144 at this size");
    let observed = [NONE, 2048.into(), 4096.into()];
    assert_eq!(column(&results, "observed_chunk"), observed);
    for (row, pace) in [(1, 101.0), (2, 100.0)] {
        for run in runs(&results, row) {
            let speed = run["tokens_per_second"].as_f64().unwrap();
            assert!((speed * pace / 1e6 - 1.0).abs() < 1e-9, "{run}");
        }
    }
    keeps(&results, 2048);
}

#[test]
fn after_a_crash_every_size_is_warmed_up_again() {
    let (called, calls) = mpsc::channel();
    // Everything is equally fast, and 8192 dies.
    let engine = Steady(move |chunk, tokens| {
        called.send((chunk, tokens))?;
        anyhow::ensure!(chunk != 8192 || tokens == chunk, "out of memory");
        Ok(())
    });
    let (known, _results) = mpsc::channel();
    let benchmark = benchmark(engine, [2048, 4096, 8192], 2);
    benchmark.run(&known).unwrap();
    let expected = [
        (4096, 1536),
        (4096, 4096),
        (4096, 16_384),
        (2048, 2048),
        (2048, 16_384),
        (8192, 8192),
        (8192, 16_384),
        // It was warm before.
        (2048, 2048),
        (2048, 16_384),
    ];
    assert_eq!(calls.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn no_row_is_wider_than_the_terminal() {
    let row = |size: u64| Row {
        size: Some(size),
        median_tokens_per_second: Some(99.9),
        peak_memory_bytes: Some(12 << 30),
        runs: vec![Run::default()],
        ..Row::default()
    };
    let mut results = Results::new([]);
    (results.stock, results.rows) = (Some(2048), vec![row(2048), row(4096)]);
    results.rows[0].cut = Some(Cut {
        tokens: 1.0,
        tokens_per_second: 1.0,
        best_tokens_per_second: 1.0,
        estimated_tokens_per_second: 1.0,
    });
    for observed in [Some(4096), None] {
        (0..2).for_each(|n| results.rows[n].observed_chunk = observed);
        let table = table(&results);
        let wide = table.lines().filter(|line| line.chars().count() > 80);
        assert_eq!(wide.count(), 0, "{table}");
        assert!(table.contains('█'));
    }
}

#[test]
fn no_name_and_no_error_is_taken_for_markup() {
    let stage = exact(&[]);
    let name = "a|b<i>*c_d`e&f\u{7}";
    stage.fake.load(name, "mlx", 65_536);
    let mut command = stage.command("--sizes 512 --output o.md --output o.svg");
    let fails = "echo '<x|y> & z' >&2; false";
    ran(command.args(["--model", name, "--reload", fails])).exits(1);
    let page = stage.read("o.md");
    // In a block of code nothing is.
    let heading = "    Prefill speed of a|b<i>*c_d`e&f\\u{7}\n    8192 prompt tokens";
    assert!(page.starts_with(heading), "{page}");
    let outside = page
        .lines()
        .find(|line| !line.starts_with("    ") && !line.is_empty());
    assert_eq!(outside, None, "{page}");
    assert!(page.contains("): <x|y> & z"), "{page}");
    let svg = stage.read("o.svg");
    let heading = r">Prefill speed of a|b&lt;i>*c_d`e&amp;f\u{7}<";
    assert!(svg.contains(heading), "{svg}");
    assert!(svg.contains("): &lt;x|y> &amp; z<"), "{svg}");
}

#[test]
fn the_result_is_a_table_and_a_verdict_and_a_file_of_every_format() {
    let stage = exact(&[(4096, 8), (512, 16)]);
    let files = "--output o.json --output o.csv --output ./o.md --output ./o.svg";
    let ran = stage.run(&format!("--sizes 512,2048,4096 --runs 1 {files}"));
    let ran = ran.exits(0);
    // No bar of a size that was cut short is longer than that of the best.
    let expected = "\
size          seconds     tok/s  × stock  spread  memory  observed
512                 –  ~62500.0     2.50       –       –       512  ████
2048 (stock)        –  ~25000.0     1.00       –       –      2048  ██
4096             0.07  125000.0     5.00       –       –      4096  ████████
";
    assert_eq!(ran.stdout, expected);
    let expected = "\
qwen/tiny: 8192 prompt tokens, about 1 min of prefill at most
Measuring 4096 …
Measuring 2048 …
Measuring 512 …
Every backend is as it was.
Restoring the models …
Every model is loaded as it was.
512 was cut short at 4096 tokens: 62500.0 tok/s, the best 125000.0
2048 was cut short at 4096 tokens: 25000.0 tok/s, the best 125000.0
Verdict: 4096 is the smallest size within the noise (2.0 %) of the fastest.
`lmpatch 4096 --reload` sets it.
";
    assert_eq!(ran.stderr, expected);
    let results: Value = serde_json::from_str(&stage.read("o.json")).unwrap();
    assert_eq!(results["schema"], 5);
    assert_eq!(rows(&results).len(), 3);
    let csv = stage.read("o.csv");
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!((lines.len(), lines[0].split(',').count()), (4, 10));
    assert!(lines[1].starts_with("512,,,,512,"), "{csv}");
    assert!(lines[1].ends_with(",62500.0,"), "{csv}");
    assert!(lines[3].starts_with("4096,125000.0,0.0"), "{csv}");
    let page = stage.read("o.md");
    assert!(page.contains("\n\n    size "), "{page}");
    assert!(page.contains("    2048 (stock) "), "{page}");
    assert!(
        page.contains("    Verdict: 4096 is the smallest size within"),
        "{page}"
    );
    let svg = stage.read("o.svg");
    assert!(svg.contains("prefers-color-scheme:dark"), "{svg}");
    assert!(svg.contains(">2048 (stock) "), "{svg}");
    let ran = stage.run("--output o.txt").exits(1);
    ran.says(".json, .csv, .md or .svg");
    // On a terminal it fits into 80 columns.
    let command = stage.command("--sizes 512,2048,4096 --runs 1");
    let Some(lines) = lines_on_terminal(&stage.env, &command) else {
        return;
    };
    let wide = lines.iter().filter(|line| line.chars().count() > 80);
    assert_eq!(wide.collect::<Vec<_>>(), Vec::<&String>::new());
    let mut best = lines.iter().filter(|line| line.contains("4096  "));
    assert!(best.any(|row| row.contains('█')), "{lines:#?}");
}
