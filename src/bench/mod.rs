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

mod answer;
pub mod args;
mod direct;
mod export;
pub mod guard;
pub mod marker;
pub mod measure;
mod prepare;
mod prompt;
pub mod race;
pub mod results;
mod server;

use std::path::Path;
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::{Exit, Output};
use args::BenchArgs;
use measure::Benchmark;
use results::Results;

/// How often the main thread looks for signals.
const TICK: Duration = Duration::from_millis(50);

/// Runs a benchmark and reports on it. Fails if it could not begin.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let start = Instant::now();
    let agent = server::agent(None, Some(Duration::from_secs(args.timeout)));
    let prepared = prepare::prepare(home, args, output, &agent);
    if let (Err(why), true) = (&prepared, is_json) {
        output.print_json(&Results {
            error: Some(format!("{why:#}")),
            ..Results::new([])
        })?;
    }
    let benchmark = prepared?;
    let (guard, count) = (benchmark.guard.clone(), benchmark.results.rows.len());
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch Ctrl-C")?;
    let (mut results, is_stopped) = supervise(benchmark, start, args, &mut signals, output);
    // A model that is still at work on a prompt could not be loaded again.
    agent.shutdown();
    let is_best_set = args.apply_best && results.error.is_none();
    let keep = results.verdict.keep.filter(|_| is_best_set);
    let files = guard.as_ref().map(|guard| guard.finish_files(keep));
    if let Some(Err(why)) = files {
        let before = results.error.map(|error| error + "; ");
        results.error = Some(format!("{}{why:#}", before.unwrap_or_default()));
    }
    let talk = *output;
    thread::spawn(move || end_on_signal(signals, is_stopped, talk));
    let reported = report(&results, is_json, args, output);
    let models = guard.map_or(Ok(()), |guard| guard.finish_models(is_stopped));
    let failures = [reported, models].into_iter().filter_map(Result::err);
    let count_failed = failures
        .map(|why| output.error(&format!("{why:#}")))
        .count();
    let is_good = count_failed == 0 && is_answer(&results, count);
    Ok(if is_good { Exit::Done } else { Exit::Failed })
}

/// Whether the `count` sizes were compared, or the only one was measured, and nothing failed.
fn is_answer(results: &Results, count: usize) -> bool {
    let mut rows = results.rows.iter();
    let is_answered = results.verdict.keep.is_some()
        || count == 1 && rows.any(|row| row.median_tokens_per_second.is_some());
    let has_failed = results.error.is_some() || results.rows.iter().any(|row| row.failed.is_some());
    is_answered && !has_failed
}

/// Lets `benchmark` measure until it ends, the budget is over or a signal comes. Returns what is known then, and whether
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
                // Whether that worked is reported in the end.
                let _ = export::write(&args.output, &results);
            }
            Err(RecvTimeoutError::Disconnected) => break joined(measuring).err(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if signals.pending().next().is_some() {
            is_stopped = true;
            break Some(anyhow!("stopped before there was a verdict"));
        }
        if start.elapsed() > budget && results.rows.is_empty() {
            break Some(anyhow!("the budget ran out before anything was measured"));
        }
        if start.elapsed() > budget {
            let note = "The budget ran out before there was a verdict.";
            results.notes.push(note.to_owned());
            break None;
        }
    };
    bar.finish_and_clear();
    results.error = failure.map(|error| format!("{error:#}"));
    (results, is_stopped)
}
/// Exits on the second signal, of the run or of the time after measuring, now that the files are restored.
fn end_on_signal(mut signals: Signals, is_stopped: bool, output: Output) {
    let mut signals = signals.forever();
    if !is_stopped && signals.next().is_some() {
        output.say("The model is still to be loaded; Ctrl-C again ends lmpatch without that.");
    }
    if signals.next().is_some() {
        let what = "stopped before the model was loaded as it was";
        output.error(&format!("{what}; `lms ps` shows what is loaded"));
        process::exit(Exit::Failed as i32);
    }
}

/// What the thread returned; an error also if it panicked, which would be a defect.
fn joined(thread: JoinHandle<Result<()>>) -> Result<()> {
    let failed = |_| Err(anyhow!("lmpatch itself failed; please report this"));
    thread.join().unwrap_or_else(failed)
}

/// Prints the results and writes every file.
fn report(results: &Results, is_json: bool, args: &BenchArgs, output: &Output) -> Result<()> {
    let written = export::write(&args.output, results);
    if is_json {
        output.print_json(results)?;
    } else if !results.rows.is_empty() && !output.is_quiet {
        output.print(&export::table(results, output.width()))?;
    }
    for remark in results.remarks() {
        output.say(&remark);
    }
    results.error.iter().for_each(|error| output.error(error));
    written
}
