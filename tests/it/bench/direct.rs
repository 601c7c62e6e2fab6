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
use serde_json::Value;

use super::{NONE, column, failed, json, keeps, ran, rows, signal};

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
    // One that cannot be set in the end, others being set.
    env.run(["--revert"]).exits(0);
    let engine = BackendDir::new(&env.lmstudio(), NAME).engine();
    let locks = format!("chmod 444 '{}'\n{MADE_UP_PYTHON}", engine.display());
    executable(&python, &locks);
    let told = ran(&mut direct(&env, &python, apply)).exits(1);
    told.says("512 is set in app-mlx-generate-mac-arm64@8; ")
        .says("512 is set in app-mlx-generate-mac14-arm64@19; ")
        .says(&format!("error: not set to 512: {NAME}: "));
    // And one that could not be set, which is told in the beginning.
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
    bench("--sizes 512,2048")
        .exits(1)
        .says("failed (exit status: 0)");
    assert!(started.exists());
    executable(&python, MADE_UP_PYTHON);
    let ran = bench("--sizes 512,2048").exits(0);
    ran.says("Verdict: 512 is the smallest size within the noise (2.0 %) of the fastest")
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
    executable(&python, &format!("env >variables\n{MADE_UP_PYTHON}"));
    let mut command = env.command(&bench);
    let results = json(command.env("PYTHONHOME", "/nowhere"), 0);
    let packages = BackendDir::new(&env.lmstudio(), NAME).path("");
    let packages = packages.to_string_lossy();
    let packages = format!("PYTHONPATH={}", packages.trim_end_matches('/'));
    let variables = text(env.user().join("variables"));
    let mut variables: Vec<_> = variables.lines().collect();
    variables.retain(|line| line.starts_with("PYTHON"));
    variables.sort_unstable();
    let wanted = ["PYTHONDONTWRITEBYTECODE=1", "PYTHONNOUSERSITE=1", &packages];
    assert_eq!(variables, wanted);
    assert_eq!(results["stock"], 2048);
    assert_eq!(results["runtime"], "MLX 1.11.0");
    let ran = ran(&mut env.command(&bench)).exits(0);
    ran.shows(" 4.00 ").shows("2048 (stock)").shows(" 1.00 ");
    // Another Python says nothing of the runtime.
    let mut command = env.command(&bench);
    let results = json(command.arg("--python").arg(&python), 0);
    assert_eq!(results["runtime"], NONE);
}

#[test]
fn a_python_that_does_not_answer_is_given_up() {
    let env = Env::new();
    let python = env.user().join("python");
    // More than a pipe holds.
    fs::write(env.user().join("text"), "\u{6f22}".repeat(100_000)).unwrap();
    for (body, why) in [
        ("exec sleep 60", "said nothing for the whole --timeout"),
        ("exec >&- <&-; exec sleep 60", "SIGKILL"),
        ("false", "exit status: 1"),
    ] {
        executable(&python, body);
        let start = Instant::now();
        let mut command = direct(&env, &python, "--sizes 512 --timeout 1 --prompt-file text");
        ran(&mut command).exits(1).says(why);
        assert!(start.elapsed() < Duration::from_secs(50));
    }
}

/// An mlx that is mlx-lm, too.
const MLX: &str = "
import os, sys, time
sys.modules['mlx_lm'] = sys.modules['mlx_lm.generate'] = sys.modules[__name__]
array = list
def eval(_): pass
def synchronize(): pass
class Tokenizer:
    def encode(self, text): return list(range(100))
def load(model): return None, Tokenizer()
";

/// `lmpatch bench --direct` with a real Python that has such an mlx, which does `more`.
fn with_mlx(env: &Env, more: &str, words: &str) -> Command {
    let packages = env.user().join("packages");
    fs::create_dir_all(packages.join("mlx")).unwrap();
    fs::write(packages.join("mlx/core.py"), MLX.to_owned() + more).unwrap();
    let mut command = direct(env, interpreter(), words);
    command.env("PYTHONPATH", packages);
    command
}

/// Notes every prefill: the process, the size, the first token, all tokens, and those that were done. Its clock is made
/// up. It prints what looks like an answer, and fails at 1024.
const NOTING: &str = r#"
clock = 0.0
time.perf_counter = lambda: clock
def generate_step(tokens, model, max_tokens, prefill_step_size, prompt_progress_callback):
    global clock
    print('data: {"error":"said by a library"}', flush=True)
    if prefill_step_size == 1024: raise ValueError("no")
    done, all = 0, len(tokens)
    try:
        while done < all:
            done = min(all, done + prefill_step_size)
            clock += prefill_step_size * (5 if prefill_step_size == 512 else 1)
            prompt_progress_callback(done, all)
    finally:
        with open("prefills", "a") as file: print(os.getpid(), prefill_step_size, tokens[0], all, done, file=file)
    yield 0, 0
"#;

#[test]
fn one_process_prefills_all_sizes_and_stops_where_one_is_cut_short() {
    let env = Env::new();
    let words = "--sizes 256,512,1024,4096 --runs 1";
    let results = json(&mut with_mlx(&env, NOTING, words), 1);
    let no = Value::from("ValueError: no");
    assert_eq!(column(&results, "failed"), [NONE, NONE, no, NONE]);
    assert_eq!(rows(&results)[1]["cut"]["tokens"], 4096.0);
    keeps(&results, 256);
    let prefills = text(env.user().join("prefills"));
    let words = prefills.lines().map(|line| line.split(' ').collect());
    let words: Vec<Vec<_>> = words.collect();
    let done: Vec<_> = words.iter().map(|words| words[1..].join(" ")).collect();
    // No two prompts begin alike; that of 1024 is the fourth.
    let wanted = [
        "4096 0 1536 1536",
        "4096 1 4096 4096",
        "4096 2 8192 8192",
        "512 4 512 512",
        "512 5 8192 4096",
        "256 6 256 256",
        "256 7 8192 8192",
    ];
    assert_eq!(done, wanted);
    let processes: BTreeSet<_> = words.iter().map(|words| words[0]).collect();
    assert_eq!(processes.len(), 1);
}

/// Says which process it is in, writes a line once it may, and then never comes to a token.
const ENDLESS: &str = "
def generate_step(tokens, model, max_tokens, prefill_step_size, prompt_progress_callback):
    prompt_progress_callback(0, len(tokens))
    with open('process.new', 'w') as file: file.write(str(os.getpid()))
    os.rename('process.new', 'process')
    while not os.path.exists('goes-on'): time.sleep(0.01)
    sys.modules['__main__'].tell(type='last')
    open('written', 'w').close()
    time.sleep(600)
    yield 0, 0
";

#[test]
fn a_direct_process_ends_when_lmpatch_is_killed_whether_it_has_read_everything_or_not() {
    for is_read in [true, false] {
        let env = Env::new();
        let mut child = with_mlx(&env, ENDLESS, "--sizes 512").spawn().unwrap();
        let [process, goes_on, written] =
            ["process", "goes-on", "written"].map(|name| env.user().join(name));
        until("a prefill has begun", || process.exists());
        if !is_read {
            signal(child.id(), "STOP");
        }
        fs::write(goes_on, "").unwrap();
        until("a line is written", || written.exists());
        let process = text(process);
        signal(child.id(), "KILL");
        child.wait().unwrap();
        until("Python has ended", || {
            let mut kill = Command::new("kill");
            let asked = kill.args(["-0", &process]).stderr(Stdio::null()).status();
            !asked.unwrap().success()
        });
    }
}
