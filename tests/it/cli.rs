//! The command line: what is accepted, what is refused, and with which exit code.
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use crate::support::child::finish;
use crate::support::{Before, Env};

#[test]
fn help_is_what_people_read() {
    let env = Env::new();
    for (words, expected) in [
        (&["--help"][..], include_str!("texts/help.txt")),
        (&["bench", "--help"], include_str!("texts/bench-help.txt")),
    ] {
        finish(env.command(words).env("COLUMNS", "80"))
            .exits(0)
            .prints(expected, "");
    }
    env.run(["--version"])
        .exits(0)
        .shows(env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_message_is_one_write() {
    let env = Env::with_fixture();
    // Every write to a socket of datagrams is a datagram.
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let mut command = env.command(["9000", "--verbose"]);
    let status = command.stderr(OwnedFd::from(theirs)).stdout(Stdio::null());
    assert!(status.status().unwrap().success());
    drop(command);
    let (mut message, mut messages) = ([0; 4096], Vec::new());
    ours.set_nonblocking(true).unwrap();
    while let Ok(length) = ours.recv(&mut message) {
        messages.push(String::from_utf8(message[..length].to_vec()).unwrap());
    }
    assert!(messages.len() > 3, "{messages:?}");
    for message in messages {
        assert_eq!(message.find('\n'), Some(message.len() - 1), "{message:?}");
    }
}

#[test]
fn a_wrong_command_line_exits_2_and_changes_nothing() {
    let env = Env::with_fixture();
    let before = Before::of(env.lmstudio());
    let wrong = "63|131073|0|4_096|0x1000|4096.0|-4096|4m||4096 8192|--revert 4096|--revert --check|--check --dry-run|\
                 --backend [ 4096|--color sometimes|-q -v|--unknown|man 4096|completions tcsh|completions";
    for wrong in wrong.split('|') {
        env.run(wrong.split(' ')).exits(2).says("error:");
    }
    before.still_holds();
}

#[test]
fn a_word_that_is_no_command_is_told_what_a_size_is() {
    let env = Env::with_fixture();
    for word in ["doctr", "check", "status"] {
        env.run([word])
            .exits(2)
            .says(&format!("invalid value '{word}'"))
            .says("give a size such as 4096 or 4k")
            .says_nothing_of("tip:");
    }
    env.run(["completions"]).exits(2).says("<SHELL>");
    let sizes = ["bench", "--model", "x", "--sizes", "check"];
    env.run(sizes)
        .exits(2)
        .says("give a size such as 4096 or 4k");
}

#[test]
fn a_check_of_a_size_says_what_it_found() {
    let env = Env::with_fixture();
    env.run(["--check", "2048"])
        .exits(3)
        .says("2048 in 1 of 3 backends; `lmpatch 2048` sets it");
    env.run(["4096", "-q"]).exits(0);
    env.run(["--check", "4096"])
        .tells("4096 in 3 of 3 backends");
}

#[test]
fn common_flags_may_stand_before_a_subcommand_and_others_may_not() {
    let env = Env::with_fixture();
    let after = env.run(["agent", "status", "--json"]).exits(1);
    assert!(after.stdout.starts_with('{'), "{}", after.stdout);
    let before = env.run(["--json", "agent", "status"]).exits(1);
    assert_eq!(before.stdout, after.stdout);
    let home = Before::of(env.lmstudio());
    for flag in [
        "4096",
        "--check",
        "--revert",
        "--dry-run",
        "--backend=*",
        "--reload",
    ] {
        env.run([flag, "man"])
            .exits(2)
            .says("only global options can come before a command");
    }
    home.still_holds();
}

#[test]
fn the_default_is_4096_and_k_is_1024() {
    for (words, size) in [
        ("", "4096"),
        ("4096", "4096"),
        ("8k", "8192"),
        ("128K", "131072"),
        ("64", "64"),
    ] {
        let env = Env::with_fixture();
        env.run(words.split_whitespace()).exits(0);
        env.run(["--check", size]).exits(0);
    }
}

#[test]
fn quiet_prints_errors_only() {
    let env = Env::with_fixture();
    env.run(["-q", "4096"]).exits(0).prints("", "");
    env.run(["-q", "--check", "8192"]).exits(3).prints("", "");
    let ran = env.run(["-q", "--home", "nowhere", "4096"]).exits(1);
    assert_eq!(ran.says("nowhere").stdout, "");
    let half = env.backend("app-mlx-generate-mac14-arm64@40");
    fs::remove_file(half.generate()).unwrap();
    for words in ["--check", "3000", "--revert", "8192 --dry-run"] {
        let args = ["-q"].into_iter().chain(words.split(' '));
        env.run(args).exits(0).prints("", "");
    }
    fs::write(half.generate(), "x = 1\n").unwrap();
    let ran = env.run(["-q", "4096"]).exits(1);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    let error = "error: app-mlx-generate-mac14-arm64@40: ";
    assert!(ran.stderr.starts_with(error), "{ran:#?}");
}

#[test]
fn colour_is_for_terminals_unless_it_is_asked_for() {
    let env = Env::with_fixture();
    let has_escapes = |words: &str| {
        let ran = env.run(words.split(' '));
        (ran.stdout + &ran.stderr).contains('\u{1b}')
    };
    assert!(!has_escapes("--check"));
    assert!(!has_escapes("4096 --dry-run"));
    assert!(!has_escapes("--check --color never"));
    assert!(has_escapes("--check --color always"));
    assert!(has_escapes("4096 --dry-run --color always"));
    assert!(!has_escapes("--check --json"));
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    lmpatch::cli::Cli::command().debug_assert();
}

#[test]
fn sizes_are_plain_digits_or_k() {
    let parse = |text: &str| {
        let words = ["lmpatch", "--", text].map(Into::into);
        lmpatch::cli::Cli::read(words).ok().and_then(|cli| cli.size)
    };
    for (text, size) in [
        ("64", 64),
        ("4096", 4096),
        ("4k", 4096),
        ("8K", 8192),
        ("128k", 131_072),
        ("0512", 512),
    ] {
        assert_eq!(parse(text), Some(size), "{text}");
    }
    let wrong = "|k|63|131073|129k|0|-1|+4096|4_096|0x1000|4096.0|4e3| 4096|4096 |४०९६|18446744073709551616|\
                 18014398509481984k|4m|4kk";
    for text in wrong.split('|') {
        assert_eq!(parse(text), None, "{text:?}");
    }
}

#[test]
fn names_cannot_drive_the_terminal() {
    use lmpatch::output::printable;
    assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\u{a}");
    assert_eq!(printable("x\u{202e}y\u{85}"), "x\\u{202e}y\\u{85}");
    assert_eq!(printable("Größe 你好"), "Größe 你好");
}
