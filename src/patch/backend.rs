//! PURE: one backend as it was read from disk, its state by values, and the edits that bring it to a goal.

use serde::Serialize;

use super::file::{Edit, Source, VendorFile};
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
}

/// Why a file or a backend is not edited: it is [`State::Incomplete`] or [`State::Refused`].
#[derive(Debug, Clone)]
pub struct Blocked {
    pub state: State,
    pub why: String,
    /// Whether it is proven to be as the vendor ships it all the same: engines from before the settings existed are.
    pub is_original: bool,
}

impl Blocked {
    pub fn new(state: State, why: String) -> Self {
        let is_original = false;
        Self {
            state,
            why,
            is_original,
        }
    }
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
        match self.blocked() {
            Some(blocked) => blocked.state,
            None => State::of(sources.flat_map(|source| &source.sites)),
        }
    }

    /// Whether its chunk is `size` tokens in every place that counts.
    pub fn has(&self, size: u64) -> bool {
        let chunk = self.chunk_and_stock().map(|(chunk, _)| chunk);
        chunk == Some(size) && matches!(self.state(), State::Stock | State::Patched)
    }

    /// Why it cannot be edited as it is, whatever the goal.
    pub fn blocked(&self) -> Option<Blocked> {
        let stuck = "it holds no mlx_engine and no mlx_lm: a download that is stuck".to_owned();
        let blocked = self.files.iter().filter_map(|f| f.content.as_ref().err());
        match &self.backend.site_packages {
            Err(why) => Some(Blocked::new(State::Refused, why.clone())),
            Ok(_) if self.files.is_empty() => Some(Blocked::new(State::Incomplete, stuck)),
            Ok(_) => blocked.min_by_key(|b| b.state != State::Refused).cloned(),
        }
    }

    /// What every file must hold for `goal`, also where that is what it holds already.
    pub fn edits(&self, goal: Goal<'_>) -> Result<Vec<Edit>, Blocked> {
        let is_original = |file: &VendorFile| match &file.content {
            Ok(source) => source.is_stock(),
            Err(blocked) => blocked.is_original,
        };
        if let Some(blocked) = self.blocked() {
            let is_revert = matches!(goal, Goal::Original) && !self.files.is_empty();
            if !is_revert || !self.files.iter().all(is_original) {
                return Err(blocked);
            }
        }
        let stock = self.chunk_and_stock().map_or(0, |(_, stock)| stock);
        let sources = self.files.iter().filter_map(|f| Some((f, f.source()?)));
        let plan = |(file, source): (&VendorFile, &Source)| {
            let edit = file.plan(source, goal, stock);
            let path = file.setting.record_path();
            edit.map_err(|why| Blocked::new(State::Refused, format!("{path}: {why}")))
        };
        sources.map(plan).collect()
    }
}
