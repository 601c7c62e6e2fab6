//! The runtimes beside `vendor/`: which packages each is made of, and which one each app has selected.
//!
//! All of this is LM Studio's private format: if something is missing or odd, this module says less and never fails.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use walkdir::WalkDir;

use crate::files;

/// The apps that have their own choice of runtime in the one home, by the names that macOS knows, and where below it
/// their preferences are. LM Studio's headless daemon reads LM Studio's; Bionic is by the same makers, since 2026-07.
pub const APPS: [(&str, &str); 2] = [
    (LM_STUDIO, ".internal/backend-preferences-v1.json"),
    (
        "Bionic",
        "apps/bionic/.internal/backend-preferences-v1.json",
    ),
];
pub const LM_STUDIO: &str = "LM Studio";
/// The name on every Mac but those with an M5, whose runtime has `nax` in it.
const USUAL_NAME: &str = "mlx-llm-mac-arm64-apple-metal-advsimd";

/// One runtime, as its `backend-manifest.json` describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// `mlx-llm-mac-arm64-apple-metal-advsimd`.
    pub name: String,
    pub version: String,
    /// What people call it: `MLX 1.11.0`, or `MLX 1.11.0 nax` where the name has a part that the usual one has not.
    #[serde(skip)]
    pub label: String,
    /// The directories of `_amphibian` that it is made of.
    #[serde(skip)]
    pub packages: Vec<String>,
    pub selected: bool,
    pub selected_by: Vec<&'static str>,
}

/// Since when, at the latest, each app has had its runtime, in seconds since 1970; or why its runtime is unknown.
pub type Selections = BTreeMap<&'static str, Result<u64, String>>;

/// Every MLX runtime of `home`, newest first, and which are selected.
pub fn read(home: &Path) -> (Vec<Runtime>, Selections) {
    let directory = home.join("extensions/backends");
    let entries = WalkDir::new(directory).min_depth(1).max_depth(1);
    let mut runtimes = Vec::new();
    for entry in entries.sort_by_file_name().into_iter().flatten() {
        let manifest = files::read(&entry.path().join("backend-manifest.json"));
        let Some(new) = manifest.ok().and_then(|bytes| parse_manifest(&bytes)) else {
            continue;
        };
        // Of two with one name and version, one is somebody's backup.
        let is_same = |old: &Runtime| (&old.name, &old.version) == (&new.name, &new.version);
        if entry.file_name() == &*format!("{}-{}", new.name, new.version) {
            runtimes.retain(|old| !is_same(old));
        }
        if !runtimes.iter().any(is_same) {
            runtimes.push(new);
        }
    }
    let version = |runtime: &Runtime| -> Vec<u64> {
        let parts = runtime.version.split('.');
        parts.map(|part| part.parse().unwrap_or(0)).collect()
    };
    runtimes.sort_by_cached_key(|runtime| Reverse(version(runtime)));
    let mut selections = Selections::new();
    for (app, preferences) in APPS {
        let preferences = home.join(preferences);
        // Without its file an app is not installed, as most people have no Bionic.
        if app != LM_STUDIO && !preferences.exists() {
            continue;
        }
        let selected = select(&mut runtimes, app, &preferences);
        let since = || files::modified(&preferences).unwrap_or(u64::MAX);
        selections.insert(app, selected.map(|()| since()));
    }
    (runtimes, selections)
}

/// Marks the runtime that an app's preferences select for safetensors, the format of MLX models. Fails with the reason if
/// there is not just one.
fn select(runtimes: &mut [Runtime], app: &'static str, preferences: &Path) -> Result<(), String> {
    let preferences = files::read(preferences).unwrap_or_default();
    let mut rows: Vec<Value> = serde_json::from_slice(&preferences).unwrap_or_default();
    rows.retain(|row| row["model_format"] == "safetensors");
    rows.retain(|row| row["name"].is_string() && row["version"].is_string());
    let row = match &rows[..] {
        [row] => row,
        [] => return Err("name none, or cannot be read".to_owned()),
        rows => return Err(format!("name {} for MLX models", rows.len())),
    };
    let is_it = |r: &&mut Runtime| row["name"] == r.name && row["version"] == r.version;
    let selected = runtimes.iter_mut().find(is_it);
    let selected = selected.ok_or("name one that is not there")?;
    selected.selected = true;
    selected.selected_by.push(app);
    Ok(())
}

/// The MLX runtime that a `backend-manifest.json` describes.
pub fn parse_manifest(manifest: &[u8]) -> Option<Runtime> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let (name, version) = (manifest["name"].as_str()?, manifest["version"].as_str()?);
    // llama.cpp and other engines have manifests too.
    let engine = manifest["engine"].as_str().unwrap_or(name);
    if !engine.starts_with("mlx") {
        return None;
    }
    let listed = manifest["vendor_lib_package_names"].as_array();
    let listed = listed.into_iter().flatten().filter_map(Value::as_str);
    let names = listed.filter_map(|package| package.strip_prefix("_amphibian/"));
    let is_odd = |n: &str| n.is_empty() || n.starts_with('.') || n.contains(['/', '\0']);
    let is_odd_part = |part: &&str| !USUAL_NAME.split('-').any(|usual| usual == *part);
    let odd_parts = name.split('-').filter(is_odd_part);
    Some(Runtime {
        label: odd_parts.fold(format!("MLX {version}"), |label, part| label + " " + part),
        name: name.to_owned(),
        version: version.to_owned(),
        packages: names.filter(|n| !is_odd(n)).map(str::to_owned).collect(),
        ..Runtime::default()
    })
}
