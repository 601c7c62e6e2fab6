//! Which of Python's caches an edit removes.
use super::NAME;
use crate::support::home::usual_backend;
use crate::support::{Before, Env};

#[test]
fn exactly_the_edited_files_bytecode_is_removed() {
    let env = Env::new();
    let mut backend = usual_backend(&env.lmstudio(), NAME)
        .with_bytecode("mlx_engine", "cache_wrapper")
        .with_bytecode("mlx_lm", "generate")
        .with_bytecode("mlx_lm/models", "generate");
    let own = [
        "generate.pypy39.opt-2",
        // Nothing of Python's, but nobody else's either.
        "generate.cpython-311.other",
        "generate.",
        "generate",
    ]
    .map(|stem| format!("mlx_lm/__pycache__/{stem}.pyc"));
    let others = [
        "mlx_lm/__pycache__/generate_step.cpython-311.pyc",
        "mlx_lm/__pycache__/regenerate.cpython-311.pyc",
        "mlx_lm/__pycache__/generate.py",
        "mlx_lm/__pycache__/generate.cpython-311.pyc.bak",
    ];
    for path in own.iter().map(String::as_str).chain(others) {
        backend = backend.write(path, "stale");
    }
    let tags = ["311", "311.opt-1", "311.opt-2", "313"];
    let cached = |stem| tags.map(|tag| format!("{stem}.cpython-{tag}.pyc"));
    let mut wanted = [
        &own[..],
        &cached("mlx_lm/__pycache__/generate"),
        &cached("mlx_engine/__pycache__/cache_wrapper"),
    ]
    .concat();
    wanted.sort();

    let before = Before::of(backend.path(""));
    env.run(["4096"]).exits(0);
    let mut removed = before.changes();
    removed.retain(|path| !backend.path(path).exists());
    assert_eq!(removed, wanted);
}

#[test]
fn bytecode_stays_where_nothing_is_edited() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME)
        .with_bytecode("mlx_engine", "cache_wrapper")
        .with_bytecode("mlx_lm", "generate");
    let before = Before::of(env.lmstudio());
    env.run(["2048"]).exits(0);
    env.run(["--revert"]).exits(0);
    env.run(["4096", "--dry-run"]).exits(0);
    before.still_holds();
}
