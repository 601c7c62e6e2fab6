//! Whether loaded models have what is on disk: from real processes, and the decision from literals.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::home::{BackendDir, RUNTIME, runtime, select, select_in, usual_backend};
use crate::support::lms::{FakeLms, Running, node};
use crate::support::standins::{ago, executable, until, written};
use crate::support::{Env, LMPATCH, amphibian};
use lmpatch::lmstudio::backends::Backend;
use lmpatch::lmstudio::runtimes::{APPS, Runtime};
use lmpatch::lmstudio::workers::{LoadState, Worker, WorkerSnapshot};
use serde_json::{Value, json};

const USED: &str = "app-mlx-generate-mac14-arm64@34";
const OTHER: &str = "app-mlx-generate-mac14-arm64@19";
const LM_STUDIO: &str = "/Applications/LM Studio.app/Contents/Resources/app/lib/llmworker.js";
const BIONIC: &str = "/Applications/Bionic.app/Contents/Resources/app/lib/llmworker.js";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A home with a selected backend and another one, all written an hour ago.
fn home(lmstudio: &Path) -> (BackendDir, BackendDir) {
    let used = usual_backend(lmstudio, USED);
    let other = usual_backend(lmstudio, OTHER);
    runtime(lmstudio, "1.12.0", &[USED]);
    runtime(lmstudio, "1.1.0", &[OTHER]);
    select(lmstudio, "1.12.0");
    for path in [
        used.engine(),
        used.generate(),
        other.engine(),
        other.generate(),
    ] {
        written(&path, ago(3600));
    }
    written(&lmstudio.join(APPS[0].1), ago(7200));
    node(lmstudio);
    (used, other)
}

fn in_effect(report: &Value) -> [&str; 2] {
    [1, 0].map(|index| report["backends"][index]["in_effect"].as_str().unwrap())
}

#[test]
fn the_start_of_a_worker_is_held_against_the_last_write_of_the_files() {
    let env = Env::new();
    let (used, _) = home(&env.lmstudio());
    assert_eq!(
        in_effect(&env.json(["--check"])),
        ["not-running", "not-running"]
    );
    env.run(["--check"]).exits(0).shows("No model is loaded.");
    let worker = Running::worker(&env.lmstudio(), LM_STUDIO);
    let report = env.json(["--check"]);
    assert_eq!(in_effect(&report), ["in-effect", "not-running"]);
    let seen = &report["workers"][0];
    assert_eq!(
        (&seen["pid"], &seen["app"]),
        (&worker.pid().into(), &"LM Studio".into())
    );
    let started = seen["started"].as_u64().unwrap();
    // Either file counts; within one second it is not known which came first.
    for (seconds, expected) in [(started, "reload-needed"), (started - 1, "in-effect")] {
        written(&used.generate(), at(seconds));
        assert_eq!(in_effect(&env.json(["--check"]))[0], expected);
    }
    written(&used.engine(), at(started));
    let report = env.json(["--check"]);
    assert_eq!(
        report["backends"][1]["stale_workers"],
        json!([worker.pid()])
    );
    env.run(["--check"])
        .exits(0)
        .says(&format!("worker {} started before", worker.pid()));
    // A date in the future says nothing about the past.
    written(
        &used.engine(),
        SystemTime::now() + Duration::from_secs(3600),
    );
    let report = env.json(["--check"]);
    assert_eq!(in_effect(&report), ["unknown", "not-running"]);
    env.run(["--check"]).exits(0).says("one in the future");
}

#[test]
fn a_home_is_recognised_however_it_is_spelled() {
    for name in ["Größe 你好", "with space", "plain"] {
        let env = Env::new();
        let lmstudio = env.user().join(name).join(".lmstudio");
        home(&lmstudio);
        let link = env.user().join("link");
        symlink(env.user().join(name), &link).unwrap();
        let spellings = [
            lmstudio.clone(),
            link.join(".lmstudio"),
            link.join("../link/.lmstudio"),
        ];
        for started_as in &spellings {
            let worker = Running::worker(started_as, LM_STUDIO);
            for asked_as in &spellings {
                let asked_as = asked_as.to_str().unwrap();
                let report = env.json(["--check", "--home", asked_as]);
                assert_eq!(report["workers"][0]["pid"], worker.pid(), "{name}");
                assert_eq!(in_effect(&report), ["in-effect", "not-running"]);
            }
        }
    }
}

#[test]
fn look_alikes_are_no_workers() {
    let env = Env::new();
    home(&env.lmstudio());
    let here = env.lmstudio().join(".internal/utils/node");
    let elsewhere = node(&env.user().join("other"));
    let beside = here.with_file_name("node-helper");
    fs::rename(node(&env.user().join("third")), &beside).unwrap();
    let starts: [(&PathBuf, &str); 6] = [
        (&here, "/x/other.js"),
        (&here, "/x/llmworker.js.map"),
        (&here, "/x/my-llmworker.js"),
        (&here, "llmworker.json"),
        (&elsewhere, LM_STUDIO),
        (&beside, LM_STUDIO),
    ];
    let running: Vec<_> = starts
        .iter()
        .map(|(program, word)| Running::start(program, &[word]))
        .collect();
    let report = env.json(["--check"]);
    assert_eq!(report["workers"], json!([]));
    assert_eq!(in_effect(&report), ["not-running", "not-running"]);
    drop(running);
}

#[test]
fn each_apps_workers_follow_its_own_choice() {
    let env = Env::new();
    home(&env.lmstudio());
    select_in(&env.lmstudio(), APPS[1].1, "1.1.0");
    written(&env.lmstudio().join(APPS[1].1), ago(7200));
    let llmster = env.lmstudio().join("llmster/0.0.3-1/.bundle/llmworker.js");
    for (script, app, expected) in [
        (LM_STUDIO, "LM Studio", ["in-effect", "not-running"]),
        (BIONIC, "Bionic", ["not-running", "in-effect"]),
        (
            llmster.to_str().unwrap(),
            "llmster",
            ["in-effect", "not-running"],
        ),
        ("/opt/x/llmworker.js", "", ["unknown", "unknown"]),
    ] {
        let _worker = Running::worker(&env.lmstudio(), script);
        let report = env.json(["--check"]);
        assert_eq!(report["workers"][0]["app"], app);
        assert_eq!(in_effect(&report), expected, "{app}");
    }
    // From before the choice was made: it may use either.
    let _worker = Running::worker(&env.lmstudio(), BIONIC);
    written(&env.lmstudio().join(APPS[1].1), SystemTime::now());
    let report = env.json(["--check"]);
    assert_eq!(in_effect(&report), ["unknown", "unknown"]);
    env.run(["--check"])
        .exits(0)
        .says("the choice of a runtime in Bionic is newer than worker");
}

#[test]
fn an_engine_that_was_started_by_hand_is_told_as_unknown() {
    let env = Env::new();
    let (used, other) = home(&env.lmstudio());
    let python = used.root.join("bin/python3.11");
    fs::create_dir_all(python.parent().unwrap()).unwrap();
    fs::rename(node(&env.user().join("x")), &python).unwrap();
    let outside = env.user().join("python3");
    fs::rename(node(&env.user().join("y")), &outside).unwrap();
    let script = other.path("mlx_lm/server.py");
    for (program, word, expected) in [
        (&python, "-m", ["unknown", "not-running"]),
        (
            &outside,
            script.to_str().unwrap(),
            ["not-running", "unknown"],
        ),
        (
            &outside,
            "/elsewhere/_amphibian/app/server.py",
            ["not-running", "not-running"],
        ),
    ] {
        let engine = Running::start(program, &[word]);
        let report = env.json(["--check"]);
        assert_eq!(in_effect(&report), expected);
        if expected.contains(&"unknown") {
            let pid = engine.pid();
            env.run(["--check"])
                .exits(0)
                .says(&format!("process {pid} may use it"));
        }
    }
}

#[test]
fn a_change_names_the_workers_that_hold_old_values_and_touches_nothing() {
    let env = Env::new();
    let (used, _) = home(&env.lmstudio());
    let fake = FakeLms::start(&env.lmstudio(), &used.engine());
    fake.add(json!({ "path": "qwen/tiny" }));
    let pid = fake.loaded()[0]["pid"].to_string();
    for arguments in [["4096"], ["4096"], ["--revert"]] {
        env.run(arguments)
            .exits(0)
            .says(&format!(
                "a loaded model may still have the old values: worker {pid} started before"
            ))
            .says("--reload");
    }
    env.run(["2048", "--dry-run"])
        .exits(0)
        .says_nothing_of(&pid);
    assert_eq!(fake.deeds(), [] as [&str; 0]);
}

#[test]
fn lms_is_asked_only_about_a_worker_that_is_older_than_the_files() {
    let env = Env::new();
    let (used, _) = home(&env.lmstudio());
    let fake = FakeLms::start(&env.lmstudio(), &used.engine());
    fake.set("running", json!(false));
    env.run(["--check"]).exits(0);
    env.run(["4096"]).exits(0);
    assert_eq!(fake.calls(), [] as [&str; 0], "it would start LM Studio");
    fake.set("running", json!(true));
    written(&used.engine(), ago(3600));
    written(&used.generate(), ago(3600));
    fake.add(json!({ "path": "llama/tiny", "format": "gguf" }));
    assert_eq!(in_effect(&env.json(["--check"]))[0], "in-effect");
    assert_eq!(fake.calls(), [] as [&str; 0]);
    env.run(["8192"]).exits(0).says_nothing_of("older values");
    assert_eq!(
        in_effect(&env.json(["--check"]))[0],
        "not-running",
        "only a GGUF model"
    );
    fake.add(json!({ "path": "far/away", "deviceIdentifier": "other-mac" }));
    assert_eq!(
        in_effect(&env.json(["--check"]))[0],
        "not-running",
        "the MLX model is elsewhere"
    );
}

/// A backend that these apps use, as LM Studio's manifests would have it.
fn backend(name: &str, selected_by: &[&'static str]) -> Backend {
    Backend {
        name: name.into(),
        path: PathBuf::new(),
        real: PathBuf::new(),
        site_packages: Ok(Vec::new()),
        runtimes: vec![Runtime {
            name: String::new(),
            version: String::new(),
            label: String::new(),
            packages: Vec::new(),
            selected: !selected_by.is_empty(),
            selected_by: selected_by.to_vec(),
        }],
        selected: !selected_by.is_empty(),
    }
}

fn worker(pid: u32, started: u64, app: &str) -> Worker {
    let app = app.to_owned();
    Worker { pid, started, app }
}

#[test]
fn the_decision_from_literals() {
    use LoadState::{InEffect, NotLoaded, ReloadNeeded};
    let used = backend("a", &["LM Studio"]);
    let seen = WorkerSnapshot {
        selected_since: vec![("LM Studio", 10), ("Bionic", 10)],
        ..WorkerSnapshot::default()
    };
    let with = |workers: &[Worker], loaded| WorkerSnapshot {
        workers: workers.to_vec(),
        loaded,
        ..seen.clone()
    };
    let (old, new) = (worker(1, 100, "LM Studio"), worker(2, 102, "LM Studio"));
    let bionic = worker(3, 50, "Bionic");
    for (snapshot, expected) in [
        (with(&[], None), NotLoaded),
        (with(&[new.clone()], None), InEffect),
        (
            with(&[worker(4, 101, "LM Studio")], None),
            ReloadNeeded(vec![worker(4, 101, "LM Studio")]),
        ),
        (
            with(&[old.clone(), new.clone()], None),
            ReloadNeeded(vec![old.clone()]),
        ),
        (with(&[bionic.clone()], None), NotLoaded),
        (with(&[bionic.clone(), new.clone()], None), InEffect),
        (
            with(&[worker(5, 100, "llmster")], None),
            ReloadNeeded(vec![worker(5, 100, "llmster")]),
        ),
        (with(&[old.clone()], Some((0, 1))), NotLoaded),
        (
            with(&[old.clone()], Some((1, 0))),
            ReloadNeeded(vec![old.clone()]),
        ),
        // Of another app, which lms does not know, or still being loaded.
        (
            with(&[old.clone()], Some((0, 0))),
            ReloadNeeded(vec![old.clone()]),
        ),
        (
            with(&[old.clone(), worker(6, 99, "LM Studio")], Some((1, 1))),
            ReloadNeeded(vec![old.clone(), worker(6, 99, "LM Studio")]),
        ),
    ] {
        assert_eq!(
            snapshot.load_state(&used, Some(101)),
            expected,
            "{snapshot:?}"
        );
    }
    // What LM Studio has loaded is no excuse for a worker of Bionic.
    let bionics = backend("a", &["Bionic"]);
    let both = with(&[bionic.clone(), new.clone()], Some((0, 1)));
    let state = both.load_state(&bionics, Some(101));
    assert_eq!(state, ReloadNeeded(vec![bionic]));
    let unknown = |snapshot: &WorkerSnapshot, written| match snapshot.load_state(&used, written) {
        LoadState::Unknown(why) => why,
        other => panic!("{other:?}: {snapshot:?}"),
    };
    assert!(
        unknown(&with(&[old.clone(), new.clone()], Some((1, 1))), Some(101))
            .contains("another engine")
    );
    assert!(unknown(&with(&[new.clone()], None), None).contains("no date"));
    assert!(
        unknown(&with(&[worker(7, 10, "LM Studio")], None), Some(5))
            .contains("newer than worker 7")
    );
    assert!(unknown(&with(&[worker(8, 500, "Other")], None), Some(5)).contains("worker 8"));
    for (directory, is_its) in [
        ("a", true),
        ("b", false),
        ("cpython3.11-mac-arm64@10", true),
    ] {
        let foreign = vec![(9, directory.to_owned())];
        let snapshot = WorkerSnapshot {
            foreign,
            ..with(&[new.clone()], None)
        };
        let is_unknown = matches!(snapshot.load_state(&used, Some(101)), LoadState::Unknown(_));
        assert_eq!(is_unknown, is_its, "{directory}");
    }
    let nothing_known = WorkerSnapshot {
        selected_since: Vec::new(),
        ..with(&[new], None)
    };
    assert!(unknown(&nothing_known, Some(101)).contains("is unknown"));
}

#[test]
fn a_python_that_a_worker_has_started_is_part_of_it() {
    let env = Env::new();
    let (used, _) = home(&env.lmstudio());
    let python = used.root.join("bin/python3.11");
    fs::create_dir_all(python.parent().unwrap()).unwrap();
    fs::rename(node(&env.user().join("x")), &python).unwrap();
    let node = env.lmstudio().join(".internal/utils/node");
    let child = format!("'{}' -c 'read line'; :", python.display());
    let worker = Running::start_script(&node, &child, &[LM_STUDIO]);
    let has_child = || {
        Command::new("pgrep")
            .arg("-P")
            .arg(worker.pid().to_string())
            .output()
    };
    until("its child runs", || {
        has_child().is_ok_and(|o| !o.stdout.is_empty())
    });
    assert_eq!(
        in_effect(&env.json(["--check"])),
        ["in-effect", "not-running"]
    );
}

#[test]
fn where_the_selected_runtime_is_unknown_nothing_is_said_of_its_models() {
    let env = Env::new();
    let (used, _) = home(&env.lmstudio());
    let _worker = Running::worker(&env.lmstudio(), LM_STUDIO);
    written(&used.engine(), SystemTime::now());
    let runtime = format!("extensions/backends/{RUNTIME}-1.12.0");
    let manifest = env.lmstudio().join(runtime).join("backend-manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for (known, odd) in [
        ("vendor_lib_package_names", "packages"),
        (USED, "cpython3.11-mac-arm64@10"),
    ] {
        fs::write(&manifest, text.replace(known, odd)).unwrap();
        env.run(["--check"])
            .exits(0)
            .says("its preferences name one whose manifest lists no MLX backend");
        assert_eq!(in_effect(&env.json(["--check"])), ["unknown", "unknown"]);
    }
    // It need not have the usual name.
    let other = "mlx-engine-mac15-arm64@1";
    usual_backend(&env.lmstudio(), other);
    fs::write(&manifest, text.replace(USED, other)).unwrap();
    env.run(["--check"])
        .exits(0)
        .says_nothing_of("lists no MLX backend");
    fs::remove_file(&manifest).unwrap();
    let ran = env.run(["--check"]).exits(0);
    let ran = ran.says("its preferences name one that is not there");
    assert!(!ran.stdout.contains("No loaded model"), "{}", ran.stdout);
    assert_eq!(in_effect(&env.json(["--check"])), ["unknown", "unknown"]);
}

#[test]
fn while_lms_is_asked_the_files_are_written_and_nothing_is_locked() {
    let env = Env::new();
    home(&env.lmstudio());
    let _worker = Running::worker(&env.lmstudio(), LM_STUDIO);
    let (lms, seen) = (env.lmstudio().join("bin/lms"), env.user().join("seen"));
    let body = format!(
        "flock --nonblock '{}' '{}' --check 4096 --home '{}' -q >'{}' 2>&1; echo $? >>'{3}'; echo '[]'",
        amphibian(&env.lmstudio()).display(),
        LMPATCH,
        env.lmstudio().display(),
        seen.display()
    );
    executable(&lms, &body);
    env.run(["4096"]).exits(0);
    assert_eq!(fs::read_to_string(seen).unwrap(), "0\n");
}

#[test]
fn where_two_apps_have_old_workers_both_are_named() {
    let env = Env::new();
    let (used, _) = home(&env.lmstudio());
    select_in(&env.lmstudio(), APPS[1].1, "1.12.0");
    written(&env.lmstudio().join(APPS[1].1), ago(7200));
    let _workers = [LM_STUDIO, BIONIC].map(|script| Running::worker(&env.lmstudio(), script));
    written(&used.engine(), SystemTime::now());
    env.run(["--check"])
        .exits(0)
        .says("load it again in Bionic and LM Studio")
        .says_nothing_of("--reload");
}
