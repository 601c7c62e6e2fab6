//! PURE: one backend as it was read from disk, and the edits that bring it to a goal.

use std::sync::Arc;

use super::file::{Edit, Source, State, VendorFile};
use super::original::{Receipt, fill, literals, with_values};
use super::settings::Site;
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

/// A backend and what its vendor files hold.
#[derive(Debug, Clone)]
pub struct Surveyed {
    pub backend: Backend,
    /// Empty in a stuck download.
    pub files: Vec<VendorFile>,
}

impl Surveyed {
    /// The chunk now and the stock chunk, in tokens: those of the first site, the engine's or that of `generate_step`.
    pub fn chunk_and_stock(&self) -> Option<(u64, u64)> {
        let site = self.files.first()?.source()?.sites.first()?;
        Some((site.value, site.stock))
    }

    /// Every site that could be read.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        let sources = self.files.iter().filter_map(VendorFile::source);
        sources.flat_map(|source| &source.sites)
    }

    pub fn state(&self) -> State {
        match self.blocked() {
            Some((state, _)) => state,
            None => State::of(self.sites()),
        }
    }

    /// Whether all of it is there, both packages too.
    pub fn is_whole(&self) -> bool {
        self.state() != State::Incomplete && self.files.len() != 1
    }

    /// Whether a file of it was edited before lmpatch, so that stock numbers in it are somebody's choice.
    pub fn came_edited(&self) -> bool {
        let mut sources = self.files.iter().filter_map(VendorFile::source);
        sources.any(Source::came_edited)
    }

    /// Whether a file of it is not the one that its package's `RECORD` lists: an edit of somebody's, or an unfinished update.
    pub fn differs_from_record(&self) -> bool {
        let mut sources = self.files.iter().filter_map(VendorFile::source);
        sources.any(|source| source.differs_from_record)
    }

    /// Why it cannot be edited as it is, whatever the goal.
    pub fn blocked(&self) -> Option<(State, String)> {
        let stuck = "it holds no mlx_engine and no mlx_lm: a stuck download, or it is gone";
        let blocked = self.files.iter().filter_map(VendorFile::blocked);
        match &self.backend.site_packages {
            Err(why) => Some((State::Refused, why.clone())),
            Ok(_) if self.files.is_empty() => Some((State::Incomplete, stuck.to_owned())),
            Ok(_) => blocked.min_by_key(|(state, _)| *state != State::Refused),
        }
    }

    /// The backend with `edits`, which leave what proves its originals as it is.
    pub(super) fn edited(&self, edits: &[Edit]) -> Self {
        let mut after = self.clone();
        for file in &mut after.files {
            if let Some(edit) = edits.iter().find(|edit| edit.path == file.path) {
                file.content = Ok(Some(edit.after.clone()));
            }
        }
        after
    }

    /// What every file must hold for `goal`, including files that already hold it.
    pub fn edits(&self, goal: Goal<'_>) -> Result<Vec<Edit>, (State, String)> {
        if let Some(blocked) = self.blocked() {
            return Err(blocked);
        }
        let stock = self.chunk_and_stock().map_or(0, |(_, stock)| stock);
        let plan = |file: &VendorFile| {
            let edit = file.plan(file.source()?, goal, stock);
            let path = file.setting.record_path();
            Some(edit.map_err(|why| (State::Refused, format!("{path}: {why}"))))
        };
        self.files.iter().filter_map(plan).collect()
    }
}

impl VendorFile {
    /// What the file must hold for the goal, or why it cannot. `stock` is the backend's own stock value, in tokens.
    pub fn plan(&self, source: &Source, goal: Goal<'_>, stock: u64) -> Result<Edit, String> {
        let (bytes, sites) = (&source.bytes, &source.sites);
        let now = literals(bytes, sites);
        let original = match &source.original {
            Some(original) => Some(&original.literals),
            // As far as is known it was never edited.
            None => source.is_stock().then_some(&now),
        };
        let wanted = match (goal, original) {
            (Goal::Original, None) => return Err(original_unknown(source, stock)),
            (Goal::Original, Some(original)) => original.clone(),
            (Goal::Earlier(earlier), _) => self.literals_in(earlier, source)?,
            (Goal::Size(size), Some(original)) if size == stock && !source.came_edited() => {
                original.clone()
            }
            (Goal::Size(size), _) if size == stock => with_values(bytes, sites, |s| s.stock),
            (Goal::Size(size), _) => with_values(bytes, sites, |_| size),
        };
        let mut after = source.clone();
        if wanted != now {
            after.bytes = fill(bytes, sites, &wanted);
            after.sites = self.read_back(&after, &wanted)?;
        }
        let is_set = matches!(goal, Goal::Size(_));
        // Of a file that was edited before lmpatch, only a revert or a benchmark's end gives back what was found.
        let drops_receipt = original == Some(&wanted) && !(is_set && source.came_edited());
        Ok(Edit {
            path: self.path.clone(),
            before: bytes.clone(),
            receipt: (is_set && !drops_receipt && source.needs_receipt)
                .then(|| Receipt::of(bytes, sites)),
            drops_receipt,
            after: Arc::new(after),
        })
    }

    /// Reads a planned edit as Python again, before anything is written: the sites in it.
    fn read_back(&self, after: &Source, wanted: &[String]) -> Result<Vec<Site>, String> {
        let Source { bytes, sites, .. } = after;
        if u64::try_from(bytes.len()).is_ok_and(|size| size > MAX_BYTES) {
            let why = format!("it would exceed the limit of {MAX_BYTES} bytes");
            return Err(why + "; give a shorter number");
        }
        let mut now = locate(self.setting, bytes)?;
        for (site, before) in now.iter_mut().zip(sites) {
            site.stock = before.stock;
        }
        if literals(bytes, &now) != wanted {
            return Err("the planned edit did not read back as planned; please report this".into());
        }
        Ok(now)
    }

    fn literals_in(&self, earlier: &[Surveyed], source: &Source) -> Result<Vec<String>, String> {
        let mut files = earlier.iter().flat_map(|backend| &backend.files);
        let same = files.find(|file| file.path == self.path);
        if let Some(before) = same.and_then(VendorFile::source) {
            let literals = literals(&before.bytes, &before.sites);
            if fill(&source.bytes, &source.sites, &literals) == before.bytes {
                return Ok(literals);
            }
        }
        Err("it was changed by something else since, and is left as it is".to_owned())
    }
}

fn original_unknown(source: &Source, stock: u64) -> String {
    let receipt = match &source.receipt {
        Err(why) => format!("its receipt is ignored ({why})"),
        _ => "it has no receipt".to_owned(),
    };
    let next =
        format!("set its stock size, {stock}, in it alone (--backend), or reinstall the runtime");
    format!("the original is unknown: not a known release, and {receipt}; {next}")
}
