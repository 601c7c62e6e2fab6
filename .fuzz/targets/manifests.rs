//! Any bytes as LM Studio's JSON files: no panic, and the name of a package never leaves its directory.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use lmpatch::lmstudio::runtimes::{parse_manifest, parse_preferences};

fuzz_target!(|bytes: &[u8]| {
    let selected = parse_preferences(bytes);
    let Some(runtime) = parse_manifest(bytes) else { return };
    assert!(selected.is_empty(), "one document is not both a list of rows and a manifest");
    for package in &runtime.packages {
        let parts: Vec<_> = Path::new(package).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{package:?} leaves its directory");
    }
});
