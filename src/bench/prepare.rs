//! Finds out what to measure and with what, and what that takes; changes nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use ureq::Agent;

use super::args::BenchArgs;
use super::direct::Direct;
use super::export;
use super::guard::Guard;
use super::marker;
use super::measure::{Benchmark, Engine};
use super::prompt::context_for;
use super::results::Results;
use super::server::Server;
use crate::command;
use crate::lmstudio::home;
use crate::output::Output;
use crate::patch;
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;

/// The benchmark that `args` ask for. Fails if it could not work.
pub fn prepare(
    home: Option<&Path>,
    args: &BenchArgs,
    output: &Output,
    agent: &Agent,
) -> Result<Benchmark> {
    export::check(&args.output)?;
    let sets = args.apply_best || !args.direct && !args.sizes.is_empty();
    let found = match home::find(home) {
        Err(error) if home.is_some() || sets => return Err(error),
        found => found.ok(),
    };
    let home = found.as_deref();
    if let Some(commands) = home.and_then(marker::interrupted) {
        bail!("a benchmark was interrupted; first restore the sizes: {commands}");
    }
    let backends = home.map_or(Ok(vec![]), |home| backends(home, args))?;
    let in_use = backends.iter().max_by_key(|one| one.backend.selected);
    let mut results = initial_results(args, in_use)?;
    let guard = |model| -> Result<_> {
        let home = home.filter(|_| sets);
        home.map(|home| Guard::new(home, args, model, *output))
            .transpose()
    };
    let (engine, guard): (Box<dyn Engine>, _) = if args.direct {
        let backend = in_use.map(|one| &one.backend);
        let engine = Direct::new(args, home, backend, &mut results)?;
        (Box::new(engine), guard(None)?)
    } else {
        let server = Server::new(args, home, agent, &mut results)?;
        let context = context_for(results.prompt_tokens);
        let mut guard = guard(Some((&server.model, context)))?;
        if let Some(guard) = &mut guard {
            guard.server = Some(server.clone());
        }
        (Box::new(server), guard)
    };
    Ok(Benchmark {
        engine,
        guard: guard.map(Arc::new),
        results,
        bar: bar(output),
    })
}

fn backends(home: &Path, args: &BenchArgs) -> Result<Vec<Surveyed>> {
    let survey = patch::survey(home, &args.backend)?;
    if let (Some(name), false) = (survey.home.left_out.last(), args.direct) {
        bail!("{name} is selected, but --backend omits it");
    }
    Ok(survey.backends)
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
