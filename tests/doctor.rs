//! `lmpatch doctor`: what it finds, the next step, and that it only reads.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use support::home::{Layer, engine_since_2026, runtime, select, stock_generate, usual_layer};
use support::standins::{StandIns, ago, worker, written};
use support::{Env, differences, snapshot};

const NAME: &str = "app-mlx-generate-mac14-arm64@34";

/// A home with one backend that the selected runtime uses.
fn home(env: &Env, version: &str) -> Layer {
    let layer = usual_layer(&env.lmstudio(), NAME);
    runtime(&env.lmstudio(), version, &[NAME]);
    select(&env.lmstudio(), version);
    fs::write(
        env.lmstudio().join(".internal/http-server-config.json"),
        r#"{"port":1}"#,
    )
    .unwrap();
    layer
}

/// The findings whose text has `what`: level and next step.
fn findings(report: &Value, what: &str) -> Vec<(String, String)> {
    let all = report["findings"].as_array().unwrap().iter();
    let matching = all.filter(|finding| finding["what"].as_str().unwrap().contains(what));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    matching
        .map(|finding| (text(finding, "level"), text(finding, "next")))
        .collect()
}

#[track_caller]
fn finds(report: &Value, level: &str, what: &str, next: &str) {
    let found = findings(report, what);
    assert_eq!(found.len(), 1, "{what}: {report:#}");
    assert_eq!(found[0].0, level, "{what}: {report:#}");
    assert!(found[0].1.contains(next), "{what}: {}", found[0].1);
}

#[test]
fn one_page_says_where_what_and_whether() {
    let env = Env::new();
    home(&env, "1.12.0");
    let standins = StandIns::new(&env);
    standins.ps(&[]);
    standins.run(["4096"]).exits(0);
    let ran = standins.run(["doctor"]).exits(0);
    let page = format!(
        "home     {} (LM Studio's usual place)\nruntimes MLX 1.12.0 (selected)\n\n\
         layer                            runtime     selected  chunk  stock  state\n\
         {NAME}  MLX 1.12.0  yes        4096   2048  patched\n\
         Loaded models: not running (no model is loaded there)\n\n\
         agent    not installed\n\n\
         note: an update of LM Studio brings a new backend with the stock chunk\n   \
         next: `lmpatch agent install` sets new ones by itself, or run lmpatch again then\n",
        env.lmstudio().display()
    );
    assert_eq!(ran.stdout, page);
}

#[test]
fn it_reads_only() {
    let env = Env::with_fixture();
    let standins = StandIns::new(&env);
    standins.ps(&[(812, ago(99_999_999), worker(&env.lmstudio()))]);
    standins.script("launchctl", "exit 113");
    env.run(["4096"]).exits(0);
    let before = snapshot(&env.user());
    standins.run(["doctor"]);
    standins.json(["doctor"]);
    assert_eq!(
        differences(&before, &snapshot(&env.user())),
        Vec::<String>::new()
    );
    let calls = standins.calls();
    assert!(
        calls
            .iter()
            .all(|call| call.starts_with("ps ") || call.starts_with("launchctl print ")),
        "{calls:?}"
    );
}

#[test]
fn the_rule_that_found_the_home_is_named() {
    let env = Env::new();
    home(&env, "1.12.0");
    assert_eq!(
        env.json(["doctor"])["home_found_by"],
        "LM Studio's usual place"
    );
    let cache = env.user().join(".cache/lm-studio");
    usual_layer(&cache, NAME);
    assert_eq!(
        env.json(["doctor"])["home_found_by"],
        "~/.cache/lm-studio exists"
    );
    fs::write(
        env.user().join(".lmstudio-home-pointer"),
        env.lmstudio().to_str().unwrap(),
    )
    .unwrap();
    assert_eq!(
        env.json(["doctor"])["home_found_by"],
        "named by ~/.lmstudio-home-pointer"
    );
    assert_eq!(
        env.json(["doctor", "--home", ".cache/lm-studio"])["home_found_by"],
        "given with --home"
    );
}

#[test]
fn without_a_home_it_says_what_to_do() {
    let env = Env::new();
    let report = env.json(["doctor"]);
    finds(&report, "problem", "no MLX backend found", "--home DIR");
    assert_eq!(report["exit_code"], 1);
    env.run(["doctor"])
        .exits(1)
        .shows("home     not found")
        .shows("next: install LM Studio");
}

#[test]
fn a_selected_runtime_without_its_layer_is_a_problem_and_another_a_note() {
    let env = Env::new();
    home(&env, "1.12.0");
    runtime(
        &env.lmstudio(),
        "1.13.0",
        &["app-mlx-generate-mac14-arm64@40"],
    );
    finds(
        &env.json(["doctor"]),
        "note",
        "@40, which is not on disk",
        "LM Studio",
    );
    select(&env.lmstudio(), "1.13.0");
    finds(
        &env.json(["doctor"]),
        "problem",
        "@40, which is not on disk",
        "reinstall",
    );
    fs::remove_file(env.lmstudio().join(".internal/backend-preferences-v1.json")).unwrap();
    finds(
        &env.json(["doctor"]),
        "note",
        "which MLX runtime LM Studio uses is not known",
        "Runtime",
    );
}

#[test]
fn the_state_of_each_backend_is_judged() {
    let env = Env::new();
    let layer = home(&env, "1.12.0");
    finds(
        &env.json(["doctor"]),
        "note",
        "has the chunk it ships with",
        "lmpatch 4096",
    );
    fs::write(layer.engine(), engine_since_2026("8192")).unwrap();
    finds(
        &env.json(["doctor"]),
        "problem",
        "set only in part",
        "lmpatch 8192",
    );
    fs::write(layer.engine(), "x = 1\n").unwrap();
    finds(
        &env.json(["doctor"]),
        "problem",
        "lmpatch does not change it",
        "--check -v",
    );
    env.run(["doctor"]).exits(1);
    fs::remove_file(layer.engine()).unwrap();
    finds(
        &env.json(["doctor"]),
        "note",
        "cache_wrapper.py is not there",
        "finish its update",
    );
}

#[test]
fn a_model_with_old_values_is_a_problem_and_what_cannot_be_told_a_note() {
    let env = Env::new();
    home(&env, "1.12.0");
    let standins = StandIns::new(&env);
    standins.ps(&[(812, ago(60), worker(&env.lmstudio()))]);
    standins.run(["8192"]).exits(0);
    let report = standins.json(["doctor"]);
    finds(
        &report,
        "problem",
        "older values (worker 812)",
        "`lmpatch 8192 --reload`",
    );
    assert_eq!(report["backends"][0]["in_effect"], "reload-needed");
    standins.run(["--revert"]).exits(0);
    finds(
        &standins.json(["doctor"]),
        "problem",
        "older values (worker 812)",
        "`lmpatch --revert --reload`",
    );
    standins.script("ps", "exit 1");
    finds(
        &standins.json(["doctor"]),
        "note",
        "cannot be told",
        "restart LM Studio",
    );
}

/// A check that says `unknown` sends people here.
#[test]
fn a_backend_whose_effect_is_unknown_is_told_why() {
    let env = Env::new();
    let layer = home(&env, "1.12.0");
    let standins = StandIns::new(&env);
    standins.ps(&[(812, ago(60), worker(&env.lmstudio()))]);
    let engine = fs::File::options()
        .write(true)
        .open(layer.engine())
        .unwrap();
    engine
        .set_modified(SystemTime::now() + Duration::from_secs(3600))
        .unwrap();
    standins
        .run(["--check"])
        .exits(0)
        .shows("Loaded models: unknown (lmpatch doctor tells why)");
    finds(
        &standins.json(["doctor"]),
        "note",
        "whether loaded models have its values cannot be told",
        "restart",
    );
}

#[test]
fn sizes_that_cost_something_are_told() {
    let env = Env::new();
    home(&env, "1.11.0");
    env.run(["12000"]).exits(0);
    let report = env.json(["doctor"]);
    finds(&report, "note", "is not a multiple of 256", "lmpatch 4096");
    finds(&report, "note", "is above 8192", "lmpatch 4096");
    finds(
        &report,
        "note",
        "MLX 1.11.0 (like all of 1.9 to 1.11) fits less context",
        "--revert",
    );
    env.run(["4096"]).exits(0);
    let report = env.json(["doctor"]);
    assert_eq!(findings(&report, "256"), []);
    runtime(&env.lmstudio(), "1.11.0", &[]);
    assert_eq!(findings(&env.json(["doctor"]), "fits less context"), []);
}

/// Bytecode of `source` with these flags that was written before it.
fn bytecode(source: &Path, flags: u32, name: &str) -> std::path::PathBuf {
    let metadata = fs::metadata(source).unwrap();
    let second = metadata
        .modified()
        .unwrap()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let words = [
        0x0a0d_0da7,
        flags,
        u32::try_from(second).unwrap(),
        u32::try_from(metadata.len()).unwrap(),
    ];
    let cached = source.with_file_name("__pycache__").join(name);
    fs::create_dir_all(cached.parent().unwrap()).unwrap();
    fs::write(&cached, words.map(u32::to_le_bytes).concat()).unwrap();
    written(
        &cached,
        metadata.modified().unwrap() - Duration::from_nanos(1),
    );
    cached
}

#[test]
fn caches_that_python_would_wrongly_take_are_found_and_no_others() {
    let env = Env::new();
    let layer = home(&env, "1.12.0");
    let source = layer.engine();
    for (flags, is_wrong) in [(0, true), (1, true), (3, false)] {
        let cached = bytecode(&source, flags, "cache_wrapper.cpython-311.pyc");
        let report = env.json(["doctor"]);
        assert_eq!(
            findings(&report, "older than its source").len(),
            usize::from(is_wrong),
            "{flags}"
        );
        // One that was made after the source is what Python should take.
        written(&cached, SystemTime::now());
        assert_eq!(findings(&env.json(["doctor"]), "older than its source"), []);
    }
    let cached = bytecode(&source, 0, "cache_wrapper.cpython-311.pyc");
    finds(
        &env.json(["doctor"]),
        "problem",
        cached.to_str().unwrap(),
        &format!("rm '{}'", cached.display()),
    );
    // Its source has another size now: Python sees that.
    fs::write(&cached, [0u32, 0, 1, 1].map(u32::to_le_bytes).concat()).unwrap();
    written(&cached, ago(9999));
    assert_eq!(findings(&env.json(["doctor"]), "older than its source"), []);
}

#[test]
fn temp_files_of_killed_runs_are_found_and_the_next_step_removes_them() {
    let env = Env::new();
    let layer = home(&env, "1.12.0");
    let temp = layer
        .engine()
        .with_file_name(".cache_wrapper.py.lmpatch-tmp.Ab3dE");
    fs::write(&temp, "").unwrap();
    finds(
        &env.json(["doctor"]),
        "note",
        "left of a run that was killed",
        "`lmpatch 2048` removes it",
    );
    env.run(["2048"]).exits(0);
    assert!(!temp.exists());
}

#[test]
fn the_agent_is_part_of_it() {
    let env = Env::new();
    home(&env, "1.12.0");
    finds(
        &env.json(["doctor"]),
        "note",
        "an update of LM Studio brings",
        "lmpatch agent install",
    );
    let job = env
        .user()
        .join("Library/LaunchAgents/io.github.lmpatch.agent.plist");
    fs::create_dir_all(job.parent().unwrap()).unwrap();
    fs::write(&job, "nonsense").unwrap();
    let report = env.json(["doctor"]);
    finds(
        &report,
        "problem",
        "the agent does not work",
        "lmpatch agent install",
    );
    assert_eq!(report["agent"]["installed"], true);
}

#[test]
fn names_cannot_drive_the_terminal() {
    let env = Env::new();
    home(&env, "1.12.0");
    usual_layer(&env.lmstudio(), "app-mlx-generate\u{1b}[31m@1").with_generate("x");
    Layer::new(&env.lmstudio(), "app-mlx-generate-x@2").with_generate(stock_generate());
    let ran = env.run(["doctor"]).exits(1);
    assert!(!ran.stdout.contains('\u{1b}'), "{}", ran.stdout);
}
