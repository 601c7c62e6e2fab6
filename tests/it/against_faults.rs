//! Nothing is lost where the disk fails or lmpatch is killed: every system call of a real run that touches the home
//! is let fail, one at a time, from outside and without a hook in the product.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::home::{BackendDir, RUNTIME, runtime, select, stock_generate, usual_backend};
use crate::support::strace::{self, Call};
use crate::support::{Entry, Env, Ran, aloud, differences, snapshot};
use anyhow::{Context as _, Result, ensure};

type Tree = BTreeMap<OsString, Entry>;

/// A backend of two files, of which lmpatch can prove one and has to save the other, and one of a single file.
const BACKENDS: [&str; 2] = [
    "app-mlx-generate-mac14-arm64@19",
    "app-mlx-generate-mac14-arm64@34",
];

/// Errors are printed all the same; without it `ps` is asked about loaded models, and how many calls that takes depends
/// on what else runs on the machine.
const QUIET: &str = "-q";

/// What is run and let fail, and what was run before it.
type Scenario = (&'static str, &'static [&'static str]);

const SCENARIOS: [Scenario; 3] = [("4096", &[]), ("4096", &["8192"]), ("--revert", &["4096"])];

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails with this error, once.
    Once(&'static str),
    /// It fails, and so does every later call of its name: the rollback has the same trouble.
    FromNowOn,
    /// lmpatch is killed before the call is carried out.
    Kill,
}

/// Calls that only read and are not worth all of it: how reading fails makes no difference, and a kill before reading
/// is a kill before the next change.
const READING: [&str; 5] = ["read", "pread64", "getdents64", "readlink", "readlinkat"];

/// The same of calls that only look, or open for reading; but what may not be looked at is told in its own words.
const LOOKING: [&str; 5] = ["stat", "lstat", "fstat", "newfstatat", "statx"];

impl Fault {
    /// In the words of `strace -e inject=`.
    fn tampering(self, occurrence: usize) -> String {
        match self {
            Self::Once(error) => format!("error={error}:when={occurrence}"),
            Self::FromNowOn => format!("error=EIO:when={occurrence}+"),
            // The error keeps the call from being carried out; lmpatch does not live to see it.
            Self::Kill => format!("error=EIO:signal=SIGKILL:when={occurrence}"),
        }
    }
}

/// A scenario as it goes without a fault.
struct Rehearsal {
    scenario: Scenario,
    /// The home before the run, and what is in it then and afterwards.
    home: Env,
    old: Tree,
    new: Tree,
    /// The home as the vendor made it, less the bytecode of edited files.
    reverted: Tree,
    calls: Vec<Call>,
}

struct Case<'a> {
    rehearsal: &'a Rehearsal,
    call: &'a Call,
    fault: Fault,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (args, before) = self.rehearsal.scenario;
        let (name, number, fault) = (&self.call.name, self.call.occurrence, self.fault);
        write!(f, "{args} after {before:?}: {fault:?} in {name} #{number}")
    }
}

#[test]
fn any_call_may_fail_and_nothing_is_lost() {
    if !strace::is_there() {
        return;
    }
    let rehearsals = SCENARIOS.map(rehearse);
    let cases: Vec<_> = rehearsals.iter().flat_map(cases).collect();
    let failures = run_all(&cases);
    let (injected, survived) = (cases.len(), cases.len() - failures.len());
    aloud(&format!("{injected} faults injected, {survived} survived"));
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn rehearse(scenario: Scenario) -> Rehearsal {
    let (args, before) = scenario;
    let home = home();
    let mut reverted = snapshot(&home.lmstudio());
    reverted.retain(|path, _| !is_bytecode_of_edited(path));
    for before in before {
        home.run([before]).exits(0);
    }
    let old = snapshot(&home.lmstudio());
    let env = copy_of(&home);
    let calls = strace::record(&env, &[QUIET, args]);
    let new = snapshot(&env.lmstudio());
    finishes(&env, "--revert", &reverted).unwrap();
    Rehearsal {
        scenario,
        home,
        old,
        new,
        reverted,
        calls,
    }
}

/// A home of two backends with everything that lmpatch reads. Where root runs this, an owner has to be kept too.
fn home() -> Env {
    let env = Env::in_memory();
    let lmstudio = env.lmstudio();
    let backend = usual_backend(&lmstudio, BACKENDS[0])
        .with_bytecode("mlx_engine", "cache_wrapper")
        .with_bytecode("mlx_lm", "generate");
    if env.is_root() {
        chown(backend.engine(), Some(12345), Some(12345)).unwrap();
    }
    BackendDir::new(&lmstudio, BACKENDS[1])
        .with_listed_generate(stock_generate())
        .with_bytecode("mlx_lm", "generate");
    runtime(&lmstudio, "1.12.0", &BACKENDS);
    select(&lmstudio, "1.12.0");
    env
}

/// A copy of a home, with its modes and owners.
fn copy_of(home: &Env) -> Env {
    let env = Env::in_memory();
    let mut copy = Command::new("cp");
    copy.arg("-a").args([home.lmstudio(), env.lmstudio()]);
    assert!(copy.status().unwrap().success());
    env
}

fn is_bytecode_of_edited(path: &OsString) -> bool {
    let path = path.to_string_lossy();
    path.contains("__pycache__/generate.") || path.contains("__pycache__/cache_wrapper.")
}

fn cases(rehearsal: &Rehearsal) -> impl Iterator<Item = Case<'_>> {
    use Fault::{FromNowOn, Kill, Once};
    rehearsal.calls.iter().flat_map(move |call| {
        let faults: &[Fault] = if READING.contains(&call.name.as_str()) {
            &[Once("EIO"), FromNowOn]
        } else if LOOKING.contains(&call.name.as_str()) || call.text.contains("O_RDONLY") {
            &[Once("EIO"), Once("EACCES"), FromNowOn]
        } else {
            &[Once("EIO"), Once("ENOSPC"), Once("EACCES"), FromNowOn, Kill]
        };
        faults.iter().map(move |&fault| Case {
            rehearsal,
            call,
            fault,
        })
    })
}

/// Runs the cases on every core; returns what failed.
fn run_all(cases: &[Case<'_>]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = survives(case) {
                failures.lock().unwrap().push(format!("{case}: {error:#}"));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    failures.into_inner().unwrap()
}

fn survives(case: &Case<'_>) -> Result<()> {
    let Rehearsal { old, new, .. } = case.rehearsal;
    let (args, _) = case.rehearsal.scenario;
    let env = copy_of(&case.rehearsal.home);
    let (call, tampering) = (case.call, case.fault.tampering(case.call.occurrence));
    let (output, was_injected) = strace::inject(&env, &call.name, &tampering, &[QUIET, args]);
    let ran = Ran::of(&output);
    ensure!(was_injected, "the run did not get to this call: {ran:#?}");
    let after = snapshot(&env.lmstudio());
    for path in old.keys().filter(|path| is_vendor_file(path)) {
        let now = after.get(path);
        let is_whole = now == old.get(path) || now == new.get(path);
        ensure!(is_whole, "{} is neither old nor new", path.display());
    }
    if case.fault == Fault::Kill {
        let is_killed = output.status.signal() == Some(9);
        ensure!(is_killed, "it was not killed: {ran:#?}");
    } else {
        told_the_truth(case, &ran, &after).with_context(|| format!("{ran:#?}"))?;
    }
    // That all goes well from these two the rehearsal has shown.
    if after == *old || after == *new {
        return Ok(());
    }
    finishes(&env, args, new).context("the next run")?;
    finishes(&env, "--revert", &case.rehearsal.reverted).context("the revert after it")
}

fn is_vendor_file(path: &OsString) -> bool {
    let path = path.to_string_lossy();
    path.ends_with("/generate.py") || path.ends_with("/cache_wrapper.py")
}

/// The exit code and the messages fit what is on disk.
fn told_the_truth(case: &Case<'_>, ran: &Ran, after: &Tree) -> Result<()> {
    let Rehearsal { old, new, .. } = case.rehearsal;
    let has_more_trouble = matches!(case.fault, Fault::FromNowOn);
    ensure!(!ran.stderr.contains("panicked"), "it panicked");
    ensure!(matches!(ran.code, Some(0 | 1)), "it ended in another way");
    let has_failed = ran.code == Some(1);
    for backend in BACKENDS {
        let is = |tree: &Tree| files_of(backend, after).eq(files_of(backend, tree));
        if is(new) {
            let mut paths = after.keys().filter(|path| is_of(backend, path));
            let is_clean = !paths.any(is_bytecode_of_edited);
            ensure!(has_failed || is_clean, "{backend} has its old bytecode");
            continue;
        }
        // What has the same trouble every time cannot be put back either.
        ensure!(is(old) || has_more_trouble, "{backend} is half changed");
        ensure!(has_failed, "{backend} is not done, and that is no failure");
        // stderr is written with the same call.
        let is_mute = case.call.name == "write" && has_more_trouble;
        let is_told = is_mute || is_named(backend, &ran.stderr);
        ensure!(is_told, "{backend} is not done, and not named");
    }
    Ok(())
}

fn files_of<'t>(backend: &str, tree: &'t Tree) -> impl Iterator<Item = (&'t OsString, &'t Entry)> {
    tree.iter()
        .filter(move |(path, _)| is_of(backend, path) && is_vendor_file(path))
}

fn is_of(backend: &str, path: &OsString) -> bool {
    path.to_string_lossy().contains(backend)
}

/// An error names the backend, or else the directory of all backends or the home that holds it.
fn is_named(backend: &str, stderr: &str) -> bool {
    let mut errors = stderr.lines().filter(|line| line.starts_with("error: "));
    errors.any(|line| {
        let is_inside = line.contains("_amphibian/") || line.contains(RUNTIME);
        line.contains(backend) || line.contains(".lmstudio") && !is_inside
    })
}

/// A run without a fault does all there is to do, and leaves the home exactly so.
fn finishes(env: &Env, args: &str, wanted: &Tree) -> Result<()> {
    let ran = env.run([args]);
    ensure!(ran.code == Some(0), "{ran:#?}");
    let differences = differences(wanted, &snapshot(&env.lmstudio()));
    ensure!(differences.is_empty(), "these differ: {differences:#?}");
    Ok(())
}
