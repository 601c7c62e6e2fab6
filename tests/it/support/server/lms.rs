//! LM Studio's own command line tool: a script that asks the server.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Instance, Model, State, chunk_on_disk, lock};

/// The script, for a server at this port.
pub fn script(port: u16) -> String {
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

/// What it prints.
pub fn lms(shared: &Mutex<State>, words: &[&str]) -> String {
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
    if is_restored && state.odd.failing_looks > 0 {
        state.odd.failing_looks -= 1;
        return "Error: not ready".to_owned();
    }
    if let Some((after, looks @ 1..)) = &mut state.odd.failing_looks_after
        && loads == *after
    {
        *looks -= 1;
        return "Error: not ready".to_owned();
    }
    let is_busy = state.odd.busy_looks > 0;
    state.odd.busy_looks = state.odd.busy_looks.saturating_sub(1);
    let row = |(model, one): (&Model, &Instance)| {
        json!({
            "type": "llm", "identifier": one.id, "modelKey": model.key, "path": format!("dir/{}", model.key),
            "format": if model.format == "mlx" { "safetensors" } else { "gguf" }, "deviceIdentifier": null,
            "contextLength": one.context, "maxContextLength": 262_144, "ttlMs": one.ttl_ms,
            "parallel": one.parallel, "status": if one.is_busy || is_busy { "processingPrompt" } else { "idle" }, "queued": 0,
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
