//! `agent status`, `agent uninstall`, and what other commands say of the agent.
use std::fs;
use std::path::Path;

use super::{NEW, OLD, SOON, User};
use crate::support::home::{runtime, select, usual_backend};
use crate::support::{fields, text};
use serde_json::json;

#[test]
fn status_tells_size_and_the_last_ten_lines() {
    let user = User::new();
    user.agent("install 8192").exits(0);
    let lines: String = (1..=12).map(|number| format!("line {number}\n")).collect();
    fs::write(user.log(), lines + "\u{1b}[31m\n").unwrap();
    let shown = user.agent("status").exits(0).stdout;
    let home = user.env.lmstudio().display().to_string();
    let size = format!("installed, loaded, size 8192 in {home}\n");
    assert!(shown.starts_with(&size), "{shown}");
    assert!(shown.contains("line 4\n"), "{shown}");
    assert!(!shown.contains("line 3\n"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let status = user.agent("status --json").exits(0).json();
    let known = fields(&status, ["installed", "loaded", "size", "problem"]);
    assert_eq!(known, json!([true, true, 8192, null]));
    assert_eq!(status["last_lines"].as_array().map(Vec::len), Some(10));
    let quiet = user.agent("status -q").exits(0);
    assert_eq!((&*quiet.stdout, &*quiet.stderr), ("", ""));
}

/// What installs the agent for this home again.
fn fixes(home: &Path) -> String {
    let home = home.display();
    format!("`lmpatch --home '{home}' agent install 4096` fixes it")
}

#[test]
fn status_tells_what_is_wrong_and_what_to_do() {
    let user = User::with_agent();
    let job = text(user.job());
    let (home, moved) = (user.env.lmstudio(), user.env.user().join("moved"));
    user.launchd.forget();
    user.agent("status")
        .fails("launchd does not have the agent")
        .shows("installed, not loaded, size 4096")
        .says("its background item may be off (System Settings → General → Login Items)")
        .says(&fixes(&home));
    user.agent("status -q")
        .fails("launchd does not have the agent");
    let gone = job.replace("bin/lmpatch", "gone/lmpatch");
    fs::write(user.job(), &gone).unwrap();
    let fix = format!("gone/lmpatch is gone; {}", fixes(&home));
    user.agent("status").fails(&fix);
    fs::write(user.job(), gone.replace(".lmstudio<", "else<")).unwrap();
    let other = user.env.user().join("else");
    usual_backend(&other, OLD);
    user.agent("status").fails(&fixes(&other));
    // Its home was moved, or the disk is away: to install it again would be for another home.
    fs::write(user.job(), &job).unwrap();
    user.agent("install").exits(0);
    fs::rename(&home, &moved).unwrap();
    user.agent("status")
        .fails(".lmstudio is not there; ")
        .says("; `lmpatch agent uninstall` ends it");
    fs::rename(&moved, &home).unwrap();
    fs::write(user.job(), "<plist>").unwrap();
    user.agent("status")
        .fails("`lmpatch agent install` installs it.")
        .shows("not installed");
}

#[test]
fn a_launchctl_that_does_not_answer_says_nothing_of_the_agent() {
    let user = User::with_agent();
    fs::write(user.standins().file("launchctl"), "no program").unwrap();
    for command in ["status", "uninstall"] {
        let needs = "the agent needs macOS, and its launchctl to answer";
        user.agent(command)
            .fails(needs)
            .says_nothing_of("uninstalled;")
            .says_nothing_of("launchd does not have the agent");
    }
    assert!(user.job().exists());
    let ran = user.run(&["--check"]).exits(0);
    ran.says_nothing_of("agent");
}

#[test]
fn uninstall_leaves_nothing_and_prints_the_state_as_json_as_install_does() {
    let user = User::new();
    user.env.run(["4096"]).exits(0);
    let before = user.everything();
    user.agent("install").exits(0);
    user.env.backend(NEW);
    user.job_exits(0, SOON);
    assert!(!user.logged().is_empty());
    user.agent("uninstall").tells("uninstalled");
    fs::remove_dir_all(user.env.amphibian().join(NEW)).unwrap();
    assert_eq!(user.everything(), before);
    assert_eq!(user.launchd.job(), None);
    user.agent("uninstall").exits(0);
    user.agent("status")
        .fails("`lmpatch agent install` installs it.")
        .shows("not installed");
    // Nor a job in launchd whose file is gone.
    let state = user.agent("install --json").exits(0).json();
    assert_eq!(state["installed"], true);
    fs::remove_file(user.job()).unwrap();
    user.agent("uninstall").tells("uninstalled");
    assert_eq!(user.launchd.job(), None);
    let state = user.agent("uninstall --json").exits(0).json();
    assert_eq!(state["installed"], false);
}

#[test]
fn check_tells_of_an_agent_that_does_not_work_or_keeps_another_size() {
    let user = User::new();
    // It does nothing in another home.
    let elsewhere = user.env.user().join("elsewhere");
    for home in [&user.env.lmstudio(), &elsewhere] {
        usual_backend(home, OLD);
        runtime(home, "1.11.0", &[OLD]);
        select(home, "1.11.0");
    }
    let is_silent = |args: &[&str]| user.run(args).exits(0).says_nothing_of("the agent");
    is_silent(&["--check"]);
    user.agent("install").exits(0);
    is_silent(&["--check"]);
    for action in ["8192", "--check"] {
        user.run(&[action])
            .tells("the agent sets 4096, and the selected backend has 8192")
            .says("`lmpatch agent install 8192` keeps 8192, `lmpatch 4096` sets 4096");
    }
    for action in ["--check", "--revert"] {
        is_silent(&[action, "--home", elsewhere.to_str().unwrap()]);
    }
    // What is not in use may have another size.
    user.env.backend(NEW);
    user.run(&["4096"]).exits(0);
    user.run(&["8192", "--backend", NEW]).exits(0);
    is_silent(&["--check"]);
    user.launchd.forget();
    user.run(&["--check"])
        .tells("launchd does not have the agent")
        .says(&fixes(&user.env.lmstudio()));
    let ran = user.run(&["--revert"]).exits(0);
    ran.says_nothing_of("the agent will set");
}
