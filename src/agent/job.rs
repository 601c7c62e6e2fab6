//! The launchd job: its property list, and the calls of launchctl.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use plist::{Dictionary, Value};

use super::refuse;
use crate::command::{self, Finished};

/// The name of the job.
pub const LABEL: &str = "io.github.lmpatch.agent";

/// How long one call of launchctl may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a job takes to go after bootout has returned, and how long bootstrap fails because of that.
const AFTERMATH: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// What launchd is to run, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The lmpatch that it runs.
    pub program: PathBuf,
    /// LM Studio's home.
    pub home: PathBuf,
    /// The directory of layers in it: a layer that appears there starts the agent.
    pub watched: PathBuf,
    /// What new layers get, in tokens.
    pub size: u64,
}

impl Job {
    /// The job as a property list. Fails where a path is not UTF-8: property lists hold text.
    pub fn to_plist(&self) -> Result<Vec<u8>> {
        let text = |path: &Path| {
            let text = path
                .to_str()
                .with_context(|| format!("{} is not UTF-8", path.display()))?;
            Ok::<_, anyhow::Error>(Value::from(text))
        };
        let arguments = vec![
            text(&self.program)?,
            "agent".into(),
            "run".into(),
            self.size.to_string().into(),
            "--home".into(),
            text(&self.home)?,
        ];
        let mut job = Dictionary::new();
        job.insert("Label".to_owned(), LABEL.into());
        job.insert("ProgramArguments".to_owned(), Value::Array(arguments));
        job.insert(
            "WatchPaths".to_owned(),
            Value::Array(vec![text(&self.watched)?]),
        );
        job.insert("RunAtLoad".to_owned(), true.into());
        job.insert("ProcessType".to_owned(), "Background".into());
        let mut bytes = Vec::new();
        Value::Dictionary(job).to_writer_xml(&mut bytes)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The job that a property list describes, if it is one of these.
    #[must_use]
    pub fn from_plist(bytes: &[u8]) -> Option<Self> {
        let job = plist::from_bytes::<Value>(bytes).ok()?.into_dictionary()?;
        let texts = |key: &str| {
            let texts = job.get(key)?.as_array()?.iter().map(Value::as_string);
            texts.collect::<Option<Vec<_>>>()
        };
        let arguments = texts("ProgramArguments")?;
        let ([program, "agent", "run", size, "--home", home], [watched]) =
            (arguments.as_slice(), &*texts("WatchPaths")?)
        else {
            return None;
        };
        Some(Self {
            program: program.into(),
            home: home.into(),
            watched: watched.into(),
            size: size.parse().ok()?,
        })
    }
}

/// The path of lmpatch that launchd is to run, if it will still be there tomorrow.
pub fn lasting_program(program: &Path) -> Result<PathBuf> {
    let program = std::path::absolute(program)?;
    let real = fs::canonicalize(&program).unwrap_or_else(|_| program.clone());
    for path in [&program, &real] {
        if path.ancestors().skip(1).any(is_cargo_target) {
            return refuse(&program, "is in a cargo target directory");
        }
        // From there macOS runs what was downloaded and not yet moved to its place.
        let is_translocated = path
            .components()
            .any(|part| part.as_os_str() == "AppTranslocation");
        if is_translocated
            || temporary_directories()
                .iter()
                .any(|directory| path.starts_with(directory))
        {
            return refuse(&program, "is in a temporary directory");
        }
    }
    Ok(linked_by_homebrew(&program).unwrap_or(program))
}

/// Cargo marks its target directories with this file.
fn is_cargo_target(directory: &Path) -> bool {
    directory.join(".rustc_info.json").is_file()
}

fn temporary_directories() -> Vec<PathBuf> {
    let own = std::env::temp_dir();
    let real = fs::canonicalize(&own).ok();
    // What /tmp really is on macOS.
    [own, "/private/tmp".into()]
        .into_iter()
        .chain(real)
        .collect()
}

/// Homebrew removes a version's own directory on upgrade; the link in its `bin` stays.
fn linked_by_homebrew(program: &Path) -> Option<PathBuf> {
    let cellar = program
        .ancestors()
        .find(|directory| directory.ends_with("Cellar"))?;
    let link = cellar.parent()?.join("bin").join(program.file_name()?);
    (fs::canonicalize(&link).ok()? == fs::canonicalize(program).ok()?).then_some(link)
}

/// The launchd of the user who is logged in.
#[derive(Debug)]
pub struct Launchd {
    /// `gui/501`.
    domain: String,
}

impl Launchd {
    /// That of the owner of this home directory.
    pub fn of(user: &Path) -> Result<Self> {
        let metadata =
            fs::metadata(user).with_context(|| format!("cannot look at {}", user.display()))?;
        Ok(Self {
            domain: format!("gui/{}", metadata.uid()),
        })
    }

    /// Whether launchd has the job.
    pub fn is_loaded(&self) -> Result<bool> {
        Ok(self.call(&["print", &self.target()])?.status.success())
    }

    /// Hands the job to launchd.
    pub fn load(&self, job: &Path) -> Result<()> {
        let job = job
            .to_str()
            .with_context(|| format!("{} is not UTF-8", job.display()))?;
        // For a moment after a bootout, a bootstrap of the same job fails.
        let deadline = Instant::now() + AFTERMATH;
        loop {
            let finished = self.call(&["bootstrap", &self.domain, job])?;
            if finished.status.success() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(failed("bootstrap", &finished));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes the job from launchd, if it has it, and waits until it is gone.
    pub fn unload(&self) -> Result<()> {
        if !self.is_loaded()? {
            return Ok(());
        }
        let finished = self.call(&["bootout", &self.target()])?;
        let deadline = Instant::now() + AFTERMATH;
        while self.is_loaded()? {
            if !finished.status.success() {
                return Err(failed("bootout", &finished));
            }
            if Instant::now() >= deadline {
                bail!(
                    "launchd still has {LABEL} {} seconds after bootout",
                    AFTERMATH.as_secs()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn target(&self) -> String {
        format!("{}/{LABEL}", self.domain)
    }

    #[expect(clippy::unused_self, reason = "only a launchd of somebody is called")]
    fn call(&self, arguments: &[&str]) -> Result<Finished> {
        command::run(Command::new("launchctl").args(arguments), PATIENCE)
            .context("launchctl cannot be run; the agent needs macOS")
    }
}

fn failed(verb: &str, finished: &Finished) -> anyhow::Error {
    anyhow!(
        "launchctl {verb} failed ({}): {}",
        finished.status,
        finished.stderr
    )
}
