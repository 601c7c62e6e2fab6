//! PURE: what the lines of an event stream say about a prefill.

use anyhow::{Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::results::{Position, Run};

/// One event of LM Studio's own stream, which `direct.py` speaks too.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Event {
    #[serde(rename = "chat.start")]
    Start { model_instance_id: Value },
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

/// An answer that is coming in.
#[derive(Default)]
pub struct Answer<'a> {
    pub model: &'a str,
    pub is_v1: bool,
    /// About how many tokens the prompt has.
    pub tokens: u64,
    pub run: Run,
}

impl Answer<'_> {
    /// Takes a line that came after `seconds`; returns the position that it reports.
    pub fn line(&mut self, seconds: f64, line: &str) -> Result<Option<Position>> {
        let mut position = None;
        if let Some(comment) = line.strip_prefix(':').map(str::trim) {
            self.run.bare_steps += u64::from(comment == "prompt-progress");
            let last = comment.rsplit(' ').next().unwrap_or_default();
            let tokens = last.split_once('/').and_then(|(done, _)| done.parse().ok());
            position = tokens.map(|tokens| Position { tokens, seconds });
        } else if let Some(data) = line.strip_prefix("data:").filter(|d| d.trim() != "[DONE]") {
            let data = serde_json::from_str(data);
            let data: Value = data.map_err(|_| anyhow!("the server did not send JSON"))?;
            if let Some(why) = reason(&data) {
                bail!(why);
            }
            if self.is_v1 {
                position = self.event(seconds, data)?;
            } else {
                self.chunk(seconds, &data)?;
            }
        }
        self.run.positions.extend(position);
        Ok(position)
    }

    fn event(&mut self, seconds: f64, data: Value) -> Result<Option<Position>> {
        let run = &mut self.run;
        match serde_json::from_value(data).unwrap_or(Event::Other) {
            Event::Start { model_instance_id } => self.check_model(&model_instance_id)?,
            Event::Load => run.ignored = Some("LM Studio loaded the model first".to_owned()),
            Event::Progress {
                progress,
                seconds: told,
            } => {
                let (tokens, seconds) = (progress * self.tokens as f64, told.unwrap_or(seconds));
                return Ok(Some(Position { tokens, seconds }));
            }
            Event::Token => self.token(seconds),
            Event::End { result } => {
                let stats = &result["stats"];
                run.prompt_tokens = stats["input_tokens"].as_u64().unwrap_or(0);
                run.peak_memory_bytes = stats["peak_memory_bytes"].as_u64();
                run.engine = result["engine"].as_str().map(str::to_owned);
                let seconds = stats["time_to_first_token_seconds"].as_f64();
                if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
                    (run.prefill_seconds, run.source) = (seconds, "server");
                }
            }
            Event::Other => {}
        }
        Ok(None)
    }

    fn chunk(&mut self, seconds: f64, data: &Value) -> Result<()> {
        self.check_model(&data["model"])?;
        let choice = &data["choices"][0];
        let delta = &choice["delta"];
        let content = [&delta["content"], &delta["reasoning_content"]];
        let mut texts = content.into_iter().chain([&choice["finish_reason"]]);
        if texts.any(|text| text.as_str().is_some_and(|text| !text.is_empty())) {
            self.token(seconds);
        }
        let usage = &data["usage"];
        let run = &mut self.run;
        run.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        run.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(run.prompt_tokens);
        Ok(())
    }

    fn check_model(&self, answered: &Value) -> Result<()> {
        let (answered, model) = (answered.as_str().unwrap_or(self.model), self.model);
        ensure!(
            answered == model,
            "the model that answered is {answered}, not {model}"
        );
        Ok(())
    }

    /// The first token ends the prefill, unless the server says when that was.
    fn token(&mut self, seconds: f64) {
        let run = &mut self.run;
        if run.source.is_empty() {
            (run.prefill_seconds, run.source) = (seconds, "client");
        }
    }

    pub fn end(mut self) -> Result<Run> {
        let run = &mut self.run;
        let broken = "the server broke off before the first token; did the model or the app end?";
        ensure!(!run.source.is_empty(), broken);
        let prompt_tokens = run.prompt_tokens;
        let unknown = "the server did not report the prompt's token count";
        ensure!(prompt_tokens > 0, unknown);
        run.tokens_per_second = prompt_tokens as f64 / run.prefill_seconds;
        // Every prompt begins with the same chat template, so a few cached tokens are not a hit.
        let cached = run.cached_tokens.unwrap_or_default();
        if cached * 100 > prompt_tokens {
            run.ignored = Some("a part of it came out of the prompt cache".to_owned());
        }
        // The first comment comes before the first step.
        run.bare_steps = run.bare_steps.saturating_sub(1);
        if self.is_v1 {
            let counted = prompt_tokens as f64 / self.tokens as f64;
            let positions = run.positions.iter_mut();
            positions.for_each(|position| position.tokens *= counted);
        }
        Ok(self.run)
    }
}

/// The reason in `{"error":{"message":…}}` or `{"error":…}`.
pub fn reason(data: &Value) -> Option<String> {
    let error = data.get("error").filter(|error| !error.is_null())?;
    let text = error.get("message").unwrap_or(error);
    let plain = text.as_str().map(str::to_owned);
    Some(plain.unwrap_or_else(|| text.to_string()))
}
