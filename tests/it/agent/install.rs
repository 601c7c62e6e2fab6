//! `agent install`: the job that launchd gets, and what there is if it does not get it.
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{NEW, OLD, SOON, User};
use crate::support::home::{engine_since_2026, generate, stock_generate, usual_backend};
use crate::support::standins::install;
use crate::support::{Before, Env, LMPATCH, aloud, amphibian, text};
use lmpatch::files;
use serde_json::json;

#[test]
fn install_hands_launchd_a_job_that_runs_at_load_on_changes_and_every_hour() {
    let user = User::new();
    user.agent("install 8k").exits(0);
    let expected = json!({
        "Label": "io.github.lmpatch.agent",
        "ProgramArguments": [user.program(), "--home", user.env.lmstudio(), "agent", "run", "8192"],
        "RunAtLoad": true,
        "WatchPaths": [user.env.amphibian()],
        "StartInterval": 3600,
        "StandardErrorPath": user.log(),
    });
    assert_eq!(user.job_read(), expected);
    assert_eq!(user.launchd.job(), fs::read(user.job()).ok());
    match Command::new("plutil").arg("-lint").arg(user.job()).output() {
        Ok(lint) => assert!(lint.status.success(), "{lint:?}"),
        Err(_) => aloud("skipped: plutil -lint on the agent's job: only macOS has it"),
    }
    let uid = fs::metadata(user.job()).unwrap().uid();
    let of_agent = |verb| format!("launchctl {verb} gui/{uid}/io.github.lmpatch.agent");
    let bootstrap = format!("launchctl bootstrap gui/{uid} {}", user.job().display());
    let mut expected = ["bootout", "print", "print"].map(of_agent).to_vec();
    expected.push(bootstrap.clone());
    // There is none yet.
    assert_eq!(user.standins().calls(), expected);
    // Installed again, it waits for the old one to go.
    user.agent("install 4096").exits(0);
    assert_eq!(user.launchd.job(), fs::read(user.job()).ok());
    expected.extend(["bootout", "print", "print", "print", "print"].map(of_agent));
    user.agent("status").exits(0).shows("size 4096");
    expected.extend([bootstrap, of_agent("print")]);
    assert_eq!(user.standins().calls(), expected);
    let agents = fs::read_dir(user.job().parent().unwrap()).unwrap();
    assert_eq!(agents.count(), 1);
}

#[test]
fn install_sets_what_is_stock_now_and_leaves_what_somebody_set() {
    let user = User::new();
    user.env
        .backend(NEW)
        .with_engine(engine_since_2026("1024"))
        .with_generate(generate("1024", "1024", "1024"));
    // A size that is stock changes nothing.
    let before = Before::of(user.env.lmstudio());
    user.agent("install 2048").exits(0);
    user.job_exits(0, SOON);
    assert_eq!(user.logged(), "");
    before.still_holds();
    user.agent("install")
        .tells("it sets every stock backend to 4096")
        .says(&format!("{OLD}: 2048 → 4096"))
        .says_nothing_of(NEW);
    user.has_chunks([4096, 1024]);
}

#[test]
fn a_backend_that_a_kill_left_half_set_is_set() {
    let user = User::new();
    let half = user.env.backend(NEW).with_engine(engine_since_2026("8192"));
    user.agent("install 8192").exits(0);
    user.has_chunks([8192, 8192]);
    half.is_set_to("8192");
    // One that somebody has set otherwise in part is not the agent's.
    let half = half
        .with_engine(engine_since_2026("1024"))
        .with_generate(stock_generate());
    user.agent("install 8192").exits(0);
    assert_eq!(text(half.generate()), stock_generate());
}

#[test]
fn paths_with_markup_and_blanks_and_relative_ones_survive() {
    let user = User::new();
    let relative = "a <b> & \"c\" ü/[LM] Studio";
    let home = user.env.user().join(relative);
    usual_backend(&home, OLD);
    // A new account may have no such directory.
    fs::remove_dir(user.job().with_file_name("")).unwrap();
    user.run(&["agent", "install", "--home", relative]).exits(0);
    assert_eq!(user.job_read()["WatchPaths"], json!([amphibian(&home)]));
    usual_backend(&home, NEW);
    user.job_exits(0, SOON);
    let home = home.to_str().unwrap();
    user.run(&["--home", home, "--check", "4096"]).exits(0);
}

#[test]
fn a_program_that_will_vanish_is_refused_and_homebrews_stable_link_is_taken() {
    let user = User::new();
    let temporary = user.env.user().with_file_name("tmp").join("lmpatch");
    install(&temporary);
    let before = Before::of(user.env.user());
    // The binary under test is in cargo's target directory.
    for program in [Path::new(LMPATCH), &temporary] {
        user.run_as(program, &["agent", "install"])
            .fails("is in a build or temporary directory")
            .says("cargo install --path .");
    }
    before.still_holds();
    assert_eq!(user.standins().calls(), [""; 0]);
    // Homebrew removes a version's own directory.
    let prefix = user.env.user().join("homebrew");
    let program = prefix.join("Cellar/lmpatch/0.1.0/bin/lmpatch");
    install(&program);
    fs::create_dir_all(prefix.join("bin")).unwrap();
    symlink(&program, prefix.join("bin/lmpatch")).unwrap();
    user.run_as(&program, &["agent", "install"]).exits(0);
    let link = fs::canonicalize(prefix.join("bin")).unwrap();
    let program = &user.job_read()["ProgramArguments"][0];
    assert_eq!(*program, json!(link.join("lmpatch")));
}

#[test]
fn a_home_in_a_protected_folder_needs_full_disk_access() {
    let user = User::new();
    let install_for = |home: &str| {
        let ran = user.run(&["agent", "install", "--home", home]);
        ran.tells("Full Disk Access")
    };
    for folder in ["Documents", "Desktop", "Downloads"] {
        let home = user.env.user().join(folder).join("LM Studio");
        usual_backend(&home, OLD);
        install_for(home.to_str().unwrap())
            .says("macOS does not let the agent into")
            .says(&format!("give it to {}", user.program().display()))
            .says("System Settings → Privacy & Security → Full Disk Access");
    }
    // Also through a link.
    let link = user.env.user().join("linked");
    symlink(user.env.user().join("Documents/LM Studio"), link).unwrap();
    install_for("linked");
    let ran = user.agent("install").exits(0);
    ran.says_nothing_of("Full Disk Access");
}

#[test]
fn disks_and_the_users_own_folders_are_what_macos_protects() {
    for (directory, expected) in [
        ("/Volumes/Fast Disk/LM Studio/extensions/backends", true),
        ("/Users/ada/Documents/lm", true),
        ("/Users/ada/Desktop", true),
        ("/Users/ada/Downloads/a/b", true),
        ("/Users/ada/.lmstudio/extensions/backends", false),
        ("/Users/ada/Documents2", false),
        ("/Users/bob/Documents/lm", false),
        ("/VolumesX", false),
    ] {
        let is_protected = files::is_protected(Path::new(directory), Path::new("/Users/ada"));
        assert_eq!(is_protected, expected, "{directory}");
    }
}

#[test]
fn without_a_login_at_the_screen_a_launchctl_or_a_home_nothing_is_installed_halfway() {
    let user = User::new();
    let nobody = "nobody seems to be logged in at the screen; log in there first";
    for (exit, next_step) in [
        (125, nobody),
        (5, nobody),
        (119, "run `launchctl enable gui/"),
        (64, "launchctl bootstrap failed"),
    ] {
        user.launchd.fails("bootstrap", exit);
        let before = user.everything();
        user.agent("install")
            .fails("the agent was not installed")
            .says(&exit.to_string())
            .says(next_step);
        assert_eq!(user.everything(), before, "{exit}");
    }
    // Nor where launchctl or LM Studio is missing.
    user.launchd.works("bootstrap");
    let launchctl = user.standins().file("launchctl");
    let away = user.env.user().join("away");
    fs::rename(&launchctl, &away).unwrap();
    let told = "the agent needs macOS, and its launchctl to answer";
    user.agent("install").fails(told);
    fs::rename(&away, &launchctl).unwrap();
    fs::rename(user.env.lmstudio(), away).unwrap();
    let before = user.everything();
    user.agent("install").fails(".lmstudio");
    assert_eq!(user.standins().calls(), [""; 0]);
    assert_eq!(user.everything(), before);
    assert!(!user.job().exists());
}

#[test]
fn where_a_new_job_cannot_take_its_place_the_old_one_comes_back_or_stays() {
    let user = User::with_agent();
    let (launchd, standins) = (&user.launchd, user.standins());
    let before = fs::read(user.job()).unwrap();
    let has_old_job = || {
        assert_eq!(fs::read(user.job()).unwrap(), before);
        assert_eq!(launchd.job(), Some(before.clone()));
    };
    launchd.fails("bootout", 150);
    let failed = "launchctl bootout failed";
    user.agent("install 8192")
        .fails(failed)
        .says("not installed");
    user.agent("uninstall")
        .fails(failed)
        .says("not uninstalled");
    has_old_job();
    // Its file comes back also where launchd takes no job at all.
    launchd.works("bootout");
    launchd.fails("bootstrap", 125);
    user.agent("install 8192").fails("125");
    assert_eq!(fs::read(user.job()).unwrap(), before);
    launchd.works("bootstrap");
    let once = format!(
        "[ \"$1\" = bootstrap ] && [ ! -e '{0}' ] && touch '{0}' && exit 125\nexec '{1}' \"$@\"",
        standins.file("once").display(),
        standins.file("real").display()
    );
    fs::rename(standins.file("launchctl"), standins.file("real")).unwrap();
    standins.script("launchctl", &once);
    user.agent("install 8192").fails("125");
    has_old_job();
    user.has_chunks([4096]);
    // A bootout that takes for ever.
    launchd.never_lets_go();
    let begin = Instant::now();
    user.agent("install 8192")
        .fails("launchd still has io.github.lmpatch.agent")
        .says("log out and in");
    assert!(begin.elapsed() >= Duration::from_secs(15));
    has_old_job();
    // A file that cannot be written.
    fs::remove_file(user.job()).unwrap();
    fs::create_dir(user.job()).unwrap();
    user.agent("install 512").fails("cannot write in ");
    assert_eq!(launchd.job(), Some(before));
}

#[test]
fn what_cannot_be_written_names_the_directory_and_not_a_temporary_file() {
    let missing = Env::new().user().join("missing");
    let why = files::replace(&missing.join("file"), b"").unwrap_err();
    let why = format!("{why:#}");
    let told = format!("cannot write in {} (No such file", missing.display());
    assert!(why.starts_with(&told), "{why}");
    assert!(!why.contains(".lmpatch-"), "{why}");
}
