//! Benchmarks against a fake LM Studio with a made-up clock: exact speeds, every failure a row, everything as it was.

mod direct;
mod ends;
mod exports;
mod failures;
mod models;
mod prompts;
mod refusals;
mod sweep;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;

use crate::support::home::{BackendDir, runtime, select, usual_backend};
use crate::support::server::{FakeLmStudio, Instance, Odd, State, chunk_on_disk};
use crate::support::{Entry, Env, Ran, differences, snapshot};
use indicatif::ProgressBar;
use lmpatch::bench::args::BenchArgs;
use lmpatch::bench::engine::{Engine, OnProgress, Run};
use lmpatch::bench::guard::Guard;
use lmpatch::bench::measure::Benchmark;
use lmpatch::bench::results::Results;
use lmpatch::cli::{self, Cli};
use lmpatch::marker::lock;
use lmpatch::output::Output;
use lmpatch::patch::survey;
use serde_json::Value;

const NAME: &str = "app-mlx-generate-mac14-arm64@34";
const MODEL: &str = "qwen/tiny";
const NONE: Value = Value::Null;
const QUIET: Output = Output {
    is_quiet: true,
    is_verbose: false,
};
/// Microseconds a token: what comes later is far faster, so that a busy machine has nothing cut short.
const FALLING: &[(u64, u64)] = &[(4096, 100), (2048, 40), (512, 10)];

/// A home with one stock 2048 backend in use, and an LM Studio that runs it.
struct Stage {
    env: Env,
    backend: BackendDir,
    fake: FakeLmStudio,
}

fn stage() -> Stage {
    let env = Env::new();
    let home = env.lmstudio();
    let backend = usual_backend(&home, NAME);
    runtime(&home, "1.12.0", &[NAME]);
    select(&home, "1.12.0");
    let fake = FakeLmStudio::start(&home, &backend.engine());
    fake.load(MODEL, "mlx", 65_536);
    Stage { env, backend, fake }.pace(FALLING)
}

/// One whose progress has the seconds of this table, so that a busy machine makes no difference.
fn exact(pace: &[(u64, u64)]) -> Stage {
    stage().pace(pace).odd(|odd| odd.tells_seconds = true)
}

/// One that has only the interface of `OpenAI`.
fn openai() -> Stage {
    let stage = stage();
    stage.state().has_v1 = false;
    stage
}

/// Every entry of the home, and what is loaded.
type Before = (BTreeMap<OsString, Entry>, Vec<Instance>);

impl Stage {
    fn odd(self, change: impl FnOnce(&mut Odd)) -> Self {
        change(&mut self.state().odd);
        self
    }

    fn pace(self, pace: &[(u64, u64)]) -> Self {
        self.state().pace.extend(pace.iter().copied());
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.fake.state()
    }

    /// `lmpatch bench` at this server, not yet started.
    fn command(&self, words: &str) -> Command {
        let mut command = self.env.command(["bench", "--url", &self.fake.url()]);
        command.args(words.split_whitespace());
        command
    }

    /// Runs it, after which files and loaded models are as they were.
    #[track_caller]
    fn run(&self, words: &str) -> Ran {
        let before = self.before();
        let ran = ran(&mut self.command(words));
        self.is_as(&before);
        ran
    }

    /// The same with `--json`, parsed.
    #[track_caller]
    fn json(&self, words: &str, code: i32) -> Value {
        parsed(&self.run(&format!("{words} --json")).exits(code))
    }

    fn start(&self, words: &str) -> Child {
        let mut command = self.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// The chunks of the prefills of whole prompts.
    fn whole(&self) -> Vec<u64> {
        let state = self.state();
        let whole = state.prefills.iter().filter(|one| one.tokens > 7900);
        whole.map(|prefill| prefill.chunk).collect()
    }

    fn before(&self) -> Before {
        (snapshot(&self.env.lmstudio()), self.fake.loaded())
    }

    #[track_caller]
    fn files_are_as(&self, before: &Before) {
        let differ = differences(&before.0, &snapshot(&self.env.lmstudio()));
        assert_eq!(differ, Vec::<String>::new());
    }

    /// Files and loaded models are as they were.
    #[track_caller]
    fn is_as(&self, before: &Before) {
        self.files_are_as(before);
        assert_eq!(self.fake.loaded(), before.1);
    }

    /// Writes a file where lmpatch is run.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.env.user().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.env.user().join(name)).unwrap()
    }

    /// The file that says that a benchmark is running.
    fn marker(&self) -> PathBuf {
        let home = self.env.lmstudio();
        home.join("extensions/backends/vendor/.lmpatch-bench")
    }

    fn chunk(&self) -> Option<u64> {
        chunk_on_disk(&self.backend.engine())
    }

    /// What a sweep with these arguments restores.
    fn guard(&self, words: &str) -> Guard {
        let home = self.env.lmstudio();
        let args = bench_args(words);
        let results = Results {
            model: MODEL.to_owned(),
            prompt_tokens: 8192,
            api: "v1",
            ..Results::new(args.sizes.iter().copied().map(Some))
        };
        let (lock, backends) = (lock(&home).unwrap(), survey(&home, &[]).unwrap().backends);
        Guard::new(&home, lock, backends, &args, &results, None, QUIET).unwrap()
    }
}

fn ran(command: &mut Command) -> Ran {
    Ran::of(&command.output().unwrap())
}

/// Runs it with `--json`, and parses what it prints.
#[track_caller]
fn json(command: &mut Command, code: i32) -> Value {
    parsed(&ran(command.arg("--json")).exits(code))
}

fn parsed(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

fn ended(child: Child) -> Ran {
    Ran::of(&child.wait_with_output().unwrap())
}

fn signal(child: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args([name, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

fn make_read_only(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

fn bench_args(words: &str) -> BenchArgs {
    let words = ["lmpatch", "bench"].into_iter().chain(words.split(' '));
    match Cli::read(words.map(Into::into)).unwrap().command {
        Some(cli::Command::Bench(args)) => *args,
        _ => unreachable!(),
    }
}

fn rows(results: &Value) -> &Vec<Value> {
    results["results"].as_array().unwrap()
}

/// The runs of the size in this row.
fn runs(results: &Value, row: usize) -> &Vec<Value> {
    rows(results)[row]["runs"].as_array().unwrap()
}

fn column(results: &Value, name: &str) -> Vec<Value> {
    rows(results).iter().map(|row| row[name].clone()).collect()
}

#[track_caller]
fn keeps(results: &Value, size: u64) {
    assert_eq!(results["verdict"]["keep"], size, "{results:#}");
}

/// Fails the test unless it is a text that has `text`.
#[track_caller]
fn has(value: &Value, text: &str) {
    assert!(
        value.as_str().is_some_and(|all| all.contains(text)),
        "{value}"
    );
}

/// Fails the test unless it is a text that begins with `text`.
#[track_caller]
fn begins(value: &Value, text: &str) {
    assert!(
        value.as_str().is_some_and(|all| all.starts_with(text)),
        "{value}"
    );
}

#[track_caller]
fn failed(results: &Value, row: usize, why: &str) {
    has(&rows(results)[row]["failed"], why);
}

/// Fails the test unless it is the speed of so many microseconds a token.
#[track_caller]
fn has_pace(speed: &Value, pace: u32) {
    let part = speed.as_f64().unwrap() * f64::from(pace) / 1e6;
    assert!((part - 1.0).abs() < 1e-9, "{speed}");
}

/// An engine that always has the same speed, unless this function of the chunk and the tokens fails.
struct Steady<F>(F);

impl<F: FnMut(u64, u64) -> anyhow::Result<()> + Send> Engine for Steady<F> {
    fn prefill(&mut self, chunk: u64, tokens: u64, _: OnProgress<'_>) -> anyhow::Result<Run> {
        (self.0)(chunk, tokens)?;
        Ok(Run {
            prompt_tokens: tokens,
            tokens_per_second: 100.0,
            ..Run::default()
        })
    }
}

/// A benchmark without a home.
fn benchmark(engine: impl Engine + 'static, results: Results) -> Benchmark {
    Benchmark {
        engine: Box::new(engine),
        guard: None,
        results,
        template: 0,
        bar: ProgressBar::hidden(),
    }
}
