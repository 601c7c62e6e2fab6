//! stdout, stderr, colour, width and the exit code: decided once, handed down. Data goes to stdout, talk to stderr.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;

use anstream::adapter::strip_str;
use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use glob::Pattern;
use serde::Serialize;

pub const STRONG: Style = Style::new().bold();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const NOTE: Style = AnsiColor::Yellow.on_default().bold();
pub const BAD: Style = AnsiColor::Red.on_default().bold();

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warning,
    Note,
}

/// What a run amounted to, as its exit code; clap ends with 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// `--check SIZE` found another value.
    OtherValue = 3,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    pub is_quiet: bool,
    pub is_verbose: bool,
}

impl Output {
    /// Writes text to stdout, without its colours if they are not wanted.
    pub fn print(&self, text: &str) -> Result<()> {
        self.print_raw(coloured(text, &io::stdout()).as_bytes())
    }

    /// Writes bytes to stdout. A reader that has gone away is no error; a full disk is.
    pub fn print_raw(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("cannot write to stdout"),
        }
    }

    pub fn print_json(&self, value: &impl Serialize) -> Result<()> {
        self.print_raw((serde_json::to_string_pretty(value)? + "\n").as_bytes())
    }

    pub fn say(&self, text: &str) {
        if !self.is_quiet {
            eprint("", Style::new(), text);
        }
    }

    pub fn note(&self, text: &str) {
        self.message(Level::Note, text);
    }

    pub fn error(&self, text: &str) {
        self.message(Level::Error, text);
    }

    pub fn message(&self, level: Level, text: &str) {
        match level {
            Level::Error => eprint("error: ", BAD, text),
            _ if self.is_quiet => {}
            Level::Warning => eprint("warning: ", NOTE, text),
            Level::Note => eprint("note: ", NOTE, text),
        }
    }
}

static WITH_HOME: OnceLock<String> = OnceLock::new();

/// Makes every command that is advised from now on act on `home`.
pub fn advise_for(home: &Path) {
    let _ = WITH_HOME.set(format!("`lmpatch --home {} ", quoted(home.display())));
}

/// The text as one word of a command for a shell.
pub fn quoted(text: impl Display) -> String {
    format!("'{}'", text.to_string().replace('\'', r"'\''"))
}

/// The flag for that backend alone, to follow a command.
pub fn flag(backend: &str) -> String {
    flags([Pattern::escape(backend)])
}

/// The flags for the backends that these patterns mean, to follow a command.
pub fn flags(patterns: impl IntoIterator<Item = impl Display>) -> String {
    let flag = |pattern| format!(" --backend {}", quoted(pattern));
    patterns.into_iter().map(flag).collect()
}

/// The text with the home that was given in every command of lmpatch's.
pub fn with_home(text: &str) -> String {
    match WITH_HOME.get() {
        Some(command) if !text.contains("`lmpatch --home ") => text.replace("`lmpatch ", command),
        _ => text.to_owned(),
    }
}

fn eprint(tag: &str, style: Style, text: &str) {
    let text = printable(&with_home(text));
    let line = coloured(&format!("{style}{tag}{style:#}{text}\n"), &io::stderr());
    // If stderr itself fails, there is nobody left to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// The text without its colours if `stream` wants none. In one piece, so that nothing gets in between.
fn coloured(text: &str, stream: &impl RawStream) -> String {
    match AutoStream::choice(stream) {
        ColorChoice::Never => strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// `text` with control characters and direction marks escaped: a name on disk must not drive the terminal.
pub fn printable(text: &str) -> String {
    let is_mark = |c| matches!(u32::from(c), 0x200e..=0x200f | 0x2028..=0x202e | 0x2066..=0x2069);
    let shown = |c: char| match c {
        c if c.is_control() || is_mark(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}
