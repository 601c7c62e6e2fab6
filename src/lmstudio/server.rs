//! LM Studio's local REST API, version 1 (LM Studio 0.4.0 and later): which models are loaded, unload one, load one.
//!
//! Routes and fields are those of the public documentation, `1_developer/2_rest/{list,load,unload}.md` in
//! lmstudio-ai/docs. Where its dated versions differ, every one of them is understood and the newest is spoken.

use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder};

use super::chat::Api;
use crate::files;

/// The port that LM Studio's server has unless its owner chose another one.
pub const DEFAULT_PORT: u16 = 1234;

/// The environment variable with the token that a server with authentication asks for.
pub const TOKEN_VARIABLE: &str = "LM_API_TOKEN";

/// No answer is longer than this, in bytes: a list of a thousand models has about one million.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// How long the server is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until it takes a connection.
    pub connect: Duration,
    /// Until it has answered in whole.
    pub answer: Duration,
    /// The same where a model is loaded: a few hundred gigabytes come from a disk.
    pub load: Duration,
}

impl Patience {
    /// For a question whose answer is good to have and not needed.
    pub const SHORT: Self = Self {
        connect: Duration::from_secs(1),
        answer: Duration::from_secs(2),
        load: Duration::from_secs(2),
    };
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(30),
            load: Duration::from_secs(600),
        }
    }
}

/// LM Studio's server.
#[derive(Debug, Clone)]
pub struct Server {
    /// `http://127.0.0.1:1234`, without a slash at its end.
    base: String,
    authorization: Option<String>,
    patience: Patience,
    agent: Agent,
}

/// A model that is on disk, and its loaded instances.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Model {
    /// What it is loaded by: `qwen/qwen3-4b`.
    pub key: String,
    /// `mlx`, `gguf`, or unknown.
    #[serde(default)]
    pub format: Option<String>,
    /// The instances that are loaded now.
    #[serde(default)]
    pub loaded_instances: Vec<Instance>,
}

impl Model {
    /// Whether an MLX engine runs it.
    #[must_use]
    pub fn is_mlx(&self) -> bool {
        self.format.as_deref() == Some("mlx")
    }
}

/// One loaded instance of a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// What it is unloaded by; the model's key, or with a number at its end.
    pub id: String,
    /// What it was loaded with.
    #[serde(default)]
    pub config: InstanceConfig,
}

/// What an instance was loaded with, as far as an MLX engine takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct InstanceConfig {
    /// How many tokens its context has.
    #[serde(default, deserialize_with = "whole_number")]
    pub context_length: Option<u64>,
    /// How many predictions it makes at a time.
    #[serde(default, deserialize_with = "whole_number")]
    pub parallel: Option<u64>,
}

/// A model that is on disk, as version 0 of the interface tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelV0 {
    /// What it is asked for by.
    pub id: String,
    /// `mlx` or `gguf`.
    #[serde(default)]
    pub compatibility_type: Option<String>,
    /// The context that it was loaded with, in tokens; none where it is not loaded.
    #[serde(default, deserialize_with = "whole_number")]
    pub loaded_context_length: Option<u64>,
}

/// An answer that has begun.
pub struct Opened {
    /// Whether it is a stream of events.
    pub is_stream: bool,
    /// The rest of it.
    pub body: ureq::BodyReader<'static>,
}

impl Opened {
    /// All of it, where it is no stream.
    pub fn json(&mut self) -> Result<Value, Trouble> {
        let mut body = Vec::new();
        let read = (&mut self.body).take(MAX_ANSWER).read_to_end(&mut body);
        read.map_err(|error| Trouble::CutOff(error.to_string()))?;
        parse(&body)
    }
}

/// A model that was just loaded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Loaded {
    /// The new instance; `model_instance_id` in the documentation of October 2025.
    #[serde(alias = "model_instance_id")]
    pub instance_id: String,
    /// What it was really loaded with, where the server says so; `config` in the documentation of October 2025.
    #[serde(default, alias = "config")]
    pub load_config: InstanceConfig,
}

/// Why the server did not do what it was asked.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody takes connections there; where.
    NotRunning(String),
    /// It took longer than it was given.
    TooSlow(Duration),
    /// It wants a token, or another one.
    Unauthorized,
    /// It does not know the route or the model; what it said.
    NotFound(String),
    /// It cannot do it now because the model is at work; what it said.
    Busy(String),
    /// It said no; the HTTP status and what it said.
    Refused(u16, String),
    /// What came is not what LM Studio answers; what is wrong with it.
    Unreadable(String),
    /// It began to answer and broke off; how.
    CutOff(String),
    /// The user wanted to stop.
    Stopped,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning(base) => write!(
                f,
                "LM Studio's server does not answer at {base}; start it in LM Studio's Developer tab or with \
                 `lms server start`, or name it with --url"
            ),
            Self::TooSlow(patience) => {
                write!(
                    f,
                    "LM Studio's server did not answer within {} seconds",
                    patience.as_secs_f64()
                )
            }
            Self::Unauthorized => write!(
                f,
                "LM Studio's server asks for an API token; set {TOKEN_VARIABLE} to one from its Developer settings"
            ),
            Self::NotFound(said) => write!(f, "LM Studio's server does not know that ({said})"),
            Self::Busy(said) => write!(f, "LM Studio says that the model is at work ({said})"),
            Self::Refused(status, said) => {
                write!(f, "LM Studio's server answered {status}: {said}")
            }
            Self::Unreadable(why) => write!(
                f,
                "what answered is not LM Studio's server as lmpatch knows it: {why}"
            ),
            Self::CutOff(how) => write!(
                f,
                "LM Studio's server broke off ({how}); did the model or the app end?"
            ),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for Trouble {}

/// Where the server of an LM Studio home listens: always this machine, at the port that its settings name.
#[must_use]
pub fn base_url(home: &Path) -> String {
    let settings = files::read(&home.join(".internal/http-server-config.json")).ok();
    let settings: Option<Value> = settings.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let port = settings
        .as_ref()
        .and_then(|settings| settings.get("port")?.as_u64());
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(DEFAULT_PORT);
    format!("http://127.0.0.1:{port}")
}

/// A URL as the user gave it, if it can be the server's: plain HTTP, no path.
pub fn parse_url(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    let rest = text
        .strip_prefix("http://")
        .ok_or("give it as http://HOST:PORT; lmpatch speaks no TLS")?;
    let uri: ureq::http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    if rest.contains(['/', '?', '#', '@']) || uri.host().is_none_or(str::is_empty) {
        return Err("give it as http://HOST:PORT".to_owned());
    }
    Ok(text.to_owned())
}

impl Server {
    /// The server at `base`, as [`base_url`] or [`parse_url`] gives it. Nothing is sent yet.
    #[must_use]
    pub fn new(base: String, token: Option<&str>, patience: Patience) -> Self {
        // No proxy: it could only lead away from this machine. No redirects: they would carry the token along.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(patience.connect))
            .user_agent(concat!("lmpatch/", env!("CARGO_PKG_VERSION")));
        let authorization = token
            .filter(|token| !token.is_empty())
            .map(|token| format!("Bearer {token}"));
        Self {
            base,
            authorization,
            patience,
            agent: config.build().into(),
        }
    }

    /// Every model on disk, and what is loaded of it: `GET /api/v1/models`.
    pub fn models(&self) -> Result<Vec<Model>, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            models: Vec<Model>,
        }
        let answer: Answer = self.get("/api/v1/models").map_err(|trouble| match trouble {
            Trouble::NotFound(_) => Trouble::NotFound(
                "its REST API version 1 came with LM Studio 0.4.0; update LM Studio, or load the models again there"
                    .to_owned(),
            ),
            other => other,
        })?;
        Ok(answer.models)
    }

    /// The best interface that it has. Fails where nobody answers, or a token is wanted.
    pub fn api(&self) -> Result<Api, Trouble> {
        match self.models() {
            Ok(_) => return Ok(Api::V1),
            Err(Trouble::NotFound(_) | Trouble::Refused(..) | Trouble::Unreadable(_)) => {}
            Err(trouble) => return Err(trouble),
        }
        Ok(if self.models_v0().is_ok() {
            Api::V0
        } else {
            Api::OpenAi
        })
    }

    /// Every model on disk, as version 0 tells it: `GET /api/v0/models`.
    pub fn models_v0(&self) -> Result<Vec<ModelV0>, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            data: Vec<ModelV0>,
        }
        self.get::<Answer>("/api/v0/models")
            .map(|answer| answer.data)
    }

    /// Sends a request whose answer may take as long as it likes and may come as a stream of events.
    pub fn open(&self, path: &str, body: &Value) -> Result<Opened, Trouble> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let patience = self.patience.connect;
        let response = request
            .content_type("application/json")
            .send(body.to_string());
        let response = response.map_err(|error| self.trouble(&error, patience))?;
        if !response.status().is_success() {
            let refusal = read::<Value>(response, |error| self.trouble(error, patience));
            return Err(refusal
                .err()
                .unwrap_or_else(|| Trouble::Unreadable("no answer".to_owned())));
        }
        let kind = response
            .headers()
            .get("content-type")
            .and_then(|kind| kind.to_str().ok());
        let is_stream = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
        Ok(Opened {
            is_stream,
            body: response.into_body().into_reader(),
        })
    }

    /// Loads a model, with this context in tokens and this many predictions at a time where they are given:
    /// `POST /api/v1/models/load`.
    ///
    /// The documentation lists `parallel` among what an instance has, not among what can be asked for; a server that
    /// refuses the unknown field is asked again without it. What was really applied is for the caller to read back.
    pub fn load(
        &self,
        model: &str,
        context_length: Option<u64>,
        parallel: Option<u64>,
    ) -> Result<Loaded, Trouble> {
        let mut request = json!({ "model": model, "echo_load_config": true });
        insert(&mut request, "context_length", context_length);
        insert(&mut request, "parallel", parallel);
        let path = "/api/v1/models/load";
        match self.post(path, &request, self.patience.load) {
            Err(Trouble::Refused(400 | 422, _)) if parallel.is_some() => {
                insert(&mut request, "parallel", None);
                self.post(path, &request, self.patience.load)
            }
            other => other,
        }
    }

    /// Unloads one instance: `POST /api/v1/models/unload`.
    pub fn unload(&self, instance_id: &str) -> Result<(), Trouble> {
        let request = json!({ "instance_id": instance_id });
        self.post::<Value>("/api/v1/models/unload", &request, self.patience.answer)
            .map(drop)
    }

    fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, Trouble> {
        let patience = self.patience.answer;
        let request = self.prepare(self.agent.get(format!("{}{path}", self.base)), patience);
        read(
            request
                .call()
                .map_err(|error| self.trouble(&error, patience))?,
            |error| self.trouble(error, patience),
        )
    }

    fn post<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<T, Trouble> {
        let request = self.prepare(self.agent.post(format!("{}{path}", self.base)), patience);
        let response = request
            .content_type("application/json")
            .send(body.to_string());
        read(
            response.map_err(|error| self.trouble(&error, patience))?,
            |error| self.trouble(error, patience),
        )
    }

    fn prepare<B>(&self, request: RequestBuilder<B>, patience: Duration) -> RequestBuilder<B> {
        let request = request.config().timeout_global(Some(patience)).build();
        match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        }
    }

    fn trouble(&self, error: &ureq::Error, patience: Duration) -> Trouble {
        let nobody = || Trouble::NotRunning(self.base.clone());
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect)
            | ureq::Error::ConnectionFailed
            | ureq::Error::HostNotFound => nobody(),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => nobody(),
            ureq::Error::Timeout(_) => Trouble::TooSlow(patience),
            ureq::Error::Io(error) if is_hang_up(error.kind()) => {
                Trouble::CutOff(error.to_string())
            }
            other => Trouble::Unreadable(other.to_string()),
        }
    }
}

fn is_hang_up(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

fn insert(request: &mut Value, key: &str, value: Option<u64>) {
    let Some(request) = request.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => request.insert(key.to_owned(), value.into()),
        None => request.remove(key),
    };
}

fn read<T: for<'de> Deserialize<'de>>(
    mut response: Response<Body>,
    trouble: impl FnOnce(&ureq::Error) -> Trouble,
) -> Result<T, Trouble> {
    let status = response.status().as_u16();
    let body = response
        .body_mut()
        .with_config()
        .limit(MAX_ANSWER)
        .read_to_vec();
    let body = body.map_err(|error| trouble(&error))?;
    if (200..300).contains(&status) {
        return parse(&body);
    }
    let said = message(&body);
    Err(match status {
        401 | 403 => Trouble::Unauthorized,
        404 => Trouble::NotFound(said),
        409 | 423 | 429 | 503 => Trouble::Busy(said),
        _ => Trouble::Refused(status, said),
    })
}

/// The body of an answer that says it is one.
fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Trouble> {
    // LM Studio answers 200 to routes that it does not know, and says so in the body.
    let said = message(body);
    if said.starts_with("Unexpected endpoint") {
        return Err(Trouble::NotFound(said));
    }
    serde_json::from_slice(body).map_err(|error| Trouble::Unreadable(error.to_string()))
}

/// What an error answer says: `{"error":{"message":…}}`, `{"error":…}`, or the start of whatever came.
fn message(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = value.get("error");
    let text = error.and_then(|error| error.get("message").unwrap_or(error).as_str());
    let text = text.map_or_else(|| String::from_utf8_lossy(body), Into::into);
    let text: String = text.trim().chars().take(200).collect();
    if text.is_empty() {
        "no reason given".to_owned()
    } else {
        text
    }
}

/// The documentation says "number"; whatever is no whole number of tokens is taken for not said.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value
        .as_u64()
        .or_else(|| value.to_string().strip_suffix(".0")?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dated_replies_to_a_load_are_understood() {
        let config = InstanceConfig {
            context_length: Some(16384),
            parallel: None,
        };
        for reply in [
            r#"{"type":"llm","instance_id":"a","status":"loaded","load_config":{"context_length":16384}}"#,
            r#"{"model_instance_id":"a","config":{"context_length":16384.0,"num_experts":0},"load_time_seconds":9.1}"#,
        ] {
            let loaded: Loaded = serde_json::from_str(reply).unwrap();
            assert_eq!(
                loaded,
                Loaded {
                    instance_id: "a".to_owned(),
                    load_config: config
                },
                "{reply}"
            );
        }
        let bare: Loaded = serde_json::from_str(r#"{"instance_id":"a"}"#).unwrap();
        assert_eq!(bare.load_config, InstanceConfig::default());
    }

    #[test]
    fn urls_are_plain_http_without_a_path() {
        assert_eq!(
            parse_url("http://127.0.0.1:1234/").as_deref(),
            Ok("http://127.0.0.1:1234")
        );
        assert_eq!(
            parse_url("http://mac.local:80").as_deref(),
            Ok("http://mac.local:80")
        );
        for wrong in [
            "",
            "127.0.0.1:1234",
            "https://127.0.0.1",
            "http://",
            "http://a/b",
            "http://a b",
            "http://u@h:1",
        ] {
            assert!(parse_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn errors_say_what_the_server_said() {
        assert_eq!(
            message(br#"{"error":{"message":"no such model","code":"x"}}"#),
            "no such model"
        );
        assert_eq!(
            message(br#"{"error":"Unexpected endpoint"}"#),
            "Unexpected endpoint"
        );
        assert_eq!(message(b"<html>"), "<html>");
        assert_eq!(message(b" "), "no reason given");
        assert_eq!(message("ü".repeat(900).as_bytes()).chars().count(), 200);
    }
}
