//! Runs a program of the system and never waits for it without end.

use std::io::{self, Read as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(5);

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed to stdout.
    pub stdout: String,
    /// What it printed to stderr, without the line break at its end.
    pub stderr: String,
}

/// Runs `command` without input. Fails where it cannot be started, or has to be killed after `patience`.
pub fn run(command: &mut Command, patience: Duration) -> io::Result<Finished> {
    let deadline = Instant::now() + patience;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(too_slow(patience));
        }
        thread::sleep(PAUSE);
    };
    // Something that the program started may still hold its output open.
    let rest = |output: &mpsc::Receiver<Vec<u8>>| {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(PAUSE);
        let bytes = output.recv_timeout(left).map_err(|_| too_slow(patience))?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Finished {
        pid,
        status,
        stdout: rest(&stdout)?,
        stderr: rest(&stderr)?.trim_end().to_owned(),
    })
}

fn too_slow(patience: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("it took longer than {} seconds", patience.as_secs_f64()),
    )
}

/// Reads a pipe to its end on a thread of its own, so that a full pipe never stops the program.
fn drain(pipe: Option<impl io::Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What cannot be read is as good as not printed.
            let _ = pipe.take(crate::files::MAX_BYTES).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}
