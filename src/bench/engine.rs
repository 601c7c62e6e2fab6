//! What prefills: a server or a Python process.

use std::time::Duration;

use anyhow::{Error, Result, anyhow};

use super::results::{Position, Run};

/// Is given every position; returns whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Position) -> bool;

pub trait Engine: Send {
    /// Generates one token after a new prompt of about `tokens` tokens, which is prefilled `chunk` tokens at a time if
    /// the engine lets that be chosen. Also fails if `on_progress` ends it.
    fn prefill(&mut self, chunk: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run>;
}

pub fn silent(limit: Duration) -> Error {
    anyhow!("the engine said nothing for {} seconds", limit.as_secs())
}
