//! What a run found and did. `table` shows it to people, serde to scripts.

pub mod notes;
pub mod table;

use serde::Serialize;

use crate::lmstudio::backends::Absent;
use crate::lmstudio::workers::{LoadState, Worker};
use crate::output::{Level, Output, with_home};
use crate::patch::backend::{State, Surveyed};
use crate::patch::{Applied, Outcome};
use crate::reload::{How, Reloaded};

/// The version of the JSON report's shape; it grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 3;

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub schema: u32,
    pub version: &'static str,
    pub action: Action,
    pub dry_run: bool,
    /// What was asked for, in tokens.
    pub size: Option<u64>,
    pub home: Option<String>,
    pub exit_code: u8,
    pub error: Option<String>,
    pub backends: Vec<BackendReport>,
    #[serde(flatten)]
    pub absent: Absent,
    pub findings: Findings,
    /// LM Studio's workers; `None` if the run did not look at them.
    pub workers: Option<Vec<Worker>>,
    pub reload: Option<ReloadReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    #[default]
    Check,
    Set,
    Revert,
}

/// One backend. Chunks are in tokens; `result` is `None` in a check.
#[derive(Debug, Serialize)]
pub struct BackendReport {
    #[serde(flatten)]
    pub now: Surveyed,
    pub chunk: Option<u64>,
    pub chunk_before: Option<u64>,
    pub stock: Option<u64>,
    pub state: State,
    pub result: Option<Outcome>,
    pub why: Option<String>,
    pub in_effect: Option<LoadState>,
    pub stale_workers: Vec<u32>,
    /// Whether its files were edited before lmpatch first saw them, also if a revert has just ended that.
    #[serde(skip)]
    pub came_edited: bool,
}

#[derive(Debug, Serialize)]
pub struct ReloadReport {
    pub how: How,
    pub models: Vec<Reloaded>,
    pub error: Option<String>,
}

impl Report {
    /// The backends that loaded models use, as far as what the apps have selected is known.
    pub fn used(&self) -> impl Iterator<Item = &BackendReport> {
        let is_known = self.absent.selections.values().any(Result::is_ok);
        let rows = self.backends.iter();
        rows.filter(move |row| row.now.backend.selected || !is_known)
    }
}

impl BackendReport {
    /// A backend as it is now, after a run in which that was `applied`.
    pub fn new(now: Surveyed, applied: Option<&Applied>) -> Self {
        let (chunk, stock) = now.chunk_and_stock().unzip();
        let before = applied.map_or(&now, |applied| &applied.before);
        let came_edited = |one: &Surveyed| one.sources().any(|source| source.came_edited);
        let blocked = || now.blocked().map(|(_, why)| why);
        Self {
            chunk,
            chunk_before: before.chunk_and_stock().unzip().0,
            stock,
            state: now.state(),
            result: applied.map(|applied| applied.outcome),
            why: applied.map_or_else(blocked, |applied| applied.why.as_deref().map(with_home)),
            in_effect: None,
            stale_workers: Vec::new(),
            came_edited: came_edited(before) || came_edited(&now),
            now,
        }
    }

    /// Whether its chunk is `size` tokens in every place that counts.
    pub fn has(&self, size: u64) -> bool {
        self.chunk == Some(size) && matches!(self.state, State::Stock | State::Patched)
    }
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    backends: Vec<String>,
    what: String,
    next: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding and its next step. If several backends share it, it is told once.
    pub fn add(&mut self, level: Level, row: Option<&BackendReport>, what: &str, next: &str) {
        let (what, next) = (with_home(what), with_home(next));
        let name = row.map(|row| row.now.backend.name.clone());
        let is_same = |old: &&mut Finding| old.what == what && old.next == next;
        if let Some(old) = self.0.iter_mut().find(is_same) {
            old.backends.extend(name);
            old.level = old.level.min(level);
            return;
        }
        self.0.push(Finding {
            level,
            backends: name.into_iter().collect(),
            what,
            next,
        });
    }

    pub fn has_error(&self) -> bool {
        self.0.iter().any(|finding| finding.level == Level::Error)
    }

    /// Prints them all to stderr, the most serious first.
    pub fn print(&mut self, output: &Output) {
        self.0.sort_by_key(|finding| finding.level);
        for finding in &self.0 {
            let mut text = finding.backends.join(", ");
            if !text.is_empty() {
                text += ": ";
            }
            text += &finding.what;
            if !finding.next.is_empty() {
                text += &format!("; {}", finding.next);
            }
            output.message(finding.level, &text);
        }
    }
}
