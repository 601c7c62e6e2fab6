//! Prefills through a backend's own Python and mlx-lm: nothing is changed or reloaded, and no server is needed.

use std::iter;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::engine::{self, Engine, OnProgress, Run};
use super::results::Results;
use crate::command::Dialogue;
use crate::lmstudio::backends::Backend;

const SCRIPT: &str = include_str!("direct.py");

/// One process after another: if one crashes, its size has failed, and the next process goes on.
pub struct Direct {
    command: Command,
    /// The model, and what prompts are made of.
    job: Value,
    silence: Duration,
    process: Option<Dialogue>,
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
        // No bytecode is left in the backend.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let text = engine::prompt_text(args.prompt_file.as_deref())?;
        let text = engine::new_prompt(&text, 8192.0 * engine::CHARACTERS_PER_TOKEN);
        Ok(Self {
            command,
            job: json!({ "model": named, "text": text }),
            silence: Duration::from_secs(args.timeout),
            process: None,
        })
    }

    fn start(&mut self) -> Result<Dialogue> {
        let mut process = Dialogue::start(&mut self.command, self.silence)?;
        process.say(&self.job);
        Ok(process)
    }
}

impl Engine for Direct {
    fn prefill(&mut self, chunk: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let running = self.process.take();
        let mut process = running.map_or_else(|| self.start(), Ok)?;
        process.say(json!({ "size": chunk, "tokens": tokens }));
        let (start, mut run) = (Instant::now(), Run::default());
        let ended = loop {
            // Returning early drops the process, which ends it.
            let line = process.line()?;
            // Whatever else is printed is not an answer.
            if !line.starts_with("data: {") {
                continue;
            }
            match run.line(&line, start.elapsed().as_secs_f64(), tokens) {
                Ok(Some(position)) if on_progress(position) => process.say("\"go\""),
                Ok(Some(_)) => process.say("\"stop\""),
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
