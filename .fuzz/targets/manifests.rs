//! Any bytes as a runtime's manifest: no panic, and the name of a package never leaves its directory.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use lmpatch::lmstudio::runtimes::Runtime;

fuzz_target!(|bytes: &[u8]| {
    let Ok(runtime) = serde_json::from_slice::<Runtime>(bytes) else { return };
    for package in runtime.directories() {
        let parts: Vec<_> = Path::new(package).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{package:?} leaves its directory");
    }
});
