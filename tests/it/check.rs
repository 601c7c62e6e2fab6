//! `lmpatch --check`: what it finds, each finding with its next step, and that it only reads.
use std::fs;

use serde_json::{Value, json};

use crate::support::home::{NAME, RUNTIME, engine_since_2026, generate, select};
use crate::support::standins::StandIns;
use crate::support::{Before, Env, column, write};

const OTHER: &str = "app-mlx-generate-mac14-arm64@33";

/// The findings whose text has `what`.
fn findings(env: &Env, what: &str) -> Vec<Value> {
    let report = env.json(["--check"]);
    let all = report["findings"].as_array().unwrap().iter();
    let matching = all.filter(|finding| finding["what"].as_str().unwrap().contains(what));
    matching.cloned().collect()
}

/// One finding of `--check` with this level, backend, text and next step: as JSON, and as a line for people.
#[track_caller]
fn finds(env: &Env, level: &str, backends: &[&str], what: &str, next: &str) {
    let found = findings(env, what);
    assert_eq!(found.len(), 1, "{what}: {found:#?}");
    let text = |key: &str| found[0][key].as_str().unwrap();
    let (what, whole_next) = (text("what"), text("next"));
    assert!(whole_next.contains(next), "{next}: {found:#?}");
    let expected =
        json!({ "level": level, "backends": backends, "what": what, "next": whole_next });
    assert_eq!(found[0], expected);
    let about: String = backends.iter().map(|name| format!("{name}: ")).collect();
    let line = format!("{level}: {about}{what}; {whole_next}");
    // What to do can be in the reason.
    let line = line.strip_suffix("; ").unwrap_or(&line);
    let stderr = env.run(["--check"]).stderr;
    let times = stderr.lines().filter(|one| *one == line).count();
    assert_eq!(times, 1, "{line}: {stderr}");
}

#[track_caller]
fn finds_nothing_of(env: &Env, what: &str) {
    assert_eq!(findings(env, what), [json!(null); 0]);
}

#[test]
fn one_page_says_what_and_whether() {
    let (env, _) = Env::in_use();
    env.run(["3000"]).exits(0);
    let page = format!(
        "backend                          runtime     selected  chunk  stock  state\n\
         {NAME}  MLX 1.12.0  yes        3000   2048  patched\n"
    );
    let below = format!(
        "note: 3000 is not a multiple of 256, so hybrid models lose their prompt cache on disk; \
         `lmpatch 2816 --backend '{NAME}'` keeps it\n"
    );
    env.run(["--check"]).exits(0).prints(&page, &below);
}

#[test]
fn it_reads_only() {
    let env = Env::with_fixture();
    let standins = StandIns::new(&env);
    standins.script("launchctl", "exit 113");
    env.run(["4096"]).exits(0);
    let before = Before::of(env.user());
    env.run(["--check", "-v"]).exits(0);
    env.json(["--check"]);
    before.still_holds();
    // Without an agent nobody asks launchd.
    assert_eq!(standins.calls(), [""; 0]);
}

#[test]
fn a_runtime_without_its_backend_is_told_with_commands_that_can_be_copied() {
    let (env, _) = Env::in_use();
    let gone = "app-mlx-generate-mac14-arm64@40";
    env.runtime("1.13.0", &[gone]);
    let what = format!("MLX 1.13.0 needs {gone}, which is not on disk");
    let remove = format!("`lms runtime remove {RUNTIME}@1.13.0`");
    let get = format!("`lms runtime get {RUNTIME}@1.13.0`");
    let next = format!("to download it again: {remove}, then {get}");
    finds(&env, "note", &[], &what, &next);
    let missing =
        |selected: bool| json!([{ "name": gone, "runtime": "MLX 1.13.0", "selected": selected }]);
    assert_eq!(env.json(["--check"])["missing_backends"], missing(false));
    for args in ["--check", "4096", "--revert"] {
        env.run([args]).tells(&what);
    }

    env.select("1.13.0");
    let what = what.replace(" needs", ", the selected runtime, needs");
    finds(&env, "warning", &[], &what, &next);
    assert_eq!(env.json(["--check"])["missing_backends"], missing(true));
    // What the selected runtime needs is not there, so nothing that was set takes effect.
    let error = format!("error: {what}");
    env.run(["4096"])
        .fails(&error)
        .says_nothing_of("Takes effect");
    let warning = format!("warning: {what}");
    env.run(["--revert"]).tells(&warning);
    env.run(["--check", "4096"]).exits(3);
    // A file in its place is no backend either, and no pattern hides it.
    fs::write(env.amphibian().join(gone), "").unwrap();
    env.run(["8192", "--backend", "*@34"])
        .fails(&error)
        .says_nothing_of("Takes effect");
}

/// A row of an app's preferences.
fn row(format: &str, name: &str, version: &str) -> Value {
    json!({ "model_format": format, "name": name, "version": version })
}

#[test]
fn a_selection_that_is_not_known_is_told() {
    let (env, _) = Env::in_use();
    env.backend(OTHER);
    let preferences = env.lmstudio().join(".internal/backend-preferences-v1.json");
    let chosen = row("safetensors", RUNTIME, "1.12.0");
    let rows = json!([row("gguf", "llama", "2"), chosen]);
    fs::write(&preferences, rows.to_string()).unwrap();
    finds_nothing_of(&env, "the runtime of");
    assert_eq!(env.json(["--check"])["backends"][1]["selected"], true);

    let rows = json!([chosen, row("safetensors", "fork", "1")]);
    fs::write(&preferences, rows.to_string()).unwrap();
    let what =
        "the runtime of LM Studio is unknown: its preferences name 2 runtimes for MLX models";
    finds(&env, "note", &[], what, "`lms runtime select`");
    let selected = column(&env.json(["--check"]), "selected");
    assert_eq!(selected, json!([false, false]));
    // Any of them may be the one in use.
    env.run(["4096"])
        .tells("Takes effect when a model is next loaded");

    fs::remove_file(&preferences).unwrap();
    let what = "the runtime of LM Studio is unknown";
    finds(&env, "note", &[], what, "under Runtime");
}

#[test]
fn bionics_own_selection_counts_too() {
    let (env, _) = Env::in_use();
    env.backend(OTHER);
    env.runtime("1.11.0", &[OTHER]);
    select(&env.lmstudio().join("apps/bionic"), "1.11.0");
    let report = env.json(["--check"]);
    assert_eq!(column(&report, "selected"), json!([true, true]));
    let by = |index: usize| &report["backends"][index]["runtimes"][0]["selected_by"];
    assert_eq!(by(0), &json!(["Bionic"]));
    assert_eq!(by(1), &json!(["LM Studio"]));

    env.run(["4096", "--backend", NAME]).tells(OTHER);
    let what = "in use by Bionic, and at stock while others are set";
    let next = format!("`lmpatch 4096 --backend '{OTHER}'` sets it");
    finds(&env, "warning", &[OTHER], what, &next);
    env.run(["--revert"]).exits(0);
    env.run(["8192", "--backend", OTHER]).exits(0);
    let what = "in use by LM Studio, and at stock while others are set";
    let next = format!("`lmpatch 8192 --backend '{NAME}'` sets it");
    finds(&env, "warning", &[NAME], what, &next);
    env.run(["2048"]).exits(0);
    finds_nothing_of(&env, "at stock while others are set");

    let chosen = row("safetensors", RUNTIME, "1.11.0");
    let twice = json!([chosen, chosen]).to_string();
    let preferences = "apps/bionic/.internal/backend-preferences-v1.json";
    fs::write(env.lmstudio().join(preferences), twice).unwrap();
    let what = "the runtime of Bionic is unknown";
    finds(&env, "note", &[], what, "Runtime");
}

#[test]
fn two_runtimes_of_one_version_are_told_apart() {
    let (env, _) = Env::in_use();
    env.backend(OTHER);
    let manifest = json!({
        "name": "mlx-llm-mac-arm64-apple-metal-nax-advsimd", "version": "1.12.0", "engine": "mlx-llm",
        "vendor_lib_package_names": [format!("_amphibian/{OTHER}")],
    });
    let path = "extensions/backends/nax/backend-manifest.json";
    write(&env.lmstudio().join(path), manifest.to_string());
    let table = format!(
        "backend                          runtime         selected  chunk  stock  state\n\
         {OTHER}  MLX 1.12.0 nax             2048   2048  stock\n\
         {NAME}  MLX 1.12.0      yes        2048   2048  stock\n"
    );
    assert_eq!(env.run(["--check"]).exits(0).stdout, table);
}

#[test]
fn the_state_of_each_backend_is_judged() {
    let (env, backend) = Env::in_use();
    assert_eq!(env.json(["--check"])["findings"], json!([]));
    fs::write(backend.engine(), engine_since_2026("8192")).unwrap();
    let partly = "so it is set only in part";
    let next = format!("`lmpatch 8192 --backend '{NAME}'` sets them all");
    finds(&env, "warning", &[NAME], partly, &next);
    env.run(["8192"]).exits(0);
    assert_eq!(env.json(["--check", "8192"])["exit_code"], 0);
    // A revert also ends what lmpatch noted of the odd number.
    env.run(["--revert"]).exits(0);
    fs::write(backend.engine(), engine_since_2026("2048")).unwrap();
    fs::write(backend.generate(), generate("8192", "8192", "8192")).unwrap();
    let next = format!("`lmpatch 4096 --backend '{NAME}'` sets them all");
    finds(&env, "warning", &[NAME], partly, &next);
    env.run(["--revert"]).exits(0);

    fs::write(backend.engine(), "x = 1\n").unwrap();
    let refused = "no definition of PROMPT_PROCESSING_CHUNK_SIZE";
    finds(&env, "error", &[NAME], refused, "");
    let ran = env.run(["--check"]).exits(1).shows("refused");
    ran.says("; if nobody edited it, a newer lmpatch may know it\n");
    fs::remove_file(backend.engine()).unwrap();
    let incomplete = "cache_wrapper.py: not there";
    let next = "let LM Studio finish its update";
    finds(&env, "warning", &[NAME], incomplete, next);
    env.run(["--check"]).exits(0).shows("incomplete");
}

#[test]
fn a_selected_backend_that_is_incomplete_is_named_as_what_was_not_changed() {
    for empty in [true, false] {
        let (env, backend) = Env::in_use();
        env.backend(OTHER);
        let why = if empty {
            fs::remove_dir_all(backend.root.join("lib")).unwrap();
            "it holds no mlx_engine and no mlx_lm"
        } else {
            fs::remove_file(backend.engine()).unwrap();
            fs::remove_file(backend.generate()).unwrap();
            "not there: an unfinished update"
        };
        let check = env.run(["--check"]).exits(0).shows("incomplete");
        check.says(&format!("warning: {NAME}: ")).says(why);
        env.run(["--check", "2048"])
            .exits(3)
            .says("2048 in 1 of 2 backends");
        let error = format!("error: {NAME}: in use by LM Studio, and it was not changed: ");
        env.run(["4096"])
            .exits(1)
            .shows("incomplete")
            .says(&error)
            .says(why)
            .says("Backends: 1 changed, 1 incomplete")
            .says_nothing_of("Takes effect");
        let report = env.json(["8192"]);
        assert_eq!(report["exit_code"], 1);
        let results = column(&report, "result");
        assert_eq!(results, json!(["changed", "incomplete"]));
    }
}

#[test]
fn a_check_of_a_size_never_advises_what_a_refusal_will_stop() {
    let (env, backend) = Env::in_use();
    fs::write(backend.engine(), "x = 1\n").unwrap();
    env.run(["--check", "4096"])
        .fails("4096 in 0 of 1 backends")
        .says_nothing_of("lmpatch 4096");
    assert_eq!(env.json(["--check", "4096"])["exit_code"], 1);
    env.backend(OTHER);
    env.run(["--check", "4096"])
        .fails("4096 in 0 of 2 backends; `lmpatch 4096` sets it");
    env.run(["4096"])
        .fails("in use by LM Studio, and it was not changed: ")
        .says("1 changed, 1 refused")
        .says_nothing_of("Takes effect");
    env.run(["--check", "4096"])
        .fails("4096 in 1 of 2 backends")
        .says_nothing_of("lmpatch 4096");
}

#[test]
fn sizes_that_cost_something_are_told() {
    let (env, backend) = Env::in_use();
    backend.write("mlx_engine/model_kit/batched_vision/context_fit.py", "");
    env.run(["12000"]).exits(0);
    let odd = "12000 is not a multiple of 256";
    let kept = format!("`lmpatch 11776 --backend '{NAME}'` keeps it");
    finds(&env, "note", &[], odd, &kept);
    let lower = format!("`lmpatch 2048 --backend '{NAME}'`");
    let less = "leaves less memory for context";
    finds(&env, "note", &[NAME], less, &lower);
    env.run(["1024"]).exits(0);
    let below = "1024 is below its stock 2048";
    finds(&env, "note", &[NAME], below, &lower);
    env.run(["4096"]).exits(0);
    for gone in ["multiple of 256", "below its stock"] {
        finds_nothing_of(&env, gone);
    }
    env.run(["--revert"]).exits(0);
    assert_eq!(env.json(["--check"])["findings"], json!([]));
}

/// Advice is for what was asked about, and never a revert that would be refused.
#[test]
fn advice_can_be_followed_to_its_end() {
    let (env, backend) = Env::in_use();
    env.backend(OTHER);
    let advice = format!("8192 in 0 of 1 backends; `lmpatch 8192 --backend '{NAME}'` sets it");
    env.run(["--check", "8192", "--backend", NAME])
        .exits(3)
        .says(&advice);
    let below = "1024 is below its stock 2048";
    fs::write(backend.engine(), engine_since_2026("1024")).unwrap();
    fs::write(backend.generate(), generate("1024", "1024", "1024")).unwrap();
    let next = format!("`lmpatch 2048 --backend '{NAME}'` sets that again");
    finds(&env, "note", &[NAME], below, &next);
    env.run(["2048", "--backend", NAME]).exits(0);
    finds_nothing_of(&env, below);
}
