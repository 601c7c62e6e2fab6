//! Measures through LM Studio's server, or any server that speaks its interfaces.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::measure::{Engine, Prompts, row};
use super::progress::Bar;
use super::record::Record;
use super::reload::Reloader;
use super::sweep::Sweep;
use super::{Bench, PROMPT_TOKENS, add, as_u64, size_now};
use crate::lmstudio::chat::{self, Api, Attention, Reply};
use crate::lmstudio::server::{
    DEFAULT_PORT, Instance, Patience, Server, TOKEN_VARIABLE, Trouble, base_url,
};
use crate::patch::{self, Survey};

/// A model behind a server.
struct Served<'a> {
    server: &'a Server,
    api: Api,
    bench: &'a Bench<'a>,
}

impl Engine for Served<'_> {
    fn prefill(&mut self, prompt: &str, told: &mut dyn FnMut(f64)) -> Result<Reply, Trouble> {
        let attention = Attention {
            patience: Duration::from_secs(self.bench.args.timeout),
            wants_stop: &|| self.bench.interrupt.is_set(),
        };
        let mut progress =
            |progress: &chat::Progress| told(progress.done / progress.total.unwrap_or(1.0));
        loop {
            let asked = (self.bench.args.model.as_str(), prompt);
            match (
                chat::ask(self.server, self.api, asked, &attention, &mut progress),
                self.api.lesser(),
            ) {
                // A server may list its models under an interface that it does not answer prompts under.
                (Err(Trouble::NotFound(said)), Some(lesser))
                    if said.starts_with("Unexpected endpoint") =>
                {
                    self.api = lesser;
                }
                (result, _) => return result,
            }
        }
    }
}

/// Measures the chunk as it is, or sweeps the sizes.
pub fn run(bench: &Bench<'_>, record: &mut Record) -> Result<()> {
    let home = bench.home(record)?;
    let survey = home
        .as_deref()
        .map(|home| patch::survey(home, &bench.args.backend))
        .transpose()?;
    let server = connect(bench, home.as_deref());
    let api = server.api()?;
    check_model(&server, api, &bench.args.model)?;
    let reloader = reloader(bench, &server, api);
    let loaded_before = reloader.instances()?;
    let mut engine = Served {
        server: &server,
        api,
        bench,
    };
    let mut prompts = Prompts::calibrate(bench.text()?, &mut engine)?;
    let loaded = reloader.instances()?;
    record.api = Some(engine.api);
    record.context_length = context(&server, engine.api, &loaded, &bench.args.model);
    if let Some(survey) = &survey {
        Bench::describe(record, &survey.backends);
    }
    let asked = bench
        .args
        .prompt_tokens
        .or(prompts.whole())
        .unwrap_or(PROMPT_TOKENS);
    let asked = prompts.whole().map_or(asked, |whole| whole.min(asked));
    prompts.aim(bench.fit(record, asked, record.context_length)?);
    record.prompt_tokens = prompts.tokens;
    let backends = survey
        .as_ref()
        .map(|survey| survey.backends.as_slice())
        .unwrap_or_default();
    if bench.sizes.is_empty() {
        let mut bar = Bar::new(bench.ui, u64::from(bench.args.runs + 1) * prompts.tokens);
        bench.write(record);
        let row = row(
            &mut engine,
            &mut prompts,
            size_now(backends),
            bench.args.runs,
            &mut bar,
        );
        add(bench, record, row, &bar);
        bar.clear();
        return Ok(());
    }
    let (Some(home), Some(survey)) = (home, survey) else {
        bail!("no LM Studio home with an MLX backend was found to set sizes in; give --home DIR");
    };
    let sweep = sweep(bench, &home, &survey, reloader, loaded);
    carry_out(
        bench,
        &sweep,
        &loaded_before,
        (&mut engine, &mut prompts),
        record,
    )
}

fn connect(bench: &Bench<'_>, home: Option<&Path>) -> Server {
    let usual = || home.map_or_else(|| format!("http://127.0.0.1:{DEFAULT_PORT}"), base_url);
    let base = bench.args.url.clone().unwrap_or_else(usual);
    let token = bench
        .args
        .token
        .clone()
        .or_else(|| std::env::var(TOKEN_VARIABLE).ok());
    Server::new(base, token.as_deref(), Patience::default())
}

fn reloader<'a>(bench: &'a Bench<'_>, server: &'a Server, api: Api) -> Reloader<'a> {
    Reloader {
        server,
        api,
        model: &bench.args.model,
        how: &bench.args.reload,
        interrupt: &bench.interrupt,
        patience: Duration::from_secs(bench.args.timeout),
    }
}

fn sweep<'a>(
    bench: &'a Bench<'_>,
    home: &'a PathBuf,
    survey: &'a Survey,
    reloader: Reloader<'a>,
    loaded: Vec<Instance>,
) -> Sweep<'a> {
    Sweep {
        home,
        layers: &bench.args.backend,
        before: &survey.backends,
        sizes: &bench.sizes,
        runs: bench.args.runs,
        reloader,
        // One instance is measured; the others come back at the end.
        loaded: loaded.into_iter().take(1).collect(),
    }
}

/// Sweeps and, whatever happens, puts everything back or applies the verdict.
fn carry_out(
    bench: &Bench<'_>,
    sweep: &Sweep<'_>,
    loaded_before: &[Instance],
    (engine, prompts): (&mut Served<'_>, &mut Prompts),
    record: &mut Record,
) -> Result<()> {
    for hindered in sweep.hindered() {
        bench.note(record, hindered);
    }
    let measurements = as_u64(bench.sizes.len()) + u64::from(bench.sizes.len() > 1);
    let mut bar = Bar::new(
        bench.ui,
        measurements * u64::from(bench.args.runs + 1) * prompts.tokens,
    );
    bench.write(record);
    sweep.measure(engine, prompts, record, &mut bar, &mut |record, bar| {
        bench.after_size(record, bar)
    });
    bar.clear();
    let is_applied = bench
        .apply_best(record, sweep.home)
        .unwrap_or_else(|error| {
            bench.note(
                record,
                format!("the verdict could not be applied: {error:#}"),
            );
            false
        });
    if !is_applied {
        let left = sweep
            .put_back()
            .context("the chunk could not be put back; run lmpatch again")?;
        if !left.is_empty() {
            bail!("{}", left.join("; "));
        }
        bench.ui.say("Every backend is as it was.");
    }
    if bench.interrupt.is_set() {
        let note = "the model may still be loaded with the last size, or not at all; load it again in LM Studio";
        bench.note(record, note.to_owned());
    } else if let Err(error) = sweep.reloader.reload(loaded_before) {
        bench.note(
            record,
            format!(
                "the setting is in its place, but the model could not be loaded again: {error:#}"
            ),
        );
    }
    Ok(())
}

/// Fails where the server knows its models and this is none of them, or one whose chunk lmpatch does not set.
fn check_model(server: &Server, api: Api, model: &str) -> Result<()> {
    let known: Vec<(String, Option<String>)> = match api {
        Api::V1 => {
            let models = server.models()?;
            let is_instance = models
                .iter()
                .flat_map(|model| &model.loaded_instances)
                .any(|instance| instance.id == model);
            if is_instance {
                return Ok(());
            }
            models
                .into_iter()
                .map(|model| (model.key, model.format))
                .collect()
        }
        Api::V0 => server
            .models_v0()?
            .into_iter()
            .map(|model| (model.id, model.compatibility_type))
            .collect(),
        Api::OpenAi => return Ok(()),
    };
    match known.iter().find(|(key, _)| key == model) {
        Some((_, Some(format))) if format == "gguf" => {
            bail!(
                "{model} is a GGUF model, which llama.cpp runs; lmpatch sets the chunk of MLX models"
            )
        }
        Some(_) => Ok(()),
        None => {
            let is_mlx = |(_, format): &&(String, Option<String>)| format.as_deref() == Some("mlx");
            let names: Vec<_> = known
                .iter()
                .filter(is_mlx)
                .map(|(key, _)| key.as_str())
                .collect();
            bail!(
                "LM Studio has no model {model}; its MLX models are: {}",
                names.join(", ")
            )
        }
    }
}

/// The context that the model is loaded with, in tokens, where the server tells.
fn context(server: &Server, api: Api, loaded: &[Instance], model: &str) -> Option<u64> {
    match api {
        Api::V1 => loaded.first()?.config.context_length,
        Api::V0 => {
            server
                .models_v0()
                .ok()?
                .iter()
                .find(|known| known.id == model)?
                .loaded_context_length
        }
        Api::OpenAi => None,
    }
}
