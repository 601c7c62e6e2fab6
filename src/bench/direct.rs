//! Prefills through a backend's own Python and mlx-lm: nothing is changed or reloaded, and no server is needed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::args::BenchArgs;
use super::engine::{self, Engine, OnProgress};
use super::results::{Results, Run};
use crate::command::Dialogue;
use crate::lmstudio::backends::Backend;
use crate::lmstudio::runtimes::Runtime;

const SCRIPT: &str = include_str!("direct.py");

/// One process after another: if one crashes, its size has failed, and the next process goes on.
pub struct Direct {
    command: Command,
    silence: Duration,
    process: Option<Dialogue>,
}

impl Direct {
    /// An engine for the model that `args` name, which runs in the Python that they name or in that of `backend`.
    pub fn new(args: &BenchArgs, backend: Option<&Backend>, results: &mut Results) -> Result<Self> {
        let named = args.model.as_deref().unwrap_or_default();
        ensure!(Path::new(named).is_dir(), "{named} is not a directory");
        (results.api, results.model) = ("direct", named.to_owned());
        let named_python = args.python.as_ref().map(Command::new);
        let command = named_python.or_else(|| backend.and_then(python_of));
        let missing = "there is no MLX backend whose Python could be used; name one with --python";
        let mut command = command.context(missing)?;
        command.args(["-c", SCRIPT, named]);
        // No bytecode is left in the backend.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let text = engine::prompt_text(args.prompt_file.as_deref())?;
        let text = engine::new_prompt(&text, 8192.0 * engine::CHARACTERS_PER_TOKEN);
        command.env("LMPATCH_TEXT", text);
        Ok(Self {
            command,
            silence: Duration::from_secs(args.timeout),
            process: None,
        })
    }
}

impl Engine for Direct {
    fn prefill(&mut self, chunk: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let mut process = match self.process.take() {
            Some(process) => process,
            None => Dialogue::start(&mut self.command, self.silence)?,
        };
        process.say(json!({ "size": chunk, "tokens": tokens }));
        let (start, mut run) = (Instant::now(), Run::default());
        let ended = loop {
            // Returning early drops the process, which ends it.
            match run.line(&process.line()?, start.elapsed().as_secs_f64(), tokens) {
                Ok(Some(position)) if on_progress(position) => process.say("\"go\""),
                Ok(Some(_)) => process.say("\"stop\""),
                Ok(None) if run.prompt_tokens == 0 => {}
                told => break told.and_then(|_| run.end()),
            }
        };
        self.process = Some(process);
        ended
    }
}

fn python_of(backend: &Backend) -> Option<Command> {
    let mut packages = backend.site_packages.iter().flatten();
    let packages = packages.find(|packages| packages.join("mlx_lm").is_dir())?;
    // `lib/python3.11/site-packages` is for `bin/python3.11`.
    let name = Path::new("bin").join(packages.parent()?.file_name()?);
    let places = backend.runtimes.iter().flat_map(Runtime::directories);
    let program = |place| backend.path.with_file_name(place).join(&name);
    let python = places.map(program).find(|path| path.exists())?;
    let mut command = Command::new(python);
    // No package of the user's is imported.
    command.env("PYTHONPATH", packages).env_remove("PYTHONHOME");
    command.env("PYTHONNOUSERSITE", "1");
    Some(command)
}
