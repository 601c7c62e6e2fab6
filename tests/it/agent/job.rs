//! What launchd runs: which backends the job sets, and what it logs.
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{NEW, OLD, SOON, User};
use crate::support::child::{finish, while_mode};
use crate::support::home::{engine_since_2026, generate, usual_backend};
use crate::support::{Env, Ran, assert_unchanged, snapshot, strace};
use lmpatch::agent;
use lmpatch::cli::{self, Cli};
use lmpatch::lmstudio::lms::Lms;

/// A settling time that no test would wait for.
const NEVER: &str = "3600000";

/// The words of a job for the home of `env`.
fn job_words<'w>(home: &'w str, size: &'w str, settle_ms: &'w str) -> [&'w str; 7] {
    [
        "--home",
        home,
        "agent",
        "run",
        size,
        "--settle-ms",
        settle_ms,
    ]
}

#[test]
fn a_job_waits_five_seconds_and_a_reload_two_minutes() {
    let parsed = Cli::read(["lmpatch", "agent", "run", "4096"].map(Into::into)).unwrap();
    let Some(cli::Command::Agent(agent::Command::Run { settle_ms, .. })) = parsed.command else {
        panic!("{parsed:?}")
    };
    assert_eq!(settle_ms, 5000);
    let lms = Lms::of(Path::new("home"));
    assert_eq!(lms.wait_timeout, Duration::from_secs(120));
}

#[test]
fn the_job_sets_what_is_stock_and_says_so_once_and_nothing_of_other_directories() {
    let user = User::with_agent();
    usual_backend(&user.env.lmstudio(), NEW);
    let python = "cpython3.11-mac-arm64@12/lib/python3.11/site-packages";
    fs::create_dir_all(user.env.amphibian().join(python)).unwrap();
    let hidden = usual_backend(&user.env.lmstudio(), ".unpacking");
    let before = snapshot(&hidden.root);
    fs::write(user.env.amphibian().join("a file"), "").unwrap();
    user.job_exits(0, SOON);
    user.job_exits(0, SOON);
    let told = format!("{NEW}: 2048 → 4096");
    assert_eq!(user.logged(), format!("{told}\n"));
    user.has_chunks([4096, 4096]);
    assert_unchanged(&hidden.root, &before);
    user.agent("status").exits(0).shows(&told);
}

#[test]
fn a_number_that_somebody_set_stays_and_stock_does_not() {
    let user = User::with_agent();
    let brings_anew = || {
        fs::remove_dir_all(user.env.amphibian().join(OLD)).unwrap();
        usual_backend(&user.env.lmstudio(), OLD)
    };
    for size in [8192, 512] {
        user.env.run([size.to_string()]).exits(0);
        user.job_exits(0, SOON);
        user.has_chunks([size]);
    }
    assert_eq!(user.logged(), "");
    user.run(&["--revert"])
        .exits(0)
        .says("the agent will set 4096 again")
        .says("`lmpatch agent uninstall` ends that");
    user.job_exits(0, SOON);
    user.has_chunks([4096]);
    // LM Studio brings the same backend anew.
    brings_anew();
    user.job_exits(0, SOON);
    user.has_chunks([4096]);
    // Somebody's own number under stock ones is left alone.
    brings_anew().with_engine(engine_since_2026("3072"));
    user.run(&["4096"]).exits(0);
    user.run(&["2048"])
        .exits(0)
        .says_nothing_of("the agent will set");
    user.job_exits(0, SOON);
    user.has_chunks([2048]);
    user.agent("uninstall").exits(0);
    let ran = user.run(&["--revert"]).exits(0);
    ran.says_nothing_of("agent");
}

#[test]
fn a_backend_that_is_refused_is_logged_and_does_not_stop_the_others() {
    let user = User::with_agent_and_stock();
    let odd = "PROMPT_PROCESSING_CHUNK_SIZE = 1 << 11\n";
    let backend = usual_backend(&user.env.lmstudio(), NEW).with_engine(odd);
    user.job_exits(1, SOON);
    user.has_set_old();
    let logged = user.logged();
    assert_eq!(logged.lines().count(), 2, "{logged}");
    assert!(logged.contains(&format!("error: {NEW}: ")), "{logged}");
    assert!(logged.contains("cache_wrapper.py"), "{logged}");
    // Also where there is nothing else in it to set.
    backend.with_generate(generate("4096", "4096", "4096"));
    let told = format!("{NEW}: mlx_engine/cache_wrapper.py: ");
    user.agent_fails("install", &told);
}

#[test]
fn what_macos_does_not_let_in_is_logged_at_once_with_the_reason() {
    if !strace::is_there() {
        return;
    }
    let user = User::new();
    let home = user.env.lmstudio().display().to_string();
    let calls = strace::record(&user.env, &job_words(&home, "2048", SOON));
    let listing = calls.iter().find(|call| call.name == "openat").unwrap();
    assert!(listing.text.contains("_amphibian"), "{listing:?}");
    let tampering = format!("error=EPERM:when={}+", listing.occurrence);
    let words = job_words(&home, "2048", NEVER);
    let (output, was_hit) = strace::inject(&user.env, "openat", &tampering, &words);
    assert!(was_hit);
    let ran = Ran::of(&output)
        .exits(1)
        .says("Operation not permitted")
        .says("System Settings → Privacy & Security → Full Disk Access");
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    // What is in the log is what `agent status` shows.
    fs::write(user.log(), ran.stderr).unwrap();
    user.agent("status").shows("Full Disk Access");
}

#[test]
fn a_directory_that_is_closed_is_logged_at_once_with_the_command_that_opens_it() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), OLD);
    env.hand_over();
    let home = env.lmstudio().display().to_string();
    let mut job = env.ordinary(job_words(&home, "4096", NEVER));
    while_mode(&env.amphibian(), 0o000, || {
        finish(&mut job).exits(1).says("chmod u+rwx")
    });
}
