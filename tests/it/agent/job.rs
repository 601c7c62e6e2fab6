//! What launchd runs: which backends the job sets, what it waits for, and what it logs.
use std::fs::{self, File};
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::{IMPATIENT, NEW, OLD, SOON, User};
use crate::support::child::{finish, until, while_mode};
use crate::support::home::{
    BackendDir, engine_since_2026, generate, runtime, stock_generate, usual_backend,
};
use crate::support::standins::written;
use crate::support::{Before, Env, Ran, aloud, strace};
use lmpatch::agent;
use lmpatch::cli::{self, Cli};
use lmpatch::files::last_change;
use lmpatch::lmstudio::lms::Lms;

/// A settling time that no test would wait for.
const NEVER: &str = "3600000";

/// Fails the test if the job ends within `time`.
#[track_caller]
fn still_waits(job: &mut Child, time: Duration) {
    sleep(time);
    assert_eq!(job.try_wait().unwrap(), None);
}

#[test]
fn a_job_waits_five_seconds_and_a_reload_two_minutes() {
    let parsed = Cli::read(["lmpatch", "agent", "run", "4096"].map(Into::into)).unwrap();
    let Some(cli::Command::Agent(agent::Command::Run { settle_ms, .. })) = parsed.command else {
        panic!("{parsed:?}")
    };
    assert_eq!(settle_ms, 5000);
    let lms = Lms::of(Path::new("home"));
    assert_eq!(lms.wait_timeout, Duration::from_secs(120));
}

#[test]
fn the_job_sets_what_is_stock_and_says_so_once_and_nothing_of_other_directories() {
    let user = User::with_agent();
    user.env.backend(NEW);
    let python = "cpython3.11-mac-arm64@12/lib/python3.11/site-packages";
    fs::create_dir_all(user.env.amphibian().join(python)).unwrap();
    let hidden = user.env.backend(".unpacking");
    let before = Before::of(&hidden.root);
    fs::write(user.env.amphibian().join("a file"), "").unwrap();
    user.job_exits(0, SOON);
    user.job_exits(0, SOON);
    let told = format!("{NEW}: 2048 → 4096");
    assert_eq!(user.logged(), format!("{told}\n"));
    user.has_chunks([4096, 4096]);
    before.still_holds();
    user.agent("status").exits(0).shows(&told);
}

#[test]
fn a_number_that_somebody_set_stays_and_stock_does_not() {
    let user = User::with_agent();
    let brings_anew = || {
        fs::remove_dir_all(user.env.amphibian().join(OLD)).unwrap();
        user.env.backend(OLD)
    };
    for size in [8192, 512] {
        user.env.run([size.to_string()]).exits(0);
        user.job_exits(0, SOON);
        user.has_chunks([size]);
    }
    assert_eq!(user.logged(), "");
    user.run(&["--revert"])
        .tells("the agent will set 4096 again")
        .says("`lmpatch agent uninstall` ends that");
    user.job_exits(0, SOON);
    user.has_chunks([4096]);
    // LM Studio brings the same backend anew.
    brings_anew();
    user.job_exits(0, SOON);
    user.has_chunks([4096]);
    // Somebody's own number under stock ones is left alone.
    brings_anew().with_engine(engine_since_2026("3072"));
    user.run(&["4096"]).exits(0);
    let ran = user.run(&["2048"]).exits(0);
    ran.says_nothing_of("the agent will set");
    user.job_exits(0, SOON);
    user.has_chunks([2048]);
    // As is what has only one of its packages.
    let half = BackendDir::new(&user.env.lmstudio(), NEW);
    half.with_listed_generate(stock_generate());
    let ran = user.run(&["--revert", "--backend", NEW]).exits(0);
    ran.says_nothing_of("the agent will set");
    user.agent("uninstall").exits(0);
    let ran = user.run(&["--revert"]).exits(0);
    ran.says_nothing_of("agent");
}

#[test]
fn a_backend_that_is_refused_is_logged_and_does_not_stop_the_others() {
    let user = User::with_agent_and_stock();
    let odd = "PROMPT_PROCESSING_CHUNK_SIZE = 1 << 11\n";
    let backend = user.env.backend(NEW).with_engine(odd);
    user.job_exits(1, SOON);
    user.has_chunks([4096, 0]);
    let logged = user.logged();
    assert_eq!(logged.lines().count(), 2, "{logged}");
    assert!(logged.contains(&format!("error: {NEW}: ")), "{logged}");
    assert!(logged.contains("cache_wrapper.py"), "{logged}");
    // Also where there is nothing else in it to set.
    backend.with_generate(generate("4096", "4096", "4096"));
    let told = format!("{NEW}: mlx_engine/cache_wrapper.py: ");
    user.agent("install").fails(&told);
}

#[test]
fn what_macos_does_not_let_in_is_logged_at_once_with_the_reason() {
    if !strace::is_there() {
        return;
    }
    let user = User::new();
    let home = user.env.lmstudio().display().to_string();
    let words = ["--home", &home, "agent", "run", "2048", "--settle-ms"];
    let words = |settle_ms| [&words[..], &[settle_ms]].concat();
    let calls = strace::record(&user.env, &words(SOON));
    let listing = calls.iter().find(|call| call.name == "openat").unwrap();
    assert!(listing.text.contains("_amphibian"), "{listing:?}");
    let tampering = format!("error=EPERM:when={}+", listing.occurrence);
    let (output, was_hit) = strace::inject(&user.env, "openat", &tampering, &words(NEVER));
    assert!(was_hit);
    let ran = Ran::of(&output)
        .fails("Operation not permitted")
        .says("System Settings → Privacy & Security → Full Disk Access");
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    // What is in the log is what `agent status` shows.
    fs::write(user.log(), ran.stderr).unwrap();
    user.agent("status").shows("Full Disk Access");
}

#[test]
fn a_directory_that_is_closed_is_logged_at_once_with_the_command_that_opens_it() {
    let env = Env::new();
    env.backend(OLD);
    env.hand_over();
    let words = format!("--home .lmstudio agent run 4096 --settle-ms {NEVER}");
    let mut job = env.ordinary(words.split(' '));
    let ran = while_mode(&env.amphibian(), 0o000, || finish(&mut job));
    ran.fails("chmod u+rwX");
}

#[test]
fn the_job_waits_until_every_backend_is_whole_that_is_there_or_named_by_a_manifest() {
    // Should it not wait, it has time to show that.
    let a_while = Duration::from_millis(500);
    let user = User::with_agent_and_stock();
    let lmstudio = user.env.lmstudio();
    runtime(&lmstudio, "1.12.0", &[NEW]);
    let mut job = user.job_command(SOON).spawn().unwrap();
    still_waits(&mut job, a_while);
    user.has_chunks([2048]);
    let backend = BackendDir::new(&lmstudio, NEW).with_listed_generate(stock_generate());
    still_waits(&mut job, a_while);
    fs::create_dir(backend.path("mlx_engine")).unwrap();
    still_waits(&mut job, a_while);
    let whole = backend.path("mlx_engine/new");
    fs::write(&whole, engine_since_2026("2048")).unwrap();
    fs::rename(whole, backend.engine()).unwrap();
    assert!(job.wait().unwrap().success());
    user.has_chunks([4096, 4096]);
    let both = [OLD, NEW].map(|name| format!("{name}: 2048 → 4096\n"));
    assert_eq!(user.logged(), both.concat());
}

#[test]
fn the_job_leaves_files_alone_while_they_change() {
    let user = User::with_agent();
    let old = BackendDir::new(&user.env.lmstudio(), OLD);
    let backend = user.env.backend(NEW);
    // Unpacking gives files the time of writing that they had elsewhere.
    for backend in [&old, &backend] {
        written(&backend.engine(), UNIX_EPOCH);
        written(&backend.generate(), UNIX_EPOCH);
    }
    let mut job = user.job_command("4000").spawn().unwrap();
    for number in 0..40 {
        let text = format!("{}# {number}\n", engine_since_2026("2048"));
        fs::write(backend.engine(), &text).unwrap();
        written(&backend.engine(), UNIX_EPOCH);
        sleep(Duration::from_millis(25));
        assert_eq!(fs::read_to_string(backend.engine()).unwrap(), text);
    }
    assert!(job.wait().unwrap().success());
    user.has_chunks([4096, 4096]);
}

#[test]
fn a_file_that_was_just_written_is_waited_for_in_a_directory_that_is_old() {
    let user = User::with_agent_and_stock();
    let backend = BackendDir::new(&user.env.lmstudio(), OLD);
    let settle = Duration::from_millis(500);
    until("the directory is old", || {
        let changed = last_change(&backend.path("")).unwrap();
        changed.elapsed().is_ok_and(|age| age > settle)
    });
    let written = Instant::now();
    fs::write(backend.engine(), engine_since_2026("2048")).unwrap();
    user.job_exits(0, "500");
    assert!(written.elapsed() >= settle);
    user.has_chunks([4096]);
}

#[test]
fn a_backend_that_changes_until_the_deadline_is_left_alone() {
    let user = User::with_agent_and_stock();
    let backend = user.env.backend(NEW);
    let mut job = user.job_command("40").spawn().unwrap();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while job.try_wait().unwrap().is_none() {
        // A package that is unpacked beside the two.
        fs::create_dir(backend.path("tokenizers")).unwrap();
        fs::remove_dir(backend.path("tokenizers")).unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        sleep(Duration::from_millis(1));
    }
    // Also what was between the last change and the job's end.
    if longest.max(last.elapsed()) >= Duration::from_millis(40) {
        return aloud("skipped: it was too busy here to keep a backend changing");
    }
    user.has_chunks([4096, 2048]);
}

#[test]
fn at_the_deadline_the_job_sets_those_that_are_whole() {
    let user = User::with_agent_and_stock();
    let lmstudio = user.env.lmstudio();
    let backend = BackendDir::new(&lmstudio, NEW).with_generate(stock_generate());
    let missing = "app-mlx-generate-mac14-arm64@40";
    runtime(&lmstudio, "1.12.0", &[missing]);
    let before = Before::of(&backend.root);
    user.job_exits(0, IMPATIENT);
    user.has_chunks([4096, 2048]);
    assert_eq!(user.logged(), format!("{OLD}: 2048 → 4096\n"));
    before.still_holds();
}

#[test]
fn a_home_that_is_gone_is_waited_for_in_silence() {
    let user = User::with_agent();
    let (home, away) = (user.env.lmstudio(), user.env.user().join("away"));
    fs::rename(&home, &away).unwrap();
    user.job_exits(0, IMPATIENT);
    assert!(!home.exists());
    let mut job = user.job_command(SOON).spawn().unwrap();
    usual_backend(&away, NEW);
    fs::rename(&away, &home).unwrap();
    assert!(job.wait().unwrap().success());
    assert_eq!(user.logged(), format!("{NEW}: 2048 → 4096\n"));
}

#[test]
fn a_lock_is_waited_for_and_at_the_deadline_left_to_the_next_start() {
    let user = User::new();
    let lock = File::open(user.env.amphibian()).unwrap();
    lock.lock().unwrap();
    user.agent("install")
        .tells("another lmpatch is at work; the agent sets the backends when that has ended");
    user.job_exits(0, IMPATIENT);
    assert_eq!(user.logged(), "");
    let mut job = user.job_command(SOON).spawn().unwrap();
    // Longer than any other command waits for the lock, as a benchmark holds it.
    still_waits(&mut job, Duration::from_secs(11));
    user.has_chunks([2048]);
    drop(lock);
    assert!(job.wait().unwrap().success());
    user.has_chunks([4096]);
    assert_eq!(user.logged(), format!("{OLD}: 2048 → 4096\n"));
}

#[test]
fn a_file_that_is_not_the_one_of_its_record_may_be_half_unpacked_and_is_told() {
    let user = User::with_agent();
    let whole = stock_generate();
    let half = whole.split_once("class BatchGenerator").unwrap().0;
    let started = Instant::now();
    let backend = user.env.backend(NEW).with_generate(half);
    let before = Before::of(&backend.root);
    let told = format!(
        "{NEW}: a file of it is not the one that its package's RECORD lists; if no update is under way, \
         `lmpatch 4096 --backend '{NEW}'` sets it"
    );
    user.agent("install").fails(&told);
    user.job_exits(1, IMPATIENT);
    // 1.8 s, but the date of a file is that of the last tick of the system's clock.
    let patience = Duration::from_millis(1750);
    assert!(started.elapsed() >= patience, "it was not waited for");
    let home = format!("`lmpatch --home '{}' 4096", user.env.lmstudio().display());
    let told = told.replace("`lmpatch 4096", &home);
    assert_eq!(user.logged(), format!("error: {told}\n"));
    before.still_holds();
    // Where it has been set by hand there is nothing to tell.
    user.env.run(["4096", "--backend", NEW]).exits(0);
    user.job_exits(0, SOON);
    let reverted = user.run(&["--revert", "--backend", NEW]).exits(0);
    reverted.says_nothing_of("the agent will set");
    // What it unpacks further goes where it began.
    fs::write(backend.generate(), &whole).unwrap();
    user.job_exits(0, SOON);
    user.has_chunks([4096, 4096]);
}
