//! The client of LM Studio's REST API, against a fake LM Studio on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use lmpatch::lmstudio::server::{Model, Patience, Server, Trouble, base_url};
use support::Env;
use support::home::{engine_since_2026, usual_layer};
use support::server::{Dialect, FakeLmStudio, Fault};

const LIST: &str = "/api/v1/models";
const LOAD: &str = "/api/v1/models/load";
const UNLOAD: &str = "/api/v1/models/unload";

fn fake(env: &Env) -> FakeLmStudio {
    let layer = usual_layer(&env.lmstudio(), "app-mlx-generate-mac14-arm64@34");
    let fake = FakeLmStudio::start(&layer.engine());
    fake.add_model("qwen/tiny", "mlx");
    fake.add_model("llama/tiny", "gguf");
    fake
}

fn client(fake: &FakeLmStudio) -> Server {
    Server::new(fake.url(), None, Patience::default())
}

#[test]
fn models_are_listed_unloaded_and_loaded_with_what_they_had() {
    let env = Env::new();
    let fake = fake(&env);
    fake.load_now("qwen/tiny", 12345, 3);
    let server = client(&fake);
    let models = server.models().unwrap();
    assert_eq!(
        models.iter().map(Model::is_mlx).collect::<Vec<_>>(),
        [true, false]
    );
    let instance = &models[0].loaded_instances[0];
    assert_eq!(
        (instance.config.context_length, instance.config.parallel),
        (Some(12345), Some(3))
    );
    server.unload(&instance.id).unwrap();
    assert!(fake.instances().is_empty());
    fs::write(&fake.state().engine, engine_since_2026("8192")).unwrap();
    let loaded = server
        .load(
            "qwen/tiny",
            instance.config.context_length,
            instance.config.parallel,
        )
        .unwrap();
    assert_eq!(
        (
            loaded.instance_id.as_str(),
            loaded.load_config.context_length
        ),
        ("qwen/tiny", Some(12345))
    );
    let now = &fake.instances()[0];
    assert_eq!(
        (now.context_length, now.parallel, now.chunk),
        (12345, 3, Some(8192))
    );
    assert_eq!(fake.paths(), [LIST, UNLOAD, LOAD]);
}

#[test]
fn a_server_that_does_not_know_parallel_is_asked_without_it() {
    let env = Env::new();
    let fake = fake(&env);
    fake.state().takes_parallel = false;
    client(&fake)
        .load("qwen/tiny", Some(8000), Some(2))
        .unwrap();
    assert_eq!(
        (
            fake.instances()[0].context_length,
            fake.instances()[0].parallel
        ),
        (8000, 4)
    );
    let refused = client(&fake)
        .load("nowhere/none", Some(8000), Some(2))
        .unwrap_err();
    assert!(
        matches!(&refused, Trouble::NotFound(said) if said == "Model not found"),
        "{refused:?}"
    );
}

#[test]
fn the_reply_of_october_2025_is_understood() {
    let env = Env::new();
    let fake = fake(&env);
    fake.state().dialect = Dialect::October2025;
    assert_eq!(
        client(&fake)
            .load("qwen/tiny", None, None)
            .unwrap()
            .instance_id,
        "qwen/tiny"
    );
}

#[test]
fn a_token_is_sent_and_a_missing_one_is_told() {
    let env = Env::new();
    let fake = fake(&env);
    fake.state().token = Some("secret".to_owned());
    let trouble = client(&fake).models().unwrap_err();
    assert!(matches!(trouble, Trouble::Unauthorized), "{trouble:?}");
    assert!(trouble.to_string().contains("LM_API_TOKEN"));
    Server::new(fake.url(), Some("secret"), Patience::default())
        .models()
        .unwrap();
}

#[test]
fn every_trouble_is_told_apart_and_bounded_in_time() {
    let env = Env::new();
    let fake = fake(&env);
    let patience = Patience {
        connect: Duration::from_secs(2),
        answer: Duration::from_millis(300),
        load: Duration::from_millis(300),
    };
    let server = Server::new(fake.url(), None, patience);
    let with = |fault: Fault| {
        fake.fails(LIST, fault);
        server.models().unwrap_err()
    };
    assert!(
        matches!(with(Fault::Status(500)), Trouble::Refused(500, said) if said == "told to fail")
    );
    assert!(matches!(with(Fault::Status(404)), Trouble::NotFound(said) if said.contains("0.4.0")));
    assert!(matches!(with(Fault::Busy(1)), Trouble::Busy(said) if said == "Model is busy"));
    assert!(matches!(with(Fault::Garbage), Trouble::Unreadable(_)));
    assert!(matches!(with(Fault::Cut), Trouble::CutOff(_)));
    let begin = Instant::now();
    assert!(matches!(
        with(Fault::Slow(Duration::from_secs(3))),
        Trouble::TooSlow(_)
    ));
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn nobody_there_is_told_with_the_next_step() {
    let env = Env::new();
    let gone = client(&fake(&env));
    let trouble = gone.models().unwrap_err();
    assert!(matches!(trouble, Trouble::NotRunning(_)), "{trouble:?}");
    assert!(trouble.to_string().contains("lms server start"));
}

#[test]
fn the_port_is_lm_studios_own_and_the_address_always_loopback() {
    let env = Env::new();
    let settings = env.lmstudio().join(".internal/http-server-config.json");
    assert_eq!(base_url(&env.lmstudio()), "http://127.0.0.1:1234");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    for (text, port) in [
        (r#"{"port":4321,"networkInterface":"0.0.0.0"}"#, 4321),
        (r#"{"port":0}"#, 1234),
        (r#"{"port":70000}"#, 1234),
        (r#"{"port":"4321"}"#, 1234),
        ("[]", 1234),
        ("{", 1234),
    ] {
        fs::write(&settings, text).unwrap();
        assert_eq!(
            base_url(&env.lmstudio()),
            format!("http://127.0.0.1:{port}"),
            "{text}"
        );
    }
}
