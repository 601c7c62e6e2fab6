//! The command line: what is accepted, what is refused, and with which exit code.
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use crate::support::home::usual_backend;
use crate::support::{Env, Ran, differences, snapshot};

#[test]
fn help_is_what_people_read() {
    for (words, expected) in [
        (&["--help"][..], include_str!("texts/help.txt")),
        (&["bench", "--help"], include_str!("texts/bench-help.txt")),
    ] {
        let output = Env::new().command(words).env("COLUMNS", "80").output();
        assert_eq!(Ran::of(&output.unwrap()).exits(0).stdout, expected);
    }
    Env::new()
        .run(["--version"])
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
    let before = snapshot(&env.lmstudio());
    for wrong in [
        vec!["63"],
        vec!["131073"],
        vec!["0"],
        vec!["4_096"],
        vec!["0x1000"],
        vec!["4096.0"],
        vec!["-4096"],
        vec!["4m"],
        vec![""],
        vec!["4096", "8192"],
        vec!["--revert", "4096"],
        vec!["--revert", "--check"],
        vec!["--check", "--dry-run"],
        vec!["--backend", "[", "4096"],
        vec!["--color", "sometimes"],
        vec!["-q", "-v"],
        vec!["--unknown"],
    ] {
        let ran = env.run(&wrong).exits(2);
        assert!(ran.stderr.contains("error:"), "{wrong:?}: {}", ran.stderr);
    }
    assert_eq!(
        differences(&before, &snapshot(&env.lmstudio())),
        Vec::<String>::new()
    );
}

#[test]
fn a_word_that_is_no_command_is_called_so() {
    let env = Env::with_fixture();
    env.run(["doctr"])
        .exits(2)
        .says("neither a size such as 4096 or 4k, nor a command");
    env.run(["check"]).exits(2).says("did you mean --check?");
    env.run(["set", "4096"])
        .exits(2)
        .says("invalid value 'set'")
        .says_nothing_of("'4096'");
    env.run(["--foo", "4096"])
        .exits(2)
        .says("unexpected argument '--foo' found")
        .says_nothing_of("tip:");
    let elsewhere = ["bench", "--model", "x", "--sizes", "check"];
    env.run(elsewhere)
        .exits(2)
        .says("give plain digits such as 4096")
        .says_nothing_of("did you mean");
}

#[test]
fn a_check_of_a_size_says_what_it_found() {
    let env = Env::with_fixture();
    env.run(["--check", "2048"])
        .exits(3)
        .says("2048 in 1 of 3 backends; `lmpatch 2048` sets it");
    env.run(["4096", "-q"]).exits(0);
    env.run(["--check", "4096"])
        .exits(0)
        .says("4096 in 3 of 3 backends");
    let ran = env.run(["--check", "8192", "-q"]).exits(3);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
}

#[test]
fn common_flags_may_stand_before_a_subcommand_and_others_may_not() {
    let env = Env::with_fixture();
    let (before, after) = (
        env.run(["--json", "agent", "status"]).exits(1),
        env.run(["agent", "status", "--json"]).exits(1),
    );
    assert!(
        before.stdout.starts_with('{') && before.stdout == after.stdout,
        "{}",
        before.stdout
    );
    let home = snapshot(&env.lmstudio());
    for (wrong, named) in [
        (["4096", "man"], "[SIZE]"),
        (["--check", "man"], "--check"),
        (["--revert", "man"], "--revert"),
        (["--dry-run", "man"], "--dry-run"),
        (["--backend=*", "man"], "--backend"),
        (["--reload", "man"], "--reload"),
    ] {
        let ran = env.run(wrong).exits(2);
        assert!(
            ran.stderr.contains(named) && ran.stderr.contains("cannot come before 'man'"),
            "{wrong:?}: {}",
            ran.stderr
        );
    }
    assert_eq!(
        differences(&home, &snapshot(&env.lmstudio())),
        Vec::<String>::new()
    );
}

#[test]
fn the_default_is_4096_and_k_is_1024() {
    for (args, size) in [
        (vec![], 4096),
        (vec!["4096"], 4096),
        (vec!["8k"], 8192),
        (vec!["128K"], 131_072),
        (vec!["64"], 64),
    ] {
        let env = Env::with_fixture();
        env.run(&args).exits(0);
        env.run(["--check".to_owned(), size.to_string()]).exits(0);
    }
}

#[test]
fn quiet_prints_errors_only() {
    let env = Env::with_fixture();
    let ran = env.run(["-q", "4096"]).exits(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    let ran = env.run(["-q", "--check", "8192"]).exits(3);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    let ran = env
        .run(["-q", "--home", "nowhere", "4096"])
        .exits(1)
        .says("nowhere");
    assert_eq!(ran.stdout, "");
    let half = usual_backend(&env.lmstudio(), "app-mlx-generate-mac14-arm64@40");
    std::fs::remove_file(half.generate()).unwrap();
    for args in [
        &["-q", "--check"][..],
        &["-q", "3000"],
        &["-q", "--revert"],
        &["-q", "8192", "--dry-run"],
    ] {
        let ran = env.run(args).exits(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    }
    std::fs::write(half.generate(), "x = 1\n").unwrap();
    let ran = env.run(["-q", "4096"]).exits(1);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("error: app-mlx-generate-mac14-arm64@40: "),
        "{ran:#?}"
    );
}

#[test]
fn colour_is_for_terminals_unless_it_is_asked_for() {
    let env = Env::with_fixture();
    let has_escapes = |args: &[&str]| {
        let ran = env.run(args);
        ran.stdout.contains('\u{1b}') || ran.stderr.contains('\u{1b}')
    };
    assert!(!has_escapes(&["--check"]));
    assert!(!has_escapes(&["4096", "--dry-run"]));
    assert!(!has_escapes(&["--check", "--color", "never"]));
    assert!(has_escapes(&["--check", "--color", "always"]));
    assert!(has_escapes(&["4096", "--dry-run", "--color", "always"]));
    assert!(!has_escapes(&["--check", "--json"]));
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
