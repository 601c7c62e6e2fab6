//! PURE: which bytes of a vendor file are the original, and what proves it.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::settings::{Setting, Site};

/// What proves that bytes are the original: the package's `dist-info/RECORD`, the table of known releases, or what
/// lmpatch wrote down before its first edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    Record,
    Release,
    Receipt,
}

/// The size in bytes and the SHA-256, in hexadecimal, of an original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub size: usize,
    pub sha256: Cow<'static, str>,
}

impl Fingerprint {
    pub fn of(bytes: &[u8]) -> Self {
        let (size, sha256) = (bytes.len(), hex(&Sha256::digest(bytes)).into());
        Self { size, sha256 }
    }
}

/// What lmpatch writes beside a file, as `<file>.lmpatch`, before its first edit of one that neither `RECORD` nor the
/// table could give back.
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

    /// Whether `source` is the file that it was written for, perhaps with other numbers.
    pub fn fits(&self, source: &[u8], sites: &[Site]) -> bool {
        let evidence = vec![(Proof::Receipt, self.fingerprint.clone())];
        let is_proven = prove(source, sites, &self.literals, &evidence).is_some();
        is_proven && self.literals.len() == sites.len()
    }
}

/// The original of a file: what its sites say there, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    pub proof: Proof,
    pub literals: Vec<String>,
}

/// Fingerprints of originals, in the order in which they are tried.
pub type Evidence = Vec<(Proof, Fingerprint)>;

/// What says that `source` with these literals is the original, if anything does.
pub fn prove(source: &[u8], sites: &[Site], literals: &[String], rows: &Evidence) -> Option<Proof> {
    // Most candidates have a size that nothing has; hashing is what takes time.
    let before: usize = sites.iter().map(|site| site.range.len()).sum();
    let after: usize = literals.iter().map(String::len).sum();
    let size = source.len() - before + after;
    let has_size = rows.iter().any(|row| row.1.size == size);
    let parts = has_size.then(|| parts(source, sites, literals))?;
    let hashed = parts.iter().fold(Sha256::new(), Sha256::chain_update);
    let sha256 = hex(&hashed.finalize());
    Some(rows.iter().find(|row| row.1.sha256 == sha256)?.0)
}

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

/// `source` with the literal of each site replaced.
pub fn fill(source: &[u8], sites: &[Site], literals: &[String]) -> Vec<u8> {
    parts(source, sites, literals).concat()
}

fn parts<'a>(source: &'a [u8], sites: &[Site], literals: &'a [String]) -> Vec<&'a [u8]> {
    let (mut parts, mut end) = (Vec::new(), 0);
    for (site, literal) in sites.iter().zip(literals) {
        parts.extend([&source[end..site.range.start], literal.as_bytes()]);
        end = site.range.end;
    }
    parts.push(&source[end..]);
    parts
}

/// What the table of known releases says of the setting's file.
pub fn releases(setting: &Setting) -> Evidence {
    let path = setting.record_path() + "\t";
    let row = |line: &'static str| {
        let mut fields = line.strip_prefix(&path)?.split('\t');
        let (sha256, size) = (fields.next()?.into(), fields.next()?.parse().ok()?);
        Some((Proof::Release, Fingerprint { size, sha256 }))
    };
    let rows = include_str!("releases.tsv").lines();
    rows.filter_map(row).collect()
}

/// What a `RECORD` says of `path`, in rows of `path,sha256=<URL-safe base64 without padding>,<size>`.
pub fn parse_record(record: &[u8], path: &str) -> Evidence {
    let quoted = format!("\"{path}\"");
    let row = |row| {
        let mut fields = std::str::from_utf8(row).ok()?.rsplitn(3, ',');
        let (size, digest, named) = (fields.next()?, fields.next()?, fields.next()?);
        if named != path && named != quoted {
            return None;
        }
        let size = size.trim().parse().ok()?;
        let digest = URL_SAFE_NO_PAD.decode(digest.strip_prefix("sha256=")?);
        let sha256 = hex(&digest.ok().filter(|digest| digest.len() == 32)?).into();
        Some((Proof::Record, Fingerprint { size, sha256 }))
    };
    let rows = record.split(|byte| matches!(byte, b'\n' | b'\r'));
    rows.filter_map(row).collect()
}

fn hex(bytes: &[u8]) -> String {
    let add = |hex, byte: &u8| format!("{hex}{byte:02x}");
    bytes.iter().fold(String::new(), add)
}
