//! Reading files that somebody else may have put there: regular files of a sane size, and nothing else.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Nothing larger than this is read, in bytes. The largest vendor file so far has 78,615.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Why a file was not read.
#[derive(Debug)]
pub enum NotRead {
    /// There is nothing at that path.
    Missing,
    /// There is something else than a regular file; what it is.
    NotAFile(&'static str),
    /// It is larger than [`MAX_BYTES`]; its size in bytes.
    TooLarge(u64),
    /// The system said no.
    Io(io::Error),
}

impl NotRead {
    /// Whether it is only a matter of permissions.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is not there"),
            Self::NotAFile(kind) => write!(f, "is {kind}, not a regular file"),
            Self::TooLarge(size) => write!(
                f,
                "has {size} bytes, more than the {MAX_BYTES} that are read at most"
            ),
            Self::Io(error) if self.is_denied() => {
                write!(
                    f,
                    "cannot be read ({error}); allow it with chmod u+r, or chmod u+rx on its directory"
                )
            }
            Self::Io(error) => write!(f, "cannot be read ({error})"),
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

/// The bytes of a regular file of at most [`MAX_BYTES`]; links are followed.
///
/// What is no regular file is told by its type alone and never opened: opening a FIFO would wait for a writer.
pub fn read(path: &Path) -> Result<Vec<u8>, NotRead> {
    let metadata = fs::metadata(path).map_err(|error| dangling(path, error))?;
    if !metadata.is_file() {
        return Err(NotRead::NotAFile(kind(metadata.file_type())));
    }
    if metadata.len() > MAX_BYTES {
        return Err(NotRead::TooLarge(metadata.len()));
    }
    let mut bytes = vec![0; usize::try_from(metadata.len()).unwrap_or_default()];
    let mut file = File::open(path)?;
    file.read_exact(&mut bytes)?;
    // In case the file grew since, up to one byte more than allowed.
    file.take(MAX_BYTES + 1 - metadata.len())
        .read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(size) if size <= MAX_BYTES => Ok(bytes),
        _ => Err(NotRead::TooLarge(metadata.len())),
    }
}

/// `error`, told as a failure to `act` on the directory `path`; where permissions are the reason, with the command
/// that gives them.
#[must_use]
pub fn directory_error(act: &str, path: &Path, error: io::Error) -> anyhow::Error {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    // The deepest directory that can still be seen is the one that is closed.
    let closed = path
        .ancestors()
        .find(|ancestor| is_denied && fs::metadata(ancestor).is_ok());
    let fix = closed.map(|closed| format!("; allow it with: chmod u+rx '{}'", closed.display()));
    anyhow::Error::new(error).context(format!(
        "cannot {act} {}{}",
        path.display(),
        fix.unwrap_or_default()
    ))
}

/// When a file was last written, in seconds since 1970.
#[must_use]
pub fn modified(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// The names in a directory.
pub fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
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
#[must_use]
pub fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    matches!(
        error.kind(),
        NotFound | NotADirectory | InvalidInput | InvalidFilename
    )
}

fn dangling(path: &Path, error: io::Error) -> NotRead {
    if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_ok() {
        return NotRead::NotAFile("a link that leads nowhere");
    }
    error.into()
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
