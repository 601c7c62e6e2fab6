//! Ctrl-C and other signals, caught while something has to be finished.

use std::{process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::{Exit, Output};

pub const ON_FIRST: &str = "A model is being loaded; press Ctrl-C again to stop without it.";
pub const ON_SECOND: &str =
    "stopped before the model was loaded as it was; `lms ps` shows what is loaded";

/// Catches what would end lmpatch from now on.
pub fn catch() -> std::io::Result<Signals> {
    Signals::new([SIGINT, SIGTERM, SIGHUP])
}

/// Lets only the second signal end lmpatch, if signals can be caught: the first would come between an unload and a load.
pub fn end_on_second(output: Output) {
    let Ok(mut signals) = catch() else { return };
    thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            output.say(ON_FIRST);
        }
        if signals.next().is_some() {
            output.error(ON_SECOND);
            process::exit(Exit::Failed as i32);
        }
    });
}
