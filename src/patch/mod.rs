//! What is edited in LM Studio's MLX backends, and how; knows nothing of HTTP.

pub mod apply;
pub mod backend;
pub mod bytecode;
pub mod inspect;
pub mod lex;
pub mod lock;
pub mod original;
pub mod plan;
pub mod python;
pub mod replace;
pub mod settings;
pub mod sites;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use glob::Pattern;

use crate::lmstudio::backends::{self, MissingLayer};
use crate::side_by_side::{Load, map};
use backend::{Backend, Edit, Hindrance};
use inspect::inspect;
use plan::Goal;

/// Every backend of a home as it is on disk now.
#[derive(Debug)]
pub struct Survey {
    /// The backends, sorted by name.
    pub backends: Vec<Backend>,
    /// The layers that manifests name and that are not there.
    pub missing: Vec<MissingLayer>,
}

type Plan<'a> = Result<Vec<Edit<'a>>, Hindrance>;

/// What was done to every backend, and the layers that manifests name and that are not there.
pub type Doings = (Vec<Done>, Vec<MissingLayer>);

/// What was done to one backend.
#[derive(Debug)]
pub enum Deed {
    /// Its files were changed, and read back.
    Changed,
    /// Its files are as wanted already.
    Unchanged,
    /// What `--dry-run` would change: the path, what is there, what would be.
    WouldChange(Vec<Change>),
    /// It was left alone, which is no failure, and why.
    LeftAlone(String),
    /// It cannot be changed, and why. Its files are as they were.
    Refused(String),
    /// Changing it failed, and how. Its files are as they were, unless it says otherwise.
    Failed(String),
}

/// One file that a dry run would change.
#[derive(Debug)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub before: Vec<u8>,
    /// What it would hold.
    pub after: Vec<u8>,
}

/// One backend, what was found before, what was done, and what is there now.
#[derive(Debug)]
pub struct Done {
    /// As it was found.
    pub before: Backend,
    /// What was done.
    pub deed: Deed,
    /// As it was read afterwards; the same as before where nothing was written.
    pub after: Backend,
}

/// Looks at every backend of `home` whose layer's name matches one of `wanted`. Writes nothing.
pub fn survey(home: &Path, wanted: &[Pattern]) -> Result<Survey> {
    let found = backends::find(home, wanted)?;
    Ok(Survey {
        backends: map(Load::Processor, found.layers, inspect),
        missing: found.missing,
    })
}

/// Brings every backend of `home` to the goal; each wholly or not at all, all planned before the first write.
///
/// Fails where the lock cannot be had or the layers cannot be listed; what goes wrong with one backend is in its deed.
pub fn carry_out(home: &Path, wanted: &[Pattern], goal: Goal) -> Result<Doings> {
    let _lock = lock::hold(&backends::open(home)?)?;
    let survey = survey(home, wanted)?;
    let plans = map(
        Load::Processor,
        survey.backends.iter().collect(),
        |backend| backend.edits(goal),
    );
    let deeds = carry_out_plans(plans);
    let pairs = survey.backends.into_iter().zip(deeds).collect();
    let done = map(Load::Processor, pairs, |(before, deed)| {
        read_back(before, deed)
    });
    Ok((done, survey.missing))
}

/// Backends are independent, except where two layers are links to one directory: those take turns.
fn carry_out_plans(plans: Vec<Plan<'_>>) -> Vec<Deed> {
    let mut turns: BTreeMap<Option<PathBuf>, Vec<(usize, Plan<'_>)>> = BTreeMap::new();
    for (index, plan) in plans.into_iter().enumerate() {
        let first = plan
            .as_ref()
            .ok()
            .and_then(|edits| Some(edits.first()?.file.path.clone()));
        turns.entry(first).or_default().push((index, plan));
    }
    let carry_out = |turn: Vec<(usize, Plan<'_>)>| -> Vec<_> {
        turn.into_iter()
            .map(|(index, plan)| (index, apply_plan(plan)))
            .collect()
    };
    let mut deeds: Vec<_> = map(Load::Disk, turns.into_values().collect(), carry_out)
        .into_iter()
        .flatten()
        .collect();
    deeds.sort_by_key(|(index, _)| *index);
    deeds.into_iter().map(|(_, deed)| deed).collect()
}

/// Gives every backend the bytes back that an earlier survey found, whatever they were: a mix of sizes, or a number
/// that was written in another way.
///
/// A backend that is no longer the same but for the settings was updated since and is refused. Fails where the lock
/// cannot be had or the layers cannot be listed.
pub fn put_back(home: &Path, earlier: &[Backend]) -> Result<Vec<Done>> {
    let _lock = lock::hold(&backends::open(home)?)?;
    let survey = survey(home, &[])?;
    let find = |earlier: &Backend| {
        survey
            .backends
            .iter()
            .find(|now| now.layer.path == earlier.layer.path)
    };
    let deeds = earlier
        .iter()
        .filter(|backend| backend.hindrance().is_none())
        .map(|earlier| {
            if let Some(now) = find(earlier) {
                let deed = match apply_plan(now.edits_back_to(earlier)) {
                    Deed::Changed => forget_copies(earlier).map_or_else(
                        |error| Deed::Failed(format!("{error:#}")),
                        |()| Deed::Changed,
                    ),
                    other => other,
                };
                return read_back(now.clone(), deed);
            }
            let deed = Deed::Refused(
                "it has vanished since it was changed; LM Studio removed it".to_owned(),
            );
            Done {
                before: earlier.clone(),
                after: earlier.clone(),
                deed,
            }
        });
    Ok(deeds.collect())
}

/// Removes the copies that were saved between the survey and now: where one was needed then, there was none.
fn forget_copies(earlier: &Backend) -> Result<()> {
    let contents = earlier
        .files
        .iter()
        .filter_map(|file| Some((file, file.content()?)));
    let mut copied = contents.filter(|(_, content)| content.original.needs_copy);
    copied.try_for_each(|(file, content)| apply::forget_copy(&file.path, &content.bytes))
}

fn apply_plan(plan: Plan<'_>) -> Deed {
    match plan {
        Err(hindrance) => hindered(hindrance),
        Ok(edits) => match apply::apply(&edits) {
            Err(error) => Deed::Failed(format!("{error:#}")),
            Ok(()) if edits.iter().any(Edit::is_change) => Deed::Changed,
            Ok(()) => Deed::Unchanged,
        },
    }
}

fn read_back(before: Backend, deed: Deed) -> Done {
    let after = match deed {
        Deed::Changed | Deed::Failed(_) => inspect(before.layer.clone()),
        _ => before.clone(),
    };
    Done {
        before,
        deed,
        after,
    }
}

/// What [`carry_out`] would do. Writes nothing and takes no lock.
pub fn rehearse(home: &Path, wanted: &[Pattern], goal: Goal) -> Result<Doings> {
    let survey = survey(home, wanted)?;
    let done = survey.backends.into_iter().map(|before| {
        let deed = match before.edits(goal) {
            Err(hindrance) => hindered(hindrance),
            Ok(edits) => would_change(&edits),
        };
        Done {
            after: before.clone(),
            before,
            deed,
        }
    });
    Ok((done.collect(), survey.missing))
}

fn would_change(edits: &[Edit<'_>]) -> Deed {
    let changes: Vec<_> = edits
        .iter()
        .filter(|edit| edit.is_change())
        .map(|edit| Change {
            path: edit.file.path.clone(),
            before: edit.content.bytes.clone(),
            after: edit.after.clone(),
        })
        .collect();
    if changes.is_empty() {
        Deed::Unchanged
    } else {
        Deed::WouldChange(changes)
    }
}

fn hindered(hindrance: Hindrance) -> Deed {
    match hindrance {
        Hindrance::Incomplete(why) => Deed::LeftAlone(why),
        Hindrance::Refused(why) => Deed::Refused(why),
    }
}
