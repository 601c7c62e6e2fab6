//! Runs lmpatch under strace: which system calls touch a home, and what happens when one of them fails.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use super::child::{eventually, signal};
use super::{Env, LMPATCH, Ran, skipped, text};

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
    let mut strace = Command::new("strace");
    let ran = strace.args(["-o", "/dev/null", "true"]).status();
    let works = ran.is_ok_and(|status| status.success());
    if !works {
        skipped("strace is not installed or may not trace");
    }
    works
}

/// Runs lmpatch with `args` and lists the calls that touched the LM Studio home of `env`, in their order.
///
/// What comes before `main` (the loader and its libraries) touches no home, so it is not among them.
pub fn record(env: &Env, args: &[&str]) -> Vec<Call> {
    let output = strace(env, DISK_CALLS, None, args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    calls(&text(log(env)), &env.lmstudio().to_string_lossy())
}

/// Runs lmpatch with `args` while strace tampers with calls of one name, as `-e inject=` describes it.
/// Returns what it printed and whether a call was tampered with.
pub fn inject(env: &Env, call: &str, tampering: &str, args: &[&str]) -> (Output, bool) {
    let mut strace = strace(env, call, Some(tampering), args);
    let (output, log) = (strace.output().unwrap(), text(log(env)));
    // That no thread can be had is part of every traced run.
    let is_injected = |line: &str| line.contains("(INJECTED)") && !line.contains(" clone");
    let was_hit = log.lines().any(is_injected) || log.contains("killed by SIGKILL");
    (output, was_hit)
}

/// A run of lmpatch that stands still. Dropped, it ends: strace takes what it runs with it.
pub struct Paused {
    strace: Child,
    lmpatch: String,
}

/// Starts lmpatch with `args` and stops it in `call`, which is carried out before.
pub fn pause(env: &Env, call: &Call, args: &[&str]) -> Paused {
    let stop = format!("signal=SIGSTOP:when={}", call.occurrence);
    let mut strace = strace(env, &call.name, Some(&stop), args);
    let strace = strace.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (strace, lmpatch) = (strace.spawn().unwrap(), String::new());
    let mut paused = Paused { strace, lmpatch };
    paused.lmpatch = eventually(&format!("lmpatch stops in {call:?}"), || {
        let log = fs::read_to_string(log(env)).unwrap_or_default();
        let stopped = |line: &str| Some(line.strip_suffix(" --- stopped by SIGSTOP ---")?.into());
        log.lines().find_map(stopped)
    });
    paused
}

impl Paused {
    /// Lets it go on to its end.
    pub fn resume(mut self) -> Ran {
        signal(self.lmpatch.trim(), "CONT");
        // Both fit into the buffers of their pipes.
        let stdout = io::read_to_string(self.strace.stdout.take().unwrap()).unwrap();
        let stderr = io::read_to_string(self.strace.stderr.take().unwrap()).unwrap();
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

fn log(env: &Env) -> PathBuf {
    env.user().join("strace.log")
}

/// lmpatch with `args` under a strace that logs `calls` and may tamper with them.
fn strace(env: &Env, calls: &str, tampering: Option<&str>, args: &[&str]) -> Command {
    let mut command = Command::new("strace");
    env.isolate(&mut command)
        // A thread that cannot be had leaves its share to the first: strace counts the calls of each thread by itself.
        .args(["-e", "inject=?clone3,?clone:error=EAGAIN"])
        .args(["-e", &format!("trace={calls},?clone3,?clone")])
        .args(["-f", "-y", "-s", "0", "-o"])
        .arg(log(env));
    if let Some(tampering) = tampering {
        command.args(["-e", &format!("inject={calls}:{tampering}")]);
        if !tampering.contains("signal=") {
            // Stops lmpatch only at the calls in question, which is several times faster; a signal would get lost with it.
            command.arg("--seccomp-bpf");
        }
    }
    command.arg(LMPATCH).args(args);
    command
}

/// Reads lines like `4711 fsync(3</home/…>) = 0`. Names are counted over all lines, as strace's `when=` counts them.
fn calls(log: &str, home: &str) -> Vec<Call> {
    let mut counts = BTreeMap::new();
    let call = |line: &str| {
        let (_, call) = line.split_once(' ')?;
        let name = call.trim_start().split_once('(')?.0.to_owned();
        let occurrence = counts.entry(name.clone()).or_insert(0);
        *occurrence += 1;
        line.contains(home).then(|| Call {
            name,
            occurrence: *occurrence,
            text: line.to_owned(),
        })
    };
    log.lines().filter_map(call).collect()
}
