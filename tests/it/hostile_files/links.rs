//! Links in place of files, of backends and of the home, and what stands where bytecode should be.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{BAD, only_the_good_one_changed, two_backends};
use crate::support::{Before, Env, text};

#[test]
fn a_link_inside_the_backend_is_refused_and_kept() {
    let (env, backend, _) = two_backends();
    let target = backend.path("mlx_lm/real_generate.py");
    fs::rename(backend.generate(), &target).unwrap();
    symlink("real_generate.py", backend.generate()).unwrap();
    let before = Before::of(env.user());
    env.run(["4096"])
        .fails("is a link to real_generate.py, where an edit may leave its backend");
    only_the_good_one_changed(&before);
}

/// What is left after set and revert: Python's caches of the edited file, which it writes anew.
#[track_caller]
fn only_bytecode_is_gone(before: &Before) {
    let changed = before.changes();
    let is_cache = |path: &String| path.contains("__pycache__/generate.cpython-3");
    assert!(changed.iter().all(is_cache), "{changed:?}");
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
        let before = Before::of(env.user());
        env.run(["--check", "2048"]).exits(0);
        env.run(["4096"]).tells("Backends: 2 changed");
        assert_eq!(fs::read_link(&path).unwrap(), moved);
        backend.is_set_to("4096");
        env.run(["--revert"]).exits(0);
        only_bytecode_is_gone(&before);
    }
}

#[test]
fn two_backends_that_are_links_to_the_same_directory_are_set_and_reverted_once() {
    let (env, backend, _) = two_backends();
    let moved = move_and_link(&env, &backend.root);
    let third = env.amphibian().join("app-mlx-generate-mac14-arm64@3");
    symlink(moved, third).unwrap();
    let before = Before::of(env.user());
    for size in ["4096", "8192"] {
        env.run([size]).tells("Backends: 3 changed");
        backend.is_set_to(size);
        env.run(["--check", size]).exits(0);
    }
    env.run(["--revert"]).tells("Backends: 3 changed");
    only_bytecode_is_gone(&before);
}

#[test]
fn a_backend_whose_link_leads_nowhere_is_named() {
    let (env, backend, _) = two_backends();
    let moved = move_and_link(&env, &backend.root);
    fs::remove_dir_all(&moved).unwrap();
    let before = Before::of(env.user());
    let named = backend.root.to_str().unwrap();
    env.run(["--check"])
        .fails(named)
        .says("is its disk connected?");
    env.run(["--revert"]).fails(named);
    before.still_holds();
}

#[test]
fn a_bytecode_directory_that_is_a_link_stops_the_edit() {
    let (env, backend, good) = two_backends();
    let cache = backend.path("mlx_lm/__pycache__");
    let moved = move_and_link(&env, &cache);
    let before = Before::of(env.user());
    env.run(["4096"])
        .fails(cache.to_str().unwrap())
        .says("is a link; remove it");
    only_the_good_one_changed(&before);
    assert_eq!(fs::read_dir(moved).unwrap().count(), 6);
    good.is_set_to("4096");
}

#[test]
fn a_directory_named_like_bytecode_is_passed_over_as_python_does() {
    let (env, backend, _) = two_backends();
    let cached = backend.path("mlx_lm/__pycache__/generate.cpython-311.pyc");
    fs::remove_file(&cached).unwrap();
    fs::create_dir(&cached).unwrap();
    fs::write(cached.join("not-ours"), "kept").unwrap();
    env.run(["4096"]).exits(0);
    assert_eq!(text(cached.join("not-ours")), "kept");
    backend.is_set_to("4096");
    assert!(!cached.with_file_name("generate.cpython-313.pyc").exists());
}
