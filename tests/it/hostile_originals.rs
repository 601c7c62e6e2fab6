//! What proves the vendor's bytes, gone bad: rows of RECORD, and receipts that were tampered with.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use lmpatch::patch::original::Fingerprint;
use serde_json::json;

use crate::support::home::{
    BackendDir, engine_since_2026, generate, one_backend, record_row, stock_generate,
};
use crate::support::{Before, Env, mkfifo, text};

const RECORD: &str = "mlx_lm-0.0.1.dist-info/RECORD";

/// One backend whose mlx-lm says 4096 and has this `RECORD`, which is shown if the test fails.
fn patched_with_record(record: &[u8]) -> (Env, BackendDir, Before) {
    let start = &record[..record.len().min(200)];
    eprintln!("{}", String::from_utf8_lossy(start));
    let patched = generate("4096", "4096", "4096");
    one_backend(|it| it.with_generate(patched).write(RECORD, record))
}

fn good_row() -> String {
    record_row("mlx_lm/generate.py", stock_generate().as_bytes())
}

fn other_row() -> String {
    record_row("mlx_lm/generate.py", b"something else")
}

/// The original is unknown: a revert says so and changes nothing, and a number still works.
#[test]
fn bad_rows_of_a_record_prove_nothing() {
    let row = good_row();
    let (start, size) = row.rsplit_once(',').unwrap();
    let (most, _) = start.split_at(start.len() - 4);
    for record in [
        String::new(),
        row.replace("sha256=", "sha256=!!!!"),
        row.replace("sha256=", "sha512="),
        row.replace("sha256=", ""),
        row.replace(',', ""),
        row.replace(',', ";"),
        start.to_owned(),
        format!("{start},"),
        format!("{start},{}", size.parse::<usize>().unwrap() + 1),
        format!("{start},-{size}"),
        format!("{start},99999999999999999999999999"),
        format!("{start}=,{size}"),
        format!("{most},{size}"),
        format!("other/{row}"),
        format!("\"{row}"),
        other_row(),
    ] {
        let (env, backend, before) = patched_with_record(record.as_bytes());
        assert_eq!(env.checked(0)["files"][0]["original"], "unknown");
        for args in [&["--revert"][..], &["--revert", "--dry-run"]] {
            env.run(args)
                .fails("mlx_lm/generate.py")
                .says("the original is unknown");
            before.still_holds();
        }
        env.run(["8192"]).exits(0);
        assert_eq!(text(backend.generate()), generate("8192", "8192", "8192"));
    }
}

#[test]
fn a_record_that_is_too_large_is_a_refusal() {
    let huge = format!("{}\n{}", good_row(), "x\n".repeat(17 << 19));
    assert!(huge.len() > 17 << 20);
    let (env, _, before) = patched_with_record(huge.as_bytes());
    for args in ["--revert", "8192"] {
        env.run([args]).fails("RECORD (it has ");
        before.still_holds();
    }
}

#[test]
fn a_good_row_proves_whatever_stands_around_it() {
    let row = good_row();
    let noise = b"\xff\xfe,sha256=\xff,1\n\0\0\n,,,,,,,\n\"\n";
    for record in [
        row.clone().into_bytes(),
        format!("{row}\n").into_bytes(),
        format!("a,b,c\r\n{row}\r\nd\r\n").into_bytes(),
        format!("a,b,c\r{row}\rd\r").into_bytes(),
        [noise, row.as_bytes()].concat(),
        format!("{}\n{row}", other_row()).into_bytes(),
    ] {
        let (env, backend, _) = patched_with_record(&record);
        assert_eq!(env.checked(0)["files"][0]["original"], "record");
        env.run(["--revert"]).exits(0);
        assert_eq!(text(backend.generate()), stock_generate());
        assert_eq!(fs::read(backend.path(RECORD)).unwrap(), record);
    }
}

fn receipt_of(source: &str, literals: &[&str]) -> String {
    let print = Fingerprint::of(source.as_bytes());
    json!({"size": print.size, "sha256": print.sha256, "literals": literals}).to_string()
}

#[test]
fn a_receipt_of_no_use_is_told_and_ignored() {
    let (source, other) = (engine_since_2026("2048"), "belongs to another version");
    for (why, content) in [
        ("is damaged", ""),
        ("is damaged", "{}"),
        (other, &receipt_of(&source, &["512"])),
        (other, &receipt_of(&source, &["2048", "2048"])),
        (other, &receipt_of(&format!("{source}# more\n"), &["2048"])),
    ] {
        is_of_no_use(why, |receipt| fs::write(receipt, content).unwrap());
    }
    is_of_no_use("is damaged", |receipt| {
        fs::write(receipt, b"\xff\0").unwrap();
    });
    is_of_no_use("is damaged", |receipt| {
        let half = text(receipt);
        fs::write(receipt, &half[..half.len() / 2]).unwrap();
    });
    is_of_no_use("cannot be read (it has 3221225472 bytes", |receipt| {
        let receipt = File::options().write(true).open(receipt).unwrap();
        receipt.set_len(3 << 30).unwrap();
    });
}

#[test]
fn what_stands_in_place_of_a_receipt_is_told_and_ignored() {
    let places: [(&str, fn(&Path)); 3] = [
        ("cannot be read (it is not a regular file)", |receipt| {
            fs::create_dir(receipt).unwrap();
            fs::write(receipt.join("kept"), "").unwrap();
        }),
        ("is damaged", |receipt| {
            symlink("cache_wrapper.py", receipt).unwrap();
        }),
        ("cannot be read (it is not a regular file)", mkfifo),
    ];
    for (why, place) in places {
        is_of_no_use(why, |receipt| {
            fs::remove_file(receipt).unwrap();
            place(receipt);
        });
    }
}

/// The receipt of an engine that nothing else proves is of no use after this: it is told and ignored, and gives way as
/// soon as the engine has its stock values again.
#[track_caller]
fn is_of_no_use(why: &str, tamper: impl Fn(&Path)) {
    eprintln!("{why}");
    let (env, backend, _) = one_backend(|it| it.with_engine(engine_since_2026("2048")));
    env.run(["4096"]).exits(0);
    let receipt = backend.path("mlx_engine/cache_wrapper.py.lmpatch");
    assert!(receipt.is_file());
    tamper(&receipt);
    let before = Before::of(env.user());
    let told = format!("{} {why}", receipt.display());
    env.run(["--check"])
        .tells(&format!("the receipt is ignored: {told}"))
        .says("for the vendor's file, reinstall the runtime");
    assert_eq!(env.checked(0)["files"][0]["original"], "unknown");
    for args in ["--revert", "--revert --dry-run", "--revert --json"] {
        env.run(args.split(' '))
            .fails(&format!("the receipt is ignored: {told}"))
            .says("the original is unknown")
            .says("reinstall the runtime");
        before.still_holds();
    }
    env.run(["8192"]).tells("1 changed");
    assert_eq!(text(backend.engine()), engine_since_2026("8192"));
    // What was edited is no original: only where it has its stock values again is a receipt written anew.
    env.run(["--revert"]).fails("the original is unknown");
    assert_eq!(text(backend.engine()), engine_since_2026("8192"));

    fs::write(backend.engine(), engine_since_2026("2048")).unwrap();
    env.run(["4096"]).exits(0);
    assert_eq!(text(backend.engine()), engine_since_2026("4096"));
    if receipt.is_dir() {
        assert!(receipt.join("kept").exists());
        env.run(["--revert"]).fails("is not a regular file");
        env.run(["2048"]).exits(0);
    } else {
        env.run(["--revert"]).exits(0);
        assert!(fs::symlink_metadata(&receipt).is_err());
    }
    assert_eq!(text(backend.engine()), engine_since_2026("2048"));
}

/// Where the package's RECORD proves the original, it is not needed.
#[test]
fn a_useless_receipt_that_a_revert_removes_is_not_told() {
    let (env, backend, _) = one_backend(|it| {
        it.with_listed_generate(stock_generate())
            .write("mlx_lm/generate.py.lmpatch", "{")
    });
    env.run(["--check"])
        .tells("is damaged; for the vendor's file, reinstall");
    env.run(["--revert"]).exits(0).says_nothing_of("damaged");
    assert!(!backend.path("mlx_lm/generate.py.lmpatch").exists());
}

#[test]
fn a_foreign_receipt_does_no_harm_where_record_proves_the_original() {
    let (env, backend, before) = one_backend(BackendDir::usual);
    env.run(["4096"]).exits(0);
    let foreign = receipt_of(&generate("64", "64", "64"), &["64"]);
    backend.write("mlx_lm/generate.py.lmpatch", foreign);
    env.run(["--revert"]).exits(0);
    before.still_holds();
}
