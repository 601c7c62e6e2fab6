//! What holds for any bytes, and for any Python in which settings and decoys are woven together.
mod woven;

use std::time::Duration;

use lmpatch::patch::original::{Fingerprint, Proof, parse_record};
use lmpatch::patch::settings::{SETTINGS, SIZES};
use lmpatch::patch::sites::locate;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::support::home::record_row;
use crate::support::{laws, nasty};
use woven::{constant_file, generate_file, parameter_file};

const PATH: &str = "mlx_lm/generate.py";

/// No regression files: they would appear beside the sources.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        cases: 512,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in any_bytes(), size in SIZES) {
        for setting in &SETTINGS {
            laws::set_and_revert(setting, &bytes, size);
        }
    }

    #[test]
    fn the_sites_of_a_constant_are_those_planted(woven in constant_file(), size in SIZES) {
        woven.keeps_the_laws(&SETTINGS[0], size);
    }

    #[test]
    fn the_sites_of_a_method_parameter_are_those_planted(woven in parameter_file(), size in SIZES) {
        woven.keeps_the_laws(&SETTINGS[0], size);
    }

    #[test]
    fn the_sites_of_mlx_lm_are_those_planted(woven in generate_file(), size in SIZES) {
        woven.keeps_the_laws(&SETTINGS[1], size);
    }

    #[test]
    fn a_nul_byte_anywhere_is_refused(woven in generate_file(), at in any::<Index>()) {
        let mut source = woven.source;
        let at = at.index(source.len() + 1);
        source.insert(at, 0);
        let refusal = locate(&SETTINGS[1], &source).unwrap_err();
        prop_assert!(refusal.contains("NUL"), "{}", refusal);
    }

    #[test]
    fn any_bytes_are_a_record_without_panic(bytes in vec(any::<u8>(), 0..500)) {
        prop_assert!(parse_record(&bytes, PATH).is_empty());
    }

    #[test]
    fn a_row_of_a_record_is_found_among_bad_ones(
        before in vec(bad_row(), 0..8),
        after in vec(bad_row(), 0..8),
        content in vec(any::<u8>(), 0..50),
        end in select(vec!["\n", "\r\n", "\r"]),
    ) {
        let good = record_row(PATH, &content).into_bytes();
        let rows = [before, vec![good], after].concat();
        let found = parse_record(&rows.join(end.as_bytes()), PATH);
        prop_assert_eq!(found, [(Proof::Record, Fingerprint::of(&content))]);
    }
}

/// `RECORD` proves these, but an edit writes over what the stock values alone do not bring back.
#[test]
fn what_stock_values_do_not_give_back_needs_a_receipt() {
    for source in [
        "def generate_step(prefill_step_size: int = 2_048): pass\n",
        "def generate_step(prefill_step_size: int = 1024): pass\n",
        "def generate_step(prefill_step_size=2048): pass\ndef f(prefill_step_size=512): pass\n",
    ] {
        assert!(locate(&SETTINGS[1], source.as_bytes()).is_ok(), "{source}");
        laws::set_and_revert(&SETTINGS[1], source.as_bytes(), 4096);
    }
}

#[test]
fn nasty_sources_are_read_to_their_end() {
    for (name, source) in nasty::sources(1 << 16) {
        eprintln!("{name}");
        read_and_plan(&source);
    }
}

/// Run it optimised: `cargo test --release --test it properties:: -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, and a long one"]
fn time_is_linear_in_size() {
    if processor_time().is_none() {
        return eprintln!("this system does not say what a thread has had of the processor");
    }
    let mut worse = Vec::new();
    let whole = nasty::sources(1 << 23);
    for ((name, quarter), (_, whole)) in nasty::sources(1 << 21).into_iter().zip(whole) {
        let (short, long) = (measure(&quarter), measure(&whole));
        // Below ten milliseconds the source was refused at its start, and a ratio says nothing.
        let ratio = long.as_secs_f64() / short.max(Duration::from_millis(10)).as_secs_f64();
        eprintln!("{name:35} 2 MiB {short:>10.1?}, 8 MiB {long:>10.1?}, ratio {ratio:.1}");
        worse.extend((ratio >= 12.0).then_some(name));
    }
    // Four times the size takes them twelve times as long or more.
    assert_eq!(worse, [""; 0]);
}

fn measure(source: &[u8]) -> Duration {
    let start = processor_time().unwrap();
    read_and_plan(source);
    processor_time().unwrap().saturating_sub(start)
}

/// What this thread has had of the processor: how busy the machine is does not count.
fn processor_time() -> Option<Duration> {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(spent.split(' ').next()?.parse().ok()?))
}

fn read_and_plan(source: &[u8]) {
    for setting in &SETTINGS {
        laws::set_and_revert(setting, source, 4096);
    }
}

/// A row that is no row, or about another file, or proves nothing.
fn bad_row() -> impl Strategy<Value = Vec<u8>> {
    let good = record_row(PATH, b"a");
    let near = vec![
        String::new(),
        format!("{PATH},,"),
        format!("{PATH},sha256=,1"),
        format!("{PATH},sha256=AAAA,1"),
        good.replace("sha256", "md5"),
        good.replace("sha256=", "sha256:"),
        good.replace(",1", ",one"),
        good.replace(",1", ",-1"),
        good.replace(",1", ",99999999999999999999999"),
        good.replace(",1", ""),
        good.replace("mlx_lm/", "../mlx_lm/"),
        good.replace("mlx_lm/", "\"mlx_lm/"),
        format!("x{good}"),
        format!("{good},"),
        record_row("mlx_lm/other.py", b"a"),
    ];
    prop_oneof![
        vec(any::<u8>(), 0..60),
        select(near).prop_map(String::into_bytes)
    ]
}

/// Noise, and noise made of what the reader reacts to.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let noise = vec(any::<u8>(), 0..300);
    let word = select([SHORT, LONG].concat());
    let words = vec(word, 0..60).prop_map(|words| words.concat().into_bytes());
    let both =
        (words.clone(), noise.clone(), words.clone()).prop_map(|(a, b, c)| [a, b, c].concat());
    prop_oneof![noise, words, both]
}

const SHORT: &[&str] = &[
    "\"", "'", "\"\"\"", "'''", "\\", "\n", "\r", "\r\n", " ", "    ", "\t", "\x0c", "#", "(", ")",
    "[", "]", "{", "}", ":", ";", ",", "=", "==", ":=", "+=", "->", "*", "**", "/", ".", "...",
    "@", "def ", "class ", "lambda ", "async ", "if x: ", "else: ", "f(", ": int = ", "2048",
    "512", "2_048", "0x800", "0", "1.5", "None", "rb'", "f\"", "\u{feff}", "é", "\0", "2048):\n",
];

const LONG: &[&str] = &[
    "prefill_step_size",
    "chunk_size",
    "PROMPT_PROCESSING_CHUNK_SIZE",
    "CacheWrapper",
    "def f(prefill_step_size=",
    "class CacheWrapper:\n    def f(self, chunk_size=",
    "PROMPT_PROCESSING_CHUNK_SIZE = 512\n",
    "speculative_generate_step",
];
