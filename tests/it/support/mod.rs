//! Runs lmpatch as a user does: its own home, its own temp directory, a cleared environment.
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::iter;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

pub mod child;
pub mod home;
pub mod laws;
pub mod lms;
pub mod nasty;
mod ran;
pub mod server;
pub mod standins;
pub mod strace;
mod tree;

use child::finish;
pub use ran::Ran;
pub use tree::{Before, Entry, copy_tree, differences, snapshot};

/// The binary under test.
pub const LMPATCH: &str = env!("CARGO_BIN_EXE_lmpatch");

/// Copies a program. By another process: a copy that this one has open for writing, while another test forks, is "busy".
pub fn copy_program(program: &str, to: &Path) {
    let mut copy = Command::new("cp");
    assert!(copy.arg(program).arg(to).status().unwrap().success());
}

/// A user's home directory of its own, gone when it is dropped.
pub struct Env {
    root: TempDir,
}

impl Env {
    /// An empty user home.
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// An empty user home in memory, where the system has a place for that: nothing waits for a disk.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            Self::below(memory)
        } else {
            Self::new()
        }
    }

    fn below(directory: &Path) -> Self {
        let root = tempfile::tempdir_in(directory).unwrap();
        fs::create_dir(root.path().join("user")).unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        Self { root }
    }

    /// A user home whose `.lmstudio` is a copy of `fixtures/lmstudio`.
    pub fn with_fixture() -> Self {
        let env = Self::new();
        copy_tree(&fixture(), &env.lmstudio());
        env
    }

    pub fn user(&self) -> PathBuf {
        self.root.path().join("user")
    }

    /// The usual home of LM Studio.
    pub fn lmstudio(&self) -> PathBuf {
        self.user().join(".lmstudio")
    }

    /// The directory of backends in it.
    pub fn amphibian(&self) -> PathBuf {
        amphibian(&self.lmstudio())
    }

    /// A command that runs lmpatch with `args`, not yet started.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(LMPATCH);
        self.isolate(&mut command).args(args);
        command
    }

    /// Where programs are that come first on PATH.
    pub fn standins(&self) -> PathBuf {
        self.root.path().join("stand-ins")
    }

    /// Gives any command this environment and nothing else.
    pub fn isolate<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = iter::once(self.standins()).chain(std::env::split_paths(&path));
        command
            .env_clear()
            .env("HOME", self.user())
            .env("TMPDIR", self.root.path().join("tmp"))
            .env("PATH", std::env::join_paths(path).unwrap())
            .current_dir(self.user())
            .stdin(Stdio::null())
    }

    /// Runs lmpatch with `args` to its end, within the deadline.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        finish(&mut self.command(args))
    }

    /// Runs lmpatch with `args` and `--json`, and parses what it prints.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        finish(self.command(args).arg("--json")).json()
    }

    /// What `--check` reports of one backend, counted from 0.
    pub fn checked(&self, backend: usize) -> Value {
        self.json(["--check"])["backends"][backend].clone()
    }

    /// Fails the test unless a check, a change, a dry run and a revert with `flags` all end with 1 before any backend, for
    /// these reasons, on stderr and in JSON, and write nothing.
    #[track_caller]
    pub fn fails(&self, flags: &[&str], reasons: &[&str]) {
        let before = Before::of(self.user());
        for words in ["--check", "4096", "4096 --dry-run", "--revert"] {
            let args: Vec<_> = words.split(' ').chain(flags.iter().copied()).collect();
            let ran = self.run(&args).exits(1);
            let report = self.json(&args);
            let told = fields(&report, ["schema", "exit_code", "backends"]);
            assert_eq!(told, json!([3, 1, []]));
            let error = report["error"].as_str().unwrap();
            for reason in reasons {
                let is_told = ran.stderr.contains(reason) && error.contains(reason);
                assert!(is_told, "{args:?}: no {reason:?}: {ran:#?} {report:#}");
            }
        }
        before.still_holds();
    }
}

#[track_caller]
pub fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Writes a file, and the directories above it.
#[track_caller]
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[track_caller]
pub fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Runs its arguments with stdout on a terminal of 80 columns and copies what comes.
const ON_TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.execvp(sys.argv[1], sys.argv[1:])
try:
    while data := os.read(terminal, 4096):
        sys.stdout.buffer.write(data)
except OSError:
    pass
"#;

/// The lines of stdout that a command prints on a terminal of 80 columns, without colours; `None` where there is no Python.
pub fn lines_on_terminal(env: &Env, command: &Command) -> Option<Vec<String>> {
    let mut python = Command::new(interpreter());
    env.isolate(&mut python).args(["-c", ON_TERMINAL]);
    python.arg(command.get_program()).args(command.get_args());
    let Ok(output) = python.env("NO_COLOR", "1").output() else {
        skipped("python3 does not start");
        return None;
    };
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(str::to_owned).collect())
}

/// The interpreter behind `python3`, which is a slow script where versions are managed; `python3` if there is none.
pub fn interpreter() -> &'static Path {
    static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();
    INTERPRETER.get_or_init(|| {
        let mut python = Command::new("python3");
        let output = python.args(["-c", "import sys; print(sys.executable, end='')"]);
        match output.output() {
            Ok(output) if output.status.success() => OsString::from_vec(output.stdout).into(),
            _ => "python3".into(),
        }
    })
}

/// Says something that the test runner does not keep to itself: what was skipped, or how much was tested.
pub fn aloud(text: &str) {
    std::io::stderr()
        .write_all(format!("{text}\n").as_bytes())
        .unwrap();
}

/// Says aloud that a test, or a part of it, did not run. Where everything is there that tests use, that is a failure.
#[track_caller]
pub fn skipped(why: &str) {
    assert!(std::env::var_os("LMPATCH_SKIPS_NOTHING").is_none(), "{why}");
    aloud(&format!("skipped: {why}"));
}

/// The miniature LM Studio home of the repository.
pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lmstudio")
}

/// The directory of backends in an LM Studio home.
pub fn amphibian(lmstudio: &Path) -> PathBuf {
    lmstudio.join("extensions/backends/vendor/_amphibian")
}

/// Replaces text in a file, which must have it.
#[track_caller]
pub fn edit(path: &Path, from: &str, to: &str) {
    let text = text(path);
    assert!(text.contains(from), "{} has no {from:?}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

/// One field of every backend in a report, as an array.
pub fn column(report: &Value, key: &str) -> Value {
    let backends = report["backends"].as_array().unwrap().iter();
    backends.map(|backend| backend[key].clone()).collect()
}

/// The array at `key` of a JSON object.
#[track_caller]
pub fn list<'v>(object: &'v Value, key: &str) -> &'v [Value] {
    object[key].as_array().unwrap()
}

/// The values of these fields of a JSON object, as an array.
pub fn fields<const N: usize>(object: &Value, names: [&str; N]) -> Value {
    names.iter().map(|name| object[name].clone()).collect()
}
