//! What is printed: the table, the sites, the JSON, and the lines below.
use std::fs;
use std::os::unix::fs::symlink;

use crate::support::home::{BackendDir, NAME, engine_since_2026, generate};
use crate::support::{Env, fields};
use serde_json::{Value, json};

#[test]
fn the_check_is_a_table() {
    let env = Env::with_fixture();
    env.run(["4096", "--backend", "*@34"]).exits(0);
    let ran = env.run(["--check"]).exits(0);
    let expected = "\
backend                          runtime     selected  chunk  stock  state
app-mlx-generate-mac-arm64@8     MLX 0.14.0              512    512  stock
app-mlx-generate-mac14-arm64@19  MLX 1.1.0               512    512  stock
app-mlx-generate-mac14-arm64@34  MLX 1.11.0  yes        4096   2048  patched
";
    assert_eq!(ran.stdout, expected);
}

#[test]
fn a_change_is_told_as_before_and_after() {
    let ran = Env::with_fixture().run(["4096"]).exits(0);
    let expected = "\
backend                          runtime     selected        chunk  result
app-mlx-generate-mac-arm64@8     MLX 0.14.0             512 → 4096  changed
app-mlx-generate-mac14-arm64@19  MLX 1.1.0              512 → 4096  changed
app-mlx-generate-mac14-arm64@34  MLX 1.11.0  yes       2048 → 4096  changed
";
    assert_eq!(ran.stdout, expected);
}

#[test]
fn names_cannot_drive_the_terminal() {
    let (env, _) = Env::in_use();
    env.backend("app-mlx-generate\u{1b}[31m@1")
        .with_generate("x");
    let ran = env.run(["--check"]).exits(1);
    let printed = ran.stdout + &ran.stderr;
    assert!(!printed.contains('\u{1b}'), "{printed:?}");
}

#[test]
fn a_dry_run_is_a_diff() {
    let env = Env::with_fixture();
    let ran = env.run(["4096", "--dry-run", "--backend", "*@19"]).exits(0);
    assert_eq!(ran.stdout, include_str!("texts/dry-run.diff"));
}

#[test]
fn the_diff_has_bytes_that_are_not_utf_8() {
    let (env, backend) = Env::in_use();
    let mut bytes = b"# -*- coding: latin-1 -*-\n# r\xe9glage\n".to_vec();
    bytes.extend(engine_since_2026("2048").bytes());
    fs::write(backend.engine(), &bytes).unwrap();
    let diff = env.command(["4096", "--dry-run"]).output().unwrap().stdout;
    assert!(diff.windows(10).any(|part| part == b" # r\xe9glage"));
}

#[test]
fn the_diff_has_paths_within_a_home_that_is_a_link() {
    let (env, _) = Env::in_use();
    let moved = env.user().join("moved");
    fs::rename(env.lmstudio(), &moved).unwrap();
    symlink(&moved, env.lmstudio()).unwrap();
    let path = format!("extensions/backends/vendor/_amphibian/{NAME}/lib/python3.11");
    let plain = format!("--- a/{path}/site-packages/mlx_engine/cache_wrapper.py\n");
    env.run(["--dry-run"]).exits(0).shows(&plain);
}

#[test]
fn verbose_shows_every_site() {
    let env = Env::with_fixture();
    env.run(["4096"]).exits(0);
    let ran = env.run(["--check", "-v", "--backend", "*@34"]).exits(0);
    for line in [
        "/lib/python3.11/site-packages/mlx_engine/cache_wrapper.py  patched\n  original: receipt",
        "line     5    4096  <module>  stock 2048",
        "mlx_lm/generate.py  patched\n  original: record",
        "line    25    4096  speculative_generate_step  stock 512",
        "line    49    4096  BatchGenerator.__init__  stock 2048",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
}

#[test]
fn the_states_are_told_apart() {
    let env = Env::new();
    let backend = env.backend(NAME);
    let state = || env.checked(0)["state"].clone();
    assert_eq!(state(), "stock");
    fs::write(backend.engine(), engine_since_2026("4096")).unwrap();
    assert_eq!(state(), "mixed");
    env.run(["--check", "4096"]).exits(3);
    fs::write(backend.generate(), generate("4096", "4096", "4096")).unwrap();
    assert_eq!(state(), "patched");
    env.run(["--check", "4096"]).exits(0);
    fs::write(backend.generate(), generate("4096", "4096", "8192")).unwrap();
    assert_eq!(state(), "mixed");
    fs::write(backend.generate(), "x = 1\n").unwrap();
    assert_eq!(state(), "refused");
    fs::remove_file(backend.generate()).unwrap();
    assert_eq!(state(), "incomplete");
}

#[test]
fn a_chunk_that_nobody_can_read_is_not_told() {
    let (env, backend) = Env::in_use();
    fs::write(backend.engine(), engine_since_2026("4 * 256")).unwrap();
    let told = fields(&env.checked(0), ["state", "chunk"]);
    assert_eq!(told, json!(["refused", null]));
}

#[test]
fn the_json_has_everything_the_table_knows() {
    let env = Env::with_fixture();
    let report = env.json(["4096"]);
    let told = fields(&report, ["schema", "action", "size", "exit_code"]);
    assert_eq!(told, json!([3, "set", 4096, 0]));
    let backend = &report["backends"][2];
    let path = env.amphibian().join(NAME);
    let told = fields(backend, ["name", "path", "selected", "state", "result"]);
    assert_eq!(told, json!([NAME, path, true, "patched", "changed"]));
    let told = fields(backend, ["chunk_before", "chunk", "stock"]);
    assert_eq!(told, json!([2048, 4096, 2048]));
    assert_eq!(backend["runtimes"][0]["version"], "1.11.0");
    let file = &backend["files"][1];
    let path = BackendDir { root: path }.generate();
    let told = fields(file, ["path", "state", "original"]);
    assert_eq!(told, json!([path, "patched", "record"]));
    let expected = json!({
        "name": "prefill_step_size", "owner": "speculative_generate_step", "line": 25, "value": 4096, "stock": 512,
    });
    assert_eq!(file["sites"][1], expected);
    assert_eq!(file["sites"].as_array().map(Vec::len), Some(5));
    let result = |args: &[&str]| env.json(args)["backends"][0]["result"].clone();
    assert_eq!(result(&["--check"]), Value::Null);
    assert_eq!(result(&["8192", "--dry-run"]), "would-change");
}

#[test]
fn advice_comes_only_where_it_applies() {
    let (env, _) = Env::in_use();
    let grid = "not a multiple of 256";
    let below = "below its stock";
    for (size, applies) in [
        ("4096", vec![]),
        ("3000", vec![grid]),
        ("6144", vec![]),
        ("16384", vec![]),
        ("1024", vec![below]),
        ("100", vec![grid, below]),
        ("2048", vec![]),
    ] {
        let stderr = env.run([size]).exits(0).stderr;
        let told = stderr.lines().flat_map(|line| {
            let all = [grid, below].into_iter();
            all.filter(move |advice| line.contains(advice))
        });
        let told: Vec<_> = told.collect();
        assert_eq!(told, applies, "{size}: {stderr}");
    }
    env.run(["3000"]).exits(0);
    env.run(["--check"]).tells(grid);
    let revert = env.run(["--revert"]).exits(0);
    revert.says_nothing_of("multiple of 256");
    env.run(["--check"]).exits(0).says_nothing_of("note:");
}

/// The sign is a file of the engine, not a version.
#[test]
fn engines_that_fit_less_context_at_a_larger_chunk_are_named() {
    let note = format!("note: {NAME}: a larger chunk leaves less memory for context");
    let advice = format!("if you need the longer context: `lmpatch 2048 --backend '{NAME}'`");
    for (file, applies) in [
        ("mlx_engine/model_kit/batched_vision/context_fit.py", true),
        ("mlx_engine/model_kit/context_fit.py", false),
    ] {
        let (env, backend) = Env::in_use();
        backend.write(file, "");
        let ran = env.run(["4096"]).exits(0).says_nothing_of("update");
        assert_eq!(ran.stderr.contains(&note), applies, "{ran:#?}");
        assert_eq!(ran.stderr.contains(&advice), applies, "{ran:#?}");
        let checked = env.run(["--check"]).exits(0);
        assert_eq!(checked.stderr.contains(&note), applies, "{checked:#?}");
        env.run(["1024"])
            .exits(0)
            .says_nothing_of("leaves less memory for context");
    }
}
