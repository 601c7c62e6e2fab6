//! One line about what a run found, with its next step.

use serde::Serialize;

use super::BackendReport;
use crate::output::Output;

/// How much a finding matters: the run fails for it, it is not as it should be, or it is good to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warning,
    Note,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    backend: Option<String>,
    what: String,
    next: String,
}

/// What was found so far.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds what was found and what to do about it. What several backends share is told once, about none of them.
    pub fn add(&mut self, level: Level, row: Option<&BackendReport>, what: &str, next: &str) {
        let is_same = |old: &&mut Finding| old.what == what && old.next == next;
        if let Some(old) = self.0.iter_mut().find(is_same) {
            old.backend = None;
            return;
        }
        let backend = row.map(|row| row.backend.name.clone());
        let (what, next) = (what.to_owned(), next.to_owned());
        self.0.push(Finding {
            level,
            backend,
            what,
            next,
        });
    }

    /// Says them all on stderr, the worst first.
    pub fn tell(&mut self, output: &Output) {
        self.0.sort_by_key(|finding| finding.level);
        for finding in &self.0 {
            let mut text = format!("{}; {}", finding.what, finding.next);
            if let Some(backend) = &finding.backend {
                text = format!("{backend}: {text}");
            }
            match finding.level {
                Level::Error => output.error(&text),
                Level::Warning => output.warn(&text),
                Level::Note => output.note(&text),
            }
        }
    }
}
