//! Benchmarks of a Python process, without LM Studio.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::child::until;
use crate::support::home::{BackendDir, NAME};
use crate::support::standins::{MADE_UP_PYTHON, executable};
use crate::support::{Before, Env, interpreter, text};

use super::{NONE, column, failed, json, keeps, make_read_only, ran, rows, signal};

/// `lmpatch bench --direct` with this Python, not yet started.
fn direct(env: &Env, python: &Path, words: &str) -> Command {
    let mut command = env.command(["bench", "--direct", "--model", ".", "--python"]);
    command.arg(python).args(words.split(' '));
    command
}

#[test]
fn a_direct_crash_is_a_row_and_a_new_process_goes_on() {
    let env = Env::with_fixture();
    let python = env.user().join("python");
    executable(&python, MADE_UP_PYTHON);
    let before = Before::of(env.lmstudio());
    let sweep = "--prompt-tokens 10000 --sizes 512,4096,1024,2048,3000";
    let results = json(&mut direct(&env, &python, sweep), 1);
    assert_eq!(column(&results, "size"), [512, 1024, 2048, 3000, 4096]);
    failed(&results, 4, "SIGABRT");
    failed(&results, 4, "Insufficient Memory");
    failed(&results, 1, "ValueError: no");
    assert_eq!(rows(&results)[0]["observed_chunk"], 512);
    assert_eq!(rows(&results)[0]["peak_memory_bytes"], 512_000);
    assert_eq!(results["api"], "direct");
    keeps(&results, 512);
    before.still_holds();
    let apply = "--prompt-tokens 10000 --sizes 2048,512 --apply-best";
    let done = ran(&mut direct(&env, &python, apply)).exits(0);
    done.says("512 is set in")
        .says("; it takes effect when a model is next loaded.");
    env.run(["--check", "512"]).exits(0);
    // One process for all sizes until one crashes, and then another: two in the sweep with a crash, one in the other.
    let processes = text(env.user().join("python.log"));
    let processes: BTreeSet<_> = processes.lines().collect();
    assert_eq!(processes.len(), 3);
    // What could not be set in the end is told in the beginning.
    env.run(["--revert"]).exits(0);
    make_read_only(&BackendDir::new(&env.lmstudio(), NAME).engine());
    let told = ran(&mut direct(&env, &python, apply)).exits(1);
    told.says(&format!("{NAME} is selected but cannot be set: "))
        .says_nothing_of("512 is set in");
}

#[test]
fn a_process_that_ends_when_it_is_cut_short_costs_no_size() {
    let env = Env::new();
    let python = env.user().join("python");
    let body = MADE_UP_PYTHON.replace("Cut: \"}'; continue", "Cut: \"}'; kill -ABRT $$");
    assert_ne!(body, MADE_UP_PYTHON);
    executable(&python, &body.replace("say '{\"error\":\"Cut: \"}'; ", ""));
    let sweep = "--prompt-tokens 16384 --sizes 512,4096,8192 --runs 1";
    let results = json(&mut direct(&env, &python, sweep), 0);
    assert_eq!(rows(&results)[2]["cut"]["tokens"], 8192.0);
    assert_eq!(column(&results, "failed"), [NONE; 3]);
    keeps(&results, 512);
}

#[test]
fn without_a_home_there_is_a_verdict_and_nothing_to_set_it_in() {
    let env = Env::new();
    let [python, started] = ["python", "started"].map(|name| env.user().join(name));
    executable(&python, "touch started");
    let bench = |words| ran(&mut direct(&env, &python, words));
    let ran = bench("--sizes 512,2048 --apply-best").exits(1);
    ran.says(".lmstudio is not there");
    assert!(!started.exists());
    bench("--sizes 512,2048").exits(1).says("it said nothing");
    assert!(started.exists());
    executable(&python, MADE_UP_PYTHON);
    let ran = bench("--sizes 512,2048").exits(0);
    ran.says("Verdict: 512 is the fastest")
        .says_nothing_of("sets it");
}

/// The fixture has older backends that ship with 512.
#[test]
fn the_backend_in_use_lends_its_python_and_its_stock() {
    let env = Env::with_fixture();
    let bench = "bench --direct --model . --prompt-tokens 10000 --sizes 512,2048";
    let bench: Vec<_> = bench.split(' ').collect();
    let missing = "there is no MLX backend whose Python could be used; name one with --python";
    env.run(&bench).fails(missing);
    // It is beside the backend: the runtime is made of both. One that is not in use is newer.
    env.backend("app-mlx-generate-mac14-arm64@40");
    let shared = env.amphibian().join("cpython3.11-mac-arm64@10");
    let python = shared.join("bin/python3.11");
    executable(
        &python,
        &format!("echo $PYTHONPATH >paths\n{MADE_UP_PYTHON}"),
    );
    let results = json(&mut env.command(&bench), 0);
    let packages = BackendDir::new(&env.lmstudio(), NAME).path("");
    let expected = packages.to_string_lossy().into_owned();
    assert_eq!(
        text(env.user().join("paths")).trim(),
        expected.trim_end_matches('/')
    );
    assert_eq!(results["stock"], 2048);
    let ran = ran(&mut env.command(&bench)).exits(0);
    ran.shows(" 4.00 ").shows("2048 (stock)").shows(" 1.00 ");
}

#[test]
fn a_python_that_does_not_answer_is_given_up() {
    let env = Env::new();
    let python = env.user().join("python");
    // More than a pipe holds.
    fs::write(env.user().join("text"), "\u{6f22}".repeat(100_000)).unwrap();
    for (body, why) in [
        ("exec sleep 60", "said nothing for 1 seconds"),
        ("exec >&- <&-; exec sleep 60", "closed its output"),
        ("false", "exit status: 1"),
    ] {
        executable(&python, body);
        let start = Instant::now();
        let mut command = direct(&env, &python, "--sizes 512 --timeout 1 --prompt-file text");
        ran(&mut command).exits(1).says(why);
        assert!(start.elapsed() < Duration::from_secs(50));
    }
}

/// An mlx that is mlx-lm, too, says which process it is in, and then never comes to a token.
const ENDLESS_MLX: &str = "
import os, sys, time
sys.modules['mlx_lm'] = sys.modules['mlx_lm.generate'] = sys.modules[__name__]
array = list
def eval(_): pass
def synchronize(): pass
class Tokenizer:
    def encode(self, text): return [1]
def load(model): return None, Tokenizer()
def generate_step(tokens, model, max_tokens, prefill_step_size):
    with open('process.new', 'w') as file: file.write(str(os.getpid()))
    os.rename('process.new', 'process')
    time.sleep(600)
    yield 0, 0
";

#[test]
fn a_direct_process_ends_when_lmpatch_is_killed() {
    let env = Env::new();
    let packages = env.user().join("packages");
    fs::create_dir_all(packages.join("mlx")).unwrap();
    fs::write(packages.join("mlx/core.py"), ENDLESS_MLX).unwrap();
    let mut command = direct(&env, interpreter(), "--sizes 512");
    let mut child = command.env("PYTHONPATH", &packages).spawn().unwrap();
    let process = env.user().join("process");
    until("a prefill has begun", || process.exists());
    let process = text(process);
    signal(&child, "-KILL");
    child.wait().unwrap();
    until("Python has ended", || {
        let mut kill = Command::new("kill");
        let asked = kill.args(["-0", &process]).stderr(Stdio::null()).status();
        !asked.unwrap().success()
    });
}
