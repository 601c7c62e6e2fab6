//! One run against one home: look or change, then tell.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use glob::Pattern;

use crate::cli::Cli;
use crate::effect::{self, Effect};
use crate::lmstudio::backends::{MissingLayer, amphibian};
use crate::lmstudio::server::{self, Patience, Server};
use crate::outcome::Outcome;
use crate::patch::backend::{Backend, Hindrance};
use crate::patch::plan::Goal;
use crate::patch::{self, Deed, Doings, Done};
use crate::reload::{How, Reload, Reloaded};
use crate::report::human::{self, Layout};
use crate::report::{BackendReport, ReloadReport, Report, advice};
use crate::ui::Ui;

/// What one run works with.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// What was typed.
    pub cli: &'a Cli,
    /// Where it is told.
    pub ui: &'a Ui,
    /// LM Studio's home.
    pub home: &'a Path,
}

impl Session<'_> {
    /// Shows every backend; with a size, tells whether every one of them has it.
    pub fn check(self, report: &mut Report, size: Option<u64>) -> Result<Outcome> {
        let survey = patch::survey(self.home, &self.cli.backend)?;
        let backends: Vec<_> = survey
            .backends
            .iter()
            .map(BackendReport::looked_at)
            .collect();
        self.fill(report, backends, survey.missing)?;
        self.look(report, &survey.backends.iter().collect::<Vec<_>>());
        let table = || {
            format!(
                "{}{}",
                human::check(report, self.layout()),
                human::effects(report)
            )
        };
        let printed = if self.shows_tables() {
            self.print(&table())
        } else {
            Ok(())
        };
        self.tell_reasons(report);
        self.tell_notes(report, advice::on_sizes(report, None));
        if let Some(size) = size {
            let having = survey
                .backends
                .iter()
                .filter(|backend| backend.has(size))
                .count();
            self.ui
                .say(&human::verdict(size, having, survey.backends.len()));
        }
        printed.map(|()| check_outcome(&survey.backends, size))
    }

    /// Carries out or rehearses, by `act`, what brings every backend to the goal.
    pub fn change(
        self,
        report: &mut Report,
        goal: Goal,
        act: impl FnOnce(&Path, &[Pattern], Goal) -> Result<Doings>,
    ) -> Result<Outcome> {
        let (done, missing) = act(self.home, &self.cli.backend, goal)?;
        self.fill(
            report,
            done.iter().map(BackendReport::done).collect(),
            missing,
        )?;
        let printed = if report.dry_run && !self.cli.json {
            self.print_diff(&human::diff(self.home, &done))
        } else if self.shows_tables() {
            self.print(&human::changes(report, self.layout()))
        } else {
            Ok(())
        };
        // Also where stdout is of no use: what was done to people's files is not kept from them.
        self.tell_reasons(report);
        let size = match goal {
            Goal::Size(size) => Some(size),
            Goal::Vendor => None,
        };
        let on_sizes = size
            .map(|size| advice::on_sizes(report, Some(size)))
            .unwrap_or_default();
        self.tell_notes(
            report,
            on_sizes
                .into_iter()
                .chain(done.iter().flat_map(advice::on_originals)),
        );
        let outcome = Outcome::of(done.iter().map(|done| &done.deed));
        self.tell_summary(report, &done);
        let Some(how) = self.cli.reload() else {
            self.tell_what_holds_old_values(report, &done);
            return printed.map(|()| outcome);
        };
        let is_any = done
            .iter()
            .any(|done| matches!(done.deed, Deed::Changed | Deed::Unchanged));
        let is_reloaded = is_any && self.reload(report, how);
        printed.map(|()| {
            if is_reloaded {
                outcome
            } else {
                Outcome::Failed
            }
        })
    }

    /// Adds to the report whether the values are in effect. A run that prints errors only has no use for it.
    fn look(self, report: &mut Report, backends: &[&Backend]) {
        if self.ui.is_quiet && !self.cli.json {
            return;
        }
        let mut sight = effect::look(self.home);
        sight.ask(&self.server(Patience::SHORT), backends);
        report.add_effects(&sight, backends.iter().copied());
    }

    fn server(self, patience: Patience) -> Server {
        let base = self
            .cli
            .url
            .clone()
            .unwrap_or_else(|| server::base_url(self.home));
        Server::new(
            base,
            std::env::var(server::TOKEN_VARIABLE).ok().as_deref(),
            patience,
        )
    }

    /// Makes the values take effect and tells of it; whether that worked.
    fn reload(self, report: &mut Report, how: How) -> bool {
        let server = self.server(Patience::default());
        let reload = Reload {
            home: self.home,
            server: &server,
            wait: self.cli.wait,
        };
        let (models, error) = match reload.carry_out(how) {
            Ok(models) => (models, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        if how == How::App && error.is_none() {
            self.ui.say("LM Studio was restarted.");
        }
        if models.is_empty() && error.is_none() {
            self.ui
                .say("No MLX model was loaded; the next one that is takes these values.");
        }
        for model in &models {
            self.tell_reloaded(model);
        }
        if let Some(error) = &error {
            self.ui.error(&format!(
                "the files are done, but no model was loaded again: {error}"
            ));
        }
        let worked = error.is_none() && models.iter().all(|model| model.failed.is_none());
        report.reload = Some(ReloadReport { how, models, error });
        worked
    }

    fn tell_reloaded(self, model: &Reloaded) {
        if let Some(why) = &model.failed {
            self.ui.error(&format!(
                "the files are done, but {} was not loaded again: {why}",
                model.instance
            ));
            return;
        }
        let number = |value: Option<u64>| {
            value.map_or_else(|| "as by default".to_owned(), |value| value.to_string())
        };
        let (context, parallel) = (number(model.context_length), number(model.parallel));
        self.ui.say(&format!(
            "{} is loaded again (context {context}, parallel {parallel}).",
            model.instance
        ));
        if let Some(note) = &model.note {
            self.ui.note(&format!("{}: {note}", model.instance));
        }
    }

    fn fill(
        self,
        report: &mut Report,
        backends: Vec<BackendReport>,
        missing: Vec<MissingLayer>,
    ) -> Result<()> {
        report.fill(self.home, backends, missing);
        if !report.backends.is_empty() {
            return Ok(());
        }
        let directory = amphibian(self.home);
        if self.cli.backend.is_empty() {
            bail!(
                "no MLX backend found in {}; install an MLX runtime in LM Studio first",
                directory.display()
            );
        }
        let patterns: Vec<_> = self.cli.backend.iter().map(Pattern::as_str).collect();
        bail!(
            "no backend in {} matches {}; `lmpatch --check` shows them all",
            directory.display(),
            patterns.join(" or ")
        );
    }

    fn shows_tables(self) -> bool {
        !self.cli.json && !self.ui.is_quiet
    }

    fn layout(self) -> Layout {
        Layout {
            width: self.ui.width(),
            is_verbose: self.ui.is_verbose,
        }
    }

    fn print(self, text: &str) -> Result<()> {
        self.ui.print(text).context("cannot write to stdout")
    }

    /// On a terminal painted and safe to show; else byte for byte, so that `patch` can apply it.
    fn print_diff(self, diff: &[u8]) -> Result<()> {
        if self.ui.is_quiet {
            return Ok(());
        }
        if self.ui.has_colour() || self.ui.width().is_some() {
            return self.print(&human::paint_diff(diff));
        }
        self.ui.print_raw(diff).context("cannot write to stdout")
    }

    /// Names every backend that was refused, failed or was left alone.
    fn tell_reasons(self, report: &Report) {
        for backend in &report.backends {
            let Some(why) = &backend.why else { continue };
            let text = format!("{}: {why}", backend.layer);
            let is_trouble = backend
                .result
                .map_or(backend.state == patch::backend::State::Refused, |result| {
                    result != "left-alone"
                });
            if is_trouble {
                self.ui.error(&text)
            } else {
                self.ui.note(&text)
            }
        }
    }

    fn tell_notes(self, report: &mut Report, advice: impl IntoIterator<Item = advice::Advice>) {
        let missing = report.missing_layers.iter().map(|missing| {
            format!(
                "{} names the layer {}, which is not on disk: an update that LM Studio has not finished",
                missing.runtime, missing.layer
            )
        });
        let notes: Vec<_> = missing
            .chain(advice.into_iter().map(|advice| advice.to_string()))
            .collect();
        for note in &notes {
            self.ui.note(note);
        }
        report.notes.extend(notes);
    }

    fn tell_summary(self, report: &Report, done: &[Done]) {
        self.ui.say(&human::summary(report));
        if done
            .iter()
            .any(|done| matches!(done.deed, Deed::Refused(_)))
        {
            self.ui.say(
                "A refused backend is as it was; if it came with a current LM Studio, please report what was found.",
            );
        }
    }

    fn tell_what_holds_old_values(self, report: &mut Report, done: &[Done]) {
        if report.dry_run {
            self.ui.say("Dry run: nothing was written.");
            return;
        }
        self.look(
            report,
            &done.iter().map(|done| &done.after).collect::<Vec<_>>(),
        );
        let stale: Vec<_> = report
            .backends
            .iter()
            .filter(|backend| backend.in_effect == Some(Effect::ReloadNeeded))
            .collect();
        if !stale.is_empty() {
            let note = format!(
                "loaded models still hold the old values: worker {} was started before the files were written; add --reload to load \
                 them again, or --restart to restart LM Studio",
                human::stale_workers(&stale)
            );
            self.ui.note(&note);
            report.notes.push(note);
        }
        if done.iter().any(|done| matches!(done.deed, Deed::Changed)) {
            self.ui.say(
                "It takes effect when a model is next loaded; restarting LM Studio makes sure.",
            );
        }
    }
}

fn check_outcome(backends: &[Backend], size: Option<u64>) -> Outcome {
    let is_refused = |backend: &Backend| matches!(backend.hindrance(), Some(Hindrance::Refused(_)));
    match size {
        Some(size) if !backends.iter().all(|backend| backend.has(size)) => Outcome::OtherValue,
        None if backends.iter().any(is_refused) => Outcome::Failed,
        _ => Outcome::Done,
    }
}
