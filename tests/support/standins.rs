//! Stand-ins for programs that only a Mac has: shell scripts, first on PATH, that record their calls.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::parse_borrowed;

use super::{Env, Ran};

/// The stand-ins of one test.
pub struct StandIns<'e> {
    env: &'e Env,
    directory: PathBuf,
}

impl<'e> StandIns<'e> {
    /// None yet.
    pub fn new(env: &'e Env) -> Self {
        let directory = env.user().with_file_name("stand-ins");
        fs::create_dir_all(&directory).unwrap();
        Self { env, directory }
    }

    /// A file that scripts may use.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts a script called `name` first on PATH. It records each call, then does what `body` says.
    pub fn script(&self, name: &str, body: &str) {
        let calls = self.file("calls").display().to_string();
        executable(
            &self.file(name),
            &format!("echo \"{name} $*\" >> '{calls}'\n{body}"),
        );
    }

    /// A `ps` that shows itself and these processes: process id, start, command line.
    pub fn ps(&self, rows: &[(u32, SystemTime, String)]) {
        let rows = rows.iter().map(|(pid, start, command)| {
            format!("{pid:>5}     0 {}     {command}\n", lstart(*start))
        });
        let itself = "echo \"  $$     1 $(date '+%a %b %e %H:%M:%S %Y')     ps -axww\"";
        fs::write(self.file("table"), rows.collect::<String>()).unwrap();
        self.script(
            "ps",
            &format!(
                "[ \"$TZ\" = UTC0 ] || exit 9\n{itself}\ncat '{}'",
                self.file("table").display()
            ),
        );
    }

    /// Every call so far, oldest first: the program and its arguments.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.file("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// The calls of one program.
    pub fn calls_of(&self, name: &str) -> Vec<String> {
        self.calls()
            .into_iter()
            .filter(|call| call.split(' ').next() == Some(name))
            .collect()
    }

    /// Gives `command` the test's environment with the stand-ins first on PATH.
    pub fn prepare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(self.directory.clone()).chain(std::env::split_paths(&path));
        self.env
            .isolate(command)
            .env("PATH", std::env::join_paths(all).unwrap())
    }

    /// A command that runs lmpatch with the stand-ins, not yet started.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(super::LMPATCH);
        self.prepare(&mut command).args(args);
        command
    }

    /// Runs lmpatch with the stand-ins.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }

    /// Runs lmpatch with the stand-ins and `--json`, and parses what it prints.
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> serde_json::Value {
        let mut command = self.command(args);
        command.arg("--json");
        let ran = Ran::of(&command.output().unwrap());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }
}

/// Writes a shell script.
pub fn executable(path: &Path, body: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Written beside and renamed: a running script of that name keeps its own text.
    let new = path.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// The command line of a worker of the LM Studio in `lmstudio`.
pub fn worker(lmstudio: &Path) -> String {
    format!(
        "{}/.internal/utils/node -e process.title=1; require(\"/Applications/LM Studio.app/lib/llmworker.js\")",
        lmstudio.display()
    )
}

/// So many seconds before now.
pub fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}

fn lstart(start: SystemTime) -> String {
    let seconds = start.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap();
    let format = "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]";
    time.format(&parse_borrowed::<2>(format).unwrap()).unwrap()
}

/// Sets when a file was last written.
pub fn written(path: &Path, at: SystemTime) {
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(at)
        .unwrap();
}

/// Waits until `is_so`, and fails after twenty seconds.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(
            std::time::Instant::now() < deadline,
            "not within twenty seconds: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
