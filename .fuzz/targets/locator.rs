//! Any bytes as a vendor file: no panic, and where the settings are found, setting and reverting lose nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmpatch::patch::python;
use lmpatch::patch::settings::SETTINGS;

#[path = "../../tests/support/laws.rs"]
mod laws;

fuzz_target!(|bytes: &[u8]| {
    let _ = python::read(bytes, |_| true);
    for setting in &SETTINGS {
        laws::set_and_revert(setting, bytes, 4096);
    }
});
