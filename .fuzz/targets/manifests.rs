//! Any bytes as a runtime's manifest: no panic, and the name of a package never leaves its directory.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use lmpatch::lmstudio::runtimes::parse_manifest;

fuzz_target!(|bytes: &[u8]| {
    let Some(runtime) = parse_manifest(bytes) else { return };
    for package in &runtime.packages {
        let parts: Vec<_> = Path::new(package).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{package:?} leaves its directory");
    }
});
