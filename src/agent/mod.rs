//! A launchd agent of the user: while it is installed, no backend stays at stock.

mod keep;
mod launchd;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde::Serialize;

use crate::files::{self, resolved};
use crate::lmstudio::backends::amphibian;
use crate::lmstudio::home;
use crate::lock::Lock;
use crate::output::{Exit, Output, printable};
use crate::patch::settings::{DEFAULT_SIZE, parse_size};
use launchd::Launchd;

/// What makes an agent work again.
pub const FIX: &str = "`lmpatch agent install` fixes it";

const NOT_LOADED: &str = "launchd does not have the agent: nobody has logged in at the screen, or the background item \
    may be switched off (System Settings → General → Login Items)";

/// What is asked of the agent.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install the agent, or update it: while it is installed, no backend stays at stock
    Install {
        /// Tokens per prefill chunk
        #[arg(value_parser = parse_size, default_value_t = DEFAULT_SIZE)]
        size: u64,
    },
    /// Show whether it works, and the end of its log, ~/Library/Logs/lmpatch.log
    Status,
    /// Remove it and its log; the backends stay as they are
    Uninstall,
    /// What launchd runs
    #[command(hide = true)]
    Run {
        #[arg(value_parser = parse_size)]
        size: u64,
        /// For how long nothing may change before the backends are taken for finished
        #[arg(long, default_value_t = 5000)]
        settle_ms: u64,
    },
}

/// What is known about the agent.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What it gives every backend that is stock, in tokens; none where it is not installed.
    pub size: Option<u64>,
    installed: bool,
    loaded: bool,
    /// Why it does not work though it is installed; [`FIX`] is what to do.
    pub trouble: Option<String>,
    last_lines: Vec<String>,
}

/// Does what was asked of the agent, for `home` where one is given.
pub fn run(home: Option<&Path>, is_json: bool, output: &Output, asked: &Command) -> Result<Exit> {
    match asked {
        Command::Install { size } => install(home, output, *size),
        Command::Status => print_status(is_json, output),
        Command::Uninstall => uninstall(output),
        Command::Run { size, settle_ms } => {
            let home = home.context("agent run needs --home")?;
            keep::run(output, home, *size, Duration::from_millis(*settle_ms))
        }
    }
}

fn install(home: Option<&Path>, output: &Output, size: u64) -> Result<Exit> {
    let launchd = Launchd::new()?;
    let program = lasting_program()?;
    let home = std::path::absolute(home::find(home)?)?;
    let replaced = launchd.replace(&program, &home, size);
    replaced.context("the agent was not installed")?;
    let what = format!("while it is, no backend stays at stock; each gets {size}");
    output.say(&format!("The agent is installed: {what}."));
    if is_protected(&resolved(&amphibian(&home)), &resolved(&launchd.user)) {
        let what = format!("macOS does not let the agent into {}", home.display());
        let next = format!("without Full Disk Access; give it to {}", program.display());
        let place = "System Settings → Privacy & Security → Full Disk Access";
        output.note(&format!("{what} {next} in {place}"));
    }
    if let Some(lock) = Lock::try_take(&home)? {
        return keep::set_stock(output, &lock, &home, size);
    }
    output.note("another lmpatch is at work; the agent sets the backends when that has ended");
    Ok(Exit::Done)
}

/// Whether macOS keeps a directory, its links resolved, from programs without Full Disk Access.
pub fn is_protected(directory: &Path, user: &Path) -> bool {
    let folders = ["Documents", "Desktop", "Downloads"].map(|folder| user.join(folder));
    directory.starts_with("/Volumes") || folders.iter().any(|folder| directory.starts_with(folder))
}

/// This program, for launchd to run. Refused where a build, or the system, will remove it.
fn lasting_program() -> Result<PathBuf> {
    let program = env::current_exe().context("the path of lmpatch is unknown")?;
    let real = program.canonicalize()?;
    // Cargo marks its target directories with this file.
    let is_target = |directory: &Path| directory.join(".rustc_info.json").is_file();
    let temporary = resolved(&env::temp_dir());
    let is_temporary = real.starts_with(temporary) || real.starts_with("/private/tmp");
    if is_temporary || real.ancestors().any(is_target) {
        let what = "is in a build or temporary directory, which goes";
        let next = "install it first, with `cargo install --path .`, and run `lmpatch agent install` from there";
        bail!("{} {what}; {next}", program.display());
    }
    // Homebrew removes a version's own directory on upgrade; the link in its `bin` stays.
    let cellar = real.ancestors().find(|part| part.ends_with("Cellar"));
    let link = cellar.and_then(|part| Some(part.with_file_name("bin").join(real.file_name()?)));
    let stable = link.filter(|link| link.canonicalize().is_ok_and(|to| to == real));
    Ok(stable.unwrap_or(program))
}

fn uninstall(output: &Output) -> Result<Exit> {
    let launchd = Launchd::new()?;
    let unloaded = launchd.unload();
    unloaded.context("the agent was not uninstalled")?;
    for path in [&launchd.job, &launchd.log] {
        if path.exists() {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    output.say("The agent is uninstalled; the backends stay as they are.");
    Ok(Exit::Done)
}

/// Looks at the agent. Writes nothing.
pub fn status() -> Result<Status> {
    let launchd = Launchd::new()?;
    let installed = launchd.job.exists();
    let loaded = installed && launchd.has_job();
    let (program, size) = launchd.installed().unzip();
    let trouble = match &program {
        _ if !installed => None,
        None => Some("its job is not as lmpatch writes it".to_owned()),
        Some(program) if !program.is_file() => Some(format!("{} is gone", program.display())),
        _ => (!loaded).then(|| NOT_LOADED.to_owned()),
    };
    let log = files::read(&launchd.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut last_lines: Vec<_> = log.lines().rev().take(10).map(str::to_owned).collect();
    last_lines.reverse();
    Ok(Status {
        size,
        installed,
        loaded,
        trouble,
        last_lines,
    })
}

fn print_status(is_json: bool, output: &Output) -> Result<Exit> {
    let status = status()?;
    let works = status.installed && status.trouble.is_none();
    let word = match (&status.trouble, status.installed) {
        (Some(_), _) => "installed, but it does not work",
        (None, true) => "installed and loaded",
        (None, false) => "not installed",
    };
    let size = status.size.map(|size| format!(", size {size}"));
    let mut text = format!("{word}{}\n", size.unwrap_or_default());
    let lines = status.last_lines.iter();
    text.extend(lines.map(|line| format!("  {}\n", printable(line))));
    if is_json {
        output.print(&(serde_json::to_string_pretty(&status)? + "\n"))?;
    } else if !output.is_quiet {
        output.print(&text)?;
    }
    if let Some(trouble) = &status.trouble {
        output.error(&format!("{trouble}; {FIX}"));
    }
    Ok(if works { Exit::Done } else { Exit::Failed })
}
