//! A launchd agent of the user: while it is installed, no backend stays at stock.

mod launchd;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde::Serialize;

use crate::files::{self, FULL_DISK_ACCESS, is_protected, resolved};
use crate::lmstudio::backends::{self, amphibian};
use crate::lmstudio::home;
use crate::lock::Lock;
use crate::output::{Exit, Output, flag, printable, quoted};
use crate::patch::backend::{Goal, Surveyed};
use crate::patch::settings::{DEFAULT_SIZE, Site, parse_size};
use crate::patch::{self, Outcome};
use launchd::Launchd;

/// How many settling times a job waits at most: 15 minutes at the default of 5 s.
const WAITS: u32 = 180;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install or update the agent, which sets every backend that is at stock
    Install {
        /// Tokens per prefill chunk
        #[arg(value_parser = parse_size, default_value_t = DEFAULT_SIZE)]
        size: u64,
    },
    /// Show whether it works, exit 1 if not, and the end of its log, ~/Library/Logs/lmpatch.log
    Status,
    /// Remove it and its log; the backends stay as they are
    Uninstall,
    /// What launchd runs; waits until no vendor file has changed for `settle_ms`
    #[command(hide = true)]
    Run {
        #[arg(value_parser = parse_size)]
        size: u64,
        #[arg(long, default_value_t = 5000)]
        settle_ms: u64,
    },
}

#[derive(Debug, Default, Serialize)]
pub struct Status {
    /// What it sets every stock backend to, in tokens, and in which home; `None` if it is not installed.
    pub size: Option<u64>,
    pub home: Option<String>,
    installed: bool,
    loaded: bool,
    /// Why it does not work though it is installed, and what to do.
    pub problem: Option<String>,
    #[serde(skip)]
    pub fix: String,
    last_lines: Vec<String>,
}

pub fn run(home: Option<&Path>, is_json: bool, output: &Output, asked: &Command) -> Result<Exit> {
    let exit = match asked {
        Command::Install { size } => install(home, output, *size)?,
        Command::Status => print_status(is_json, output)?,
        Command::Uninstall => uninstall(output)?,
        Command::Run { size, settle_ms } => wait_and_set(home, output, *size, *settle_ms)?,
    };
    if is_json {
        output.print_json(&status()?)?;
    }
    Ok(exit)
}

fn install(home: Option<&Path>, output: &Output, size: u64) -> Result<Exit> {
    let launchd = Launchd::new()?;
    let program = lasting_program()?;
    let home = std::path::absolute(home::find(home)?)?;
    let replaced = launchd.replace(&program, &home, size);
    replaced.context("the agent was not installed")?;
    output.say(&format!(
        "The agent is installed: it sets every stock backend to {size}."
    ));
    let user = resolved(&dirs::home_dir().unwrap_or_default());
    if is_protected(&resolved(&amphibian(&home)), &user) {
        let what = format!("macOS does not let the agent into {}", home.display());
        let next = format!("without Full Disk Access; give it to {}", program.display());
        output.note(&format!("{what} {next} in {FULL_DISK_ACCESS}"));
    }
    if let Some(lock) = Lock::try_take(&home)? {
        return set_stock(output, &lock, &home, size, Duration::ZERO);
    }
    output.note("another lmpatch is at work; the agent sets the backends when that has ended");
    Ok(Exit::Done)
}

fn lasting_program() -> Result<PathBuf> {
    let program = env::current_exe().context("the path of lmpatch is unknown")?;
    let real = program.canonicalize()?;
    let temp = [resolved(&env::temp_dir()), "/private/tmp".into()];
    // Cargo marks its target directories with this file.
    let is_temp = |at: &Path| at.join(".rustc_info.json").is_file() || temp.contains(&at.into());
    if real.ancestors().any(is_temp) {
        let what = "is in a build or temporary directory";
        let next = "install it with `cargo install --path .` in the clone, then do this with the installed one";
        bail!("{} {what}; {next}", program.display());
    }
    // Homebrew removes a version's own directory on upgrade; the link in its `bin` stays.
    let cellar = real.ancestors().find(|part| part.ends_with("Cellar"));
    let link = cellar.and_then(|part| Some(part.with_file_name("bin").join(real.file_name()?)));
    Ok(link.filter(|at| resolved(at) == real).unwrap_or(program))
}

fn uninstall(output: &Output) -> Result<Exit> {
    let launchd = Launchd::new()?;
    launchd.unload().context("the agent was not uninstalled")?;
    let left = [&launchd.job, &launchd.log].into_iter();
    for path in left.filter(|path| path.exists()) {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    output.say("The agent is uninstalled; the backends stay as they are.");
    Ok(Exit::Done)
}

pub fn status() -> Result<Status> {
    let launchd = Launchd::new()?;
    let log = files::read(&launchd.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().map(str::to_owned).collect();
    let mut status = Status {
        last_lines: lines[lines.len().saturating_sub(10)..].to_vec(),
        ..Status::default()
    };
    if let Some((program, home, size)) = launchd.installed() {
        status.installed = true;
        status.loaded = launchd.has_job()?;
        let of = quoted(home.display());
        status.fix = format!("`lmpatch --home {of} agent install {size}` fixes it");
        if let Err(why) = backends::open(&home) {
            status.problem = Some(format!("{why:#}"));
            status.fix = "`lmpatch agent uninstall` ends it".into();
        } else if !program.is_file() {
            status.problem = Some(format!("{} is gone", program.display()));
        } else if !status.loaded {
            let why = "its background item may be off (System Settings → General → Login Items)";
            status.problem = Some(format!("launchd does not have the agent: {why}"));
        }
        status.size = Some(size);
        status.home = Some(home.display().to_string());
    }
    Ok(status)
}

fn print_status(is_json: bool, output: &Output) -> Result<Exit> {
    let status = status()?;
    if !is_json && !output.is_quiet {
        let not = if status.loaded { "" } else { "not " };
        let mut text = match (status.size, &status.home) {
            (Some(size), Some(home)) => format!("installed, {not}loaded, size {size} in {home}\n"),
            _ => "not installed\n".to_owned(),
        };
        for line in &status.last_lines {
            text += &format!("  {}\n", printable(line));
        }
        output.print(&text)?;
    }
    if let Some(problem) = &status.problem {
        output.error(&format!("{problem}; {}", status.fix));
    } else if status.installed {
        return Ok(Exit::Done);
    } else {
        output.say("`lmpatch agent install` installs it.");
    }
    Ok(Exit::Failed)
}

fn wait_and_set(home: Option<&Path>, output: &Output, size: u64, settle_ms: u64) -> Result<Exit> {
    let home = home.context("agent run needs --home")?;
    let settle = Duration::from_millis(settle_ms);
    let deadline = Instant::now() + WAITS * settle;
    while !is_finished(home, size, settle)? && Instant::now() < deadline {
        thread::sleep(settle / 5);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    match Lock::take(home, left, "another lmpatch is at work") {
        Ok(lock) => set_stock(output, &lock, home, size, settle),
        // Its next start does it.
        Err(_) => Ok(Exit::Done),
    }
}

/// Whether no backend is missing and every one is settled, for long if a file may still be being unpacked.
fn is_finished(home: &Path, size: u64, settle: Duration) -> Result<bool> {
    if matches!(amphibian(home).try_exists(), Ok(false)) {
        return Ok(false);
    }
    let (backends, absent) = patch::survey(home, &[])?;
    let is_done = |one: &Surveyed| {
        let is_odd = one.differs_from_record() && is_for_us(one, size);
        is_settled(one, if is_odd { WAITS * settle } else { settle })
    };
    Ok(absent.missing.is_empty() && backends.iter().all(is_done))
}

/// Whether it is at stock, perhaps in part, as after a set that was killed; or refused, which has to be told.
fn is_for_us(one: &Surveyed, size: u64) -> bool {
    let is_open = one.blocked().is_some() || one.sites().any(|site| site.value != size);
    let is_ours = |site: &Site| [site.stock, size].contains(&site.value);
    is_open && one.sites().all(is_ours) && !one.sources().any(|source| source.came_edited)
}

/// Whether the agent sets a backend that stays as it is now.
pub fn will_set(one: &Surveyed, size: u64) -> bool {
    one.is_whole() && is_for_us(one, size) && one.blocked().is_none() && !one.differs_from_record()
}

fn is_settled(one: &Surveyed, settle: Duration) -> bool {
    let packages = one.backend.site_packages.iter().flatten();
    let paths = packages.chain(one.files.iter().map(|file| &file.path));
    let mut changes = paths.filter_map(|path| files::last_change(path));
    one.is_whole() && changes.all(|change| change.elapsed().is_ok_and(|age| age >= settle))
}

fn set_stock(output: &Output, lock: &Lock, home: &Path, size: u64, age: Duration) -> Result<Exit> {
    let (mut backends, _) = patch::survey(home, &[])?;
    backends.retain(|one| is_settled(one, age) && is_for_us(one, size));
    let mut exit = Exit::Done;
    for odd in backends.extract_if(.., |one| one.differs_from_record()) {
        exit = Exit::Failed;
        let name = &odd.backend.name;
        let what = "a file of it is not the one that its package's RECORD lists";
        let set = format!("`lmpatch {size}{}` sets it", flag(name));
        output.error(&format!("{name}: {what}; if no update is under way, {set}"));
    }
    for applied in patch::apply(lock, &backends, Goal::Size(size)) {
        let name = &applied.before.backend.name;
        if let Some(why) = applied.why {
            exit = Exit::Failed;
            output.error(&format!("{name}: {why}"));
        } else if applied.outcome == Outcome::Changed {
            let (before, _) = applied.before.chunk_and_stock().unwrap_or_default();
            output.say(&format!("{name}: {before} → {size}"));
        }
    }
    Ok(exit)
}
