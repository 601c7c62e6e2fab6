//! Prefills over HTTP: LM Studio's REST interface (0.4.0 and later), or the `OpenAI` one that every server has.
//!
//! Fields as in lmstudio-ai/docs, `1_developer/2_rest/{list,chat,streaming-events}.md`. Engines that speak only the
//! `OpenAI` interface tell their progress in comments: `: keepalive 512/2019` (mlx-lm), `: prompt-progress` (mlx-engine).

use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::{Request, Response};
use ureq::{Agent, Body, Timeout};

use super::args::BenchArgs;
use super::engine::{Engine, OnProgress, Run, reason, silent};
use super::prompt::{self, CHARACTERS_PER_TOKEN, context_for};
use super::results::Results;
use crate::output::quoted;
use crate::{command, files};

/// How long a server may be away after `lms load`, which itself needs one.
const RESTART: Duration = Duration::from_secs(120);
/// For a list of models.
const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer is longer, in bytes.
const MAX_LENGTH: u64 = 64 << 20;
/// The least and the most that any tokenizer makes a token of, on average.
const CHARACTERS_OF_A_TOKEN: (f64, f64) = (0.25, 16.0);

#[derive(Debug, Deserialize)]
struct Model {
    key: String,
    /// `mlx` or `gguf`.
    format: Option<String>,
    max_context_length: Option<u64>,
    loaded_instances: Option<Vec<Instance>>,
}

#[derive(Debug, Deserialize)]
struct Instance {
    id: String,
    /// What it was loaded with: `context_length` and more.
    #[serde(default)]
    config: Value,
}

/// A server, and the model on it that is measured.
#[derive(Debug, Clone)]
pub struct Server {
    base: String,
    silence: Duration,
    /// How long it may be away after a load, which a command may be for.
    restart: Duration,
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
        let mut server = Self {
            base: args.url.clone().unwrap_or_else(|| usual_url(home)),
            silence,
            restart: match &args.reload {
                Some(_) => silence,
                None => silence.min(RESTART),
            },
            agent: agent(None, Some(silence)),
            is_v1: false,
            model: args.model.clone().unwrap_or_default(),
            text: prompt::text(args.prompt_file.as_deref())?,
            counted: Vec::new(),
        };
        results.api = "openai";
        if let Some(mut models) = server.models()? {
            models.retain(|model| model.format.as_deref() == Some("mlx"));
            let (model, loaded) = find(args.model.as_deref(), &models)?;
            results.context_length = loaded.config["context_length"].as_u64();
            check_context(args, results, model)?;
            (server.is_v1, results.api) = (true, "v1");
            server.model.clone_from(&loaded.id);
        }
        let unknown = "this server does not tell its models; name one with --model";
        ensure!(!server.model.is_empty(), unknown);
        results.model.clone_from(&server.model);
        Ok(server)
    }

    /// Its models; `None` if it has only the `OpenAI` interface.
    fn models(&self) -> Result<Option<Vec<Model>>> {
        let response = self.send(&agent(Some(TIMEOUT), None), "api/v1/models", None)?;
        let body = response.into_body().read_to_vec();
        let body = body.map_err(|error| self.broken_off(error))?;
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let models = list.get("models").and_then(Value::as_array);
        // What is no model, or one that cannot be measured, may have other fields.
        let read = |one| Model::deserialize(one).ok();
        Ok(models.map(|models| models.iter().filter_map(read).collect()))
    }

    /// How many characters make a prompt of `tokens` tokens. Goes by two past prompts, since the template's count, too.
    fn characters(&self, tokens: f64) -> f64 {
        let distance = |from: f64, past: &(f64, f64)| (past.1 - from).abs();
        let by_length = |a: &&_, b: &&_| distance(tokens, a).total_cmp(&distance(tokens, b));
        let Some(near) = self.counted.iter().min_by(by_length) else {
            return tokens * CHARACTERS_PER_TOKEN;
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
        command::retry(self.restart, || self.models().map(drop))
    }

    /// Closes the connections of prefills, which ends these.
    pub fn hang_up(&self) {
        self.agent.clone().shutdown();
    }

    /// The answer to a request, which is a POST if it has a body. Fails if there is none, or if the token is refused.
    fn send(&self, agent: &Agent, path: &str, body: Option<&Value>) -> Result<Response<Body>> {
        let mut request = Request::builder().uri(format!("{}/{path}", self.base));
        if let Ok(token) = std::env::var("LM_API_TOKEN") {
            request = request.header("Authorization", format!("Bearer {}", token.trim()));
        }
        let sent = match body {
            None => agent.run(request.body(())?),
            Some(body) => {
                let request = request.method("POST");
                let request = request.header("Content-Type", "application/json");
                agent.run(request.body(body.to_string())?)
            }
        };
        let base = &self.base;
        let response = sent.map_err(|error| match error {
            ureq::Error::Timeout(Timeout::PerRead) => silent(self.silence),
            error => anyhow!(
                "no server answers at {base} ({error}); start it in LM Studio's Developer tab or with \
                 `lms server start`, or name it with --url"
            ),
        })?;
        ensure!(
            !matches!(response.status().as_u16(), 401 | 403),
            "the server asks for a valid API token; set LM_API_TOKEN to one from LM Studio's Developer settings"
        );
        Ok(response)
    }

    fn broken_off(&self, error: impl Into<ureq::Error>) -> Error {
        match error.into() {
            ureq::Error::Timeout(Timeout::PerRead) => silent(self.silence),
            error => anyhow!("the server broke off ({error})"),
        }
    }

    /// The answer to a request for one token, with nothing random and nothing stored.
    fn stream(&self, prompt: &str) -> Result<impl BufRead> {
        let model = &self.model;
        let (path, request) = if self.is_v1 {
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
        let mut response = self.send(&self.agent, path, Some(&request))?;
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
        let characters = self.characters(tokens as f64);
        let prompt = prompt::new(&self.text, characters);
        let (start, mut run) = (Instant::now(), Run::default());
        for line in self.stream(&prompt)?.lines() {
            let line = line.map_err(|error| self.broken_off(error))?;
            let position = run.line(&line, start.elapsed().as_secs_f64(), tokens)?;
            let model = &self.model;
            let answered = run.model.as_ref().unwrap_or(model);
            let other = format!("the model that answered is {answered}, not {model}");
            ensure!(answered == model, other);
            // Leaving here closes the connection.
            ensure!(position.is_none_or(&mut *on_progress), "stopped");
        }
        let run = run.end()?;
        let counted = run.prompt_tokens as f64;
        self.counted.push((prompt.chars().count() as f64, counted));
        Ok(run)
    }
}

/// No proxy and no redirects: they could only lead away from this machine.
fn agent(timeout: Option<Duration>, silence: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0);
    let config = config.timeout_connect(Some(Duration::from_secs(2)));
    let config = config.timeout_per_read(silence);
    config.timeout_global(timeout).build().into()
}

fn usual_url(home: Option<&Path>) -> String {
    let settings = home.map(|home| home.join(".internal/http-server-config.json"));
    let bytes = settings.and_then(|path| files::read(&path).ok());
    let settings: Value = serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default();
    let port = settings["port"].as_u64();
    let port = port.filter(|port| (1..65_536).contains(port));
    format!("http://127.0.0.1:{}", port.unwrap_or(1234))
}

/// Fails if prompts do not fit into the context that `model` has or, where sizes are set, can have.
fn check_context(args: &BenchArgs, results: &Results, model: &Model) -> Result<()> {
    let needed = context_for(results.prompt_tokens);
    let most = model.max_context_length.unwrap_or(u64::MAX);
    let what = format!("prompts need a context of {needed}, the model has");
    let advice = "give fewer --prompt-tokens or smaller --sizes";
    ensure!(needed <= most, "{what} {most}; {advice}");
    let has = results.context_length.unwrap_or(most);
    let advice = "with --sizes, lmpatch raises it and then restores it";
    let is_enough = needed <= has || !args.sizes.is_empty();
    ensure!(is_enough, "{what} {has}; {advice}");
    Ok(())
}

/// The loaded one of these MLX models that `wanted` names by key or identifier, or the only one.
fn find<'m>(wanted: Option<&str>, models: &'m [Model]) -> Result<(&'m Model, &'m Instance)> {
    let loaded = |model: &'m Model| {
        let instances = model.loaded_instances.iter().flatten();
        instances.map(move |one| (model, one))
    };
    let mut found: Vec<_> = models.iter().flat_map(loaded).collect();
    if let Some(name) = wanted {
        // An identifier may be another model's key.
        let is_id = found.iter().any(|(_, one)| one.id == name);
        found.retain(|(model, one)| name == if is_id { &one.id } else { &model.key });
    }
    let keys: Vec<_> = models.iter().map(|model| &*model.key).collect();
    match (&found[..], wanted) {
        ([one], _) => Ok(*one),
        ([], None) => bail!("no MLX model is loaded; load one in LM Studio, or with `lms load`"),
        ([], Some(name)) if keys.contains(&name) => {
            let (context, key) = (context_for(16_384), quoted(name));
            bail!("{name} is not loaded; load it with `lms load {key} --context-length {context}`")
        }
        ([], Some(name)) => {
            let keys = keys.join(", ");
            bail!("LM Studio has no MLX model {name}; its MLX models are: {keys}")
        }
        _ => {
            let ids: Vec<_> = found.iter().map(|(_, one)| &*one.id).collect();
            let ids = ids.join(", ");
            bail!("several MLX models are loaded: {ids}; name one with --model")
        }
    }
}
