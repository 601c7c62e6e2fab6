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
use std::sync::Mutex;
use std::thread;

use anyhow::Result;
use glob::Pattern;
use serde::Serialize;

use crate::lmstudio::backends::{self, Absent, MissingBackend};
use crate::lock::Lock;
use backend::{Goal, Surveyed};
use file::{Edit, State};

/// How many backends are written at a time: a disk handles many syncs as one.
const WRITERS: usize = 16;

/// What became of one backend. If it is incomplete or refused, its files are as they were; if it failed, the reason says
/// whether they are.
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

#[derive(Debug, Default)]
pub struct Survey {
    pub backends: Vec<Surveyed>,
    pub absent: Absent,
}

/// Reads the backends of a home: all of them, or only those whose names match one of `wanted`.
pub fn survey(home: &Path, wanted: &[Pattern]) -> Result<Survey> {
    let (found, mut absent) = backends::find(home)?;
    let found = found.into_iter();
    let (found, left_out) = found.partition(|one| is_wanted(&one.name, wanted));
    // That the selected runtime lacks something is told in any case.
    let is_told = |one: &MissingBackend| one.selected || is_wanted(&one.name, wanted);
    absent.missing.retain(is_told);
    absent.left_out = left_out;
    let backends = parallel(found, 1, survey::survey);
    Ok(Survey { backends, absent })
}

/// Whether the name matches one of the patterns, or there are none.
pub fn is_wanted(name: &str, patterns: &[Pattern]) -> bool {
    patterns.is_empty() || patterns.iter().any(|one| one.matches(name))
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
        let written = write::apply(lock, &planned.edits);
        // What was written has been read back. A receipt that was written or removed changes what proves the originals.
        let keeps_receipt = |edit: &Edit| edit.receipt.is_none() && !edit.drops_receipt;
        planned.after = if written.is_ok() && planned.edits.iter().all(keeps_receipt) {
            planned.before.edited(&planned.edits)
        } else {
            survey::survey(planned.before.backend.clone())
        };
        if let Err(error) = written {
            planned.outcome = Outcome::Failed;
            planned.why = Some(format!("{error:#}"));
        } else if planned.outcome == Outcome::WouldChange {
            planned.outcome = Outcome::Changed;
        }
        planned
    })
}

/// What [`apply`] would do. Writes nothing.
pub fn dry_run(backends: Vec<Surveyed>, goal: Goal<'_>) -> Vec<Applied> {
    parallel(backends, 1, |before| {
        let (outcome, why, edits) = match before.edits(goal) {
            Ok(edits) if edits.iter().any(Edit::is_change) => match write::unwritable(&edits) {
                Some(why) => (Outcome::Failed, Some(why), vec![]),
                None => (Outcome::WouldChange, None, edits),
            },
            Ok(edits) => (Outcome::Unchanged, None, edits),
            Err((State::Incomplete, why)) => (Outcome::Incomplete, Some(why), vec![]),
            Err((_, why)) => (Outcome::Refused, Some(why), vec![]),
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
    let threads = thread::available_parallelism().map_or(min, |cores| cores.get().max(min));
    let threads = items.len().min(threads);
    let left = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let unlocked = "nothing panics while it is locked";
    let next = || left.lock().expect(unlocked).next();
    let drain = || {
        while let Some((index, item)) = next() {
            let result = work(item);
            done.lock().expect(unlocked).insert(index, result);
        }
    };
    thread::scope(|scope| {
        let spawn = |_| drop(thread::Builder::new().spawn_scoped(scope, drain));
        (1..threads).for_each(spawn);
        drain();
    });
    done.into_inner().expect(unlocked).into_values().collect()
}
