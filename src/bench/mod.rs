//! Measures prefill, as it is or size by size, and says which size to keep.
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
pub mod interrupt;
pub mod marker;
mod measure;
mod prompt;
pub mod race;
mod results;
mod served;
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::command;
use crate::lmstudio::home;
use crate::output::{Exit, Output};
use crate::patch;
use crate::patch::backend::Surveyed;
use args::BenchArgs;
use interrupt::Interrupt;
use results::Results;

/// What a benchmark works with, and what it has found so far.
struct Bench<'a> {
    args: &'a BenchArgs,
    output: &'a Output,
    interrupt: Interrupt,
    start: Instant,
    home: Option<PathBuf>,
    backends: Vec<Surveyed>,
    /// The sizes of the race: those that were given, or the one that is set.
    sizes: Vec<u64>,
    results: Results,
}

/// Runs a benchmark and tells what came out. Fails only where nothing could be told.
pub fn run(home: Option<&Path>, is_json: bool, args: &BenchArgs, output: &Output) -> Result<Exit> {
    let mut bench = Bench {
        args,
        output,
        interrupt: Interrupt::catch()?,
        start: Instant::now(),
        home: None,
        backends: Vec::new(),
        sizes: args.sizes.clone(),
        results: Results {
            schema: 2,
            lmpatch: env!("CARGO_PKG_VERSION"),
            machine: machine(),
            runs_per_size: args.runs,
            ..Results::default()
        },
    };
    let measured = bench.measure(home);
    let is_right = *measured.as_ref().unwrap_or(&false);
    let results = &mut bench.results;
    results.error = measured.err().map(|error| format!("{error:#}"));
    if bench.interrupt.was_set() {
        results.error = Some("stopped; what was measured until then is kept".to_owned());
    }
    let results = &bench.results;
    let is_written = results.rows.is_empty() || bench.write();
    if is_json {
        output.print(&export::json(results)?)?;
    } else if !results.rows.is_empty() && !output.is_quiet {
        output.print(&export::table(results, output.width()))?;
    }
    for remark in results.remarks() {
        output.say(&remark);
    }
    results.error.iter().for_each(|error| output.error(error));
    let is_bad = !is_right || !is_written || results.has_failures(bench.sizes.len());
    Ok(if is_bad { Exit::Failed } else { Exit::Done })
}

impl Bench<'_> {
    /// Measures; whether everything is as it was, or as it was to be.
    fn measure(&mut self, home: Option<&Path>) -> Result<bool> {
        let args = self.args;
        for file in &args.output {
            export::stage(file)?;
        }
        self.sizes.sort_unstable();
        self.sizes.dedup();
        let needs_home = args.apply_best || !args.direct && !self.sizes.is_empty();
        match home::find(home) {
            Ok(found) => {
                self.backends = patch::survey(&found, &args.backend)?.backends;
                self.home = Some(found);
            }
            Err(error) if home.is_some() || needs_home => return Err(error),
            Err(_) => {}
        }
        let is_possible = !needs_home || !self.backends.is_empty();
        ensure!(is_possible, "there is no MLX backend to set a size in");
        if let Some(in_use) = self.in_use() {
            let stock = in_use.chunk_and_stock().map(|(_, stock)| stock);
            let runtimes = in_use.backend.runtimes.iter();
            let runtime = runtimes.max_by_key(|runtime| runtime.selected);
            let runtime = runtime.map(|runtime| runtime.label.clone());
            (self.results.stock, self.results.runtime) = (stock, runtime);
        }
        if args.direct {
            self.direct()
        } else {
            self.served()
        }
    }

    /// The selected backend, or else the last.
    fn in_use(&self) -> Option<&Surveyed> {
        let backends = self.backends.iter();
        backends.max_by_key(|backend| backend.backend.selected)
    }

    /// The tokens of every prompt. Fails where they say nothing about the largest size.
    fn prompt_tokens(&self) -> Result<u64> {
        let largest = self.sizes.iter().max().copied().unwrap_or_default();
        // Two chunks of the largest of several sizes, or four of the one that is set.
        let chunks = if self.args.sizes.is_empty() { 4 } else { 2 };
        let usual = (chunks * largest).max(8192);
        let tokens = self.args.prompt_tokens.unwrap_or(usual);
        let least = 2 * largest;
        ensure!(
            tokens >= least,
            "a prompt of {tokens} tokens says nothing about a chunk of {largest}: it takes at least {least}; give \
             more with --prompt-tokens, or smaller --sizes"
        );
        Ok(tokens)
    }

    /// The size that is to be set at the end.
    fn best(&self) -> Option<u64> {
        let is_wanted = self.args.apply_best && !self.interrupt.was_set();
        self.results.verdict.keep.filter(|_| is_wanted)
    }

    /// Says something that belongs to the results too.
    fn note(&mut self, note: String) {
        self.output.note(&note);
        self.results.notes.push(note);
    }

    /// Writes every file; whether that worked. A disk that is full does not end the measuring.
    fn write(&self) -> bool {
        let write = |path: &PathBuf| export::write(path, &self.results).err();
        let errors: Vec<_> = self.args.output.iter().filter_map(write).collect();
        let say = |error| self.output.error(&format!("{error:#}"));
        errors.iter().for_each(say);
        errors.is_empty()
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
