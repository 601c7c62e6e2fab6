//! Prefills through a backend's own Python and mlx-lm: nothing is changed or reloaded, and no server is needed.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Seek as _, Write as _};
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
use super::engine::{self, Engine, OnProgress, Run};
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
            Some(python) => {
                results.runtime = None;
                Some(Command::new(python))
            }
            None => backend.and_then(python_of),
        };
        let missing = "there is no MLX backend whose Python could be used; name one with --python";
        let mut command = command.context(missing)?;
        command.args(["-c", SCRIPT]);
        // Ctrl-C is for lmpatch alone, and no bytecode is left in the backend.
        command.process_group(0).env("PYTHONDONTWRITEBYTECODE", "1");
        let text = engine::prompt_text(args.prompt_file.as_deref())?;
        let text = engine::new_prompt(&text, 8192.0 * engine::CHARACTERS_PER_TOKEN);
        Ok(Self {
            command,
            job: json!({ "model": named, "text": text }),
            silence: Duration::from_secs(args.timeout),
            process: None,
        })
    }

    fn start(&mut self) -> Result<Process> {
        let errors = tempfile::tempfile()?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(self.silence))?;
        // A process that does not listen is noticed by its silence.
        ours.set_write_timeout(Some(self.silence))?;
        let command = self.command.stderr(errors.try_clone()?);
        command
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs));
        let child = command.spawn();
        // Drops this side's handles of the child's end, so that it closes when the child exits.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let python = command.get_program().display();
        let mut process = Process {
            child: child.with_context(|| format!("cannot run {python}"))?,
            stream: BufReader::new(ours),
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
            match process.stream.read_until(b'\n', &mut line) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    bail!(
                        "{python} said nothing for {} seconds",
                        self.silence.as_secs()
                    )
                }
                _ => bail!("{python} {}", process.ending()),
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
    stream: BufReader<UnixStream>,
    errors: File,
}

impl Process {
    fn say(&mut self, what: &Value) {
        // If it has ended, the end of its output says so.
        let _ = writeln!(self.stream.get_ref(), "{what}");
    }

    fn ending(&mut self) -> String {
        let ended = command::wait(&mut self.child, Duration::from_secs(1));
        let Ok(Some(status)) = ended else {
            return "closed its output".to_owned();
        };
        // Errors that cannot be read count as not printed.
        let _ = self.errors.rewind();
        let said = io::read_to_string(&self.errors).unwrap_or_default();
        let last = said.trim_end().lines().last().unwrap_or("it said nothing");
        let last: String = last.trim().chars().take(200).collect();
        format!("ended ({status}): {last}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
