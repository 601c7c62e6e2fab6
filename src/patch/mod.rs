//! What is edited in LM Studio's MLX backends, and how; knows nothing of HTTP or processes.

pub mod backend;
pub mod bytecode;
pub mod file;
pub mod original;
pub mod settings;
pub mod sites;
pub mod survey;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::thread;

use anyhow::Result;
use glob::Pattern;
use serde::Serialize;

use crate::lmstudio::backends::{self, MissingBackend};
use backend::{Goal, Surveyed};
use file::Edit;

pub use write::{Lock, temporaries};

/// So many backends are read, or written, at a time. A disk takes many syncs as one.
const READERS: usize = 2;
const WRITERS: usize = 16;

/// What became of one backend. Where it is incomplete, refused or failed, its files are as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Changed,
    Unchanged,
    WouldChange,
    Incomplete,
    Refused,
    Failed,
}

impl Outcome {
    pub fn words(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::WouldChange => "would change",
            Self::Incomplete => "incomplete",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// One backend, before and after a run. Both are the same where nothing was written.
#[derive(Debug)]
pub struct Applied {
    pub before: Surveyed,
    pub after: Surveyed,
    pub outcome: Outcome,
    /// Why it is incomplete, was refused or failed.
    pub why: Option<String>,
    /// What every file was to hold; empty where it was blocked.
    pub edits: Vec<Edit>,
}

/// A home as it is on disk now.
#[derive(Debug)]
pub struct Survey {
    pub backends: Vec<Surveyed>,
    pub missing: Vec<MissingBackend>,
    /// Why it is unknown which runtime is selected, a sentence for each app of which that is so.
    pub selection_unknown: Vec<String>,
    /// The selected backends that no pattern matches.
    pub left_out: Vec<String>,
}

/// Reads every backend of a home whose name matches one of `wanted`, all where that is empty.
pub fn survey(home: &Path, wanted: &[Pattern]) -> Result<Survey> {
    let found = backends::find(home, wanted)?;
    Ok(Survey {
        backends: in_parallel(found.backends, READERS, survey::survey),
        missing: found.missing,
        selection_unknown: found.selection_unknown,
        left_out: found.left_out,
    })
}

/// Brings every backend to the goal; each wholly or not at all, all planned before the first write.
pub fn apply(lock: &Lock, backends: Vec<Surveyed>, goal: Goal<'_>) -> Vec<Applied> {
    let planned = dry_run(backends, goal);
    // Backends are independent, except where two are links to one directory: those take turns.
    let mut turns = BTreeMap::new();
    for edit in planned.iter().flat_map(|planned| &planned.edits) {
        turns.insert(edit.path.clone(), Mutex::new(()));
    }
    in_parallel(planned, WRITERS, |planned| {
        let first = planned.edits.first();
        let _turn = first.map(|edit| turns[&edit.path].lock());
        write(lock, planned)
    })
}

/// What [`apply`] would do. Writes nothing.
pub fn dry_run(backends: Vec<Surveyed>, goal: Goal<'_>) -> Vec<Applied> {
    let plan = |before: Surveyed| {
        let (outcome, why, edits) = match before.edits(goal) {
            Err(blocked) => (blocked.outcome, Some(blocked.why), Vec::new()),
            Ok(edits) if edits.iter().any(Edit::is_change) => (Outcome::WouldChange, None, edits),
            Ok(edits) => (Outcome::Unchanged, None, edits),
        };
        Applied {
            after: before.clone(),
            before,
            outcome,
            why,
            edits,
        }
    };
    backends.into_iter().map(plan).collect()
}

fn write(lock: &Lock, mut planned: Applied) -> Applied {
    match write::apply(lock, &planned.edits) {
        Err(error) => {
            planned.outcome = Outcome::Failed;
            planned.why = Some(format!("{error:#}"));
        }
        Ok(()) if planned.outcome == Outcome::WouldChange => planned.outcome = Outcome::Changed,
        Ok(()) => return planned,
    }
    planned.after = survey::survey(planned.before.backend.clone());
    planned
}

/// What `work` makes of each item, in their order. A thread that cannot be had leaves its share to the others.
fn in_parallel<T, R>(items: Vec<T>, threads: usize, work: impl Fn(T) -> R + Sync) -> Vec<R>
where
    T: Send,
    R: Send + Sync,
{
    let threads = threads.min(items.len());
    let results: Vec<OnceLock<R>> = items.iter().map(|_| OnceLock::new()).collect();
    let queue = Mutex::new(items.into_iter().zip(&results));
    let next = || queue.lock().ok()?.next();
    let drain = || {
        while let Some((item, result)) = next() {
            result.get_or_init(|| work(item));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            let _ = thread::Builder::new().spawn_scoped(scope, drain);
        }
        drain();
    });
    drop(queue);
    let taken = |result: OnceLock<R>| result.into_inner().expect("a thread took it");
    results.into_iter().map(taken).collect()
}
