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
    pub fn add<'r>(
        &mut self,
        level: Level,
        row: impl Into<Option<&'r BackendReport>>,
        what: impl Into<String>,
        next: impl Into<String>,
    ) {
        let finding = Finding {
            level,
            backend: row.into().map(|row| row.backend.name.clone()),
            what: what.into(),
            next: next.into(),
        };
        let is_same = |old: &Finding| old.what == finding.what && old.next == finding.next;
        match self.0.iter().position(is_same) {
            Some(index) => self.0[index].backend = None,
            None => self.0.push(finding),
        }
    }

    /// Says them all on stderr, the worst first.
    pub fn tell(&mut self, output: &Output) {
        self.0.sort_by_key(|finding| finding.level);
        for finding in &self.0 {
            let mut text = format!("{}; {}", finding.what, finding.next);
            if let Some(backend) = &finding.backend {
                text.insert_str(0, &format!("{backend}: "));
            }
            match finding.level {
                Level::Error => output.error(&text),
                Level::Warning => output.warn(&text),
                Level::Note => output.note(&text),
            }
        }
    }
}
