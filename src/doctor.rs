//! One page that answers "did it work?" and "why is it slow?". Reads only.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::agent;
use crate::cli::{Cli, Request};
use crate::effect::{self, Effect};
use crate::lmstudio::server::{Patience, Server};
use crate::lmstudio::{backends, home, server};
use crate::outcome::Outcome;
use crate::patch::backend::{Backend, State};
use crate::patch::settings::DEFAULT_SIZE;
use crate::patch::{self, bytecode, replace};
use crate::report::advice::{self, Advice};
use crate::report::human::{self, Layout};
use crate::report::{BackendReport, MissingReport, Report, RuntimeReport, SCHEMA};
use crate::ui::{BAD, GOOD, NOTE, STRONG, Ui, behind, printable};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// It does not work as it should.
    Problem,
    /// Good to know.
    Note,
}

/// One finding.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    level: Level,
    /// What was found.
    what: String,
    /// What to do about it.
    next: String,
}

/// The whole page.
#[derive(Debug, Serialize)]
struct Page {
    schema: u32,
    version: &'static str,
    action: &'static str,
    exit_code: u8,
    home: Option<String>,
    home_found_by: Option<&'static str>,
    runtimes: Vec<RuntimeReport>,
    backends: Vec<BackendReport>,
    missing_layers: Vec<MissingReport>,
    agent: agent::Status,
    findings: Vec<Finding>,
}

/// Looks at everything and tells it.
pub fn run(cli: &Cli, ui: &Ui) -> Result<Outcome> {
    let mut report = Report::new(Request::Check(None));
    let mut findings = Vec::new();
    let (found_by, runtimes) = on_home(cli, &mut report, &mut findings)?;
    let agent = agent::look()?;
    on_agent(&agent, &mut findings);
    findings.sort();
    let has_problem = findings
        .iter()
        .any(|finding| finding.level == Level::Problem);
    let outcome = if has_problem {
        Outcome::Failed
    } else {
        Outcome::Done
    };
    let text = if cli.json {
        let page = Page {
            schema: SCHEMA,
            version: report.version,
            action: "doctor",
            exit_code: outcome.code(),
            home: report.home,
            home_found_by: found_by,
            runtimes,
            backends: report.backends,
            missing_layers: report.missing_layers,
            agent,
            findings,
        };
        serde_json::to_string_pretty(&page)? + "\n"
    } else {
        let layout = Layout {
            width: ui.width(),
            is_verbose: ui.is_verbose,
        };
        head(&report, found_by, &runtimes, layout.width)
            + &tables(&report, layout)
            + &agent.line()
            + &told(&findings, layout.width)
    };
    ui.print(&text).context("cannot write to stdout")?;
    Ok(outcome)
}

/// Looks at the home, if there is one; returns how it was found, and its runtimes.
fn on_home(
    cli: &Cli,
    report: &mut Report,
    findings: &mut Vec<Finding>,
) -> Result<(Option<&'static str>, Vec<RuntimeReport>)> {
    let home = match home::find(cli.home.as_deref()) {
        Ok(home) => home,
        Err(error) => {
            let next =
                "install LM Studio and an MLX runtime in it, or give its home with --home DIR";
            findings.push(problem(format!("{error:#}"), next));
            return Ok((None, Vec::new()));
        }
    };
    if let Some(note) = &home.note {
        findings.push(note_of(
            note.clone(),
            "give the home you mean with --home DIR",
        ));
    }
    let runtimes: Vec<_> = backends::runtimes(&home.path)
        .iter()
        .map(RuntimeReport::of)
        .collect();
    examine(cli, &home.path, report, findings)?;
    on_selection(&runtimes, report, findings);
    Ok((Some(home.found_by.words()), runtimes))
}

fn problem(what: String, next: impl Into<String>) -> Finding {
    Finding {
        level: Level::Problem,
        what,
        next: next.into(),
    }
}

fn note_of(what: String, next: impl Into<String>) -> Finding {
    Finding {
        level: Level::Note,
        what,
        next: next.into(),
    }
}

/// Looks at the backends of one home.
fn examine(cli: &Cli, home: &Path, report: &mut Report, findings: &mut Vec<Finding>) -> Result<()> {
    let survey = patch::survey(home, &[])?;
    let all: Vec<_> = survey.backends.iter().collect();
    let mut sight = effect::look(home);
    let base = cli.url.clone().unwrap_or_else(|| server::base_url(home));
    let token = std::env::var(server::TOKEN_VARIABLE).ok();
    sight.ask(&Server::new(base, token.as_deref(), Patience::SHORT), &all);
    report.fill(
        home,
        all.iter()
            .map(|backend| BackendReport::looked_at(backend))
            .collect(),
        survey.missing,
    );
    report.add_effects(&sight, all.iter().copied());
    for (backend, read) in report.backends.iter().zip(&all) {
        findings.extend(on_backend(backend));
        findings.extend(on_leftovers(backend, read));
    }
    findings.extend(advice::on_sizes(report, None).iter().map(on_advice));
    findings.extend(on_unknown_effects(report));
    Ok(())
}

/// Why it cannot be told whether loaded models have the values: once for all, or for each backend of which that is so.
fn on_unknown_effects(report: &Report) -> Vec<Finding> {
    let next = "restart LM Studio, or load the model again, to be sure";
    if let Some(why) = &report.workers_unknown {
        return vec![note_of(
            format!("whether loaded models have these values cannot be told: {why}"),
            next,
        )];
    }
    let unknown = report
        .backends
        .iter()
        .filter(|backend| backend.in_effect == Some(Effect::Unknown));
    let tell = |backend: &BackendReport| {
        let why =
            "its files have no date to go by, or the workers that run may be another engine's";
        note_of(
            format!(
                "{}: whether loaded models have its values cannot be told: {why}",
                backend.layer
            ),
            next,
        )
    };
    unknown.map(tell).collect()
}

fn on_backend(backend: &BackendReport) -> Vec<Finding> {
    let layer = &backend.layer;
    let size = backend
        .chunk
        .filter(|chunk| Some(*chunk) != backend.stock)
        .unwrap_or(DEFAULT_SIZE);
    let mut findings = Vec::new();
    let why = backend.why.clone().unwrap_or_default();
    match backend.state {
        State::Refused => findings.push(problem(
            format!("{layer}: lmpatch does not change it: {why}"),
            "see `lmpatch --check -v`; reinstall the runtime in LM Studio if its files were edited by hand",
        )),
        State::Incomplete => findings.push(note_of(
            format!("{layer}: {why}"),
            "let LM Studio finish its update, then run `lmpatch doctor` again",
        )),
        State::Mixed => findings.push(problem(
            format!("{layer}: its places do not have the same value, so it was set only in part"),
            format!("`lmpatch {size}` sets them all, `lmpatch --revert` none"),
        )),
        State::Stock if backend.selected => findings.push(note_of(
            format!("{layer}, which LM Studio uses, has the chunk it ships with"),
            format!("`lmpatch {size}` sets another one"),
        )),
        State::Stock | State::Patched => {}
    }
    if backend.in_effect == Some(Effect::ReloadNeeded) {
        let workers = human::stale_workers(&[backend]);
        let set = if backend.state == State::Stock {
            "--revert".to_owned()
        } else {
            size.to_string()
        };
        findings.push(problem(
            format!("{layer}: a loaded model still has older values (worker {workers})"),
            format!("`lmpatch {set} --reload`, or restart LM Studio"),
        ));
    }
    findings
}

/// What should not lie around: bytecode that Python would take for current, temp files of killed runs.
fn on_leftovers(backend: &BackendReport, read: &Backend) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &read.files {
        findings.extend(bytecode::stale(&file.path).into_iter().map(|cached| {
            problem(
                format!(
                    "{} is older than its source, and Python would still take it",
                    cached.display()
                ),
                format!("remove it: rm '{}'", cached.display()),
            )
        }));
        findings.extend(replace::temporaries(&file.path).into_iter().map(|temp| {
            let run = backend
                .chunk
                .map_or_else(|| "--revert".to_owned(), |chunk| chunk.to_string());
            note_of(
                format!("{} is left of a run that was killed", temp.display()),
                format!("`lmpatch {run}` removes it"),
            )
        }));
    }
    findings
}

fn on_advice(advice: &Advice) -> Finding {
    let next = match advice {
        Advice::OffGrid(_) => "set a multiple of 256, such as `lmpatch 4096`",
        Advice::MemoryCaution(_) => "if a model fails to load or answer: `lmpatch 4096`",
        Advice::SmallerContext(_) => {
            "if you need the longer context: `lmpatch --revert`, or update the runtime"
        }
        Advice::BelowStock { .. } | Advice::NotAsShipped { .. } => "`lmpatch --revert`",
    };
    note_of(advice.to_string(), next)
}

fn on_selection(runtimes: &[RuntimeReport], report: &Report, findings: &mut Vec<Finding>) {
    let selected = runtimes.iter().find(|runtime| runtime.selected);
    if selected.is_none() {
        findings.push(note_of(
            "which MLX runtime LM Studio uses is not known".to_owned(),
            "choose one in LM Studio's settings under Runtime, then run `lmpatch doctor` again",
        ));
    }
    for missing in &report.missing_layers {
        let is_used =
            selected.is_some_and(|runtime| missing.runtime == format!("MLX {}", runtime.version));
        let what = format!(
            "{} is made of {}, which is not on disk",
            missing.runtime, missing.layer
        );
        let next = "let LM Studio finish its update, or reinstall that runtime in it";
        findings.push(if is_used {
            problem(what, next)
        } else {
            note_of(what, next)
        });
    }
}

fn on_agent(agent: &agent::Status, findings: &mut Vec<Finding>) {
    if let Some(trouble) = &agent.trouble {
        findings.push(problem(
            format!("the agent does not work: {trouble}"),
            "`lmpatch agent install`",
        ));
    } else if !agent.installed {
        findings.push(note_of(
            "an update of LM Studio brings a new backend with the stock chunk".to_owned(),
            "`lmpatch agent install` sets new ones by itself, or run lmpatch again then",
        ));
    }
}

fn head(
    report: &Report,
    found_by: Option<&str>,
    runtimes: &[RuntimeReport],
    width: Option<u16>,
) -> String {
    let home = report
        .home
        .as_deref()
        .map_or_else(|| "not found".to_owned(), printable);
    let found_by = found_by
        .map(|words| format!(" ({words})"))
        .unwrap_or_default();
    let runtimes: Vec<_> = runtimes
        .iter()
        .map(|runtime| {
            let selected = if runtime.selected { " (selected)" } else { "" };
            format!("MLX {}{selected}", runtime.version)
        })
        .collect();
    let runtimes = if runtimes.is_empty() {
        "none found".to_owned()
    } else {
        runtimes.join(", ")
    };
    let tag = "runtimes ";
    format!(
        "{:<9}{home}{found_by}\n{tag}{}\n",
        "home",
        behind(tag, &runtimes, "         ", width)
    )
}

fn tables(report: &Report, layout: Layout) -> String {
    if report.backends.is_empty() {
        return String::new();
    }
    format!(
        "\n{}{}\n",
        human::check(report, layout),
        human::effects(report)
    )
}

fn told(findings: &[Finding], width: Option<u16>) -> String {
    if findings.is_empty() {
        return format!("\n{GOOD}Nothing to do.{GOOD:#}\n");
    }
    let tell = |finding: &Finding| {
        let (style, tag) = match finding.level {
            Level::Problem => (BAD, "problem: "),
            Level::Note => (NOTE, "note: "),
        };
        let next = "   next: ";
        format!(
            "\n{style}{tag}{style:#}{}\n{STRONG}{next}{STRONG:#}{}\n",
            behind(tag, &finding.what, "  ", width),
            behind(next, &finding.next, "     ", width)
        )
    };
    findings.iter().map(tell).collect()
}
