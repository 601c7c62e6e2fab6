//! Hostile files: what may stand where a vendor file should be, and links, sizes and bytes of all kinds.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::child::{finish, has_tool, identity};
use crate::support::home::{
    BackendDir, engine_since_2026, generate, stock_generate, usual_backend,
};
use crate::support::skipped;
use crate::support::{Env, Ran, differences, snapshot};

const BAD: &str = "app-mlx-generate-mac14-arm64@1";
const GOOD: &str = "app-mlx-generate-mac14-arm64@2";
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A home with a usual backend, which is to go bad, and another usual one beside it.
fn two_backends() -> (Env, BackendDir, BackendDir) {
    let env = Env::new();
    let bad = usual_backend(&env.lmstudio(), BAD).with_bytecode("mlx_lm", "generate");
    let good = usual_backend(&env.lmstudio(), GOOD);
    (env, bad, good)
}

/// The backend of `path` is refused by every kind of run, in words that have the path, `what` and a next step; it
/// stays as it is, and the other backend is served all the same.
#[track_caller]
fn assert_refused(env: &Env, path: &Path, what: &str, good: &BackendDir) {
    let (before, identity_before) = (snapshot(&env.user()), identity(path).unwrap());
    let told = |ran: Ran| {
        ran.exits(1)
            .says(path.to_str().unwrap())
            .says(what)
            .says("reinstall the runtime in LM Studio");
    };
    for args in [
        &["--check"][..],
        &["--check", "--json"],
        &["--dry-run"],
        &["--dry-run", "--json"],
        &["--revert"],
    ] {
        told(env.finish(args));
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{what}: {args:?}"
        );
    }
    let elsewhere = |ran: Ran| {
        told(ran);
        let changed = differences(&before, &snapshot(&env.user()));
        assert!(
            changed.iter().all(|path| path.contains(GOOD)),
            "{what}: {changed:?}"
        );
        assert_eq!(identity(path).unwrap(), identity_before, "{what}");
    };
    elsewhere(env.finish(["4096"]));
    assert_eq!(
        fs::read_to_string(good.engine()).unwrap(),
        engine_since_2026("4096")
    );
    assert_eq!(
        fs::read_to_string(good.generate()).unwrap(),
        generate("4096", "4096", "4096")
    );
    elsewhere(env.finish(["--revert", "--json"]));
    assert_eq!(
        differences(&before, &snapshot(&env.user())),
        [""; 0],
        "{what}"
    );
}

/// Puts something else where each of the two vendor files was, and sees it refused.
#[track_caller]
fn assert_refused_in_place(what: &str, put: impl Fn(&Env, &Path) -> bool) {
    for pick in [BackendDir::engine, BackendDir::generate] {
        let (env, bad, good) = two_backends();
        let path = pick(&bad);
        fs::remove_file(&path).unwrap();
        if put(&env, &path) {
            assert_refused(&env, &path, what, &good);
        }
    }
}

fn run_tool(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .output()
        .is_ok_and(|output| output.status.success())
}

#[test]
fn a_fifo_is_refused_without_waiting_for_a_writer() {
    assert_refused_in_place("is a FIFO, not a regular file", |_, path| {
        assert!(run_tool("mkfifo", &[path.to_str().unwrap()]));
        true
    });
}

#[test]
fn a_directory_is_refused() {
    assert_refused_in_place("is a directory, not a regular file", |_, path| {
        fs::create_dir(path).is_ok()
    });
}

#[test]
fn a_device_is_refused_without_reading_it() {
    assert_refused_in_place("is a device, not a regular file", |_, path| {
        // The numbers of /dev/zero, which never ends.
        let made = run_tool("mknod", &[path.to_str().unwrap(), "c", "1", "5"]);
        if !made {
            skipped("mknod is not allowed here; it takes root");
        }
        made
    });
}

#[test]
fn a_socket_is_refused() {
    assert_refused_in_place("is a socket, not a regular file", |env, path| {
        // The path of a socket that is bound must be short.
        let short = env.user().join("socket");
        drop(UnixListener::bind(&short).unwrap());
        fs::rename(&short, path).is_ok()
    });
}

#[test]
fn a_dangling_link_is_refused() {
    assert_refused_in_place("is a link that leads nowhere", |_, path| {
        symlink("nothing-here.py", path).is_ok()
    });
}

#[test]
fn a_link_loop_is_refused() {
    assert_refused_in_place("symbolic links", |_, path| {
        symlink(path.file_name().unwrap(), path).is_ok()
    });
}

#[test]
fn a_link_out_of_the_backend_is_refused_and_its_target_kept() {
    assert_refused_in_place("is a link out of its backend, to ", |env, path| {
        let outside = env.user().join("elsewhere.py");
        fs::write(&outside, engine_since_2026("2048") + &stock_generate()).unwrap();
        symlink(outside, path).is_ok()
    });
    assert_refused_in_place("is a link out of its backend, to ", |env, path| {
        let neighbour = env
            .amphibian()
            .join(GOOD)
            .join("lib/python3.11/site-packages/mlx_lm/generate.py");
        symlink(neighbour, path).is_ok()
    });
}

#[test]
fn a_link_inside_the_backend_is_followed_and_kept() {
    let (env, backend, _) = two_backends();
    let target = backend.path("mlx_lm/real_generate.py");
    fs::rename(backend.generate(), &target).unwrap();
    symlink("real_generate.py", backend.generate()).unwrap();
    let before = snapshot(&env.user());
    env.finish(["4096"]).exits(0);
    assert_eq!(
        fs::read_link(backend.generate()).unwrap(),
        Path::new("real_generate.py")
    );
    assert_eq!(
        fs::read_to_string(&target).unwrap(),
        generate("4096", "4096", "4096")
    );
    assert!(!fs::symlink_metadata(&target).unwrap().is_symlink());
    env.finish(["--revert"]).exits(0);
    assert_only_bytecode_is_gone(&differences(&before, &snapshot(&env.user())));
}

/// What is left after set and revert: Python's caches of the edited file, which it writes anew.
#[track_caller]
fn assert_only_bytecode_is_gone(differences: &[String]) {
    let is_cache = |path: &String| path.contains("__pycache__/generate.cpython-3");
    assert!(differences.iter().all(is_cache), "{differences:?}");
}

/// Moves `path` to another place in the user's home and leaves a link to it.
fn move_and_link(env: &Env, path: &Path) -> PathBuf {
    let disk = env.user().join("other disk");
    fs::create_dir_all(&disk).unwrap();
    let moved = disk.join(path.file_name().unwrap());
    fs::rename(path, &moved).unwrap();
    symlink(&moved, path).unwrap();
    moved
}

#[test]
fn links_in_place_of_a_backend_the_backends_or_the_home_are_followed_and_kept() {
    let places: [fn(&Env) -> PathBuf; 4] = [
        |env| env.amphibian().join(BAD),
        Env::amphibian,
        |env| env.lmstudio().join("extensions"),
        Env::lmstudio,
    ];
    for place in places {
        let (env, backend, _) = two_backends();
        let path = place(&env);
        let moved = move_and_link(&env, &path);
        let before = snapshot(&env.user());
        env.finish(["--check", "2048"]).exits(0);
        env.finish(["4096"]).exits(0).says("2 backends: 2 changed");
        assert_eq!(fs::read_link(&path).unwrap(), moved);
        assert_eq!(
            fs::read_to_string(backend.generate()).unwrap(),
            generate("4096", "4096", "4096")
        );
        env.finish(["--revert"]).exits(0);
        assert_only_bytecode_is_gone(&differences(&before, &snapshot(&env.user())));
    }
}

#[test]
fn two_backends_that_are_links_to_the_same_directory_are_set_and_reverted_once() {
    let (env, backend, _) = two_backends();
    let moved = move_and_link(&env, &backend.root);
    symlink(
        moved,
        env.amphibian().join("app-mlx-generate-mac14-arm64@3"),
    )
    .unwrap();
    let before = snapshot(&env.user());
    for size in ["4096", "8192"] {
        env.finish([size]).exits(0).says("3 backends: 3 changed");
        assert_eq!(
            fs::read_to_string(backend.engine()).unwrap(),
            engine_since_2026(size)
        );
        env.finish(["--check", size]).exits(0);
    }
    env.finish(["--revert"])
        .exits(0)
        .says("3 backends: 3 changed");
    assert_only_bytecode_is_gone(&differences(&before, &snapshot(&env.user())));
}

#[test]
fn a_backend_whose_link_leads_nowhere_is_named() {
    let (env, backend, _) = two_backends();
    let moved = move_and_link(&env, &backend.root);
    fs::remove_dir_all(&moved).unwrap();
    let before = snapshot(&env.user());
    env.finish(["--check"])
        .exits(1)
        .says(backend.root.to_str().unwrap())
        .says("is its disk connected?");
    env.finish(["--revert"])
        .exits(1)
        .says(backend.root.to_str().unwrap());
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
}

#[test]
fn a_bytecode_directory_that_is_a_link_stops_the_edit() {
    let (env, backend, good) = two_backends();
    let cache = backend.path("mlx_lm/__pycache__");
    let moved = move_and_link(&env, &cache);
    let before = snapshot(&env.user());
    env.finish(["4096"])
        .exits(1)
        .says(cache.to_str().unwrap())
        .says("is a link; remove it");
    let changed = differences(&before, &snapshot(&env.user()));
    assert!(
        changed.iter().all(|path| path.contains(GOOD)),
        "{changed:?}"
    );
    assert_eq!(fs::read_dir(moved).unwrap().count(), 6);
    assert_eq!(
        fs::read_to_string(good.engine()).unwrap(),
        engine_since_2026("4096")
    );
}

#[test]
fn a_directory_named_like_bytecode_is_passed_over_as_python_does() {
    let (env, backend, _) = two_backends();
    let cached = backend.path("mlx_lm/__pycache__/generate.cpython-311.pyc");
    fs::remove_file(&cached).unwrap();
    fs::create_dir(&cached).unwrap();
    fs::write(cached.join("not-ours"), "kept").unwrap();
    env.finish(["4096"]).exits(0);
    assert_eq!(fs::read_to_string(cached.join("not-ours")).unwrap(), "kept");
    assert_eq!(
        fs::read_to_string(backend.generate()).unwrap(),
        generate("4096", "4096", "4096")
    );
    assert!(
        !backend
            .path("mlx_lm/__pycache__/generate.cpython-313.pyc")
            .exists()
    );
}

#[test]
fn a_file_of_three_gibibytes_is_refused_by_its_size_and_never_opened() {
    let (env, backend, good) = two_backends();
    let path = backend.generate();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(3 << 30)
        .unwrap();
    assert_refused(
        &env,
        &path,
        "has 3221225472 bytes, more than the limit of 16777216",
        &good,
    );
    if !has_tool("strace") {
        return;
    }
    let log = env.user().join("calls");
    let mut traced = Command::new("strace");
    env.isolate(&mut traced).args([
        "-f",
        "-e",
        "trace=openat,read,mmap",
        "-y",
        "-s",
        "4096",
        "-o",
    ]);
    traced.arg(&log).arg(crate::support::LMPATCH).arg("4096");
    finish(&mut traced).exits(1);
    let calls = fs::read_to_string(log).unwrap();
    assert!(
        calls.contains(good.generate().to_str().unwrap()),
        "the trace names no vendor file: {calls}"
    );
    let touched: Vec<_> = calls
        .lines()
        .filter(|call| call.contains(path.to_str().unwrap()))
        .collect();
    assert_eq!(touched, [""; 0]);
}

/// `source` followed by one long comment, exactly `size` bytes.
fn padded(source: &str, size: usize) -> Vec<u8> {
    let mut bytes = source.as_bytes().to_vec();
    bytes.resize(size - 1, b'#');
    bytes.push(b'\n');
    bytes
}

#[test]
fn a_file_just_over_the_limit_is_refused_and_one_at_it_is_edited() {
    let (env, backend, good) = two_backends();
    fs::write(backend.generate(), padded(&stock_generate(), MAX_BYTES + 1)).unwrap();
    assert_refused(&env, &backend.generate(), "has 16777217 bytes", &good);

    let before = padded(&stock_generate(), MAX_BYTES - 1);
    fs::write(backend.generate(), &before).unwrap();
    env.finish(["8192"]).exits(0);
    let after = fs::read(backend.generate()).unwrap();
    let patched = generate("8192", "8192", "8192");
    assert!(
        after.starts_with(patched.as_bytes())
            && after[patched.len()..] == before[stock_generate().len()..]
    );
}

#[test]
fn a_file_that_the_edit_would_bring_over_the_limit_is_refused_before_it() {
    let (env, backend, good) = two_backends();
    // The one that ships with 512 needs a digit more.
    fs::write(backend.generate(), padded(&stock_generate(), MAX_BYTES)).unwrap();
    let before = snapshot(&env.user());
    for args in [&["8192"][..], &["8192", "--dry-run"]] {
        env.finish(args)
            .exits(1)
            .says(BAD)
            .says("mlx_lm/generate.py")
            .says("16777216")
            .says("a shorter number");
        let changed = differences(&before, &snapshot(&env.user()));
        assert!(
            changed.iter().all(|path| path.contains(GOOD)),
            "{changed:?}"
        );
    }
    assert_eq!(
        fs::read_to_string(good.engine()).unwrap(),
        engine_since_2026("8192")
    );
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
        [
            b"# -*- coding: latin-1 -*-\n# caf\xe9 \xff\nNAME = '\xe4\xf6\xfc'\n",
            text.as_bytes(),
        ]
        .concat()
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
        let env = Env::new();
        let backend = BackendDir::new(&env.lmstudio(), GOOD)
            .with_engine(spell(&engine_since_2026("2048")))
            .with_generate(spell(&stock_generate()));
        let before = snapshot(&env.user());
        for size in ["4096", "64", "131072"] {
            env.finish([size]).exits(0);
            assert_eq!(
                fs::read(backend.engine()).unwrap(),
                spell(&engine_since_2026(size)),
                "{name}"
            );
            assert_eq!(
                fs::read(backend.generate()).unwrap(),
                spell(&generate(size, size, size)),
                "{name}"
            );
            env.finish(["--check", size]).exits(0);
        }
        env.finish(["--revert"]).exits(0);
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{name}"
        );
    }
}

#[test]
fn a_nul_byte_is_refused_wherever_it_stands() {
    for at in [0, 1, 60, stock_generate().len()] {
        let (env, backend, _) = two_backends();
        let mut bytes = stock_generate().into_bytes();
        bytes.insert(at, 0);
        fs::write(backend.generate(), bytes).unwrap();
        let before = snapshot(&env.user());
        for args in [&["--check"][..], &["4096"], &["--dry-run"]] {
            env.finish(args)
                .exits(1)
                .says("mlx_lm/generate.py: line")
                .says("a NUL byte, so this is not Python source");
        }
        let changed = differences(&before, &snapshot(&env.user()));
        assert!(
            changed.iter().all(|path| path.contains(GOOD)),
            "{changed:?}"
        );
    }
}
