//! Which model is measured, with which context, and that all come back.

use super::{MODEL, has, json, parsed, ran, stage};

#[test]
fn the_model_is_resolved_before_anything_is_touched() {
    let stage = stage();
    stage.fake.load("llama/tiny", "gguf", 8192);
    let before = stage.before();
    let ran = stage.run("--model no/such --sizes 512").exits(1);
    ran.says("has no MLX model no/such; its MLX models are: qwen/tiny");
    let ran = stage.run("--model llama/tiny --sizes 512").exits(1);
    ran.says("has no MLX model llama/tiny; its MLX models are: qwen/tiny");
    let ran = stage.run("--backend no* --sizes 512").exits(1);
    ran.says("app-mlx-generate-mac14-arm64@34 is selected, but --backend omits it");
    stage.fake.load("gemma/tiny", "mlx", 8192);
    let ran = stage.run("--sizes 512").exits(1);
    ran.says("several MLX models are loaded: qwen/tiny, gemma/tiny");
    stage.state().models[2].loaded.clear();
    let ran = stage.run("--model gemma/tiny").exits(1);
    ran.says("lms load 'gemma/tiny' --context-length");
    stage.is_as(&before);
    assert!(stage.state().chats.is_empty());
    // By identifier; identifier, context, parallelism and TTL come back.
    stage.state().models[0].loaded[0].id = "mine".to_owned();
    stage.json("--model mine --sizes 512,2048 --runs 1", 0);
    // And by key.
    stage.json("--model qwen/tiny --runs 1", 0);
}

#[test]
fn a_context_that_is_too_small_is_made_larger_for_the_sweep() {
    let stage = stage();
    stage.state().models[0].loaded[0].context = 4096;
    let ran = stage
        .run("--sizes 512,2048 --runs 1 --backend *@34")
        .exits(0);
    ran.says("has a context of 4096; it is loaded with 8960 while it is measured")
        .says("`lmpatch 512 --backend '*@34' --reload` sets it.");
    let ran = stage.run("--runs 1").exits(1);
    ran.says("prompts need a context of 8960, the model has 4096")
        .says("with --sizes, lmpatch raises it and then restores it");
    let why = "the model has 262144; give fewer --prompt-tokens or smaller --sizes";
    stage.run("--sizes 131072").exits(1).says(why);
    stage.state().odd.hides_context = true;
    stage.run("--prompt-tokens 300000").exits(1).says(why);
    let ran = stage.run("--sizes 8192 --prompt-tokens 10000");
    ran.exits(1).says("at least 16384");
}

#[test]
fn a_smaller_context_is_told_with_its_size() {
    let stage = stage().odd(|odd| odd.fits.extend([(4096, 20_000)]));
    let ran = stage.run("--sizes 512,4096 --runs 1").exits(0);
    ran.says("with 4096 the model has a context of 20000 instead of 65536");
}

#[test]
fn a_model_that_comes_back_otherwise_is_told() {
    let why = "qwen/tiny is not as it was: context length 9000 instead of 65536";
    let sweep = |more| {
        let stage = stage().odd(|odd| odd.fits.extend([(2048, 9000)]));
        let words = format!("--sizes 512,4096 --runs 1 {more}");
        ran(&mut stage.command(&words)).exits(1)
    };
    sweep("").says(why);
    // In the JSON, too, which is printed when all is done.
    assert_eq!(parsed(&sweep("--json"))["error"], why);
}

#[test]
fn every_model_that_does_not_come_back_is_named() {
    let stage = stage();
    stage.fake.load("gemma/tiny", "mlx", 8192);
    stage.fake.load("llama/tiny", "gguf", 8192);
    let stage = stage.odd(|odd| {
        odd.evicts = true;
        odd.refuses = vec!["gemma/tiny", "llama/tiny"];
    });
    let words = "--model qwen/tiny --sizes 512,2048 --runs 1 --output page.md";
    let results = json(&mut stage.command(words), 1);
    let page = stage.read("page.md");
    for name in ["gemma/tiny", "llama/tiny"] {
        let what = format!("{name} was not loaded again: ");
        has(&results["error"], &what);
        assert!(page.contains(&what), "{page}");
    }
    assert_eq!(stage.fake.loaded()[0].id, MODEL);
}

#[test]
fn a_load_that_fails_once_at_the_end_is_tried_again() {
    let stage = stage().odd(|odd| odd.failing_loads = vec![3]);
    let ran = stage.run("--sizes 512,2048 --runs 1").exits(0);
    ran.says("qwen/tiny is loaded again.");
}

#[test]
fn models_come_back_also_where_lms_fails_for_a_while() {
    let stage = stage().odd(|odd| odd.failing_looks = 25);
    let ran = stage.run("--sizes 512,4096 --runs 1").exits(0);
    ran.says("qwen/tiny is loaded again.");
    assert_eq!(stage.state().odd.failing_looks, 0);
}
