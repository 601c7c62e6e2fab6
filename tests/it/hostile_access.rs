//! Files, directories and streams that say no: permissions, owners, full disks, readers that went away.

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::child::{finish, finish_into, while_mode};
use crate::support::home::{BackendDir, engine_since_2026, generate, usual_backend};
use crate::support::skipped;
use crate::support::{Env, LMPATCH, differences, snapshot};
use serde_json::Value;

const BACKEND: &str = "app-mlx-generate-mac14-arm64@34";

/// A home with one usual backend that belongs to an ordinary user.
fn one_backend() -> (Env, BackendDir) {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), BACKEND).with_bytecode("mlx_lm", "generate");
    env.hand_over();
    (env, backend)
}

/// While `pick` has `mode`, an ordinary user's run with each of `commands` fails, in words that have its path and
/// `fix`, and changes nothing.
#[track_caller]
fn assert_denied(
    pick: impl Fn(&Env, &BackendDir) -> PathBuf,
    mode: u32,
    commands: &[&[&str]],
    fix: &str,
) {
    let (env, backend) = one_backend();
    let path = pick(&env, &backend);
    let before = snapshot(&env.user());
    for args in commands {
        let ran = while_mode(&path, mode, || finish(&mut env.ordinary(*args)));
        ran.exits(1).says(path.to_str().unwrap()).says(fix);
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{args:?}"
        );
    }
    finish(&mut env.ordinary(["4096"])).exits(0);
}

const WRITING: [&[&str]; 3] = [&["4096"], &["8192", "--json"], &["4096", "--quiet"]];
const ANY: [&[&str]; 5] = [
    &["--check"],
    &["--check", "--json"],
    &["4096"],
    &["--dry-run"],
    &["--revert"],
];

#[test]
fn read_only_files_are_named_with_the_fix() {
    for pick in [BackendDir::engine, BackendDir::generate] {
        assert_denied(|_, backend| pick(backend), 0o444, &WRITING, "chmod u+w");
    }
}

#[test]
fn read_only_directories_are_named_with_the_fix() {
    for directory in ["mlx_engine", "mlx_lm", "mlx_lm/__pycache__"] {
        assert_denied(
            |_, backend| backend.path(directory),
            0o555,
            &WRITING,
            "chmod u+rwx",
        );
    }
    let (env, backend) = one_backend();
    let closed = backend.path("mlx_lm");
    let dry_run = || finish(&mut env.ordinary(["4096", "--dry-run"]));
    let ran = while_mode(&closed, 0o555, dry_run);
    ran.exits(1)
        .says("cannot write in ")
        .says("1 backend: 1 failed");
}

#[test]
fn unreadable_files_are_named_with_the_fix() {
    for pick in [BackendDir::engine, BackendDir::generate] {
        for mode in [0o000, 0o200] {
            assert_denied(|_, backend| pick(backend), mode, &ANY, "chmod u+r");
        }
    }
}

#[test]
fn unreadable_directories_of_a_backend_are_named_with_the_fix() {
    let site_packages = "lib/python3.11/site-packages";
    for package in ["mlx_engine", "mlx_lm"] {
        assert_denied(
            |_, backend| backend.path(package),
            0o000,
            &ANY,
            "chmod u+rwx",
        );
    }
    for directory in [site_packages, "lib/python3.11", "lib", ""] {
        assert_denied(
            |_, backend| backend.root.join(directory).components().collect(),
            0o000,
            &ANY,
            "chmod u+rwx",
        );
    }
}

#[test]
fn unreadable_directories_above_the_backends_are_named_with_the_fix() {
    for above in [
        "extensions/backends/vendor/_amphibian",
        "extensions/backends/vendor",
        "extensions",
        "",
    ] {
        assert_denied(
            |env, _| env.lmstudio().join(above).components().collect(),
            0o000,
            &ANY,
            "chmod u+rwx",
        );
    }
}

#[test]
fn an_unreadable_bytecode_directory_is_named_with_the_fix() {
    assert_denied(
        |_, backend| backend.path("mlx_lm/__pycache__"),
        0o000,
        &WRITING,
        "chmod u+rwx",
    );
}

#[test]
fn a_file_that_can_only_be_read_by_its_group_is_no_reason_to_lose_its_mode() {
    for mode in [0o640, 0o600, 0o664, 0o755, 0o4755] {
        let (env, backend) = one_backend();
        for path in [backend.engine(), backend.generate()] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let before = snapshot(&backend.path("mlx_engine"));
        finish(&mut env.ordinary(["4096"])).exits(0);
        for path in [backend.engine(), backend.generate()] {
            assert_eq!(
                fs::metadata(&path).unwrap().mode() & 0o7777,
                mode,
                "{}",
                path.display()
            );
        }
        finish(&mut env.ordinary(["--revert"])).exits(0);
        assert_eq!(
            differences(&before, &snapshot(&backend.path("mlx_engine"))),
            [""; 0],
            "{mode:o}"
        );
    }
}

#[test]
fn an_odd_owner_is_kept_by_root_and_respected_by_others() {
    let (env, backend) = one_backend();
    if !env.is_root() {
        return skipped("owners can only be changed by root");
    }
    for path in [backend.engine(), backend.generate()] {
        chown(&path, Some(4321), Some(1234)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o640)).unwrap();
    }
    let before = snapshot(&backend.path("mlx_engine"));
    let owner = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    env.finish(["4096"]).exits(0);
    for path in [backend.engine(), backend.generate()] {
        assert_eq!(owner(&path), (4321, 1234, 0o640));
    }
    env.finish(["--revert"]).exits(0);
    assert_eq!(
        differences(&before, &snapshot(&backend.path("mlx_engine"))),
        [""; 0]
    );

    // Others may read it and may write in its directory, and still cannot give a new file its owner.
    fs::set_permissions(backend.engine(), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(backend.generate(), Permissions::from_mode(0o644)).unwrap();
    let before = snapshot(&env.user());
    finish(&mut env.ordinary(["4096"]))
        .exits(1)
        .says(backend.path("mlx_").to_str().unwrap())
        .says("cannot keep its owner");
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
}

/// Every kind of run that prints, whether it changes files, and what it prints where all is well.
const PRINTING: [(&[&str], bool); 8] = [
    (&["--check"], false),
    (&["--check", "-v"], false),
    (&["--check", "--json"], false),
    (&["4096", "--dry-run"], false),
    (&["4096", "--dry-run", "--json"], false),
    (&["--help"], false),
    (&["4096"], true),
    (&["4096", "--json"], true),
];

fn full() -> Option<File> {
    let full = File::options().write(true).open("/dev/full").ok();
    if full.is_none() {
        skipped("there is no /dev/full");
    }
    full
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    for (args, changes) in PRINTING {
        let Some(full) = full() else { return };
        let (env, backend) = one_backend();
        let before = snapshot(&env.user());
        let ran = finish_into(&mut env.command(args), full, Stdio::piped());
        ran.exits(1)
            .says("cannot write")
            .says("to stdout")
            .says("No space left");
        if changes {
            assert_set(&backend);
        } else {
            assert_eq!(
                differences(&before, &snapshot(&env.user())),
                [""; 0],
                "{args:?}"
            );
        }
    }
}

/// Both files hold 4096 and nothing else has changed in them.
#[track_caller]
fn assert_set(backend: &BackendDir) {
    assert_eq!(
        fs::read_to_string(backend.engine()).unwrap(),
        engine_since_2026("4096")
    );
    assert_eq!(
        fs::read_to_string(backend.generate()).unwrap(),
        generate("4096", "4096", "4096")
    );
}

#[test]
fn what_was_changed_is_told_also_where_stdout_is_full() {
    let Some(full) = full() else { return };
    let (env, _) = one_backend();
    let ran = finish_into(&mut env.command(["4096"]), full, Stdio::piped());
    ran.exits(1)
        .says("1 backend: 1 changed")
        .says("Takes effect when a model is next loaded");
}

#[test]
fn a_refusal_is_told_also_where_stdout_is_full() {
    let Some(full) = full() else { return };
    let (env, backend) = one_backend();
    fs::write(backend.engine(), "nothing here").unwrap();
    finish_into(&mut env.command(["4096"]), full, Stdio::piped())
        .exits(1)
        .says(BACKEND)
        .says("cache_wrapper.py");
}

#[test]
fn a_full_disk_behind_stderr_changes_no_exit_code() {
    for (args, code) in [
        (&["4096"][..], 0),
        (&["--check", "512"], 3),
        (&["--backend", "none"], 1),
        (&["--wrong"], 2),
    ] {
        let Some(full) = full() else { return };
        let (env, _) = one_backend();
        finish_into(&mut env.command(args), Stdio::piped(), full).exits(code);
    }
    let (Some(stdout), Some(stderr)) = (full(), full()) else {
        return;
    };
    let (env, _) = one_backend();
    finish_into(&mut env.command(["--check"]), stdout, stderr).exits(1);
}

/// Runs lmpatch with `args` by a shell that does `redirection` first.
fn redirected(env: &Env, args: &str, redirection: &str) -> crate::support::Ran {
    let mut shell = Command::new("sh");
    env.isolate(&mut shell)
        .args(["-c", &format!("exec \"$0\" {args} {redirection}"), LMPATCH]);
    finish(&mut shell)
}

#[test]
fn closed_streams_change_neither_the_work_nor_the_exit_code() {
    for redirection in [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let (env, backend) = one_backend();
        let before = snapshot(&env.user());
        redirected(&env, "--check", redirection).exits(0);
        redirected(&env, "--check 4096 --json", redirection).exits(3);
        redirected(&env, "--dry-run", redirection).exits(0);
        redirected(&env, "--backend none", redirection).exits(1);
        // A closed stream's number must not go to a file that is opened later, or a report would be written into it.
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{redirection}"
        );
        redirected(&env, "4096", redirection).exits(0);
        assert_set(&backend);
        assert_eq!(fs::read_dir(backend.path("mlx_lm")).unwrap().count(), 2);
    }
}

#[test]
fn a_reader_that_is_gone_before_the_first_line_is_no_error() {
    for (args, changes) in PRINTING {
        let (env, backend) = one_backend();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        finish_into(&mut env.command(args), writer, Stdio::piped())
            .exits(0)
            .says_nothing_of("error");
        if changes {
            assert_set(&backend);
        }
    }
}

#[test]
fn a_reader_that_stops_after_the_first_line_is_no_error() {
    let (env, _) = one_backend();
    // More than a pipe holds, so that the writer is still writing when the reader goes.
    for number in 100..400 {
        let name = format!("app-mlx-generate-mac14-arm64@{number}");
        usual_backend(&env.lmstudio(), &name);
    }
    for args in [
        &["--check", "-v"][..],
        &["--check", "--json"],
        &["--dry-run"],
    ] {
        let printed = env.finish(args).exits(0).stdout;
        assert!(
            printed.len() > 1 << 17,
            "{args:?}: only {} bytes",
            printed.len()
        );
        let (mut reader, writer) = std::io::pipe().unwrap();
        let first = std::thread::spawn(move || {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            byte[0]
        });
        finish_into(&mut env.command(args), writer, Stdio::piped())
            .exits(0)
            .says_nothing_of("error");
        assert_eq!(first.join().unwrap(), printed.as_bytes()[0], "{args:?}");
    }
}

#[test]
fn json_is_whole_or_an_error_also_where_the_run_failed() {
    let (env, backend) = one_backend();
    fs::remove_dir_all(&backend.root).unwrap();
    let ran = env.finish(["4096", "--json"]).exits(1);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["exit_code"], 1);
    let Some(full) = full() else { return };
    let ran = finish_into(&mut env.command(["4096", "--json"]), full, Stdio::piped()).exits(1);
    ran.says("no MLX backend found").says("cannot write");
}
