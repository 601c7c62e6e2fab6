//! Sizes, loads and runs that fail or do not count.

use std::fs;

use crate::support::server::{Meddle, Odd, State};

use super::{MODEL, NONE, begins, column, failed, has, json, keeps, rows, runs, stage};

#[test]
fn a_size_that_fails_is_a_row_and_the_rest_unharmed() {
    let cases: [(fn(&mut Odd), &str); 4] = [
        (|odd| odd.out_of_memory_above = Some(2048), "out of memory"),
        (
            |odd| odd.breaks_off_from = Some(4096),
            "broke off before the first token",
        ),
        (
            |odd| odd.silent_from = Some(4096),
            "said nothing for 1 seconds",
        ),
        (
            |odd| odd.fits.extend([(4096, 6144)]),
            "a context of 6144 at this size",
        ),
    ];
    for (change, why) in cases {
        let stage = stage().odd(change);
        let results = stage.json("--sizes 512,2048,4096 --runs 1 --timeout 1", 1);
        failed(&results, 2, why);
        keeps(&results, 512);
        let reason = "of the sizes that could be measured, 512";
        begins(&results["verdict"]["reason"], reason);
    }
}

#[test]
fn what_fails_after_it_has_worked_is_tried_again_and_still_counts() {
    // 4096 cuts 2048 short and is loaded once more, so that this is not one lucky run.
    for (fails, most) in [(vec![3], 3), (vec![3, 4, 5], 1)] {
        let count = fails.len();
        let stage = stage().pace(&[(4096, 8), (2048, 40)]);
        let stage = stage.odd(|odd| odd.failing_loads = fails);
        let results = stage.json("--sizes 2048,4096", 0);
        let best = &rows(&results)[1];
        assert_eq!(best["failed"], NONE, "{results:#}");
        assert_eq!(best["disturbed"].as_array().unwrap().len(), count);
        has(&best["disturbed"][0], "Failed to load model");
        assert!(runs(&results, 1).len() <= most);
        keeps(&results, 4096);
    }
}

#[test]
fn a_list_that_fails_once_costs_no_size() {
    for looks in 1..4 {
        let stage = stage().odd(|odd| odd.failing_looks_after = Some((1, looks)));
        let results = stage.json("--sizes 512,2048 --runs 1", 0);
        assert_eq!(column(&results, "failed"), [NONE, NONE]);
    }
}

#[test]
fn a_crash_that_takes_the_model_along_is_no_other_clients_doing() {
    let stage = stage().odd(|odd| (odd.breaks_off_from, odd.crash_unloads) = (Some(4096), true));
    let results = stage.json("--sizes 512,4096 --runs 1", 1);
    failed(&results, 1, "the server broke off");
    // It is not provoked again.
    assert_eq!(stage.state().loads(), 3);
}

#[test]
fn the_load_of_another_client_says_nothing_of_a_size() {
    let stage = stage().odd(|odd| odd.foreign_load = Some(2));
    let ran = stage.run("--sizes 512,4096 --runs 1").exits(0);
    ran.says("a run does not count: something else loaded it in between (lms failed ")
        .says_nothing_of("context of");
}

#[test]
fn disturbed_runs_do_not_count() {
    // A probe and a warm-up, and then another client does something.
    let meddled = |count, meddle: Meddle, sizes: &str, code| {
        let stage = stage().odd(|odd| odd.meddles = Some((count, meddle)));
        let before = stage.before();
        let words = format!("{sizes} --runs 1 --output o.csv");
        let results = json(&mut stage.command(&words), code);
        let csv = stage.read("o.csv");
        let row: Vec<_> = csv.lines().nth(1).unwrap().split(',').collect();
        let runs = runs(&results, 0).iter();
        let valid = runs.filter(|run| run["ignored"] == NONE).count();
        assert_eq!(row[4], valid.to_string(), "{csv}");
        stage.files_are_as(&before);
        results
    };
    let too = |state: &mut State| {
        state.load(MODEL, "qwen/tiny:2", 8192);
    };
    let results = meddled(2, too, "--sizes 2048", 1);
    failed(
        &results,
        0,
        "something else loaded the model too, as qwen/tiny:2",
    );
    // One run that is disturbed does not count; the model is loaded again, and the next one does.
    let otherwise: Meddle = |state| state.models[0].loaded[0].context = 9999;
    let uses: Meddle = |state| state.odd.busy_looks = 25;
    let unloads: Meddle = |state| state.models[0].loaded.clear();
    for (count, meddle, sizes, why) in [
        (
            2,
            otherwise,
            "--sizes 2048",
            "something else loaded the model again, with another context",
        ),
        (3, uses, "--sizes 2048", "something else uses the model"),
        (2, unloads, "", "LM Studio loaded the model first"),
        (
            3,
            unloads,
            "--sizes 2048",
            "something else unloaded qwen/tiny",
        ),
    ] {
        let results = meddled(count, meddle, sizes, 0);
        let runs = runs(&results, 0).iter();
        let whys: Vec<_> = runs.map(|run| &run["ignored"]).collect();
        assert_eq!(whys, [&why.into(), &NONE], "{results:#}");
    }
}

#[test]
fn a_command_reloads_where_it_is_asked_for() {
    let stage = stage();
    let mut command = stage.command("--sizes 512,2048 --reload");
    let results = json(command.arg("echo no luck >&2; false"), 1);
    failed(&results, 0, "no luck");
    failed(&results, 1, "no luck");
    assert_eq!(stage.chunk(), Some(2048));
    stage.json(
        "--model qwen/tiny --sizes 512,2048 --runs 1 --reload true",
        1,
    );
    assert!(stage.state().lms.is_empty());
}

#[test]
fn what_a_command_leaves_running_is_not_waited_for() {
    let stage = stage();
    let [alive, ended] = ["alive", "ended"].map(|name| stage.env.user().join(name));
    fs::write(&alive, "").unwrap();
    let server = format!(
        "(n=0; while [ -e '{}' ] && [ $((n += 1)) -lt 240 ]; do sleep 0.5; done; : > '{}') &",
        alive.display(),
        ended.display()
    );
    json(stage.command("--sizes 512 --reload").arg(server), 1);
    assert!(!ended.exists());
    fs::remove_file(alive).unwrap();
}
