//! Prefills over HTTP: LM Studio's REST interface, or the `OpenAI` one that every server has.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::args::BenchArgs;
use super::engine::{self, Engine, OnProgress, Run, context_for};
use super::results::Results;
use crate::lmstudio::api::Api;
use crate::lmstudio::lms::LoadedModel;

/// The least and the most that any tokenizer makes a token of, on average.
const CHARACTERS_OF_A_TOKEN: (f64, f64) = (0.25, 16.0);

/// The model on a server that is measured.
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
        let text = engine::prompt_text(args.prompt_file.as_deref())?;
        let (mut name, loaded) = (args.model.clone(), api.loaded()?);
        results.api = if loaded.is_some() { "v1" } else { "openai" };
        if let Some(loaded) = loaded {
            let model = find(name.as_deref(), loaded)?;
            results.context_length = model.context_length;
            let needed = context_for(results.prompt_tokens);
            let what = format!("prompts need a context of {needed}, the model has");
            let most = model.max_context_length.unwrap_or(u64::MAX);
            let advice = "give fewer --prompt-tokens or smaller --sizes";
            ensure!(needed <= most, "{what} {most}; {advice}");
            let has = model.context_length.unwrap_or(most);
            let advice = "with --sizes, lmpatch raises it and then restores it";
            let is_enough = needed <= has || !args.sizes.is_empty();
            ensure!(is_enough, "{what} {has}; {advice}");
            name = Some(model.identifier);
        }
        let model = name.context("this server does not tell its models; name one with --model")?;
        results.model.clone_from(&model);
        let (is_v1, counted) = (results.api == "v1", Vec::new());
        Ok(Self {
            api,
            is_v1,
            model,
            text,
            counted,
        })
    }

    /// How many characters make a prompt of `tokens` tokens. Goes by two past prompts, since the template's count, too.
    fn characters(&self, tokens: f64) -> f64 {
        let by_distance = |from: f64| {
            let distance = move |past: &(f64, f64)| (past.1 - from).abs();
            move |a: &&_, b: &&_| distance(a).total_cmp(&distance(b))
        };
        let Some(near) = self.counted.iter().min_by(by_distance(tokens)) else {
            return tokens * engine::CHARACTERS_PER_TOKEN;
        };
        let far = self.counted.iter().max_by(by_distance(near.1));
        // Lengths that are alike say nothing of what lies beyond them.
        let far = far.filter(|far| (far.1 - near.1).abs() > 0.1 * near.1);
        let (fewer, few) = far.copied().unwrap_or_default();
        let slope = (near.0 - fewer) / (near.1 - few);
        let (least, most) = CHARACTERS_OF_A_TOKEN;
        let characters = near.0 + (tokens - near.1) * slope.clamp(least, most);
        characters.clamp(least * tokens, most * tokens)
    }
}

impl Engine for Server {
    fn prefill(&mut self, _: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let prompt = engine::new_prompt(&self.text, self.characters(tokens as f64));
        let model = &self.model;
        // For one token, with nothing random and nothing stored.
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
    loaded.retain(|one| wanted.is_none_or(|name| name == one.identifier || name == one.model));
    // The identifier of one may be the key of others, too: a second instance is `KEY:2`.
    let is_named = |one: &LoadedModel| wanted == Some(&*one.identifier);
    if loaded.iter().any(is_named) {
        loaded.retain(is_named);
    }
    let ids: Vec<_> = loaded.iter().map(|one| &*one.identifier).collect();
    let ids = ids.join(", ");
    let what = "several MLX models are loaded";
    ensure!(loaded.len() < 2, "{what}: {ids}; name one with --model");
    let name = wanted.map_or(String::new(), |name| format!(" {name}"));
    let load = format!("`lms load KEY --context-length {}`", context_for(16_384));
    let next = format!("`lms ls` lists their keys, {load} loads one");
    loaded
        .pop()
        .with_context(|| format!("no MLX model{name} is loaded; {next}"))
}
