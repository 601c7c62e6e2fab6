//! Every command of the README is run, and the first one prints what is shown there.
use std::fs;
use std::process::Command;

use crate::support::child::finish;
use crate::support::home::{BackendDir, NAME};
use crate::support::server::{FakeLmStudio, chunk_on_disk};
use crate::support::standins::{Launchd, MADE_UP_PYTHON, StandIns, executable, install};
use crate::support::{Env, differences, fixture, snapshot};

const README: &str = include_str!("../../README.md");

/// The words of every `$ lmpatch …` line, without the comment behind it, and of the commands in that comment.
fn commands() -> Vec<Vec<&'static str>> {
    let lines = README.lines().filter_map(|line| line.strip_prefix("$ "));
    let commands = lines.flat_map(|line| line.split(['#', '`']));
    let words = commands.filter_map(|command| command.strip_prefix("lmpatch"));
    let split = |words: &'static str| words.split_whitespace().collect();
    words.map(split).collect()
}

/// The first command of the README with what it prints, as the README shows it.
fn first_command() -> (&'static str, &'static str) {
    let (_, block) = README.split_once("```console\n$ cargo run -- ").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block.split_once('\n').unwrap()
}

#[test]
fn every_command_works() {
    let env = Env::with_fixture();
    let home = env.lmstudio();
    let backend = BackendDir::new(&home, NAME);
    let lm_studio = FakeLmStudio::start(&home, &backend.engine());
    lm_studio.load("qwen/tiny", "mlx", 65_536);
    lm_studio.state().odd.tells_seconds = true;
    let url = lm_studio.url();
    let port = url.rsplit(':').next().unwrap();
    let settings = home.join(".internal/http-server-config.json");
    fs::write(settings, format!("{{\"port\": {port}}}")).unwrap();
    executable(&backend.root.join("bin/python3.11"), MADE_UP_PYTHON);
    fs::create_dir_all(env.user().join("models/qwen3-4b")).unwrap();
    let launchd = Launchd::new(&StandIns::new(&env));
    let program = env.user().join("bin/lmpatch");
    install(&program);
    let commands = commands();
    assert!(commands.len() >= 13, "{commands:?}");
    for words in commands {
        let chunk = chunk_on_disk(&backend.engine()).unwrap();
        // As if the model had been loaded since the last change.
        lm_studio.state().models[0].loaded[0].chunk = chunk;
        let user = env.user().display().to_string();
        let words: Vec<_> = words.iter().map(|word| word.replace('~', &user)).collect();
        let run = |more: &[&str]| {
            let mut command = Command::new(&program);
            finish(env.isolate(&mut command).args(&words).args(more)).exits(0)
        };
        run(&[]);
        // Whatever it says is no error.
        run(&["--quiet"]).prints("", "");
        let has_job = ["agent install 1024", "agent status"].contains(&&*words.join(" "));
        assert_eq!(launchd.job().is_some(), has_job);
    }
    let state = lm_studio.state();
    let chunks = state.prefills.iter().map(|one| one.chunk);
    assert_eq!(chunks.max(), Some(8192));
}

#[test]
fn the_first_command_prints_what_the_readme_shows() {
    let env = Env::with_fixture();
    let (arguments, shown) = first_command();
    let size = arguments.strip_prefix("--home fixtures/lmstudio ").unwrap();
    let mut command = env.command([size]);
    // Without a `ps` nothing is said of loaded models, which depends on the machine.
    let ran = finish(command.env("PATH", "")).exits(0);
    assert_eq!(ran.stdout + &ran.stderr, shown);
    // And back, byte for byte.
    assert!(README.contains("`cargo run -- --home fixtures/lmstudio --revert` takes it back"));
    env.run(["--revert"]).exits(0);
    let (vendors, left) = (snapshot(&fixture()), snapshot(&env.lmstudio()));
    assert_eq!(differences(&vendors, &left), [""; 0]);
}
