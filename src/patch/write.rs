//! The only code that writes vendor files: new content reaches the disk beside its target before the
//! rename, so the target is at any instant, also after a crash, wholly old or wholly new.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail, ensure};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::backend::Edit;
use super::receipt_path;
use crate::files::{self, cannot, is_absence};
use crate::lock::Lock;

const TEMP_PREFIX: &str = ".lmpatch-tmp.";

/// Applies every edit of a backend. Fails with all files as they were, unless the error says otherwise.
pub fn apply(_lock: &Lock, edits: &[Edit]) -> Result<()> {
    for edit in edits {
        remove_files(parent(&edit.path), TEMP_PREFIX, "")?;
    }
    change(edits).map_err(|error| roll_back(edits, error))?;
    for edit in edits.iter().filter(|edit| edit.drops_receipt) {
        let removed = remove(&receipt_path(&edit.path));
        removed.context("its files are as wanted, but a receipt is not removed")?;
    }
    Ok(())
}

/// Fails if files are not to be written: their owner keeps them read-only, or their directory is closed.
pub fn ensure_open(edits: &[Edit]) -> Result<()> {
    for path in changes(edits).map(|edit| &edit.path) {
        let directory = parent(path);
        let open = access(directory, Access::WRITE_OK);
        open.map_err(|error| cannot("write in", directory, &error.into()))?;
        if fs::symlink_metadata(path).is_ok_and(|found| found.permissions().readonly()) {
            return Err(cannot("write", path, &Errno::ACCESS.into()));
        }
    }
    Ok(())
}

fn changes(edits: &[Edit]) -> impl Iterator<Item = &Edit> {
    edits.iter().filter(|edit| edit.is_change())
}

fn change(edits: &[Edit]) -> Result<()> {
    let changes: Vec<_> = changes(edits).collect();
    if changes.is_empty() {
        return Ok(());
    }
    // A revert is for the whole backend, so a file that already has the number needs its receipt too.
    for edit in edits {
        let path = receipt_path(&edit.path);
        // A directory in its place has already been reported, and is no reason not to set a number.
        if let Some(receipt) = &edit.receipt
            && !path.is_dir()
        {
            let receipt = serde_json::to_vec(receipt)?;
            rename(stage(&edit.path, &receipt)?, &path)?;
        }
    }
    // All content is on the disk before the first file is replaced: a full disk stops here.
    let staged = changes.iter().map(|it| stage(&it.path, &it.after.bytes));
    let staged = staged.collect::<Result<Vec<_>>>()?;
    let remove_bytecode = || changes.iter().try_for_each(|it| remove_bytecode(&it.path));
    // Before the replacement and after it: a kill in between never leaves a stale one that Python would take.
    remove_bytecode()?;
    for (temp, edit) in staged.into_iter().zip(&changes) {
        commit(temp, &edit.path, &edit.before, &edit.after.bytes)?;
    }
    remove_bytecode()?;
    for edit in changes {
        let path = edit.path.display();
        let now = files::read(&edit.path).map_err(|error| cannot("read", &edit.path, &error))?;
        let why = "does not read back as it was written; was LM Studio updating it?";
        ensure!(now == edit.after.bytes, "{path} {why}");
    }
    Ok(())
}

fn roll_back(edits: &[Edit], mut error: Error) -> Error {
    let mut is_back = true;
    for edit in changes(edits) {
        if let Err(failure) = restore(edit) {
            is_back = false;
            let path = edit.path.display();
            error = error.context(format!("{path} could not be restored: {failure:#}"));
        }
    }
    // A file that could not be restored needs its receipt; one that stays is removed by the next revert.
    for edit in edits {
        if is_back && edit.receipt.is_some() {
            _ = fs::remove_file(receipt_path(&edit.path));
        }
    }
    error
}

fn restore(edit: &Edit) -> Result<()> {
    let path = &edit.path;
    match files::read(path) {
        Ok(now) if now == edit.after.bytes => {
            let temp = stage(path, &edit.before)?;
            commit(temp, path, &edit.after.bytes, &edit.before)?;
            remove_bytecode(path)
        }
        Err(error) if !is_absence(&error) => Err(cannot("read", path, &error)),
        // It is as it was, or somebody else has changed or removed it.
        _ => Ok(()),
    }
}

/// Removes every cached `.pyc` of `source`. CPython takes one for valid if the source has the size and the modification
/// second that it was made from, so an edit from 2048 to 4096 could be silently ignored.
fn remove_bytecode(source: &Path) -> Result<()> {
    let cache = source.with_file_name("__pycache__");
    let is_link = "is a link; remove it, Python makes a new one";
    ensure!(!cache.is_symlink(), "{} {is_link}", cache.display());
    let own = format!("{}.", source.file_stem().unwrap_or_default().display());
    remove_files(&cache, &own, ".pyc")
}

fn remove_files(directory: &Path, start: &str, end: &str) -> Result<()> {
    for name in files::names(directory, start, end)? {
        remove(&directory.join(name))?;
    }
    Ok(())
}

/// Removes a file, if it is there; a directory is not lmpatch's, and no bytecode to Python.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_absence(&error) && !path.is_dir() => {
            Err(cannot("remove files from", parent(path), &error))
        }
        _ => Ok(()),
    }
}

fn stage(vendors: &Path, content: &[u8]) -> Result<NamedTempFile> {
    let staged = write_beside(vendors, content);
    staged.map_err(|error| cannot("write in", parent(vendors), &error))
}

/// Puts new content in place of `before`, and of nothing else.
fn commit(temp: NamedTempFile, target: &Path, before: &[u8], after: &[u8]) -> Result<()> {
    let path = target.display();
    let is_file = fs::symlink_metadata(target).is_ok_and(|metadata| metadata.is_file());
    match files::read(target) {
        Ok(now) if is_file && now == before => rename(temp, target),
        // Two backends that are links to one directory: the first of them has done it.
        Ok(now) if is_file && now == after => Ok(()),
        _ => bail!("{path} was changed by something else (an update of LM Studio?)"),
    }
}

fn rename(temp: NamedTempFile, target: &Path) -> Result<()> {
    let directory = parent(target);
    let renamed = temp.persist(target).map_err(io::Error::from);
    // Without a sync a crash could bring the old directory entry back.
    let synced = renamed.and_then(|_| sync(&File::open(directory)?));
    synced.map_err(|error| cannot("replace files in", directory, &error))
}

fn write_beside(vendors: &Path, content: &[u8]) -> io::Result<NamedTempFile> {
    let mut temp = files::new_temp(TEMP_PREFIX, parent(vendors))?;
    let model = fs::symlink_metadata(vendors)?;
    temp.write_all(content)?;
    let file = temp.as_file();
    let fresh = file.metadata()?;
    let (user, group) = (model.uid(), model.gid());
    if (fresh.uid(), fresh.gid()) != (user, group) {
        let why = format!("cannot keep the owner {user} and group {group}; run as {user}");
        fchown(file, Some(user), Some(group)).map_err(|_| io::Error::other(why))?;
    }
    // After the owner: changing the owner clears mode bits.
    file.set_permissions(model.permissions())?;
    sync(file)?;
    Ok(temp)
}

/// Some file systems of macOS refuse the full sync that std asks for, and some any: there is nothing to wait for then.
fn sync(file: &File) -> io::Result<()> {
    const UNSUPPORTED: [Errno; 4] = [Errno::NOTTY, Errno::INVAL, Errno::NOTSUP, Errno::OPNOTSUPP];
    let plain = |file: &File| Ok(rustix::fs::fsync(file)?);
    for sync in [File::sync_all, plain] {
        let synced = sync(file);
        let errno = synced.as_ref().err().and_then(Errno::from_io_error);
        if !errno.is_some_and(|errno| UNSUPPORTED.contains(&errno)) {
            return synced;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
