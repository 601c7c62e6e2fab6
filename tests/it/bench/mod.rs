//! Benchmarks against a fake LM Studio with a made-up clock: exact speeds, every failure a row, everything as it was.

mod best;
mod command;
mod direct;
mod ends;
mod failures;
mod prompts;
mod refusals;
mod sweep;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;

use crate::support::child::{ended, signal};
use crate::support::home::{BackendDir, NAME};
use crate::support::server::{Failure, FakeLmStudio, Instance, Odd, State, chunk_on_disk};
use crate::support::{Before, Env, Ran, text};
use lmpatch::bench::args::BenchArgs;
use lmpatch::bench::engine::{Engine, OnProgress};
use lmpatch::bench::measure::Benchmark;
use lmpatch::bench::prepare;
use lmpatch::bench::results::{Results, Run};
use lmpatch::cli::{self, Cli};
use lmpatch::output::Output;
use serde_json::Value;

const MODEL: &str = "qwen/tiny";
/// The file that says that a benchmark is running.
const MARKER: &str = "extensions/backends/vendor/.lmpatch-bench";
const NONE: Value = Value::Null;
const QUIET: Output = Output {
    is_quiet: true,
    is_verbose: false,
};

/// A home with one stock 2048 backend in use, and an LM Studio that runs it.
struct Stage {
    env: Env,
    backend: BackendDir,
    fake: FakeLmStudio,
}

fn stage() -> Stage {
    let (env, backend) = Env::in_use();
    let fake = FakeLmStudio::start(&env.lmstudio(), &backend.engine());
    fake.load(MODEL, "mlx", 65_536);
    // What comes later is far faster, so that a busy machine has nothing cut short.
    Stage { env, backend, fake }.pace(&[(4096, 100), (2048, 40), (512, 10)])
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

/// One whose whole prefills fail from this chunk on.
fn failing(from: u64, how: Failure) -> Stage {
    stage().odd(|odd| odd.fails = Some((from, how)))
}

impl Stage {
    fn odd(self, change: impl FnOnce(&mut Odd)) -> Self {
        change(&mut self.state().odd);
        self
    }

    /// Microseconds a token at these sizes.
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
        self.run(&format!("{words} --json")).exits(code).json()
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

    /// The home, and what is loaded.
    fn before(&self) -> (Before, Vec<Instance>) {
        (Before::of(self.env.lmstudio()), self.fake.loaded())
    }

    /// Files and loaded models are as they were.
    #[track_caller]
    fn is_as(&self, before: &(Before, Vec<Instance>)) {
        before.0.still_holds();
        assert_eq!(self.fake.loaded(), before.1);
    }

    /// Writes a file where lmpatch is run.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.env.user().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        text(self.env.user().join(name))
    }

    fn chunk(&self) -> Option<u64> {
        chunk_on_disk(&self.backend.engine())
    }

    /// What `lmpatch bench` with these arguments is about to do.
    fn prepared(&self, words: &str) -> Benchmark {
        let args = bench_args(&format!("{words} --url {}", self.fake.url()));
        prepare(Some(&self.env.lmstudio()), &args, &QUIET).unwrap()
    }
}

fn ran(command: &mut Command) -> Ran {
    Ran::of(&command.output().unwrap())
}

/// Runs it with `--json`, and parses what it prints.
#[track_caller]
fn json(command: &mut Command, code: i32) -> Value {
    ran(command.arg("--json")).exits(code).json()
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
    let all = value.as_str().unwrap_or_default();
    assert!(all.contains(text), "{value}");
}

/// Fails the test unless it is a text that begins with `text`.
#[track_caller]
fn begins(value: &Value, text: &str) {
    let all = value.as_str().unwrap_or_default();
    assert!(all.starts_with(text), "{value}");
}

#[track_caller]
fn failed(results: &Value, row: usize, why: &str) {
    has(&rows(results)[row]["failed"], why);
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

/// A benchmark without a home, of prompts of two chunks of the last size.
fn benchmark<const N: usize>(
    engine: impl Engine + 'static,
    sizes: [u64; N],
    runs_per_size: u32,
) -> Benchmark {
    let results = Results {
        api: "direct",
        prompt_tokens: 2 * sizes[N - 1],
        runs_per_size,
        ..Results::new(sizes.map(Some))
    };
    Benchmark {
        args: bench_args("--sizes 2048,4096"),
        output: QUIET,
        engine: Box::new(engine),
        guard: None,
        lock: None,
        results,
        loaded: Vec::new(),
    }
}
