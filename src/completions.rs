//! What a shell and `man` want to know of the command line; pure, from the command line's own declaration.

use std::io;

use clap::{Command, CommandFactory as _};
use clap_complete::{Generator, shells};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::{Cli, Shell};

/// The script that teaches `shell` to complete a call of lmpatch.
pub fn script(shell: Shell) -> Vec<u8> {
    match shell {
        Shell::Bash => generate(shells::Bash),
        Shell::Zsh => generate(shells::Zsh),
        Shell::Fish => generate(shells::Fish),
    }
}

fn generate(shell: impl Generator) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    clap_complete::generate(shell, &mut command, "lmpatch", &mut script);
    script
}

/// The manual page in roff, for `man`. Fails only as writing to memory can.
pub fn manual_page() -> io::Result<Vec<u8>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    commands(&command).to_writer(&mut page)?;
    closing_words(&command).to_writer(&mut page)?;
    Ok(page)
}

/// The commands, which `clap_mangen` would refer to pages of their own.
fn commands(command: &Command) -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands() {
        let usage = command.clone().render_usage().to_string();
        section.control("TP", []);
        section.text([bold(usage.trim_start_matches("Usage: "))]);
        let about = command.get_about().map(ToString::to_string);
        section.text([roman(about.unwrap_or_default())]);
    }
    section
}

/// The text that `--help` ends with, its columns kept, which `clap_mangen` would fill and justify.
fn closing_words(command: &Command) -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["EXAMPLES AND EXIT CODES"]);
    section.control("nf", []);
    let words = command.get_after_help().map(ToString::to_string);
    section.text([roman(words.unwrap_or_default())]);
    section.control("fi", []);
    section
}
