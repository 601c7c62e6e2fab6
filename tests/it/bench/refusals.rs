//! Which model, backend and server it is, and what is said where that cannot work.

use std::fs;

use crate::support::Env;
use crate::support::child::until;
use crate::support::home::{BackendDir, engine_since_2026, engine_with_constant, stock_generate};
use crate::support::server::{Failure, Odd};
use lmpatch::lmstudio::runtimes::{APPS, PREFERENCES};

use super::{
    MARKER, NAME, NONE, begins, column, ended, failing, has, json, make_read_only, openai, ran,
    signal, stage,
};

#[test]
fn the_model_is_resolved_before_anything_is_touched() {
    let stage = stage();
    stage.fake.load("llama/tiny", "gguf", 8192);
    let before = stage.before();
    let ran = stage.run("--model no/such --sizes 512").exits(1);
    ran.says("no MLX model is loaded, or none of that name; `lms ls` lists their keys");
    let ran = stage.run("--model llama/tiny --sizes 512").exits(1);
    ran.says("no MLX model is loaded, or none of that name");
    stage.fake.load("gemma/tiny", "mlx", 8192);
    let ran = stage.run("--sizes 512").exits(1);
    ran.says("several MLX models are loaded: qwen/tiny, gemma/tiny");
    stage.state().models[2].loaded.clear();
    let ran = stage.run("--model gemma/tiny").exits(1);
    ran.says("`lms load KEY --context-length 17408` loads one");
    stage.is_as(&before);
    assert!(stage.state().chats.is_empty());
    // By identifier; identifier, context, parallelism and TTL come back.
    stage.state().models[0].loaded[0].id = "mine".to_owned();
    stage.json("--model mine --sizes 512,2048 --runs 1", 0);
    // And by key.
    stage.json("--model qwen/tiny --runs 1", 0);
    // Which may be the identifier of one and the key of two.
    stage.state().models[0].loaded[0].id = "qwen/tiny".to_owned();
    stage.state().load("qwen/tiny", "qwen/tiny:2", 65_536);
    for name in ["qwen/tiny", "qwen/tiny:2"] {
        let results = stage.json(&format!("--model {name} --runs 1"), 0);
        assert_eq!(results["model"], name);
    }
}

#[test]
fn a_context_that_is_too_small_is_made_larger_for_the_sweep() {
    let stage = stage();
    stage.state().models[0].loaded[0].context = 4096;
    let ran = stage.run("--sizes 512,2048 --runs 1");
    ran.exits(0)
        .says("note: qwen/tiny is loaded with a context of 8960 while it is measured")
        .says("`lmpatch 512 --reload` sets it.");
    let ran = stage.run("--runs 1").exits(1);
    ran.says("prompts need a context of 8960, the model has 4096")
        .says("give fewer --prompt-tokens or smaller --sizes");
    let why = "the model has 262144; give fewer --prompt-tokens or smaller --sizes";
    stage.run("--sizes 131072").exits(1).says(why);
    stage.state().odd.hides_context = true;
    stage.run("--prompt-tokens 300000").exits(1).says(why);
    let ran = stage.run("--sizes 8192 --prompt-tokens 10000");
    ran.exits(1).says("at least 16384");
}

#[test]
fn where_the_selection_is_unknown_nothing_is_said_of_stock() {
    let stage = stage();
    let home = stage.env.lmstudio();
    BackendDir::new(&home, "app-mlx-generate-mac14-arm64@19")
        .with_engine(engine_with_constant("512"))
        .with_generate(stock_generate());
    fs::remove_file(home.join(APPS[0].1).join(PREFERENCES)).unwrap();
    let results = stage.json("--sizes 512,2048 --runs 1", 0);
    assert_eq!(results["stock"], NONE);
    assert_eq!(results["runtime"], NONE);
    let as_it_is = stage.json("--runs 1", 0);
    assert_eq!(column(&as_it_is, "observed_chunk"), [2048]);
}

#[test]
fn where_no_size_could_be_set_nothing_is_measured() {
    let stage = stage();
    make_read_only(&stage.backend.engine());
    let results = stage.json("--sizes 512,2048,4096", 1);
    has(&results["error"], "is selected but cannot be set: ");
    let error = results["error"].as_str().unwrap();
    assert_eq!(error.matches("allow it with `chmod u+rwX").count(), 1);
    // Also where the selection is unknown.
    fs::remove_file(stage.env.lmstudio().join(APPS[0].1).join(PREFERENCES)).unwrap();
    let ran = stage.run("--sizes 512,4096 --runs 1").exits(1);
    ran.says(&format!("{NAME} is not benchmarked: "))
        .says("allow it with `chmod u+rwX")
        .says("there is no backend that can be set");
    let fake = stage.state();
    assert!(fake.chats.is_empty() && fake.lms.is_empty());
}

#[test]
fn where_the_way_back_cannot_be_written_nothing_is_set() {
    let stage = stage();
    fs::create_dir_all(stage.env.lmstudio().join(MARKER).join("in-the-way")).unwrap();
    let results = stage.json("--sizes 512,2048", 1);
    begins(&results["error"], "cannot write in /");
    let fake = stage.state();
    assert!(fake.chats.is_empty());
    assert!(fake.lms.iter().all(|call| call[0] == "ps"));
}

#[test]
fn a_model_that_could_not_be_loaded_again_is_left_alone() {
    for (change, why) in [
        (
            (|odd| odd.busy_looks = 1) as fn(&mut Odd),
            "error: qwen/tiny is at work; try again later",
        ),
        (
            |odd| odd.hides_path = true,
            "error: `lms ps` does not tell its path and context; it was left as it is",
        ),
    ] {
        let stage = stage().odd(change);
        stage.run("--sizes 512,2048").exits(1).says(why);
        let fake = stage.state();
        assert!(fake.chats.is_empty());
        assert!(fake.lms.iter().all(|call| call[0] == "ps"));
    }
}

#[test]
fn errors_are_told_as_what_they_are() {
    for stage in [stage, openai] {
        let run = |change: fn(&mut Odd)| stage().odd(change).run("--model qwen/tiny").exits(1);
        run(|odd| odd.error = Some("Model unloaded.")).says("Model unloaded.");
        run(|odd| odd.other_model = Some("gemma"))
            .says("the model that answered is gemma, not qwen/tiny");
        run(|odd| odd.has_no_usage = true).says("did not report the prompt's token count");
    }
    let stage = stage();
    stage.state().token = Some("secret".to_owned());
    stage.run("").exits(1).says("set LM_API_TOKEN");
    stage.run("--token secret").exits(2);
    ran(stage.command("").env("LM_API_TOKEN", "secret\n")).exits(0);
    let ran_with = ran(stage.command("").env("LM_API_TOKEN", "two\nlines"));
    ran_with
        .exits(1)
        .says("LM_API_TOKEN cannot be sent as it is");
    // An early failure leaves no export.
    let nobody = "bench --url http://127.0.0.1:1 --output x.json".split(' ');
    let ran = stage.env.run(nobody.clone()).exits(1);
    ran.says("no server answers at http://127.0.0.1:1")
        .says("lms server start");
    let results = json(&mut stage.env.command(nobody), 1);
    begins(&results["error"], "no server answers");
    assert_eq!(results["lmpatch"], env!("CARGO_PKG_VERSION"));
    assert!(!stage.env.user().join("x.json").exists());
}

#[test]
fn what_cannot_work_is_said_once_before_the_first_prompt() {
    let stage = stage();
    for flag in ["--sizes=512,2048", "--apply-best"] {
        let ran = stage.run(&format!("--sizes 4096 {flag} --home nowhere"));
        let ran = ran.says("nowhere");
        let errors = ran.stderr.lines().filter(|line| line.starts_with("error"));
        assert_eq!(errors.count(), 1, "{ran:?}");
    }
    // `lms` would start LM Studio, whose server this is not.
    stage.state().has_v1 = false;
    let ran = stage.run("--model qwen/tiny --sizes 512,2048").exits(1);
    ran.says("this server cannot load it; give --reload a command that loads the model");
    assert!(stage.state().lms.is_empty());
    stage.state().has_v1 = true;
    fs::remove_file(stage.env.lmstudio().join("bin/lms")).unwrap();
    let ran = stage.run("--sizes 512,2048").exits(1);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    ran.says("`lms` does not tell what is loaded; give --reload a command that loads the model");
    fs::write(stage.backend.engine(), engine_since_2026("2 * 1024")).unwrap();
    let ran = stage.run("--sizes 512,2048").exits(1);
    ran.says("is selected but cannot be set");
    fs::create_dir(stage.env.user().join("directory.json")).unwrap();
    for path in ["no/such.json", "directory.json"] {
        let ran = stage.run(&format!("--output {path}")).exits(1);
        ran.says(&format!("error: cannot write {path} ("));
    }
    let ran = stage.run("--output csv").exits(1);
    ran.says("csv must end in .json, .csv, .md or .svg");
    assert!(stage.state().chats.is_empty());
}

#[test]
fn two_benchmarks_do_not_measure_each_other() {
    let stage = failing(2048, Failure::IsSilent);
    let child = stage.start("");
    until("a prompt is being measured", || {
        !stage.state().chats.is_empty()
    });
    let other = ran(&mut stage.command("")).exits(1);
    other.says("another process has locked");
    signal(child.id(), "INT");
    ended(child).exits(1);
}

#[test]
fn the_port_is_the_one_in_the_settings_if_it_can_be_one() {
    let stage = stage();
    let home = stage.env.lmstudio();
    let settings = home.join(".internal/http-server-config.json");
    let bench = |port: &str| {
        fs::write(&settings, format!("{{\"port\": {port}}}")).unwrap();
        stage.env.run(["bench"])
    };
    let url = stage.fake.url();
    bench(url.rsplit(':').next().unwrap()).exits(0);
    for odd in ["0", "65536", "-1", "\"1234\"", "null"] {
        let ran = bench(odd).exits(1);
        ran.says("no server answers at http://127.0.0.1:1234;");
    }
}

#[test]
fn the_command_line_is_refused_where_it_makes_no_sense() {
    let env = Env::new();
    for words in [
        "bench --direct --sizes 512",
        "bench --model m --direct",
        "bench --model m --direct --sizes 512 --reload true",
        "bench --apply-best",
        "bench --sizes 1",
        "bench --runs 0",
        "bench --budget soon",
        "4096 bench",
    ] {
        env.run(words.split(' ')).exits(2);
    }
}
