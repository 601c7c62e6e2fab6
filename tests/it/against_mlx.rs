//! The real mlx-lm on MLX's CPU build, with a tiny model of random weights that is made on the spot.
//!
//! `.ci/run` installs `mlx[cpu]` and `mlx-lm` into `target/mlx-venv`; `LMPATCH_MLX` names the Python of another
//! environment. Without it the tests say that they were skipped. The CPU build is not faster at larger chunks, so what
//! is asserted is the number of prefill steps, never a speed.
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::child::eventually;
use crate::support::home::{BackendDir, NAME, SITE_PACKAGES, engine_since_2026};
use crate::support::standins::executable;
use crate::support::{Before, Env, Ran, aloud, copy_tree, list, skipped, text};
use serde_json::{Value, json};

/// A llama of one small layer, with a tokenizer that makes one token of every byte.
const MAKE_MODEL: &str = r#"
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
target = Path(sys.argv[1])
target.mkdir()
vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
vocabulary["<|end|>"] = len(vocabulary)
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<|end|>"])
tokenizer.save(str(target / "tokenizer.json"))
template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
(target / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": template,
}))
config = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1,
    "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
    "vocab_size": len(vocabulary), "max_position_embeddings": 65536, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "eos_token_id": vocabulary["<|end|>"],
}
(target / "config.json").write_text(json.dumps(config))
mx.random.seed(1)
weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
"#;

/// Starts the real server with the number that the backend's `generate.py` has: the server gives its own to
/// `generate_step` otherwise, whatever that file says. It is asked for until it answers.
const SERVE: &str = r#"
import inspect, sys
from mlx_lm.generate import generate_step
size = inspect.signature(generate_step).parameters["prefill_step_size"].default
sys.argv = ["server", "--model", sys.argv[1], "--port", sys.argv[2], "--prefill-step-size", str(size)]
from mlx_lm.server import main
main()
"#;

/// Makes 512 the fastest size and every larger one slower, so that none of them is cut short, and 64 so slow that it is;
/// also on a busy machine.
const SLOWER: &str = r"
import time
import mlx_lm.models.llama as llama
call = llama.Model.__call__
seconds = {64: 0.15, 2048: 0.4, 4096: 1.5}
def slow(self, inputs, *rest, **named):
    time.sleep(seconds.get(inputs.shape[1], 0))
    return call(self, inputs, *rest, **named)
llama.Model.__call__ = slow
";

struct Real {
    env: Env,
    backend: BackendDir,
    python: PathBuf,
    model: PathBuf,
}

/// `None`, said aloud, where there is nothing to test on.
fn real() -> Option<Real> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/mlx-venv/bin/python");
    let python = std::env::var_os("LMPATCH_MLX").map_or(usual, PathBuf::from);
    let env = Env::new();
    let find = "import mlx_lm, sys; sys.stdout.write(list(mlx_lm.__path__)[0])";
    let mut found = Command::new(&python);
    let found = env.isolate(&mut found).args(["-c", find]).output().ok();
    let Some(found) = found.filter(|found| found.status.success()) else {
        let why = format!("no real mlx-lm in {}; see .ci/run", python.display());
        skipped(&why);
        return None;
    };
    let package = PathBuf::from(String::from_utf8(found.stdout).unwrap());
    let backend = BackendDir::new(&env.lmstudio(), NAME).with_engine(engine_since_2026("2048"));
    copy_tree(&package, &backend.path("mlx_lm"));
    env.runtime("1.12.0", &[NAME]);
    env.select("1.12.0");
    // The backend's own Python: that of the environment, which has MLX itself and whatever mlx-lm needs.
    let slower = env.user().join("slower.py");
    fs::write(&slower, SLOWER).unwrap();
    let (program, slower) = (python.display(), slower.display());
    let python_c = format!("exec '{program}' -c \"$(cat '{slower}')\n$2\" \"$3\"");
    executable(&backend.root.join("bin/python3.11"), &python_c);
    let model = env.user().join("tiny");
    env.python(&python, MAKE_MODEL, &[&model]);
    Some(Real {
        env,
        backend,
        python,
        model,
    })
}

/// Sweeps four sizes and gives the results, and the runs of the three sizes with whole prefills; the network is out of
/// bounds for the libraries.
#[track_caller]
fn sweep(real: &Real, arguments: &[&str]) -> (Value, Vec<Value>) {
    let common = "bench --sizes 64,512,2048,4096 --prompt-tokens 10000 --runs 1 --json --model";
    let mut command = real.env.command(common.split(' '));
    command.arg(&real.model).args(arguments);
    let ran = Ran::of(&command.env("HF_HUB_OFFLINE", "1").output().unwrap()).exits(0);
    let results = ran.json();
    let [cut, whole @ ..] = list(&results, "results") else {
        panic!("{results:#}");
    };
    let steps = |row: &Value| json!([row["failed"], row["observed_chunk"], row["observed_steps"]]);
    let steps: Vec<_> = whole.iter().map(steps).collect();
    let wanted = json!([[null, 512, 20], [null, 2048, 5], [null, 4096, 3]]);
    assert_eq!(json!(steps), wanted, "{results:#}");
    let runs: Vec<_> = whole.iter().map(|row| row["runs"][0].clone()).collect();
    for run in &runs {
        let tokens = run["prompt_tokens"].as_u64().unwrap();
        assert!(tokens.abs_diff(10_000) <= 100, "{results:#}");
    }
    let tokens = cut["cut"]["tokens"].as_f64().unwrap_or_default();
    assert!((2500.0..9000.0).contains(&tokens), "{results:#}");
    assert_eq!(results["verdict"]["keep"], 512, "{results:#}");
    aloud(&format!(
        "real mlx-lm, {}: 20, 5 and 3 steps at 512, 2048 and 4096; 64 was cut short at {tokens:.0} tokens of 10,000",
        results["api"]
    ));
    (results, runs)
}

#[test]
fn the_real_generate_step_makes_the_steps_that_direct_asks_for() {
    let Some(real) = real() else { return };
    let before = Before::of(&real.backend.root);
    let (_, runs) = sweep(&real, &["--direct"]);
    for run in runs {
        assert_eq!(run["prompt_tokens"], 10_000);
        let peak = run["peak_memory_bytes"].as_u64().unwrap();
        assert!(peak > 100_000, "{run}");
    }
    before.still_holds();
}

#[test]
fn setting_generate_py_changes_the_steps_of_the_real_server() {
    let Some(real) = real() else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let pid = real.env.user().join("server.pid");
    let serve = format!("{SLOWER}{SERVE}");
    fs::write(real.env.user().join("serve.py"), serve).unwrap();
    let restart = real.env.user().join("restart");
    // Ends the server, if there is one, and starts another.
    let code = format!(
        "[ -f '{pid}' ] && kill \"$(cat '{pid}')\" && while kill -0 \"$(cat '{pid}')\" 2>/dev/null; do sleep 0.1; done\n\
         HF_HUB_OFFLINE=1 PYTHONPATH='{packages}' nohup '{python}' '{user}/serve.py' '{model}' {port} >'{user}/server.log' 2>&1 &\n\
         echo $! >'{pid}'; echo again >>'{user}/restarts'",
        pid = pid.display(),
        packages = real.backend.root.join(SITE_PACKAGES).display(),
        python = real.python.display(),
        user = real.env.user().display(),
        model = real.model.display(),
    );
    executable(&restart, &code);
    let _server = Server { pid };
    let started = real.env.isolate(&mut Command::new(&restart)).status();
    assert!(started.unwrap().success());
    let connect = || TcpStream::connect(("127.0.0.1", port)).ok();
    eventually("the real server answers", connect);
    let before = fs::read(real.backend.generate()).unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let arguments = ["--url", &url, "--reload", restart.to_str().unwrap()];
    let (results, runs) = sweep(&real, &arguments);
    assert_eq!(results["api"], "openai");
    assert!(runs.iter().all(|run| run["source"] == "client"));
    assert_eq!(fs::read(real.backend.generate()).unwrap(), before);
    // By hand, for every size, and in the end, which was waited for.
    let restarts = text(real.env.user().join("restarts"));
    assert_eq!(restarts.lines().count(), 6);
    assert!(connect().is_some());
}

/// Ends the server that the last restart left.
struct Server {
    pid: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(&self.pid) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}
