//! Any bytes as LM Studio's JSON files: no panic, and a layer's name never leaves its directory.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use lmpatch::lmstudio::runtimes::{parse_manifest, parse_preferences};

fuzz_target!(|bytes: &[u8]| {
    let selected = parse_preferences(bytes);
    let Some(runtime) = parse_manifest(bytes, &selected) else { return };
    assert!(!runtime.is_selected, "one document is not both a list of rows and a manifest");
    let own = [(runtime.name.clone(), runtime.version.clone())];
    assert!(parse_manifest(bytes, &own).is_some_and(|again| again.is_selected));
    for layer in &runtime.layers {
        let parts: Vec<_> = Path::new(layer).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{layer:?} leaves its directory");
    }
});
