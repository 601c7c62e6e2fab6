//! PURE: one backend as it was read from disk, its state by values, and the edits that bring it to a goal.

use serde::Serialize;

use super::Outcome;
use super::file::{Content, Edit, VendorFile};
use super::settings::Site;
use crate::lmstudio::backends::Backend;

/// What a run is to bring about: a chunk of so many tokens; the original bytes; or those of an earlier survey.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    Size(u64),
    Original,
    Earlier(&'a [Surveyed]),
}

/// A backend and what its vendor files hold.
#[derive(Debug, Clone)]
pub struct Surveyed {
    pub backend: Backend,
    /// Empty in a stuck download.
    pub files: Vec<VendorFile>,
    /// Whether its engine fits the context to memory with the chunk in the formula (2026-07-14 to 2026-08-21).
    pub fits_context: bool,
}

/// What the numbers in a file or a backend are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Stock,
    /// The same everywhere.
    Patched,
    Mixed,
    Refused,
    Incomplete,
}

impl State {
    /// The state of what has these sites.
    pub fn of<'s>(sites: impl Iterator<Item = &'s Site>) -> Self {
        let sites: Vec<_> = sites.collect();
        if sites.iter().all(|site| site.value == site.stock) {
            Self::Stock
        } else if sites.iter().all(|site| site.value == sites[0].value) {
            Self::Patched
        } else {
            Self::Mixed
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Patched => "patched",
            Self::Mixed => "mixed",
            Self::Refused => "refused",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Why a backend is not edited: [`Outcome::Incomplete`] or [`Outcome::Refused`], and the reason.
#[derive(Debug)]
pub struct Blocked {
    pub outcome: Outcome,
    pub why: String,
}

fn refused(why: String) -> Blocked {
    let outcome = Outcome::Refused;
    Blocked { outcome, why }
}

impl Surveyed {
    /// The chunk now and the stock chunk, in tokens: those of the site that decides.
    pub fn chunk_and_stock(&self) -> Option<(u64, u64)> {
        let mut files = self.files.iter();
        let (file, source) = files.find_map(|file| Some((file, file.source()?)))?;
        let decides = |site: &&Site| Some(&*site.owner) == file.setting.governing_owner;
        let site = source.sites.iter().find(decides);
        let site = site.or(source.sites.first())?;
        Some((site.value, site.stock))
    }

    pub fn state(&self) -> State {
        let sources = self.files.iter().filter_map(VendorFile::source);
        match self.blocked().map(|blocked| blocked.outcome) {
            None => State::of(sources.flat_map(|source| &source.sites)),
            Some(Outcome::Incomplete) => State::Incomplete,
            Some(_) => State::Refused,
        }
    }

    /// Whether its chunk is `size` tokens in every place that counts.
    pub fn has(&self, size: u64) -> bool {
        let chunk = self.chunk_and_stock().map(|(chunk, _)| chunk);
        chunk == Some(size) && matches!(self.state(), State::Stock | State::Patched)
    }

    /// Why it cannot be edited as it is, whatever the goal.
    pub fn blocked(&self) -> Option<Blocked> {
        if let Err(why) = &self.backend.site_packages {
            return Some(refused(why.clone()));
        }
        let stuck =
            "it holds no mlx_engine and no mlx_lm: a download that is stuck or not finished";
        let mut why = self.files.is_empty().then(|| stuck.to_owned());
        for file in &self.files {
            let path = file.setting.record_path();
            match &file.content {
                Content::Refused { why, .. } => return Some(refused(format!("{path}: {why}"))),
                Content::Missing => {
                    why = Some(format!(
                        "{path} is not there: an update that is not finished"
                    ));
                }
                Content::Source(_) => {}
            }
        }
        let outcome = Outcome::Incomplete;
        why.map(|why| Blocked { outcome, why })
    }

    /// What every file must hold for `goal`, also where that is what it holds already.
    pub fn edits(&self, goal: Goal<'_>) -> Result<Vec<Edit>, Blocked> {
        if matches!(goal, Goal::Original) && self.is_proven_original() {
            return Ok(Vec::new());
        }
        if let Some(blocked) = self.blocked() {
            return Err(blocked);
        }
        let stock = self.chunk_and_stock().map_or(0, |(_, stock)| stock);
        let mut edits = Vec::new();
        for file in &self.files {
            let Some(source) = file.source() else {
                continue;
            };
            let edit = file.plan(source, goal, stock);
            let path = file.setting.record_path();
            edits.push(edit.map_err(|why| refused(format!("{path}: {why}")))?);
        }
        Ok(edits)
    }

    /// Engines from before the settings existed are refused, but a revert has nothing to do on them.
    fn is_proven_original(&self) -> bool {
        let mut is_any = false;
        for file in &self.files {
            match file.content {
                Content::Refused { is_original, .. } if is_original => is_any = true,
                _ if file.state() == State::Stock => {}
                _ => return false,
            }
        }
        is_any
    }
}
