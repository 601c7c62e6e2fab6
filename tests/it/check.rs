//! `lmpatch --check`: what it finds, each finding with its next step, and that it only reads.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::home::{
    BackendDir, RUNTIME, engine_since_2026, generate, runtime, select, usual_backend,
};
use crate::support::standins::StandIns;
use crate::support::{Env, differences, snapshot};

const NAME: &str = "app-mlx-generate-mac14-arm64@34";
const OTHER: &str = "app-mlx-generate-mac14-arm64@33";

/// A home with one backend that the selected runtime uses.
fn home(env: &Env, version: &str) -> BackendDir {
    let backend = usual_backend(&env.lmstudio(), NAME);
    runtime(&env.lmstudio(), version, &[NAME]);
    select(&env.lmstudio(), version);
    backend
}

/// The findings whose text has `what`.
fn findings(report: &Value, what: &str) -> Vec<Value> {
    let all = report["findings"].as_array().unwrap().iter();
    let matching = all.filter(|finding| finding["what"].as_str().unwrap().contains(what));
    matching.cloned().collect()
}

/// One finding of `--check` with this level, backend, text and next step: as JSON, and as a line for people.
#[track_caller]
fn finds(env: &Env, level: &str, backend: Option<&str>, what: &str, next: &str) {
    let report = env.json(["--check"]);
    let found = findings(&report, what);
    assert_eq!(found.len(), 1, "{what}: {report:#}");
    let keys: Vec<_> = found[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["backends", "level", "next", "what"]);
    assert_eq!(found[0]["level"], level, "{report:#}");
    let backends: Vec<_> = backend.into_iter().collect();
    assert_eq!(found[0]["backends"], json!(backends), "{report:#}");
    let text = |key: &str| found[0][key].as_str().unwrap().to_owned();
    assert!(text("next").contains(next), "{report:#}");
    let about = backend.map_or(String::new(), |name| format!("{name}: "));
    let line = format!("{level}: {about}{}; {}", text("what"), text("next"));
    // What to do can be in the reason.
    let line = line.strip_suffix("; ").unwrap_or(&line);
    let ran = env.run(["--check"]);
    assert_eq!(
        ran.stderr.lines().filter(|l| l == &line).count(),
        1,
        "{line}: {ran:#?}"
    );
}

#[track_caller]
fn finds_nothing_of(env: &Env, what: &str) {
    assert_eq!(findings(&env.json(["--check"]), what), [json!(null); 0]);
}

#[test]
fn one_page_says_what_and_whether() {
    let env = Env::new();
    home(&env, "1.12.0");
    env.run(["3000"]).exits(0);
    let ran = env.run(["--check"]).exits(0);
    let page = format!(
        "backend                          runtime     selected  chunk  stock  state\n\
         {NAME}  MLX 1.12.0  yes        3000   2048  patched\n\
         No model is loaded.\n"
    );
    assert_eq!(ran.stdout, page);
    let below = "note: 3000 is not a multiple of 256, so hybrid models lose their prompt cache on disk; `lmpatch 2816` keeps it\n";
    assert_eq!(ran.stderr, below);
}

#[test]
fn it_reads_only() {
    let env = Env::with_fixture();
    let standins = StandIns::new(&env);
    standins.script("launchctl", "exit 113");
    env.run(["4096"]).exits(0);
    let before = snapshot(&env.user());
    standins.run(["--check", "-v"]).exits(0);
    standins.json(["--check"]);
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
    let calls = standins.calls();
    let only_looks = |call: &String| call.starts_with("launchctl print ");
    assert!(calls.iter().all(only_looks), "{calls:?}");
}

#[test]
fn the_home_is_found_by_lm_studios_rules_and_named() {
    let env = Env::new();
    home(&env, "1.12.0");
    let found = |args: &[&str]| env.json(args)["home"].as_str().unwrap().to_owned();
    assert_eq!(found(&["--check"]), env.lmstudio().to_str().unwrap());
    let cache = env.user().join(".cache/lm-studio");
    usual_backend(&cache, NAME);
    assert_eq!(found(&["--check"]), cache.to_str().unwrap());
    let pointer = env.user().join(".lmstudio-home-pointer");
    fs::write(pointer, env.lmstudio().to_str().unwrap()).unwrap();
    assert_eq!(found(&["--check"]), env.lmstudio().to_str().unwrap());
    let given = ".cache/lm-studio";
    assert_eq!(found(&["--check", "--home", given]), given);
}

#[test]
fn without_a_home_the_report_says_what_to_do() {
    let env = Env::new();
    for args in [
        &["--check"][..],
        &["4096"],
        &["--revert"],
        &["--check", "--home", "x"],
    ] {
        let report = env.json(args);
        assert_eq!(
            (&report["schema"], &report["exit_code"]),
            (&json!(3), &json!(1))
        );
        assert_eq!(report["backends"], json!([]));
        let error = report["error"].as_str().unwrap();
        assert!(
            error.contains("is not there") && error.contains("--home DIR"),
            "{error}"
        );
    }
}

#[test]
fn a_runtime_without_its_backend_is_told_with_commands_that_can_be_copied() {
    let env = Env::new();
    home(&env, "1.12.0");
    let gone = "app-mlx-generate-mac14-arm64@40";
    runtime(&env.lmstudio(), "1.13.0", &[gone]);
    let what = format!("MLX 1.13.0 needs {gone}, which is not on disk");
    let spec = format!("{RUNTIME}@1.13.0");
    let next =
        format!("to download it again: `lms runtime remove {spec}`, then `lms runtime get {spec}`");
    finds(&env, "note", None, &what, &next);
    select(&env.lmstudio(), "1.13.0");
    let what = what.replace(" needs", ", the selected runtime, needs");
    finds(&env, "warning", None, &what, &next);
    let missing = &env.json(["--check"])["missing_backends"][0];
    assert_eq!(
        (&missing["name"], &missing["selected"]),
        (&json!(gone), &json!(true))
    );
    // What the selected runtime needs is not there, so nothing that was set takes effect.
    env.run(["4096"])
        .exits(1)
        .says(&format!("error: {what}"))
        .says_nothing_of("Takes effect");
    env.run(["--check", "4096"]).exits(3);
    // A file in its place is no backend either, and no pattern hides it.
    fs::write(env.amphibian().join(gone), "").unwrap();
    env.run(["8192", "--backend", "*@34"])
        .exits(1)
        .says(&format!("error: {what}"))
        .says_nothing_of("Takes effect");
}

#[test]
fn a_selection_that_is_not_known_is_told() {
    let env = Env::new();
    home(&env, "1.12.0");
    usual_backend(&env.lmstudio(), OTHER);
    let preferences = env.lmstudio().join(".internal/backend-preferences-v1.json");
    let row = json!({"model_format": "safetensors", "name": RUNTIME, "version": "1.12.0"});
    let fork = json!({"model_format": "safetensors", "name": "fork", "version": "1"});
    let gguf = json!({"model_format": "gguf", "name": "llama", "version": "2"});
    fs::write(&preferences, json!([gguf, row]).to_string()).unwrap();
    finds_nothing_of(&env, "the runtime of");
    assert_eq!(env.json(["--check"])["backends"][1]["selected"], true);

    fs::write(&preferences, json!([row, fork]).to_string()).unwrap();
    let what = "the runtime of LM Studio is unknown: its preferences name 2 for MLX models";
    finds(&env, "note", None, what, "`lms runtime select`");
    let report = env.json(["--check"]);
    let mut rows = report["backends"].as_array().unwrap().iter();
    assert!(rows.all(|row| row["selected"] == false), "{report:#}");
    // Any of them may be the one in use.
    env.run(["4096"])
        .exits(0)
        .says("Takes effect when a model is next loaded");

    fs::remove_file(&preferences).unwrap();
    finds(
        &env,
        "note",
        None,
        "the runtime of LM Studio is unknown",
        "under Runtime",
    );
}

#[test]
fn bionics_own_selection_counts_too() {
    let env = Env::new();
    home(&env, "1.12.0");
    usual_backend(&env.lmstudio(), OTHER);
    runtime(&env.lmstudio(), "1.11.0", &[OTHER]);
    let bionic = env.lmstudio().join("apps/bionic/.internal");
    fs::create_dir_all(&bionic).unwrap();
    let rows = json!([{"model_format": "safetensors", "name": RUNTIME, "version": "1.11.0"}]);
    let preferences = bionic.join("backend-preferences-v1.json");
    fs::write(&preferences, rows.to_string()).unwrap();
    let backends = env.json(["--check"])["backends"].clone();
    assert_eq!(
        (&backends[0]["selected"], &backends[1]["selected"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(backends[0]["runtimes"][0]["selected_by"], json!(["Bionic"]));
    assert_eq!(
        backends[1]["runtimes"][0]["selected_by"],
        json!(["LM Studio"])
    );

    env.run(["4096", "--backend", NAME]).exits(0).says(OTHER);
    let what = "Bionic uses it, and it is at stock while others are set";
    let next = format!("`lmpatch 4096 --backend '{OTHER}'` sets it");
    finds(&env, "warning", Some(OTHER), what, &next);
    env.run(["--revert"]).exits(0);
    env.run(["8192", "--backend", OTHER]).exits(0);
    let what = "LM Studio uses it, and it is at stock while others are set";
    let next = format!("`lmpatch 8192 --backend '{NAME}'` sets it");
    finds(&env, "warning", Some(NAME), what, &next);
    env.run(["2048"]).exits(0);
    finds_nothing_of(&env, "at stock while others are set");

    fs::write(&preferences, json!([rows[0], rows[0]]).to_string()).unwrap();
    finds(
        &env,
        "note",
        None,
        "the runtime of Bionic is unknown",
        "Runtime",
    );
}

#[test]
fn two_runtimes_of_one_version_are_told_apart() {
    let env = Env::new();
    home(&env, "1.12.0");
    usual_backend(&env.lmstudio(), OTHER);
    let directory = env.lmstudio().join("extensions/backends/nax");
    fs::create_dir_all(&directory).unwrap();
    let manifest = json!({
        "name": "mlx-llm-mac-arm64-apple-metal-nax-advsimd", "version": "1.12.0", "engine": "mlx-llm",
        "vendor_lib_package_names": [format!("_amphibian/{OTHER}")],
    });
    fs::write(
        directory.join("backend-manifest.json"),
        manifest.to_string(),
    )
    .unwrap();
    let ran = env.run(["--check"]).exits(0);
    let table = format!(
        "backend                          runtime         selected  chunk  stock  state\n\
         {OTHER}  MLX 1.12.0 nax             2048   2048  stock\n\
         {NAME}  MLX 1.12.0      yes        2048   2048  stock\n\
         No model is loaded.\n"
    );
    assert_eq!(ran.stdout, table);
}

#[test]
fn the_state_of_each_backend_is_judged() {
    let env = Env::new();
    let backend = home(&env, "1.12.0");
    assert_eq!(env.json(["--check"])["findings"], json!([]));
    fs::write(backend.engine(), engine_since_2026("8192")).unwrap();
    finds(
        &env,
        "warning",
        Some(NAME),
        "so it is set only in part",
        &format!("`lmpatch 8192 --backend '{NAME}'` sets them all"),
    );
    // Nothing proves what this engine was, so the way back is no advice.
    let next = findings(&env.json(["--check"]), "so it is set only in part")[0]["next"].clone();
    assert!(!next.as_str().unwrap().contains("revert"), "{next}");
    env.run(["8192"]).exits(0);
    assert_eq!(env.json(["--check", "8192"])["exit_code"], 0);
    // A revert also ends what lmpatch noted of the odd number.
    env.run(["--revert"]).exits(0);
    fs::write(backend.engine(), engine_since_2026("2048")).unwrap();
    fs::write(backend.generate(), generate("8192", "8192", "8192")).unwrap();
    let revert = &format!("`lmpatch --revert --backend '{NAME}'` restores them");
    finds(
        &env,
        "warning",
        Some(NAME),
        "so it is set only in part",
        revert,
    );
    env.run(["--revert"]).exits(0);

    fs::write(backend.engine(), "x = 1\n").unwrap();
    let refused = "no constant PROMPT_PROCESSING_CHUNK_SIZE";
    finds(&env, "error", Some(NAME), refused, "");
    env.run(["--check"])
        .says("; if nobody edited it, a newer lmpatch may know it\n");
    env.run(["--check"]).exits(1).shows("refused");
    fs::remove_file(backend.engine()).unwrap();
    let incomplete = "cache_wrapper.py: not there";
    finds(
        &env,
        "warning",
        Some(NAME),
        incomplete,
        "let LM Studio finish its update",
    );
    env.run(["--check"]).exits(0).shows("incomplete");
    fs::remove_dir_all(backend.engine().parent().unwrap()).unwrap();
    let alone = "of mlx_engine and mlx_lm only mlx_lm is there";
    let next = "run this again when that is done";
    finds(&env, "warning", Some(NAME), alone, next);
    env.run(["4096"]).exits(0).says(alone).says(next);
}

#[test]
fn a_selected_backend_that_is_incomplete_is_named_as_what_was_not_changed() {
    for empty in [true, false] {
        let env = Env::new();
        let backend = home(&env, "1.12.0");
        usual_backend(&env.lmstudio(), OTHER);
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
        env.run(["4096"])
            .exits(1)
            .shows("incomplete")
            .says(&format!(
                "error: {NAME}: LM Studio uses it, and it was not changed: "
            ))
            .says(why)
            .says("2 backends: 1 changed, 1 incomplete")
            .says_nothing_of("Takes effect");
        let report = env.json(["8192"]);
        assert_eq!(report["exit_code"], 1);
        let results = [
            &report["backends"][0]["result"],
            &report["backends"][1]["result"],
        ];
        assert_eq!(results, [&json!("changed"), &json!("incomplete")]);
    }
}

#[test]
fn a_selected_backend_that_is_refused_takes_no_effect() {
    let env = Env::new();
    let backend = home(&env, "1.12.0");
    usual_backend(&env.lmstudio(), OTHER);
    fs::write(backend.engine(), "x = 1\n").unwrap();
    env.run(["4096"])
        .exits(1)
        .says("LM Studio uses it, and it was not changed: ")
        .says("1 changed, 1 refused")
        .says_nothing_of("Takes effect");
}

#[test]
fn a_check_of_a_size_never_advises_what_a_refusal_will_stop() {
    let env = Env::new();
    let backend = home(&env, "1.12.0");
    fs::write(backend.engine(), "x = 1\n").unwrap();
    env.run(["--check", "4096"])
        .exits(1)
        .says("4096 in 0 of 1 backend")
        .says_nothing_of("lmpatch 4096");
    assert_eq!(env.json(["--check", "4096"])["exit_code"], 1);
    usual_backend(&env.lmstudio(), OTHER);
    env.run(["--check", "4096"])
        .exits(1)
        .says("4096 in 0 of 2 backends; `lmpatch 4096` sets it");
    env.run(["4096"]).exits(1).says("1 changed, 1 refused");
    env.run(["--check", "4096"])
        .exits(1)
        .says("4096 in 1 of 2 backends")
        .says_nothing_of("lmpatch 4096");
}

#[test]
fn sizes_that_cost_something_are_told() {
    let env = Env::new();
    home(&env, "1.11.0").write("mlx_engine/model_kit/batched_vision/context_fit.py", "");
    env.run(["12000"]).exits(0);
    finds(
        &env,
        "note",
        None,
        "12000 is not a multiple of 256",
        "`lmpatch 11776` keeps it",
    );
    finds(
        &env,
        "note",
        None,
        "12000 may be too much",
        "`lmpatch 4096`",
    );
    finds(
        &env,
        "note",
        Some(NAME),
        "leaves less memory for context",
        &format!("`lmpatch 2048 --backend '{NAME}'`"),
    );
    env.run(["1024"]).exits(0);
    finds(
        &env,
        "note",
        Some(NAME),
        "1024 is below its stock 2048",
        "`lmpatch --revert`",
    );
    env.run(["4096"]).exits(0);
    for gone in ["256", "above 8192", "below its stock"] {
        finds_nothing_of(&env, gone);
    }
    env.run(["--revert"]).exits(0);
    assert_eq!(env.json(["--check"])["findings"], json!([]));
}

#[test]
fn an_agent_that_does_not_work_is_found() {
    let env = Env::new();
    home(&env, "1.12.0");
    finds_nothing_of(&env, "agent");
    let job = env
        .user()
        .join("Library/LaunchAgents/io.github.lmpatch.agent.plist");
    fs::create_dir_all(job.parent().unwrap()).unwrap();
    fs::write(&job, "nonsense").unwrap();
    let what = "its job was not written by lmpatch";
    finds(&env, "warning", None, what, "`lmpatch agent install 4096`");
}

#[test]
fn names_cannot_drive_the_terminal() {
    let env = Env::new();
    home(&env, "1.12.0");
    usual_backend(&env.lmstudio(), "app-mlx-generate\u{1b}[31m@1").with_generate("x");
    let ran = env.run(["--check"]).exits(1);
    assert!(
        !ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'),
        "{ran:#?}"
    );
}

/// Moves `path` into an app bundle and leaves a link to it.
fn move_into_app(env: &Env, path: &Path) -> PathBuf {
    let inside = env
        .user()
        .join("Applications/LM Studio.app/Contents/Resources");
    fs::create_dir_all(&inside).unwrap();
    let moved = inside.join(path.file_name().unwrap());
    fs::rename(path, &moved).unwrap();
    symlink(&moved, path).unwrap();
    moved
}

#[test]
fn a_home_in_an_app_bundle_is_refused() {
    let places: [fn(&Env) -> PathBuf; 3] = [
        Env::lmstudio,
        |env| env.lmstudio().join("extensions"),
        Env::amphibian,
    ];
    for place in places {
        let env = Env::new();
        home(&env, "1.12.0");
        move_into_app(&env, &place(&env));
        let before = snapshot(&env.user());
        for args in [
            &["--check"][..],
            &["4096"],
            &["4096", "--dry-run"],
            &["--revert"],
        ] {
            env.run(args)
                .exits(1)
                .says("LM Studio.app")
                .says("signature")
                .says("remove the link");
            assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
        }
        assert!(
            env.json(["--check"])["error"]
                .as_str()
                .unwrap()
                .contains("LM Studio.app")
        );
    }
}

#[test]
fn a_backend_or_vendor_file_in_an_app_bundle_is_refused_and_its_neighbours_done() {
    let places: [fn(&BackendDir) -> PathBuf; 4] = [
        |backend| backend.root.clone(),
        |backend| backend.root.join("lib"),
        |backend| backend.path("mlx_engine"),
        BackendDir::generate,
    ];
    for place in places {
        let env = Env::new();
        let backend = home(&env, "1.12.0");
        let good = usual_backend(&env.lmstudio(), OTHER);
        let moved = move_into_app(&env, &place(&backend));
        let app = env.user().join("Applications");
        let before = snapshot(&app);
        env.run(["--check"])
            .exits(1)
            .shows("refused")
            .says(&format!("error: {NAME}: "))
            .says("LM Studio.app")
            .says("signature");
        env.run(["4096"])
            .exits(1)
            .says("LM Studio.app")
            .says("1 changed, 1 refused");
        assert_eq!(snapshot(&app), before, "{}", moved.display());
        assert_eq!(
            fs::read_to_string(good.engine()).unwrap(),
            engine_since_2026("4096")
        );
        env.run(["--revert"]).exits(1).says("1 changed, 1 refused");
        assert_eq!(snapshot(&app), before);
    }
}

/// Advice is for what was asked about, and never a revert that would be refused.
#[test]
fn advice_can_be_followed_to_its_end() {
    let env = Env::new();
    let backend = home(&env, "1.12.0");
    usual_backend(&env.lmstudio(), OTHER);
    let advice = format!("lmpatch 8192 --backend '{NAME}'");
    env.run(["--check", "8192", "--backend", NAME])
        .exits(3)
        .says(&format!("8192 in 0 of 1 backend; `{advice}` sets it"));
    let below = "1024 is below its stock 2048";
    fs::write(backend.engine(), engine_since_2026("1024")).unwrap();
    fs::write(backend.generate(), generate("1024", "1024", "1024")).unwrap();
    finds(
        &env,
        "note",
        Some(NAME),
        below,
        &format!("`lmpatch 2048 --backend '{NAME}'` sets that again"),
    );
    env.run(["2048", "--backend", NAME]).exits(0);
    finds_nothing_of(&env, below);
}
