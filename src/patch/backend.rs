//! One backend as it is on disk now: a layer and its vendor files.

use std::path::PathBuf;

use serde::Serialize;

use super::inspect::saved_path;
use super::original::values_if_same_otherwise;
use super::plan::{Content, Goal, NotPlanned, plan};
use super::settings::Setting;
use crate::files::MAX_BYTES;
use crate::lmstudio::backends::Layer;

/// One MLX backend.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The layer it is in.
    pub layer: Layer,
    /// Its vendor files; empty where the layer could not be listed.
    pub files: Vec<VendorFile>,
}

/// One vendor file of a backend.
#[derive(Debug, Clone)]
pub struct VendorFile {
    /// What is edited in it.
    pub setting: &'static Setting,
    /// Where it is, links resolved where it could be read.
    pub path: PathBuf,
    /// What was found there.
    pub found: Found,
}

/// What was found where a vendor file should be.
#[derive(Debug, Clone)]
pub enum Found {
    /// A file that was read and understood.
    Content(Content),
    /// The package without its file: an update that is half unpacked.
    Missing,
    /// Something that is left alone.
    Refused {
        /// What was found, and where.
        why: String,
        /// Whether its bytes are proven to be the vendor's all the same.
        is_vendors: bool,
    },
}

/// What a file or a backend amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As the vendor ships it.
    Stock,
    /// Every site has the same value.
    Patched,
    /// The sites disagree, and not in the way the vendor ships them.
    Mixed,
    /// Something was found that lmpatch does not understand.
    Refused,
    /// A package without its file.
    Incomplete,
}

impl State {
    /// The word for it.
    #[must_use]
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

/// The new content of one file.
#[derive(Debug)]
pub struct Edit<'a> {
    /// The file.
    pub file: &'a VendorFile,
    /// What it holds now.
    pub content: &'a Content,
    /// What it is to hold.
    pub after: Vec<u8>,
}

impl Edit<'_> {
    /// Whether the file has to be written at all.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.after != self.content.bytes
    }

    /// Whether the file is to be as it was before any edit, so that nothing of lmpatch's need stay beside it.
    #[must_use]
    pub fn restores(&self) -> bool {
        match self.content.original_bytes() {
            Some(original) => original == self.after,
            None => !self.is_change() && self.content.is_stock(),
        }
    }
}

/// Why a backend is not edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hindrance {
    /// Half unpacked: it is left alone, which is no failure.
    Incomplete(String),
    /// Refused, and why.
    Refused(String),
}

impl Hindrance {
    /// The reason, in words.
    #[must_use]
    pub fn into_why(self) -> String {
        match self {
            Self::Incomplete(why) | Self::Refused(why) => why,
        }
    }
}

impl VendorFile {
    /// The content, where the file was understood.
    #[must_use]
    pub fn content(&self) -> Option<&Content> {
        match &self.found {
            Found::Content(content) => Some(content),
            _ => None,
        }
    }

    /// What the file amounts to.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.found {
            Found::Missing => State::Incomplete,
            Found::Refused { .. } => State::Refused,
            Found::Content(content) if content.is_stock() => State::Stock,
            Found::Content(content) if content.uniform().is_some() => State::Patched,
            Found::Content(_) => State::Mixed,
        }
    }

    /// The path as the user knows it: the layer's own part of it, `mlx_lm/generate.py`.
    #[must_use]
    pub fn short_path(&self) -> String {
        self.setting.record_path()
    }
}

impl Backend {
    /// The chunk now and the stock chunk, in tokens: those of the file that decides.
    #[must_use]
    pub fn chunk_and_stock(&self) -> Option<(u64, u64)> {
        self.files
            .iter()
            .find_map(|file| file.content()?.governing(file.setting))
    }

    /// What the backend amounts to.
    #[must_use]
    pub fn state(&self) -> State {
        let states: Vec<_> = self.files.iter().map(VendorFile::state).collect();
        if self.layer.site_packages.is_err() || states.contains(&State::Refused) {
            return State::Refused;
        }
        if states.is_empty() || states.contains(&State::Incomplete) {
            return State::Incomplete;
        }
        if states.iter().all(|state| *state == State::Stock) {
            return State::Stock;
        }
        let mut values = self
            .files
            .iter()
            .map(|file| file.content().and_then(Content::uniform));
        match values.next().flatten() {
            Some(first) if values.all(|value| value == Some(first)) => State::Patched,
            _ => State::Mixed,
        }
    }

    /// Whether the backend's chunk is `size` tokens in every place that counts.
    #[must_use]
    pub fn has(&self, size: u64) -> bool {
        let is_settled = matches!(self.state(), State::Stock | State::Patched);
        is_settled
            && self
                .chunk_and_stock()
                .is_some_and(|(chunk, _)| chunk == size)
    }

    /// Why the backend cannot be edited as it is, whatever the goal.
    #[must_use]
    pub fn hindrance(&self) -> Option<Hindrance> {
        if let Err(why) = &self.layer.site_packages {
            return Some(Hindrance::Refused(why.clone()));
        }
        if self.files.is_empty() {
            return Some(Hindrance::Incomplete(
                "it vanished while lmpatch looked at it; left alone".to_owned(),
            ));
        }
        let refused = self.files.iter().find_map(|file| match &file.found {
            Found::Refused { why, .. } => {
                Some(Hindrance::Refused(format!("{}: {why}", file.short_path())))
            }
            _ => None,
        });
        let missing = self
            .files
            .iter()
            .find(|file| matches!(file.found, Found::Missing));
        refused.or_else(|| {
            missing.map(|file| {
                Hindrance::Incomplete(format!(
                    "{} is not there, as in an update that is still being unpacked; left alone",
                    file.short_path()
                ))
            })
        })
    }

    /// What every file must hold for `goal`, also where that is what it holds already.
    pub fn edits(&self, goal: Goal) -> Result<Vec<Edit<'_>>, Hindrance> {
        if goal == Goal::Vendor && self.is_all_proven_vendors() {
            return Ok(Vec::new());
        }
        if let Some(hindrance) = self.hindrance() {
            return Err(hindrance);
        }
        let stock = self.chunk_and_stock().map(|(_, stock)| stock);
        let mut edits = Vec::new();
        for file in &self.files {
            if let Some(content) = file.content() {
                let after = plan(file.setting, content, goal, stock)
                    .map_err(|why| not_planned(file, &why, stock))?;
                edits.push(Edit {
                    file,
                    content,
                    after,
                });
            }
        }
        Ok(edits)
    }

    /// What every file must hold to be as `earlier` found it.
    pub fn edits_back_to(&self, earlier: &Self) -> Result<Vec<Edit<'_>>, Hindrance> {
        if let Some(hindrance) = self.hindrance() {
            return Err(hindrance);
        }
        let mut edits = Vec::new();
        for (file, then) in self.files.iter().zip(&earlier.files) {
            let (Some(content), Some(then)) = (file.content(), then.content()) else {
                continue;
            };
            if values_if_same_otherwise(file.setting, &content.bytes, &content.sites, &then.bytes)
                .is_none()
            {
                let why = "was changed by somebody else since; left as it is";
                return Err(Hindrance::Refused(format!("{} {why}", file.short_path())));
            }
            edits.push(Edit {
                file,
                content,
                after: then.bytes.clone(),
            });
        }
        Ok(edits)
    }

    /// Engines from before the settings existed are refused, but a revert has nothing to do on them.
    fn is_all_proven_vendors(&self) -> bool {
        let proven = |file: &VendorFile| {
            matches!(
                file.found,
                Found::Refused {
                    is_vendors: true,
                    ..
                }
            )
        };
        let stock = |file: &VendorFile| proven(file) || file.state() == State::Stock;
        self.files.iter().any(proven) && self.files.iter().all(stock)
    }
}

fn not_planned(file: &VendorFile, why: &NotPlanned, backend_stock: Option<u64>) -> Hindrance {
    let path = file.short_path();
    Hindrance::Refused(match why {
        NotPlanned::OriginalUnknown {
            found,
            stock,
            spoiled,
        } if found == stock => format!(
            "{path}: it has the values that such files ship with but is not the file that its package's RECORD lists, \
             and {}, so the vendor's bytes are not known; reinstall the runtime in LM Studio",
            copies(file, spoiled)
        ),
        NotPlanned::OriginalUnknown {
            found,
            stock,
            spoiled,
        } => format!(
            "{path}: it says {} where such files ship with {}, it is no known release and {}, \
             so the vendor's bytes are not known; `lmpatch {}` writes those numbers, or reinstall the runtime in LM Studio",
            list(found),
            list(stock),
            copies(file, spoiled),
            backend_stock.unwrap_or_default()
        ),
        NotPlanned::TooLarge => format!(
            "{path}: with that number it would have more than the {MAX_BYTES} bytes that are read at most; give a \
             number of fewer digits"
        ),
        NotPlanned::NotAsPlanned => {
            format!("{path}: the planned edit did not read back as planned; please report this")
        }
    })
}

fn copies(file: &VendorFile, spoiled: &[String]) -> String {
    match spoiled.first() {
        Some(sha256) => format!(
            "the saved copy {} is not what its name says or cannot be read",
            saved_path(&file.path, sha256).display()
        ),
        None => "there is no saved copy".to_owned(),
    }
}

fn list(values: &[u64]) -> String {
    let mut distinct: Vec<u64> = Vec::new();
    for value in values {
        if !distinct.contains(value) {
            distinct.push(*value);
        }
    }
    distinct
        .iter()
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(" and ")
}
