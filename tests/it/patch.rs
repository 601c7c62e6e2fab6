//! Setting and reverting: the right bytes, nothing else, all or nothing.
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::support::home::{
    BackendDir, engine_since_2026, engine_with_constant, engine_with_parameter, generate,
    stock_generate, usual_backend,
};
use crate::support::{Env, differences, snapshot};

use serde_json::Value;

const NAME: &str = "app-mlx-generate-mac14-arm64@34";
const PREFIX: &str = "app-mlx-generate-mac14-arm64";
/// What is beside an edited engine here: no table and no `RECORD` knows these engines; `generate.py` is proven by
/// `RECORD`.
const RECEIPT: &str = "mlx_engine/cache_wrapper.py.lmpatch";

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn is_ours(path: &OsString) -> bool {
    path.to_string_lossy().contains("lmpatch")
}

fn has_ours(root: &Path) -> bool {
    snapshot(root).keys().any(is_ours)
}

fn sha256(bytes: &[u8]) -> String {
    lmpatch::patch::original::Fingerprint::of(bytes).sha256
}

#[test]
fn every_shape_is_set_and_reverted_to_the_byte() {
    for (engine, stock) in [
        (engine_with_constant("512"), 512),
        (engine_since_2026("2048"), 2048),
        (engine_with_parameter("512"), 512),
    ] {
        let env = Env::new();
        let backend = BackendDir::new(&env.lmstudio(), NAME)
            .with_engine(&engine)
            .with_generate(stock_generate())
            .with_record(stock_generate());
        let before = snapshot(&env.lmstudio());
        env.run(["4096"])
            .exits(0)
            .says("1 backend: 1 changed")
            .says("Takes effect when a model is next loaded");
        assert_eq!(
            text(backend.engine()),
            engine.replace(&format!("= {stock}"), "= 4096")
        );
        assert_eq!(text(backend.generate()), generate("4096", "4096", "4096"));
        let report = env.json(["--check", "4096"]);
        assert_eq!(report["exit_code"], 0);
        let backend = &report["backends"][0];
        assert_eq!(
            (&backend["chunk"], &backend["stock"], &backend["state"]),
            (&4096.into(), &stock.into(), &"patched".into())
        );
        env.run(["--revert"]).exits(0);
        assert_eq!(
            differences(&before, &snapshot(&env.lmstudio())),
            Vec::<String>::new()
        );
    }
}

#[test]
fn a_number_that_is_the_stock_value_gives_the_vendors_bytes_back() {
    let env = Env::new();
    let old = BackendDir::new(&env.lmstudio(), "app-mlx-generate-mac14-arm64@19")
        .with_engine(engine_with_constant("512"))
        .with_generate(stock_generate())
        .with_record(stock_generate());
    let new = usual_backend(&env.lmstudio(), NAME);
    let (old_tree, new_tree) = (snapshot(&old.root), snapshot(&new.root));
    env.run(["4096"]).exits(0);
    env.run(["512"])
        .exits(0)
        .says("app-mlx-generate-mac14-arm64@34: 512 is below its stock 2048")
        .says("prefill may be slower")
        .says("--revert");
    assert_eq!(
        differences(&old_tree, &snapshot(&old.root)),
        Vec::<String>::new()
    );
    assert!(text(new.engine()).contains("= 512"));
    assert_eq!(text(new.generate()), generate("512", "512", "512"));
    env.run(["--check", "512"]).exits(0);
    env.run(["2048"])
        .exits(0)
        .says_nothing_of("below its stock");
    assert_eq!(
        differences(&new_tree, &snapshot(&new.root)),
        Vec::<String>::new()
    );
    assert!(text(old.engine()).contains("= 2048"));
    env.run(["--revert"]).exits(0);
    assert_eq!(
        differences(&old_tree, &snapshot(&old.root)),
        Vec::<String>::new()
    );
    env.run(["--check", "512"]).exits(3);
}

#[test]
fn set_twice_is_set_once_and_touches_nothing() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let stamps = |paths: &[std::path::PathBuf]| {
        paths
            .iter()
            .map(|path| {
                fs::metadata(path)
                    .map(|m| (m.ino(), m.mtime(), m.mtime_nsec()))
                    .unwrap()
            })
            .collect::<Vec<_>>()
    };
    let files = [backend.engine(), backend.generate()];
    let untouched = stamps(&files);
    env.run(["--revert"])
        .exits(0)
        .says("1 unchanged")
        .says_nothing_of("Takes effect");
    env.run(["2048"]).exits(0).says("1 unchanged");
    assert_eq!(stamps(&files), untouched);
    env.run(["4096"]).exits(0);
    let (patched, tree) = (stamps(&files), snapshot(&env.lmstudio()));
    assert_ne!(patched, untouched);
    env.run(["4096"])
        .exits(0)
        .says("1 unchanged")
        .says_nothing_of("Takes effect");
    assert_eq!(stamps(&files), patched);
    assert_eq!(snapshot(&env.lmstudio()), tree);
    env.run(["--check"]).exits(0);
    env.run(["8192", "--dry-run"]).exits(0);
    assert_eq!(stamps(&files), patched);
}

#[test]
fn what_the_bash_patch_did_is_undone_where_the_vendors_bytes_can_be_proven() {
    let env = Env::new();
    let backend = BackendDir::new(&env.lmstudio(), NAME)
        .with_generate(generate("4096", "4096", "4096"))
        .with_record(stock_generate());
    assert_eq!(
        env.json(["--check"])["backends"][0]["files"][0]["original"],
        "record"
    );
    env.run(["--revert"]).exits(0).says("1 changed");
    assert_eq!(text(backend.generate()), stock_generate());
    fs::write(backend.generate(), generate("2048", "2048", "2048")).unwrap();
    assert_eq!(env.json(["--check"])["backends"][0]["state"], "patched");
    env.run(["2048"]).exits(0).says("1 changed");
    assert_eq!(text(backend.generate()), stock_generate());
}

#[test]
fn an_original_that_is_neither_proven_nor_saved_is_not_guessed() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME).with_engine(engine_since_2026("4096"));
    let other = usual_backend(&env.lmstudio(), "app-mlx-generate-mac14-arm64@33");
    env.run(["8192", "--backend", "*@33"]).exits(0);
    let before = snapshot(&backend.root);
    env.run(["--revert"])
        .exits(1)
        .says("@34: mlx_engine/cache_wrapper.py: the original is unknown: not a known release")
        .says("`lmpatch 2048 --backend 'app-mlx-generate-mac14-arm64@34'` writes the stock numbers")
        .says("1 changed, 1 refused");
    assert_eq!(snapshot(&backend.root), before);
    assert_eq!(text(other.engine()), engine_since_2026("2048"));
    assert_eq!(
        env.json(["--check"])["backends"][1]["files"][0]["original"],
        "unknown"
    );
    env.run(["2048", "--backend", "app-mlx-generate-mac14-arm64@34"])
        .exits(0);
    assert_eq!(text(backend.engine()), engine_since_2026("2048"));
    assert_eq!(text(backend.generate()), stock_generate());
    assert_eq!(env.json(["--check"])["backends"][1]["state"], "stock");
}

#[test]
fn the_number_that_writes_stock_values_is_the_backends_own() {
    let env = Env::new();
    let backend = BackendDir::new(&env.lmstudio(), NAME)
        .with_engine(engine_with_constant("512"))
        .with_generate(generate("4096", "4096", "4096"));
    env.run(["--revert"])
        .exits(1)
        .says("mlx_lm/generate.py: the original is unknown: not a known release")
        .says("`lmpatch 512 --backend 'app-mlx-generate-mac14-arm64@34'` writes the stock numbers");
    env.run(["512"]).exits(0);
    assert_eq!(text(backend.generate()), stock_generate());
}

#[test]
fn only_a_revert_ends_what_was_noted_of_an_odd_number() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME).with_engine(engine_since_2026("4096"));
    let before = snapshot(&env.lmstudio());
    // The second has nothing to change, and the last wants the number that was found.
    for size in ["4096", "4096", "8192", "4096"] {
        env.run([size]).exits(0);
    }
    // Nor is a backend whose chunk somebody put at stock one for the agent.
    env.run(["2048"]).exits(0);
    let home = env.lmstudio().display().to_string();
    let job = ["--home", &home, "agent", "run", "8192", "--settle-ms", "10"];
    env.run(job).exits(0);
    assert_eq!(text(backend.engine()), engine_since_2026("2048"));
    env.run(["--revert"]).exits(0);
    let left = differences(&before, &snapshot(&env.lmstudio()));
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_number_that_is_written_otherwise_is_reverted_where_its_digits_are_proven() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let before = text(backend.generate());
    let odd = before.replacen("2048", "2_048", 1);
    assert_ne!(odd, before);
    for size in [None, Some("4096")] {
        fs::write(backend.generate(), &odd).unwrap();
        size.map(|size| env.run([size]).exits(0));
        env.run(["--revert"]).exits(0).says("1 changed");
        assert_eq!(text(backend.generate()), before);
    }
    // What RECORD does not list is told.
    let other = before.clone() + "# by another hand\n";
    fs::write(backend.generate(), &other).unwrap();
    env.run(["--revert"])
        .exits(0)
        .says("is not the file that its package's RECORD lists");
    assert_eq!(text(backend.generate()), other);
}

#[test]
fn a_file_that_was_odd_when_first_seen_is_given_back_as_it_was() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME).with_engine(engine_since_2026("1_024"));
    let before = snapshot(&env.lmstudio());
    env.run(["4096"])
        .exits(0)
        .says("mlx_engine/cache_wrapper.py had been edited before lmpatch first saw it")
        .says("--revert restores that; for the vendor's, reinstall the runtime");
    assert_eq!(
        env.json(["--check"])["backends"][0]["files"][0]["original"],
        "receipt"
    );
    env.run(["--check", "-v"])
        .exits(0)
        .shows("as lmpatch first found it");
    assert!(text(backend.engine()).contains("= 4096"));
    env.run(["--revert"])
        .exits(0)
        .says("cache_wrapper.py had been edited before lmpatch first saw it");
    assert_eq!(
        differences(&before, &snapshot(&env.lmstudio())),
        Vec::<String>::new()
    );
}

#[test]
fn an_unknown_engine_that_was_never_edited_is_left_as_it_is_by_a_revert() {
    let env = Env::with_fixture();
    let before = snapshot(&env.lmstudio());
    env.run(["--revert"]).exits(0).says("3 unchanged");
    assert_eq!(snapshot(&env.lmstudio()), before);
}

#[test]
fn the_receipt_is_written_once_and_survives_other_sizes() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let original = engine_since_2026("2048");
    let expected = serde_json::json!({
        "size": original.len(), "sha256": sha256(original.as_bytes()), "literals": ["2048"],
    });
    for size in ["4096", "8192", "1024", "4096"] {
        env.run([size]).exits(0);
        let receipt: Value = serde_json::from_str(&text(backend.path(RECEIPT))).unwrap();
        assert_eq!(receipt, expected);
        let ours = snapshot(&backend.root).into_keys();
        let ours: Vec<_> = ours.filter(is_ours).collect();
        assert_eq!(ours.len(), 1, "nothing but the receipt: {ours:?}");
    }
    env.run(["--revert"]).exits(0);
    assert!(!has_ours(&env.lmstudio()));
}

#[test]
fn the_receipt_keeps_literals_as_they_are_written() {
    let env = Env::new();
    let vendors = "def generate_step(prefill_step_size: int = 2_048): pass\n";
    let backend = BackendDir::new(&env.lmstudio(), NAME)
        .with_generate(vendors)
        .with_record(vendors);
    let before = snapshot(&env.lmstudio());
    env.run(["4096"]).exits(0);
    let receipt: Value =
        serde_json::from_str(&text(backend.path("mlx_lm/generate.py.lmpatch"))).unwrap();
    assert_eq!(receipt["literals"], serde_json::json!(["2_048"]));
    env.run(["8192"]).exits(0);
    env.run(["--revert"]).exits(0);
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
}

/// A release with other stock values than any so far: only its untouched `RECORD` tells them.
#[test]
fn a_release_with_new_stock_values_comes_back_too() {
    let env = Env::new();
    let vendors = generate("1024", "256", "1024");
    let backend = BackendDir::new(&env.lmstudio(), NAME)
        .with_generate(&vendors)
        .with_record(&vendors);
    let before = snapshot(&env.lmstudio());
    for size in ["4096", "2048", "512"] {
        env.run([size]).exits(0);
        assert_eq!(text(backend.generate()), generate(size, size, size));
        let row = env.json(["--check"])["backends"][0].clone();
        assert_eq!(
            (&row["stock"], &row["state"]),
            (&1024.into(), &"patched".into())
        );
    }
    env.run(["1024"]).exits(0);
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
    env.run(["4096"]).exits(0);
    env.run(["--revert"]).exits(0);
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
}

#[test]
fn a_refused_value_is_quoted_up_to_a_line() {
    let long = format!("max({})", "512, ".repeat(60));
    for (engine, said) in [
        (
            "PROMPT_PROCESSING_CHUNK_SIZE = int(\n    512\n)\n".to_owned(),
            "line 1: PROMPT_PROCESSING_CHUNK_SIZE is not a plain number but `int(…`".to_owned(),
        ),
        (
            format!("PROMPT_PROCESSING_CHUNK_SIZE = {long}\n"),
            format!("is not a plain number but `{}…`", &long[..120]),
        ),
        (
            "PROMPT_PROCESSING_CHUNK_SIZE = B = 4096\n".to_owned(),
            "PROMPT_PROCESSING_CHUNK_SIZE shares its value with another name: `PROMPT_PROCESSING_CHUNK_SIZE = B = 4096`".to_owned(),
        ),
        (
            "PROMPT_PROCESSING_CHUNK_SIZE =\n".to_owned(),
            "PROMPT_PROCESSING_CHUNK_SIZE has no value behind its `=`".to_owned(),
        ),
    ] {
        let env = Env::new();
        usual_backend(&env.lmstudio(), NAME).with_engine(engine);
        env.run(["4096"]).exits(1).says(&said);
        env.run(["--check"]).exits(1).says(&said);
    }
}

#[test]
fn a_stock_number_takes_the_receipt_away_too() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    let before = snapshot(&env.lmstudio());
    env.run(["4096"]).exits(0);
    assert!(has_ours(&env.lmstudio()));
    env.run(["2048"]).exits(0);
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
}

#[test]
fn a_receipt_of_another_version_is_not_used_and_replaced() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    env.run(["4096"]).exits(0);
    let update = engine_since_2026("2048") + "\n# a newer release in the same place\n";
    fs::write(backend.engine(), &update).unwrap();
    env.run(["--check"])
        .exits(0)
        .says("the receipt is ignored")
        .says("belongs to another version of the file");
    env.run(["8192"]).exits(0);
    let receipt: Value = serde_json::from_str(&text(backend.path(RECEIPT))).unwrap();
    assert_eq!(receipt["sha256"], sha256(update.as_bytes()));
    env.run(["--revert"]).exits(0);
    assert_eq!(text(backend.engine()), update);
    assert!(!has_ours(&env.lmstudio()));
}

#[test]
fn no_receipt_is_written_where_record_or_the_table_gives_the_original_back() {
    let env = Env::new();
    BackendDir::new(&env.lmstudio(), NAME)
        .with_generate(stock_generate())
        .with_record(stock_generate());
    env.run(["4096"]).exits(0);
    assert!(!has_ours(&env.lmstudio()));
}

/// A line that is not the vendor's, and the numbers as they ship.
#[test]
fn a_foreign_line_changes_no_state_and_comes_back_with_a_revert() {
    let env = Env::new();
    let foreign = stock_generate() + "# patched by hand\n";
    let backend = usual_backend(&env.lmstudio(), NAME).with_generate(&foreign);
    let before = snapshot(&env.lmstudio());
    env.run(["--check", "2048"])
        .exits(0)
        .shows("stock")
        .says("2048 in 1 of 1 backend");
    env.run(["2048"]).exits(0).says("1 unchanged");
    env.run(["--revert"]).exits(0).says("1 unchanged");
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
    let line = "it differs from the file that its package's RECORD lists";
    let verbose = env.run(["--check", "-v"]).exits(0);
    assert_eq!(verbose.stdout.matches(line).count(), 1, "{verbose:#?}");

    env.run(["4096"]).exits(0).says("1 changed");
    assert_eq!(
        text(backend.generate()),
        generate("4096", "4096", "4096") + "# patched by hand\n"
    );
    env.run(["--check", "4096", "-v"])
        .exits(0)
        .shows("patched")
        .shows(line);
    env.run(["--revert"]).exits(0);
    assert_eq!(text(backend.generate()), foreign);
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
}

#[test]
fn exactly_the_edited_files_bytecode_is_removed() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME)
        .with_bytecode("mlx_engine", "cache_wrapper")
        .with_bytecode("mlx_lm", "generate")
        .with_bytecode("mlx_lm/models", "generate");
    let before = snapshot(&backend.root);
    env.run(["4096"]).exits(0);
    let cached = |package: &str, stem: &str| {
        [
            "cpython-311",
            "cpython-311.opt-1",
            "cpython-311.opt-2",
            "cpython-313",
        ]
        .map(|tag| format!("{package}/__pycache__/{stem}.{tag}.pyc"))
    };
    let gone: Vec<_> = cached("mlx_engine", "cache_wrapper")
        .into_iter()
        .chain(cached("mlx_lm", "generate"))
        .collect();
    let after = snapshot(&backend.root);
    let removed: Vec<_> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .collect();
    assert_eq!(removed.len(), gone.len(), "{removed:?}");
    assert!(gone.iter().all(|path| !backend.path(path).exists()));
    assert!(
        backend
            .path("mlx_lm/models/__pycache__/generate.cpython-311.pyc")
            .exists()
    );
}

#[test]
fn bytecode_stays_where_nothing_is_edited() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME)
        .with_bytecode("mlx_engine", "cache_wrapper")
        .with_bytecode("mlx_lm", "generate");
    let before = snapshot(&env.lmstudio());
    env.run(["2048"]).exits(0);
    env.run(["--revert"]).exits(0);
    env.run(["4096", "--dry-run"]).exits(0);
    assert_eq!(snapshot(&env.lmstudio()), before);
}

#[test]
fn mode_is_kept() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    fs::set_permissions(backend.engine(), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(backend.generate(), fs::Permissions::from_mode(0o755)).unwrap();
    for args in [["4096"], ["--revert"]] {
        env.run(args).exits(0);
        assert_eq!(
            fs::metadata(backend.engine()).unwrap().mode() & 0o7777,
            0o640
        );
        assert_eq!(
            fs::metadata(backend.generate()).unwrap().mode() & 0o7777,
            0o755
        );
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_line_and_the_others_are_done() {
    let decoy = "def generate_step(prompt):\n    return other(prefill_step_size=2048)\n";
    for (engine, generate_py, said) in [
        (
            engine_with_constant("4 * 512"),
            stock_generate(),
            "line 2: PROMPT_PROCESSING_CHUNK_SIZE is not a plain number but `4 * 512`",
        ),
        (
            engine_with_constant("512") + "PROMPT_PROCESSING_CHUNK_SIZE = 1\n",
            stock_generate(),
            "is set 2 times, in lines 2, 8",
        ),
        (
            engine_with_constant("512") + "x = '''never ends\n",
            stock_generate(),
            "line 8: a string that does not end",
        ),
        (
            engine_with_constant("512") + "x = (1\n",
            stock_generate(),
            "line 8: unbalanced brackets",
        ),
        (
            "x = 1\n".to_owned(),
            stock_generate(),
            "no constant PROMPT_PROCESSING_CHUNK_SIZE",
        ),
        (
            engine_since_2026("2048"),
            decoy.to_owned(),
            "no definition of prefill_step_size",
        ),
    ] {
        let env = Env::new();
        let backend = usual_backend(&env.lmstudio(), NAME)
            .with_engine(&engine)
            .with_generate(&generate_py);
        usual_backend(&env.lmstudio(), "app-mlx-generate-mac14-arm64@33");
        let before = snapshot(&backend.root);
        env.run(["4096"])
            .exits(1)
            .says(said)
            .says(NAME)
            .says("2 backends: 1 changed, 1 refused");
        assert_eq!(snapshot(&backend.root), before, "{said}");
        env.run(["--check", "4096", "--backend", "*@33"]).exits(0);
        env.run(["--check"]).exits(1).shows("refused").says(said);
    }
}

#[test]
fn a_dry_run_shows_a_diff_that_patch_applies_and_writes_nothing() {
    let env = Env::with_fixture();
    let copy = env.user().join("copy");
    crate::support::copy_tree(&env.lmstudio(), &copy);
    // A file that two Pythons have is in the diff once.
    let lib = env.amphibian().join(NAME).join("lib");
    symlink("python3.11", lib.join("python3.12")).unwrap();
    let before = snapshot(&env.lmstudio());
    let ran = env
        .run(["4096", "--dry-run"])
        .exits(0)
        .says("3 would change")
        .says("nothing was written");
    assert_eq!(snapshot(&env.lmstudio()), before);
    fs::write(env.user().join("it.diff"), &ran.stdout).unwrap();
    let mut patch = std::process::Command::new("git");
    let status = env
        .isolate(&mut patch)
        .args(["apply", "-p1", "--directory=copy", "it.diff"])
        .status()
        .unwrap();
    assert!(status.success());
    env.run(["4096"]).exits(0);
    let reverted = env.run(["--revert", "--dry-run"]).exits(0);
    assert_eq!(
        reverted
            .stdout
            .matches("\n-PROMPT_PROCESSING_CHUNK_SIZE = 4096")
            .count(),
        2
    );
    assert_eq!(
        reverted
            .stdout
            .matches("\n+PROMPT_PROCESSING_CHUNK_SIZE = 2048")
            .count(),
        1
    );
    for path in before
        .keys()
        .filter(|path| path.to_string_lossy().ends_with(".py"))
    {
        assert_eq!(
            fs::read(copy.join(path)).unwrap(),
            fs::read(env.lmstudio().join(path)).unwrap(),
            "{path:?}"
        );
    }
    env.run(["--revert"]).exits(0);
    let ran = env
        .run(["--revert", "--dry-run"])
        .exits(0)
        .says("3 unchanged");
    assert_eq!(ran.stdout, "");
}

/// So many are looked at and written by several threads.
#[test]
fn among_many_backends_those_in_trouble_are_named_and_the_others_done() {
    let env = Env::new();
    let backends: Vec<_> = (1..=20)
        .map(|number| usual_backend(&env.lmstudio(), &format!("{PREFIX}@{number}")))
        .collect();
    fs::write(
        backends[6].engine(),
        "PROMPT_PROCESSING_CHUNK_SIZE = compute()\n",
    )
    .unwrap();
    // The edit itself fails on this one: a cache that is a link is not followed.
    let cache = backends[12].path("mlx_lm/__pycache__");
    fs::remove_dir_all(&cache).ok();
    symlink("/nowhere", &cache).unwrap();
    let before = snapshot(&env.lmstudio());

    let ran = env.run(["4096"]).exits(1).says("20 backends: 18 changed");
    for (number, why) in [(7, "compute()"), (13, "is a link")] {
        let line = ran
            .stderr
            .lines()
            .find(|line| line.contains(&format!("{PREFIX}@{number}:")));
        assert!(
            line.is_some_and(|line| line.contains(why)),
            "{number}: {}",
            ran.stderr
        );
    }
    for (index, backend) in backends.iter().enumerate() {
        let is_done = text(backend.generate()) == generate("4096", "4096", "4096");
        assert_eq!(is_done, ![6, 12].contains(&index), "{}", index + 1);
    }
    let changed = differences(&before, &snapshot(&env.lmstudio()));
    assert!(
        changed
            .iter()
            .all(|change| !change.contains("@7/") && !change.contains("@13/")),
        "{changed:?}"
    );

    fs::remove_file(&cache).unwrap();
    env.run(["4096"]).exits(1).says("1 changed");
    env.run(["--revert"]).exits(1);
    let left = differences(&before, &snapshot(&env.lmstudio()));
    assert_eq!(left.len(), 1, "only the link is gone: {left:?}");
}

#[test]
fn only_the_files_own_bytecode_belongs_to_it() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let own = [
        "generate.cpython-311.pyc",
        "generate.cpython-311.opt-1.pyc",
        "generate.pypy39.opt-2.pyc",
        // Nothing of Python's, but nobody else's either.
        "generate.cpython-311.other.pyc",
        "generate..pyc",
        "generate.pyc",
    ];
    let others = [
        "generate_step.cpython-311.pyc",
        "regenerate.cpython-311.pyc",
        "generate.py",
        "generate.cpython-311.pyc.bak",
    ];
    let mut backend = backend;
    for name in own.iter().chain(&others) {
        backend = backend.write(&format!("mlx_lm/__pycache__/{name}"), "stale");
    }
    env.run(["4096"]).exits(0);
    let is_there = |name: &&str| backend.path("mlx_lm/__pycache__").join(name).exists();
    assert!(!own.iter().any(&is_there), "{own:?}");
    assert!(others.iter().all(is_there), "{others:?}");
}
