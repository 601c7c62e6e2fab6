//! What prefills, a server or a Python process, and how it tells of that.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::interrupt::TICK;
use super::race::Position;
use super::results::Run;

/// One prefill, as an engine tells it.
#[derive(Debug, Clone, Default)]
pub struct Prefill {
    pub run: Run,
    pub course: Vec<Position>,
    /// The number of steps, where they were told without their positions.
    pub bare_steps: u64,
}

/// Told every position, and none every now and then; says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Option<Position>) -> bool;

pub trait Engine {
    /// Makes the engine use chunks of `size` tokens.
    fn prepare(&mut self, size: u64) -> Result<()>;
    /// One token behind a new prompt of about `tokens` tokens. Fails too where `on_progress` ends it.
    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill>;
}

/// The next of the lines that a thread reads; none at their end.
pub fn next_line<T>(
    lines: &Receiver<T>,
    silence: Duration,
    on_progress: OnProgress<'_>,
) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => return Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => ensure!(on_progress(None), "stopped"),
        }
        let silent = format!("the engine said nothing for {} seconds", silence.as_secs());
        ensure!(start.elapsed() < silence, silent);
    }
}
