//! The least that any program must do to check or to set: reads the files it is given, or writes, syncs, renames each
//! and syncs its directory, one after the other. `.bench/compare` holds lmpatch against it.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let mut arguments = env::args_os().skip(1);
    let visit = match arguments.next().as_deref().and_then(|word| word.to_str()) {
        Some("read") => read,
        Some("write") => write,
        _ => return Err(io::Error::other("usage: floor read|write FILE...")),
    };
    arguments
        .map(PathBuf::from)
        .try_for_each(|path| visit(&path))
}

fn read(path: &Path) -> io::Result<()> {
    black_box(fs::read(path)?);
    Ok(())
}

fn write(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::other("a file has a directory"))?;
    let mut name = OsString::from(".floor.");
    name.push(path.file_name().unwrap_or_default());
    let temporary = directory.join(name);
    let bytes = fs::read(path)?;
    let mut file = File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
