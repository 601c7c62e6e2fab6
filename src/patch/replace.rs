//! The only code that writes a vendor file.
//!
//! The new content goes to a temp file beside the target, with the target's mode and owner, and reaches the disk
//! before the rename: so the target is at any instant, also after a crash or on a full disk, wholly old or wholly new.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::{Builder, NamedTempFile};

use crate::files;

/// Temp files have this in their names; see [`is_temporary`].
const TEMP_MARK: &str = ".lmpatch-tmp.";

/// New content on the disk beside its target, not yet in its place. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Staged<'a> {
    temp: NamedTempFile,
    target: &'a Path,
    before: &'a [u8],
    after: &'a [u8],
}

/// Writes `after` beside `target`, which holds `before`. Fails, changing nothing, where that cannot be done.
pub fn stage<'a>(target: &'a Path, before: &'a [u8], after: &'a [u8]) -> Result<Staged<'a>> {
    let metadata =
        fs::symlink_metadata(target).with_context(|| format!("{} is gone", target.display()))?;
    if metadata.permissions().readonly() {
        bail!(
            "{} is read-only; allow writing with: chmod u+w '{}'",
            target.display(),
            target.display()
        );
    }
    let temp = temp_beside(target, &metadata, after)?;
    Ok(Staged {
        temp,
        target,
        before,
        after,
    })
}

impl Staged<'_> {
    /// Puts the content in its place. Fails, changing nothing, where the target is no longer what it was; where
    /// only the directory could not be synced, the new content is in place and the error says so.
    pub fn commit(self) -> Result<()> {
        let target = self.target;
        let is_file = fs::symlink_metadata(target).is_ok_and(|metadata| metadata.is_file());
        match files::read(target) {
            Ok(now) if is_file && now == self.before => {}
            // Two layers that are links to one directory: the first of them has done it.
            Ok(now) if is_file && now == self.after => return Ok(()),
            _ => bail!(
                "{} was changed by something else while lmpatch ran (an update of LM Studio?); run lmpatch again",
                target.display()
            ),
        }
        self.temp
            .persist(target)
            .map_err(|e| e.error)
            .with_context(|| format!("cannot replace {}", target.display()))?;
        sync_directory_of(target)
    }
}

/// Saves `bytes` as `copy`, with the mode and owner of `model`, unless something of that name is there already.
pub fn save(copy: &Path, model: &Path, bytes: &[u8]) -> Result<()> {
    let metadata =
        fs::symlink_metadata(model).with_context(|| format!("{} is gone", model.display()))?;
    let temp = temp_beside(copy, &metadata, bytes)?;
    temp.persist_noclobber(copy)
        .map_err(|e| e.error)
        .with_context(|| format!("cannot save {}", copy.display()))?;
    sync_directory_of(copy)
}

/// Whether `name` is that of a temp file for `target` or for its saved copy, left by a run that was killed.
#[must_use]
pub fn is_temporary(name: &str, target: &str) -> bool {
    let ours = name
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(target)?.strip_prefix(".lmpatch-"));
    ours.is_some_and(|_| name.contains(TEMP_MARK))
}

/// The temp files for `target` that killed runs have left.
#[must_use]
pub fn temporaries(target: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(file)) = (target.parent(), target.file_name()) else {
        return Vec::new();
    };
    let file = file.to_string_lossy();
    let entries = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let ours = entries.filter(|entry| is_temporary(&entry.file_name().to_string_lossy(), &file));
    ours.map(|entry| entry.path()).collect()
}

fn temp_beside(target: &Path, metadata: &Metadata, content: &[u8]) -> Result<NamedTempFile> {
    let directory = parent(target)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}{TEMP_MARK}");
    let mut temp = Builder::new()
        .prefix(&prefix)
        .tempfile_in(&directory)
        .with_context(|| {
            format!(
                "cannot write in {}; check that you own it and may write there (chmod u+w)",
                directory.display()
            )
        })?;
    fill(&mut temp, metadata, content)
        .with_context(|| format!("cannot write {} in {}", name, directory.display()))?;
    Ok(temp)
}

fn fill(temp: &mut NamedTempFile, metadata: &Metadata, content: &[u8]) -> Result<()> {
    temp.write_all(content)?;
    let file = temp.as_file();
    let fresh = file.metadata()?;
    if (fresh.uid(), fresh.gid()) != (metadata.uid(), metadata.gid()) {
        fchown(file, Some(metadata.uid()), Some(metadata.gid()))
            .context("its owner cannot be kept; run as that user")?;
    }
    // After the owner: changing the owner clears mode bits.
    file.set_permissions(metadata.permissions())?;
    Ok(sync(file)?)
}

/// Waits until the content is on the disk, on every file system that can tell: macOS has some that cannot
/// (`F_FULLFSYNC` is for APFS, HFS+ and FAT), and people keep models and runtimes on such disks.
fn sync(file: &File) -> io::Result<()> {
    const ENOTSUP_ON_MACOS: i32 = 45;
    match file.sync_all() {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(e) if cfg!(target_os = "macos") && e.raw_os_error() == Some(ENOTSUP_ON_MACOS) => Ok(()),
        other => other,
    }
}

/// Without this a crash could bring the old directory entry back.
fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = parent(path)?;
    File::open(&directory)
        .and_then(|handle| sync(&handle))
        .with_context(|| format!("cannot sync {} to disk", directory.display()))
}

fn parent(path: &Path) -> Result<PathBuf> {
    path.parent()
        .map(Path::to_owned)
        .with_context(|| format!("{} has no directory", path.display()))
}
