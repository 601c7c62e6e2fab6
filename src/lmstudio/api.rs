//! LM Studio's REST interface, as in lmstudio-ai/docs, `1_developer/2_rest/{list,chat,streaming-events}.md`.

use std::io::{BufRead as _, BufReader};
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body, Timeout};

use super::lms::LoadedModel;
use crate::files;

const BROKEN_OFF: &str = "the server broke off; did the model or the app end?";

/// One event of LM Studio's own stream of an answer; anything else is `OpenAI`'s.
#[derive(Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    #[serde(rename = "chat.start")]
    Start { model_instance_id: String },
    #[serde(rename = "model_load.start")]
    Load,
    #[serde(rename = "prompt_processing.progress")]
    Progress { progress: f64, seconds: Option<f64> },
    #[serde(rename = "reasoning.delta", alias = "message.delta")]
    Token,
    #[serde(rename = "chat.end")]
    End { result: Value },
    #[serde(other)]
    Other,
}

#[derive(Clone)]
pub struct Api {
    base: String,
    silence: Duration,
    agent: Agent,
}

impl Api {
    /// The server at `url`, or at the port in the home's settings; it may be silent for `silence`.
    pub fn new(url: Option<&str>, home: Option<&Path>, silence: Duration) -> Self {
        let base = url.map_or_else(|| usual_url(home), str::to_owned);
        let base = base.trim_end_matches('/').trim_end_matches("/v1");
        let scheme = if base.contains("://") { "" } else { "http://" };
        Self {
            base: scheme.to_owned() + base,
            silence,
            agent: agent(silence),
        }
    }

    /// Its loaded MLX models; `None` if it has only the `OpenAI` interface.
    pub fn loaded(&self) -> Result<Option<Vec<LoadedModel>>> {
        let request = Request::get(format!("{}/api/v1/models", self.base)).body(())?;
        let response = self.send(&agent(self.silence), request)?;
        let status = response.status();
        ensure!(!status.is_server_error(), "the server answered {status}");
        let body = response.into_body().read_to_string();
        let body = body.map_err(|error| self.explain(error, BROKEN_OFF))?;
        let list: Value = serde_json::from_str(&body).unwrap_or_default();
        let Some(models) = list["models"].as_array() else {
            return Ok(None);
        };
        let mut loaded = Vec::new();
        let is_ours = |model: &&Value| model["format"] == "mlx" && model["type"] != "embedding";
        for model in models.iter().filter(is_ours) {
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

    /// Closes the connections of streams, which ends what is generated for them.
    pub fn hang_up(&self) {
        self.agent.clone().shutdown();
    }

    /// The lines of the answer to a request for a stream of events. Fails if it is refused.
    pub fn stream(
        &self,
        path: &str,
        request: &Value,
    ) -> Result<impl Iterator<Item = Result<String>>> {
        let post = Request::post(format!("{}/{path}", self.base));
        let post = post.header("Content-Type", "application/json");
        let mut response = self.send(&self.agent, post.body(request.to_string())?)?;
        let (status, body) = (response.status(), response.body_mut());
        if status != 200 || body.mime_type() != Some("text/event-stream") {
            let said = body.read_to_string().unwrap_or_default();
            let said: String = said.trim().chars().take(200).collect();
            bail!("the server answered {}: {said}", status.as_u16());
        }
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        Ok(lines.map(|line| line.map_err(|error| self.explain(error, BROKEN_OFF))))
    }

    fn send(&self, agent: &Agent, mut request: Request<impl AsSendBody>) -> Result<Response<Body>> {
        if let Ok(token) = std::env::var("LM_API_TOKEN") {
            let token = format!("Bearer {}", token.trim()).parse();
            let token = token.context("LM_API_TOKEN cannot be sent as it is")?;
            request.headers_mut().insert("Authorization", token);
        }
        let response = agent.run(request).map_err(|error| {
            let start = "start it in LM Studio's Developer tab or with `lms server start`";
            let base = &self.base;
            let what = format!("no server answers at {base}; {start}, or name it with --url");
            self.explain(error, &what)
        })?;
        ensure!(
            !matches!(response.status().as_u16(), 401 | 403),
            "the server asks for a valid API token; set LM_API_TOKEN to one from LM Studio's Developer settings"
        );
        Ok(response)
    }

    fn explain(&self, error: impl Into<ureq::Error>, what: &str) -> Error {
        match error.into() {
            ureq::Error::Timeout(Timeout::PerRead) => {
                let seconds = self.silence.as_secs();
                anyhow!("the server said nothing for {seconds} seconds")
            }
            error => anyhow!("{what} ({error})"),
        }
    }
}

/// No proxy and no redirects: they could only lead away from this machine.
fn agent(silence: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .max_redirects(0)
        .timeout_connect(Some(Duration::from_secs(2)))
        .timeout_per_read(Some(silence));
    config.build().into()
}

fn usual_url(home: Option<&Path>) -> String {
    let settings = home.map(|home| home.join(".internal/http-server-config.json"));
    let bytes = settings.and_then(|path| files::read(&path).ok());
    let settings: Value = serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default();
    let port = NonZeroU16::deserialize(&settings["port"]).map_or(1234, NonZeroU16::get);
    format!("http://127.0.0.1:{port}")
}

/// The reason in `{"error":{"message":…}}` or `{"error":…}`.
pub fn reason(data: &Value) -> Option<String> {
    let error = data.get("error").filter(|error| !error.is_null())?;
    let told = error.get("message").unwrap_or(error);
    Some(String::deserialize(told).unwrap_or_else(|_| told.to_string()))
}
