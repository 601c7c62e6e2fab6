//! Prefills, answered with one token, in the way of each interface.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::answer;
use super::{Prefill, State, lock};

/// The tokens that the chat template adds; four bytes are a token.
const TEMPLATE: u64 = 16;

pub fn chat(
    shared: &Mutex<State>,
    mut state: MutexGuard<'_, State>,
    is_v1: bool,
    body: &[u8],
    stream: &mut TcpStream,
) -> io::Result<()> {
    let body: Value = serde_json::from_slice(body).unwrap();
    state.chats.push(body.clone());
    if let Some(error) = state.odd.error {
        let error = json!({ "error": { "message": error } });
        return answer(stream, 200, &error.to_string());
    }
    let asked = body["model"].as_str().unwrap();
    // As LM Studio does, if it may: "just in time".
    let is_unloaded = state.loaded().next().is_none();
    if is_unloaded {
        state.load(asked, asked, 16_384);
    }
    // An unknown model is answered by one that is loaded.
    let wanted = state.loaded().find(|(_, one)| one.id == asked);
    let (_, instance) = wanted.or(state.loaded().next()).unwrap();
    let (odd, id) = (state.odd.clone(), instance.id.clone());
    let used = odd.uses.get(&instance.chunk).copied();
    let chunk = odd.stuck_at.or(used).unwrap_or(instance.chunk);
    let pace = *state.pace.get(&chunk).unwrap_or(&10);
    drop(state);
    let prompt = body["input"].as_str();
    let prompt = prompt.or(body["messages"][0]["content"].as_str()).unwrap();
    let template = TEMPLATE + odd.template;
    let tokens = template + prompt.len() as u64 / 4;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    )?;
    let model = odd.other_model.unwrap_or(&id);
    if is_v1 {
        if is_unloaded {
            event(stream, "model_load.start", json!({}))?;
        }
        event(stream, "chat.start", json!({ "model_instance_id": model }))?;
        event(stream, "prompt_processing.start", json!({}))?;
    }
    let is_whole = 2 * tokens > 3 * chunk;
    if odd.out_of_memory_above.is_some_and(|limit| chunk > limit) && is_whole {
        let why = json!({ "type": "internal_error", "message": "[metal::malloc] out of memory" });
        return event(stream, "error", json!({ "error": why }));
    }
    let is_hit = odd.always_hits && is_whole;
    let mut cached = if is_hit { tokens - tokens / 20 } else { 0 };
    let (begun, mut done) = (Instant::now(), cached);
    for number in 0.. {
        let is_told = !(odd.has_no_progress || odd.is_throttled && matches!(number % 5, 2 | 3));
        let part = done as f64 / tokens as f64;
        let seconds = odd
            .tells_seconds
            .then(|| ((done - cached) * pace) as f64 / 1e6);
        let progress = json!({ "progress": part, "seconds": seconds });
        let told = match (is_v1, odd.has_bare_comments) {
            _ if !is_told => Ok(()),
            (true, _) => event(stream, "prompt_processing.progress", progress),
            (false, true) => write!(stream, ": prompt-progress\n\n"),
            (false, false) => write!(stream, ": keepalive {done}/{tokens}\n\n"),
        };
        if told.is_err() {
            lock(shared).left.push((chunk, done));
            return Ok(());
        }
        if done == tokens {
            break;
        }
        let is_now =
            |from: Option<u64>| is_whole && number == 1 && from.is_some_and(|from| chunk >= from);
        if is_now(odd.breaks_off_from) {
            if odd.crash_unloads {
                lock(shared).unload_all();
            }
            return Ok(());
        }
        if is_now(odd.silent_from) {
            be_silent(shared, stream)?;
        }
        done = tokens.min(done + chunk);
        let until = Duration::from_micros(pace * (done - cached));
        thread::sleep(until.saturating_sub(begun.elapsed()));
    }
    let mut state = lock(shared);
    let load = state.loads();
    // Only where another prompt has put it there since the model was loaded.
    if odd.caches_template && state.prefills.iter().any(|one| one.load == load) {
        cached = template;
    }
    let seconds = tokens as f64 * pace as f64 / 1e6;
    state.prefills.push(Prefill {
        load,
        chunk,
        tokens,
        seconds,
        prompt: prompt.to_owned(),
    });
    if let Some((count, meddle)) = state.odd.meddles
        && state.prefills.len() == count
    {
        meddle(&mut state);
    }
    drop(state);
    if is_v1 {
        event(stream, "message.delta", json!({ "content": "x" }))?;
        let tokens = (!odd.has_no_usage).then(|| odd.counts.unwrap_or(tokens));
        let figures = json!({ "input_tokens": tokens, "total_output_tokens": 1, "time_to_first_token_seconds": seconds });
        let result = json!({ "model_instance_id": model, "stats": figures });
        return event(stream, "chat.end", json!({ "result": result }));
    }
    let choice = json!({ "index": 0, "delta": { "content": "x" }, "finish_reason": null });
    data(stream, &json!({ "model": model, "choices": [choice] }))?;
    if !odd.has_no_usage {
        let details = json!({ "cached_tokens": cached });
        let usage = json!({ "prompt_tokens": tokens, "completion_tokens": 1, "prompt_tokens_details": details });
        data(
            stream,
            &json!({ "model": model, "choices": [], "usage": usage }),
        )?;
        // What comes after it says nothing of the prompt.
        data(stream, &json!({ "model": model, "choices": [] }))?;
    }
    write!(stream, "data: [DONE]\n\n")
}

/// An event of LM Studio's own stream.
fn event(stream: &mut TcpStream, kind: &str, mut fields: Value) -> io::Result<()> {
    fields["type"] = kind.into();
    write!(stream, "event: {kind}\ndata: {fields}\n\n")
}

/// A chunk of `OpenAI`'s stream.
fn data(stream: &mut TcpStream, chunk: &Value) -> io::Result<()> {
    write!(stream, "data: {chunk}\n\n")
}

/// At work until the client goes.
fn be_silent(shared: &Mutex<State>, client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_millis(1)))?;
    set_busy(shared, true);
    while !lock(shared).is_over && !matches!(client.peek(&mut [0]), Ok(0)) {
        thread::sleep(Duration::from_millis(10));
    }
    set_busy(shared, false);
    Ok(())
}

fn set_busy(shared: &Mutex<State>, is_busy: bool) {
    for model in &mut lock(shared).models {
        for one in &mut model.loaded {
            one.is_busy = is_busy;
        }
    }
}
