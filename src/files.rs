//! Reading files that somebody else may have put there, saying why that failed, and replacing lmpatch's own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile};

use crate::output::quoted;

/// Nothing larger than this is read, in bytes. The largest vendor file so far has 78,615.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

pub const FULL_DISK_ACCESS: &str = "System Settings → Privacy & Security → Full Disk Access";

/// The bytes of a regular file of at most [`MAX_BYTES`]; links are followed.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    let metadata = fs::metadata(path)?;
    let size = metadata.len();
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if size > MAX_BYTES {
        let what = format!("it has {size} bytes, more than the limit of {MAX_BYTES}");
        return Err(io::Error::other(what));
    }
    fs::read(path)
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
    let written = write().map(drop);
    written.map_err(|error| cannot("write in", directory, &error))
}

/// A new file beside others, which vanishes unless it is persisted.
pub fn new_temp(prefix: &str, directory: &Path) -> io::Result<NamedTempFile> {
    // Opened here, since the crate's own error no longer tells EPERM from EACCES.
    Builder::new()
        .prefix(prefix)
        .make_in(directory, |path| File::create_new(path))
}

/// Describes `error` as a failure to `act` on `path`; if permissions are the reason, with what helps.
pub fn cannot(act: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    // `ErrorKind::PermissionDenied` is both; chmod fixes only EACCES.
    let fix = match Errno::from_io_error(error) {
        Some(Errno::PERM) => format!(
            "; macOS keeps it from this program: allow it, or your terminal, in {FULL_DISK_ACCESS} (or Files & Folders \
             → Removable Volumes), or unlock it with chflags nouchg"
        ),
        Some(Errno::ACCESS) => {
            // The deepest part of the path that can still be seen is what is closed; behind a link, of its target.
            let mut closed = path.to_owned();
            while fs::metadata(&closed).is_err() {
                match fs::read_link(&closed) {
                    Ok(target) => closed.set_file_name(target),
                    Err(_) if closed.pop() => {}
                    Err(_) => break,
                }
            }
            let closed = quoted(closed.display());
            format!("; allow it with `chmod u+rwX {closed}`, if it is yours")
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

/// The names in a directory that start and end so; none if it is not there. Fails if it cannot be listed.
pub fn names(directory: &Path, start: &str, end: &str) -> anyhow::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory);
    let names = entries.and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect());
    let mut names: Vec<OsString> = match names {
        Err(error) if is_absence(&error) => Vec::new(),
        names => names.map_err(|error| cannot("list", directory, &error))?,
    };
    names.retain(|name| {
        let name = name.to_string_lossy();
        name.starts_with(start) && name.ends_with(end)
    });
    Ok(names)
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
    [NotFound, NotADirectory, InvalidInput, InvalidFilename].contains(&error.kind())
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
