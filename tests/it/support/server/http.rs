//! What it answers to requests.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::chat::chat;
use super::lms::lms;
use super::{Instance, Model, State, lock};

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
pub fn answer(stream: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
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
    if state.odd.lists_oddities {
        models.push(json!({ "key": "on/disk", "format": "mlx", "loaded_instances": null }));
        models.push(json!({ "type": "embedding", "key": 7 }));
    }
    json!({ "models": models }).to_string()
}
