//! Nothing is lost where the disk fails or lmpatch is killed: every system call of a real run that touches the home
//! is let fail, one at a time, from outside and without a hook in the product.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::home::{BackendDir, RUNTIME, runtime, select, stock_generate, usual_backend};
use crate::support::strace::{self, Call};
use crate::support::{Entry, Env, Ran, aloud, differences, snapshot};
use anyhow::{Context as _, Result, bail, ensure};

type Tree = BTreeMap<OsString, Entry>;

/// A backend of two files, of which lmpatch can prove one and has to save the other, and one of a single file.
const BACKENDS: [&str; 2] = [
    "app-mlx-generate-mac14-arm64@19",
    "app-mlx-generate-mac14-arm64@34",
];

/// Errors are printed all the same; without it `ps` is asked about loaded models, and how many calls that takes depends
/// on what else runs on the machine.
const QUIET: &str = "-q";

/// A run that is let fail, from the state that `before` leaves.
struct Scenario {
    before: Option<&'static str>,
    args: &'static str,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario {
        before: None,
        args: "4096",
    },
    Scenario {
        before: Some("8192"),
        args: "4096",
    },
    Scenario {
        before: Some("4096"),
        args: "--revert",
    },
];

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
struct Rehearsal<'a> {
    scenario: &'a Scenario,
    /// The home before the run and after it.
    old: Tree,
    new: Tree,
    /// The home as the vendor made it, less the bytecode of edited files.
    reverted: Tree,
    calls: Vec<Call>,
}

struct Case<'a> {
    rehearsal: &'a Rehearsal<'a>,
    call: &'a Call,
    fault: Fault,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { before, args } = self.rehearsal.scenario;
        let Call {
            name, occurrence, ..
        } = self.call;
        write!(
            f,
            "{args} after {}: {:?} in {name} #{occurrence}",
            before.unwrap_or("nothing"),
            self.fault
        )
    }
}

#[test]
fn any_call_may_fail_and_nothing_is_lost() {
    if !strace::is_there() {
        return;
    }
    let rehearsals: Vec<_> = SCENARIOS.iter().map(rehearse).collect();
    let cases: Vec<_> = rehearsals.iter().flat_map(cases).collect();
    let failures = run_all(&cases);
    aloud(&format!(
        "{} faults injected, {} survived",
        cases.len(),
        cases.len() - failures.len()
    ));
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

fn rehearse(scenario: &Scenario) -> Rehearsal<'_> {
    let made = home();
    let vendor = snapshot(&made.lmstudio());
    if let Some(before) = scenario.before {
        made.run([before]).exits(0);
    }
    let old = snapshot(&made.lmstudio());
    let env = home_of(&old);
    let calls = strace::record(&env, &[QUIET, scenario.args]);
    let new = snapshot(&env.lmstudio());
    let reverted = vendor
        .into_iter()
        .filter(|(path, _)| !is_bytecode_of_edited(path))
        .collect();
    finishes(&env, "--revert", &reverted).unwrap();
    Rehearsal {
        scenario,
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
    let backend = usual_backend(&lmstudio, BACKENDS[0]);
    let backend = backend
        .with_bytecode("mlx_engine", "cache_wrapper")
        .with_bytecode("mlx_lm", "generate");
    if lmstudio.metadata().unwrap().uid() == 0 {
        chown(backend.engine(), Some(12345), Some(12345)).unwrap();
    }
    let backend = BackendDir::new(&lmstudio, BACKENDS[1])
        .with_generate(stock_generate())
        .with_record(stock_generate());
    backend.with_bytecode("mlx_lm", "generate");
    runtime(&lmstudio, "1.12.0", &BACKENDS);
    select(&lmstudio, "1.12.0");
    env
}

/// A home that is this tree.
fn home_of(tree: &Tree) -> Env {
    let env = Env::in_memory();
    fs::create_dir(env.lmstudio()).unwrap();
    // A directory comes before what is in it.
    for (path, entry) in tree {
        let path = env.lmstudio().join(path);
        match entry {
            Entry::Directory { .. } => fs::create_dir(path).unwrap(),
            Entry::File {
                bytes,
                mode,
                uid,
                gid,
            } => {
                fs::write(&path, bytes).unwrap();
                chown(&path, Some(*uid), Some(*gid)).unwrap();
                fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
            }
            Entry::Link(_) | Entry::Special => panic!("{} is not expected here", path.display()),
        }
    }
    env
}

fn is_bytecode_of_edited(path: &OsString) -> bool {
    let path = path.to_string_lossy();
    ["__pycache__/generate.", "__pycache__/cache_wrapper."]
        .iter()
        .any(|part| path.contains(part))
}

fn cases<'a>(rehearsal: &'a Rehearsal<'a>) -> impl Iterator<Item = Case<'a>> {
    use Fault::{FromNowOn, Kill, Once};
    rehearsal.calls.iter().flat_map(move |call| {
        let faults: &[Fault] = if READING.contains(&call.name.as_str()) {
            &[Once("EIO"), FromNowOn]
        } else if LOOKING.contains(&call.name.as_str()) || call.text.contains("O_RDONLY") {
            &[Once("EIO"), Once("EACCES"), FromNowOn]
        } else {
            &[Once("EIO"), Once("ENOSPC"), Once("EACCES"), FromNowOn, Kill]
        };
        faults.iter().map(move |fault| Case {
            rehearsal,
            call,
            fault: *fault,
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
    let Rehearsal {
        scenario,
        old,
        new,
        reverted,
        ..
    } = case.rehearsal;
    let env = home_of(old);
    let tampering = case.fault.tampering(case.call.occurrence);
    let (output, was_injected) =
        strace::inject(&env, &case.call.name, &tampering, &[QUIET, scenario.args]);
    let ran = Ran::of(&output);
    ensure!(was_injected, "the run did not get to this call: {ran:#?}");
    let after = snapshot(&env.lmstudio());
    for path in old.keys().filter(|path| is_vendor_file(path)) {
        let now = after.get(path);
        ensure!(
            now == old.get(path) || now == new.get(path),
            "{} is neither old nor new",
            path.display()
        );
    }
    if case.fault == Fault::Kill {
        ensure!(
            output.status.signal() == Some(9),
            "it was not killed: {ran:#?}"
        );
    } else {
        told_the_truth(case, &ran, &after).with_context(|| format!("{ran:#?}"))?;
    }
    // That all goes well from these two the rehearsal has shown.
    if after == *old || after == *new {
        return Ok(());
    }
    finishes(&env, scenario.args, new).context("the next run")?;
    finishes(&env, "--revert", reverted).context("the revert after it")
}

fn is_vendor_file(path: &OsString) -> bool {
    let path = path.to_string_lossy();
    path.ends_with("/generate.py") || path.ends_with("/cache_wrapper.py")
}

/// The exit code and the messages fit what is on disk.
fn told_the_truth(case: &Case<'_>, ran: &Ran, after: &Tree) -> Result<()> {
    ensure!(!ran.stderr.contains("panicked"), "it panicked");
    for backend in BACKENDS {
        let Rehearsal { old, new, .. } = case.rehearsal;
        let is = |tree: &Tree| files_of(backend, after).eq(files_of(backend, tree));
        if is(new) {
            let stale = after
                .keys()
                .any(|path| is_of(backend, path) && is_bytecode_of_edited(path));
            ensure!(
                ran.code == Some(1) || !stale,
                "{backend} is edited, but its old bytecode is still there"
            );
            continue;
        }
        // What has the same trouble every time cannot be put back either.
        ensure!(
            is(old) || matches!(case.fault, Fault::FromNowOn),
            "{backend} is half changed"
        );
        ensure!(
            ran.code == Some(1),
            "{backend} is not done, but the run ended with {:?}",
            ran.code
        );
        // stderr is written with the same call.
        let is_mute = case.call.name == "write" && matches!(case.fault, Fault::FromNowOn);
        ensure!(
            is_mute || is_named(backend, &ran.stderr),
            "{backend} is not done, and not named"
        );
    }
    ensure!(
        matches!(ran.code, Some(0 | 1)),
        "it ended with {:?}",
        ran.code
    );
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
    stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .any(|line| {
            line.contains(backend)
                || (line.contains(".lmstudio")
                    && !line.contains("_amphibian/")
                    && !line.contains(RUNTIME))
        })
}

/// A run without a fault does all there is to do, and leaves the home exactly so.
fn finishes(env: &Env, args: &str, wanted: &Tree) -> Result<()> {
    let ran = env.run([args]);
    ensure!(ran.code == Some(0), "{ran:#?}");
    match differences(wanted, &snapshot(&env.lmstudio())).as_slice() {
        [] => Ok(()),
        differences => bail!("these differ: {differences:#?}"),
    }
}
