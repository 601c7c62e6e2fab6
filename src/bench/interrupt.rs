//! Ctrl-C, and the other ways in which a terminal asks for an end: a flag, so that what was set is put back first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// How often it is looked at.
pub const TICK: Duration = Duration::from_millis(50);

/// Whether the user asked for an end.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on Ctrl-C sets the flag and ends nothing. Fails where the system takes no handler.
    pub fn catch() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&interrupt.0)).context("cannot catch Ctrl-C")?;
        }
        Ok(interrupt)
    }

    /// Whether the user asked for an end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What `work` gives; none where the user asks for an end before. The work goes on in its thread then.
    pub fn attend<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(work()));
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.is_set() => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
