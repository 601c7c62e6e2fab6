//! Which directories are backends, which of them are meant, and which runtimes use them.
use std::fs;

use crate::support::home::{BackendDir, NAME, RUNTIME, stock_generate};
use crate::support::server::chunk_on_disk;
use crate::support::{Before, Env, column, copy_tree, lines_on_terminal, list, write};
use serde_json::json;

const OLDER: &str = "app-mlx-generate-mac14-arm64@19";
const NEWER: &str = "app-mlx-generate-mac14-arm64@63";

#[test]
fn only_directories_with_an_mlx_engine_are_backends() {
    let env = Env::new();
    env.backend(NAME);
    BackendDir::new(&env.lmstudio(), "app-harmony-mac-arm64@6")
        .write("harmony/generate.py", "prefill_step_size: int = 2048\n");
    fs::write(env.amphibian().join("a file"), "").unwrap();
    fs::create_dir_all(env.amphibian().join("empty@1")).unwrap();
    let before = Before::of(env.lmstudio());
    let ran = env.run(["4096"]).tells("Backends: 1 changed");
    let printed = ran.stdout + &ran.stderr;
    assert!(!printed.contains("harmony"), "{printed}");
    let changed = before.changes();
    let is_its = |path: &String| path.contains(NAME);
    assert!(changed.iter().all(is_its), "{changed:?}");
}

#[test]
fn a_directory_with_one_package_is_a_backend_with_one_file() {
    let env = Env::new();
    BackendDir::new(&env.lmstudio(), NAME).with_listed_generate(stock_generate());
    env.run(["4096"]).exits(0);
    assert_eq!(env.json(["--check", "4096"])["exit_code"], 0);
    let backend = env.checked(0);
    assert_eq!(backend["stock"], 2048);
    assert_eq!(list(&backend, "files").len(), 1);
    env.run(["2048"]).exits(0);
    assert_eq!(env.checked(0)["state"], "stock");
}

#[test]
fn a_package_without_its_file_is_incomplete_and_left_alone() {
    let env = Env::new();
    env.backend(NAME);
    let half = env.backend("app-mlx-generate-mac14-arm64@35");
    fs::remove_file(half.generate()).unwrap();
    let before = Before::of(&half.root);
    env.run(["4096"])
        .tells("@35: mlx_lm/generate.py: not there")
        .says("1 changed, 1 incomplete");
    before.still_holds();
    let finish = "let LM Studio finish its update";
    let check = env.run(["--check"]).exits(0);
    check.shows("incomplete").says(finish);
    // As for the set: what is unfinished and not in use is no failure.
    env.run(["--check", "4096"]).exits(0);
    env.run(["--check", "4096", "--backend", "*@35"]).exits(3);
    env.run(["4096", "--backend", "*@35"]).fails(finish);
}

#[test]
fn backends_are_chosen_by_pattern() {
    let env = Env::new();
    let older = "app-mlx-generate-mac14-arm64@9";
    let mac26 = "app-mlx-generate-mac26-arm64@33";
    for name in [NAME, mac26, older] {
        env.backend(name);
    }
    env.run(["4096", "--backend", "app-mlx-generate-mac14-arm64@*"])
        .tells("Backends: 2 changed");
    env.run(["--check", "4096", "--backend", "*mac14*"])
        .exits(0);
    env.run(["--check", "4096"]).exits(3);
    env.run(["8192", "--backend", "*@33", "--backend", "*@9"])
        .tells("Backends: 2 changed");
    env.run(["8192", "--backend", "*mac15*"])
        .fails("matches '*mac15*'")
        .says("--check");
    let names = column(&env.json(["--check"]), "name");
    assert_eq!(names, json!([older, NAME, mac26]));
}

#[test]
fn backups_of_a_backend_are_left_alone() {
    let env = Env::new();
    let backups = [".bak", " copy", "-old"].map(|end| format!("{NAME}{end}"));
    let engines = backups.each_ref().map(|name| env.backend(name).engine());
    let chunks = || engines.each_ref().map(|engine| chunk_on_disk(engine));
    env.run(["4096"]).fails("no MLX backend found");
    // A name without a number is no backup's.
    for name in [NAME, "my-engine", "my-engine-fork"] {
        env.backend(name);
    }
    env.run(["4096"]).tells("Backends: 3 changed");
    assert_eq!(chunks(), [Some(2048); 3]);
    // A runtime uses the first, whatever its name.
    env.runtime("1.11.0", &[&backups[0]]);
    env.run(["4096"]).tells("1 changed, 3 unchanged");
    assert_eq!(chunks(), [Some(4096), Some(2048), Some(2048)]);
}

#[test]
fn every_python_3_of_a_backend_is_looked_at() {
    let env = Env::new();
    let lib = env.backend(NAME).root.join("lib");
    fs::rename(lib.join("python3.11"), lib.join("python3.14")).unwrap();
    env.run(["4096"]).exits(0);
    let packages = lib.join("python3.14/site-packages");
    let engine = packages.join("mlx_engine/cache_wrapper.py");
    assert_eq!(chunk_on_disk(&engine), Some(4096));
    let others = ["python3.10", "python3.13", "python3.12"];
    for other in others {
        copy_tree(&lib.join("python3.14"), &lib.join(other));
    }
    let report = env.json(["8192"]);
    let files = list(&report["backends"][0], "files").iter();
    let paths: Vec<_> = files.map(|file| file["path"].as_str()).collect();
    assert_eq!(paths.len(), 8);
    assert!(paths.is_sorted(), "{paths:#?}");
}

#[test]
fn a_backup_of_a_runtime_says_nothing_new_or_that_it_is_unknown() {
    let env = Env::new();
    env.backend(NAME);
    env.runtime("1.11.0", &[NAME]);
    env.select("1.11.0");
    let backends = env.lmstudio().join("extensions/backends");
    let real = backends.join(format!("{RUNTIME}-1.11.0"));
    copy_tree(&real, &backends.join("_old runtime"));
    let report = env.json(["--check"]);
    let backend = &report["backends"][0];
    assert_eq!(backend["selected"], true, "{report:#}");
    assert_eq!(list(backend, "runtimes").len(), 1);
    // Where they differ, it is unknown which one is in use.
    fs::rename(&real, backends.join("another")).unwrap();
    env.runtime("1.11.0", &[NAME, OLDER]);
    let told = "the runtime of LM Studio is unknown: its preferences name one that is not known, or is there twice";
    env.run(["--check"]).tells(told);
    // As is one that is not there at all.
    env.select("9.9.9");
    env.run(["--check"]).tells(told);
}

#[test]
fn the_runtime_that_uses_a_backend_is_named_and_the_selected_one_marked() {
    let env = Env::new();
    for (version, name) in [("1.11.0", NAME), ("1.10.2", NAME), ("1.1.0", OLDER)] {
        env.backend(name);
        env.runtime(version, &[name]);
    }
    env.select("1.11.0");
    let report = env.json(["--check"]);
    assert_eq!(column(&report, "selected"), json!([false, true]));
    let runtimes = &report["backends"][1]["runtimes"];
    assert_eq!(runtimes[0]["version"], "1.11.0");
    assert_eq!(runtimes[1]["version"], "1.10.2");
    let check = env.run(["--check"]).exits(0);
    check
        .shows("MLX 1.11.0  yes")
        .shows("\n                                 MLX 1.10.2\n");
}

#[test]
fn a_name_is_whole_in_a_narrow_table_however_many_runtimes_use_it() {
    let env = Env::new();
    env.backend(NAME);
    for version in ["1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0"] {
        env.runtime(version, &[NAME]);
    }
    let Some(lines) = lines_on_terminal(&env, &env.command(["--check"])) else {
        return;
    };
    let is_whole = |line: &String| line.starts_with(NAME);
    assert!(lines.iter().any(is_whole), "{lines:#?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
}

#[test]
fn runtimes_that_are_missing_or_odd_only_make_it_say_less() {
    let env = Env::new();
    env.backend(NAME);
    let manifest = "extensions/backends/odd/backend-manifest.json";
    let preferences = ".internal/backend-preferences-v1.json";
    for text in [
        "",
        "{",
        "[]",
        "null",
        "{\"name\": 1}",
        "{\"name\":\"mlx\",\"version\":\"1\",\"vendor_lib_package_names\":{}}",
    ] {
        write(&env.lmstudio().join(manifest), text);
        write(&env.lmstudio().join(preferences), text);
        env.run(["--check"]).exits(0).shows(NAME).shows("stock");
    }
}

#[test]
fn a_selected_runtime_without_an_mlx_backend_is_told() {
    let env = Env::new();
    env.backend(NAME);
    let told = "the runtime of LM Studio is unknown: its preferences name one that is not known";
    fs::create_dir_all(env.amphibian().join("mlx-engine@1")).unwrap();
    env.runtime("1.12.0", &["mlx-engine@1"]);
    env.select("1.12.0");
    env.run(["--check"]).tells(told);
}

#[test]
fn a_runtime_whose_only_backend_is_missing_is_told_with_what_brings_it() {
    let (env, backend) = Env::in_use();
    fs::remove_dir_all(&backend.root).unwrap();
    let why = format!("MLX 1.12.0, the selected runtime, needs {NAME}, which is not on disk");
    for flags in [&[][..], &["--backend", "*@34"]] {
        env.fails(flags, &[&why, "`lms runtime get "]);
    }
    assert_eq!(env.json(["--check"])["missing_backends"][0]["name"], NAME);
    // Where all are missing, the selected one is named.
    env.runtime("1.13.0", &[NEWER]);
    env.run(["4096"]).fails(&why).says_nothing_of("1.13.0");
    // A pattern that fits nothing is what is wrong, where there are backends.
    env.backend(OLDER);
    let report = env.json(["--check", "--backend", OLDER]);
    // That of the selected runtime, and those that are meant.
    let missing = list(&report, "missing_backends");
    assert_eq!((missing.len(), &missing[0]["name"]), (1, &json!(NAME)));
    let typo = "matches 'tpyo*'; `lmpatch --check` shows them all";
    env.fails(&["--backend", "tpyo*"], &[typo]);
    fs::remove_dir_all(env.lmstudio().join("extensions/backends")).unwrap();
    fs::create_dir_all(env.amphibian()).unwrap();
    env.run(["--check"]).fails("no MLX backend found");
}

#[test]
fn where_the_selected_backend_is_missing_a_size_is_not_there_and_a_revert_is_done() {
    let (env, backend) = Env::in_use();
    env.backend(OLDER);
    fs::remove_dir_all(&backend.root).unwrap();
    env.run(["4096"]).fails("error: ");
    env.run(["--check", "4096"])
        .exits(3)
        .says("4096 in 1 of 1 backends");
    env.run(["--revert"]).tells("warning: ");
}

#[test]
fn a_pattern_that_matches_nothing_is_an_error_beside_one_that_does() {
    let (env, _) = Env::in_use();
    let both = ["--backend", NAME, "--backend", "*@63"];
    env.fails(&both, &["matches '*@63'; `lmpatch --check` shows them all"]);
    // One for a backend that is missing is no typo.
    env.runtime("1.13.0", &[NEWER]);
    env.run([&["--check"][..], &both].concat())
        .tells(&format!("needs {NEWER}"));
}
