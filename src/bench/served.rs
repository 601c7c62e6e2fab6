//! Measures through a server, and changes the size between prefills through the guard.

use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, ensure};

use super::Bench;
use super::guard::Guard;
use super::interrupt::Interrupt;
use super::measure::{Engine, OnProgress, Prefill};
use super::prompt::{Prompts, context_for};
use super::server::{Instance, Model, Server, base_url};
use crate::command;
use crate::patch::backend::Surveyed;
use crate::patch::settings::DEFAULT_SIZE;

impl Bench<'_> {
    pub fn served(&mut self) -> Result<bool> {
        let (args, output, interrupt) = (self.args, self.output, self.interrupt.clone());
        let timeout = Duration::from_secs(args.timeout);
        let usual = || base_url(self.home.as_deref());
        let server = Server::new(args.url.clone().unwrap_or_else(usual), timeout);
        let models = wait_for(&server, &interrupt, Duration::ZERO)?;
        let target = resolve(args.model.as_deref(), models.as_deref())?;
        let is_sweep = !self.sizes.is_empty();
        let now = self.in_use().and_then(Surveyed::chunk_and_stock);
        if !is_sweep {
            self.sizes = vec![now.map_or(DEFAULT_SIZE, |(chunk, _)| chunk)];
        }
        self.results.prompt_tokens = self.prompt_tokens()?;
        let needed = self.fit(&target, is_sweep)?;
        self.results.api = if models.is_some() { "v1" } else { "openai" };
        self.results.model.clone_from(&target.identifier);
        self.results.context_length = target.context;
        let mut guard = None;
        if let (Some(home), true) = (&self.home, is_sweep) {
            let how = args.reload.clone();
            let mut held = Guard::new(home, &args.backend, how, (output, &interrupt))?;
            held.hold_models(&target.identifier, needed)?;
            guard = Some(held);
        }
        let mut engine = Served {
            server,
            is_v1: models.is_some(),
            model: target.identifier,
            prompts: self.prompts()?,
            prompt_tokens: self.results.prompt_tokens,
            guard,
            interrupt: &interrupt,
        };
        let raced = self.race(&mut engine, is_sweep || now.is_some());
        let Some(guard) = engine.guard.take() else {
            return raced.map(|()| true);
        };
        let is_right = guard.finish(self.best().filter(|_| raced.is_ok()));
        // The server is left as it was found: answering.
        let is_back = interrupt.was_set() || wait_for(&engine.server, &interrupt, timeout).is_ok();
        raced.map(|()| is_right && is_back)
    }

    /// The context that the prompts take. As it is, they have to fit into the one that there is.
    fn fit(&mut self, target: &Target, is_sweep: bool) -> Result<u64> {
        let needed = context_for(self.results.prompt_tokens);
        let (has, most) = (target.context, target.max_context.unwrap_or(u64::MAX));
        let why = format!("prompts take a context of {needed}, and the model has at most {most}");
        ensure!(!is_sweep || needed <= most, why);
        let Some(has) = has.filter(|has| !is_sweep && *has < needed) else {
            return Ok(needed);
        };
        let tokens = has.saturating_sub(needed - self.results.prompt_tokens);
        let (size, name) = (self.sizes[0], &target.identifier);
        ensure!(
            tokens >= 2 * size,
            "the model has a context of {has}, too little for two chunks of {size}; load it with more: \
             `lms load '{name}' --context-length {needed}`"
        );
        self.results.prompt_tokens = tokens;
        let so = format!("so prompts have {tokens} tokens");
        self.note(format!("the model has a context of {has}, {so}"));
        Ok(has)
    }
}

/// A model behind a server.
struct Served<'a> {
    server: Server,
    is_v1: bool,
    /// What it is asked by.
    model: String,
    prompts: Prompts,
    prompt_tokens: u64,
    /// Where sizes are changed.
    guard: Option<Guard<'a>>,
    interrupt: &'a Interrupt,
}

impl Engine for Served<'_> {
    fn prepare(&mut self, size: u64) -> Result<()> {
        let Some(guard) = &mut self.guard else {
            return Ok(());
        };
        guard.prepare(size)?;
        wait_for(&self.server, self.interrupt, self.server.silence)?;
        let (context, tokens) = (guard.look()?.unwrap_or(u64::MAX), self.prompt_tokens);
        ensure!(
            context >= tokens,
            "LM Studio gave the model a context of {context} at this size, less than the {tokens} tokens of the prompt"
        );
        Ok(())
    }

    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Prefill> {
        let prompt = self.prompts.next(tokens);
        let asked = (self.model.as_str(), self.is_v1);
        let mut prefill = self.server.prefill(asked, (&prompt, tokens), on_progress)?;
        self.prompts.correct(&prompt, prefill.run.prompt_tokens);
        if let Some(Err(why)) = self.guard.as_ref().map(Guard::look) {
            prefill.run.ignored = Some(format!("{why:#}"));
        }
        Ok(prefill)
    }
}

/// Its models, as soon as it answers: that takes a while where it was started again.
fn wait_for(server: &Server, interrupt: &Interrupt, limit: Duration) -> Result<Option<Vec<Model>>> {
    command::retry(limit, &|| interrupt.is_set(), || {
        let server = server.clone();
        interrupt.attend(move || server.models())
    })
}

/// The model that is measured.
#[derive(Debug)]
struct Target {
    /// What it is asked by.
    identifier: String,
    /// In tokens, where they are known.
    context: Option<u64>,
    max_context: Option<u64>,
}

/// The loaded model that `wanted` names by key or identifier, or the one MLX model that is loaded.
fn resolve(wanted: Option<&str>, models: Option<&[Model]>) -> Result<Target> {
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
    let Some((model, instance)) = found.first() else {
        return Err(not_loaded(wanted, models));
    };
    let ids: Vec<_> = found.iter().map(|(_, one)| one.id.as_str()).collect();
    let (key, ids) = (&model.key, ids.join(", "));
    let is_mlx = model.is_mlx();
    ensure!(
        is_mlx,
        "{key} is no MLX model; lmpatch sets their chunks only"
    );
    let several = format!("several MLX models are loaded: {ids}; name one with --model");
    ensure!(found.len() == 1, several);
    Ok(Target {
        identifier: instance.id.clone(),
        context: instance.config["context_length"].as_u64(),
        max_context: model.max_context_length,
    })
}

fn not_loaded(wanted: Option<&str>, models: &[Model]) -> Error {
    let Some(name) = wanted else {
        return anyhow!("no MLX model is loaded; load one in LM Studio, or with `lms load`");
    };
    if models.iter().any(|model| model.key == name) {
        let context = context_for(16_384);
        let load = format!("lms load '{name}' --context-length {context}");
        return anyhow!("{name} is not loaded; load it with `{load}`");
    }
    let keys = models.iter().filter(|model| model.is_mlx());
    let keys: Vec<_> = keys.map(|model| model.key.as_str()).collect();
    let keys = keys.join(", ");
    anyhow!("LM Studio has no model {name}; its MLX models are: {keys}")
}
