//! `--reload`: loaded models get the values that are on disk, and everything else of them stays as it was.
use std::process::Stdio;
use std::time::Duration;

use crate::support::child::{ended, signal, until};
use crate::support::lms::{FakeLms, Running, shell};
use crate::support::standins::{ago, written};
use crate::support::{Env, fields, list};
use lmpatch::lmstudio::lms::Lms;
use lmpatch::lmstudio::runtimes::{APPS, PREFERENCES};
use lmpatch::lock::Lock;
use lmpatch::reload::{How, Reloader};
use serde_json::{Value, json};

mod app;
mod trouble;

const NOTHING: [&str; 0] = [];

/// A home with one backend, which is selected, and an LM Studio that runs and has nothing loaded.
fn home() -> (Env, FakeLms) {
    let (env, backend) = Env::in_use();
    let lmstudio = env.lmstudio();
    written(&lmstudio.join(APPS[0].1).join(PREFERENCES), ago(7200));
    let fake = FakeLms::start(&lmstudio, &backend.engine());
    (env, fake)
}

/// The same with a model loaded that has another context than LM Studio would give it, which is 4096.
fn home_with_qwen() -> (Env, FakeLms) {
    let (env, fake) = home();
    fake.add(qwen(json!({})));
    (env, fake)
}

/// That model, with whatever else is not to be as by default.
fn qwen(more: Value) -> Value {
    let mut model = json!({ "path": "qwen/tiny", "contextLength": 12345 });
    let more = more.as_object().unwrap().clone();
    model.as_object_mut().unwrap().extend(more);
    model
}

/// As patient as a test is.
fn reloader(env: &Env) -> Reloader {
    let (home, advice) = (env.lmstudio(), "load it yourself".to_owned());
    let mut lms = Lms::of(&home);
    lms.load_timeout = Duration::from_secs(20);
    lms.wait_timeout = Duration::from_millis(1500);
    Reloader { home, lms, advice }
}

#[test]
fn every_mlx_model_on_this_mac_is_loaded_again_as_it_was_and_no_other() {
    let (env, fake) = home();
    let far =
        json!({ "identifier": "far", "deviceIdentifier": "other-mac", "status": "generating" });
    for model in [
        qwen(json!({ "parallel": 3, "ttlMs": 90500 })),
        qwen(json!({ "identifier": "my chat", "contextLength": 5000, "parallel": 1 })),
        json!({ "path": "gemma/tiny", "type": "embedding", "contextLength": 512, "parallel": null }),
        json!({ "path": "llama/tiny", "format": "gguf" }),
        qwen(far),
    ] {
        fake.add(model);
    }
    env.run(["4096"]).exits(0);
    // Without the flag nothing is touched.
    assert_eq!(fake.actions(), NOTHING);
    let before = fake.loaded();
    env.run(["4096", "--reload"])
        .tells("my chat was reloaded as it was")
        .says("gemma/tiny: its parallelism is 4 instead of none")
        .says("qwen/tiny: its TTL in ms is 91000 instead of 90500")
        .says_nothing_of("copy");
    fake.has([
        ("far", 12345, 0),
        ("gemma/tiny", 512, 4096),
        ("llama/tiny", 4096, 2048),
        ("my chat", 5000, 4096),
        ("qwen/tiny", 12345, 4096),
    ]);
    let after = fake.loaded();
    for old in &before {
        let is_it = |now: &&Value| now["identifier"] == old["identifier"];
        let now = after.iter().find(is_it).unwrap();
        let is_mlx = old["format"] == "safetensors" && old["deviceIdentifier"].is_null();
        assert_eq!(now["pid"] == old["pid"], !is_mlx, "{old}");
        if old["identifier"] == "my chat" {
            let kept = ["parallel", "ttlMs"];
            assert_eq!(fields(now, kept), fields(old, kept));
        }
    }
    let load = "load qwen/tiny --exact -y --identifier qwen/tiny --local --context-length 12345 --parallel 3 --ttl 91";
    let calls = fake.calls();
    assert!(calls.contains(&load.to_owned()), "{calls:#?}");
    // The worker of the GGUF model is older.
    let report = env.json(["--check"]);
    assert_eq!(report["backends"][0]["in_effect"], "unknown");
    let report = env.json(["--revert", "--reload=models"]);
    assert_eq!(report["reload"]["how"], "models");
    let models = list(&report["reload"], "models");
    assert_eq!(models.len(), 3);
    let names = ["identifier", "context_length", "parallel", "ttl_ms"];
    let expected = json!(["qwen/tiny", 12345, 3, 91000]);
    assert_eq!(fields(&models[0], names), expected);
    assert_eq!(models[0]["failed"], Value::Null);
    assert!(fake.loaded().iter().all(|model| model["chunk"] != 4096));
}

#[test]
fn without_a_worker_lms_is_never_called_and_without_an_mlx_model_it_does_nothing() {
    let (env, fake) = home();
    fake.set("running", json!(false));
    for arguments in [["4096", "--reload"], ["8192", "--reload=app"]] {
        env.run(arguments).exits(0);
    }
    let ran = env.run(["--check"]).exits(0);
    ran.says_nothing_of("loaded models");
    assert_eq!(fake.calls(), NOTHING, "it would start LM Studio");
    // Nor for an engine that was started by hand, which it cannot reload.
    let python = shell(env.amphibian().join("cpython3.11/bin/python3.11"));
    let engine = Running::start(&python, &[]);
    let told = format!("process {} may use it", engine.pid());
    env.run(["4096", "--reload"]).tells(&told);
    assert_eq!(fake.calls(), NOTHING);
    drop(engine);
    fake.set("running", json!(true));
    fake.add(json!({ "path": "llama/tiny", "format": "gguf" }));
    env.run(["4096", "--reload"]).exits(0);
    assert_eq!(fake.actions(), NOTHING);
    let ran = env.run(["--check"]).exits(0);
    ran.says_nothing_of("loaded models");
}

#[test]
fn what_is_busy_or_slow_to_go_or_fails_once_is_waited_for() {
    for (busy_for, faults) in [
        (3, json!({})),
        (0, json!({ "unload-lasts": 3 })),
        (0, json!({ "ps-fails-after-unload": 1 })),
        (0, json!({ "ps-fails-after-load": 1 })),
    ] {
        let (env, fake) = home();
        fake.faults(faults);
        fake.add(qwen(json!({ "busy-for": busy_for })));
        env.run(["4096", "--reload"]).exits(0);
        fake.has([("qwen/tiny", 12345, 4096)]);
        let calls = fake.calls();
        let unload = calls.iter().position(|call| call == "unload qwen/tiny");
        assert!(unload.unwrap() >= busy_for, "{calls:#?}");
    }
}

#[test]
fn a_model_that_stays_busy_is_named_and_left_alone_and_the_others_are_loaded() {
    for busy in [json!({ "status": "generating" }), json!({ "queued": 2 })] {
        let (env, fake) = home();
        fake.add(qwen(busy));
        fake.add(json!({ "path": "gemma/tiny", "contextLength": 8000 }));
        env.run(["4096"]).exits(0);
        let models = reloader(&env).run(How::Models).unwrap();
        let failed = models[0].failed.as_ref().unwrap();
        let left = "still busy after 1.5s, it was left as it is";
        assert!(failed.contains(left), "{failed}");
        assert_eq!(models[1].failed, None);
        fake.has([("gemma/tiny", 8000, 4096), ("qwen/tiny", 12345, 2048)]);
    }
}

#[test]
fn what_could_not_be_loaded_again_is_not_touched() {
    let unknown = json!({ "contextLength": null });
    // `lms unload` would ask which one is meant.
    let same = json!({ "deviceIdentifier": "other-mac" });
    for (models, said) in [
        (vec![unknown], "path and context"),
        (vec![json!({}), same], "same identifier"),
    ] {
        let (env, fake) = home();
        for model in models {
            fake.add(qwen(model));
        }
        let before = fake.loaded();
        env.run(["4096", "--reload"])
            .fails("error: qwen/tiny was not loaded again")
            .says(said)
            .says("it was left as it is");
        assert_eq!(fake.actions(), NOTHING);
        assert_eq!(fake.loaded(), before);
    }
}

#[test]
fn what_is_not_as_it_was_is_named() {
    let (env, fake) = home();
    fake.faults(json!({ "fits": 34304, "refuses": ["--local", "--parallel"] }));
    let more = json!({ "contextLength": 129_536, "parallel": 2, "ttlMs": 60000 });
    fake.add(qwen(more));
    env.run(["4096", "--reload"])
        .tells("qwen/tiny: its context length is 34304 instead of 129536")
        .says("its parallelism is 4 instead of 2")
        .says_nothing_of("TTL in ms");
    let report = env.json(["8192", "--reload"]);
    let model = &report["reload"]["models"][0];
    let now = fields(model, ["context_length", "parallel"]);
    assert_eq!(now, json!([34304, 4]));
}

#[test]
fn a_signal_does_not_come_between_an_unload_and_the_load() {
    let (env, fake) = home_with_qwen();
    fake.faults(json!({ "load-takes": 2 }));
    let mut command = env.command(["4096", "--reload"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let is_load = |call: &String| call.starts_with("load ");
    until("it loads", || fake.calls().iter().any(is_load));
    // No other lmpatch sets another size in between.
    assert!(Lock::try_take(&env.lmstudio()).unwrap().is_none());
    signal(child.id(), "INT");
    ended(child)
        .tells("press Ctrl-C again to stop without it")
        .says("qwen/tiny was reloaded as it was");
    fake.has([("qwen/tiny", 12345, 4096)]);
}

/// What a benchmark does: one model with another context, and in the end all as they were.
#[test]
fn a_model_can_be_given_another_context_and_then_all_back() {
    let (env, fake) = home();
    fake.add(qwen(json!({ "parallel": 2, "ttlMs": 60000 })));
    let reloader = reloader(&env);
    let before = reloader.lms.loaded().unwrap();
    let mut wanted = before[0].clone();
    wanted.context_length = Some(50_000);
    assert_eq!(reloader.reload(&wanted).note, None);
    fake.has([("qwen/tiny", 50_000, 2048)]);
    fake.call(&["unload", "qwen/tiny"]);
    let back = reloader.reload(&before[0]);
    assert_eq!((back.failed, back.note), (None, None));
    assert_eq!(reloader.lms.loaded().unwrap(), before);
}

#[test]
fn flags_that_contradict_are_refused() {
    let env = Env::with_fixture();
    for wrong in [
        "--check --reload",
        "4096 --dry-run --reload",
        "4096 --reload=soon",
        "--reload models",
        "4096 --restart",
        "4096 --reload --wait 5",
        "4096 --reload --url http://localhost:1234",
    ] {
        env.run(wrong.split(' ')).exits(2);
    }
}
