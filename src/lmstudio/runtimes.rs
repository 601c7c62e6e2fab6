//! The runtimes beside `vendor/`: which packages each is made of, and which one each app has selected.
//!
//! All of this is LM Studio's private format: if something is missing or odd, this module says less and never fails.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use walkdir::WalkDir;

use crate::files;

/// The apps that share the home, by the names that macOS knows, and where below it their own directories are.
pub const APPS: [(&str, &str); 2] = [(LM_STUDIO, ""), ("Bionic", "apps/bionic")];
/// Where below that their choice of runtime is.
pub const PREFERENCES: &str = ".internal/backend-preferences-v1.json";
pub const LM_STUDIO: &str = "LM Studio";

/// The start of every MLX backend's name that has been seen so far.
pub const NAME_PREFIX: &str = "app-mlx-generate";

/// One MLX runtime, as its `backend-manifest.json` describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// `mlx-llm-mac-arm64-apple-metal-advsimd`.
    pub name: String,
    pub version: String,
    /// What it is made of: `_amphibian/app-mlx-generate-mac14-arm64@34`.
    #[serde(rename = "vendor_lib_package_names", skip_serializing)]
    pub packages: Vec<String>,
    #[serde(skip_deserializing)]
    pub selected: bool,
    #[serde(skip_deserializing)]
    pub selected_by: Vec<&'static str>,
}

impl Runtime {
    /// What people call it: `MLX 1.11.0`, or `MLX 1.11.0 nax`, which is for an M5.
    pub fn label(&self) -> String {
        let nax = self.name.contains("-nax-").then_some(" nax");
        format!("MLX {}{}", self.version, nax.unwrap_or_default())
    }

    pub fn directories(&self) -> impl Iterator<Item = &str> {
        let packages = self.packages.iter();
        packages.filter_map(|package| package.strip_prefix("_amphibian/"))
    }
}

/// Since when, at the latest, each app has had its runtime, in seconds since 1970; or why its runtime is unknown.
pub type Selections = BTreeMap<&'static str, Result<u64, String>>;

/// Every MLX runtime of `home`, newest first, and which are selected.
pub fn read(home: &Path) -> (Vec<Runtime>, Selections) {
    let directory = home.join("extensions/backends");
    let mut runtimes = Vec::new();
    let entries = WalkDir::new(directory).min_depth(1).max_depth(1);
    for entry in entries.sort_by_file_name().into_iter().flatten() {
        let manifest = files::read(&entry.path().join("backend-manifest.json"));
        let runtime = serde_json::from_slice::<Runtime>(&manifest.unwrap_or_default());
        // llama.cpp and other engines have manifests too.
        let is_mlx = |one: &Runtime| one.directories().any(|name| name.starts_with(NAME_PREFIX));
        runtimes.extend(runtime.ok().filter(is_mlx));
    }
    let key = |runtime: &Runtime| {
        let parts = runtime.version.split('.');
        let version: Vec<u64> = parts.map(|part| part.parse().unwrap_or(0)).collect();
        (Reverse(version), runtime.name.clone())
    };
    runtimes.sort_by_cached_key(key);
    // A backup of one says the same.
    runtimes.dedup();
    let mut selections = Selections::new();
    for (app, directory) in APPS {
        let preferences = home.join(directory).join(PREFERENCES);
        // Without its file an app is not installed, as most people have no Bionic.
        if app == LM_STUDIO || preferences.exists() {
            let since = files::modified(&preferences).unwrap_or(u64::MAX);
            let selected = select(&mut runtimes, app, &preferences);
            selections.insert(app, selected.map(|()| since));
        }
    }
    (runtimes, selections)
}

/// Marks the runtime that an app's preferences select for safetensors, the format of MLX models.
fn select(runtimes: &mut [Runtime], app: &'static str, preferences: &Path) -> Result<(), String> {
    let preferences = files::read(preferences).unwrap_or_default();
    let mut rows: Vec<Value> = serde_json::from_slice(&preferences).unwrap_or_default();
    rows.retain(|row| row["model_format"] == "safetensors");
    let [row] = &rows[..] else {
        return Err(format!("name {} runtimes for MLX models", rows.len()));
    };
    let is_it = |r: &&mut Runtime| row["name"] == r.name && row["version"] == r.version;
    let mut found = runtimes.iter_mut().filter(is_it);
    let (Some(selected), None) = (found.next(), found.next()) else {
        return Err("name one that is not known, or is there twice".to_owned());
    };
    selected.selected = true;
    selected.selected_by.push(app);
    Ok(())
}
