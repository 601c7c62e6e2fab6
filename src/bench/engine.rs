//! What prefills: a server (`direct.rs` needs none), its prompts, and the lines of its answers.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::results::{Position, Results, Run};
use crate::files;
use crate::lmstudio::api::{Api, Event, reason};
use crate::lmstudio::lms::{LoadedModel, find_loaded};

/// Called with every position; returns whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(Position) -> bool;

pub trait Engine: Send {
    /// Generates one token after a new prompt of about `tokens` tokens. Also fails if `on_progress` ends it.
    fn prefill(&mut self, chunk: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run>;
}

impl Run {
    /// Takes a line that came after `seconds`, of a prompt of about `tokens`. Returns the position that it reports.
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
        match Event::deserialize(data) {
            Err(_) => self.openai_event(data, now),
            Ok(Event::Start { model_instance_id }) => self.model = Some(model_instance_id),
            Ok(Event::Load) => self.ignored = Some("LM Studio loaded the model first".to_owned()),
            Ok(Event::Progress { progress, seconds }) => {
                let (tokens, seconds) = (progress * tokens, seconds.unwrap_or(now));
                return Some(Position { tokens, seconds });
            }
            Ok(Event::Token) => self.token(now),
            Ok(Event::End { result }) => {
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
            Ok(Event::Other) => {}
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

/// What prompts are made of: a text file, or words. Fails if the file cannot be read.
pub fn prompt_text(file: Option<&Path>) -> Result<String> {
    let Some(path) = file else {
        return Ok(WORDS.to_owned());
    };
    let bytes = files::read(path).map_err(|error| files::cannot("read", path, &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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

pub struct Server {
    api: Api,
    is_v1: bool,
    model: String,
    text: String,
    /// The characters and the tokens of past prompts.
    counted: Vec<(f64, f64)>,
}

impl Server {
    /// The loaded model that `args` name. Fails if prompts would not fit.
    pub fn new(args: &BenchArgs, api: Api, results: &mut Results) -> Result<Self> {
        let text = prompt_text(args.prompt_file.as_deref())?;
        (results.api, results.model) = if let Some(loaded) = api.loaded()? {
            let model = find(args.model.as_deref(), loaded)?;
            results.context_length = model.context_length;
            let needed = context_for(results.prompt_tokens);
            // A sweep loads it with as much as it needs.
            let has = model.context_length.filter(|_| args.sizes.is_empty());
            let most = has.or(model.max_context_length).unwrap_or(u64::MAX);
            let what = format!("prompts need a context of {needed}, the model has {most}");
            let advice = "give fewer --prompt-tokens or smaller --sizes";
            ensure!(needed <= most, "{what}; {advice}");
            ("v1", model.identifier)
        } else {
            let missing = "this server does not tell its models; name one with --model";
            ("openai", args.model.clone().context(missing)?)
        };
        Ok(Self {
            api,
            is_v1: results.api == "v1",
            model: results.model.clone(),
            text,
            counted: Vec::new(),
        })
    }

    /// How many characters make a prompt of `tokens` tokens. Goes by two past prompts, since the template's count, too.
    fn characters(&self, tokens: f64) -> f64 {
        let distance = |from: f64| move |past: &&(f64, f64)| (past.1 - from).abs() as u64;
        let Some(near) = self.counted.iter().min_by_key(distance(tokens)) else {
            return tokens * CHARACTERS_PER_TOKEN;
        };
        let far = self.counted.iter().max_by_key(distance(near.1));
        // Lengths that are alike say nothing of what lies beyond them.
        let far = far.filter(|far| (far.1 - near.1).abs() > 0.1 * near.1);
        let (fewer, few) = far.copied().unwrap_or_default();
        let characters = near.0 + (tokens - near.1) * (near.0 - fewer) / (near.1 - few);
        // No tokenizer makes a token of less or of more, on average.
        characters.clamp(0.25 * tokens, 16.0 * tokens)
    }
}

impl Engine for Server {
    fn prefill(&mut self, _: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let prompt = new_prompt(&self.text, self.characters(tokens as f64));
        let model = &self.model;
        let (path, request) = if self.is_v1 {
            let request = json!({ "model": model, "input": prompt, "stream": true, "max_output_tokens": 1,
                                  "temperature": 0, "store": false });
            ("api/v1/chat", request)
        } else {
            // mlx_engine.server insists on top_k; with temperature 0 it decides nothing.
            let message = json!({ "role": "user", "content": prompt });
            let request = json!({ "model": model, "messages": [message], "stream": true, "max_tokens": 1,
                                  "stream_options": { "include_usage": true }, "temperature": 0, "top_k": 1 });
            ("v1/chat/completions", request)
        };
        let (start, mut run) = (Instant::now(), Run::default());
        for line in self.api.stream(path, &request)? {
            let position = run.line(&line?, start.elapsed().as_secs_f64(), tokens)?;
            // Leaving here closes the connection.
            ensure!(position.is_none_or(&mut *on_progress), "stopped");
        }
        let run = run.end()?;
        let answered = run.model.as_ref().unwrap_or(model);
        let other = format!("the model that answered is {answered}, not {model}");
        ensure!(answered == model, other);
        let (characters, counted) = (prompt.chars().count() as f64, run.prompt_tokens as f64);
        self.counted.push((characters, counted));
        Ok(run)
    }
}

fn find(wanted: Option<&str>, mut loaded: Vec<LoadedModel>) -> Result<LoadedModel> {
    // The identifier of one may be the key of others, too: a second instance is `KEY:2`.
    if let Some(one) = wanted.and_then(|name| find_loaded(&loaded, name)) {
        return Ok(one.clone());
    }
    loaded.retain(|one| wanted.is_none_or(|name| name == one.model));
    let ids: Vec<_> = loaded.iter().map(|one| &*one.identifier).collect();
    let several = format!("several MLX models are loaded: {}", ids.join(", "));
    ensure!(ids.len() < 2, "{several}; name one with --model");
    let next = "`lms ls` lists their keys, `lms load KEY --context-length 17408` loads one";
    let missing = format!("no MLX model is loaded, or none of that name; {next}");
    loaded.pop().context(missing)
}
