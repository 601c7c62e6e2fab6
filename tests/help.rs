//! The command line.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use support::Env;

#[test]
fn help_names_the_exit_codes() {
    let ran = Env::new().run(["--help"]).exits(0);
    for code in ["0  done", "1  something failed", "2  the command line", "3  --check SIZE"] {
        assert!(ran.stdout.contains(code), "{code}: {}", ran.stdout);
    }
}
