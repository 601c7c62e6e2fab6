//! Where LM Studio's home is: `--home`, `HOME` and the pointer file, when they are of no use.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use super::{NO_FILES, assert_tame, one_backend};
use crate::support::child::finish;
use crate::support::home::{NAME, engine_since_2026, usual_backend};
use crate::support::{Before, Env, skipped, text};

#[test]
fn a_home_that_is_no_directory_is_said() {
    let env = Env::new();
    let file = env.user().join("file");
    fs::write(&file, "kept").unwrap();
    for home in [&file, Path::new("/dev/null")] {
        let ran = finish(env.command(["4096", "--home"]).arg(home)).exits(1);
        ran.says("is not there").says("--home DIR");
    }
    let ran = env.run(["4096", "--home", ""]).exits(2);
    ran.says("--home <DIR>");
    assert_eq!(text(file), "kept");
}

#[test]
fn home_unset_empty_or_wrong_is_said_and_an_explicit_home_still_works() {
    let (env, _) = one_backend();
    let before = Before::of(env.user());
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
            skipped("without HOME, the home of whoever runs the tests would be looked at");
            continue;
        }
        finish(&mut implied).fails("--home DIR");
    }
    before.still_holds();
}

/// Runs with this as the pointer file, beside a usual home with one usual backend: nothing is done there, and nothing
/// is done in the other home instead.
#[track_caller]
fn assert_points_nowhere(make: impl Fn(&Path), why: &str) {
    let (env, _) = one_backend();
    make(&env.user().join(".lmstudio-home-pointer"));
    let before = Before::of(env.user());
    for args in ["--check", "--dry-run", "4096", "--revert", "--check --json"] {
        let ran = env.run(args.split(' ')).exits(1);
        assert_tame(&ran);
        ran.says(why).says("--home");
    }
    before.still_holds();
    let mut elsewhere = env.command(["4096", "--home"]);
    let ran = finish(elsewhere.arg(env.lmstudio())).exits(0);
    ran.shows(NAME);
}

#[test]
fn a_home_pointer_of_no_use_is_an_error_and_no_other_home_is_patched() {
    let too_long = "/long".repeat(2000);
    let not_there = "LM Studio's home /nowhere/at/all is not there";
    for (content, why) in [
        (&b""[..], "names no absolute path, but \"\""),
        (b" \n\t\r\n", "names no absolute path, but \"\""),
        (b"relative/home", "names no absolute path"),
        (b"~/.lmstudio", "names no absolute path"),
        (b"./\x1b[31m\x07", "names no absolute path"),
        (b"/nowhere/at/all", not_there),
        (b"/nowhere\x1b]0;t\x07", "is not there"),
        (b"/dev/null\n", "no MLX backend found"),
        (too_long.as_bytes(), "is not there"),
        (b"/with\0nul", "is not there"),
        (b"/not\xffUTF-8", "is not there"),
        (b"\xff\xfe/\0a\0", "names no absolute path"),
    ] {
        assert_points_nowhere(|path| fs::write(path, content).unwrap(), why);
    }
}

#[test]
fn a_home_pointer_that_is_no_file_is_an_error() {
    for (why, make) in NO_FILES {
        assert_points_nowhere(make, why);
    }
    let (env, _) = one_backend();
    fs::create_dir(env.user().join(".lmstudio-home-pointer")).unwrap();
    let told = "regular file); LM Studio finds its home by it, lmpatch also by --home DIR";
    env.run(["--check"]).fails(told);
}

/// LM Studio asks whether the pointer exists, which a dangling link does not.
#[test]
fn a_home_pointer_that_leads_nowhere_is_as_none() {
    let (env, _) = one_backend();
    symlink("nothing", env.user().join(".lmstudio-home-pointer")).unwrap();
    env.run(["4096"]).exits(0).shows(NAME);
}

#[test]
fn a_home_pointer_with_blanks_around_it_is_followed() {
    for (before, after) in [("", "\n"), ("", "\r\n"), ("  \t", "  "), ("\n\n", "\n\n\n")] {
        let (env, usual) = one_backend();
        let pointed = env.user().join("other disk/LM Studio");
        let backend = usual_backend(&pointed, NAME);
        let content = format!("{before}{}{after}", pointed.display());
        fs::write(env.user().join(".lmstudio-home-pointer"), content).unwrap();
        env.run(["4096"]).exits(0).says_nothing_of("pointer");
        assert_eq!(text(backend.engine()), engine_since_2026("4096"));
        assert_eq!(text(usual.engine()), engine_since_2026("2048"));
    }
}
