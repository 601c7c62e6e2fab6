//! What proves the vendor's bytes, gone bad: rows of RECORD, and saved copies that were tampered with.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::home::{Layer, engine_since_2026, generate, record_row, stock_generate, usual_layer};
use support::{Env, differences, snapshot};

const LAYER: &str = "app-mlx-generate-mac14-arm64@34";

/// One backend whose mlx-lm says 4096 and has this `RECORD`.
fn patched_with_record(record: impl AsRef<[u8]>) -> (Env, Layer) {
    let env = Env::new();
    let layer = Layer::new(&env.lmstudio(), LAYER)
        .with_generate(generate("4096", "4096", "4096"))
        .write("mlx_lm-0.0.1.dist-info/RECORD", record);
    (env, layer)
}

fn good_row() -> String {
    record_row("mlx_lm/generate.py", stock_generate().as_bytes())
}

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
        record_row("mlx_lm/generate.py", b"something else"),
    ] {
        assert_no_proof(&record);
    }
    let huge = format!("{row}\n{}", "x\n".repeat(17 << 19));
    assert!(huge.len() > 17 << 20);
    assert_no_proof(huge);
}

/// The vendor's bytes cannot be told: a revert says so and changes nothing, and a number still works.
#[track_caller]
fn assert_no_proof(record: impl AsRef<[u8]>) {
    let shown =
        String::from_utf8_lossy(&record.as_ref()[..record.as_ref().len().min(200)]).into_owned();
    let (env, layer) = patched_with_record(record);
    let before = snapshot(&env.user());
    assert_eq!(
        env.json(["--check"])["backends"][0]["files"][0]["original"],
        "unknown",
        "{shown}"
    );
    for args in [&["--revert"][..], &["--revert", "--dry-run"]] {
        env.finish(args)
            .exits(1)
            .says("mlx_lm/generate.py")
            .says("the vendor's bytes are not known");
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{shown}"
        );
    }
    env.finish(["8192"]).exits(0);
    assert_eq!(
        fs::read_to_string(layer.generate()).unwrap(),
        generate("8192", "8192", "8192")
    );
}

#[test]
fn a_good_row_proves_whatever_stands_around_it() {
    let row = good_row();
    let quoted = row.replacen("mlx_lm/generate.py", "\"mlx_lm/generate.py\"", 1);
    for record in [
        row.clone().into_bytes(),
        format!("{row}\n").into_bytes(),
        format!("a,b,c\r\n{row}\r\nd\r\n").into_bytes(),
        format!("a,b,c\r{row}\rd\r").into_bytes(),
        format!("{quoted}\n").into_bytes(),
        [
            b"\xff\xfe,sha256=\xff,1\n\0\0\n,,,,,,,\n\"\n",
            row.as_bytes(),
        ]
        .concat(),
        format!(
            "{}\n{row}",
            record_row("mlx_lm/generate.py", b"something else")
        )
        .into_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&record).into_owned();
        let (env, layer) = patched_with_record(&record);
        assert_eq!(
            env.json(["--check"])["backends"][0]["files"][0]["original"],
            "record",
            "{shown}"
        );
        env.finish(["--revert"]).exits(0);
        assert_eq!(
            fs::read_to_string(layer.generate()).unwrap(),
            stock_generate(),
            "{shown}"
        );
        assert_eq!(
            fs::read(layer.path("mlx_lm-0.0.1.dist-info/RECORD")).unwrap(),
            record
        );
    }
}

/// One backend of an engine that nothing proves but the copy that lmpatch saved, set to 4096; and that copy.
fn saved() -> (Env, Layer, PathBuf) {
    let env = Env::new();
    let layer = Layer::new(&env.lmstudio(), LAYER).with_engine(engine_since_2026("2048"));
    env.finish(["4096"]).exits(0);
    let entries = fs::read_dir(layer.path("mlx_engine"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let copies: Vec<_> = entries.filter(|path| *path != layer.engine()).collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    (env, layer, copies[0].clone())
}

#[test]
fn a_saved_copy_that_was_tampered_with_is_not_used_and_said() {
    let tamper: [fn(&Path); 7] = [
        |copy| fs::write(copy, engine_since_2026("512")).unwrap(),
        |copy| fs::write(copy, engine_since_2026("2048") + "# more\n").unwrap(),
        |copy| fs::write(copy, "").unwrap(),
        |copy| {
            File::options()
                .write(true)
                .open(copy)
                .unwrap()
                .set_len(3 << 30)
                .unwrap()
        },
        |copy| {
            fs::remove_file(copy)
                .and_then(|()| fs::create_dir(copy))
                .unwrap()
        },
        |copy| {
            fs::remove_file(copy)
                .and_then(|()| symlink("cache_wrapper.py", copy))
                .unwrap()
        },
        |copy| {
            fs::remove_file(copy).unwrap();
            assert!(Command::new("mkfifo").arg(copy).status().unwrap().success());
        },
    ];
    for (number, tamper) in tamper.into_iter().enumerate() {
        let (env, layer, copy) = saved();
        tamper(&copy);
        let before = snapshot(&env.user());
        assert_eq!(
            env.json(["--check"])["backends"][0]["files"][0]["original"],
            "unknown",
            "{number}"
        );
        for args in [
            &["--revert"][..],
            &["--revert", "--dry-run"],
            &["--revert", "--json"],
        ] {
            let ran = env
                .finish(args)
                .exits(1)
                .says(copy.to_str().unwrap())
                .says("is not what its name says");
            ran.says("the vendor's bytes are not known")
                .says("reinstall the runtime");
            assert_eq!(
                differences(&before, &snapshot(&env.user())),
                [""; 0],
                "{number}"
            );
        }
        assert_eq!(
            fs::read_to_string(layer.engine()).unwrap(),
            engine_since_2026("4096")
        );
    }
}

#[test]
fn a_tampered_copy_is_never_overwritten_nor_taken_for_saved() {
    let (env, layer, copy) = saved();
    fs::write(&copy, engine_since_2026("512")).unwrap();
    fs::write(layer.engine(), engine_since_2026("2048")).unwrap();
    let before = snapshot(&env.user());
    env.finish(["4096"])
        .exits(1)
        .says(copy.to_str().unwrap())
        .says("move it away and run lmpatch again");
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
}

#[test]
fn a_tampered_copy_does_no_harm_where_record_proves_the_original() {
    let env = Env::new();
    let layer = usual_layer(&env.lmstudio(), LAYER);
    let before = snapshot(&env.user());
    env.finish(["4096"]).exits(0);
    let name = format!("mlx_lm/generate.py.lmpatch-original.{}", "0".repeat(64));
    let layer = layer.write(&name, generate("64", "64", "64"));
    env.finish(["--revert"]).exits(0);
    assert_eq!(
        fs::read_to_string(layer.generate()).unwrap(),
        stock_generate()
    );
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
}

#[test]
fn a_file_whose_saved_copy_was_tampered_with_is_not_saved_as_an_original() {
    let env = Env::new();
    let layer = usual_layer(&env.lmstudio(), LAYER);
    env.run(["8192"]).exits(0);
    let directory = layer.path("mlx_engine");
    let is_copy = |path: &PathBuf| path.to_string_lossy().contains("lmpatch-original");
    let copies = || {
        fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(is_copy)
            .collect::<Vec<_>>()
    };
    let copy = copies().pop().unwrap();
    fs::write(&copy, fs::read_to_string(&copy).unwrap() + " ").unwrap();
    env.run(["4096"]).exits(0);
    assert_eq!(copies(), std::slice::from_ref(&copy));
    env.run(["--revert"])
        .exits(1)
        .says("is not what its name says")
        .says(copy.to_str().unwrap());
    assert!(
        fs::read_to_string(layer.engine())
            .unwrap()
            .contains("= 4096")
    );
}
