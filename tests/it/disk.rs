//! Disks that cannot or may not, one error at a time: what is fallen back on, what is said, and in which order.

use crate::support::home::{generate, usual_backend};
use crate::support::strace::{self, Call};
use crate::support::{Env, Ran, differences, snapshot};

const NAME: &str = "app-mlx-generate-mac14-arm64@34";

fn one_backend() -> Env {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    env
}

fn calls(args: &[&str]) -> Vec<Call> {
    strace::record(&one_backend(), args)
}

/// The first call of that kind with this in its text.
fn find(calls: &[Call], name: &str, text: &str) -> usize {
    let is_it = |call: &Call| call.name.starts_with(name) && call.text.contains(text);
    let found = calls.iter().position(is_it);
    found.unwrap_or_else(|| panic!("no {name} of {text}"))
}

#[test]
fn a_receipt_is_on_the_disk_before_the_first_edit() {
    if !strace::is_there() {
        return;
    }
    let calls = calls(&["-q", "4096"]);
    let synced = find(&calls, "fsync", ".cache_wrapper.py.lmpatch.lmpatch-tmp.");
    let named = find(&calls, "rename", "/cache_wrapper.py.lmpatch\"");
    let directory = find(&calls, "fsync", "/mlx_engine>");
    let edits = ["/cache_wrapper.py\"", "/generate.py\""];
    let edited = edits.map(|file| find(&calls, "rename", file));
    let order = [synced, named, directory];
    assert!(order.is_sorted(), "{order:?}");
    assert!(
        edited.iter().all(|edit| *edit > directory),
        "{order:?} {edited:?}"
    );
}

/// exFAT, SMB and NFS refuse some kinds of sync, and there is nothing to wait for then.
#[test]
fn a_disk_that_cannot_sync_is_no_error_and_nothing_is_lost() {
    if !strace::is_there() {
        return;
    }
    for error in ["ENOTTY", "EOPNOTSUPP", "EINVAL"] {
        for when in ["1", "2", "1+"] {
            let env = one_backend();
            let before = snapshot(&env.lmstudio());
            let tampering = format!("error={error}:when={when}");
            for (args, size) in [("4096", "4096"), ("8192", "8192")] {
                let (output, was_injected) = strace::inject(&env, "fsync", &tampering, &[args]);
                Ran::of(&output).exits(0).says("1 changed");
                assert!(was_injected);
                env.run(["--check", size]).exits(0);
            }
            let (output, _) = strace::inject(&env, "fsync", &tampering, &["--revert"]);
            Ran::of(&output).exits(0);
            assert_eq!(
                differences(&before, &snapshot(&env.lmstudio())),
                [""; 0],
                "{error} {when}"
            );
        }
    }
}

/// A disk that fails to sync is another matter.
#[test]
fn a_sync_that_fails_is_an_error() {
    if !strace::is_there() {
        return;
    }
    let env = one_backend();
    let before = snapshot(&env.lmstudio());
    let (output, _) = strace::inject(&env, "fsync", "error=EIO:when=1", &["4096"]);
    Ran::of(&output).exits(1).says("1 failed");
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
}

/// On macOS no chmod helps against that.
#[test]
fn eperm_is_told_as_privacy_and_eacces_as_permissions() {
    if !strace::is_there() {
        return;
    }
    let places = [
        ("openat", "/_amphibian\""),
        ("openat", "/_amphibian/"),
        ("openat", "/mlx_lm/generate.py\""),
        ("openat", ".generate.py.lmpatch-tmp."),
        ("rename", "/generate.py\""),
    ];
    let calls = calls(&["-q", "4096"]);
    for (name, text) in places {
        let call = &calls[find(&calls, name, text)];
        for (error, told, other) in [
            ("EPERM", "Full Disk Access", "chmod"),
            ("EACCES", "chmod", "Full Disk Access"),
        ] {
            let env = one_backend();
            let before = snapshot(&env.lmstudio());
            let tampering = format!("error={error}:when={}", call.occurrence);
            let (output, was_injected) =
                strace::inject(&env, &call.name, &tampering, &["-q", "4096"]);
            let ran = Ran::of(&output);
            assert!(was_injected, "{text}");
            let ran = ran.exits(1).says(told).says_nothing_of(other);
            if error == "EPERM" {
                ran.says("System Settings → Privacy & Security")
                    .says("Removable Volumes")
                    .says("chflags nouchg");
            }
            assert_eq!(
                differences(&before, &snapshot(&env.lmstudio())),
                [""; 0],
                "{text}"
            );
            env.run(["4096"]).exits(0);
            let backend = env
                .amphibian()
                .join(NAME)
                .join(crate::support::home::SITE_PACKAGES);
            let now = std::fs::read_to_string(backend.join("mlx_lm/generate.py")).unwrap();
            assert_eq!(now, generate("4096", "4096", "4096"));
        }
    }
}

/// exFAT, SMB and NFS have no rename that refuses to replace: none is used, and no hard link instead of it.
#[test]
fn no_exclusive_rename_is_needed() {
    if !strace::is_there() {
        return;
    }
    for call in ["renameat2", "linkat"] {
        let env = one_backend();
        let before = snapshot(&env.lmstudio());
        for args in ["4096", "8192", "--revert"] {
            let (output, was_injected) =
                strace::inject(&env, call, "error=EOPNOTSUPP:when=1+", &[args]);
            Ran::of(&output).exits(0).says("1 changed");
            assert!(!was_injected, "{call} is used");
        }
        assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);
    }
}
