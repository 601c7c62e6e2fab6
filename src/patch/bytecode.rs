//! The `.pyc` files that belong to one source file.
//!
//! CPython takes a cached `.pyc` for valid if the source's size and modification second are those it was made from
//! (and an unchecked hash-based one always), so an edit from 2048 to 4096 can be silently ignored. Only the edited
//! file's own are removed: a wipe of every cache makes LM Studio compile thousands of modules at its next start.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::files::{self, cannot, is_absence};

/// Removes every cached `.pyc` of `source`. Fails if the cache directory is a link, which would lead out of the
/// backend, or a file cannot be removed.
pub fn remove(source: &Path) -> Result<()> {
    let cache = source.with_file_name("__pycache__");
    // `generate.cpython-311.pyc`, `generate.cpython-311.opt-2.pyc`: a module's name has no dot.
    let own = format!("{}.", source.file_stem().unwrap_or_default().display());
    let is_link = "is a link; remove it, Python makes a new one";
    ensure!(!cache.is_symlink(), "{} {is_link}", cache.display());
    for name in files::names(&cache)? {
        let cached = cache.join(&name);
        // Python never takes a directory for bytecode, so it is not stale.
        let shown = name.to_string_lossy();
        if shown.starts_with(&own)
            && shown.ends_with(".pyc")
            && !cached.is_dir()
            && let Err(error) = fs::remove_file(&cached)
            && !is_absence(&error)
        {
            return Err(cannot("remove files from", &cache, &error));
        }
    }
    Ok(())
}
