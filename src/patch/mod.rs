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
use std::mem;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;
use glob::Pattern;
use serde::Serialize;

use crate::lmstudio::backends::{self, Installed};
use crate::lock::Lock;
use backend::{Goal, Surveyed};
use file::{Edit, State};

/// How many backends are written at a time: a disk handles many syncs as one.
const WRITERS: usize = 16;

/// What became of one backend. If it is incomplete, refused or failed, its files are as they were.
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

/// One backend, before and after a run. Both are the same if nothing was written.
#[derive(Debug)]
pub struct Applied {
    pub before: Surveyed,
    pub after: Surveyed,
    pub outcome: Outcome,
    /// Why it is incomplete, was refused or failed.
    pub why: Option<String>,
    /// The planned content of every file; empty if the backend is not edited.
    pub edits: Vec<Edit>,
}

#[derive(Debug)]
pub struct Survey {
    pub backends: Vec<Surveyed>,
    /// The rest of the home; its `backends` is empty.
    pub home: Installed,
}

/// Reads the backends of a home: all of them, or only those whose names match one of `wanted`.
pub fn survey(home: &Path, wanted: &[Pattern]) -> Result<Survey> {
    // Without this thread, the first file waits for them.
    let _ = thread::Builder::new().spawn(sites::prepare);
    let mut home = backends::find(home, wanted)?;
    let backends = parallel(mem::take(&mut home.backends), 1, survey::survey);
    Ok(Survey { backends, home })
}

/// Brings every backend to the goal; each wholly or not at all, all planned before the first write.
pub fn apply(lock: &Lock, backends: Vec<Surveyed>, goal: Goal<'_>) -> Vec<Applied> {
    let planned = dry_run(backends, goal);
    // Backends are independent, unless two are links to one directory: those take turns.
    let edits = planned.iter().flat_map(|planned| &planned.edits);
    let turn = |edit: &Edit| (edit.path.clone(), Mutex::new(()));
    let turns: BTreeMap<_, _> = edits.map(turn).collect();
    parallel(planned, WRITERS, |mut planned| {
        let first = planned.edits.first();
        let _turn = first.map(|edit| turns[&edit.path].lock());
        let is_change = planned.outcome == Outcome::WouldChange;
        let is_proof_kept = |edit: &Edit| edit.receipt.is_none() && !edit.restores;
        match write::apply(lock, &planned.edits) {
            Err(error) => {
                planned.outcome = Outcome::Failed;
                planned.why = Some(format!("{error:#}"));
            }
            Ok(()) if is_change => planned.outcome = Outcome::Changed,
            Ok(()) => return planned,
        }
        // What was written has been read back; what proves the originals has to be looked for again.
        planned.after = match planned.why {
            None if planned.edits.iter().all(is_proof_kept) => {
                planned.before.edited(&planned.edits)
            }
            _ => survey::survey(planned.before.backend.clone()),
        };
        planned
    })
}

/// What [`apply`] would do. Writes nothing.
pub fn dry_run(backends: Vec<Surveyed>, goal: Goal<'_>) -> Vec<Applied> {
    parallel(backends, 1, |before| {
        let (outcome, why, edits) = match before.edits(goal) {
            Ok(edits) if edits.iter().any(Edit::is_change) => (Outcome::WouldChange, None, edits),
            Ok(edits) => (Outcome::Unchanged, None, edits),
            Err(b) if b.state == State::Incomplete => (Outcome::Incomplete, Some(b.why), vec![]),
            Err(b) => (Outcome::Refused, Some(b.why), vec![]),
        };
        Applied {
            after: before.clone(),
            before,
            outcome,
            why,
            edits,
        }
    })
}

/// What `work` makes of each item, in their order. If a thread cannot start, the others do its share.
fn parallel<T: Send, R: Send>(items: Vec<T>, min: usize, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let slot = |item| Mutex::new((Some(item), None));
    let slots: Vec<_> = items.into_iter().map(slot).collect();
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let drain = || {
        while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut slot = slot.lock().expect("nobody else takes it");
            slot.1 = slot.0.take().map(&work);
        }
    };
    thread::scope(|scope| {
        let spawn = |_| drop(thread::Builder::new().spawn_scoped(scope, drain));
        (1..slots.len().min(threads.max(min))).for_each(spawn);
        drain();
    });
    let results = slots.into_iter().map(|slot| slot.into_inner().ok()?.1);
    results.flatten().collect()
}
