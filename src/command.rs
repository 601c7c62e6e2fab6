//! Runs another program, never waiting for it forever.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

const PAUSE: Duration = Duration::from_millis(5);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);
/// The longest error that is shown, in characters.
const MAX_ERROR: usize = 300;

/// Runs `command` without input. Fails if it cannot be started, or has to be killed after `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> io::Result<Output> {
    let deadline = Instant::now() + timeout;
    // A process group of its own: Ctrl-C is for lmpatch and must not interrupt what it has started.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let stdout = drain(child.stdout.take().expect("it is piped"));
    let stderr = drain(child.stderr.take().expect("it is piped"));
    let why = format!("it took longer than {} seconds", timeout.as_secs_f64());
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, why.clone());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(too_slow());
        }
        thread::sleep(PAUSE);
    };
    // Something that the program started may still hold its output open.
    let rest = |output: &mpsc::Receiver<Vec<u8>>| {
        let left = deadline.saturating_duration_since(Instant::now());
        let bytes = output.recv_timeout(left.max(PAUSE));
        bytes.map_err(|_| too_slow())
    };
    Ok(Output {
        status,
        stdout: rest(&stdout)?,
        stderr: rest(&stderr)?,
    })
}

/// Describes a failure in one line, with what the program said; `name` is what was run.
pub fn failure(name: &str, ended: &Output) -> String {
    let is_silent = ended.stderr.trim_ascii().is_empty();
    let said = [&ended.stderr, &ended.stdout][usize::from(is_silent)];
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

/// Reads a pipe to its end on a thread of its own, so that a full pipe never stops the program.
fn drain(pipe: impl io::Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // Output that cannot be read counts as not printed.
        let _ = pipe.take(crate::files::MAX_BYTES).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}
