//! One lmpatch at a time.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::files::cannot;
use crate::lmstudio::backends::amphibian;

/// How long to wait for another lmpatch. A run on ten backends takes well under a second.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A lock on the directory of backends itself, so that no lock file is left behind. It is released when it is dropped,
/// or when the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _handle: File,
}

impl Lock {
    /// Takes the lock on `home`. Fails if another process still has it after ten seconds.
    pub fn take(home: &Path) -> Result<Self> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(lock) = Self::try_take(home)? {
                return Ok(lock);
            }
            thread::sleep(Duration::from_millis(20));
        }
        let (directory, seconds) = (amphibian(home), LOCK_TIMEOUT.as_secs());
        bail!(
            "another process has locked {} for {seconds} seconds; wait for that lmpatch or end it, then run this again \
             (lsof shows who holds it)",
            directory.display()
        );
    }

    /// Takes the lock on `home`, if nobody has it.
    pub fn try_take(home: &Path) -> Result<Option<Self>> {
        let directory = amphibian(home);
        let failed = |error| cannot("lock", &directory, error);
        let handle = File::open(&directory).map_err(failed)?;
        match handle.try_lock() {
            Ok(()) => Ok(Some(Self { _handle: handle })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}
