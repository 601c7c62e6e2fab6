//! Whether values are in effect, told from a process table.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;

use support::Env;
use support::home::{Layer, runtime, select, usual_layer};
use support::server::FakeLmStudio;
use support::standins::{StandIns, ago, worker, written};

const USED: &str = "app-mlx-generate-mac14-arm64@34";
const OTHER: &str = "app-mlx-generate-mac14-arm64@19";

/// A home with a selected layer and another one, both written an hour ago, selected two hours ago.
fn home(env: &Env) -> Layer {
    let used = usual_layer(&env.lmstudio(), USED);
    let other = usual_layer(&env.lmstudio(), OTHER);
    for layer in [&used, &other] {
        written(&layer.engine(), ago(3600));
        written(&layer.generate(), ago(3600));
    }
    runtime(&env.lmstudio(), "1.12.0", &[USED]);
    runtime(&env.lmstudio(), "1.1.0", &[OTHER]);
    select(&env.lmstudio(), "1.12.0");
    written(
        &env.lmstudio().join(".internal/backend-preferences-v1.json"),
        ago(7200),
    );
    // Port 1 of loopback: nobody is there to be asked.
    fs::write(
        env.lmstudio().join(".internal/http-server-config.json"),
        r#"{"port":1}"#,
    )
    .unwrap();
    used
}

fn effects(standins: &StandIns) -> [String; 2] {
    let report = standins.json(["--check"]);
    let of = |index: usize| {
        report["backends"][index]["in_effect"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    [of(1), of(0)]
}

#[test]
fn a_worker_older_than_the_files_is_stale_and_a_newer_one_is_not() {
    let env = Env::new();
    home(&env);
    let standins = StandIns::new(&env);
    let row = |pid, age| (pid, ago(age), worker(&env.lmstudio()));
    standins.ps(&[]);
    assert_eq!(effects(&standins), ["not-running", "not-running"]);
    standins.ps(&[row(812, 60)]);
    assert_eq!(effects(&standins), ["in-effect", "not-running"]);
    standins.ps(&[row(812, 3700)]);
    assert_eq!(effects(&standins), ["reload-needed", "not-running"]);
    standins.ps(&[row(811, 60), row(812, 3700)]);
    assert_eq!(effects(&standins), ["reload-needed", "not-running"]);
    let report = standins.json(["--check"]);
    assert_eq!(
        report["backends"][1]["stale_workers"],
        serde_json::json!([812])
    );
    assert_eq!(report["workers"].as_array().map(Vec::len), Some(2));
    // From before the other runtime was selected: it may be a worker of either.
    standins.ps(&[row(812, 7300)]);
    assert_eq!(effects(&standins), ["reload-needed", "unknown"]);
}

#[test]
fn a_worker_started_in_the_second_of_the_edit_is_not_taken_for_newer() {
    let env = Env::new();
    let layer = home(&env);
    let standins = StandIns::new(&env);
    let edit = ago(600);
    written(&layer.generate(), edit);
    standins.ps(&[(812, edit, worker(&env.lmstudio()))]);
    assert_eq!(effects(&standins)[0], "reload-needed");
    standins.ps(&[(
        812,
        edit + std::time::Duration::from_secs(1),
        worker(&env.lmstudio()),
    )]);
    assert_eq!(effects(&standins)[0], "in-effect");
}

#[test]
fn look_alikes_and_other_peoples_workers_are_not_counted() {
    let env = Env::new();
    home(&env);
    let standins = StandIns::new(&env);
    let lmstudio = env.lmstudio();
    let mine = worker(&lmstudio);
    let rows = [
        mine.replace("/.lmstudio/", "/.lmstudio-old/"),
        mine.replace("/user/", "/somebody/"),
        format!("vim {mine}"),
        mine.replace("llmworker.js", "llmworker.js.map"),
        mine.replace("utils/node", "utils/nodejs"),
        "(node)".to_owned(),
    ];
    let rows: Vec<_> = rows
        .into_iter()
        .zip(1..)
        .map(|(command, pid)| (pid, ago(9999), command))
        .collect();
    standins.ps(&rows);
    assert_eq!(effects(&standins), ["not-running", "not-running"]);
}

#[test]
fn what_cannot_be_told_is_not_claimed() {
    let env = Env::new();
    home(&env);
    let standins = StandIns::new(&env);
    let table = format!(
        "812 0 Mon Nov 23 07:41:27 2020 {}",
        worker(&env.lmstudio()).replace('"', "")
    );
    let itself = "echo \"$$ 0 $(date '+%a %b %e %H:%M:%S %Y') ps\"";
    for body in [
        "exit 1".to_owned(),
        "echo 'ps: jobc: keyword not found' >&2; exit 1".to_owned(),
        "true".to_owned(),
        format!("{itself}; echo '<html>'"),
        format!("{itself}; head -c 4096 /dev/urandom"),
        format!("echo '{table}'"),
        format!("echo \"$$ 0 Mon Nov 23 07:41:27 2020 ps\"; echo '{table}'"),
        format!(
            "{itself}; echo '812 0 32 Jan 07:41:27 2020 {}'",
            worker(&env.lmstudio()).replace('"', "")
        ),
        format!("{itself}; echo '{table}'; exit 1"),
    ] {
        standins.script("ps", &body);
        assert_eq!(effects(&standins), ["unknown", "unknown"], "{body}");
        standins
            .run(["--check"])
            .exits(0)
            .shows("Loaded models: unknown");
        assert!(
            standins.json(["--check"])["workers_unknown"].is_string(),
            "{body}"
        );
        standins
            .run(["4096"])
            .exits(0)
            .says_nothing_of("old values");
        standins.run(["--revert"]).exits(0);
    }
    // The same rows with a trustworthy clock are an answer.
    standins.script("ps", &format!("{itself}; echo '{table}'"));
    assert_eq!(effects(&standins)[0], "reload-needed");
}

#[test]
fn without_a_ps_nothing_is_claimed() {
    let env = Env::new();
    home(&env);
    let mut command = env.command(["--check"]);
    let ran = support::Ran::of(&command.env("PATH", env.user()).output().unwrap());
    ran.exits(0).shows("Loaded models: unknown");
}

#[test]
fn the_check_names_the_stale_and_fits_80_columns() {
    let env = Env::new();
    home(&env);
    let standins = StandIns::new(&env);
    standins.ps(&[
        (812, ago(3700), worker(&env.lmstudio())),
        (9, ago(3701), worker(&env.lmstudio())),
    ]);
    let ran = standins.run(["--check"]).exits(0);
    let end = format!(
        "Loaded models:\nreload needed (older than the files: worker 9, 812)\n  {USED}\nnot running (no model is loaded \
         there)\n  {OTHER}\n"
    );
    assert!(ran.stdout.ends_with(&end), "{}", ran.stdout);
    assert!(
        ran.stdout.lines().all(|line| line.chars().count() <= 80),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_change_tells_which_workers_hold_old_values_and_touches_nothing() {
    let env = Env::new();
    home(&env);
    let standins = StandIns::new(&env);
    for program in ["osascript", "open", "launchctl"] {
        standins.script(program, "");
    }
    standins.ps(&[(812, ago(60), worker(&env.lmstudio()))]);
    standins
        .run(["4096"])
        .exits(0)
        .says("worker 812 was started before")
        .says("--reload");
    standins
        .run(["4096"])
        .exits(0)
        .says("worker 812 was started before");
    standins
        .run(["2048", "--dry-run"])
        .exits(0)
        .says_nothing_of("812");
    standins
        .run(["--revert"])
        .exits(0)
        .says("worker 812 was started before");
    assert!(
        standins.calls().iter().all(|call| call.starts_with("ps ")),
        "{:?}",
        standins.calls()
    );
    assert_eq!(standins.calls().len(), 3, "one ps for each run that looks");
}

#[test]
fn the_server_tells_mlx_workers_from_others() {
    let env = Env::new();
    let layer = home(&env);
    let standins = StandIns::new(&env);
    let fake = FakeLmStudio::start(&layer.engine());
    fake.announce(&env.lmstudio());
    fake.add_model("qwen/tiny", "mlx");
    fake.add_model("llama/tiny", "gguf");
    let row = |pid, age| (pid, ago(age), worker(&env.lmstudio()));
    standins.ps(&[row(811, 60), row(812, 3700)]);
    fake.load_now("llama/tiny", 4096, 1);
    assert_eq!(
        effects(&standins)[0],
        "not-running",
        "only a GGUF model is loaded"
    );
    fake.load_now("qwen/tiny", 4096, 1);
    assert_eq!(
        effects(&standins)[0],
        "unknown",
        "the old worker may be that of the GGUF model"
    );
    standins.ps(&[row(811, 3800), row(812, 3700)]);
    assert_eq!(effects(&standins)[0], "reload-needed");
}
