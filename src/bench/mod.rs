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

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use signal_hook::iterator::Signals;

use crate::lmstudio::api::Api;
use crate::lmstudio::home;
use crate::lmstudio::runtimes::Runtime;
use crate::output::{Exit, Output};
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;
use crate::{command, files, marker, patch, signals};
use args::BenchArgs;
use direct::Direct;
use engine::{Engine, Server};
use guard::Guard;
use measure::Benchmark;
use results::{Results, Row};

/// Runs a benchmark and reports on it. Fails if stdout cannot be written.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let mut results = Results::new([]);
    let ended = prepare(home, args, output).and_then(|benchmark| {
        results = supervise(benchmark, signals::catch()?);
        // An earlier export is better than one that says nothing.
        for path in args.output.iter().filter(|_| !results.is_empty()) {
            let written = fs::write(path, results::rendered(path, &results)?);
            written.map_err(|error| files::cannot("write", path, &error))?;
        }
        Ok(())
    });
    results.note_error(ended);
    let printed = if is_json {
        output.print_json(&results)
    } else if output.is_quiet || results.is_empty() {
        Ok(())
    } else {
        output.print(&results::table(&results))
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
    let backends = survey.transpose()?.unwrap_or_default().0;
    // The newest that is selected, or else the newest.
    let in_use = backends.iter().max_by_key(|one| one.backend.selected);
    let mut results = initial_results(args, in_use.filter(|one| one.backend.selected))?;
    let api = Api::new(args.url.as_deref(), home, Duration::from_secs(args.timeout));
    let engine: Box<dyn Engine> = if args.direct {
        let backend = in_use.map(|one| &one.backend);
        Box::new(Direct::new(args, backend, &mut results)?)
    } else {
        Box::new(Server::new(args, api.clone(), &mut results)?)
    };
    let mut guard = None;
    if let (Some(home), Some(lock)) = (home, lock.take_if(|_| sets)) {
        let made = Guard::new(home, lock, backends, args, &results, api, *output)?;
        guard = Some(Arc::new(made));
    }
    for path in &args.output {
        results::rendered(path, &results)?;
        let opened = File::options().append(true).create(true).open(path);
        opened.map_err(|error| files::cannot("write", path, &error))?;
    }
    Ok(Benchmark {
        args: args.clone(),
        output: *output,
        engine,
        guard,
        lock,
        results,
        loaded: Vec::new(),
    })
}

fn initial_results(args: &BenchArgs, in_use: Option<&Surveyed>) -> Result<Results> {
    let (chunk, stock) = in_use.and_then(Surveyed::chunk_and_stock).unzip();
    let (sizes, chunks) = match &args.sizes[..] {
        [] => (BTreeSet::from([chunk]), 4),
        sizes => (sizes.iter().copied().map(Some).collect(), 2),
    };
    let largest = sizes.last().copied().flatten().unwrap_or(DEFAULT_SIZE);
    let tokens = args.prompt_tokens.unwrap_or((chunks * largest).max(8192));
    let least = 2 * largest;
    ensure!(tokens >= least, "give at least {least} --prompt-tokens");
    let mut runtimes = in_use.into_iter().flat_map(|one| &one.backend.runtimes);
    // Another Python says nothing of a runtime.
    let runtime = runtimes.find(|runtime| runtime.selected && args.python.is_none());
    Ok(Results {
        prompt_tokens: tokens,
        stock,
        machine: machine(),
        runtime: runtime.map(Runtime::label),
        runs_per_size: args.runs,
        ..Results::new(sizes)
    })
}

fn machine() -> String {
    let words = "-n machdep.cpu.brand_string hw.memsize kern.osproductversion".split(' ');
    let said = command::output(Command::new("sysctl").args(words), Duration::from_secs(2));
    let said = said.unwrap_or_default();
    let [cpu, memory, version] = said.lines().collect::<Vec<_>>()[..] else {
        return format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    };
    let gigabytes = memory.parse().unwrap_or(0_u64) >> 30;
    format!("{cpu}, {gigabytes} GB, macOS {version}")
}

/// Lets `benchmark` measure until it ends, the budget runs out or a signal comes, then restores what there was.
pub fn supervise(benchmark: Benchmark, mut signals: Signals) -> Results {
    let (start, budget) = (Instant::now(), benchmark.args.budget);
    let (output, sets_best) = (benchmark.output, benchmark.args.apply_best);
    let (guard, before) = (benchmark.guard.clone(), benchmark.results.clone());
    let (sender, known) = mpsc::channel();
    // Only now that signals are caught: one that ended lmpatch here would leave the marker behind.
    let begun = guard.as_ref().map_or(Ok(()), |guard| guard.begin());
    let measuring = thread::spawn(move || begun.and_then(|()| benchmark.run(&sender)));
    let mut is_stopped = false;
    let ended = wait(measuring, || {
        is_stopped = signals.pending().next().is_some();
        ensure!(!is_stopped, "stopped before the verdict was settled");
        Ok(budget.is_none_or(|minutes| start.elapsed().as_secs_f64() < minutes * 60.0))
    });
    let mut results = known.try_iter().last().unwrap_or(before);
    if let Ok(false) = ended {
        results.notes = vec!["The budget ran out before the verdict was settled."];
    }
    results.note_error(ended);
    match results.verdict() {
        Err(why) if results.error.is_none() => results.error = Some(why.to_string()),
        judged => results.verdict = judged.unwrap_or_default(),
    }
    results.rows.sort_by_key(|row| row.size);
    let Some(guard) = guard else {
        return results;
    };
    let sets_best = sets_best && results.error.is_none();
    let best = results.verdict.keep.filter(|_| sets_best);
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
    results
}

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
