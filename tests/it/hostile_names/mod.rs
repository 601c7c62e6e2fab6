//! Hostile surroundings: names, the home and its pointer, manifests, preferences.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::child::finish;
use crate::support::home::{RUNTIME, engine_since_2026, runtime, select, usual_backend};
use crate::support::skipped;
use crate::support::{Env, Ran, differences, snapshot};
use serde_json::{Value, json};

const BACKEND: &str = "app-mlx-generate-mac14-arm64@34";

/// Colours, a title for the window, a line that is overwritten, a C1 control and a mark that reverses the line.
const ESCAPES: &str = "\u{1b}[31mred\u{1b}]0;title\u{7}\r\u{9b}2J\u{202e}reversed";

/// Names that are no trouble for a file system.
fn odd_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        "a backend with spaces",
        "Größe 你好 🦀",
        "-rf",
        "--check",
        "$(touch pwned)`;'\"",
        "line\nend",
        "*[?]{}",
        ESCAPES,
    ]
    .map(OsString::from)
    .to_vec();
    names.push(OsString::from_vec(b"not UTF-8 \xff\xfe \x1b[31m".to_vec()));
    names
}

/// Nothing that was printed can drive a terminal; lines and tabs aside, every control character is escaped.
#[track_caller]
fn assert_tame(ran: &Ran) {
    for text in [&ran.stdout, &ran.stderr] {
        let wild = text
            .chars()
            .find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        assert_eq!(wild, None, "{ran:#?}");
    }
}

/// A name that a file system refuses (macOS wants UTF-8) is skipped aloud.
fn make_backend(env: &Env, name: &OsStr) -> Option<PathBuf> {
    let root = env.amphibian().join(name);
    if let Err(error) = fs::create_dir_all(&root) {
        skipped(&format!("{}: {error}", name.display()));
        return None;
    }
    usual_backend(&env.lmstudio(), BACKEND);
    fs::rename(env.amphibian().join(BACKEND).join("lib"), root.join("lib")).unwrap();
    fs::remove_dir(env.amphibian().join(BACKEND)).unwrap();
    Some(root)
}

#[test]
fn backends_of_any_name_are_found_shown_safely_set_and_reverted() {
    for name in odd_names() {
        let env = Env::new();
        let Some(root) = make_backend(&env, &name) else {
            continue;
        };
        let engine = root.join("lib/python3.11/site-packages/mlx_engine/cache_wrapper.py");
        let before = snapshot(&env.user());
        for args in [
            &["--check"][..],
            &["--check", "-v"],
            &["--dry-run"],
            &["8192", "--dry-run", "-v"],
        ] {
            assert_tame(&env.finish(args).exits(0));
        }
        for args in [&["4096"][..], &["64", "-v"], &["4096", "-v"]] {
            assert_tame(&env.finish(args).exits(0).says("1 backend: 1 changed"));
        }
        assert_eq!(
            fs::read_to_string(&engine).unwrap(),
            engine_since_2026("4096")
        );
        assert_json_names(&env, &name);
        assert_tame(&env.finish(["--revert", "-v"]).exits(0));
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{}",
            name.display()
        );
        fs::write(&engine, "nothing here").unwrap();
        assert_tame(&env.finish(["4096"]).exits(1).says("cache_wrapper.py"));
        fs::remove_dir_all(root.join("lib")).unwrap();
        assert_tame(&env.finish(["4096"]).exits(1).says("no MLX backend found"));
    }
}

#[track_caller]
fn assert_json_names(env: &Env, name: &OsStr) {
    let report = env.json(["--check", "4096"]);
    assert_eq!(
        report["backends"][0]["name"],
        name.to_string_lossy().as_ref()
    );
    assert_eq!(report["backends"][0]["chunk"], 4096);
    let ran = env.finish(["--check", "--json"]).exits(0);
    assert!(!ran.stdout.contains(['\u{1b}', '\u{7}', '\r']), "{ran:#?}");
}

#[test]
fn colour_that_is_asked_for_is_lmpatchs_own_only() {
    let env = Env::new();
    make_backend(&env, OsStr::new(ESCAPES)).unwrap();
    runtime(&env.lmstudio(), "1.12.0", &[ESCAPES, "gone"]);
    for args in [
        &["--check", "-v"][..],
        &["--dry-run"],
        &["4096", "-v"],
        &["--revert"],
    ] {
        let ran = env.finish([&["--color", "always"], args].concat()).exits(0);
        for text in [&ran.stdout, &ran.stderr] {
            assert!(
                !text.contains("\u{1b}[31mred")
                    && !text.contains(['\u{7}', '\r', '\u{9b}', '\u{202e}']),
                "{ran:#?}"
            );
            assert!(!text.contains("\u{1b}]"), "{ran:#?}");
        }
    }
}

#[test]
fn names_of_runtimes_and_of_backends_that_are_gone_are_shown_safely() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), BACKEND);
    let directory = env.lmstudio().join("extensions/backends/odd");
    fs::create_dir_all(&directory).unwrap();
    let gone = format!("_amphibian/{ESCAPES}");
    let manifest = json!({
        "name": format!("mlx{ESCAPES}"), "version": format!("9{ESCAPES}"), "engine": "mlx-llm",
        "vendor_lib_package_names": [format!("_amphibian/{BACKEND}"), gone, "_amphibian/../gone", "_amphibian//gone", "_amphibian/"],
    });
    fs::write(
        directory.join("backend-manifest.json"),
        manifest.to_string(),
    )
    .unwrap();
    for args in [
        &["--check"][..],
        &["--check", "-v"],
        &["--dry-run"],
        &["4096"],
        &["--revert"],
    ] {
        let ran = env
            .finish(args)
            .exits(0)
            .says("which is not on disk")
            .says("\\u{1b}]0;title");
        assert_tame(&ran);
    }
    let report = env.json(["--check"]);
    assert_eq!(report["missing_backends"].as_array().unwrap().len(), 1);
    assert_eq!(
        report["backends"][0]["runtimes"][0]["version"],
        format!("9{ESCAPES}")
    );
}

#[test]
fn homes_of_any_name_are_worked_on_and_shown_safely() {
    for name in odd_names() {
        let env = Env::new();
        usual_backend(&env.lmstudio(), BACKEND);
        let home = env.user().join(&name);
        if let Err(error) = fs::rename(env.lmstudio(), &home) {
            skipped(&format!("{}: {error}", name.display()));
            continue;
        }
        let before = snapshot(&env.user());
        let in_home = |args: &[&str]| {
            let mut command = env.command(["--home"]);
            finish(command.arg(&home).args(args))
        };
        for args in [
            &["--check", "-v"][..],
            &["--dry-run"],
            &["4096"],
            &["--check", "4096", "-v"],
            &["--revert"],
        ] {
            assert_tame(&in_home(args).exits(0));
        }
        assert_eq!(
            differences(&before, &snapshot(&env.user())),
            [""; 0],
            "{}",
            name.display()
        );
        serde_json::from_str::<Value>(&in_home(&["--check", "--json"]).exits(0).stdout).unwrap();
        fs::remove_dir_all(env.user().join(&name).join("extensions")).unwrap();
        assert_tame(&in_home(&["4096"]).exits(1).says("is not there"));
        fs::remove_dir_all(&home).unwrap();
        assert_tame(&in_home(&["4096"]).exits(1).says("is not there"));
    }
}

#[test]
fn a_home_that_is_no_directory_is_said() {
    let env = Env::new();
    let file = env.user().join("file");
    fs::write(&file, "kept").unwrap();
    for home in [file.as_path(), Path::new("/dev/null")] {
        let mut command = env.command(["4096", "--home"]);
        finish(command.arg(home))
            .exits(1)
            .says("is not there")
            .says("--home DIR");
    }
    env.finish(["4096", "--home", ""])
        .exits(2)
        .says("--home <DIR>");
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
}

#[test]
fn home_unset_empty_or_wrong_is_said_and_an_explicit_home_still_works() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), BACKEND);
    let before = snapshot(&env.user());
    for home in [
        None,
        Some(""),
        Some("/nonexistent"),
        Some("relative"),
        Some("/dev/null"),
    ] {
        let with_home = |mut command: Command| {
            match home {
                Some(home) => command.env("HOME", home),
                None => command.env_remove("HOME"),
            };
            command
        };
        let mut explicit = with_home(env.command(["--check", "2048", "--home"]));
        finish(explicit.arg(env.lmstudio())).exits(0);
        let mut implied = with_home(env.ordinary(["--check"]));
        // A user that no list of users has, so that nobody's real home is looked at.
        if env.is_root() {
            implied.uid(3_141_592).gid(3_141_592);
        } else if home.is_none_or(str::is_empty) {
            skipped(
                "without HOME the home of the user who runs the tests would be looked at; it takes root",
            );
            continue;
        }
        finish(&mut implied).exits(1).says("--home DIR");
    }
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
    assert_eq!(
        fs::read_to_string(backend.engine()).unwrap(),
        engine_since_2026("2048")
    );
}

/// Runs with this in the pointer file, beside a usual home with one usual backend: nothing is done there, and nothing
/// is done in the other home instead.
#[track_caller]
fn assert_points_nowhere(make: impl Fn(&Path), why: &str) {
    let env = Env::new();
    usual_backend(&env.lmstudio(), BACKEND);
    make(&env.user().join(".lmstudio-home-pointer"));
    let before = snapshot(&env.user());
    for args in [
        &["--check"][..],
        &["4096", "--dry-run"],
        &["4096"],
        &["--revert"],
        &["--check", "--json"],
    ] {
        let ran = env.finish(args).exits(1).says(why).says("--home");
        assert_tame(&ran);
    }
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
    let mut elsewhere = env.command(["4096", "--home"]);
    finish(elsewhere.arg(env.lmstudio()))
        .exits(0)
        .shows(BACKEND);
}

#[test]
fn a_home_pointer_of_no_use_is_an_error_and_no_other_home_is_patched() {
    let too_long = "/long".repeat(2000);
    for (content, why) in [
        (&b""[..], "is empty"),
        (b" \n\t\r\n", "is empty"),
        (b"relative/home", "names the relative path"),
        (b"~/.lmstudio", "names the relative path"),
        (b"./\x1b[31m\x07", "names the relative path"),
        (
            b"/nowhere/at/all",
            "LM Studio's home /nowhere/at/all is not there",
        ),
        (b"/nowhere\x1b]0;t\x07", "is not there"),
        (b"/dev/null\n", "no MLX backend found"),
        (too_long.as_bytes(), "is not there"),
        (b"/with\0nul", "is not there"),
        (b"/not\xffUTF-8", "is not UTF-8"),
        (b"\xff\xfe/\0a\0", "is not UTF-8"),
    ] {
        assert_points_nowhere(|path| fs::write(path, content).unwrap(), why);
    }
}

/// Makes something at a path.
type Make = fn(&Path);

#[test]
fn a_home_pointer_that_is_no_file_is_an_error() {
    let makers: [(&str, Make); 4] = [
        ("is a directory", |path| fs::create_dir(path).unwrap()),
        ("is a FIFO", |path| {
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        }),
        ("cannot be read", |path| {
            symlink(".lmstudio-home-pointer", path).unwrap();
        }),
        ("more than the limit of 16777216", |path| {
            File::create(path).unwrap().set_len(3 << 30).unwrap();
        }),
    ];
    for (why, make) in makers {
        assert_points_nowhere(make, why);
    }
}

/// LM Studio asks whether the pointer exists, which a dangling link does not.
#[test]
fn a_home_pointer_that_leads_nowhere_is_as_none() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), BACKEND);
    symlink("nothing", env.user().join(".lmstudio-home-pointer")).unwrap();
    env.finish(["4096"]).exits(0).shows(BACKEND);
}

#[test]
fn a_home_pointer_with_blanks_around_it_is_followed() {
    for (before, after) in [("", "\n"), ("", "\r\n"), ("  \t", "  "), ("\n\n", "\n\n\n")] {
        let env = Env::new();
        let usual = usual_backend(&env.lmstudio(), BACKEND);
        let pointed = env.user().join("other disk/LM Studio");
        let backend = usual_backend(&pointed, BACKEND);
        let content = format!("{before}{}{after}", pointed.display());
        fs::write(env.user().join(".lmstudio-home-pointer"), content).unwrap();
        env.finish(["4096"]).exits(0).says_nothing_of("pointer");
        assert_eq!(
            fs::read_to_string(backend.engine()).unwrap(),
            engine_since_2026("4096")
        );
        assert_eq!(
            fs::read_to_string(usual.engine()).unwrap(),
            engine_since_2026("2048")
        );
    }
}

/// JSON that no manifest or preferences should be: too large, broken off, too deep, or with another type in a place.
fn odd_json(good: &Value) -> Vec<Vec<u8>> {
    let whole = good.to_string().into_bytes();
    let mut odd: Vec<Vec<u8>> = (0..whole.len())
        .step_by(7)
        .map(|end| whole[..end].to_vec())
        .collect();
    odd.push(b"[".repeat(100_000));
    odd.push([b"[".repeat(100_000), b"]".repeat(100_000)].concat());
    odd.push(
        [
            b"{\"name\":".repeat(100_000),
            b"1".to_vec(),
            b"}".repeat(100_000),
        ]
        .concat(),
    );
    odd.push([&whole[..], &b" ".repeat(17 << 20)].concat());
    odd.push([b"\xef\xbb\xbf", &whole[..]].concat());
    odd.push(whole.iter().map(|byte| byte ^ 0x80).collect());
    odd.push(vec![0; 4096]);
    odd
}

/// Values of every type.
fn values() -> [Value; 9] {
    [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e308),
        json!(""),
        json!("../../.."),
        json!([]),
        json!([[null]]),
        json!({"a": 1}),
    ]
}

/// `good` with every value, in turn, of every other type; also the whole of it.
fn retyped(good: &Value) -> Vec<Vec<u8>> {
    let mut all: Vec<Value> = values().to_vec();
    let object = good.as_array().map_or(good, |rows| &rows[0]);
    for key in object.as_object().unwrap().keys() {
        for value in values() {
            let mut changed = object.clone();
            changed[key] = value.clone();
            all.push(if good.is_array() {
                json!([changed, value])
            } else {
                changed
            });
        }
        let mut without = object.clone();
        without.as_object_mut().unwrap().remove(key);
        all.push(if good.is_array() {
            json!([without])
        } else {
            without
        });
    }
    all.iter()
        .map(|value| value.to_string().into_bytes())
        .collect()
}

/// With any of `contents` in place of `path`, lmpatch says less and works as ever.
#[track_caller]
fn assert_says_less(path: impl Fn(&Env) -> PathBuf, contents: &[Vec<u8>]) {
    let env = Env::new();
    usual_backend(&env.lmstudio(), BACKEND);
    runtime(&env.lmstudio(), "1.12.0", &[BACKEND]);
    select(&env.lmstudio(), "1.12.0");
    let path = path(&env);
    env.finish(["--check"]).exits(0).shows("yes");
    for content in contents {
        fs::write(&path, content).unwrap();
        let what = String::from_utf8_lossy(&content[..content.len().min(300)]).into_owned();
        let ran = env
            .finish(["--check", "2048"])
            .exits(0)
            .shows(BACKEND)
            .says_nothing_of("error");
        assert_tame(&ran);
        assert!(fs::read(&path).unwrap() == *content, "{what}");
        assert!(
            !ran.stdout.contains("yes") || is_enough(content),
            "{what}: {ran:#?}"
        );
    }
    let before = snapshot(&env.user());
    env.finish(["4096"]).exits(0);
    env.finish(["--revert"]).exits(0);
    assert_eq!(differences(&before, &snapshot(&env.user())), [""; 0]);
}

/// Whether name, version and backend can still be read from it, so that the backend may be called the selected one.
fn is_enough(content: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(content) else {
        return false;
    };
    let row = value.get(0).unwrap_or(&value);
    let names = &row["vendor_lib_package_names"];
    row["name"] == RUNTIME
        && row["version"] == "1.12.0"
        && (row["model_format"] == "safetensors"
            || *names == json!([format!("_amphibian/{BACKEND}")]))
}

fn manifest_path(env: &Env) -> PathBuf {
    env.lmstudio().join(format!(
        "extensions/backends/{RUNTIME}-1.12.0/backend-manifest.json"
    ))
}

fn preferences_path(env: &Env) -> PathBuf {
    env.lmstudio().join(".internal/backend-preferences-v1.json")
}

fn good_json(path: fn(&Env) -> PathBuf) -> Value {
    let env = Env::new();
    runtime(&env.lmstudio(), "1.12.0", &[BACKEND]);
    select(&env.lmstudio(), "1.12.0");
    serde_json::from_slice(&fs::read(path(&env)).unwrap()).unwrap()
}

#[test]
fn odd_manifests_and_preferences_only_make_it_say_less() {
    for path in [manifest_path, preferences_path] {
        let good = good_json(path);
        assert_says_less(path, &odd_json(&good));
        assert_says_less(path, &retyped(&good));
    }
}

#[test]
fn manifests_and_preferences_that_are_no_files_only_make_it_say_less() {
    let makers: [Make; 4] = [
        |path| fs::create_dir(path).unwrap(),
        |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        |path| symlink("nothing", path).unwrap(),
        |path| File::create(path).unwrap().set_len(3 << 30).unwrap(),
    ];
    for path in [manifest_path, preferences_path] {
        for make in makers {
            let env = Env::new();
            usual_backend(&env.lmstudio(), BACKEND);
            runtime(&env.lmstudio(), "1.12.0", &[BACKEND]);
            select(&env.lmstudio(), "1.12.0");
            fs::remove_file(path(&env)).unwrap();
            make(&path(&env));
            let ran = env
                .finish(["4096"])
                .exits(0)
                .shows(BACKEND)
                .says_nothing_of("error");
            assert!(!ran.stdout.contains("yes"), "{ran:#?}");
        }
    }
}
