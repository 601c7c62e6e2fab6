//! Reading files that somebody else may have put there, saying why that failed, and replacing lmpatch's own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use serde::Serializer;
use tempfile::{Builder, NamedTempFile};

use crate::output::quoted;

/// Nothing larger than this is read, in bytes. The largest vendor file so far has 78,615.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

pub const FULL_DISK_ACCESS: &str = "System Settings → Privacy & Security → Full Disk Access";

/// The bytes of a regular file of at most [`MAX_BYTES`]; links are followed. What cannot be such a file is told as
/// [`ErrorKind::InvalidData`].
///
/// It is recognised by its type and never opened: opening a FIFO would wait for a writer.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let odd = |what: &str| Err(io::Error::new(ErrorKind::InvalidData, what));
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
            return odd("it is a link that leads nowhere");
        }
        metadata => metadata?,
    };
    if !metadata.is_file() {
        return odd("it is not a regular file");
    }
    let mut size = metadata.len();
    let mut bytes = Vec::new();
    if size <= MAX_BYTES {
        bytes.reserve(usize::try_from(size).unwrap_or_default() + 1);
        // At most one byte more than allowed, in case the file has grown since.
        let mut file = File::open(path)?.take(MAX_BYTES + 1);
        size = file.read_to_end(&mut bytes)? as u64;
    }
    if size > MAX_BYTES {
        let limit = format!("more than the limit of {MAX_BYTES}");
        return odd(&format!("it has {size} bytes, {limit}"));
    }
    Ok(bytes)
}

/// Whether an error of [`read`] says that there is no file that could be read.
pub fn is_no_file(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
}

/// Writes a small file of lmpatch's own, so that it is at any instant wholly old or wholly new.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(path);
    let write = || {
        let mut file = new_temp(".lmpatch-", directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(io::Error::from)
    };
    write().map_err(|error| cannot("write in", directory, &error))?;
    Ok(())
}

/// A new file beside others, which vanishes unless it is persisted. Only its owner may read it.
pub fn new_temp(prefix: &str, directory: &Path) -> io::Result<NamedTempFile> {
    // Opened here, since the crate's own error no longer tells EPERM from EACCES.
    Builder::new().prefix(prefix).make_in(directory, |path| {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600).open(path)
    })
}

/// Describes `error` as a failure to `act` on `path`. If permissions are the reason, says what helps: `chmod`, or what
/// macOS asks for.
pub fn cannot(act: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    // `ErrorKind::PermissionDenied` is both; chmod fixes only EACCES.
    let fix = match Errno::from_io_error(error) {
        Some(Errno::PERM) => format!(
            "; macOS keeps it from this program: allow it, or your terminal, in {FULL_DISK_ACCESS} (or Files & Folders \
             → Removable Volumes), or unlock it with chflags nouchg"
        ),
        Some(Errno::ACCESS) => {
            // The deepest part of the path that can still be seen is what is closed; behind a link, of its target.
            let (mut closed, mut links) = (path.to_owned(), 0..40);
            while fs::metadata(&closed).is_err() {
                match fs::read_link(&closed) {
                    Ok(target) if links.next().is_some() => closed.set_file_name(target),
                    _ if closed.pop() => {}
                    _ => break,
                }
            }
            let mode = if closed.is_file() { "u+r" } else { "u+rwx" };
            let closed = quoted(closed.display());
            format!("; allow it with `chmod {mode} {closed}`, if it is yours")
        }
        _ => String::new(),
    };
    anyhow::anyhow!("cannot {act} {} ({error}){fix}", path.display())
}

/// When a file was last written, in seconds since 1970; `None` if that is in the future.
pub fn modified(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    modified.elapsed().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// When anything about the file last changed. Not its modification time, which unpacking sets to an older one.
pub fn last_change(path: &Path) -> Option<SystemTime> {
    let metadata = fs::metadata(path).ok()?;
    let nanoseconds = Duration::from_nanos(metadata.ctime_nsec().unsigned_abs());
    Some(UNIX_EPOCH + Duration::from_secs(metadata.ctime().unsigned_abs()) + nanoseconds)
}

/// What is in a directory; nothing if it is not there. Fails if it cannot be listed.
pub fn names(directory: &Path) -> anyhow::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory);
    let names = entries.and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect());
    match names {
        Err(error) if is_absence(&error) => Ok(Vec::new()),
        names => names.map_err(|error| cannot("list", directory, &error)),
    }
}

/// Whether there is a directory at that path, following links. Fails if that cannot be determined.
pub fn is_dir(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Err(error) if is_absence(&error) => Ok(false),
        metadata => Ok(metadata?.is_dir()),
    }
}

/// Whether the error says that nothing is at that path, or that nothing can be: a name with a NUL, or one too long.
pub fn is_absence(error: &io::Error) -> bool {
    use ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    let absences = [NotFound, NotADirectory, InvalidInput, InvalidFilename];
    absences.contains(&error.kind())
}

/// Serialises a path even if it is not UTF-8.
pub fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The path with all links resolved; the path itself if that fails.
pub fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The app bundle that a resolved path lies in, if any. An edit in there would break the app's signature.
pub fn app_bundle(resolved: &Path) -> Option<&Path> {
    let is_app = |extension: &OsStr| extension.eq_ignore_ascii_case("app");
    let is_bundle = |path: &&Path| path.extension().is_some_and(is_app);
    resolved.ancestors().filter(is_bundle).last()
}

/// Whether macOS keeps a directory, its links resolved, from programs without Full Disk Access.
pub fn is_protected(directory: &Path, user: &Path) -> bool {
    let folders = ["Documents", "Desktop", "Downloads"].map(|folder| user.join(folder));
    directory.starts_with("/Volumes") || folders.iter().any(|folder| directory.starts_with(folder))
}
