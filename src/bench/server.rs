//! Prefills over HTTP: LM Studio's REST interface (0.4.0 and later), or the `OpenAI` one that every server has.
//!
//! Fields as in lmstudio-ai/docs, `1_developer/2_rest/{list,chat,streaming-events}.md`. Engines that speak only the
//! `OpenAI` interface tell their progress in comments: `: keepalive 512/2019` (mlx-lm), `: prompt-progress` (mlx-engine).

use std::io::{BufRead, BufReader, Read as _};
use std::num::NonZeroU16;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body, Timeout};

use super::args::BenchArgs;
use super::engine::{self, Engine, OnProgress, Run, context_for, reason, silent};
use super::results::Results;
use crate::lmstudio::lms::LoadedModel;
use crate::{command, files};

/// For a list of models.
const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer is longer, in bytes.
const MAX_LENGTH: u64 = 64 << 20;
/// The least and the most that any tokenizer makes a token of, on average.
const CHARACTERS_OF_A_TOKEN: (f64, f64) = (0.25, 16.0);

/// A server, and the model on it that is measured.
#[derive(Clone)]
pub struct Server {
    base: String,
    silence: Duration,
    agent: Agent,
    is_v1: bool,
    model: String,
    text: String,
    /// The characters and the tokens of past prompts.
    counted: Vec<(f64, f64)>,
}

impl Server {
    /// The loaded model that `args` name on the server that they name, or on that of an LM Studio home: this machine, at
    /// the port in its settings. Fails if prompts would not fit.
    pub fn new(args: &BenchArgs, home: Option<&Path>, results: &mut Results) -> Result<Self> {
        let silence = Duration::from_secs(args.timeout);
        let base = args.url.clone().unwrap_or_else(|| usual_url(home));
        let mut server = Self {
            // As other programs are given it.
            base: base
                .trim_end_matches('/')
                .trim_end_matches("/v1")
                .to_owned(),
            silence,
            agent: agent(None, Some(silence)),
            is_v1: false,
            model: args.model.clone().unwrap_or_default(),
            text: engine::prompt_text(args.prompt_file.as_deref())?,
            counted: Vec::new(),
        };
        results.api = "openai";
        if let Some(loaded) = server.loaded()? {
            let model = find(args.model.as_deref(), loaded)?;
            (server.is_v1, results.api) = (true, "v1");
            server.model = model.identifier;
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
        }
        let unknown = "this server does not tell its models; name one with --model";
        ensure!(!server.model.is_empty(), unknown);
        results.model.clone_from(&server.model);
        Ok(server)
    }

    /// Its loaded MLX models; `None` if it has only the `OpenAI` interface.
    fn loaded(&self) -> Result<Option<Vec<LoadedModel>>> {
        let request = Request::get(format!("{}/api/v1/models", self.base)).body(())?;
        let response = self.send(&agent(Some(TIMEOUT), None), request)?;
        let body = response.into_body().read_to_string();
        let body = body.map_err(|error| self.broken_off(error))?;
        let list: Value = serde_json::from_str(&body).unwrap_or_default();
        let Some(models) = list["models"].as_array() else {
            return Ok(None);
        };
        let mut loaded = Vec::new();
        for model in models.iter().filter(|model| model["format"] == "mlx") {
            for one in model["loaded_instances"].as_array().into_iter().flatten() {
                loaded.push(LoadedModel {
                    model: String::deserialize(&model["key"])?,
                    identifier: String::deserialize(&one["id"])?,
                    context_length: one["config"]["context_length"].as_u64(),
                    max_context_length: model["max_context_length"].as_u64(),
                    ..LoadedModel::default()
                });
            }
        }
        Ok(Some(loaded))
    }

    /// How many characters make a prompt of `tokens` tokens. Goes by two past prompts, since the template's count, too.
    fn characters(&self, tokens: f64) -> f64 {
        let distance = |from: f64, past: &(f64, f64)| (past.1 - from).abs();
        let by_length = |a: &&_, b: &&_| distance(tokens, a).total_cmp(&distance(tokens, b));
        let Some(near) = self.counted.iter().min_by(by_length) else {
            return tokens * engine::CHARACTERS_PER_TOKEN;
        };
        let by_difference = |a: &&_, b: &&_| distance(near.1, a).total_cmp(&distance(near.1, b));
        let far = self.counted.iter().max_by(by_difference);
        // Lengths that are alike say nothing of what lies beyond them.
        let far = far.filter(|far| distance(near.1, far) > 0.1 * near.1);
        let (fewer, few) = far.copied().unwrap_or_default();
        let slope = (near.0 - fewer) / (near.1 - few);
        let (least, most) = CHARACTERS_OF_A_TOKEN;
        let characters = near.0 + (tokens - near.1) * slope.clamp(least, most);
        characters.clamp(least * tokens, most * tokens)
    }

    /// Waits until it answers: a restarted server takes a while.
    pub fn wait(&self) -> Result<()> {
        command::retry(self.silence, || self.loaded().map(drop))
    }

    /// Closes the connections of prefills, which ends these.
    pub fn hang_up(&self) {
        self.agent.clone().shutdown();
    }

    /// The answer to a request. Fails if there is none, or if the token is refused.
    fn send(&self, agent: &Agent, mut request: Request<impl AsSendBody>) -> Result<Response<Body>> {
        if let Ok(token) = std::env::var("LM_API_TOKEN") {
            let token = format!("Bearer {}", token.trim()).parse()?;
            request.headers_mut().insert("Authorization", token);
        }
        let response = agent.run(request);
        let response = response.map_err(|error| self.explain(error))?;
        ensure!(
            !matches!(response.status().as_u16(), 401 | 403),
            "the server asks for a valid API token; set LM_API_TOKEN to one from LM Studio's Developer settings"
        );
        Ok(response)
    }

    fn explain(&self, error: impl Into<ureq::Error>) -> Error {
        let base = &self.base;
        match error.into() {
            ureq::Error::Timeout(Timeout::PerRead) => silent(self.silence),
            error => anyhow!(
                "no server answers at {base} ({error}); start it in LM Studio's Developer tab or with \
                 `lms server start`, or name it with --url"
            ),
        }
    }

    fn broken_off(&self, error: impl Into<ureq::Error>) -> Error {
        match error.into() {
            ureq::Error::Timeout(Timeout::PerRead) => silent(self.silence),
            error => anyhow!("the server broke off ({error}); did the model or the app end?"),
        }
    }

    /// The answer to a request for one token, with nothing random and nothing stored.
    fn stream(&self, prompt: &str) -> Result<impl BufRead> {
        let model = &self.model;
        let (path, body) = if self.is_v1 {
            let body = json!({ "model": model, "input": prompt, "stream": true, "max_output_tokens": 1,
                               "temperature": 0, "store": false });
            ("api/v1/chat", body)
        } else {
            // mlx_engine.server insists on top_k; with temperature 0 it decides nothing.
            let message = json!({ "role": "user", "content": prompt });
            let body = json!({ "model": model, "messages": [message], "stream": true, "max_tokens": 1,
                               "stream_options": { "include_usage": true }, "temperature": 0, "top_k": 1 });
            ("v1/chat/completions", body)
        };
        let request = Request::post(format!("{}/{path}", self.base));
        let request = request.header("Content-Type", "application/json");
        let mut response = self.send(&self.agent, request.body(body.to_string())?)?;
        let (status, body) = (response.status(), response.body_mut());
        if status != 200 || body.mime_type() != Some("text/event-stream") {
            // What cannot be read of a refusal is not shown.
            let said = body.read_to_string().unwrap_or_default();
            let value: Value = serde_json::from_str(&said).unwrap_or_default();
            let said = reason(&value).unwrap_or(said);
            let said: String = said.trim().chars().take(200).collect();
            bail!("the server answered {}: {said}", status.as_u16());
        }
        Ok(BufReader::new(response.into_body().into_reader()).take(MAX_LENGTH))
    }
}

impl Engine for Server {
    fn prefill(&mut self, _: u64, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let prompt = engine::new_prompt(&self.text, self.characters(tokens as f64));
        let (start, mut run) = (Instant::now(), Run::default());
        for line in self.stream(&prompt)?.lines() {
            let line = line.map_err(|error| self.broken_off(error))?;
            let position = run.line(&line, start.elapsed().as_secs_f64(), tokens)?;
            // Leaving here closes the connection.
            ensure!(position.is_none_or(&mut *on_progress), "stopped");
        }
        let (run, model) = (run.end()?, &self.model);
        let answered = run.model.as_ref().unwrap_or(model);
        let other = format!("the model that answered is {answered}, not {model}");
        ensure!(answered == model, other);
        let (characters, counted) = (prompt.chars().count() as f64, run.prompt_tokens as f64);
        self.counted.push((characters, counted));
        Ok(run)
    }
}

/// No proxy and no redirects: they could only lead away from this machine.
fn agent(timeout: Option<Duration>, silence: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .timeout_connect(Some(Duration::from_secs(2)))
        .timeout_per_read(silence)
        .timeout_global(timeout);
    config.build().into()
}

fn usual_url(home: Option<&Path>) -> String {
    let settings = home.map(|home| home.join(".internal/http-server-config.json"));
    let bytes = settings.and_then(|path| files::read(&path).ok());
    let settings: Value = serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default();
    let port = NonZeroU16::deserialize(&settings["port"]).map_or(1234, NonZeroU16::get);
    format!("http://127.0.0.1:{port}")
}

fn find(wanted: Option<&str>, mut loaded: Vec<LoadedModel>) -> Result<LoadedModel> {
    let is_wanted = |one: &LoadedModel, name| name == one.identifier || name == one.model;
    loaded.retain(|one| wanted.is_none_or(|name| is_wanted(one, name)));
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
