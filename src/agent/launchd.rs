//! The agent's launchd job, and launchctl, which hands it to launchd and takes it back.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::files::{self, cannot};
use crate::lmstudio::backends::amphibian;

const LABEL: &str = "io.github.lmpatch.agent";
/// For each call of launchctl, and for what a bootout leaves to be done.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Job {
    label: String,
    program_arguments: Vec<PathBuf>,
    run_at_load: bool,
    watch_paths: Vec<PathBuf>,
    /// In seconds. `WatchPaths` can miss a change.
    start_interval: u32,
    standard_error_path: PathBuf,
}

pub struct Launchd {
    pub job: PathBuf,
    pub log: PathBuf,
    /// `gui/501`, and `gui/501/io.github.lmpatch.agent`.
    domain: String,
    target: String,
}

impl Launchd {
    pub fn new() -> Result<Self> {
        let user = dirs::home_dir().context("your home directory is unknown; set HOME")?;
        let found = fs::metadata(&user).map_err(|error| cannot("read", &user, &error))?;
        let domain = format!("gui/{}", found.uid());
        Ok(Self {
            job: user.join(format!("Library/LaunchAgents/{LABEL}.plist")),
            log: user.join("Library/Logs/lmpatch.log"),
            target: format!("{domain}/{LABEL}"),
            domain,
        })
    }

    /// Of the job that is installed, if lmpatch wrote it: the program, the home, and the size in tokens.
    pub fn installed(&self) -> Option<(PathBuf, PathBuf, u64)> {
        let job: Job = plist::from_bytes(&files::read(&self.job).ok()?).ok()?;
        let [program, _, home, _, _, size] =
            <[PathBuf; 6]>::try_from(job.program_arguments).ok()?;
        Some((program, home, size.to_str()?.parse().ok()?))
    }

    /// Whether launchd has the job. Fails if launchctl does not answer.
    pub fn has_job(&self) -> Result<bool> {
        Ok(launchctl(&["print", &self.target])?.0 == Some(0))
    }

    /// Replaces the job. If that fails, the old one comes back.
    pub fn replace(&self, program: &Path, home: &Path, size: u64) -> Result<()> {
        let mut program_arguments = vec![program.to_owned(), "--home".into(), home.to_owned()];
        program_arguments.extend(["agent", "run", &size.to_string()].map(PathBuf::from));
        let job = Job {
            label: LABEL.to_owned(),
            program_arguments,
            run_at_load: true,
            watch_paths: vec![amphibian(home)],
            start_interval: 3600,
            standard_error_path: self.log.clone(),
        };
        let mut bytes = Vec::new();
        plist::to_writer_xml(&mut bytes, &job)?;
        let before = fs::read(&self.job);
        let agents = self.job.with_file_name("");
        fs::create_dir_all(&agents).map_err(|error| cannot("create", &agents, &error))?;
        files::replace(&self.job, &bytes)?;
        let loaded = self.unload().and_then(|()| self.load());
        loaded.inspect_err(|_| {
            let _ = match before {
                Ok(before) => files::replace(&self.job, &before).and_then(|()| self.load()),
                Err(_) => fs::remove_file(&self.job).map_err(Into::into),
            };
        })
    }

    fn load(&self) -> Result<()> {
        let (code, failure) = launchctl(&["bootstrap", &self.domain, &self.job.to_string_lossy()])?;
        let next = match code {
            Some(0) => return Ok(()),
            Some(5 | 125) => "nobody seems to be logged in at the screen; log in there first",
            Some(119) => &format!("it is disabled; run `launchctl enable {}`", self.target),
            _ => "`launchctl error` tells what the number means",
        };
        bail!("{failure}; {next}")
    }

    /// Takes the job from launchd, if it has it, and waits until it is gone.
    pub fn unload(&self) -> Result<()> {
        let (code, failure) = launchctl(&["bootout", &self.target])?;
        // 36 is "operation now in progress".
        ensure!(matches!(code, Some(0 | 36)) || !self.has_job()?, failure);
        command::retry(TIMEOUT, || {
            let still = format!("launchd still has {LABEL} after bootout; log out and in first");
            ensure!(!self.has_job()?, still);
            Ok(())
        })
    }
}

/// Its exit code, and a line that describes it if it is a failure.
fn launchctl(words: &[&str]) -> Result<(Option<i32>, String)> {
    let ran = command::run(Command::new("launchctl").args(words), TIMEOUT);
    let ran = ran.context("the agent needs macOS, and its launchctl to answer")?;
    let name = format!("launchctl {}", words[0]);
    let failure = command::failure(&name, ran.status, &ran.stderr);
    Ok((ran.status.code(), failure))
}
