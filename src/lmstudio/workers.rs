//! LM Studio's workers, and whether they have read the values that are on disk now.
//!
//! Every loaded model has one: `<home>/.internal/utils/node -e … require("…/llmworker.js")`. It reads the Python files
//! of its backend when it starts, so one that is older than those files holds older values.

use std::path::Path;

use serde::Serialize;
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind::Always};

use self::LoadState::{InEffect, NotLoaded, ReloadNeeded, Unknown};
use super::backends::{Backend, amphibian};
use super::runtimes::{LM_STUDIO, Selections};
use crate::files::resolved;

/// One worker, with its start in whole seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    pub pid: u32,
    pub started: u64,
    /// The name `open -a` takes; `llmster`, which is not an app; empty if the command line does not say.
    pub app: String,
}

impl Worker {
    /// Whether it belongs, or may belong, to LM Studio or its daemon, whose models `lms` knows.
    pub fn is_lm_studios(&self) -> bool {
        ["", LM_STUDIO, "llmster"].contains(&&*self.app)
    }
}

#[derive(Debug, Clone, Default)]
pub struct WorkerSnapshot {
    pub workers: Vec<Worker>,
    /// Other processes that may run an engine, with the directory of `_amphibian` that they are from.
    pub foreign: Vec<(u32, String)>,
}

/// Whether loaded models have a backend's values: which workers do not, or why that is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadState {
    ReloadNeeded(#[serde(skip)] Vec<Worker>),
    InEffect,
    #[serde(rename = "not-running")]
    NotLoaded,
    Unknown(#[serde(skip)] String),
}

pub fn snapshot(home: &Path) -> WorkerSnapshot {
    // Files that stay open would make the system wait until no thread uses its table of them.
    sysinfo::set_open_files_limit(0);
    let mut system = System::new();
    let basics = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, false, basics);
    let is_candidate = |process: &&Process| {
        let name = process.name().to_string_lossy().to_lowercase();
        let mut parts = ["node", "llmworker", "python", "mlx"].into_iter();
        parts.any(|part| name.contains(part))
    };
    let candidates = system.processes().values().filter(is_candidate);
    let mut pids: Vec<_> = candidates.map(Process::pid).collect();
    pids.sort_unstable();
    let details = basics.with_exe(Always).with_cmd(Always);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, details);

    let node = resolved(&home.join(".internal/utils/node"));
    let amphibian = resolved(&amphibian(home));
    let mut seen = WorkerSnapshot::default();
    for process in pids.iter().filter_map(|pid| system.process(*pid)) {
        let (pid, started) = (process.pid().as_u32(), process.start_time());
        // A child of a worker is part of that worker.
        let parent = process.parent().and_then(|pid| system.process(pid));
        let is_part = parent.is_some_and(|parent| app_of_worker(parent, &node).is_some());
        if let Some(app) = app_of_worker(process, &node) {
            seen.workers.push(Worker { pid, started, app });
        } else if !is_part && let Some(directory) = engine_directory(process, &amphibian) {
            seen.foreign.push((pid, directory));
        }
    }
    seen
}

fn app_of_worker(process: &Process, node: &Path) -> Option<String> {
    if resolved(process.exe()?) != node {
        return None;
    }
    let words = process.cmd().iter().map(|word| word.to_string_lossy());
    let line = words.collect::<Vec<_>>().join(" ");
    let (path, _) = line.split_once("/llmworker.js")?;
    let path = path.rsplit(['"', '\'', '`']).next()?;
    match path.split_once(".app/") {
        Some((bundle, _)) => bundle.rsplit('/').next().map(str::to_owned),
        None if path.contains("/llmster/") => Some("llmster".to_owned()),
        None => Some(String::new()),
    }
}

fn engine_directory(process: &Process, amphibian: &Path) -> Option<String> {
    let program = process.exe().map(Path::as_os_str).into_iter();
    let mut words = program.chain(process.cmd().iter().map(AsRef::as_ref));
    words.find_map(|word| {
        let word = word.to_string_lossy();
        let (root, rest) = word.split_once("/_amphibian/")?;
        let is_ours = resolved(&Path::new(root).join("_amphibian")) == amphibian;
        is_ours.then(|| rest.split('/').next().map(str::to_owned))?
    })
}

impl WorkerSnapshot {
    /// Whether loaded models have the values of `backend`, whose files were `written` then, in seconds since 1970.
    /// How many MLX models and others are `loaded` is only asked about an old worker: `lms` would start LM Studio.
    pub fn load_state(
        &self,
        backend: &Backend,
        written: impl FnOnce() -> Option<u64>,
        selections: &Selections,
        loaded: impl FnOnce() -> Option<(usize, usize)>,
    ) -> LoadState {
        // Several backends share one Python.
        let is_its = |of: &str| of == backend.name || of.starts_with("cpython");
        if let Some((pid, _)) = self.foreign.iter().find(|(_, of)| is_its(of)) {
            return Unknown(format!("process {pid} may use it, but is no known worker"));
        }
        let mut its = Vec::new();
        for worker in &self.workers {
            // The headless daemon has LM Studio's choice.
            let app = worker.app.replace("llmster", LM_STUDIO);
            match selections.iter().find(|(of, _)| app.contains(**of)) {
                Some((app, Ok(since))) if worker.started > *since => {
                    its.extend(backend.selected_by().contains(app).then_some(worker));
                }
                _ => {
                    let what = format!("the runtime of worker {} is unknown", worker.pid);
                    return Unknown(what + ", or was chosen after it started");
                }
            }
        }
        if its.is_empty() {
            return NotLoaded;
        }
        let Some(written) = written() else {
            return Unknown("its files have no date, or one in the future".to_owned());
        };
        // Start times are whole seconds: a worker of the same second may have started before the edit.
        let older = its.into_iter().filter(|worker| worker.started <= written);
        let older: Vec<_> = older.cloned().collect();
        if older.is_empty() {
            return InEffect;
        }
        // `lms` knows no model of another app, and none that is still being loaded.
        let is_of_lms = older.iter().all(Worker::is_lm_studios);
        match is_of_lms.then(loaded).flatten() {
            Some((0, others)) if others >= self.workers.len() => NotLoaded,
            Some((_, others)) if others >= older.len() => Unknown(format!(
                "worker {} is older than its files, but may run a model of another engine",
                older[0].pid
            )),
            _ => ReloadNeeded(older),
        }
    }
}
