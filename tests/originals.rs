//! What proves that bytes are the vendor's, told with literals.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use lmpatch::patch::original::{
    Evidence, Proof, SavedCopy, identify, parse_record, sha256_hex, values_if_same_otherwise,
    with_values,
};
use lmpatch::patch::plan::{Content, Goal, NotPlanned, must_save, plan};
use lmpatch::patch::settings::{SETTINGS, Setting};
use lmpatch::patch::sites::locate;

const ENGINE: &Setting = &SETTINGS[0];
const GENERATE: &Setting = &SETTINGS[1];
const RELEASES: &str = include_str!("../src/patch/releases.tsv");

fn content(setting: &Setting, bytes: &str, evidence: &Evidence) -> Content {
    let bytes = bytes.as_bytes().to_vec();
    let sites = locate(setting, &bytes).unwrap();
    Content {
        original: identify(setting, &bytes, &sites, evidence),
        sites,
        bytes,
    }
}

fn saved(bytes: &str) -> Evidence {
    let copy = SavedCopy {
        bytes: bytes.as_bytes().to_vec(),
        named_sha256: sha256_hex(bytes.as_bytes()),
    };
    Evidence {
        record: Vec::new(),
        saved: vec![copy],
    }
}

#[test]
fn the_table_of_releases_is_whole_and_names_each_file_once() {
    let rows: Vec<Vec<&str>> = RELEASES
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').collect())
        .collect();
    let hashes: BTreeSet<_> = rows.iter().map(|row| row[1]).collect();
    assert_eq!((rows.len(), hashes.len()), (55, 55));
    let known: Vec<_> = SETTINGS.iter().map(Setting::record_path).collect();
    for row in &rows {
        let [path, sha256, bytes, date, releases] = row[..] else {
            panic!("{row:?}")
        };
        assert!(known.iter().any(|name| name == path), "{row:?}");
        assert!(
            sha256.len() == 64
                && sha256
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{row:?}"
        );
        assert!(
            bytes.parse::<usize>().is_ok() && date.len() == 10 && !releases.is_empty(),
            "{row:?}"
        );
    }
}

#[test]
fn record_rows_are_read_and_bad_ones_passed_over() {
    // The SHA-256 of nothing.
    let digest = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
    let record = format!(
        "no commas\n,,\n\u{e9},sha256=x,1\nmlx_lm/generate.py,md5={digest},0\nmlx_lm/generate.py,sha256={digest}=,0\n\
         mlx_lm/generate.py,sha256={digest},-1\nmlx_lm/generate.py,sha256=AAAA,0\nother.py,sha256={digest},5\n\
         mlx_lm/generate.py,sha256={digest},0\r\n\"mlx_lm/generate.py\",sha256={digest},7\nmlx_lm/generate.py,,\n"
    );
    let sizes: Vec<_> = parse_record(record.as_bytes(), "mlx_lm/generate.py")
        .iter()
        .map(|print| print.size)
        .collect();
    assert_eq!(sizes, [0, 7]);
    let [first, ..] = &parse_record(record.as_bytes(), "mlx_lm/generate.py")[..] else {
        panic!()
    };
    assert_eq!(first.sha256[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    assert_eq!(
        parse_record(b"\xff\xfe\n\xff,\xff,\xff", "mlx_lm/generate.py"),
        []
    );
}

#[test]
fn only_the_digits_of_sites_are_replaced() {
    let source = b"def f(a, prefill_step_size: int = 0x800): pass  # caf\xE9\r\ndef g(prefill_step_size=5): pass";
    let sites = locate(GENERATE, source).unwrap();
    let expected = b"def f(a, prefill_step_size: int = 4096): pass  # caf\xE9\r\ndef g(prefill_step_size=5): pass";
    assert_eq!(with_values(source, &sites, &[4096, 5]), expected);
    assert_eq!(
        with_values(source, &sites, &[2048, 5]),
        source,
        "a literal with its value already stays as written"
    );
    assert_eq!(
        values_if_same_otherwise(GENERATE, source, &sites, expected),
        Some(vec![4096, 5])
    );
    let other = [&expected[..], b"\n"].concat();
    assert_eq!(
        values_if_same_otherwise(GENERATE, source, &sites, &other),
        None
    );
}

#[test]
fn a_record_proves_what_is_there_and_what_could_be_put_back() {
    let stock = "def generate_step(prefill_step_size: int = 2048): pass\ndef speculative_generate_step(prefill_step_size: int = 512): pass\n";
    let row = parse_record(record_row(stock).as_bytes(), "mlx_lm/generate.py");
    let evidence = Evidence {
        record: row,
        saved: Vec::new(),
    };
    for patched in [
        stock.to_owned(),
        stock.replace("2048", "4096").replace("512", "4096"),
    ] {
        let content = content(GENERATE, &patched, &evidence);
        assert_eq!(
            (content.original.proof, content.original_bytes()),
            (Proof::Record, Some(stock.as_bytes().into()))
        );
        assert_eq!(
            plan(GENERATE, &content, Goal::Vendor, Some(2048)),
            Ok(stock.as_bytes().to_vec())
        );
    }
    // A release with other stock values than any so far is known by its RECORD as long as it is untouched.
    let new = stock.replace("2048", "8192");
    let evidence = Evidence {
        record: parse_record(record_row(&new).as_bytes(), "mlx_lm/generate.py"),
        saved: Vec::new(),
    };
    assert_eq!(
        content(GENERATE, &new, &evidence).original.stock,
        [8192, 512]
    );
    assert_eq!(
        content(GENERATE, &new.replace("8192", "4096"), &evidence)
            .original
            .proof,
        Proof::Unknown
    );
}

fn record_row(content: &str) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let digest =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(content));
    format!("mlx_lm/generate.py,sha256={digest},{}", content.len())
}

#[test]
fn a_saved_copy_counts_only_if_it_is_intact_and_the_same_file() {
    let stock = "PROMPT_PROCESSING_CHUNK_SIZE = 512\n";
    let patched = "PROMPT_PROCESSING_CHUNK_SIZE = 4096\n";
    assert_eq!(
        content(ENGINE, patched, &saved(stock)).original.proof,
        Proof::Saved
    );
    let mut tampered = saved(stock);
    tampered.saved[0].bytes = b"PROMPT_PROCESSING_CHUNK_SIZE = 511\n".to_vec();
    assert_eq!(
        content(ENGINE, patched, &tampered).original.proof,
        Proof::Unknown
    );
    assert_eq!(
        content(
            ENGINE,
            patched,
            &saved("PROMPT_PROCESSING_CHUNK_SIZE = 512\n#\n")
        )
        .original
        .proof,
        Proof::Unknown
    );
    assert_eq!(
        content(
            ENGINE,
            patched,
            &saved("PROMPT_PROCESSING_CHUNK_SIZE = 777\n")
        )
        .original
        .proof,
        Proof::Found
    );
}

#[test]
fn the_stock_value_is_told_by_the_engine() {
    let old = content(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 4096\n",
        &Evidence::default(),
    );
    let new = content(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 4096\n# validate_prefill_step_size\n",
        &Evidence::default(),
    );
    assert_eq!(
        (old.original.stock, new.original.stock),
        (vec![512], vec![2048])
    );
}

#[test]
fn a_goal_of_the_vendors_bytes_is_never_met_by_a_guess() {
    let unknown = content(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 4096\n",
        &Evidence::default(),
    );
    let refusal = NotPlanned::OriginalUnknown {
        found: vec![4096],
        stock: vec![512],
        spoiled: Vec::new(),
    };
    assert_eq!(
        plan(ENGINE, &unknown, Goal::Vendor, Some(512)),
        Err(refusal)
    );
    assert_eq!(
        plan(ENGINE, &unknown, Goal::Size(8192), Some(512)),
        Ok(b"PROMPT_PROCESSING_CHUNK_SIZE = 8192\n".to_vec())
    );
    let untouched = content(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 512\n",
        &Evidence::default(),
    );
    assert_eq!(
        plan(ENGINE, &untouched, Goal::Vendor, Some(512)),
        Ok(untouched.bytes.clone())
    );
}

#[test]
fn what_record_proves_but_stock_values_would_not_give_back_is_saved() {
    let vendors = "def generate_step(prefill_step_size: int = 2_048): pass\ndef f(prefill_step_size=512): pass\n";
    let record = parse_record(record_row(vendors).as_bytes(), "mlx_lm/generate.py");
    let untouched = content(
        GENERATE,
        vendors,
        &Evidence {
            record: record.clone(),
            saved: Vec::new(),
        },
    );
    assert!(must_save(&untouched));
    let edited = vendors.replace("2_048", "2048").replace("512", "2048");
    let without = content(
        GENERATE,
        &edited,
        &Evidence {
            record: record.clone(),
            saved: Vec::new(),
        },
    );
    assert!(without.original.is_disproved && !without.is_stock());
    assert!(matches!(
        plan(GENERATE, &without, Goal::Vendor, Some(2048)),
        Err(NotPlanned::OriginalUnknown { .. })
    ));
    let with = content(
        GENERATE,
        &edited,
        &Evidence {
            record,
            ..saved(vendors)
        },
    );
    assert_eq!(
        (with.original.proof, must_save(&with)),
        (Proof::Record, false)
    );
    assert_eq!(
        plan(GENERATE, &with, Goal::Vendor, Some(2048)),
        Ok(vendors.as_bytes().to_vec())
    );
}
