//! One lmpatch at a time.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::command::retry;
use crate::files::cannot;
use crate::lmstudio::backends::amphibian;

/// A lock on the directory of backends itself, so that no lock file is left behind. It is released when it is dropped,
/// or when the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    _handle: File,
}

impl Lock {
    /// Takes the lock on `home`. Fails with `why` if another process still has it after `limit`.
    pub fn take(home: &Path, limit: Duration, why: &str) -> Result<Self> {
        // That somebody else has it is tried again; that it cannot be locked at all is final.
        retry(limit, || {
            let lock = Self::try_take(home).transpose();
            lock.with_context(|| why.to_owned())
        })?
    }

    /// Takes the lock on `home`, if nobody has it.
    pub fn try_take(home: &Path) -> Result<Option<Self>> {
        let directory = amphibian(home);
        let failed = |error| cannot("lock", &directory, &error);
        let handle = File::open(&directory).map_err(failed)?;
        match handle.try_lock() {
            Ok(()) => Ok(Some(Self { _handle: handle })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}
