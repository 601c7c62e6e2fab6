//! What a message advises is followed: it works, and it is for the home and the backend that it is about.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::support::child::finish;
use crate::support::home::{BackendDir, NAME, engine_since_2026, engine_with_parameter, generate};
use crate::support::lms::FakeLms;
use crate::support::standins::{ago, written};
use crate::support::{Before, Env, LMPATCH, Ran, column, edit, text};
use lmpatch::lmstudio::runtimes::{APPS, PREFERENCES};
use lmpatch::marker;
use lmpatch::patch::survey;
use serde_json::json;

const OLDER: &str = "app-mlx-generate-mac14-arm64@19";

/// A home of one backend, which is in use, with this chunk in its engine.
fn one(chunk: &str) -> (Env, BackendDir) {
    let (env, backend) = Env::in_use();
    (env, backend.with_engine(engine_since_2026(chunk)))
}

/// A home of two, of which only the first is in use.
fn two(chunk: &str) -> (Env, BackendDir, BackendDir) {
    let (env, backend) = one(chunk);
    let older = env.backend(OLDER);
    (env, backend, older)
}

/// What is printed in backticks.
fn advised(stderr: &str) -> Vec<&str> {
    stderr.split('`').skip(1).step_by(2).collect()
}

/// Runs a command of lmpatch's that was advised, which works.
#[track_caller]
fn follow(env: &Env, command: &str) -> Ran {
    let script = command.replacen("lmpatch", LMPATCH, 1);
    let mut shell = Command::new("sh");
    finish(env.isolate(&mut shell).args(["-c", &script])).exits(0)
}

#[test]
fn it_is_for_the_home_that_was_given() {
    let (env, _) = one("1024");
    let elsewhere = env.user().join("it's elsewhere");
    fs::rename(env.lmstudio(), &elsewhere).unwrap();
    let home = elsewhere.to_str().unwrap();
    let command = format!("`lmpatch --home '{}'", home.replace('\'', r"'\''"));
    // Also a reason in JSON.
    let report = env.json(["--check", "--backend", "none", "--home", home]);
    let error = report["error"].as_str().unwrap();
    assert!(error.contains(&format!("{command} --check`")), "{error}");
    env.run(["--home", home, "--check", "4096"])
        .exits(3)
        .says(&format!("{command} 4096` sets it"));
    env.run(["--home", home, "1000"])
        .tells(&format!("{command} 768 --backend '{NAME}'` keeps it"));
}

#[test]
fn a_file_that_has_the_number_already_can_be_reverted_with_the_other() {
    let (env, backend) = one("4096");
    let files = [backend.engine(), backend.generate()];
    let before = files.each_ref().map(|file| fs::read(file).unwrap());
    env.run(["4096"]).exits(0);
    assert_ne!(fs::read(&files[1]).unwrap(), before[1]);
    env.run(["--revert"]).exits(0);
    assert_eq!(files.map(|file| fs::read(file).unwrap()), before);
}

#[test]
fn a_file_that_stays_at_stock_gets_no_receipt() {
    let (env, backend) = one("2048");
    edit(&backend.generate(), "2048", "4096");
    env.run(["2048"]).exits(0);
    let generate = text(backend.generate());
    assert!(generate.contains("2048"));
    let receipt = backend.path("mlx_engine/cache_wrapper.py.lmpatch");
    assert!(!receipt.exists());
}

#[test]
fn what_is_at_its_own_stock_is_not_called_set() {
    let (env, _, older) = two("2048");
    // An engine from before 2026 whose mlx-lm somebody has set to the same number.
    let older = older.with_engine(engine_with_parameter("512"));
    edit(&older.generate(), "2048", "512");
    env.run(["--check"]).says_nothing_of("others are set");
    env.run(["4096", "--backend", OLDER]).exits(0);
    env.run(["--check"])
        .says("at stock while others are set")
        .says(&format!("`lmpatch 4096 --backend '{NAME}'` sets it"));
}

#[test]
fn what_backend_leaves_out_is_told() {
    let (env, ..) = two("2048");
    let only_older = |what: &str| env.run([what, "--backend", OLDER]);
    let told = format!("{NAME} is selected, but --backend omits it; `lmpatch --check` shows");
    let ran = only_older("4096").says(&told);
    ran.says_nothing_of("Takes effect");
    env.run(["4096", "--backend", OLDER, "--reload"])
        .fails("no model was loaded again: no selected backend was set");
    only_older("--revert").says("--backend omits it");
}

#[test]
fn a_size_that_lmpatch_does_not_take_is_not_advised() {
    let (env, _) = one("32");
    env.run(["--check"])
        .says(&format!("`lmpatch 4096 --backend '{NAME}'` sets them all"))
        .says_nothing_of("lmpatch 32");
    // Nor as what others have.
    env.backend(OLDER)
        .with_engine(engine_since_2026("32"))
        .with_generate(generate("32", "32", "32"));
    env.run(["2048", "--backend", NAME]).exits(0);
    let ran = env.run(["--check"]).exits(0);
    ran.says_nothing_of("others are set")
        .says_nothing_of("lmpatch 32");
}

#[test]
fn the_way_back_of_a_benchmark_is_followed_to_its_end() {
    let (env, _, older) = two("2048");
    env.run(["512", "--backend", OLDER]).exits(0);
    let home = env.lmstudio();
    let cut_off = || {
        let before = survey(&home, &[]).unwrap().0;
        marker::add(&home, &before).unwrap();
        env.run(["64"]).says("2 changed");
        // That set them all, so nothing is left to give back.
        marker::add(&home, &before).unwrap();
    };
    cut_off();
    let given = ["--check", "--home", home.to_str().unwrap()];
    let said = env.run(given).exits(0).stderr;
    let is_it = |line: &&str| line.contains("a benchmark was interrupted");
    let advice = said.lines().find(is_it).unwrap();
    let commands = advised(advice);
    assert_eq!(commands.len(), 2, "{advice}");
    for command in commands {
        env.run(["--check"]).tells("interrupted");
        follow(&env, command);
    }
    env.run(["--check"]).exits(0).says_nothing_of("interrupted");
    let chunks = column(&env.json(["--check"]), "chunk");
    assert_eq!(chunks, json!([512, 2048]));
    // What is refused is not given back, and the rest is.
    cut_off();
    let older = older.with_engine(engine_since_2026("4 * 256"));
    env.run(["4096"]).exits(1);
    env.run(["--check"])
        .fails(&format!("`lmpatch 512 --backend '{OLDER}'` restores them"));
    older.with_engine(engine_since_2026("2048"));
    env.run(["4096"]).exits(0);
    env.run(["--check"]).exits(0).says_nothing_of("interrupted");
}

#[test]
fn the_way_back_is_a_revert_only_where_that_gives_the_size_back() {
    let back = |env: &Env| {
        let before = survey(&env.lmstudio(), &[]).unwrap().0;
        marker::add(&env.lmstudio(), &before).unwrap();
        marker::restore_commands(&env.lmstudio()).unwrap()
    };
    let command = |way: &str| format!("`lmpatch {way} --backend '{NAME}'`");
    let (env, _) = one("3072");
    assert_eq!(back(&env), command("3072"));
    for size in ["2048", "4096"] {
        env.run([size]).exits(0);
        assert_eq!(back(&env), command(size));
    }
    // lmpatch sets no such size as 32.
    for chunk in ["2048", "32"] {
        assert_eq!(back(&one(chunk).0), command("--revert"));
    }
}

#[test]
fn what_a_limited_run_advises_is_limited_too() {
    let (env, ..) = two("2048");
    for size in ["16384", "1000", "512"] {
        let ran = env.run([size, "--backend", "*@34"]).exits(0);
        let mut own = advised(&ran.stderr);
        own.retain(|advised| advised.starts_with("lmpatch"));
        let is_limited = |advised: &&str| {
            ["*@34", NAME]
                .iter()
                .any(|name| advised.contains(&format!(" --backend '{name}'")))
        };
        assert!(own.iter().all(is_limited), "{own:?}");
    }
}

#[test]
fn what_is_a_pattern_or_needs_quotes_can_be_copied() {
    let (env, _) = Env::in_use();
    let odd = "app-mlx-generate-it's[x]@35";
    env.backend(odd);
    env.runtime("1.13.0", &[odd]);
    env.select("1.13.0");
    let last = |ran: &Ran| (*advised(&ran.stderr).last().unwrap()).to_owned();
    let ran = env.run(["--check", "3072", "--backend", "*it's*"]).exits(3);
    follow(&env, &last(&ran)).says("Backends: 1 changed");
    env.run(["--check", "3072", "--backend", "*@35"]).exits(0);
    // The home that is there beside an empty one.
    let user = env.user().join("it's mine");
    fs::create_dir_all(user.join(".cache/lm-studio")).unwrap();
    fs::rename(env.lmstudio(), user.join(".lmstudio")).unwrap();
    let check = finish(env.command(["--check"]).env("HOME", &user));
    let home = last(&check.exits(1));
    let command = format!("lmpatch {home} --check 3072 --backend '*@35'");
    follow(&env, &command);
}

#[test]
fn a_check_advises_for_the_backend_that_it_is_about() {
    let (env, ..) = two("2048");
    env.run(["1000"]).exits(0);
    env.run(["--check"])
        .says(&format!("`lmpatch 768 --backend '{NAME}'` keeps it"))
        .says(&format!(
            "`lmpatch 2048 --backend '{NAME}'` sets that again"
        ))
        .says_nothing_of(OLDER);
}

#[test]
fn a_read_only_file_is_told_by_a_dry_run_too() {
    let (env, backend) = Env::in_use();
    fs::set_permissions(backend.generate(), fs::Permissions::from_mode(0o444)).unwrap();
    let file = backend.generate().display().to_string();
    let told = format!(
        "cannot write {file} (Permission denied (os error 13)); allow it with `chmod u+rwX '{file}'`"
    );
    for args in [&["4096"][..], &["4096", "--dry-run"]] {
        env.run(args).fails(&told);
    }
}

#[test]
fn no_model_is_loaded_again_if_the_backend_in_use_was_refused() {
    let (env, backend, older) = two("4 * 256");
    let preferences = env.lmstudio().join(APPS[0].1).join(PREFERENCES);
    for path in [preferences, backend.engine(), backend.generate()] {
        written(&path, ago(7200));
    }
    let fake = FakeLms::start(&env.lmstudio(), &older.engine());
    fake.add(json!({ "path": "qwen/tiny" }));
    env.run(["4096", "--reload"])
        .fails("no model was loaded again: no selected backend was set")
        .says_nothing_of(": loaded models have");
    let report = env.json(["4096", "--reload"]);
    assert_eq!(report["reload"]["error"], "no selected backend was set");
    assert_eq!(fake.calls(), [""; 0]);
}

#[test]
fn after_a_failed_reload_only_what_was_changed_goes_back() {
    let (env, backend, older) = two("2048");
    env.run(["8192", "--backend", OLDER]).exits(0);
    let fake = FakeLms::start(&env.lmstudio(), &backend.engine());
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "load-fails-at": [8192] }));
    let ran = env.run(["8192", "--reload"]).exits(1);
    let before = Before::of(&older.root);
    let command = format!("lmpatch 2048 --backend '{NAME}'");
    assert!(advised(&ran.stderr).contains(&&*command), "{ran:#?}");
    follow(&env, &command);
    before.still_holds();
}

#[test]
fn after_a_failed_reload_of_a_revert_no_revert_is_advised() {
    let (env, backend) = Env::in_use();
    let fake = FakeLms::start(&env.lmstudio(), &backend.engine());
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "load-fails-at": [2048] }));
    env.run(["--revert", "--reload"])
        .fails("load it in LM Studio")
        .says_nothing_of("lmpatch --revert");
}

#[test]
fn a_warning_that_others_share_stays_one() {
    let (env, backend, other) = two("2048");
    for backend in [backend, other] {
        fs::remove_file(backend.engine()).unwrap();
    }
    let shared = format!("warning: {OLDER}, {NAME}: mlx_engine/cache_wrapper.py");
    env.run(["--check"]).says(&shared);
}
