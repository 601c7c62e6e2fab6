//! PURE: which bytes of a vendor file are the original, and what proves it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::settings::{Setting, Site, number};

/// What says that bytes are the original; `Untouched`: only that they have the stock values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    Record,
    Release,
    Receipt,
    #[serde(rename = "unknown")]
    Untouched,
}

/// The size in bytes and the SHA-256, in hexadecimal, of an original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub size: usize,
    pub sha256: String,
}

impl Fingerprint {
    pub fn of(bytes: &[u8]) -> Self {
        let (size, sha256) = (bytes.len(), hex(&Sha256::digest(bytes)));
        Self { size, sha256 }
    }
}

/// Written beside a file, as `<file>.lmpatch`, before the first edit of one that nothing else could give back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    #[serde(flatten)]
    pub fingerprint: Fingerprint,
    pub literals: Vec<String>,
}

impl Receipt {
    pub fn of(source: &[u8], sites: &[Site]) -> Self {
        Self {
            fingerprint: Fingerprint::of(source),
            literals: literals(source, sites),
        }
    }

    pub fn fits(&self, source: &[u8], sites: &[Site]) -> bool {
        let original = fill(source, sites, &self.literals);
        self.literals.len() == sites.len() && self.fingerprint == Fingerprint::of(&original)
    }
}

/// A vendor file's text, and what is known of its original.
#[derive(Debug, Clone)]
pub struct Source {
    pub bytes: Vec<u8>,
    pub sites: Vec<Site>,
    /// What its sites say in the original, and what proves that.
    pub original: Option<(Proof, Vec<String>)>,
    /// The receipt for this very file, if there is one; or why what is in its place is ignored.
    pub receipt: Result<Option<Receipt>, String>,
    /// Whether an edit needs one first. A useless one is replaced only if the file has its stock values again.
    pub needs_receipt: bool,
    pub differs_from_record: bool,
    /// Whether the original is what lmpatch found before its first edit, and that was not what such files ship with.
    pub came_edited: bool,
}

impl Source {
    pub fn new(
        bytes: Vec<u8>,
        mut sites: Vec<Site>,
        receipt: Result<Option<Receipt>, String>,
        evidence: &Evidence,
    ) -> Self {
        let now = literals(&bytes, &sites);
        // By the rule alone: after an edit nothing else tells what a release ships with, or how that was written.
        let shipped: Vec<_> = sites.iter().map(|site| site.stock.to_string()).collect();
        let noted = receipt.iter().flatten().next();
        let noted = noted.map(|receipt| receipt.literals.clone());
        let prove = |literals: &Vec<String>| {
            // Most candidates have a size that nothing has; filling them in and hashing is what takes time.
            let before: usize = sites.iter().map(|site| site.range.len()).sum();
            let after: usize = literals.iter().map(String::len).sum();
            let size = bytes.len() - before + after;
            evidence.iter().find(|(_, of)| of.size == size)?;
            let fingerprint = Fingerprint::of(&fill(&bytes, &sites, literals));
            let (proof, _) = evidence.iter().find(|(_, of)| *of == fingerprint)?;
            Some((*proof, literals.clone()))
        };
        let proven = [&now, &shipped].into_iter().chain(&noted).find_map(prove);
        let is_recoverable = proven.as_ref().is_some_and(|(_, it)| *it == shipped);
        let vendors = proven.iter().flat_map(|(_, literals)| literals);
        for (site, literal) in sites.iter_mut().zip(vendors) {
            site.stock = number(literal).unwrap_or(site.stock);
        }
        let is_stock = sites.iter().all(|site| site.value == site.stock);
        let lacks_receipt = matches!(receipt, Ok(None)) || receipt.is_err() && is_stock;
        let is_recorded = evidence.iter().any(|(proof, _)| *proof == Proof::Record);
        let mut odd = noted.iter().flatten().zip(&sites);
        let is_odd = odd.any(|(literal, site)| number(literal) != Some(site.stock));
        let noted = noted.map(|literals| (Proof::Receipt, literals));
        let untouched = is_stock.then_some((Proof::Untouched, now));
        Self {
            needs_receipt: lacks_receipt && !is_recoverable,
            differs_from_record: is_recorded && proven.is_none(),
            came_edited: proven.is_none() && is_odd,
            bytes,
            sites,
            original: proven.or(noted).or(untouched),
            receipt,
        }
    }
}

pub type Evidence = Vec<(Proof, Fingerprint)>;

pub fn literals(source: &[u8], sites: &[Site]) -> Vec<String> {
    with_values(source, sites, |site| site.value)
}

/// The literals for `value` at each site; one that has it already stays as it is written.
pub fn with_values(source: &[u8], sites: &[Site], value: impl Fn(&Site) -> u64) -> Vec<String> {
    let literal = |site: &Site| match value(site) {
        wanted if wanted == site.value => {
            String::from_utf8_lossy(&source[site.range.clone()]).into_owned()
        }
        wanted => wanted.to_string(),
    };
    sites.iter().map(literal).collect()
}

pub fn fill(source: &[u8], sites: &[Site], literals: &[String]) -> Vec<u8> {
    let (mut filled, mut end) = (Vec::with_capacity(source.len()), 0);
    for (site, literal) in sites.iter().zip(literals) {
        filled.extend(&source[end..site.range.start]);
        filled.extend(literal.as_bytes());
        end = site.range.end;
    }
    filled.extend(&source[end..]);
    filled
}

pub fn releases(setting: &Setting) -> Evidence {
    let row = |line: &'static str| {
        let mut fields = line.split('\t');
        fields.next().filter(|path| *path == setting.path)?;
        let (sha256, size) = (fields.next()?.into(), fields.next()?.parse().ok()?);
        Some((Proof::Release, Fingerprint { size, sha256 }))
    };
    let rows = include_str!("releases.tsv").lines();
    rows.filter_map(row).collect()
}

/// What a `RECORD` says of `path`, in rows of `path,sha256=<URL-safe base64 without padding>,<size>`.
pub fn parse_record(record: &[u8], path: &str) -> Evidence {
    let row = |row| {
        let mut fields = std::str::from_utf8(row).ok()?.rsplitn(3, ',');
        let (size, digest) = (fields.next()?, fields.next()?);
        fields.next().filter(|it| *it == path)?;
        let size = size.trim().parse().ok()?;
        let digest = URL_SAFE_NO_PAD.decode(digest.strip_prefix("sha256=")?);
        let sha256 = hex(&digest.ok().filter(|digest| digest.len() == 32)?);
        Some((Proof::Record, Fingerprint { size, sha256 }))
    };
    let rows = record.split(|byte| matches!(byte, b'\n' | b'\r'));
    rows.filter_map(row).collect()
}

fn hex(bytes: &[u8]) -> String {
    let add = |hex, byte: &u8| format!("{hex}{byte:02x}");
    bytes.iter().fold(String::new(), add)
}
