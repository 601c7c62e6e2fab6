//! PURE: which bytes of a vendor file are the original, and what proves it.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::settings::Setting;
use super::sites::Site;

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
    pub sha256: String,
}

impl Fingerprint {
    pub fn of(bytes: &[u8]) -> Self {
        let (size, sha256) = (bytes.len(), hex(&Sha256::digest(bytes)));
        Self { size, sha256 }
    }
}

/// What lmpatch writes beside a file, as `<file>.lmpatch`, before its first edit of one that neither `RECORD` nor the
/// table could give back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    #[serde(flatten)]
    pub fingerprint: Fingerprint,
    /// The literals of the sites, as they were written.
    pub literals: Vec<String>,
}

impl Receipt {
    pub fn of(source: &[u8], sites: &[Site]) -> Self {
        let (fingerprint, literals) = (Fingerprint::of(source), literals(source, sites));
        Self {
            fingerprint,
            literals,
        }
    }

    /// The file that it was written for, where `source` is that file with other numbers.
    pub fn restore(&self, source: &[u8], sites: &[Site]) -> Option<Vec<u8>> {
        let restored = fill(source, sites, &self.literals);
        let is_like = self.literals.len() == sites.len();
        (is_like && Fingerprint::of(&restored) == self.fingerprint).then_some(restored)
    }
}

/// The original of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    pub proof: Proof,
    pub bytes: Vec<u8>,
}

/// Fingerprints of originals, strongest proof first.
pub type Evidence = Vec<(Proof, Fingerprint)>;

/// The original of the file that now reads `source`: the first of these that is proven: `source` as it is, with the
/// values that the vendor ships by rule, with what the receipt says.
pub fn find(
    source: &[u8],
    sites: &[Site],
    evidence: &Evidence,
    receipt: Option<&Receipt>,
) -> Option<Original> {
    let as_shipped = with_values(source, sites, |site| site.stock);
    let as_noted = receipt.and_then(|receipt| receipt.restore(source, sites));
    let candidates = [Some(source.to_vec()), Some(as_shipped), as_noted.clone()];
    for bytes in candidates.into_iter().flatten() {
        if let Some(proof) = prove(&bytes, evidence) {
            return Some(Original { proof, bytes });
        }
    }
    let proof = Proof::Receipt;
    as_noted.map(|bytes| Original { proof, bytes })
}

/// What says that `bytes` are the original, if anything does.
pub fn prove(bytes: &[u8], evidence: &Evidence) -> Option<Proof> {
    // Most candidates have a size that nothing has; hashing is what takes time.
    let has_size = evidence.iter().any(|row| row.1.size == bytes.len());
    let print = has_size.then(|| Fingerprint::of(bytes))?;
    let row = evidence.iter().find(|row| row.1 == print)?;
    Some(row.0)
}

/// The literals of the sites, as they are written.
pub fn literals(source: &[u8], sites: &[Site]) -> Vec<String> {
    let literal = |site: &Site| String::from_utf8_lossy(&source[site.range.clone()]).into_owned();
    sites.iter().map(literal).collect()
}

/// `source` with `value` at each site; one that has it already stays as it is written.
pub fn with_values(source: &[u8], sites: &[Site], value: impl Fn(&Site) -> u64) -> Vec<u8> {
    let mut literals = literals(source, sites);
    for (literal, site) in literals.iter_mut().zip(sites) {
        if site.value != value(site) {
            *literal = value(site).to_string();
        }
    }
    fill(source, sites, &literals)
}

/// `source` with the literal of each site replaced.
pub fn fill(source: &[u8], sites: &[Site], literals: &[String]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(source.len() + 8 * sites.len());
    let mut copied = 0;
    for (site, literal) in sites.iter().zip(literals) {
        filled.extend_from_slice(&source[copied..site.range.start]);
        filled.extend_from_slice(literal.as_bytes());
        copied = site.range.end;
    }
    filled.extend_from_slice(&source[copied..]);
    filled
}

/// What the table of known releases says of the setting's file.
pub fn releases(setting: &Setting) -> Evidence {
    let path = setting.record_path();
    let mut rows = Evidence::new();
    for line in include_str!("releases.tsv").lines() {
        let fields: Vec<_> = line.split('\t').collect();
        if let [file, sha256, size, ..] = fields[..]
            && file == path
            && let Ok(size) = size.parse()
        {
            let sha256 = sha256.to_owned();
            rows.push((Proof::Release, Fingerprint { size, sha256 }));
        }
    }
    rows
}

/// What a `RECORD` says of `path`; rows that cannot be read are ignored.
///
/// The format is that of wheels: `path,sha256=<URL-safe base64 without padding>,<size>`.
pub fn parse_record(record: &[u8], path: &str) -> Evidence {
    let row = |row| {
        let mut fields = std::str::from_utf8(row).ok()?.rsplitn(3, ',');
        let size = fields.next()?.trim().parse().ok()?;
        let digest = URL_SAFE_NO_PAD.decode(fields.next()?.strip_prefix("sha256=")?);
        let sha256 = hex(&digest.ok().filter(|digest| digest.len() == 32)?);
        let named = fields.next()?;
        let is_it = named == path || named == format!("\"{path}\"");
        is_it.then_some((Proof::Record, Fingerprint { size, sha256 }))
    };
    let rows = record.split(|byte| matches!(byte, b'\n' | b'\r'));
    rows.filter_map(row).collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
    }
    hex
}
