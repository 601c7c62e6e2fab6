//! Prompts of a given length that no cache knows.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::files;

/// Words of ordinary prose, so that tokenizers split it as they split ordinary prose.
const WORDS: &str = "the river of a morning and seven letters in quiet houses that carry bread through winter \
from one station to another while nobody counts stones under their bridge with paper lamps again ";

/// What prompts are made of.
#[derive(Debug, Clone)]
pub struct Prompts {
    text: String,
    characters_per_token: f64,
    /// The longest prompt so far, in tokens.
    counted: u64,
}

impl Prompts {
    /// Prompts made of a text file, or of words. Fails if the file has no text.
    pub fn new(file: Option<&Path>) -> Result<Self> {
        let mut text = WORDS.to_owned();
        if let Some(path) = file {
            let shown = path.display();
            let bytes = files::read(path).map_err(|why| anyhow!("{shown} {why}"))?;
            text = String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8"))?;
            ensure!(!text.trim().is_empty(), "{shown} is empty");
        }
        Ok(Self {
            text,
            characters_per_token: 4.5,
            counted: 0,
        })
    }

    /// About `tokens` tokens of the text, repeated, after a prefix that is new every time: caches reuse a common prefix.
    pub fn next(&self, tokens: u64) -> String {
        // The standard library's hasher takes its keys from the system's randomness.
        let mut prompt = format!("{:016x} ", RandomState::new().build_hasher().finish());
        let characters = (tokens as f64 * self.characters_per_token) as usize;
        let rest = characters.saturating_sub(prompt.len());
        prompt.extend(self.text.chars().cycle().take(rest));
        prompt
    }

    /// Corrects the length by the tokens counted for `prompt`. In a shorter prompt the template weighs more.
    pub fn correct(&mut self, prompt: &str, counted: u64) {
        if counted < self.counted {
            return;
        }
        self.counted = counted;
        self.characters_per_token = prompt.chars().count() as f64 / counted.max(1) as f64;
    }
}

/// The context that a prompt of `tokens` tokens needs, with room for its template and a count that is 2 % off.
pub fn context_for(tokens: u64) -> u64 {
    (tokens + tokens / 50 + 512).next_multiple_of(256)
}
