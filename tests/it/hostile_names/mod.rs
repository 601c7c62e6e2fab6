//! Hostile surroundings: names, the home and its pointer, manifests, preferences.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::child::finish;
use crate::support::home::{BackendDir, NAME, engine_since_2026, runtime};
use crate::support::{Before, Env, Ran, list, mkfifo, text, write};
use serde_json::{Value, json};

mod home;
mod runtimes;

/// Colours, a title for the window, a line that is overwritten, a C1 control and a mark that reverses the line.
const ESCAPES: &str = "\u{1b}[31mred\u{1b}]0;title\u{7}\r\u{9b}2J\u{202e}reversed";

/// Names that are no trouble for a file system.
const ODD_NAMES: [&str; 8] = [
    "a backend with spaces",
    "Größe 你好 🦀",
    "-rf",
    "--check",
    "$(touch pwned)`;'\"",
    "line\nend",
    "*[?]{}",
    ESCAPES,
];

/// A home with one usual backend.
fn one_backend() -> (Env, BackendDir) {
    let env = Env::new();
    let backend = env.backend(NAME);
    (env, backend)
}

fn rename(directory: &Path, name: &str) -> PathBuf {
    let renamed = directory.with_file_name(name);
    fs::rename(directory, &renamed).unwrap();
    renamed
}

/// Nothing that was printed can drive a terminal; lines aside, every control character is escaped.
#[track_caller]
fn assert_tame(ran: &Ran) {
    let is_wild = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!ran.stdout.contains(is_wild), "{ran:#?}");
    assert!(!ran.stderr.contains(is_wild), "{ran:#?}");
}

/// What is no file that can be read: what is said of it, and what makes it at a path.
const NO_FILES: [(&str, fn(&Path)); 4] = [
    ("is not a regular file", |path| {
        fs::create_dir(path).unwrap();
    }),
    ("is not a regular file", mkfifo),
    ("cannot read", |path| symlink(path, path).unwrap()),
    ("more than the limit of 16777216", |path| {
        File::create(path).unwrap().set_len(3 << 30).unwrap();
    }),
];

#[test]
fn backends_of_any_name_are_found_shown_safely_set_and_reverted() {
    for name in ODD_NAMES {
        let (env, backend) = one_backend();
        let root = rename(&backend.root, name);
        let backend = BackendDir { root };
        let before = Before::of(env.user());
        let run = |args: &str| env.run(args.split(' '));
        for args in ["--check", "--check -v", "--dry-run", "8192 --dry-run -v"] {
            assert_tame(&run(args).exits(0));
        }
        for args in ["4096", "64 -v", "4096 -v"] {
            assert_tame(&run(args).tells("Backends: 1 changed"));
        }
        assert_eq!(text(backend.engine()), engine_since_2026("4096"));

        let ran = run("--check --json").exits(0);
        assert!(!ran.stdout.contains(['\u{1b}', '\u{7}', '\r']), "{ran:#?}");
        let shown = &env.json(["--check", "4096"])["backends"][0];
        assert_eq!(shown["name"], name);
        assert_eq!(shown["chunk"], 4096);

        assert_tame(&run("--revert -v").exits(0));
        assert_eq!(before.changes(), [""; 0], "{name}");
        fs::write(backend.engine(), "nothing here").unwrap();
        assert_tame(&run("4096").fails("cache_wrapper.py"));
        fs::remove_dir_all(backend.root.join("lib")).unwrap();
        assert_tame(&run("4096").fails("no MLX backend found"));
    }
}

#[test]
fn homes_of_any_name_are_worked_on_and_shown_safely() {
    for name in ODD_NAMES {
        let (env, _) = one_backend();
        let home = rename(&env.lmstudio(), name);
        let before = Before::of(env.user());
        let in_home = |args: &str| {
            let mut command = env.command(["--home"]);
            finish(command.arg(&home).args(args.split(' ')))
        };
        for args in [
            "--check -v",
            "--dry-run",
            "4096",
            "--check 4096 -v",
            "--revert",
        ] {
            assert_tame(&in_home(args).exits(0));
        }
        assert_eq!(before.changes(), [""; 0], "{name}");
        let report = in_home("--check --json").exits(0).stdout;
        serde_json::from_str::<Value>(&report).unwrap();
        fs::remove_dir_all(home.join("extensions")).unwrap();
        assert_tame(&in_home("4096").fails("is not there"));
        fs::remove_dir_all(&home).unwrap();
        assert_tame(&in_home("4096").fails("is not there"));
    }
}

#[test]
fn colour_that_is_asked_for_is_lmpatchs_own_only() {
    let (env, backend) = one_backend();
    rename(&backend.root, ESCAPES);
    runtime(&env.lmstudio(), "1.12.0", &[ESCAPES, "gone"]);
    for args in ["--check -v", "--dry-run", "4096 -v", "--revert"] {
        let all = ["--color", "always"].into_iter().chain(args.split(' '));
        let ran = env.run(all).exits(0);
        let printed = [&*ran.stdout, &ran.stderr].concat();
        for foreign in ["\x1b[31mred", "\x1b]", "\x07", "\r", "\u{9b}", "\u{202e}"] {
            assert!(!printed.contains(foreign), "{foreign:?}: {ran:#?}");
        }
    }
}

#[test]
fn names_of_runtimes_and_of_backends_that_are_gone_are_shown_safely() {
    let (env, _) = one_backend();
    let gone = [ESCAPES, "../gone", "/gone", ""].map(|name| format!("_amphibian/{name}"));
    let backends = [&[format!("_amphibian/{NAME}")], &gone[..]].concat();
    let manifest = json!({
        "name": format!("mlx{ESCAPES}"), "version": format!("9{ESCAPES}"), "engine": "mlx-llm",
        "vendor_lib_package_names": backends,
    });
    let path = "extensions/backends/odd/backend-manifest.json";
    write(&env.lmstudio().join(path), manifest.to_string());
    for args in ["--check", "--check -v", "--dry-run", "4096", "--revert"] {
        let ran = env.run(args.split(' ')).exits(0);
        assert_tame(&ran);
        ran.says("which is not on disk").says("\\u{1b}]0;title");
    }
    let report = env.json(["--check"]);
    assert_eq!(list(&report, "missing_backends").len(), 3);
    let runtime = &report["backends"][0]["runtimes"][0];
    assert_eq!(runtime["version"], format!("9{ESCAPES}"));
}
