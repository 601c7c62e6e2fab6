//! `--reload=app`, and models of apps that `lms` knows nothing of.
use super::{NOTHING, home, home_with_qwen, qwen};
use crate::support::Env;
use crate::support::home::select;
use crate::support::lms::FakeLms;
use crate::support::standins::{StandIns, ago, written};
use lmpatch::lmstudio::runtimes::{APPS, PREFERENCES};
use serde_json::json;

const LM_STUDIO: &str = "/Applications/LM Studio.app/Contents";
const BIONIC: &str = "/x/Bionic.app/Contents";

/// Stand-ins for the Mac's own programs: `osascript` ends the app at `path`, `open` starts it.
fn app(env: &Env, fake: &FakeLms, path: &str) -> StandIns {
    fake.set("app", json!(path));
    let standins = StandIns::new(env);
    let lms = env.lmstudio().join("bin/lms").display().to_string();
    standins.script("osascript", &format!("'{lms}' test-quit"));
    standins.script("open", &format!("'{lms}' test-open"));
    standins
}

#[test]
fn the_app_of_the_workers_is_restarted_and_what_is_not_back_is_loaded() {
    for (path, name) in [(LM_STUDIO, "LM Studio"), (BIONIC, "Bionic")] {
        let (env, fake) = home();
        let standins = app(&env, &fake, path);
        fake.add(qwen(json!({ "parallel": 3 })));
        fake.add(json!({ "path": "gemma/tiny", "contextLength": 8000 }));
        fake.add(json!({ "path": "llama/tiny", "format": "gguf", "contextLength": 6000 }));
        let otherwise = json!({ "path": "gemma/tiny", "contextLength": 4096 });
        fake.set("at-start", json!([otherwise]));
        env.run(["4096", "--reload=app"])
            .tells("qwen/tiny was reloaded as it was")
            .says("llama/tiny was reloaded")
            .says("gemma/tiny was reloaded as it was");
        fake.has([
            ("gemma/tiny", 8000, 4096),
            ("llama/tiny", 6000, 4096),
            ("qwen/tiny", 12345, 4096),
        ]);
        let quit = format!("osascript -e quit app \"{name}\"");
        assert_eq!(standins.calls(), [quit, format!("open -a {name}")]);
    }
}

#[test]
fn an_app_that_is_still_quitting_is_opened_when_it_can_be() {
    let (env, fake) = home_with_qwen();
    let standins = app(&env, &fake, LM_STUDIO);
    let lms = env.lmstudio().join("bin/lms").display().to_string();
    let [quitting, early, ended] =
        ["quitting", "early", "ended"].map(|name| standins.file(name).display().to_string());
    // It says that it quits, its worker ends later, and it answers some time after it was opened.
    fake.faults(json!({ "ps-fails-after-open": 3 }));
    let quit = format!("touch '{quitting}'; (sleep 2; '{lms}' test-quit; touch '{ended}') &");
    standins.script("osascript", &quit);
    let open = format!(
        "[ -e '{ended}' ] || touch '{early}'
        [ ! -e '{quitting}' ] || {{ rm '{quitting}'; echo 'error -600' >&2; exit 1; }}; '{lms}' test-open"
    );
    standins.script("open", &open);
    env.run(["4096", "--reload=app"]).exits(0);
    let open = "open -a LM Studio";
    assert_eq!(standins.calls()[1..], [open, open]);
    assert!(!standins.file("early").exists(), "its worker had ended");
    fake.has([("qwen/tiny", 12345, 4096)]);
}

#[test]
fn a_restart_that_fails_says_what_was_loaded() {
    for (program, said) in [
        ("osascript", "User canceled"),
        ("open", "Unable to find application"),
    ] {
        let (env, fake) = home_with_qwen();
        let standins = app(&env, &fake, LM_STUDIO);
        standins.script(program, &format!("echo '{said}' >&2; exit 1"));
        env.run(["4096", "--reload=app"])
            .fails("no model was loaded again: ")
            .says(said)
            .says("what was loaded: qwen/tiny");
        env.run(["--check", "4096"]).exits(0);
    }
}

#[test]
fn llmster_has_no_app_to_restart() {
    let (env, fake) = home();
    let standins = app(&env, &fake, "/Users/me/.lmstudio/llmster/0.0.3-1");
    fake.add(qwen(json!({})));
    env.run(["4096", "--reload=app"])
        .fails("one app can be restarted, and llmster has none; use --reload");
    assert_eq!(standins.calls(), NOTHING);
    assert_eq!(fake.actions(), NOTHING);
    env.run(["4096", "--reload"]).exits(0);
    fake.has([("qwen/tiny", 12345, 4096)]);
}

#[test]
fn a_model_of_another_app_that_lms_does_not_list_is_told() {
    let (env, fake) = home();
    select(&env.lmstudio().join(APPS[1].1), "1.12.0");
    written(&env.lmstudio().join(APPS[1].1).join(PREFERENCES), ago(7200));
    let standins = app(&env, &fake, BIONIC);
    fake.add(qwen(json!({})));
    // Without LM Studio, `lms` would start it.
    env.run(["512"]).tells("load it again in its app");
    assert_eq!(fake.calls(), NOTHING);
    fake.faults(json!({ "ps-says": "[]" }));
    env.run(["1024", "--reload=app"])
        .fails("a worker has a model that `lms ps` does not list, or not yet");
    assert_eq!(standins.calls(), NOTHING);
    env.run(["4096", "--reload"])
        .fails("a loaded model may still have the old values")
        .says("load it again in its app");
    env.run(["8192", "--reload", "--quiet"]).fails("error: ");
}
