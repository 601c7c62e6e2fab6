//! Where LM Studio keeps its things: pointer file → home.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::backends;
use crate::files;

/// LM Studio's home directory.
#[derive(Debug, Clone)]
pub struct Home {
    /// The directory, as it was named.
    pub path: PathBuf,
    /// By which rule it was found.
    pub found_by: FoundBy,
    /// Said to the user where this is not the home that LM Studio itself would use, or its pointer is of no use.
    pub note: Option<String>,
}

/// By which rule a home was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// The user named it.
    Given,
    /// LM Studio's pointer file names it.
    Pointer,
    /// `~/.cache/lm-studio` exists.
    Cache,
    /// `~/.lmstudio`, the usual place.
    Usual,
}

impl FoundBy {
    /// The words for it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Given => "given with --home",
            Self::Pointer => "named by ~/.lmstudio-home-pointer",
            Self::Cache => "~/.cache/lm-studio exists",
            Self::Usual => "LM Studio's usual place",
        }
    }
}

/// Where the pointer file stands in the user's home directory.
const POINTER: &str = ".lmstudio-home-pointer";

/// The home to work on: `explicit`, or the one that LM Studio would use.
///
/// LM Studio's own rule (lmstudio-js, `findLMStudioHome`): the trimmed content of the pointer file if that file
/// exists, else `~/.cache/lm-studio` if it exists, else `~/.lmstudio`. Where that one has no MLX backend and another
/// of them has, the other is taken and said. Fails where there is no such directory.
pub fn find(explicit: Option<&Path>) -> Result<Home> {
    if let Some(path) = explicit {
        return Ok(Home {
            path: path.to_owned(),
            found_by: FoundBy::Given,
            note: None,
        });
    }
    let user =
        dirs::home_dir().context("your home directory is unknown; set HOME or give --home DIR")?;
    let (pointed, pointer_note) = read_pointer(&user);
    let cache = user.join(".cache/lm-studio");
    let usual = user.join(".lmstudio");
    let mut candidates: Vec<_> = pointed
        .into_iter()
        .map(|home| (home, FoundBy::Pointer))
        .collect();
    // Where it cannot be told, it counts as there: another home is not patched in its place.
    if cache
        .try_exists()
        .unwrap_or_else(|error| !files::is_absence(&error))
    {
        candidates.push((cache, FoundBy::Cache));
    }
    candidates.push((usual, FoundBy::Usual));
    choose(&candidates, pointer_note)
}

/// The pointer's target, or why it is of no use.
fn read_pointer(user: &Path) -> (Option<PathBuf>, Option<String>) {
    let pointer = user.join(POINTER);
    let content = match files::read(&pointer) {
        Ok(content) => content,
        Err(files::NotRead::Missing) => return (None, None),
        Err(why) => {
            return (
                None,
                Some(format!("{} {why}; it is passed over", pointer.display())),
            );
        }
    };
    let useless = |why: &str| {
        (
            None,
            Some(format!("{} {why}; it is passed over", pointer.display())),
        )
    };
    let Ok(text) = String::from_utf8(content) else {
        return useless("is not UTF-8");
    };
    match text.trim() {
        "" => useless("is empty"),
        target if Path::new(target).is_absolute() => (Some(target.into()), None),
        target => useless(&format!("names the relative path {target:?}")),
    }
}

fn choose(candidates: &[(PathBuf, FoundBy)], pointer_note: Option<String>) -> Result<Home> {
    let chosen = candidates.iter().find(|(home, _)| backends::has_any(home));
    let Some((first, _)) = candidates.first() else {
        bail!("no LM Studio home is known; give --home DIR");
    };
    let Some((path, found_by)) = chosen else {
        let all: Vec<_> = candidates
            .iter()
            .map(|(home, _)| home.display().to_string())
            .collect();
        let pointer = pointer_note
            .map(|note| format!("{note}. "))
            .unwrap_or_default();
        bail!(
            "{pointer}no MLX backend found in {}; install an MLX runtime in LM Studio, or give --home DIR",
            all.join(" or ")
        );
    };
    let elsewhere = (path != first).then(|| {
        format!(
            "LM Studio's home is {}, but it has no MLX backends; using {}",
            first.display(),
            path.display()
        )
    });
    Ok(Home {
        path: path.clone(),
        found_by: *found_by,
        note: elsewhere.or(pointer_note),
    })
}
