//! Measures through a server, and changes the size between prefills through the guard.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Bench;
use super::guard::Guard;
use super::interrupt::Interrupt;
use super::measure::{Engine, Failure, OnProgress, Prefill};
use super::prompt::{Prompts, context_for};
use super::results::Results;
use super::server::{Instance, Model, Server, ServerError, TICK, base_url};
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;

impl Bench<'_> {
    pub fn served(&mut self, results: &mut Results) -> Result<bool> {
        let args = self.args;
        let base = base_url(self.home.as_deref());
        let timeout = Duration::from_secs(args.timeout);
        let server = Server::new(args.url.clone().unwrap_or(base), timeout);
        let models = wait_for(&server, &self.interrupt, Duration::ZERO);
        let models = models.map_err(anyhow::Error::msg)?;
        let target = resolve(args.model.as_deref(), models.as_deref())?;
        let is_sweep = !self.sizes.is_empty();
        let now = self.in_use().and_then(Surveyed::chunk_and_stock);
        if !is_sweep {
            self.sizes = vec![now.map_or(DEFAULT_SIZE, |(chunk, _)| chunk)];
        }
        results.prompt_tokens = self.prompt_tokens()?;
        let needed = self.fit(results, &target, is_sweep)?;
        results.api = if models.is_some() { "v1" } else { "openai" };
        results.model.clone_from(&target.identifier);
        results.context_length = target.context;
        let mut guard = None;
        if let (Some(home), true) = (&self.home, is_sweep) {
            let (how, told) = (args.reload.clone(), (self.output, &self.interrupt));
            let mut held = Guard::new(home, &args.backend, how, told)?;
            held.hold_models(&target.identifier, needed)?;
            guard = Some(held);
        }
        let mut engine = Served {
            server,
            is_v1: models.is_some(),
            model: target.identifier,
            prompts: self.prompts()?,
            prompt_tokens: results.prompt_tokens,
            guard,
            interrupt: &self.interrupt,
            start: Instant::now(),
            timeout,
        };
        let raced = self.race(&mut engine, results, is_sweep || now.is_some());
        let Some(guard) = engine.guard.take() else {
            return raced.map(|()| true);
        };
        let is_right = guard.finish(self.best(results).filter(|_| raced.is_ok()));
        // The server is left as it was found: answering.
        let is_back =
            self.interrupt.was_set() || wait_for(&engine.server, &self.interrupt, timeout).is_ok();
        raced.map(|()| is_right && is_back)
    }

    /// The context that the prompts take. As it is, they have to fit into the one that there is.
    fn fit(&self, results: &mut Results, target: &Target, is_sweep: bool) -> Result<u64> {
        let needed = context_for(results.prompt_tokens);
        let (has, most) = (target.context, target.max_context.unwrap_or(u64::MAX));
        let is_possible = !is_sweep || needed <= most;
        ensure!(
            is_possible,
            "prompts take a context of {needed}, and the model has at most {most}"
        );
        let Some(has) = has.filter(|has| !is_sweep && *has < needed) else {
            return Ok(needed);
        };
        results.prompt_tokens = has.saturating_sub(needed - results.prompt_tokens);
        let (tokens, size, name) = (results.prompt_tokens, self.sizes[0], &target.identifier);
        ensure!(
            tokens >= 2 * size,
            "the model has a context of {has}, too little for two chunks of {size}; load it with more: \
             `lms load '{name}' --context-length {needed}`"
        );
        let note = format!("the model has a context of {has}, so prompts have {tokens} tokens");
        self.output.note(&note);
        results.notes.push(note);
        Ok(has)
    }
}

/// A model behind a server.
pub struct Served<'a> {
    pub server: Server,
    pub is_v1: bool,
    /// What it is asked by.
    pub model: String,
    pub prompts: Prompts,
    pub prompt_tokens: u64,
    /// Where sizes are changed.
    pub guard: Option<Guard<'a>>,
    pub interrupt: &'a Interrupt,
    pub start: Instant,
    /// How long a server that was started again is waited for.
    pub timeout: Duration,
}

impl Engine for Served<'_> {
    fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn prepare(&mut self, size: u64) -> Result<(), Failure> {
        let Some(guard) = &mut self.guard else {
            return Ok(());
        };
        guard.prepare(size).map_err(|error| failure(&error))?;
        wait_for(&self.server, self.interrupt, self.timeout).map_err(Failure::Size)?;
        let context = guard.look().map_err(|error| failure(&error))?;
        match context.filter(|context| *context < self.prompt_tokens) {
            Some(context) => Err(Failure::Size(format!(
                "LM Studio gave the model a context of {context} at this size, less than the {} tokens of the prompt",
                self.prompt_tokens
            ))),
            None => Ok(()),
        }
    }

    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill, Failure> {
        let prompt = self.prompts.next(tokens);
        let asked = (self.model.as_str(), self.is_v1);
        let answer = self.server.prefill(asked, (&prompt, tokens), on_progress);
        let mut prefill = match answer {
            Ok(prefill) => prefill,
            Err(ServerError::Ended) => return Err(Failure::Ended),
            Err(ServerError::NotThere(why) | ServerError::Refused(why)) => {
                return Err(Failure::Size(why));
            }
        };
        self.prompts.correct(&prompt, prefill.run.prompt_tokens);
        if let Some(Err(why)) = self.guard.as_ref().map(Guard::look) {
            prefill.run.ignored = Some(format!("{why:#}"));
        }
        Ok(prefill)
    }
}

fn failure(error: &anyhow::Error) -> Failure {
    Failure::Size(format!("{error:#}"))
}

/// Its models, as soon as it answers: that takes a while where it was started again.
pub fn wait_for(
    server: &Server,
    interrupt: &Interrupt,
    timeout: Duration,
) -> Result<Option<Vec<Model>>, String> {
    let deadline = Instant::now() + timeout;
    loop {
        let copy = server.clone();
        let asked = interrupt.attend(move || copy.models());
        match asked.unwrap_or(Err(ServerError::Ended)) {
            Ok(models) => return Ok(models),
            Err(ServerError::NotThere(_)) if Instant::now() < deadline => {}
            Err(ServerError::NotThere(why) | ServerError::Refused(why)) => return Err(why),
            Err(ServerError::Ended) => return Err("stopped".to_owned()),
        }
        thread::sleep(4 * TICK);
    }
}

/// The model that is measured.
#[derive(Debug)]
pub struct Target {
    /// What it is asked by.
    pub identifier: String,
    /// In tokens, where they are known.
    pub context: Option<u64>,
    pub max_context: Option<u64>,
}

/// The loaded model that `wanted` names by key or identifier, or the one MLX model that is loaded.
pub fn resolve(wanted: Option<&str>, models: Option<&[Model]>) -> Result<Target> {
    let Some(models) = models else {
        let name = wanted.context("this server does not tell its models; name one with --model")?;
        return Ok(Target {
            identifier: name.to_owned(),
            context: None,
            max_context: None,
        });
    };
    let mut found = Vec::new();
    for model in models {
        for instance in &model.loaded_instances {
            let is_named = |name| model.key == name || instance.id == name;
            if wanted.map_or(model.is_mlx(), is_named) {
                found.push((model, instance));
            }
        }
    }
    // An identifier may be another model's key.
    let is_exact = |(_, instance): &&(_, &Instance)| Some(instance.id.as_str()) == wanted;
    if let Some(exact) = found.iter().find(is_exact) {
        found = vec![*exact];
    }
    let [(model, instance)] = found[..] else {
        let loaded: Vec<_> = found.iter().map(|(_, one)| one.id.as_str()).collect();
        bail!(ambiguity(wanted, models, &loaded.join(", ")));
    };
    let key = &model.key;
    ensure!(
        model.is_mlx(),
        "{key} is no MLX model; lmpatch sets the chunk of MLX models"
    );
    Ok(Target {
        identifier: instance.id.clone(),
        context: instance.config["context_length"].as_u64(),
        max_context: model.max_context_length,
    })
}

/// Why none or several of the models are meant.
fn ambiguity(wanted: Option<&str>, models: &[Model], loaded: &str) -> String {
    let Some(name) = wanted else {
        let none = "no MLX model is loaded; load one in LM Studio, or with `lms load`".to_owned();
        let several = format!("several MLX models are loaded: {loaded}; name one with --model");
        return if loaded.is_empty() { none } else { several };
    };
    if !loaded.is_empty() {
        return format!("{name} is loaded as {loaded}; name one of these with --model");
    }
    if models.iter().any(|model| model.key == name) {
        let context = context_for(16_384);
        return format!(
            "{name} is not loaded; load it with `lms load '{name}' --context-length {context}`"
        );
    }
    let keys = models.iter().filter(|model| model.is_mlx());
    let keys: Vec<_> = keys.map(|model| model.key.as_str()).collect();
    format!(
        "LM Studio has no model {name}; its MLX models are: {}",
        keys.join(", ")
    )
}
