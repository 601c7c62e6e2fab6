//! What was found and done, as one model; `human` and `json` render it.

pub mod advice;
pub mod human;
pub mod json;

use std::path::Path;

use serde::Serialize;

use crate::cli::Request;
use crate::effect::{Effect, Sight};
use crate::lmstudio::backends::MissingLayer;
use crate::lmstudio::process::Worker;
use crate::lmstudio::runtimes::Runtime;
use crate::outcome::Outcome;
use crate::patch::backend::{Backend, Found, Hindrance, State, VendorFile};
use crate::patch::original::Proof;
use crate::patch::plan::Goal;
use crate::patch::{Deed, Done};
use crate::reload::{How, Reloaded};

/// The version of the JSON report's shape; it grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// Everything that a run found and did.
#[derive(Debug, Serialize)]
pub struct Report {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// The version of lmpatch.
    pub version: &'static str,
    /// `check`, `set` or `revert`.
    pub action: &'static str,
    /// Whether nothing was to be written.
    pub dry_run: bool,
    /// The size that was asked for, in tokens.
    pub size: Option<u64>,
    /// LM Studio's home, where one was found.
    pub home: Option<String>,
    /// The exit code of the run.
    pub exit_code: u8,
    /// Why the run as a whole failed.
    pub error: Option<String>,
    /// One entry per backend.
    pub backends: Vec<BackendReport>,
    /// Layers that a runtime's manifest names and that are not on disk.
    pub missing_layers: Vec<MissingReport>,
    /// What is good to know about this run, a sentence each.
    pub notes: Vec<String>,
    /// LM Studio's workers; none where they were not looked at or cannot be told.
    pub workers: Option<Vec<Worker>>,
    /// Why the workers cannot be told.
    pub workers_unknown: Option<String>,
    /// What was done to make the values take effect.
    pub reload: Option<ReloadReport>,
}

/// What was done to make the values take effect.
#[derive(Debug, Serialize)]
pub struct ReloadReport {
    /// `models` or `app`.
    pub how: How,
    /// What became of each MLX model that was loaded.
    pub models: Vec<Reloaded>,
    /// Why nothing could be done.
    pub error: Option<String>,
}

/// One backend.
#[derive(Debug, Serialize)]
pub struct BackendReport {
    /// The layer's name.
    pub layer: String,
    /// Where it is.
    pub path: String,
    /// The runtimes that use it, newest first.
    pub runtimes: Vec<RuntimeReport>,
    /// Whether LM Studio's selected runtime uses it.
    pub selected: bool,
    /// The chunk that is on disk now, in tokens.
    pub chunk: Option<u64>,
    /// The chunk that was there before the run, in tokens.
    pub chunk_before: Option<u64>,
    /// The chunk that the vendor ships, in tokens.
    pub stock: Option<u64>,
    /// What it amounts to.
    pub state: State,
    /// What was done to it; none where the run only looked.
    pub result: Option<&'static str>,
    /// Why it was refused, left alone, or failed.
    pub why: Option<String>,
    /// Whether its values are in effect; none where that was not looked at.
    pub in_effect: Option<Effect>,
    /// The process ids of the workers that hold older values.
    pub stale_workers: Vec<u32>,
    /// Its vendor files.
    pub files: Vec<FileReport>,
}

/// One runtime.
#[derive(Debug, Serialize)]
pub struct RuntimeReport {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether LM Studio has it selected.
    pub selected: bool,
}

/// One vendor file.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// What it is, below `site-packages`: `mlx_lm/generate.py`.
    pub file: String,
    /// Where it is.
    pub path: String,
    /// What it amounts to.
    pub state: State,
    /// How the vendor's bytes of it are known.
    pub original: Proof,
    /// The places in it that are the setting.
    pub sites: Vec<SiteReport>,
}

/// One place that is the setting.
#[derive(Debug, Serialize)]
pub struct SiteReport {
    /// The name that is given the value.
    pub name: &'static str,
    /// The function, method or class it belongs to; `<module>` for a constant.
    pub owner: String,
    /// Its line, from 1.
    pub line: usize,
    /// Its value now, in tokens.
    pub value: u64,
    /// Its value as the vendor ships it, in tokens.
    pub stock: u64,
}

/// A layer that is named and not there.
#[derive(Debug, Serialize)]
pub struct MissingReport {
    /// The layer.
    pub layer: String,
    /// The runtime that names it.
    pub runtime: String,
}

impl Report {
    /// A report on a run that has found nothing yet.
    #[must_use]
    pub fn new(request: Request) -> Self {
        let (action, size, dry_run) = match request {
            Request::Check(size) => ("check", size, false),
            Request::Change(Goal::Size(size)) => ("set", Some(size), false),
            Request::Rehearse(Goal::Size(size)) => ("set", Some(size), true),
            Request::Change(Goal::Vendor) => ("revert", None, false),
            Request::Rehearse(Goal::Vendor) => ("revert", None, true),
        };
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            action,
            dry_run,
            size,
            home: None,
            exit_code: Outcome::Failed.code(),
            error: None,
            backends: Vec::new(),
            missing_layers: Vec::new(),
            notes: Vec::new(),
            workers: None,
            workers_unknown: None,
            reload: None,
        }
    }

    /// Adds whether each backend's values are in effect; `backends` are those of this report, in its order.
    pub fn add_effects<'b>(&mut self, sight: &Sight, backends: impl Iterator<Item = &'b Backend>) {
        for (report, backend) in self.backends.iter_mut().zip(backends) {
            let effect = sight.effect(backend);
            report.in_effect = Some(effect);
            if effect == Effect::ReloadNeeded {
                report.stale_workers = sight
                    .stale(backend)
                    .iter()
                    .map(|worker| worker.pid)
                    .collect();
            }
        }
        self.workers = sight.workers.as_ref().ok().cloned();
        self.workers_unknown = sight.workers.as_ref().err().cloned();
    }

    /// Adds what was found in `home`.
    pub fn fill(&mut self, home: &Path, backends: Vec<BackendReport>, missing: Vec<MissingLayer>) {
        self.home = Some(home.display().to_string());
        self.backends = backends;
        let report = |missing: MissingLayer| MissingReport {
            layer: missing.layer,
            runtime: missing.runtime,
        };
        self.missing_layers = missing.into_iter().map(report).collect();
    }
}

impl BackendReport {
    /// A backend that was only looked at.
    #[must_use]
    pub fn looked_at(backend: &Backend) -> Self {
        let (chunk, stock) = backend.chunk_and_stock().unzip();
        let runtimes = backend.layer.runtimes.iter().map(RuntimeReport::of);
        Self {
            layer: backend.layer.name.to_string_lossy().into_owned(),
            path: backend.layer.path.display().to_string(),
            runtimes: runtimes.collect(),
            selected: backend.layer.is_selected(),
            chunk,
            chunk_before: chunk,
            stock,
            state: backend.state(),
            result: None,
            why: backend.hindrance().map(Hindrance::into_why),
            in_effect: None,
            stale_workers: Vec::new(),
            files: backend.files.iter().map(FileReport::of).collect(),
        }
    }

    /// A backend that something was done to.
    #[must_use]
    pub fn done(done: &Done) -> Self {
        let (result, why) = match &done.deed {
            Deed::Changed => ("changed", None),
            Deed::Unchanged => ("unchanged", None),
            Deed::WouldChange(_) => ("would-change", None),
            Deed::LeftAlone(why) => ("left-alone", Some(why)),
            Deed::Refused(why) => ("refused", Some(why)),
            Deed::Failed(why) => ("failed", Some(why)),
        };
        Self {
            chunk_before: done.before.chunk_and_stock().map(|(chunk, _)| chunk),
            result: Some(result),
            why: why.cloned(),
            ..Self::looked_at(&done.after)
        }
    }
}

impl RuntimeReport {
    /// One runtime.
    #[must_use]
    pub fn of(runtime: &Runtime) -> Self {
        Self {
            name: runtime.name.clone(),
            version: runtime.version.clone(),
            selected: runtime.is_selected,
        }
    }
}

impl FileReport {
    fn of(file: &VendorFile) -> Self {
        let (original, sites) = match &file.found {
            Found::Content(content) => {
                let pairs = content.sites.iter().zip(&content.original.stock);
                let sites = pairs.map(|(site, stock)| SiteReport {
                    name: site.name,
                    owner: site.owner.clone(),
                    line: site.line,
                    value: site.value,
                    stock: *stock,
                });
                (content.original.proof, sites.collect())
            }
            _ => (Proof::Unknown, Vec::new()),
        };
        Self {
            file: file.short_path(),
            path: file.path.display().to_string(),
            state: file.state(),
            original,
            sites,
        }
    }
}
