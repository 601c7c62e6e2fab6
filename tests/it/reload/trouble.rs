//! An `lms` that fails, and what happens behind its back: what is told, and what is advised.
use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{NOTHING, home_with_qwen, qwen, reloader};
use crate::support::child::finish;
use crate::support::home::NAME;
use crate::support::{LMPATCH, Ran, interpreter};
use lmpatch::reload::How;
use serde_json::{Value, json};

#[test]
fn an_lms_that_fails_or_hangs_or_is_not_there_is_told_and_nothing_is_unloaded() {
    let (env, fake) = home_with_qwen();
    for said in ["Waking up LM Studio...", "{}", r#"[{"identifier":1}]"#, ""] {
        fake.faults(json!({ "ps-says": said }));
        env.run(["4096", "--reload"])
            .fails("printed no list of models");
    }
    assert_eq!(fake.actions(), NOTHING);
    env.run(["--check", "4096"]).exits(0);
    fake.faults(json!({ "unload-fails": "Error: cannot do that now" }));
    let ran = env.run(["4096", "--reload"]).fails("it was not unloaded");
    ran.says("cannot do that now");
    fake.faults(json!({ "unload-does-nothing": true }));
    let told = "it was not unloaded, or something loaded it again";
    env.run(["4096", "--reload"]).fails(told);
    fake.has([("qwen/tiny", 12345, 2048)]);
    fake.faults(json!({ "load-takes": 30 }));
    let mut impatient = reloader(&env);
    impatient.lms.load_timeout = Duration::from_millis(300);
    let models = impatient.run(How::Models).unwrap();
    let failed = models[0].failed.as_ref().unwrap();
    assert!(failed.contains("took longer than 0.3 seconds"), "{failed}");
    fake.add(qwen(json!({})));
    fs::remove_file(env.lmstudio().join("bin/lms")).unwrap();
    for arguments in [["4096", "--reload"], ["8192", "--reload=app"]] {
        env.run(arguments)
            .fails("no model was loaded again: ")
            .says("`lms` does not tell what is loaded; unload and load the models in LM Studio");
    }
    env.run(["--check", "8192"]).exits(0);
}

#[test]
fn a_parent_that_blocks_or_ignores_the_end_of_children_does_no_harm() {
    let (env, fake) = home_with_qwen();
    let started = |how: &str| {
        let code =
            format!("import os, signal, sys\nsignal.{how}\nos.execv(sys.argv[1], sys.argv[1:])");
        let mut python = Command::new(interpreter());
        env.isolate(&mut python).args(["-c", &code, LMPATCH]);
        finish(python.args(["4096", "--reload"]))
    };
    let ran = started("signal(signal.SIGCHLD, signal.SIG_IGN)");
    ran.fails("no model was loaded again: ")
        .says("/bin/lms failed: No child processes");
    assert_eq!(fake.actions(), NOTHING);
    let ran = started("pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])");
    ran.tells("qwen/tiny was reloaded");
}

#[test]
fn a_load_that_fails_advises_the_old_size_and_not_the_call_that_failed() {
    let (env, fake) = home_with_qwen();
    fake.faults(json!({ "load-fails-at": [8192] }));
    env.run(["8192", "--reload"])
        .fails("Loading again what is loaded")
        .says("error: qwen/tiny was not loaded again")
        .says("Insufficient memory")
        .says(&format!(
            "`lmpatch 2048 --backend '{NAME}'` goes back, then load it in LM Studio"
        ))
        .says_nothing_of("lms load")
        .says_nothing_of("lmpatch 8192");
    env.run(["--check", "8192"]).exits(0);
    fake.has([]);
    // Where the size was there before, going back is no advice.
    fake.add(qwen(json!({})));
    env.run(["8192", "--reload"])
        .fails("load it in LM Studio")
        .says_nothing_of("goes back");
}

#[test]
fn a_reload_that_failed_is_not_advised_again_and_after_one_that_worked_all_is_in_effect() {
    let (env, fake) = home_with_qwen();
    let in_effect = || env.json(["--check"])["backends"][0]["in_effect"].clone();
    env.run(["6144"])
        .tells("may still have the old values")
        .says("load it again in its app, or use --reload");
    assert_eq!(in_effect(), "reload-needed");
    fake.faults(json!({ "ps-says": "no JSON" }));
    env.run(["6144", "--reload"])
        .fails("load it again in its app")
        .says_nothing_of("use --reload");
    fake.faults(json!({}));
    env.run(["6144", "--reload"])
        .exits(0)
        .says_nothing_of("old values");
    assert_eq!(in_effect(), "in-effect");
    // What was set in another run does not fit.
    fake.faults(json!({ "load-fails-at": [6144] }));
    let told = "if it does not fit, set a smaller size, then load it in LM Studio";
    env.run(["6144", "--reload"]).fails(told);
}

#[test]
fn a_model_that_loads_itself_again_in_between_is_noticed() {
    let differs = "its context length is 4096 instead of 12345";
    let copy = "another copy was loaded in between: `lms unload 'qwen'` ends it";
    // Under its own name, before it could be loaded: it stays, and no second copy is loaded.
    let same = json!({ "path": "qwen/tiny", "contextLength": 4096 });
    let faults = json!({ "jit-after-unload": same });
    reload_with(faults, [("qwen/tiny", 4096, 4096)]).fails("or something loaded it again");
    // Under its own name, while it was being loaded: refused, or a second copy.
    let faults = json!({ "jit-after-load": same, "identifier-taken-fails": true });
    reload_with(faults, [("qwen/tiny", 4096, 4096)])
        .tells("something else loaded it in between")
        .says(differs);
    let both = [("qwen/tiny", 4096, 4096), ("qwen/tiny:2", 12345, 4096)];
    reload_with(json!({ "jit-after-load": same }), both)
        .tells(differs)
        .says(&copy.replace("'qwen'", "'qwen/tiny:2'"));
    // Under another name, and then perhaps there is no room for the one that is wanted.
    let other = json!({ "path": "qwen/tiny", "identifier": "qwen", "contextLength": 4096 });
    let both = [("qwen", 4096, 4096), ("qwen/tiny", 12345, 4096)];
    reload_with(json!({ "jit-after-unload": other }), both).tells(&format!("qwen/tiny: {copy}"));
    let faults = json!({ "jit-after-unload": other, "load-fails-at": [4096] });
    reload_with(faults, [("qwen", 4096, 4096)])
        .fails("Insufficient memory")
        .says(copy);
}

/// A reload at 4096 with these faults, after which this is loaded.
#[track_caller]
fn reload_with<const N: usize>(faults: Value, after: [(&str, u64, u64); N]) -> Ran {
    let (env, fake) = home_with_qwen();
    fake.faults(faults);
    let ran = env.run(["4096", "--reload"]);
    fake.has(after);
    ran
}
