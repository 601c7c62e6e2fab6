//! Measures through a server, and changes the size between prefills through the guard.

use std::sync::Arc;

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use serde_json::Value;

use super::args::BenchArgs;
use super::guard::Guard;
use super::measure::{Engine, OnProgress};
use super::prompt::{Prompts, context_for};
use super::results::{Results, Run};
use super::server::{Instance, Model, Server};
use crate::output::Output;

/// A model behind a server.
pub struct Served {
    server: Server,
    is_v1: bool,
    /// What it is asked by.
    model: String,
    prompts: Prompts,
    prompt_tokens: u64,
    /// Where sizes are changed.
    pub guard: Option<Arc<Guard>>,
}

impl Served {
    /// The loaded model that `args` name, whose sizes are changed through `guard`. Fails if prompts would not fit.
    pub fn new(
        args: &BenchArgs,
        server: Server,
        mut guard: Option<Guard>,
        results: &mut Results,
        output: &Output,
    ) -> Result<Self> {
        let models = server.models()?;
        let is_v1 = models.is_some();
        let (target, most) = resolve(args.model.as_deref(), models.as_deref())?;
        let (model, tokens) = (target.id, results.prompt_tokens);
        let needed = context_for(tokens);
        results.context_length = target.config["context_length"].as_u64();
        let most = most.unwrap_or(u64::MAX);
        let (mut has, mut advice) = (most, "give fewer --prompt-tokens or smaller --sizes");
        if args.sizes.is_empty() {
            has = results.context_length.unwrap_or(u64::MAX);
            if needed <= most {
                advice = "with --sizes, lmpatch raises it and then restores it";
            }
        }
        ensure!(
            needed <= has,
            "prompts need a context of {needed}, the model has {has}; {advice}"
        );
        if let Some(guard) = &mut guard {
            guard.hold_model(&model, needed, output)?;
            guard.server = Some(server.clone());
        }
        results.api = if is_v1 { "v1" } else { "openai" };
        results.model.clone_from(&model);
        Ok(Self {
            server,
            is_v1,
            model,
            prompts: Prompts::new(args.prompt_file.as_deref())?,
            prompt_tokens: tokens,
            guard: guard.map(Arc::new),
        })
    }
}

impl Engine for Served {
    fn prepare(&mut self, size: u64) -> Result<()> {
        let Some(guard) = &self.guard else {
            return Ok(());
        };
        guard.prepare(size)?;
        let (context, tokens) = (guard.context()?.unwrap_or(u64::MAX), self.prompt_tokens);
        ensure!(
            context >= tokens,
            "LM Studio gave the model a context of {context} at this size, less than the {tokens} tokens of the prompt"
        );
        Ok(())
    }

    fn prefill(&mut self, tokens: u64, on_progress: OnProgress<'_>) -> Result<Run> {
        let prompt = self.prompts.next(tokens);
        let asked = (self.model.as_str(), self.is_v1);
        let mut run = self.server.prefill(asked, (&prompt, tokens), on_progress)?;
        self.prompts.correct(&prompt, run.prompt_tokens);
        if let Some(Err(why)) = self.guard.as_ref().map(|guard| guard.context()) {
            run.ignored = Some(format!("{why:#}"));
        }
        Ok(run)
    }
}

/// The loaded model that `wanted` names by key or identifier, or the one MLX model that is loaded; and its largest
/// context.
fn resolve(wanted: Option<&str>, models: Option<&[Model]>) -> Result<(Instance, Option<u64>)> {
    let Some(models) = models else {
        let id = wanted.context("this server does not tell its models; name one with --model")?;
        let (id, config) = (id.to_owned(), Value::Null);
        return Ok((Instance { id, config }, None));
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
    let ids = ids.join(", ");
    ensure!(model.is_mlx(), not_mlx(model));
    let several = format!("several MLX models are loaded: {ids}; name one with --model");
    ensure!(found.len() == 1, several);
    Ok(((*instance).clone(), model.max_context_length))
}

fn not_mlx(model: &Model) -> Error {
    let key = &model.key;
    anyhow!("{key} is not an MLX model; lmpatch bench needs one")
}

fn not_loaded(wanted: Option<&str>, models: &[Model]) -> Error {
    let Some(name) = wanted else {
        return anyhow!("no MLX model is loaded; load one in LM Studio, or with `lms load`");
    };
    if let Some(model) = models.iter().find(|model| model.key == name) {
        if !model.is_mlx() {
            return not_mlx(model);
        }
        let context = context_for(16_384);
        let load = format!("lms load '{name}' --context-length {context}");
        return anyhow!("{name} is not loaded; load it with `{load}`");
    }
    let keys = models.iter().filter(|model| model.is_mlx());
    let keys: Vec<_> = keys.map(|model| model.key.as_str()).collect();
    let keys = keys.join(", ");
    anyhow!("LM Studio has no model {name}; its MLX models are: {keys}")
}
