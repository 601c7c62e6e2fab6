//! Reads backends from disk: their vendor files, and what proves the originals. Writes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::backend::Surveyed;
use super::file::{Content, ReceiptFile, Source, VendorFile};
use super::original::{self, Evidence, Receipt, parse_record};
use super::settings::{SETTINGS, Setting, Site};
use super::sites::locate;
use crate::files::{self, NotRead, app_bundle, directory_error};
use crate::lmstudio::backends::Backend;

/// Engines with this file fit the context to memory with the chunk in the formula.
const CONTEXT_FIT: &str = "mlx_engine/model_kit/batched_vision/context_fit.py";
/// What to do about something that is no vendor file.
const REINSTALL: &str = "move it away and reinstall the runtime in LM Studio";

/// Reads every vendor file of `backend`.
pub fn survey(backend: Backend) -> Surveyed {
    let root = fs::canonicalize(&backend.path).unwrap_or_else(|_| backend.path.clone());
    let mut files = Vec::new();
    let mut fits_context = false;
    for site_packages in backend.site_packages.as_deref().unwrap_or_default() {
        fits_context |= site_packages.join(CONTEXT_FIT).exists();
        for setting in &SETTINGS {
            let package = site_packages.join(setting.package);
            let mut path = package.join(setting.file);
            let found = match files::is_dir(&package) {
                Ok(false) => continue,
                Ok(true) => inside(&root, &path),
                Err(error) => Err(format!("{} cannot be read ({error})", package.display())),
            };
            let content = found.and_then(|real| {
                path = real;
                read(setting, site_packages, &path)
            });
            files.push(VendorFile {
                setting,
                path,
                content: content.unwrap_or_else(refused),
            });
        }
    }
    Surveyed {
        backend,
        files,
        fits_context,
    }
}

/// Where the receipt of a vendor file is.
pub fn receipt_path(file: &Path) -> PathBuf {
    file.with_extension("py.lmpatch")
}

fn refused(why: String) -> Content {
    let is_original = false;
    Content::Refused { why, is_original }
}

/// Permissions are fixed where they are, all else only by getting the file anew.
fn unreadable(path: &Path, why: &NotRead) -> String {
    let path = path.display();
    if why.is_denied() {
        format!("{path} {why}")
    } else {
        format!("{path} {why}; {REINSTALL}")
    }
}

/// The real path of a vendor file, which must be inside `root`, the real directory of its backend.
fn inside(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let real = match fs::canonicalize(path).map_err(NotRead::from) {
        Ok(real) => real,
        // Whether it is missing or dangling is told by reading it.
        Err(NotRead::Missing) => return Ok(path.to_owned()),
        Err(why) => return Err(unreadable(path, &why)),
    };
    if real.starts_with(root) {
        return Ok(real);
    }
    let why = match app_bundle(&real) {
        Some(_) => "leads into an app, where an edit would break the signature,",
        None => "is a link out of its backend,",
    };
    let (path, real) = (path.display(), real.display());
    Err(format!("{path} {why} to {real}; {REINSTALL}"))
}

fn read(setting: &Setting, site_packages: &Path, path: &Path) -> Result<Content, String> {
    let bytes = match files::read(path) {
        Ok(bytes) => bytes,
        Err(NotRead::Missing) => return Ok(Content::Missing),
        Err(why) => return Err(unreadable(path, &why)),
    };
    let record = || record(site_packages, setting);
    match locate(setting, &bytes) {
        Ok(sites) => {
            let receipt = read_receipt(path, &bytes, &sites);
            Source::new(setting, bytes, sites, receipt, record)
                .map(|source| Content::Source(source.into()))
        }
        Err(why) => {
            let mut evidence = original::releases(setting);
            evidence.extend(record().unwrap_or_default());
            let is_original = original::prove(&bytes, &[], &[], &evidence).is_some();
            Ok(Content::Refused { why, is_original })
        }
    }
}

fn read_receipt(path: &Path, source: &[u8], sites: &[Site]) -> ReceiptFile {
    let path = receipt_path(path);
    let why = match files::read(&path) {
        Err(NotRead::Missing) => return ReceiptFile::Absent,
        Err(why) => why.to_string(),
        Ok(bytes) => match serde_json::from_slice::<Receipt>(&bytes) {
            Err(_) => "is damaged".to_owned(),
            Ok(receipt) if receipt.fits(source, sites) => return ReceiptFile::Fits(receipt),
            Ok(_) => "belongs to another version of the file".to_owned(),
        },
    };
    ReceiptFile::Ignored(format!("{} {why}", path.display()))
}

/// What every `RECORD` of the package says of the setting's file. Fails where one is there and cannot be read.
fn record(site_packages: &Path, setting: &Setting) -> Result<Evidence, String> {
    let prefix = format!("{}-", setting.package);
    let names = files::names(site_packages)
        .map_err(|error| format!("{:#}", directory_error("list", site_packages, error)))?;
    let mut rows = Evidence::new();
    for name in names {
        let shown = name.to_string_lossy();
        if !shown.starts_with(&prefix) || !shown.ends_with(".dist-info") {
            continue;
        }
        let path = site_packages.join(&name).join("RECORD");
        match files::read(&path) {
            Ok(record) => rows.extend(parse_record(&record, &setting.record_path())),
            Err(why @ NotRead::Io(_)) => return Err(format!("{} {why}", path.display())),
            Err(_) => {}
        }
    }
    Ok(rows)
}
