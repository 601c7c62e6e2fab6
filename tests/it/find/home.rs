//! The home: LM Studio's own, or the one that is given.
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use crate::support::child::finish;
use crate::support::home::{NAME, usual_backend};
use crate::support::{Env, amphibian, skipped};

fn point_to(env: &Env, content: &str) {
    fs::write(env.user().join(".lmstudio-home-pointer"), content).unwrap();
}

fn home_in_use(env: &Env) -> PathBuf {
    env.json(["--check"])["home"].as_str().unwrap().into()
}

#[test]
fn the_home_is_the_one_that_lm_studio_uses() {
    let env = Env::new();
    let homes = ["on disk 2", ".cache/lm-studio", ".lmstudio"];
    let [pointed, cache, usual] = homes.map(|home| env.user().join(home));
    for home in [&pointed, &cache, &usual] {
        usual_backend(home, NAME);
    }
    point_to(&env, &format!("\n  {}  \n", pointed.display()));
    assert_eq!(home_in_use(&env), pointed);
    env.run(["4096"])
        .exits(0)
        .says_nothing_of("there are backends elsewhere");
    assert_eq!(env.json(["--check"])["backends"][0]["chunk"], 4096);
    // Unless one is given.
    let given = env.json(["--check", "--home", ".cache/lm-studio"]);
    assert_eq!(given["home"], ".cache/lm-studio");
    fs::remove_file(env.user().join(".lmstudio-home-pointer")).unwrap();
    assert_eq!(home_in_use(&env), cache);
    fs::remove_dir_all(&cache).unwrap();
    assert_eq!(home_in_use(&env), usual);
    assert_eq!(env.json(["--check"])["backends"][0]["chunk"], 2048);
}

#[test]
fn a_user_without_a_home_directory_is_told_what_to_give() {
    let env = Env::new();
    if !env.is_root() {
        return skipped("only root can be a user whom nobody knows");
    }
    let mut command = env.ordinary(["--check"]);
    let nobody = command.env_remove("HOME").uid(4321).gid(4321);
    let told = "your home directory is unknown; set HOME or give --home DIR";
    finish(nobody).fails(told);
}

#[test]
fn another_home_is_named_and_never_patched_instead() {
    let env = Env::new();
    env.backend(NAME);
    let named = format!("add `--home '{}'`", env.lmstudio().display());
    let cache = env.user().join(".cache/lm-studio");
    // A directory of backends that holds none is no better.
    for empty in [&cache, &amphibian(&cache)] {
        fs::create_dir_all(empty).unwrap();
        env.fails(&[], &["no MLX backend found", &named]);
    }
}

#[test]
fn a_pointer_of_no_use_is_an_error_that_names_the_other_home() {
    let env = Env::new();
    env.backend(NAME);
    for (content, said) in [
        ("", "names no absolute path, but \"\""),
        (" \n", "names no absolute path, but \"\""),
        ("some/where", "names no absolute path"),
    ] {
        point_to(&env, content);
        env.fails(&[], &[said, "--home"]);
    }
    point_to(&env, "/nowhere/at/all");
    let reasons = [
        "LM Studio's home /nowhere/at/all is not there",
        "connect its disk",
        &format!("add `--home '{}'`", env.lmstudio().display()),
    ];
    env.fails(&[], &reasons);
}

#[test]
fn a_pointer_is_trimmed_as_javascript_does() {
    for (before, name, after) in [
        ("\u{feff}", "moved", "\n"),
        ("\u{a0}\t ", "moved", "\u{2028}\r\n"),
        ("\u{b}\u{c}", "moved", "\u{3000}"),
        // JavaScript does not take these for blanks.
        ("", "moved\u{85}", ""),
        ("", "moved\u{200b}", ""),
    ] {
        let env = Env::new();
        let home = env.user().join(name);
        usual_backend(&home, NAME);
        point_to(&env, &format!("{before}{}{after}", home.display()));
        assert_eq!(home_in_use(&env), home);
    }
}

#[test]
fn a_home_on_a_disk_that_is_not_connected_is_told_as_that() {
    let env = Env::new();
    symlink("/Volumes/Models/lmstudio", env.lmstudio()).unwrap();
    let told = "is a link to /Volumes/Models/lmstudio, which is not there; is its disk connected?";
    env.fails(&[], &[told]);
    for args in ["--check", "4096", "--revert"] {
        env.run([args]).exits(1).says_nothing_of("install");
    }
    fs::remove_file(env.lmstudio()).unwrap();

    point_to(&env, "/Volumes/Models/lmstudio\n");
    let told = "LM Studio's home /Volumes/Models/lmstudio is not there; install LM Studio, connect";
    env.fails(&[], &[told]);

    // Also where only the directory of backends is on such a disk.
    fs::remove_file(env.user().join(".lmstudio-home-pointer")).unwrap();
    fs::create_dir_all(env.amphibian().parent().unwrap()).unwrap();
    symlink("/Volumes/Models/amphibian", env.amphibian()).unwrap();
    let told = "is a link to /Volumes/Models/amphibian, which is not there";
    env.fails(&[], &[told]);
}

#[test]
fn nothing_to_patch_is_no_success() {
    let env = Env::new();
    let next = "install LM Studio, connect its disk, or give its home with --home DIR";
    env.fails(&[], &[".lmstudio is not there", next]);
    let packages = "cpython3.11-mac-arm64@10/lib/python3.11/site-packages";
    fs::create_dir_all(env.amphibian().join(packages)).unwrap();
    env.fails(&[], &["no MLX backend found", "--home DIR"]);
    let absent = "LM Studio's home x is not there";
    env.fails(&["--home", "x"], &[absent, "--home DIR"]);
    let absent = "_amphibian is not there";
    env.fails(&["--home", "."], &[absent, "--home DIR"]);
}
