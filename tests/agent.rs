//! The agent: what it hands to launchd, and what it does when LM Studio brings something new.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use plist::Value;
use support::home::{
    Layer, SITE_PACKAGES, engine_since_2026, generate, stock_generate, usual_layer,
};
use support::standins::{StandIns, until};
use support::{Env, Ran, aloud, differences, snapshot};

const OLD: &str = "app-mlx-generate-mac14-arm64@34";
const NEW: &str = "app-mlx-generate-mac14-arm64@36";

/// A user with lmpatch installed in `~/bin`, a launchd that works, and one backend.
struct User<'e> {
    env: &'e Env,
    standins: StandIns<'e>,
}

impl<'e> User<'e> {
    fn new(env: &'e Env) -> Self {
        let standins = StandIns::new(env);
        let user = Self { env, standins };
        fs::create_dir_all(user.program().parent().unwrap()).unwrap();
        fs::create_dir_all(env.user().join("Library/LaunchAgents")).unwrap();
        fs::create_dir_all(env.user().join("Library/Application Support")).unwrap();
        if fs::hard_link(support::LMPATCH, user.program()).is_err() {
            fs::copy(support::LMPATCH, user.program()).unwrap();
        }
        usual_layer(&env.lmstudio(), OLD);
        user.launchctl("", "");
        user
    }

    fn program(&self) -> PathBuf {
        self.env.user().join("bin/lmpatch")
    }

    fn job(&self) -> PathBuf {
        self.env
            .user()
            .join("Library/LaunchAgents/io.github.lmpatch.agent.plist")
    }

    fn log(&self) -> String {
        let log = self
            .env
            .user()
            .join("Library/Application Support/lmpatch/agent.log");
        fs::read_to_string(log).unwrap_or_default()
    }

    fn uid(&self) -> u32 {
        fs::metadata(self.env.user()).unwrap().uid()
    }

    /// A launchctl that keeps account of the job; the arguments are what it does first.
    fn launchctl(&self, before_bootstrap: &str, before_bootout: &str) {
        let loaded = self.standins.file("loaded").display().to_string();
        self.standins.script(
            "launchctl",
            &format!(
                "case $1 in\nprint) [ -e '{loaded}' ] || exit 113;;\nbootstrap) {before_bootstrap}\n[ -e '{loaded}' ] \
                 && exit 5; touch '{loaded}';;\nbootout) {before_bootout}\nrm '{loaded}';;\n*) exit 64;;\nesac"
            ),
        );
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        self.standins.prepare(&mut command).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }

    /// The agent's command as the job has it, with short waits.
    fn keeper(&self, settle: &str, patience: &str) -> Command {
        let job = Value::from_file(self.job())
            .unwrap()
            .into_dictionary()
            .unwrap();
        let arguments = job["ProgramArguments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_string().unwrap());
        let arguments: Vec<_> = arguments.collect();
        let mut command = Command::new(arguments[0]);
        self.standins.prepare(&mut command).args(&arguments[1..]);
        command.args(["--settle", settle, "--poll", "0.05", "--patience", patience]);
        command
    }

    fn keeps(&self) -> Ran {
        Ran::of(&self.keeper("0.4", "20").output().unwrap())
    }

    fn starts_to_keep(&self, settle: &str, patience: &str) -> Keeping {
        let mut child = self
            .keeper(settle, patience)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Keeping {
            said: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    fn chunk(&self, layer: &str) -> u64 {
        let report = self.env.json(["--check", "--backend", layer]);
        report["backends"][0]["chunk"].as_u64().unwrap()
    }
}

/// The agent's command while it runs.
struct Keeping {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Keeping {
    /// Waits until it says `text`; fails where it ends without.
    #[track_caller]
    fn says(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(
                self.said.read_line(&mut line).unwrap(),
                0,
                "it ended without saying {text:?}"
            );
        }
    }

    #[track_caller]
    fn ends(mut self, code: i32) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("panicked"), "{rest}");
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{rest}");
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_string().unwrap())
        .collect()
}

#[test]
fn install_writes_a_valid_job_and_hands_it_to_launchd() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install", "8k"])
        .exits(0)
        .says("get 8192")
        .says("stay as they are");
    let job = Value::from_file(user.job())
        .unwrap()
        .into_dictionary()
        .unwrap();
    let home = env.lmstudio();
    assert_eq!(job["Label"].as_string(), Some("io.github.lmpatch.agent"));
    assert_eq!(
        texts(&job["ProgramArguments"]),
        [
            user.program().to_str().unwrap(),
            "agent",
            "run",
            "8192",
            "--home",
            home.to_str().unwrap()
        ]
    );
    assert_eq!(
        texts(&job["WatchPaths"]),
        [env.amphibian().to_str().unwrap()]
    );
    assert_eq!(job["RunAtLoad"].as_boolean(), Some(true));
    let xml = fs::read_to_string(user.job()).unwrap();
    assert!(
        xml.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC"),
        "{xml}"
    );
    match Command::new("plutil").arg("-lint").arg(user.job()).output() {
        Ok(lint) => assert!(lint.status.success(), "{lint:?}"),
        Err(_) => aloud("skipped: plutil -lint on the agent's job: only macOS has it"),
    }
    let domain = format!("gui/{}", user.uid());
    assert_eq!(
        user.standins.calls(),
        [
            format!("launchctl print {domain}/io.github.lmpatch.agent"),
            format!("launchctl bootstrap {domain} {}", user.job().display()),
        ]
    );
    assert_eq!(
        user.chunk(OLD),
        2048,
        "what is there already is left to the user"
    );
    user.run(&["agent", "status"])
        .exits(0)
        .shows("installed and loaded, size 8192")
        .shows("bin/lmpatch");
}

#[test]
fn paths_with_markup_and_blanks_survive() {
    let env = Env::new();
    let user = User::new(&env);
    let home = env.user().join("a <b> & \"c\" ü/LM Studio");
    usual_layer(&home, OLD);
    user.run(&["agent", "install", "--home", home.to_str().unwrap()])
        .exits(0);
    let job = Value::from_file(user.job())
        .unwrap()
        .into_dictionary()
        .unwrap();
    assert_eq!(
        texts(&job["WatchPaths"]),
        [support::amphibian(&home).to_str().unwrap()]
    );
    usual_layer(&home, NEW);
    user.keeps().exits(0);
    env.run([
        "--home",
        home.to_str().unwrap(),
        "--check",
        "4096",
        "--backend",
        NEW,
    ])
    .exits(0);
}

#[test]
fn a_relative_home_becomes_absolute() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install", "--home", ".lmstudio"])
        .exits(0);
    let job = Value::from_file(user.job())
        .unwrap()
        .into_dictionary()
        .unwrap();
    assert!(
        texts(&job["WatchPaths"])
            .iter()
            .all(|path| Path::new(path).is_absolute())
    );
    assert!(Path::new(texts(&job["ProgramArguments"])[5]).is_absolute());
}

#[test]
fn install_again_updates_in_place() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0).says("installed");
    // An update that nobody has dealt with yet must not be taken for an old one.
    usual_layer(&env.lmstudio(), NEW);
    user.run(&["agent", "install", "8192"])
        .exits(0)
        .says("updated");
    let verbs: Vec<_> = user
        .standins
        .calls()
        .iter()
        .map(|call| call.split(' ').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(
        verbs,
        [
            "print",
            "bootstrap",
            "print",
            "bootout",
            "print",
            "bootstrap"
        ]
    );
    assert_eq!(
        fs::read_dir(user.job().parent().unwrap()).unwrap().count(),
        1
    );
    user.keeps().exits(0);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (2048, 8192));
}

#[test]
fn uninstall_leaves_nothing() {
    let env = Env::new();
    let user = User::new(&env);
    let before = snapshot(&env.user());
    user.run(&["agent", "install"]).exits(0);
    user.keeps().exits(0);
    user.run(&["agent", "uninstall"])
        .exits(0)
        .says("uninstalled");
    assert_eq!(
        differences(&before, &snapshot(&env.user())),
        Vec::<String>::new()
    );
    assert!(!user.standins.file("loaded").exists());
    user.run(&["agent", "uninstall"])
        .exits(0)
        .says("There was no agent");
    user.run(&["agent", "status"])
        .exits(1)
        .shows("not installed");
}

#[test]
fn a_program_that_will_vanish_is_refused_with_the_remedy() {
    let env = Env::new();
    let user = User::new(&env);
    let before = snapshot(&env.user());
    // The binary under test is in cargo's target directory.
    let ran = user.standins.run(["agent", "install"]).exits(1);
    ran.says("cargo target directory")
        .says("cargo install --path .");
    let temporary = env.user().with_file_name("tmp").join("lmpatch");
    fs::hard_link(user.program(), &temporary).unwrap();
    let mut command = Command::new(&temporary);
    user.standins
        .prepare(&mut command)
        .args(["agent", "install"]);
    Ran::of(&command.output().unwrap())
        .exits(1)
        .says("temporary directory")
        .says("cargo install --path .");
    assert_eq!(
        differences(&before, &snapshot(&env.user())),
        Vec::<String>::new()
    );
    assert_eq!(user.standins.calls(), Vec::<String>::new());
}

#[test]
fn without_a_home_nothing_is_installed() {
    let env = Env::new();
    let user = User::new(&env);
    fs::remove_dir_all(env.lmstudio()).unwrap();
    user.run(&["agent", "install"])
        .exits(1)
        .says("no MLX backend found");
    assert!(!user.job().exists());
}

#[test]
fn a_launchd_that_refuses_leaves_things_as_they_were() {
    let env = Env::new();
    let user = User::new(&env);
    let no = "echo 'Bootstrap failed: 5: Input/output error' >&2; exit 5;";
    user.launchctl(no, "");
    user.run(&["agent", "install"])
        .exits(1)
        .says("Input/output error")
        .says("not installed");
    assert!(!user.job().exists());
    user.launchctl("", "");
    user.run(&["agent", "install"]).exits(0);
    let job = fs::read(user.job()).unwrap();
    user.launchctl("", "echo 'Boot-out failed: 150' >&2; exit 150;");
    user.run(&["agent", "install", "8192"])
        .exits(1)
        .says("Boot-out failed");
    user.run(&["agent", "uninstall"])
        .exits(1)
        .says("Boot-out failed")
        .says("not uninstalled");
    assert_eq!(fs::read(user.job()).unwrap(), job);
}

#[test]
fn a_bootstrap_that_fails_for_a_moment_is_tried_again() {
    let env = Env::new();
    let user = User::new(&env);
    let once = user.standins.file("once").display().to_string();
    user.launchctl(
        &format!("[ -e '{once}' ] || {{ touch '{once}'; exit 5; }};"),
        "",
    );
    user.run(&["agent", "install"]).exits(0);
    assert_eq!(
        user.standins
            .calls()
            .iter()
            .filter(|call| call.contains("bootstrap"))
            .count(),
        2
    );
}

#[test]
fn without_launchctl_the_message_says_so() {
    let env = Env::new();
    let user = User::new(&env);
    fs::remove_file(user.standins.file("launchctl")).unwrap();
    user.run(&["agent", "install"])
        .exits(1)
        .says("launchctl cannot be run; the agent needs macOS");
    assert!(!user.job().exists());
}

#[test]
fn status_tells_what_is_wrong() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    fs::remove_file(user.standins.file("loaded")).unwrap();
    user.run(&["agent", "status"])
        .exits(1)
        .says("launchd does not have it")
        .says("lmpatch agent install");
    let job = fs::read_to_string(user.job()).unwrap();
    fs::write(user.job(), job.replace("bin/lmpatch", "gone/lmpatch")).unwrap();
    user.run(&["agent", "status"])
        .exits(1)
        .says("which it runs, is gone");
    fs::write(user.job(), "<plist>").unwrap();
    user.run(&["agent", "status"])
        .exits(1)
        .says("not a job as lmpatch writes it");
}

#[test]
fn a_layer_that_appears_file_by_file_is_set_once_it_is_complete() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    let layer = Layer::new(&env.lmstudio(), NEW);
    let mut keeper = user.starts_to_keep("1.5", "30");
    keeper.says("is new; waiting");
    let pause = || std::thread::sleep(Duration::from_millis(150));
    let layer = layer.with_generate(stock_generate());
    pause();
    // A file that is still being written: first not there, then without its end, then whole.
    let whole = engine_since_2026("2048");
    let layer = layer.with_engine(&whole.as_bytes()[..40]);
    for number in 0..5 {
        pause();
        fs::create_dir_all(layer.path("mlx")).unwrap();
        fs::write(layer.path("mlx").join(format!("{number}.py")), "x = 1\n").unwrap();
        assert_eq!(fs::read(layer.engine()).unwrap(), &whole.as_bytes()[..40]);
        assert_eq!(
            fs::read_to_string(layer.generate()).unwrap(),
            stock_generate()
        );
    }
    let layer = layer.with_engine(&whole);
    let begin = Instant::now();
    until("the layer is set", || {
        fs::read_to_string(layer.engine()).unwrap() == engine_since_2026("4096")
    });
    assert!(
        begin.elapsed() >= Duration::from_millis(1400),
        "it waited: {:?}",
        begin.elapsed()
    );
    keeper.ends(0);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (2048, 4096));
    assert_eq!(user.log().lines().count(), 1, "{}", user.log());
    user.run(&["agent", "status"])
        .exits(0)
        .shows(&format!("{NEW}: 2048 → 4096"));
}

#[test]
fn what_a_person_did_stays_until_the_next_update() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    let layer = usual_layer(&env.lmstudio(), NEW);
    user.keeps().exits(0);
    assert_eq!(user.chunk(NEW), 4096);
    for (args, chunk) in [(["--revert"], 2048), (["8192"], 8192), (["512"], 512)] {
        env.run(args).exits(0);
        user.keeps().exits(0);
        assert_eq!((user.chunk(OLD), user.chunk(NEW)), (chunk, chunk));
    }
    env.run(["--revert"]).exits(0);
    // LM Studio replaces the layer's code in place, then the whole layer: each is an update.
    let update = engine_since_2026("2048") + "# another version\n";
    fs::write(layer.engine(), &update).unwrap();
    user.keeps().exits(0);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (2048, 4096));
    env.run(["--revert"]).exits(0);
    fs::remove_dir_all(&layer.root).unwrap();
    usual_layer(&env.lmstudio(), NEW).with_engine(&update);
    user.keeps().exits(0);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (2048, 4096));
}

#[test]
fn a_new_layer_that_somebody_set_first_stays_as_it_is() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    usual_layer(&env.lmstudio(), NEW)
        .with_engine(engine_since_2026("1024"))
        .with_generate(generate("1024", "1024", "1024"));
    user.keeps().exits(0);
    assert_eq!(user.chunk(NEW), 1024);
    assert!(
        user.log().contains("somebody has set it to 1024"),
        "{}",
        user.log()
    );
}

#[test]
fn a_layer_that_stays_incomplete_is_left_alone_and_reported_once() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    let layer = Layer::new(&env.lmstudio(), NEW).with_generate(stock_generate());
    let before = snapshot(&layer.root);
    for _ in 0..2 {
        let begin = Instant::now();
        Ran::of(&user.keeper("0.4", "1").output().unwrap()).exits(1);
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(user.log().lines().count(), 1, "{}", user.log());
    }
    assert_eq!(
        differences(&before, &snapshot(&layer.root)),
        Vec::<String>::new()
    );
    assert!(
        user.log()
            .contains("mlx_engine/cache_wrapper.py is not there"),
        "{}",
        user.log()
    );
    // Once the update goes on, it is set all the same.
    layer.with_engine(engine_since_2026("2048"));
    user.keeps().exits(0);
    assert_eq!(user.chunk(NEW), 4096);
}

#[test]
fn other_layers_are_passed_over_in_silence() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    fs::create_dir_all(
        env.amphibian()
            .join("cpython3.11-mac-arm64@12")
            .join(SITE_PACKAGES),
    )
    .unwrap();
    fs::create_dir_all(env.amphibian().join(".unpacking")).unwrap();
    fs::write(env.amphibian().join("a file"), "").unwrap();
    user.keeps().exits(0);
    assert_eq!(user.log(), "");
    assert_eq!(user.chunk(OLD), 2048);
}

#[test]
fn a_layer_or_a_home_that_disappears_ends_in_peace() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    let layer = Layer::new(&env.lmstudio(), NEW).with_generate(stock_generate());
    let mut keeper = user.starts_to_keep("0.4", "20");
    keeper.says("is new; waiting");
    fs::remove_dir_all(&layer.root).unwrap();
    keeper.ends(0);
    assert!(
        user.log()
            .contains(&format!("{NEW}: gone before it was complete")),
        "{}",
        user.log()
    );
    Layer::new(&env.lmstudio(), NEW).with_generate(stock_generate());
    let mut keeper = user.starts_to_keep("0.4", "3");
    keeper.says("is new; waiting");
    fs::remove_dir_all(env.lmstudio()).unwrap();
    keeper.ends(1);
    assert!(
        user.log().contains("_amphibian is not there"),
        "{}",
        user.log()
    );
    assert!(!env.lmstudio().exists());
}

#[test]
fn a_home_that_is_replaced_is_a_new_one() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    usual_layer(&env.lmstudio(), NEW).with_engine("x = (\n");
    let mut keeper = user.starts_to_keep("0.4", "20");
    keeper.says("is new; waiting");
    fs::rename(env.lmstudio(), env.user().join("old")).unwrap();
    keeper.says("is not there; waiting for it");
    usual_layer(&env.user().join("next"), OLD);
    usual_layer(&env.user().join("next"), NEW);
    fs::rename(env.user().join("next"), env.lmstudio()).unwrap();
    keeper.ends(0);
    assert_eq!((user.chunk(OLD), user.chunk(NEW)), (4096, 4096));
}

#[test]
fn a_lost_memory_changes_nothing() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    usual_layer(&env.lmstudio(), NEW);
    let memory = env
        .user()
        .join("Library/Application Support/lmpatch/agent.json");
    for broken in [
        None,
        Some("{"),
        Some("[]"),
        Some(r#"{"home":"/elsewhere","layers":{}}"#),
    ] {
        match broken {
            None => fs::remove_file(&memory).unwrap(),
            Some(text) => fs::write(&memory, text).unwrap(),
        }
        user.keeps().exits(0);
        assert_eq!(
            (user.chunk(OLD), user.chunk(NEW)),
            (2048, 2048),
            "{broken:?}"
        );
    }
    assert!(user.log().contains("remembers nothing"), "{}", user.log());
}

#[test]
fn the_log_is_bounded() {
    let env = Env::new();
    let user = User::new(&env);
    user.run(&["agent", "install"]).exits(0);
    let log = env
        .user()
        .join("Library/Application Support/lmpatch/agent.log");
    fs::write(&log, "2026-01-01 00:00:00Z an old line\n".repeat(1985)).unwrap();
    usual_layer(&env.lmstudio(), NEW);
    user.keeps().exits(0);
    let lines = user.log();
    assert!(lines.len() < 40_000, "{}", lines.len());
    assert!(lines.starts_with("2026-01-01 00:00:00Z an old line\n"));
    assert!(lines.ends_with("2048 → 4096\n"));
    let shown = user.run(&["agent", "status"]).exits(0).stdout;
    assert_eq!(shown.matches("an old line").count(), 9);
    let status: serde_json::Value =
        serde_json::from_str(&user.run(&["agent", "status", "--json"]).exits(0).stdout).unwrap();
    assert_eq!(
        (&status["schema"], &status["loaded"], &status["size"]),
        (&1.into(), &true.into(), &4096.into())
    );
    assert_eq!(status["lines"].as_array().map(Vec::len), Some(10));
}
