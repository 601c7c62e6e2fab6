//! Every command of the README is one that lmpatch takes, and those that need nothing but files are run.
use crate::support::{Env, Ran};
use lmpatch::cli::Cli;

const README: &str = include_str!("../../README.md");

/// The words of every `$ lmpatch …` line, without the comment behind it.
fn commands() -> Vec<Vec<&'static str>> {
    let lines = README
        .lines()
        .filter_map(|line| line.strip_prefix("$ lmpatch"));
    lines
        .map(|line| line.split('#').next().unwrap().split_whitespace().collect())
        .collect()
}

/// The first command of the README with what it prints, as the README shows it.
fn first_command() -> (&'static str, &'static str) {
    let block = README
        .split("```console\n$ cargo run -- ")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    block.split_once('\n').unwrap()
}

#[test]
fn every_command_is_one_that_lmpatch_takes() {
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for words in commands {
        let parsed = Cli::read(
            std::iter::once("lmpatch")
                .chain(words.iter().copied())
                .map(Into::into),
        );
        assert!(parsed.is_ok(), "{words:?}: {}", parsed.unwrap_err());
    }
}

#[test]
fn the_commands_that_need_only_files_work() {
    let env = Env::with_fixture();
    let needs_more = |word: &&str| matches!(*word, "bench" | "agent" | "--reload" | "--reload=app");
    let mut ran = 0;
    for words in commands()
        .into_iter()
        .filter(|words| !words.iter().any(needs_more))
    {
        env.run(&words).exits(0);
        ran += 1;
    }
    assert!(ran >= 4, "{ran}");
}

#[test]
fn the_first_command_prints_what_the_readme_shows() {
    let env = Env::with_fixture();
    let (arguments, shown) = first_command();
    let arguments: Vec<_> = arguments
        .split_whitespace()
        .filter(|word| !word.contains("fixtures"))
        .collect();
    let [home, size] = arguments[..] else {
        panic!("{arguments:?}")
    };
    assert_eq!(home, "--home");
    let mut command = env.command([size]);
    // Without a `ps` nothing is said of loaded models, which depends on the machine.
    let ran = Ran::of(&command.env("PATH", "").output().unwrap()).exits(0);
    assert_eq!(ran.stdout + &ran.stderr, shown);
}
