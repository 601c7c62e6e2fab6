//! Others at work in the same home: many lmpatch at once, a lock that is never given up, LM Studio updating.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Stdio;

use crate::support::home::{
    BackendDir, engine_since_2026, generate, stock_generate, usual_backend,
};
use crate::support::strace::{self, Call, Paused};
use crate::support::{Env, Ran, amphibian, differences, snapshot};
use serde_json::Value;

const FIRST: &str = "app-mlx-generate-mac14-arm64@1";
const SECOND: &str = "app-mlx-generate-mac14-arm64@2";
const THIRD: &str = "app-mlx-generate-mac14-arm64@3";

fn three_backends() -> Env {
    let env = Env::new();
    for backend in [FIRST, SECOND, THIRD] {
        usual_backend(&env.lmstudio(), backend);
    }
    env
}

/// The value of every site of each backend, by the backend's name.
fn values(env: &Env) -> Vec<(String, BTreeSet<u64>)> {
    let list = |value: &Value, key: &str| value[key].as_array().unwrap().clone();
    let report = env.json(["--check"]);
    let sites = |backend: &Value| {
        list(backend, "files")
            .iter()
            .flat_map(|file| list(file, "sites"))
            .collect::<Vec<_>>()
    };
    let of = |backend: &Value| {
        let values = sites(backend)
            .iter()
            .map(|site| site["value"].as_u64().unwrap())
            .collect();
        (backend["name"].as_str().unwrap().to_owned(), values)
    };
    list(&report, "backends").iter().map(of).collect()
}

/// What a run that set 4096 everywhere leaves.
fn all_have(backends: &[&str], size: u64) -> Vec<(String, BTreeSet<u64>)> {
    backends
        .iter()
        .map(|backend| ((*backend).to_owned(), BTreeSet::from([size])))
        .collect()
}

#[test]
fn sixteen_at_once_leave_one_value() {
    let env = three_backends();
    let vendor = snapshot(&env.lmstudio());
    let sizes: Vec<u64> = (1..=16).map(|step| 4096 + 64 * step).collect();
    let started: Vec<_> = sizes
        .iter()
        .map(|size| {
            env.command([size.to_string()])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let ran: Vec<_> = started
        .into_iter()
        .map(|child| Ran::of(&child.wait_with_output().unwrap()))
        .collect();

    for ran in &ran {
        let gave_up = ran.code == Some(1) && ran.stderr.contains("another process has locked");
        assert!(ran.code == Some(0) || gave_up, "{ran:#?}");
    }
    let now = values(&env);
    let chosen = *now[0].1.first().unwrap();
    assert!(sizes.contains(&chosen), "{now:?}");
    assert_eq!(now, all_have(&[FIRST, SECOND, THIRD], chosen));
    env.run(["--revert"]).exits(0);
    assert_eq!(differences(&vendor, &snapshot(&env.lmstudio())), [""; 0]);
}

#[test]
fn beside_the_marker_of_an_interrupted_benchmark_a_set_is_no_benchmark() {
    let env = three_backends();
    let commands = [(FIRST.to_owned(), "lmpatch --revert".to_owned())];
    lmpatch::marker::add(&env.lmstudio(), commands.into()).unwrap();
    let holder = File::open(env.amphibian()).unwrap();
    holder.lock().unwrap();
    let child = env.command(["4096", "--quiet"]).spawn().unwrap();
    // As long as another set might take.
    std::thread::sleep(std::time::Duration::from_millis(100));
    drop(holder);
    assert!(child.wait_with_output().unwrap().status.success());
}

#[test]
fn a_lock_that_is_never_given_up_is_named_after_a_bounded_wait() {
    let env = three_backends();
    let before = snapshot(&env.lmstudio());
    let holder = File::open(env.amphibian()).unwrap();
    holder.lock().unwrap();

    let started = std::time::Instant::now();
    let waited = env
        .run(["4096"])
        .exits(1)
        .says("another process has locked");
    assert!(
        started.elapsed().as_secs() < 60,
        "it waited for {:?}",
        started.elapsed()
    );
    waited
        .says(&format!("{} for", env.amphibian().display()))
        .says("lsof");
    env.run(["--check"]).exits(0).shows(FIRST);
    env.run(["4096", "--dry-run"]).exits(0).shows("4096");
    assert_eq!(differences(&before, &snapshot(&env.lmstudio())), [""; 0]);

    drop(holder);
    env.run(["4096"]).exits(0);
}

/// The first call of a run that sets 4096 on [`three_backends`] that `is_it`.
fn call(is_it: impl Fn(&Call) -> bool) -> Call {
    strace::record(&three_backends(), &["4096"])
        .into_iter()
        .find(is_it)
        .unwrap()
}

/// A run that stands still when everything is planned, the first backend is done, and the new content of the second
/// is on the disk but not yet in its place.
fn paused_before_the_second(env: &Env) -> Paused {
    let staged = call(|call| {
        call.name == "fsync"
            && call.text.contains(SECOND)
            && call.text.contains(".generate.py.lmpatch-tmp.")
    });
    let paused = strace::pause(env, &staged, &["4096"]);
    let is_temporary = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .to_string_lossy()
            .contains(".generate.py.lmpatch-tmp.")
    };
    let package = amphibian(&env.lmstudio())
        .join(SECOND)
        .join(crate::support::home::SITE_PACKAGES)
        .join("mlx_lm");
    assert!(
        fs::read_dir(package)
            .unwrap()
            .any(|entry| is_temporary(&entry.unwrap()))
    );
    paused
}

fn backend(env: &Env, name: &str) -> BackendDir {
    BackendDir {
        root: env.amphibian().join(name),
    }
}

#[test]
fn a_file_that_is_rewritten_before_the_rename_keeps_the_updaters_bytes() {
    let updated_engine = engine_since_2026("1024") + "# updated\n";
    let updated_generate = generate("1024", "1024", "1024") + "# updated\n";
    for (relative, bytes) in [
        ("mlx_engine/cache_wrapper.py", &updated_engine),
        ("mlx_lm/generate.py", &updated_generate),
    ] {
        if !strace::is_there() {
            return;
        }
        let env = three_backends();
        let paused = paused_before_the_second(&env);
        let second = backend(&env, SECOND).write(relative, bytes);
        let ran = paused.resume();

        let as_updated = three_backends();
        backend(&as_updated, SECOND).write(relative, bytes);
        let (now, wanted) = (
            snapshot(&second.root),
            snapshot(&backend(&as_updated, SECOND).root),
        );
        assert_eq!(differences(&wanted, &now), [""; 0], "{ran:#?}");
        let ran = ran
            .exits(1)
            .says(&format!("error: {SECOND}: "))
            .says("was changed by something else");
        ran.says(relative)
            .says_nothing_of(&format!("error: {FIRST}"))
            .says_nothing_of(&format!("error: {THIRD}"));
        let done: Vec<_> = values(&env)
            .into_iter()
            .filter(|(name, _)| name != SECOND)
            .collect();
        assert_eq!(done, all_have(&[FIRST, THIRD], 4096));
        env.run(["4096"]).exits(0);
        assert_eq!(values(&env), all_have(&[FIRST, SECOND, THIRD], 4096));
    }
}

#[test]
fn a_file_that_is_rewritten_after_the_rename_keeps_the_updaters_bytes() {
    if !strace::is_there() {
        return;
    }
    let env = three_backends();
    // No copy of this file is saved, so its directory is first synced after the rename, and the engine's is done.
    let directory = format!("{SECOND}/{}/mlx_lm>", crate::support::home::SITE_PACKAGES);
    let replaced = call(|call| call.name == "fsync" && call.text.contains(&directory));
    let paused = strace::pause(&env, &replaced, &["4096"]);
    let updated = engine_since_2026("1024") + "# updated\n";
    let second = backend(&env, SECOND).with_engine(&updated);
    let ran = paused.resume();

    assert_eq!(fs::read_to_string(second.engine()).unwrap(), updated);
    assert_eq!(
        fs::read_to_string(second.generate()).unwrap(),
        stock_generate(),
        "{ran:#?}"
    );
    ran.exits(1)
        .says(&format!("error: {SECOND}: "))
        .says("does not read back as it was written");
    env.run(["4096"]).exits(0);
    assert_eq!(values(&env), all_have(&[FIRST, SECOND, THIRD], 4096));
}

#[test]
fn a_backend_that_appears_is_left_to_the_next_run() {
    if !strace::is_there() {
        return;
    }
    let env = three_backends();
    let paused = paused_before_the_second(&env);
    let new = usual_backend(&env.lmstudio(), "app-mlx-generate-mac14-arm64@4");
    let before = snapshot(&new.root);
    paused.resume().exits(0).says("3 backends: 3 changed");

    assert_eq!(differences(&before, &snapshot(&new.root)), [""; 0]);
    env.run(["4096"])
        .exits(0)
        .says("4 backends: 1 changed, 3 unchanged");
}

#[test]
fn a_backend_that_vanishes_is_named_and_stops_no_other() {
    if !strace::is_there() {
        return;
    }
    for (gone, others) in [(SECOND, [FIRST, THIRD]), (THIRD, [FIRST, SECOND])] {
        let env = three_backends();
        let paused = paused_before_the_second(&env);
        fs::remove_dir_all(&backend(&env, gone).root).unwrap();
        paused
            .resume()
            .exits(1)
            .says(&format!("error: {gone}: "))
            .says("3 backends: 2 changed, 1 failed");

        assert!(!backend(&env, gone).root.exists());
        assert_eq!(values(&env), all_have(&others, 4096));
    }
}

#[test]
fn a_backend_that_vanishes_while_lmpatch_looks_is_named_and_stops_no_other() {
    if !strace::is_there() {
        return;
    }
    let env = three_backends();
    let looking = call(|call| {
        call.name == "openat"
            && call.text.contains(FIRST)
            && call.text.contains("/mlx_engine/cache_wrapper.py")
    });
    let paused = strace::pause(&env, &looking, &["4096"]);
    fs::remove_dir_all(&backend(&env, THIRD).root).unwrap();
    let ran = paused.resume().exits(0).says(&format!("note: {THIRD}: "));

    ran.says("3 backends: 2 changed, 1 incomplete");
    assert_eq!(values(&env), all_have(&[FIRST, SECOND], 4096));
}
