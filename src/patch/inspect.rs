//! Reads a backend from disk: its vendor files and what proves their originals. Writes nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::backend::{Backend, Found, VendorFile};
use super::original::{Evidence, Proof, SavedCopy, identify, parse_record, prove};
use super::plan::Content;
use super::settings::{SETTINGS, Setting};
use super::sites::locate;
use crate::files::{self, NotRead};
use crate::lmstudio::backends::Layer;

/// Saved copies are called `<file>` + this + their SHA-256.
const SAVED_MARK: &str = ".lmpatch-original.";

/// What to do about something that is no vendor file.
const ANEW: &str = "move it away and reinstall the runtime in LM Studio";

/// Reads every vendor file of `layer`.
#[must_use]
pub fn inspect(layer: Layer) -> Backend {
    let mut files = Vec::new();
    for site_packages in layer.site_packages.iter().flatten() {
        for setting in &SETTINGS {
            let package = site_packages.join(setting.package);
            if package.is_dir() {
                files.push(read(&layer, site_packages, setting, package.join(setting.file)));
            }
        }
    }
    Backend { layer, files }
}

/// Where a copy of `bytes` with this SHA-256 is saved beside `file`.
#[must_use]
pub fn saved_path(file: &Path, sha256: &str) -> PathBuf {
    let mut name = OsString::from(file.file_name().unwrap_or_default());
    name.push(SAVED_MARK);
    name.push(sha256);
    file.with_file_name(name)
}

/// The SHA-256 in the name of a saved copy of `file`, if `name` is one.
#[must_use]
pub fn saved_sha256<'n>(name: &'n str, file: &str) -> Option<&'n str> {
    let sha256 = name.strip_prefix(file)?.strip_prefix(SAVED_MARK)?;
    (sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(sha256)
}

fn read(layer: &Layer, site_packages: &Path, setting: &'static Setting, path: PathBuf) -> VendorFile {
    let refused = |why: String| Found::Refused { why, is_vendors: false };
    let resolved = match inside(layer, &path) {
        Ok(resolved) => resolved,
        Err(why) => return VendorFile { setting, path, found: refused(why) },
    };
    let found = match files::read(&resolved) {
        Ok(bytes) => understand(setting, site_packages, &resolved, bytes),
        Err(NotRead::Missing) => Found::Missing,
        // Permissions are put right where they are, all else only by getting the file anew.
        Err(why) if why.is_denied() => refused(format!("{} {why}", resolved.display())),
        Err(why) => refused(format!("{} {why}; {ANEW}", resolved.display())),
    };
    VendorFile { setting, path: resolved, found }
}

/// The real path of a vendor file, which must be inside the real directory of its layer.
fn inside(layer: &Layer, path: &Path) -> Result<PathBuf, String> {
    // What cannot be resolved is told by reading it: missing, dangling or looping.
    let Ok(real) = fs::canonicalize(path) else {
        return Ok(path.to_owned());
    };
    match fs::canonicalize(&layer.path) {
        Ok(root) if real.starts_with(&root) => Ok(real),
        _ => Err(format!("{} is a link out of its layer, to {}; {ANEW}", path.display(), real.display())),
    }
}

fn understand(setting: &'static Setting, site_packages: &Path, path: &Path, bytes: Vec<u8>) -> Found {
    let sites = match locate(setting, &bytes) {
        Ok(sites) => sites,
        Err(refusal) => {
            let is_vendors = prove(setting, &bytes, &records(site_packages, setting)).is_some();
            return Found::Refused { why: refusal.to_string(), is_vendors };
        }
    };
    let mut original = identify(setting, &bytes, &sites, &Evidence::default());
    // The table in the binary knows most files; only for the others are directories listed.
    if original.proof == Proof::Unknown {
        let evidence = Evidence { record: records(site_packages, setting), saved: saved_copies(path) };
        original = identify(setting, &bytes, &sites, &evidence);
    }
    Found::Content(Content { bytes, sites, original })
}

/// The rows about the setting's file in every `RECORD` of its package.
fn records(site_packages: &Path, setting: &Setting) -> Vec<super::original::Fingerprint> {
    let prefix = format!("{}-", setting.package);
    let is_info = |name: &str| name.starts_with(&prefix) && name.ends_with(".dist-info");
    let record = |name: OsString| files::read(&site_packages.join(name).join("RECORD")).unwrap_or_default();
    names(site_packages)
        .filter(|name| is_info(&name.to_string_lossy()))
        .flat_map(|name| parse_record(&record(name), &setting.record_path()))
        .collect()
}

fn saved_copies(file: &Path) -> Vec<SavedCopy> {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
        return Vec::new();
    };
    let name = name.to_string_lossy();
    let copy = |entry: OsString| {
        let named_sha256 = saved_sha256(entry.to_str()?, &name)?.to_owned();
        // One that cannot be read has no bytes that could match its name.
        Some(SavedCopy { bytes: files::read(&directory.join(&entry)).unwrap_or_default(), named_sha256 })
    };
    names(directory).filter_map(copy).collect()
}

/// The names in a directory; none where it cannot be listed.
fn names(directory: &Path) -> impl Iterator<Item = OsString> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.file_name()))
}
