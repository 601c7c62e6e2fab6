//! The command line, validated; `bench` and `agent` have theirs in their own modules. No environment variable sets a flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use colorchoice_clap::Color;
use glob::Pattern;

use crate::patch::settings::parse_size;
use crate::reload::How;
use crate::{agent, bench};

const GLOBAL: &str = "Global options";

const AFTER_HELP: &str = "\
Exit codes:
  0  done, or nothing to do
  1  something failed or was refused, or no backend was found
  2  the command line is wrong
  3  --check SIZE found another value";

/// Set the prefill chunk size of LM Studio's MLX backends, exactly and reversibly
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 90)]
#[command(override_usage = "lmpatch [OPTIONS] [SIZE]\n       lmpatch [OPTIONS] <COMMAND>")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Tokens per prefill chunk, 64 to 131072; 8k is 8192 [default: 4096]
    #[arg(value_parser = parse_size)]
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

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure prefill, compare sizes, and say which one to keep
    #[command(after_help = bench::args::HELP)]
    Bench(Box<bench::args::BenchArgs>),
    /// Keep the size after updates of LM Studio, which bring new backends
    #[command(subcommand)]
    Agent(agent::Command),
    /// Print a shell's completion script
    Completions { shell: Shell },
    /// Print the manual page; `lmpatch man >lmpatch.1 && man ./lmpatch.1` shows it
    Man,
}

impl Cli {
    /// Parses the command line. Fails with what clap prints, which includes `--help`.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let cli = Self::try_parse_from(arguments)?;
        let has_flag = cli.check || cli.revert || cli.dry_run || cli.reload.is_some();
        if cli.command.is_some() && (has_flag || cli.size.is_some() || !cli.backend.is_empty()) {
            let why = "only global options can come before a command";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, why));
        }
        Ok(cli)
    }
}

pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lmpatch", &mut script);
    // clap_complete's rules for zsh expect a size before a command, so there is one unless the first word is one.
    let size = "[[ ${${words:#-*}[2]} == [0-9]* ]] || { words[1]=(lmpatch 0); ((CURRENT++)) }";
    let begins = "typeset -A opt_args";
    let script = String::from_utf8_lossy(&script);
    script.replacen(begins, &format!("{size}\n    {begins}"), 1)
}

/// The manual page in roff: what `--help` prints, of all commands.
pub fn manual_page() -> String {
    let command = Cli::command().disable_help_subcommand(true);
    let help = command.term_width(72).flatten_help(true).render_long_help();
    let help = help.to_string().replace('-', r"\-").replace('\'', r"\(aq");
    let name = concat!("lmpatch \\- ", env!("CARGO_PKG_DESCRIPTION"));
    format!(".TH lmpatch 1\n.SH NAME\n{name}\n.SH DESCRIPTION\n.nf\n{help}")
}
