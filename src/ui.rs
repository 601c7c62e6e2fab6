//! stdout and stderr, colour and width: decided once, handed down.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use textwrap::{Options, WordSplitter};

use crate::outcome::Outcome;

/// Bold, for what the eye should find first.
pub const STRONG: Style = Style::new().bold();
/// Good news.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Something to know.
pub const NOTE: Style = AnsiColor::Yellow.on_default().bold();
/// Something that failed.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// What matters less.
pub const FAINT: Style = Style::new().dimmed();

/// Both streams. Data goes to stdout, talk to stderr.
#[derive(Debug)]
pub struct Ui {
    out: ColorChoice,
    err: ColorChoice,
    /// Errors only.
    pub is_quiet: bool,
    /// Every detail.
    pub is_verbose: bool,
}

impl Ui {
    /// Decides on colour for both streams.
    #[must_use]
    pub fn new(color: ColorChoice, is_quiet: bool, is_verbose: bool) -> Self {
        let decide = |auto: ColorChoice| {
            if color == ColorChoice::Auto {
                auto
            } else {
                color
            }
        };
        Self {
            out: decide(AutoStream::choice(&io::stdout())),
            err: decide(AutoStream::choice(&io::stderr())),
            is_quiet,
            is_verbose,
        }
    }

    /// How many columns a table on stdout may have; none where it is no terminal.
    #[must_use]
    pub fn width(&self) -> Option<u16> {
        io::stdout().is_terminal().then(width_of_terminal)
    }

    /// Whether stderr may show a progress bar.
    #[must_use]
    pub fn shows_progress(&self) -> bool {
        !self.is_quiet && io::stderr().is_terminal()
    }

    /// Whether stdout gets colour.
    #[must_use]
    pub fn has_colour(&self) -> bool {
        self.out != ColorChoice::Never
    }

    /// Writes text for people to stdout, its colours taken out where they are not wanted. A reader that has gone
    /// away is no error; a full disk is.
    pub fn print(&self, text: &str) -> io::Result<()> {
        self.write(
            &mut AutoStream::new(io::stdout().lock(), self.out),
            text.as_bytes(),
        )
    }

    /// Writes bytes to stdout as they are.
    pub fn print_raw(&self, bytes: &[u8]) -> io::Result<()> {
        self.write(&mut io::stdout().lock(), bytes)
    }

    #[expect(
        clippy::unused_self,
        reason = "writing goes through the one owner of the streams"
    )]
    fn write(&self, stream: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
        match stream.write_all(bytes).and_then(|()| stream.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// Says something that is good to know.
    pub fn say(&self, text: &str) {
        if !self.is_quiet {
            self.talk(text);
        }
    }

    /// Says a thing of note, one that applies to this run.
    pub fn note(&self, text: &str) {
        if !self.is_quiet {
            self.tagged("note: ", NOTE, text);
        }
    }

    /// Says what went wrong, also where the run is quiet.
    pub fn error(&self, text: &str) {
        self.tagged("error: ", BAD, text);
    }

    fn tagged(&self, tag: &str, style: Style, text: &str) {
        let width = io::stderr().is_terminal().then(width_of_terminal);
        self.talk(&format!(
            "{style}{tag}{style:#}{}",
            behind(tag, text, "  ", width)
        ));
    }

    fn talk(&self, text: &str) {
        let mut stream = AutoStream::new(io::stderr().lock(), self.err);
        // Where stderr itself fails there is nobody left to tell.
        let _ = writeln!(stream, "{text}");
    }
}

/// `text`, made printable, as it goes on behind `tag` in the same line. On a terminal, which has a width, words are kept
/// whole and further lines start with `indent`.
#[must_use]
pub fn behind(tag: &str, text: &str, indent: &str, width: Option<u16>) -> String {
    let text = printable(text);
    let Some(width) = width else { return text };
    let taken = " ".repeat(tag.len());
    // Names of layers have hyphens, and a path that is broken cannot be copied.
    let options = Options::new(width.into())
        .word_splitter(WordSplitter::NoHyphenation)
        .break_words(false);
    let lines = textwrap::wrap(
        &text,
        options.initial_indent(&taken).subsequent_indent(indent),
    );
    lines.join("\n").trim_start().to_owned()
}

fn width_of_terminal() -> u16 {
    terminal_size::terminal_size().map_or(80, |(width, _)| width.0)
}

/// Prints what clap has to say, `--help`, `--version` or what is wrong with the command line, and gives its exit code.
#[must_use]
pub fn print_answer(answer: &clap::Error) -> ExitCode {
    match answer.print() {
        Err(error) if !answer.use_stderr() && error.kind() != io::ErrorKind::BrokenPipe => {
            last_words(&anyhow::Error::new(error).context("cannot write to stdout"))
        }
        _ => u8::try_from(answer.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

/// Says why a run could not even be told about, and gives its exit code.
#[must_use]
pub fn last_words(error: &anyhow::Error) -> ExitCode {
    Ui::new(ColorChoice::Auto, false, false).error(&format!("{error:#}"));
    Outcome::Failed.into()
}

/// `text` with control characters and invisible direction marks escaped: names on disk are not to move the cursor,
/// colour the screen or reorder a line.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .fold(String::with_capacity(text.len()), |mut shown, c| {
            if is_hidden(c) {
                // Writing to a String cannot fail.
                let _ = write!(shown, "{}", c.escape_unicode());
            } else {
                shown.push(c);
            }
            shown
        })
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\u{a}");
        assert_eq!(printable("x\u{202e}y\u{85}"), "x\\u{202e}y\\u{85}");
        assert_eq!(printable("Größe 你好"), "Größe 你好");
    }
}
