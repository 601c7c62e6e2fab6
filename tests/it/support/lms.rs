//! A stand-in for LM Studio as `lms` shows it: real worker processes, and a script that keeps their state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::standins::executable_text;
use super::{copy_program, interpreter};

/// The `lms` of one home, with the workers of what it has loaded.
pub struct FakeLms {
    home: PathBuf,
}

impl FakeLms {
    /// An LM Studio that runs in `home` and has nothing loaded. Models are loaded with the chunk that `engine` has.
    pub fn start(home: &Path, engine: &Path) -> Self {
        let fake = Self {
            home: home.to_owned(),
        };
        node(home);
        let (_, script) = include_str!("lms").split_once('\n').unwrap();
        let script = format!("#!{} -IS\n{script}", interpreter().display());
        executable_text(&home.join("bin/lms"), &script);
        fake.write(
            "lms.json",
            &json!({
                "loaded": [], "running": true, "engine": engine, "app": "/Applications/LM Studio.app",
                "known": { "qwen/tiny": "safetensors", "gemma/tiny": "safetensors", "llama/tiny": "gguf" },
            }),
        );
        fake
    }

    fn write(&self, name: &str, value: &Value) {
        fs::write(self.home.join(name), value.to_string()).unwrap();
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.home.join("lms.json")).unwrap()).unwrap()
    }

    /// Sets one field of its state.
    pub fn set(&self, key: &str, value: Value) {
        let mut state = self.state();
        state[key] = value;
        self.write("lms.json", &state);
    }

    /// How it is to behave badly.
    pub fn faults(&self, faults: Value) {
        self.write("faults.json", &faults);
    }

    /// Runs it for the test's own purposes.
    pub fn call(&self, words: &[&str]) {
        let status = Command::new(self.home.join("bin/lms")).args(words).status();
        assert!(status.unwrap().success(), "{words:?}");
    }

    /// Loads a model; at least its `path`, and whatever else is not to be as by default.
    pub fn add(&self, row: Value) {
        self.call(&["test-add", &row.to_string()]);
    }

    /// What is loaded.
    pub fn loaded(&self) -> Vec<Value> {
        self.state()["loaded"].as_array().unwrap().clone()
    }

    /// Fails the test unless this is loaded: identifier, context and chunk (0 if it is elsewhere), sorted.
    #[track_caller]
    pub fn has<const N: usize>(&self, wanted: [(&str, u64, u64); N]) {
        let mut loaded = self.loaded();
        loaded.sort_by_key(|row| row["identifier"].to_string());
        let number = |of: &Value| of.as_u64().unwrap_or_default();
        let rows = loaded.iter().map(|row| {
            let [context, chunk] = ["contextLength", "chunk"].map(|name| number(&row[name]));
            (row["identifier"].as_str().unwrap(), context, chunk)
        });
        assert_eq!(rows.collect::<Vec<_>>(), wanted);
    }

    /// Every call that was not the test's own, oldest first.
    pub fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.home.join("lms.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// The same without `ps`.
    pub fn actions(&self) -> Vec<String> {
        let mut calls = self.calls();
        calls.retain(|call| call != "ps --json");
        calls
    }
}

impl Drop for FakeLms {
    fn drop(&mut self) {
        // Its workers end by themselves where they find no state any more.
        let _ = fs::remove_file(self.home.join("lms.json"));
    }
}

/// Puts a program in the place of LM Studio's own node: a shell, which waits as well as anything.
pub fn node(home: &Path) -> PathBuf {
    shell(home.join(".internal/utils/node"))
}

/// Puts a shell at `path`, whatever that program is to be.
pub fn shell(path: PathBuf) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    copy_program("/bin/sh", &path);
    path
}

/// A real process, ended when it is dropped.
pub struct Running(Child);

impl Running {
    /// Starts `program`, a shell, so that it waits; `words` are on its command line.
    pub fn start(program: &Path, words: &[&str]) -> Self {
        Self::start_script(program, "read line", words)
    }

    /// The same with something else to do.
    pub fn start_script(program: &Path, script: &str, words: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(["-c", script]).args(words);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(child.unwrap())
    }

    /// A worker of the app that has its script at `script`.
    pub fn worker(home: &Path, script: &str) -> Self {
        let node = home.join(".internal/utils/node");
        Self::start(&node, &[&format!("require(\"{script}\")")])
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
