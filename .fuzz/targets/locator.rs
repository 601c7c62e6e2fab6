//! Any bytes as a vendor file: no panic, and where the settings are found, setting and reverting lose nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmpatch::patch::settings::SETTINGS;

#[path = "../../tests/it/support/laws.rs"]
mod laws;

fuzz_target!(|bytes: &[u8]| {
    for setting in &SETTINGS {
        laws::set_and_revert(setting, bytes, 4096);
    }
});
