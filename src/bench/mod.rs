//! Measures prefill, as it is or size by size, and says which size to keep.
//!
//! One thread measures. The main thread waits for it to end, for the budget to run out or for a signal, and then
//! restores everything: so a silent server delays nothing. Before it measures, a signal just ends lmpatch.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "token counts are far below 2^53"
)]

pub mod args;
mod direct;
pub mod engine;
mod export;
pub mod guard;
pub mod measure;
mod prompt;
pub mod race;
pub mod results;
mod server;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::iterator::Signals;

use crate::command;
use crate::lmstudio::home;
use crate::lmstudio::runtimes::LM_STUDIO;
use crate::marker;
use crate::output::{Exit, Output, flags};
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;
use crate::patch::{self, Survey};
use crate::signals;
use args::BenchArgs;
use direct::Direct;
use engine::Engine;
use guard::Guard;
use measure::Benchmark;
use results::{Results, Row};
use server::Server;

const TICK: Duration = Duration::from_millis(50);

/// Runs a benchmark and reports on it. Fails if it could not begin.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let start = Instant::now();
    let prepared = prepare(home, args, output);
    if let (Err(why), true) = (&prepared, is_json) {
        let mut results = Results::new([]);
        results.add_error(&format!("{why:#}"));
        output.print_json(&results)?;
    }
    let benchmark = prepared?;
    let (guard, count) = (benchmark.guard.clone(), benchmark.results.rows.len());
    let _restores = OnPanic(guard.clone());
    let mut signals = signals::catch().context("cannot catch Ctrl-C")?;
    let (mut results, is_stopped) = supervise(benchmark, start, args, &mut signals, output);
    let is_best_set = args.apply_best && results.error.is_none();
    let keep = results.verdict.keep.filter(|_| is_best_set);
    let files = guard.as_ref().map(|guard| guard.finish_files(keep));
    if let Some(Err(why)) = files {
        results.add_error(&format!("{why:#}"));
    }
    let (mut known, last) = (results.clone(), *output);
    signals::end_on_second(signals, is_stopped, *output, move |why| {
        known.add_error(why);
        if is_json {
            // If that fails, nobody is left to tell.
            let _ = last.print_json(&known);
        }
    });
    let reported = report(&results, is_json, args, output);
    let models = guard.map_or(Ok(()), |guard| guard.finish_models(is_stopped));
    let is_measured = count == 1 && results.standing().is_some();
    let is_answered = results.verdict.keep.is_some() || is_measured;
    let has_failed = results.error.is_some() || results.rows.iter().any(|row| row.failed.is_some());
    let mut is_good = is_answered && !has_failed;
    for why in [reported, models].into_iter().filter_map(Result::err) {
        let why = format!("{why:#}");
        output.error(&why);
        results.add_error(&why);
        is_good = false;
    }
    if is_json && let Err(why) = output.print_json(&results) {
        output.error(&format!("{why:#}"));
        is_good = false;
    }
    if !is_good {
        // The files were written before this error was known. `report` has told whether they can be written.
        let _ = export::write(&args.output, &results);
    }
    Ok(if is_good { Exit::Done } else { Exit::Failed })
}

/// Restores everything if the thread that has it panics.
pub struct OnPanic(pub Option<Arc<Guard>>);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if let Some(guard) = self.0.as_ref().filter(|_| thread::panicking()) {
            // What matters is the panic, and it has been printed.
            let _ = guard.finish_files(None);
            let _ = guard.finish_models(true);
        }
    }
}

/// The benchmark that `args` ask for. Fails if it could not work.
pub fn prepare(home: Option<&Path>, args: &BenchArgs, output: &Output) -> Result<Benchmark> {
    export::check(&args.output)?;
    let sets = args.apply_best || !args.direct && !args.sizes.is_empty();
    let home = match home::find(home) {
        Err(error) if home.is_some() || sets => return Err(error),
        found => found.ok(),
    };
    let home = home.as_deref();
    // Two benchmarks at a time would measure each other.
    let lock = home.map(marker::lock).transpose()?;
    if let Some(commands) = home.and_then(marker::restore_commands) {
        bail!("a benchmark was interrupted; first restore the sizes: {commands}");
    }
    // A run that sets nothing does not need it any longer.
    let lock = lock.filter(|_| sets);
    let survey = home.map(|home| patch::survey(home, &args.backend));
    let Survey { backends, absent } = survey.transpose()?.unwrap_or_default();
    let mut left_out = absent.left_out.iter().filter(|one| one.selected);
    if let (Some(one), false) = (left_out.next_back(), args.direct) {
        bail!("{} is selected, but --backend omits it", one.name);
    }
    let in_use = in_use(&backends);
    // If none is selected, it is unknown which one answers.
    let is_known = |one: &&Surveyed| {
        let is_same = |other: &Surveyed| other.chunk_and_stock() == one.chunk_and_stock();
        args.direct || one.backend.selected || backends.iter().all(is_same)
    };
    let mut results = initial_results(args, in_use.filter(is_known))?;
    results.has_backends = backends.iter().any(|one| one.blocked().is_none());
    let (engine, server): (Box<dyn Engine>, _) = if args.direct {
        let backend = in_use.map(|one| &one.backend);
        let direct = Direct::new(args, backend, &mut results)?;
        (Box::new(direct), None)
    } else {
        let server = Server::new(args, home, &mut results)?;
        (Box::new(server.clone()), Some(server))
    };
    let guard = home.zip(lock).map(|(home, lock)| {
        let guard = Guard::new(home, lock, backends, args, &results, server, *output);
        guard.map(Arc::new)
    });
    Ok(Benchmark {
        engine,
        guard: guard.transpose()?,
        results,
        template: 0,
        bar: bar(output),
    })
}

/// The backend that LM Studio has selected, or else one that another app has, or else the newest.
fn in_use(backends: &[Surveyed]) -> Option<&Surveyed> {
    backends.iter().max_by_key(|one| {
        let is_lm_studios = one.backend.selected_by().contains(&LM_STUDIO);
        (is_lm_studios, one.backend.selected)
    })
}

/// What is known of the sizes, of the machine and of the backend in use.
fn initial_results(args: &BenchArgs, in_use: Option<&Surveyed>) -> Result<Results> {
    let (chunk, stock) = in_use.and_then(Surveyed::chunk_and_stock).unzip();
    let sizes: BTreeSet<_> = match &args.sizes[..] {
        [] => [chunk].into(),
        sizes => sizes.iter().copied().map(Some).collect(),
    };
    let runtimes = in_use.into_iter().flat_map(|one| &one.backend.runtimes);
    let runtime = runtimes.max_by_key(|runtime| runtime.selected);
    Ok(Results {
        prompt_tokens: prompt_tokens(args, &sizes)?,
        stock,
        machine: machine(),
        runtime: runtime.map(|runtime| runtime.label.clone()),
        runs_per_size: args.runs,
        ..Results::new(sizes)
    })
}

/// The length of every prompt in tokens. Fails if that says nothing about the largest size.
fn prompt_tokens(args: &BenchArgs, sizes: &BTreeSet<Option<u64>>) -> Result<u64> {
    let largest = sizes.last().copied().flatten().unwrap_or(DEFAULT_SIZE);
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
    let style = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}");
    ProgressBar::no_length().with_style(style.expect("it is well-formed"))
}

/// The machine that this runs on: `Apple M3 Ultra, 256 GB, macOS 26.1`.
fn machine() -> String {
    let words = "-n machdep.cpu.brand_string hw.memsize kern.osproductversion".split(' ');
    let said = command::output(Command::new("sysctl").args(words), Duration::from_secs(2));
    let said = said.unwrap_or_default();
    match said.lines().collect::<Vec<_>>()[..] {
        [cpu, memory, version] => {
            let gigabytes = memory.parse().unwrap_or(0_u64) >> 30;
            format!("{cpu}, {gigabytes} GB, macOS {version}")
        }
        _ => format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

/// Lets `benchmark` measure until it ends, the budget runs out or a signal comes. Returns what is known then, and whether
/// it was a signal.
pub fn supervise(
    benchmark: Benchmark,
    start: Instant,
    args: &BenchArgs,
    signals: &mut Signals,
    output: &Output,
) -> (Results, bool) {
    let (budget, talk) = (args.budget.unwrap_or(Duration::MAX), *output);
    let (mut results, bar) = (benchmark.results.clone(), benchmark.bar.clone());
    results.rows.clear();
    let (sender, known) = mpsc::channel();
    let measuring = thread::spawn(move || benchmark.run(budget, talk, &sender));
    let mut is_stopped = false;
    let failure = loop {
        match known.recv_timeout(TICK) {
            Ok(now) => {
                results = now;
                results.seconds = start.elapsed().as_secs_f64();
                // Whether that worked is reported in the end.
                let _ = export::write(&args.output, &results);
            }
            Err(RecvTimeoutError::Disconnected) => {
                break match measuring.join() {
                    Ok(ended) => ended.err(),
                    Err(_) => Some(anyhow!("lmpatch itself failed; please report this")),
                };
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if signals.pending().next().is_some() {
            is_stopped = true;
            break Some(anyhow!("stopped before the verdict was settled"));
        }
        if start.elapsed() > budget {
            if results.rows.is_empty() {
                break Some(anyhow!("the budget ran out before anything was measured"));
            }
            let note = after_budget(&results, &args.sizes);
            results.notes.push(note);
            break None;
        }
    };
    bar.finish_and_clear();
    if let Some(error) = failure {
        results.add_error(&format!("{error:#}"));
    }
    (results, is_stopped)
}

fn after_budget(results: &Results, sizes: &[u64]) -> String {
    let is_done = |row: &Row| row.is_out() || row.has_worked();
    let is_open = |size: &&u64| {
        let mut rows = results.rows.iter();
        !rows.any(|row| row.size == Some(**size) && is_done(row))
    };
    let open: BTreeSet<_> = sizes.iter().filter(is_open).collect();
    let open: Vec<_> = open.into_iter().map(u64::to_string).collect();
    if open.is_empty() {
        return "The budget ran out before the verdict was settled.".to_owned();
    }
    let open = open.join(", ");
    format!("The budget ran out before these were measured: {open}.")
}

/// Prints the table, unless JSON is asked for, and what is said below it; writes every file.
fn report(results: &Results, is_json: bool, args: &BenchArgs, output: &Output) -> Result<()> {
    let written = export::write(&args.output, results);
    let mut printed = Ok(());
    if !is_json && !results.rows.is_empty() && !output.is_quiet {
        printed = output.print(&export::table(results, output.width()));
    }
    // Even if stdout failed: people must learn what became of their files.
    for remark in results.remarks() {
        output.say(&remark);
    }
    let is_settable = results.has_backends && !args.apply_best;
    if let Some(size) = results.verdict.keep.filter(|_| is_settable) {
        let flags = flags(&args.backend);
        output.say(&format!("`lmpatch {size}{flags} --reload` sets it."));
    }
    results.error.iter().for_each(|error| output.error(error));
    printed.and(written)
}
