//! Carries out the edits of one backend: all of them or none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};

use super::backend::Edit;
use super::bytecode;
use super::inspect::{saved_path, saved_sha256};
use super::original::sha256_hex;
use super::plan::must_save;
use super::replace::{self, is_temporary, stage};
use crate::files::{self, NotRead, directory_error};

/// Brings every file of a backend to what its edit says, or leaves all of them as they were and fails.
///
/// The caller holds the lock. Files that hold the wanted bytes already are not touched.
pub fn apply(edits: &[Edit<'_>]) -> Result<()> {
    let changes: Vec<_> = edits.iter().filter(|edit| edit.is_change()).collect();
    // Listed before the first write: where that fails nothing has been changed.
    let spare = edits
        .iter()
        .map(spare)
        .collect::<Result<Vec<_>>>()?
        .concat();
    let mut saved = Vec::new();
    if let Err(error) = change(&changes, &mut saved) {
        return Err(roll_back(&changes, &saved, error));
    }
    spare.iter().try_for_each(|path| remove_ours(path))
}

fn change(changes: &[&Edit<'_>], saved: &mut Vec<PathBuf>) -> Result<()> {
    for edit in changes.iter().filter(|edit| must_save(edit.content)) {
        saved.extend(save_original(edit)?);
    }
    // All content is on the disk before the first file is replaced: a full disk stops here.
    let staged = changes
        .iter()
        .map(|edit| stage(&edit.file.path, &edit.content.bytes, &edit.after))
        .collect::<Result<Vec<_>>>()?;
    // Removed before the replacement and after it: a kill in between never leaves a stale one that Python would take.
    remove_bytecode(changes)?;
    for file in staged {
        file.commit()?;
    }
    remove_bytecode(changes)?;
    changes.iter().try_for_each(|edit| verify(edit))
}

fn remove_bytecode(changes: &[&Edit<'_>]) -> Result<()> {
    changes
        .iter()
        .try_for_each(|edit| bytecode::remove(&edit.file.path))
}

/// Saves the file as it is, before lmpatch's first edit of it. Returns the path, if it was not there before.
fn save_original(edit: &Edit<'_>) -> Result<Option<PathBuf>> {
    let bytes = &edit.content.bytes;
    let sha256 = sha256_hex(bytes);
    let copy = saved_path(&edit.file.path, &sha256);
    let is_new = fs::symlink_metadata(&copy).is_err();
    if is_new {
        replace::save(&copy, &edit.file.path, bytes)?;
    }
    let read_back = files::read(&copy).map_err(|why| anyhow!("{} {why}", copy.display()))?;
    ensure!(
        sha256_hex(&read_back) == sha256,
        "{} is not what its name says; move it away and run lmpatch again",
        copy.display()
    );
    Ok(is_new.then_some(copy))
}

/// Reads the file again: nothing is claimed that is not on the disk.
fn verify(edit: &Edit<'_>) -> Result<()> {
    let path = &edit.file.path;
    let now = files::read(path)
        .ok()
        .with_context(|| format!("{} cannot be read back", path.display()))?;
    // The plan has read these bytes as Python already, and the report reads the file again.
    ensure!(
        now == edit.after,
        "{} does not read back as it was written; was LM Studio updating it?",
        path.display()
    );
    Ok(())
}

/// Puts back whatever was replaced, and says in the error what could not be.
fn roll_back(changes: &[&Edit<'_>], saved: &[PathBuf], mut error: Error) -> Error {
    let mut is_back = true;
    for edit in changes {
        if let Err(trouble) = put_back(edit) {
            is_back = false;
            error = error.context(format!(
                "{} could not be put back: {trouble:#}",
                edit.file.path.display()
            ));
        }
    }
    // A file that could not be put back needs its copy for a later revert.
    for copy in saved.iter().filter(|_| is_back) {
        // The copy is a spare of bytes that are in their place again; the next revert removes it if this does not.
        let _ = fs::remove_file(copy);
    }
    error
}

fn put_back(edit: &Edit<'_>) -> Result<()> {
    let path = &edit.file.path;
    match files::read(path) {
        Ok(now) if now == edit.after => {
            stage(path, &edit.after, &edit.content.bytes)?.commit()?;
            bytecode::remove(path)
        }
        Err(why @ NotRead::Io(_)) => bail!("it {why}"),
        // What somebody else put there, or took away, is theirs.
        _ => Ok(()),
    }
}

/// What lmpatch has beside the file and will not need: temp files of killed runs, and saved copies once the file is as
/// it was before any edit.
fn spare(edit: &Edit<'_>) -> Result<Vec<PathBuf>> {
    let path = &edit.file.path;
    let (Some(directory), Some(file)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let file = file.to_string_lossy();
    let is_spare = |name: &str| {
        is_temporary(name, &file) || edit.restores() && saved_sha256(name, &file).is_some()
    };
    let names =
        files::names(directory).map_err(|error| directory_error("list", directory, error))?;
    let spare = names
        .into_iter()
        .filter(|name| name.to_str().is_some_and(is_spare));
    Ok(spare.map(|name| directory.join(name)).collect())
}

/// Removes the saved copy of `bytes` beside a file, if there is one.
pub fn forget_copy(path: &Path, bytes: &[u8]) -> Result<()> {
    let copy = saved_path(path, &sha256_hex(bytes));
    if fs::symlink_metadata(&copy).is_ok() {
        remove_ours(&copy)
    } else {
        Ok(())
    }
}

fn remove_ours(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| {
        format!(
            "the files are as they should be, but {} could not be removed; remove it by hand",
            path.display()
        )
    })
}
