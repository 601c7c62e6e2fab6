//! What prefills, a server or a Python process: the prompts that it gets, and what the lines of its answer say.
//!
//! They are events of LM Studio's stream, which `direct.py` speaks too, or `OpenAI`'s.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files;
use crate::lmstudio::api::{Event, reason};

/// How far a prefill is: prompt tokens done, and seconds since the request was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Position {
    pub tokens: f64,
    pub seconds: f64,
}

/// One whole prefill.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    /// As the engine counted them.
    pub prompt_tokens: u64,
    pub prefill_seconds: f64,
    pub tokens_per_second: f64,
    /// Whose clock measured it: `server` or `client`.
    pub source: &'static str,
    pub cached_tokens: Option<u64>,
    pub peak_memory_bytes: Option<u64>,
    /// Why it does not count.
    pub ignored: Option<String>,
    /// The model that answered, if the server says so.
    #[serde(skip)]
    pub model: Option<String>,
    /// The positions that the engine reported.
    #[serde(skip)]
    pub positions: Vec<Position>,
    /// The number of steps, if the engine told them without their positions.
    #[serde(skip)]
    pub bare_steps: u64,
}

/// Called with every position; returns whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Position) -> bool;

pub trait Engine: Send {
    /// Generates one token after a new prompt of about `tokens` tokens, which is prefilled `chunk` tokens at a time if
    /// the engine lets that be chosen. Also fails if `on_progress` ends it.
    fn prefill(&mut self, chunk: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run>;
}

impl Run {
    /// Takes a line that came after `seconds`; `tokens` is about how many the prompt has. Returns the position that the
    /// line reports.
    pub fn line(&mut self, line: &str, seconds: f64, tokens: u64) -> Result<Option<Position>> {
        let mut position = None;
        if let Some(comment) = line.strip_prefix(':').map(str::trim) {
            self.bare_steps += u64::from(comment == "prompt-progress");
            let last = comment.rsplit(' ').next().unwrap_or_default();
            let tokens = last.split_once('/').and_then(|(done, _)| done.parse().ok());
            position = tokens.map(|tokens| Position { tokens, seconds });
        } else if let Some(data) = line.strip_prefix("data:").filter(|d| d.trim() != "[DONE]") {
            let data = serde_json::from_str(data);
            let data = data.map_err(|_| anyhow!("the server did not send JSON"))?;
            if let Some(why) = reason(&data) {
                bail!(why);
            }
            position = self.event(&data, seconds, tokens as f64);
        }
        self.positions.extend(position);
        Ok(position)
    }

    fn event(&mut self, data: &Value, now: f64, tokens: f64) -> Option<Position> {
        let Ok(event) = Event::deserialize(data) else {
            self.openai_event(data, now);
            return None;
        };
        match event {
            Event::Start { model_instance_id } => self.model = Some(model_instance_id),
            Event::Load => self.ignored = Some("LM Studio loaded the model first".to_owned()),
            Event::Progress { progress, seconds } => {
                let (tokens, seconds) = (progress * tokens, seconds.unwrap_or(now));
                return Some(Position { tokens, seconds });
            }
            Event::Token => self.token(now),
            Event::End { result } => {
                let stats = &result["stats"];
                self.prompt_tokens = stats["input_tokens"].as_u64().unwrap_or(0);
                self.peak_memory_bytes = stats["peak_memory_bytes"].as_u64();
                let seconds = stats["time_to_first_token_seconds"].as_f64();
                if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
                    (self.prefill_seconds, self.source) = (seconds, "server");
                }
                let counted = self.prompt_tokens as f64 / tokens;
                let positions = self.positions.iter_mut();
                positions.for_each(|position| position.tokens *= counted);
            }
            Event::Other => {}
        }
        None
    }

    fn openai_event(&mut self, data: &Value, seconds: f64) {
        let model = String::deserialize(&data["model"]).ok();
        self.model = model.or(self.model.take());
        let choice = &data["choices"][0];
        let delta = &choice["delta"];
        let (content, reasoning) = (&delta["content"], &delta["reasoning_content"]);
        let mut texts = [content, reasoning, &choice["finish_reason"]].into_iter();
        if texts.any(|text| text.as_str().is_some_and(|text| !text.is_empty())) {
            self.token(seconds);
        }
        let usage = &data["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        self.cached_tokens = cached.or(self.cached_tokens);
        let counted = usage["prompt_tokens"].as_u64();
        self.prompt_tokens = counted.unwrap_or(self.prompt_tokens);
    }

    /// The first token ends the prefill, unless the server says when that was.
    fn token(&mut self, seconds: f64) {
        if self.source.is_empty() {
            (self.prefill_seconds, self.source) = (seconds, "client");
        }
    }

    /// The whole run, after its last line.
    pub fn end(mut self) -> Result<Self> {
        let broken = "the server broke off before the first token; did the model or the app end?";
        ensure!(!self.source.is_empty(), broken);
        let unknown = "the server did not report the prompt's token count";
        ensure!(self.prompt_tokens > 0, unknown);
        self.tokens_per_second = self.prompt_tokens as f64 / self.prefill_seconds;
        // The first comment comes before the first step.
        self.bare_steps = self.bare_steps.saturating_sub(1);
        Ok(self)
    }
}

/// Words of ordinary prose, so that tokenizers split it as they split ordinary prose.
const WORDS: &str = "the river of a morning and seven letters in quiet houses that carry bread through winter \
from one station to another while nobody counts stones under their bridge with paper lamps again ";

pub const CHARACTERS_PER_TOKEN: f64 = 4.5;

/// What prompts are made of: a text file, or words. Fails if the file has no text.
pub fn prompt_text(file: Option<&Path>) -> Result<String> {
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
pub fn new_prompt(text: &str, characters: f64) -> String {
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
