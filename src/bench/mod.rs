//! Measures prefill, as it is or size by size, and says which size to keep.
//!
//! One thread measures, and one loads the models again. The main thread waits for them to end, for the budget to run out
//! or for a signal, so a silent server delays nothing. Before it measures, a signal just ends lmpatch.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "token counts are far below 2^53"
)]

pub mod args;
mod direct;
pub mod engine;
pub mod guard;
pub mod measure;
pub mod race;
pub mod results;
mod server;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use signal_hook::iterator::Signals;

use crate::command;
use crate::lmstudio::api::Api;
use crate::lmstudio::home;
use crate::lmstudio::runtimes::LM_STUDIO;
use crate::marker;
use crate::output::{Exit, Output};
use crate::patch;
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;
use crate::signals;
use args::BenchArgs;
use direct::Direct;
use engine::Engine;
use guard::Guard;
use measure::Benchmark;
use results::{Results, Row};
use server::Server;

/// Runs a benchmark and reports on it. Fails if stdout cannot be written.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let mut results = Results::new([]);
    let ended = prepare(home, args, output).and_then(|benchmark| {
        let signals = signals::catch().context("cannot catch Ctrl-C")?;
        supervise(benchmark, signals, &mut results);
        Ok(())
    });
    results.note_error(ended);
    report(&mut results, is_json, args, *output)
}

/// The benchmark that `args` ask for. Fails if it could not work.
pub fn prepare(home: Option<&Path>, args: &BenchArgs, output: &Output) -> Result<Benchmark> {
    let sets = args.apply_best || !args.direct && !args.sizes.is_empty();
    let home = match home::find(home) {
        Err(error) if home.is_some() || sets => return Err(error),
        found => found.ok(),
    };
    let home = home.as_deref();
    // Two benchmarks at a time would measure each other.
    let mut lock = home.map(marker::lock).transpose()?;
    if let Some(commands) = home.and_then(marker::restore_commands) {
        bail!("a benchmark was interrupted; first restore the sizes: {commands}");
    }
    let survey = home.map(|home| patch::survey(home, &[]));
    let backends = survey.transpose()?.unwrap_or_default().backends;
    // The one that LM Studio has selected, or else one that another app has, or else the newest.
    let in_use = backends.iter().max_by_key(|one| {
        let is_lm_studios = one.backend.selected_by().contains(&LM_STUDIO);
        (is_lm_studios, one.backend.selected)
    });
    let is_known = |one: &&Surveyed| args.direct || one.backend.selected;
    let mut results = initial_results(args, in_use.filter(is_known))?;
    let mut api = None;
    let engine: Box<dyn Engine> = if args.direct {
        let backend = in_use.map(|one| &one.backend);
        Box::new(Direct::new(args, backend, &mut results)?)
    } else {
        let silence = Duration::from_secs(args.timeout);
        let server = api.insert(Api::new(args.url.as_deref(), home, silence));
        Box::new(Server::new(args, server.clone(), &mut results)?)
    };
    let mut guard = None;
    if let (Some(home), Some(lock)) = (home, lock.take_if(|_| sets)) {
        let made = Guard::new(home, lock, backends, args, &results, api, *output)?;
        guard = Some(Arc::new(made));
    }
    Ok(Benchmark {
        args: args.clone(),
        output: *output,
        engine,
        guard,
        lock,
        results,
        loaded: Vec::new(),
        bar: output.progress_bar(),
    })
}

/// What is known of the sizes, of the machine and of the backend in use.
fn initial_results(args: &BenchArgs, in_use: Option<&Surveyed>) -> Result<Results> {
    let (chunk, stock) = in_use.and_then(Surveyed::chunk_and_stock).unzip();
    let sizes: BTreeSet<_> = match &args.sizes[..] {
        [] => [chunk].into(),
        sizes => sizes.iter().copied().map(Some).collect(),
    };
    let largest = sizes.last().copied().flatten().unwrap_or(DEFAULT_SIZE);
    let chunks = if args.sizes.is_empty() { 4 } else { 2 };
    let tokens = args.prompt_tokens.unwrap_or((chunks * largest).max(8192));
    let (least, advice) = (2 * largest, "give more --prompt-tokens, or smaller --sizes");
    ensure!(
        tokens >= least,
        "a chunk of {largest} takes at least {least} prompt tokens; {advice}"
    );
    let runtimes = in_use.into_iter().flat_map(|one| &one.backend.runtimes);
    let runtime = runtimes.max_by_key(|runtime| runtime.selected);
    Ok(Results {
        prompt_tokens: tokens,
        stock,
        machine: machine(),
        runtime: runtime.map(|runtime| runtime.label.clone()),
        runs_per_size: args.runs,
        ..Results::new(sizes)
    })
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

/// Lets `benchmark` measure until it ends, the budget runs out or a signal comes, then restores what there was; what is known
/// goes into `results`.
pub fn supervise(benchmark: Benchmark, mut signals: Signals, results: &mut Results) {
    let (start, budget) = (Instant::now(), benchmark.args.budget);
    let (output, sets_best) = (benchmark.output, benchmark.args.apply_best);
    let (guard, bar) = (benchmark.guard.clone(), benchmark.bar.clone());
    *results = benchmark.results.clone();
    let (sender, known) = mpsc::channel();
    // Only now that signals are caught: one that ended lmpatch here would leave the marker behind.
    let begun = guard.as_ref().map_or(Ok(()), |guard| guard.begin());
    let measuring = thread::spawn(move || begun.and_then(|()| benchmark.run(&sender)));
    let mut is_stopped = false;
    let ended = wait(measuring, || {
        is_stopped = signals.pending().next().is_some();
        ensure!(!is_stopped, "stopped before the verdict was settled");
        Ok(budget.is_none_or(|budget| start.elapsed() < budget))
    });
    bar.finish_and_clear();
    if let Some(last) = known.try_iter().last() {
        *results = last;
    }
    if let Ok(false) = ended {
        let note = "The budget ran out before the verdict was settled.";
        results.notes.push(note.to_owned());
    }
    results.note_error(ended);
    match results.verdict() {
        Err(why) if results.error.is_none() => results.error = Some(why.to_string()),
        judged => results.verdict = judged.unwrap_or_default(),
    }
    results.rows.sort_by_key(|row| row.size);
    let Some(guard) = guard else {
        return;
    };
    let best = results.verdict.keep;
    let best = best.filter(|_| sets_best && results.error.is_none());
    results.note_error(guard.finish_files(best));
    let loading = thread::spawn(move || guard.finish_models());
    let ended = wait(loading, || {
        if signals.pending().next().is_some() {
            ensure!(!is_stopped, signals::ON_SECOND);
            is_stopped = true;
            output.say(signals::ON_FIRST);
        }
        Ok(true)
    });
    results.note_error(ended);
}

/// Waits until a thread ends, and for no longer than `goes_on` says. Returns whether it has ended.
fn wait(thread: JoinHandle<Result<()>>, mut goes_on: impl FnMut() -> Result<bool>) -> Result<bool> {
    while !thread.is_finished() {
        if !goes_on()? {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(50));
    }
    let broken = |_| Err(anyhow!("lmpatch itself failed; please report this"));
    thread.join().unwrap_or_else(broken).map(|()| true)
}

/// Writes and prints the results. Fails if stdout cannot be written.
fn report(results: &mut Results, is_json: bool, args: &BenchArgs, output: Output) -> Result<Exit> {
    let written = results::write(&args.output, results);
    results.note_error(written);
    let printed = if is_json {
        output.print_json(results)
    } else if output.is_quiet || results.is_empty() {
        Ok(())
    } else {
        let width = output.width().unwrap_or(80);
        output.print(&results::table(results, width.into()))
    };
    // Even if stdout failed: people must learn what became of their files.
    for remark in results.remarks() {
        output.say(&remark);
    }
    let is_settable = results.stock.is_some() && !args.apply_best && results.error.is_none();
    if let Some(size) = results.verdict.keep.filter(|_| is_settable) {
        output.say(&format!("`lmpatch {size} --reload` sets it."));
    }
    results.error.iter().for_each(|error| output.error(error));
    let is_bad = |row: &Row| row.failed.is_some() || !row.runs.is_empty() && row.speed() == 0.0;
    let has_failed = results.error.is_some() || results.rows.iter().any(is_bad);
    printed.map(|()| if has_failed { Exit::Failed } else { Exit::Done })
}
