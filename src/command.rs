//! Runs another program, never waiting for it forever.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
/// The longest error that is shown, in characters.
const MAX_ERROR: usize = 300;

/// Runs `command` without input. Fails if it cannot be started, or has to be killed after `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> io::Result<Output> {
    // Files, because a pipe does not end before everything that the program leaves running, like a server.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    // A process group of its own: Ctrl-C is for lmpatch and must not interrupt what it has started.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .process_group(0)
        .spawn()?;
    let status = wait(&mut child, timeout)?.ok_or_else(|| {
        let _ = child.kill();
        let why = format!("it took longer than {} seconds", timeout.as_secs_f64());
        io::Error::new(ErrorKind::TimedOut, why)
    })?;
    Ok(Output {
        status,
        stdout: printed(&mut stdout)?,
        stderr: printed(&mut stderr)?,
    })
}

fn printed(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until `child` ends, but no longer than `limit`; `None` if it still runs then.
pub fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        // Waiting for SIGCHLD fails where whoever started lmpatch blocks or ignores it.
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// Describes a failure in one line, with what the program said; `name` is what was run.
pub fn failure(name: &str, ended: &Output) -> String {
    let said = match ended.stderr.trim_ascii() {
        [] => &ended.stdout[..],
        errors => errors,
    };
    let said = String::from_utf8_lossy(said);
    let words: Vec<_> = said.split_whitespace().collect();
    let said: String = words.join(" ").chars().take(MAX_ERROR).collect();
    let said = format!("{name} failed ({}): {said}", ended.status);
    said.trim_end_matches(": ").to_owned()
}

/// What a program printed to stdout. If the program fails, the error is one line.
pub fn output(command: &mut Command, timeout: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let name = name.rsplit('/').next().unwrap_or(&name);
    let ended = run(command, timeout).with_context(|| format!("{name} failed"))?;
    ensure!(ended.status.success(), failure(name, &ended));
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Tries until it succeeds, at least once and no longer than `limit`.
pub fn retry<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let result = attempt();
        if result.is_ok() || Instant::now() >= deadline {
            return result;
        }
        thread::sleep(BETWEEN_ATTEMPTS.min(limit));
    }
}

/// A program that is talked to line by line. It is killed when this is dropped.
pub struct Dialogue {
    name: String,
    child: Child,
    stream: BufReader<UnixStream>,
    stderr: File,
}

impl Dialogue {
    /// Starts `command`, which is given up if it neither reads nor answers for `timeout`.
    pub fn start(command: &mut Command, timeout: Duration) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let stderr = tempfile::tempfile()?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(timeout))?;
        ours.set_write_timeout(Some(timeout))?;
        command
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs))
            .stderr(stderr.try_clone()?)
            .process_group(0);
        let child = command.spawn();
        // Closes this side's handles of the child's end, so that the output ends when the child does.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self {
            child: child.with_context(|| format!("cannot run {name}"))?,
            name,
            stream: BufReader::new(ours),
            stderr,
        })
    }

    /// Sends a line. If nobody listens any more, the end of the output says so.
    pub fn say(&mut self, line: impl Display) {
        let _ = writeln!(self.stream.get_ref(), "{line}");
    }

    /// The next line of its output. Fails with the last line of its errors if it has ended.
    pub fn line(&mut self) -> Result<String> {
        let (name, mut line) = (&self.name, Vec::new());
        match self.stream.read_until(b'\n', &mut line) {
            Ok(1..) => return Ok(String::from_utf8_lossy(&line).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let timeout = self.stream.get_ref().read_timeout()?.unwrap_or_default();
                bail!("{name} said nothing for {} seconds", timeout.as_secs());
            }
            _ => {}
        }
        let ended = wait(&mut self.child, Duration::from_secs(1))?;
        let status = ended.with_context(|| format!("{name} closed its output"))?;
        let said = printed(&mut self.stderr)?;
        let said = String::from_utf8_lossy(&said);
        let last = said.trim_end().lines().last().unwrap_or("it said nothing");
        let last: String = last.trim().chars().take(MAX_ERROR).collect();
        bail!("{name} ended ({status}): {last}")
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
