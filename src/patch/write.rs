//! The only code that writes vendor files.
//!
//! New content goes to a temp file beside its target, with the target's mode and owner, and reaches the disk before
//! the rename: so the target is at any instant, also after a crash or on a full disk, wholly old or wholly new.

use std::borrow::Cow;
use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, bail, ensure};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::bytecode;
use super::file::Edit;
use super::survey::receipt_path;
use crate::files::{self, cannot, is_absence};
use crate::lock::Lock;
use crate::output::quoted;

const TEMP_MARK: &str = ".lmpatch-tmp.";

/// Applies every edit of a backend. Fails with all files as they were, unless the error says otherwise: of a file that
/// could not be restored, or of a leftover that could not be removed.
///
/// Files that already hold the wanted bytes are not touched.
pub fn apply(_lock: &Lock, edits: &[Edit]) -> Result<()> {
    let changes: Vec<_> = edits.iter().filter(|edit| edit.is_change()).collect();
    // Listed before the first write: if that fails, nothing has been changed.
    let mut leftovers = Vec::new();
    for edit in edits {
        leftovers.extend(temporaries(&edit.path)?);
        let receipt = receipt_path(&edit.path);
        if edit.drops_receipt && fs::symlink_metadata(&receipt).is_ok_and(|found| !found.is_dir()) {
            leftovers.push(receipt);
        }
    }
    let mut receipts = Vec::new();
    let done = change(edits, &changes, &mut receipts);
    done.map_err(|error| roll_back(&changes, &receipts, error))?;
    for path in leftovers {
        // Of two links to one directory, the first has removed it.
        if let Err(error) = fs::remove_file(&path)
            && !is_absence(&error)
        {
            let (directory, name) = split(&path);
            let why = cannot(&format!("remove {name} from"), directory, &error);
            return Err(why.context("its files are as wanted, but a leftover is not removed"));
        }
    }
    Ok(())
}

/// Why these files are not written: their owner wants them to stay as they are, or their directory is closed.
pub fn unwritable(edits: &[Edit]) -> Option<String> {
    let changes = || edits.iter().filter(|edit| edit.is_change());
    for directory in changes().filter_map(|edit| edit.path.parent()) {
        if let Err(error) = access(directory, Access::WRITE_OK) {
            return Some(cannot("write in", directory, &error.into()).to_string());
        }
    }
    let is_read_only = |edit: &&Edit| {
        let found = fs::symlink_metadata(&edit.path);
        found.is_ok_and(|found| found.permissions().readonly())
    };
    let read_only = changes().filter(is_read_only);
    let paths: Vec<_> = read_only.map(|edit| edit.path.display()).collect();
    let first = paths.first()?;
    let quoted: Vec<_> = paths.iter().map(quoted).collect();
    let command = format!("`chmod u+w {}`", quoted.join(" "));
    Some(format!(
        "{first} is read-only; allow writing with {command}"
    ))
}

fn change(edits: &[Edit], changes: &[&Edit], receipts: &mut Vec<PathBuf>) -> Result<()> {
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
            receipts.push(path.clone());
            let receipt = serde_json::to_vec(receipt)?;
            rename(stage(&path, &edit.path, &receipt)?, &path)?;
        }
    }
    // All content is on the disk before the first file is replaced: a full disk stops here.
    let mut staged = Vec::new();
    for edit in changes {
        staged.push(stage(&edit.path, &edit.path, &edit.after.bytes)?);
    }
    let remove_bytecode = || changes.iter().try_for_each(|e| bytecode::remove(&e.path));
    // Before the replacement and after it: a kill in between never leaves a stale one that Python would take.
    remove_bytecode()?;
    for (temp, edit) in staged.into_iter().zip(changes) {
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

fn roll_back(changes: &[&Edit], receipts: &[PathBuf], mut error: Error) -> Error {
    let mut is_back = true;
    for edit in changes {
        if let Err(failure) = restore(edit) {
            is_back = false;
            let path = edit.path.display();
            error = error.context(format!("{path} could not be restored: {failure:#}"));
        }
    }
    // A file that could not be restored needs its receipt for a later revert.
    if is_back {
        for receipt in receipts {
            // If this fails, the next revert removes it.
            let _ = fs::remove_file(receipt);
        }
    }
    error
}

fn restore(edit: &Edit) -> Result<()> {
    let path = &edit.path;
    match files::read(path) {
        Ok(now) if now == edit.after.bytes => {
            let temp = stage(path, path, &edit.before)?;
            commit(temp, path, &edit.after.bytes, &edit.before)?;
            bytecode::remove(path)
        }
        // It is as it was, or somebody else has changed or removed it.
        Ok(_) => Ok(()),
        Err(error) if files::is_no_file(&error) => Ok(()),
        Err(error) => Err(cannot("read", path, &error)),
    }
}

fn temporaries(target: &Path) -> Result<Vec<PathBuf>> {
    let (directory, name) = split(target);
    let prefix = format!(".{name}.lmpatch");
    let mut names = files::names(directory)?;
    names.retain(|name| {
        let name = name.to_string_lossy();
        name.starts_with(&prefix) && name.contains(TEMP_MARK)
    });
    let mut paths: Vec<_> = names.iter().map(|name| directory.join(name)).collect();
    paths.retain(|path| !path.is_dir());
    Ok(paths)
}

/// Writes `content` beside `target`, with the mode and owner of `model`; on the disk and not yet in its place.
fn stage(target: &Path, model: &Path, content: &[u8]) -> Result<NamedTempFile> {
    let metadata = fs::symlink_metadata(model);
    let path = model.display();
    let metadata = metadata.with_context(|| format!("{path} is gone"))?;
    let (directory, name) = split(target);
    let prefix = format!(".{name}{TEMP_MARK}");
    let temp = files::new_temp(&prefix, directory);
    let mut temp = temp.map_err(|error| cannot("write in", directory, &error))?;
    let filled = fill(&mut temp, &metadata, content);
    filled.with_context(|| format!("cannot write {name} in {}", directory.display()))?;
    Ok(temp)
}

/// Puts new content in its place. Fails, changing nothing, if the target no longer holds `before`; if only the
/// directory could not be synced, the new content is in place and the error says so.
fn commit(temp: NamedTempFile, target: &Path, before: &[u8], after: &[u8]) -> Result<()> {
    let is_file = fs::symlink_metadata(target).is_ok_and(|metadata| metadata.is_file());
    match files::read(target) {
        Ok(now) if is_file && now == before => rename(temp, target),
        // Two backends that are links to one directory: the first of them has done it.
        Ok(now) if is_file && now == after => Ok(()),
        _ => bail!(
            "{} was changed by something else while lmpatch ran (an update of LM Studio?)",
            target.display()
        ),
    }
}

fn rename(temp: NamedTempFile, target: &Path) -> Result<()> {
    let renamed = temp.persist(target).map_err(|error| error.error);
    let directory = split(target).0;
    renamed.map_err(|error| cannot("replace files in", directory, &error))?;
    // Without this a crash could bring the old directory entry back.
    let synced = File::open(directory).and_then(|handle| sync(&handle));
    synced.with_context(|| format!("cannot sync {} to disk", directory.display()))
}

fn fill(temp: &mut NamedTempFile, model: &Metadata, content: &[u8]) -> Result<()> {
    temp.write_all(content)?;
    let file = temp.as_file();
    let fresh = file.metadata()?;
    let (user, group) = (model.uid(), model.gid());
    if (fresh.uid(), fresh.gid()) != (user, group) {
        let kept = fchown(file, Some(user), Some(group));
        let why = || format!("cannot keep its owner {user} and group {group}; run as {user}");
        kept.with_context(why)?;
    }
    // After the owner: changing the owner clears mode bits.
    file.set_permissions(model.permissions())?;
    Ok(sync(file)?)
}

/// Waits until the content is on the disk. Some file systems of macOS refuse the full sync (`F_FULLFSYNC`) that std
/// asks for and take a plain fsync; if there is no sync at all, there is nothing to wait for.
fn sync(file: &File) -> io::Result<()> {
    const UNSUPPORTED: [Errno; 4] = [Errno::NOTTY, Errno::INVAL, Errno::NOTSUP, Errno::OPNOTSUPP];
    let is_unsupported = |errno| UNSUPPORTED.contains(&errno);
    match file.sync_all() {
        Err(error) if Errno::from_io_error(&error).is_some_and(is_unsupported) => {
            match rustix::fs::fsync(file) {
                Err(errno) if !is_unsupported(errno) => Err(errno.into()),
                _ => Ok(()),
            }
        }
        synced => synced,
    }
}

fn split(path: &Path) -> (&Path, Cow<'_, str>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (path.parent().unwrap_or(path), name)
}
