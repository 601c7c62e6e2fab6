//! What is edited in LM Studio's MLX backends, and how; knows nothing of HTTP or processes.

pub mod backend;
pub mod original;
pub mod settings;
pub mod sites;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Result, anyhow, bail};
use glob::Pattern;
use serde::Serialize;

use crate::files::{self, cannot};
use crate::lmstudio::backends::{self, Absent, Backend};
use crate::lock::Lock;
use backend::{Edit, Goal, State, Surveyed, VendorFile};
use original::{Evidence, Proof, Receipt, Source, parse_record, releases};
use settings::{SETTINGS, Setting, Site};

/// What became of one backend. Unless it is changed, or failed and says so, its files are as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Changed,
    Unchanged,
    WouldChange,
    Incomplete,
    Refused,
    Failed,
}

/// One backend, before and after a run. Both are the same if nothing was written.
#[derive(Debug, Clone)]
pub struct Applied {
    pub before: Surveyed,
    pub after: Surveyed,
    pub outcome: Outcome,
    pub why: Option<String>,
    pub edits: Vec<Edit>,
}

/// Reads the backends of a home: all of them, or only those whose names match one of `wanted`.
pub fn survey(home: &Path, wanted: &[Pattern]) -> Result<(Vec<Surveyed>, Absent)> {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one.matches(name));
    let (found, mut absent) = backends::find(home)?;
    let (found, left_out): (Vec<_>, _) = found.into_iter().partition(|one| is_wanted(&one.name));
    let missing = &mut absent.missing;
    missing.retain(|one| one.selected || is_wanted(&one.name));
    absent.left_out = left_out;
    Ok((parallel(&found, 1, read_backend), absent))
}

/// Brings every backend to the goal; each wholly or not at all, all planned before the first write.
pub fn apply(lock: &Lock, backends: &[Surveyed], goal: Goal<'_>) -> Vec<Applied> {
    let planned = dry_run(backends, goal);
    // Backends are independent, unless two are links to one directory: those take turns.
    let turn = |one: &Applied| (one.before.backend.real.clone(), Mutex::new(()));
    let turns: BTreeMap<_, _> = planned.iter().map(turn).collect();
    // Many at a time: a disk handles their syncs as one.
    parallel(&planned, 16, |planned| {
        let mut one = planned.clone();
        let _turn = turns[&one.before.backend.real].lock();
        let written = write::apply(lock, &one.edits);
        // What was written has been read back. A receipt that was written or removed changes what proves the originals.
        let keeps_receipt = |edit: &Edit| edit.receipt.is_none() && !edit.drops_receipt;
        if written.is_ok() && one.edits.iter().all(keeps_receipt) {
            for (file, edit) in one.after.files.iter_mut().zip(&one.edits) {
                file.content = Ok(edit.after.clone());
            }
        } else {
            one.after = read_backend(&one.before.backend);
        }
        if let Err(error) = written {
            one.outcome = Outcome::Failed;
            one.why = Some(format!("{error:#}"));
        } else if one.outcome == Outcome::WouldChange {
            one.outcome = Outcome::Changed;
        }
        one
    })
}

/// What [`apply`] would do. Writes nothing.
pub fn dry_run(backends: &[Surveyed], goal: Goal<'_>) -> Vec<Applied> {
    parallel(backends, 1, |before| {
        let (outcome, why, edits) = match before.edits(goal) {
            Ok(edits) if edits.iter().any(Edit::is_change) => match write::ensure_open(&edits) {
                Ok(()) => (Outcome::WouldChange, None, edits),
                Err(why) => (Outcome::Failed, Some(why.to_string()), vec![]),
            },
            Ok(edits) => (Outcome::Unchanged, None, edits),
            Err((State::Incomplete, why)) => (Outcome::Incomplete, Some(why), vec![]),
            Err((_, why)) => (Outcome::Refused, Some(why), vec![]),
        };
        Applied {
            after: before.clone(),
            before: before.clone(),
            outcome,
            why,
            edits,
        }
    })
}

/// What `work` makes of each item, on all cores or in `min` threads. If one cannot start, the others do its share.
fn parallel<T: Sync, R: Send>(items: &[T], min: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(min, |cores| cores.get().max(min));
    let left = Mutex::new(items.iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    let unlocked = "nothing panics while it is locked";
    let next = || left.lock().expect(unlocked).next();
    let drain = || {
        while let Some((index, item)) = next() {
            let result = work(item);
            done.lock().expect(unlocked).insert(index, result);
        }
    };
    thread::scope(|scope| {
        let start = |_| drop(thread::Builder::new().spawn_scoped(scope, drain));
        (1..threads.min(items.len())).for_each(start);
        drain();
    });
    done.into_inner().expect(unlocked).into_values().collect()
}

const REINSTALL: &str = "; move it away and reinstall the runtime in LM Studio";

pub fn read_backend(backend: &Backend) -> Surveyed {
    let mut files = Vec::new();
    for packages in backend.site_packages.as_deref().unwrap_or_default() {
        for setting in &SETTINGS {
            // What cannot be looked at cannot be read either, which says what to do.
            if !matches!(files::is_dir(&packages.join(setting.package)), Ok(false)) {
                files.push(vendor_file(backend, packages, setting));
            }
        }
    }
    let backend = backend.clone();
    Surveyed { backend, files }
}

fn vendor_file(backend: &Backend, packages: &Path, setting: &'static Setting) -> VendorFile {
    let path = packages.join(setting.path);
    let parts = path.ancestors().take_while(|part| *part != backend.real);
    // The outermost: the others may be in what it leads to.
    let links = parts.filter_map(|part| Some((part.display(), fs::read_link(part).ok()?)));
    let read = match links.last() {
        Some((link, target)) => {
            let target = target.display();
            let why = "where an edit may leave its backend, or break an app's signature";
            Err(anyhow!("{link} is a link to {target}, {why}{REINSTALL}"))
        }
        None => read(setting, packages, &path),
    };
    let (file, unfinished) = (setting.path, "not there: an unfinished update");
    let content = match read {
        Ok(Some(source)) => Ok(Arc::new(source)),
        Ok(None) => Err((State::Incomplete, format!("{file}: {unfinished}"))),
        Err(why) => Err((State::Refused, format!("{file}: {why:#}"))),
    };
    VendorFile {
        setting,
        path,
        content,
    }
}

fn read(setting: &Setting, packages: &Path, path: &Path) -> Result<Option<Source>> {
    let bytes = match files::read(path) {
        Ok(bytes) => bytes,
        Err(error) => match error.kind() {
            ErrorKind::NotFound => return Ok(None),
            // That can be fixed in place.
            ErrorKind::PermissionDenied => return Err(cannot("read", path, &error)),
            _ => bail!("{}{REINSTALL}", cannot("read", path, &error)),
        },
    };
    let sites = sites::locate(setting, &bytes)
        .map_err(|why| anyhow!("{why}; if nobody edited it, a newer lmpatch may know it"))?;
    let mut evidence = releases(setting);
    let receipt = read_receipt(path, &bytes, &sites);
    let mut source = Source::new(bytes, sites, receipt, &evidence);
    if !matches!(source.original, Some((Proof::Release, _))) {
        evidence.extend(record(packages, setting)?);
        source = Source::new(source.bytes, source.sites, source.receipt, &evidence);
    }
    Ok(Some(source))
}

fn receipt_path(file: &Path) -> PathBuf {
    file.with_extension("py.lmpatch")
}

fn read_receipt(path: &Path, source: &[u8], sites: &[Site]) -> Result<Option<Receipt>, String> {
    let path = receipt_path(path);
    let ignored = |why: &str| Err(format!("{} {why}", path.display()));
    match files::read(&path).map(|bytes| serde_json::from_slice::<Receipt>(&bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => ignored(&format!("cannot be read ({error})")),
        Ok(Err(_)) => ignored("is damaged"),
        Ok(Ok(receipt)) if receipt.fits(source, sites) => Ok(Some(receipt)),
        Ok(Ok(_)) => ignored("belongs to another version of the file"),
    }
}

/// Fails if a `RECORD` cannot be read: without it an edited file could be taken for one that was never edited.
fn record(packages: &Path, setting: &Setting) -> Result<Evidence> {
    let prefix = format!("{}-", setting.package);
    let mut rows = Evidence::new();
    for name in files::names(packages, &prefix, ".dist-info")? {
        let path = packages.join(name).join("RECORD");
        match files::read(&path) {
            Ok(record) => rows.extend(parse_record(&record, setting.path)),
            Err(error) if files::is_absence(&error) => {}
            Err(error) => return Err(cannot("read", &path, &error)),
        }
    }
    Ok(rows)
}
