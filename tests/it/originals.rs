//! What proves that bytes are the vendor's, told with literals.
use std::collections::BTreeSet;

use lmpatch::patch::backend::VendorFile;
use lmpatch::patch::original::{
    Evidence, Fingerprint, Proof, Receipt, fill, parse_record, releases, with_values,
};
use lmpatch::patch::settings::{SETTINGS, Setting};
use lmpatch::patch::sites::locate;

use crate::support::home::record_row;
use crate::support::laws::{revert, set, understand};

const ENGINE: &Setting = &SETTINGS[0];
const GENERATE: &Setting = &SETTINGS[1];
const PATH: &str = "mlx_lm/generate.py";
const RELEASES: &str = include_str!("../../src/patch/releases.tsv");

fn listed(source: &str) -> Evidence {
    parse_record(record_row(PATH, source.as_bytes()).as_bytes(), PATH)
}

fn receipt(setting: &Setting, source: &str) -> Receipt {
    let sites = locate(setting, source.as_bytes()).unwrap();
    Receipt::of(source.as_bytes(), &sites)
}

fn engine(source: &str, receipt: Option<&Receipt>) -> VendorFile {
    understand(ENGINE, source.as_bytes(), &Vec::new(), receipt)
}

fn proof(file: &VendorFile) -> Option<Proof> {
    let original = file.source().unwrap().original.as_ref();
    original.map(|(proof, _)| *proof)
}

fn stock(file: &VendorFile) -> Vec<u64> {
    let sites = &file.source().unwrap().sites;
    sites.iter().map(|site| site.stock).collect()
}

#[test]
fn the_table_of_releases_is_whole_and_names_each_file_once() {
    let rows = RELEASES.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split('\t').collect()).collect();
    let hashes: BTreeSet<_> = rows.iter().map(|row| row[1]).collect();
    assert_eq!((rows.len(), hashes.len()), (55, 55));
    let known: Vec<_> = SETTINGS.iter().map(|setting| setting.path).collect();
    for row in &rows {
        let [path, sha256, bytes, date, releases] = row[..] else {
            panic!("{row:?}")
        };
        assert!(known.contains(&path), "{row:?}");
        let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        assert!(sha256.len() == 64 && sha256.bytes().all(is_hex), "{row:?}");
        assert!(bytes.parse::<usize>().is_ok(), "{row:?}");
        assert!(date.len() == 10 && !releases.is_empty(), "{row:?}");
    }
    let read = SETTINGS.iter().map(|setting| releases(setting).len());
    assert_eq!(read.sum::<usize>(), 55);
}

#[test]
fn record_rows_are_read_and_bad_ones_ignored() {
    // The SHA-256 of nothing.
    let digest = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
    let record = format!(
        "no commas\n,,\n\u{e9},sha256=x,1\nmlx_lm/generate.py,md5={digest},0\nmlx_lm/generate.py,sha256={digest}=,0\n\
         mlx_lm/generate.py,sha256={digest},-1\nmlx_lm/generate.py,sha256=AAAA,0\nother.py,sha256={digest},5\n\
         mlx_lm/generate.py,sha256={digest},0\r\nmlx_lm/generate.py,sha256={digest},7\nmlx_lm/generate.py,,\n"
    );
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let row = |size| {
        let sha256 = sha256.into();
        (Proof::Record, Fingerprint { size, sha256 })
    };
    assert_eq!(parse_record(record.as_bytes(), PATH), [row(0), row(7)]);
    assert_eq!(parse_record(b"\xff\xfe\n\xff,\xff,\xff", PATH), []);
}

#[test]
fn only_the_digits_of_sites_are_replaced() {
    let source = b"def f(a, prefill_step_size: int = 2_048): pass  # caf\xE9\r\ndef g(prefill_step_size=5): pass";
    let sites = locate(GENERATE, source).unwrap();
    let expected = b"def f(a, prefill_step_size: int = 4096): pass  # caf\xE9\r\ndef g(prefill_step_size=5): pass";
    let with = |values: [u64; 2]| {
        let literals = with_values(source, &sites, |site| values[site.line - 1]);
        fill(source, &sites, &literals)
    };
    assert_eq!(with([4096, 5]), expected);
    // A literal with its value already stays as it is written.
    assert_eq!(with([2048, 5]), source);
}

#[test]
fn a_record_proves_what_is_there_and_what_could_be_put_back() {
    let stock_source = "def generate_step(prefill_step_size: int = 2048): pass\ndef speculative_generate_step(prefill_step_size: int = 512): pass\n";
    for patched in [
        stock_source.to_owned(),
        stock_source.replace("2048", "4096").replace("512", "4096"),
    ] {
        let file = understand(GENERATE, patched.as_bytes(), &listed(stock_source), None);
        assert_eq!(proof(&file), Some(Proof::Record));
        assert_eq!(revert(&file), Ok(stock_source.into()));
        assert!(!file.source().unwrap().needs_receipt);
    }
    // A release with other stock values than any so far is known by its RECORD as long as it is untouched.
    let new = stock_source.replace("2048", "8192");
    let untouched = understand(GENERATE, new.as_bytes(), &listed(&new), None);
    assert_eq!(stock(&untouched), [8192, 512]);
    let edited = new.replace("8192", "4096");
    let edited = understand(GENERATE, edited.as_bytes(), &listed(&new), None);
    assert_eq!(proof(&edited), None);
}

#[test]
fn a_receipt_counts_only_for_the_same_file() {
    let stock = "PROMPT_PROCESSING_CHUNK_SIZE = 512\n";
    let patched = "PROMPT_PROCESSING_CHUNK_SIZE = 4096\n";
    let written = receipt(ENGINE, stock);
    let fits = engine(patched, Some(&written));
    assert_eq!(proof(&fits), Some(Proof::Receipt));
    assert!(!fits.source().unwrap().came_edited);
    assert_eq!(revert(&fits), Ok(stock.into()));

    let mut tampered = written.clone();
    for literals in [vec!["511".to_owned()], vec!["512".to_owned(); 2]] {
        tampered.literals = literals;
        assert_eq!(proof(&engine(patched, Some(&tampered))), None);
    }
    let other = receipt(ENGINE, "PROMPT_PROCESSING_CHUNK_SIZE = 512\n#\n");
    assert_eq!(proof(&engine(patched, Some(&other))), None);

    let odd = "PROMPT_PROCESSING_CHUNK_SIZE = 777\n";
    let as_found = engine(patched, Some(&receipt(ENGINE, odd)));
    assert_eq!(proof(&as_found), Some(Proof::Receipt));
    assert!(as_found.source().unwrap().came_edited);
    assert_eq!(revert(&as_found), Ok(odd.into()));
}

#[test]
fn the_stock_value_is_told_by_the_engine() {
    let old = engine("PROMPT_PROCESSING_CHUNK_SIZE = 4096\n", None);
    assert_eq!(stock(&old), [512]);
    let since_2026 = "PROMPT_PROCESSING_CHUNK_SIZE = 4096\n# validate_prefill_step_size\n";
    assert_eq!(stock(&engine(since_2026, None)), [2048]);
}

#[test]
fn an_original_is_never_guessed() {
    let unknown = engine("PROMPT_PROCESSING_CHUNK_SIZE = 4096\n", None);
    let why = revert(&unknown).unwrap_err();
    let told = "the original is unknown: not a known release";
    assert!(why.contains(told), "{why}");
    let edited = b"PROMPT_PROCESSING_CHUNK_SIZE = 8192\n";
    assert_eq!(set(&unknown, 8192), edited);
    let untouched = "PROMPT_PROCESSING_CHUNK_SIZE = 512\n";
    assert_eq!(revert(&engine(untouched, None)), Ok(untouched.into()));
}

#[test]
fn what_record_proves_but_stock_values_would_not_give_back_needs_a_receipt() {
    let vendors = "def generate_step(prefill_step_size: int = 2_048): pass\ndef f(prefill_step_size=512): pass\n";
    let evidence = listed(vendors);
    let untouched = understand(GENERATE, vendors.as_bytes(), &evidence, None);
    assert!(untouched.source().unwrap().needs_receipt);

    let edited = vendors.replace("2_048", "4096").replace("512", "4096");
    let without = understand(GENERATE, edited.as_bytes(), &evidence, None);
    assert_eq!(proof(&without), None);
    assert!(revert(&without).is_err());

    let written = receipt(GENERATE, vendors);
    let with = understand(GENERATE, edited.as_bytes(), &evidence, Some(&written));
    assert_eq!(proof(&with), Some(Proof::Record));
    assert_eq!(revert(&with), Ok(vendors.into()));
}
