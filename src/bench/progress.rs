//! The progress bar of a whole benchmark; on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

/// Its unit is the prompt token.
pub type Bar = ProgressBar;

/// A bar over `tokens` at most.
pub fn bar(output: &Output, tokens: u64) -> Bar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}, at most {eta} left");
    let bar = ProgressBar::new(tokens).with_style(style.expect("it is well-formed"));
    // Time goes on also where a server tells no progress.
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
