//! What lmpatch writes beside a file that nothing else could give back.
use std::fs;

use lmpatch::patch::original::Fingerprint;
use serde_json::{Value, json};

use crate::support::home::{BackendDir, engine_since_2026, generate, one_backend};
use crate::support::text;

/// What is beside an edited engine here: no table and no `RECORD` knows these engines; `generate.py` is proven by
/// `RECORD`.
const RECEIPT: &str = "mlx_engine/cache_wrapper.py.lmpatch";

fn sha256(text: &str) -> String {
    Fingerprint::of(text.as_bytes()).sha256
}

fn json_of(backend: &BackendDir, receipt: &str) -> Value {
    serde_json::from_str(&text(backend.path(receipt))).unwrap()
}

#[test]
fn the_receipt_is_written_once_and_survives_other_sizes() {
    let (env, backend, before) = one_backend(BackendDir::usual);
    let original = engine_since_2026("2048");
    let expected = json!({
        "size": original.len(), "sha256": sha256(&original), "literals": ["2048"],
    });
    for back in ["--revert", "2048"] {
        for size in ["4096", "8192", "1024", "4096"] {
            env.run([size]).exits(0);
            assert_eq!(json_of(&backend, RECEIPT), expected);
            // None is written where RECORD gives the original back.
            let ours = before.changes();
            let ours: Vec<_> = ours.iter().filter(|p| p.contains("lmpatch")).collect();
            assert_eq!(ours.len(), 1, "nothing but the receipt: {ours:?}");
        }
        env.run([back]).exits(0);
        before.still_holds();
    }
}

#[test]
fn the_receipt_keeps_literals_as_they_are_written() {
    let vendors = "def generate_step(prefill_step_size: int = 2_048): pass\n";
    let (env, backend, before) = one_backend(|it| it.with_listed_generate(vendors));
    env.run(["4096"]).exits(0);
    let expected = json!({"size": 56, "sha256": sha256(vendors), "literals": ["2_048"]});
    assert_eq!(json_of(&backend, "mlx_lm/generate.py.lmpatch"), expected);
    env.run(["8192"]).exits(0);
    env.run(["--revert"]).exits(0);
    before.still_holds();
}

#[test]
fn no_receipt_is_written_where_nothing_changes() {
    let (env, _, before) = one_backend(|it| {
        it.with_engine(engine_since_2026("4096"))
            .with_generate(generate("4096", "4096", "4096"))
    });
    env.run(["4096"]).tells("1 unchanged");
    before.still_holds();
}

#[test]
fn a_receipt_of_another_version_is_not_used_and_replaced() {
    let (env, backend, before) = one_backend(BackendDir::usual);
    env.run(["4096"]).exits(0);
    let update = engine_since_2026("2048") + "\n# a newer release in the same place\n";
    fs::write(backend.engine(), &update).unwrap();
    env.run(["--check"])
        .tells("the receipt is ignored")
        .says("belongs to another version of the file");
    env.run(["8192"]).exits(0);
    assert_eq!(json_of(&backend, RECEIPT)["sha256"], sha256(&update));
    env.run(["--revert"]).exits(0);
    assert_eq!(text(backend.engine()), update);
    let left = before.changes();
    assert_eq!(left.len(), 1, "only the engine differs: {left:?}");
}
