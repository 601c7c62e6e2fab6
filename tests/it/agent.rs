//! The agent: what it hands to launchd, what launchd runs, and what both say.
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::home::{
    BackendDir, SITE_PACKAGES, engine_since_2026, generate, runtime, stock_generate, usual_backend,
};
use crate::support::standins::{Launchd, StandIns, install};
use crate::support::{Env, Ran, aloud, differences, snapshot, strace};
use lmpatch::agent;
use lmpatch::cli::{self, Cli};
use lmpatch::lmstudio::lms::Lms;
use plist::Value;

const OLD: &str = "app-mlx-generate-mac14-arm64@34";
const NEW: &str = "app-mlx-generate-mac14-arm64@36";

/// A settling time of the job that suits a test. It is patient for 180 times as long.
const SOON: [&str; 2] = ["--settle-ms", "200"];

/// One that lets it be patient for two seconds.
const IMPATIENT: [&str; 2] = ["--settle-ms", "10"];

/// A user with lmpatch installed in `~/bin` and one stock backend.
struct User<'e> {
    env: &'e Env,
    standins: StandIns<'e>,
}

impl<'e> User<'e> {
    fn new(env: &'e Env) -> Self {
        let user = Self {
            env,
            standins: StandIns::new(env),
        };
        for directory in ["bin", "Library/LaunchAgents", "Library/Logs"] {
            fs::create_dir_all(env.user().join(directory)).unwrap();
        }
        install(&user.program());
        usual_backend(&env.lmstudio(), OLD);
        user
    }

    fn launchd(&self) -> Launchd<'_, 'e> {
        Launchd::new(&self.standins)
    }

    fn program(&self) -> PathBuf {
        self.env.user().join("bin/lmpatch")
    }

    fn job(&self) -> PathBuf {
        self.env
            .user()
            .join("Library/LaunchAgents/io.github.lmpatch.agent.plist")
    }

    fn log(&self) -> PathBuf {
        self.env.user().join("Library/Logs/lmpatch.log")
    }

    fn target(&self) -> String {
        let uid = fs::metadata(self.env.user()).unwrap().uid();
        format!("gui/{uid}/io.github.lmpatch.agent")
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_as(&self.program(), args)
    }

    fn run_as(&self, program: &Path, args: &[&str]) -> Ran {
        let mut command = Command::new(program);
        Ran::of(
            &self
                .standins
                .prepare(&mut command)
                .args(args)
                .output()
                .unwrap(),
        )
    }

    /// What launchd would run, its stderr in the log, with these flags added.
    fn job_command(&self, flags: &[&str]) -> Command {
        let job = Value::from_file(self.job()).unwrap();
        let arguments = texts(&job, "ProgramArguments");
        let mut command = Command::new(&arguments[0]);
        self.standins.prepare(&mut command).args(&arguments[1..]);
        let log = File::options().create(true).append(true).open(self.log());
        command
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(log.unwrap());
        command
    }

    /// Runs the job to its end and returns its exit code.
    #[track_caller]
    fn run_job(&self, flags: &[&str]) -> Option<i32> {
        let output = self.job_command(flags).output().unwrap();
        assert_eq!(output.stdout, b"");
        output.status.code()
    }

    fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn chunk(&self, backend: &str) -> u64 {
        let report = self.env.json(["--check", "--backend", backend]);
        report["backends"][0]["chunk"].as_u64().unwrap()
    }

    /// Everything that the user and launchd have.
    fn everything(
        &self,
    ) -> [std::collections::BTreeMap<std::ffi::OsString, crate::support::Entry>; 2] {
        let standins = self.standins.file("");
        fs::remove_file(standins.join("calls")).ok();
        [snapshot(&self.env.user()), snapshot(&standins)]
    }
}

fn texts(job: &Value, key: &str) -> Vec<String> {
    let texts = job.as_dictionary().unwrap()[key].as_array().unwrap();
    let text = |text: &Value| text.as_string().unwrap().to_owned();
    texts.iter().map(text).collect()
}

fn code(mut child: Child) -> Option<i32> {
    child.wait().unwrap().code()
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
fn install_hands_launchd_a_job_that_runs_at_load_on_changes_and_every_hour() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install", "8k"]).exits(0);
    let job = Value::from_file(user.job()).unwrap();
    let home = env.lmstudio().display().to_string();
    let program = user.program().display().to_string();
    assert_eq!(
        texts(&job, "ProgramArguments"),
        [&program, "--home", &home, "agent", "run", "8192"]
    );
    assert_eq!(
        texts(&job, "WatchPaths"),
        [env.amphibian().to_str().unwrap()]
    );
    let job = job.as_dictionary().unwrap();
    assert_eq!(job["Label"].as_string(), Some("io.github.lmpatch.agent"));
    assert_eq!(job["RunAtLoad"].as_boolean(), Some(true));
    assert_eq!(job["StartInterval"].as_unsigned_integer(), Some(3600));
    assert_eq!(job["StandardErrorPath"].as_string(), user.log().to_str());
    assert!(!job.contains_key("StandardOutPath"));
    assert_eq!(launchd.job(), fs::read(user.job()).ok());
    match Command::new("plutil").arg("-lint").arg(user.job()).output() {
        Ok(lint) => assert!(lint.status.success(), "{lint:?}"),
        Err(_) => aloud("skipped: plutil -lint on the agent's job: only macOS has it"),
    }
    let uid = user.target();
    let domain = uid.split("/io").next().unwrap();
    assert_eq!(
        user.standins.calls(),
        [
            // There is none yet.
            format!("launchctl bootout {}", user.target()),
            format!("launchctl print {}", user.target()),
            format!("launchctl print {}", user.target()),
            format!("launchctl bootstrap {domain} {}", user.job().display()),
        ]
    );
}

#[test]
fn install_sets_what_is_stock_now_and_leaves_what_somebody_set() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    usual_backend(&env.lmstudio(), NEW)
        .with_engine(engine_since_2026("1024"))
        .with_generate(generate("1024", "1024", "1024"));
    user.run(&["agent", "install"])
        .exits(0)
        .says("it sets every backend that is at stock to 4096")
        .says(&format!("{OLD}: 2048 → 4096"))
        .says_nothing_of(NEW);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (4096, 1024));
}

#[test]
fn paths_with_markup_and_blanks_and_relative_ones_survive() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    let home = env.user().join("a <b> & \"c\" ü/[LM] Studio");
    usual_backend(&home, OLD);
    let relative = home.strip_prefix(env.user()).unwrap().to_str().unwrap();
    user.run(&["agent", "install", "--home", relative]).exits(0);
    let job = Value::from_file(user.job()).unwrap();
    assert_eq!(
        texts(&job, "WatchPaths"),
        [crate::support::amphibian(&home).to_str().unwrap()]
    );
    usual_backend(&home, NEW);
    assert_eq!(user.run_job(&SOON), Some(0));
    env.run(["--home", home.to_str().unwrap(), "--check", "4096"])
        .exits(0);
}

#[test]
fn install_again_waits_for_the_old_job_to_go() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    user.run(&["agent", "install", "8192"]).exits(0);
    assert_eq!(launchd.job(), fs::read(user.job()).ok());
    user.run(&["agent", "status"]).exits(0).shows("size 8192");
    let calls = user.standins.calls();
    let verbs: Vec<_> = calls
        .iter()
        .map(|call| call.split(' ').nth(1).unwrap())
        .collect();
    assert_eq!(
        verbs,
        [
            "bootout",
            "print",
            "print",
            "bootstrap",
            "bootout",
            "print",
            "print",
            "print",
            "print",
            "bootstrap",
            "print"
        ]
    );
    let directory = user.job().parent().unwrap().to_owned();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
}

#[test]
fn a_job_that_never_goes_is_told_and_stays() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let before = fs::read(user.job()).unwrap();
    launchd.never_lets_go();
    let begin = Instant::now();
    user.run(&["agent", "install", "8192"])
        .exits(1)
        .says("launchd still has io.github.lmpatch.agent")
        .says("log out and in");
    assert!(begin.elapsed() >= Duration::from_secs(15));
    assert_eq!(fs::read(user.job()).unwrap(), before);
}

#[test]
fn without_a_login_at_the_screen_nothing_is_installed_halfway() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    let exits = [
        (
            125,
            "nobody seems to be logged in at the screen; log in there first",
        ),
        (
            5,
            "nobody seems to be logged in at the screen; log in there first",
        ),
        (119, "run `launchctl enable gui/"),
        (64, "launchctl bootstrap failed"),
    ];
    for (exit, next_step) in exits {
        launchd.fails("bootstrap", exit);
        let before = user.everything();
        user.run(&["agent", "install"])
            .exits(1)
            .says("the agent was not installed")
            .says(&exit.to_string())
            .says(next_step);
        assert_eq!(user.everything(), before, "{exit}");
        launchd.works("bootstrap");
    }
    // An agent that was there comes back, its file also where launchd takes no job at all.
    user.run(&["agent", "install"]).exits(0);
    let before = fs::read(user.job()).unwrap();
    launchd.fails("bootstrap", 125);
    user.run(&["agent", "install", "8192"]).exits(1).says("125");
    assert_eq!(fs::read(user.job()).unwrap(), before);
    launchd.works("bootstrap");
    let once = format!(
        "[ \"$1\" = bootstrap ] && [ ! -e '{0}' ] && touch '{0}' && exit 125\nexec '{1}' \"$@\"",
        user.standins.file("once").display(),
        user.standins.file("real").display()
    );
    fs::rename(user.standins.file("launchctl"), user.standins.file("real")).unwrap();
    user.standins.script("launchctl", &once);
    user.run(&["agent", "install", "8192"]).exits(1).says("125");
    assert_eq!(fs::read(user.job()).unwrap(), before);
    assert_eq!(launchd.job(), Some(before));
    assert_eq!(user.chunk(OLD), 4096);
}

#[test]
fn a_bootout_that_fails_leaves_things_as_they_were() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let before = fs::read(user.job()).unwrap();
    launchd.fails("bootout", 150);
    user.run(&["agent", "install", "8192"])
        .exits(1)
        .says("launchctl bootout failed")
        .says("not installed");
    user.run(&["agent", "uninstall"])
        .exits(1)
        .says("launchctl bootout failed")
        .says("not uninstalled");
    assert_eq!(fs::read(user.job()).unwrap(), before);
    assert_eq!(launchd.job(), Some(before));
}

#[test]
fn without_launchctl_or_a_home_nothing_is_installed() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"])
        .exits(1)
        .says("the agent needs macOS, and its launchctl to answer");
    let _launchd = user.launchd();
    fs::remove_dir_all(env.lmstudio()).unwrap();
    user.run(&["agent", "install"]).exits(1).says(".lmstudio");
    assert!(!user.job().exists());
    assert_eq!(user.standins.calls(), Vec::<String>::new());
}

#[test]
fn a_program_that_will_vanish_is_refused_with_the_next_step() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    let temporary = env.user().with_file_name("tmp").join("lmpatch");
    install(&temporary);
    let before = snapshot(&env.user());
    // The binary under test is in cargo's target directory.
    for program in [Path::new(crate::support::LMPATCH), &temporary] {
        user.run_as(program, &["agent", "install"])
            .exits(1)
            .says("is in a build or temporary directory")
            .says("cargo install --path .");
    }
    assert_eq!(
        differences(&before, &snapshot(&env.user())),
        Vec::<String>::new()
    );
    assert_eq!(user.standins.calls(), Vec::<String>::new());
}

#[test]
fn homebrews_stable_link_is_what_launchd_runs() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    let prefix = env.user().join("homebrew");
    let program = prefix.join("Cellar/lmpatch/0.1.0/bin/lmpatch");
    install(&program);
    fs::create_dir_all(prefix.join("bin")).unwrap();
    symlink(&program, prefix.join("bin/lmpatch")).unwrap();
    user.run_as(&program, &["agent", "install"]).exits(0);
    let job = Value::from_file(user.job()).unwrap();
    let program = fs::canonicalize(prefix.join("bin"))
        .unwrap()
        .join("lmpatch");
    assert_eq!(
        texts(&job, "ProgramArguments")[0],
        program.display().to_string()
    );
}

#[test]
fn a_home_in_a_protected_folder_needs_full_disk_access() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    for folder in ["Documents", "Desktop", "Downloads"] {
        let home = env.user().join(folder).join("LM Studio");
        usual_backend(&home, OLD);
        user.run(&["agent", "install", "--home", home.to_str().unwrap()])
            .exits(0)
            .says("macOS does not let the agent into")
            .says(&format!("give it to {}", user.program().display()))
            .says("System Settings → Privacy & Security → Full Disk Access");
    }
    // Also through a link.
    let link = env.user().join("linked");
    symlink(env.user().join("Documents/LM Studio"), &link).unwrap();
    user.run(&["agent", "install", "--home", "linked"])
        .exits(0)
        .says("Full Disk Access");
    user.run(&["agent", "install"])
        .exits(0)
        .says_nothing_of("Full Disk Access");
}

#[test]
fn disks_and_the_users_own_folders_are_what_macos_protects() {
    let is_protected = |directory: &str| {
        lmpatch::files::is_protected(Path::new(directory), Path::new("/Users/ada"))
    };
    for directory in [
        "/Volumes/Fast Disk/LM Studio/extensions/backends/vendor/_amphibian",
        "/Users/ada/Documents/lm",
        "/Users/ada/Desktop",
        "/Users/ada/Downloads/a/b",
    ] {
        assert!(is_protected(directory), "{directory}");
    }
    for directory in [
        "/Users/ada/.lmstudio/extensions/backends/vendor/_amphibian",
        "/Users/ada/Documents2",
        "/Users/bob/Documents/lm",
        "/VolumesX",
    ] {
        assert!(!is_protected(directory), "{directory}");
    }
}

#[test]
fn uninstall_leaves_nothing() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    env.run(["4096"]).exits(0);
    let before = user.everything();
    user.run(&["agent", "install"]).exits(0);
    usual_backend(&env.lmstudio(), NEW);
    assert_eq!(user.run_job(&SOON), Some(0));
    assert!(!user.logged().is_empty());
    user.run(&["agent", "uninstall"])
        .exits(0)
        .says("uninstalled");
    fs::remove_dir_all(env.amphibian().join(NEW)).unwrap();
    assert_eq!(user.everything(), before);
    assert_eq!(launchd.job(), None);
    user.run(&["agent", "uninstall"]).exits(0);
    user.run(&["agent", "status"])
        .exits(1)
        .shows("not installed");
}

#[test]
fn uninstall_takes_a_job_from_launchd_whose_file_is_gone() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    fs::remove_file(user.job()).unwrap();
    user.run(&["agent", "uninstall"])
        .exits(0)
        .says("uninstalled");
    assert_eq!(launchd.job(), None);
}

#[test]
fn status_tells_size_and_the_last_ten_lines() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install", "8192"]).exits(0);
    let lines: String = (1..=12).map(|number| format!("line {number}\n")).collect();
    fs::write(user.log(), lines + "\u{1b}[31m\n").unwrap();
    let shown = user.run(&["agent", "status"]).exits(0).stdout;
    let home = env.lmstudio().display().to_string();
    let size = format!("installed and loaded, size 8192 in {home}\n");
    assert!(shown.starts_with(&size), "{shown}");
    assert!(
        shown.contains("line 4\n") && !shown.contains("line 3\n"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let json = user.run(&["agent", "status", "--json"]).exits(0).stdout;
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&status["installed"], &status["loaded"], &status["size"]),
        (&true.into(), &true.into(), &8192.into())
    );
    assert_eq!(status["last_lines"].as_array().map(Vec::len), Some(10));
    assert_eq!(status["problem"], serde_json::Value::Null);
    let quiet = user.run(&["agent", "status", "-q"]).exits(0);
    assert_eq!((quiet.stdout, quiet.stderr), (String::new(), String::new()));
}

#[test]
fn status_tells_what_is_wrong_and_what_to_do() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    launchd.forget();
    user.run(&["agent", "status"])
        .exits(1)
        .shows("installed, but it does not work")
        .says("launchd does not have the agent")
        .says("the background item may be switched off (System Settings → General → Login Items)")
        .says("lmpatch agent install");
    user.run(&["agent", "status", "-q"])
        .exits(1)
        .says("launchd does not have the agent");
    let job = fs::read_to_string(user.job()).unwrap();
    fs::write(user.job(), job.replace("bin/lmpatch", "gone/lmpatch")).unwrap();
    user.run(&["agent", "status"])
        .exits(1)
        .says("gone/lmpatch is gone; `lmpatch agent install 4096` fixes it");
    let elsewhere = job
        .replace("bin/lmpatch", "gone/lmpatch")
        .replace(".lmstudio<", "else<");
    fs::write(user.job(), elsewhere).unwrap();
    let home = env.user().join("else");
    usual_backend(&home, OLD);
    let home = home.display().to_string();
    let fix = format!("is gone; `lmpatch --home '{home}' agent install 4096` fixes it");
    user.run(&["agent", "status"]).exits(1).says(&fix);
    // Also where there is no usual one.
    fs::rename(env.lmstudio(), env.user().join("moved")).unwrap();
    user.run(&["agent", "status"]).exits(1).says(&fix);
    fs::rename(env.user().join("moved"), env.lmstudio()).unwrap();
    // Its home was moved, or the disk is away: to install it again would be for another home.
    fs::write(user.job(), &job).unwrap();
    user.run(&["agent", "install"]).exits(0);
    fs::rename(env.lmstudio(), env.user().join("moved")).unwrap();
    user.run(&["agent", "status"])
        .exits(1)
        .says(".lmstudio is not there; ")
        .says("; `lmpatch agent uninstall` ends it");
    fs::rename(env.user().join("moved"), env.lmstudio()).unwrap();
    fs::write(user.job(), "<plist>").unwrap();
    user.run(&["agent", "status"])
        .exits(1)
        .says("not written by lmpatch; `lmpatch agent install 4096` fixes it");
}

#[test]
fn the_job_sets_what_is_stock_and_says_so_once() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    usual_backend(&env.lmstudio(), NEW);
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.logged(), format!("{NEW}: 2048 → 4096\n"));
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (4096, 4096));
    user.run(&["agent", "status"])
        .exits(0)
        .shows(&format!("{NEW}: 2048 → 4096"));
}

#[test]
fn a_number_that_somebody_set_stays_and_stock_does_not() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    for size in ["8192", "512"] {
        env.run([size]).exits(0);
        assert_eq!(user.run_job(&SOON), Some(0));
        assert_eq!(user.chunk(OLD).to_string(), size);
    }
    assert_eq!(user.logged(), "");
    user.run(&["--revert"])
        .exits(0)
        .says("the agent will set 4096 again")
        .says("`lmpatch agent uninstall` ends that");
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.chunk(OLD), 4096);
    // LM Studio brings the same backend anew.
    fs::remove_dir_all(env.amphibian().join(OLD)).unwrap();
    usual_backend(&env.lmstudio(), OLD);
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.chunk(OLD), 4096);
    // Somebody's own number under stock ones is left alone.
    fs::remove_dir_all(env.amphibian().join(OLD)).unwrap();
    usual_backend(&env.lmstudio(), OLD).with_engine(engine_since_2026("3072"));
    user.run(&["4096"]).exits(0);
    user.run(&["2048"])
        .exits(0)
        .says_nothing_of("the agent will set");
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.chunk(OLD), 2048);
    user.run(&["agent", "uninstall"]).exits(0);
    user.run(&["--revert"]).exits(0).says_nothing_of("agent");
}

#[test]
fn a_size_that_is_stock_changes_nothing_and_says_nothing() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    let before = snapshot(&env.lmstudio());
    user.run(&["agent", "install", "2048"]).exits(0);
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.logged(), "");
    assert_eq!(
        differences(&before, &snapshot(&env.lmstudio())),
        Vec::<String>::new()
    );
}

#[test]
fn the_job_waits_until_every_backend_is_whole() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let backend = BackendDir::new(&env.lmstudio(), NEW)
        .with_generate(stock_generate())
        .with_record(stock_generate());
    let mut job = user.job_command(&SOON).spawn().unwrap();
    // Should it not wait, it has time to show that.
    std::thread::sleep(Duration::from_millis(500));
    assert!(job.try_wait().unwrap().is_none());
    fs::create_dir(backend.path("mlx_engine")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(job.try_wait().unwrap().is_none());
    let whole = backend.path("mlx_engine/new");
    fs::write(&whole, engine_since_2026("2048")).unwrap();
    fs::rename(whole, backend.engine()).unwrap();
    assert_eq!(code(job), Some(0));
    assert_eq!(user.chunk(NEW), 4096);
    assert_eq!(user.logged(), format!("{NEW}: 2048 → 4096\n"));
}

#[test]
fn the_job_waits_for_a_backend_that_a_manifest_names() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    env.run(["--revert"]).exits(0);
    runtime(&env.lmstudio(), "1.12.0", &[NEW]);
    let mut job = user.job_command(&SOON).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(job.try_wait().unwrap().is_none());
    assert_eq!(user.chunk(OLD), 2048);
    usual_backend(&env.user().join("elsewhere"), NEW);
    fs::rename(
        crate::support::amphibian(&env.user().join("elsewhere")).join(NEW),
        env.amphibian().join(NEW),
    )
    .unwrap();
    assert_eq!(code(job), Some(0));
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (4096, 4096));
}

#[test]
fn the_job_leaves_files_alone_while_they_change() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let backend = usual_backend(&env.lmstudio(), NEW);
    // Unpacking gives files the time of writing that they had elsewhere.
    let unpack = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    for name in [OLD, NEW] {
        let packages = env.amphibian().join(name).join(SITE_PACKAGES);
        unpack(&packages.join("mlx_engine/cache_wrapper.py"));
        unpack(&packages.join("mlx_lm/generate.py"));
    }
    let flags = ["--settle-ms", "4000"];
    let job = user.job_command(&flags).spawn().unwrap();
    for number in 0..40 {
        let text = format!("{}# {number}\n", engine_since_2026("2048"));
        fs::write(backend.engine(), &text).unwrap();
        unpack(&backend.engine());
        std::thread::sleep(Duration::from_millis(25));
        assert_eq!(fs::read_to_string(backend.engine()).unwrap(), text);
    }
    assert_eq!(code(job), Some(0));
    assert_eq!(user.chunk(NEW), 4096);
}

#[test]
fn a_backend_that_changes_until_the_deadline_is_left_alone() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    env.run(["--revert"]).exits(0);
    let backend = usual_backend(&env.lmstudio(), NEW);
    let settle = Duration::from_millis(40);
    let mut job = user.job_command(&["--settle-ms", "40"]).spawn().unwrap();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while job.try_wait().unwrap().is_none() {
        // A package that is unpacked beside the two.
        fs::create_dir(backend.path("tokenizers")).unwrap();
        fs::remove_dir(backend.path("tokenizers")).unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        std::thread::sleep(Duration::from_millis(1));
    }
    if longest >= settle {
        return aloud("skipped: it was too busy here to keep a backend changing");
    }
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (4096, 2048));
}

#[test]
fn a_job_that_cannot_be_written_leaves_the_old_one() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let job = launchd.job().unwrap();
    fs::remove_file(user.job()).unwrap();
    fs::create_dir(user.job()).unwrap();
    user.run(&["agent", "install", "512"])
        .exits(1)
        .says("its job cannot be written");
    assert_eq!(launchd.job(), Some(job));
}

#[test]
fn at_the_deadline_the_job_sets_those_that_are_whole() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    env.run(["--revert"]).exits(0);
    let backend = BackendDir::new(&env.lmstudio(), NEW).with_generate(stock_generate());
    runtime(
        &env.lmstudio(),
        "1.12.0",
        &["app-mlx-generate-mac14-arm64@40"],
    );
    let before = snapshot(&backend.root);
    assert_eq!(user.run_job(&IMPATIENT), Some(0));
    assert_eq!(user.chunk(OLD), 4096);
    assert_eq!(user.logged(), format!("{OLD}: 2048 → 4096\n"));
    assert_eq!(
        differences(&before, &snapshot(&backend.root)),
        Vec::<String>::new()
    );
}

#[test]
fn a_backend_that_is_refused_is_logged_and_does_not_stop_the_others() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    env.run(["--revert"]).exits(0);
    usual_backend(&env.lmstudio(), NEW).with_engine("PROMPT_PROCESSING_CHUNK_SIZE = 1 << 11\n");
    assert_eq!(user.run_job(&SOON), Some(1));
    assert_eq!(user.chunk(OLD), 4096);
    let logged = user.logged();
    assert_eq!(logged.lines().count(), 2, "{logged}");
    assert!(logged.contains(&format!("error: {NEW}: ")), "{logged}");
    assert!(logged.contains("cache_wrapper.py"), "{logged}");
    // Also where there is nothing else in it to set.
    usual_backend(&env.lmstudio(), NEW)
        .with_engine("PROMPT_PROCESSING_CHUNK_SIZE = 1 << 11\n")
        .with_generate(generate("4096", "4096", "4096"));
    user.run(&["agent", "install"])
        .exits(1)
        .says(&format!("{NEW}: mlx_engine/cache_wrapper.py: "));
}

#[test]
fn check_tells_of_an_agent_that_does_not_work_or_keeps_another_size() {
    let env = Env::new();
    let user = User::new(&env);
    let launchd = user.launchd();
    runtime(&env.lmstudio(), "1.11.0", &[OLD]);
    crate::support::home::select(&env.lmstudio(), "1.11.0");
    user.run(&["--check"]).exits(0).says_nothing_of("the agent");
    user.run(&["agent", "install"]).exits(0);
    user.run(&["--check"]).exits(0).says_nothing_of("the agent");
    user.run(&["8192"]).exits(0).says_nothing_of("the agent");
    user.run(&["--check"])
        .exits(0)
        .says("the agent sets 4096, and the selected backend has 8192")
        .says("`lmpatch agent install 8192` keeps 8192, `lmpatch 4096` sets 4096");
    // It does nothing in another home.
    let elsewhere = env.user().join("elsewhere");
    usual_backend(&elsewhere, OLD);
    runtime(&elsewhere, "1.11.0", &[OLD]);
    crate::support::home::select(&elsewhere, "1.11.0");
    for action in ["--check", "--revert"] {
        user.run(&[action, "--home", elsewhere.to_str().unwrap()])
            .exits(0)
            .says_nothing_of("the agent");
    }
    launchd.forget();
    user.run(&["--check"])
        .exits(0)
        .says("launchd does not have the agent")
        .says("`lmpatch agent install 4096` fixes it");
}

#[test]
fn other_directories_are_ignored_in_silence() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let python = "cpython3.11-mac-arm64@12/lib/python3.11/site-packages";
    fs::create_dir_all(env.amphibian().join(python)).unwrap();
    let hidden = usual_backend(&env.lmstudio(), ".unpacking");
    let before = snapshot(&hidden.root);
    fs::write(env.amphibian().join("a file"), "").unwrap();
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.logged(), "");
    assert!(snapshot(&hidden.root) == before);
}

#[test]
fn a_home_that_is_gone_is_waited_for_in_silence() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    fs::rename(env.lmstudio(), env.user().join("away")).unwrap();
    assert_eq!(user.run_job(&IMPATIENT), Some(0));
    assert!(!env.lmstudio().exists());
    let job = user.job_command(&SOON).spawn().unwrap();
    usual_backend(&env.user().join("away"), NEW);
    fs::rename(env.user().join("away"), env.lmstudio()).unwrap();
    assert_eq!(code(job), Some(0));
    assert_eq!(user.logged(), format!("{NEW}: 2048 → 4096\n"));
}

#[test]
fn a_benchmark_that_holds_the_lock_is_waited_for() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    env.run(["--revert"]).exits(0);
    let lock = File::open(env.amphibian()).unwrap();
    lock.lock().unwrap();
    let mut job = user.job_command(&SOON).spawn().unwrap();
    // Longer than any other command waits for the lock.
    std::thread::sleep(Duration::from_secs(11));
    assert!(job.try_wait().unwrap().is_none());
    assert_eq!(user.chunk(OLD), 2048);
    drop(lock);
    assert_eq!(code(job), Some(0));
    assert_eq!(user.logged(), format!("{OLD}: 2048 → 4096\n"));
}

#[test]
fn a_lock_that_is_still_held_at_the_deadline_is_left_to_the_next_start() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    let lock = File::open(env.amphibian()).unwrap();
    lock.lock().unwrap();
    user.run(&["agent", "install"])
        .exits(0)
        .says("another lmpatch is at work; the agent sets the backends when that has ended");
    assert_eq!(user.run_job(&IMPATIENT), Some(0));
    assert_eq!(user.logged(), "");
    drop(lock);
    assert_eq!(user.chunk(OLD), 2048);
    assert_eq!(user.run_job(&IMPATIENT), Some(0));
    assert_eq!(user.chunk(OLD), 4096);
}

#[test]
fn what_macos_does_not_let_in_is_logged_at_once_with_the_reason() {
    if !strace::is_there() {
        return;
    }
    let env = Env::new();
    let user = User::new(&env);
    let home = env.lmstudio().display().to_string();
    let args = [&["--home", &home, "agent", "run", "2048"], &SOON[..]].concat();
    let calls = strace::record(&env, &args);
    let listing = calls.iter().find(|call| call.name == "openat").unwrap();
    assert!(listing.text.contains("_amphibian"), "{listing:?}");
    let tampering = format!("error=EPERM:when={}+", listing.occurrence);
    // A settling time that no test would wait for: it is told before.
    let args = [
        "--home",
        &home,
        "agent",
        "run",
        "2048",
        "--settle-ms",
        "3600000",
    ];
    let (output, was_hit) = strace::inject(&env, "openat", &tampering, &args);
    assert!(was_hit);
    let ran = Ran::of(&output)
        .exits(1)
        .says("Operation not permitted")
        .says("System Settings → Privacy & Security → Full Disk Access");
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    // What is in the log is what `agent status` shows.
    fs::write(user.log(), ran.stderr).unwrap();
    user.run(&["agent", "status"]).shows("Full Disk Access");
}

#[test]
fn a_directory_that_is_closed_is_logged_at_once_with_the_command_that_opens_it() {
    use crate::support::child::{finish, while_mode};
    let env = Env::new();
    usual_backend(&env.lmstudio(), OLD);
    env.hand_over();
    let home = env.lmstudio().display().to_string();
    let args = [
        "--home",
        &home,
        "agent",
        "run",
        "4096",
        "--settle-ms",
        "3600000",
    ];
    while_mode(&env.amphibian(), 0o000, || {
        finish(&mut env.ordinary(args)).exits(1).says("chmod u+rwx")
    });
}

#[test]
fn a_file_that_is_not_the_one_of_its_record_may_be_half_unpacked_and_is_told() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    let whole = stock_generate();
    let half = whole.split_once("class BatchGenerator").unwrap().0;
    let started = Instant::now();
    let backend = usual_backend(&env.lmstudio(), NEW).with_generate(half);
    let before = snapshot(&backend.root);
    let told = format!(
        "{NEW}: a file of it is not the one that its package's RECORD lists; if no update is under way, \
         `lmpatch 4096 --backend '{NEW}'` sets it"
    );
    user.run(&["agent", "install"]).exits(1).says(&told);
    assert_eq!(user.run_job(&IMPATIENT), Some(1));
    let patience = Duration::from_millis(1800);
    assert!(started.elapsed() >= patience, "it was not waited for");
    let home = format!("`lmpatch --home '{}' 4096", env.lmstudio().display());
    let told = told.replace("`lmpatch 4096", &home);
    assert_eq!(user.logged(), format!("error: {told}\n"));
    assert_eq!(
        differences(&before, &snapshot(&backend.root)),
        Vec::<String>::new()
    );
    // Where it has been set by hand there is nothing to tell.
    env.run(["4096", "--backend", NEW]).exits(0);
    assert_eq!(user.run_job(&SOON), Some(0));
    env.run(["--revert", "--backend", NEW])
        .exits(0)
        .says_nothing_of("the agent will set");
    // What it unpacks further goes where it began.
    fs::write(backend.generate(), &whole).unwrap();
    assert_eq!(user.run_job(&SOON), Some(0));
    assert_eq!(user.chunk(NEW), 4096);
}

#[test]
fn a_backend_that_a_kill_left_half_set_is_set() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    let half = usual_backend(&env.lmstudio(), NEW);
    let half = half.with_engine(engine_since_2026("8192"));
    user.run(&["agent", "install", "8192"]).exits(0);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (8192, 8192));
    let text = fs::read_to_string(half.generate()).unwrap();
    assert_eq!(text, generate("8192", "8192", "8192"));
    // One that somebody has set otherwise in part is not the agent's.
    let half = half.with_engine(engine_since_2026("1024"));
    let half = half.with_generate(stock_generate());
    user.run(&["agent", "install", "8192"]).exits(0);
    assert_eq!(
        fs::read_to_string(half.generate()).unwrap(),
        stock_generate()
    );
}

#[test]
fn a_launchctl_that_does_not_answer_says_nothing_of_the_agent() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "install"]).exits(0);
    fs::write(user.standins.file("launchctl"), "no program").unwrap();
    for command in ["status", "uninstall"] {
        user.run(&["agent", command])
            .exits(1)
            .says("the agent needs macOS, and its launchctl to answer")
            .says_nothing_of("uninstalled;")
            .says_nothing_of("launchd does not have the agent");
    }
    assert!(user.job().exists());
    env.run(["--check"]).exits(0).says_nothing_of("agent");
}

#[test]
fn install_and_uninstall_print_the_state_as_json() {
    let env = Env::new();
    let user = User::new(&env);
    let _launchd = user.launchd();
    user.run(&["agent", "status"])
        .exits(1)
        .says("`lmpatch agent install` installs it.");
    for (command, installed) in [("install", true), ("uninstall", false)] {
        let ran = user.run(&["agent", command, "--json"]).exits(0);
        let status: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(status["installed"], installed);
    }
}

#[test]
fn what_cannot_be_written_names_the_directory_and_not_a_temporary_file() {
    let env = Env::new();
    let missing = env.user().join("missing");
    let why = lmpatch::files::replace(&missing.join("file"), b"").unwrap_err();
    let why = format!("{why:#}");
    let told = format!("cannot write in {} (No such file", missing.display());
    assert!(
        why.starts_with(&told) && !why.contains(".lmpatch-"),
        "{why}"
    );
}
