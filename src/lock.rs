//! One lmpatch at a time.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::command::retry;
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
        let is_taken = || {
            let (directory, seconds) = (amphibian(home), LOCK_TIMEOUT.as_secs());
            let taken = format!("another process has locked {}", directory.display());
            let next = "wait for that lmpatch or end it, then run this again";
            format!("{taken} for {seconds} seconds; {next} (lsof shows who holds it)")
        };
        Self::take_within(LOCK_TIMEOUT, home, is_taken)
    }

    /// Takes the lock on `home`. Fails with `why` if another process still has it after `limit`.
    pub fn take_within(limit: Duration, home: &Path, why: impl Fn() -> String) -> Result<Self> {
        retry(limit, || {
            Self::try_take(home).transpose().with_context(&why)
        })?
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
