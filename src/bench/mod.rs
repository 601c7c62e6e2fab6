//! Measures prefill, as it is or size by size, and says which size to keep.
//!
//! One thread measures. The main thread waits for it to end, for the budget to run out or for a signal, and then
//! restores everything: so a silent server delays nothing. Until then nothing is changed, and a signal just ends lmpatch.
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
mod measure;
mod prepare;
mod prompt;
pub mod race;
pub mod results;
mod served;
mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::{Exit, Output};
use args::BenchArgs;
use guard::Guard;
use results::Results;

/// How often the main thread looks for signals.
const TICK: Duration = Duration::from_millis(50);

/// What ended the measuring.
enum End {
    Measured,
    Signal,
    Budget,
}

/// Runs a benchmark and reports on it. Fails if it could not begin.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let start = Instant::now();
    let agent = server::agent(None, Some(Duration::from_secs(args.timeout)));
    let prepared = prepare::prepare(home, args, output, &agent);
    if let (Err(why), true) = (&prepared, is_json) {
        output.print_json(&prepare::failed(why))?;
    }
    let (benchmark, guard) = prepared?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch Ctrl-C")?;
    let count = benchmark.race.rows.len();
    let (mut results, bar) = (benchmark.results.clone(), benchmark.bar.clone());
    let (sender, known) = mpsc::channel();
    let (budget, talk) = (args.budget.unwrap_or(Duration::MAX), *output);
    let measuring = thread::spawn(move || benchmark.run(budget, talk, &sender));
    let end = wait(&known, start, budget, &mut signals, &mut results);
    // The next size fails, and a model that is still at work on a prompt could not be loaded again.
    drop(known);
    agent.shutdown();
    bar.finish_and_clear();
    let is_stopped = matches!(end, End::Signal);
    let failure = match end {
        End::Measured => joined(measuring).err(),
        End::Signal => Some(anyhow!("stopped before the answer was settled")),
        End::Budget => {
            let note = "the budget was over before the answer was settled";
            output.note(note);
            results.notes.push(note.to_owned());
            None
        }
    };
    results.error = failure.map(|error| format!("{error:#}"));
    let is_best_set = args.apply_best && results.error.is_none();
    let keep = results.verdict.keep.filter(|_| is_best_set);
    let is_restored =
        guard.is_none_or(|guard| restore(guard, keep, is_stopped, &mut signals, output));
    let is_told = tell(&results, is_json, args, output)?;
    let is_compared = count < 2 || results.verdict.keep.is_some();
    let is_whole = results.error.is_none() && results.rows.iter().all(|row| row.failed.is_none());
    let is_good = is_restored && is_told && is_compared && is_whole;
    Ok(if is_good { Exit::Done } else { Exit::Failed })
}

/// Keeps up with what is known until measuring ends, by itself or by what comes first.
fn wait(
    known: &Receiver<Results>,
    start: Instant,
    budget: Duration,
    signals: &mut Signals,
    results: &mut Results,
) -> End {
    loop {
        match known.recv_timeout(TICK) {
            Ok(now) => *results = now,
            Err(RecvTimeoutError::Disconnected) => return End::Measured,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if signals.pending().next().is_some() {
            return End::Signal;
        }
        if start.elapsed() > budget {
            return End::Budget;
        }
    }
}

/// Restores the files, or sets `keep`; then loads the models as they were. Returns whether all of it worked.
fn restore(
    guard: Arc<Guard>,
    keep: Option<u64>,
    is_stopped: bool,
    signals: &mut Signals,
    output: &Output,
) -> bool {
    let files = guard.finish_files(keep, output);
    let files = files.inspect_err(|why| output.error(&format!("{why:#}")));
    let loading = thread::spawn(move || guard.finish_models(is_stopped));
    // The first signal restored the files; a second one ends the waiting for the model.
    let mut count = usize::from(is_stopped);
    while !loading.is_finished() && count < 2 {
        thread::sleep(TICK);
        count += signals.pending().count();
    }
    let stopped =
        || anyhow!("stopped before the model was loaded as it was; `lms ps` shows what is loaded");
    let result = if loading.is_finished() {
        joined(loading)
    } else {
        Err(stopped())
    };
    let say = |why: &Error| output.error(&format!("{why:#}"));
    result.inspect_err(say).is_ok() && files.is_ok()
}

/// What the thread returned; an error also if it panicked, which would be a defect.
fn joined(thread: JoinHandle<Result<()>>) -> Result<()> {
    let failed = |_| Err(anyhow!("lmpatch itself failed; please report this"));
    thread.join().unwrap_or_else(failed)
}

/// Prints the results and writes every file. Returns whether the files were written.
fn tell(results: &Results, is_json: bool, args: &BenchArgs, output: &Output) -> Result<bool> {
    let has_rows = !results.rows.is_empty();
    let is_written = !has_rows || export::write(&args.output, results, output);
    if is_json {
        output.print_json(results)?;
    } else if has_rows && !output.is_quiet {
        output.print(&export::table(results, output.width()))?;
    }
    for remark in results.remarks() {
        output.say(&remark);
    }
    results.error.iter().for_each(|error| output.error(error));
    Ok(is_written)
}
