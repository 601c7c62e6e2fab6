//! What the lines of an event stream say about a prefill: of LM Studio's, which `direct.py` speaks too, or `OpenAI`'s.

use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;

use super::results::{Position, Run};

/// An answer that is coming in.
pub struct Answer<'a> {
    model: &'a str,
    /// About how many tokens the prompt has.
    tokens: u64,
    start: Instant,
    pub run: Run,
}

impl<'a> Answer<'a> {
    /// The answer of `model` to a prompt of about `tokens` tokens, which is sent now.
    pub fn new(model: &'a str, tokens: u64) -> Self {
        Self {
            model,
            tokens,
            start: Instant::now(),
            run: Run::default(),
        }
    }

    /// Takes a line; returns the position that it reports.
    pub fn line(&mut self, line: &str) -> Result<Option<Position>> {
        let seconds = self.start.elapsed().as_secs_f64();
        let mut position = None;
        if let Some(comment) = line.strip_prefix(':').map(str::trim) {
            self.run.bare_steps += u64::from(comment == "prompt-progress");
            let last = comment.rsplit(' ').next().unwrap_or_default();
            let tokens = last.split_once('/').and_then(|(done, _)| done.parse().ok());
            position = tokens.map(|tokens| Position { tokens, seconds });
        } else if let Some(data) = line.strip_prefix("data:").filter(|d| d.trim() != "[DONE]") {
            let data = serde_json::from_str(data);
            let data = data.map_err(|_| anyhow!("the server did not send JSON"))?;
            if let Some(why) = reason(&data) {
                bail!(why);
            }
            position = self.event(seconds, &data)?;
        }
        self.run.positions.extend(position);
        Ok(position)
    }

    fn event(&mut self, seconds: f64, data: &Value) -> Result<Option<Position>> {
        let run = &mut self.run;
        match data["type"].as_str() {
            None => self.chunk(seconds, data)?,
            Some("chat.start") => self.check_model(&data["model_instance_id"])?,
            Some("model_load.start") => {
                run.ignored = Some("LM Studio loaded the model first".to_owned());
            }
            Some("prompt_processing.progress") => {
                let tokens = data["progress"].as_f64().map(|n| n * self.tokens as f64);
                let seconds = data["seconds"].as_f64().unwrap_or(seconds);
                return Ok(tokens.map(|tokens| Position { tokens, seconds }));
            }
            Some("reasoning.delta" | "message.delta") => self.token(seconds),
            Some("chat.end") => {
                let (result, stats) = (&data["result"], &data["result"]["stats"]);
                run.prompt_tokens = stats["input_tokens"].as_u64().unwrap_or(0);
                run.peak_memory_bytes = stats["peak_memory_bytes"].as_u64();
                run.engine = result["engine"].as_str().map(str::to_owned);
                let seconds = stats["time_to_first_token_seconds"].as_f64();
                if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
                    (run.prefill_seconds, run.source) = (seconds, "server");
                }
                let counted = run.prompt_tokens as f64 / self.tokens as f64;
                let positions = run.positions.iter_mut();
                positions.for_each(|position| position.tokens *= counted);
            }
            Some(_) => {}
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

    pub fn end(self) -> Result<Run> {
        let mut run = self.run;
        let broken = "the server broke off before the first token; did the model or the app end?";
        ensure!(!run.source.is_empty(), broken);
        let unknown = "the server did not report the prompt's token count";
        ensure!(run.prompt_tokens > 0, unknown);
        run.tokens_per_second = run.prompt_tokens as f64 / run.prefill_seconds;
        // Every prompt begins with the same chat template, so a few cached tokens are not a hit.
        if run.cached_tokens.unwrap_or_default() * 100 > run.prompt_tokens {
            run.ignored = Some("a part of it came out of the prompt cache".to_owned());
        }
        // The first comment comes before the first step.
        run.bare_steps = run.bare_steps.saturating_sub(1);
        Ok(run)
    }
}

/// The reason in `{"error":{"message":…}}` or `{"error":…}`.
pub fn reason(data: &Value) -> Option<String> {
    let error = data.get("error").filter(|error| !error.is_null())?;
    let text = error.get("message").unwrap_or(error);
    let plain = text.as_str().map(str::to_owned);
    Some(plain.unwrap_or_else(|| text.to_string()))
}
