//! Reading files that somebody else may have put there, and saying why that failed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::Serializer;

/// Nothing larger than this is read, in bytes. The largest vendor file so far has 78,615.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The same number on Linux and macOS. `ErrorKind::PermissionDenied` does not tell it from EACCES, which chmod can fix.
const EPERM: i32 = 1;

/// Why a file was not read.
#[derive(Debug)]
pub enum NotRead {
    Missing,
    /// There is something else than a regular file; what it is.
    NotAFile(&'static str),
    /// It is larger than [`MAX_BYTES`]; its size in bytes.
    TooLarge(u64),
    Io(io::Error),
}

impl NotRead {
    /// Whether it is only a matter of permissions.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is not there"),
            Self::NotAFile(kind) => write!(f, "is {kind}, not a regular file"),
            Self::TooLarge(size) => {
                let limit = format!("more than the {MAX_BYTES} that are read at most");
                write!(f, "has {size} bytes, {limit}")
            }
            Self::Io(error) => {
                let fix = fix(error, "chmod u+r, or chmod u+rx on its directory");
                write!(f, "cannot be read ({error}){}", fix.unwrap_or_default())
            }
        }
    }
}

impl From<io::Error> for NotRead {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::Missing
        } else {
            Self::Io(error)
        }
    }
}

/// What to do about an error of permissions, to follow its text: `chmod` where that helps, else what macOS asks for.
fn fix(error: &io::Error, chmod: &str) -> Option<String> {
    if error.raw_os_error() == Some(EPERM) {
        return Some(
            "; macOS keeps it from this program: allow it, or your terminal, in System Settings → Privacy & Security → Full \
             Disk Access (or Files & Folders → Removable Volumes), or unlock it with chflags nouchg"
                .to_owned(),
        );
    }
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    is_denied.then(|| format!("; allow it with {chmod}"))
}

/// The bytes of a regular file of at most [`MAX_BYTES`]; links are followed.
///
/// What is no regular file is told by its type alone and never opened: opening a FIFO would wait for a writer.
pub fn read(path: &Path) -> Result<Vec<u8>, NotRead> {
    let mut metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        metadata = fs::metadata(path).map_err(|error| match error.into() {
            NotRead::Missing => NotRead::NotAFile("a link that leads nowhere"),
            why => why,
        })?;
    }
    if !metadata.is_file() {
        return Err(NotRead::NotAFile(kind(metadata.file_type())));
    }
    if metadata.len() > MAX_BYTES {
        return Err(NotRead::TooLarge(metadata.len()));
    }
    let size = usize::try_from(metadata.len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(size + 1);
    // In case the file grew since, up to one byte more than allowed.
    let limit = MAX_BYTES + 1;
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(size) if size < limit => Ok(bytes),
        _ => Err(NotRead::TooLarge(limit)),
    }
}

/// `error`, told as a failure to `act` on the directory `path`, with what fixes it where permissions are the reason.
pub fn directory_error(act: &str, path: &Path, error: io::Error) -> anyhow::Error {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    // The deepest directory that can still be seen is the one that is closed.
    let closed = path
        .ancestors()
        .find(|ancestor| is_denied && fs::metadata(ancestor).is_ok())
        .unwrap_or(path);
    let chmod = format!("chmod u+rx '{}'", closed.display());
    cannot(act, path, error, &chmod)
}

/// `error`, told as a failure to `act` on `path`, with `chmod` where that fixes it.
pub fn cannot(act: &str, path: &Path, error: io::Error, chmod: &str) -> anyhow::Error {
    let fix = fix(&error, chmod).unwrap_or_default();
    anyhow::Error::new(error).context(format!("cannot {act} {}{fix}", path.display()))
}

/// When a file was last written, in seconds since 1970.
pub fn modified(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// The names in a directory.
pub fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// Whether there is a directory at that path, links followed. Fails where that cannot be told, which is no "no".
pub fn is_dir(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the error says that nothing is at that path, or that nothing can be: a name with a NUL, or one too long.
pub fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    matches!(
        error.kind(),
        NotFound | NotADirectory | InvalidInput | InvalidFilename
    )
}

/// Serialises a path also where it is not UTF-8.
pub fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// The app bundle that a resolved path lies in, if any. An edit in there would break the app's signature.
pub fn app_bundle(resolved: &Path) -> Option<&Path> {
    let is_app = |extension: &OsStr| extension.eq_ignore_ascii_case("app");
    let is_bundle = |path: &&Path| path.extension().is_some_and(is_app);
    resolved.ancestors().filter(is_bundle).last()
}

fn kind(file_type: fs::FileType) -> &'static str {
    if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}
