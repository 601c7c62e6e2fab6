//! What launchd runs: waits until LM Studio has finished with its backends, then sets those that are stock.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use anyhow::Result;
use glob::Pattern;

use crate::lmstudio::backends::amphibian;
use crate::lock::Lock;
use crate::output::{Exit, Output};
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::file::State;
use crate::patch::settings::{SETTINGS, Setting};
use crate::patch::{self, Outcome};

/// What changes when LM Studio adds a backend or writes a vendor file: path, size, time of the last write.
type TreeStamp = Vec<(PathBuf, Option<(u64, Option<SystemTime>)>)>;

/// So many settling times are unfinished backends, or another lmpatch, waited for: 15 minutes.
const PATIENCE: u32 = 180;

/// Waits, then sets every backend that is stock. Ends in silence where another lmpatch is still busy at the deadline.
pub fn run(output: &Output, home: &Path, size: u64, settle: Duration) -> Result<Exit> {
    let deadline = Instant::now() + settle * PATIENCE;
    // Where the system does not let lmpatch in, that is told at once.
    is_finished(home)?;
    let (mut last, mut since) = (stamp(home)?, Instant::now());
    loop {
        let is_late = Instant::now() >= deadline;
        if is_late || since.elapsed() >= settle && is_finished(home)? {
            // Whoever had the lock may have changed the files.
            if let Ok(Some(lock)) = Lock::try_take(home)
                && (is_late || stamp(home)? == last)
            {
                return set_stock(output, &lock, home, size);
            }
            if is_late {
                return Ok(Exit::Done);
            }
        }
        thread::sleep(settle / 5);
        let now = stamp(home)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

fn stamp(home: &Path) -> Result<TreeStamp> {
    let all = Pattern::escape(&amphibian(home).to_string_lossy()) + "/*";
    let files = SETTINGS.iter().map(Setting::record_path);
    let files = files.map(|file| format!("{all}/lib/python3.*/site-packages/{file}"));
    let mut stamp = TreeStamp::new();
    for pattern in files.chain([all.clone()]) {
        for path in glob::glob(&pattern)?.flatten() {
            let found = fs::metadata(&path).ok();
            stamp.push((
                path,
                found.map(|found| (found.len(), found.modified().ok())),
            ));
        }
    }
    Ok(stamp)
}

/// Fails where the system does not let lmpatch in.
fn is_finished(home: &Path) -> Result<bool> {
    if matches!(amphibian(home).try_exists(), Ok(false)) {
        return Ok(false);
    }
    let found = patch::survey(home, &[])?;
    Ok(found.home.missing.is_empty() && found.backends.iter().all(is_whole))
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
