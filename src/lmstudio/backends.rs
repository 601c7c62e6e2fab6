//! The MLX backends of a home, joined with the runtimes that use them.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use serde::Serialize;

use super::runtimes::{self, NAME_PREFIX, Runtime, Selections};
use crate::files::{self, app_bundle, cannot, is_dir};

pub const INSTALL: &str = "install an MLX runtime in LM Studio, or give its home with --home DIR";

/// One directory that holds an MLX engine, or is to hold one.
#[derive(Debug, Clone, Serialize)]
pub struct Backend {
    /// `app-mlx-generate-mac14-arm64@34`.
    pub name: String,
    pub path: PathBuf,
    /// That path with all links resolved.
    #[serde(skip)]
    pub real: PathBuf,
    /// Its real `site-packages` with a package of the engine, none in a stuck download; or why it is refused as a whole.
    #[serde(skip)]
    pub site_packages: Result<Vec<PathBuf>, String>,
    /// The runtimes whose manifests name it, newest first.
    pub runtimes: Vec<Runtime>,
    pub selected: bool,
}

impl Backend {
    pub fn selected_by(&self) -> Vec<&'static str> {
        let apps = self.runtimes.iter().flat_map(|one| &one.selected_by);
        apps.copied().collect()
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

/// What is in the directory of all backends, and where it really is, which must not be an app bundle.
pub fn open(home: &Path) -> Result<(Vec<OsString>, PathBuf)> {
    let directory = amphibian(home);
    if matches!(is_dir(&directory), Ok(false)) {
        for link in directory.ancestors().filter(|path| path.is_symlink()) {
            resolve(link)?;
        }
        let shown = home.display();
        let next = "install LM Studio, connect its disk, or give its home with --home DIR";
        let gone = format!("LM Studio's home {shown} is not there; {next}");
        ensure!(home.exists(), gone);
        let directory = directory.display();
        bail!("no MLX backend found: {directory} is not there; {INSTALL}");
    }
    Ok((files::names(&directory, "", "")?, resolve(&directory)?))
}

/// Where `path` really is. Fails if that is nowhere, in an app bundle, or too long to be named.
fn resolve(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let real = fs::canonicalize(path).map_err(|error| match fs::read_link(path) {
        Ok(target) if error.kind() == ErrorKind::NotFound => {
            let target = target.display();
            anyhow!("{shown} is a link to {target}, which is not there; is its disk connected?")
        }
        _ => cannot("resolve", path, &error),
    })?;
    if let Some(bundle) = app_bundle(&real) {
        let why = "where an edit would break the app's signature";
        let next = "remove the link and install the runtime in LM Studio";
        bail!("{shown} leads into {}, {why}; {next}", bundle.display());
    }
    Ok(real)
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
    for name in names {
        backends.extend(backend(directory.join(&name), real.join(&name), &runtimes));
    }
    let mut absent = Absent {
        selections,
        ..Absent::default()
    };
    for runtime in &runtimes {
        let names = runtime.directories();
        for name in names.filter(|name| is_absent(&directory.join(name))) {
            absent.missing.push(MissingBackend {
                name: name.to_owned(),
                runtime: runtime.label(),
                specifier: format!("{}@{}", runtime.name, runtime.version),
                selected: runtime.selected,
            });
        }
    }
    Ok((backends, absent))
}

/// Whether no directory is at that path, nor a link to one, whose disk may be away.
fn is_absent(path: &Path) -> bool {
    matches!(is_dir(path), Ok(false)) && !path.is_symlink()
}

/// Whether that is somebody's backup of a backend: `…@34.bak`, `…@34 copy`.
fn is_copy(name: &str) -> bool {
    let (_, version) = name.rsplit_once('@').unwrap_or_default();
    version.starts_with(|c: char| c.is_ascii_digit()) && version.parse::<u64>().is_err()
}

fn version_key(name: &str) -> (String, u64) {
    let (base, version) = name.rsplit_once('@').unwrap_or((name, ""));
    (base.to_owned(), version.parse().unwrap_or(u64::MAX))
}

/// The backend of that name; `None` if it is none. Links are followed: people move backends to other disks.
fn backend(path: PathBuf, real: PathBuf, runtimes: &[Runtime]) -> Option<Backend> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let uses = |runtime: &&Runtime| runtime.directories().any(|of| of == name);
    let runtimes: Vec<_> = runtimes.iter().filter(uses).cloned().collect();
    if is_absent(&path) || runtimes.is_empty() && is_copy(&name) {
        return None;
    }
    // Without a link there is nothing to resolve, and asking the system costs more than everything else here.
    let mut real = Ok(real);
    if path.is_symlink() {
        real = resolve(&path);
    }
    let found = real.and_then(|real| Ok((engine_directories(&real)?, real)));
    let (site_packages, real) = match found {
        Ok((site_packages, real)) => (Ok(site_packages), real),
        Err(why) => (Err(format!("{why:#}")), path.clone()),
    };
    let has_no_engine = site_packages.as_ref().is_ok_and(Vec::is_empty);
    (!has_no_engine || name.starts_with(NAME_PREFIX)).then(|| Backend {
        selected: runtimes.iter().any(|runtime| runtime.selected),
        name,
        path,
        real,
        site_packages,
        runtimes,
    })
}

/// Fails if something cannot be read: such a directory must not be mistaken for one without an engine.
fn engine_directories(backend: &Path) -> Result<Vec<PathBuf>> {
    let lib = backend.join("lib");
    let mut names = files::names(&lib, "python3.", "")?;
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
