//! Sizes and bytes of all kinds.

use std::fs::{self, File};
use std::process::Command;

use super::{BAD, assert_refused, only_the_good_one_changed, two_backends};
use crate::support::child::{finish, has_tool};
use crate::support::home::{engine_since_2026, generate, one_backend, stock_generate};
use crate::support::{Before, LMPATCH, text};

const MAX_BYTES: usize = 16 * 1024 * 1024;

#[test]
fn a_file_of_three_gibibytes_is_refused_by_its_size_and_never_opened() {
    let (env, backend, good) = two_backends();
    let path = backend.generate();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(3 << 30).unwrap();
    let what = "has 3221225472 bytes, more than the limit of 16777216";
    assert_refused(&env, &path, what, &good);
    if !has_tool("strace") {
        return;
    }
    let log = env.user().join("calls");
    let mut traced = Command::new("strace");
    env.isolate(&mut traced)
        .args(["-f", "-e", "trace=openat,read,mmap", "-y", "-s", "4096"])
        .arg("-o")
        .args([log.as_os_str(), LMPATCH.as_ref(), "4096".as_ref()]);
    finish(&mut traced).exits(1);
    let calls = text(log);
    let names_good = calls.contains(good.generate().to_str().unwrap());
    assert!(names_good, "the trace names no vendor file: {calls}");
    let is_touched = |call: &&str| call.contains(path.to_str().unwrap());
    let touched: Vec<_> = calls.lines().filter(is_touched).collect();
    assert_eq!(touched, [""; 0]);
}

/// mlx-lm's file followed by one long comment, exactly `size` bytes.
fn padded(size: usize) -> Vec<u8> {
    let mut bytes = stock_generate().into_bytes();
    bytes.resize(size - 1, b'#');
    bytes.push(b'\n');
    bytes
}

#[test]
fn a_file_just_over_the_limit_is_refused_and_one_at_it_is_edited() {
    let (env, backend, good) = two_backends();
    fs::write(backend.generate(), padded(MAX_BYTES + 1)).unwrap();
    assert_refused(&env, &backend.generate(), "has 16777217 bytes", &good);

    let before = padded(MAX_BYTES - 1);
    fs::write(backend.generate(), &before).unwrap();
    env.run(["8192"]).exits(0);
    let after = fs::read(backend.generate()).unwrap();
    let rest = after.strip_prefix(generate("8192", "8192", "8192").as_bytes());
    assert!(rest == Some(&before[stock_generate().len()..]));
}

#[test]
fn a_file_that_the_edit_would_bring_over_the_limit_is_refused_before_it() {
    let (env, backend, good) = two_backends();
    // The one that ships with 512 needs a digit more.
    fs::write(backend.generate(), padded(MAX_BYTES)).unwrap();
    let before = Before::of(env.user());
    let why = "it would not read back as planned; please report this";
    let told = format!("error: {BAD}: mlx_lm/generate.py: {why}\n");
    for args in [&["8192"][..], &["8192", "--dry-run"]] {
        env.run(args).fails(&told);
        only_the_good_one_changed(&before);
    }
    good.is_set_to("8192");
}

type Spell = fn(&str) -> Vec<u8>;

/// Ways to write the same source in other bytes.
const SPELLINGS: [(&str, Spell); 8] = [
    ("CRLF", |text| text.replace('\n', "\r\n").into_bytes()),
    ("lone CR", |text| text.replace('\n', "\r").into_bytes()),
    ("line ends of all kinds", |text| {
        text.replacen('\n', "\r\n", 2)
            .replacen("\n\n", "\r\n\r", 1)
            .into_bytes()
    }),
    ("BOM", |text| format!("\u{feff}{text}").into_bytes()),
    ("BOM and CRLF", |text| {
        format!("\u{feff}{}", text.replace('\n', "\r\n")).into_bytes()
    }),
    ("no final newline", |text| {
        text.trim_end().as_bytes().to_vec()
    }),
    ("latin-1", |text| {
        let start = b"# -*- coding: latin-1 -*-\n# caf\xe9 \xff\nNAME = '\xe4\xf6\xfc'\n";
        [start, text.as_bytes()].concat()
    }),
    ("tabs, form feeds and trailing blanks", |text| {
        text.replace("    ", "\t")
            .replace('\n', "  \n")
            .replace("\n  \n", "\n\x0c\n")
            .into_bytes()
    }),
];

#[test]
fn only_digits_change_however_the_source_is_written() {
    for (name, spell) in SPELLINGS {
        eprintln!("{name}");
        let (env, backend, before) = one_backend(|it| {
            it.with_engine(spell(&engine_since_2026("2048")))
                .with_generate(spell(&stock_generate()))
        });
        for size in ["4096", "64", "131072"] {
            env.run([size]).exits(0);
            let engine = fs::read(backend.engine()).unwrap();
            assert_eq!(engine, spell(&engine_since_2026(size)));
            let now = fs::read(backend.generate()).unwrap();
            assert_eq!(now, spell(&generate(size, size, size)));
            env.run(["--check", size]).exits(0);
        }
        env.run(["--revert"]).exits(0);
        before.still_holds();
    }
}

#[test]
fn a_nul_byte_is_refused_wherever_it_stands() {
    for at in [0, 1, 60, stock_generate().len()] {
        let (env, backend, _) = two_backends();
        let mut source = stock_generate();
        source.insert(at, '\0');
        fs::write(backend.generate(), source).unwrap();
        let before = Before::of(env.user());
        for args in ["--check", "4096", "--dry-run"] {
            env.run([args])
                .fails("mlx_lm/generate.py: line")
                .says("a NUL byte, so this is not Python source");
        }
        only_the_good_one_changed(&before);
    }
}
