//! Where LM Studio keeps its things.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::backends;
use crate::files::{self, cannot, is_absence};
use crate::output::quoted;

/// The home to work on: `explicit`, or the one that LM Studio itself uses.
///
/// LM Studio's rule (lmstudio-js, `findLMStudioHome`): the trimmed content of the pointer file if that file exists,
/// else `~/.cache/lm-studio` if it exists, else `~/.lmstudio`. Fails if backends cannot be listed there; another
/// home is named in the error and never used instead.
pub fn find(explicit: Option<&Path>) -> Result<PathBuf> {
    let home = explicit.map_or_else(find_as_lmstudio_does, |path| Ok(path.to_owned()))?;
    match backends::open(&home) {
        Err(error) if explicit.is_none() => bail!("{error:#}{}", hint(&home)),
        opened => opened.map(|_| home),
    }
}

/// Says where this home comes from and names another one that has backends, to follow an error; empty if there is neither.
pub fn hint(home: &Path) -> String {
    let user = dirs::home_dir().unwrap_or_default();
    let usual = [".cache/lm-studio", ".lmstudio"].map(|name| user.join(name));
    let mut text = String::new();
    if !usual.iter().any(|one| one == home) {
        text += "; ~/.lmstudio-home-pointer names it";
    }
    for other in usual.iter().filter(|one| *one != home) {
        let found = backends::find(other);
        if found.is_ok_and(|(backends, _)| !backends.is_empty()) {
            let (shown, other) = (other.display(), quoted(other.display()));
            text += &format!("; there are backends in {shown}: add `--home {other}`");
        }
    }
    text
}

fn find_as_lmstudio_does() -> Result<PathBuf> {
    let user = dirs::home_dir();
    let user = user.context("your home directory is unknown; set HOME or give --home DIR")?;
    let cache = user.join(".cache/lm-studio");
    Ok(match read_pointer(&user.join(".lmstudio-home-pointer"))? {
        Some(path) => path,
        None if is_absent(&cache) => user.join(".lmstudio"),
        None => cache,
    })
}

/// Whether nothing is there. If that cannot be determined, something is: no other home must be patched in its place.
fn is_absent(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| is_absence(&error))
}

fn read_pointer(pointer: &Path) -> Result<Option<PathBuf>> {
    let shown = format!("{}, by which LM Studio finds its home,", pointer.display());
    let unusable = |why: &str| format!("{shown} {why}; give --home DIR");
    let content = match files::read(pointer) {
        Err(_) if is_absent(pointer) => return Ok(None),
        Err(error) => {
            let error = cannot("read", pointer, &error);
            bail!("{error}; LM Studio finds its home by it, lmpatch also by --home DIR")
        }
        Ok(content) => String::from_utf8(content).with_context(|| unusable("is not UTF-8"))?,
    };
    // `String.prototype.trim` takes a byte order mark away and leaves a NEL, unlike Rust's `trim`.
    let is_blank = |c: char| c == '\u{feff}' || c.is_whitespace() && c != '\u{85}';
    match content.trim_matches(is_blank) {
        "" => bail!(unusable("is empty")),
        path if Path::new(path).is_absolute() => Ok(Some(path.into())),
        path => bail!(unusable(&format!("names the relative path {path:?}"))),
    }
}
