//! Signals, budgets, panics and kills: files and models are put back, or it is said how.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::child::until;
use crate::support::home::{engine_since_2026, usual_backend};
use crate::support::server::{Failure, Meddle, chunk_on_disk};
use crate::support::text;
use lmpatch::bench::measure::Benchmark;
use lmpatch::bench::results::{Results, Row};
use lmpatch::bench::supervise;
use lmpatch::lock::Lock;
use lmpatch::marker::interrupted;
use signal_hook::iterator::Signals;

use super::{
    MARKER, NAME, Stage, Steady, begins, benchmark, column, ended, exact, failing, has, json,
    keeps, ran, signal, stage,
};

/// Restores the one backend of a stage.
const WAY_BACK: &str = "`lmpatch --revert --backend 'app-mlx-generate-mac14-arm64@34'`";

#[test]
fn every_backend_gets_its_own_bytes_back_and_others_are_told_that_a_benchmark_runs() {
    let stage = stage().pace(&[(2048, 800)]);
    usual_backend(&stage.env.lmstudio(), "app-mlx-generate-mac14-arm64@31")
        .with_engine(engine_since_2026("1_234"));
    let before = stage.before();
    let child = stage.start("--sizes 512,2048 --runs 1");
    let has_begun = || !stage.state().chats.is_empty();
    until("a prompt is being measured", has_begun);
    let other = stage.env.run(["512"]).exits(1);
    other.says("a benchmark is running; wait for it");
    // Two benchmarks at a time would measure each other.
    let other = ran(&mut stage.command("")).exits(1);
    other.says("a benchmark is running");
    let check = stage.env.run(["--check"]).exits(0);
    check.says_nothing_of("interrupted");
    ended(child).exits(0).says("Every backend is as it was.");
    stage.is_as(&before);
}

#[test]
fn signals_put_everything_back_within_a_second_also_while_the_server_is_silent() {
    // At a size, or before one is set.
    for (name, prompts) in [("INT", 3), ("TERM", 3), ("HUP", 3), ("INT", 1)] {
        // What a busy machine adds is not lmpatch's: one of three is enough.
        let mut attempts = (0..3).map(|_| {
            let stage = failing(512, Failure::IsSilent);
            let marker = stage.env.lmstudio().join(MARKER);
            let before = stage.before();
            let child = stage.start("--sizes 512,1024 --runs 1");
            let has_begun = || stage.state().chats.len() == prompts;
            until("a prompt is being measured", has_begun);
            assert!(marker.exists());
            signal(child.id(), name);
            let sent = Instant::now();
            until("the files are back", || stage.chunk() == Some(2048));
            let taken = sent.elapsed();
            assert_eq!(stage.whole(), [0; 0], "the server is silent still");
            let ran = ended(child).exits(1);
            let ran = ran.says("stopped before the verdict was settled");
            let ran = ran.says("Every backend is as it was.");
            // Before a size is set no model was loaded.
            assert_eq!(ran.stderr.contains("Restoring the models"), prompts > 1);
            assert!(!marker.exists());
            stage.is_as(&before);
            taken
        });
        let is_soon = attempts.any(|taken| taken < Duration::from_secs(1));
        assert!(is_soon, "{name}");
    }
}

#[test]
fn a_signal_at_the_very_beginning_leaves_nothing_behind() {
    let stage = failing(512, Failure::IsSilent);
    let vendor = stage.env.lmstudio().join("extensions/backends/vendor");
    let names = || {
        fs::read_dir(&vendor)
            .unwrap()
            .map(|one| one.unwrap().file_name())
    };
    let count = names().count();
    for _ in 0..8 {
        let mut child = stage.start("--sizes 512,1024 --runs 1");
        // The way back is being written. This must not take any time.
        while names().count() == count {
            assert_eq!(child.try_wait().unwrap(), None);
        }
        signal(child.id(), "INT");
        ended(child).exits(1);
        assert_eq!(names().count(), count);
    }
}

#[test]
fn a_second_signal_ends_it_after_the_files() {
    let stage = stage().odd(|odd| odd.load_hangs = true);
    let before = stage.before();
    let mut child = stage.start("--sizes 512,1024 --json");
    until("a load hangs", || stage.state().loads() == 1);
    signal(child.id(), "INT");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Every backend is as it was.") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    assert_eq!(stage.chunk(), Some(2048), "the files are back");
    signal(child.id(), "INT");
    stderr.read_to_string(&mut said).unwrap();
    let results = ended(child).exits(1).json();
    let stopped = "stopped before the model was loaded as it was; `lms ps` shows what is loaded";
    let error = format!("stopped before the verdict was settled; {stopped}");
    assert_eq!(results["error"], error);
    assert!(said.contains(stopped), "{said}");
    before.0.still_holds();
}

#[test]
fn signals_also_end_the_last_load() {
    let stage = stage();
    let mut child = stage.start("--sizes 512,4096 --runs 1 --json");
    let is_measured = || stage.whole().contains(&512);
    until("the second size is measured", is_measured);
    stage.state().odd.load_hangs = true;
    until("the last load hangs", || stage.state().loads() == 3);
    assert_eq!(stage.chunk(), Some(2048), "the files are back");
    let other = stage.env.run(["4096"]).exits(1);
    other.says("wait for that lmpatch, which may be loading models");
    // Two that come together count as one.
    until("signals end it", || {
        signal(child.id(), "INT");
        child.try_wait().unwrap().is_some()
    });
    let ran = ended(child).exits(1);
    let results = ran.json();
    ran.says("A model is being loaded; press Ctrl-C again to stop without it.")
        .says("stopped before the model was loaded as it was; `lms ps` shows what is loaded")
        .says_nothing_of("sets it");
    assert_eq!(column(&results, "size"), [512, 4096]);
    let error = "stopped before the model was loaded as it was; `lms ps` shows what is loaded";
    assert_eq!(results["error"], error);
    keeps(&results, 512);
}

#[test]
fn a_model_that_is_still_at_work_is_waited_for_however_short_the_timeout_is() {
    let stage = stage();
    let before = stage.before();
    let child = stage.start("--sizes 512,4096 --runs 1 --timeout 1");
    let is_measured = || stage.whole().contains(&512);
    until("the second size is measured", is_measured);
    stage.state().odd.busy_looks = 160;
    ended(child).says("Every model is loaded as it was.");
    stage.is_as(&before);
}

#[test]
fn where_nothing_can_be_printed_the_model_comes_back_all_the_same() {
    let stage = stage();
    let before = stage.before();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = stage.command("--sizes 512,4096 --runs 1");
    let ran = ran(command.stdout(full)).exits(1);
    ran.says("cannot write to stdout").says("Verdict: ");
    stage.is_as(&before);
}

#[test]
fn files_that_could_not_be_restored_are_told_with_the_results() {
    // During the warm-up at 512.
    let edits: Meddle = |state| {
        let text = text(&state.engine);
        fs::write(&state.engine, text + "# by another hand\n").unwrap();
    };
    let stage = stage().odd(|odd| odd.meddles = Some((4, edits)));
    let ran = ran(&mut stage.command("--sizes 512,2048 --runs 1 --json")).exits(1);
    let results = ran.json();
    let error = "sizes not restored, `lmpatch --check` says how: ";
    begins(&results["error"], error);
    let check = stage.env.run(["--check"]);
    check.says(&format!("{WAY_BACK} restores them"));
    ran.says("error: sizes not restored")
        .says_nothing_of("Every backend is as it was.");
}

/// Waits for the lock to be free. What other tests start has its file, too, until it is another program.
#[track_caller]
fn is_interrupted(stage: &Stage) {
    let home = stage.env.lmstudio();
    until("the lock is free", || interrupted(&home).is_some());
    assert_eq!(interrupted(&home).as_deref(), Some(WAY_BACK));
}

#[test]
fn after_a_kill_the_way_back_is_known() {
    let stage = failing(512, Failure::IsSilent);
    let before = stage.before();
    let mut child = stage.start("--sizes 512,1024");
    // No `lms` is at work any more, which would go on.
    let has_begun = || stage.state().chats.len() == 3;
    until("a prompt is being measured", has_begun);
    assert_eq!(stage.chunk(), Some(1024));
    signal(child.id(), "KILL");
    child.wait().unwrap();
    is_interrupted(&stage);
    let again = stage.run("--sizes 512,1024").exits(1);
    let first = format!("a benchmark was interrupted; first restore the sizes: {WAY_BACK}");
    again.says(&first);
    let home = stage.env.lmstudio().display().to_string();
    let mut command = stage.command("--sizes 512 --home");
    let results = json(command.arg(&home), 1);
    let advised = WAY_BACK.replace("--revert", &format!("--home '{home}' --revert"));
    has(&results["error"], &advised);
    let ran = stage.env.run(["--check"]).exits(0);
    ran.says("a benchmark was interrupted")
        .says(&format!("{WAY_BACK} restores them"));
    stage.env.run(["--revert"]).exits(0);
    assert_eq!(stage.chunk(), Some(2048));
    before.0.still_holds();
}

#[test]
fn a_backend_that_is_gone_is_told() {
    let stage = exact(&[]);
    let guard = stage.prepared("--sizes 4096 --reload true").guard.unwrap();
    guard.begin().unwrap();
    guard.switch_to(4096).unwrap();
    let (there, away) = (&stage.backend.root, stage.env.user().join("elsewhere"));
    fs::rename(there, &away).unwrap();
    let gone = "it holds no mlx_engine and no mlx_lm: a stuck download, or it is gone";
    for keep in [None, Some(512)] {
        let why = format!("{:#}", guard.finish_files(keep).unwrap_err());
        let what = "sizes not restored, `lmpatch --check` says how";
        assert_eq!(why, format!("{what}: {NAME}: {gone}"));
    }
    // Its disk was away: the way back is known when it is there again.
    drop(guard);
    let home = stage.env.lmstudio();
    let is_free = || Lock::try_take(&home).unwrap().is_some();
    until("the lock is free", is_free);
    assert_eq!(interrupted(&home), None);
    // Neither is it forgotten over another benchmark, of what is there.
    let other = usual_backend(&home, "app-mlx-generate-mac14-arm64@33");
    let ran = stage.run("--sizes 512,2048 --reload true");
    ran.says("512 failed: it did not take effect")
        .says("Verdict: one size was measured, so there is nothing to compare it with")
        .says("Every backend is as it was.");
    fs::remove_dir_all(other.root).unwrap();
    fs::rename(away, there).unwrap();
    is_interrupted(&stage);
    for words in ["", "--sizes 512,2048"] {
        let ran = stage.run(words).exits(1);
        ran.says(&format!("first restore the sizes: {WAY_BACK}"));
    }
}

#[test]
fn the_budget_also_ends_runs_that_take_no_time() {
    let stage = stage().pace(&[(2048, 1)]);
    let ran = stage.run("--runs 1000 --prompt-tokens 4096 --budget 0.02");
    ran.exits(0)
        .says("The budget ran out before the verdict was settled.");
}

#[test]
fn a_budget_that_is_over_at_once_has_measured_nothing() {
    let stage = failing(2048, Failure::IsSilent);
    let ran = stage.run("--budget 0.005 --quiet").exits(1);
    ran.says("error: no size could be measured");
    // Not even the first prompt has ended.
    let stage = stage.pace(&[(2048, 3000)]);
    stage.write("o.csv", "of an earlier one");
    let results = stage.json("--budget 0.005 --output o.csv", 1);
    assert_eq!(stage.read("o.csv"), "of an earlier one");
    assert_eq!(results["error"], "no size could be measured");
    assert_eq!(results["model"], "qwen/tiny");
}

#[test]
fn a_budget_ends_it_in_time_with_what_is_known() {
    // The warm-up at 1024 alone would take twenty seconds.
    let stage = stage().pace(&[(4096, 40), (2048, 20), (1024, 20_000)]);
    let ran = stage.run("--sizes 1024,1024,2048,4096 --runs 1 --budget 0.2");
    ran.says("about 1 min of prefill at most")
        .says("The budget ran out before the verdict was settled.");
    let fake = stage.state();
    assert!(fake.prefills.iter().all(|one| one.chunk != 1024));
}

/// What is known when it has come to its end, without a signal.
fn supervised(benchmark: Benchmark) -> Results {
    supervise(benchmark, Signals::new::<_, i32>([]).unwrap())
}

#[test]
fn a_panic_puts_everything_back() {
    let stage = stage();
    let before = stage.before();
    let mut benchmark = stage.prepared("--sizes 4096");
    let guard = benchmark.guard.clone().unwrap();
    let file = stage.backend.engine();
    let (set, was_set) = mpsc::channel();
    benchmark.engine = Box::new(Steady(move |_, tokens| {
        set.send(chunk_on_disk(&file))?;
        assert_eq!(tokens, 1536, "on purpose");
        Ok(())
    }));
    let error = "lmpatch itself failed; please report this";
    assert_eq!(supervised(benchmark).error.as_deref(), Some(error));
    assert_eq!(was_set.iter().last(), Some(Some(4096)));
    stage.is_as(&before);
    assert_eq!(stage.state().loads(), 2);
    assert!(guard.switch_to(4096).is_err(), "nothing is set any more");
    stage.is_as(&before);
    // The release build unwinds too.
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(!manifest.contains("panic = \"abort\""));
}

#[test]
fn a_panic_of_what_measures_is_an_end_like_any_other() {
    let engine = Steady(|chunk, _| {
        assert_ne!(chunk, 2048, "on purpose");
        Ok(())
    });
    let results = supervised(benchmark(engine, [2048, 4096], 1));
    let error = "lmpatch itself failed; please report this";
    assert_eq!(results.error.as_deref(), Some(error));
    let speeds: Vec<_> = results.rows.iter().map(Row::speed).collect();
    assert_eq!(speeds, [0.0, 100.0], "what was known is still known");
}
