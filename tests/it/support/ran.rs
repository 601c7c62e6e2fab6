//! What a run printed, and how it ended.

use std::process::Output;

use serde_json::Value;

/// What a run printed, and its exit code.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless the exit code is `code`, and never accepts a panic.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Fails the test unless stderr has `text`, line breaks aside.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?}: {self:#?}");
        self
    }

    /// Fails the test unless stdout has `text`.
    #[track_caller]
    pub fn shows(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?}: {self:#?}");
        self
    }

    /// Fails the test unless this is all that was printed.
    #[track_caller]
    pub fn prints(self, stdout: &str, stderr: &str) -> Self {
        let printed = (self.stdout.as_str(), self.stderr.as_str());
        assert_eq!(printed, (stdout, stderr));
        self
    }

    /// Fails the test unless the run failed, with exit code 1, and stderr says `why`.
    #[track_caller]
    pub fn fails(self, why: &str) -> Self {
        self.exits(1).says(why)
    }

    /// Fails the test unless the run went well, with exit code 0, and stderr says `what`.
    #[track_caller]
    pub fn tells(self, what: &str) -> Self {
        self.exits(0).says(what)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails the test if stderr has `text`.
    #[track_caller]
    pub fn says_nothing_of(self, text: &str) -> Self {
        assert!(!self.stderr.contains(text), "has {text:?}: {self:#?}");
        self
    }
}
