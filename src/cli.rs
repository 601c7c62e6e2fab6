//! The command line, validated; `bench` and `agent` have theirs in their own modules. No environment variable sets a flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use colorchoice_clap::Color;
use glob::Pattern;

use crate::patch::settings::parse_size;
use crate::reload::How;
use crate::{agent, bench};

const GLOBAL: &str = "Global options";

/// What `--help` ends with.
pub const AFTER_HELP: &str = "\
Examples:
  lmpatch                 set 4096, the default
  lmpatch 1024            set another size
  lmpatch --check         show every backend
  lmpatch 4096 --dry-run  show what would change, write nothing
  lmpatch --revert        restore the vendor's files in every backend
  lmpatch 4096 --reload   set 4096, then reload the loaded models

A size that is a backend's own stock value (512 until March 2026,
2048 since) gives it the vendor's files back, byte for byte.

Exit codes:
  0  done, or nothing to do
  1  something failed or was refused, or no backend was found
  2  the command line is wrong
  3  --check SIZE found another value";

/// Set the prefill chunk size of LM Studio's MLX backends, exactly and reversibly
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 90)]
#[command(override_usage = "lmpatch [OPTIONS] [SIZE]\n       lmpatch [OPTIONS] <COMMAND>")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Tokens per prefill chunk, 64 to 131072; 8k is 8192 [default: 4096]
    #[arg(value_parser = parse_first_word)]
    pub size: Option<u64>,

    /// Show every backend and change nothing; with SIZE, exit 3 if one has another value
    #[arg(long)]
    pub check: bool,

    /// Restore the vendor's original files in every backend
    #[arg(long, conflicts_with_all = ["size", "check"])]
    pub revert: bool,

    /// Show what would change as a unified diff; write nothing
    #[arg(long, conflicts_with = "check")]
    pub dry_run: bool,

    /// Then reload the loaded MLX models, or restart the app, so that the values take effect now
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "models")]
    #[arg(conflicts_with_all = ["check", "dry_run"])]
    pub reload: Option<How>,

    /// Only backends whose name matches, e.g. 'app-mlx-generate-mac14-arm64@*'; repeatable
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    pub backend: Vec<Pattern>,

    /// An LM Studio home other than the one LM Studio itself would use
    #[arg(long, value_name = "DIR", global = true, help_heading = GLOBAL)]
    pub home: Option<PathBuf>,

    /// Print the report as JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,

    /// Print errors only
    #[arg(short, long, conflicts_with = "verbose", global = true, help_heading = GLOBAL)]
    pub quiet: bool,

    /// Show every number that is edited: file, line, owner, value
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub verbose: bool,

    #[command(flatten, next_help_heading = GLOBAL)]
    pub color: Color,
}

/// Everything besides the patching itself.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure prefill, compare sizes, and say which one to keep
    #[command(after_help = bench::args::HELP)]
    Bench(Box<bench::args::BenchArgs>),
    /// Keep the size after updates of LM Studio, which bring new backends
    #[command(subcommand)]
    Agent(agent::Command),
    /// Print a shell's completion script
    Completions {
        /// The shell that it is for
        shell: Shell,
    },
    /// Print the manual page; `lmpatch man >lmpatch.1 && man ./lmpatch.1` shows it
    Man,
}

impl Cli {
    /// Parses the command line. Fails with what clap prints, which includes `--help`.
    ///
    /// Only global flags may come before a subcommand.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let arguments: Vec<_> = arguments.into_iter().collect();
        let matches = command.try_get_matches_from_mut(&arguments);
        let matches = matches.map_err(|error| clearer(error, &arguments))?;
        let is_misplaced = |arg: &&Arg| {
            let source = matches.value_source(arg.get_id().as_str());
            !arg.is_global_set() && source == Some(ValueSource::CommandLine)
        };
        let misplaced = command.get_arguments().find(is_misplaced);
        if let (Some(subcommand), Some(arg)) = (matches.subcommand_name(), misplaced) {
            let help = format!("`lmpatch {subcommand} --help` shows what it takes");
            let why = format!("'{arg}' cannot come before '{subcommand}'; {help}");
            return Err(command.error(ErrorKind::ArgumentConflict, why));
        }
        Self::from_arg_matches(&matches)
    }

    /// Whether to print a report for people on stdout.
    pub fn shows_text(&self) -> bool {
        !self.json && !self.quiet
    }
}

/// Reports a bad first word before anything else, and never suggests a flag as a size.
fn clearer(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    error.remove(ContextKind::Suggested);
    match Cli::command().try_get_matches_from(&arguments[..2]) {
        Err(first) if first.kind() == ErrorKind::ValueValidation => first,
        _ => error,
    }
}

/// Parses the first word of a command line. If it is not a size, says what was probably meant.
fn parse_first_word(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| match text {
        "check" | "revert" | "dry-run" | "reload" => format!("did you mean --{text}?"),
        "status" | "list" | "show" => "did you mean --check?".to_owned(),
        "undo" | "restore" | "reset" => "did you mean --revert?".to_owned(),
        "app" | "models" => format!("did you mean --reload={text}?"),
        _ if text.starts_with(|first: char| first.is_ascii_alphabetic()) => {
            "neither a size such as 4096 or 4k, nor a command".to_owned()
        }
        _ => error,
    })
}
