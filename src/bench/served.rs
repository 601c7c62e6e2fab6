//! Measures through a server, and changes the size between prefills through the guard.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use serde_json::Value;

use super::engine::{Engine, OnProgress, Prefill};
use super::guard::Guard;
use super::prompt::{Prompts, context_for};
use super::server::{Instance, Model, Server, base_url};
use super::{Bench, Plan};

impl Bench {
    pub fn served(&self, mut plan: Plan) -> Result<()> {
        let args = &self.args;
        let silence = Duration::from_secs(args.timeout);
        let usual = || base_url(plan.home.as_deref());
        let server = Server::new(
            args.url.clone().unwrap_or_else(usual),
            silence,
            self.agent.clone(),
        );
        let models = server.models()?;
        let (target, most) = resolve(args.model.as_deref(), models.as_deref())?;
        let context = target.config["context_length"].as_u64();
        let is_sweep = !args.sizes.is_empty();
        let needed = context_for(plan.tokens);
        let most = most.unwrap_or(u64::MAX);
        let why = format!("prompts take a context of {needed}, and the model has at most {most}");
        ensure!(!is_sweep || needed <= most, why);
        if let Some(has) = context.filter(|has| !is_sweep && *has < needed) {
            self.fit(&mut plan, &target.id, has)?;
        }
        self.update(|results| {
            results.api = if models.is_some() { "v1" } else { "openai" };
            results.model.clone_from(&target.id);
            results.context_length = context;
        })?;
        if let (Some(home), true) = (&plan.home, is_sweep) {
            let how = args.reload.clone();
            let mut guard = Guard::new(home, &args.backend, how, &self.output)?;
            guard.hold_models(&target.id, needed, &self.output)?;
            guard.server = Some(server.clone());
            self.put_under(guard)?;
        }
        let mut engine = Served {
            server,
            is_v1: models.is_some(),
            model: target.id,
            prompts: Prompts::new(args.prompt_file.as_deref())?,
            prompt_tokens: plan.tokens,
            guard: self.guard.get().cloned().flatten(),
        };
        self.race(&plan, &mut engine)
    }

    /// Makes prompts fit into the context that there is.
    fn fit(&self, plan: &mut Plan, name: &str, has: u64) -> Result<()> {
        let (needed, size) = (context_for(plan.tokens), plan.sizes[0]);
        let tokens = has.saturating_sub(needed - plan.tokens);
        ensure!(
            tokens >= 2 * size,
            "the model has a context of {has}, too little for two chunks of {size}; load it with more: \
             `lms load '{name}' --context-length {needed}`"
        );
        plan.tokens = tokens;
        let so = format!("so prompts have {tokens} tokens");
        self.note(format!("the model has a context of {has}, {so}"))
    }
}

/// A model behind a server.
struct Served {
    server: Server,
    is_v1: bool,
    /// What it is asked by.
    model: String,
    prompts: Prompts,
    prompt_tokens: u64,
    /// Where sizes are changed.
    guard: Option<Arc<Guard>>,
}

impl Engine for Served {
    fn prepare(&mut self, size: u64) -> Result<()> {
        let Some(guard) = &self.guard else {
            return Ok(());
        };
        guard.prepare(size)?;
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
        if let Some(Err(why)) = self.guard.as_ref().map(|guard| guard.look()) {
            prefill.run.ignored = Some(format!("{why:#}"));
        }
        Ok(prefill)
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
    let (key, ids) = (&model.key, ids.join(", "));
    let other = format!("{key} is no MLX model; lmpatch sets their chunks only");
    ensure!(model.is_mlx(), other);
    let several = format!("several MLX models are loaded: {ids}; name one with --model");
    ensure!(found.len() == 1, several);
    Ok(((*instance).clone(), model.max_context_length))
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
