//! Measures prefill, as it is or size by size, and says which size to keep.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::must_use_candidate,
    reason = "token counts are far below 2^53"
)]

mod answer;
pub mod args;
mod direct;
mod export;
pub mod guard;
pub mod interrupt;
pub mod marker;
mod measure;
mod progress;
mod prompt;
pub mod race;
mod results;
mod served;
mod server;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::cli::Cli;
use crate::command;
use crate::exit::Exit;
use crate::files;
use crate::lmstudio::home;
use crate::output::Output;
use crate::patch;
use crate::patch::backend::Surveyed;
use args::BenchArgs;
use interrupt::Interrupt;
use measure::{Engine, Failure, Measuring};
use progress::bar;
use prompt::Prompts;
use race::{Race, as_f64};
use results::Results;

/// The tokens of the prefill that comes before everything: it shows that all works, and about how fast.
const PROBE_TOKENS: u64 = 1024;

/// What a benchmark works with.
struct Bench<'a> {
    args: &'a BenchArgs,
    output: &'a Output,
    interrupt: Interrupt,
    home: Option<PathBuf>,
    backends: Vec<Surveyed>,
    /// The sizes of the race: those that were given, or the one that is set.
    sizes: Vec<u64>,
}

/// Runs a benchmark and tells what came out. Fails only where nothing could be told.
pub fn run(cli: &Cli, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let mut bench = Bench {
        args,
        output,
        interrupt: Interrupt::catch()?,
        home: None,
        backends: Vec::new(),
        sizes: args.sizes.clone(),
    };
    let mut results = Results {
        schema: 2,
        lmpatch: env!("CARGO_PKG_VERSION"),
        machine: machine(),
        runs_per_size: args.runs,
        ..Results::default()
    };
    let measured = bench.measure(cli.home.as_deref(), &mut results);
    let is_right = measured.unwrap_or_else(|error| {
        results.error = Some(format!("{error:#}"));
        false
    });
    if bench.interrupt.was_set() {
        results.error = Some("stopped; what was measured until then is kept".to_owned());
    }
    let is_written = results.rows.is_empty() || bench.write(&results);
    if cli.json {
        output.print(&export::json(&results)?)?;
    } else if !results.rows.is_empty() && !output.is_quiet {
        output.print(&export::table(&results, output.width()))?;
    }
    results
        .remarks()
        .iter()
        .for_each(|remark| output.say(remark));
    results.error.iter().for_each(|error| output.error(error));
    let is_bad = !is_right || !is_written || results.has_failures(bench.sizes.len());
    Ok(if is_bad { Exit::Failed } else { Exit::Done })
}

impl Bench<'_> {
    /// Measures; whether everything is as it was, or as it was to be.
    fn measure(&mut self, home: Option<&Path>, results: &mut Results) -> Result<bool> {
        let args = self.args;
        for file in &args.output {
            file.stage()?;
        }
        self.sizes.sort_unstable();
        self.sizes.dedup();
        let needs_home = args.apply_best || !args.direct && !self.sizes.is_empty();
        match home::find(home) {
            Ok(found) => self.home = Some(found.path),
            Err(error) if home.is_some() || needs_home => return Err(error),
            Err(_) => {}
        }
        if let Some(home) = &self.home {
            self.backends = patch::survey(home, &args.backend)?.backends;
        }
        ensure!(
            !needs_home || !self.backends.is_empty(),
            "there is no MLX backend to set a size in"
        );
        if let Some(in_use) = self.in_use() {
            results.stock = in_use.chunk_and_stock().map(|(_, stock)| stock);
            let runtimes = in_use.backend.runtimes.iter();
            let runtime = runtimes.max_by_key(|runtime| runtime.selected);
            results.runtime = runtime.map(|runtime| runtime.label.clone());
        }
        if args.direct {
            self.direct(results)
        } else {
            self.served(results)
        }
    }

    fn in_use(&self) -> Option<&Surveyed> {
        let selected = self
            .backends
            .iter()
            .find(|backend| backend.backend.selected);
        selected.or(self.backends.last())
    }

    /// The tokens of every prompt. Fails where they say nothing about the largest size.
    fn prompt_tokens(&self) -> Result<u64> {
        let largest = self.sizes.iter().max().copied().unwrap_or_default();
        // Two chunks of the largest of several sizes, or four of the one that is set.
        let chunks = if self.args.sizes.is_empty() { 4 } else { 2 };
        let tokens = self
            .args
            .prompt_tokens
            .unwrap_or((chunks * largest).max(8192));
        let least = 2 * largest;
        ensure!(
            tokens >= least,
            "a prompt of {tokens} tokens says nothing about a chunk of {largest}: it takes at least {least}; give \
             more with --prompt-tokens, or smaller --sizes"
        );
        Ok(tokens)
    }

    fn prompts(&self) -> Result<Prompts> {
        let Some(path) = &self.args.prompt_file else {
            return Ok(Prompts::new(None));
        };
        let shown = path.display();
        let bytes = files::read(path).map_err(|why| anyhow!("{shown} {why}"))?;
        let text = String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8"))?;
        ensure!(!text.trim().is_empty(), "{shown} is empty");
        Ok(Prompts::new(Some(text)))
    }

    /// The size that is to be set at the end.
    fn best(&self, results: &Results) -> Option<u64> {
        let is_wanted = self.args.apply_best && !self.interrupt.was_set();
        results.verdict.keep.filter(|_| is_wanted)
    }

    /// Probes, says how long it takes at most, and races.
    fn race(&self, engine: &mut dyn Engine, results: &mut Results, is_known: bool) -> Result<()> {
        let (begun, asked) = (Instant::now(), self.sizes.len());
        let budget = self.args.budget.unwrap_or(Duration::MAX);
        let wants_stop = || self.interrupt.is_set() || begun.elapsed() > budget;
        let (tokens, runs) = (results.prompt_tokens, self.args.runs);
        let mut race = Race::new(&self.sizes, tokens, runs, !self.args.direct);
        race.limit(budget.as_secs_f64());
        let probe_tokens = PROBE_TOKENS.min(tokens);
        let speed = match engine.prefill(probe_tokens, &mut |_| measure::unless(wants_stop())) {
            Ok(probe) => probe.run.tokens_per_second,
            Err(Failure::Size(why)) => bail!(why),
            Err(Failure::Ended) => return Ok(()),
        };
        let at_most = as_f64(race.tokens_at_most()) / speed;
        let minutes = (at_most.min(budget.as_secs_f64()) / 60.0).ceil();
        let bar = bar(self.output, race.tokens_at_most());
        let model = &results.model;
        let plan = format!(
            "{model}, {tokens} prompt tokens, sizes: {asked}; at most {minutes} minutes of prefill"
        );
        bar.suspend(|| self.output.say(&plan));
        Measuring {
            engine,
            race: &mut race,
            results,
            bar: &bar,
            is_size_known: is_known,
            wants_stop: &wants_stop,
            after_step: &mut |results, race| {
                results.conclude(race.standing(), asked);
                self.write(results);
            },
        }
        .run();
        bar.finish_and_clear();
        results.conclude(race.standing(), asked);
        if race.is_cut_short(begun.elapsed().as_secs_f64()) && !self.interrupt.was_set() {
            let note = "the budget was over before the answer was settled".to_owned();
            self.output.note(&note);
            results.notes.push(note);
        }
        Ok(())
    }

    /// Writes every file; whether that worked. A disk that is full does not end the measuring.
    fn write(&self, results: &Results) -> bool {
        let mut is_written = true;
        for error in self
            .args
            .output
            .iter()
            .filter_map(|file| file.write(results).err())
        {
            self.output.error(&format!("{error:#}"));
            is_written = false;
        }
        is_written
    }
}

/// The machine that this runs on, in a line.
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
