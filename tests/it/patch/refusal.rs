//! What is refused, and that the others are done all the same.
use std::fs;
use std::os::unix::fs::symlink;

use super::OTHER;
use crate::support::home::{
    NAME, engine_since_2026, engine_with_constant, generate, one_backend, stock_generate,
};
use crate::support::{Before, Env, text};

#[test]
fn what_is_not_understood_is_refused_with_its_line_and_the_others_are_done() {
    let why = "no definition of prefill_step_size";
    let call = "def generate_step(prompt):\n    return other(prefill_step_size=2048)\n";
    is_refused(&engine_since_2026("2048"), call, why);
    let why = "no definition of PROMPT_PROCESSING_CHUNK_SIZE";
    is_refused("x = 1\n", &stock_generate(), why);
    let why = "line 2: PROMPT_PROCESSING_CHUNK_SIZE is not a plain number but `4 * 512`";
    is_refused(&engine_with_constant("4 * 512"), &stock_generate(), why);
    let twice = "line 8: PROMPT_PROCESSING_CHUNK_SIZE is set again";
    for (last_line, why) in [
        ("PROMPT_PROCESSING_CHUNK_SIZE = 1\n", twice),
        ("x = '''never ends\n", "line 8: a string that does not end"),
        ("x = (1\n", "line 8: unbalanced brackets"),
    ] {
        let engine = engine_with_constant("512") + last_line;
        is_refused(&engine, &stock_generate(), why);
    }
}

#[test]
fn a_refused_value_is_quoted_up_to_a_line() {
    let long = format!("max({})", "512, ".repeat(60));
    let cut = format!("is not a plain number but `{}…`", &long[..120]);
    let shared = "shares its value with another name: `PROMPT_PROCESSING_CHUNK_SIZE = B = 4096`";
    for (value, why) in [
        ("int(\n    512\n)", "is not a plain number but `int(…`"),
        (&long, &cut),
        ("B = 4096", shared),
        ("", "has no value behind its `=`"),
    ] {
        let engine = format!("PROMPT_PROCESSING_CHUNK_SIZE = {value}\n");
        let why = format!("line 1: PROMPT_PROCESSING_CHUNK_SIZE {why}");
        is_refused(&engine, &stock_generate(), &why);
    }
}

/// A backend of these files is refused in these words, and one beside it is done.
#[track_caller]
fn is_refused(engine: &str, generate: &str, said: &str) {
    let (env, backend, _) =
        one_backend(|it| it.usual().with_engine(engine).with_generate(generate));
    env.backend(OTHER);
    let before = Before::of(backend.root);
    env.run(["4096"])
        .fails(said)
        .says(NAME)
        .says("Backends: 1 changed, 1 refused");
    before.still_holds();
    env.run(["--check", "4096", "--backend", "*@33"]).exits(0);
    env.run(["--check"]).exits(1).shows("refused").says(said);
}

/// So many are looked at and written by several threads.
#[test]
fn among_many_backends_those_in_trouble_are_named_and_the_others_done() {
    let env = Env::new();
    let name = |number| format!("app-mlx-generate-mac14-arm64@{number}");
    let backend = |number| env.backend(&name(number));
    let backends: Vec<_> = (1..=20).map(backend).collect();
    let computed = "PROMPT_PROCESSING_CHUNK_SIZE = compute()\n";
    fs::write(backends[6].engine(), computed).unwrap();
    // The edit itself fails on this one: a cache that is a link is not followed.
    let cache = backends[12].path("mlx_lm/__pycache__");
    symlink("/nowhere", &cache).unwrap();
    let before = Before::of(env.lmstudio());

    let ran = env.run(["4096"]).fails("Backends: 18 changed");
    for (number, why) in [(7, "compute()"), (13, "is a link")] {
        let named = format!("{}:", name(number));
        let line = ran.stderr.lines().find(|line| line.contains(&named));
        assert!(line.is_some_and(|line| line.contains(why)), "{ran:#?}");
    }
    for (index, backend) in backends.iter().enumerate() {
        let is_done = text(backend.generate()) == generate("4096", "4096", "4096");
        assert_eq!(is_done, ![6, 12].contains(&index), "{}", index + 1);
    }
    let changed = before.changes();
    let in_trouble = |path: &String| path.contains("@7/") || path.contains("@13/");
    assert!(!changed.iter().any(in_trouble), "{changed:?}");

    fs::remove_file(&cache).unwrap();
    env.run(["4096"]).fails("1 changed");
    env.run(["--revert"]).exits(1);
    let left = before.changes();
    assert_eq!(left.len(), 1, "only the link is gone: {left:?}");
}
