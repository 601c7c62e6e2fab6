//! The `.pyc` files that belong to one source file.
//!
//! CPython takes a cached `.pyc` for valid where the source's size and modification second are those it was made from
//! (and an unchecked hash-based one always), so an edit from 2048 to 4096 can be silently ignored. Only the edited
//! file's own are removed: a wipe of every cache makes LM Studio compile thousands of modules at its next start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::files::{self, directory_error, is_absence};

/// The flags of a `.pyc` that is never compared with its source.
const UNCHECKED_HASH: u32 = 1;

/// Removes every cached `.pyc` of `source`, of any interpreter and optimisation level.
///
/// Fails where the cache directory is a link (it would lead out of the layer) or a file cannot be removed.
pub fn remove(source: &Path) -> Result<()> {
    for cached in list(source)? {
        match fs::remove_file(&cached) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot remove {}; check the permissions of its directory (chmod u+wx)",
                        cached.display()
                    )
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The cached `.pyc`s of `source` that are older than it and that Python would take for current all the same.
#[must_use]
pub fn stale(source: &Path) -> Vec<PathBuf> {
    let cached = list(source).unwrap_or_default();
    cached
        .into_iter()
        .filter(|cached| is_stale(cached, source).unwrap_or(false))
        .collect()
}

fn is_stale(cached: &Path, source: &Path) -> Option<bool> {
    let (of_source, of_cached) = (fs::metadata(source).ok()?, fs::metadata(cached).ok()?);
    let header = files::read(cached).ok()?;
    let word = |index: usize| {
        Some(u32::from_le_bytes(
            header.get(index * 4..index * 4 + 4)?.try_into().ok()?,
        ))
    };
    // PEP 552: flags; then a hash, or the source's modification second and size, both cut to 32 bits.
    let is_taken = match word(1)? {
        0 => {
            let low = |number: u64| u32::try_from(number & u64::from(u32::MAX)).ok();
            word(2) == low(of_source.mtime().cast_unsigned()) && word(3) == low(of_source.len())
        }
        UNCHECKED_HASH => true,
        _ => false,
    };
    Some(is_taken && of_cached.modified().ok()? < of_source.modified().ok()?)
}

fn list(source: &Path) -> Result<Vec<PathBuf>> {
    let (Some(directory), Some(stem)) = (source.parent(), source.file_stem()) else {
        return Ok(Vec::new());
    };
    let cache = directory.join("__pycache__");
    match fs::symlink_metadata(&cache) {
        Ok(metadata) if metadata.is_symlink() => {
            bail!(
                "{} is a link; remove it, Python makes a new one",
                cache.display()
            )
        }
        Ok(metadata) if metadata.is_dir() => {}
        Err(error) if !is_absence(&error) => {
            return Err(error).with_context(|| format!("cannot look at {}", cache.display()));
        }
        _ => return Ok(Vec::new()),
    }
    let entries = fs::read_dir(&cache).map_err(|error| directory_error("list", &cache, error))?;
    let stem = stem.to_string_lossy();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", cache.display()))?;
        // Python never takes a directory for bytecode, so it is not stale.
        let is_directory = entry.file_type().is_ok_and(|file_type| file_type.is_dir());
        if !is_directory && belongs_to(&entry.file_name().to_string_lossy(), &stem) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// `generate.cpython-311.pyc` and `generate.cpython-311.opt-2.pyc` belong to `generate`; names have no other dots.
fn belongs_to(name: &str, stem: &str) -> bool {
    let Some(tags) = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".pyc"))
    else {
        return false;
    };
    match tags.split_once('.') {
        None => !tags.is_empty(),
        Some((_, optimisation)) => optimisation.starts_with("opt-") && !optimisation.contains('.'),
    }
}

#[cfg(test)]
mod tests {
    use super::belongs_to;

    #[test]
    fn only_the_files_own_caches_belong_to_it() {
        for own in [
            "generate.cpython-311.pyc",
            "generate.cpython-311.opt-1.pyc",
            "generate.pypy39.opt-2.pyc",
        ] {
            assert!(belongs_to(own, "generate"), "{own}");
        }
        for other in [
            "generate_step.cpython-311.pyc",
            "regenerate.cpython-311.pyc",
            "generate.py",
            "generate.pyc",
            "generate.cpython-311.pyc.bak",
            "generate.cpython-311.other.pyc",
            "generate..pyc",
        ] {
            assert!(!belongs_to(other, "generate"), "{other}");
        }
    }
}
