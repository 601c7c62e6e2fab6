//! Completions, as the shells themselves complete; and the manual page, as `man` renders it.
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::child::{ended, has_tool};
use crate::support::{Env, LMPATCH, Ran};

/// Types an unfinished flag, tab, another argument and enter.
const TYPED: &[u8] = b"lmpatch --ba\t-x\n";

/// In a terminal of zsh's own: sets completion up, types an unfinished flag and tab, prints what the line became.
const ZSH: &str = r#"
zmodload zsh/zpty || exit 1
zpty shell zsh -f -i
zpty -w shell "fpath=($PWD \$fpath); autoload -Uz compinit; compinit -u -D; echo rea''dy"
zpty -r -m shell seen '*ready*'
zpty -w -n shell $'lmpatch --ba\t'
zpty -r -m shell line '*lmpatch --backend*'
print -r -- "$line"
zpty -w -n shell $'\C-ulmpatch 4096 --dry\t'
zpty -r -m shell line '*lmpatch 4096 --dry-run*'
print -r -- "$line"
zpty -w -n shell $'\C-ulmpatch ag\t'
zpty -r -m shell line '*lmpatch agent*'
zpty -w -n shell $'ins\t'
zpty -r -m shell line '*install*'
print -r -- "$line"
zpty -w -n shell $'\C-ulmpatch --json agent uni\t'
zpty -r -m shell line '*lmpatch --json agent uninstall*'
print -r -- "$line"
zpty -w -n shell $'\C-ulmpatch bench --runs 2 --si\t'
zpty -r -m shell line '*lmpatch bench --runs 2 --sizes*'
print -r -- "$line"
"#;

/// Writes what `lmpatch completions SHELL` prints to `file` in the user's home.
fn write_script(env: &Env, shell: &str, file: &str) {
    let ran = env.run(["completions", shell]).exits(0);
    assert!(ran.stderr.is_empty(), "{ran:#?}");
    fs::write(env.user().join(file), ran.stdout).unwrap();
}

/// Runs a program in a user's home with `input`, a minute at most; `None`, said aloud, where it is not installed.
fn run(env: &Env, program: &str, arguments: &[&str], input: &[u8]) -> Option<Ran> {
    if !has_tool(program) {
        return None;
    }
    let binaries = Path::new(LMPATCH).parent().unwrap().display();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("timeout");
    env.isolate(&mut command)
        .args(["60", program])
        .args(arguments)
        .env("TERM", "dumb")
        .env("MANWIDTH", "80")
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    Some(ended(child))
}

#[test]
fn bash_completes_a_flag() {
    let env = Env::new();
    write_script(&env, "bash", "completions");
    // After the script, lmpatch is a function that shows what it was called with.
    let rc = "source completions\nlmpatch() { printf '[%s]' \"$@\"; }\n";
    fs::write(env.user().join("rc"), rc).unwrap();
    let interactive = ["--noprofile", "--rcfile", "rc", "-i"];
    if let Some(ran) = run(&env, "bash", &interactive, TYPED) {
        ran.shows("[--backend][-x]");
    }
}

#[test]
fn zsh_completes_a_flag() {
    let env = Env::new();
    write_script(&env, "zsh", "_lmpatch");
    if let Some(ran) = run(&env, "zsh", &["-f", "-c", ZSH], b"") {
        ran.shows("lmpatch --backend")
            .shows("lmpatch 4096 --dry-run")
            .shows("install")
            .shows("lmpatch --json agent uninstall")
            .shows("lmpatch bench --runs 2 --sizes");
    }
}

#[test]
fn fish_completes_a_flag() {
    let env = Env::new();
    write_script(&env, "fish", "completions");
    let ask = "source completions; complete -C 'lmpatch --ba'";
    if let Some(ran) = run(&env, "fish", &["--no-config", "-c", ask], b"") {
        let ran = ran.shows("--backend\tOnly backends");
        assert_eq!(ran.stdout.matches('\n').count(), 1, "{ran:?}");
    }
}

#[test]
fn man_renders_the_page_without_a_warning() {
    let env = Env::new();
    let page = env.run(["man"]).exits(0);
    fs::write(env.user().join("lmpatch.1"), page.stdout).unwrap();
    let Some(ran) = run(&env, "man", &["--warnings", "-l", "lmpatch.1"], b"") else {
        return;
    };
    assert_eq!(ran.stderr, "");
    ran.exits(0)
        .shows("--backend <GLOB>")
        .shows("lmpatch bench:")
        .shows("--sizes <SIZES>")
        .shows("<SHELL>")
        .shows("  3  --check SIZE found another value\n");
}
