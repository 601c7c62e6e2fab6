//! A fake LM Studio on loopback: the REST routes, and models that take the chunk from disk when they are loaded.
//!
//! To add routes, extend [`route`]; it is the only place that knows them. An [`Answer::Stream`] writes its body itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// A fake LM Studio. It ends when it is dropped.
pub struct FakeLmStudio {
    address: SocketAddr,
    shared: Arc<Mutex<State>>,
    listener: Option<JoinHandle<()>>,
}

/// Everything that the fake knows and can be told.
pub struct State {
    /// The `cache_wrapper.py` whose chunk a model takes when it is loaded.
    pub engine: PathBuf,
    /// The models on disk.
    pub models: Vec<Model>,
    /// The token that is asked for, if any.
    pub token: Option<String>,
    /// What goes wrong, by path: `/api/v1/models/load`.
    pub faults: BTreeMap<String, Fault>,
    /// Every request so far, oldest first.
    pub requests: Vec<Request>,
    /// Which dated version of the documentation the answers follow.
    pub dialect: Dialect,
    /// Whether a load request may ask for `parallel`; the newest documentation does not list it.
    pub takes_parallel: bool,
    /// The best interface that it has; the lesser ones are there too.
    pub speaks: Speaks,
    /// How long a prefill takes.
    pub pace: Pace,
    /// What goes wrong, or is odd, with prefills.
    pub manner: Manner,
    /// Every prefill that came to its end, oldest first.
    pub prefills: Vec<Prefill>,
    /// Where it is set, the server answers only while this file is there; without it no model is loaded.
    pub running: Option<PathBuf>,
    /// When that file was made: another one is another start of the app.
    pub since: Option<SystemTime>,
    is_over: bool,
}

/// A model on disk.
pub struct Model {
    pub key: String,
    pub format: String,
    pub instances: Vec<Instance>,
}

/// A loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub context_length: u64,
    pub parallel: u64,
    /// The chunk that the engine's file had when this was loaded.
    pub chunk: Option<u64>,
    pub loaded_at: Instant,
}

/// The interfaces, the poorest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaks {
    OpenAi,
    V0,
    V1,
}

/// How long a prefill takes: so much for each chunk, and so much for each token.
#[derive(Clone, Copy)]
pub struct Pace {
    pub per_chunk: Duration,
    pub per_token: Duration,
}

/// What is odd about prefills.
#[derive(Clone, Default)]
pub struct Manner {
    /// Above this chunk memory runs out, which is told.
    pub out_of_memory_above: Option<u64>,
    /// Above this chunk the server dies in the middle: the file [`State::running`] goes away.
    pub dies_above: Option<u64>,
    /// From this chunk on nothing is said any more after the beginning.
    pub stalls_from: Option<u64>,
    /// From this chunk on the stream ends in the middle.
    pub cuts_from: Option<u64>,
    /// The chunk that is used whatever the file says.
    pub stuck_at: Option<u64>,
    /// Events are left out as if there were a limit on their rate.
    pub is_throttled: bool,
    /// No progress is told.
    pub is_silent: bool,
    /// The prompt cache looks for the prompt's end instead of its beginning: every prompt is a hit.
    pub always_hits: bool,
}

/// One prefill, as it really was.
#[derive(Clone, Debug)]
pub struct Prefill {
    pub chunk: u64,
    pub tokens: u64,
    pub cached: u64,
    /// From the request received to the first token sent.
    pub seconds: f64,
    pub prompt: String,
}

/// What goes wrong with a request.
#[derive(Clone)]
pub enum Fault {
    /// This status, always.
    Status(u16),
    /// "Busy" for so many requests, then well.
    Busy(usize),
    /// An answer that comes this late.
    Slow(Duration),
    /// A connection that ends before the answer.
    Cut,
    /// An answer that is no JSON.
    Garbage,
}

/// A dated version of the documentation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Options at top level, `instance_id`.
    Newest,
    /// Options under `config`, `model_instance_id`.
    October2025,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

/// One answer.
pub enum Answer {
    Json(u16, Value),
    /// Writes head and body itself.
    Stream(Box<dyn FnOnce(&mut TcpStream) + Send>),
}

impl Answer {
    /// An error in the shape that LM Studio gives it.
    pub fn error(status: u16, message: &str) -> Self {
        Self::Json(
            status,
            json!({ "error": { "message": message, "type": "invalid_request" } }),
        )
    }
}

/// What every request may use.
pub type Shared<'s> = &'s Arc<Mutex<State>>;

/// The routes. This is the place for more of them.
fn route(shared: Shared, request: &Request) -> Answer {
    let needed = match request.path.as_str() {
        path if path.starts_with("/api/v1/") => Speaks::V1,
        path if path.starts_with("/api/v0/") => Speaks::V0,
        _ => Speaks::OpenAi,
    };
    if lock(shared).speaks < needed {
        // As LM Studio does it: 200, and the truth in the body.
        let said = format!(
            "Unexpected endpoint or method. ({} {}). Returning 200 anyway",
            request.method, request.path
        );
        return Answer::Json(200, json!({ "error": said }));
    }
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/api/v1/models") => list(&lock(shared)),
        ("POST", "/api/v1/models/load") => load(&mut lock(shared), &request.body),
        ("POST", "/api/v1/models/unload") => unload(&mut lock(shared), &request.body),
        ("POST", "/api/v1/chat") => chat(shared, Speaks::V1, &request.body),
        ("GET", "/api/v0/models") => list_v0(&lock(shared)),
        ("POST", "/api/v0/chat/completions") => chat(shared, Speaks::V0, &request.body),
        ("POST", "/v1/chat/completions") => chat(shared, Speaks::OpenAi, &request.body),
        (method, path) => Answer::error(
            404,
            &format!("Unexpected endpoint or method. ({method} {path})"),
        ),
    }
}

fn list(state: &State) -> Answer {
    let models = state.models.iter().map(|model| {
        let instances = model.instances.iter().map(|instance| {
            let config =
                json!({ "context_length": instance.context_length, "parallel": instance.parallel });
            json!({ "id": instance.id, "config": config })
        });
        json!({
            "type": "llm", "key": model.key, "format": model.format, "display_name": model.key,
            "max_context_length": 262_144, "loaded_instances": instances.collect::<Vec<_>>(),
        })
    });
    Answer::Json(200, json!({ "models": models.collect::<Vec<_>>() }))
}

fn load(state: &mut State, body: &Value) -> Answer {
    let chunk = chunk_on_disk(&state.engine);
    let dialect = state.dialect;
    let options = if dialect == Dialect::October2025 {
        &body["config"]
    } else {
        body
    };
    let takes_parallel = state.takes_parallel;
    if !takes_parallel && options.get("parallel").is_some() {
        return Answer::error(400, "Unrecognized key(s) in object: 'parallel'");
    }
    let Some(model) = state
        .models
        .iter_mut()
        .find(|model| body["model"] == model.key.as_str())
    else {
        return Answer::error(404, "Model not found");
    };
    let ids = (1..).map(|number| {
        if number == 1 {
            model.key.clone()
        } else {
            format!("{}:{number}", model.key)
        }
    });
    let id = ids
        .into_iter()
        .find(|id| model.instances.iter().all(|instance| instance.id != *id))
        .unwrap();
    let context_length = options["context_length"].as_u64().unwrap_or(4096);
    let parallel = options["parallel"].as_u64().unwrap_or(4);
    let instance = Instance {
        id: id.clone(),
        context_length,
        parallel,
        chunk,
        loaded_at: Instant::now(),
    };
    model.instances.push(instance);
    let config = json!({ "context_length": context_length });
    Answer::Json(
        200,
        match dialect {
            Dialect::Newest => {
                json!({ "type": "llm", "instance_id": id, "load_time_seconds": 0.1, "status": "loaded", "load_config": config })
            }
            Dialect::October2025 => {
                json!({ "model_instance_id": id, "config": config, "load_time_seconds": 0.1 })
            }
        },
    )
}

fn unload(state: &mut State, body: &Value) -> Answer {
    let id = body["instance_id"].as_str().unwrap_or_default();
    let is_it = |instance: &Instance| instance.id == id;
    match state
        .models
        .iter_mut()
        .find(|model| model.instances.iter().any(is_it))
    {
        Some(model) => {
            model.instances.retain(|instance| !is_it(instance));
            Answer::Json(200, json!({ "instance_id": id }))
        }
        None => Answer::error(404, "No such instance"),
    }
}

fn list_v0(state: &State) -> Answer {
    let models = state.models.iter().map(|model| {
        let loaded = model.instances.first();
        json!({
            "id": model.key, "object": "model", "compatibility_type": model.format, "max_context_length": 262_144,
            "state": if loaded.is_some() { "loaded" } else { "not-loaded" },
            "loaded_context_length": loaded.map(|instance| instance.context_length),
        })
    });
    Answer::Json(
        200,
        json!({ "object": "list", "data": models.collect::<Vec<_>>() }),
    )
}

/// The tokens that the chat template adds.
const TEMPLATE: u64 = 16;

/// Four characters are a token.
fn tokens(characters: usize) -> u64 {
    u64::try_from(characters / 4).unwrap()
}

/// One prefill that is under way.
struct Work {
    speaks: Speaks,
    chunk: u64,
    prompt: String,
    tokens: u64,
    cached: u64,
    pace: Pace,
    manner: Manner,
}

/// Prefills and answers with one token, in the way of each interface.
fn chat(shared: Shared, speaks: Speaks, body: &Value) -> Answer {
    let received = Instant::now();
    let mut state = lock(shared);
    let key = body["model"].as_str().unwrap_or_default().to_owned();
    let instance = state
        .models
        .iter()
        .find(|model| model.key == key)
        .map(|model| model.instances.first().cloned());
    let chunk = match instance {
        None => return Answer::error(404, "Model not found"),
        Some(Some(instance)) => instance.chunk,
        // Loaded because it was asked for.
        Some(None) => {
            load(&mut state, &json!({ "model": key }));
            chunk_on_disk(&state.engine)
        }
    };
    let prompt = body["input"]
        .as_str()
        .or(body["messages"][0]["content"].as_str())
        .unwrap_or_default()
        .to_owned();
    let manner = state.manner.clone();
    let chunk = manner.stuck_at.or(chunk).unwrap_or(512);
    let common = |earlier: &Prefill| {
        earlier
            .prompt
            .chars()
            .zip(prompt.chars())
            .take_while(|(a, b)| a == b)
            .count()
    };
    let mut cached = tokens(state.prefills.iter().map(common).max().unwrap_or_default());
    let total = TEMPLATE + tokens(prompt.chars().count());
    if manner.always_hits
        && state
            .prefills
            .iter()
            .any(|earlier| earlier.tokens.abs_diff(total) < 100)
    {
        cached = total - total / 20;
    }
    let work = Work {
        speaks,
        chunk,
        prompt,
        tokens: total,
        cached,
        pace: state.pace,
        manner,
    };
    let shared = Arc::clone(shared);
    Answer::Stream(Box::new(move |stream| {
        // The client may have gone.
        let _ = prefill(&shared, &work, received, stream);
    }))
}

fn prefill(
    shared: Shared,
    work: &Work,
    received: Instant,
    stream: &mut TcpStream,
) -> std::io::Result<()> {
    let is_full = work.tokens >= 2 * work.chunk;
    if work
        .manner
        .out_of_memory_above
        .is_some_and(|chunk| work.chunk > chunk)
        && is_full
    {
        return fail(work, stream, "[metal::malloc] out of memory");
    }
    let is_stream = work.speaks != Speaks::V0;
    if is_stream {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
        )?;
    }
    let (mut done, mut due) = (work.cached, received);
    let mut number = 0;
    progress(work, stream, done)?;
    while done < work.tokens {
        let step = work.chunk.min(work.tokens - done);
        due += work.pace.per_chunk + work.pace.per_token * u32::try_from(step).unwrap();
        thread::sleep(due.saturating_duration_since(Instant::now()));
        done += step;
        number += 1;
        // Of five events the second and the third are left out.
        if !work.manner.is_throttled || !matches!(number % 5, 2 | 3) {
            progress(work, stream, done)?;
        }
        if is_full && number == 1 && interrupted(shared, work) {
            return Ok(());
        }
    }
    let seconds = received.elapsed().as_secs_f64();
    let (chunk, tokens, cached, prompt) =
        (work.chunk, work.tokens, work.cached, work.prompt.clone());
    lock(shared).prefills.push(Prefill {
        chunk,
        tokens,
        cached,
        seconds,
        prompt,
    });
    finish(work, stream, seconds)
}

/// Whether the prefill ends here, in the middle.
fn interrupted(shared: Shared, work: &Work) -> bool {
    let manner = &work.manner;
    if manner.dies_above.is_some_and(|chunk| work.chunk > chunk) {
        let running = lock(shared).running.clone().unwrap();
        fs::remove_file(running).unwrap();
        return true;
    }
    if manner.stalls_from.is_some_and(|chunk| work.chunk >= chunk) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !lock(shared).is_over && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        return true;
    }
    manner.cuts_from.is_some_and(|chunk| work.chunk >= chunk)
}

fn fail(work: &Work, stream: &mut TcpStream, why: &str) -> std::io::Result<()> {
    let error = json!({ "type": "error", "error": { "type": "internal_error", "message": why } });
    if work.speaks == Speaks::V1 {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
        )?;
        event(stream, "error", &error)?;
        return event(
            stream,
            "chat.end",
            &json!({ "type": "chat.end", "result": { "stats": {} } }),
        );
    }
    write_answer(stream, 500, &error.to_string());
    Ok(())
}

fn progress(work: &Work, stream: &mut TcpStream, done: u64) -> std::io::Result<()> {
    if work.manner.is_silent {
        return Ok(());
    }
    match work.speaks {
        Speaks::V0 => Ok(()),
        Speaks::OpenAi => {
            stream.write_all(format!(": keepalive {done}/{}\n\n", work.tokens).as_bytes())
        }
        Speaks::V1 => {
            let part = f64::from(u32::try_from(done).unwrap())
                / f64::from(u32::try_from(work.tokens).unwrap());
            let kind = "prompt_processing.progress";
            event(stream, kind, &json!({ "type": kind, "progress": part }))
        }
    }
}

fn finish(work: &Work, stream: &mut TcpStream, seconds: f64) -> std::io::Result<()> {
    let usage = json!({ "prompt_tokens": work.tokens, "completion_tokens": 1, "total_tokens": work.tokens + 1 });
    match work.speaks {
        Speaks::V1 => {
            event(
                stream,
                "message.delta",
                &json!({ "type": "message.delta", "content": "x" }),
            )?;
            let stats = json!({
                "input_tokens": work.tokens, "total_output_tokens": 1, "tokens_per_second": 50.0,
                "time_to_first_token_seconds": seconds,
            });
            event(
                stream,
                "chat.end",
                &json!({ "type": "chat.end", "result": { "output": [], "stats": stats } }),
            )
        }
        Speaks::V0 => {
            // Decoding takes time too, and must not be counted.
            thread::sleep(Duration::from_millis(200));
            let answer = json!({
                "choices": [{ "index": 0, "message": { "content": "x" }, "finish_reason": "length" }], "usage": usage,
                "stats": { "tokens_per_second": 50.0, "time_to_first_token": seconds, "generation_time": 0.2 },
                "runtime": { "name": "mlx-llm", "version": "1.11.0" },
            });
            write_answer(stream, 200, &answer.to_string());
            Ok(())
        }
        Speaks::OpenAi => {
            let mut usage = usage;
            usage["prompt_tokens_details"] = json!({ "cached_tokens": work.cached });
            event(
                stream,
                "",
                &json!({ "choices": [{ "index": 0, "delta": { "content": "x" } }] }),
            )?;
            thread::sleep(Duration::from_millis(200));
            event(
                stream,
                "",
                &json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "length" }] }),
            )?;
            event(stream, "", &json!({ "choices": [], "usage": usage }))?;
            stream.write_all(b"data: [DONE]\n\n")
        }
    }
}

fn event(stream: &mut TcpStream, name: &str, data: &Value) -> std::io::Result<()> {
    let name = if name.is_empty() {
        String::new()
    } else {
        format!("event: {name}\n")
    };
    stream.write_all(format!("{name}data: {data}\n\n").as_bytes())
}

/// The chunk that an engine's file says, as Python would read it.
pub fn chunk_on_disk(engine: &Path) -> Option<u64> {
    let text = fs::read_to_string(engine).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("PROMPT_PROCESSING_CHUNK_SIZE = "))?;
    line.trim().parse().ok()
}

impl FakeLmStudio {
    /// A server whose models take their chunk from `engine`, a `cache_wrapper.py`.
    pub fn start(engine: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(State {
            engine: engine.to_owned(),
            models: Vec::new(),
            token: None,
            faults: BTreeMap::new(),
            requests: Vec::new(),
            dialect: Dialect::Newest,
            takes_parallel: true,
            speaks: Speaks::V1,
            pace: Pace {
                per_chunk: Duration::from_millis(20),
                per_token: Duration::from_micros(20),
            },
            manner: Manner::default(),
            prefills: Vec::new(),
            running: None,
            since: None,
            is_over: false,
        }));
        let state = Arc::clone(&shared);
        let listener = thread::spawn(move || {
            for stream in listener.incoming() {
                if lock(&state).is_over {
                    return;
                }
                let state = Arc::clone(&state);
                thread::spawn(move || stream.ok().and_then(|stream| serve(&state, stream)));
            }
        });
        Self {
            address,
            shared,
            listener: Some(listener),
        }
    }

    /// Where it listens, as `--url` takes it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes its port where LM Studio's settings have it.
    pub fn announce(&self, lmstudio: &Path) {
        let settings = json!({ "port": self.address.port(), "networkInterface": "127.0.0.1" });
        fs::create_dir_all(lmstudio.join(".internal")).unwrap();
        fs::write(
            lmstudio.join(".internal/http-server-config.json"),
            settings.to_string(),
        )
        .unwrap();
    }

    /// What it knows, to be read or changed; keep it for no longer than that.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    /// Puts a model on its disk.
    pub fn add_model(&self, key: &str, format: &str) {
        self.state().models.push(Model {
            key: key.to_owned(),
            format: format.to_owned(),
            instances: Vec::new(),
        });
    }

    /// Loads a model that is on its disk, as the app would; returns the instance.
    pub fn load_now(&self, key: &str, context_length: u64, parallel: u64) -> Instance {
        let options =
            json!({ "model": key, "context_length": context_length, "parallel": parallel });
        let mut state = self.state();
        let (dialect, takes_parallel) = (state.dialect, state.takes_parallel);
        (state.dialect, state.takes_parallel) = (Dialect::Newest, true);
        assert!(
            matches!(load(&mut state, &options), Answer::Json(200, _)),
            "{key} is not on the fake's disk"
        );
        (state.dialect, state.takes_parallel) = (dialect, takes_parallel);
        let model = state.models.iter().find(|model| model.key == key).unwrap();
        model.instances.last().unwrap().clone()
    }

    /// Every loaded instance, in the order of the models.
    pub fn instances(&self) -> Vec<Instance> {
        self.state()
            .models
            .iter()
            .flat_map(|model| model.instances.clone())
            .collect()
    }

    /// Makes every request of `path` go wrong.
    pub fn fails(&self, path: &str, fault: Fault) {
        self.state().faults.insert(path.to_owned(), fault);
    }

    /// The paths that were asked for, oldest first.
    pub fn paths(&self) -> Vec<String> {
        self.state()
            .requests
            .iter()
            .map(|request| request.path.clone())
            .collect()
    }
}

impl Drop for FakeLmStudio {
    fn drop(&mut self) {
        lock(&self.shared).is_over = true;
        // Wakes the listener, so that it sees that it is over.
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

/// Answers one request; none where the client or a fault ended it.
fn serve(shared: Shared, mut stream: TcpStream) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    if !is_running(&mut lock(shared)) {
        return None;
    }
    let request = read_request(&stream)?;
    let (fault, token) = {
        let mut state = lock(shared);
        state.requests.push(request.clone());
        (take_fault(&mut state, &request.path), state.token.clone())
    };
    if let Some(Fault::Slow(delay)) = fault {
        thread::sleep(delay);
    }
    let is_authorized =
        token.is_none_or(|token| request.authorization == Some(format!("Bearer {token}")));
    let answer = match fault {
        Some(Fault::Cut) => return None,
        Some(Fault::Garbage) => Answer::Stream(Box::new(|stream| {
            write_answer(stream, 200, "<html>no</html>")
        })),
        Some(Fault::Status(status)) => Answer::error(status, "told to fail"),
        Some(Fault::Busy(_)) => Answer::error(409, "Model is busy"),
        _ if !is_authorized => Answer::error(401, "Malformed or missing LM Studio API token"),
        Some(Fault::Slow(_)) | None => route(shared, &request),
    };
    match answer {
        Answer::Json(status, value) => write_answer(&mut stream, status, &value.to_string()),
        Answer::Stream(write) => write(&mut stream),
    }
    Some(())
}

/// Whether the app is there at all; where it is not, it has forgotten what was loaded.
fn is_running(state: &mut State) -> bool {
    let Some(running) = &state.running else {
        return true;
    };
    let since = fs::metadata(running).and_then(|file| file.modified()).ok();
    let is_running = since.is_some();
    let is_another = state.since.is_some() && state.since != since;
    state.since = since.or(state.since);
    if is_another {
        state
            .models
            .iter_mut()
            .for_each(|model| model.instances.clear());
    }
    is_running
}

fn take_fault(state: &mut State, path: &str) -> Option<Fault> {
    let fault = state.faults.get_mut(path)?;
    if let Fault::Busy(left) = fault {
        if *left == 0 {
            return None;
        }
        *left -= 1;
    }
    Some(fault.clone())
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        path,
        authorization,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

/// Writes a whole answer with its head. The client may be gone; that is its own affair.
pub fn write_answer(stream: &mut TcpStream, status: u16, body: &str) {
    let head = format!(
        "HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}
