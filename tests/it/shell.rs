//! Completions, as the shells themselves complete; and the manual page, as `man` renders it.
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Env, LMPATCH, skipped};

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
zpty -w -n shell $'\C-ulmpatch agent ins\t'
zpty -r -m shell line '*lmpatch agent install*'
print -r -- "$line"
"#;

/// Writes what `lmpatch completions SHELL` prints to `file` in the user's home.
fn write_script(env: &Env, shell: &str, file: &str) {
    let ran = env.run(["completions", shell]).exits(0);
    assert!(ran.stderr.is_empty(), "{ran:#?}");
    fs::write(env.user().join(file), ran.stdout).unwrap();
}

/// Runs a program in a user's home with `input`, a minute at most; `None`, said aloud, where it is not installed.
fn run(env: &Env, program: &str, arguments: &[&str], input: &[u8]) -> Option<Output> {
    if Command::new(program)
        .arg("--version")
        .output()
        .is_err_and(|error| error.kind() == ErrorKind::NotFound)
    {
        skipped(&format!("{program} is not installed"));
        return None;
    }
    let mut command = Command::new("timeout");
    env.isolate(&mut command)
        .args(["60", program])
        .args(arguments)
        .env("TERM", "dumb")
        .env("MANWIDTH", "80");
    let path = format!(
        "{}:{}",
        Path::new(LMPATCH).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    command
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[track_caller]
fn prints(output: &Output, text: &str) {
    assert!(
        String::from_utf8_lossy(&output.stdout).contains(text),
        "stdout has no {text:?}: {output:?}"
    );
}

#[test]
fn bash_completes_a_flag() {
    let env = Env::new();
    write_script(&env, "bash", "completions");
    // After the script, lmpatch is a function that shows what it was called with.
    let rc = "source completions\nlmpatch() { printf '[%s]' \"$@\"; }\n";
    fs::write(env.user().join("rc"), rc).unwrap();
    if let Some(output) = run(
        &env,
        "bash",
        &["--noprofile", "--rcfile", "rc", "-i"],
        TYPED,
    ) {
        prints(&output, "[--backend][-x]");
    }
}

#[test]
fn zsh_completes_a_flag() {
    let env = Env::new();
    write_script(&env, "zsh", "_lmpatch");
    if let Some(output) = run(&env, "zsh", &["-f", "-c", ZSH], b"") {
        prints(&output, "lmpatch --backend");
        prints(&output, "lmpatch 4096 --dry-run");
        prints(&output, "lmpatch agent install");
    }
}

#[test]
fn fish_completes_a_flag() {
    let env = Env::new();
    write_script(&env, "fish", "completions");
    let ask = "source completions; complete -C 'lmpatch --ba'";
    if let Some(output) = run(&env, "fish", &["--no-config", "-c", ask], b"") {
        prints(&output, "--backend\tOnly backends");
        assert_eq!(
            output.stdout.iter().filter(|&&byte| byte == b'\n').count(),
            1,
            "{output:?}"
        );
    }
}

#[test]
fn man_renders_the_page_without_a_warning() {
    let env = Env::new();
    let page = env.run(["man"]).exits(0);
    fs::write(env.user().join("lmpatch.1"), page.stdout).unwrap();
    let Some(output) = run(&env, "man", &["--warnings", "-l", "lmpatch.1"], b"") else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for text in [
        "--backend <GLOB>",
        "lmpatch completions [OPTIONS] <SHELL>",
        "  lmpatch --revert        restore the vendor's files in every backend\n",
        "  3  --check SIZE found another value\n",
    ] {
        prints(&output, text);
    }
}

#[test]
fn a_command_is_not_mixed_with_patching() {
    let env = Env::with_fixture();
    for wrong in [
        ["4096", "man"],
        ["man", "4096"],
        ["--check", "man"],
        ["completions", "tcsh"],
    ] {
        env.run(wrong).exits(2);
    }
    env.run(["completions"]).exits(2).says("<SHELL>");
}
