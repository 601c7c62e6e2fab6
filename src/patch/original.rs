//! PURE: which bytes are the vendor's own, and how that is known.
//!
//! Three things can prove it, strongest first: the hash that the package's `RECORD` lists, the table of known
//! releases, and a copy that lmpatch saved before its own first edit. Nothing is ever guessed.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::settings::Setting;
use super::sites::{Site, locate};

/// How the vendor's bytes of a file are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// They match the package's `dist-info/RECORD`.
    Record,
    /// They match the table of known releases.
    Release,
    /// lmpatch saved them before its first edit, with the values that such files ship with.
    Saved,
    /// lmpatch saved the file before its first edit, but its values were not those that such files ship with:
    /// somebody may have edited it before, so it can be given back but is not called the vendor's.
    Found,
    /// They are not known.
    Unknown,
}

/// What is known about the vendor's bytes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// How they are known.
    pub proof: Proof,
    /// The bytes that `--revert` gives back, where there are any.
    pub bytes: Option<Bytes>,
    /// The stock value of each site, in the order of the sites; an inference where the vendor's bytes are not known.
    pub stock: Vec<u64>,
    /// The SHA-256s in the names of saved copies that are no longer what was saved, and so prove nothing.
    pub spoiled: Vec<String>,
    /// Whether the vendor's bytes could not be known again after an edit, unless they are saved before it.
    pub needs_copy: bool,
    /// Whether `RECORD` lists the file, but neither as it is nor with its stock values put back.
    pub is_disproved: bool,
}

/// Bytes that were in a file before an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bytes {
    /// Those that it has now, with the stock values put back.
    PutBack,
    /// Those of a saved copy.
    Copy(Vec<u8>),
}

/// A digest and a size, as `RECORD` and the table give them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// The length in bytes.
    pub size: usize,
}

impl Fingerprint {
    fn of(pieces: &[Cow<'_, [u8]>]) -> Self {
        let mut hasher = Sha256::new();
        for piece in pieces {
            hasher.update(piece);
        }
        Self {
            sha256: hasher.finalize().into(),
            size: size(pieces),
        }
    }
}

/// A copy beside the file that carries lmpatch's name.
#[derive(Debug, Clone)]
pub struct SavedCopy {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// The SHA-256 in its name, in hexadecimal, which its bytes must have.
    pub named_sha256: String,
}

impl SavedCopy {
    /// Whether the bytes are still those that were saved.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        sha256_hex(&self.bytes) == self.named_sha256
    }
}

/// What was found beside a vendor file.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// The rows of every `RECORD` of the package that name the file.
    pub record: Vec<Fingerprint>,
    /// The copies that carry lmpatch's name.
    pub saved: Vec<SavedCopy>,
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Fingerprint::of(&[bytes.into()]).sha256)
}

fn hex(digest: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    digest
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Finds the vendor's bytes of a file that now reads `source`.
///
/// The bytes as they are and the bytes with every setting put back to its stock value are held against `RECORD` and
/// the table; then a saved copy is taken, if it is intact and differs from `source` in nothing but the settings.
#[must_use]
pub fn identify(setting: &Setting, source: &[u8], sites: &[Site], evidence: &Evidence) -> Original {
    let rule: Vec<u64> = sites
        .iter()
        .map(|site| setting.stock.value(source, &site.owner))
        .collect();
    let now: Vec<u64> = sites.iter().map(|site| site.value).collect();
    let (intact, spoiled): (Vec<_>, Vec<_>) =
        evidence.saved.iter().partition(|copy| copy.is_intact());
    let unknown = Original {
        proof: Proof::Unknown,
        bytes: None,
        stock: rule.clone(),
        spoiled: spoiled
            .into_iter()
            .map(|copy| copy.named_sha256.clone())
            .collect(),
        needs_copy: true,
        is_disproved: !evidence.record.is_empty(),
    };
    for stock in std::iter::once(&now).chain((rule != now).then_some(&rule)) {
        if let Some(proof) = prove_pieces(setting, &pieces(source, sites, stock), &evidence.record)
        {
            let needs_copy = *stock != rule || !is_plain(source, sites);
            let (bytes, stock) = (Some(Bytes::PutBack), stock.clone());
            return Original {
                proof,
                bytes,
                stock,
                needs_copy,
                is_disproved: false,
                ..unknown
            };
        }
    }
    let copies = intact.into_iter().filter_map(|copy| {
        let values = values_if_same_otherwise(setting, source, sites, &copy.bytes)?;
        Some(as_copied(setting, &copy.bytes, values, &unknown, evidence))
    });
    // A copy that is proven to be the vendor's comes before one that only may be.
    copies
        .max_by_key(|copy| !copy.is_disproved)
        .unwrap_or(unknown)
}

/// Whether every literal is written as an edit would write it, so that putting its value back gives the same bytes.
fn is_plain(source: &[u8], sites: &[Site]) -> bool {
    sites
        .iter()
        .all(|site| slice(source, site.range.clone()) == site.value.to_string().as_bytes())
}

/// What a saved copy makes known, on top of what is known without it.
fn as_copied(
    setting: &Setting,
    copy: &[u8],
    values: Vec<u64>,
    unknown: &Original,
    evidence: &Evidence,
) -> Original {
    let unknown = Original {
        bytes: Some(Bytes::Copy(copy.to_vec())),
        needs_copy: false,
        ..unknown.clone()
    };
    match prove(setting, copy, &evidence.record) {
        Some(proof) => Original {
            proof,
            stock: values,
            is_disproved: false,
            ..unknown
        },
        None if values == unknown.stock && !unknown.is_disproved => Original {
            proof: Proof::Saved,
            ..unknown
        },
        None => Original {
            proof: Proof::Found,
            ..unknown
        },
    }
}

/// Whether `RECORD` or the table says that `bytes` are the vendor's.
#[must_use]
pub fn prove(setting: &Setting, bytes: &[u8], record: &[Fingerprint]) -> Option<Proof> {
    prove_pieces(setting, &[bytes.into()], record)
}

fn prove_pieces(
    setting: &Setting,
    pieces: &[Cow<'_, [u8]>],
    record: &[Fingerprint],
) -> Option<Proof> {
    let releases = releases(&setting.record_path(), size(pieces));
    // Most candidates have a size that nothing has; hashing is what proving takes its time for.
    if releases.is_empty() && record.iter().all(|row| row.size != size(pieces)) {
        return None;
    }
    let print = Fingerprint::of(pieces);
    if record.contains(&print) {
        return Some(Proof::Record);
    }
    releases
        .contains(&hex(&print.sha256).as_str())
        .then_some(Proof::Release)
}

/// The bytes of `source` with the literal of each site replaced by `values`, in plain decimal.
///
/// A literal that already has its value is left as it is written.
#[must_use]
pub fn with_values(source: &[u8], sites: &[Site], values: &[u64]) -> Vec<u8> {
    pieces(source, sites, values).concat()
}

/// What [`with_values`] is made of.
fn pieces<'a>(source: &'a [u8], sites: &[Site], values: &[u64]) -> Vec<Cow<'a, [u8]>> {
    let mut pieces = Vec::with_capacity(2 * sites.len() + 1);
    let mut taken = 0;
    for (site, value) in sites
        .iter()
        .zip(values)
        .filter(|(site, value)| site.value != **value)
    {
        pieces.push(slice(source, taken..site.range.start).into());
        pieces.push(value.to_string().into_bytes().into());
        taken = site.range.end;
    }
    pieces.push(slice(source, taken..source.len()).into());
    pieces
}

fn size(pieces: &[Cow<'_, [u8]>]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}

/// The values in `copy`, if it is `source` with other values and no other difference.
#[must_use]
pub fn values_if_same_otherwise(
    setting: &Setting,
    source: &[u8],
    sites: &[Site],
    copy: &[u8],
) -> Option<Vec<u64>> {
    let copy_sites = locate(setting, copy).ok()?;
    let same =
        copy_sites.len() == sites.len() && between(source, sites).eq(between(copy, &copy_sites));
    same.then(|| copy_sites.iter().map(|site| site.value).collect())
}

/// What stands between the sites: before the first, between each two, behind the last.
fn between<'a>(source: &'a [u8], sites: &'a [Site]) -> impl Iterator<Item = &'a [u8]> {
    let starts = std::iter::once(0).chain(sites.iter().map(|site| site.range.end));
    let ends = sites
        .iter()
        .map(|site| site.range.start)
        .chain(std::iter::once(source.len()));
    starts
        .zip(ends)
        .map(|(start, end)| slice(source, start..end))
}

fn slice(source: &[u8], range: Range<usize>) -> &[u8] {
    source.get(range).unwrap_or_default()
}

/// One row per distinct vendor file: path, SHA-256, bytes, date, releases.
const RELEASES: &str = include_str!("releases.tsv");

/// Path, SHA-256 in hexadecimal and size in bytes of every row.
static ROWS: LazyLock<Vec<(&str, &str, usize)>> = LazyLock::new(|| {
    let row = |line: &'static str| {
        let mut fields = line.split('\t');
        Some((fields.next()?, fields.next()?, fields.next()?.parse().ok()?))
    };
    RELEASES.lines().filter_map(row).collect()
});

/// The SHA-256s of the releases of `path` that have this many bytes, in hexadecimal.
fn releases(path: &str, size: usize) -> Vec<&'static str> {
    let is_like = |row: &&(&str, &str, usize)| row.2 == size && row.0 == path;
    ROWS.iter().filter(is_like).map(|row| row.1).collect()
}

/// The fingerprints that a `RECORD` lists for `path`; rows that cannot be read are passed over.
///
/// The format is that of wheels: `path,sha256=<URL-safe base64 without padding>,<size>`.
#[must_use]
pub fn parse_record(record: &[u8], path: &str) -> Vec<Fingerprint> {
    let rows = record.split(|byte| matches!(byte, b'\n' | b'\r'));
    rows.filter_map(|row| parse_record_row(std::str::from_utf8(row).ok()?, path))
        .collect()
}

fn parse_record_row(row: &str, path: &str) -> Option<Fingerprint> {
    let mut fields = row.rsplitn(3, ',');
    let size = fields.next()?.trim().parse().ok()?;
    let digest = fields.next()?.strip_prefix("sha256=")?;
    let named = fields.next()?;
    let named = named
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(named);
    let sha256 = URL_SAFE_NO_PAD.decode(digest).ok()?.try_into().ok()?;
    (named == path).then_some(Fingerprint { sha256, size })
}
