//! Measures through the backend's own Python and mlx-lm: nothing is patched, nothing reloaded, no server needed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::json;

use super::chunk::{self, Progress};
use super::interrupt::{Interrupt, TICK};
use super::progress::Bar;
use super::record::{Row, Run, Source};
use crate::lmstudio::backends::{Layer, amphibian};

/// What runs in the engine's Python.
const SCRIPT: &str = include_str!("direct.py");

/// What is to be measured.
#[derive(Debug)]
pub struct Job {
    /// The Python to run, with what it needs in its environment.
    pub python: Python,
    /// The model's directory.
    pub model: PathBuf,
    /// What prompts are made of; repeated or cut to the wanted length.
    pub text: String,
    /// The tokens of a prompt; all of the text where there is none.
    pub tokens: Option<u64>,
    /// The sizes, each once.
    pub sizes: Vec<u64>,
    /// How many runs of each size count.
    pub runs: u32,
}

/// A Python and where it finds mlx-lm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// The program.
    pub program: PathBuf,
    /// `site-packages` of the layer; none where the user chose the Python.
    pub packages: Option<PathBuf>,
}

/// The Python of a layer: its own, or that of the layer with the interpreter which its runtime names.
pub fn python_of(home: &Path, layer: &Layer) -> Result<Python> {
    let packages = layer
        .site_packages
        .as_ref()
        .ok()
        .and_then(|all| all.iter().find(|one| one.join("mlx_lm").is_dir()));
    let packages = packages.with_context(|| format!("{} has no mlx_lm", layer.path.display()))?;
    let named = layer
        .runtimes
        .iter()
        .flat_map(|runtime| &runtime.layers)
        .map(|name| amphibian(home).join(name));
    let program = std::iter::once(layer.path.clone())
        .chain(named)
        .find_map(|layer| interpreter(&layer.join("bin")));
    let program = program.with_context(|| {
        format!(
            "no Python was found in {} or the layers beside it; name one with --python",
            layer.path.display()
        )
    })?;
    Ok(Python {
        program,
        packages: Some(packages.clone()),
    })
}

fn interpreter(bin: &Path) -> Option<PathBuf> {
    let mut names: Vec<OsString> = fs::read_dir(bin)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    names.sort();
    let is_python = |name: &&OsString| {
        let version = name.to_str().and_then(|name| name.strip_prefix("python"));
        version.is_some_and(|version| {
            version
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
    };
    names.iter().find(is_python).map(|name| bin.join(name))
}

/// One line of the script.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Ready {
        tokens: u64,
        mlx_lm: Option<String>,
    },
    Start {
        size: u64,
        round: u32,
    },
    Run {
        size: u64,
        round: u32,
        tokens: u64,
        seconds: f64,
        peak: Option<u64>,
        progress: Vec<(f64, f64)>,
    },
    Failed {
        size: u64,
        why: String,
    },
}

/// What is known so far.
#[derive(Debug, Default)]
pub struct Found {
    runs: BTreeMap<u64, Vec<Run>>,
    failed: BTreeMap<u64, String>,
    done: Vec<(u64, u32)>,
    /// The tokens of the last run.
    just_done: u64,
    current: Option<(u64, u32)>,
    /// The tokens of a prompt.
    pub tokens: u64,
    /// The version of mlx-lm, where it tells.
    pub version: Option<String>,
}

impl Found {
    /// The rows, in the order in which the sizes were given.
    #[must_use]
    pub fn rows(&self, sizes: &[u64]) -> Vec<Row> {
        let touched = sizes
            .iter()
            .filter(|size| self.runs.contains_key(size) || self.failed.contains_key(size));
        let row = |size: &u64| {
            let runs = self.runs.get(size).cloned().unwrap_or_default();
            Row::of(Some(*size), runs, self.failed.get(size).cloned())
        };
        touched.map(row).collect()
    }

    fn is_complete(&self, job: &Job) -> bool {
        let is_done = |size: &u64| (0..=job.runs).all(|round| self.done.contains(&(*size, round)));
        job.sizes
            .iter()
            .all(|size| self.failed.contains_key(size) || is_done(size))
    }

    fn take(&mut self, line: Line, job: &Job) -> Result<()> {
        match line {
            Line::Ready { tokens, mlx_lm } => {
                self.tokens = job.tokens.unwrap_or(tokens);
                self.version = mlx_lm;
                let largest = job.sizes.iter().max().copied().unwrap_or_default();
                if self.tokens < 2 * largest {
                    bail!(
                        "a prompt of {} tokens says nothing about a chunk of {largest}: it takes at least {}; give more \
                         with --prompt-tokens or --prompt-file, or smaller --sizes",
                        self.tokens,
                        2 * largest
                    );
                }
            }
            Line::Start { size, round } => self.current = Some((size, round)),
            Line::Run {
                size,
                round,
                tokens,
                seconds,
                peak,
                progress,
            } => {
                self.current = None;
                self.done.push((size, round));
                self.just_done = tokens;
                if round > 0 {
                    self.runs
                        .entry(size)
                        .or_default()
                        .push(run(tokens, seconds, peak, &progress));
                }
            }
            Line::Failed { size, why } => {
                self.current = None;
                self.just_done = 0;
                self.failed.insert(size, why);
            }
        }
        Ok(())
    }
}

fn run(tokens: u64, seconds: f64, peak: Option<u64>, progress: &[(f64, f64)]) -> Run {
    let progress: Vec<_> = progress
        .iter()
        .map(|(seconds, done)| Progress {
            seconds: *seconds,
            done: *done,
        })
        .collect();
    Run {
        prompt_tokens: tokens,
        prefill_seconds: seconds,
        tokens_per_second: f64::from(u32::try_from(tokens).unwrap_or(u32::MAX)) / seconds,
        source: Source::Server,
        flags: Vec::new(),
        cached_tokens: None,
        peak_memory_bytes: peak,
        observed: chunk::observed(&progress),
    }
}

/// Measures every size, the rounds interleaved. A size that ends the process is a row, and a new process does the rest.
///
/// Fails where the process never gets ready.
pub fn measure(
    job: &Job,
    interrupt: &Interrupt,
    bar: &mut Bar,
    found: &mut Found,
    mut after: impl FnMut(&Found),
) -> Result<()> {
    loop {
        if interrupt.is_set() || found.is_complete(job) {
            return Ok(());
        }
        let left: Vec<u64> = job
            .sizes
            .iter()
            .copied()
            .filter(|size| !found.failed.contains_key(size))
            .collect();
        let process = Process::start(job, &left, &found.done)?;
        let ended = process.follow(job, interrupt, bar, found, &mut after)?;
        if interrupt.is_set() {
            return Ok(());
        }
        match (ended, found.current.take()) {
            (None, _) if found.is_complete(job) => {}
            (Some(why), Some((size, _))) => {
                found.failed.insert(size, why);
            }
            (why, _) => {
                let why =
                    why.unwrap_or_else(|| "ended before it had measured everything".to_owned());
                bail!("{} {why}", job.python.program.display());
            }
        }
        after(found);
    }
}

struct Process {
    child: Child,
    lines: Receiver<String>,
    errors: std::thread::JoinHandle<String>,
}

impl Process {
    fn start(job: &Job, sizes: &[u64], done: &[(u64, u32)]) -> Result<Self> {
        let mut command = Command::new(&job.python.program);
        command
            .arg("-c")
            .arg(SCRIPT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Nothing is to be left in the vendor's layer, and nothing of the user's own Python is to come in.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(packages) = &job.python.packages {
            command
                .env("PYTHONPATH", packages)
                .env("PYTHONNOUSERSITE", "1")
                .env_remove("PYTHONHOME");
        }
        let started = command.spawn();
        let mut child =
            started.with_context(|| format!("cannot run {}", job.python.program.display()))?;
        let request = json!({
            "model": job.model, "text": job.text, "tokens": job.tokens, "sizes": sizes, "runs": job.runs, "done": done,
        });
        if let Some(mut stdin) = child.stdin.take() {
            // Where it has ended already, its exit says why.
            let _ = stdin.write_all(request.to_string().as_bytes());
        }
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            let lines = stdout
                .into_iter()
                .flat_map(|stdout| BufReader::new(stdout).lines());
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let stderr = child.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.and_then(|mut stderr| stderr.read_to_end(&mut text).ok());
            last_line(&String::from_utf8_lossy(&text))
        });
        Ok(Self {
            child,
            lines,
            errors,
        })
    }

    /// Takes what it says until it ends; how it ended, where that was not well.
    fn follow(
        mut self,
        job: &Job,
        interrupt: &Interrupt,
        bar: &mut Bar,
        found: &mut Found,
        after: &mut impl FnMut(&Found),
    ) -> Result<Option<String>> {
        loop {
            match self.lines.recv_timeout(TICK) {
                Ok(line) => {
                    let taken =
                        serde_json::from_str(&line).context("the script said something unexpected");
                    if let Err(error) = taken.and_then(|line| found.take(line, job)) {
                        self.end();
                        return Err(error);
                    }
                    if let Some((size, round)) = found.current {
                        let what = if round == 0 {
                            "warm-up".to_owned()
                        } else {
                            format!("run {round} of {}", job.runs)
                        };
                        bar.label(format!("{size}, {what}"));
                    } else if !found.done.is_empty() {
                        bar.pass(found.just_done);
                        after(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) if interrupt.is_set() => {
                    self.end();
                    return Ok(None);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.child.wait().context("cannot wait for the script")?;
        let said = self.errors.join().unwrap_or_default();
        Ok((!status.success()).then(|| format!("{}{said}", ending(status))))
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        // The system's answer to too much memory.
        (Some(9), _) => "was killed (signal 9), as happens when memory runs out: ".to_owned(),
        (Some(signal), _) => format!("was ended by signal {signal}: "),
        (None, code) => format!("ended with exit code {}: ", code.unwrap_or_default()),
    }
}

fn last_line(text: &str) -> String {
    let line = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing");
    line.trim().chars().take(200).collect()
}

/// The characters of the text of which direct prompts are made, repeated.
pub const SAMPLE: usize = 40_000;
