//! Whether a value that is on disk is also the one that loaded models have.
//!
//! A worker reads the files of its layer when it loads its model, so one that was started before a file was last
//! written holds what the file said before.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::files;
use crate::lmstudio::process::{self, Worker};
use crate::lmstudio::runtimes;
use crate::lmstudio::server::Server;
use crate::patch::backend::Backend;

/// Whether a backend's values are in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// A loaded model has older ones.
    ReloadNeeded,
    /// Every loaded model has them.
    InEffect,
    /// No model is loaded that could have them.
    NotRunning,
    /// It cannot be told.
    Unknown,
}

impl Effect {
    /// The words for it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::ReloadNeeded => "reload needed",
            Self::InEffect => "in effect",
            Self::NotRunning => "not running",
            Self::Unknown => "unknown",
        }
    }
}

/// What was seen of LM Studio's processes, and what helps to judge it.
#[derive(Debug)]
pub struct Sight {
    /// Its workers, or why they cannot be told.
    pub workers: Result<Vec<Worker>, String>,
    /// Since when the selected runtime has been the selected one, in seconds since 1970; none where none is selected.
    selected_since: Option<u64>,
    /// Now, in seconds since 1970.
    now: u64,
    /// How many loaded instances need no MLX engine, and whether any does, where the server has said so.
    loaded: Option<(usize, bool)>,
}

/// Looks at LM Studio's processes.
#[must_use]
pub fn look(home: &Path) -> Sight {
    Sight {
        workers: process::workers(home),
        selected_since: runtimes::selected_since(home),
        now: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        loaded: None,
    }
}

impl Sight {
    /// The workers that were started before one of the backend's files was last written.
    #[must_use]
    pub fn stale(&self, backend: &Backend) -> Vec<Worker> {
        let (Ok(workers), Some(edited)) = (&self.workers, edited(backend)) else {
            return Vec::new();
        };
        // ps tells whole seconds: within the second of the edit a worker may have come before it.
        workers
            .iter()
            .filter(|worker| worker.started <= edited)
            .copied()
            .collect()
    }

    /// Asks the server what the workers run, where that makes a difference: ps cannot tell an MLX worker from others.
    pub fn ask(&mut self, server: &Server, backends: &[&Backend]) {
        if backends
            .iter()
            .all(|backend| self.stale(backend).is_empty())
        {
            return;
        }
        if let Ok(models) = server.models() {
            let (mlx, others): (Vec<_>, Vec<_>) = models.iter().partition(|model| model.is_mlx());
            let others = others
                .iter()
                .map(|model| model.loaded_instances.len())
                .sum();
            self.loaded = Some((
                others,
                mlx.iter().any(|model| !model.loaded_instances.is_empty()),
            ));
        }
    }

    /// Whether the backend's values are in effect.
    #[must_use]
    pub fn effect(&self, backend: &Backend) -> Effect {
        let (Ok(workers), Some(edited)) = (&self.workers, edited(backend)) else {
            return Effect::Unknown;
        };
        if workers.is_empty() {
            return Effect::NotRunning;
        }
        if let (Some(since), false) = (self.selected_since, backend.layer.is_selected()) {
            let is_elsewhere = workers.iter().all(|worker| worker.started > since);
            return if is_elsewhere {
                Effect::NotRunning
            } else {
                Effect::Unknown
            };
        }
        let stale = self.stale(backend).len();
        match self.loaded {
            // A file from the future says nothing about the past.
            _ if edited > self.now + 1 => Effect::Unknown,
            _ if stale == 0 => Effect::InEffect,
            Some((_, false)) => Effect::NotRunning,
            Some((others, true)) if stale <= others => Effect::Unknown,
            _ => Effect::ReloadNeeded,
        }
    }
}

/// When the last of the backend's files was written, in seconds since 1970.
fn edited(backend: &Backend) -> Option<u64> {
    let written = backend.files.iter().map(|file| files::modified(&file.path));
    written.collect::<Option<Vec<_>>>()?.into_iter().max()
}
