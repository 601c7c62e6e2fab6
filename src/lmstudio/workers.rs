//! LM Studio's workers, and whether they have read the values that are on disk now.
//!
//! Every loaded model has one: `<home>/.internal/utils/node -e … require("…/llmworker.js")`. It reads the Python files
//! of its backend when it starts, so one that is older than those files holds older values.

use std::path::Path;

use serde::Serialize;
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind::Always};

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

/// What this machine's processes look like.
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

/// Looks at the processes of this machine.
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
    let processes = || pids.iter().filter_map(|pid| system.process(*pid));
    let worker = |one: &Process| {
        let (pid, started) = (one.pid().as_u32(), one.start_time());
        app_of_worker(one, &node).map(|app| Worker { pid, started, app })
    };
    let workers: Vec<_> = processes().filter_map(worker).collect();
    // A child of a worker is part of that worker.
    let is_worker = |pid: Pid| workers.iter().any(|one| one.pid == pid.as_u32());
    let is_part = |one: &Process| is_worker(one.pid()) || one.parent().is_some_and(is_worker);
    let others = processes().filter(|one| !is_part(one));
    let engine = |one: &Process| Some((one.pid().as_u32(), engine_directory(one, &amphibian)?));
    WorkerSnapshot {
        foreign: others.filter_map(engine).collect(),
        workers,
    }
}

fn app_of_worker(process: &Process, node: &Path) -> Option<String> {
    if resolved(process.exe()?) != node {
        return None;
    }
    let words = process.cmd().iter().map(|word| word.to_string_lossy());
    let line = words.collect::<Vec<_>>().join(" ");
    let (path, rest) = line.split_once("/llmworker.js")?;
    let goes_on = |next: char| next.is_alphanumeric() || ".-_/".contains(next);
    let path = path.rsplit(['"', '\'', '`']).next();
    let path = path.filter(|_| !rest.starts_with(goes_on))?;
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
    /// Whether loaded models have the values of `backend`, whose files were last `written` then (seconds since 1970).
    ///
    /// `loaded` asks `lms` how many MLX models and how many others there are. It is only called about an old worker, which
    /// may run another engine, since it would start LM Studio.
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
        if self.workers.is_empty() {
            return NotLoaded;
        }
        let Some(written) = written() else {
            return Unknown("its files have no date, or one in the future".to_owned());
        };
        let (mut is_used, mut older) = (false, Vec::new());
        for worker in &self.workers {
            let Worker { pid, started, app } = worker;
            // The headless daemon has LM Studio's choice.
            let app = app.replace("llmster", LM_STUDIO);
            let Some((app, Ok(since))) = selections.iter().find(|(of, _)| app.contains(**of))
            else {
                return Unknown(format!("the runtime of worker {pid} is unknown"));
            };
            if started <= since {
                return Unknown(format!(
                    "{app} chose its runtime after worker {pid} started"
                ));
            }
            if backend.selected_by().contains(app) {
                is_used = true;
                // Start times are whole seconds: a worker of the same second may have started before the edit.
                older.extend((*started <= written).then(|| worker.clone()));
            }
        }
        if older.is_empty() {
            return if is_used { InEffect } else { NotLoaded };
        }
        self.judge_old(older, loaded)
    }

    fn judge_old(
        &self,
        older: Vec<Worker>,
        loaded: impl FnOnce() -> Option<(usize, usize)>,
    ) -> LoadState {
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
