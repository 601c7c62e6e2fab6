//! Children that may hang, that run as an ordinary user, or whose streams are not what one hopes for.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Env, Ran, copy_binary, skipped};

/// Far more than any run needs on a slow machine; whoever is past it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// `nobody` on Linux; what matters is that it is not root.
const NOBODY: u32 = 65534;

/// Runs a command to its end; one that is past the deadline is killed and fails the test.
#[track_caller]
pub fn finish(command: &mut Command) -> Ran {
    finish_into(command, Stdio::piped(), Stdio::piped())
}

/// The same with these for its streams; what goes elsewhere is empty in what comes back.
#[track_caller]
pub fn finish_into(
    command: &mut Command,
    stdout: impl Into<Stdio>,
    stderr: impl Into<Stdio>,
) -> Ran {
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("still running after {DEADLINE:?}: {command:?}");
        }
        thread::sleep(Duration::from_millis(5));
    };
    Ran::of(&Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    })
}

fn drain(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            stream.read_to_end(&mut bytes).unwrap();
        }
        bytes
    })
}

impl Env {
    /// Runs lmpatch with `args` to its end, within the deadline.
    #[track_caller]
    pub fn finish<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        finish(&mut self.command(args))
    }

    /// Whether the tests run as root, for whom no file is read-only.
    pub fn is_root(&self) -> bool {
        fs::metadata(self.root.path()).unwrap().uid() == 0
    }

    /// Gives the user home with everything in it to the ordinary user of [`Env::ordinary`].
    pub fn hand_over(&self) {
        if self.is_root() {
            for path in [self.user(), self.root.path().join("tmp")] {
                give(&path, NOBODY);
            }
        }
    }

    /// A command that runs lmpatch as an ordinary user: `nobody` where the tests run as root.
    pub fn ordinary<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        if !self.is_root() {
            return self.command(args);
        }
        let mut command = Command::new(self.binary_for_all());
        self.isolate(&mut command)
            .args(args)
            .uid(NOBODY)
            .gid(NOBODY);
        command
    }

    /// A copy of the binary where everybody may run it; the directory it is built in may be closed to them.
    fn binary_for_all(&self) -> PathBuf {
        let copy = self.root.path().join("lmpatch");
        if !copy.exists() {
            fs::set_permissions(self.root.path(), Permissions::from_mode(0o755)).unwrap();
            copy_binary(&copy);
            fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }
}

/// Gives `path` and everything below it to the user and the group `id`.
fn give(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

/// Runs `run` while `path` has `mode`, and sees to it that it still has it afterwards.
#[track_caller]
pub fn while_mode<T>(path: &Path, mode: u32, run: impl FnOnce() -> T) -> T {
    let before = fs::symlink_metadata(path).unwrap().permissions();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let result = run();
    let after = fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    fs::set_permissions(path, before).unwrap();
    assert_eq!(
        after,
        mode,
        "the mode of {} in octal: {after:o}",
        path.display()
    );
    result
}

/// What tells one file from another that took its place: inode, type and mode, device, size, time of change.
pub fn identity(path: &Path) -> io::Result<(u64, u32, u64, u64, i64, i64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((
        metadata.ino(),
        metadata.mode(),
        metadata.rdev(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

/// Whether a tool that the test needs can be started; says so where it cannot.
pub fn has_tool(name: &str) -> bool {
    let found = Command::new(name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skipped(&format!("{name} is not installed"));
    }
    found
}
