//! PURE: one vendor file as it was read from disk, and the edit that brings it to a goal.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use super::backend::{Blocked, Goal, State, Surveyed};
use super::original::{Evidence, Original, Proof, Receipt};
use super::original::{fill, literals, prove, with_values};
use super::settings::{Setting, Site};
use super::sites::locate;
use super::words;
use crate::files::MAX_BYTES;

/// One vendor file of a backend.
#[derive(Debug, Clone)]
pub struct VendorFile {
    pub setting: &'static Setting,
    /// Where it is, links resolved where it could be read.
    pub path: PathBuf,
    pub content: Result<Arc<Source>, Blocked>,
}

/// A vendor file that was read and understood.
#[derive(Debug, Clone)]
pub struct Source {
    pub bytes: Vec<u8>,
    /// Where the setting is in it; at least one.
    pub sites: Vec<Site>,
    /// Its original, where anything proves it.
    pub original: Option<Original>,
    /// The receipt for this very file, if there is one; or why what is in its place is ignored.
    pub receipt: Result<Option<Receipt>, String>,
    /// Whether an edit takes a receipt: neither `RECORD` nor the table gives the original back after it, and there is
    /// none. One of no use gives way only where the file has its stock values again, else it is no original.
    pub needs_receipt: bool,
    /// Whether its package's `RECORD` lists other bytes, also with the stock values filled in.
    pub differs_from_record: bool,
}

/// The new content of one file.
#[derive(Debug)]
pub struct Edit {
    pub path: PathBuf,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    /// What has to be written down first.
    pub receipt: Option<Receipt>,
    /// Whether the file is to be as it was before any edit, so that a receipt has done its work.
    pub restores: bool,
}

impl Edit {
    /// Whether the file has to be written at all.
    pub fn is_change(&self) -> bool {
        self.after != self.before
    }
}

impl Source {
    /// Understands `bytes`, in which `sites` are the setting.
    pub fn new(
        bytes: Vec<u8>,
        mut sites: Vec<Site>,
        receipt: Result<Option<Receipt>, String>,
        evidence: &Evidence,
    ) -> Self {
        let by_rule = with_values(&bytes, &sites, |site| site.stock);
        let noted = receipt.iter().flatten().next();
        let noted = noted.map(|receipt| receipt.literals.clone());
        let candidates = [Some(literals(&bytes, &sites)), Some(by_rule), noted.clone()];
        let prove = |literals: &[String]| prove(&bytes, &sites, literals, evidence);
        let proven = candidates.into_iter().flatten().find_map(|literals| {
            let proof = prove(&literals)?;
            Some(Original { proof, literals })
        });
        // By the rule alone: after an edit nothing else tells what a release ships with, or how that was written.
        let shipped: Vec<_> = sites.iter().map(|site| site.stock.to_string()).collect();
        let is_as_shipped = proven.as_ref().is_some_and(|o| o.literals == shipped);
        let is_recoverable = is_as_shipped || prove(&shipped).is_some();
        let vendors = proven.iter().flat_map(|original| &original.literals);
        for (site, literal) in sites.iter_mut().zip(vendors) {
            site.stock = value(literal).unwrap_or(site.stock);
        }
        let is_stock = sites.iter().all(|site| site.value == site.stock);
        let lacks_receipt = matches!(receipt, Ok(None)) || receipt.is_err() && is_stock;
        let is_recorded = evidence.iter().any(|(proof, _)| *proof == Proof::Record);
        let (proof, differs_from_record) = (Proof::Receipt, is_recorded && proven.is_none());
        let noted = noted.map(|literals| Original { proof, literals });
        Self {
            needs_receipt: lacks_receipt && !is_recoverable,
            differs_from_record,
            bytes,
            sites,
            original: proven.or(noted),
            receipt,
        }
    }

    /// Whether every site has its stock value.
    pub fn is_stock(&self) -> bool {
        self.sites.iter().all(|site| site.value == site.stock)
    }

    /// Whether the original is what lmpatch found before its first edit, and that was not what such files ship with.
    pub fn is_as_found(&self) -> bool {
        self.original.as_ref().is_some_and(|original| {
            let mut pairs = original.literals.iter().zip(&self.sites);
            let is_odd = pairs.any(|(literal, site)| value(literal) != Some(site.stock));
            original.proof == Proof::Receipt && is_odd
        })
    }
}

fn value(literal: &str) -> Option<u64> {
    literal.replace('_', "").parse().ok()
}

impl VendorFile {
    /// What was read, where the file was understood.
    pub fn source(&self) -> Option<&Source> {
        self.content.as_deref().ok()
    }

    pub fn state(&self) -> State {
        match &self.content {
            Ok(source) => State::of(source.sites.iter()),
            Err(blocked) => blocked.state,
        }
    }

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
            (Goal::Earlier(earlier), _) => self.earlier(source, earlier)?,
            (Goal::Size(size), Some(original)) if size == stock && !source.is_as_found() => {
                original.clone()
            }
            (Goal::Size(size), _) if size == stock => with_values(bytes, sites, |s| s.stock),
            (Goal::Size(size), _) => with_values(bytes, sites, |_| size),
        };
        let after = fill(bytes, sites, &wanted);
        let is_change = wanted != now;
        if is_change && matches!(goal, Goal::Size(_)) {
            self.read_back(&after, &wanted)?;
        }
        Ok(Edit {
            path: self.path.clone(),
            before: bytes.clone(),
            receipt: (is_change && source.needs_receipt).then(|| Receipt::of(bytes, sites)),
            restores: original == Some(&wanted),
            after,
        })
    }

    /// Reads a planned edit as Python again, before anything is written.
    fn read_back(&self, after: &[u8], wanted: &[String]) -> Result<(), String> {
        if u64::try_from(after.len()).is_ok_and(|size| size > MAX_BYTES) {
            let why = format!("it would grow over the {MAX_BYTES} bytes that are read");
            return Err(why + "; give a number of fewer digits");
        }
        let read_back = literals(after, &locate(self.setting, after)?);
        let why = "the planned edit did not read back as planned; please report this";
        (read_back == wanted).then_some(()).ok_or(why.to_owned())
    }

    /// The literals that an earlier survey found here, where nothing else has changed since.
    fn earlier(&self, source: &Source, earlier: &[Surveyed]) -> Result<Vec<String>, String> {
        let mut files = earlier.iter().flat_map(|backend| &backend.files);
        let then = files.find(|file| file.path == self.path);
        if let Some(then) = then.and_then(Self::source) {
            let literals = literals(&then.bytes, &then.sites);
            if fill(&source.bytes, &source.sites, &literals) == then.bytes {
                return Ok(literals);
            }
        }
        Err("it was changed by something else since, and is left as it is".to_owned())
    }
}

fn original_unknown(source: &Source, stock: u64) -> String {
    let list = |value: fn(&Site) -> u64| {
        let values: BTreeSet<_> = source.sites.iter().map(value).collect();
        let values: Vec<_> = values.iter().map(u64::to_string).collect();
        values.join(" and ")
    };
    let (now, shipped) = (list(|site| site.value), list(|site| site.stock));
    let receipt = match &source.receipt {
        Err(why) => format!("its receipt is ignored ({why})"),
        _ => "it has no receipt".to_owned(),
    };
    format!(
        "it says {now} where such files ship with {shipped}, it is no known release and {receipt}, so the original is \
         unknown; `lmpatch {stock}` writes the stock numbers, or reinstall the runtime in LM Studio"
    )
}

impl Serialize for VendorFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let source = self.source();
        let original = source.and_then(|source| source.original.as_ref());
        let mut fields = serializer.serialize_struct("VendorFile", 5)?;
        fields.serialize_field("file", &self.setting.record_path())?;
        fields.serialize_field("path", &self.path.to_string_lossy())?;
        fields.serialize_field("state", &self.state())?;
        let proof = original.map_or("unknown".to_owned(), |original| words(original.proof));
        fields.serialize_field("original", &proof)?;
        fields.serialize_field("sites", source.map_or(&[][..], |source| &source.sites))?;
        fields.end()
    }
}
