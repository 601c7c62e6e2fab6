//! Ctrl-C, and the other ways in which an end is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How often it is looked whether to go on.
pub const TICK: Duration = Duration::from_millis(50);

/// How often an end was asked for.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicUsize>,
    tolerated: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From now on signals are counted and end nothing.
    pub fn catch() -> Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch Ctrl-C")?;
        let interrupt = Self::default();
        let asked = Arc::clone(&interrupt.asked);
        thread::spawn(move || {
            for _ in signals.forever() {
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(interrupt)
    }

    /// Whether to come to an end.
    pub fn is_set(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > self.tolerated.load(Ordering::SeqCst)
    }

    /// Whether an end was ever asked for.
    pub fn was_set(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > 0
    }

    /// The first one has been answered; only another one counts.
    pub fn tolerate_first(&self) {
        self.tolerated.store(1, Ordering::SeqCst);
    }

    /// What `work` gives; where an end is asked for before, the work goes on alone.
    pub fn attend<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        ensure!(!self.is_set(), "stopped");
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(work()));
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if !self.is_set() => {}
                Err(_) => bail!("stopped"),
            }
        }
    }
}
