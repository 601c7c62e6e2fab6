//! What launchd runs: waits until LM Studio has finished with its backends, then sets those that are stock.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use anyhow::Result;

use crate::lmstudio::backends::amphibian;
use crate::lock::Lock;
use crate::output::{Exit, Output};
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::file::State;
use crate::patch::{self, Outcome};

/// So many settling times are unfinished backends, or another lmpatch, waited for: 15 minutes.
const PATIENCE: u32 = 180;

/// Waits, then sets every backend that is stock. Ends in silence where another lmpatch is still busy at the deadline;
/// fails at once where the system does not let lmpatch in.
pub fn run(output: &Output, home: &Path, size: u64, settle: Duration) -> Result<Exit> {
    let deadline = Instant::now() + settle * PATIENCE;
    let (mut last, mut since) = (look(home)?, Instant::now());
    loop {
        let is_late = Instant::now() >= deadline;
        if is_late || since.elapsed() >= settle && last.is_finished {
            // Whoever had the lock may have changed the files.
            if let Ok(Some(lock)) = Lock::try_take(home)
                && (is_late || look(home)? == last)
            {
                return set_stock(output, &lock, home, size);
            }
            if is_late {
                return Ok(Exit::Done);
            }
        }
        thread::sleep(settle / 5);
        let now = look(home)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Whether every backend is whole, and path, size and time of the last write of each vendor file.
#[derive(Default, PartialEq)]
struct TreeStamp {
    is_finished: bool,
    files: Vec<(PathBuf, Option<(u64, SystemTime)>)>,
}

fn look(home: &Path) -> Result<TreeStamp> {
    if matches!(amphibian(home).try_exists(), Ok(false)) {
        return Ok(TreeStamp::default());
    }
    let found = patch::survey(home, &[])?;
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    };
    let files = found.backends.iter().flat_map(|backend| &backend.files);
    let files = files.map(|file| (file.path.clone(), stamp(&file.path)));
    Ok(TreeStamp {
        is_finished: found.home.missing.is_empty() && found.backends.iter().all(is_whole),
        files: files.collect(),
    })
}

/// Whether all of it is there, both packages too.
fn is_whole(backend: &Surveyed) -> bool {
    backend.state() != State::Incomplete && backend.files.len() != 1
}

/// Sets every whole backend that has its stock values to `size` tokens, and tells what was set or refused.
pub fn set_stock(output: &Output, lock: &Lock, home: &Path, size: u64) -> Result<Exit> {
    let mut backends = patch::survey(home, &[])?.backends;
    let is_for_us = |state| matches!(state, State::Stock | State::Refused);
    backends.retain(|backend| is_whole(backend) && is_for_us(backend.state()));
    let mut exit = Exit::Done;
    for applied in patch::apply(lock, backends, Goal::Size(size)) {
        let name = &applied.before.backend.name;
        if let Some(why) = applied.why {
            exit = Exit::Failed;
            output.error(&format!("{name}: {why}"));
        } else if applied.outcome == Outcome::Changed {
            let (stock, _) = applied.before.chunk_and_stock().unwrap_or_default();
            output.say(&format!("{name}: {stock} → {size}"));
        }
    }
    Ok(exit)
}
