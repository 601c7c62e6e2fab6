//! What a revert brings back: the vendor's bytes, what was found, or nothing.
use std::fs;

use super::OTHER;
use crate::support::home::{
    BackendDir, NAME, engine_since_2026, engine_with_constant, generate, one_backend,
    stock_generate,
};
use crate::support::{Before, Env, fields, text};
use serde_json::json;

#[test]
fn what_the_bash_patch_did_is_undone_where_the_vendors_bytes_can_be_proven() {
    let patched = generate("4096", "4096", "4096");
    let (env, backend, _) =
        one_backend(|it| it.with_generate(patched).with_record(stock_generate()));
    assert_eq!(env.checked(0)["files"][0]["original"], "record");
    env.run(["--revert"]).tells("1 changed");
    assert_eq!(text(backend.generate()), stock_generate());
    fs::write(backend.generate(), generate("2048", "2048", "2048")).unwrap();
    assert_eq!(env.checked(0)["state"], "patched");
    env.run(["2048"]).tells("1 changed");
    assert_eq!(text(backend.generate()), stock_generate());
}

#[test]
fn an_original_that_is_neither_proven_nor_saved_is_not_guessed() {
    let engine = engine_since_2026("4096");
    let (env, backend, _) = one_backend(|it| it.usual().with_engine(engine));
    let other = env.backend(OTHER);
    env.run(["8192", "--backend", "*@33"]).exits(0);
    let before = Before::of(&backend.root);
    env.run(["--revert"])
        .fails("@34: mlx_engine/cache_wrapper.py: the original is unknown: not a known release")
        .says("set its stock size, 2048, in it alone (--backend), or reinstall the runtime")
        .says("1 changed, 1 refused");
    before.still_holds();
    assert_eq!(text(other.engine()), engine_since_2026("2048"));
    assert_eq!(env.checked(1)["files"][0]["original"], "unknown");
    env.run(["2048", "--backend", NAME]).exits(0);
    assert_eq!(text(backend.engine()), engine_since_2026("2048"));
    assert_eq!(text(backend.generate()), stock_generate());
    assert_eq!(env.checked(1)["state"], "stock");
}

#[test]
fn the_number_that_writes_stock_values_is_the_backends_own() {
    let (env, backend, _) = one_backend(|it| {
        it.with_engine(engine_with_constant("512"))
            .with_generate(generate("4096", "4096", "4096"))
    });
    env.run(["--revert"])
        .fails("mlx_lm/generate.py: the original is unknown: not a known release")
        .says("set its stock size, 512, in it alone (--backend), or reinstall the runtime");
    env.run(["512"]).exits(0);
    assert_eq!(text(backend.generate()), stock_generate());
}

#[test]
fn only_a_revert_ends_what_was_noted_of_an_odd_number() {
    let engine = engine_since_2026("4096");
    let (env, backend, before) = one_backend(|it| it.usual().with_engine(engine));
    // The second has nothing to change, the fourth wants the number that was found, and the last is stock.
    for size in ["4096", "4096", "8192", "4096", "2048"] {
        env.run([size]).exits(0);
    }
    // Nor is a backend whose chunk somebody put at stock one for the agent.
    let home = env.lmstudio().display().to_string();
    let job = ["--home", &home, "agent", "run", "8192", "--settle-ms", "10"];
    env.run(job).exits(0);
    assert_eq!(text(backend.engine()), engine_since_2026("2048"));
    env.run(["--revert"]).exits(0);
    before.still_holds();
}

#[test]
fn a_number_that_is_written_otherwise_is_reverted_where_its_digits_are_proven() {
    let (env, backend, _) = one_backend(BackendDir::usual);
    let before = stock_generate();
    let odd = before.replacen("2048", "2_048", 1);
    assert_ne!(odd, before);
    for size in [None, Some("4096")] {
        fs::write(backend.generate(), &odd).unwrap();
        size.map(|size| env.run([size]).exits(0));
        env.run(["--revert"]).tells("1 changed");
        assert_eq!(text(backend.generate()), before);
    }
}

#[test]
fn a_file_that_was_odd_when_first_seen_is_given_back_as_it_was() {
    let engine = engine_since_2026("1_024");
    let (env, backend, before) = one_backend(|it| it.usual().with_engine(engine));
    env.run(["4096"])
        .tells("it had been edited: --revert restores it as lmpatch first found it")
        .says("for the vendor's file, reinstall the runtime");
    assert_eq!(env.checked(0)["files"][0]["original"], "receipt");
    env.run(["--check"]).tells("as lmpatch first found it");
    backend.is_set_to("4096");
    env.run(["--revert"])
        .tells("it had been edited: --revert restores it as lmpatch first found it");
    before.still_holds();
}

#[test]
fn an_unknown_engine_that_was_never_edited_is_left_as_it_is_by_a_revert() {
    let env = Env::with_fixture();
    let before = Before::of(env.lmstudio());
    env.run(["--revert"]).tells("3 unchanged");
    before.still_holds();
}

/// A release with other stock values than any so far: only its untouched `RECORD` tells them.
#[test]
fn a_release_with_new_stock_values_comes_back_too() {
    let vendors = generate("1024", "256", "1024");
    let (env, backend, before) = one_backend(|it| it.with_listed_generate(vendors));
    for size in ["4096", "2048", "512"] {
        env.run([size]).exits(0);
        assert_eq!(text(backend.generate()), generate(size, size, size));
        let told = fields(&env.checked(0), ["stock", "state"]);
        assert_eq!(told, json!([1024, "patched"]));
    }
    env.run(["1024"]).exits(0);
    before.still_holds();
    env.run(["4096"]).exits(0);
    env.run(["--revert"]).exits(0);
    before.still_holds();
}

/// A line that is not the vendor's, and the numbers as they ship.
#[test]
fn a_foreign_line_changes_no_state_and_comes_back_with_a_revert() {
    let foreign = stock_generate() + "# patched by hand\n";
    let (env, backend, before) = one_backend(|it| it.usual().with_generate(foreign));
    env.run(["--check", "2048"])
        .exits(0)
        .shows("stock")
        .says("2048 in 1 of 1 backends");
    env.run(["2048"]).tells("1 unchanged");
    env.run(["--revert"]).tells("1 unchanged");
    before.still_holds();
    let line = "it differs from the file that its package's RECORD lists";
    let verbose = env.run(["--check", "-v"]).exits(0);
    assert_eq!(verbose.stdout.matches(line).count(), 1, "{verbose:#?}");

    env.run(["4096"]).tells("1 changed");
    let patched = generate("4096", "4096", "4096") + "# patched by hand\n";
    assert_eq!(text(backend.generate()), patched);
    env.run(["--check", "4096", "-v"])
        .exits(0)
        .shows("patched")
        .shows(line);
    env.run(["--revert"]).exits(0);
    before.still_holds();
}
