//! Measures prefill, as it is or size by size, and says which size to keep.
//!
//! One thread measures. The main thread waits for it to end, for the budget to run out or for a signal, and then
//! restores everything: so a silent server delays nothing.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "token counts are far below 2^53"
)]

mod answer;
pub mod args;
mod direct;
mod engine;
mod export;
pub mod guard;
pub mod marker;
mod measure;
mod prompt;
pub mod race;
mod results;
mod served;
mod server;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use ureq::Agent;

use crate::command;
use crate::lmstudio::home;
use crate::output::{Exit, Output};
use crate::patch;
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;
use args::BenchArgs;
use guard::{Guard, locked};
use results::Results;

/// What the main thread waits for.
enum Event {
    /// Ctrl-C, or another signal that asks lmpatch to end.
    Signal,
    Measured(thread::Result<Result<()>>),
    ModelsBack(Result<()>),
}

/// What the measuring thread and the main thread share.
struct Bench {
    args: BenchArgs,
    output: Output,
    start: Instant,
    bar: ProgressBar,
    /// Sends prefills, if there is a server.
    agent: Agent,
    /// `None` once measuring is over.
    results: Mutex<Option<Results>>,
    /// Set before sizes are changed; set to `None` once measuring is over.
    guard: OnceLock<Option<Arc<Guard>>>,
}

/// What to measure.
struct Plan {
    home: Option<PathBuf>,
    /// The selected backend, or else the last.
    in_use: Option<Surveyed>,
    /// Those that were given, or the one that is set.
    sizes: Vec<u64>,
    /// Of every prompt.
    tokens: u64,
}

/// Runs a benchmark and reports on it. Fails only if nothing could be reported.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let mut args = args.clone();
    args.sizes.sort_unstable();
    args.sizes.dedup();
    let (sender, events) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch Ctrl-C")?;
    let to = sender.clone();
    thread::spawn(move || signals.forever().try_for_each(|_| to.send(Event::Signal)));
    let bench = Arc::new(Bench::new(args, *output));
    let args = &bench.args;
    let (working, home, to) = (Arc::clone(&bench), home.map(Path::to_owned), sender.clone());
    let measure = move || working.measure(home.as_deref());
    // A panic, which would be a defect, also ends the waiting.
    thread::spawn(move || to.send(Event::Measured(thread::spawn(measure).join())));
    let end = events.recv_timeout(args.budget.unwrap_or(Duration::MAX));
    bench.bar.finish_and_clear();
    // A model that is still at work on a prompt could not be loaded again.
    bench.agent.clone().shutdown();
    let mut results = locked(&bench.results).take().unwrap_or_default();
    let is_stopped = matches!(end, Ok(Event::Signal));
    let end = match end {
        Ok(Event::Measured(Ok(end))) => end,
        Ok(Event::Measured(Err(_))) => Err(anyhow!("lmpatch itself failed; please report this")),
        Ok(_) => Err(anyhow!("stopped; what was measured until then is kept")),
        Err(_) => {
            let note = "the budget was over before the answer was settled";
            output.note(note);
            results.notes.push(note.to_owned());
            Ok(())
        }
    };
    results.error = end.err().map(|error| format!("{error:#}"));
    let keep = results.verdict.keep.filter(|_| args.apply_best);
    let keep = keep.filter(|_| results.error.is_none());
    let is_right = bench.put_back(keep, is_stopped, sender, &events);
    let is_told = tell(&results, is_json, args, output)?;
    let is_good = is_right && is_told && !results.has_failures(args.sizes.len());
    Ok(if is_good { Exit::Done } else { Exit::Failed })
}

/// Prints the results and writes every file. Returns whether the files were written.
fn tell(results: &Results, is_json: bool, args: &BenchArgs, output: &Output) -> Result<bool> {
    let is_written = results.rows.is_empty() || export::write(&args.output, results, output);
    if is_json {
        output.print_json(results)?;
    } else if !results.rows.is_empty() && !output.is_quiet {
        output.print(&export::table(results, output.width()))?;
    }
    for remark in results.remarks() {
        output.say(&remark);
    }
    results.error.iter().for_each(|error| output.error(error));
    Ok(is_written)
}

impl Bench {
    fn new(args: BenchArgs, output: Output) -> Self {
        let results = Results {
            schema: 3,
            lmpatch: env!("CARGO_PKG_VERSION"),
            machine: machine(),
            runs_per_size: args.runs,
            ..Results::default()
        };
        Self {
            output,
            start: Instant::now(),
            bar: bar(&output),
            agent: server::agent(None, Some(Duration::from_secs(args.timeout))),
            results: Mutex::new(Some(results)),
            guard: OnceLock::new(),
            args,
        }
    }

    fn measure(&self, home: Option<&Path>) -> Result<()> {
        let args = &self.args;
        export::check(&args.output)?;
        let needs_home = args.apply_best || !args.direct && !args.sizes.is_empty();
        let (mut found, mut backends) = (None, Vec::new());
        match home::find(home) {
            Ok(home) => {
                backends = patch::survey(&home, &args.backend)?.backends;
                found = Some(home);
            }
            Err(error) if home.is_some() || needs_home => return Err(error),
            Err(_) => {}
        }
        let is_possible = !needs_home || !backends.is_empty();
        ensure!(is_possible, "there is no MLX backend to set a size in");
        let in_use = backends.into_iter().max_by_key(|one| one.backend.selected);
        let chunk_and_stock = in_use.as_ref().and_then(Surveyed::chunk_and_stock);
        let (chunk, stock) = chunk_and_stock.unzip();
        let mut sizes = args.sizes.clone();
        if sizes.is_empty() {
            sizes = vec![chunk.unwrap_or(DEFAULT_SIZE)];
        }
        self.update(|results| {
            let runtimes = in_use.iter().flat_map(|one| &one.backend.runtimes);
            let runtime = runtimes.max_by_key(|runtime| runtime.selected);
            results.runtime = runtime.map(|runtime| runtime.label.clone());
            results.stock = stock;
        })?;
        let plan = Plan {
            home: found,
            in_use,
            tokens: prompt_tokens(args, &sizes)?,
            sizes,
        };
        if args.direct {
            self.direct(&plan)
        } else {
            self.served(plan)
        }
    }

    /// Changes the results. Fails once measuring is over.
    fn update<T>(&self, change: impl FnOnce(&mut Results) -> T) -> Result<T> {
        locked(&self.results)
            .as_mut()
            .map(change)
            .context("stopped")
    }

    /// Makes the guard known before it changes anything. Fails once measuring is over.
    fn put_under(&self, guard: Guard) -> Result<()> {
        let is_first = self.guard.set(Some(Arc::new(guard))).is_ok();
        is_first.then_some(()).context("stopped")
    }

    /// Prints a note and adds it to the results.
    fn note(&self, note: String) -> Result<()> {
        self.output.note(&note);
        self.update(|results| results.notes.push(note))
    }

    /// Restores the files, or sets `keep`; then loads the models as they were. Returns whether all of it worked.
    fn put_back(
        &self,
        keep: Option<u64>,
        is_stopped: bool,
        to: Sender<Event>,
        events: &Receiver<Event>,
    ) -> bool {
        let Some(guard) = self.guard.get_or_init(|| None) else {
            return true;
        };
        let are_files_right = guard.finish_files(keep, &self.output);
        let models = Arc::clone(guard);
        thread::spawn(move || to.send(Event::ModelsBack(models.finish_models(is_stopped))));
        // The first signal restored the files; a second one ends the waiting for the model.
        let mut signals = usize::from(is_stopped);
        let result = loop {
            match events.recv() {
                Ok(Event::ModelsBack(result)) => break result,
                Ok(Event::Signal) if signals > 0 => {
                    break Err(anyhow!("the model was not loaded again: stopped"));
                }
                Ok(Event::Signal) => signals += 1,
                _ => {}
            }
        };
        if let Err(why) = &result {
            self.output.error(&format!("{why:#}; load it in LM Studio"));
        }
        are_files_right && result.is_ok()
    }
}

/// The length of every prompt in tokens. Fails if that says nothing about the largest size.
fn prompt_tokens(args: &BenchArgs, sizes: &[u64]) -> Result<u64> {
    let largest = sizes.iter().max().copied().unwrap_or_default();
    // Two chunks of the largest of several sizes, or four of the one that is set.
    let chunks = if args.sizes.is_empty() { 4 } else { 2 };
    let tokens = args.prompt_tokens.unwrap_or((chunks * largest).max(8192));
    let least = 2 * largest;
    ensure!(
        tokens >= least,
        "a prompt of {tokens} tokens says nothing about a chunk of {largest}: it takes at least {least}; give more \
         with --prompt-tokens, or smaller --sizes"
    );
    Ok(tokens)
}

/// A progress bar over prompt tokens; the library shows it on a terminal only.
fn bar(output: &Output) -> ProgressBar {
    if output.is_quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}, at most {eta} left");
    ProgressBar::no_length().with_style(style.expect("it is well-formed"))
}

/// The machine that this runs on: `Apple M3 Ultra, 256 GB, macOS 26.1`.
fn machine() -> String {
    let ask = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let said = command::output(command.args(arguments), Duration::from_secs(2));
        said.ok().map(|said| said.trim().to_owned())
    };
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let Some(cpu) = ask("sysctl", &["-n", "machdep.cpu.brand_string"]) else {
        return format!("{os} {arch}");
    };
    let memory = ask("sysctl", &["-n", "hw.memsize"]).and_then(|bytes| bytes.parse().ok());
    let gigabytes = memory.unwrap_or(0_u64) >> 30;
    let version = ask("sw_vers", &["-productVersion"]).unwrap_or_default();
    format!("{cpu}, {gigabytes} GB, macOS {version}")
}
