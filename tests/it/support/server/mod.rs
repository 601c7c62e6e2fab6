//! A fake LM Studio: its server on loopback and the `lms` of its home, with models that take the chunk from disk when they
//! are loaded. Its clock is made up: what it tells of a prefill are the seconds that its table says.
#![allow(
    clippy::cast_precision_loss,
    clippy::struct_excessive_bools,
    clippy::too_many_lines,
    reason = "small numbers, and an answer that is told from its beginning to its end"
)]

mod answers;

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::Value;

use super::standins::executable_text;

/// It ends when it is dropped.
pub struct FakeLmStudio {
    address: SocketAddr,
    shared: Arc<Mutex<State>>,
}

/// Everything that it knows and can be told.
#[derive(Default)]
pub struct State {
    /// The file that has the chunk.
    pub engine: PathBuf,
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
    /// Whether it is at work on what never ends.
    is_busy: bool,
    is_over: bool,
}

pub struct Model {
    pub key: String,
    pub format: &'static str,
    pub loaded: Vec<Instance>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub context: u64,
    pub parallel: u64,
    pub ttl_ms: Option<u64>,
    pub chunk: u64,
}

/// What another client does.
pub type Meddle = fn(&mut State);

/// What is odd; by chunk where it says so.
#[derive(Clone, Default)]
pub struct Odd {
    /// How whole prefills fail from this chunk on.
    pub fails: Option<(u64, Failure)>,
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
    /// The context that LM Studio fits, whatever was asked for.
    pub fits: BTreeMap<u64, u64>,
    pub is_throttled: bool,
    pub has_no_progress: bool,
    /// Progress comes with the seconds of the table, as from `direct.py`, so that a busy machine makes no difference.
    pub tells_seconds: bool,
    pub has_bare_comments: bool,
    /// The last token is a step of its own, as in the sequential kit of mlx-engine.
    pub has_last_step: bool,
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
    /// `lms ps` does not say where models are.
    pub hides_path: bool,
    /// How often `lms ps` still shows every model at work.
    pub busy_looks: usize,
    /// The next model that is loaded evicts all others.
    pub evicts: bool,
    pub load_hangs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    OutOfMemory,
    BreaksOff,
    /// It breaks off, and the model is gone.
    Crashes,
    IsSilent,
}

#[derive(Clone)]
pub struct Prefill {
    pub chunk: u64,
    pub tokens: u64,
    pub prompt: String,
    /// How many loads there had been.
    load: usize,
}

impl FakeLmStudio {
    /// The LM Studio of `home`, whose models take the chunk of `engine`.
    pub fn start(home: &Path, engine: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(State {
            engine: engine.to_owned(),
            has_v1: true,
            ..State::default()
        }));
        let state = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if lock(&state).is_over {
                    break;
                }
                let state = Arc::clone(&state);
                // The client may go at any moment.
                thread::spawn(move || answers::serve(&state, stream).unwrap_or(()));
            }
        });
        executable_text(&home.join("bin/lms"), &answers::lms_at(address.port()));
        Self { address, shared }
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
        state.models.push(Model {
            key: key.to_owned(),
            format,
            loaded: Vec::new(),
        });
        let one = state.load(key, key, context);
        (one.parallel, one.ttl_ms) = (3, Some(600_000));
    }

    /// What is loaded, of every model.
    pub fn loaded(&self) -> Vec<Instance> {
        let state = self.state();
        state.loaded().map(|(_, one)| one.clone()).collect()
    }
}

impl Drop for FakeLmStudio {
    fn drop(&mut self) {
        self.state().is_over = true;
        // So that it looks whether it is over.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    /// Loads a model that is on disk, with the context that fits.
    pub fn load(&mut self, key: &str, id: &str, context: u64) -> &mut Instance {
        let chunk = chunk_on_disk(&self.engine).unwrap();
        let mut models = self.models.iter_mut();
        let model = models.find(|model| model.key == key).unwrap();
        model.loaded.push(Instance {
            id: id.to_owned(),
            context: *self.odd.fits.get(&chunk).unwrap_or(&context),
            parallel: 4,
            chunk,
            ..Instance::default()
        });
        model.loaded.last_mut().unwrap()
    }

    /// How often `lms load` was called.
    pub fn loads(&self) -> usize {
        self.lms.iter().filter(|call| call[0] == "load").count()
    }

    fn loaded(&self) -> impl Iterator<Item = (&Model, &Instance)> {
        let models = self.models.iter();
        models.flat_map(|model| model.loaded.iter().map(move |one| (model, one)))
    }

    fn unload_all(&mut self) {
        for model in &mut self.models {
            model.loaded.clear();
        }
    }
}

/// A test that failed while it held the lock is no reason for another panic.
fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The chunk in an engine's file.
pub fn chunk_on_disk(engine: &Path) -> Option<u64> {
    let text = fs::read_to_string(engine).ok()?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("PROMPT_PROCESSING_CHUNK_SIZE = "))?;
    value.replace('_', "").parse().ok()
}
