//! The `.pyc` files that belong to one source file.
//!
//! CPython takes a cached `.pyc` for valid where the source's size and modification second are those it was made from
//! (and an unchecked hash-based one always), so an edit from 2048 to 4096 can be silently ignored. Only the edited
//! file's own are removed: a wipe of every cache makes LM Studio compile thousands of modules at its next start.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::files::{self, cannot, directory_error, is_absence};

/// Removes every cached `.pyc` of `source`. Fails where the cache directory is a link, which would lead out of the
/// backend, or a file cannot be removed.
pub fn remove(source: &Path) -> Result<()> {
    for cached in list(source)? {
        match fs::remove_file(&cached) {
            Err(error) if !is_absence(&error) => {
                let chmod = "chmod u+wx on its directory";
                return Err(cannot("remove", &cached, error, chmod));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The cached `.pyc`s of `source` that are older than it and that Python would take for current all the same.
pub fn stale(source: &Path) -> Vec<PathBuf> {
    let cached = list(source).unwrap_or_default();
    let is_stale = |cached: &PathBuf| is_stale(cached, source).unwrap_or(false);
    cached.into_iter().filter(is_stale).collect()
}

fn is_stale(cached: &Path, source: &Path) -> Option<bool> {
    let (of_source, of_cached) = (fs::metadata(source).ok()?, fs::metadata(cached).ok()?);
    if of_cached.modified().ok()? >= of_source.modified().ok()? {
        return Some(false);
    }
    let header = files::read(cached).ok()?;
    // PEP 552: flags (1 is a hash that is never checked); then a hash, or the source's modification second and size,
    // both cut to 32 bits.
    let second = of_source.mtime().to_le_bytes();
    let size = of_source.len().to_le_bytes();
    Some(match header.get(4..8)? {
        [0, 0, 0, 0] => *header.get(8..16)? == [&second[..4], &size[..4]].concat(),
        flags => flags == [1, 0, 0, 0],
    })
}

fn list(source: &Path) -> Result<Vec<PathBuf>> {
    let cache = source.with_file_name("__pycache__");
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let failed = |error| directory_error("list", &cache, error);
    if cache.is_symlink() {
        let cache = cache.display();
        bail!("{cache} is a link; remove it, Python makes a new one");
    }
    let entries = match fs::read_dir(&cache) {
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut own = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // Python never takes a directory for bytecode, so it is not stale.
        let is_file = entry.file_type().is_ok_and(|found| !found.is_dir());
        if belongs_to(&entry.file_name().to_string_lossy(), &stem) && is_file {
            own.push(entry.path());
        }
    }
    Ok(own)
}

/// `generate.cpython-311.pyc` and `generate.cpython-311.opt-2.pyc` belong to `generate`; names have no other dots.
fn belongs_to(name: &str, stem: &str) -> bool {
    let parts: Vec<_> = name.split('.').collect();
    match parts[..] {
        [first, tag, "pyc"] => first == stem && !tag.is_empty(),
        [first, _, optimisation, "pyc"] => first == stem && optimisation.starts_with("opt-"),
        _ => false,
    }
}
