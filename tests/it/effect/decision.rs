//! What is decided from the processes that were seen, when they started, and what `lms` has loaded.
use std::path::PathBuf;

use lmpatch::lmstudio::backends::Backend;
use lmpatch::lmstudio::runtimes::{Runtime, Selections};
use lmpatch::lmstudio::workers::LoadState::{self, InEffect, NotLoaded, ReloadNeeded, Unknown};
use lmpatch::lmstudio::workers::{Worker, WorkerSnapshot};

/// A backend that this app uses, as LM Studio's manifests would have it.
fn backend_of(app: &'static str) -> Backend {
    Backend {
        name: "a".into(),
        path: PathBuf::new(),
        real: PathBuf::new(),
        site_packages: Ok(Vec::new()),
        runtimes: vec![Runtime {
            name: String::new(),
            version: String::new(),
            packages: Vec::new(),
            selected: true,
            selected_by: vec![app],
        }],
        selected: true,
    }
}

fn worker(pid: u32, started: u64, app: &str) -> Worker {
    let app = app.to_owned();
    Worker { pid, started, app }
}

fn seen(workers: &[&Worker]) -> WorkerSnapshot {
    WorkerSnapshot {
        workers: workers.iter().copied().cloned().collect(),
        ..WorkerSnapshot::default()
    }
}

fn selections() -> Selections {
    Selections::from([("LM Studio", Ok(10)), ("Bionic", Ok(10))])
}

fn needs(older: &[&Worker]) -> LoadState {
    ReloadNeeded(older.iter().copied().cloned().collect())
}

#[test]
fn the_decision_from_literals() {
    let used = backend_of("LM Studio");
    let (old, older) = (worker(1, 100, "LM Studio"), worker(6, 99, "LM Studio"));
    let (new, same) = (worker(2, 102, "LM Studio"), worker(4, 101, "LM Studio"));
    let (bionic, daemon) = (worker(3, 50, "Bionic"), worker(5, 100, "llmster"));
    for (workers, loaded, expected) in [
        (vec![], None, NotLoaded),
        (vec![&new], None, InEffect),
        (vec![&same], None, needs(&[&same])),
        (vec![&old, &new], None, needs(&[&old])),
        (vec![&bionic], None, NotLoaded),
        (vec![&bionic, &new], None, InEffect),
        (vec![&daemon], None, needs(&[&daemon])),
        (vec![&old], Some((0, 1)), NotLoaded),
        (vec![&old], Some((1, 0)), needs(&[&old])),
        // Of another app, which lms does not know, or still being loaded.
        (vec![&old], Some((0, 0)), needs(&[&old])),
        (vec![&old, &older], Some((1, 1)), needs(&[&old, &older])),
    ] {
        let snapshot = seen(&workers);
        let state = snapshot.load_state(&used, || Some(101), &selections(), || loaded);
        assert_eq!(state, expected, "{snapshot:?}");
    }
    // What LM Studio has loaded is no excuse for a worker of Bionic.
    let snapshot = seen(&[&bionic, &new]);
    let used = backend_of("Bionic");
    let state = snapshot.load_state(&used, || Some(101), &selections(), || Some((0, 1)));
    assert_eq!(state, needs(&[&bionic]));
}

#[test]
fn what_cannot_be_decided_says_why() {
    let used = backend_of("LM Studio");
    let (old, new) = (worker(1, 100, "LM Studio"), worker(2, 102, "LM Studio"));
    let (early, other) = (worker(7, 10, "LM Studio"), worker(8, 500, "Other"));
    let both_engines = Some((1, 1));
    for (workers, loaded, written, expected) in [
        (vec![&old, &new], both_engines, Some(101), "another engine"),
        (vec![&new], None, None, "no date"),
        (vec![&early], None, Some(5), "worker 7"),
        (vec![&other], None, Some(5), "worker 8"),
    ] {
        let state = seen(&workers).load_state(&used, || written, &selections(), || loaded);
        let is_told = matches!(&state, Unknown(why) if why.contains(expected));
        assert!(is_told, "{state:?}");
    }
    let mut snapshot = seen(&[&new]);
    for (directory, is_its) in [("a", true), ("b", false), ("cpython3.11@10", true)] {
        snapshot.foreign = vec![(9, directory.to_owned())];
        let state = snapshot.load_state(&used, || Some(101), &selections(), || None);
        assert_eq!(matches!(state, Unknown(_)), is_its, "{directory}");
    }
    let state = seen(&[&new]).load_state(&used, || Some(101), &Selections::default(), || None);
    let is_told = matches!(&state, Unknown(why) if why.contains("is unknown"));
    assert!(is_told, "{state:?}");
}
