//! What it answers: to requests, to its own `lms`, and to chats in the way of each interface.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Failure, Instance, Model, Prefill, State, chunk_on_disk, lock};

const NO_TOKEN: &str = r#"{"error":{"message":"Malformed or missing LM Studio API token"}}"#;
const UNKNOWN: &str = r#"{"error":"Unexpected endpoint or method. Returning 200 anyway"}"#;

pub fn serve(shared: &Mutex<State>, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let lines = reader.by_ref().lines().map_while(Result::ok);
    let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |wanted: &str| {
        let mut headers = head.iter().filter_map(|line| line.split_once(": "));
        headers.find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then_some(value))
    };
    let length = header("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = head.first().and_then(|line| line.split(' ').nth(1));
    if path == Some("/lms") {
        let text = String::from_utf8(body).unwrap();
        let words: Vec<_> = text.lines().collect();
        return answer(&mut stream, 200, &lms(shared, &words));
    }
    let state = lock(shared);
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && header("authorization") != wanted.as_deref() {
        return answer(&mut stream, 401, NO_TOKEN);
    }
    match path {
        Some("/api/v1/models") if state.has_v1 => answer(&mut stream, 200, &list(&state)),
        Some("/api/v1/chat") if state.has_v1 => chat(shared, state, true, &body, &mut stream),
        Some("/v1/chat/completions") => chat(shared, state, false, &body, &mut stream),
        _ => answer(&mut stream, 200, UNKNOWN),
    }
}

/// Answers at once, with JSON.
fn answer(stream: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn list(state: &State) -> String {
    let context = |one: &Instance| (!state.odd.hides_context).then_some(one.context);
    let instance = |one: &Instance| json!({ "id": one.id, "config": { "context_length": context(one), "parallel": one.parallel } });
    let model = |model: &Model| {
        json!({
            "type": "llm", "key": model.key, "format": model.format, "max_context_length": 262_144,
            "loaded_instances": model.loaded.iter().map(instance).collect::<Vec<_>>(),
        })
    };
    let mut models: Vec<Value> = state.models.iter().map(model).collect();
    // Others have other fields.
    models.push(json!({ "key": "on/disk", "format": "mlx", "loaded_instances": null }));
    models.push(json!({ "type": "embedding", "key": 7 }));
    let bert = json!([{ "id": "bert", "config": { "context_length": 512 } }]);
    models.push(
        json!({ "type": "embedding", "key": "bert", "format": "mlx", "loaded_instances": bert }),
    );
    json!({ "models": models }).to_string()
}

/// `lms`, for a server at this port.
pub fn lms_at(port: u16) -> String {
    format!("#!/usr/bin/env bash\nexec 3<>/dev/tcp/127.0.0.1/{port}\n{ASK}")
}

/// Sends the arguments, one a line, and prints the answer. Fails if that is an error.
const ASK: &str = r#"body=$(printf '%s\n' "$@")
printf 'POST /lms HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s' "${#body}" "$body" >&3
while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
answer=$(cat <&3)
printf '%s\n' "$answer"
[ "${answer#Error}" = "$answer" ]
"#;

/// What `lms` prints.
fn lms(shared: &Mutex<State>, words: &[&str]) -> String {
    let call = words.iter().map(|word| (*word).to_owned()).collect();
    lock(shared).lms.push(call);
    match words[0] {
        "ps" => ps(&mut lock(shared)),
        "unload" => {
            for model in &mut lock(shared).models {
                model.loaded.retain(|one| one.id != words[1]);
            }
            String::new()
        }
        _ => load(shared, words),
    }
}

fn ps(state: &mut State) -> String {
    let loads = state.loads();
    let is_restored = loads > 0 && chunk_on_disk(&state.engine) == Some(2048);
    let (odd, mut none) = (&mut state.odd, 0);
    let looks = match &mut odd.failing_looks_after {
        Some((after, looks)) if *after == loads => looks,
        _ if is_restored => &mut odd.failing_looks,
        _ => &mut none,
    };
    if *looks > 0 {
        *looks -= 1;
        return "Error: not ready".to_owned();
    }
    let is_busy = state.is_busy || state.odd.busy_looks > 0;
    state.odd.busy_looks = state.odd.busy_looks.saturating_sub(1);
    let hides_path = state.odd.hides_path;
    let path = |model: &Model| (!hides_path).then(|| format!("dir/{}", model.key));
    let row = |(model, one): (&Model, &Instance)| {
        json!({
            "type": "llm", "identifier": one.id, "modelKey": model.key, "path": path(model),
            "format": if model.format == "mlx" { "safetensors" } else { "gguf" }, "deviceIdentifier": null,
            "contextLength": one.context, "maxContextLength": 262_144, "ttlMs": one.ttl_ms,
            "parallel": one.parallel, "status": if is_busy { "processingPrompt" } else { "idle" }, "queued": 0,
        })
    };
    let rows: Value = state.loaded().map(row).collect();
    rows.to_string()
}

fn load(shared: &Mutex<State>, words: &[&str]) -> String {
    let mut state = lock(shared);
    while state.odd.load_hangs && !state.is_over {
        drop(state);
        thread::sleep(Duration::from_millis(10));
        state = lock(shared);
    }
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    let number = |flag: &str| value(flag).and_then(|text| text.parse().ok());
    let (key, id) = (
        words[1].strip_prefix("dir/").unwrap(),
        value("--identifier").unwrap(),
    );
    let count = state.loads();
    let is_foreign = state.odd.foreign_load == Some(count);
    if is_foreign {
        state.load(key, id, 9000);
    }
    let is_refused = state.odd.refuses.contains(&key);
    if is_foreign || is_refused || state.odd.failing_loads.contains(&count) {
        return "Error: Failed to load model".to_owned();
    }
    if std::mem::take(&mut state.odd.evicts) {
        state.unload_all();
    }
    let one = state.load(key, id, number("--context-length").unwrap_or(4096));
    one.parallel = number("--parallel").unwrap_or(4);
    one.ttl_ms = number("--ttl").map(|seconds| seconds * 1000);
    String::new()
}

/// The tokens that the chat template adds; four bytes are a token.
const TEMPLATE: u64 = 16;

/// Prefills, and answers with one token.
fn chat(
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
    // As `mlx_engine.server` does.
    if !is_v1 && !body["top_k"].is_u64() {
        return answer(stream, 400, r#"{"error":"top_k is missing"}"#);
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
    let failure = odd.fails.filter(|(from, _)| is_whole && chunk >= *from);
    let failure = failure.map(|(_, how)| how);
    if failure == Some(Failure::OutOfMemory) {
        let why = json!({ "type": "internal_error", "message": "[metal::malloc] out of memory" });
        return event(stream, "error", json!({ "error": why }));
    }
    let is_hit = odd.always_hits && is_whole;
    let mut cached = if is_hit { tokens - tokens / 20 } else { 0 };
    let (begun, mut done) = (Instant::now(), cached);
    for number in 0.. {
        let is_told = !(odd.has_no_progress || odd.is_throttled && matches!(number % 5, 2 | 3));
        let part = done as f64 / tokens as f64;
        let seconds = ((done - cached) * pace) as f64 / 1e6;
        let seconds = odd.tells_seconds.then_some(seconds);
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
            if odd.has_last_step {
                write!(stream, ": prompt-progress\n\n")?;
            }
            break;
        }
        match failure.filter(|_| number == 1) {
            Some(Failure::BreaksOff) => return Ok(()),
            Some(Failure::Crashes) => {
                lock(shared).unload_all();
                return Ok(());
            }
            Some(Failure::IsSilent) => be_silent(shared, stream)?,
            _ => {}
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
    state.prefills.push(Prefill {
        load,
        chunk,
        tokens,
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
        let told = (!odd.has_no_usage).then(|| odd.counts.unwrap_or(tokens));
        let seconds = tokens as f64 * pace as f64 / 1e6;
        let figures = json!({ "input_tokens": told, "total_output_tokens": 1, "time_to_first_token_seconds": seconds });
        let result = json!({ "model_instance_id": model, "stats": figures });
        return event(stream, "chat.end", json!({ "result": result }));
    }
    let choice = json!({ "index": 0, "delta": { "content": "x" }, "finish_reason": null });
    data(stream, &json!({ "model": model, "choices": [choice] }))?;
    if !odd.has_no_usage {
        let details = json!({ "cached_tokens": cached });
        let usage = json!({ "prompt_tokens": tokens, "completion_tokens": 1, "prompt_tokens_details": details });
        let chunk = json!({ "model": model, "choices": [], "usage": usage });
        data(stream, &chunk)?;
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
    lock(shared).is_busy = true;
    while !lock(shared).is_over && !matches!(client.peek(&mut [0]), Ok(0)) {
        thread::sleep(Duration::from_millis(10));
    }
    lock(shared).is_busy = false;
    Ok(())
}
