//! The layers under `_amphibian` that hold an MLX engine, and the runtimes that use them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use glob::Pattern;

use super::runtimes::{self, Runtime};
use crate::files::{directory_error, is_absence, is_dir};

/// The Python packages that make a layer an MLX engine.
pub const ENGINE_PACKAGES: [&str; 2] = ["mlx_engine", "mlx_lm"];

/// How the names of MLX layers start, as far as any has been seen.
pub const LAYER_PREFIX: &str = "app-mlx-generate";

/// One layer that holds an MLX engine.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The directory's name, `app-mlx-generate-mac14-arm64@34`.
    pub name: OsString,
    /// Where it was found.
    pub path: PathBuf,
    /// Its `site-packages` directories that hold a package of the engine, or why they could not be listed.
    pub site_packages: Result<Vec<PathBuf>, String>,
    /// The runtimes whose manifests name it, newest first.
    pub runtimes: Vec<Runtime>,
}

impl Layer {
    /// The layer at `path`, unless it is surely no MLX engine; which runtimes use it is not looked up.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        layer(path)
    }

    /// Whether LM Studio's selected runtime uses it.
    #[must_use]
    pub fn is_selected(&self) -> bool {
        self.runtimes.iter().any(|runtime| runtime.is_selected)
    }
}

/// A layer that a runtime's manifest names and that is not on disk: an update that is half applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingLayer {
    /// The layer's name.
    pub layer: String,
    /// The runtime, as [`Runtime::label`] has it.
    pub runtime: String,
}

/// What was found in one home.
#[derive(Debug, Clone)]
pub struct Found {
    /// The MLX layers, sorted by name and number.
    pub layers: Vec<Layer>,
    /// The layers that manifests name and that are not there.
    pub missing: Vec<MissingLayer>,
}

/// The directory of all layers.
#[must_use]
pub fn amphibian(home: &Path) -> PathBuf {
    vendor_parent(home).join("vendor/_amphibian")
}

fn vendor_parent(home: &Path) -> PathBuf {
    home.join("extensions/backends")
}

/// Whether `home` holds any MLX layer at all, or may hold some that cannot be seen.
#[must_use]
pub fn has_any(home: &Path) -> bool {
    match list(&amphibian(home)) {
        Ok(mut layers) => layers.next().is_some(),
        Err(error) => !is_absence(&error),
    }
}

/// The directory of all layers; fails where it is not there or cannot be listed.
pub fn open(home: &Path) -> Result<PathBuf> {
    let directory = amphibian(home);
    match fs::read_dir(&directory) {
        Ok(_) => Ok(directory),
        Err(error) if is_absence(&error) => {
            bail!(
                "{} is not there; is {} LM Studio's home? Usually that is ~/.lmstudio",
                directory.display(),
                home.display()
            )
        }
        Err(error) => Err(directory_error("list", &directory, error)),
    }
}

/// Every MLX layer of `home` whose name matches one of `wanted` (all, where that is empty).
///
/// Fails where the directory of layers cannot be listed.
pub fn find(home: &Path, wanted: &[Pattern]) -> Result<Found> {
    let directory = open(home)?;
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|pattern| pattern.matches(name));
    let all = list(&directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|error| directory_error("list", &directory, error))?;
    let runtimes = runtimes(home);
    let mut layers: Vec<Layer> = all
        .into_iter()
        .filter(|layer| is_wanted(&layer.name.to_string_lossy()))
        .collect();
    layers.sort_by_key(|layer| version_key(&layer.name.to_string_lossy()));
    for layer in &mut layers {
        let uses = |runtime: &&Runtime| {
            runtime
                .layers
                .iter()
                .any(|name| layer.name == name.as_str())
        };
        layer.runtimes = runtimes.iter().filter(uses).cloned().collect();
    }
    let missing = missing(&directory, &runtimes)
        .into_iter()
        .filter(|missing| is_wanted(&missing.layer))
        .collect();
    Ok(Found { layers, missing })
}

/// Every MLX runtime of `home`, newest first.
#[must_use]
pub fn runtimes(home: &Path) -> Vec<Runtime> {
    runtimes::read(home, &vendor_parent(home))
}

/// Sorts `…@9` before `…@34`.
fn version_key(name: &str) -> (String, u64) {
    let (base, version) = name.rsplit_once('@').unwrap_or((name, ""));
    (base.to_owned(), version.parse().unwrap_or(u64::MAX))
}

fn missing(directory: &Path, runtimes: &[Runtime]) -> Vec<MissingLayer> {
    let named = runtimes.iter().flat_map(|runtime| {
        let is_gone = |layer: &&String| {
            fs::symlink_metadata(directory.join(layer)).is_err_and(|error| is_absence(&error))
        };
        let of = |layer: &String| MissingLayer {
            layer: layer.clone(),
            runtime: runtime.label(),
        };
        runtime
            .layers
            .iter()
            .filter(is_gone)
            .map(of)
            .collect::<Vec<_>>()
    });
    named.collect()
}

/// The MLX layers in `directory`. Links to layers are followed; people move them to other disks.
fn list(directory: &Path) -> io::Result<impl Iterator<Item = io::Result<Layer>>> {
    let entries = fs::read_dir(directory)?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) => {
            let path = entry.path();
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => layer(&path),
                Ok(_) => None,
                Err(error) => unreachable_layer(&path, &error),
            }
            .map(Ok)
        }
        Err(error) => Some(Err(error)),
    }))
}

/// The layer at `path`, unless it is surely no MLX engine.
fn layer(path: &Path) -> Option<Layer> {
    let site_packages = engine_directories(path).map_err(|error| format!("{error:#}"));
    if matches!(&site_packages, Ok(found) if found.is_empty()) {
        return None;
    }
    Some(Layer {
        name: path.file_name()?.to_owned(),
        path: path.to_owned(),
        site_packages,
        runtimes: Vec::new(),
    })
}

fn unreachable_layer(path: &Path, error: &io::Error) -> Option<Layer> {
    let name = path.file_name()?.to_owned();
    let why = if path.is_symlink() {
        format!(
            "{} is a link that leads nowhere ({error}); is the disk that it is on connected?",
            path.display()
        )
    } else if is_absence(error) {
        // It vanished since the directory was listed.
        return None;
    } else {
        format!("{} cannot be looked at ({error})", path.display())
    };
    let is_engine = name.to_string_lossy().starts_with(LAYER_PREFIX);
    is_engine.then(|| Layer {
        name,
        path: path.to_owned(),
        site_packages: Err(why),
        runtimes: Vec::new(),
    })
}

fn engine_directories(layer: &Path) -> Result<Vec<PathBuf>> {
    let lib = layer.join("lib");
    let unlisted = |error| directory_error("list", &lib, error);
    let entries = match fs::read_dir(&lib) {
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        other => other.map_err(unlisted)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unlisted)?;
        let is_python = entry.file_name().to_string_lossy().starts_with("python3.");
        let site_packages = entry.path().join("site-packages");
        if is_python && has_engine_package(&site_packages)? {
            found.push(site_packages);
        }
    }
    found.sort();
    Ok(found)
}

/// Fails where it cannot be seen: that is no reason to take the layer for another kind of one.
fn has_engine_package(site_packages: &Path) -> Result<bool> {
    for package in ENGINE_PACKAGES {
        if is_dir(&site_packages.join(package))
            .map_err(|error| directory_error("list", site_packages, error))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}
