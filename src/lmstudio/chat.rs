//! One short answer to a prompt, for the sake of its prefill: asked over whichever of the three interfaces the server has.
//!
//! Fields as in the public documentation, lmstudio-ai/docs, `1_developer/2_rest/{chat,streaming-events,endpoints}.md`.
//! Engines that speak only the `OpenAI` interface tell their progress in comments of the stream: `keepalive 512/2019`
//! (those of mlx-lm and of mlx-engine).

use std::io::Read;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::server::{Server, Trouble};
use super::sse::{Frame, Parser};

/// The ways to ask a server, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Api {
    /// LM Studio's REST interface, version 1, with events for the prefill.
    #[serde(rename = "v1")]
    V1,
    /// LM Studio's REST interface, version 0, with the server's own figures and no events.
    #[serde(rename = "v0")]
    V0,
    /// What every server speaks: `/v1/chat/completions`.
    #[serde(rename = "openai")]
    OpenAi,
}

/// Progress of a prefill, as the server told it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// When it came, in seconds since the request was sent.
    pub seconds: f64,
    /// How far: tokens where there is a total, else a part of one.
    pub done: f64,
    /// Of how many tokens.
    pub total: Option<f64>,
}

/// What came back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// The tokens of the prompt, as the server counted them.
    pub prompt_tokens: u64,
    /// The time to the first token by the server's own clock, in seconds.
    pub server_seconds: Option<f64>,
    /// The time from the request sent to the first token received, in seconds.
    pub client_seconds: Option<f64>,
    /// How many of the tokens came out of the prompt cache, where the server tells.
    pub cached_tokens: Option<u64>,
    /// What it told in between.
    pub progress: Vec<Progress>,
    /// The runtime that answered, where the server tells.
    pub runtime: Option<String>,
}

impl Api {
    fn path(self) -> &'static str {
        match self {
            Self::V1 => "/api/v1/chat",
            Self::V0 => "/api/v0/chat/completions",
            Self::OpenAi => "/v1/chat/completions",
        }
    }

    /// The next best.
    #[must_use]
    pub fn lesser(self) -> Option<Self> {
        match self {
            Self::V1 => Some(Self::V0),
            Self::V0 => Some(Self::OpenAi),
            Self::OpenAi => None,
        }
    }

    /// One token, nothing random, nothing kept.
    fn request(self, model: &str, prompt: &str) -> Value {
        let messages = json!([{ "role": "user", "content": prompt }]);
        match self {
            Self::V1 => json!({
                "model": model, "input": prompt, "stream": true, "max_output_tokens": 1, "temperature": 0, "store": false,
            }),
            Self::V0 => json!({
                "model": model, "messages": messages, "stream": false, "max_tokens": 1, "temperature": 0,
            }),
            // mlx_engine.server insists on top_k; with temperature 0 it decides nothing.
            Self::OpenAi => json!({
                "model": model, "messages": messages, "stream": true, "stream_options": { "include_usage": true },
                "max_tokens": 1, "temperature": 0, "top_k": 1,
            }),
        }
    }
}

/// How long the server may be silent, and whether to give up now.
pub struct Attention<'a> {
    /// The longest silence, from one sign of life to the next.
    pub patience: Duration,
    /// Whether the user wants to stop.
    pub wants_stop: &'a dyn Fn() -> bool,
}

enum Message {
    Sign(f64, Vec<Frame>),
    Whole(f64, Value),
    Ended,
    Failed(Trouble),
}

/// How often it is looked whether the user wants to stop.
const TICK: Duration = Duration::from_millis(50);

/// Asks for one token behind `prompt`, and tells of progress while it waits.
///
/// The request runs in a thread of its own, so that a server that says nothing can be given up at any moment.
pub fn ask(
    server: &Server,
    api: Api,
    (model, prompt): (&str, &str),
    attention: &Attention<'_>,
    told: &mut dyn FnMut(&Progress),
) -> Result<Reply, Trouble> {
    let (sender, receiver) = mpsc::channel();
    let request = api.request(model, prompt);
    let worker = server.clone();
    std::thread::spawn(move || {
        let end = talk(&worker, api.path(), &request, &sender)
            .map_or_else(Message::Failed, |()| Message::Ended);
        // Nobody listens any more where it was given up.
        let _ = sender.send(end);
    });
    let mut collector = Collector::default();
    let mut last_sign = Instant::now();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(Message::Sign(seconds, frames)) => {
                last_sign = Instant::now();
                for frame in &frames {
                    collector.take(seconds, frame, told)?;
                }
            }
            Ok(Message::Whole(seconds, answer)) => return collector.whole(seconds, &answer),
            Ok(Message::Failed(trouble)) => return Err(trouble),
            Ok(Message::Ended) | Err(RecvTimeoutError::Disconnected) => return collector.end(),
            Err(RecvTimeoutError::Timeout) if (attention.wants_stop)() => {
                return Err(Trouble::Stopped);
            }
            Err(RecvTimeoutError::Timeout) if last_sign.elapsed() > attention.patience => {
                return Err(Trouble::TooSlow(attention.patience));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn talk(
    server: &Server,
    path: &str,
    request: &Value,
    sender: &Sender<Message>,
) -> Result<(), Trouble> {
    let start = Instant::now();
    let mut response = server.open(path, request)?;
    if !response.is_stream {
        let answer = response.json()?;
        let _ = sender.send(Message::Whole(start.elapsed().as_secs_f64(), answer));
        return Ok(());
    }
    let mut parser = Parser::default();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = response
            .body
            .read(&mut buffer)
            .map_err(|error| Trouble::CutOff(error.to_string()))?;
        let seconds = start.elapsed().as_secs_f64();
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        let frames = parser
            .feed(bytes)
            .map_err(|why| Trouble::Unreadable(why.to_owned()))?;
        if sender.send(Message::Sign(seconds, frames)).is_err() {
            return Ok(());
        }
    }
}

/// PURE: puts a reply together from what a stream says.
#[derive(Debug, Default)]
struct Collector {
    reply: Reply,
    has_usage: bool,
}

impl Collector {
    fn take(
        &mut self,
        seconds: f64,
        frame: &Frame,
        told: &mut dyn FnMut(&Progress),
    ) -> Result<(), Trouble> {
        let before = self.reply.progress.len();
        match frame {
            Frame::Comment(text) => {
                self.reply
                    .progress
                    .extend(fraction(text).map(|(done, total)| Progress {
                        seconds,
                        done,
                        total: Some(total),
                    }))
            }
            Frame::Event { data, .. } if data.trim() == "[DONE]" => {}
            Frame::Event { name, data } => {
                let data: Value = serde_json::from_str(data).map_err(|error| {
                    Trouble::Unreadable(format!("an event that is no JSON: {error}"))
                })?;
                self.event(seconds, name, &data)?;
            }
        }
        self.reply.progress.iter().skip(before).for_each(told);
        Ok(())
    }

    fn event(&mut self, seconds: f64, name: &str, data: &Value) -> Result<(), Trouble> {
        match data.get("type").and_then(Value::as_str).unwrap_or(name) {
            "prompt_processing.progress" => {
                let done = number(data, "/progress");
                self.reply.progress.extend(done.map(|done| Progress {
                    seconds,
                    done,
                    total: None,
                }));
            }
            "chat.end" => self.figures(data.get("result").unwrap_or(data)),
            kind if kind.rsplit('.').next() == Some("delta") => self.first_token(seconds),
            _ => {
                if let Some(why) = data.get("error").filter(|error| !error.is_null()) {
                    let said = why.get("message").unwrap_or(why);
                    let said = said
                        .as_str()
                        .map_or_else(|| said.to_string(), str::to_owned);
                    return Err(Trouble::Refused(200, said.chars().take(200).collect()));
                }
                if has_token(data) {
                    self.first_token(seconds);
                }
                self.figures(data);
            }
        }
        Ok(())
    }

    fn first_token(&mut self, seconds: f64) {
        self.reply.client_seconds.get_or_insert(seconds);
    }

    /// Takes whatever figures there are, under any of the names that the interfaces have for them.
    fn figures(&mut self, data: &Value) {
        let tokens = ["/stats/input_tokens", "/usage/prompt_tokens"];
        if let Some(tokens) = tokens.iter().find_map(|path| data.pointer(path)?.as_u64()) {
            self.reply.prompt_tokens = tokens;
            self.has_usage = true;
        }
        let times = [
            "/stats/time_to_first_token_seconds",
            "/stats/time_to_first_token",
        ];
        let time = times
            .iter()
            .find_map(|path| number(data, path))
            .filter(|seconds| *seconds > 0.0);
        self.reply.server_seconds = time.or(self.reply.server_seconds);
        let cached = [
            "/usage/prompt_tokens_details/cached_tokens",
            "/stats/cached_input_tokens",
        ];
        let cached = cached.iter().find_map(|path| data.pointer(path)?.as_u64());
        self.reply.cached_tokens = cached.or(self.reply.cached_tokens);
        let text = |path: &str| data.pointer(path).and_then(Value::as_str);
        if let (Some(name), Some(version)) = (text("/runtime/name"), text("/runtime/version")) {
            self.reply.runtime = Some(format!("{name} {version}"));
        }
    }

    fn whole(mut self, seconds: f64, answer: &Value) -> Result<Reply, Trouble> {
        self.event(seconds, "", answer)?;
        // The whole answer took longer than its first token: no clock is better than a wrong one.
        self.reply.client_seconds = None;
        self.end()
    }

    fn end(self) -> Result<Reply, Trouble> {
        if !self.has_usage {
            return Err(Trouble::CutOff(
                "the answer ended before the server had counted the prompt".to_owned(),
            ));
        }
        Ok(self.reply)
    }
}

/// Whether a piece of an answer holds a token, or the end that stands for one.
fn has_token(data: &Value) -> bool {
    let Some(choice) = data.pointer("/choices/0") else {
        return false;
    };
    let text = |path: &str| {
        choice
            .pointer(path)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    text("/delta/content")
        || text("/delta/reasoning_content")
        || text("/delta/reasoning")
        || text("/finish_reason")
}

fn number(data: &Value, path: &str) -> Option<f64> {
    data.pointer(path)?.as_f64()
}

/// The numbers of `keepalive 512/2019`.
fn fraction(comment: &str) -> Option<(f64, f64)> {
    let (done, total) = comment.split_whitespace().last()?.split_once('/')?;
    let (done, total) = (done.parse::<u32>().ok()?, total.parse::<u32>().ok()?);
    (done <= total && total > 0).then_some((f64::from(done), f64::from(total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream amounts to whose pieces come one second apart.
    fn collect(stream: &str) -> Result<Reply, Trouble> {
        let mut collector = Collector::default();
        let mut told = 0;
        let frames = Parser::default().feed(stream.as_bytes()).unwrap();
        for (seconds, frame) in (0..).zip(&frames) {
            collector.take(f64::from(seconds), frame, &mut |_| told += 1)?;
        }
        assert_eq!(told, collector.reply.progress.len());
        collector.end()
    }

    #[test]
    fn version_1_gives_the_servers_clock_and_progress() {
        let stream = r#"event: chat.start
data: {"type":"chat.start","model_instance_id":"m"}

event: prompt_processing.start
data: {"type":"prompt_processing.start"}

event: prompt_processing.progress
data: {"type":"prompt_processing.progress","progress":0.2048}

event: prompt_processing.progress
data: {"type":"prompt_processing.progress","progress":1}

event: prompt_processing.end
data: {"type":"prompt_processing.end"}

event: reasoning.delta
data: {"type":"reasoning.delta","content":"H"}

event: chat.end
data: {"type":"chat.end","result":{"stats":{"input_tokens":10000,"total_output_tokens":1,"time_to_first_token_seconds":4.5}}}

"#;
        let reply = collect(stream).unwrap();
        assert_eq!(
            (
                reply.prompt_tokens,
                reply.server_seconds,
                reply.client_seconds
            ),
            (10_000, Some(4.5), Some(5.0))
        );
        let told = |seconds, done| Progress {
            seconds,
            done,
            total: None,
        };
        assert_eq!(reply.progress, [told(2.0, 0.2048), told(3.0, 1.0)]);
    }

    #[test]
    fn an_error_event_is_the_reason_even_though_chat_end_follows() {
        let stream = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"internal_error\",\"message\":\"out of memory\"}}\n\n\
                      event: chat.end\ndata: {\"type\":\"chat.end\",\"result\":{\"stats\":{\"input_tokens\":1}}}\n\n";
        assert!(
            matches!(collect(stream), Err(Trouble::Refused(200, said)) if said == "out of memory")
        );
    }

    #[test]
    fn the_openai_interface_gives_the_clients_clock_and_progress_in_comments() {
        let stream = r#": keepalive 0/2019

: keepalive 512/2019

: something else

data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}

data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}

data: {"choices":[],"usage":{"prompt_tokens":2020,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":3}}}

data: [DONE]

"#;
        let reply = collect(stream).unwrap();
        assert_eq!(
            (
                reply.prompt_tokens,
                reply.server_seconds,
                reply.client_seconds
            ),
            (2020, None, Some(4.0))
        );
        assert_eq!(reply.cached_tokens, Some(3));
        let told = |seconds, done| Progress {
            seconds,
            done,
            total: Some(2019.0),
        };
        assert_eq!(reply.progress, [told(0.0, 0.0), told(1.0, 512.0)]);
    }

    #[test]
    fn version_0_gives_the_servers_clock_only() {
        let answer = json!({
            "choices": [{ "index": 0, "message": { "content": "x" }, "finish_reason": "length" }],
            "usage": { "prompt_tokens": 24, "completion_tokens": 1 },
            "stats": { "tokens_per_second": 51.4, "time_to_first_token": 0.111, "generation_time": 0.9 },
            "runtime": { "name": "mlx-llm", "version": "1.11.0" },
        });
        let reply = Collector::default().whole(2.0, &answer).unwrap();
        assert_eq!(
            (
                reply.prompt_tokens,
                reply.server_seconds,
                reply.client_seconds
            ),
            (24, Some(0.111), None)
        );
        assert_eq!(reply.runtime.as_deref(), Some("mlx-llm 1.11.0"));
    }

    #[test]
    fn a_stream_that_was_cut_is_not_taken_for_an_answer() {
        for stream in [
            "",
            ": keepalive 5/10\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: {\"us",
        ] {
            assert!(
                matches!(collect(stream), Err(Trouble::CutOff(_))),
                "{stream}"
            );
        }
        assert!(matches!(
            collect("data: <html>\n\n"),
            Err(Trouble::Unreadable(_))
        ));
    }

    #[test]
    fn only_fractions_are_progress() {
        assert_eq!(fraction("keepalive 512/2019"), Some((512.0, 2019.0)));
        for other in ["", "keepalive", "5/0", "7/5", "-1/5", "a/b", "http://x/y"] {
            assert_eq!(fraction(other), None, "{other}");
        }
    }
}
