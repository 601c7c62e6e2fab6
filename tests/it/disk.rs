//! Disks that cannot or may not, one error at a time: what is fallen back on, what is said, and in which order.

use crate::support::home::{self, BackendDir, engine_since_2026};
use crate::support::strace::{self, Call};
use crate::support::{Before, Env, Ran, text};

/// A home of one backend, and as it is before anything is run; none where strace is missing.
fn one() -> Option<(Env, BackendDir, Before)> {
    strace::is_there().then(|| {
        let (env, backend, _) = home::one_backend(BackendDir::usual);
        let before = Before::of(env.lmstudio());
        (env, backend, before)
    })
}

/// Runs lmpatch while a call is tampered with, which has to happen.
#[track_caller]
fn tampered(env: &Env, call: &str, tampering: &str, args: &[&str]) -> Ran {
    let (output, was_injected) = strace::inject(env, call, tampering, args);
    assert!(was_injected, "no {call} {tampering}: {output:?}");
    Ran::of(&output)
}

/// The first call of that kind with this in its text.
#[track_caller]
fn find(calls: &[Call], name: &str, text: &str) -> usize {
    let is_it = |call: &Call| call.name.starts_with(name) && call.text.contains(text);
    let found = calls.iter().position(is_it);
    found.unwrap_or_else(|| panic!("no {name} of {text}"))
}

#[test]
fn a_receipt_is_on_the_disk_before_the_first_edit() {
    let Some((env, ..)) = one() else { return };
    let calls = strace::record(&env, &["-q", "4096"]);
    let synced = find(&calls, "fsync", "/mlx_engine/.lmpatch-tmp.");
    let named = find(&calls, "rename", "/cache_wrapper.py.lmpatch\"");
    let directory = find(&calls, "fsync", "/mlx_engine>");
    for edit in ["/cache_wrapper.py\"", "/generate.py\""] {
        let order = [synced, named, directory, find(&calls, "rename", edit)];
        assert!(order.is_sorted(), "{order:?}");
    }
}

/// exFAT, SMB and NFS refuse some kinds of sync, and there is nothing to wait for then.
#[test]
fn a_disk_that_cannot_sync_is_no_error_and_nothing_is_lost() {
    for error in ["ENOTTY", "EOPNOTSUPP", "EINVAL"] {
        for when in ["1", "2", "1+"] {
            let Some((env, _, before)) = one() else {
                return;
            };
            let tampering = format!("error={error}:when={when}");
            for size in ["4096", "8192"] {
                tampered(&env, "fsync", &tampering, &[size]).tells("1 changed");
                env.run(["--check", size]).exits(0);
            }
            tampered(&env, "fsync", &tampering, &["--revert"]).exits(0);
            before.still_holds();
        }
    }
}

#[test]
fn a_sync_that_fails_is_an_error() {
    let Some((env, _, before)) = one() else {
        return;
    };
    tampered(&env, "fsync", "error=EIO:when=1", &["4096"]).fails("1 failed");
    before.still_holds();
}

#[test]
fn a_leftover_that_cannot_be_removed_is_told_and_nothing_is_changed() {
    let Some((env, backend, _)) = one() else {
        return;
    };
    let backend = backend.write("mlx_lm/.lmpatch-tmp.1", "left over");
    let before = Before::of(env.lmstudio());
    let ran = tampered(&env, "?unlink,unlinkat", "error=EIO", &["4096"]);
    ran.fails("cannot remove files from")
        .says(backend.path("mlx_lm").to_str().unwrap());
    before.still_holds();
    env.run(["4096"]).exits(0);
    backend.is_set_to("4096");
    assert!(!backend.path("mlx_lm/.lmpatch-tmp.1").exists());
}

#[test]
fn a_receipt_that_cannot_be_removed_is_told_and_the_files_are_as_wanted() {
    let Some((env, backend, _)) = one() else {
        return;
    };
    env.run(["4096"]).exits(0);
    tampered(&env, "?unlink,unlinkat", "error=EIO", &["--revert"])
        .fails("its files are as wanted, but a receipt is not removed");
    assert_eq!(text(backend.engine()), engine_since_2026("2048"));
    env.run(["--revert"]).exits(0);
    assert!(!backend.path("mlx_engine/cache_wrapper.py.lmpatch").exists());
}

/// On macOS no chmod helps against that.
#[test]
fn eperm_is_told_as_privacy_and_eacces_as_permissions() {
    let Some((env, ..)) = one() else { return };
    let calls = strace::record(&env, &["-q", "4096"]);
    for (name, text) in [
        ("openat", "/_amphibian\""),
        ("openat", "/_amphibian/"),
        ("openat", "/mlx_lm/generate.py\""),
        ("openat", "/mlx_lm/.lmpatch-tmp."),
        ("rename", "/generate.py\""),
    ] {
        let call = &calls[find(&calls, name, text)];
        for (error, told, other) in [
            ("EPERM", "Full Disk Access", "chmod"),
            ("EACCES", "chmod", "Full Disk Access"),
        ] {
            eprintln!("{error} in {name} of {text}");
            let Some((env, backend, before)) = one() else {
                return;
            };
            let tampering = format!("error={error}:when={}", call.occurrence);
            let ran = tampered(&env, &call.name, &tampering, &["-q", "4096"]);
            let ran = ran.fails(told).says_nothing_of(other);
            if error == "EPERM" {
                ran.says("System Settings → Privacy & Security")
                    .says("Removable Volumes")
                    .says("chflags nouchg");
            }
            before.still_holds();
            env.run(["4096"]).exits(0);
            backend.is_set_to("4096");
        }
    }
}

/// exFAT, SMB and NFS have no rename that refuses to replace: none is used, and no hard link instead of it.
#[test]
fn no_exclusive_rename_is_needed() {
    for call in ["renameat2", "linkat"] {
        let Some((env, _, before)) = one() else {
            return;
        };
        for args in ["4096", "8192", "--revert"] {
            let (output, was_injected) =
                strace::inject(&env, call, "error=EOPNOTSUPP:when=1+", &[args]);
            Ran::of(&output).tells("1 changed");
            assert!(!was_injected, "{call} is used");
        }
        before.still_holds();
    }
}
