//! What a run found and did. `table` shows it to people, serde to scripts.

pub mod diff;
pub mod notes;
pub mod table;

use serde::Serialize;

use crate::lmstudio::backends::{Absent, Backend};
use crate::lmstudio::workers::{LoadState, Worker};
use crate::output::{Level, Output, with_home};
use crate::patch::backend::Surveyed;
use crate::patch::file::{State, VendorFile};
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
    /// The `--backend` flags that commands for the same backends have.
    #[serde(skip)]
    pub flags: String,
    pub exit_code: u8,
    /// Why the run as a whole failed.
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
    pub backend: Backend,
    pub chunk: Option<u64>,
    pub chunk_before: Option<u64>,
    pub stock: Option<u64>,
    pub state: State,
    pub result: Option<Outcome>,
    /// Why it is refused or incomplete, or what failed.
    pub why: Option<String>,
    pub in_effect: Option<LoadState>,
    pub stale_workers: Vec<u32>,
    pub files: Vec<VendorFile>,
}

#[derive(Debug, Serialize)]
pub struct ReloadReport {
    pub how: How,
    pub models: Vec<Reloaded>,
    /// Why nothing could be done.
    pub error: Option<String>,
}

impl Report {
    pub fn with(&self, outcomes: &[Outcome]) -> impl Iterator<Item = &BackendReport> {
        let is_such = |row: &&BackendReport| row.result.is_some_and(|one| outcomes.contains(&one));
        self.backends.iter().filter(is_such)
    }

    /// The backends that a run has to do with: all but those that are unfinished and not in use.
    pub fn counted(&self) -> impl Iterator<Item = &BackendReport> {
        let is_unfinished = |row: &BackendReport| row.state == State::Incomplete;
        let has_failed = |row: &BackendReport| row.result == Some(Outcome::Failed);
        let rows = self.backends.iter();
        rows.filter(move |row| row.backend.selected || has_failed(row) || !is_unfinished(row))
    }

    pub fn is_selected_missing(&self) -> bool {
        self.absent.missing.iter().any(|one| one.selected)
    }
}

impl BackendReport {
    pub fn surveyed(surveyed: Surveyed) -> Self {
        let (chunk, stock) = surveyed.chunk_and_stock().unzip();
        Self {
            chunk,
            chunk_before: chunk,
            stock,
            state: surveyed.state(),
            result: None,
            why: surveyed.blocked().map(|(_, why)| why),
            in_effect: None,
            stale_workers: Vec::new(),
            backend: surveyed.backend,
            files: surveyed.files,
        }
    }

    pub fn applied(applied: &Applied) -> Self {
        Self {
            chunk_before: applied.before.chunk_and_stock().unzip().0,
            result: Some(applied.outcome),
            why: applied.why.as_deref().map(with_home),
            ..Self::surveyed(applied.after.clone())
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
    /// Those that it is about; empty if it is about no backend in particular.
    backends: Vec<String>,
    what: String,
    /// What to do; empty if that is in `what`.
    next: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding and its next step. If several backends share it, it is told once.
    pub fn add(&mut self, level: Level, row: Option<&BackendReport>, what: &str, next: &str) {
        let (what, next) = (with_home(what), with_home(next));
        let name = row.map(|row| row.backend.name.clone());
        let is_same = |old: &&mut Finding| old.what == what && old.next == next;
        if let Some(old) = self.0.iter_mut().find(is_same) {
            let name = name.filter(|name| !old.backends.contains(name));
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

    pub fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    /// Prints them all to stderr, the most serious first.
    pub fn print(&mut self, output: &Output) {
        self.0.sort_by_key(|finding| finding.level);
        for finding in &self.0 {
            let about = match &finding.backends[..] {
                [] => String::new(),
                few @ ([_] | [_, _]) => few.join(", ") + ": ",
                all => format!("{} backends: ", all.len()),
            };
            let mut text = about + &finding.what;
            if !finding.next.is_empty() {
                text += &format!("; {}", finding.next);
            }
            output.message(finding.level, &text);
        }
    }
}
