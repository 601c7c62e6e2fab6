//! Shell completions and the manual page, generated from the definition of the command line.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::{AFTER_HELP, Cli};

pub fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lmpatch", &mut script);
    if shell != Shell::Zsh {
        return script;
    }
    // Where there is a command, it is the first word: clap_complete counts the size, which cannot be there then, too.
    let script = String::from_utf8_lossy(&script).replace("$line[2]", "$line[1]");
    let skip = "(( CURRENT > 2 )) && [[ $words[2] == [0-9]* ]] && words[2]=() && (( CURRENT-- ))";
    let script = script.replacen("_lmpatch() {", &format!("_lmpatch() {{\n    {skip}"), 1);
    let lines = script.lines().filter(|line| !line.starts_with("'::size "));
    lines
        .flat_map(|line| [line, "\n"])
        .collect::<String>()
        .into_bytes()
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
    // clap_mangen would refer to a page of its own for each command, and reflow the aligned columns.
    let mut rest = Roff::new();
    rest.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands_mut() {
        let usage = command.render_usage().to_string();
        let about = command.get_about().map(ToString::to_string);
        rest.control("TP", []);
        rest.text([bold(usage.trim_start_matches("Usage: "))]);
        rest.text([roman(about.unwrap_or_default())]);
    }
    rest.control("SH", ["EXAMPLES AND EXIT CODES"]);
    rest.control("nf", []);
    rest.text([roman(AFTER_HELP)]);
    rest.control("fi", []);
    rest.to_writer(&mut page)?;
    Ok(page)
}
