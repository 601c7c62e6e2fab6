//! The runtimes beside `vendor/`: which layers each is made of, and which one is selected.
//!
//! All of it is LM Studio's private format: whatever is missing or odd makes this say less, never fail.

use std::path::Path;

use serde_json::Value;
use walkdir::WalkDir;

use crate::files;

/// Where LM Studio keeps which runtime is selected, below its home.
const PREFERENCES: &str = ".internal/backend-preferences-v1.json";

/// One runtime, as its `backend-manifest.json` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// `mlx-llm-mac-arm64-apple-metal-advsimd`.
    pub name: String,
    /// `1.11.0`.
    pub version: String,
    /// The names of the layers it is made of.
    pub layers: Vec<String>,
    /// Whether it is the one that LM Studio uses for safetensors models.
    pub is_selected: bool,
}

impl Runtime {
    /// What people call it: `MLX 1.11.0`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("MLX {}", self.version)
    }
}

/// Every MLX runtime in `directory`, newest first.
#[must_use]
pub fn read(home: &Path, directory: &Path) -> Vec<Runtime> {
    let selected = parse_preferences(&files::read(&home.join(PREFERENCES)).unwrap_or_default());
    let entries = WalkDir::new(directory)
        .min_depth(1)
        .max_depth(1)
        .follow_links(true)
        .sort_by_file_name();
    let mut runtimes: Vec<Runtime> = entries
        .into_iter()
        .filter_map(|entry| files::read(&entry.ok()?.path().join("backend-manifest.json")).ok())
        .filter_map(|manifest| parse_manifest(&manifest, &selected))
        .collect();
    runtimes.sort_by_key(|runtime| std::cmp::Reverse(version_key(&runtime.version)));
    runtimes
}

/// Since when at the latest the selected MLX runtime has been selected, in seconds since 1970; none where none is.
#[must_use]
pub fn selected_since(home: &Path) -> Option<u64> {
    let preferences = home.join(PREFERENCES);
    if parse_preferences(&files::read(&preferences).unwrap_or_default()).is_empty() {
        None
    } else {
        files::modified(&preferences)
    }
}

fn version_key(version: &str) -> Vec<u64> {
    version
        .split('.')
        .map(|part| part.parse().unwrap_or(0))
        .collect()
}

/// The MLX runtime that a `backend-manifest.json` describes; `selected` is what [`parse_preferences`] gave.
#[must_use]
pub fn parse_manifest(manifest: &[u8], selected: &[(String, String)]) -> Option<Runtime> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let text = |key: &str| manifest.get(key).and_then(Value::as_str).map(str::to_owned);
    let (name, version) = (text("name")?, text("version")?);
    // llama.cpp and other engines have manifests too.
    if !text("engine")
        .unwrap_or_else(|| name.clone())
        .starts_with("mlx")
    {
        return None;
    }
    let packages = manifest
        .get("vendor_lib_package_names")
        .and_then(Value::as_array);
    let layer = |package: &Value| {
        package
            .as_str()?
            .strip_prefix("_amphibian/")
            .filter(|name| is_plain(name))
            .map(str::to_owned)
    };
    let layers = packages.into_iter().flatten().filter_map(layer).collect();
    let is_selected = selected.iter().any(|row| row.0 == name && row.1 == version);
    Some(Runtime {
        name,
        version,
        layers,
        is_selected,
    })
}

/// A name that stays in its directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// Name and version of the runtimes that are selected for safetensors, the format of MLX models.
#[must_use]
pub fn parse_preferences(preferences: &[u8]) -> Vec<(String, String)> {
    let preferences: Option<Value> = serde_json::from_slice(preferences).ok();
    let rows = preferences.as_ref().and_then(Value::as_array);
    let row = |row: &Value| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
        (text("model_format")? == "safetensors").then_some(())?;
        Some((text("name")?, text("version")?))
    };
    rows.into_iter().flatten().filter_map(row).collect()
}
