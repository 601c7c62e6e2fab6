//! `--reload CMD`: a command loads the model again, for each size and in the end.

use std::fs;

use super::{NONE, Stage, begins, column, exact, failed, has, json, keeps, ran};

/// Loads the model of the stage again, and says so in a file.
const AGAIN: &str = r#"echo again >>runs
lms="$HOME/.lmstudio/bin/lms"
"$lms" unload qwen/tiny &&
    "$lms" load dir/qwen/tiny --identifier qwen/tiny --context-length 65536 --parallel 3 --ttl 600"#;

/// How often the command has run.
fn count(stage: &Stage) -> usize {
    stage.read("runs").lines().count()
}

#[test]
fn a_command_is_run_for_every_size_and_in_the_end() {
    let stage = exact(&[]);
    let before = stage.before();
    let mut command = stage.command("--sizes 512,2048,4096 --runs 1 --reload");
    let ran = ran(command.args([AGAIN, "--json"])).exits(0);
    // Of the models only the command knows.
    let ran = ran
        .says("Every backend is as it was.")
        .says_nothing_of("Every model");
    let results = ran.json();
    assert_eq!(column(&results, "observed_chunk"), [512, 2048, 4096]);
    keeps(&results, 512);
    assert_eq!(count(&stage), 4);
    stage.is_as(&before);
}

#[test]
fn a_command_that_fails_only_in_the_end_is_told() {
    let stage = exact(&[]);
    let fails = format!("{AGAIN}\n[ $(wc -l <runs) -lt 3 ] || {{ echo no luck >&2; exit 7; }}");
    let mut command = stage.command("--sizes 512,2048 --runs 1 --reload");
    let results = json(command.arg(fails), 1);
    assert_eq!(column(&results, "failed"), [NONE, NONE]);
    keeps(&results, 512);
    let error = &results["error"];
    begins(error, "the model was not loaded again: --reload '");
    has(error, "sh failed (exit status: 7): no luck");
    assert_eq!(stage.chunk(), Some(2048));
}

/// It may have ended a server before it failed.
#[test]
fn a_command_that_failed_for_every_size_is_run_in_the_end_all_the_same() {
    let stage = exact(&[]);
    let mut command = stage.command("--sizes 512,2048 --reload");
    let results = json(command.arg("echo again >>runs; echo no luck >&2; false"), 1);
    failed(&results, 0, "no luck");
    failed(&results, 1, "no luck");
    assert_eq!(count(&stage), 3);
    assert_eq!(stage.chunk(), Some(2048));
}

#[test]
fn what_a_command_leaves_running_is_not_waited_for() {
    let stage = exact(&[]);
    stage.write("alive", "");
    let server =
        "(n=0; while [ -e alive ] && [ $((n += 1)) -lt 240 ]; do sleep 0.5; done; : > ended) &";
    let mut command = stage.command("--model qwen/tiny --sizes 512,2048 --runs 1 --reload");
    let results = json(command.arg(server), 1);
    // It loads nothing.
    failed(&results, 0, "it did not take effect: the engine used 2048");
    let [alive, ended] = ["alive", "ended"].map(|name| stage.env.user().join(name));
    assert!(!ended.exists());
    fs::remove_file(alive).unwrap();
    assert!(stage.state().lms.is_empty());
}
