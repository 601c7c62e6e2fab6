//! Files, directories and streams that say no: permissions, owners, full disks, readers that went away.

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::child::{finish, finish_into, while_mode};
use crate::support::home::{BackendDir, NAME};
use crate::support::{Before, Env, LMPATCH, Ran, skipped};

/// A home with one usual backend that belongs to an ordinary user.
fn one_backend() -> (Env, BackendDir) {
    let env = Env::new();
    let backend = env.backend(NAME).with_bytecode("mlx_lm", "generate");
    env.hand_over();
    (env, backend)
}

/// An ordinary user's run with `args`.
#[track_caller]
fn as_user(env: &Env, args: &str) -> Ran {
    finish(&mut env.ordinary(args.split(' ')))
}

/// While `pick` has `mode`, an ordinary user's run with each of `runs` fails, in words that have its path and `fix`,
/// and changes nothing.
#[track_caller]
fn assert_denied(pick: impl Fn(&BackendDir) -> PathBuf, mode: u32, runs: &[&str], fix: &str) {
    let (env, backend) = one_backend();
    let path = pick(&backend);
    let before = Before::of(env.user());
    for args in runs {
        let ran = while_mode(&path, mode, || as_user(&env, args)).exits(1);
        ran.says(path.to_str().unwrap()).says(fix);
        assert_eq!(before.changes(), [""; 0], "{args}");
    }
    as_user(&env, "4096").exits(0);
}

const WRITING: [&str; 3] = ["4096", "8192 --json", "4096 --quiet"];
const ANY: [&str; 5] = ["4096", "--check", "--check --json", "--dry-run", "--revert"];

#[test]
fn read_only_files_are_named_with_the_fix() {
    for file in [BackendDir::engine, BackendDir::generate] {
        assert_denied(file, 0o444, &WRITING, "chmod u+rwX");
    }
}

#[test]
fn unreadable_files_are_named_with_the_fix() {
    for file in [BackendDir::engine, BackendDir::generate] {
        assert_denied(file, 0o000, &ANY, "chmod u+r");
        assert_denied(file, 0o200, &ANY, "chmod u+r");
    }
}

#[test]
fn read_only_directories_are_named_with_the_fix() {
    for name in ["mlx_engine", "mlx_lm", "mlx_lm/__pycache__"] {
        assert_denied(|backend| backend.path(name), 0o555, &WRITING, "chmod u+rwX");
    }
    let (env, backend) = one_backend();
    let dry_run = || as_user(&env, "4096 --dry-run");
    let ran = while_mode(&backend.path("mlx_lm"), 0o555, dry_run).exits(1);
    ran.says("cannot write in ").says("Backends: 1 failed");
}

/// The directory itself, `site-packages` and every one above it, up to LM Studio's home.
#[test]
fn unreadable_directories_of_a_backend_and_above_it_are_named_with_the_fix() {
    let engine = |backend: &BackendDir| backend.path("mlx_engine");
    assert_denied(engine, 0o000, &ANY, "chmod u+rwX");
    for up in 0..10 {
        let above = |backend: &BackendDir| {
            let package = backend.path("mlx_lm");
            package.ancestors().nth(up).unwrap().to_owned()
        };
        assert_denied(above, 0o000, &ANY, "chmod u+rwX");
    }
}

#[test]
fn what_is_closed_behind_a_link_is_named_and_not_where_the_link_is() {
    let (env, backend) = one_backend();
    let moved = env.user().join("other disk");
    for link in [env.lmstudio(), backend.root.clone()] {
        fs::create_dir(&moved).unwrap();
        fs::rename(&link, moved.join("it")).unwrap();
        symlink(moved.join("it"), &link).unwrap();
        env.hand_over();
        let ran = while_mode(&moved, 0o000, || as_user(&env, "4096")).exits(1);
        ran.says(&format!("`chmod u+rwX '{}'`", moved.display()));
        fs::remove_file(&link).unwrap();
        fs::rename(moved.join("it"), &link).unwrap();
        fs::remove_dir(&moved).unwrap();
    }
}

#[test]
fn an_unreadable_bytecode_directory_is_named_with_the_fix() {
    let bytecode = |backend: &BackendDir| backend.path("mlx_lm/__pycache__");
    assert_denied(bytecode, 0o000, &WRITING, "chmod u+rwX");
}

/// User, group and mode.
fn ownership(path: PathBuf) -> (u32, u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

fn set_mode(backend: &BackendDir, mode: u32) {
    for path in [backend.engine(), backend.generate()] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn a_file_that_can_only_be_read_by_its_group_is_no_reason_to_lose_its_mode() {
    for mode in [0o640, 0o600, 0o664, 0o755, 0o4755] {
        let (env, backend) = one_backend();
        set_mode(&backend, mode);
        let before = Before::of(backend.path("mlx_engine"));
        as_user(&env, "4096").exits(0);
        assert_eq!(ownership(backend.engine()).2, mode);
        assert_eq!(ownership(backend.generate()).2, mode);
        as_user(&env, "--revert").exits(0);
        assert_eq!(before.changes(), [""; 0], "{mode:o}");
    }
}

#[test]
fn an_odd_owner_is_kept_by_root_and_respected_by_others() {
    let (env, backend) = one_backend();
    if !env.is_root() {
        return skipped("owners can only be changed by root");
    }
    chown(backend.engine(), Some(4321), Some(1234)).unwrap();
    chown(backend.generate(), Some(4321), Some(1234)).unwrap();
    set_mode(&backend, 0o640);
    let before = Before::of(backend.path("mlx_engine"));
    env.run(["4096"]).exits(0);
    assert_eq!(ownership(backend.engine()), (4321, 1234, 0o640));
    assert_eq!(ownership(backend.generate()), (4321, 1234, 0o640));
    env.run(["--revert"]).exits(0);
    before.still_holds();

    // Others may read it and may write in its directory, and still cannot give a new file its owner.
    set_mode(&backend, 0o644);
    let before = Before::of(env.user());
    let ran = as_user(&env, "4096").fails("cannot keep the owner");
    ran.says(backend.path("mlx_").to_str().unwrap());
    before.still_holds();
}

/// Every kind of run that prints, and whether it changes files.
const PRINTING: [(&str, bool); 7] = [
    ("--check", false),
    ("--check -v", false),
    ("--check --json", false),
    ("4096 --dry-run", false),
    ("4096 --dry-run --json", false),
    ("4096", true),
    ("4096 --json", true),
];

/// A stream that leads to a full disk; `None`, said aloud, where there is none.
fn full() -> Option<File> {
    let full = File::options().write(true).open("/dev/full").ok();
    if full.is_none() {
        skipped("there is no /dev/full");
    }
    full
}

/// A run that fails because it cannot print.
#[track_caller]
fn with_full_stdout(env: &Env, args: &str, full: File) -> Ran {
    let mut command = env.command(args.split(' '));
    finish_into(&mut command, full, Stdio::piped()).exits(1)
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    for (args, changes) in PRINTING {
        let Some(full) = full() else { return };
        let (env, backend) = one_backend();
        let before = Before::of(env.user());
        let ran = with_full_stdout(&env, args, full).says("No space left");
        ran.says("cannot write").says("to stdout");
        if changes {
            backend.is_set_to("4096");
        } else {
            assert_eq!(before.changes(), [""; 0], "{args}");
        }
    }
}

#[test]
fn what_was_changed_is_told_also_where_stdout_is_full() {
    let Some(full) = full() else { return };
    let (env, _) = one_backend();
    with_full_stdout(&env, "4096", full)
        .says("Backends: 1 changed")
        .says("Takes effect when a model is next loaded");
}

#[test]
fn a_refusal_is_told_also_where_stdout_is_full() {
    let Some(full) = full() else { return };
    let (env, backend) = one_backend();
    fs::write(backend.engine(), "nothing here").unwrap();
    let ran = with_full_stdout(&env, "4096", full);
    ran.says(NAME).says("cache_wrapper.py");
}

#[test]
fn json_is_whole_or_an_error_also_where_the_run_failed() {
    let (env, backend) = one_backend();
    fs::remove_dir_all(&backend.root).unwrap();
    let ran = env.run(["4096", "--json"]).exits(1);
    let report = ran.json();
    assert_eq!(report["exit_code"], 1);
    let Some(full) = full() else { return };
    let ran = with_full_stdout(&env, "4096 --json", full);
    ran.says("no MLX backend found").says("cannot write");
}

#[test]
fn a_full_disk_behind_stderr_changes_no_exit_code() {
    let (env, _) = one_backend();
    for (args, code) in [
        ("4096", 0),
        ("--check 512", 3),
        ("--backend none", 1),
        ("--wrong", 2),
    ] {
        let Some(full) = full() else { return };
        let mut command = env.command(args.split(' '));
        finish_into(&mut command, Stdio::piped(), full).exits(code);
    }
    if let (Some(stdout), Some(stderr)) = (full(), full()) {
        finish_into(&mut env.command(["--check"]), stdout, stderr).exits(1);
    }
}

#[test]
fn closed_streams_change_neither_the_work_nor_the_exit_code() {
    for redirection in [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let (env, backend) = one_backend();
        let redirected = |args| {
            let script = format!("exec \"$0\" {args} {redirection}");
            let mut shell = Command::new("sh");
            finish(env.isolate(&mut shell).args(["-c", &script, LMPATCH]))
        };
        let before = Before::of(env.user());
        redirected("--check").exits(0);
        redirected("--check 4096 --json").exits(3);
        redirected("--dry-run").exits(0);
        redirected("--backend none").exits(1);
        // A closed stream's number must not go to a file that is opened later, or a report would be written into it.
        assert_eq!(before.changes(), [""; 0], "{redirection}");
        redirected("4096").exits(0);
        backend.is_set_to("4096");
        assert_eq!(fs::read_dir(backend.path("mlx_lm")).unwrap().count(), 2);
    }
}

#[test]
fn a_reader_that_is_gone_before_the_first_line_is_no_error() {
    for (args, changes) in PRINTING {
        let (env, backend) = one_backend();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = finish_into(&mut env.command(args.split(' ')), writer, Stdio::piped());
        ran.exits(0).says_nothing_of("error");
        if changes {
            backend.is_set_to("4096");
        }
    }
}

#[test]
fn a_reader_that_stops_after_the_first_line_is_no_error() {
    let (env, _) = one_backend();
    // More than a pipe holds, so that the writer is still writing when the reader goes.
    for number in 100..400 {
        let name = format!("app-mlx-generate-mac14-arm64@{number}");
        env.backend(&name);
    }
    for args in ["--check -v", "--check --json", "--dry-run"] {
        let printed = env.run(args.split(' ')).exits(0).stdout;
        let bytes = printed.len();
        assert!(bytes > 1 << 17, "{args}: only {bytes} bytes");
        let (mut reader, writer) = std::io::pipe().unwrap();
        let first = std::thread::spawn(move || {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            byte[0]
        });
        let ran = finish_into(&mut env.command(args.split(' ')), writer, Stdio::piped());
        ran.exits(0).says_nothing_of("error");
        assert_eq!(first.join().unwrap(), printed.as_bytes()[0], "{args}");
    }
}
