//! One line about what a run found, with its next step.

use serde::Serialize;

use super::BackendReport;
use crate::output::{Level, Output};

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
        self.0.push(Finding {
            level,
            backend: row.map(|row| row.backend.name.clone()),
            what: what.to_owned(),
            next: next.to_owned(),
        });
    }

    /// Says them all on stderr, the worst first.
    pub fn tell(&mut self, output: &Output) {
        self.0.sort_by_key(|finding| finding.level);
        for finding in &self.0 {
            let about = finding.backend.iter().map(|name| format!("{name}: "));
            let about: String = about.collect();
            let text = format!("{about}{}; {}", finding.what, finding.next);
            output.tell(finding.level, &text);
        }
    }
}
