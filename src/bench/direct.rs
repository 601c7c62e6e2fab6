//! Prefills through a backend's own Python and mlx-lm: nothing is changed or reloaded, and no server is needed.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, Write as _};
use std::iter;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::engine::{Engine, OnProgress, Run, silent};
use super::prompt::{self, CHARACTERS_PER_TOKEN};
use super::results::Results;
use crate::command;
use crate::lmstudio::backends::Backend;

const SCRIPT: &str = include_str!("direct.py");

/// One process after another: if one crashes, its size has failed, and the next process goes on.
pub struct Direct {
    command: Command,
    /// The model, and what prompts are made of.
    job: Value,
    silence: Duration,
    process: Option<Process>,
}

impl Direct {
    /// An engine for the model that `args` name, which runs in the Python that they name or in that of `backend`.
    pub fn new(args: &BenchArgs, backend: Option<&Backend>, results: &mut Results) -> Result<Self> {
        let named = args.model.as_deref().unwrap_or_default();
        let is_there = Path::new(named).is_dir();
        ensure!(is_there, "{named} is not a directory of an MLX model");
        (results.api, results.model) = ("direct", named.to_owned());
        let command = match &args.python {
            Some(python) => Some(Command::new(python)),
            None => backend.and_then(python_of),
        };
        let missing = "there is no MLX backend whose Python could be used; name one with --python";
        let mut command = command.context(missing)?;
        if args.python.is_some() {
            results.runtime = None;
        }
        command.args(["-c", SCRIPT]);
        // Ctrl-C is for lmpatch alone, and no bytecode is left in the backend.
        command.process_group(0).env("PYTHONDONTWRITEBYTECODE", "1");
        let text = prompt::text(args.prompt_file.as_deref())?;
        let text = prompt::new(&text, 8192.0 * CHARACTERS_PER_TOKEN);
        Ok(Self {
            command,
            job: json!({ "model": named, "text": text }),
            silence: Duration::from_secs(args.timeout),
            process: None,
        })
    }

    fn start(&mut self) -> Result<Process> {
        let errors = tempfile::tempfile()?;
        let (requests, stdin) = UnixStream::pair()?;
        let (answers, stdout) = UnixStream::pair()?;
        // A process that does not listen is noticed by its silence.
        requests.set_write_timeout(Some(self.silence))?;
        answers.set_read_timeout(Some(self.silence))?;
        let command = self.command.stderr(errors.try_clone()?);
        command
            .stdin(OwnedFd::from(stdin))
            .stdout(OwnedFd::from(stdout));
        let child = command.spawn();
        // Drops this side's handles of the child's sockets, so that they close when the child exits.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let python = command.get_program().display();
        let child = child.with_context(|| format!("cannot run {python}"))?;
        let mut process = Process {
            child,
            requests,
            answers: BufReader::new(answers),
            errors,
        };
        process.say(&self.job);
        Ok(process)
    }
}

impl Engine for Direct {
    fn prefill(&mut self, chunk: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let mut process = match self.process.take() {
            Some(running) => running,
            None => self.start()?,
        };
        process.say(&json!({ "size": chunk, "tokens": tokens }));
        let python = self.command.get_program().display();
        let (start, mut run) = (Instant::now(), Run::default());
        let ended = loop {
            let mut line = Vec::new();
            // Returning early drops the process, which ends it.
            match process.answers.read_until(b'\n', &mut line) {
                Ok(0) => bail!("{python} {}", process.ending()),
                Ok(_) => {}
                Err(_) => bail!(silent(self.silence)),
            }
            let line = String::from_utf8_lossy(&line);
            // Whatever else is printed is not an answer.
            if !line.starts_with("data: {") {
                continue;
            }
            match run.line(&line, start.elapsed().as_secs_f64(), tokens) {
                Ok(Some(position)) if on_progress(position) => process.say(&json!("go")),
                Ok(Some(_)) => process.say(&json!("stop")),
                Ok(None) if run.prompt_tokens == 0 => {}
                Ok(None) => break run.end(),
                Err(why) => break Err(why),
            }
        };
        self.process = Some(process);
        ended
    }
}

/// The Python of a backend, its own or that of the directory that its runtime names, with the backend's packages.
fn python_of(backend: &Backend) -> Option<Command> {
    let mut packages = backend.site_packages.iter().flatten();
    let packages = packages.find(|packages| packages.join("mlx_lm").is_dir())?;
    // `lib/python3.11/site-packages` is for `bin/python3.11`.
    let name = Path::new("bin").join(packages.parent()?.file_name()?);
    let others = backend.runtimes.iter().flat_map(|one| &one.packages);
    let places = iter::once(&backend.name).chain(others);
    let program = |place| backend.path.with_file_name(place).join(&name);
    let python = places.map(program).find(|path| path.exists())?;
    let mut command = Command::new(python);
    // No package of the user's is imported.
    command.env("PYTHONPATH", packages).env_remove("PYTHONHOME");
    command.env("PYTHONNOUSERSITE", "1");
    Some(command)
}

struct Process {
    child: Child,
    requests: UnixStream,
    answers: BufReader<UnixStream>,
    errors: File,
}

impl Process {
    fn say(&mut self, what: &Value) {
        // If it has ended, the end of its output says so.
        let _ = writeln!(self.requests, "{what}");
    }

    fn ending(&mut self) -> String {
        let ended = || self.child.try_wait()?.context("it still runs");
        if command::retry(Duration::from_secs(1), ended).is_err() {
            return "closed its output".to_owned();
        }
        let status = self.child.wait().map(|status| status.to_string());
        // Errors that cannot be read count as not printed.
        let _ = self.errors.rewind();
        let said = io::read_to_string(&self.errors).unwrap_or_default();
        let last = said.trim_end().lines().last().unwrap_or("it said nothing");
        let last: String = last.trim().chars().take(200).collect();
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
