//! `--reload`: loaded models get the values that are on disk, and everything else of them stays as it was.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::home::{BackendDir, runtime, select, select_in, usual_backend};
use crate::support::lms::{FakeLms, Running};
use crate::support::standins::{StandIns, ago, until, written};
use crate::support::{Env, Ran};
use lmpatch::lmstudio::lms::{Lms, LoadedModel};
use lmpatch::lmstudio::runtimes::APPS;
use lmpatch::reload::{How, Reloaded, Reloader};
use serde_json::{Value, json};

const BACKEND: &str = "app-mlx-generate-mac14-arm64@34";

/// A home with one backend, which is selected, and an LM Studio that runs.
fn home(env: &Env) -> (BackendDir, FakeLms) {
    let lmstudio = env.lmstudio();
    let backend = usual_backend(&lmstudio, BACKEND);
    runtime(&lmstudio, "1.12.0", &[BACKEND]);
    select(&lmstudio, "1.12.0");
    written(&lmstudio.join(APPS[0].1), ago(7200));
    let fake = FakeLms::start(&lmstudio, &backend.engine());
    (backend, fake)
}

/// As patient as a test is.
fn reloader(home: &Path) -> Reloader {
    let lms = Lms {
        load_timeout: Duration::from_secs(20),
        wait_timeout: Duration::from_millis(1500),
        ..Lms::of(home)
    };
    Reloader {
        home: home.to_owned(),
        lms,
        advice: "load it yourself".to_owned(),
    }
}

fn reload(home: &Path) -> Vec<Reloaded> {
    reloader(home).run(How::Models).unwrap()
}

fn row(identifier: &str, context: u64, chunk: u64) -> (String, u64, Option<u64>) {
    (identifier.to_owned(), context, Some(chunk))
}

const NOTHING: [&str; 0] = [];

#[test]
fn every_mlx_model_on_this_mac_is_loaded_again_as_it_was_and_no_other() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345, "parallel": 3, "ttlMs": 90500 }));
    fake.add(json!({ "path": "qwen/tiny", "identifier": "my chat", "contextLength": 5000, "parallel": 1 }));
    fake.add(json!({ "path": "gemma/tiny", "type": "embedding", "contextLength": 512, "parallel": null }));
    fake.add(json!({ "path": "llama/tiny", "format": "gguf" }));
    fake.add(
        json!({ "path": "far/away", "deviceIdentifier": "other-mac", "status": "generating" }),
    );
    env.run(["4096"]).exits(0);
    assert_eq!(fake.deeds(), NOTHING, "without the flag nothing is touched");
    let before = fake.loaded();
    let ran = env.run(["4096", "--reload"]).exits(0);
    assert_eq!(
        fake.summary(),
        [
            ("far/away".to_owned(), 4096, None),
            row("gemma/tiny", 512, 4096),
            row("llama/tiny", 4096, 2048),
            row("my chat", 5000, 4096),
            row("qwen/tiny", 12345, 4096),
        ]
    );
    for old in &before {
        let now = fake.loaded();
        let now = now
            .iter()
            .find(|now| now["identifier"] == old["identifier"])
            .unwrap();
        let is_mlx = old["format"] == "safetensors" && old["deviceIdentifier"].is_null();
        assert_eq!(now["pid"] == old["pid"], !is_mlx, "{old}");
        if old["identifier"] == "my chat" {
            assert_eq!(
                (&now["parallel"], &now["ttlMs"]),
                (&old["parallel"], &old["ttlMs"])
            );
        }
    }
    let load = "load qwen/tiny --exact -y --identifier qwen/tiny --local --context-length 12345 --parallel 3 --ttl 91";
    assert!(
        fake.calls().contains(&load.to_owned()),
        "{:#?}",
        fake.calls()
    );
    ran.says("qwen/tiny was reloaded (context 12345, parallel 3)")
        .says("my chat was reloaded (context 5000, parallel 1)")
        .says("gemma/tiny was reloaded")
        .says("qwen/tiny: TTL in ms 91000 instead of 90500");
    let report = env.json(["--check"]);
    assert_eq!(
        report["backends"][0]["in_effect"], "unknown",
        "the GGUF model's worker is older"
    );
    let report = env.json(["--revert", "--reload=models"]);
    assert_eq!(report["reload"]["how"], "models");
    assert_eq!(report["reload"]["models"].as_array().unwrap().len(), 3);
    let model = &report["reload"]["models"][0];
    assert_eq!(
        (
            &model["identifier"],
            &model["context_length"],
            &model["parallel"],
            &model["ttl_ms"],
            &model["failed"]
        ),
        (
            &json!("qwen/tiny"),
            &json!(12345),
            &json!(3),
            &json!(91000),
            &Value::Null
        )
    );
    assert!(fake.loaded().iter().all(|model| model["chunk"] != 4096));
}

#[test]
fn after_a_reload_the_values_are_in_effect() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny" }));
    env.run(["8192"])
        .exits(0)
        .says("may still have the old values");
    let check = || env.json(["--check"])["backends"][0]["in_effect"].clone();
    assert_eq!(check(), "reload-needed");
    env.run(["8192", "--reload"])
        .exits(0)
        .says_nothing_of("older values");
    assert_eq!(check(), "in-effect");
}

#[test]
fn without_a_worker_lms_is_never_called() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.set("running", json!(false));
    for arguments in [["4096", "--reload"], ["8192", "--reload=app"]] {
        env.run(arguments)
            .exits(0)
            .says("No model is loaded.")
            .says_nothing_of("restarted");
    }
    assert_eq!(fake.calls(), NOTHING, "it would start LM Studio");
    // Nor for an engine that was started by hand, which it cannot reload.
    let python = env
        .lmstudio()
        .join("extensions/backends/vendor/_amphibian/cpython3.11/bin/python3.11");
    fs::create_dir_all(python.parent().unwrap()).unwrap();
    fs::rename(crate::support::lms::node(&env.user().join("x")), &python).unwrap();
    let engine = Running::start(&python, &[]);
    env.run(["4096", "--reload"])
        .exits(1)
        .says(&format!("process {}", engine.pid()));
    assert_eq!(fake.calls(), NOTHING);
}

#[test]
fn with_other_models_only_nothing_is_done_and_said_so() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "llama/tiny", "format": "gguf" }));
    env.run(["4096", "--reload"])
        .exits(0)
        .says("No loaded model uses these backends.");
    assert!(fake.calls().iter().all(|call| call == "ps --json"));
    env.run(["--check"])
        .exits(0)
        .shows("No loaded model uses these backends.");
}

#[test]
fn a_model_of_another_app_that_lms_does_not_list_is_told() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    select_in(&env.lmstudio(), APPS[1].1, "1.12.0");
    written(&env.lmstudio().join(APPS[1].1), ago(7200));
    fake.set("app", json!("/Applications/Bionic.app/Contents"));
    fake.add(json!({ "path": "qwen/tiny" }));
    // Without LM Studio, `lms` would start it.
    env.run(["512"]).exits(0).says("load it again in Bionic");
    assert_eq!(fake.calls(), NOTHING);
    fake.faults(json!({ "ps-says": "[]" }));
    let standins = app(&env, &fake, "/Applications/Bionic.app/Contents");
    standins
        .run(["1024", "--reload=app"])
        .exits(1)
        .says("a worker has a model that `lms ps` does not list, or not yet");
    assert_eq!(standins.calls(), NOTHING);
    env.run(["4096", "--reload"])
        .exits(1)
        .says("a loaded model may still have the old values")
        .says("load it again in Bionic");
    env.run(["8192", "--reload", "--quiet"])
        .exits(1)
        .says("error: ");
}

#[test]
fn a_list_that_fails_after_the_unload_is_asked_for_again() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "ps-fails-after-unload": true }));
    env.run(["4096", "--reload"]).exits(0);
    assert_eq!(fake.summary(), [row("qwen/tiny", 12345, 4096)]);
}

#[test]
fn a_signal_does_not_come_between_an_unload_and_the_load() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.faults(json!({ "load-takes": 2 }));
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    let mut command = env.command(["4096", "--reload"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let is_load = |call: &String| call.starts_with("load ");
    until("it loads", || fake.calls().iter().any(is_load));
    let mut kill = Command::new("kill");
    let killed = kill.args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    Ran::of(&child.wait_with_output().unwrap())
        .exits(0)
        .says("press Ctrl-C again to stop without it")
        .says("qwen/tiny was reloaded (context 12345");
    assert_eq!(fake.summary(), [row("qwen/tiny", 12345, 4096)]);
}

#[test]
fn without_lms_it_says_how_to_reload_by_hand() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny" }));
    fs::remove_file(env.lmstudio().join("bin/lms")).unwrap();
    for arguments in [["4096", "--reload"], ["8192", "--reload=app"]] {
        env.run(arguments)
            .exits(1)
            .says("the files are written")
            .says("bin/lms is not there; unload and load the models in LM Studio");
    }
    env.run(["--check", "8192"]).exits(0);
}

#[test]
fn a_busy_model_is_waited_for() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345, "busy-for": 3 }));
    env.run(["4096", "--reload"]).exits(0);
    assert_eq!(fake.summary(), [row("qwen/tiny", 12345, 4096)]);
    let calls = fake.calls();
    let unloaded = calls
        .iter()
        .position(|call| call == "unload qwen/tiny")
        .unwrap();
    assert!(unloaded >= 3, "{calls:#?}");
}

#[test]
fn a_model_that_stays_busy_is_named_and_left_alone_and_the_others_are_loaded() {
    for busy in [json!({ "status": "generating" }), json!({ "queued": 2 })] {
        let env = Env::new();
        let (backend, fake) = home(&env);
        let mut row_of_qwen = json!({ "path": "qwen/tiny", "contextLength": 12345 });
        row_of_qwen
            .as_object_mut()
            .unwrap()
            .extend(busy.as_object().unwrap().clone());
        fake.add(row_of_qwen);
        fake.add(json!({ "path": "gemma/tiny", "contextLength": 8000 }));
        env.run(["4096"]).exits(0);
        let models = reload(&env.lmstudio());
        let failed = models[0].failed.as_ref().unwrap();
        assert!(
            failed.contains("still busy after 1.5s, it was left as it is"),
            "{failed}"
        );
        assert_eq!(models[1].failed, None);
        assert_eq!(
            fake.summary(),
            [row("gemma/tiny", 8000, 4096), row("qwen/tiny", 12345, 2048)]
        );
        drop(backend);
    }
}

#[test]
fn a_model_on_another_mac_is_no_copy() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.add(json!({ "path": "qwen/tiny", "identifier": "far", "deviceIdentifier": "other-mac" }));
    env.run(["4096", "--reload"])
        .exits(0)
        .says("qwen/tiny was reloaded")
        .says_nothing_of("copy");
}

#[test]
fn what_could_not_be_loaded_again_is_not_touched() {
    let twice =
        json!({ "path": "far/away", "identifier": "qwen/tiny", "deviceIdentifier": "other-mac" });
    for (odd, other, said) in [
        (
            json!({ "path": "qwen/tiny", "contextLength": null }),
            None,
            "path and context",
        ),
        // `lms unload` would ask which one is meant.
        (
            json!({ "path": "qwen/tiny" }),
            Some(twice),
            "same identifier",
        ),
    ] {
        let env = Env::new();
        let (_backend, fake) = home(&env);
        fake.add(odd);
        if let Some(other) = other {
            fake.add(other);
        }
        let before = fake.loaded();
        env.run(["4096", "--reload"])
            .exits(1)
            .says("the files are written, but qwen/tiny was not loaded again")
            .says(said)
            .says("it was left as it is");
        assert_eq!(fake.deeds(), NOTHING);
        assert_eq!(fake.loaded(), before);
    }
}

#[test]
fn what_is_not_as_it_was_is_named() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.faults(json!({ "fits": 34304, "refuses": ["--local", "--parallel"] }));
    fake.add(
        json!({ "path": "qwen/tiny", "contextLength": 129_536, "parallel": 2, "ttlMs": 60000 }),
    );
    env.run(["4096", "--reload"])
        .exits(0)
        .says("qwen/tiny was reloaded (context 34304, parallel 4)")
        .says("context length 34304 instead of 129536")
        .says("parallel 4 instead of 2")
        .says_nothing_of("TTL in ms");
    let report = env.json(["8192", "--reload"]);
    let model = &report["reload"]["models"][0];
    assert_eq!(
        (&model["context_length"], &model["parallel"]),
        (&json!(34304), &json!(4))
    );
}

#[test]
fn a_load_that_fails_advises_the_old_size_and_not_the_call_that_failed() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.faults(json!({ "load-fails-at": [8192] }));
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    let ran = env.run(["8192", "--reload"]).exits(1);
    ran.says("Reloading the loaded models")
        .says("the files are written, but qwen/tiny was not loaded again")
        .says("Insufficient memory")
        .says("`lmpatch --revert` goes back, then load it in LM Studio")
        .says_nothing_of("lms load")
        .says_nothing_of("lmpatch 8192");
    env.run(["--check", "8192"]).exits(0);
    assert_eq!(fake.summary(), []);
    // Where the size was there before, going back is no advice.
    fake.faults(json!({ "load-fails-at": [] }));
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "load-fails-at": [8192] }));
    env.run(["8192", "--reload"])
        .exits(1)
        .says("load it in LM Studio")
        .says_nothing_of("goes back");
}

#[test]
fn a_model_that_loads_itself_again_in_between_is_noticed() {
    let same = json!({ "path": "qwen/tiny", "contextLength": 4096 });
    let other = json!({ "path": "qwen/tiny", "identifier": "qwen", "contextLength": 4096 });
    let cases = [
        // Under its own name, before it could be loaded: it stays, and no second copy is loaded.
        (
            json!({ "jit-after-unload": same }),
            1,
            vec![row("qwen/tiny", 4096, 4096)],
            vec![
                "or something loaded it again",
                "context length 4096 instead of 12345",
            ],
        ),
        // Under its own name, while it was being loaded: refused, or a second copy.
        (
            json!({ "jit-after-load": same, "identifier-taken-fails": true }),
            0,
            vec![row("qwen/tiny", 4096, 4096)],
            vec![
                "something else loaded it in between",
                "context length 4096 instead of 12345",
            ],
        ),
        (
            json!({ "jit-after-load": same }),
            0,
            vec![
                row("qwen/tiny", 4096, 4096),
                row("qwen/tiny:2", 12345, 4096),
            ],
            vec![
                "context length 4096 instead of 12345",
                "another copy was loaded in between",
                "`lms unload 'qwen/tiny:2'`",
            ],
        ),
        // Under another name.
        (
            json!({ "jit-after-unload": other }),
            0,
            vec![row("qwen", 4096, 4096), row("qwen/tiny", 12345, 4096)],
            vec![
                "qwen/tiny was reloaded (context 12345",
                "another copy was loaded in between",
                "`lms unload 'qwen'`",
            ],
        ),
    ];
    for (faults, code, expected, said) in cases {
        let env = Env::new();
        let (_backend, fake) = home(&env);
        fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
        fake.faults(faults);
        let ran = env.run(["4096", "--reload"]).exits(code);
        assert_eq!(fake.summary(), expected);
        said.into_iter().fold(ran, |ran, said| ran.says(said));
    }
    // Under another name, and then there is no room for the one that is wanted.
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "jit-after-unload": other, "load-fails-at": [4096] }));
    env.run(["4096", "--reload"])
        .exits(1)
        .says("Insufficient memory")
        .says("another copy was loaded in between: `lms unload 'qwen'` ends it");
}

#[test]
fn an_unload_that_does_nothing_is_not_told_as_a_reload() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "unload-fails": "Error: cannot do that now" }));
    env.run(["4096", "--reload"])
        .exits(1)
        .says("it was not unloaded")
        .says("cannot do that now");
    fake.faults(json!({ "unload-does-nothing": true }));
    env.run(["8192", "--reload"])
        .exits(1)
        .says("it was not unloaded, or something loaded it again");
    assert_eq!(fake.summary(), [row("qwen/tiny", 12345, 2048)]);
}

#[test]
fn an_lms_that_fails_or_hangs_is_told_and_nothing_is_unloaded() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny" }));
    for said in [
        "Waking up LM Studio service...",
        "{}",
        "[{\"identifier\": 1}]",
        "",
    ] {
        fake.faults(json!({ "ps-says": said }));
        env.run(["4096", "--reload"])
            .exits(1)
            .says("printed no list of models");
    }
    assert_eq!(fake.deeds(), NOTHING);
    env.run(["--check", "4096"]).exits(0);
    fake.faults(json!({ "load-takes": 30 }));
    let lmstudio = env.lmstudio();
    let mut impatient = reloader(&lmstudio);
    impatient.lms.load_timeout = Duration::from_millis(300);
    let models = impatient.run(How::Models).unwrap();
    let failed = models[0].failed.as_ref().unwrap();
    assert!(failed.contains("took longer than 0.3 seconds"), "{failed}");
}

/// What a benchmark does: one model with another context, and in the end all as they were.
#[test]
fn a_model_can_be_given_another_context_and_then_all_back() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 4096, "parallel": 2, "ttlMs": 60000 }));
    let lmstudio = env.lmstudio();
    let reloader = reloader(&lmstudio);
    let before = reloader.lms.loaded().unwrap();
    let wanted = LoadedModel {
        context_length: Some(50_000),
        ..before[0].clone()
    };
    assert_eq!(reloader.reload(&wanted).note, None);
    assert_eq!(fake.summary(), [row("qwen/tiny", 50_000, 2048)]);
    fake.call(&["unload", "qwen/tiny"]);
    let back = reloader.reload(&before[0]);
    assert_eq!((back.failed, back.note), (None, None));
    assert_eq!(reloader.lms.loaded().unwrap(), before);
}

/// Stand-ins for the Mac's own programs: `osascript` ends the app, `open` starts it.
fn app<'e>(env: &'e Env, fake: &FakeLms, path: &str) -> StandIns<'e> {
    fake.set("app", json!(path));
    let standins = StandIns::new(env);
    let lms = env.lmstudio().join("bin/lms").display().to_string();
    standins.script("osascript", &format!("'{lms}' test-quit"));
    standins.script("open", &format!("'{lms}' test-open"));
    standins
}

#[test]
fn the_app_of_the_workers_is_restarted_and_what_is_not_back_is_loaded() {
    for (path, name) in [
        ("/Applications/LM Studio.app/Contents", "LM Studio"),
        ("/x/Bionic.app/Contents", "Bionic"),
    ] {
        let env = Env::new();
        let (_backend, fake) = home(&env);
        let standins = app(&env, &fake, path);
        fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345, "parallel": 3 }));
        fake.add(json!({ "path": "gemma/tiny", "contextLength": 8000 }));
        fake.add(json!({ "path": "llama/tiny", "format": "gguf", "contextLength": 6000 }));
        fake.set(
            "at-start",
            json!([{ "path": "gemma/tiny", "contextLength": 4096 }]),
        );
        standins
            .run(["4096", "--reload=app"])
            .exits(0)
            .says("The app was restarted")
            .says("qwen/tiny was reloaded (context 12345, parallel 3)")
            .says("llama/tiny was reloaded")
            .says("gemma/tiny was reloaded (context 8000");
        assert_eq!(
            fake.summary(),
            [
                row("gemma/tiny", 8000, 4096),
                row("llama/tiny", 6000, 4096),
                row("qwen/tiny", 12345, 4096)
            ]
        );
        assert_eq!(
            standins.calls(),
            [
                format!("osascript -e quit app \"{name}\""),
                format!("open -a {name}")
            ]
        );
    }
}

#[test]
fn llmster_has_no_app_to_restart() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    let standins = app(&env, &fake, "/Users/me/.lmstudio/llmster/0.0.3-1");
    fake.add(json!({ "path": "qwen/tiny" }));
    standins
        .run(["4096", "--reload=app"])
        .exits(1)
        .says("llmster has no app to restart; use --reload");
    assert_eq!((standins.calls(), fake.deeds()), (Vec::new(), Vec::new()));
    standins.run(["4096", "--reload"]).exits(0);
    assert_eq!(fake.summary(), [row("qwen/tiny", 4096, 4096)]);
}

#[test]
fn a_restart_that_fails_says_what_was_loaded() {
    for (program, body, said) in [
        (
            "osascript",
            "echo 'User canceled. (-128)' >&2; exit 1",
            "User canceled",
        ),
        (
            "open",
            "echo 'Unable to find application' >&2; exit 1",
            "Unable to find application",
        ),
    ] {
        let env = Env::new();
        let (_backend, fake) = home(&env);
        let standins = app(&env, &fake, "/Applications/LM Studio.app");
        fake.add(json!({ "path": "qwen/tiny" }));
        standins.script(program, body);
        standins
            .run(["4096", "--reload=app"])
            .exits(1)
            .says("the files are written")
            .says(said)
            .says("what was loaded: qwen/tiny");
        // An app that was quit before another could not be is not left closed.
        assert!(!standins.calls_of("open").is_empty());
        standins.run(["--check", "4096"]).exits(0);
    }
}

#[test]
fn an_app_that_is_still_quitting_is_opened_when_it_can_be() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    let standins = app(&env, &fake, "/Applications/LM Studio.app");
    fake.add(json!({ "path": "qwen/tiny" }));
    let quitting = standins.file("quitting").display().to_string();
    let early = standins.file("early").display().to_string();
    let ended = standins.file("ended").display().to_string();
    let lms = env.lmstudio().join("bin/lms").display().to_string();
    // It says that it quits, its worker ends later, and it answers some time after it was opened.
    fake.faults(json!({ "ps-fails-after-open": 3 }));
    standins.script(
        "osascript",
        &format!("touch '{quitting}'; (sleep 2; '{lms}' test-quit; touch '{ended}') &"),
    );
    let body = format!(
        "[ -e '{ended}' ] || touch '{early}'
        [ ! -e '{quitting}' ] || {{ rm '{quitting}'; echo 'error -600' >&2; exit 1; }}; '{lms}' test-open"
    );
    standins.script("open", &body);
    standins.run(["4096", "--reload=app"]).exits(0);
    assert_eq!(standins.calls_of("open").len(), 2);
    assert!(!standins.file("early").exists(), "its worker had ended");
    assert_eq!(fake.summary(), [row("qwen/tiny", 4096, 4096)]);
}

#[test]
fn flags_that_contradict_are_refused() {
    let env = Env::with_fixture();
    for wrong in [
        vec!["--check", "--reload"],
        vec!["4096", "--dry-run", "--reload"],
        vec!["4096", "--reload=soon"],
        vec!["--reload", "models"],
        vec!["4096", "--restart"],
        vec!["4096", "--reload", "--wait", "5"],
        vec!["4096", "--reload", "--url", "http://localhost:1234"],
    ] {
        env.run(&wrong).exits(2);
    }
}

#[test]
fn a_model_that_takes_its_time_to_go_is_waited_for() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.faults(json!({ "unload-lasts": 3 }));
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    env.run(["4096", "--reload"]).exits(0);
    assert_eq!(fake.summary(), [row("qwen/tiny", 12345, 4096)]);
}

#[test]
fn a_reload_that_failed_is_not_advised_again() {
    let env = Env::new();
    let (_backend, fake) = home(&env);
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    env.run(["6144"]).exits(0).says("--reload` reloads it");
    fake.faults(json!({ "ps-says": "no JSON" }));
    env.run(["6144", "--reload"])
        .exits(1)
        .says("load it again in LM Studio")
        .says_nothing_of("--reload` reloads it");
    // What was set in another run does not fit.
    fake.faults(json!({ "load-fails-at": [6144] }));
    env.run(["6144", "--reload"])
        .exits(1)
        .says("if it does not fit, `lmpatch --revert` restores the vendor's size; then load it in LM Studio");
}
