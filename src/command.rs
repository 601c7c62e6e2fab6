//! Runs another program, never waiting for it forever.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::NamedTempFile;

/// Runs `command` without input. Fails if it cannot be started, or has to be killed after `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> Result<Output> {
    // Files, because a pipe does not end before everything that the program leaves running, like a server.
    let (stdout, stderr) = (NamedTempFile::new()?, NamedTempFile::new()?);
    // A process group of its own: Ctrl-C is for lmpatch and must not interrupt what it has started.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.reopen()?)
        .stderr(stderr.reopen()?)
        .process_group(0)
        .spawn()?;
    let too_long = || format!("it took longer than {} seconds", timeout.as_secs_f64());
    let look = || child.try_wait().transpose().with_context(too_long);
    let ended = retry(timeout, look);
    if ended.is_err() {
        let _ = child.kill();
    }
    Ok(Output {
        status: ended??,
        stdout: fs::read(stdout)?,
        stderr: fs::read(stderr)?,
    })
}

/// Describes a failure of `name` in one line, with the last 300 characters of what it said.
pub fn failure(name: &str, status: ExitStatus, said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let start = said.char_indices().nth_back(300).map_or(0, |(at, _)| at);
    let failure = format!("{name} failed ({status}): {}", &said[start..]);
    failure.trim_end_matches(": ").to_owned()
}

/// What a program printed to stdout. If the program fails, the error is one line.
pub fn output(command: &mut Command, timeout: Duration) -> Result<String> {
    let name = command.get_program().display().to_string();
    let ended = run(command, timeout).with_context(|| format!("{name} failed"))?;
    let said = [&ended.stdout[..], &ended.stderr].concat();
    ensure!(ended.status.success(), failure(&name, ended.status, &said));
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
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program that is talked to line by line. It is killed when this is dropped.
pub struct Dialogue {
    name: String,
    child: Child,
    stream: BufReader<UnixStream>,
    stderr: NamedTempFile,
}

impl Dialogue {
    /// Starts `command`, which is given up if it neither reads nor answers for `timeout`.
    pub fn start(command: &mut Command, timeout: Duration) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let stderr = NamedTempFile::new()?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(timeout))?;
        ours.set_write_timeout(Some(timeout))?;
        command
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs))
            .stderr(stderr.reopen()?)
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

    /// The next line of its output. If there is none, the program is ended, and the error says what it said.
    pub fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(1..) => return Ok(String::from_utf8_lossy(&line).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("{} said nothing for the whole --timeout", self.name);
            }
            _ => {}
        }
        let _ = self.child.kill();
        let status = self.child.wait()?;
        bail!(failure(&self.name, status, &fs::read(&self.stderr)?))
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
