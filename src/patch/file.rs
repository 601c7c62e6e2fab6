//! PURE: one vendor file as it was read from disk, its state by values, and its edit.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::json;

use super::original::{Evidence, Original, Proof, Receipt, literals, prove, with_values};
use super::settings::{Setting, Site, number};

#[derive(Debug, Clone)]
pub struct VendorFile {
    pub setting: &'static Setting,
    /// Its path, with links resolved unless they are why it is refused.
    pub path: PathBuf,
    /// `None` if it is not there; or why it is refused.
    pub content: Result<Option<Arc<Source>>, String>,
}

#[derive(Debug, Clone)]
pub struct Source {
    pub bytes: Vec<u8>,
    /// Where the setting is in it; at least one.
    pub sites: Vec<Site>,
    /// Its original, if anything proves it.
    pub original: Option<Original>,
    /// The receipt for this very file, if there is one; or why what is in its place is ignored.
    pub receipt: Result<Option<Receipt>, String>,
    /// Whether an edit needs a receipt first: after it neither `RECORD` nor the table could give the original back, and
    /// there is no receipt yet. A useless one is replaced only if the file has its stock values again.
    pub needs_receipt: bool,
    /// Whether its package's `RECORD` lists other bytes, even with the stock values filled in.
    pub differs_from_record: bool,
}

/// What the numbers in a file or a backend are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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

/// The new content of one file.
#[derive(Debug)]
pub struct Edit {
    pub path: PathBuf,
    pub before: Vec<u8>,
    /// The same file with other numbers.
    pub after: Arc<Source>,
    /// The receipt that has to be written first.
    pub receipt: Option<Receipt>,
    /// Whether the file is its original afterwards and a receipt is no longer needed.
    pub drops_receipt: bool,
}

impl Edit {
    pub fn is_change(&self) -> bool {
        self.after.bytes != self.before
    }
}

impl Source {
    /// Finds the original of `bytes`, and its stock values.
    pub fn new(
        bytes: Vec<u8>,
        mut sites: Vec<Site>,
        receipt: Result<Option<Receipt>, String>,
        evidence: &Evidence,
    ) -> Self {
        let by_rule = with_values(&bytes, &sites, |site| site.stock);
        let noted = receipt.iter().flatten().next();
        let noted = noted.map(|receipt| receipt.literals.clone());
        // By the rule alone: after an edit nothing else tells what a release ships with, or how that was written.
        let shipped: Vec<_> = sites.iter().map(|site| site.stock.to_string()).collect();
        let now = literals(&bytes, &sites);
        let candidates = [now, by_rule, shipped.clone()].into_iter();
        let prove = |literals: &[String]| prove(&bytes, &sites, literals, evidence);
        let proven = candidates.chain(noted.clone()).find_map(|literals| {
            let proof = prove(&literals)?;
            Some(Original { proof, literals })
        });
        let is_shipped = |original: &Original| original.literals == shipped;
        let is_recoverable = proven.as_ref().is_some_and(is_shipped) || prove(&shipped).is_some();
        let vendors = proven.iter().flat_map(|original| &original.literals);
        for (site, literal) in sites.iter_mut().zip(vendors) {
            site.stock = number(literal).unwrap_or(site.stock);
        }
        let is_stock = sites.iter().all(|site| site.value == site.stock);
        let lacks_receipt = matches!(receipt, Ok(None)) || receipt.is_err() && is_stock;
        let is_recorded = evidence.iter().any(|(proof, _)| *proof == Proof::Record);
        let by_receipt = |literals| Original {
            proof: Proof::Receipt,
            literals,
        };
        Self {
            needs_receipt: lacks_receipt && !is_recoverable,
            differs_from_record: is_recorded && proven.is_none(),
            bytes,
            sites,
            original: proven.or(noted.map(by_receipt)),
            receipt,
        }
    }

    pub fn is_stock(&self) -> bool {
        self.sites.iter().all(|site| site.value == site.stock)
    }

    /// Whether the original is what lmpatch found before its first edit, and that was not what such files ship with.
    pub fn came_edited(&self) -> bool {
        self.original.as_ref().is_some_and(|original| {
            let mut pairs = original.literals.iter().zip(&self.sites);
            let is_odd = pairs.any(|(literal, site)| number(literal) != Some(site.stock));
            original.proof == Proof::Receipt && is_odd
        })
    }
}

impl VendorFile {
    pub fn source(&self) -> Option<&Source> {
        self.content.as_ref().ok()?.as_deref()
    }

    /// Why it is not edited.
    pub fn blocked(&self) -> Option<(State, String)> {
        let why = match &self.content {
            Ok(Some(_)) => return None,
            Ok(None) => "not there: an unfinished update",
            Err(why) => why,
        };
        let path = self.setting.record_path();
        Some((self.state(), format!("{path}: {why}")))
    }

    pub fn state(&self) -> State {
        match &self.content {
            Ok(Some(source)) => State::of(source.sites.iter()),
            Ok(None) => State::Incomplete,
            Err(_) => State::Refused,
        }
    }
}

impl Serialize for VendorFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let source = self.source();
        let original = source.and_then(|source| source.original.as_ref());
        let report = json!({
            "file": self.setting.record_path(),
            "path": self.path.to_string_lossy(),
            "state": self.state(),
            "original": original.map_or(json!("unknown"), |original| json!(original.proof)),
            "sites": source.map_or(&[][..], |source| &source.sites),
        });
        report.serialize(serializer)
    }
}
