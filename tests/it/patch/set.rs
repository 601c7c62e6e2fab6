//! Which bytes a number changes, and that nothing else is touched.
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use crate::support::home::{
    BackendDir, NAME, engine_since_2026, engine_with_constant, engine_with_parameter, generate,
    one_backend, stock_generate,
};
use crate::support::{Before, Env, copy_tree, fields, snapshot, text};
use serde_json::json;

#[test]
fn every_shape_is_set_and_reverted_to_the_byte() {
    for (engine, stock) in [
        (engine_with_constant("512"), 512),
        (engine_since_2026("2048"), 2048),
        (engine_with_parameter("512"), 512),
    ] {
        let (env, backend, before) = one_backend(|it| it.usual().with_engine(&engine));
        env.run(["4096"])
            .tells("Backends: 1 changed")
            .says("Takes effect when a model is next loaded");
        let edited = engine.replace(&format!("= {stock}"), "= 4096");
        assert_eq!(text(backend.engine()), edited);
        assert_eq!(text(backend.generate()), generate("4096", "4096", "4096"));
        assert_eq!(env.json(["--check", "4096"])["exit_code"], 0);
        let told = fields(&env.checked(0), ["chunk", "stock", "state"]);
        assert_eq!(told, json!([4096, stock, "patched"]));
        env.run(["--revert"]).exits(0);
        before.still_holds();
    }
}

#[test]
fn a_number_that_is_the_stock_value_gives_the_vendors_bytes_back() {
    let env = Env::new();
    let old = BackendDir::new(&env.lmstudio(), "app-mlx-generate-mac14-arm64@19")
        .with_engine(engine_with_constant("512"))
        .with_listed_generate(stock_generate());
    let new = env.backend(NAME);
    let (old_before, new_before) = (Before::of(&old.root), Before::of(&new.root));
    env.run(["4096"]).exits(0);
    let told = "@34: 512 is below its stock 2048: prefill may be slower; `lmpatch 2048 --backend";
    env.run(["512"]).tells(told);
    old_before.still_holds();
    new.is_set_to("512");
    env.run(["--check", "512"]).exits(0);
    env.run(["2048"])
        .exits(0)
        .says_nothing_of("below its stock");
    new_before.still_holds();
    assert!(text(old.engine()).contains("= 2048"));
    env.run(["--revert"]).exits(0);
    old_before.still_holds();
    env.run(["--check", "512"]).exits(3);
}

#[test]
fn set_twice_is_set_once_and_touches_nothing() {
    let (env, backend, before) = one_backend(|it| {
        it.usual()
            .with_bytecode("mlx_engine", "cache_wrapper")
            .with_bytecode("mlx_lm", "generate")
    });
    let stamps = || {
        [backend.engine(), backend.generate()].map(|path| {
            let found = fs::metadata(path).unwrap();
            (found.ino(), found.mtime(), found.mtime_nsec())
        })
    };
    let untouched = stamps();
    env.run(["--revert"])
        .tells("1 unchanged")
        .says_nothing_of("Takes effect");
    env.run(["2048"]).tells("1 unchanged");
    env.run(["4096", "--dry-run"]).exits(0);
    assert_eq!(stamps(), untouched);
    before.still_holds();
    env.run(["4096"]).exits(0);
    let (patched, before) = (stamps(), Before::of(env.user()));
    assert_ne!(patched, untouched);
    env.run(["4096"])
        .tells("1 unchanged")
        .says_nothing_of("Takes effect");
    assert_eq!(stamps(), patched);
    before.still_holds();
    env.run(["--check"]).exits(0);
    env.run(["8192", "--dry-run"]).exits(0);
    assert_eq!(stamps(), patched);
}

#[test]
fn exactly_the_edited_files_bytecode_is_removed() {
    let more = [
        "generate.pypy39.opt-2.pyc",
        // Nothing of Python's, but nobody else's either.
        "generate.cpython-311.other.pyc",
        "generate..pyc",
        "generate.pyc",
        // These are of others.
        "generate_step.cpython-311.pyc",
        "regenerate.cpython-311.pyc",
        "generate.py",
        "generate.cpython-311.pyc.bak",
    ];
    let (env, backend, _) = one_backend(|it| {
        let it = it
            .usual()
            .with_bytecode("mlx_engine", "cache_wrapper")
            .with_bytecode("mlx_lm", "generate")
            .with_bytecode("mlx_lm/models", "generate");
        more.iter().fold(it, |it, name| {
            it.write(&format!("mlx_lm/__pycache__/{name}"), "stale")
        })
    });
    let before = Before::of(backend.path(""));
    env.run(["4096"]).exits(0);
    let mut removed = before.changes();
    removed.retain(|path| !backend.path(path).exists());
    let wanted = [
        "mlx_engine/__pycache__/cache_wrapper.cpython-311.opt-1.pyc",
        "mlx_engine/__pycache__/cache_wrapper.cpython-311.opt-2.pyc",
        "mlx_engine/__pycache__/cache_wrapper.cpython-311.pyc",
        "mlx_engine/__pycache__/cache_wrapper.cpython-313.pyc",
        "mlx_lm/__pycache__/generate..pyc",
        "mlx_lm/__pycache__/generate.cpython-311.opt-1.pyc",
        "mlx_lm/__pycache__/generate.cpython-311.opt-2.pyc",
        "mlx_lm/__pycache__/generate.cpython-311.other.pyc",
        "mlx_lm/__pycache__/generate.cpython-311.pyc",
        "mlx_lm/__pycache__/generate.cpython-313.pyc",
        "mlx_lm/__pycache__/generate.pyc",
        "mlx_lm/__pycache__/generate.pypy39.opt-2.pyc",
    ];
    assert_eq!(removed, wanted);
}

#[test]
fn mode_is_kept() {
    let (env, backend, _) = one_backend(BackendDir::usual);
    let modes = [(backend.engine(), 0o640), (backend.generate(), 0o755)];
    for (path, mode) in &modes {
        fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
    }
    for args in [["4096"], ["--revert"]] {
        env.run(args).exits(0);
        for (path, mode) in &modes {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, *mode);
        }
    }
}

#[test]
fn a_dry_run_shows_a_diff_that_patch_applies_and_writes_nothing() {
    let env = Env::with_fixture();
    let copy = env.user().join("copy");
    copy_tree(&env.lmstudio(), &copy);
    let before = Before::of(env.lmstudio());
    let ran = env.run(["4096", "--dry-run"]).tells("3 would change");
    before.still_holds();
    fs::write(env.user().join("it.diff"), &ran.stdout).unwrap();
    let mut git = Command::new("git");
    let apply = ["apply", "-p1", "--directory=copy", "it.diff"];
    let status = env.isolate(&mut git).args(apply).status().unwrap();
    assert!(status.success());
    env.run(["4096"]).exits(0);
    for path in snapshot(&env.lmstudio()).keys() {
        if path.to_string_lossy().ends_with(".py") {
            let patched = fs::read(env.lmstudio().join(path)).unwrap();
            assert_eq!(fs::read(copy.join(path)).unwrap(), patched, "{path:?}");
        }
    }

    let diff = env.run(["--revert", "--dry-run"]).exits(0).stdout;
    let count = |line| diff.matches(line).count();
    assert_eq!(count("\n-PROMPT_PROCESSING_CHUNK_SIZE = 4096"), 2);
    assert_eq!(count("\n+PROMPT_PROCESSING_CHUNK_SIZE = 2048"), 1);
    env.run(["--revert"]).exits(0);
    let ran = env.run(["--revert", "--dry-run"]).exits(0);
    assert_eq!(ran.says("3 unchanged").stdout, "");
}
