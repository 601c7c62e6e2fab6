//! Prefills over HTTP: LM Studio's REST interface (0.4.0 and later), or the `OpenAI` one that every server has.
//!
//! Fields as in lmstudio-ai/docs, `1_developer/2_rest/{list,chat,streaming-events}.md`. Engines that speak only the
//! `OpenAI` interface tell their progress in comments: `: keepalive 512/2019` (mlx-lm), `: prompt-progress` (mlx-engine).

use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder, Timeout};

use super::answer::{Answer, reason};
use super::args::BenchArgs;
use super::measure::{OnProgress, silent};
use super::results::Run;
use crate::{command, files};

/// For a list of models.
const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer is longer, in bytes.
const MAX_LENGTH: u64 = 64 << 20;

/// A model that a server has.
#[derive(Debug, Clone, Deserialize)]
pub struct Model {
    pub key: String,
    /// `mlx` or `gguf`.
    pub format: Option<String>,
    pub max_context_length: Option<u64>,
    #[serde(default)]
    pub loaded_instances: Vec<Instance>,
}

impl Model {
    pub fn is_mlx(&self) -> bool {
        self.format.as_deref() == Some("mlx")
    }
}

/// A loaded model.
#[derive(Debug, Clone, Deserialize)]
pub struct Instance {
    pub id: String,
    /// What it was loaded with: `context_length` and more.
    #[serde(default)]
    pub config: Value,
}

/// A server.
#[derive(Debug, Clone)]
pub struct Server {
    /// `http://127.0.0.1:1234`
    base: String,
    authorization: Option<String>,
    /// How long it may say nothing.
    silence: Duration,
    /// For prefills; shutting it down closes their connections.
    agent: Agent,
}

impl Server {
    /// The server that `args` name, or that of an LM Studio home: this machine, at the port in its settings.
    pub fn new(args: &BenchArgs, home: Option<&Path>, agent: &Agent) -> Self {
        let settings = home.map(|home| home.join(".internal/http-server-config.json"));
        let bytes = settings.and_then(|path| files::read(&path).ok());
        let settings: Value =
            serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default();
        let port = settings["port"].as_u64();
        let port = port
            .filter(|port| (1..65_536).contains(port))
            .unwrap_or(1234);
        let usual = || format!("http://127.0.0.1:{port}");
        let token = std::env::var("LM_API_TOKEN").ok();
        Self {
            base: args.url.clone().unwrap_or_else(usual),
            authorization: token.map(|token| format!("Bearer {token}")),
            silence: Duration::from_secs(args.timeout),
            agent: agent.clone(),
        }
    }

    /// Its models; `None` if it has only the `OpenAI` interface.
    pub fn models(&self) -> Result<Option<Vec<Model>>> {
        let request = agent(Some(TIMEOUT), None).get(format!("{}/api/v1/models", self.base));
        let response = self.authorized(request).call();
        let (status, body) = self.whole(response.map_err(|error| self.failed(error, false))?)?;
        ensure!(!matches!(status, 401 | 403), refusal(status, &body));
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let models = list.get("models").map(Vec::deserialize);
        Ok(models.and_then(Result::ok))
    }

    fn whole(&self, mut response: Response<Body>) -> Result<(u16, Vec<u8>)> {
        let body = response.body_mut().read_to_vec();
        let body = body.map_err(|error| self.failed(error, true))?;
        Ok((response.status().as_u16(), body))
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        }
    }

    /// What went wrong, before or after the server began to answer.
    fn failed(&self, error: impl Into<ureq::Error>, is_answering: bool) -> Error {
        let base = &self.base;
        match error.into() {
            ureq::Error::Timeout(Timeout::PerRead) => silent(self.silence),
            error if is_answering => anyhow!("the server broke off ({error})"),
            error => anyhow!(
                "no server answers at {base} ({error}); start it in LM Studio's Developer tab or with \
                 `lms server start`, or name it with --url"
            ),
        }
    }

    /// Its models, once it answers: a restarted server takes a while.
    pub fn wait(&self) -> Result<Option<Vec<Model>>> {
        command::retry(self.silence, || self.models())
    }

    /// Asks `model` for one token after `prompt`, which has about `tokens` tokens.
    pub fn prefill(
        &self,
        (model, is_v1): (&str, bool),
        (prompt, tokens): (&str, u64),
        on_progress: OnProgress<'_>,
    ) -> Result<Run> {
        let start = Instant::now();
        let (path, request) = request(model, is_v1, prompt);
        let mut answer = Answer {
            model,
            is_v1,
            tokens,
            ..Answer::default()
        };
        for line in self.stream(path, &request)?.lines() {
            let line = line.map_err(|error| self.failed(error, true))?;
            let position = answer.line(start.elapsed().as_secs_f64(), &line)?;
            // Leaving here closes the connection.
            ensure!(position.is_none_or(&mut *on_progress), "stopped");
        }
        answer.end()
    }

    fn stream(&self, path: &str, request: &Value) -> Result<impl BufRead> {
        let post = self.agent.post(format!("{}/{path}", self.base));
        let post = self.authorized(post.content_type("application/json"));
        let response = post.send(request.to_string());
        let response = response.map_err(|error| self.failed(error, false))?;
        let kind = response.headers().get("content-type").cloned();
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if response.status() != 200 || !is_stream {
            let (status, body) = self.whole(response)?;
            return Err(refusal(status, &body));
        }
        Ok(BufReader::new(response.into_body().into_reader()).take(MAX_LENGTH))
    }
}

/// No proxy: it could only lead away from this machine. No redirects: they would carry the token along.
pub fn agent(timeout: Option<Duration>, silence: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0);
    let config = config.timeout_connect(Some(Duration::from_secs(2)));
    let config = config.timeout_per_read(silence);
    config.timeout_global(timeout).build().into()
}

/// The path and body of a request for one token, with nothing random and nothing stored.
fn request(model: &str, is_v1: bool, prompt: &str) -> (&'static str, Value) {
    if is_v1 {
        let body = json!({ "model": model, "input": prompt, "stream": true, "max_output_tokens": 1,
                           "temperature": 0, "store": false });
        return ("api/v1/chat", body);
    }
    // mlx_engine.server insists on top_k; with temperature 0 it decides nothing.
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": prompt }], "stream": true,
                       "stream_options": { "include_usage": true }, "max_tokens": 1, "temperature": 0, "top_k": 1 });
    ("v1/chat/completions", body)
}

/// What an answer that is no stream says.
fn refusal(status: u16, body: &[u8]) -> Error {
    if matches!(status, 401 | 403) {
        let settings = "LM Studio's Developer settings";
        return anyhow!(
            "the server asks for a valid API token; set LM_API_TOKEN to one from {settings}"
        );
    }
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = reason(&value).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let said: String = said.trim().chars().take(200).collect();
    anyhow!("the server answered {status}: {said}")
}
