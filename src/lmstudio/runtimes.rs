//! The runtimes beside `vendor/`: which packages each is made of, and which one each app has selected.
//!
//! All of it is LM Studio's private format: what is missing or odd there makes this say less, never fail.

use std::cmp::Reverse;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use walkdir::WalkDir;

use crate::files;

/// An app that has its own choice of runtime in the one home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum App {
    /// LM Studio; its headless daemon reads the same preferences.
    #[serde(rename = "LM Studio")]
    LmStudio,
    /// The second app of the same makers, since 2026-07.
    Bionic,
}

impl App {
    /// Its name, as macOS knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LmStudio => "LM Studio",
            Self::Bionic => "Bionic",
        }
    }

    /// Where its preferences are, below the home.
    pub fn preferences(self) -> &'static str {
        match self {
            Self::LmStudio => ".internal/backend-preferences-v1.json",
            Self::Bionic => "apps/bionic/.internal/backend-preferences-v1.json",
        }
    }
}

/// One runtime, as its `backend-manifest.json` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// `mlx-llm-mac-arm64-apple-metal-advsimd`.
    pub name: String,
    /// `1.11.0`.
    pub version: String,
    /// What people call it: `MLX 1.11.0`, or `MLX 1.11.0 nax` where two have one version.
    #[serde(skip)]
    pub label: String,
    /// The directories of `_amphibian` that it is made of.
    #[serde(skip)]
    pub packages: Vec<String>,
    /// Whether any app has it selected.
    pub selected: bool,
    pub selected_by: Vec<App>,
}

/// Every MLX runtime of `home`, newest first, and why the selection is not known where it is not.
pub fn read(home: &Path) -> (Vec<Runtime>, Vec<String>) {
    let directory = home.join("extensions/backends");
    let entries = WalkDir::new(directory).min_depth(1).max_depth(1);
    let mut runtimes = Vec::new();
    for entry in entries.sort_by_file_name().into_iter().flatten() {
        let manifest = files::read(&entry.path().join("backend-manifest.json"));
        runtimes.extend(manifest.ok().and_then(|bytes| parse_manifest(&bytes)));
    }
    runtimes.sort_by_cached_key(|runtime| {
        let parts = runtime.version.split('.');
        Reverse(
            parts
                .map(|part| part.parse().unwrap_or(0))
                .collect::<Vec<u64>>(),
        )
    });
    label(&mut runtimes);
    let apps = [App::LmStudio, App::Bionic].into_iter();
    let unknown = apps.filter_map(|app| select(&mut runtimes, home, app).err());
    let unknown = unknown.collect();
    (runtimes, unknown)
}

/// Since when at the latest each app has had its choice of a runtime, in seconds since 1970; none where it is not known.
pub fn selected_since(home: &Path) -> Vec<(App, u64)> {
    let mut known = Vec::new();
    for app in [App::LmStudio, App::Bionic] {
        let path = home.join(app.preferences());
        let rows = parse_preferences(&files::read(&path).unwrap_or_default());
        if rows.len() == 1 {
            known.extend(files::modified(&path).map(|since| (app, since)));
        }
    }
    known
}

/// Runtimes of one version are told apart by what only their own names have: `nax` for the M5.
fn label(runtimes: &mut [Runtime]) {
    let all = runtimes.to_vec();
    for runtime in runtimes {
        let mut others = all.clone();
        others.retain(|other| other.version == runtime.version && other.name != runtime.name);
        runtime.label = format!("MLX {}", runtime.version);
        for part in runtime.name.split('-') {
            let has_part = |other: &Runtime| other.name.split('-').any(|p| p == part);
            if !others.iter().all(has_part) {
                runtime.label += &format!(" {part}");
            }
        }
    }
}

/// Marks the runtime that `app` has selected for MLX models. Fails with the reason where that is not known.
fn select(runtimes: &mut [Runtime], home: &Path, app: App) -> Result<(), String> {
    let preferences = files::read(&home.join(app.preferences()));
    // Without its file an app is not installed, as most people have no Bionic.
    if preferences.is_err() && app == App::Bionic {
        return Ok(());
    }
    let rows = parse_preferences(&preferences.unwrap_or_default());
    let [(name, version)] = &rows[..] else {
        let named = match rows.len() {
            0 => "none".to_owned(),
            several => format!("{several} for MLX models"),
        };
        let unknown = format!("which runtime {} uses is not known", app.name());
        return Err(format!("{unknown}: its preferences name {named}"));
    };
    let is_it = |runtime: &&mut Runtime| runtime.name == *name && runtime.version == *version;
    if let Some(selected) = runtimes.iter_mut().find(is_it) {
        selected.selected = true;
        selected.selected_by.push(app);
    }
    Ok(())
}

/// The MLX runtime that a `backend-manifest.json` describes.
pub fn parse_manifest(manifest: &[u8]) -> Option<Runtime> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let text = |key: &str| manifest.get(key).and_then(Value::as_str).map(str::to_owned);
    let (name, version) = (text("name")?, text("version")?);
    // llama.cpp and other engines have manifests too.
    let engine = text("engine").unwrap_or_else(|| name.clone());
    if !engine.starts_with("mlx") {
        return None;
    }
    let packages = manifest.get("vendor_lib_package_names");
    let packages = packages.and_then(Value::as_array);
    let package = |package: &Value| {
        let name = package.as_str()?.strip_prefix("_amphibian/")?;
        let stays = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        stays.then(|| name.to_owned())
    };
    Some(Runtime {
        name,
        version,
        label: String::new(),
        packages: packages.into_iter().flatten().filter_map(package).collect(),
        selected: false,
        selected_by: Vec::new(),
    })
}

/// Name and version of the runtimes that are selected for safetensors, the format of MLX models.
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
