//! Prefills through a backend's own Python and mlx-lm: nothing is changed, nothing reloaded, no server needed.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::json;

use super::measure::{Engine, Failure, OnProgress, Prefill};
use super::race::{Position, as_f64};
use super::results::Results;
use super::server::TICK;
use super::{Bench, guard, marker};
use crate::lmstudio::backends::{Backend, amphibian};
use crate::patch;

impl Bench<'_> {
    pub fn direct(&mut self, results: &mut Results) -> Result<bool> {
        let args = self.args;
        let named = PathBuf::from(args.model.clone().unwrap_or_default());
        let home = self.home.clone().unwrap_or_default();
        let mut places = [named.clone(), home.join("models").join(&named)].into_iter();
        let model = places.find(|path| path.is_dir());
        let shown = named.display();
        let model = model.with_context(|| format!("{shown} is no directory of an MLX model"))?;
        let python = match (&args.python, self.in_use()) {
            (Some(program), _) => Python {
                program: program.clone(),
                packages: None,
            },
            (None, Some(backend)) => python_of(&home, &backend.backend)?,
            _ => {
                bail!("there is no MLX backend whose Python could be used; name one with --python")
            }
        };
        results.api = "direct";
        results.model = shown.to_string();
        results.prompt_tokens = self.prompt_tokens()?;
        let mut engine = Direct {
            python,
            model,
            text: self.prompts()?.next(8192),
            size: self.sizes[0],
            start: Instant::now(),
            version: None,
            process: None,
        };
        self.race(&mut engine, results, true)?;
        if let Some(version) = &engine.version {
            let runtime = results.runtime.take().map(|runtime| runtime + ", ");
            results.runtime = Some(runtime.unwrap_or_default() + "mlx-lm " + version);
        }
        let Some(size) = self.best(results) else {
            return Ok(true);
        };
        let lock = marker::lock(&home)?;
        let now = patch::survey(&home, &args.backend)?.backends;
        Ok(guard::set_best(&lock, now, size, self.output))
    }
}

const SCRIPT: &str = include_str!("direct.py");

/// A Python, and the `site-packages` of its backend; none where the user chose the Python.
#[derive(Debug, Clone)]
pub struct Python {
    pub program: PathBuf,
    pub packages: Option<PathBuf>,
}

/// The Python of a backend: its own, or that of the directory with the interpreter that its runtime names.
pub fn python_of(home: &Path, backend: &Backend) -> Result<Python> {
    let shown = backend.path.display();
    let mut packages = backend.site_packages.iter().flatten();
    let packages = packages.find(|packages| packages.join("mlx_lm").is_dir());
    let packages = packages.with_context(|| format!("{shown} has no mlx_lm"))?;
    let mut places = vec![backend.path.clone()];
    for runtime in &backend.runtimes {
        places.extend(
            runtime
                .packages
                .iter()
                .map(|name| amphibian(home).join(name)),
        );
    }
    let program = places
        .iter()
        .find_map(|place| interpreter(&place.join("bin")));
    let advice = || format!("no Python was found for {shown}; name one with --python");
    Ok(Python {
        program: program.with_context(advice)?,
        packages: Some(packages.clone()),
    })
}

fn interpreter(bin: &Path) -> Option<PathBuf> {
    let mut pythons = Vec::new();
    for entry in fs::read_dir(bin).ok()?.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let version = name.strip_prefix("python").unwrap_or("none");
        if version.chars().all(|c| c.is_ascii_digit() || c == '.') {
            pythons.push(entry.path());
        }
    }
    pythons.into_iter().min()
}

/// One line of the script.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Ready {
        mlx_lm: Option<String>,
    },
    Progress {
        tokens: f64,
        seconds: f64,
    },
    Done {
        tokens: u64,
        seconds: f64,
        peak: Option<u64>,
    },
    Failed {
        why: String,
    },
    Cut,
}

/// One process after another: where one crashes, that is its size's failure, and the next goes on.
pub struct Direct {
    pub python: Python,
    /// The model's directory.
    pub model: PathBuf,
    /// What prompts are made of.
    pub text: String,
    pub size: u64,
    pub start: Instant,
    /// The version of mlx-lm, once it is known.
    pub version: Option<String>,
    pub process: Option<Process>,
}

impl Engine for Direct {
    fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn prepare(&mut self, size: u64) -> Result<(), Failure> {
        self.size = size;
        Ok(())
    }

    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill, Failure> {
        let process = match self.process.take() {
            Some(process) => Ok(process),
            None => self.start_process(),
        };
        let mut process = process.map_err(|error| Failure::Size(format!("{error:#}")))?;
        process.say(&json!({ "size": self.size, "tokens": tokens }));
        let Some(result) = process.follow(on_progress, &mut self.version) else {
            let program = self.python.program.display();
            return Err(Failure::Size(format!("{program} {}", process.ending())));
        };
        self.process = Some(process);
        result
    }
}

impl Direct {
    fn start_process(&self) -> Result<Process> {
        let program = &self.python.program;
        let mut command = Command::new(program);
        command.arg("-c").arg(SCRIPT).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for lmpatch alone; nothing is to be left in the backend, and nothing of the user's to come in.
        command.process_group(0).env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(packages) = &self.python.packages {
            command
                .env("PYTHONPATH", packages)
                .env("PYTHONNOUSERSITE", "1");
            command.env_remove("PYTHONHOME");
        }
        let child = command.spawn();
        let mut child = child.with_context(|| format!("cannot run {}", program.display()))?;
        let piped = "the stream was asked for";
        let stdout = BufReader::new(child.stdout.take().expect(piped));
        let mut stderr = child.stderr.take().expect(piped);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = stdout.lines().map_while(Result::ok);
            lines.try_for_each(|line| sender.send(line))
        });
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            // What cannot be read was not said.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let (stdin, errors) = (child.stdin.take().expect(piped), Some(errors));
        let mut process = Process {
            child,
            stdin,
            lines,
            errors,
        };
        process.say(&json!({ "model": self.model, "text": self.text }));
        Ok(process)
    }
}

/// A Python that runs the script.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Process {
    fn say(&mut self, what: &serde_json::Value) {
        // Where it has ended, that is told by its lines.
        let _ = writeln!(self.stdin, "{what}");
    }

    /// What comes of a prefill; none where the process ends.
    fn follow(
        &mut self,
        on_progress: OnProgress<'_>,
        version: &mut Option<String>,
    ) -> Option<Result<Prefill, Failure>> {
        let mut prefill = Prefill::default();
        loop {
            let line = match self.lines.recv_timeout(TICK) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    if on_progress(None).is_continue() {
                        continue;
                    }
                    // Nothing is asked of it any more.
                    let _ = self.child.kill();
                    return Some(Err(Failure::Ended));
                }
            };
            match serde_json::from_str(&line) {
                Ok(Line::Ready { mlx_lm }) => *version = mlx_lm,
                Ok(Line::Progress { tokens, seconds }) => {
                    let position = Position { tokens, seconds };
                    prefill.course.push(position);
                    let is_over = on_progress(Some(position)).is_break();
                    self.say(&json!(if is_over { "stop" } else { "go" }));
                }
                Ok(Line::Done {
                    tokens,
                    seconds,
                    peak,
                }) => {
                    prefill.run.prompt_tokens = tokens;
                    prefill.run.prefill_seconds = seconds;
                    prefill.run.tokens_per_second = as_f64(tokens) / seconds;
                    prefill.run.source = "server";
                    prefill.run.peak_memory_bytes = peak;
                    return Some(Ok(prefill));
                }
                Ok(Line::Failed { why }) => return Some(Err(Failure::Size(why))),
                Ok(Line::Cut) => return Some(Err(Failure::Ended)),
                Err(_) => {}
            }
        }
    }

    /// How it ended, and its last words.
    fn ending(&mut self) -> String {
        let status = self.child.wait().map(|status| status.to_string());
        let said = self.errors.take().and_then(|errors| errors.join().ok());
        let said = said.unwrap_or_default();
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        let last = last.unwrap_or("it said nothing").trim();
        let last: String = last.chars().take(200).collect();
        format!("ended ({}): {last}", status.unwrap_or_default())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
