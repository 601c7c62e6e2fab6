//! What a message advises is followed: it works, and it is for the home and the backend that it is about.
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use crate::support::home::{
    BackendDir, engine_since_2026, engine_with_constant, engine_with_parameter, generate, runtime,
    select, usual_backend,
};
use crate::support::lms::FakeLms;
use crate::support::{Env, Ran};
use lmpatch::marker;
use lmpatch::patch::survey;
use serde_json::{Value, json};

const OLDER: &str = "app-mlx-generate-mac14-arm64@19";
const NAME: &str = "app-mlx-generate-mac14-arm64@34";

/// A home of one backend, which is in use.
fn one(engine: &str) -> Env {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME).with_engine(engine);
    runtime(&env.lmstudio(), "1.12.0", &[NAME]);
    select(&env.lmstudio(), "1.12.0");
    env
}

fn lib(env: &Env) -> PathBuf {
    let backends = "extensions/backends/vendor/_amphibian";
    env.lmstudio().join(backends).join(NAME).join("lib")
}

#[test]
fn it_is_for_the_home_that_was_given() {
    let env = one(&engine_since_2026("2048"));
    let elsewhere = env.user().join("it's elsewhere");
    fs::rename(env.lmstudio(), &elsewhere).unwrap();
    let home = elsewhere.to_str().unwrap();
    let quoted = home.replace('\'', r"'\''");
    env.run(["--home", home, "--check", "4096"])
        .exits(3)
        .says(&format!("`lmpatch --home '{quoted}' 4096` sets it"));
    env.run(["--home", home, "1000"])
        .exits(0)
        .says(&format!("`lmpatch --home '{quoted}' 768` keeps it"));
}

#[test]
fn a_file_that_has_the_number_already_can_be_reverted_with_the_other() {
    let env = one(&engine_since_2026("4096"));
    let packages = lib(&env).join("python3.11/site-packages");
    let files =
        ["mlx_engine/cache_wrapper.py", "mlx_lm/generate.py"].map(|file| packages.join(file));
    let before = files.clone().map(|file| fs::read(file).unwrap());
    env.run(["4096"]).exits(0);
    assert_ne!(fs::read(&files[1]).unwrap(), before[1]);
    env.run(["--revert"]).exits(0);
    assert_eq!(files.map(|file| fs::read(file).unwrap()), before);
}

#[test]
fn a_file_that_stays_at_stock_gets_no_receipt() {
    let env = one(&engine_since_2026("2048"));
    let packages = lib(&env).join("python3.11/site-packages");
    let generate = packages.join("mlx_lm/generate.py");
    let edited = fs::read_to_string(&generate).unwrap();
    fs::write(&generate, edited.replace("2048", "4096")).unwrap();
    env.run(["2048"]).exits(0);
    assert!(fs::read_to_string(generate).unwrap().contains("2048"));
    assert!(
        !packages
            .join("mlx_engine/cache_wrapper.py.lmpatch")
            .exists()
    );
}

#[test]
fn what_is_at_its_own_stock_is_not_called_set() {
    let env = one(&engine_since_2026("2048"));
    // An engine from before 2026 whose mlx-lm somebody has set to the same number.
    let older = usual_backend(&env.lmstudio(), OLDER).with_engine(engine_with_parameter("512"));
    let generate = fs::read_to_string(older.generate()).unwrap();
    fs::write(older.generate(), generate.replace("2048", "512")).unwrap();
    env.run(["--check"]).says_nothing_of("others are set");
    env.run(["4096", "--backend", OLDER]).exits(0);
    env.run(["--check"])
        .says("at stock while others are set")
        .says(&format!("`lmpatch 4096 --backend '{NAME}'` sets it"));
}

#[test]
fn what_backend_leaves_out_is_told_with_the_command_for_it() {
    let env = one(&engine_since_2026("2048"));
    usual_backend(&env.lmstudio(), OLDER);
    env.run(["4096", "--backend", OLDER])
        .says("--backend omits it")
        .says(&format!("`lmpatch 4096 --backend '{NAME}'` does it too"));
    // Where it is as it would be, there is nothing to do.
    env.run(["--revert", "--backend", OLDER])
        .says_nothing_of("omits it");
    env.run(["4096"]).exits(0);
    env.run(["4096", "--backend", OLDER])
        .says_nothing_of("omits it");
    env.run(["--revert", "--backend", OLDER]).says(&format!(
        "`lmpatch --revert --backend '{NAME}'` does it too"
    ));
    env.run(["2048", "--backend", OLDER])
        .says_nothing_of("omits it");
}

#[test]
fn a_chunk_that_nobody_can_read_is_not_told() {
    let env = one(&engine_since_2026("4 * 256"));
    let report: Value = env.json(["--check"]);
    assert_eq!(report["backends"][0]["state"], "refused");
    assert_eq!(report["backends"][0]["chunk"], Value::Null);
}

#[test]
fn a_size_that_lmpatch_does_not_take_is_not_advised() {
    let env = one(&engine_since_2026("32"));
    env.run(["--check"])
        .says(&format!("`lmpatch 4096 --backend '{NAME}'` sets them all"))
        .says_nothing_of("lmpatch 32");
    // Nor as what others have.
    let older = usual_backend(&env.lmstudio(), OLDER).with_engine(engine_since_2026("32"));
    fs::write(older.generate(), generate("32", "32", "32")).unwrap();
    env.run(["2048", "--backend", NAME]).exits(0);
    env.run(["--check"])
        .exits(0)
        .says_nothing_of("others are set")
        .says_nothing_of("lmpatch 32");
}

#[test]
fn the_way_back_of_a_benchmark_is_followed_to_its_end() {
    let env = one(&engine_since_2026("2048"));
    usual_backend(&env.lmstudio(), OLDER);
    env.run(["512", "--backend", OLDER]).exits(0);
    let cut_off = |env: &Env| {
        let before = survey(&env.lmstudio(), &[]).unwrap().backends;
        marker::add(&env.lmstudio(), marker::commands(before.iter(), true)).unwrap();
        env.run(["64"]).says("2 changed");
        // That set them all, so nothing is left to give back.
        marker::add(&env.lmstudio(), marker::commands(before.iter(), true)).unwrap();
    };
    cut_off(&env);
    let home = env.lmstudio();
    let home = home.to_str().unwrap();
    let said = env.run(["--check", "--home", home]).exits(0);
    let said = said.says("a benchmark was interrupted").stderr;
    let advice = said
        .lines()
        .find(|line| line.contains("interrupted"))
        .unwrap();
    let commands: Vec<_> = advice.split('`').skip(1).step_by(2).collect();
    assert_eq!(commands.len(), 2, "{advice}");
    for command in commands {
        env.run(["--check"]).exits(0).says("interrupted");
        let mut shell = Command::new("sh");
        let script = command.replacen("lmpatch", env!("CARGO_BIN_EXE_lmpatch"), 1);
        let ran = env.isolate(&mut shell).args(["-c", &script]).output();
        Ran::of(&ran.unwrap()).exits(0);
    }
    env.run(["--check"]).exits(0).says_nothing_of("interrupted");
    let report = env.json(["--check"]);
    assert_eq!(report["backends"][0]["chunk"], 512);
    assert_eq!(report["backends"][1]["chunk"], 2048);
    // What is refused is not given back, and the rest is.
    cut_off(&env);
    let older = BackendDir::new(&env.lmstudio(), OLDER).with_engine(engine_since_2026("4 * 256"));
    env.run(["4096"]).exits(1);
    env.run(["--check"])
        .exits(1)
        .says(&format!("`lmpatch 512 --backend '{OLDER}'` restores them"));
    older.with_engine(engine_since_2026("2048"));
    env.run(["4096"]).exits(0);
    env.run(["--check"]).exits(0).says_nothing_of("interrupted");
}

#[test]
fn what_a_limited_run_advises_is_limited_too() {
    let env = one(&engine_since_2026("2048"));
    usual_backend(&env.lmstudio(), OLDER);
    for size in ["16384", "1000", "512"] {
        let ran = env.run([size, "--backend", "*@34"]).exits(0);
        let advised = ran.stderr.split('`').skip(1).step_by(2);
        let own = advised.filter(|advised| advised.starts_with("lmpatch"));
        for advised in own {
            assert!(advised.contains(" --backend '*@34'"), "{}", ran.stderr);
        }
    }
}

/// Runs the last command that is printed in backticks.
#[track_caller]
fn follow(env: &Env, ran: &Ran, more: &str) -> Ran {
    let advised = ran.stderr.rsplit('`').nth(1).unwrap();
    let script = advised.replacen("lmpatch", env!("CARGO_BIN_EXE_lmpatch"), 1);
    let mut shell = Command::new("sh");
    let shell = env.isolate(&mut shell).args(["-c", &(script + more)]);
    Ran::of(&shell.output().unwrap()).exits(0)
}

#[test]
fn what_is_a_pattern_or_needs_quotes_can_be_copied() {
    let env = one(&engine_since_2026("2048"));
    let odd = "app-mlx-generate-it's[x]@35";
    usual_backend(&env.lmstudio(), odd);
    runtime(&env.lmstudio(), "1.13.0", &[odd]);
    select(&env.lmstudio(), "1.13.0");
    let ran = env.run(["4096", "--backend", NAME]).exits(0);
    follow(&env, &ran, "").says("1 backend: 1 changed");
    env.run(["--check", "4096"]).exits(0);
    let ran = env.run(["--check", "3072", "--backend", "*it's*"]);
    follow(&env, &ran.exits(3), "").says("1 backend: 1 changed");
    env.run(["--check", "3072", "--backend", "*@35"]).exits(0);
    // The home that is there beside an empty one.
    let user = env.user().join("it's mine");
    fs::create_dir_all(user.join(".cache/lm-studio")).unwrap();
    fs::rename(env.lmstudio(), user.join(".lmstudio")).unwrap();
    let check = env.command(["--check"]).env("HOME", &user).output();
    let ran = Ran::of(&check.unwrap()).exits(1);
    let stderr = ran.stderr.replace("add `--home", "add `lmpatch --home");
    let ran = Ran { stderr, ..ran };
    follow(&env, &ran, " --check 3072 --backend '*@35'");
}

#[test]
fn no_model_is_loaded_again_if_the_backend_in_use_was_refused() {
    let env = one(&engine_since_2026("4 * 256"));
    let backend = usual_backend(&env.lmstudio(), OLDER);
    let fake = FakeLms::start(&env.lmstudio(), &backend.engine());
    fake.add(json!({ "path": "qwen/tiny" }));
    env.run(["4096", "--reload"])
        .exits(1)
        .says("no model was reloaded: no selected backend was set");
    let report = env.json(["4096", "--reload"]);
    assert_eq!(report["reload"]["error"], "no selected backend was set");
    assert_eq!(fake.calls(), [""; 0]);
}

#[test]
fn two_pythons_that_are_one_are_reverted() {
    let env = one(&engine_since_2026("1024"));
    symlink("python3.11", lib(&env).join("python3.12")).unwrap();
    env.run(["4096"]).exits(0);
    env.run(["--revert"])
        .exits(0)
        .says_nothing_of("cannot be removed");
}

#[test]
fn the_way_back_is_a_revert_only_where_that_gives_the_size_back() {
    let env = one(&engine_since_2026("3072"));
    let back = |env: &Env| {
        let before = survey(&env.lmstudio(), &[]).unwrap().backends;
        marker::commands(before.iter(), true)[NAME].clone()
    };
    assert_eq!(back(&env), "lmpatch 3072");
    env.run(["2048"]).exits(0);
    assert_eq!(back(&env), "lmpatch 2048");
    env.run(["4096"]).exits(0);
    assert_eq!(back(&env), "lmpatch 4096");
    assert_eq!(back(&one(&engine_since_2026("2048"))), "lmpatch --revert");
    // lmpatch sets no such size.
    assert_eq!(back(&one(&engine_since_2026("32"))), "lmpatch --revert");
}

#[test]
fn a_check_advises_for_the_backend_that_it_is_about() {
    let env = one(&engine_since_2026("2048"));
    usual_backend(&env.lmstudio(), OLDER);
    env.run(["1000"]).exits(0);
    env.run(["--check"])
        .says("`lmpatch 768` keeps it")
        .says("`lmpatch --revert` restores");
    env.run(["4096", "--backend", OLDER]).exits(0);
    let only = format!(" --backend '{NAME}'`");
    env.run(["--check"])
        .says(&format!("`lmpatch 768{only} keeps it"))
        .says(&format!("`lmpatch --revert{only} restores"));
}

#[test]
fn a_runtime_whose_only_backend_is_missing_is_told_with_what_brings_it() {
    let env = one(&engine_since_2026("2048"));
    fs::remove_dir_all(lib(&env).parent().unwrap()).unwrap();
    let why = format!("the selected runtime, needs {NAME}, which is not on disk");
    for args in [&["--check"][..], &["4096"], &["4096", "--backend", "*@34"]] {
        env.run(args).exits(1).says(&why).says("`lms runtime get ");
    }
    assert_eq!(env.json(["--check"])["missing_backends"][0]["name"], NAME);
    // A pattern that fits nothing is what is wrong, where there are backends.
    usual_backend(&env.lmstudio(), OLDER);
    for args in [&["--check"][..], &["4096"]] {
        let typo = [args, &["--backend", "tpyo*"]].concat();
        env.run(typo)
            .exits(1)
            .says("matches tpyo*; `lmpatch --check` shows them all");
    }
    fs::remove_dir_all(env.lmstudio().join("extensions/backends")).unwrap();
    usual_backend(&env.lmstudio(), "elsewhere");
    fs::remove_dir_all(env.amphibian().join("elsewhere")).unwrap();
    env.run(["--check", "--backend", "*@34"])
        .exits(1)
        .says("no MLX backend found")
        .says_nothing_of("shows them all");
}

#[test]
fn where_the_selected_backend_is_missing_a_size_is_not_there_and_a_revert_is_done() {
    let env = one(&engine_since_2026("2048"));
    usual_backend(&env.lmstudio(), OLDER);
    fs::remove_dir_all(lib(&env).parent().unwrap()).unwrap();
    env.run(["4096"]).exits(1).says("error: ");
    env.run(["--check", "4096"])
        .exits(3)
        .says("4096 in 1 of 1 backend, and a part of the selected runtime is not on disk");
    env.run(["--revert"]).exits(0).says("warning: ");
}

#[test]
fn read_only_files_are_told_all_at_once_and_by_a_dry_run_too() {
    let env = one(&engine_since_2026("2048"));
    let packages = lib(&env).join("python3.11/site-packages");
    let files =
        ["mlx_engine/cache_wrapper.py", "mlx_lm/generate.py"].map(|file| packages.join(file));
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o444)).unwrap();
    }
    let [first, second] = files.map(|file| file.display().to_string());
    let advice = format!("`chmod u+w '{first}' '{second}'`");
    for args in [&["4096"][..], &["4096", "--dry-run"]] {
        env.run(args).exits(1).says(&format!(
            "{first} is read-only; allow writing with {advice}"
        ));
    }
}

#[test]
fn the_diff_has_bytes_that_are_not_utf_8() {
    let env = one(&engine_since_2026("2048"));
    let engine = lib(&env).join("python3.11/site-packages/mlx_engine/cache_wrapper.py");
    let mut bytes = b"# -*- coding: latin-1 -*-\n# r\xe9glage\n".to_vec();
    bytes.extend(engine_since_2026("2048").bytes());
    fs::write(&engine, &bytes).unwrap();
    let diff = env.command(["4096", "--dry-run"]).output().unwrap().stdout;
    assert!(diff.windows(10).any(|part| part == b" # r\xe9glage"));
}

#[test]
fn an_engine_that_ships_with_two_sizes_is_told_apart() {
    let env = one(&engine_with_constant("512"));
    let kit = lib(&env).join("python3.11/site-packages/mlx_engine/model_kit");
    env.run(["--check"]).says_nothing_of("batched");
    fs::create_dir_all(&kit).unwrap();
    fs::write(kit.join("batched_model_kit.py"), "").unwrap();
    let told = "it ships with 512, but with 2048 for batched text";
    let next = format!("`lmpatch 768 --backend '{NAME}'` sets both");
    env.run(["--check"]).says(told).says(&next);
    env.run(["4096"]).exits(0).says_nothing_of(told);
    env.run(["512"]).exits(0).says(told).says(&next);
    env.run(["768"]).exits(0).says_nothing_of(told);
    env.run(["--check", "768", "-v"]).exits(0).shows("768");
    // Nothing ships with what somebody has set.
    env.run(["512"]).exits(0);
    let generate = lib(&env).join("python3.11/site-packages/mlx_lm/generate.py");
    let text = fs::read_to_string(&generate).unwrap();
    fs::write(&generate, text.replace("2048", "4096")).unwrap();
    env.run(["--check"]).says_nothing_of("it ships with");
}

#[test]
fn a_link_within_a_path_is_what_is_wrong_and_not_the_file() {
    let env = one(&engine_since_2026("2048"));
    let other = usual_backend(&env.lmstudio(), OLDER);
    let package = lib(&env).join("python3.11/site-packages/mlx_lm");
    fs::remove_dir_all(&package).unwrap();
    symlink(other.path("mlx_lm"), &package).unwrap();
    env.run(["4096"]).exits(1).says(&format!(
        "{} is a link out of its backend, to {}; move it away",
        package.display(),
        other.generate().display()
    ));
    // Nor a link beside it, which stays in the backend.
    fs::rename(other.generate(), other.path("mlx_lm/real.py")).unwrap();
    symlink("real.py", other.generate()).unwrap();
    env.run(["4096"])
        .exits(1)
        .says(&format!("{} is a link out of", package.display()));
}

#[test]
fn after_a_failed_reload_of_a_revert_no_revert_is_advised() {
    let env = one(&engine_since_2026("2048"));
    let fake = FakeLms::start(
        &env.lmstudio(),
        &lib(&env).join("python3.11/site-packages/mlx_engine/cache_wrapper.py"),
    );
    fake.add(json!({ "path": "qwen/tiny", "contextLength": 12345 }));
    fake.faults(json!({ "load-fails-at": [2048] }));
    env.run(["--revert", "--reload"])
        .exits(1)
        .says("load it in LM Studio")
        .says_nothing_of("lmpatch --revert");
}

#[test]
fn a_reason_in_json_is_for_the_home_that_was_given() {
    let env = one(&engine_since_2026("1024"));
    let elsewhere = env.user().join("elsewhere");
    fs::rename(env.lmstudio(), &elsewhere).unwrap();
    let home = elsewhere.to_str().unwrap();
    let report = env.json(["--revert", "--home", home]);
    let why = report["backends"][0]["why"].as_str().unwrap();
    assert!(
        why.contains(&format!("`lmpatch --home '{home}' 2048 --backend")),
        "{why}"
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_told_beside_one_that_does() {
    let env = one(&engine_since_2026("2048"));
    let both = ["--backend", NAME, "--backend", "*@63"];
    let told = "warning: no backend matches *@63; `lmpatch --check` shows them all";
    for run in [&["4096"][..], &["--check"], &["--revert", "--dry-run"]] {
        env.run([run, &both].concat()).exits(0).says(told);
    }
}

#[test]
fn where_all_are_missing_the_selected_one_is_named() {
    let env = one(&engine_since_2026("2048"));
    runtime(&env.lmstudio(), "1.13.0", &[OLDER]);
    fs::remove_dir_all(lib(&env).parent().unwrap()).unwrap();
    env.run(["4096"])
        .exits(1)
        .says("MLX 1.12.0, the selected runtime, needs")
        .says_nothing_of("1.13.0");
}

#[test]
fn a_warning_that_others_share_stays_one() {
    let env = one(&engine_since_2026("2048"));
    let other = usual_backend(&env.lmstudio(), OLDER);
    for packages in [lib(&env).join("python3.11/site-packages"), other.path("")] {
        fs::remove_file(packages.join("mlx_engine/cache_wrapper.py")).unwrap();
    }
    env.run(["--check"]).says(&format!(
        "warning: {OLDER}, {NAME}: mlx_engine/cache_wrapper.py"
    ));
}

#[test]
fn what_backend_leaves_out_is_not_advised_where_it_is_refused() {
    let env = one(&engine_since_2026("int(1)"));
    usual_backend(&env.lmstudio(), OLDER);
    for size in ["4096", "--revert"] {
        env.run([size, "--backend", OLDER])
            .exits(0)
            .says("--backend omits it; `lmpatch --check -v` shows why it cannot be changed");
    }
}

#[test]
fn a_pattern_for_a_backend_that_is_missing_is_no_typo() {
    let env = one(&engine_since_2026("2048"));
    runtime(
        &env.lmstudio(),
        "1.13.0",
        &["app-mlx-generate-mac14-arm64@63"],
    );
    env.run(["--check", "--backend", NAME, "--backend", "*@63"])
        .says("needs app-mlx-generate-mac14-arm64@63")
        .says_nothing_of("no backend matches");
}

#[test]
fn a_newer_lmpatch_is_no_hope_for_what_is_proven_to_be_older() {
    let env = one(&engine_since_2026("2048"));
    let older = usual_backend(&env.lmstudio(), OLDER).with_generate("x = 1\n");
    env.run(["--check"]).says("a newer lmpatch may know it");
    older.with_record("x = 1\n");
    env.run(["--check"])
        .says("no definition of prefill_step_size")
        .says_nothing_of("a newer lmpatch may know it");
}
