//! What prefills, a server or a Python process, and how it tells of that.

use std::time::Duration;

use anyhow::{Error, Result, anyhow};

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

/// Told every position; says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Position) -> bool;

pub trait Engine {
    /// Makes the engine use chunks of `size` tokens.
    fn prepare(&mut self, size: u64) -> Result<()>;
    /// One token behind a new prompt of about `tokens` tokens. Fails too where `on_progress` ends it.
    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill>;
}

pub fn silent(limit: Duration) -> Error {
    anyhow!("the engine said nothing for {} seconds", limit.as_secs())
}
