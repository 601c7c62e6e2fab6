//! stdout, stderr, colour, width and the exit code: decided once, handed down. Data goes to stdout, talk to stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use glob::Pattern;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use textwrap::{Options, WordSplitter};

pub const STRONG: Style = Style::new().bold();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const NOTE: Style = AnsiColor::Yellow.on_default().bold();
pub const BAD: Style = AnsiColor::Red.on_default().bold();
pub const FAINT: Style = Style::new().dimmed();

/// How serious a message is: the run fails, something is wrong, or it is just good to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warning,
    Note,
}

/// What a run amounted to, as its exit code. A wrong command line is 2 and is dealt with by clap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Something failed, or nothing was found.
    Failed = 1,
    /// `--check SIZE` found another value.
    OtherValue = 3,
}

/// How much is printed. Whether there is colour is decided once for the whole program.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub is_quiet: bool,
    pub is_verbose: bool,
}

impl Output {
    /// How many columns a table on stdout may have; `None` if stdout is not a terminal.
    pub fn width(&self) -> Option<u16> {
        io::stdout().is_terminal().then(terminal_width)
    }

    pub fn has_colour(&self) -> bool {
        AutoStream::choice(&io::stdout()) != ColorChoice::Never
    }

    /// Writes text to stdout, without its colours if they are not wanted. A reader that has gone away is no
    /// error; a full disk is.
    pub fn print(&self, text: &str) -> Result<()> {
        self.print_raw(&coloured(text, &io::stdout()))
    }

    /// Writes bytes to stdout. As [`Output::print`] otherwise.
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

    /// A progress bar with a message; the library shows it on a terminal only.
    pub fn progress_bar(&self) -> ProgressBar {
        if self.is_quiet {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}");
        ProgressBar::no_length().with_style(style.expect("it is well-formed"))
    }

    /// Says something that is good to know.
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

    /// Says something of that level; a quiet run says only errors.
    pub fn message(&self, level: Level, text: &str) {
        match level {
            Level::Error => eprint("error: ", BAD, text),
            _ if self.is_quiet => {}
            Level::Warning => eprint("warning: ", NOTE, text),
            Level::Note => eprint("note: ", NOTE, text),
        }
    }
}

/// What every advised command begins with, if a home was given: a backtick, and `lmpatch --home '…'`.
static COMMAND: OnceLock<String> = OnceLock::new();

/// Makes every command that is advised from now on act on `home`.
pub fn advise_for(home: &Path) {
    let home = quoted(home.display());
    let _ = COMMAND.set(format!("`lmpatch --home {home} "));
}

/// The text as one word of a command for a shell.
pub fn quoted(text: impl Display) -> String {
    let text = text.to_string().replace('\'', r"'\''");
    format!("'{text}'")
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
    match COMMAND.get() {
        Some(home) if !text.contains("`lmpatch --home ") => text.replace("`lmpatch ", home),
        _ => text.to_owned(),
    }
}

/// Writes a printable line to stderr. On a terminal, words are kept whole and further lines are indented.
fn eprint(tag: &str, style: Style, text: &str) {
    let mut text = printable(&with_home(text));
    if io::stderr().is_terminal() {
        let taken = " ".repeat(tag.len());
        // Names of backends have hyphens, and a path that is broken cannot be copied.
        let options = Options::new(terminal_width().into())
            .break_words(false)
            .word_splitter(WordSplitter::NoHyphenation)
            .initial_indent(&taken)
            .subsequent_indent("  ");
        // A command that is broken cannot be copied either. No text has this character in it.
        let mut parts: Vec<_> = text.split('`').map(str::to_owned).collect();
        for command in parts.iter_mut().skip(1).step_by(2) {
            *command = command.replace(' ', "\u{e000}");
        }
        let filled = textwrap::fill(&parts.join("`"), options);
        text = filled.trim_start().replace('\u{e000}', " ");
    }
    let line = coloured(&format!("{style}{tag}{style:#}{text}\n"), &io::stderr());
    // If stderr itself fails, there is nobody left to tell.
    let _ = io::stderr().write_all(&line);
}

/// The text as `stream` gets it, without its colours if they are not wanted. In one piece, so that nothing gets in between.
fn coloured(text: &str, stream: &impl RawStream) -> Vec<u8> {
    let mut coloured = AutoStream::new(Vec::new(), AutoStream::choice(stream));
    coloured
        .write_all(text.as_bytes())
        .expect("a Vec never fails");
    coloured.into_inner()
}

fn terminal_width() -> u16 {
    terminal_size::terminal_size().map_or(80, |(width, _)| width.0)
}

/// Prints the error that a run ended with, and returns the exit code.
pub fn print_fatal(error: &anyhow::Error) -> ExitCode {
    eprint("error: ", BAD, &format!("{error:#}"));
    ExitCode::FAILURE
}

/// `text` with control characters and invisible direction marks escaped: a name on disk must not move the cursor,
/// colour the screen or reorder a line.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        // Not U+200D, which joins emoji.
        '\u{200b}'..='\u{200c}'
        | '\u{200e}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => c.escape_unicode().to_string(),
        c if c.is_control() => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}
