//! An engine, a server or a Python process, and what it reports about a prefill.

use std::time::Duration;

use anyhow::{Error, Result, anyhow};

use super::race::Position;
use super::results::Run;

/// One prefill, as an engine reports it.
#[derive(Debug, Clone, Default)]
pub struct Prefill {
    pub run: Run,
    pub course: Vec<Position>,
    /// The number of steps, if the engine told them without their positions.
    pub bare_steps: u64,
}

/// Is given every position; returns whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Position) -> bool;

pub trait Engine {
    /// Makes the engine use chunks of `size` tokens.
    fn prepare(&mut self, size: u64) -> Result<()>;
    /// Generates one token after a new prompt of about `tokens` tokens. Also fails if `on_progress` ends it.
    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill>;
}

pub fn silent(limit: Duration) -> Error {
    anyhow!("the engine said nothing for {} seconds", limit.as_secs())
}
