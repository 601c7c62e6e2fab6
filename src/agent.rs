//! Keeps the chunk size after updates of LM Studio: a launchd agent of the user that sets layers that are new.

mod job;
mod keeper;
mod store;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::cli::{AgentCommand, Cli};
use crate::lmstudio::{backends, home};
use crate::outcome::Outcome;
use crate::report::SCHEMA;
use crate::ui::{BAD, GOOD, NOTE, Ui, printable};
use job::{Job, LABEL, Launchd};
use keeper::Keeper;
use store::Store;

/// How many lines of the log `agent status` shows.
const SHOWN_LINES: usize = 10;

/// What is known about the agent.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The version of the shape of this report.
    schema: u32,
    /// Whether its job is where launchd looks for it.
    pub installed: bool,
    /// Whether launchd has it; none where that cannot be told.
    pub loaded: Option<bool>,
    /// The size that new layers get, in tokens.
    pub size: Option<u64>,
    /// What launchd runs.
    program: Option<PathBuf>,
    /// Whether that is there.
    pub program_exists: bool,
    /// The directory that is watched.
    watches: Option<PathBuf>,
    /// Where the job is, or would be.
    plist: PathBuf,
    /// Where its log is, or would be.
    log: PathBuf,
    /// The last lines of it.
    lines: Vec<String>,
    /// Why it does not work, if it is installed and does not, and what to do.
    pub trouble: Option<String>,
}

/// Does what was asked of the agent.
pub fn run(cli: &Cli, ui: &Ui, command: &AgentCommand) -> Result<Outcome> {
    let user = user_home()?;
    let store = Store::of(&user);
    match command {
        AgentCommand::Install { size } => install(cli, ui, &user, &store, *size),
        AgentCommand::Status => status(cli, ui),
        AgentCommand::Uninstall => uninstall(ui, &user, &store),
        AgentCommand::Run(args) => {
            let home = cli.home.as_deref().context("agent run needs --home")?;
            Keeper {
                home,
                args,
                store: &store,
                ui,
            }
            .run()
        }
    }
}

fn user_home() -> Result<PathBuf> {
    dirs::home_dir().context("your home directory is unknown; set HOME")
}

fn job_path(user: &Path) -> PathBuf {
    user.join("Library/LaunchAgents")
        .join(format!("{LABEL}.plist"))
}

fn install(cli: &Cli, ui: &Ui, user: &Path, store: &Store, size: u64) -> Result<Outcome> {
    let program =
        job::lasting_program(&std::env::current_exe().context("the path of lmpatch is unknown")?)?;
    let home = home::find(cli.home.as_deref())?;
    if let Some(note) = &home.note {
        ui.note(note);
    }
    let home = std::path::absolute(&home.path)?;
    let known = store
        .load()
        .filter(|memory| Path::new(&memory.home) == home);
    if known.is_none() {
        store.save(&keeper::remember_all(&home)?)?;
    }
    let watched = backends::amphibian(&home);
    let job = Job {
        program,
        home,
        watched,
        size,
    };
    let was_installed = replace_job(user, &job)?;
    let verb = if was_installed {
        "updated"
    } else {
        "installed"
    };
    ui.say(&format!(
        "The agent is {verb}: backends that LM Studio adds from now on get {size}."
    ));
    ui.say(&format!(
        "Those that are there now stay as they are; `lmpatch {size}` sets them."
    ));
    Ok(Outcome::Done)
}

/// Writes the job and hands it to launchd; where launchd does not take it, the old job is put back.
fn replace_job(user: &Path, job: &Job) -> Result<bool> {
    let path = job_path(user);
    let launchd = Launchd::of(user)?;
    let before = fs::read(&path).ok();
    launchd.unload()?;
    store::write(&path, &job.to_plist()?)?;
    let Err(error) = launchd.load(&path) else {
        return Ok(before.is_some());
    };
    match before {
        Some(before) => {
            store::write(&path, &before)?;
            // The failure that is told is the first one.
            let _ = launchd.load(&path);
        }
        None => remove(&path)?,
    }
    Err(error.context("the agent was not installed"))
}

fn uninstall(ui: &Ui, user: &Path, store: &Store) -> Result<Outcome> {
    let path = job_path(user);
    let is_there = path.exists();
    // Without launchctl no launchd can have it.
    match Launchd::of(user)?.unload() {
        Err(error) if is_there => return Err(error.context("the agent was not uninstalled")),
        _ => {}
    }
    remove(&path)?;
    let had_memory = store.remove()?;
    ui.say(if is_there || had_memory {
        "The agent is uninstalled."
    } else {
        "There was no agent."
    });
    Ok(Outcome::Done)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Looks at the agent. Writes nothing.
pub fn look() -> Result<Status> {
    let user = user_home()?;
    let (plist, store) = (job_path(&user), Store::of(&user));
    let job = fs::read(&plist).ok().map(|bytes| Job::from_plist(&bytes));
    let installed = job.is_some();
    let job = job.flatten();
    let loaded = Launchd::of(&user)
        .and_then(|launchd| launchd.is_loaded())
        .ok();
    let program = job.as_ref().map(|job| job.program.clone());
    let mut status = Status {
        schema: SCHEMA,
        installed,
        loaded,
        size: job.as_ref().map(|job| job.size),
        program_exists: program.as_ref().is_some_and(|program| program.is_file()),
        program,
        watches: job.map(|job| job.watched),
        plist,
        log: store.log_path(),
        lines: store.last_lines(SHOWN_LINES),
        trouble: None,
    };
    status.trouble =
        trouble(&status).map(|what| format!("{what}; `lmpatch agent install` puts it right"));
    Ok(status)
}

fn trouble(status: &Status) -> Option<String> {
    if !status.installed {
        return None;
    }
    let (Some(program), Some(watches)) = (&status.program, &status.watches) else {
        return Some(format!(
            "{} is not a job as lmpatch writes it",
            status.plist.display()
        ));
    };
    if !status.program_exists {
        return Some(format!("{}, which it runs, is gone", program.display()));
    }
    if !watches.is_dir() {
        return Some(format!("{}, which it watches, is gone", watches.display()));
    }
    (status.loaded == Some(false)).then(|| "launchd does not have it".to_owned())
}

fn status(cli: &Cli, ui: &Ui) -> Result<Outcome> {
    let status = look()?;
    let outcome = if status.installed && status.trouble.is_none() {
        Outcome::Done
    } else {
        Outcome::Failed
    };
    if cli.json {
        ui.print(&(serde_json::to_string_pretty(&status)? + "\n"))
            .context("cannot write to stdout")?;
    } else if !ui.is_quiet {
        ui.print(&shown(&status))
            .context("cannot write to stdout")?;
    }
    if let Some(trouble) = &status.trouble {
        ui.error(trouble);
    }
    Ok(outcome)
}

impl Status {
    /// Whether it works, in one line, as [`shown`] begins.
    #[must_use]
    pub fn line(&self) -> String {
        let (style, word) = match (self.installed, self.loaded) {
            (false, _) => (NOTE, "not installed"),
            (true, _) if self.trouble.is_some() => (BAD, "installed, but it does not work"),
            (true, Some(true)) => (GOOD, "installed and loaded"),
            (true, _) => (NOTE, "installed; whether launchd has it cannot be told"),
        };
        let size = self
            .size
            .map(|size| format!(", size {size}"))
            .unwrap_or_default();
        format!("{:<9}{style}{word}{style:#}{size}\n", "agent")
    }
}

fn shown(status: &Status) -> String {
    let path = |path: &Path| printable(&path.display().to_string());
    let rows = [
        ("runs", status.program.as_deref().map(path)),
        ("watches", status.watches.as_deref().map(path)),
        ("log", Some(path(&status.log))),
    ];
    let rows = rows
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name:<9}{}\n", value?)));
    let lines = status
        .lines
        .iter()
        .map(|line| format!("  {}\n", printable(line)));
    std::iter::once(status.line())
        .chain(rows)
        .chain(lines)
        .collect()
}

/// Refuses to run where nothing would ever run it again.
fn refuse(program: &Path, why: &str) -> Result<PathBuf> {
    bail!(
        "{} {why}, and the agent would break when it goes; install lmpatch first, for example with \
         `cargo install --path .`, and run `lmpatch agent install` from there",
        program.display()
    )
}
