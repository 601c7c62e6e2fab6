//! Benchmarks against a fake LM Studio with a made-up clock: exact speeds, every failure a row, everything as it was.
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::support::home::{
    BackendDir, engine_since_2026, engine_with_constant, runtime, select, stock_generate,
    usual_backend,
};
use crate::support::server::{FakeLmStudio, Instance, Meddle, Odd, State, chunk_on_disk, load};
use crate::support::standins::{MADE_UP_PYTHON, executable, until};
use crate::support::{Entry, Env, Ran, differences, interpreter, lines_on_terminal, snapshot};
use indicatif::ProgressBar;
use lmpatch::bench::args::BenchArgs;
use lmpatch::bench::engine::{Engine, OnProgress, Run};
use lmpatch::bench::guard::Guard;
use lmpatch::bench::measure::Benchmark;
use lmpatch::bench::results::Results;
use lmpatch::bench::{OnPanic, supervise};
use lmpatch::cli::{self, Cli};
use lmpatch::lmstudio::runtimes::APPS;
use lmpatch::lock::Lock;
use lmpatch::marker::{interrupted, lock};
use lmpatch::output::Output;
use lmpatch::patch::survey;
use serde_json::Value;
use signal_hook::iterator::Signals;

const NAME: &str = "app-mlx-generate-mac14-arm64@34";
const MODEL: &str = "qwen/tiny";
const MARKER: &str = "extensions/backends/vendor/.lmpatch-bench";
const NONE: Value = Value::Null;
/// Microseconds a token: what comes later is far faster, so that a busy machine has nothing cut short.
const FALLING: &[(u64, u64)] = &[(4096, 100), (2048, 40), (512, 10)];

/// A home with one stock 2048 backend in use, and an LM Studio that runs it.
struct Stage {
    env: Env,
    backend: BackendDir,
    fake: FakeLmStudio,
}

fn stage() -> Stage {
    let env = Env::new();
    let home = env.lmstudio();
    let backend = usual_backend(&home, NAME);
    runtime(&home, "1.12.0", &[NAME]);
    select(&home, "1.12.0");
    let fake = FakeLmStudio::start(&home, &backend.engine());
    fake.load(MODEL, "mlx", 65_536);
    fake.state().pace.extend(FALLING.iter().copied());
    Stage { env, backend, fake }
}

/// Every entry of the home, and what is loaded.
type Before = (BTreeMap<OsString, Entry>, Vec<Instance>);

impl Stage {
    fn odd(self, change: impl FnOnce(&mut Odd)) -> Self {
        change(&mut self.fake.state().odd);
        self
    }

    fn pace(self, pace: &[(u64, u64)]) -> Self {
        self.fake.state().pace.extend(pace.iter().copied());
        self
    }

    fn command(&self, more: &[&str]) -> Command {
        let url = self.fake.url();
        self.env
            .command(["bench", "--url", &url].iter().chain(more))
    }

    fn run(&self, more: &[&str]) -> Ran {
        Ran::of(&self.command(more).output().unwrap())
    }

    fn json(&self, more: &[&str], code: i32) -> Value {
        let ran = Ran::of(&self.command(more).arg("--json").output().unwrap()).exits(code);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = self.command(more);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The chunks of the prefills of whole prompts.
    fn whole(&self) -> Vec<u64> {
        let state = self.fake.state();
        let whole = state
            .prefills
            .iter()
            .filter(|prefill| prefill.tokens > 7900);
        whole.map(|prefill| prefill.chunk).collect()
    }

    fn before(&self) -> Before {
        (snapshot(&self.env.lmstudio()), self.fake.loaded())
    }

    /// Files and loaded models are as they were.
    #[track_caller]
    fn is_as(&self, before: &Before) {
        assert_eq!(
            differences(&before.0, &snapshot(&self.env.lmstudio())),
            Vec::<String>::new()
        );
        assert_eq!(self.fake.loaded(), before.1);
    }

    fn chunk(&self) -> Option<u64> {
        chunk_on_disk(&self.backend.engine())
    }
}

fn rows(results: &Value) -> &Vec<Value> {
    results["results"].as_array().unwrap()
}

fn column(results: &Value, name: &str) -> Vec<Value> {
    rows(results).iter().map(|row| row[name].clone()).collect()
}

#[track_caller]
fn failed(results: &Value, index: usize, why: &str) {
    let row = &rows(results)[index];
    assert!(
        row["failed"]
            .as_str()
            .is_some_and(|failed| failed.contains(why)),
        "{row:#}"
    );
}

fn bench_args(more: &[&str]) -> BenchArgs {
    let words = ["lmpatch", "bench"].iter().chain(more);
    match Cli::read(words.map(Into::into)).unwrap().command {
        Some(cli::Command::Bench(args)) => *args,
        _ => unreachable!(),
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_sweep_sets_loads_measures_and_puts_everything_back() {
    let stage = stage();
    let before = stage.before();
    let results = stage.json(&["--model", MODEL, "--sizes", "512,2048,4096"], 0);
    assert_eq!(column(&results, "size"), [512, 2048, 4096]);
    assert_eq!(column(&results, "observed_chunk"), [512, 2048, 4096]);
    assert_eq!(column(&results, "observed_steps"), [16, 4, 2]);
    assert_eq!(column(&results, "failed"), [NONE, NONE, NONE]);
    assert_eq!(
        (&results["api"], &results["stock"]),
        (&"v1".into(), &2048.into())
    );
    // Two chunks of the largest; near 4096 first; each once, since another run could change nothing.
    assert_eq!(results["prompt_tokens"], 8192);
    assert_eq!(stage.whole(), [4096, 2048, 512]);
    assert_eq!(results["verdict"]["keep"], 512, "{results}");
    // Counted tokens over time to first token.
    for (row, pace) in rows(&results).iter().zip([10.0, 40.0, 100.0]) {
        let speed = row["median_tokens_per_second"].as_f64().unwrap();
        assert!((speed * pace / 1e6 - 1.0).abs() < 1e-9, "{row}");
        let tokens = row["runs"][0]["prompt_tokens"].as_u64().unwrap();
        assert!(tokens.abs_diff(8192) < 82, "{tokens}");
    }
    // Every prompt has a beginning of its own; one short warm-up for each load.
    let prefills = stage.fake.state().prefills.clone();
    let starts: BTreeSet<_> = prefills
        .iter()
        .map(|prefill| prefill.prompt[..12].to_owned())
        .collect();
    assert_eq!(
        (starts.len(), prefills.len()),
        (7, 7),
        "a probe, three warm-ups, three runs"
    );
    stage.is_as(&before);
    // A model that had to make room comes back as well.
    stage.fake.load("gemma/tiny", "mlx", 8192);
    stage.fake.load("llama/tiny", "gguf", 8192);
    stage.fake.state().odd.evicts = true;
    let before = stage.before();
    stage
        .run(&["--model", MODEL, "--sizes", "512,2048", "--runs", "1"])
        .exits(0)
        .says("gemma/tiny is loaded again.")
        .says("llama/tiny is loaded again.");
    stage.is_as(&before);
}

#[test]
fn a_size_that_is_behind_is_cut_short_and_the_connection_closed() {
    let stage = stage().pace(&[(4096, 5), (2048, 5), (512, 40)]);
    let results = stage.json(&["--sizes", "512,4096", "--runs", "1"], 0);
    let cut = &rows(&results)[0]["cut"];
    let (tokens, there) = (
        cut["tokens"].as_f64().unwrap(),
        cut["tokens_per_second"].as_f64().unwrap(),
    );
    assert!(
        (2048.0..=4096.0).contains(&tokens),
        "from a quarter on: {cut}"
    );
    assert!(
        there < 0.95 * cut["best_tokens_per_second"].as_f64().unwrap(),
        "{cut}"
    );
    assert_eq!(
        (
            &results["verdict"]["keep"],
            rows(&results)[0]["runs"].as_array().unwrap().len()
        ),
        (&4096.into(), 0)
    );
    until("the server saw the connection end", || {
        !stage.fake.state().left.is_empty()
    });
    assert!(stage.fake.state().left[0].1 < 8192);
    let ran = stage.run(&["--sizes", "512,4096", "--runs", "1"]).exits(0);
    let ran = ran.says("512 was cut short at").says("for the best");
    let ran = ran.shows("(cut)");
    // No bar of a size that was cut short is longer than that of the best.
    let bars = ran.stdout.lines().skip(1);
    let bars: Vec<_> = bars.map(|row| row.matches('█').count()).collect();
    assert!(bars[0] < bars[1], "{}", ran.stdout);
}

#[test]
fn equal_speeds_are_measured_again_in_turns_and_the_smallest_is_kept() {
    let stage = stage()
        .pace(&[(4096, 100), (2048, 101)])
        .odd(|odd| odd.tells_seconds = true);
    let results = stage.json(&["--sizes", "2048,4096", "--runs", "3"], 0);
    let counts = rows(&results)
        .iter()
        .map(|row| row["runs"].as_array().unwrap().len());
    assert_eq!(counts.collect::<Vec<_>>(), [3, 3]);
    assert_eq!(stage.whole(), [4096, 2048, 2048, 4096, 4096, 2048]);
    assert_eq!(results["verdict"]["keep"], 2048, "{results}");
    let reason = results["verdict"]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("keep stock: 2048 is the smallest size within the noise (2.0 %)"),
        "{reason}"
    );
}

#[test]
fn as_it_is_nothing_is_changed_and_the_one_model_is_found() {
    let stage = stage().odd(|odd| odd.lists_oddities = true);
    let before = stage.before();
    let ran = stage
        .run(&[])
        .exits(0)
        .shows("2048 (stock)")
        .says("qwen/tiny, 1 size, 8192 prompt tokens; about 1 min of prefill at most");
    ran.says("Verdict: one size was measured, so there is nothing to compare it with; --sizes takes several.");
    assert!(
        stage.fake.state().lms.is_empty(),
        "nothing is loaded, so lms is not needed"
    );
    stage.is_as(&before);
    let results = stage.json(&["--model", MODEL, "--runs", "1"], 0);
    assert_eq!(
        (column(&results, "observed_chunk"), column(&results, "size")),
        (vec![2048.into()], vec![2048.into()])
    );
    assert_eq!(
        (&results["verdict"]["keep"], &results["error"]),
        (&NONE, &NONE)
    );
    // Four chunks of the size that is set, at least 8192 tokens.
    for (set, tokens) in [("4096", 16_384), ("512", 8192)] {
        stage.env.run([set]).exits(0);
        assert_eq!(stage.json(&["--runs", "1"], 1)["prompt_tokens"], tokens);
    }
    stage.env.run(["--revert"]).exits(0);
    // A size given twice is one size.
    let results = stage.json(&["--sizes", "2048,2048", "--runs", "1"], 0);
    assert_eq!(column(&results, "size"), [2048]);
}

#[test]
fn the_longest_that_it_can_take_is_said_first() {
    let stage = stage().odd(|odd| odd.tells_seconds = true);
    // 1000 runs and warm-ups of both sizes at 40 µs a token, as the first prompt has it; what decides takes two runs.
    let ran = stage.run(&["--sizes", "512,2048", "--runs", "1000"]);
    ran.exits(0)
        .says("qwen/tiny, 2 sizes, 8192 prompt tokens; about 13 min of prefill at most");
    assert_eq!(stage.whole().len(), 2);
    let ran = stage.run(&["--sizes", "512,2048", "--runs", "1000", "--budget", "2.5"]);
    ran.exits(0).says("about 3 min of prefill at most");
}

#[test]
fn both_interfaces_ask_for_one_token_and_say_whose_clock_it_was() {
    for (has_v1, api, source, limit) in [
        (true, "v1", "server", "max_output_tokens"),
        (false, "openai", "client", "max_tokens"),
    ] {
        let stage = stage();
        stage.fake.state().has_v1 = has_v1;
        let results = stage.json(&["--model", MODEL, "--runs", "1"], 0);
        assert_eq!(
            (&results["api"], &rows(&results)[0]["runs"][0]["source"]),
            (&api.into(), &source.into())
        );
        assert_eq!(column(&results, "observed_chunk"), [2048]);
        let chats = stage.fake.state().chats.clone();
        assert!(
            chats
                .iter()
                .all(|body| body[limit] == 1 && body["temperature"] == 0 && body["stream"] == true)
        );
        assert!(!has_v1 || chats.iter().all(|body| body["store"] == false));
    }
    let stage = stage();
    stage.fake.state().has_v1 = false;
    stage.run(&[]).exits(1).says("name one with --model");
}

#[test]
fn bare_comments_are_counted_as_steps() {
    let stage = stage().odd(|odd| odd.has_bare_comments = true);
    stage.fake.state().has_v1 = false;
    let results = stage.json(
        &["--model", MODEL, "--runs", "1", "--prompt-tokens", "10000"],
        0,
    );
    assert_eq!(
        (
            column(&results, "observed_chunk"),
            column(&results, "observed_steps")
        ),
        (vec![2048.into()], vec![5.into()])
    );
}

#[test]
fn what_cannot_be_observed_is_no_verdict_about_sizes() {
    for change in [
        |odd: &mut Odd| odd.has_no_progress = true,
        |odd: &mut Odd| odd.is_throttled = true,
    ] {
        let stage = stage().odd(change);
        let before = stage.before();
        let ran = stage
            .run(&["--sizes", "512,2048", "--apply-best"])
            .exits(1)
            .shows("not observable");
        ran.says("could not be observed at any size");
        stage.is_as(&before);
    }
}

#[test]
fn the_tokens_of_a_template_are_counted_out_of_a_prompt() {
    let stage = stage()
        .pace(&[(4096, 8), (2048, 10), (512, 16)])
        .odd(|odd| (odd.template, odd.tells_seconds) = (400, true));
    let results = stage.json(&["--sizes", "512,2048,4096", "--runs", "1"], 0);
    assert_eq!(column(&results, "observed_chunk"), [512, 2048, 4096]);
    let tokens = rows(&results)[2]["runs"][0]["prompt_tokens"]
        .as_u64()
        .unwrap();
    assert!((8192..8256).contains(&tokens), "{tokens}");
    assert_eq!(results["verdict"]["keep"], 4096);
}

#[test]
fn prompts_of_another_length_do_not_count() {
    // Three bytes a character from some point on, and four bytes a token.
    let stage = stage().odd(|odd| odd.tells_seconds = true);
    let file = stage.env.user().join("mixed.txt");
    fs::write(&file, "a".repeat(20_000) + &"日".repeat(100_000)).unwrap();
    let file = file.to_str().unwrap();
    let results = stage.json(
        &["--sizes", "2048,4096", "--runs", "1", "--prompt-file", file],
        0,
    );
    let runs: Vec<_> = rows(&results)
        .iter()
        .flat_map(|row| row["runs"].as_array().unwrap())
        .collect();
    let (ignored, valid): (Vec<_>, Vec<_>) =
        runs.into_iter().partition(|run| run["ignored"].is_string());
    for run in valid {
        assert!(
            run["prompt_tokens"].as_u64().unwrap().abs_diff(8192) < 410,
            "{run}"
        );
    }
    let why = ignored[0]["ignored"].as_str().unwrap();
    assert!(why.starts_with("its prompt has 14"), "{why}");
    assert!(why.ends_with(" tokens instead of 8192"), "{why}");
}

#[test]
fn a_size_that_is_cut_short_has_to_have_taken_effect_too() {
    let stage = stage()
        .pace(&[(4096, 8), (512, 40)])
        .odd(|odd| odd.uses.extend([(2048, 512)]));
    let results = stage.json(&["--sizes", "2048,4096", "--runs", "1"], 1);
    let why = "it did not take effect: the engine used 51";
    failed(&results, 0, why);
    failed(&results, 0, "it may lower it where memory is short");
    assert_eq!(
        rows(&results)[1]["times_stock"],
        NONE,
        "stock was not measured"
    );
}

#[test]
fn a_template_out_of_the_cache_is_no_hit() {
    let stage = stage().odd(|odd| (odd.template, odd.caches_template) = (900, true));
    stage.fake.state().has_v1 = false;
    let results = stage.json(&["--model", MODEL, "--runs", "1"], 0);
    assert_eq!(rows(&results)[0]["runs"][0]["cached_tokens"], 916);
    assert_eq!(column(&results, "observed_chunk"), [2048]);
    // After a load it is there only for the second prompt.
    let lms = stage.env.lmstudio().join("bin/lms").display().to_string();
    let load = format!(
        "'{lms}' unload {MODEL}; '{lms}' load dir/{MODEL} --identifier {MODEL} --context-length 65536"
    );
    let sizes = ["--sizes", "512,2048", "--runs", "1", "--reload", &load];
    let results = stage.json(&[&["--model", MODEL], &sizes[..]].concat(), 0);
    for row in rows(&results) {
        assert_eq!(row["runs"][0]["cached_tokens"], 916, "{row:#}");
        assert_eq!(row["runs"][0]["ignored"], NONE, "{row:#}");
    }
}

#[test]
fn tokens_that_are_not_counted_make_no_endless_prompts() {
    let stage = stage().odd(|odd| odd.counts = Some(5));
    let results = stage.json(&["--model", MODEL, "--runs", "1"], 1);
    failed(&results, 0, "its prompt has 5 tokens instead of 8192");
    let prefills = stage.fake.state().prefills.clone();
    let longest = prefills.iter().map(|prefill| prefill.prompt.len()).max();
    assert!(longest <= Some(16 * 8192), "{longest:?}");
}

#[test]
fn every_model_that_does_not_come_back_is_named() {
    let stage = stage();
    stage.fake.load("gemma/tiny", "mlx", 8192);
    stage.fake.load("llama/tiny", "gguf", 8192);
    stage.fake.state().odd.evicts = true;
    stage.fake.state().odd.refuses = vec!["gemma/tiny", "llama/tiny"];
    let page = stage.env.user().join("page.md");
    let sizes = ["--sizes", "512,2048", "--runs", "1"];
    let output = ["--model", MODEL, "--output", page.to_str().unwrap()];
    let results = stage.json(&[sizes, output].concat(), 1);
    let error = results["error"].as_str().unwrap();
    let page = fs::read_to_string(page).unwrap();
    for name in ["gemma/tiny", "llama/tiny"] {
        let what = format!("{name} was not loaded again: ");
        assert!(error.contains(&what) && page.contains(&what), "{error}");
    }
    assert_eq!(stage.fake.loaded()[0].id, MODEL);
}

#[test]
fn a_smaller_context_is_told_with_its_size() {
    let stage = stage().odd(|odd| odd.fits.extend([(4096, 20_000)]));
    stage
        .run(&["--sizes", "512,4096", "--runs", "1"])
        .exits(0)
        .says("with 4096 the model has a context of 20000 instead of 65536");
}

#[test]
fn a_load_that_fails_once_at_the_end_is_tried_again() {
    let stage = stage().odd(|odd| odd.failing_loads = vec![3]);
    let before = stage.before();
    let ran = stage.run(&["--sizes", "512,2048", "--runs", "1"]).exits(0);
    ran.says("qwen/tiny is loaded again.");
    stage.is_as(&before);
}

#[test]
fn what_fails_after_it_has_worked_is_tried_again_and_still_counts() {
    // 4096 cuts 2048 short and is loaded once more, so that this is not one lucky run.
    for (fails, runs) in [(vec![3], 3), (vec![3, 4, 5], 1)] {
        let count = fails.len();
        let stage = stage()
            .pace(&[(4096, 8), (2048, 40)])
            .odd(|odd| odd.failing_loads = fails);
        let before = stage.before();
        let results = stage.json(&["--sizes", "2048,4096"], 0);
        let best = &rows(&results)[1];
        assert_eq!(best["failed"], NONE, "{results:#}");
        let disturbed = best["disturbed"].as_array().unwrap();
        assert_eq!(disturbed.len(), count);
        let why = disturbed[0].as_str().unwrap();
        assert!(why.contains("Failed to load model"), "{why}");
        assert!(best["runs"].as_array().unwrap().len() <= runs);
        assert_eq!(results["verdict"]["keep"], 4096);
        stage.is_as(&before);
    }
}

#[test]
fn a_list_that_fails_once_costs_no_size() {
    for looks in 1..4 {
        let stage = stage().odd(|odd| odd.failing_looks_after = Some((1, looks)));
        let results = stage.json(&["--sizes", "512,2048", "--runs", "1"], 0);
        assert_eq!(column(&results, "failed"), [NONE, NONE]);
    }
}

#[test]
fn a_crash_that_takes_the_model_along_is_no_other_clients_doing() {
    let stage = stage().odd(|odd| (odd.breaks_off_from, odd.crash_unloads) = (Some(4096), true));
    let before = stage.before();
    let results = stage.json(&["--sizes", "512,4096", "--runs", "1"], 1);
    failed(&results, 1, "the server broke off");
    let loads = |state: &State| state.lms.iter().filter(|call| call[0] == "load").count();
    assert_eq!(loads(&stage.fake.state()), 3, "it is not provoked again");
    stage.is_as(&before);
}

#[test]
fn with_a_command_lms_is_never_called() {
    let stage = stage();
    let sizes = ["--sizes", "512,2048", "--runs", "1", "--reload", "true"];
    stage.json(&[&["--model", MODEL], &sizes[..]].concat(), 1);
    assert_eq!(stage.fake.state().lms, Vec::<Vec<String>>::new());
}

#[test]
fn the_load_of_another_client_says_nothing_of_a_size() {
    let stage = stage().odd(|odd| odd.foreign_load = Some(2));
    let before = stage.before();
    let ran = stage.run(&["--sizes", "512,4096", "--runs", "1"]).exits(0);
    ran.says("a run does not count: something else loaded it in between (lms failed ")
        .says_nothing_of("context of");
    stage.is_as(&before);
}

#[test]
fn where_the_selection_is_unknown_nothing_is_said_of_stock() {
    let stage = stage();
    let home = stage.env.lmstudio();
    BackendDir::new(&home, "app-mlx-generate-mac14-arm64@19")
        .with_engine(engine_with_constant("512"))
        .with_generate(stock_generate());
    fs::remove_file(home.join(APPS[0].1)).unwrap();
    let results = stage.json(&["--sizes", "512,2048", "--runs", "1"], 0);
    assert_eq!((&results["stock"], &results["runtime"]), (&NONE, &NONE));
    assert_eq!(column(&results, "times_stock"), [NONE, NONE]);
    let as_it_is = stage.json(&["--runs", "1"], 0);
    assert_eq!(column(&as_it_is, "observed_chunk"), [2048]);
    stage
        .run(&["--sizes", "512,4096", "--runs", "1"])
        .exits(0)
        .says("`lmpatch 512 --reload` sets it.");
}

#[test]
fn a_file_that_cannot_be_set_is_told_also_where_the_selection_is_unknown() {
    let stage = stage();
    fs::remove_file(stage.env.lmstudio().join(APPS[0].1)).unwrap();
    let engine = stage.backend.engine();
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o444)).unwrap();
    stage
        .run(&["--sizes", "512,4096", "--runs", "1"])
        .exits(1)
        .says(&format!("{NAME} is not benchmarked: "))
        .says("is read-only; allow writing")
        .says("there is no backend that can be set");
}

/// Says that everything is equally fast, and dies at 8192.
struct Crashes(Arc<Mutex<Vec<(u64, u64)>>>);

impl Engine for Crashes {
    fn prefill(&mut self, chunk: u64, tokens: u64, _: OnProgress<'_>) -> anyhow::Result<Run> {
        self.0.lock().unwrap().push((chunk, tokens));
        anyhow::ensure!(chunk != 8192 || tokens == chunk, "out of memory");
        Ok(Run {
            prompt_tokens: tokens,
            tokens_per_second: 100.0,
            ..Run::default()
        })
    }
}

#[test]
fn after_a_crash_every_size_is_warmed_up_again() {
    let calls = Arc::default();
    let benchmark = Benchmark {
        engine: Box::new(Crashes(Arc::clone(&calls))),
        guard: None,
        results: Results {
            api: "direct",
            prompt_tokens: 16_384,
            runs_per_size: 2,
            ..Results::new([Some(4096), Some(8192)])
        },
        template: 0,
        bar: ProgressBar::hidden(),
    };
    let output = Output {
        is_quiet: true,
        is_verbose: false,
    };
    let (known, _results) = mpsc::channel();
    benchmark.run(Duration::MAX, output, &known).unwrap();
    let expected = [
        (4096, 1536),
        (4096, 4096),
        (4096, 16_384),
        (8192, 8192),
        (8192, 16_384),
    ];
    assert_eq!(calls.lock().unwrap()[..], expected);
}

#[test]
fn a_size_that_does_not_take_effect_is_told() {
    let stage = stage().odd(|odd| odd.stuck_at = Some(2048));
    let before = stage.before();
    let results = stage.json(&["--sizes", "512,4096", "--runs", "1"], 1);
    failed(&results, 0, "it did not take effect: the engine used 2048");
    assert_eq!(results["verdict"]["keep"], NONE);
    stage.is_as(&before);
}

#[test]
fn a_size_that_fails_is_a_row_and_the_rest_unharmed() {
    for (change, why) in [
        (
            Box::new(|odd: &mut Odd| odd.out_of_memory_above = Some(2048))
                as Box<dyn FnOnce(&mut Odd)>,
            "out of memory",
        ),
        (
            Box::new(|odd: &mut Odd| odd.breaks_off_from = Some(4096)),
            "broke off before the first token",
        ),
        (
            Box::new(|odd: &mut Odd| odd.silent_from = Some(4096)),
            "said nothing for 1 seconds",
        ),
        (
            Box::new(|odd: &mut Odd| odd.fits.extend([(4096, 6144)])),
            "a context of 6144 at this size",
        ),
    ] {
        let stage = stage().odd(change);
        let before = stage.before();
        let results = stage.json(
            &["--sizes", "512,2048,4096", "--runs", "1", "--timeout", "1"],
            1,
        );
        failed(&results, 2, why);
        assert_eq!(results["verdict"]["keep"], 512, "{results:#}");
        let reason = results["verdict"]["reason"].as_str().unwrap();
        assert!(
            reason.starts_with("of the sizes that could be measured, 512"),
            "{reason}"
        );
        stage.is_as(&before);
    }
}

#[test]
fn after_a_load_that_failed_no_other_size_is_measured_in_its_place() {
    // The first two are too close to call, so one of them runs again after the third has failed.
    let stage = stage()
        .pace(&[(4096, 100), (2048, 101)])
        .odd(|odd| odd.tells_seconds = true);
    stage.fake.state().odd.fits.extend([(1024, 6144)]);
    let results = stage.json(&["--sizes", "1024,2048,4096", "--runs", "2"], 1);
    failed(&results, 0, "a context of 6144 at this size");
    assert_eq!(
        column(&results, "observed_chunk"),
        [NONE, 2048.into(), 4096.into()]
    );
    for (row, pace) in rows(&results)[1..].iter().zip([101.0, 100.0]) {
        for run in row["runs"].as_array().unwrap() {
            let speed = run["tokens_per_second"].as_f64().unwrap();
            assert!((speed * pace / 1e6 - 1.0).abs() < 1e-9, "{row:#}");
        }
    }
    assert_eq!(results["verdict"]["keep"], 2048, "{results:#}");
}

#[test]
fn a_model_that_comes_back_otherwise_is_told() {
    let stage = stage().odd(|odd| odd.fits.extend([(2048, 9000)]));
    let ran = stage.run(&["--sizes", "512,4096", "--runs", "1"]).exits(1);
    let why = "qwen/tiny is not as it was: context length 9000 instead of 65536";
    ran.says(why);
    // In the JSON, too, which is printed when all is done.
    let stage = self::stage().odd(|odd| odd.fits.extend([(2048, 9000)]));
    let results = stage.json(&["--sizes", "512,4096", "--runs", "1"], 1);
    assert_eq!(results["error"], why);
}

#[test]
fn where_no_size_could_be_set_nothing_is_measured() {
    let stage = stage();
    let engine = stage.backend.engine();
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o444)).unwrap();
    let results = stage.json(&["--sizes", "512,2048,4096"], 1);
    let error = results["error"].as_str().unwrap();
    assert!(error.contains("is selected but cannot be set: "), "{error}");
    assert_eq!(error.matches("is read-only; allow writing").count(), 1);
    let fake = stage.fake.state();
    assert_eq!((fake.chats.len(), fake.lms.len()), (0, 0));
}

#[test]
fn a_backend_that_is_gone_is_told() {
    let stage = stage().odd(|odd| odd.tells_seconds = true);
    let output = Output {
        is_quiet: true,
        is_verbose: false,
    };
    let args = bench_args(&["--sizes", "4096", "--reload", "true"]);
    let results = Results::new([Some(4096)]);
    let home = stage.env.lmstudio();
    let (lock, backends) = (lock(&home).unwrap(), survey(&home, &[]).unwrap().backends);
    let guard = Guard::new(&home, lock, backends, &args, &results, None, output).unwrap();
    guard.begin().unwrap();
    guard.switch_to(4096).unwrap();
    fs::rename(&stage.backend.root, stage.env.user().join("elsewhere")).unwrap();
    for keep in [None, Some(512)] {
        let why = guard.finish_files(keep).unwrap_err();
        let why = format!("{why:#}");
        assert_eq!(why, format!("sizes not restored: {NAME}: it is gone"));
    }
    // Its disk was away: the way back is known when it is there again.
    drop(guard);
    // What other tests start has the lock's file, too, until it is another program.
    until("the lock is free", || {
        Lock::try_take(&home).unwrap().is_some()
    });
    assert_eq!(interrupted(&home), None);
    // Neither is it forgotten over another benchmark, of what is there.
    let other = usual_backend(&home, "app-mlx-generate-mac14-arm64@33");
    stage
        .run(&["--sizes", "512,2048", "--reload", "true"])
        .says("512 failed: it did not take effect")
        .says("one size was measured, so there is nothing to compare it with.")
        .says("Every backend is as it was.");
    fs::remove_dir_all(other.root).unwrap();
    fs::rename(stage.env.user().join("elsewhere"), &stage.backend.root).unwrap();
    until("the lock is free", || interrupted(&home).is_some());
    assert_eq!(interrupted(&home).as_deref(), Some("`lmpatch --revert`"));
    for arguments in [&[][..], &["--sizes", "512,2048"]] {
        stage
            .run(arguments)
            .exits(1)
            .says("first restore the sizes: `lmpatch --revert`");
    }
}

#[test]
fn the_budget_also_ends_runs_that_take_no_time() {
    let stage = stage().pace(&[(2048, 1)]);
    let ran = stage.run(&[
        "--runs",
        "1000",
        "--prompt-tokens",
        "4096",
        "--budget",
        "0.02",
    ]);
    ran.exits(0)
        .says("The budget ran out before the verdict was settled.");
}

#[test]
fn errors_are_told_as_what_they_are() {
    for has_v1 in [true, false] {
        let run = |change: fn(&mut Odd)| {
            let stage = stage().odd(change);
            stage.fake.state().has_v1 = has_v1;
            stage.run(&["--model", MODEL]).exits(1)
        };
        run(|odd| odd.error = Some("Model unloaded.")).says("Model unloaded.");
        run(|odd| odd.other_model = Some("gemma"))
            .says("the model that answered is gemma, not qwen/tiny");
        run(|odd| odd.has_no_usage = true).says("did not report the prompt's token count");
    }
    let token = stage();
    token.fake.state().token = Some("secret".to_owned());
    token.run(&[]).exits(1).says("set LM_API_TOKEN");
    token.run(&["--token", "secret"]).exits(2);
    Ran::of(
        &token
            .command(&[])
            .env("LM_API_TOKEN", "secret\n")
            .output()
            .unwrap(),
    )
    .exits(0);
    token
        .env
        .run(["bench", "--url", "http://127.0.0.1:1"])
        .exits(1)
        .says("lms server start");
}

#[test]
fn cached_and_disturbed_runs_do_not_count() {
    let stage = stage().odd(|odd| (odd.always_hits, odd.tells_seconds) = (true, true));
    let results = stage.json(&[], 1);
    failed(
        &results,
        0,
        "3 runs do not count: its beginning came out of the prompt cache",
    );
    assert_eq!(column(&results, "median_tokens_per_second"), [NONE]);
    let openai = self::stage().odd(|odd| odd.always_hits = true);
    openai.fake.state().has_v1 = false;
    let why = "a part of it came out of the prompt cache";
    failed(&openai.json(&["--model", MODEL], 1), 0, why);
    // A probe and a warm-up, and then another client loads the model too.
    let meddled = |count, meddle: Meddle, sizes: &[&str], code| {
        let stage = self::stage().odd(|odd| odd.meddles = Some((count, meddle)));
        let before = snapshot(&stage.env.lmstudio());
        let csv = stage.env.user().join("o.csv");
        let more = ["--runs", "1", "--output", csv.to_str().unwrap()];
        let results = stage.json(&[sizes, &more].concat(), code);
        let csv = fs::read_to_string(csv).unwrap();
        let row: Vec<_> = csv.lines().nth(1).unwrap().split(',').collect();
        let runs = rows(&results)[0]["runs"].as_array().unwrap();
        let valid = runs.iter().filter(|run| run["ignored"] == NONE).count();
        assert_eq!(row[4], valid.to_string(), "{csv}");
        assert_eq!(snapshot(&stage.env.lmstudio()), before);
        results
    };
    let (sweep, as_it_is) = (&["--sizes", "2048"][..], &[][..]);
    let too = |state: &mut State| {
        load(state, MODEL, "qwen/tiny:2".to_owned(), 8192);
    };
    let why = "something else loaded the model too, as qwen/tiny:2";
    failed(&meddled(2, too, sweep, 1), 0, why);
    let otherwise = |state: &mut State| state.models[0].loaded[0].context = 9999;
    let why = "something else loaded the model again, with another context";
    let results = meddled(2, otherwise, sweep, 0);
    // One run that is disturbed does not count; the model is loaded again, and the next one does.
    let ignored = |results: &Value, why: &str| {
        let runs = rows(results)[0]["runs"].as_array().unwrap();
        let whys: Vec<_> = runs.iter().map(|run| run["ignored"].clone()).collect();
        assert_eq!(whys, [why.into(), NONE], "{results:#}");
    };
    ignored(&results, why);
    let uses = |state: &mut State| state.odd.busy_looks = 25;
    ignored(&meddled(3, uses, sweep, 0), "something else uses the model");
    let unloads = |state: &mut State| state.models[0].loaded.clear();
    let why = "LM Studio loaded the model first";
    ignored(&meddled(2, unloads, as_it_is, 0), why);
    let why = "something else unloaded qwen/tiny";
    ignored(&meddled(3, unloads, sweep, 0), why);
}

#[test]
fn the_model_is_resolved_before_anything_is_touched() {
    let stage = stage();
    stage.fake.load("llama/tiny", "gguf", 8192);
    let before = stage.before();
    stage
        .run(&["--model", "no/such", "--sizes", "512"])
        .exits(1)
        .says("has no MLX model no/such")
        .says(MODEL);
    stage
        .run(&["--model", "llama/tiny", "--sizes", "512"])
        .exits(1)
        .says("has no MLX model llama/tiny; its MLX models are: qwen/tiny");
    stage
        .run(&["--backend", "no*", "--sizes", "512"])
        .exits(1)
        .says(&format!("{NAME} is selected, but --backend omits it"));
    stage.fake.load("gemma/tiny", "mlx", 8192);
    stage
        .run(&["--sizes", "512"])
        .exits(1)
        .says("several MLX models are loaded: qwen/tiny, gemma/tiny");
    stage.fake.state().models[2].loaded.clear();
    stage
        .run(&["--model", "gemma/tiny"])
        .exits(1)
        .says("lms load 'gemma/tiny' --context-length");
    stage.is_as(&before);
    assert!(stage.fake.state().chats.is_empty());
    // By identifier; identifier, context, parallelism and TTL come back.
    stage.fake.state().models[0].loaded[0].id = "mine".to_owned();
    let before = stage.fake.loaded();
    stage.json(
        &["--model", "mine", "--sizes", "512,2048", "--runs", "1"],
        0,
    );
    assert_eq!(stage.fake.loaded(), before);
    // And by key.
    stage.json(&["--model", MODEL, "--runs", "1"], 0);
}

#[test]
fn a_context_that_is_too_small_is_made_larger_for_the_sweep() {
    let stage = stage();
    stage.fake.state().models[0].loaded[0].context = 4096;
    let before = stage.before();
    let sizes = ["--sizes", "512,2048", "--runs", "1"];
    let ran = stage.run(&[&sizes[..], &["--backend", "*@34"]].concat());
    ran.exits(0)
        .says("has a context of 4096; it is loaded with 8960 while it is measured")
        .says("`lmpatch 512 --backend '*@34' --reload` sets it.");
    stage.is_as(&before);
    stage
        .run(&["--runs", "1"])
        .exits(1)
        .says("prompts need a context of 8960, the model has 4096")
        .says("with --sizes, lmpatch raises it and then restores it");
    stage
        .run(&["--sizes", "131072"])
        .exits(1)
        .says("the model has 262144; give fewer --prompt-tokens or smaller --sizes");
    stage.fake.state().odd.hides_context = true;
    stage
        .run(&["--prompt-tokens", "300000"])
        .exits(1)
        .says("the model has 262144; give fewer --prompt-tokens or smaller --sizes");
    stage
        .run(&["--sizes", "8192", "--prompt-tokens", "10000"])
        .exits(1)
        .says("at least 16384");
}

#[test]
fn what_cannot_work_is_said_once_before_the_first_prompt() {
    let stage = stage();
    let nowhere = stage.env.user().join("nowhere");
    for flag in ["--sizes=512,2048", "--apply-best"] {
        let ran = stage.run(&["--sizes", "4096", flag, "--home", nowhere.to_str().unwrap()]);
        assert_eq!(
            ran.stderr
                .lines()
                .filter(|line| line.starts_with("error"))
                .count(),
            1,
            "{ran:?}"
        );
        ran.says("nowhere");
    }
    let homeless = Env::new();
    let python = homeless.user().join("python");
    executable(&python, "touch started");
    let python = python.to_str().unwrap();
    let arguments = ["bench", "--direct", "--model", ".", "--python", python];
    let sizes = ["--sizes", "512,2048"];
    let apply = [&arguments[..], &sizes, &["--apply-best"]].concat();
    homeless.run(apply).exits(1).says(".lmstudio is not there");
    assert!(!homeless.user().join("started").exists());
    homeless
        .run([&arguments[..], &sizes].concat())
        .exits(1)
        .says("it said nothing");
    assert!(homeless.user().join("started").exists());
    // Without a home there is a verdict, and nothing to set it in.
    executable(Path::new(python), MADE_UP_PYTHON);
    homeless
        .run([&arguments[..], &sizes].concat())
        .exits(0)
        .says("Verdict: 512 is the fastest")
        .says_nothing_of("sets it");
    // `lms` would start LM Studio, whose server this is not.
    stage.fake.state().has_v1 = false;
    stage
        .run(&["--model", MODEL, "--sizes", "512,2048"])
        .exits(1)
        .says("this server cannot load a model again; give --reload a command that does");
    assert!(stage.fake.state().lms.is_empty());
    stage.fake.state().has_v1 = true;
    fs::remove_file(stage.env.lmstudio().join("bin/lms")).unwrap();
    let ran = stage
        .run(&["--sizes", "512,2048"])
        .exits(1)
        .says("bin/lms is not there");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    fs::write(stage.backend.engine(), engine_since_2026("2 * 1024")).unwrap();
    stage
        .run(&["--sizes", "512,2048"])
        .exits(1)
        .says("is selected but cannot be set");
    let output = stage.env.user().join("no/such.json");
    stage
        .run(&["--output", output.to_str().unwrap()])
        .exits(1)
        .says("cannot write");
    let output = stage.env.user().join("directory.json");
    fs::create_dir(&output).unwrap();
    stage
        .run(&["--output", output.to_str().unwrap()])
        .exits(1)
        .says("directory.json is not a file");
    assert!(stage.fake.state().chats.is_empty());
}

#[test]
fn the_best_is_set_and_what_was_really_set_is_said() {
    let stage = stage();
    let older = "app-mlx-generate-mac14-arm64@33";
    usual_backend(&stage.env.lmstudio(), older).with_engine(engine_since_2026("2 * 1024"));
    let read_only = usual_backend(&stage.env.lmstudio(), "app-mlx-generate-mac14-arm64@32");
    fs::set_permissions(read_only.engine(), fs::Permissions::from_mode(0o444)).unwrap();
    let ran = stage
        .run(&["--sizes", "512,2048", "--runs", "1", "--apply-best"])
        .exits(0);
    ran.says("@33 is not benchmarked")
        .says("@32 is not benchmarked")
        .says(&format!("512 is set in {NAME}."));
    stage
        .env
        .run(["--check"])
        .exits(1)
        .says_nothing_of("interrupted");
    assert_eq!(
        (stage.chunk(), stage.fake.loaded()[0].chunk),
        (Some(512), 512)
    );
}

#[test]
fn every_backend_gets_its_own_bytes_back_and_others_are_told_that_a_benchmark_runs() {
    let stage = stage().pace(&[(2048, 800)]);
    usual_backend(&stage.env.lmstudio(), "app-mlx-generate-mac14-arm64@31")
        .with_engine(engine_since_2026("1_234"));
    let before = stage.before();
    let child = stage.start(&["--sizes", "512,2048", "--runs", "1"]);
    until("a prompt is being measured", || {
        !stage.fake.state().chats.is_empty()
    });
    let other = stage.env.run(["512"]).exits(1);
    other.says("a benchmark is running; wait for it");
    // Two benchmarks at a time would measure each other.
    stage.run(&[]).exits(1).says("a benchmark is running");
    stage
        .env
        .run(["--check"])
        .exits(0)
        .says_nothing_of("interrupted");
    Ran::of(&child.wait_with_output().unwrap())
        .exits(0)
        .says("Every backend is as it was.");
    stage.is_as(&before);
}

#[test]
fn signals_put_everything_back_within_a_second_also_while_the_server_is_silent() {
    for name in ["-INT", "-TERM", "-HUP"] {
        // What a busy machine adds is not lmpatch's: one of three is enough.
        let mut attempts = (0..3).map(|_| {
            let stage = stage().odd(|odd| odd.silent_from = Some(512));
            let before = stage.before();
            let child = stage.start(&["--sizes", "512,1024", "--runs", "1"]);
            until("a size is being measured", || {
                stage.fake.state().chats.len() == 3
            });
            signal(&child, name);
            let sent = Instant::now();
            until("the files are back", || stage.chunk() == Some(2048));
            let taken = sent.elapsed();
            assert_eq!(stage.whole(), [0; 0], "the server is silent still");
            Ran::of(&child.wait_with_output().unwrap())
                .exits(1)
                .says("stopped")
                .says("Every backend is as it was.");
            stage.is_as(&before);
            taken
        });
        assert!(
            attempts.any(|taken| taken < Duration::from_secs(1)),
            "{name}"
        );
    }
}

#[test]
fn a_second_signal_ends_it_after_the_files() {
    let stage = stage().odd(|odd| odd.load_hangs = true);
    let before = snapshot(&stage.env.lmstudio());
    let mut child = stage.start(&["--sizes", "512,1024", "--json"]);
    until("a load hangs", || {
        stage.fake.state().lms.iter().any(|call| call[0] == "load")
    });
    signal(&child, "-INT");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Waiting for the load that is under way …") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    assert_eq!(stage.chunk(), Some(2048), "the files are back");
    signal(&child, "-INT");
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    let results: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    let error =
        "stopped before the verdict was settled; stopped before the model was loaded as it was";
    assert_eq!(results["error"], error);
    let stopped = "stopped before the model was loaded as it was; `lms ps` shows what is loaded";
    assert!(said.contains(stopped), "{said}");
    assert_eq!(
        differences(&before, &snapshot(&stage.env.lmstudio())),
        Vec::<String>::new()
    );
}

#[test]
fn signals_also_end_the_last_load() {
    let stage = stage();
    let mut child = stage.start(&["--sizes", "512,4096", "--runs", "1", "--json"]);
    until("the second size is loaded", || {
        let fake = stage.fake.state();
        fake.prefills.iter().any(|prefill| prefill.chunk == 512)
    });
    stage.fake.state().odd.load_hangs = true;
    until("the last load hangs", || {
        let fake = stage.fake.state();
        fake.lms.iter().filter(|call| call[0] == "load").count() == 3
    });
    assert_eq!(stage.chunk(), Some(2048), "the files are back");
    stage
        .env
        .run(["4096"])
        .exits(1)
        .says("wait for that lmpatch, which may be loading models");
    // Two that come together count as one.
    until("signals end it", || {
        signal(&child, "-INT");
        child.try_wait().unwrap().is_some()
    });
    let ran = Ran::of(&child.wait_with_output().unwrap())
        .exits(1)
        .says("A model is being loaded; press Ctrl-C again to stop without it.")
        .says("stopped before the model was loaded as it was; `lms ps` shows what is loaded");
    let results: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(column(&results, "size"), [512, 4096]);
    let error = "stopped before the model was loaded as it was";
    assert_eq!(results["error"], error);
    assert_eq!(results["verdict"]["keep"], 512);
}

#[test]
fn a_signal_before_a_size_is_set_leaves_nothing() {
    let stage = stage().odd(|odd| odd.silent_from = Some(512));
    let before = stage.before();
    let child = stage.start(&["--sizes", "512,1024"]);
    until("the probe is silent", || {
        stage.fake.state().chats.len() == 1
    });
    let marker = stage.env.lmstudio().join(MARKER);
    assert!(marker.exists());
    signal(&child, "-INT");
    Ran::of(&child.wait_with_output().unwrap())
        .exits(1)
        .says("stopped before the verdict was settled")
        .says("Every backend is as it was.");
    assert!(!marker.exists());
    stage.is_as(&before);
}

#[test]
fn models_come_back_also_where_lms_fails_for_a_while() {
    let stage = stage().odd(|odd| odd.failing_looks = 25);
    let before = stage.before();
    stage
        .run(&["--sizes", "512,4096", "--runs", "1"])
        .exits(0)
        .says("qwen/tiny is loaded again.");
    assert_eq!(stage.fake.state().odd.failing_looks, 0);
    stage.is_as(&before);
}

#[test]
fn where_nothing_can_be_printed_the_model_comes_back_all_the_same() {
    let stage = stage();
    let before = stage.before();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = stage.command(&["--sizes", "512,4096", "--runs", "1"]);
    let ran = Ran::of(&command.stdout(full).output().unwrap());
    ran.exits(1)
        .says("cannot write to stdout")
        .says("Verdict: ");
    stage.is_as(&before);
}

#[test]
fn files_that_could_not_be_restored_are_told_with_the_results() {
    let stage = stage().pace(&[(2048, 200)]);
    let child = stage.start(&["--sizes", "512,2048", "--runs", "1", "--json"]);
    until("a size is set", || stage.chunk() == Some(512));
    let engine = stage.backend.engine();
    let text = fs::read_to_string(&engine).unwrap();
    fs::write(&engine, text + "# by another hand\n").unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap()).exits(1);
    let results: Value = serde_json::from_str(&ran.stdout).unwrap();
    let error = results["error"].as_str().unwrap();
    assert!(error.starts_with("sizes not restored: "), "{error}");
    assert!(
        error.ends_with("`lmpatch --revert` restores them"),
        "{error}"
    );
    ran.says("error: sizes not restored")
        .says_nothing_of("as it was.");
}

#[test]
fn after_a_kill_the_way_back_is_known() {
    let stage = stage().odd(|odd| odd.silent_from = Some(512));
    let before = snapshot(&stage.env.lmstudio());
    let mut child = stage.start(&["--sizes", "512,1024"]);
    until("a size is set", || stage.chunk() == Some(1024));
    signal(&child, "-KILL");
    child.wait().unwrap();
    // A program that it was just starting may have the lock for a moment longer.
    until("the lock is free", || {
        interrupted(&stage.env.lmstudio()).is_some()
    });
    assert_eq!(
        interrupted(&stage.env.lmstudio()).as_deref(),
        Some("`lmpatch --revert`")
    );
    let again = stage.run(&["--sizes", "512,1024"]).exits(1);
    again.says("a benchmark was interrupted; first restore the sizes: `lmpatch --revert`");
    let home = stage.env.lmstudio();
    let results = stage.json(&["--sizes", "512", "--home", home.to_str().unwrap()], 1);
    let advised = format!("`lmpatch --home '{}' --revert`", home.display());
    assert!(
        results["error"].as_str().unwrap().contains(&advised),
        "{results:#}"
    );
    let ran = stage.env.run(["--check"]).exits(0);
    ran.says("a benchmark was interrupted")
        .says("`lmpatch --revert` restores them");
    stage.env.run(["--revert"]).exits(0);
    assert_eq!(stage.chunk(), Some(2048));
    let left = differences(&before, &snapshot(&stage.env.lmstudio()));
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_budget_that_is_over_at_once_has_measured_nothing() {
    let stage = stage().odd(|odd| odd.silent_from = Some(2048));
    let ran = stage.run(&["--budget", "0.005", "--quiet"]).exits(1);
    ran.says("the budget ran out before anything was measured");
}

#[test]
fn a_panic_puts_everything_back() {
    let stage = stage();
    let before = stage.before();
    let output = Output {
        is_quiet: true,
        is_verbose: false,
    };
    let home = stage.env.lmstudio();
    let args = bench_args(&["--sizes", "4096"]);
    let results = Results {
        model: MODEL.to_owned(),
        prompt_tokens: 8192,
        api: "v1",
        ..Results::new([Some(4096)])
    };
    let (lock, backends) = (lock(&home).unwrap(), survey(&home, &[]).unwrap().backends);
    let guard = Guard::new(&home, lock, backends, &args, &results, None, output).unwrap();
    let guard = Arc::new(guard);
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            let _restores = OnPanic(Some(guard.clone()));
            guard.switch_to(4096).unwrap();
            assert_eq!(
                (stage.chunk(), stage.fake.loaded()[0].chunk),
                (Some(4096), 4096)
            );
            panic!("on purpose");
        });
        assert!(measuring.join().is_err());
    });
    stage.is_as(&before);
    assert!(guard.switch_to(4096).is_err(), "nothing is set any more");
    assert!(guard.begin().is_err(), "nor said to be set");
    stage.is_as(&before);
    // The release build unwinds too.
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(!manifest.contains("panic = \"abort\""));
}

/// Measures one size, and panics at the next.
struct Panics;

impl Engine for Panics {
    fn prefill(&mut self, chunk: u64, tokens: u64, _: OnProgress<'_>) -> anyhow::Result<Run> {
        assert_ne!(chunk, 2048, "on purpose");
        Ok(Run {
            prompt_tokens: tokens,
            tokens_per_second: 100.0,
            ..Run::default()
        })
    }
}

#[test]
fn a_panic_of_what_measures_is_an_end_like_any_other() {
    let benchmark = Benchmark {
        engine: Box::new(Panics),
        guard: None,
        results: Results {
            prompt_tokens: 8192,
            runs_per_size: 1,
            ..Results::new([Some(2048), Some(4096)])
        },
        template: 0,
        bar: ProgressBar::hidden(),
    };
    let args = bench_args(&["--sizes", "2048,4096"]);
    let mut signals = Signals::new::<_, i32>([]).unwrap();
    let output = Output {
        is_quiet: true,
        is_verbose: false,
    };
    let (results, is_stopped) = supervise(benchmark, Instant::now(), &args, &mut signals, &output);
    let error = "lmpatch itself failed; please report this";
    assert_eq!((results.error.as_deref(), is_stopped), (Some(error), false));
    let sizes: Vec<_> = results.rows.iter().map(|row| row.size).collect();
    assert_eq!(sizes, [Some(4096)], "what was known is still known");
}

#[test]
fn where_the_way_back_cannot_be_written_nothing_is_set() {
    let stage = stage();
    let marker = stage.env.lmstudio().join(MARKER);
    fs::create_dir_all(marker.join("in-the-way")).unwrap();
    let before = stage.before();
    let results = stage.json(&["--sizes", "512,2048"], 1);
    let why = results["error"].as_str().unwrap();
    assert!(why.starts_with("cannot write beside the backends"), "{why}");
    assert!(stage.fake.state().chats.is_empty());
    stage.is_as(&before);
    assert!(stage.fake.state().lms.iter().all(|call| call[0] == "ps"));
}

#[test]
fn the_port_is_the_one_in_the_settings_if_it_can_be_one() {
    let stage = stage();
    let settings = stage
        .env
        .lmstudio()
        .join(".internal/http-server-config.json");
    let bench = |port: &str| {
        fs::write(&settings, format!("{{\"port\": {port}}}")).unwrap();
        stage.env.run(["bench"])
    };
    let url = stage.fake.url();
    bench(url.rsplit(':').next().unwrap()).exits(0);
    for odd in ["0", "65536", "-1", "\"1234\"", "null"] {
        bench(odd)
            .exits(1)
            .says("no server answers at http://127.0.0.1:1234 ");
    }
}

#[test]
fn a_budget_ends_it_in_time_with_what_is_known() {
    // The warm-up at 1024 alone would take twenty seconds.
    let stage = stage().pace(&[(4096, 40), (2048, 20), (1024, 20_000)]);
    let before = stage.before();
    let sizes = ["--sizes", "1024,1024,2048,4096", "--runs", "1"];
    let ran = stage.run(&[&sizes[..], &["--budget", "0.2"]].concat());
    ran.says("about 1 min of prefill at most")
        .says("The budget ran out before these were measured: 1024.");
    assert!(
        stage
            .fake
            .state()
            .prefills
            .iter()
            .all(|prefill| prefill.chunk != 1024)
    );
    stage.is_as(&before);
}

#[test]
fn exports_are_there_in_every_format() {
    let stage = stage();
    let path = |name: &str| stage.env.user().join(name).to_str().unwrap().to_owned();
    let paths = ["o.json", "o.csv", "o.md", "o.svg"].map(path);
    let mut more = vec!["--sizes", "512,2048", "--runs", "1"];
    more.extend(paths.iter().flat_map(|path| ["--output", path]));
    let ran = stage
        .run(&more)
        .exits(0)
        .shows("████")
        .shows("2048 (stock)");
    assert_eq!(ran.stdout.lines().count(), 3);
    let text = |index: usize| fs::read_to_string(&paths[index]).unwrap();
    let results: Value = serde_json::from_str(&text(0)).unwrap();
    assert_eq!((&results["schema"], rows(&results).len()), (&4.into(), 2));
    let csv = text(1);
    assert_eq!(
        (
            csv.lines().count(),
            csv.lines().next().unwrap().split(',').count()
        ),
        (3, 15)
    );
    assert!(
        csv.lines().nth(1).unwrap().starts_with("512,99999.9"),
        "{csv}"
    );
    assert!(
        text(2).contains("| 2048 (stock) |") && text(2).contains("- Verdict: 512 is the fastest")
    );
    let svg = text(3);
    assert!(
        svg.contains("prefers-color-scheme:dark")
            && svg.matches("<rect class=\"keep\"").count() == 1
    );
    stage
        .run(&["--output", &path("o.txt")])
        .exits(2)
        .says(".json, .csv, .md or .svg");
}

#[test]
fn a_prompt_file_is_used_over_and_over() {
    let stage = stage();
    let file = stage.env.user().join("prompt.txt");
    fs::write(&file, "Grüße, ").unwrap();
    stage
        .run(&["--prompt-file", file.to_str().unwrap(), "--runs", "1"])
        .exits(0);
    let prompt = stage.fake.state().prefills.last().unwrap().prompt.clone();
    assert!(prompt.ends_with("Grüße") || prompt.contains("Grüße, Grüße"));
    stage
        .run(&["--prompt-file", "/no/such"])
        .exits(1)
        .says("/no/such is not there");
}

#[test]
fn a_command_reloads_where_it_is_asked_for() {
    let stage = stage();
    let results = stage.json(
        &["--sizes", "512,2048", "--reload", "echo no luck >&2; false"],
        1,
    );
    failed(&results, 0, "no luck");
    failed(&results, 1, "no luck");
    assert_eq!(stage.chunk(), Some(2048));
}

#[test]
fn what_a_command_leaves_running_is_not_waited_for() {
    let stage = stage();
    let (alive, ended) = (
        stage.env.user().join("alive"),
        stage.env.user().join("ended"),
    );
    fs::write(&alive, "").unwrap();
    let server = format!(
        "(n=0; while [ -e '{}' ] && [ $((n += 1)) -lt 240 ]; do sleep 0.5; done; : > '{}') &",
        alive.display(),
        ended.display()
    );
    stage.json(&["--sizes", "512", "--reload", &server], 1);
    assert!(!ended.exists());
    fs::remove_file(alive).unwrap();
}

#[test]
fn a_direct_crash_is_a_row_and_a_new_process_goes_on() {
    let env = Env::with_fixture();
    let python = env.user().join("python");
    executable(&python, MADE_UP_PYTHON);
    let arguments = [
        "bench",
        "--direct",
        "--model",
        ".",
        "--python",
        python.to_str().unwrap(),
        "--prompt-tokens",
        "10000",
    ];
    let before = snapshot(&env.lmstudio());
    let mut command =
        env.command(
            arguments
                .iter()
                .chain(&["--sizes", "512,4096,1024,2048,3000", "--json"]),
        );
    let ran = Ran::of(&command.output().unwrap()).exits(1);
    let results: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(column(&results, "size"), [512, 1024, 2048, 3000, 4096]);
    failed(&results, 4, "SIGABRT");
    failed(&results, 4, "Insufficient Memory");
    failed(&results, 1, "ValueError: no");
    assert_eq!(rows(&results)[0]["observed_chunk"], 512);
    assert_eq!(rows(&results)[0]["peak_memory_bytes"], 512_000);
    assert_eq!(results["runtime"], "mlx-lm 0.0");
    assert_eq!(
        (&results["api"], &results["verdict"]["keep"]),
        (&"direct".into(), &512.into())
    );
    assert_eq!(snapshot(&env.lmstudio()), before);
    let python = Ran::of(
        &env.command([
            "bench",
            "--direct",
            "--model",
            ".",
            "--python",
            "/bin/false",
            "--sizes",
            "512",
        ])
        .output()
        .unwrap(),
    );
    python.exits(1).says("exit status: 1");
    env.run(
        arguments
            .iter()
            .chain(&["--sizes", "2048,512", "--apply-best"]),
    )
    .exits(0)
    .says("512 is set in")
    .says("; it takes effect when a model is next loaded.");
    env.run(["--check", "512"]).exits(0);
    // One process for all sizes until one crashes, and then another.
    let processes = fs::read_to_string(env.user().join("python.log")).unwrap();
    let processes: BTreeSet<_> = processes.lines().collect();
    assert_eq!(
        processes.len(),
        3,
        "two in the sweep with a crash, one in the other"
    );
    // What could not be set in the end is told in the beginning.
    env.run(["--revert"]).exits(0);
    let engine = BackendDir::new(&env.lmstudio(), NAME).engine();
    fs::set_permissions(&engine, fs::Permissions::from_mode(0o444)).unwrap();
    env.run(
        arguments
            .iter()
            .chain(&["--sizes", "2048,512", "--apply-best"]),
    )
    .exits(1)
    .says(&format!("{NAME} is selected but cannot be set: "))
    .says_nothing_of("512 is set in");
}

/// An mlx-lm that says which process it is in, and then never comes to a token.
const ENDLESS_MLX_LM: [(&str, &str); 3] = [
    (
        "mlx/core.py",
        "array = list\ndef eval(_): pass\ndef synchronize(): pass\n",
    ),
    (
        "mlx_lm/__init__.py",
        "class Tokenizer:\n    def encode(self, text): return [1]\ndef load(model): return None, Tokenizer()\n",
    ),
    (
        "mlx_lm/generate.py",
        "import os, time\ndef generate_step(tokens, model, max_tokens, prefill_step_size):\n    \
         with open('process.new', 'w') as file: file.write(str(os.getpid()))\n    \
         os.rename('process.new', 'process')\n    time.sleep(600)\n    yield 0, 0\n",
    ),
];

#[test]
fn a_python_that_does_not_answer_is_given_up() {
    let env = Env::new();
    let python = env.user().join("python");
    let text = env.user().join("text");
    // More than a pipe holds.
    fs::write(&text, "\u{6f22}".repeat(100_000)).unwrap();
    for (body, why) in [
        ("exec sleep 60", "said nothing for 1 seconds"),
        ("exec >&-; sleep 60", "closed its output"),
    ] {
        executable(&python, body);
        let arguments = [
            "bench",
            "--direct",
            "--model",
            ".",
            "--sizes",
            "512",
            "--timeout",
            "1",
        ];
        let files = [
            "--python",
            python.to_str().unwrap(),
            "--prompt-file",
            text.to_str().unwrap(),
        ];
        let start = Instant::now();
        env.run(arguments.iter().chain(&files)).exits(1).says(why);
        assert!(start.elapsed() < Duration::from_secs(50));
    }
}

#[test]
fn a_direct_process_ends_when_lmpatch_is_killed() {
    let env = Env::new();
    let packages = env.user().join("packages");
    for (path, text) in ENDLESS_MLX_LM {
        let path = packages.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let python = interpreter().to_str().unwrap();
    let arguments = ["bench", "--direct", "--model", ".", "--sizes", "512"];
    let mut command = env.command(arguments.iter().chain(&["--python", python]));
    let mut child = command.env("PYTHONPATH", &packages).spawn().unwrap();
    let process = env.user().join("process");
    until("a prefill has begun", || process.exists());
    let process = fs::read_to_string(process).unwrap();
    signal(&child, "-KILL");
    child.wait().unwrap();
    until("Python has ended", || {
        let mut kill = Command::new("kill");
        let asked = kill.args(["-0", &process]).stderr(Stdio::null()).status();
        !asked.unwrap().success()
    });
}

#[test]
fn an_early_failure_leaves_no_export() {
    let env = Env::with_fixture();
    let nobody = ["bench", "--url", "http://127.0.0.1:1"];
    env.run(nobody.iter().chain(&["--output", "x.json"]))
        .exits(1)
        .says("no server answers at http://127.0.0.1:1");
    assert!(!env.user().join("x.json").exists());
    let ran = env.run(nobody.iter().chain(&["--json"])).exits(1);
    let results: Value = serde_json::from_str(&ran.stdout).unwrap();
    let error = results["error"].as_str().unwrap();
    assert!(error.starts_with("no server answers"), "{results}");
    assert_eq!(results["lmpatch"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_result_is_a_table_and_a_verdict() {
    let stage = stage()
        .pace(&[(4096, 8), (512, 16)])
        .odd(|odd| odd.tells_seconds = true);
    let ran = stage
        .run(&["--sizes", "512,2048,4096", "--runs", "1"])
        .exits(0);
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
    let command = stage.command(&["--sizes", "512,4096", "--runs", "1"]);
    let Some(lines) = lines_on_terminal(&stage.env, &command) else {
        return;
    };
    let table: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("4096  "))
        .collect();
    let wide = lines.iter().filter(|line| line.chars().count() > 80);
    assert_eq!(wide.collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(table.iter().any(|row| row.contains('█')), "{lines:#?}");
}

#[test]
fn the_command_line_is_refused_where_it_makes_no_sense() {
    let env = Env::new();
    for arguments in [
        &["bench", "--direct", "--sizes", "512"][..],
        &["bench", "--model", "m", "--direct"],
        &["bench", "--apply-best"],
        &["bench", "--sizes", "1"],
        &["bench", "--sizes", "512", "--reload", "models"],
        &["bench", "--sizes", "512", "--reload=app"],
        &["bench", "--runs", "0"],
        &["bench", "--budget", "0"],
        &["bench", "--url", "https://x"],
        &["4096", "bench"],
    ] {
        env.run(arguments).exits(2);
    }
}
