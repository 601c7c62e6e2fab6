//! Reads backends from disk: their vendor files, and what proves the originals. Writes nothing.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::Surveyed;
use super::file::{Source, VendorFile};
use super::original::{Evidence, Proof, Receipt, parse_record, releases};
use super::settings::{SETTINGS, Setting, Site};
use super::sites::locate;
use crate::files::{self, app_bundle, cannot};
use crate::lmstudio::backends::Backend;

const REINSTALL: &str = "; move it away and reinstall the runtime in LM Studio";

/// Reads every vendor file of `backend`.
pub fn survey(backend: Backend) -> Surveyed {
    let mut files = Vec::new();
    for site_packages in backend.site_packages.as_deref().unwrap_or_default() {
        let all = SETTINGS.iter();
        files.extend(all.filter_map(|setting| vendor_file(&backend, site_packages, setting)));
    }
    Surveyed { backend, files }
}

/// The setting's file; `None` if its package is not there.
fn vendor_file(
    backend: &Backend,
    site_packages: &Path,
    setting: &'static Setting,
) -> Option<VendorFile> {
    let package = site_packages.join(setting.package);
    // What cannot be looked at cannot be read either, which says what to do.
    if matches!(files::is_dir(&package), Ok(false)) {
        return None;
    }
    let path = package.join(setting.file);
    let (path, content) = match inside(backend, &path) {
        Ok(real) => (real.clone(), read(setting, site_packages, &real)),
        Err(why) => (path, Err(why)),
    };
    Some(VendorFile {
        setting,
        path,
        content: content.map(|source| source.map(Arc::new)),
    })
}

/// The path of a vendor file's receipt.
pub fn receipt_path(file: &Path) -> PathBuf {
    file.with_extension("py.lmpatch")
}

/// Why a file cannot be read, and what to do: permissions can be fixed in place, anything else only by reinstalling.
fn unreadable(path: &Path, error: &io::Error) -> String {
    let is_denied = error.kind() == ErrorKind::PermissionDenied;
    let next = if is_denied { "" } else { REINSTALL };
    format!("{}{next}", cannot("read", path, error))
}

/// The real path of a vendor file, which must be inside the real directory of its backend.
fn inside(backend: &Backend, path: &Path) -> Result<PathBuf, String> {
    let rest = path.strip_prefix(&backend.path).unwrap_or(path);
    // Nearly always there is no link, and the system would look at every part of the path from the root on.
    let parts = path.ancestors().take(rest.components().count());
    let links: Vec<_> = parts.filter(|part| part.is_symlink()).collect();
    if links.is_empty() {
        return Ok(backend.real.join(rest));
    }
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        // Whether it is missing or dangling is told by reading it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path.to_owned()),
        Err(error) => return Err(unreadable(path, &error)),
    };
    if real.starts_with(&backend.real) {
        return Ok(real);
    }
    let why = match app_bundle(&real) {
        Some(_) => "into an app, where an edit would break the signature,",
        None => "out of its backend,",
    };
    // The outermost: what is below it may well stay where it is.
    let is_out = |link: &&Path| !files::resolved(link).starts_with(&backend.real);
    let link = links.into_iter().rfind(is_out);
    let (link, real) = (link.unwrap_or(path).display(), real.display());
    Err(format!("{link} is a link {why} to {real}{REINSTALL}"))
}

fn read(setting: &Setting, site_packages: &Path, path: &Path) -> Result<Option<Source>, String> {
    let bytes = match files::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|error| unreadable(path, &error))?,
    };
    let sites = locate(setting, &bytes)
        .map_err(|why| why + "; if nobody edited it, a newer lmpatch may know it")?;
    let mut evidence = releases(setting);
    let receipt = read_receipt(path, &bytes, &sites);
    let mut source = Source::new(bytes, sites, receipt, &evidence);
    if source.original.as_ref().map(|known| known.proof) != Some(Proof::Release) {
        // Without RECORD an edited file could be taken for one that was never edited.
        evidence.extend(record(site_packages, setting)?);
        source = Source::new(source.bytes, source.sites, source.receipt, &evidence);
    }
    Ok(Some(source))
}

fn read_receipt(path: &Path, source: &[u8], sites: &[Site]) -> Result<Option<Receipt>, String> {
    let path = receipt_path(path);
    let ignored = |why: &str| Err(format!("{} {why}", path.display()));
    match files::read(&path).map(|bytes| serde_json::from_slice::<Receipt>(&bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => ignored(&format!("cannot be read ({error})")),
        Ok(Err(_)) => ignored("is damaged"),
        Ok(Ok(receipt)) if receipt.fits(source, sites) => Ok(Some(receipt)),
        Ok(Ok(_)) => ignored("belongs to another version of the file"),
    }
}

/// What every `RECORD` of the package says about the setting's file. Fails if one cannot be read.
fn record(site_packages: &Path, setting: &Setting) -> Result<Evidence, String> {
    let prefix = format!("{}-", setting.package);
    let names = files::names(site_packages).map_err(|error| format!("{error:#}"))?;
    let mut rows = Evidence::new();
    for name in names {
        let shown = name.to_string_lossy();
        if !shown.starts_with(&prefix) || !shown.ends_with(".dist-info") {
            continue;
        }
        let path = site_packages.join(&name).join("RECORD");
        match files::read(&path) {
            Ok(record) => rows.extend(parse_record(&record, &setting.record_path())),
            Err(error) if files::is_no_file(&error) => {}
            Err(error) => return Err(cannot("read", &path, &error).to_string()),
        }
    }
    Ok(rows)
}
