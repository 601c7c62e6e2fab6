//! Makes new values take effect: loads models again, or restarts LM Studio and loads what was loaded.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::lmstudio::process;
use crate::lmstudio::server::{InstanceConfig, Model, Server, Trouble};

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a program that quits or opens the app may take.
const APP_PATIENCE: Duration = Duration::from_secs(60);

/// For how long an app that is still quitting may keep a new one from opening.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// What makes new values take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Unload and load each loaded MLX model.
    Models,
    /// Quit and open the app, then load each MLX model that was loaded.
    App,
}

/// What became of one loaded model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Its key.
    pub model: String,
    /// Its instance: the new one, or the old one where there is no new one.
    pub instance: String,
    /// The context that it was loaded with before, in tokens.
    pub context_length: Option<u64>,
    /// How many predictions at a time it was loaded for before.
    pub parallel: Option<u64>,
    /// Why it could not be loaded again, if it could not.
    pub failed: Option<String>,
    /// What is different now, if anything is.
    pub note: Option<String>,
}

/// One loaded MLX model that is to be loaded again.
#[derive(Debug, Clone)]
struct Target {
    model: String,
    instance: String,
    config: InstanceConfig,
}

/// What a reload works with.
#[derive(Debug)]
pub struct Reload<'a> {
    /// LM Studio's home.
    pub home: &'a Path,
    /// Its server.
    pub server: &'a Server,
    /// How long busy models and a starting app are waited for, each time anew.
    pub wait: Duration,
}

impl Reload<'_> {
    /// Loads every loaded MLX model again, so that it has what is on disk now.
    ///
    /// Fails where nothing could be done at all; what became of each model is in the list.
    pub fn carry_out(&self, how: How) -> Result<Vec<Reloaded>, String> {
        match how {
            How::Models => {
                let targets = targets(
                    &self
                        .server
                        .models()
                        .map_err(|trouble| trouble.to_string())?,
                );
                wait_for_the_next_second();
                Ok(targets.iter().map(|target| self.reload(target)).collect())
            }
            How::App => self.restart(),
        }
    }

    fn reload(&self, target: &Target) -> Reloaded {
        match self.until_idle(target).and_then(|()| self.unload(target)) {
            Ok(()) => self.load(target),
            Err(why) => target.failed(why),
        }
    }

    /// Waits until LM Studio no longer says that the model is at work.
    fn until_idle(&self, target: &Target) -> Result<(), String> {
        let is_idle = || !process::at_work(self.home).contains(&target.instance);
        if poll(self.wait, || is_idle().then_some(())).is_some() {
            return Ok(());
        }
        Err(format!(
            "it was still at work after {} seconds and was left as it is",
            self.wait.as_secs_f64()
        ))
    }

    fn unload(&self, target: &Target) -> Result<(), String> {
        let attempt = || match self.server.unload(&target.instance) {
            Err(Trouble::Busy(_)) => None,
            // It unloaded itself in the meantime, as idle models do.
            Err(Trouble::NotFound(_)) => Some(Ok(())),
            other => Some(other.map_err(|trouble| format!("it was not unloaded: {trouble}"))),
        };
        let still_busy = || {
            format!(
                "it was still at work after {} seconds and was left as it is",
                self.wait.as_secs_f64()
            )
        };
        poll(self.wait, attempt).unwrap_or_else(|| Err(still_busy()))
    }

    fn load(&self, target: &Target) -> Reloaded {
        let InstanceConfig {
            context_length,
            parallel,
        } = target.config;
        let attempt = || match self.server.load(&target.model, context_length, parallel) {
            Err(Trouble::Busy(_)) => None,
            other => Some(other),
        };
        match poll(self.wait, attempt) {
            Some(Ok(loaded)) => {
                let note = self.difference(target, &loaded.instance_id);
                Reloaded {
                    instance: loaded.instance_id,
                    note,
                    ..target.done()
                }
            }
            Some(Err(trouble)) => target.failed(not_loaded(&trouble.to_string(), target)),
            None => target.failed(not_loaded("the server stayed busy", target)),
        }
    }

    /// What the server says of the new instance that is not as it was before.
    fn difference(&self, target: &Target, instance: &str) -> Option<String> {
        let models = self.server.models().ok()?;
        let loaded = models.iter().find(|model| model.key == target.model)?;
        let now = loaded
            .loaded_instances
            .iter()
            .find(|now| now.id == instance)?
            .config;
        let differs = |what: &str, before: Option<u64>, now: Option<u64>| match (before, now) {
            (Some(before), Some(now)) if before != now => {
                Some(format!("{what} {now} instead of {before}"))
            }
            _ => None,
        };
        let differences: Vec<_> = [
            differs(
                "context length",
                target.config.context_length,
                now.context_length,
            ),
            differs("parallelism", target.config.parallel, now.parallel),
            (instance != target.instance)
                .then(|| format!("the identifier {instance} instead of {}", target.instance)),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!differences.is_empty()).then(|| format!("LM Studio gave it {}", differences.join(", ")))
    }

    fn restart(&self) -> Result<Vec<Reloaded>, String> {
        let targets = match self.server.models() {
            Ok(models) => targets(&models),
            // A server that was off stays off, and nothing could be loaded through it: the app alone is restarted.
            Err(Trouble::NotRunning(_)) => {
                self.quit(|| {
                    !process::workers(self.home).is_ok_and(|workers| !workers.is_empty())
                })?;
                return self.open().map(|()| Vec::new());
            }
            Err(trouble) => return Err(trouble.to_string()),
        };
        for target in &targets {
            self.until_idle(target)
                .map_err(|why| format!("{}: {why}; the app was not quit", target.instance))?;
        }
        self.quit(|| {
            matches!(
                self.server.models(),
                Err(Trouble::NotRunning(_) | Trouble::CutOff(_))
            )
        })?;
        wait_for_the_next_second();
        self.open()?;
        let models = self.until_answer(&targets)?;
        let is_back = |target: &Target| {
            let model = models.iter().find(|model| model.key == target.model);
            model.is_some_and(|model| {
                model
                    .loaded_instances
                    .iter()
                    .any(|instance| instance.id == target.instance)
            })
        };
        let load = |target: &Target| {
            if is_back(target) {
                target.done()
            } else {
                self.load(target)
            }
        };
        Ok(targets.iter().map(load).collect())
    }

    /// Quits the app and waits until it is gone.
    fn quit(&self, is_gone: impl Fn() -> bool) -> Result<(), String> {
        process::quit(APP_PATIENCE)?;
        poll(self.wait, || is_gone().then_some(())).ok_or_else(|| {
            format!(
                "LM Studio still runs {} seconds after it was told to quit",
                self.wait.as_secs_f64()
            )
        })
    }

    /// Opens the app; macOS refuses that for a moment while the old one is still on its way out.
    fn open(&self) -> Result<(), String> {
        let mut last = None;
        let attempt = || {
            process::open(APP_PATIENCE)
                .map_err(|why| last = Some(why))
                .ok()
        };
        poll(self.wait.min(OPEN_PATIENCE), attempt).ok_or_else(|| last.unwrap_or_default())
    }

    fn until_answer(&self, targets: &[Target]) -> Result<Vec<Model>, String> {
        let mut last = None;
        let attempt = || match self.server.models() {
            Ok(models) => Some(models),
            Err(trouble) => {
                last = Some(trouble.to_string());
                None
            }
        };
        let models = poll(self.wait, attempt);
        models.ok_or_else(|| {
            let names: Vec<_> = targets.iter().map(|target| target.model.as_str()).collect();
            let loaded = if names.is_empty() {
                String::new()
            } else {
                format!("; load again: {}", names.join(", "))
            };
            format!(
                "LM Studio was opened, but after {} seconds: {}{loaded}",
                self.wait.as_secs_f64(),
                last.unwrap_or_default()
            )
        })
    }
}

impl Target {
    fn done(&self) -> Reloaded {
        Reloaded {
            model: self.model.clone(),
            instance: self.instance.clone(),
            context_length: self.config.context_length,
            parallel: self.config.parallel,
            failed: None,
            note: None,
        }
    }

    fn failed(&self, why: String) -> Reloaded {
        Reloaded {
            failed: Some(why),
            ..self.done()
        }
    }
}

fn targets(models: &[Model]) -> Vec<Target> {
    let of = |model: &Model| {
        let target = |instance: &crate::lmstudio::server::Instance| Target {
            model: model.key.clone(),
            instance: instance.id.clone(),
            config: instance.config,
        };
        model
            .loaded_instances
            .iter()
            .map(target)
            .collect::<Vec<_>>()
    };
    models
        .iter()
        .filter(|model| model.is_mlx())
        .flat_map(of)
        .collect()
}

fn not_loaded(why: &str, target: &Target) -> String {
    let context = target
        .config
        .context_length
        .map(|context| format!(" --context-length {context}"));
    format!(
        "it was unloaded and could not be loaded again: {why}; try `lms load '{}'{}`",
        target.model,
        context.unwrap_or_default()
    )
}

/// Asks until there is an answer, at least once and no longer than `patience`.
fn poll<T>(patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(PAUSE.min(patience));
    }
}

/// ps tells whole seconds, so a worker is known to be newer than an edit only from the next second on.
fn wait_for_the_next_second() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    thread::sleep(
        Duration::from_secs(1).saturating_sub(Duration::from_nanos(now.subsec_nanos().into())),
    );
}
