//! Hostile files: what may stand where a vendor file should be.

mod bytes;
mod links;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::support::child::identity;
use crate::support::home::{BackendDir, engine_since_2026, stock_generate};
use crate::support::{Before, Env, Ran, mkfifo, skipped};

const BAD: &str = "app-mlx-generate-mac14-arm64@1";
const GOOD: &str = "app-mlx-generate-mac14-arm64@2";

/// A home with a usual backend, which is to go bad, and another usual one beside it.
fn two_backends() -> (Env, BackendDir, BackendDir) {
    let env = Env::new();
    let bad = env.backend(BAD).with_bytecode("mlx_lm", "generate");
    let good = env.backend(GOOD);
    (env, bad, good)
}

/// Nothing differs but what is in the good backend.
#[track_caller]
fn only_the_good_one_changed(before: &Before) {
    let changed = before.changes();
    let is_good = |path: &String| path.contains(GOOD);
    assert!(changed.iter().all(is_good), "{changed:?}");
}

/// The backend of `path` is refused by every kind of run, in words that have the path, `what` and a next step; it
/// stays as it is, and the other backend is served all the same.
#[track_caller]
fn assert_refused(env: &Env, path: &Path, what: &str, good: &BackendDir) {
    let (before, identity_before) = (Before::of(env.user()), identity(path).unwrap());
    let told = |ran: Ran| {
        ran.fails(path.to_str().unwrap())
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
        told(env.run(args));
        before.still_holds();
    }
    told(env.run(["4096"]));
    only_the_good_one_changed(&before);
    assert_eq!(identity(path).unwrap(), identity_before);
    good.is_set_to("4096");
    told(env.run(["--revert", "--json"]));
    assert_eq!(identity(path).unwrap(), identity_before);
    before.still_holds();
}

type Put = fn(&Env, &Path);

/// What may stand where a vendor file was, and the words for each.
const PLACED: [(&str, Put); 8] = [
    ("is not a regular file", |_, path| mkfifo(path)),
    ("is not a regular file", |_, path| {
        fs::create_dir(path).unwrap();
    }),
    ("is not a regular file", |_, path| {
        // The numbers of /dev/zero, which never ends.
        let mut mknod = Command::new("mknod");
        _ = mknod.arg(path).args(["c", "1", "5"]).output();
    }),
    ("is not a regular file", |env, path| {
        // The path of a socket that is bound must be short.
        let short = env.user().join("socket");
        drop(UnixListener::bind(&short).unwrap());
        fs::rename(&short, path).unwrap();
    }),
    ("is a link to ", |_, path| {
        symlink("nothing-here.py", path).unwrap();
    }),
    ("is a link to ", |_, path| {
        symlink(path.file_name().unwrap(), path).unwrap();
    }),
    ("is a link to ", |env, path| {
        let outside = env.user().join("elsewhere.py");
        fs::write(&outside, engine_since_2026("2048") + &stock_generate()).unwrap();
        symlink(outside, path).unwrap();
    }),
    ("is a link to ", |env, path| {
        let neighbour = BackendDir::new(&env.lmstudio(), GOOD);
        symlink(neighbour.generate(), path).unwrap();
    }),
];

#[test]
fn what_is_no_file_of_the_backend_is_refused_and_kept() {
    for (what, put) in PLACED {
        eprintln!("{what}");
        for file in [BackendDir::engine, BackendDir::generate] {
            let (env, bad, good) = two_backends();
            let path = file(&bad);
            fs::remove_file(&path).unwrap();
            put(&env, &path);
            if identity(&path).is_err() {
                skipped("mknod is not allowed here; it takes root");
                continue;
            }
            assert_refused(&env, &path, what, &good);
        }
    }
}
