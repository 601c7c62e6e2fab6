//! What a run amounted to, as its exit code. A wrong command line is 2 and is dealt with by clap.

use std::process::ExitCode;

/// What a run amounted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Something failed, or nothing was found.
    Failed = 1,
    /// `--check SIZE` found another value.
    OtherValue = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
