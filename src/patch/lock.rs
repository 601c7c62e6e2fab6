//! One lmpatch at a time: a lock on the directory of layers itself, so that no lock file stays behind.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::files::directory_error;

/// How long another lmpatch is waited for. A run on ten backends takes well under a second.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Locks `directory` until the returned handle is dropped, or the process ends in whatever way.
///
/// Fails where another process still holds the lock after ten seconds.
pub fn hold(directory: &Path) -> Result<File> {
    let handle =
        File::open(directory).map_err(|error| directory_error("lock", directory, error))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(handle),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", directory.display()));
            }
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => bail!(
                "another process has locked {} for {} seconds; wait for that lmpatch or end it, then run this again \
                 (lsof shows who holds it)",
                directory.display(),
                PATIENCE.as_secs()
            ),
        }
    }
}
