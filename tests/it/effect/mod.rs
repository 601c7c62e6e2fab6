//! Whether loaded models have what is on disk: from real processes, and the decision from literals.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::child::until;
use crate::support::home::{BackendDir, RUNTIME, runtime, select, usual_backend};
use crate::support::lms::{FakeLms, Running, node, shell};
use crate::support::standins::{ago, executable, written};
use crate::support::{Env, LMPATCH, Ran, fields, text};
use lmpatch::lmstudio::runtimes::{APPS, PREFERENCES};
use serde_json::{Value, json};

mod decision;

const USED: &str = "app-mlx-generate-mac14-arm64@34";
const OTHER: &str = "app-mlx-generate-mac14-arm64@19";
const LM_STUDIO: &str = "/Applications/LM Studio.app/Contents/Resources/app/lib/llmworker.js";
const BIONIC: &str = "/Applications/Bionic.app/Contents/Resources/app/lib/llmworker.js";
const NOTHING: [&str; 0] = [];

/// A home with a selected backend and another one, all written an hour ago, and nothing that runs.
struct Stage {
    env: Env,
    used: BackendDir,
}

impl Stage {
    fn new() -> Self {
        Self::below("")
    }

    /// With `.lmstudio` in this directory of the user.
    fn below(directory: &str) -> Self {
        let env = Env::new();
        let home = env.user().join(directory).join(".lmstudio");
        let [used, other] = [USED, OTHER].map(|name| usual_backend(&home, name));
        runtime(&home, "1.12.0", &[USED]);
        runtime(&home, "1.1.0", &[OTHER]);
        select(&home, "1.12.0");
        written(&home.join(APPS[0].1).join(PREFERENCES), ago(7200));
        for backend in [&used, &other] {
            written(&backend.engine(), ago(3600));
            written(&backend.generate(), ago(3600));
        }
        node(&home);
        Self { env, used }
    }

    fn home(&self) -> PathBuf {
        self.env.lmstudio()
    }

    /// Bionic has selected this runtime, long ago.
    fn select_in_bionic(&self, version: &str) {
        select(&self.home().join(APPS[1].1), version);
        written(&self.home().join(APPS[1].1).join(PREFERENCES), ago(7200));
    }

    fn worker(&self, script: &str) -> Running {
        Running::worker(&self.home(), script)
    }

    fn lms(&self) -> FakeLms {
        FakeLms::start(&self.home(), &self.used.engine())
    }

    fn check(&self) -> Ran {
        self.env.run(["--check"]).exits(0)
    }

    /// Fails the test unless this is said of the models of the selected backend and of the other one; the report.
    #[track_caller]
    fn has(&self, used: &str, other: &str) -> Value {
        let report = self.env.json(["--check"]);
        assert_eq!(in_effect(&report), [used, other], "{report:#}");
        report
    }
}

fn in_effect(report: &Value) -> [&str; 2] {
    [1, 0].map(|index| report["backends"][index]["in_effect"].as_str().unwrap())
}

#[test]
fn the_start_of_a_worker_is_held_against_the_last_write_of_the_files() {
    let stage = Stage::new();
    stage.has("not-running", "not-running");
    stage.check().says_nothing_of("loaded models");
    let worker = stage.worker(LM_STUDIO);
    let seen = &stage.has("in-effect", "not-running")["workers"][0];
    let expected = json!([worker.pid(), "LM Studio"]);
    assert_eq!(fields(seen, ["pid", "app"]), expected);
    let told = format!("note: {USED}: loaded models have its values");
    stage.check().says(&told);
    let started = UNIX_EPOCH + Duration::from_secs(seen["started"].as_u64().unwrap());
    // Either file counts; within one second it is not known which came first.
    written(&stage.used.generate(), started);
    stage.has("reload-needed", "not-running");
    written(&stage.used.generate(), started - Duration::from_secs(1));
    stage.has("in-effect", "not-running");
    written(&stage.used.engine(), started);
    let report = stage.has("reload-needed", "not-running");
    let workers = &report["backends"][1]["stale_workers"];
    assert_eq!(*workers, json!([worker.pid()]));
    let older = format!("worker {} started before", worker.pid());
    stage.check().says(&older);
    // A date in the future says nothing about the past.
    let future = SystemTime::now() + Duration::from_secs(3600);
    written(&stage.used.engine(), future);
    stage.has("unknown", "not-running");
    stage.check().says("one in the future");
}

#[test]
fn a_home_is_recognised_however_it_is_spelled() {
    for name in ["Größe 你好", "with space", "plain"] {
        let stage = Stage::below(name);
        let (directory, link) = (stage.env.user().join(name), stage.env.user().join("link"));
        symlink(&directory, &link).unwrap();
        let spellings = [&directory, &link, &link.join("../link")].map(|at| at.join(".lmstudio"));
        for started_as in &spellings {
            let worker = Running::worker(started_as, LM_STUDIO);
            for asked_as in &spellings {
                let asked_as = asked_as.to_str().unwrap();
                let report = stage.env.json(["--check", "--home", asked_as]);
                assert_eq!(report["workers"][0]["pid"], worker.pid(), "{name}");
                assert_eq!(in_effect(&report), ["in-effect", "not-running"]);
            }
        }
    }
}

#[test]
fn look_alikes_are_no_workers() {
    let stage = Stage::new();
    let here = stage.home().join(".internal/utils/node");
    let beside = shell(here.with_file_name("node-helper"));
    let elsewhere = node(&stage.env.user().join("other"));
    let _running = [
        (&here, "/x/other.js"),
        (&here, "/x/my-llmworker.js"),
        (&elsewhere, LM_STUDIO),
        (&beside, LM_STUDIO),
    ]
    .map(|(program, word)| Running::start(program, &[word]));
    let report = stage.has("not-running", "not-running");
    assert_eq!(report["workers"], json!([]));
}

#[test]
fn each_apps_workers_follow_its_own_choice() {
    let stage = Stage::new();
    stage.select_in_bionic("1.1.0");
    let llmster = stage.home().join("llmster/0.0.3-1/.bundle/llmworker.js");
    let llmster = llmster.to_str().unwrap();
    for (script, app, used, other) in [
        (LM_STUDIO, "LM Studio", "in-effect", "not-running"),
        (BIONIC, "Bionic", "not-running", "in-effect"),
        (llmster, "llmster", "in-effect", "not-running"),
        ("/opt/x/llmworker.js", "", "unknown", "unknown"),
    ] {
        let _worker = stage.worker(script);
        let report = stage.has(used, other);
        assert_eq!(report["workers"][0]["app"], app);
    }
    // From before the choice was made: it may use either.
    let _workers = [LM_STUDIO, BIONIC].map(|script| stage.worker(script));
    written(
        &stage.home().join(APPS[1].1).join(PREFERENCES),
        SystemTime::now(),
    );
    stage.has("unknown", "unknown");
    let told = "is unknown, or was chosen after it started";
    stage.check().says(told);
    // `lms` does not know Bionic's models.
    stage.select_in_bionic("1.12.0");
    written(&stage.used.engine(), SystemTime::now());
    let told = "load it again in its app";
    stage.check().says(told).says_nothing_of("--reload");
}

#[test]
fn an_engine_that_was_started_by_hand_is_told_as_unknown_and_one_of_a_worker_is_part_of_it() {
    let stage = Stage::new();
    let python = shell(stage.used.root.join("bin/python3.11"));
    let outside = shell(stage.env.user().join("python3"));
    let script = stage.env.amphibian().join(OTHER).join("server.py");
    let (here, elsewhere) = (
        script.to_str().unwrap(),
        "/elsewhere/_amphibian/app/server.py",
    );
    for (program, word, used, other) in [
        (&python, "-m", "unknown", "not-running"),
        (&outside, here, "not-running", "unknown"),
        (&outside, elsewhere, "not-running", "not-running"),
    ] {
        let engine = Running::start(program, &[word]);
        stage.has(used, other);
        if [used, other].contains(&"unknown") {
            let told = format!("process {} may use it", engine.pid());
            stage.check().says(&told);
        }
    }
    let node = stage.home().join(".internal/utils/node");
    let child = format!("'{}' -c 'read line'; :", python.display());
    let worker = Running::start_script(&node, &child, &[LM_STUDIO]);
    until("its child runs", || {
        let mut children = Command::new("pgrep");
        let found = children.arg("-P").arg(worker.pid().to_string()).output();
        found.is_ok_and(|found| !found.stdout.is_empty())
    });
    stage.has("in-effect", "not-running");
}

#[test]
fn a_change_names_the_workers_that_hold_old_values_and_touches_nothing() {
    let stage = Stage::new();
    let fake = stage.lms();
    fake.add(json!({ "path": "qwen/tiny" }));
    let pid = fake.loaded()[0]["pid"].to_string();
    let old = format!("a loaded model may still have the old values: worker {pid} started before");
    for change in ["4096", "4096", "--revert"] {
        let ran = stage.env.run([change]).exits(0);
        ran.says(&old).says("--reload");
    }
    let ran = stage.env.run(["2048", "--dry-run"]).exits(0);
    ran.says_nothing_of(&pid);
    assert_eq!(fake.actions(), NOTHING);
}

#[test]
fn lms_is_asked_only_about_a_worker_that_is_older_than_the_files() {
    let stage = Stage::new();
    let fake = stage.lms();
    fake.set("running", json!(false));
    stage.check();
    stage.env.run(["4096"]).exits(0);
    assert_eq!(fake.calls(), NOTHING, "it would start LM Studio");
    fake.set("running", json!(true));
    written(&stage.used.engine(), ago(3600));
    written(&stage.used.generate(), ago(3600));
    fake.add(json!({ "path": "llama/tiny", "format": "gguf" }));
    stage.has("in-effect", "not-running");
    assert_eq!(fake.calls(), NOTHING);
    let ran = stage.env.run(["8192"]).exits(0);
    ran.says_nothing_of("old values");
    // Only a GGUF model is loaded, and then an MLX model elsewhere.
    stage.has("not-running", "not-running");
    fake.add(json!({ "path": "far/away", "deviceIdentifier": "other-mac" }));
    stage.has("not-running", "not-running");
}

#[test]
fn while_lms_is_asked_the_files_are_written_and_nothing_is_locked() {
    let stage = Stage::new();
    let _worker = stage.worker(LM_STUDIO);
    let seen = stage.env.user().join("seen");
    let body = format!(
        "flock --nonblock '{}' '{LMPATCH}' --check 4096 --home '{}' -q >'{2}' 2>&1; echo $? >>'{2}'; echo '[]'",
        stage.env.amphibian().display(),
        stage.home().display(),
        seen.display()
    );
    executable(&stage.home().join("bin/lms"), &body);
    stage.env.run(["4096"]).exits(0);
    assert_eq!(text(seen), "0\n");
}

#[test]
fn where_the_selected_runtime_is_unknown_nothing_is_said_of_its_models() {
    let stage = Stage::new();
    let _worker = stage.worker(LM_STUDIO);
    written(&stage.used.engine(), SystemTime::now());
    let runtime = format!("extensions/backends/{RUNTIME}-1.12.0");
    let manifest = stage.home().join(runtime).join("backend-manifest.json");
    let text = text(&manifest);
    for (known, odd) in [
        ("vendor_lib_package_names", "packages"),
        (USED, "cpython3.11-mac-arm64@10"),
    ] {
        fs::write(&manifest, text.replace(known, odd)).unwrap();
        let told = "its preferences name one that is not known";
        stage.check().says(told);
        stage.has("unknown", "unknown");
    }
    fs::remove_file(&manifest).unwrap();
    let ran = stage.check().says_nothing_of(": loaded models have");
    ran.says("its preferences name one that is not known");
    stage.has("unknown", "unknown");
}
