//! The command line: every flag, validated; what was typed, and nothing that the environment adds.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgMatches, Args, ColorChoice, CommandFactory as _, FromArgMatches as _, Parser,
    Subcommand, ValueEnum,
};
use glob::Pattern;

use crate::bench::view::Output;
use crate::lmstudio::server::parse_url;
use crate::patch::plan::Goal;
use crate::patch::settings::{DEFAULT_SIZE, SIZES};
use crate::reload::How;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Examples:
  lmpatch                 set 4096, the default
  lmpatch 8192            set another size
  lmpatch --check         show every backend
  lmpatch 4096 --dry-run  show what would change, write nothing
  lmpatch --revert        give every backend the vendor's own files back
  lmpatch 8192 --reload   the same for models that are loaded now

A size that is a backend's own stock value (512 until March 2026, 2048 since)
gives that backend the vendor's files back, byte for byte.

Exit codes:
  0  done, or already so
  1  something failed, or no backend was found
  2  the command line is wrong
  3  --check SIZE found another value";

/// Set the prefill chunk size of LM Studio's MLX backends, exactly and reversibly
#[derive(Debug, Parser)]
#[command(version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 90)]
#[command(override_usage = "lmpatch [OPTIONS] [SIZE]\n       lmpatch [OPTIONS] <COMMAND>")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
pub struct Cli {
    /// What else than the patching itself is asked for.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Tokens per prefill chunk, 64 to 131072; 8k is 8192 [default: 4096]
    #[arg(value_parser = parse_first_word)]
    pub size: Option<u64>,

    /// Show every backend and change nothing; with SIZE, exit 3 unless every backend has it
    #[arg(long)]
    pub check: bool,

    /// Give every backend the vendor's own files back, whatever its stock value is
    #[arg(long, conflicts_with_all = ["size", "check"])]
    pub revert: bool,

    /// Show what would change as a unified diff; write nothing
    #[arg(long, conflicts_with = "check")]
    pub dry_run: bool,

    /// Then unload and load every loaded MLX model, so that the values take effect now
    #[arg(long, conflicts_with_all = ["check", "dry_run"])]
    pub reload: bool,

    /// Then quit and open LM Studio, and load the MLX models that were loaded
    #[arg(long, conflicts_with_all = ["check", "dry_run", "reload"])]
    pub restart: bool,

    /// How long --reload waits for a busy model, and --restart for the app
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "120")]
    pub wait: Duration,

    /// LM Studio's server [default: this machine, at the port in LM Studio's settings]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub url: Option<String>,

    /// An LM Studio home other than the one LM Studio itself would use
    #[arg(long, value_name = "DIR", global = true)]
    pub home: Option<PathBuf>,

    /// Only layers whose name matches, e.g. 'app-mlx-generate-mac14-arm64@*'; repeatable
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    pub backend: Vec<Pattern>,

    /// Print the report as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Print errors only
    #[arg(short, long, conflicts_with = "verbose", global = true)]
    pub quiet: bool,

    /// Show every site: file, line, owner, value
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// When to use colour
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    pub color: ColorChoice,
}

/// What else than the patching itself can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure prefill, compare sizes, and say which one to keep
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
    /// Keep the size after updates of LM Studio, which bring new backends
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Tell on one page whether it worked and why it may be slow; change nothing
    Doctor,
    /// Print a shell's completion script
    Completions {
        /// The shell that it is for
        shell: Shell,
    },
    /// Print the manual page; `lmpatch man | man -l -` shows it
    Man,
}

/// The shells that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Bash, with or without the bash-completion package.
    Bash,
    /// Zsh, the Mac's own.
    Zsh,
    /// Fish.
    Fish,
}

/// What can be asked of the agent.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Install the launchd agent that sets backends that are new, or update it
    Install {
        /// Tokens per prefill chunk
        #[arg(value_parser = parse_size, default_value_t = DEFAULT_SIZE)]
        size: u64,
    },
    /// Show whether it works, and what it did
    Status,
    /// Remove it and everything it has written for itself
    Uninstall,
    /// What launchd runs
    #[command(hide = true)]
    Run(KeepArgs),
}

/// How one run of the agent goes.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// Tokens per prefill chunk
    #[arg(value_parser = parse_size)]
    pub size: u64,

    /// For how long no file of a layer may change before it is taken for complete
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "5")]
    pub settle: Duration,

    /// After how long a layer that is not complete is left alone
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "900")]
    pub patience: Duration,

    /// The time between two looks
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "1")]
    pub poll: Duration,
}

const BENCH_HELP: &str = "\
Examples:
  lmpatch bench --model KEY                             the chunk as it is now
  lmpatch bench --model KEY --sizes 512,2048,4096,8192  set, reload, measure each;
                                                        then put back what was there
  lmpatch bench --direct --model PATH --sizes 512,4096  without LM Studio

The size to keep is the smallest whose median speed is within the noise of the
best. The noise is the largest of 2 %, the drift over the sweep, and the sum of
both spreads (1.4826 x the median absolute deviation).

Exit codes:
  0  every size was measured
  1  something failed, or a size did not take effect
  2  the command line is wrong";

/// What is measured, and how.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model's key in LM Studio; with --direct its directory
    #[arg(long, value_name = "KEY|PATH")]
    pub model: String,

    /// Chunk sizes to compare, e.g. 512,1024,2048,4096,8192; needed with --direct
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size)]
    pub sizes: Vec<u64>,

    /// Set sizes only in layers whose name matches, e.g. 'app-mlx-generate-mac14-arm64@*'; repeatable
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    pub backend: Vec<Pattern>,

    /// Use the backend's own Python and mlx-lm; LM Studio is not needed
    #[arg(long, requires = "sizes")]
    pub direct: bool,

    /// The Python of --direct instead of the layer's own
    #[arg(long, value_name = "PATH", requires = "direct")]
    pub python: Option<PathBuf>,

    /// Tokens of every prompt [default: 40000, or all of --prompt-file]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub prompt_tokens: Option<u64>,

    /// A text to make the prompts of, instead of a generated one
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,

    /// Runs of each size that count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Where LM Studio's server is [default: this machine, at the port of its settings, usually 1234]
    #[arg(long, value_name = "http://HOST:PORT", value_parser = parse_url, conflicts_with = "direct")]
    pub url: Option<String>,

    /// The API token of the server [default: `$LM_API_TOKEN`]
    #[arg(long)]
    pub token: Option<String>,

    /// How a size takes effect: reload the model, restart the app, or a command of your own
    #[arg(long, value_name = "model|app|CMD", default_value = "model", value_parser = parse_reload, requires = "sizes")]
    pub reload: Reload,

    /// How long the server may be silent, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,

    /// Set the size to keep at the end, instead of what was there before
    #[arg(long, requires = "sizes")]
    pub apply_best: bool,

    /// Write to a file too, by its ending: .json .csv .md .svg; repeatable
    #[arg(long, value_name = "FILE", value_parser = Output::parse)]
    pub output: Vec<Output>,
}

/// How an edit takes effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// Unload and load the model.
    Model,
    /// Quit and open LM Studio.
    App,
    /// A command for the shell.
    Command(String),
}

#[expect(clippy::unnecessary_wraps, reason = "the shape that clap asks for")]
fn parse_reload(text: &str) -> Result<Reload, String> {
    Ok(match text {
        "model" => Reload::Model,
        "app" => Reload::App,
        command => Reload::Command(command.to_owned()),
    })
}

/// What was asked of the patcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Show; and tell whether every backend has this chunk, in tokens.
    Check(Option<u64>),
    /// Bring every backend to a goal.
    Change(Goal),
    /// Show what that would change.
    Rehearse(Goal),
}

impl Cli {
    /// What was typed. Fails, with what clap prints, on a wrong command line and on a call for help.
    ///
    /// Flags that every subcommand has too may stand in front of it, the patching's own may not.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        match misplaced(&command, &matches) {
            Some((kind, what)) => Err(command.error(kind, what)),
            None => Self::from_arg_matches(&matches),
        }
    }

    /// When to use colour, in the terms of the streams.
    #[must_use]
    pub fn stream_colour(&self) -> anstream::ColorChoice {
        match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        }
    }

    /// What is to make new values take effect, if anything is.
    #[must_use]
    pub fn reload(&self) -> Option<How> {
        match (self.reload, self.restart) {
            (true, _) => Some(How::Models),
            (_, true) => Some(How::App),
            _ => None,
        }
    }

    /// What was asked of the patcher, where no command was given.
    #[must_use]
    pub fn request(&self) -> Request {
        if self.check {
            return Request::Check(self.size);
        }
        let goal = if self.revert {
            Goal::Vendor
        } else {
            Goal::Size(self.size.unwrap_or(DEFAULT_SIZE))
        };
        if self.dry_run {
            Request::Rehearse(goal)
        } else {
            Request::Change(goal)
        }
    }
}

/// A flag that does nothing where it stands, which clap cannot tell, and what is wrong with it.
fn misplaced(command: &clap::Command, matches: &ArgMatches) -> Option<(ErrorKind, String)> {
    let is_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let Some(subcommand) = matches.subcommand_name() else {
        let is_idle = is_typed("wait") && !is_typed("reload") && !is_typed("restart");
        let what = "the argument '--wait <SECONDS>' is for --reload and --restart";
        return is_idle.then(|| (ErrorKind::MissingRequiredArgument, what.to_owned()));
    };
    let is_own =
        |argument: &&Arg| !argument.is_global_set() && is_typed(argument.get_id().as_str());
    let own = command.get_arguments().find(is_own)?;
    let what = format!("the argument '{own}' cannot be used with the subcommand '{subcommand}'");
    Some((ErrorKind::ArgumentConflict, what))
}

/// The first word of a command line, where what is no size was often meant to be something else.
fn parse_first_word(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| match text {
        "check" | "revert" | "dry-run" | "reload" | "restart" => format!("did you mean --{text}?"),
        _ if text.starts_with(|first: char| first.is_ascii_alphabetic()) => {
            "neither a size such as 4096 or 4k, nor a command (see --help)".to_owned()
        }
        _ => error,
    })
}

/// A chunk size in tokens: plain decimal digits, or with a `k` for 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = text
        .strip_suffix(['k', 'K'])
        .map_or((text, 1), |digits| (digits, 1024));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("give plain digits such as 4096, or 4k".to_owned());
    }
    let size = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    size.filter(|size| SIZES.contains(size)).ok_or_else(|| {
        format!(
            "the size must be from {} to {} tokens",
            SIZES.start(),
            SIZES.end()
        )
    })
}

/// A time in seconds, also parts of one; no longer than a day.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .map_err(|_| "give a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    (duration <= Duration::from_secs(86_400))
        .then_some(duration)
        .ok_or_else(|| "at most a day, 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_plain_digits_or_k() {
        for (text, size) in [
            ("64", 64),
            ("4096", 4096),
            ("4k", 4096),
            ("8K", 8192),
            ("128k", 131_072),
            ("0512", 512),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "k",
            "63",
            "131073",
            "129k",
            "0",
            "-1",
            "+4096",
            "4_096",
            "0x1000",
            "4096.0",
            "4e3",
            " 4096",
            "4096 ",
            "४०९६",
            "18446744073709551616",
            "18014398509481984k",
            "4m",
            "4kk",
        ] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }
}
