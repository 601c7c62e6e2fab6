//! Builds LM Studio homes in the vendor's shape. Every source text here is written by hand.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lmpatch::lmstudio::runtimes::PREFERENCES;
use sha2::{Digest as _, Sha256};

use super::{Before, Env};

/// Where the packages are in a backend.
pub const SITE_PACKAGES: &str = "lib/python3.11/site-packages";

/// An engine in the shape of September 2025 to March 2026, with this chunk.
pub fn engine_with_constant(size: &str) -> String {
    format!(
        "# PROMPT_PROCESSING_CHUNK_SIZE = 1\nPROMPT_PROCESSING_CHUNK_SIZE = {size}\n\n\nclass CacheWrapper:\n    \
         def __init__(self, chunk_size: int = PROMPT_PROCESSING_CHUNK_SIZE):\n        self.chunk_size = chunk_size\n"
    )
}

/// An engine in the shape since March 2026, with this chunk.
pub fn engine_since_2026(size: &str) -> String {
    format!(
        "PROMPT_PROCESSING_CHUNK_SIZE = {size}\n\n\ndef validate_prefill_step_size(size=None):\n    \
         return PROMPT_PROCESSING_CHUNK_SIZE if size is None else size\n\n\nclass CacheWrapper:\n    \
         def __init__(self, chunk_size: int):\n        self._chunk_size = chunk_size\n"
    )
}

/// An engine in the shape of February to September 2025, with this chunk.
pub fn engine_with_parameter(size: &str) -> String {
    format!(
        "class CacheWrapper:\n    def _prefill(self, tokens, chunk_size: int = {size}):\n        \
         current_chunk_size = min(chunk_size, len(tokens))\n        return tokens[:current_chunk_size]\n"
    )
}

/// `mlx_lm/generate.py` with these values for `generate_step`, `speculative_generate_step` and `BatchGenerator`.
pub fn generate(step: &str, speculative: &str, batch: &str) -> String {
    format!(
        "def generate_step(prompt, *, prefill_step_size: int = {step}):\n    return prompt[:prefill_step_size]\n\n\n\
         def speculative_generate_step(prompt, prefill_step_size: int = {speculative}):\n    \
         return generate_step(prompt, prefill_step_size=prefill_step_size)\n\n\n\
         class BatchGenerator:\n    def __init__(self, prefill_step_size: int = {batch}):\n        \
         self.prefill_step_size = prefill_step_size\n"
    )
}

/// `mlx_lm/generate.py` as the vendor ships it.
pub fn stock_generate() -> String {
    generate("2048", "512", "2048")
}

/// One backend that is being built.
pub struct BackendDir {
    pub root: PathBuf,
}

impl BackendDir {
    /// A backend called `name` in the LM Studio home `lmstudio`.
    pub fn new(lmstudio: &Path, name: &str) -> Self {
        let root = super::amphibian(lmstudio).join(name);
        fs::create_dir_all(root.join(SITE_PACKAGES)).unwrap();
        Self { root }
    }

    /// A path below `site-packages`.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(SITE_PACKAGES).join(relative)
    }

    /// Where the engine's file is.
    pub fn engine(&self) -> PathBuf {
        self.path("mlx_engine/cache_wrapper.py")
    }

    /// Where mlx-lm's file is.
    pub fn generate(&self) -> PathBuf {
        self.path("mlx_lm/generate.py")
    }

    /// Writes a file below `site-packages`.
    pub fn write(self, relative: &str, content: impl AsRef<[u8]>) -> Self {
        super::write(&self.path(relative), content);
        self
    }

    pub fn with_engine(self, content: impl AsRef<[u8]>) -> Self {
        self.write("mlx_engine/cache_wrapper.py", content)
    }

    pub fn with_generate(self, content: impl AsRef<[u8]>) -> Self {
        self.write("mlx_lm/generate.py", content)
    }

    /// Writes a `RECORD` of mlx-lm that lists `vendor` as the content of its file.
    pub fn with_record(self, vendor: impl AsRef<[u8]>) -> Self {
        let record = record_row("mlx_lm/generate.py", vendor.as_ref());
        self.write(
            "mlx_lm-0.0.1.dist-info/RECORD",
            format!("mlx_lm/__init__.py,,\n{record}\n"),
        )
    }

    /// Writes a stock 2048 engine with a provable `generate.py`.
    pub fn usual(self) -> Self {
        self.with_engine(engine_since_2026("2048"))
            .with_listed_generate(stock_generate())
    }

    /// Writes mlx-lm's file, and a `RECORD` that lists it as it is.
    pub fn with_listed_generate(self, content: impl AsRef<[u8]>) -> Self {
        self.with_generate(&content).with_record(content)
    }

    /// Fails the test unless the engine since 2026 and mlx-lm have this number, and are otherwise the vendor's.
    #[track_caller]
    pub fn is_set_to(&self, size: &str) {
        assert_eq!(super::text(self.engine()), engine_since_2026(size));
        assert_eq!(super::text(self.generate()), generate(size, size, size));
    }

    /// Writes files where Python's cached bytecode of `package/stem` and of a neighbour would be.
    pub fn with_bytecode(self, package: &str, stem: &str) -> Self {
        let names = [
            format!("{stem}.cpython-311.pyc"),
            format!("{stem}.cpython-311.opt-1.pyc"),
            format!("{stem}.cpython-311.opt-2.pyc"),
            format!("{stem}.cpython-313.pyc"),
            format!("{stem}_other.cpython-311.pyc"),
            "__init__.cpython-311.pyc".to_owned(),
        ];
        names.iter().fold(self, |backend, name| {
            backend.write(&format!("{package}/__pycache__/{name}"), "stale")
        })
    }
}

/// A stock 2048 engine with a provable `generate.py`: the usual backend.
pub fn usual_backend(lmstudio: &Path, name: &str) -> BackendDir {
    BackendDir::new(lmstudio, name).usual()
}

/// A user's home with one backend that `make` fills, and everything as it is then.
pub fn one_backend(make: impl FnOnce(BackendDir) -> BackendDir) -> (Env, BackendDir, Before) {
    let env = Env::new();
    let backend = make(BackendDir::new(&env.lmstudio(), NAME));
    let before = Before::of(env.user());
    (env, backend, before)
}

/// The name of a usual backend.
pub const NAME: &str = "app-mlx-generate-mac14-arm64@34";

impl Env {
    /// A user home with one usual backend, which LM Studio's selected runtime uses.
    pub fn in_use() -> (Self, BackendDir) {
        let env = Self::new();
        let backend = env.backend(NAME);
        env.runtime("1.12.0", &[NAME]);
        env.select("1.12.0");
        (env, backend)
    }

    /// [`usual_backend`] in the usual home.
    pub fn backend(&self, name: &str) -> BackendDir {
        usual_backend(&self.lmstudio(), name)
    }

    /// [`runtime`] in the usual home.
    pub fn runtime(&self, version: &str, backends: &[&str]) {
        runtime(&self.lmstudio(), version, backends);
    }

    /// [`select`] in the usual home.
    pub fn select(&self, version: &str) {
        select(&self.lmstudio(), version);
    }
}

pub fn record_row(path: &str, content: &[u8]) -> String {
    let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(content));
    format!("{path},sha256={digest},{}", content.len())
}

/// Writes the manifest of a runtime that is made of `backends`.
pub fn runtime(lmstudio: &Path, version: &str, backends: &[&str]) {
    let package = |backend: &&str| format!("_amphibian/{backend}");
    let names: Vec<_> = backends.iter().map(package).collect();
    let manifest = serde_json::json!({
        "name": RUNTIME, "version": version, "engine": "mlx-llm", "vendor_lib_package_names": names,
    });
    let path = format!("extensions/backends/{RUNTIME}-{version}/backend-manifest.json");
    super::write(&lmstudio.join(path), manifest.to_string());
}

/// Writes which runtime LM Studio has selected.
pub fn select(lmstudio: &Path, version: &str) {
    let rows =
        serde_json::json!([{ "model_format": "safetensors", "name": RUNTIME, "version": version }]);
    super::write(&lmstudio.join(PREFERENCES), rows.to_string());
}

/// The name of the runtime that [`runtime`] writes.
pub const RUNTIME: &str = "mlx-llm-mac-arm64-apple-metal-advsimd";

/// `mlx_lm/generate.py` of the size that it has had since 2026, about 75 KB, with the vendor's five sites.
pub fn real_size_generate() -> String {
    let function = |name: &str, value: u32| {
        format!(
            "def {name}(\n    prompt: List[int],\n    *,\n    max_tokens: int = 256,  # prefill_step_size=1\n    \
             prefill_step_size: int = {value},\n):\n    return consume(prompt, prefill_step_size=prefill_step_size)\n\n\n"
        )
    };
    let class = |name: &str| {
        format!(
            "class {name}:\n    def __init__(self, model, *, prefill_step_size: int = 2048):\n        \
             self.step = prefill_step_size\n\n\n"
        )
    };
    let batch = class("PromptProcessingBatch").trim_end().to_owned()
        + "\n\n    @classmethod\n    def empty(cls, model, prefill_step_size: int = 2048):\n        \
           return cls(model, prefill_step_size=prefill_step_size)\n\n\n";
    [
        "\"\"\"Text generation, prefill_step_size: int = 1 is a decoy.\"\"\"\n\n\n".to_owned(),
        (1..10).map(unrelated_function).collect(),
        function("generate_step", 2048),
        function("speculative_generate_step", 512),
        (10..40).map(unrelated_function).collect(),
        batch,
        (40..80).map(unrelated_function).collect(),
        class("BatchGenerator"),
        (80..118).map(unrelated_function).collect(),
    ]
    .concat()
}

/// Ordinary Python that a reader has to pass over.
fn unrelated_function(number: u32) -> String {
    format!(
        "def part_{number}(tokens: List[int], cache: Optional[Dict[str, Any]] = None, *, limit: int = {number}):\n    \
         \"\"\"Keeps the newest `limit` tokens.\n\n    Args:\n        tokens (List[int]): what was read so far.\n        \
         limit (int): how many of them are kept. Default: ``{number}``.\n    \"\"\"\n    \
         # A model that has no cache yet starts with an empty one.\n    \
         state = cache or {{\"offset\": 0, 'name': f\"part {{limit}}\"}}\n    \
         for index, token in enumerate(tokens[-limit:], start=1):\n        \
         if token == 0x1F or (index > 2_048 and state[\"offset\"] <= 1.5e-3):\n            continue\n        \
         state[\"offset\"] += max(token, index)\n    return state\n\n\n"
    )
}
