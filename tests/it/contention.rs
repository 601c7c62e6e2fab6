//! Others at work in the same home: many lmpatch at once, a lock that is never given up, LM Studio updating.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::child::ended;
use crate::support::home::{BackendDir, engine_since_2026, generate, stock_generate};
use crate::support::strace::{self, Call, Paused};
use crate::support::{Before, Env, differences, list, snapshot, text};
use serde_json::Value;

const FIRST: &str = "app-mlx-generate-mac14-arm64@1";
const SECOND: &str = "app-mlx-generate-mac14-arm64@2";
const THIRD: &str = "app-mlx-generate-mac14-arm64@3";
const ALL: [&str; 3] = [FIRST, SECOND, THIRD];

fn three_backends() -> Env {
    let env = Env::new();
    for backend in ALL {
        env.backend(backend);
    }
    env
}

fn backend(env: &Env, name: &str) -> BackendDir {
    let root = env.amphibian().join(name);
    BackendDir { root }
}

/// The value of every site of each backend, by the backend's name.
fn values(env: &Env) -> Vec<(String, BTreeSet<u64>)> {
    let of = |backend: &Value| {
        let files = list(backend, "files").iter();
        let sites = files.flat_map(|file| list(file, "sites"));
        let values = sites.map(|site| site["value"].as_u64().unwrap());
        let name = backend["name"].as_str().unwrap().to_owned();
        (name, values.collect())
    };
    let report = env.json(["--check"]);
    list(&report, "backends").iter().map(of).collect()
}

/// The values where every site of these backends has this size.
fn all_have(backends: &[&str], size: u64) -> Vec<(String, BTreeSet<u64>)> {
    let of = |name: &&str| ((*name).to_owned(), BTreeSet::from([size]));
    backends.iter().map(of).collect()
}

#[test]
fn sixteen_at_once_leave_one_value() {
    let env = three_backends();
    let vendor = Before::of(env.user());
    let sizes: Vec<u64> = (1..=16).map(|step| 4096 + 64 * step).collect();
    let start = |size: &u64| {
        let mut command = env.command([size.to_string()]);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().unwrap()
    };
    let started: Vec<_> = sizes.iter().map(start).collect();
    for ran in started.into_iter().map(ended).collect::<Vec<_>>() {
        let gave_up = ran.code == Some(1) && ran.stderr.contains("another process has locked");
        assert!(ran.code == Some(0) || gave_up, "{ran:#?}");
    }
    let now = values(&env);
    let chosen = *now[0].1.first().unwrap();
    assert!(sizes.contains(&chosen), "{now:?}");
    assert_eq!(now, all_have(&ALL, chosen));
    env.run(["--revert"]).exits(0);
    vendor.still_holds();
}

#[test]
fn beside_the_marker_of_an_interrupted_benchmark_a_set_is_no_benchmark() {
    let env = three_backends();
    let before = lmpatch::patch::survey(&env.lmstudio(), &[]).unwrap().0;
    lmpatch::marker::add(&env.lmstudio(), &before).unwrap();
    let holder = File::open(env.amphibian()).unwrap();
    holder.lock().unwrap();
    let mut child = env.command(["4096", "--quiet"]).spawn().unwrap();
    // As long as another set might take.
    std::thread::sleep(Duration::from_millis(100));
    drop(holder);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_lock_that_is_never_given_up_is_named_after_a_bounded_wait() {
    let env = three_backends();
    let before = Before::of(env.user());
    let holder = File::open(env.amphibian()).unwrap();
    holder.lock().unwrap();

    let started = Instant::now();
    let ran = env.run(["4096"]).exits(1);
    let waited = started.elapsed();
    assert!(waited.as_secs() < 60, "it waited for {waited:?}");
    ran.says("another process has locked")
        .says(&format!("{};", env.amphibian().display()))
        .says("lsof");
    env.run(["--check"]).exits(0).shows(FIRST);
    env.run(["4096", "--dry-run"]).exits(0).shows("4096");
    before.still_holds();

    drop(holder);
    env.run(["4096"]).exits(0);
}

/// [`three_backends`], and a run that sets 4096 there and stands still in its first call of this name with these `words`.
/// `None`, said aloud, where runs cannot be traced.
fn paused_in(name: &str, words: &[&str]) -> Option<(Env, Paused)> {
    if !strace::is_there() {
        return None;
    }
    let calls = strace::record(&three_backends(), &["4096"]);
    let mut named = calls.iter().filter(|call| call.name == name);
    let has_all = |call: &&Call| words.iter().all(|word| call.text.contains(word));
    let env = three_backends();
    let paused = strace::pause(&env, named.find(has_all).unwrap(), &["4096"]);
    Some((env, paused))
}

/// A run that stands still when everything is planned, the first backend is done, and the new content of the second
/// is on the disk but not yet in its place.
fn paused() -> Option<(Env, Paused)> {
    let staged = ".lmpatch-tmp.";
    let (env, paused) = paused_in("fsync", &[SECOND, "/mlx_lm/", staged])?;
    let there = snapshot(&backend(&env, SECOND).path("mlx_lm"));
    let is_staged = |name: &OsString| name.to_string_lossy().contains(staged);
    assert!(there.keys().any(is_staged), "{:?}", there.keys());
    Some((env, paused))
}

#[test]
fn a_file_that_is_rewritten_before_the_rename_keeps_the_updaters_bytes() {
    let engine = engine_since_2026("1024") + "# updated\n";
    let generate = generate("1024", "1024", "1024") + "# updated\n";
    for (relative, bytes) in [
        ("mlx_engine/cache_wrapper.py", engine),
        ("mlx_lm/generate.py", generate),
    ] {
        let Some((env, run)) = paused() else { return };
        let second = backend(&env, SECOND).write(relative, &bytes);
        let ran = run.resume();

        let home = three_backends();
        let as_updated = backend(&home, SECOND).write(relative, &bytes);
        let wanted = snapshot(&as_updated.root);
        let now = snapshot(&second.root);
        assert_eq!(differences(&wanted, &now), [""; 0], "{ran:#?}");
        ran.fails(&format!("error: {SECOND}: "))
            .says("was changed by something else")
            .says(relative)
            .says_nothing_of(&format!("error: {FIRST}"))
            .says_nothing_of(&format!("error: {THIRD}"));
        let mut others = values(&env);
        others.retain(|(name, _)| name != SECOND);
        assert_eq!(others, all_have(&[FIRST, THIRD], 4096));
        env.run(["4096"]).exits(0);
        assert_eq!(values(&env), all_have(&ALL, 4096));
    }
}

#[test]
fn a_file_that_is_rewritten_after_the_rename_keeps_the_updaters_bytes() {
    // No copy of this file is saved, so its directory is first synced after the rename, and the engine's is done.
    let Some((env, paused)) = paused_in("fsync", &[SECOND, "/mlx_lm>"]) else {
        return;
    };
    let updated = engine_since_2026("1024") + "# updated\n";
    let second = backend(&env, SECOND).with_engine(&updated);
    let ran = paused.resume();

    assert_eq!(text(second.engine()), updated);
    assert_eq!(text(second.generate()), stock_generate(), "{ran:#?}");
    ran.fails(&format!("error: {SECOND}: "))
        .says("does not read back as it was written");
    env.run(["4096"]).exits(0);
    assert_eq!(values(&env), all_have(&ALL, 4096));
}

#[test]
fn a_backend_that_appears_is_left_to_the_next_run() {
    let Some((env, run)) = paused() else { return };
    let new = env.backend("app-mlx-generate-mac14-arm64@4");
    let before = Before::of(&new.root);
    run.resume().tells("Backends: 3 changed");

    before.still_holds();
    let next = env.run(["4096"]).exits(0);
    next.says("Backends: 1 changed, 3 unchanged");
}

#[test]
fn a_backend_that_vanishes_is_named_and_stops_no_other() {
    for (gone, others) in [(SECOND, [FIRST, THIRD]), (THIRD, [FIRST, SECOND])] {
        let Some((env, run)) = paused() else { return };
        fs::remove_dir_all(backend(&env, gone).root).unwrap();
        let ran = run.resume().exits(1);

        ran.says(&format!("error: {gone}: "))
            .says("Backends: 2 changed, 1 failed");
        assert!(!backend(&env, gone).root.exists());
        assert_eq!(values(&env), all_have(&others, 4096));
    }
}

#[test]
fn a_backend_that_vanishes_while_lmpatch_looks_is_named_and_stops_no_other() {
    let looking = [FIRST, "/mlx_engine/cache_wrapper.py"];
    let Some((env, paused)) = paused_in("openat", &looking) else {
        return;
    };
    fs::remove_dir_all(backend(&env, THIRD).root).unwrap();
    let ran = paused.resume().exits(0);

    ran.says(&format!("note: {THIRD}: "))
        .says("Backends: 2 changed, 1 incomplete");
    assert_eq!(values(&env), all_have(&[FIRST, SECOND], 4096));
}
