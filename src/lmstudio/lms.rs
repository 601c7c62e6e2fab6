//! LM Studio's own command line tool: what is loaded, unload, load.
//!
//! Every `lms` command starts LM Studio if it is not running, so callers must have seen that it is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::command;

/// Of `ps` and `unload`. LM Studio goes on with an unload even if its `lms` is killed.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One loaded model, as `lms ps --json` lists it and as the report does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all(deserialize = "camelCase"))]
pub struct LoadedModel {
    #[serde(rename(deserialize = "modelKey"))]
    pub model: String,
    pub identifier: String,
    pub path: Option<String>,
    pub format: Option<String>,
    pub context_length: Option<u64>,
    #[serde(skip_serializing)]
    pub max_context_length: Option<u64>,
    pub parallel: Option<u64>,
    pub ttl_ms: Option<u64>,
    /// The device that LM Link reaches it on; `None` for this Mac.
    pub device_identifier: Option<String>,
    pub status: Option<String>,
    pub queued: Option<u64>,
}

impl LoadedModel {
    pub fn is_mlx(&self) -> bool {
        self.format.as_deref().unwrap_or("safetensors") == "safetensors"
    }

    pub fn is_busy(&self) -> bool {
        self.status.as_deref().unwrap_or("idle") != "idle" || self.queued.unwrap_or(0) > 0
    }
}

pub fn find_loaded<'m>(models: &'m [LoadedModel], id: &str) -> Option<&'m LoadedModel> {
    models.iter().find(|model| model.identifier == id)
}

/// `<home>/bin/lms`, and how long to wait for a load, and for a busy model or an app that restarts.
#[derive(Debug, Clone)]
pub struct Lms {
    pub program: PathBuf,
    pub load_timeout: Duration,
    pub wait_timeout: Duration,
}

impl Lms {
    pub fn of(home: &Path) -> Self {
        Self {
            program: home.join("bin/lms"),
            load_timeout: Duration::from_secs(900),
            wait_timeout: Duration::from_secs(120),
        }
    }

    /// What is loaded, also on other devices that LM Link reaches. One failure of `lms` says nothing.
    pub fn all_loaded(&self) -> Result<Vec<LoadedModel>> {
        let program = self.program.display();
        ensure!(self.program.is_file(), "{program} is not there");
        command::retry(Duration::from_secs(2), || {
            let printed = self.run(&["ps", "--json"], TIMEOUT)?;
            serde_json::from_str(&printed).context("`lms ps --json` printed no list of models")
        })
    }

    /// What is loaded on this Mac.
    pub fn loaded(&self) -> Result<Vec<LoadedModel>> {
        let mut loaded = self.all_loaded()?;
        loaded.retain(|model| model.device_identifier.is_none());
        Ok(loaded)
    }

    /// Unloads a model. `lms` also succeeds if there is none of that name.
    pub fn unload(&self, identifier: &str) -> Result<()> {
        self.run(&["unload", identifier], TIMEOUT).map(drop)
    }

    /// Loads a model with its identifier, and with what this `lms` has flags for: context, parallelism, TTL.
    pub fn load(&self, model: &LoadedModel) -> Result<()> {
        let (path, id) = (model.path.as_deref().unwrap_or_default(), &model.identifier);
        let ttl_seconds = model.ttl_ms.map(|ttl| ttl.div_ceil(1000).max(1));
        let mut flags = vec![vec!["--local".to_owned()]];
        for (flag, value) in [
            ("--context-length", model.context_length),
            ("--parallel", model.parallel),
            ("--ttl", ttl_seconds),
        ] {
            flags.extend(value.map(|n| vec![flag.to_owned(), n.to_string()]));
        }
        loop {
            let mut words = vec!["load", path, "--exact", "-y", "--identifier", id];
            words.extend(flags.iter().flatten().map(String::as_str));
            let Err(error) = self.run(&words, self.load_timeout) else {
                return Ok(());
            };
            let (said, count) = (format!("{error:#}"), flags.len());
            flags.retain(|flag| !said.contains(&format!("unknown option '{}'", flag[0])));
            if flags.len() == count {
                return Err(error);
            }
        }
    }

    fn run(&self, arguments: &[&str], timeout: Duration) -> Result<String> {
        let mut lms = Command::new(&self.program);
        command::output(lms.args(arguments).env("NO_COLOR", "1"), timeout)
    }
}
