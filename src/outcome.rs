//! What a run amounted to, and its exit code.

use std::process::ExitCode;

use crate::patch::Deed;

/// What a run amounted to. A wrong command line is 2 and is dealt with by clap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or already so: 0.
    Done,
    /// Something failed, or nothing was found: 1.
    Failed,
    /// `--check SIZE` found another value: 3.
    OtherValue,
}

impl Outcome {
    /// The exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::OtherValue => 3,
        }
    }

    /// What these deeds amount to. Leaving a half-unpacked update alone is no failure, unless that is all there was.
    #[must_use]
    pub fn of<'d>(mut deeds: impl Iterator<Item = &'d Deed> + Clone) -> Self {
        let failed = deeds
            .clone()
            .any(|deed| matches!(deed, Deed::Refused(_) | Deed::Failed(_)));
        let nothing = deeds.all(|deed| matches!(deed, Deed::LeftAlone(_)));
        if failed || nothing {
            Self::Failed
        } else {
            Self::Done
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        outcome.code().into()
    }
}
