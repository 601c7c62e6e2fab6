//! Ctrl-C and other signals, caught while something has to be finished.

use std::{process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::{Exit, Output};

/// Catches what would end lmpatch from now on.
pub fn catch() -> std::io::Result<Signals> {
    Signals::new([SIGINT, SIGTERM, SIGHUP])
}

/// Lets the second signal end lmpatch while a model is loaded again. `is_first_over`: whether the first has already come.
/// Before that, `on_end` is told why.
pub fn end_on_second(
    mut signals: Signals,
    is_first_over: bool,
    output: Output,
    on_end: impl FnOnce(&str) + Send + 'static,
) {
    thread::spawn(move || {
        let mut signals = signals.forever();
        if !is_first_over && signals.next().is_some() {
            output.say("A model is being loaded; press Ctrl-C again to stop without it.");
        }
        if signals.next().is_some() {
            let what = "stopped before the model was loaded as it was";
            output.error(&format!("{what}; `lms ps` shows what is loaded"));
            on_end(what);
            process::exit(Exit::Failed as i32);
        }
    });
}
