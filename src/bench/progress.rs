//! The progress bar of a whole benchmark, with rate and time left; on a terminal only.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::ui::Ui;

/// The bar. Its unit is the prompt token.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    /// The tokens of everything that is done.
    done: u64,
}

impl Bar {
    /// A bar over `tokens`, the prompts of all runs.
    #[must_use]
    pub fn new(ui: &Ui, tokens: u64) -> Self {
        let target = if ui.shows_progress() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let template = "{msg} {wide_bar} {rate} tok/s, {elapsed} gone, {eta} left";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // Nothing can be done about a rate that cannot be written.
            let _ = write!(out, "{:.0}", state.per_sec());
        });
        let bar = ProgressBar::with_draw_target(Some(tokens), target).with_style(style);
        if ui.shows_progress() {
            // Time goes on also where a server tells no progress.
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, done: 0 }
    }

    /// What is measured now.
    pub fn label(&self, text: String) {
        self.bar.set_message(text);
    }

    /// This many tokens of the current run are done.
    pub fn at(&self, tokens: u64) {
        self.bar.set_position(self.done + tokens);
    }

    /// A run of this many tokens has ended.
    pub fn pass(&mut self, tokens: u64) {
        self.done += tokens;
        self.bar.set_position(self.done);
    }

    /// Says something above the bar.
    pub fn say(&self, ui: &Ui, text: &str) {
        self.bar.suspend(|| ui.say(text));
    }

    /// Takes it off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
