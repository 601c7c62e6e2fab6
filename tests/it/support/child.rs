//! Children that may hang, that run as an ordinary user, or whose streams are not what one hopes for.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{Env, LMPATCH, Ran, copy_program, skipped};

/// Far more than anything needs on a slow machine; whoever is past it hangs.
const DEADLINE: Duration = Duration::from_secs(90);

/// `nobody` on Linux; what matters is that it is not root.
const NOBODY: u32 = 65534;

/// Runs a command to its end.
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
    ended(command.stdout(stdout).stderr(stderr).spawn().unwrap())
}

/// Waits for a child to end; one that is past the deadline is killed and fails the test.
#[track_caller]
pub fn ended(child: Child) -> Ran {
    let pid = child.id();
    let (sender, output) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = output.recv_timeout(DEADLINE) else {
        signal(pid, "KILL");
        panic!("still running after {DEADLINE:?}");
    };
    Ran::of(&output.unwrap())
}

#[track_caller]
pub fn signal(pid: impl Display, name: &str) {
    let mut kill = Command::new("kill");
    kill.args(["-s", name, &pid.to_string()]);
    assert!(kill.status().unwrap().success(), "{kill:?}");
}

/// Looks until there is something, and fails the test where that takes too long.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `is_so`, and fails the test where that takes too long.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    eventually(what, || is_so().then_some(()));
}

impl Env {
    /// What a Python script prints, which has to succeed.
    #[track_caller]
    pub fn python<A: AsRef<OsStr>>(&self, python: &Path, script: &str, args: &[A]) -> Vec<u8> {
        let mut command = Command::new(python);
        let command = self.isolate(&mut command).args(["-I", "-W", "ignore"]);
        let output = command.args(["-c", script]).args(args).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        output.stdout
    }

    /// Whether the tests run as root, for whom no file is read-only.
    pub fn is_root(&self) -> bool {
        fs::metadata(self.root.path()).unwrap().uid() == 0
    }

    /// Gives the user home with everything in it to the ordinary user of [`Env::ordinary`].
    pub fn hand_over(&self) {
        if self.is_root() {
            let mut chown = Command::new("chown");
            chown.args(["-hR", &format!("{NOBODY}:{NOBODY}")]);
            chown.args([self.user(), self.root.path().join("tmp")]);
            assert!(chown.status().unwrap().success());
        }
    }

    /// A command that runs lmpatch as an ordinary user: `nobody` where the tests run as root.
    pub fn ordinary<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        if !self.is_root() {
            return self.command(args);
        }
        let mut command = Command::new(self.binary_for_all());
        self.isolate(&mut command).uid(NOBODY).gid(NOBODY);
        command.args(args);
        command
    }

    /// A copy of the binary where everybody may run it; the directory it is built in may be closed to them.
    fn binary_for_all(&self) -> PathBuf {
        let copy = self.root.path().join("lmpatch");
        if !copy.exists() {
            fs::set_permissions(self.root.path(), Permissions::from_mode(0o755)).unwrap();
            copy_program(LMPATCH, &copy);
            fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        }
        copy
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
    assert_eq!(after, mode, "{} in octal: {after:o}", path.display());
    result
}

/// What tells one file from another that took its place: inode, type and mode, device, size, time of change.
pub fn identity(path: &Path) -> io::Result<(u64, u32, u64, u64, SystemTime)> {
    let file = fs::symlink_metadata(path)?;
    let (inode, mode, device) = (file.ino(), file.mode(), file.rdev());
    Ok((inode, mode, device, file.len(), file.modified()?))
}

/// Whether a tool that the test needs can be started; says so where it cannot.
pub fn has_tool(name: &str) -> bool {
    let mut version = Command::new(name);
    let found = version.arg("--version").output().is_ok();
    if !found {
        skipped(&format!("{name} is not installed"));
    }
    found
}
