//! Benchmarks against a fake LM Studio: true speeds, every failure a row, and every backend as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::home::{
    Layer, engine_since_2026, engine_with_constant, generate, runtime, select, usual_layer,
};
use support::server::{FakeLmStudio, Fault, Manner, Prefill, Speaks, chunk_on_disk};
use support::{Env, Ran, differences, snapshot};

const NAME: &str = "app-mlx-generate-mac14-arm64@34";
const MODEL: &str = "qwen/tiny";
const CHAT: &str = "/api/v1/chat";

/// A home with one stock 2048 backend in use, and a server that runs it.
struct Stage {
    env: Env,
    layer: Layer,
    fake: FakeLmStudio,
}

fn stage() -> Stage {
    let env = Env::new();
    let layer = usual_layer(&env.lmstudio(), NAME);
    runtime(&env.lmstudio(), "1.12.0", &[NAME]);
    select(&env.lmstudio(), "1.12.0");
    let fake = FakeLmStudio::start(&layer.engine());
    fake.add_model(MODEL, "mlx");
    fake.add_model("llama/tiny", "gguf");
    fake.load_now(MODEL, 65_536, 3);
    Stage { env, layer, fake }
}

impl Stage {
    fn with(self, change: impl FnOnce(&mut Manner)) -> Self {
        change(&mut self.fake.state().manner);
        self
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let mut all = vec![
            "bench".to_owned(),
            "--model".to_owned(),
            MODEL.to_owned(),
            "--url".to_owned(),
            self.fake.url(),
        ];
        if !more.contains(&"--prompt-tokens") && !more.contains(&"--prompt-file") {
            all.extend(["--prompt-tokens".to_owned(), "10000".to_owned()]);
        }
        all.extend(more.iter().map(|more| (*more).to_owned()));
        all
    }

    fn run(&self, more: &[&str]) -> Ran {
        self.env.run(self.arguments(more))
    }

    fn json(&self, more: &[&str]) -> Value {
        self.env.json(self.arguments(more))
    }

    /// The prefills that are no probes.
    fn full(&self) -> Vec<Prefill> {
        self.fake
            .state()
            .prefills
            .iter()
            .filter(|prefill| prefill.tokens > 5000)
            .cloned()
            .collect()
    }
}

fn rows(record: &Value) -> &Vec<Value> {
    record["results"].as_array().unwrap()
}

fn column(record: &Value, name: &str) -> Vec<Value> {
    rows(record).iter().map(|row| row[name].clone()).collect()
}

#[track_caller]
fn within_one_percent(found: f64, truth: f64) {
    assert!(
        (found / truth - 1.0).abs() < 0.01,
        "{found} is not within 1 % of {truth}"
    );
}

/// Holds every run against what the fake itself knows.
#[track_caller]
fn speeds_are_true(stage: &Stage, record: &Value) {
    let truth = stage.full();
    let runs = rows(record)
        .iter()
        .flat_map(|row| row["runs"].as_array().unwrap());
    let mut count = 0;
    for run in runs {
        let tokens = run["prompt_tokens"].as_u64().unwrap();
        let speed = run["tokens_per_second"].as_f64().unwrap();
        let is_it = |prefill: &&Prefill| {
            let true_speed = f64::from(u32::try_from(tokens).unwrap()) / prefill.seconds;
            prefill.tokens == tokens && (speed / true_speed - 1.0).abs() < 0.01
        };
        assert!(
            truth.iter().any(|prefill| is_it(&prefill)),
            "{run} is none of {:?}",
            truth.iter().map(|p| p.seconds).collect::<Vec<_>>()
        );
        assert!(tokens.abs_diff(10_000) <= 100, "{run}");
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_sweep_sets_reloads_measures_and_puts_everything_back() {
    let stage = stage();
    let before = snapshot(&stage.env.lmstudio());
    let record = stage.json(&["--sizes", "512,2048,4096", "--runs", "2"]);
    assert_eq!(column(&record, "size"), [512, 2048, 4096]);
    assert_eq!(column(&record, "observed_chunk"), [512, 2048, 4096]);
    assert_eq!(column(&record, "observed_steps"), [20, 5, 3]);
    assert_eq!(
        column(&record, "failed"),
        [Value::Null, Value::Null, Value::Null],
        "{record}"
    );
    assert_eq!(
        (&record["stock"], &record["api"], &record["runtime"]),
        (&2048.into(), &"v1".into(), &"MLX 1.12.0".into())
    );
    assert_eq!(
        (&record["verdict"]["keep"], &record["verdict"]["is_stock"]),
        (&4096.into(), &false.into()),
        "{record}"
    );
    assert_eq!(rows(&record)[1]["times_stock"], 1.0);
    assert!(
        record["drift"].as_f64().unwrap().abs() < 0.05,
        "{}",
        record["drift"]
    );
    speeds_are_true(&stage, &record);
    // One warm-up and two runs of each, and of the first once more; all with a beginning of their own.
    let full = stage.full();
    assert_eq!(
        full.iter().map(|prefill| prefill.chunk).collect::<Vec<_>>(),
        [[512; 3], [2048; 3], [4096; 3], [512; 3]].concat()
    );
    assert!(full.iter().all(|prefill| prefill.cached == 0));
    assert_eq!(
        differences(&before, &snapshot(&stage.env.lmstudio())),
        Vec::<String>::new()
    );
    let instances = stage.fake.instances();
    assert_eq!(instances.len(), 1);
    assert_eq!(
        (
            instances[0].context_length,
            instances[0].parallel,
            instances[0].chunk
        ),
        (65_536, 3, Some(2048))
    );
}

#[test]
fn requests_ask_for_one_token_nothing_random_and_nothing_stored() {
    for (speaks, path, limit) in [
        (Speaks::V1, CHAT, "max_output_tokens"),
        (Speaks::V0, "/api/v0/chat/completions", "max_tokens"),
        (Speaks::OpenAi, "/v1/chat/completions", "max_tokens"),
    ] {
        let stage = stage();
        stage.fake.state().speaks = speaks;
        stage.run(&["--runs", "2"]).exits(0);
        let requests = stage.fake.state().requests.clone();
        let bodies: Vec<_> = requests
            .iter()
            .filter(|request| request.path == path)
            .map(|request| &request.body)
            .collect();
        assert_eq!(bodies.len(), 5, "{path}");
        assert!(
            bodies
                .iter()
                .all(|body| body[limit] == 1 && body["temperature"] == 0),
            "{path}"
        );
        assert!(
            speaks != Speaks::V1
                || bodies
                    .iter()
                    .all(|body| body["store"] == false && body["stream"] == true)
        );
        let text = |body: &&Value| {
            body["input"]
                .as_str()
                .or(body["messages"][0]["content"].as_str())
                .unwrap()
                .chars()
                .take(12)
                .collect::<String>()
        };
        assert_eq!(bodies.iter().map(text).collect::<BTreeSet<_>>().len(), 5);
    }
}

#[test]
fn every_interface_gives_the_true_speed_and_says_whose_clock_it_was() {
    for (speaks, api, source, observed) in [
        (Speaks::V1, "v1", "server", Value::from(2048)),
        (Speaks::V0, "v0", "server", Value::Null),
        (Speaks::OpenAi, "openai", "client", Value::from(2048)),
    ] {
        let stage = stage();
        stage.fake.state().speaks = speaks;
        stage.fake.state().pace.per_token = Duration::from_micros(150);
        let record = stage.json(&["--runs", "3"]);
        let row = &rows(&record)[0];
        assert_eq!(
            (&record["api"], &row["size"], &row["observed_chunk"]),
            (&api.into(), &2048.into(), &observed),
            "{record}"
        );
        assert!(
            row["runs"]
                .as_array()
                .unwrap()
                .iter()
                .all(|run| run["source"] == source),
            "{row}"
        );
        // The client's clock also has what a busy machine adds to a run; the median bears it.
        if source == "server" {
            speeds_are_true(&stage, &record);
        }
        let measured: Vec<_> = stage
            .full()
            .iter()
            .skip(1)
            .map(|prefill| prefill.seconds)
            .collect();
        let (least, most) = (
            measured.iter().copied().fold(9.0, f64::min),
            measured.iter().copied().fold(0.0, f64::max),
        );
        let speed = row["median_tokens_per_second"].as_f64().unwrap();
        let truth = row["runs"][0]["prompt_tokens"].as_f64().unwrap()
            / speed.clamp(10_000.0 / most, 10_000.0 / least);
        within_one_percent(row["median_prefill_seconds"].as_f64().unwrap(), truth);
    }
}

#[test]
fn one_run_shows_a_table_and_changes_nothing() {
    let stage = stage();
    let before = snapshot(&stage.env.lmstudio());
    let ran = stage
        .run(&["--runs", "1"])
        .exits(0)
        .shows("observed chunk")
        .shows("2048 (stock)");
    assert_eq!(ran.stdout.lines().count(), 2);
    assert_eq!(snapshot(&stage.env.lmstudio()), before);
    assert_eq!(stage.fake.instances()[0].chunk, Some(2048));
}

#[test]
fn every_kind_of_backend_gets_its_own_bytes_back() {
    let stage = stage();
    let home = stage.env.lmstudio();
    // Set before; a mix that no number describes, written in its own way; a number in unknown bytes; one that is refused.
    usual_layer(&home, "app-mlx-generate-mac14-arm64@30");
    stage.env.run(["3072", "--backend", "*@30"]).exits(0);
    usual_layer(&home, "app-mlx-generate-mac14-arm64@31")
        .with_generate(generate("4_096", "0x200", "1024"));
    Layer::new(&home, "app-mlx-generate-mac14-arm64@32").with_engine(engine_with_constant("1_234"));
    usual_layer(&home, "app-mlx-generate-mac14-arm64@33")
        .with_engine(engine_since_2026("2 * 1024"));
    let before = snapshot(&home);
    let ran = stage.run(&["--sizes", "512,4096", "--runs", "1"]).exits(0);
    ran.says("@33 is not part of the sweep")
        .says("Every backend is as it was.");
    assert_eq!(differences(&before, &snapshot(&home)), Vec::<String>::new());
}

#[test]
fn the_best_is_set_where_it_is_asked_for() {
    let stage = stage();
    stage
        .run(&["--sizes", "512,4096", "--runs", "1", "--apply-best"])
        .exits(0)
        .says("Verdict: 4096 is the fastest");
    assert_eq!(chunk_on_disk(&stage.layer.engine()), Some(4096));
    assert_eq!(stage.fake.instances()[0].chunk, Some(4096));
    stage.env.run(["--check", "4096"]).exits(0);
}

#[test]
fn a_size_that_does_not_fit_into_memory_is_a_row() {
    let stage = stage().with(|manner| manner.out_of_memory_above = Some(2048));
    let before = snapshot(&stage.env.lmstudio());
    let record = stage.json(&["--sizes", "4096,512,2048", "--runs", "1"]);
    assert!(
        rows(&record)[0]["failed"]
            .as_str()
            .unwrap()
            .contains("out of memory"),
        "{record}"
    );
    assert_eq!(
        (&rows(&record)[1]["failed"], &rows(&record)[2]["failed"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(record["verdict"]["keep"], 2048);
    assert!(
        record["verdict"]["reason"]
            .as_str()
            .unwrap()
            .starts_with("keep stock")
    );
    assert_eq!(
        differences(&before, &snapshot(&stage.env.lmstudio())),
        Vec::<String>::new()
    );
    stage
        .run(&["--sizes", "4096,512", "--runs", "1"])
        .exits(1)
        .says("4096 failed")
        .says("out of memory");
}

#[test]
fn a_server_that_dies_fails_what_is_left_and_everything_is_put_back() {
    let stage = stage().with(|manner| manner.dies_above = Some(512));
    let running = stage.env.user().join("running");
    fs::write(&running, "").unwrap();
    stage.fake.state().running = Some(running.clone());
    let before = snapshot(&stage.env.lmstudio());
    let output = stage.env.user().join("out.json");
    let ran = stage
        .run(&[
            "--sizes",
            "512,2048,4096",
            "--runs",
            "1",
            "--output",
            output.to_str().unwrap(),
        ])
        .exits(1);
    ran.says("2048 failed")
        .says("4096 failed")
        .says("could not be loaded again");
    assert_eq!(
        differences(&before, &snapshot(&stage.env.lmstudio())),
        Vec::<String>::new()
    );
    let record: Value = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
    assert!(
        rows(&record)[0]["median_tokens_per_second"].is_number(),
        "{record}"
    );
    // A command that starts it again gives the sizes after it their chance.
    let revive = format!("rm -f '{0}'; touch '{0}'", running.display());
    fs::write(&running, "").unwrap();
    stage.fake.state().since = None;
    stage.fake.load_now(MODEL, 65_536, 3);
    stage.fake.state().manner.dies_above = Some(2048);
    let record = stage.json(&[
        "--sizes",
        "4096,512,2048",
        "--runs",
        "1",
        "--reload",
        &revive,
    ]);
    assert!(rows(&record)[0]["failed"].is_string(), "{record}");
    assert_eq!(
        column(&record, "observed_chunk"),
        [Value::Null, 512.into(), 2048.into()],
        "{record}"
    );
    assert_eq!(
        differences(&before, &snapshot(&stage.env.lmstudio())),
        Vec::<String>::new()
    );
}

#[test]
fn a_stalled_and_a_cut_stream_are_rows_within_the_timeout() {
    let stalled = stage().with(|manner| manner.stalls_from = Some(4096));
    let begin = Instant::now();
    let record = stalled.json(&["--sizes", "512,4096", "--runs", "1", "--timeout", "1"]);
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(
        rows(&record)[1]["failed"]
            .as_str()
            .unwrap()
            .contains("within 1 seconds"),
        "{record}"
    );
    assert_eq!(rows(&record)[0]["failed"], Value::Null);
    let cut = stage().with(|manner| manner.cuts_from = Some(4096));
    let record = cut.json(&["--sizes", "512,4096", "--runs", "1"]);
    assert!(
        rows(&record)[1]["failed"]
            .as_str()
            .unwrap()
            .contains("broke off"),
        "{record}"
    );
}

#[test]
fn what_the_server_refuses_is_told_with_the_next_step() {
    let output = |stage: &Stage| stage.env.user().join("out.json");
    for (path, fault, said) in [
        (CHAT, Fault::Status(500), "answered 500: told to fail"),
        (CHAT, Fault::Status(404), "does not know that"),
        (CHAT, Fault::Cut, ""),
        (
            "/api/v1/models/load",
            Fault::Status(500),
            "answered 500: told to fail",
        ),
    ] {
        let stage = stage();
        stage.fake.fails(path, fault);
        let before = snapshot(&stage.env.lmstudio());
        stage
            .run(&[
                "--sizes",
                "512,2048",
                "--runs",
                "1",
                "--output",
                output(&stage).to_str().unwrap(),
            ])
            .exits(1)
            .says(said);
        assert_eq!(
            differences(&before, &snapshot(&stage.env.lmstudio())),
            Vec::<String>::new()
        );
        // Nothing was measured, so nothing that was there before is overwritten.
        assert_eq!(output(&stage).exists(), path != CHAT);
    }
    let stage = stage();
    stage.fake.state().token = Some("secret".to_owned());
    stage.run(&["--runs", "1"]).exits(1).says("LM_API_TOKEN");
    stage.run(&["--runs", "1", "--token", "secret"]).exits(0);
    let mut command = stage.env.command(stage.arguments(&["--runs", "1"]));
    Ran::of(&command.env("LM_API_TOKEN", "secret").output().unwrap()).exits(0);
}

#[test]
fn a_model_that_is_not_there_or_no_mlx_model_is_refused() {
    let stage = stage();
    let bench = |model: &str| {
        stage
            .env
            .run(["bench", "--url", &stage.fake.url(), "--model", model])
    };
    bench("no/such")
        .exits(1)
        .says("has no model no/such")
        .says(MODEL);
    bench("llama/tiny").exits(1).says("GGUF");
    stage
        .env
        .run(["bench", "--model", MODEL, "--url", "http://127.0.0.1:1"])
        .exits(1)
        .says("lms server start");
}

#[test]
fn ctrl_c_puts_the_setting_back_and_keeps_what_was_measured() {
    let stage = stage();
    let before = snapshot(&stage.env.lmstudio());
    let directory = stage.env.user().join("results");
    fs::create_dir(&directory).unwrap();
    let names = ["a.json", "a.csv", "a.md", "a.svg"];
    let mut arguments = stage.arguments(&["--sizes", "512,4096,1024", "--runs", "3"]);
    for name in names {
        arguments.extend([
            "--output".to_owned(),
            directory.join(name).to_str().unwrap().to_owned(),
        ]);
    }
    let child = stage
        .env
        .command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while stage.full().iter().all(|prefill| prefill.chunk != 4096) {
        assert!(
            Instant::now() < deadline,
            "the second size was never reached"
        );
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(chunk_on_disk(&stage.layer.engine()), Some(4096));
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    let ran = Ran::of(&child.wait_with_output().unwrap()).exits(1);
    ran.says("stopped").says("Every backend is as it was.");
    assert_eq!(
        differences(&before, &snapshot(&stage.env.lmstudio())),
        Vec::<String>::new()
    );
    let found: BTreeSet<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(found, names.map(Into::into).into());
    let record: Value =
        serde_json::from_str(&fs::read_to_string(directory.join("a.json")).unwrap()).unwrap();
    assert_eq!(
        (rows(&record).len(), &rows(&record)[0]["failed"]),
        (2, &Value::Null),
        "{record}"
    );
    assert!(record["error"].as_str().unwrap().contains("stopped"));
    assert!(
        fs::read_to_string(directory.join("a.svg"))
            .unwrap()
            .ends_with("</svg>\n")
    );
}

#[test]
fn the_prompt_fits_the_loaded_context_or_the_run_is_refused() {
    let stage = stage();
    stage.fake.state().models[0].instances.clear();
    stage.fake.load_now(MODEL, 8192, 1);
    let ran = stage
        .run(&["--runs", "1", "--prompt-tokens", "40000"])
        .exits(0);
    ran.says("context of 8192, so prompts have 8064 tokens")
        .says("lms load qwen/tiny --context-length");
    assert!(
        stage
            .full()
            .iter()
            .all(|prefill| prefill.tokens.abs_diff(8064) <= 81)
    );
    stage
        .run(&["--runs", "1", "--sizes", "512,4096"])
        .exits(1)
        .says("at least 8192")
        .says("lms load");
    stage
        .run(&["--runs", "1", "--sizes", "8192", "--prompt-tokens", "10000"])
        .exits(1)
        .says("at least 16384");
    assert_eq!(stage.fake.instances()[0].chunk, Some(2048));
    stage.fake.state().speaks = Speaks::V0;
    stage
        .run(&["--runs", "1", "--prompt-tokens", "40000"])
        .exits(0)
        .says("context of 8192, so prompts have 8064 tokens");
}

#[test]
fn an_edit_that_does_not_take_effect_is_told_and_is_no_verdict() {
    let stage = stage().with(|manner| manner.stuck_at = Some(2048));
    let ran = stage
        .run(&["--runs", "1", "--sizes", "512,1024,4096"])
        .exits(1);
    ran.says("512 did not take effect: the engine used 2048")
        .says("restart LM Studio")
        .says("no size took effect");
    let record = stage.json(&["--runs", "1", "--sizes", "512,1024"]);
    assert_eq!(
        (
            column(&record, "observed_chunk"),
            &record["verdict"]["keep"]
        ),
        (vec![2048.into(), 2048.into()], &Value::Null)
    );
}

#[test]
fn missing_and_throttled_progress_is_not_observable() {
    for change in [
        |manner: &mut Manner| manner.is_silent = true,
        |manner: &mut Manner| manner.is_throttled = true,
    ] {
        let stage = stage().with(change);
        let ran = stage
            .run(&["--runs", "1", "--sizes", "512,1024"])
            .exits(0)
            .shows("not observable");
        ran.says_nothing_of("take effect: the engine");
        let record = stage.json(&["--runs", "1", "--sizes", "512,1024"]);
        assert_eq!(
            column(&record, "observed_chunk"),
            [Value::Null, Value::Null]
        );
    }
}

#[test]
fn cache_hits_are_flagged_kept_and_not_counted() {
    for speaks in [Speaks::V1, Speaks::OpenAi] {
        let stage = stage().with(|manner| manner.always_hits = true);
        stage.fake.state().speaks = speaks;
        let record = stage.json(&["--runs", "2", "--prompt-tokens", "20000"]);
        let row = &rows(&record)[0];
        let flags: Vec<_> = row["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| run["flags"][0].clone())
            .collect();
        assert_eq!(flags, ["cache-hit", "cache-hit"], "{record}");
        assert!(
            row["failed"].as_str().unwrap().contains("prompt cache")
                && row["median_tokens_per_second"].is_null()
        );
    }
}

#[test]
fn a_prompt_file_gets_the_nonce_too() {
    let stage = stage();
    let file = stage.env.user().join("prompt.txt");
    fs::write(&file, "Grüße, ".repeat(5000)).unwrap();
    let record = stage.json(&["--runs", "2", "--prompt-file", file.to_str().unwrap()]);
    assert_eq!(rows(&record)[0]["failed"], Value::Null);
    assert!(
        record["prompt_tokens"]
            .as_u64()
            .unwrap()
            .abs_diff(35_000 / 4)
            <= 90,
        "{record}"
    );
    assert!(
        stage
            .full()
            .iter()
            .all(|prefill| prefill.cached == 0 && prefill.prompt.contains("Grüße"))
    );
    stage
        .run(&["--prompt-file", "/no/such"])
        .exits(1)
        .says("/no/such is not there");
}

#[test]
fn outputs_are_there_in_every_format_and_a_wrong_ending_is_a_wrong_command_line() {
    let stage = stage();
    let path = |name: &str| stage.env.user().join(name).to_str().unwrap().to_owned();
    let mut more = vec!["--sizes", "512,2048", "--runs", "2"];
    let paths: Vec<_> = ["o.json", "o.csv", "o.md", "o.svg"].map(path).into();
    more.extend(paths.iter().flat_map(|path| ["--output", path]));
    let ran = stage
        .run(&more)
        .exits(0)
        .shows("█")
        .shows("±")
        .says("Drift: 512");
    assert!(ran.stdout.contains("2048 (stock)"));
    let text = |index: usize| fs::read_to_string(&paths[index]).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&text(0)).unwrap()["results"][1]["runs"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(text(1).lines().count(), 1 + 4);
    assert!(text(2).contains("| 2048 (stock) |") && text(3).contains("prefers-color-scheme"));
    stage
        .run(&["--output", &path("o.txt")])
        .exits(2)
        .says(".json, .csv, .md or .svg");
    stage
        .run(&["--output", &path("no/such.json")])
        .exits(1)
        .says("cannot write");
}

#[test]
fn the_app_is_quit_and_opened_again() {
    let stage = stage();
    let running = stage.env.user().join("running");
    fs::write(&running, "").unwrap();
    stage.fake.state().running = Some(running.clone());
    let bin = stage.env.user().join("bin");
    script(
        &bin.join("osascript"),
        &format!("echo \"$@\" >> '{0}.log'; rm '{0}'", running.display()),
    );
    script(
        &bin.join("open"),
        &format!("echo \"$@\" >> '{0}.log'; touch '{0}'", running.display()),
    );
    let mut command = stage.env.command(stage.arguments(&[
        "--sizes", "512,4096", "--runs", "1", "--reload", "app", "--json",
    ]));
    command.env(
        "PATH",
        format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()),
    );
    let ran = Ran::of(&command.output().unwrap()).exits(0);
    let record: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(column(&record, "observed_chunk"), [512, 4096]);
    let log = fs::read_to_string(running.with_extension("log")).unwrap();
    let once = "-e quit app \"LM Studio\"\n-a LM Studio\n";
    assert_eq!(log, once.repeat(4));
    assert_eq!(stage.fake.instances()[0].context_length, 65_536);
}

fn script(path: &PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_reload_command_that_fails_is_a_row_with_its_last_words() {
    let stage = stage();
    let record = stage.json(&[
        "--sizes",
        "512,2048",
        "--runs",
        "1",
        "--reload",
        "echo no luck >&2; false",
    ]);
    assert!(
        column(&record, "failed")
            .iter()
            .all(|why| why.as_str().unwrap().contains("no luck")),
        "{record}"
    );
    assert_eq!(chunk_on_disk(&stage.layer.engine()), Some(2048));
}

/// A Python that is none: it says what the real script says, and dies at 4096.
const MADE_UP_PYTHON: &str = r#"job=$(cat)
echo "$job" >> "$0.jobs"
line() { printf '%s\n' "$1"; }
line '{"kind":"ready","tokens":10000,"mlx_lm":"0.0"}'
sizes=$(printf '%s' "$job" | sed 's/.*"sizes":\[\([^]]*\)\].*/\1/' | tr ',' ' ')
for round in 0 1 2; do for size in $sizes; do
  case "$job" in *"[$size,$round]"*) continue;; esac
  line '{"kind":"start","size":'$size',"round":'$round'}'
  if [ $size = 4096 ] && [ $round = 1 ]; then echo "libc++abi: Insufficient Memory" >&2; kill -ABRT $$; fi
  if [ $size = 1024 ]; then line '{"kind":"failed","size":1024,"why":"ValueError: no"}'; continue; fi
  line '{"kind":"run","size":'$size',"round":'$round',"tokens":10000,"seconds":'$round.5',"peak":'${size}000',"progress":[[0.0,0],[0.1,'$size'],[0.2,'$((size * 2))']]}'
done; done
"#;

#[test]
fn a_direct_crash_is_a_row_and_a_new_process_does_the_rest() {
    let env = Env::new();
    let python = env.user().join("python");
    script(&python, MADE_UP_PYTHON);
    let arguments = [
        "bench",
        "--direct",
        "--model",
        ".",
        "--python",
        python.to_str().unwrap(),
        "--runs",
        "2",
    ];
    let record = env.json(
        arguments
            .iter()
            .copied()
            .chain(["--sizes", "512,4096,1024,2048"]),
    );
    assert_eq!(column(&record, "size"), [512, 4096, 1024, 2048]);
    assert_eq!(
        column(&record, "observed_chunk"),
        [
            Value::from(512),
            Value::Null,
            Value::Null,
            Value::from(2048)
        ]
    );
    let failed = column(&record, "failed");
    assert!(
        failed[1]
            .as_str()
            .unwrap()
            .contains("signal 6: libc++abi: Insufficient Memory"),
        "{failed:?}"
    );
    assert_eq!(
        (&failed[0], &failed[2], &failed[3]),
        (&Value::Null, &"ValueError: no".into(), &Value::Null)
    );
    assert_eq!(rows(&record)[0]["median_prefill_seconds"], 2.0);
    assert_eq!(rows(&record)[3]["peak_memory_bytes"], 2_048_000);
    assert_eq!(rows(&record)[0]["runs"].as_array().unwrap().len(), 2);
    let jobs = fs::read_to_string(env.user().join("python.jobs")).unwrap();
    let jobs: Vec<Value> = jobs
        .lines()
        .map(|job| serde_json::from_str(job).unwrap())
        .collect();
    assert_eq!(
        (jobs.len(), &jobs[1]["sizes"]),
        (2, &serde_json::json!([512, 2048]))
    );
    env.run(
        arguments
            .iter()
            .copied()
            .chain(["--sizes", "8192", "--prompt-tokens", "10000"]),
    )
    .exits(1)
    .says("at least 16384");
    env.run([
        "bench",
        "--direct",
        "--model",
        ".",
        "--python",
        "/bin/false",
        "--sizes",
        "512",
    ])
    .exits(1)
    .says("exit code 1");
}

#[test]
fn a_direct_verdict_can_be_set_and_nothing_is_set_without_asking() {
    let env = Env::with_fixture();
    let python = env.user().join("python");
    script(&python, MADE_UP_PYTHON);
    let arguments = [
        "bench",
        "--direct",
        "--model",
        ".",
        "--python",
        python.to_str().unwrap(),
        "--runs",
        "1",
        "--sizes",
        "2048,8192",
    ];
    let before = snapshot(&env.lmstudio());
    env.run(arguments)
        .exits(0)
        .says("Verdict: keep stock: 2048 is the smallest size within the noise");
    assert_eq!(snapshot(&env.lmstudio()), before);
    env.run(arguments.into_iter().chain(["--apply-best"]))
        .exits(0)
        .says("2048 is set");
    env.run(["--check", "2048"]).exits(0);
}

#[test]
fn the_command_line_is_refused_where_it_makes_no_sense() {
    let env = Env::new();
    for arguments in [
        vec!["bench"],
        vec!["bench", "--model", "m", "--direct"],
        vec!["bench", "--model", "m", "--apply-best"],
        vec!["bench", "--model", "m", "--sizes", "1"],
        vec!["bench", "--model", "m", "--runs", "0"],
        vec!["bench", "--model", "m", "--url", "https://x"],
        vec!["4096", "bench", "--model", "m"],
        vec!["bench", "--model", "m", "--revert"],
    ] {
        env.run(arguments).exits(2);
    }
}
