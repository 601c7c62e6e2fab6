//! The MLX backends of a home, joined with the runtimes that use them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Serialize;

use super::runtimes::{self, Runtime, Selections};
use crate::files::{self, app_bundle, cannot, is_absence, is_dir};

/// The start of every MLX backend's name that has been seen so far.
const NAME_PREFIX: &str = "app-mlx-generate";
pub const INSTALL: &str = "install an MLX runtime in LM Studio, or give its home with --home DIR";
const IS_IT_CONNECTED: &str = "is its disk connected?";

/// One directory that holds an MLX engine, or is to hold one.
#[derive(Debug, Clone, Serialize)]
pub struct Backend {
    /// `app-mlx-generate-mac14-arm64@34`.
    pub name: String,
    #[serde(serialize_with = "crate::files::lossy")]
    pub path: PathBuf,
    /// That path with all links resolved.
    #[serde(skip)]
    pub real: PathBuf,
    /// Its `site-packages` with a package of the engine, none in a stuck download; or why it is refused as a whole.
    #[serde(skip)]
    pub site_packages: Result<Vec<PathBuf>, String>,
    /// The runtimes whose manifests name it, newest first.
    pub runtimes: Vec<Runtime>,
    pub selected: bool,
}

impl Backend {
    /// The apps whose selected runtime uses it.
    pub fn selected_by(&self) -> Vec<&'static str> {
        let apps = self.runtimes.iter().flat_map(|one| &one.selected_by);
        apps.copied().collect()
    }

    /// "LM Studio uses it", or "LM Studio and Bionic use it".
    pub fn apps_use_it(&self) -> String {
        let apps = self.selected_by();
        let verb = if apps.len() > 1 { "use" } else { "uses" };
        format!("{} {verb} it", apps.join(" and "))
    }
}

/// A backend that a runtime's manifest names and that is not on disk: an update that is half applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingBackend {
    pub name: String,
    /// The runtime, as [`Runtime::label`] has it.
    pub runtime: String,
    /// What `lms runtime` calls that runtime: `name@version`.
    #[serde(skip)]
    pub specifier: String,
    pub selected: bool,
}

/// What a home lacks of its backends, and what is unknown of them.
#[derive(Debug, Default, Serialize)]
pub struct Absent {
    /// In a survey those that are wanted, and those of the selected runtime.
    #[serde(rename = "missing_backends")]
    pub missing: Vec<MissingBackend>,
    #[serde(skip)]
    pub selections: Selections,
    /// The backends whose names match no pattern.
    #[serde(skip)]
    pub left_out: Vec<Backend>,
}

/// The directory of all backends.
pub fn amphibian(home: &Path) -> PathBuf {
    home.join("extensions/backends/vendor/_amphibian")
}

/// What is in the directory of all backends, and its path with all links resolved. Fails if it is missing, cannot be
/// listed, or lies in an app bundle.
pub fn open(home: &Path) -> Result<(Vec<OsString>, PathBuf)> {
    let directory = amphibian(home);
    if matches!(is_dir(&directory), Ok(false)) {
        bail!(why_absent(home, &directory));
    }
    let names = files::names(&directory)?;
    let real = resolve(&directory)?;
    match leads_into_app(&directory, &real) {
        Some(why) => bail!(why),
        None => Ok((names, real)),
    }
}

fn why_absent(home: &Path, directory: &Path) -> String {
    let is_within = |path: &&Path| path.starts_with(home);
    for path in directory.ancestors().take_while(is_within) {
        if let (Ok(target), false) = (fs::read_link(path), path.exists()) {
            let (path, target) = (path.display(), target.display());
            return format!("{path} is a link to {target}, which is not there; {IS_IT_CONNECTED}");
        }
    }
    let shown = home.display();
    if home.exists() {
        let directory = directory.display();
        return format!("no MLX backend found: {directory} is not there; {INSTALL}");
    }
    if home.starts_with("~") {
        return format!("the ~ in {shown} was not expanded; give the whole path");
    }
    let next = "install LM Studio, connect its disk, or give its home with --home DIR";
    format!("LM Studio's home {shown} is not there; {next}")
}

/// The backends of `home`, sorted by name and number. Fails if their directory cannot be listed.
pub fn find(home: &Path) -> Result<(Vec<Backend>, Absent)> {
    let (mut names, real) = open(home)?;
    let directory = amphibian(home);
    // What is hidden is being unpacked, or is somebody else's.
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort_by_cached_key(|name| version_key(&name.to_string_lossy()));
    let (runtimes, selections) = runtimes::read(home);
    let mut backends = Vec::new();
    let mut absent = Absent {
        selections,
        ..Absent::default()
    };
    let found = names.iter().map(|name| backend(&directory, &real, name));
    for mut backend in found.flatten() {
        let uses = |runtime: &&Runtime| runtime.packages.contains(&backend.name);
        backend.runtimes = runtimes.iter().filter(uses).cloned().collect();
        backend.selected = backend.runtimes.iter().any(|runtime| runtime.selected);
        if !backend.runtimes.is_empty() || !is_copy(&backend.name) {
            backends.push(backend);
        }
    }
    for runtime in &runtimes {
        let is_backend = |name: &String| backends.iter().any(|one| one.name == *name);
        let is_engine = |name: &String| name.starts_with(NAME_PREFIX) || is_backend(name);
        if !runtime.packages.iter().any(is_engine) {
            let why = "name one whose manifest lists no MLX backend";
            for app in &runtime.selected_by {
                absent.selections.insert(app, Err(why.to_owned()));
            }
        }
        for name in &runtime.packages {
            let path = directory.join(name);
            if matches!(is_dir(&path), Ok(false)) && !path.is_symlink() {
                absent.missing.push(MissingBackend {
                    name: name.clone(),
                    runtime: runtime.label.clone(),
                    specifier: format!("{}@{}", runtime.name, runtime.version),
                    selected: runtime.selected,
                });
            }
        }
    }
    Ok((backends, absent))
}

/// Whether that is somebody's backup of a backend: `…@34.bak`, `…@34 copy`.
fn is_copy(name: &str) -> bool {
    let (_, version) = name.rsplit_once('@').unwrap_or_default();
    let rest = version.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < version.len() && !rest.is_empty()
}

fn version_key(name: &str) -> (String, u64) {
    let (base, version) = name.rsplit_once('@').unwrap_or((name, ""));
    (base.to_owned(), version.parse().unwrap_or(u64::MAX))
}

/// The backend of that name; `None` if it is certainly not one. Links are followed: people move backends to other disks.
fn backend(directory: &Path, real: &Path, file_name: &OsStr) -> Option<Backend> {
    let path = directory.join(file_name);
    let name = file_name.to_string_lossy().into_owned();
    let is_named_so = name.starts_with(NAME_PREFIX);
    let (shown, is_link) = (path.display(), path.is_symlink());
    let site_packages = match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => return None,
        // Whether it is a backend can only be told by its name, or it vanished since the directory was listed.
        Err(error) if !is_named_so || !is_link && is_absence(&error) => return None,
        Err(error) if is_link && is_absence(&error) => {
            let what = "is a link that leads nowhere";
            Err(format!("{shown} {what} ({error}); {IS_IT_CONNECTED}"))
        }
        // What cannot be looked at cannot be listed either, which says what to do.
        _ => engine_directories(&path).map_err(|error| format!("{error:#}")),
    };
    if !is_named_so && site_packages.as_ref().is_ok_and(Vec::is_empty) {
        return None;
    }
    // Without a link there is nothing to resolve, and asking the system costs more than everything else here.
    let mut real = Ok(real.join(file_name));
    if is_link {
        real = resolve(&path);
    }
    let site_packages = match (&real, site_packages) {
        (Ok(real), found) => leads_into_app(&path, real).map_or(found, Err),
        (Err(why), Ok(_)) => Err(why.to_string()),
        (Err(_), unreadable) => unreadable,
    };
    Some(Backend {
        site_packages,
        name,
        real: real.unwrap_or_else(|_| path.clone()),
        path,
        runtimes: Vec::new(),
        selected: false,
    })
}

/// Where `path` really is. The system follows links to paths that it cannot name, being too long: then this fails.
fn resolve(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|error| cannot("resolve", path, &error))
}

/// Why nothing at `path` is edited, if it leads into an app bundle.
fn leads_into_app(path: &Path, real: &Path) -> Option<String> {
    let (path, bundle) = (path.display(), app_bundle(real)?.display());
    let why = "where an edit would break the app's signature";
    let next = "remove the link and install the runtime in LM Studio";
    Some(format!("{path} leads into {bundle}, {why}; {next}"))
}

/// Fails if something cannot be read: such a directory must not be mistaken for one without an engine.
fn engine_directories(backend: &Path) -> Result<Vec<PathBuf>> {
    let lib = backend.join("lib");
    let mut names = files::names(&lib)?;
    names.retain(|name| name.to_string_lossy().starts_with("python3."));
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let site_packages = lib.join(name).join("site-packages");
        let closed = |error| cannot("list", &site_packages, &error);
        let has = |package| is_dir(&site_packages.join(package)).map_err(closed);
        if has("mlx_engine")? || has("mlx_lm")? {
            found.push(site_packages);
        }
    }
    Ok(found)
}
