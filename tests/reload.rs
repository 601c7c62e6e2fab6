//! `--reload` and `--restart`: loaded models get the values that are on disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::Env;
use support::home::{Layer, usual_layer};
use support::server::{FakeLmStudio, Fault};
use support::standins::{StandIns, ago, executable, worker};

const LIST: &str = "/api/v1/models";
const LOAD: &str = "/api/v1/models/load";
const UNLOAD: &str = "/api/v1/models/unload";

/// A home with one layer, and a server in whose settings it stands, with two MLX models and one other.
fn home(env: &Env) -> (Layer, FakeLmStudio) {
    let layer = usual_layer(&env.lmstudio(), "app-mlx-generate-mac14-arm64@34");
    let fake = FakeLmStudio::start(&layer.engine());
    fake.announce(&env.lmstudio());
    fake.add_model("qwen/tiny", "mlx");
    fake.add_model("llama/tiny", "gguf");
    fake.add_model("gemma/tiny", "mlx");
    (layer, fake)
}

/// What each loaded instance is: identifier, context, parallelism, chunk.
fn loaded(fake: &FakeLmStudio) -> Vec<(String, u64, u64, Option<u64>)> {
    let of = |instance: support::server::Instance| {
        (
            instance.id,
            instance.context_length,
            instance.parallel,
            instance.chunk,
        )
    };
    fake.instances().into_iter().map(of).collect()
}

fn row(id: &str, context: u64, parallel: u64, chunk: u64) -> (String, u64, u64, Option<u64>) {
    (id.to_owned(), context, parallel, Some(chunk))
}

#[test]
fn every_mlx_model_is_loaded_again_as_it_was_and_no_other() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.load_now("qwen/tiny", 12345, 3);
    fake.load_now("qwen/tiny", 5000, 1);
    fake.load_now("llama/tiny", 4096, 4);
    env.run(["4096"]).exits(0);
    assert_eq!(
        fake.paths(),
        Vec::<String>::new(),
        "without a flag nothing is touched"
    );
    let gguf = fake.instances()[2].loaded_at;
    let ran = env.run(["4096", "--reload"]).exits(0);
    let expected = [
        row("qwen/tiny", 12345, 3, 4096),
        row("qwen/tiny:2", 5000, 1, 4096),
        row("llama/tiny", 4096, 4, 2048),
    ];
    let mut now = loaded(&fake);
    now.sort_by_key(|instance| expected.iter().position(|other| other.0 == instance.0));
    assert_eq!(now, expected);
    assert!(
        fake.instances()
            .iter()
            .any(|instance| instance.loaded_at == gguf)
    );
    ran.says("qwen/tiny is loaded again (context 12345, parallel 3)")
        .says("qwen/tiny:2 is loaded again");
    env.run(["--revert", "--reload"]).exits(0);
    assert!(
        loaded(&fake)
            .iter()
            .all(|instance| instance.3 == Some(2048))
    );
}

#[test]
fn with_nothing_loaded_it_says_so() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.load_now("llama/tiny", 4096, 4);
    env.run(["4096", "--reload"])
        .exits(0)
        .says("No MLX model was loaded");
    assert_eq!(fake.paths(), [LIST]);
}

#[test]
fn a_server_that_cannot_set_parallel_is_told_of() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.state().takes_parallel = false;
    fake.load_now("qwen/tiny", 12345, 2);
    env.run(["4096", "--reload"])
        .exits(0)
        .says("parallelism 4 instead of 2");
    assert_eq!(loaded(&fake), [row("qwen/tiny", 12345, 4, 4096)]);
}

#[test]
fn a_failure_to_reload_is_exit_1_with_the_files_done_and_said_so() {
    for (path, fault, said) in [
        (LIST, Fault::Status(500), "answered 500"),
        (LIST, Fault::Status(401), "LM_API_TOKEN"),
        (LIST, Fault::Status(404), "0.4.0"),
        (LIST, Fault::Garbage, "is not LM Studio's server"),
        (UNLOAD, Fault::Status(500), "it was not unloaded"),
        (LOAD, Fault::Status(500), "could not be loaded again"),
        (
            LOAD,
            Fault::Cut,
            "lms load 'qwen/tiny' --context-length 12345",
        ),
    ] {
        let env = Env::new();
        let (_layer, fake) = home(&env);
        fake.load_now("qwen/tiny", 12345, 3);
        fake.fails(path, fault);
        env.run(["4096", "--reload"])
            .exits(1)
            .says("the files are done")
            .says(said);
        env.run(["--check", "4096"]).exits(0);
        if fake.instances().is_empty() {
            fake.load_now("qwen/tiny", 12345, 3);
        }
        let report = env.json(["8192", "--reload"]);
        assert_eq!(
            (&report["exit_code"], &report["backends"][0]["result"]),
            (&1.into(), &"changed".into())
        );
        assert!(
            report["reload"]["error"].is_string()
                || report["reload"]["models"][0]["failed"].is_string()
        );
    }
}

#[test]
fn nobody_there_is_exit_1_with_the_files_done() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    drop(fake);
    env.run(["4096", "--reload"])
        .exits(1)
        .says("the files are done")
        .says("lms server start");
    env.run(["--check", "4096"]).exits(0);
}

#[test]
fn the_token_and_the_url_are_the_users() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fs::remove_file(env.lmstudio().join(".internal/http-server-config.json")).unwrap();
    fake.state().token = Some("secret".to_owned());
    fake.load_now("qwen/tiny", 12345, 3);
    let mut command = env.command(["4096", "--reload", "--url", &fake.url()]);
    support::Ran::of(&command.env("LM_API_TOKEN", "secret").output().unwrap()).exits(0);
    assert_eq!(loaded(&fake), [row("qwen/tiny", 12345, 3, 4096)]);
}

#[test]
fn a_busy_model_is_waited_for() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.load_now("qwen/tiny", 12345, 3);
    fake.fails(UNLOAD, Fault::Busy(3));
    env.run(["4096", "--reload"]).exits(0);
    assert_eq!(loaded(&fake), [row("qwen/tiny", 12345, 3, 4096)]);
    assert_eq!(
        fake.paths().iter().filter(|path| *path == UNLOAD).count(),
        4
    );
}

#[test]
fn a_model_that_stays_busy_is_named_after_a_bounded_wait_and_the_others_are_loaded() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.load_now("qwen/tiny", 12345, 3);
    fake.load_now("gemma/tiny", 8000, 1);
    // LM Studio's own command line tool says who is at work.
    let rows = r#"[{"identifier":"qwen/tiny","status":"generating","queued":0},{"identifier":"gemma/tiny","status":"idle","queued":0}]"#;
    executable(
        &env.lmstudio().join("bin/lms"),
        &format!("[ \"$*\" = 'ps --json' ] && echo '{rows}'"),
    );
    let begin = Instant::now();
    let ran = env.run(["4096", "--reload", "--wait", "0.5"]).exits(1);
    assert!(begin.elapsed() < Duration::from_secs(10));
    ran.says("qwen/tiny was not loaded again: it was still at work")
        .says("gemma/tiny is loaded again");
    assert_eq!(
        loaded(&fake),
        [
            row("qwen/tiny", 12345, 3, 2048),
            row("gemma/tiny", 8000, 1, 4096)
        ]
    );
    env.run(["--check", "4096"]).exits(0);
    // The same where only the server says so.
    fs::remove_file(env.lmstudio().join("bin/lms")).unwrap();
    fake.fails(UNLOAD, Fault::Busy(1_000_000));
    env.run(["4096", "--reload", "--wait", "0.5"])
        .exits(1)
        .says("qwen/tiny was not loaded again: it was still at work");
}

/// Stand-ins for the app: `osascript` ends it, `open` starts it.
fn app<'e>(env: &'e Env, fake: &FakeLmStudio) -> StandIns<'e> {
    let standins = StandIns::new(env);
    let running = standins.file("running");
    fs::write(&running, "").unwrap();
    standins.script("osascript", &format!("rm '{}'", running.display()));
    standins.script("open", &format!("touch '{}'", running.display()));
    fake.state().running = Some(running);
    standins
}

#[test]
fn a_restart_quits_opens_waits_and_loads_what_was_loaded() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.load_now("qwen/tiny", 12345, 3);
    fake.load_now("llama/tiny", 4096, 4);
    let standins = app(&env, &fake);
    // The app takes a moment until its server answers.
    let running = standins.file("running").display().to_string();
    standins.script(
        "open",
        &format!("(sleep 1; touch '{running}') >/dev/null 2>&1 &"),
    );
    standins
        .run(["4096", "--restart"])
        .exits(0)
        .says("LM Studio was restarted")
        .says("qwen/tiny is loaded again");
    assert_eq!(loaded(&fake), [row("qwen/tiny", 12345, 3, 4096)]);
    assert_eq!(
        standins.calls(),
        ["osascript -e quit app \"LM Studio\"", "open -a LM Studio"]
    );
}

#[test]
fn a_restart_that_fails_is_exit_1_with_the_files_done() {
    for (program, body, said) in [
        (
            "osascript",
            "echo 'User canceled. (-128)' >&2; exit 1",
            "User canceled",
        ),
        ("osascript", "true", "still runs 0.5 seconds"),
        (
            "open",
            "echo 'Unable to find application' >&2; exit 1",
            "Unable to find application",
        ),
        (
            "open",
            "true",
            "LM Studio was opened, but after 0.5 seconds",
        ),
    ] {
        let env = Env::new();
        let (_layer, fake) = home(&env);
        fake.load_now("qwen/tiny", 12345, 3);
        let standins = app(&env, &fake);
        standins.script(program, body);
        let ran = standins
            .run(["4096", "--restart", "--wait", "0.5"])
            .exits(1);
        ran.says("the files are done").says(said);
        standins.run(["--check", "4096"]).exits(0);
    }
}

#[test]
fn an_app_whose_server_is_off_is_restarted_all_the_same() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    drop(fake);
    let standins = StandIns::new(&env);
    // Its worker ends a moment after the app was told to quit, and a moment later it can be opened again.
    standins.ps(&[(812, ago(60), worker(&env.lmstudio()))]);
    let (table, quitting) = (
        standins.file("table").display().to_string(),
        standins.file("quitting"),
    );
    fs::write(&quitting, "").unwrap();
    standins.script(
        "osascript",
        &format!("(sleep 0.5; : > '{table}') >/dev/null 2>&1 &"),
    );
    let quitting = quitting.display();
    standins.script(
        "open",
        &format!("[ ! -e '{quitting}' ] || {{ rm '{quitting}'; echo 'error -600' >&2; exit 1; }}"),
    );
    standins
        .run(["4096", "--restart"])
        .exits(0)
        .says("LM Studio was restarted")
        .says("No MLX model was loaded");
    let calls = standins.calls();
    assert_eq!(
        calls.first().map(String::as_str),
        Some("osascript -e quit app \"LM Studio\"")
    );
    assert_eq!(
        calls
            .iter()
            .filter(|call| call.starts_with("open "))
            .count(),
        2,
        "{calls:?}"
    );
    assert!(
        calls.iter().filter(|call| call.starts_with("ps ")).count() > 1,
        "{calls:?}"
    );
}

#[test]
fn a_busy_app_is_not_quit() {
    let env = Env::new();
    let (_layer, fake) = home(&env);
    fake.load_now("qwen/tiny", 12345, 3);
    let standins = app(&env, &fake);
    let rows = r#"[{"identifier":"qwen/tiny","status":"idle","queued":2}]"#;
    executable(&env.lmstudio().join("bin/lms"), &format!("echo '{rows}'"));
    standins
        .run(["4096", "--restart", "--wait", "0.3"])
        .exits(1)
        .says("qwen/tiny")
        .says("the app was not quit");
    assert_eq!(standins.calls(), Vec::<String>::new());
    assert_eq!(loaded(&fake), [row("qwen/tiny", 12345, 3, 2048)]);
}

#[test]
fn flags_that_contradict_are_refused() {
    let env = Env::with_fixture();
    for wrong in [
        vec!["--check", "--reload"],
        vec!["--check", "--restart"],
        vec!["4096", "--dry-run", "--reload"],
        vec!["4096", "--reload", "--restart"],
        vec!["4096", "--reload", "--wait", "-1"],
        vec!["4096", "--reload", "--wait", "soon"],
        vec!["4096", "--reload", "--url", "https://localhost:1234"],
    ] {
        env.run(&wrong).exits(2);
    }
}
