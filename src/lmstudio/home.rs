//! Where LM Studio keeps its things.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use super::backends;
use crate::files::{self, cannot};
use crate::output::quoted;

/// The home to work on: `explicit`, or the one that LM Studio itself uses (lmstudio-js, `findLMStudioHome`).
pub fn find(explicit: Option<&Path>) -> Result<PathBuf> {
    let home = explicit.map_or_else(find_as_lmstudio_does, |path| Ok(path.to_owned()))?;
    match backends::open(&home) {
        Err(error) if explicit.is_none() => bail!("{error:#}{}", hint(&home)),
        opened => opened.map(|_| home),
    }
}

/// To follow an error: another home that has backends, which is never used instead.
pub fn hint(home: &Path) -> String {
    let user = dirs::home_dir().unwrap_or_default();
    let usual = [".cache/lm-studio", ".lmstudio"].map(|name| user.join(name));
    let mut others = usual.iter().filter(|one| *one != home);
    let has_backends =
        |other: &&PathBuf| backends::find(other).is_ok_and(|(all, _)| !all.is_empty());
    let hint = others.find(has_backends).map(|other| {
        let other = quoted(other.display());
        format!("; there are backends elsewhere: add `--home {other}`")
    });
    hint.unwrap_or_default()
}

fn find_as_lmstudio_does() -> Result<PathBuf> {
    let user = dirs::home_dir();
    let user = user.context("your home directory is unknown; set HOME or give --home DIR")?;
    let pointer = user.join(".lmstudio-home-pointer");
    // If that cannot be determined, something is there: no other home must be patched in its place.
    let is_absent = |path: &Path| matches!(path.try_exists(), Ok(false));
    if is_absent(&pointer) {
        let cache = user.join(".cache/lm-studio");
        let usual = user.join(".lmstudio");
        return Ok(if is_absent(&cache) { usual } else { cache });
    }
    let next = "LM Studio finds its home by it, lmpatch also by --home DIR";
    let content = files::read(&pointer).map_err(|error| cannot("read", &pointer, &error));
    let content = content.map_err(|why| anyhow!("{why}; {next}"))?;
    let content = String::from_utf8_lossy(&content);
    // `String.prototype.trim` takes a byte order mark away and leaves a NEL, unlike Rust's `trim`.
    let is_blank = |c: char| c == '\u{feff}' || c.is_whitespace() && c != '\u{85}';
    let home = content.trim_matches(is_blank);
    if !Path::new(home).is_absolute() {
        let shown = pointer.display();
        bail!("{shown} names no absolute path, but {home:?}; {next}");
    }
    Ok(home.into())
}
