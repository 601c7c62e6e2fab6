//! Runs lmpatch under strace: which system calls touch a home, and what happens when one of them fails.
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{Env, LMPATCH, Ran, skipped};

/// Every call by which a program reads or changes a disk; `?`, since not every architecture has all of them.
const DISK_CALLS: &str = "?open,openat,?creat,read,write,?pread64,?pwrite64,fsync,fdatasync,ftruncate,?rename,?renameat,\
    renameat2,?link,linkat,?unlink,unlinkat,?chmod,fchmod,fchmodat,?chown,fchown,fchownat,?mkdir,mkdirat,flock,?stat,\
    fstat,?lstat,?newfstatat,statx,getdents64,?readlink,readlinkat";

/// One system call of a recorded run: the `occurrence`th (from 1) of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub occurrence: usize,
    /// The whole call, as strace writes it.
    pub text: String,
}

/// Whether strace is installed and may trace here; where not, says so.
pub fn is_there() -> bool {
    let works = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        skipped("strace is not installed or may not trace");
    }
    works
}

/// Runs lmpatch with `args` and lists the calls that touched the LM Studio home of `env`, in their order.
///
/// What comes before `main` (the loader and its libraries) touches no home, so it is not among them.
pub fn record(env: &Env, args: &[&str]) -> Vec<Call> {
    let log = log(env);
    let output = strace(env, &log, DISK_CALLS)
        .arg(LMPATCH)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    calls(
        &fs::read_to_string(log).unwrap(),
        &env.lmstudio().to_string_lossy(),
    )
}

/// Runs lmpatch with `args` while strace tampers with calls of one name, as `-e inject=` describes it.
/// Returns what it printed and whether a call was tampered with.
pub fn inject(env: &Env, call: &str, tampering: &str, args: &[&str]) -> (Output, bool) {
    let log = log(env);
    let output = tampered(env, call, tampering)
        .arg(LMPATCH)
        .args(args)
        .output()
        .unwrap();
    let log = fs::read_to_string(log).unwrap();
    // That no thread can be had is part of every traced run.
    let is_injected = |line: &str| line.contains("(INJECTED)") && !line.contains(" clone");
    (
        output,
        log.lines().any(is_injected) || log.contains("killed by SIGKILL"),
    )
}

/// A run of lmpatch that stands still. Dropped, it ends: strace takes what it runs with it.
pub struct Paused {
    strace: Child,
    lmpatch: String,
}

/// Starts lmpatch with `args` and stops it in `call`, which is carried out before.
pub fn pause(env: &Env, call: &Call, args: &[&str]) -> Paused {
    let tampering = format!("signal=SIGSTOP:when={}", call.occurrence);
    let mut command = tampered(env, &call.name, &tampering);
    let strace = command
        .arg(LMPATCH)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut paused = Paused {
        strace,
        lmpatch: String::new(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while paused.lmpatch.is_empty() {
        assert!(
            Instant::now() < deadline,
            "lmpatch did not stop in {call:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
        let log = fs::read_to_string(log(env)).unwrap_or_default();
        let stop = log
            .lines()
            .find_map(|line| line.strip_suffix(" --- stopped by SIGSTOP ---"));
        stop.unwrap_or_default()
            .trim()
            .clone_into(&mut paused.lmpatch);
    }
    paused
}

impl Paused {
    /// Lets it go on to its end.
    pub fn resume(mut self) -> Ran {
        assert!(
            Command::new("kill")
                .args(["-CONT", &self.lmpatch])
                .status()
                .unwrap()
                .success()
        );
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // Both fit into the buffers of their pipes.
        self.strace
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        self.strace
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        Ran {
            code: self.strace.wait().unwrap().code(),
            stdout,
            stderr,
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// A strace that tampers with calls of one name; the program and its arguments are still to be added.
fn tampered(env: &Env, call: &str, tampering: &str) -> Command {
    let mut command = strace(env, &log(env), call);
    if !tampering.contains("signal=") {
        // Stops lmpatch only at the calls in question, which is several times faster; a signal would get lost with it.
        command.arg("--seccomp-bpf");
    }
    command.arg("-e").arg(format!("inject={call}:{tampering}"));
    command
}

fn log(env: &Env) -> PathBuf {
    env.user().join("strace.log")
}

fn strace(env: &Env, log: &Path, calls: &str) -> Command {
    let mut command = Command::new("strace");
    env.isolate(&mut command)
        // A thread that cannot be had leaves its share to the first: strace counts the calls of each thread by itself.
        .args(["-e", "inject=?clone3,?clone:error=EAGAIN"])
        .args(["-f", "-y", "-s", "0", "-o"])
        .arg(log)
        .arg("-e")
        .arg(format!("trace={calls},?clone3,?clone"));
    command
}

/// Reads lines like `4711 fsync(3</home/…>) = 0`. Names are counted over all lines, as strace's `when=` counts them.
fn calls(log: &str, home: &str) -> Vec<Call> {
    let mut counts = BTreeMap::new();
    let mut found = Vec::new();
    for line in log.lines() {
        let Some((name, _)) = line
            .split_once(' ')
            .and_then(|(_, call)| call.trim_start().split_once('('))
        else {
            continue;
        };
        let count = counts.entry(name).or_insert(0);
        *count += 1;
        if line.contains(home) {
            found.push(Call {
                name: name.to_owned(),
                occurrence: *count,
                text: line.to_owned(),
            });
        }
    }
    found
}
