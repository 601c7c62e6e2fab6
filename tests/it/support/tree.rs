//! Directories with everything in them, for comparing before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// One entry of a tree: everything that must stay as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    File {
        bytes: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Link(PathBuf),
    Directory {
        mode: u32,
    },
    Special,
}

/// Every entry below `root` by its relative path, for comparing before and after.
pub fn snapshot(root: &Path) -> BTreeMap<OsString, Entry> {
    let mut entries = BTreeMap::new();
    collect(root, root, &mut entries);
    entries
}

fn collect(root: &Path, directory: &Path, entries: &mut BTreeMap<OsString, Entry>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mode = metadata.mode();
        let relative = path.strip_prefix(root).unwrap().as_os_str().to_owned();
        let found = if metadata.is_symlink() {
            Entry::Link(fs::read_link(&path).unwrap())
        } else if metadata.is_dir() {
            collect(root, &path, entries);
            Entry::Directory { mode }
        } else if metadata.is_file() && metadata.len() < 1 << 26 {
            let bytes = fs::read(&path).unwrap_or_default();
            Entry::File {
                bytes,
                mode,
                uid: metadata.uid(),
                gid: metadata.gid(),
            }
        } else {
            Entry::Special
        };
        entries.insert(relative, found);
    }
}

/// The paths whose entries differ between two snapshots.
pub fn differences(
    before: &BTreeMap<OsString, Entry>,
    after: &BTreeMap<OsString, Entry>,
) -> Vec<String> {
    let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let different = all
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    different.map(|path| path.display().to_string()).collect()
}

/// A tree as it was at one moment.
pub struct Before {
    root: PathBuf,
    entries: BTreeMap<OsString, Entry>,
}

impl Before {
    pub fn of(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let entries = snapshot(&root);
        Self { root, entries }
    }

    /// The paths whose entries differ now.
    pub fn changes(&self) -> Vec<String> {
        differences(&self.entries, &snapshot(&self.root))
    }

    /// Fails the test unless everything is as it was.
    #[track_caller]
    pub fn still_holds(&self) {
        assert_eq!(self.changes(), [""; 0]);
    }
}
