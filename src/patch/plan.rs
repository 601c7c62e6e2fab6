//! PURE: what is in the files + what is wanted → the bytes that each file must have, or why not.

use std::borrow::Cow;

use super::original::{Bytes, Original, Proof, values_if_same_otherwise, with_values};
use super::settings::Setting;
use super::sites::Site;
use crate::files::MAX_BYTES;

/// What a run is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// A chunk of this many tokens.
    Size(u64),
    /// The vendor's own bytes, whatever they say.
    Vendor,
}

/// One vendor file that was read and understood.
#[derive(Debug, Clone)]
pub struct Content {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Where the setting stands in it.
    pub sites: Vec<Site>,
    /// What is known about the vendor's bytes.
    pub original: Original,
}

impl Content {
    /// Whether every site has its stock value and, where the vendor's bytes are known, the file is those bytes.
    #[must_use]
    pub fn is_stock(&self) -> bool {
        match &self.original.bytes {
            Some(Bytes::Copy(copy)) if self.is_vendor_known() => *copy == self.bytes,
            _ => self.has_stock_values() && !self.original.is_disproved,
        }
    }

    /// The bytes that `--revert` gives back, where there are any.
    #[must_use]
    pub fn original_bytes(&self) -> Option<Cow<'_, [u8]>> {
        Some(match self.original.bytes.as_ref()? {
            Bytes::PutBack => with_values(&self.bytes, &self.sites, &self.original.stock).into(),
            Bytes::Copy(copy) => copy.into(),
        })
    }

    /// Whether the bytes that `--revert` gives back are known to be the vendor's.
    #[must_use]
    pub fn is_vendor_known(&self) -> bool {
        !matches!(self.original.proof, Proof::Found | Proof::Unknown)
    }

    /// Whether every site has its stock value.
    #[must_use]
    pub fn has_stock_values(&self) -> bool {
        self.sites
            .iter()
            .map(|site| site.value)
            .eq(self.original.stock.iter().copied())
    }

    /// The one value that all sites have, if they agree, in tokens.
    #[must_use]
    pub fn uniform(&self) -> Option<u64> {
        let first = self.sites.first()?.value;
        self.sites
            .iter()
            .all(|site| site.value == first)
            .then_some(first)
    }

    /// The value now and the stock value, in tokens, of the site that decides.
    #[must_use]
    pub fn governing(&self, setting: &Setting) -> Option<(u64, u64)> {
        let decides = |site: &&Site| {
            setting
                .governing_owner
                .is_none_or(|owner| site.owner == owner)
        };
        let site = self.sites.iter().find(decides).or(self.sites.first())?;
        let position = self.sites.iter().position(|other| other == site)?;
        Some((site.value, *self.original.stock.get(position)?))
    }
}

/// Why a backend cannot be brought to the goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotPlanned {
    /// The vendor's bytes are wanted and not known.
    OriginalUnknown {
        /// The values that are there now, in tokens.
        found: Vec<u64>,
        /// The values that such a file ships with, in tokens.
        stock: Vec<u64>,
        /// See [`Original::spoiled`].
        spoiled: Vec<String>,
    },
    /// The file would grow beyond what lmpatch reads, so the edit could be neither verified nor reverted.
    TooLarge,
    /// The planned bytes did not read back as planned: a defect of lmpatch.
    NotAsPlanned,
}

/// The bytes that one file must have for the goal. `stock` is the backend's own stock value, in tokens.
///
/// Where the goal is that value, it is the vendor's bytes; any other number is written literally.
/// The result is read again before it is given out: the same sites, the wanted values, nothing else changed.
pub fn plan(
    setting: &Setting,
    content: &Content,
    goal: Goal,
    stock: Option<u64>,
) -> Result<Vec<u8>, NotPlanned> {
    let wants_stock =
        goal == Goal::Vendor || matches!(goal, Goal::Size(size) if Some(size) == stock);
    let values = match goal {
        Goal::Size(size) if !wants_stock => vec![size; content.sites.len()],
        _ => content.original.stock.clone(),
    };
    let original = wants_stock.then(|| content.original_bytes()).flatten();
    let after = match (original, content.is_vendor_known()) {
        (Some(vendor), true) => vendor.into_owned(),
        (Some(found), false) if goal == Goal::Vendor => return Ok(found.into_owned()),
        (None, _) if goal == Goal::Vendor && !content.is_stock() => {
            let found = content.sites.iter().map(|site| site.value).collect();
            let spoiled = content.original.spoiled.clone();
            return Err(NotPlanned::OriginalUnknown {
                found,
                stock: values,
                spoiled,
            });
        }
        _ => with_values(&content.bytes, &content.sites, &values),
    };
    if u64::try_from(after.len()).is_ok_and(|size| size > MAX_BYTES) {
        return Err(NotPlanned::TooLarge);
    }
    match values_if_same_otherwise(setting, &content.bytes, &content.sites, &after) {
        Some(read_back) if read_back == values => Ok(after),
        _ => Err(NotPlanned::NotAsPlanned),
    }
}

/// Whether the file must be saved before an edit: its vendor's bytes could not be proven or found again after it.
///
/// Where a saved copy is there that is no longer what was saved, a file with other than stock values has been edited
/// since, and is no original.
#[must_use]
pub fn must_save(content: &Content) -> bool {
    let original = &content.original;
    let is_edited = original.proof == Proof::Unknown
        && !original.spoiled.is_empty()
        && !content.has_stock_values();
    original.needs_copy && !is_edited
}
