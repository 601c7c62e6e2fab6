//! What is printed: the table, the sites, the JSON, and the lines below.
use crate::support::Env;
use crate::support::home::{engine_since_2026, generate, runtime, select, usual_backend};
use serde_json::Value;

const NAME: &str = "app-mlx-generate-mac14-arm64@34";

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
No model is loaded.
";
    assert_eq!(ran.stdout, expected);
    assert!(ran.stdout.lines().all(|line| line.chars().count() <= 80));
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
fn a_dry_run_is_a_diff() {
    let env = Env::with_fixture();
    let ran = env.run(["4096", "--dry-run", "--backend", "*@19"]).exits(0);
    assert_eq!(ran.stdout, include_str!("texts/dry-run.diff"));
}

#[test]
fn verbose_shows_every_site() {
    let env = Env::with_fixture();
    env.run(["4096"]).exits(0);
    let ran = env.run(["--check", "-v", "--backend", "*@34"]).exits(0);
    for line in [
        "mlx_engine/cache_wrapper.py: PROMPT_PROCESSING_CHUNK_SIZE  patched\n    original: known from lmpatch's receipt",
        "line     5    4096  <module>  stock 2048",
        "mlx_lm/generate.py: prefill_step_size  patched\n    original: known from the package's RECORD",
        "line    25    4096  speculative_generate_step  stock 512",
        "line    49    4096  BatchGenerator.__init__  stock 2048",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
}

#[test]
fn the_states_are_told_apart() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let state = || {
        env.json(["--check"])["backends"][0]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(state(), "stock");
    std::fs::write(backend.engine(), engine_since_2026("4096")).unwrap();
    assert_eq!(state(), "mixed");
    env.run(["--check", "4096"]).exits(3);
    std::fs::write(backend.generate(), generate("4096", "4096", "4096")).unwrap();
    assert_eq!(state(), "patched");
    env.run(["--check", "4096"]).exits(0);
    std::fs::write(backend.generate(), generate("4096", "4096", "8192")).unwrap();
    assert_eq!(state(), "mixed");
    std::fs::write(backend.generate(), "x = 1\n").unwrap();
    assert_eq!(state(), "refused");
    std::fs::remove_file(backend.generate()).unwrap();
    assert_eq!(state(), "incomplete");
}

#[test]
fn the_json_has_everything_the_table_knows() {
    let env = Env::with_fixture();
    let report = env.json(["4096"]);
    assert_eq!(report["schema"], 3);
    assert_eq!(report["action"], "set");
    assert_eq!(report["size"], 4096);
    assert_eq!(report["exit_code"], 0);
    let backend = &report["backends"][2];
    assert_eq!(backend["name"], NAME);
    assert!(backend["path"].as_str().unwrap().ends_with(NAME));
    assert_eq!(backend["runtimes"][0]["version"], "1.11.0");
    assert_eq!(backend["selected"], true);
    assert_eq!(
        (
            &backend["chunk_before"],
            &backend["chunk"],
            &backend["stock"]
        ),
        (&2048.into(), &4096.into(), &2048.into())
    );
    assert_eq!(
        (&backend["state"], &backend["result"]),
        (&"patched".into(), &"changed".into())
    );
    let file = &backend["files"][1];
    assert!(
        file["path"]
            .as_str()
            .unwrap()
            .ends_with("mlx_lm/generate.py")
    );
    assert_eq!(
        (&file["state"], &file["original"]),
        (&"patched".into(), &"record".into())
    );
    let expected = serde_json::json!({
        "name": "prefill_step_size", "owner": "speculative_generate_step", "line": 25, "value": 4096, "stock": 512,
    });
    assert_eq!(file["sites"][1], expected);
    assert_eq!(file["sites"].as_array().map(Vec::len), Some(5));
    assert_eq!(env.json(["--check"])["backends"][0]["result"], Value::Null);
    assert_eq!(
        env.json(["8192", "--dry-run"])["backends"][0]["result"],
        "would-change"
    );
}

#[test]
fn advice_comes_only_where_it_applies() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    runtime(&env.lmstudio(), "1.12.0", &[NAME]);
    select(&env.lmstudio(), "1.12.0");
    let (grid, memory, below) = (
        "not a multiple of 256",
        "may be too much",
        "below its stock",
    );
    for (size, applies) in [
        ("4096", vec![]),
        ("3000", vec![grid]),
        ("6144", vec![]),
        ("8192", vec![memory]),
        ("16384", vec![memory]),
        ("1024", vec![below]),
        ("100", vec![grid, below]),
        ("2048", vec![]),
    ] {
        let ran = env.run([size]).exits(0);
        for advice in [grid, memory, below] {
            let lines = ran
                .stderr
                .lines()
                .filter(|line| line.contains(advice))
                .count();
            assert_eq!(
                lines,
                usize::from(applies.contains(&advice)),
                "{size}: {advice}: {}",
                ran.stderr
            );
        }
    }
    env.run(["3000"]).exits(0);
    env.run(["--check"]).exits(0).says("not a multiple of 256");
    env.run(["--revert"])
        .exits(0)
        .says_nothing_of("multiple of 256");
    env.run(["--check"]).exits(0).says_nothing_of("note:");
}

/// The sign is a file of the engine, not a version.
#[test]
fn engines_that_fit_less_context_at_a_larger_chunk_are_named() {
    for (file, applies) in [
        ("mlx_engine/model_kit/batched_vision/context_fit.py", true),
        ("mlx_engine/model_kit/context_fit.py", false),
    ] {
        let env = Env::new();
        usual_backend(&env.lmstudio(), NAME).write(file, "");
        runtime(&env.lmstudio(), "1.10.0", &[NAME]);
        let ran = env.run(["4096"]).exits(0).says_nothing_of("update");
        let note = format!("note: {NAME}: a larger chunk leaves less memory for context");
        assert_eq!(ran.stderr.contains(&note), applies, "{}", ran.stderr);
        let advice = "if you need the longer context: `lmpatch 2048 --backend 'app-mlx-generate-mac14-arm64@34'`";
        assert_eq!(ran.stderr.contains(advice), applies, "{}", ran.stderr);
        let checked = env.run(["--check"]).exits(0);
        assert_eq!(checked.stderr.contains(&note), applies, "{checked:#?}");
        env.run(["1024"])
            .exits(0)
            .says_nothing_of("leaves less memory for context");
    }
}
