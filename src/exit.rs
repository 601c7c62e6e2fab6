//! What a run amounted to, as its exit code. A wrong command line is 2 and is dealt with by clap.

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
