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
    /// Said to the user where this is not the home that LM Studio itself would use, or its pointer is of no use.
    pub note: Option<String>,
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
        return Ok(Home { path: path.to_owned(), note: None });
    }
    let user = dirs::home_dir().context("your home directory is unknown; set HOME or give --home DIR")?;
    let (pointed, pointer_note) = read_pointer(&user);
    let cache = user.join(".cache/lm-studio");
    let usual = user.join(".lmstudio");
    let mut candidates: Vec<_> = pointed.into_iter().collect();
    // Where it cannot be told, it counts as there: another home is not patched in its place.
    if cache.try_exists().unwrap_or_else(|error| !files::is_absence(&error)) {
        candidates.push(cache);
    }
    candidates.push(usual);
    choose(&candidates, pointer_note)
}

/// The pointer's target, or why it is of no use.
fn read_pointer(user: &Path) -> (Option<PathBuf>, Option<String>) {
    let pointer = user.join(POINTER);
    let content = match files::read(&pointer) {
        Ok(content) => content,
        Err(files::NotRead::Missing) => return (None, None),
        Err(why) => return (None, Some(format!("{} {why}; it is passed over", pointer.display()))),
    };
    let useless = |why: &str| (None, Some(format!("{} {why}; it is passed over", pointer.display())));
    let Ok(text) = String::from_utf8(content) else {
        return useless("is not UTF-8");
    };
    match text.trim() {
        "" => useless("is empty"),
        target if Path::new(target).is_absolute() => (Some(target.into()), None),
        target => useless(&format!("names the relative path {target:?}")),
    }
}

fn choose(candidates: &[PathBuf], pointer_note: Option<String>) -> Result<Home> {
    let chosen = candidates.iter().find(|home| backends::has_any(home));
    let Some(first) = candidates.first() else {
        bail!("no LM Studio home is known; give --home DIR");
    };
    let Some(path) = chosen else {
        let all: Vec<_> = candidates.iter().map(|home| home.display().to_string()).collect();
        let pointer = pointer_note.map(|note| format!("{note}. ")).unwrap_or_default();
        bail!(
            "{pointer}no MLX backend found in {}; install an MLX runtime in LM Studio, or give --home DIR",
            all.join(" or ")
        );
    };
    let elsewhere = (path != first).then(|| {
        format!("LM Studio's home is {}, but it has no MLX backends; using {}", first.display(), path.display())
    });
    Ok(Home { path: path.clone(), note: elsewhere.or(pointer_note) })
}
