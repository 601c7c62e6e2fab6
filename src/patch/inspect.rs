//! Reads a backend from disk: its vendor files and what proves their originals. Writes nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::backend::{Backend, Found, VendorFile};
use super::original::{Evidence, Fingerprint, Proof, SavedCopy, identify, parse_record, prove};
use super::plan::Content;
use super::settings::{SETTINGS, Setting};
use super::sites::locate;
use crate::files::{self, NotRead, directory_error};
use crate::lmstudio::backends::Layer;

/// Saved copies are called `<file>` + this + their SHA-256.
const SAVED_MARK: &str = ".lmpatch-original.";

/// What to do about something that is no vendor file.
const ANEW: &str = "move it away and reinstall the runtime in LM Studio";

/// Reads every vendor file of `layer`.
#[must_use]
pub fn inspect(layer: Layer) -> Backend {
    let root = fs::canonicalize(&layer.path).unwrap_or_else(|_| layer.path.clone());
    let mut vendor_files = Vec::new();
    for site_packages in layer.site_packages.iter().flatten() {
        for setting in &SETTINGS {
            let package = site_packages.join(setting.package);
            match files::is_dir(&package) {
                Ok(false) => {}
                Ok(true) => vendor_files.push(read(&layer, &root, site_packages, setting)),
                Err(error) => vendor_files.push(VendorFile {
                    setting,
                    path: package.join(setting.file),
                    found: refused(format!(
                        "{} cannot be looked at ({error})",
                        package.display()
                    )),
                }),
            }
        }
    }
    Backend {
        layer,
        files: vendor_files,
    }
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

/// Reads one vendor file; `root` is the real directory of its layer.
fn read(layer: &Layer, root: &Path, site_packages: &Path, setting: &'static Setting) -> VendorFile {
    let path = site_packages.join(setting.package).join(setting.file);
    let resolved = match inside(layer, root, &path) {
        Ok(resolved) => resolved,
        Err(why) => {
            return VendorFile {
                setting,
                path,
                found: refused(why),
            };
        }
    };
    let found = match files::read(&resolved) {
        Ok(bytes) => understand(setting, site_packages, &resolved, bytes),
        Err(NotRead::Missing) => Found::Missing,
        Err(why) => refused(unreadable(&resolved, &why)),
    };
    VendorFile {
        setting,
        path: resolved,
        found,
    }
}

fn refused(why: String) -> Found {
    Found::Refused {
        why,
        is_vendors: false,
    }
}

/// Permissions are put right where they are, all else only by getting the file anew.
fn unreadable(path: &Path, why: &NotRead) -> String {
    let next_step = if why.is_denied() {
        String::new()
    } else {
        format!("; {ANEW}")
    };
    format!("{} {why}{next_step}", path.display())
}

/// The real path of a vendor file, which must be inside the real directory of its layer.
fn inside(layer: &Layer, root: &Path, path: &Path) -> Result<PathBuf, String> {
    let mut below = path
        .ancestors()
        .take_while(|ancestor| *ancestor != layer.path);
    // A fifth of the calls that resolving the whole path takes.
    if below
        .all(|ancestor| fs::symlink_metadata(ancestor).is_ok_and(|metadata| !metadata.is_symlink()))
        && let Ok(rest) = path.strip_prefix(&layer.path)
    {
        return Ok(root.join(rest));
    }
    match fs::canonicalize(path).map_err(NotRead::from) {
        Ok(real) if real.starts_with(root) => Ok(real),
        Ok(real) => Err(format!(
            "{} is a link out of its layer, to {}; {ANEW}",
            path.display(),
            real.display()
        )),
        // Whether it is missing or dangling is told by reading it.
        Err(NotRead::Missing) => Ok(path.to_owned()),
        Err(why) => Err(unreadable(path, &why)),
    }
}

fn understand(
    setting: &'static Setting,
    site_packages: &Path,
    path: &Path,
    bytes: Vec<u8>,
) -> Found {
    let sites = match locate(setting, &bytes) {
        Ok(sites) => sites,
        Err(refusal) => {
            let records = records(site_packages, setting).unwrap_or_default();
            let is_vendors = prove(setting, &bytes, &records).is_some();
            return Found::Refused {
                why: refusal.to_string(),
                is_vendors,
            };
        }
    };
    let mut original = identify(setting, &bytes, &sites, &Evidence::default());
    // The table in the binary knows most files; only for the others are directories listed.
    if original.proof == Proof::Unknown {
        match evidence(setting, site_packages, path) {
            Ok(evidence) => original = identify(setting, &bytes, &sites, &evidence),
            // Without it an edited file could be taken for one that was never edited, and be saved as its own original.
            Err(why) => return refused(why),
        }
    }
    Found::Content(Content {
        bytes,
        sites,
        original,
    })
}

/// What is beside a vendor file to prove its original. Fails where something is there that cannot be read.
fn evidence(setting: &Setting, site_packages: &Path, path: &Path) -> Result<Evidence, String> {
    Ok(Evidence {
        record: records(site_packages, setting)?,
        saved: saved_copies(path)?,
    })
}

/// The rows about the setting's file in every `RECORD` of its package.
fn records(site_packages: &Path, setting: &Setting) -> Result<Vec<Fingerprint>, String> {
    let prefix = format!("{}-", setting.package);
    let is_info = |name: &str| name.starts_with(&prefix) && name.ends_with(".dist-info");
    let mut rows = Vec::new();
    for name in names(site_packages)?
        .iter()
        .filter(|name| is_info(&name.to_string_lossy()))
    {
        let record = readable(&site_packages.join(name).join("RECORD"))?;
        rows.extend(parse_record(
            &record.unwrap_or_default(),
            &setting.record_path(),
        ));
    }
    Ok(rows)
}

fn saved_copies(file: &Path) -> Result<Vec<SavedCopy>, String> {
    let (Some(directory), Some(file_name)) = (file.parent(), file.file_name()) else {
        return Ok(Vec::new());
    };
    let file_name = file_name.to_string_lossy();
    let mut copies = Vec::new();
    for name in names(directory)? {
        let Some(sha256) = name
            .to_str()
            .and_then(|name| saved_sha256(name, &file_name))
        else {
            continue;
        };
        // One that is no file any more has no bytes that could match its name.
        let bytes = readable(&directory.join(&name))?.unwrap_or_default();
        copies.push(SavedCopy {
            bytes,
            named_sha256: sha256.to_owned(),
        });
    }
    Ok(copies)
}

/// The bytes of a file; none where there is no regular file of a sane size. Fails where the system says no.
fn readable(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match files::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(why @ NotRead::Io(_)) => Err(format!("{} {why}", path.display())),
        Err(_) => Ok(None),
    }
}

fn names(directory: &Path) -> Result<Vec<OsString>, String> {
    files::names(directory)
        .map_err(|error| format!("{:#}", directory_error("list", directory, error)))
}
