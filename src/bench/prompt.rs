//! Prompts of a given length that no cache knows.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::files;

/// Words of ordinary prose, so that tokenizers split it as they split ordinary prose.
const WORDS: &str = "the river of a morning and seven letters in quiet houses that carry bread through winter \
from one station to another while nobody counts stones under their bridge with paper lamps again ";

/// As in ordinary prose.
pub const CHARACTERS_PER_TOKEN: f64 = 4.5;

/// What prompts are made of: a text file, or words. Fails if the file has no text.
pub fn text(file: Option<&Path>) -> Result<String> {
    let Some(path) = file else {
        return Ok(WORDS.to_owned());
    };
    let shown = path.display();
    let bytes = files::read(path).map_err(|error| files::cannot("read", path, &error))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8"))?;
    ensure!(!text.trim().is_empty(), "{shown} is empty");
    Ok(text)
}

/// This many characters of the text, repeated, after a prefix that is new every time: caches reuse a common prefix.
pub fn new(text: &str, characters: f64) -> String {
    // The standard library's hasher takes its keys from the system's randomness.
    let mut prompt = format!("{:016x} ", RandomState::new().build_hasher().finish());
    let rest = (characters as usize).saturating_sub(prompt.len());
    prompt.extend(text.chars().cycle().take(rest));
    prompt
}

/// The context that a prompt of `tokens` tokens needs, with room for its template and a count that is 2 % off.
pub fn context_for(tokens: u64) -> u64 {
    (tokens + tokens / 50 + 512).next_multiple_of(256)
}
