//! Prefills over HTTP: LM Studio's REST interface (0.4.0 and later), or the `OpenAI` one that every server has.
//!
//! Fields as in lmstudio-ai/docs, `1_developer/2_rest/{list,chat,streaming-events}.md`. Engines that speak only the
//! `OpenAI` interface tell their progress in comments: `: keepalive 512/2019` (mlx-lm), `: prompt-progress` (mlx-engine).

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::{Agent, RequestBuilder};

use super::answer::Answer;
use super::measure::{OnProgress, Prefill};
use crate::files;

/// How often it is looked whether to go on.
pub const TICK: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(30);
/// No answer, and no line of a stream, is longer, in bytes.
const MAX_LENGTH: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum ServerError {
    /// Which may pass, where the server is being started.
    NotThere(String),
    Refused(String),
    /// By `on_progress`.
    Ended,
}

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
}

/// Where the server of an LM Studio home listens: this machine, at the port that its settings name.
pub fn base_url(home: Option<&Path>) -> String {
    let settings = home.map(|home| home.join(".internal/http-server-config.json"));
    let bytes = settings
        .and_then(|path| files::read(&path).ok())
        .unwrap_or_default();
    let settings: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let port = settings["port"]
        .as_u64()
        .filter(|port| (1..65_536).contains(port));
    format!("http://127.0.0.1:{}", port.unwrap_or(1234))
}

/// A URL as it was typed, if it can be a server's: plain HTTP, no path.
pub fn parse_url(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    let rest = text.strip_prefix("http://").unwrap_or_default();
    let uri = text.parse::<ureq::http::Uri>().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default();
    if host.is_empty() || rest.is_empty() || rest.contains(['/', '?', '#', '@']) {
        return Err("give it as http://HOST:PORT; lmpatch speaks no TLS".to_owned());
    }
    Ok(text.to_owned())
}

impl Server {
    /// The server at `base`; nothing is sent yet.
    pub fn new(base: String, silence: Duration) -> Self {
        let token = std::env::var("LM_API_TOKEN").ok();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Self {
            base,
            authorization,
            silence,
        }
    }

    /// Its models; none where it has only the `OpenAI` interface.
    pub fn models(&self) -> Result<Option<Vec<Model>>, ServerError> {
        #[derive(Deserialize)]
        struct List {
            models: Vec<Model>,
        }
        let request = agent(Some(TIMEOUT)).get(format!("{}/api/v1/models", self.base));
        let mut response = self
            .authorized(request)
            .call()
            .map_err(|e| self.failed(&e))?;
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_LENGTH)
            .read_to_vec();
        let body = body.map_err(|error| self.failed(&error))?;
        if matches!(status, 401 | 403) {
            return Err(refusal(status, &body));
        }
        let list = serde_json::from_slice::<List>(&body);
        Ok(list.ok().map(|list| list.models))
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        }
    }

    fn failed(&self, error: &ureq::Error) -> ServerError {
        let base = &self.base;
        ServerError::NotThere(format!(
            "no server answers at {base} ({error}); start it in LM Studio's Developer tab or with \
             `lms server start`, or name it with --url"
        ))
    }

    /// Asks `model` for one token behind `prompt`, which has about `tokens` tokens.
    ///
    /// A thread reads, so that a silent server can be left at any moment; the connection is closed then.
    pub fn prefill(
        &self,
        (model, is_v1): (&str, bool),
        (prompt, tokens): (&str, u64),
        on_progress: OnProgress<'_>,
    ) -> Result<Prefill, ServerError> {
        let connection = Connection(agent(None));
        let (sender, lines) = mpsc::channel();
        let (server, agent) = (self.clone(), connection.0.clone());
        let request = request(model, is_v1, prompt);
        thread::spawn(move || {
            let result = server.read(&agent, is_v1, &request, &sender);
            // Nobody listens any more where it was left.
            let _ = sender.send(result.map(|()| None));
        });
        let mut answer = Answer::new(model, is_v1, tokens);
        let mut last_sign = Instant::now();
        loop {
            let mut position = None;
            match lines.recv_timeout(TICK) {
                Ok(Ok(Some((seconds, line)))) => {
                    last_sign = Instant::now();
                    position = answer.line(seconds, &line)?;
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(None)) | Err(RecvTimeoutError::Disconnected) => return answer.end(),
                Err(RecvTimeoutError::Timeout) if last_sign.elapsed() > self.silence => {
                    let seconds = self.silence.as_secs();
                    return refuse(format!("the server said nothing for {seconds} seconds"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if on_progress(position).is_break() {
                return Err(ServerError::Ended);
            }
        }
    }

    fn read(
        &self,
        agent: &Agent,
        is_v1: bool,
        request: &Value,
        sender: &Sender<Result<Option<(f64, String)>, ServerError>>,
    ) -> Result<(), ServerError> {
        let start = Instant::now();
        let path = if is_v1 {
            "api/v1/chat"
        } else {
            "v1/chat/completions"
        };
        let post = agent
            .post(format!("{}/{path}", self.base))
            .content_type("application/json");
        let response = self.authorized(post).send(request.to_string());
        let response = response.map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").cloned();
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let mut body = BufReader::new(response.into_body().into_reader());
        let broken = |error| ServerError::NotThere(format!("the server broke off ({error})"));
        if status != 200 || !is_stream {
            let mut whole = Vec::new();
            body.take(MAX_LENGTH)
                .read_to_end(&mut whole)
                .map_err(broken)?;
            return Err(refusal(status, &whole));
        }
        loop {
            let mut line = String::new();
            let read = body.by_ref().take(MAX_LENGTH).read_line(&mut line);
            let seconds = start.elapsed().as_secs_f64();
            if read.map_err(broken)? == 0 || sender.send(Ok(Some((seconds, line)))).is_err() {
                return Ok(());
            }
        }
    }
}

/// No proxy: it could only lead away from this machine. No redirects: they would carry the token along.
fn agent(timeout: Option<Duration>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0);
    let config = config.timeout_connect(Some(Duration::from_secs(2)));
    config.timeout_global(timeout).build().into()
}

/// A request that is ended, also in the middle of a read, when this is dropped.
struct Connection(Agent);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.clone().shutdown();
    }
}

/// One token, nothing random, nothing kept.
fn request(model: &str, is_v1: bool, prompt: &str) -> Value {
    if is_v1 {
        return json!({ "model": model, "input": prompt, "stream": true, "max_output_tokens": 1,
                       "temperature": 0, "store": false });
    }
    // mlx_engine.server insists on top_k; with temperature 0 it decides nothing.
    json!({ "model": model, "messages": [{ "role": "user", "content": prompt }], "stream": true,
            "stream_options": { "include_usage": true }, "max_tokens": 1, "temperature": 0, "top_k": 1 })
}

pub fn refuse<T>(why: String) -> Result<T, ServerError> {
    Err(ServerError::Refused(why))
}

/// What an answer that is no stream says.
fn refusal(status: u16, body: &[u8]) -> ServerError {
    if matches!(status, 401 | 403) {
        let why = "the server asks for an API token; set LM_API_TOKEN to one from LM Studio's Developer settings";
        return ServerError::Refused(why.to_owned());
    }
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = || {
        String::from_utf8_lossy(body)
            .trim()
            .chars()
            .take(200)
            .collect()
    };
    let said = reason(&value).unwrap_or_else(text);
    ServerError::Refused(format!("the server answered {status}: {said}"))
}

/// The reason in `{"error":{"message":…}}` or `{"error":…}`.
pub fn reason(data: &Value) -> Option<String> {
    let error = data.get("error").filter(|error| !error.is_null())?;
    let text = error.get("message").unwrap_or(error);
    Some(
        text.as_str()
            .map_or_else(|| text.to_string(), str::to_owned),
    )
}
