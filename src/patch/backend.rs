//! PURE: one backend as it was read from disk, and the edits that bring it to a goal.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::json;

use super::original::{Receipt, Source, fill, literals, with_values};
use super::settings::{Setting, Site};
use super::sites::locate;
use crate::files::MAX_BYTES;
use crate::lmstudio::backends::Backend;

/// What a run is to bring about: a chunk of so many tokens; the original bytes; or those of an earlier survey.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    Size(u64),
    Original,
    Earlier(&'a [Surveyed]),
}

#[derive(Debug, Clone, Serialize)]
pub struct Surveyed {
    #[serde(flatten)]
    pub backend: Backend,
    pub files: Vec<VendorFile>,
}

#[derive(Debug, Clone)]
pub struct VendorFile {
    pub setting: &'static Setting,
    pub path: PathBuf,
    pub content: Result<Arc<Source>, (State, String)>,
}

#[derive(Debug, Clone)]
pub struct Edit {
    pub path: PathBuf,
    pub before: Vec<u8>,
    pub after: Arc<Source>,
    pub receipt: Option<Receipt>,
    /// Whether the file is its original afterwards.
    pub drops_receipt: bool,
}

impl Edit {
    pub fn is_change(&self) -> bool {
        self.after.bytes != self.before
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Stock,
    Patched,
    Mixed,
    Refused,
    Incomplete,
}

impl State {
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

impl Surveyed {
    /// The chunk now and the stock chunk, in tokens: those of the first site, the engine's or that of `generate_step`.
    pub fn chunk_and_stock(&self) -> Option<(u64, u64)> {
        let site = self.files.first()?.source()?.sites.first()?;
        Some((site.value, site.stock))
    }

    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter_map(VendorFile::source)
    }

    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sources().flat_map(|source| &source.sites)
    }

    pub fn state(&self) -> State {
        let blocked = self.blocked().map(|(state, _)| state);
        blocked.unwrap_or_else(|| State::of(self.sites()))
    }

    pub fn is_whole(&self) -> bool {
        self.state() != State::Incomplete && self.files.len() != 1
    }

    pub fn differs_from_record(&self) -> bool {
        self.sources().any(|source| source.differs_from_record)
    }

    pub fn blocked(&self) -> Option<(State, String)> {
        let stuck = "it holds no mlx_engine and no mlx_lm: a stuck download, or it is gone";
        let files = self.files.iter();
        let blocked = files.filter_map(|file| file.content.as_ref().err());
        match &self.backend.site_packages {
            Err(why) => Some((State::Refused, why.clone())),
            Ok(_) if self.files.is_empty() => Some((State::Incomplete, stuck.to_owned())),
            Ok(_) => blocked.min().cloned(),
        }
    }

    /// What every file must hold for `goal`, including files that already hold it.
    pub fn edits(&self, goal: Goal<'_>) -> Result<Vec<Edit>, (State, String)> {
        self.blocked().map_or(Ok(()), Err)?;
        let stock = self.chunk_and_stock().map_or(0, |(_, stock)| stock);
        let plan = |file: &VendorFile| {
            let edit = file.plan(file.source()?, goal, stock);
            let path = file.setting.path;
            Some(edit.map_err(|why| (State::Refused, format!("{path}: {why}"))))
        };
        self.files.iter().filter_map(plan).collect()
    }
}

impl VendorFile {
    pub fn source(&self) -> Option<&Source> {
        self.content.as_deref().ok()
    }

    pub fn state(&self) -> State {
        match &self.content {
            Ok(source) => State::of(source.sites.iter()),
            Err((state, _)) => *state,
        }
    }

    /// What the file must hold for the goal, or why it cannot. `stock` is the backend's own stock value, in tokens.
    pub fn plan(&self, source: &Source, goal: Goal<'_>, stock: u64) -> Result<Edit, String> {
        let (bytes, sites) = (&source.bytes, &source.sites);
        let is_set = matches!(goal, Goal::Size(_));
        let original = source.original.as_ref().map(|(_, literals)| literals);
        // Of a file that was edited before lmpatch, only a revert or a benchmark's end gives back what was found.
        let original = original.filter(|_| !(is_set && source.came_edited));
        let wanted = match (goal, original) {
            (Goal::Original, Some(original)) => original.clone(),
            (Goal::Original, None) => {
                let why = "the original is unknown: not a known release, and no receipt proves it";
                let set = format!("set its stock size, {stock}, in it alone (--backend)");
                return Err(format!("{why}; {set}, or reinstall the runtime"));
            }
            (Goal::Earlier(earlier), _) => {
                let changed = "it was changed by something else since, and is left as it is";
                self.literals_in(earlier, source).ok_or(changed)?
            }
            (Goal::Size(size), Some(original)) if size == stock => original.clone(),
            (Goal::Size(size), _) if size == stock => with_values(bytes, sites, |s| s.stock),
            (Goal::Size(size), _) => with_values(bytes, sites, |_| size),
        };
        let drops_receipt = original == Some(&wanted);
        let needs_receipt = is_set && !drops_receipt && source.needs_receipt;
        Ok(Edit {
            path: self.path.clone(),
            before: bytes.clone(),
            after: Arc::new(self.filled(source, &wanted)?),
            receipt: needs_receipt.then(|| Receipt::of(bytes, sites)),
            drops_receipt,
        })
    }

    /// The file with other literals, read as Python again before anything is written.
    fn filled(&self, source: &Source, wanted: &[String]) -> Result<Source, String> {
        let mut after = source.clone();
        if wanted == literals(&source.bytes, &source.sites) {
            return Ok(after);
        }
        after.bytes = fill(&source.bytes, &source.sites, wanted);
        after.sites = locate(self.setting, &after.bytes)?;
        for (site, before) in after.sites.iter_mut().zip(&source.sites) {
            site.stock = before.stock;
        }
        let is_too_long = after.bytes.len() as u64 > MAX_BYTES;
        if is_too_long || literals(&after.bytes, &after.sites) != wanted {
            return Err("it would not read back as planned; please report this".into());
        }
        Ok(after)
    }

    fn literals_in(&self, earlier: &[Surveyed], source: &Source) -> Option<Vec<String>> {
        let mut files = earlier.iter().flat_map(|backend| &backend.files);
        let before = files.find(|file| file.path == self.path)?.source()?;
        let literals = literals(&before.bytes, &before.sites);
        let filled = fill(&source.bytes, &source.sites, &literals);
        (filled == before.bytes).then_some(literals)
    }
}

impl Serialize for VendorFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let source = self.source();
        let original = source.and_then(|source| source.original.as_ref());
        let report = json!({
            "file": self.setting.path,
            "path": self.path.to_string_lossy(),
            "state": self.state(),
            "original": original.map_or(json!("unknown"), |(proof, _)| json!(proof)),
            "sites": source.map_or(&[][..], |source| &source.sites),
        });
        report.serialize(serializer)
    }
}
