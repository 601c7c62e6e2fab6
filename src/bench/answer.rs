//! PURE: what the lines of an event stream say about a prefill.

use serde::Deserialize;
use serde_json::Value;

use super::measure::Prefill;
use super::race::{Position, as_f64};
use super::server::{ServerError, reason, refuse};

/// One event of LM Studio's own stream.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Event {
    #[serde(rename = "chat.start")]
    Start { model_instance_id: Value },
    #[serde(rename = "model_load.start")]
    Load,
    #[serde(rename = "prompt_processing.progress")]
    Progress { progress: f64 },
    #[serde(rename = "reasoning.delta", alias = "message.delta")]
    Token,
    #[serde(rename = "chat.end")]
    End { result: Value },
    #[serde(other)]
    Other,
}

/// An answer that is coming in.
pub struct Answer<'a> {
    model: &'a str,
    is_v1: bool,
    /// About how many the prompt has.
    tokens: u64,
    prefill: Prefill,
    first_token: Option<f64>,
    bare_comments: u64,
}

impl<'a> Answer<'a> {
    pub fn new(model: &'a str, is_v1: bool, tokens: u64) -> Self {
        let (prefill, first_token, bare_comments) = (Prefill::default(), None, 0);
        Self {
            model,
            is_v1,
            tokens,
            prefill,
            first_token,
            bare_comments,
        }
    }

    /// Takes a line that came after so many seconds; the position that it tells.
    pub fn line(&mut self, seconds: f64, line: &str) -> Result<Option<Position>, ServerError> {
        let mut tokens = None;
        if let Some(comment) = line.strip_prefix(':') {
            self.bare_comments += u64::from(comment.trim() == "prompt-progress");
            let done = comment
                .trim()
                .rsplit(' ')
                .next()
                .and_then(|part| part.split_once('/'));
            tokens = done.and_then(|(done, _)| done.parse().ok());
        } else if let Some(data) = line.strip_prefix("data:").filter(|d| d.trim() != "[DONE]") {
            let Ok(data) = serde_json::from_str(data) else {
                return refuse("what answers there sends events that are no JSON".to_owned());
            };
            if let Some(why) = reason(&data) {
                return refuse(why);
            }
            if self.is_v1 {
                tokens = self.event(seconds, data)?;
            } else {
                self.chunk(seconds, &data)?;
            }
        }
        let position = tokens.map(|tokens| Position { tokens, seconds });
        self.prefill.course.extend(position);
        Ok(position)
    }

    fn event(&mut self, seconds: f64, data: Value) -> Result<Option<f64>, ServerError> {
        let run = &mut self.prefill.run;
        match serde_json::from_value(data).unwrap_or(Event::Other) {
            Event::Start { model_instance_id } => self.check_model(&model_instance_id)?,
            Event::Load => run.ignored = Some("LM Studio loaded the model for it".to_owned()),
            Event::Progress { progress } => return Ok(Some(progress * as_f64(self.tokens))),
            Event::Token => self.first_token = self.first_token.or(Some(seconds)),
            Event::End { result } => {
                let stats = &result["stats"];
                run.prefill_seconds = stats["time_to_first_token_seconds"].as_f64().unwrap_or(0.0);
                run.prompt_tokens = stats["input_tokens"].as_u64().unwrap_or(0);
            }
            Event::Other => {}
        }
        Ok(None)
    }

    fn chunk(&mut self, seconds: f64, data: &Value) -> Result<(), ServerError> {
        self.check_model(&data["model"])?;
        let choice = &data["choices"][0];
        let delta = &choice["delta"];
        let texts = [
            &delta["content"],
            &delta["reasoning_content"],
            &choice["finish_reason"],
        ];
        if texts
            .iter()
            .any(|text| text.as_str().is_some_and(|text| !text.is_empty()))
        {
            self.first_token = self.first_token.or(Some(seconds));
        }
        let usage = &data["usage"];
        let run = &mut self.prefill.run;
        run.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        run.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(run.prompt_tokens);
        Ok(())
    }

    fn check_model(&self, answered: &Value) -> Result<(), ServerError> {
        match answered.as_str() {
            Some(other) if other != self.model => refuse(format!(
                "the model that answered is {other}, not {}",
                self.model
            )),
            _ => Ok(()),
        }
    }

    pub fn end(mut self) -> Result<Prefill, ServerError> {
        let run = &mut self.prefill.run;
        run.source = "server";
        if run.prefill_seconds <= 0.0 {
            let why = "the server broke off before the first token; did the model or the app end?";
            let Some(seconds) = self.first_token else {
                return refuse(why.to_owned());
            };
            (run.source, run.prefill_seconds) = ("client", seconds);
        }
        if run.prompt_tokens == 0 {
            return refuse(
                "the answer has no usage: not how many tokens the prompt had".to_owned(),
            );
        }
        let tokens = as_f64(run.prompt_tokens);
        run.tokens_per_second = tokens / run.prefill_seconds;
        // A chat template's own beginning is the same in every prompt, so a few cached tokens are no hit.
        if run
            .cached_tokens
            .is_some_and(|cached| cached * 100 > run.prompt_tokens)
        {
            run.ignored = Some("a part of it came out of the prompt cache".to_owned());
        }
        let is_part = if self.is_v1 {
            tokens / as_f64(self.tokens)
        } else {
            1.0
        };
        self.prefill
            .course
            .iter_mut()
            .for_each(|position| position.tokens *= is_part);
        self.prefill.bare_steps = self.bare_comments.saturating_sub(1);
        Ok(self.prefill)
    }
}
