//! Sizes, loads and runs that fail or do not count, and models that do not come back as they were.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::thread;

use crate::support::child::until;
use crate::support::home::usual_backend;
use crate::support::server::Failure::{BreaksOff, Crashes, IsSilent, OutOfMemory};
use crate::support::server::Meddle;

use super::{
    MODEL, NONE, begins, column, ended, failed, failing, has, json, keeps, make_read_only, ran,
    runs, stage,
};

#[test]
fn a_size_that_fails_is_a_row_and_the_rest_unharmed() {
    let small = stage().odd(|odd| odd.fits.extend([(4096, 6144)]));
    for (stage, why) in [
        (failing(4096, OutOfMemory), "out of memory"),
        (failing(4096, BreaksOff), "broke off before the first token"),
        // Which is no other client's doing.
        (failing(4096, Crashes), "the server broke off"),
        (failing(4096, IsSilent), "said nothing for 1 seconds"),
        (small, "a context of 6144 at this size"),
    ] {
        let results = stage.json("--sizes 512,2048,4096 --runs 1 --timeout 1", 1);
        failed(&results, 2, why);
        keeps(&results, 512);
        let reason = "of the sizes that could be measured, 512";
        begins(&results["verdict"]["reason"], reason);
        // It is not provoked again: three sizes, and the model as it was.
        assert_eq!(stage.state().loads(), 4, "{why}");
    }
}

#[test]
fn a_size_that_fails_after_it_has_worked_leaves_it_to_the_others() {
    // 4096 cuts 2048 short and is loaded once more, so that this is not one lucky run.
    let stage = stage().pace(&[(4096, 8), (2048, 40)]);
    let stage = stage.odd(|odd| odd.failing_loads = vec![4]);
    let results = stage.json("--sizes 512,2048,4096", 1);
    failed(&results, 2, "Failed to load model");
    keeps(&results, 512);
    let reason = "of the sizes that could be measured, 512";
    begins(&results["verdict"]["reason"], reason);
}

const NO_LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

/// The URL of a server that answers every chat with this, and everything else with `list`.
fn answers_with(list: &'static str, answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = vec![0; 1 << 16];
            let length = stream.read(&mut request).unwrap();
            let is_chat = request[..length].starts_with(b"POST");
            let text = if is_chat { &answer } else { list };
            // The client may go at any moment.
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    url
}

#[test]
fn an_answer_that_breaks_off_is_told_as_one() {
    let stage = stage();
    let broken = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
                  13\r\n: keepalive 0/1536\n\r\n";
    let url = answers_with(NO_LIST, broken.to_owned());
    let ran = stage.env.run(["bench", "--model", "m", "--url", &url]);
    ran.exits(1).says("error: the server broke off; did");
}

#[test]
fn a_refusal_is_told_with_its_status() {
    let stage = stage();
    for (status, kind, body, said) in [
        (
            503,
            "text/event-stream",
            "come back later\n",
            "come back later",
        ),
        (
            500,
            "application/json",
            r#"{"error":"no memory"}"#,
            r#"{"error":"no memory"}"#,
        ),
        (200, "text/html", "<p>Welcome", "<p>Welcome"),
    ] {
        let answer = format!(
            "HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}"
        );
        let url = answers_with(NO_LIST, answer);
        let ran = stage.env.run(["bench", "--model", "m", "--url", &url]);
        ran.exits(1)
            .says(&format!("error: the server answered {status}: {said}\n"));
    }
    // One that fails is not one without LM Studio's own interface.
    let failure = "HTTP/1.1 500 So\r\nContent-Length: 2\r\n\r\n{}";
    let url = answers_with(failure, String::new());
    let ran = stage.env.run(["bench", "--url", &url]);
    ran.exits(1).says("error: the server answered 500");
}

#[test]
fn a_client_that_uses_the_model_right_after_a_load_costs_no_size() {
    let stage = stage();
    let child = stage.start("--sizes 512,4096 --runs 1 --json");
    until("a model is being loaded", || stage.state().loads() == 1);
    stage.state().odd.busy_looks = 120;
    let results = ended(child).exits(0).json();
    assert_eq!(column(&results, "failed"), [NONE, NONE]);
    keeps(&results, 512);
}

#[test]
fn a_backend_that_is_not_in_use_costs_no_size() {
    let stage = stage();
    let other = usual_backend(&stage.env.lmstudio(), "app-mlx-generate-mac14-arm64@31");
    let child = stage.start("--sizes 512,4096 --runs 1 --json");
    until("a size is set", || stage.chunk() == Some(4096));
    // As an update of LM Studio does.
    fs::remove_dir_all(&other.root).unwrap();
    let results = ended(child).exits(1).json();
    assert_eq!(column(&results, "failed"), [NONE, NONE]);
    keeps(&results, 512);
    has(
        &results["error"],
        "@31: it holds no mlx_engine and no mlx_lm: a stuck download, or it is gone",
    );
}

#[test]
fn a_size_that_could_not_be_set_is_not_measured() {
    // After the whole prompt at the stock size, which is there to be restored.
    let locks: Meddle = |state| make_read_only(&state.engine);
    let stage = stage().odd(|odd| odd.meddles = Some((3, locks)));
    let results = json(&mut stage.command("--sizes 512,2048 --runs 1"), 1);
    failed(&results, 0, "allow it with `chmod u+rwX");
    assert_eq!(column(&results, "observed_chunk"), [NONE, 2048.into()]);
    // For the other size, and in the end.
    assert_eq!(stage.state().loads(), 2);
}

#[test]
fn a_list_that_fails_once_costs_no_size() {
    // Nearly all of it is waiting.
    thread::scope(|scope| {
        for looks in 1..4 {
            scope.spawn(move || {
                let stage = stage().odd(|odd| odd.failing_looks_after = Some((1, looks)));
                let results = stage.json("--sizes 512,2048 --runs 1", 0);
                assert_eq!(column(&results, "failed"), [NONE, NONE]);
            });
        }
    });
}

#[test]
fn a_load_that_goes_wrong_is_told_and_says_nothing_of_a_size() {
    let again = "Every model is loaded as it was.";
    let smaller = "with 4096 the context is 20000, not 65536";
    let cases = [
        // The last load fails once; `lms` fails for a while; another client is the first to load the
        // model, for a size or in the end; memory is short.
        (stage().odd(|odd| odd.failing_loads = vec![3]), again),
        (stage().odd(|odd| odd.failing_looks = 25), again),
        (
            stage().odd(|odd| odd.foreign_load = Some(2)),
            "with 512 the context is 9000, not 65536",
        ),
        (stage().odd(|odd| odd.foreign_load = Some(3)), again),
        (
            stage().odd(|odd| odd.fits = [(4096, 20_000)].into()),
            smaller,
        ),
    ];
    // Nearly all of it is waiting.
    thread::scope(|scope| {
        for (stage, said) in cases {
            scope.spawn(move || {
                let ran = stage.run("--sizes 512,4096 --runs 1").exits(0);
                let ran = ran.says(said).says(again);
                assert_eq!(ran.stderr.contains("the context is"), said != again);
                assert_eq!(stage.state().odd.failing_looks, 0);
            });
        }
    });
}

#[test]
fn disturbed_runs_do_not_count() {
    // A probe and a warm-up, and then another client does something.
    let meddled = |count, meddle: Meddle, sizes: &str, code| {
        let stage = stage().odd(|odd| odd.meddles = Some((count, meddle)));
        let before = stage.before();
        let words = format!("{sizes} --runs 2");
        let results = json(&mut stage.command(&words), code);
        before.0.still_holds();
        results
    };
    let sweep = "--sizes 2048";
    let loaded = "something else loaded or unloaded the model";
    // One run that is disturbed does not count; the model is loaded again, and the next one does.
    let ignores = |count, meddle, sizes, why: &str| {
        let results = meddled(count, meddle, sizes, 0);
        let runs = runs(&results, 0).iter();
        let whys: Vec<_> = runs.map(|run| &run["ignored"]).collect();
        assert_eq!(whys, [&why.into(), &NONE], "{results:#}");
    };
    let too: Meddle = |state| {
        state.load(MODEL, "qwen/tiny:2", 8192);
    };
    ignores(2, too, sweep, loaded);
    let otherwise: Meddle = |state| state.models[0].loaded[0].context = 9999;
    ignores(2, otherwise, sweep, loaded);
    let uses: Meddle = |state| state.odd.busy_looks = 120;
    ignores(3, uses, sweep, "something else uses the model");
    let unloads: Meddle = |state| state.models[0].loaded.clear();
    ignores(2, unloads, "", "LM Studio loaded the model first");
    ignores(3, unloads, sweep, loaded);
}

#[test]
fn a_size_of_which_no_run_counts_is_a_failure() {
    let too: Meddle = |state| {
        state.load(MODEL, "qwen/tiny:2", 8192);
    };
    let stage = stage().odd(|odd| odd.meddles = Some((4, too)));
    let words = "--sizes 512,2048,4096 --runs 1 --apply-best";
    let ran = ran(&mut stage.command(words)).exits(1);
    ran.says("Verdict: of the sizes that could be measured, 512");
}

#[test]
fn a_model_that_the_last_load_evicts_comes_back() {
    let evicts: Meddle = |state| state.odd.evicts = true;
    let stage = stage().odd(|odd| odd.meddles = Some((5, evicts)));
    stage.fake.load("gemma/tiny", "mlx", 8192);
    let ran = stage.run("--model gemma/tiny --sizes 512,2048 --runs 1");
    ran.exits(0).says("Every model is loaded as it was.");
    assert!(!stage.state().odd.evicts);
}

#[test]
fn a_model_that_another_client_loads_otherwise_is_left_alone_and_told() {
    let otherwise: Meddle = |state| state.models[1].loaded[0].context = 4096;
    let stage = stage().odd(|odd| odd.meddles = Some((3, otherwise)));
    stage.fake.load("gemma/tiny", "mlx", 8192);
    let words = "--model qwen/tiny --sizes 512,2048 --runs 1";
    let ran = ran(&mut stage.command(words)).exits(1);
    ran.says("error: gemma/tiny: its context length is 4096 instead of 8192")
        .says_nothing_of("Every model");
    assert_eq!(stage.fake.loaded()[1].context, 4096);
}

#[test]
fn a_model_that_comes_back_otherwise_is_told() {
    let otherwise = || stage().odd(|odd| odd.fits.extend([(2048, 9000)]));
    let words = "--sizes 512,4096 --runs 1";
    let why = "qwen/tiny: its context length is 9000 instead of 65536";
    let ran = ran(&mut otherwise().command(words)).exits(1);
    ran.says(why);
    // In the JSON, too, which is printed when all is done.
    let results = json(&mut otherwise().command(words), 1);
    assert_eq!(results["error"], why);
}

#[test]
fn every_model_that_does_not_come_back_is_named() {
    let stage = stage();
    stage.fake.load("gemma/tiny", "mlx", 8192);
    stage.fake.load("llama/tiny", "gguf", 8192);
    let stage = stage.odd(|odd| {
        odd.evicts = true;
        odd.refuses = vec!["gemma/tiny", "llama/tiny"];
    });
    let words = "--model qwen/tiny --sizes 512,2048 --runs 1 --output page.md";
    let results = json(&mut stage.command(words), 1);
    // Its lines are wrapped.
    let page = stage.read("page.md").replace("\n    ", " ");
    for name in ["gemma/tiny", "llama/tiny"] {
        let what = format!("{name} was not loaded again: ");
        has(&results["error"], &what);
        assert!(page.contains(&what), "{page}");
    }
    assert_eq!(stage.fake.loaded()[0].id, MODEL);
}
