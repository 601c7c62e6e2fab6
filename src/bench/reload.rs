//! Makes an edit take effect: a model takes the chunk when it is loaded.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::interrupt::{Interrupt, TICK};
use crate::cli::Reload;
use crate::lmstudio::chat::Api;
use crate::lmstudio::server::{Instance, Server, Trouble};

/// How long LM Studio may take to quit.
const QUITTING: Duration = Duration::from_secs(60);

/// Reloads one model, in the way that the user wants.
#[derive(Debug)]
pub struct Reloader<'a> {
    /// The server that has the model.
    pub server: &'a Server,
    /// The interface that it has.
    pub api: Api,
    /// The model's key.
    pub model: &'a str,
    /// How.
    pub how: &'a Reload,
    /// What Ctrl-C sets.
    pub interrupt: &'a Interrupt,
    /// How long it may take until the server is there again.
    pub patience: Duration,
}

impl Reloader<'_> {
    /// The instances of the model that are loaded now; none where the server does not tell.
    pub fn instances(&self) -> Result<Vec<Instance>, Trouble> {
        if self.api != Api::V1 {
            return Ok(Vec::new());
        }
        let models = self.server.models()?;
        let is_it = |model: &&crate::lmstudio::server::Model| {
            model.key == self.model
                || model
                    .loaded_instances
                    .iter()
                    .any(|instance| instance.id == self.model)
        };
        Ok(models
            .iter()
            .find(is_it)
            .map(|model| model.loaded_instances.clone())
            .unwrap_or_default())
    }

    /// Loads the model anew, each of `wanted` with the context and the parallelism that it had.
    pub fn reload(&self, wanted: &[Instance]) -> Result<()> {
        match self.how {
            Reload::Model => {
                ensure!(
                    self.api == Api::V1,
                    "this server cannot load models over REST (LM Studio 0.4.0 and later can); give --reload app, or \
                     --reload with a command of your own"
                );
                self.load_again(wanted)
            }
            Reload::App => {
                self.restart_app()?;
                if self.api == Api::V1 {
                    self.load_again(wanted)
                } else {
                    Ok(())
                }
            }
            Reload::Command(command) => self
                .run(Command::new("sh").arg("-c").arg(command))
                .with_context(|| format!("--reload '{command}'")),
        }
    }

    fn load_again(&self, wanted: &[Instance]) -> Result<()> {
        for instance in self.instances()? {
            self.server.unload(&instance.id)?;
        }
        for instance in wanted {
            let (server, model, config) =
                (self.server.clone(), self.model.to_owned(), instance.config);
            let loaded = self
                .interrupt
                .attend(move || server.load(&model, config.context_length, config.parallel));
            loaded.context("stopped")??;
        }
        Ok(())
    }

    /// Quits and opens the app, as people do by hand.
    fn restart_app(&self) -> Result<()> {
        self.run(Command::new("osascript").args(["-e", "quit app \"LM Studio\""]))?;
        self.wait(QUITTING, "LM Studio did not quit", |answer| {
            matches!(answer, Err(Trouble::NotRunning(_) | Trouble::CutOff(_)))
        })?;
        self.run(Command::new("open").args(["-a", "LM Studio"]))?;
        let what = "LM Studio was opened, but its server does not answer; start it with `lms server start`";
        self.wait(self.patience, what, |answer| {
            matches!(answer, Ok(_) | Err(Trouble::Unauthorized))
        })
    }

    fn wait(
        &self,
        patience: Duration,
        failure: &str,
        is_there: impl Fn(Result<Api, Trouble>) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !is_there(self.server.api()) {
            ensure!(!self.interrupt.is_set(), "stopped");
            ensure!(Instant::now() < deadline, "{failure}");
            thread::sleep(4 * TICK);
        }
        Ok(())
    }

    /// Runs a command to its end, in a process group of its own: what it starts outlives our Ctrl-C.
    fn run(&self, command: &mut Command) -> Result<()> {
        let said = tempfile::tempfile().context("cannot make a temporary file")?;
        let copies = said
            .try_clone()
            .and_then(|one| Ok((one, said.try_clone()?)));
        let (out, err) = copies.context("cannot make a temporary file")?;
        let name = command.get_program().to_string_lossy().into_owned();
        let started = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn();
        let mut child = started.with_context(|| format!("cannot run {name}"))?;
        loop {
            if let Some(status) = child
                .try_wait()
                .with_context(|| format!("cannot wait for {name}"))?
            {
                if status.success() {
                    return Ok(());
                }
                bail!("it ended with {status}: {}", last_line(said));
            }
            if self.interrupt.is_set() {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                bail!("stopped");
            }
            thread::sleep(TICK);
        }
    }
}

fn last_line(mut said: File) -> String {
    let mut text = String::new();
    // What cannot be read back was not said.
    let _ = said.rewind().and_then(|()| said.read_to_string(&mut text));
    let line = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing");
    line.trim().chars().take(200).collect()
}
