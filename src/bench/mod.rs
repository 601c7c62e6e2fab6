//! Measures prefill: as it is, size by size, or without LM Studio; and says which size to keep.

pub mod chunk;
pub mod direct;
pub mod interrupt;
pub mod machine;
pub mod measure;
pub mod progress;
pub mod prompt;
pub mod record;
pub mod reload;
pub mod served;
pub mod stats;
pub mod sweep;
pub mod verdict;
pub mod view;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cli::{BenchArgs, Cli};
use crate::files;
use crate::lmstudio::home;
use crate::outcome::Outcome;
use crate::patch;
use crate::patch::backend::Backend;
use crate::patch::plan::Goal;
use crate::report::human::Layout;
use crate::ui::{Ui, printable};
use interrupt::Interrupt;
use progress::Bar;
use prompt::{Fit, Text};
use record::{Record, Row};

/// The tokens of a prompt where nothing else is said.
const PROMPT_TOKENS: u64 = 40_000;

/// What a benchmark works with.
pub struct Bench<'a> {
    /// What was typed.
    pub cli: &'a Cli,
    /// What was typed behind `bench`.
    pub args: &'a BenchArgs,
    /// Where it is told.
    pub ui: &'a Ui,
    /// What Ctrl-C sets.
    pub interrupt: Interrupt,
    /// The sizes, each once.
    pub sizes: Vec<u64>,
    /// Whether every output could be written.
    is_written: Cell<bool>,
}

/// Runs a benchmark and tells what came out. Fails only where nothing could be told.
pub fn run(cli: &Cli, args: &BenchArgs, ui: &Ui) -> Result<Outcome> {
    let is_first = |(index, size): &(usize, &u64)| {
        !args
            .sizes
            .iter()
            .take(*index)
            .any(|earlier| earlier == *size)
    };
    let sizes = args
        .sizes
        .iter()
        .enumerate()
        .filter(is_first)
        .map(|(_, size)| *size)
        .collect();
    let is_written = Cell::new(true);
    let bench = Bench {
        cli,
        args,
        ui,
        interrupt: Interrupt::catch()?,
        sizes,
        is_written,
    };
    let mut record = Record::new(args.model.clone(), args.runs);
    let measured = args
        .output
        .iter()
        .try_for_each(view::Output::probe)
        .and_then(|()| {
            if args.direct {
                bench.direct(&mut record)
            } else {
                served::run(&bench, &mut record)
            }
        });
    if let Err(error) = measured {
        record.error = Some(format!("{error:#}"));
    }
    if bench.interrupt.is_set() {
        record.error = Some("stopped; what was measured until then is kept".to_owned());
    }
    record.conclude();
    if !record.results.is_empty() {
        bench.write(&record);
    }
    bench.show(&record)?;
    Ok(if record.has_failures() || !bench.is_written.get() {
        Outcome::Failed
    } else {
        Outcome::Done
    })
}

impl Bench<'_> {
    /// Writes every output. A disk that is full does not end the measuring; the exit code tells.
    pub fn write(&self, record: &Record) {
        for error in self
            .args
            .output
            .iter()
            .filter_map(|output| output.write(record).err())
        {
            self.ui.error(&format!("{error:#}"));
            self.is_written.set(false);
        }
    }

    /// After every size: what follows from it, into the files and in a line.
    pub fn after_size(&self, record: &mut Record, bar: &Bar) {
        record.conclude();
        self.write(record);
        let again = record.first_again.as_ref().map(|row| (row, " again"));
        let Some((row, which)) = again.or(record.results.last().map(|row| (row, ""))) else {
            return;
        };
        let size = row
            .size
            .map_or_else(|| "as it is".to_owned(), |size| size.to_string());
        let speed = match (&row.failed, row.median_tokens_per_second) {
            (Some(why), _) => format!("failed: {why}"),
            (None, Some(speed)) => format!(
                "{} tok/s, observed chunk {}",
                view::speed(speed),
                row.observed()
            ),
            (None, None) => return,
        };
        bar.say(self.ui, &printable(&format!("{size}{which}: {speed}")));
    }

    fn show(&self, record: &Record) -> Result<()> {
        if self.cli.json {
            self.ui
                .print(&view::json(record)?)
                .context("cannot write the results to stdout")?;
        } else if !self.ui.is_quiet && !record.results.is_empty() {
            let layout = Layout {
                width: self.ui.width(),
                is_verbose: false,
            };
            let table = view::table::render(record, layout);
            let bars = view::bars::render(record, self.ui.width().unwrap_or(80).into());
            let gap = if bars.is_empty() { "" } else { "\n" };
            self.ui
                .print(&format!("{table}{gap}{bars}"))
                .context("cannot write the results to stdout")?;
        }
        for failure in view::failures(record) {
            self.ui.error(&failure);
        }
        for remark in view::remarks(record) {
            self.ui.say(&remark);
        }
        if let Some(error) = &record.error {
            self.ui.error(error);
        }
        Ok(())
    }

    /// Something of note, told now and kept.
    pub fn note(&self, record: &mut Record, note: String) {
        self.ui.note(&note);
        record.notes.push(note);
    }

    /// The home, where there is one. Fails where one was named and is none.
    pub fn home(&self, record: &mut Record) -> Result<Option<PathBuf>> {
        match home::find(self.cli.home.as_deref()) {
            Ok(found) => {
                if let Some(note) = found.note {
                    self.note(record, note);
                }
                Ok(Some(found.path))
            }
            Err(error) if self.cli.home.is_some() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// What prompts are made of.
    pub fn text(&self) -> Result<Text> {
        let Some(path) = &self.args.prompt_file else {
            return Ok(Text::Generated);
        };
        let read = files::read(path).map_err(|why| anyhow::anyhow!("{} {why}", path.display()));
        let text = String::from_utf8(read?)
            .ok()
            .with_context(|| format!("{} is not UTF-8", path.display()))?;
        if text.is_empty() {
            bail!("{} is empty", path.display());
        }
        Ok(Text::File(text))
    }

    /// The tokens that prompts get, told where that is less than what was asked for.
    pub fn fit(&self, record: &mut Record, asked: u64, context: Option<u64>) -> Result<u64> {
        let largest = self.sizes.iter().max().copied().unwrap_or_default();
        let load = |tokens: u64| {
            format!(
                "`lms load {} --context-length {}`",
                self.args.model,
                tokens + tokens / 50 + 256
            )
        };
        match prompt::fit(asked, context, largest) {
            Fit::Whole(tokens) => Ok(tokens),
            Fit::Cut { tokens, context } => {
                let more = load(asked);
                self.note(
                    record,
                    format!("the model is loaded with a context of {context}, so prompts have {tokens} tokens; {more} loads more"),
                );
                Ok(tokens)
            }
            Fit::TooSmall {
                tokens,
                needed,
                context: None,
            } => bail!(
                "a prompt of {tokens} tokens says nothing about a chunk of {largest}: it takes at least {needed}; give a \
                 longer one, or smaller --sizes"
            ),
            Fit::TooSmall {
                tokens,
                needed,
                context: Some(context),
            } => bail!(
                "the model is loaded with a context of {context}, which leaves {tokens} tokens for a prompt; to learn \
                 about a chunk of {largest} it takes at least {needed}: {} loads more, or give smaller --sizes",
                load(asked.max(needed))
            ),
        }
    }

    /// What is known about the backends into the record: what ships, and the runtime in use.
    pub fn describe(record: &mut Record, backends: &[Backend]) {
        let in_use = in_use(backends);
        let runtime = in_use.and_then(|backend| {
            backend
                .layer
                .runtimes
                .iter()
                .max_by_key(|runtime| runtime.is_selected)
        });
        record.runtime = runtime.map(crate::lmstudio::runtimes::Runtime::label);
        record.stock = in_use
            .and_then(Backend::chunk_and_stock)
            .map(|(_, stock)| stock);
    }

    /// Sets the size of the verdict, where there is one; whether it did.
    pub fn apply_best(&self, record: &mut Record, home: &Path) -> Result<bool> {
        record.conclude();
        let Some(size) = record
            .verdict
            .keep
            .filter(|_| self.args.apply_best && !self.interrupt.is_set())
        else {
            return Ok(false);
        };
        let (done, _) = patch::carry_out(home, &self.args.backend, Goal::Size(size))?;
        for (layer, why) in done.iter().filter_map(sweep::trouble) {
            self.note(record, format!("{layer} was not set to {size}: {why}"));
        }
        self.ui.say(&format!(
            "{size} is set; it takes effect when a model is next loaded."
        ));
        Ok(true)
    }

    fn direct(&self, record: &mut Record) -> Result<()> {
        let home = self.home(record)?;
        let survey = home
            .as_deref()
            .map(|home| patch::survey(home, &self.args.backend))
            .transpose()?;
        let backends = survey.map(|survey| survey.backends).unwrap_or_default();
        Self::describe(record, &backends);
        let job = self.job(home.as_deref(), &backends)?;
        record.prompt_tokens = job.tokens.unwrap_or_default();
        let warm_up = |size: &u64| record.prompt_tokens.min(2 * size + 1);
        let counted = u64::from(self.args.runs) * record.prompt_tokens * as_u64(self.sizes.len());
        let mut bar = Bar::new(
            self.ui,
            counted + self.sizes.iter().map(warm_up).sum::<u64>(),
        );
        bar.label("loading the model".to_owned());
        let mut found = direct::Found::default();
        let measured = direct::measure(&job, &self.interrupt, &mut bar, &mut found, |found| {
            record.results = found.rows(&self.sizes);
            record.prompt_tokens = found.tokens;
            record.conclude();
            self.write(record);
        });
        bar.clear();
        record.results = found.rows(&self.sizes);
        if let Some(version) = &found.version {
            let runtime = record
                .runtime
                .take()
                .map(|runtime| format!("{runtime}, "))
                .unwrap_or_default();
            record.runtime = Some(format!("{runtime}mlx-lm {version}"));
        }
        measured?;
        if let Some(home) = home.filter(|_| self.args.apply_best) {
            self.apply_best(record, &home)?;
        }
        Ok(())
    }

    fn job(&self, home: Option<&Path>, backends: &[Backend]) -> Result<direct::Job> {
        let python = match (&self.args.python, home, in_use(backends)) {
            (Some(program), _, _) => direct::Python {
                program: program.clone(),
                packages: None,
            },
            (None, Some(home), Some(backend)) => direct::python_of(home, &backend.layer)?,
            _ => {
                bail!(
                    "there is no MLX backend whose Python could be used; name one with --python, or give --home DIR"
                )
            }
        };
        let named = PathBuf::from(&self.args.model);
        let in_home = home.map(|home| home.join("models").join(&named));
        let model = [Some(named), in_home]
            .into_iter()
            .flatten()
            .find(|path| path.is_dir());
        let model = model.with_context(|| {
            format!(
                "{} is no directory; --direct takes the directory of an MLX model",
                self.args.model
            )
        })?;
        let text = self.text()?;
        let tokens = self
            .args
            .prompt_tokens
            .or((text == Text::Generated).then_some(PROMPT_TOKENS));
        let text = match text {
            Text::Generated => text.prompt(&measure::nonce(), direct::SAMPLE),
            Text::File(text) => text,
        };
        let sizes = self.sizes.clone();
        Ok(direct::Job {
            python,
            model,
            text,
            tokens,
            sizes,
            runs: self.args.runs,
        })
    }
}

/// The backend that the app uses: the selected one, or the newest.
#[must_use]
pub fn in_use(backends: &[Backend]) -> Option<&Backend> {
    backends
        .iter()
        .find(|backend| backend.layer.is_selected())
        .or(backends.last())
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The chunk that is set now, as a row's size.
#[must_use]
pub fn size_now(backends: &[Backend]) -> Option<u64> {
    in_use(backends)
        .and_then(Backend::chunk_and_stock)
        .map(|(chunk, _)| chunk)
}

/// Adds a row and tells it.
pub fn add(bench: &Bench<'_>, record: &mut Record, row: Row, bar: &Bar) {
    record.results.push(row);
    bench.after_size(record, bar);
}
