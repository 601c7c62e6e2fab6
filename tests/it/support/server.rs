//! A fake LM Studio: its server on loopback and the `lms` of its home, with models that take the chunk from disk when they
//! are loaded. Its clock is made up: what it tells of a prefill are the seconds that its table says.
#![allow(
    clippy::cast_precision_loss,
    clippy::needless_pass_by_value,
    clippy::struct_excessive_bools,
    clippy::too_many_lines,
    reason = "small numbers, and an answer that is told from its beginning to its end"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::standins::executable;

/// It ends when it is dropped.
pub struct FakeLmStudio {
    address: SocketAddr,
    shared: Arc<Mutex<State>>,
    listener: Option<JoinHandle<()>>,
}

/// Everything that it knows and can be told.
pub struct State {
    engine: PathBuf,
    pub models: Vec<Model>,
    pub token: Option<String>,
    /// Whether it has the interface of LM Studio 0.4.0.
    pub has_v1: bool,
    /// Microseconds that a token takes at each chunk; 10 where nothing is said.
    pub pace: BTreeMap<u64, u64>,
    pub odd: Odd,
    /// Every prefill that ended well, oldest first.
    pub prefills: Vec<Prefill>,
    /// The chunk and the done tokens of prefills that the client left.
    pub left: Vec<(u64, u64)>,
    /// The bodies of the chat requests.
    pub chats: Vec<Value>,
    /// The arguments of every `lms`.
    pub lms: Vec<Vec<String>>,
    is_over: bool,
}

pub struct Model {
    pub key: String,
    pub format: &'static str,
    pub loaded: Vec<Instance>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub context: u64,
    pub parallel: u64,
    pub ttl_ms: Option<u64>,
    pub chunk: u64,
    pub is_busy: bool,
}

/// What another client does.
pub type Meddle = fn(&mut State);

/// What is odd; by chunk where it says so.
#[derive(Clone, Default)]
pub struct Odd {
    pub out_of_memory_above: Option<u64>,
    pub silent_from: Option<u64>,
    pub breaks_off_from: Option<u64>,
    /// And the model is gone then.
    pub crash_unloads: bool,
    pub stuck_at: Option<u64>,
    /// The chunk that the engine really uses.
    pub uses: BTreeMap<u64, u64>,
    /// Tokens that the chat template adds to every prompt, beside a few.
    pub template: u64,
    /// The `lms load`s that fail, from 1.
    pub failing_loads: Vec<usize>,
    /// The `lms load`, from 1, before which another client loads the model with less context.
    pub foreign_load: Option<usize>,
    /// The template of every prompt comes out of the prompt cache.
    pub caches_template: bool,
    /// The tokens that every prompt is said to have.
    pub counts: Option<u64>,
    /// Models that `lms load` does not load.
    pub refuses: Vec<&'static str>,
    /// The list of models has rows with other fields.
    pub lists_oddities: bool,
    /// The context that LM Studio fits, whatever was asked for.
    pub fits: BTreeMap<u64, u64>,
    pub is_throttled: bool,
    pub has_no_progress: bool,
    /// Progress comes with the seconds of the table, as from `direct.py`, so that a busy machine makes no difference.
    pub tells_seconds: bool,
    pub has_bare_comments: bool,
    pub has_no_usage: bool,
    pub always_hits: bool,
    /// The list of models does not say what context they were loaded with.
    pub hides_context: bool,
    /// An error in a 200, for every chat.
    pub error: Option<&'static str>,
    /// The model that answers in place of the one that was asked.
    pub other_model: Option<&'static str>,
    /// What another client does after so many prefills.
    pub meddles: Option<(usize, Meddle)>,
    /// How often `lms ps` fails once a stock size of 2048 is restored.
    pub failing_looks: usize,
    /// How often `lms ps` fails after so many loads.
    pub failing_looks_after: Option<(usize, usize)>,
    /// How often `lms ps` still shows every model at work.
    pub busy_looks: usize,
    /// The next model that is loaded evicts all others.
    pub evicts: bool,
    /// `lms load` takes until the end.
    pub load_hangs: bool,
}

#[derive(Clone, Debug)]
pub struct Prefill {
    pub chunk: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub prompt: String,
    /// How many loads there had been.
    load: usize,
}

/// The tokens that the chat template adds; four bytes are a token.
const TEMPLATE: u64 = 16;

impl FakeLmStudio {
    /// The LM Studio of `home`, whose models take the chunk of `engine`.
    pub fn start(home: &Path, engine: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(State {
            engine: engine.to_owned(),
            models: Vec::new(),
            token: None,
            has_v1: true,
            pace: BTreeMap::new(),
            odd: Odd::default(),
            prefills: Vec::new(),
            left: Vec::new(),
            chats: Vec::new(),
            lms: Vec::new(),
            is_over: false,
        }));
        let state = Arc::clone(&shared);
        let listener = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if lock(&state).is_over {
                    break;
                }
                let state = Arc::clone(&state);
                // The client may go at any moment.
                thread::spawn(move || serve(&state, stream).unwrap_or(()));
            }
        });
        let script = format!(
            "exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}; body=$(printf \"%s\\n\" \"$@\"); \
             printf \"POST /lms HTTP/1.0\\r\\nContent-Length: %s\\r\\n\\r\\n%s\" \"${{#body}}\" \"$body\" >&3; \
             while IFS= read -r line <&3 && [ \"$line\" != $(printf \"\\r\") ]; do :; done; answer=$(cat <&3); \
             printf \"%s\\n\" \"$answer\"; [ \"${{answer#Error}}\" = \"$answer\" ]' lms \"$@\"",
            address.port()
        );
        executable(
            &home.join("bin/lms"),
            &script.replace("$(printf \"\\r\")", "$'\\''\\r'\\''"),
        );
        Self {
            address,
            shared,
            listener: Some(listener),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    /// Puts a model on disk and loads it under its key.
    pub fn load(&self, key: &str, format: &'static str, context: u64) {
        let mut state = self.state();
        let chunk = chunk_on_disk(&state.engine).unwrap();
        let instance = Instance {
            id: key.to_owned(),
            context,
            parallel: 3,
            ttl_ms: Some(600_000),
            chunk,
            is_busy: false,
        };
        state.models.push(Model {
            key: key.to_owned(),
            format,
            loaded: vec![instance],
        });
    }

    /// What is loaded, of every model.
    pub fn loaded(&self) -> Vec<Instance> {
        let state = self.state();
        let loaded = state.models.iter().flat_map(|model| &model.loaded);
        loaded.cloned().collect()
    }
}

impl Drop for FakeLmStudio {
    fn drop(&mut self) {
        self.state().is_over = true;
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// A test that failed while it held the lock is no reason for another panic.
fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The chunk in an engine's file.
pub fn chunk_on_disk(engine: &Path) -> Option<u64> {
    let text = fs::read_to_string(engine).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("PROMPT_PROCESSING_CHUNK_SIZE = "))?;
    value.replace('_', "").parse().ok()
}

fn serve(shared: &Mutex<State>, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length, mut authorization) = (String::new(), 0, None);
    reader.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    if path == "/lms" {
        let text = String::from_utf8(body).unwrap();
        let answer = lms(shared, text.lines().map(str::to_owned).collect());
        return answer_with(&mut stream, 200, &answer);
    }
    let state = lock(shared);
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && authorization != wanted {
        return answer_with(
            &mut stream,
            401,
            r#"{"error":{"message":"Malformed or missing LM Studio API token"}}"#,
        );
    }
    match path {
        "/api/v1/models" if state.has_v1 => {
            answer_with(&mut stream, 200, &list(&state).to_string())
        }
        "/api/v1/chat" if state.has_v1 => chat(shared, state, true, &body, &mut stream),
        "/v1/chat/completions" => chat(shared, state, false, &body, &mut stream),
        _ => answer_with(
            &mut stream,
            200,
            r#"{"error":"Unexpected endpoint or method. Returning 200 anyway"}"#,
        ),
    }
}

fn answer_with(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn list(state: &State) -> Value {
    let context = |one: &Instance| (!state.odd.hides_context).then_some(one.context);
    let instance = |one: &Instance| json!({ "id": one.id, "config": { "context_length": context(one), "parallel": one.parallel } });
    let model = |model: &Model| {
        json!({
            "type": "llm", "key": model.key, "format": model.format, "max_context_length": 262_144,
            "loaded_instances": model.loaded.iter().map(instance).collect::<Vec<_>>(),
        })
    };
    let mut models: Vec<_> = state.models.iter().map(model).collect();
    if state.odd.lists_oddities {
        models.push(json!({ "key": "on/disk", "format": "mlx", "loaded_instances": null }));
        models.push(json!({ "type": "embedding", "key": 7 }));
    }
    json!({ "models": models })
}

/// LM Studio's own command line tool.
fn lms(shared: &Mutex<State>, arguments: Vec<String>) -> String {
    let mut state = lock(shared);
    state.lms.push(arguments.clone());
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    match arguments[0].as_str() {
        "ps" => {
            let has_loaded = state.lms.iter().any(|call| call[0] == "load");
            let is_restored = has_loaded && chunk_on_disk(&state.engine) == Some(2048);
            if is_restored && state.odd.failing_looks > 0 {
                state.odd.failing_looks -= 1;
                return "Error: not ready".to_owned();
            }
            let loads = state.lms.iter().filter(|call| call[0] == "load").count();
            if let Some((after, looks @ 1..)) = &mut state.odd.failing_looks_after
                && loads == *after
            {
                *looks -= 1;
                return "Error: not ready".to_owned();
            }
            let is_busy = state.odd.busy_looks > 0;
            state.odd.busy_looks = state.odd.busy_looks.saturating_sub(1);
            let rows = state
                .models
                .iter()
                .flat_map(|model| model.loaded.iter().map(move |one| (model, one)));
            let row = |(model, one): (&Model, &Instance)| {
                json!({
                    "type": "llm", "identifier": one.id, "modelKey": model.key, "path": format!("dir/{}", model.key),
                    "format": if model.format == "mlx" { "safetensors" } else { "gguf" }, "deviceIdentifier": null,
                    "contextLength": one.context, "maxContextLength": 262_144, "ttlMs": one.ttl_ms,
                    "parallel": one.parallel, "status": if one.is_busy || is_busy { "processingPrompt" } else { "idle" }, "queued": 0,
                })
            };
            Value::from(rows.map(row).collect::<Vec<_>>()).to_string()
        }
        "unload" => {
            state
                .models
                .iter_mut()
                .for_each(|model| model.loaded.retain(|one| one.id != arguments[1]));
            String::new()
        }
        _ => {
            while state.odd.load_hangs && !state.is_over {
                drop(state);
                thread::sleep(Duration::from_millis(10));
                state = lock(shared);
            }
            let loads = state.lms.iter().filter(|call| call[0] == "load");
            let is_refused = state
                .odd
                .refuses
                .iter()
                .any(|key| arguments[1].ends_with(key));
            let count = loads.count();
            if state.odd.foreign_load == Some(count) {
                let key = arguments[1].strip_prefix("dir/").unwrap();
                load(&mut state, key, value("--identifier").unwrap(), 9000);
            }
            let fails = state.odd.failing_loads.contains(&count);
            if is_refused || fails || state.odd.foreign_load == Some(count) {
                return "Error: Failed to load model".to_owned();
            }
            let number = |flag| value(flag).and_then(|text| text.parse().ok());
            let context = number("--context-length").unwrap_or(4096);
            let id = value("--identifier").unwrap();
            let key = arguments[1].strip_prefix("dir/").unwrap();
            if std::mem::take(&mut state.odd.evicts) {
                let models = state.models.iter_mut();
                models.for_each(|model| model.loaded.clear());
            }
            let one = load(&mut state, key, id, context);
            one.parallel = number("--parallel").unwrap_or(4);
            one.ttl_ms = number("--ttl").map(|seconds| seconds * 1000);
            String::new()
        }
    }
}

pub fn load<'s>(state: &'s mut State, key: &str, id: String, context: u64) -> &'s mut Instance {
    let chunk = chunk_on_disk(&state.engine).unwrap();
    let context = state.odd.fits.get(&chunk).copied().unwrap_or(context);
    let model = state
        .models
        .iter_mut()
        .find(|model| model.key == key)
        .unwrap();
    model.loaded.push(Instance {
        id,
        context,
        parallel: 4,
        ttl_ms: None,
        chunk,
        is_busy: false,
    });
    model.loaded.last_mut().unwrap()
}

fn set_busy(shared: &Mutex<State>, is_busy: bool) {
    let mut state = lock(shared);
    let loaded = state.models.iter_mut().flat_map(|model| &mut model.loaded);
    loaded.for_each(|one| one.is_busy = is_busy);
}

/// Prefills and answers with one token, in the way of each interface.
fn chat(
    shared: &Mutex<State>,
    mut state: MutexGuard<'_, State>,
    is_v1: bool,
    body: &[u8],
    stream: &mut TcpStream,
) -> std::io::Result<()> {
    let body: Value = serde_json::from_slice(body).unwrap();
    state.chats.push(body.clone());
    if let Some(error) = state.odd.error {
        return answer_with(
            stream,
            200,
            &json!({ "error": { "message": error } }).to_string(),
        );
    }
    let asked = body["model"].as_str().unwrap().to_owned();
    // As LM Studio does, if it may: "just in time".
    let is_unloaded = state.models.iter().all(|model| model.loaded.is_empty());
    if is_unloaded {
        load(&mut state, &asked, asked.clone(), 16_384);
    }
    let instances: Vec<Instance> = state
        .models
        .iter()
        .flat_map(|model| model.loaded.clone())
        .collect();
    // An unknown model is answered by one that is loaded.
    let instance = instances
        .iter()
        .find(|one| one.id == asked)
        .or(instances.first())
        .unwrap()
        .clone();
    let prompt = body["input"]
        .as_str()
        .or(body["messages"][0]["content"].as_str())
        .unwrap()
        .to_owned();
    let odd = state.odd.clone();
    let used = odd.uses.get(&instance.chunk).copied();
    let chunk = odd.stuck_at.or(used).unwrap_or(instance.chunk);
    let tokens = TEMPLATE + odd.template + prompt.len() as u64 / 4;
    let pace = state.pace.get(&chunk).copied().unwrap_or(10);
    drop(state);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    )?;
    let client = stream.try_clone()?;
    client.set_read_timeout(Some(Duration::from_millis(1)))?;
    let answered = odd.other_model.unwrap_or(&instance.id);
    let mut send = |kind: &str, data: Value| match (is_v1, kind) {
        (_, "error") => write!(stream, "event: error\ndata: {data}\n\n"),
        (true, _) => write!(stream, "event: {kind}\ndata: {data}\n\n"),
        (false, ":") => write!(stream, "{}", data.as_str().unwrap()),
        (false, _) => write!(stream, "data: {data}\n\n"),
    };
    if is_v1 {
        if is_unloaded {
            send("model_load.start", json!({ "type": "model_load.start" }))?;
        }
        send(
            "chat.start",
            json!({ "type": "chat.start", "model_instance_id": answered }),
        )?;
        send(
            "prompt_processing.start",
            json!({ "type": "prompt_processing.start" }),
        )?;
    }
    let is_whole = 2 * tokens > 3 * chunk;
    if odd.out_of_memory_above.is_some_and(|limit| chunk > limit) && is_whole {
        return send(
            "error",
            json!({ "type": "error", "error": { "type": "internal_error", "message": "[metal::malloc] out of memory" } }),
        );
    }
    let mut done = if odd.always_hits && is_whole {
        tokens - tokens / 20
    } else {
        0
    };
    let (begun, cached) = (Instant::now(), done);
    let mut number = 0;
    loop {
        let is_told = !(odd.has_no_progress || odd.is_throttled && matches!(number % 5, 2 | 3));
        let told = match (is_v1, odd.has_bare_comments) {
            _ if !is_told => Ok(()),
            (true, _) => send(
                "prompt_processing.progress",
                json!({
                    "type": "prompt_processing.progress", "progress": done as f64 / tokens as f64,
                    "seconds": odd.tells_seconds.then(|| ((done - cached) * pace) as f64 / 1e6),
                }),
            ),
            (false, true) => send(":", ": prompt-progress\n\n".into()),
            (false, false) => send(":", format!(": keepalive {done}/{tokens}\n\n").into()),
        };
        if told.is_err() {
            lock(shared).left.push((chunk, done));
            return Ok(());
        }
        if done == tokens {
            break;
        }
        if is_whole && number == 1 && odd.breaks_off_from.is_some_and(|from| chunk >= from) {
            let mut state = lock(shared);
            let models = state.models.iter_mut().filter(|_| odd.crash_unloads);
            models.for_each(|model| model.loaded.clear());
            return Ok(());
        }
        if is_whole && number == 1 && odd.silent_from.is_some_and(|from| chunk >= from) {
            set_busy(shared, true);
            // At work until the client goes.
            while !lock(shared).is_over && !matches!(client.peek(&mut [0]), Ok(0)) {
                thread::sleep(Duration::from_millis(10));
            }
            set_busy(shared, false);
        }
        done = tokens.min(done + chunk);
        number += 1;
        thread::sleep(
            (Duration::from_micros(pace) * u32::try_from(done - cached).unwrap())
                .saturating_sub(begun.elapsed()),
        );
    }
    let seconds = tokens as f64 * pace as f64 / 1e6;
    let mut state = lock(shared);
    let loads = state.lms.iter().filter(|call| call[0] == "load").count();
    state.prefills.push(Prefill {
        load: loads,
        chunk,
        tokens,
        seconds,
        prompt,
    });
    if let Some((count, meddle)) = state.odd.meddles
        && state.prefills.len() == count
    {
        meddle(&mut state);
    }
    drop(state);
    if is_v1 {
        send(
            "message.delta",
            json!({ "type": "message.delta", "content": "x" }),
        )?;
        let tokens = if odd.has_no_usage {
            Value::Null
        } else {
            odd.counts.unwrap_or(tokens).into()
        };
        let figures = json!({ "input_tokens": tokens, "total_output_tokens": 1, "time_to_first_token_seconds": seconds });
        return send(
            "chat.end",
            json!({ "type": "chat.end", "result": { "model_instance_id": answered, "stats": figures } }),
        );
    }
    send(
        "",
        json!({ "model": answered, "choices": [{ "index": 0, "delta": { "content": "x" }, "finish_reason": null }] }),
    )?;
    if !odd.has_no_usage {
        let template = TEMPLATE + odd.template;
        // Only where another prompt has put it there since the model was loaded.
        let is_warm = lock(shared)
            .prefills
            .iter()
            .rev()
            .skip(1)
            .any(|one| one.load == loads);
        let cached = if odd.caches_template && is_warm {
            template
        } else {
            cached
        };
        let details = json!({ "cached_tokens": cached });
        send(
            "",
            json!({ "model": answered, "choices": [], "usage": { "prompt_tokens": tokens, "completion_tokens": 1, "prompt_tokens_details": details } }),
        )?;
        // What comes after it says nothing of the prompt.
        send("", json!({ "model": answered, "choices": [] }))?;
    }
    write!(stream, "data: [DONE]\n\n")
}
