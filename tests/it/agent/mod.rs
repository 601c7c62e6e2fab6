//! The agent: what it hands to launchd, what launchd runs, and what both say.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::child::finish;
use crate::support::standins::{Launchd, StandIns, install};
use crate::support::{Entry, Env, Ran, snapshot};
use serde_json::Value;

mod install;
mod job;
mod status;

const OLD: &str = "app-mlx-generate-mac14-arm64@34";
const NEW: &str = "app-mlx-generate-mac14-arm64@36";

/// A settling time of the job in milliseconds that suits a test. It is patient for 180 times as long.
const SOON: &str = "200";

/// One that lets it be patient for two seconds.
const IMPATIENT: &str = "10";

/// A user with lmpatch installed in `~/bin`, a launchd without jobs, and one stock backend.
struct User {
    env: Env,
    launchd: Launchd,
}

impl User {
    fn new() -> Self {
        let env = Env::new();
        for directory in ["Library/LaunchAgents", "Library/Logs"] {
            fs::create_dir_all(env.user().join(directory)).unwrap();
        }
        env.backend(OLD);
        let launchd = Launchd::new(&StandIns::new(&env));
        let user = Self { env, launchd };
        install(&user.program());
        user
    }

    /// The same with the agent, which has set the backend to 4096.
    #[track_caller]
    fn with_agent() -> Self {
        let user = Self::new();
        user.agent("install").exits(0);
        user
    }

    /// The same with the backend at stock again.
    #[track_caller]
    fn with_agent_and_stock() -> Self {
        let user = Self::with_agent();
        user.env.run(["--revert"]).exits(0);
        user
    }

    fn standins(&self) -> StandIns {
        StandIns::new(&self.env)
    }

    fn program(&self) -> PathBuf {
        self.env.user().join("bin/lmpatch")
    }

    /// The file of the job.
    fn job(&self) -> PathBuf {
        let agents = self.env.user().join("Library/LaunchAgents");
        agents.join("io.github.lmpatch.agent.plist")
    }

    /// What it says.
    fn job_read(&self) -> Value {
        plist::from_file(self.job()).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.env.user().join("Library/Logs/lmpatch.log")
    }

    fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs the installed lmpatch.
    fn run(&self, args: &[&str]) -> Ran {
        self.run_as(&self.program(), args)
    }

    fn run_as(&self, program: &Path, args: &[&str]) -> Ran {
        let mut command = Command::new(program);
        finish(self.env.isolate(&mut command).args(args))
    }

    fn agent(&self, words: &str) -> Ran {
        let words: Vec<_> = words.split(' ').collect();
        self.run(&[&["agent"], &words[..]].concat())
    }

    /// What launchd would run, its stderr in the log, with this settling time.
    fn job_command(&self, settle_ms: &str) -> Command {
        let job = self.job_read();
        let words = job["ProgramArguments"].as_array().unwrap().iter();
        let mut words = words.map(|word| word.as_str().unwrap());
        let mut command = Command::new(words.next().unwrap());
        let log = File::options().create(true).append(true).open(self.log());
        self.env
            .isolate(&mut command)
            .args(words)
            .args(["--settle-ms", settle_ms])
            .stdout(Stdio::piped())
            .stderr(log.unwrap());
        command
    }

    /// Runs the job to its end, which is with this exit code.
    #[track_caller]
    fn job_exits(&self, code: i32, settle_ms: &str) {
        let output = self.job_command(settle_ms).output().unwrap();
        assert_eq!(output.stdout, b"");
        assert_eq!(output.status.code(), Some(code), "{}", self.logged());
    }

    /// Fails the test unless the backends that `--check` lists have these chunks, 0 where that is unknown.
    #[track_caller]
    fn has_chunks<const N: usize>(&self, chunks: [u64; N]) {
        let report = self.env.json(["--check"]);
        let rows = report["backends"].as_array().unwrap().iter();
        let chunk = |row: &Value| row["chunk"].as_u64().unwrap_or_default();
        assert_eq!(rows.map(chunk).collect::<Vec<_>>(), chunks);
    }

    /// Everything that the user and launchd have.
    fn everything(&self) -> [BTreeMap<OsString, Entry>; 2] {
        let standins = self.standins().file("");
        fs::remove_file(standins.join("calls")).ok();
        [snapshot(&self.env.user()), snapshot(&standins)]
    }
}
