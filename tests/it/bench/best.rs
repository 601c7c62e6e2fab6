//! `--apply-best`: sets the verdict's size where there is one, and says what was really set.

use crate::support::child::until;
use crate::support::home::{engine_since_2026, usual_backend};
use crate::support::server::{Failure, Meddle};

use super::{NAME, ended, exact, make_read_only, ran, signal, stage};

#[test]
fn the_best_is_set_and_what_was_really_set_is_said() {
    let stage = stage();
    let home = stage.env.lmstudio();
    usual_backend(&home, "app-mlx-generate-mac14-arm64@33")
        .with_engine(engine_since_2026("2 * 1024"));
    make_read_only(&usual_backend(&home, "app-mlx-generate-mac14-arm64@32").engine());
    let mut command = stage.command("--sizes 512,2048 --runs 1 --apply-best");
    let ran = ran(&mut command).exits(0);
    ran.says("@33 is not benchmarked")
        .says("@32 is not benchmarked")
        .says(&format!("512 is set in {NAME};"))
        .says_nothing_of("sets it");
    let check = stage.env.run(["--check"]).exits(1);
    check.says_nothing_of("interrupted");
    assert_eq!(stage.chunk(), Some(512));
    assert_eq!(stage.fake.loaded()[0].chunk, 512);
}

/// The backend in use becomes read-only during the warm-up at its stock size, so that there is nothing to restore.
#[test]
fn a_best_that_could_not_be_set_is_an_error() {
    let locks: Meddle = |state| make_read_only(&state.engine);
    let stage = exact(&[(4096, 8), (2048, 40)]).odd(|odd| odd.meddles = Some((4, locks)));
    let other = "app-mlx-generate-mac14-arm64@33";
    usual_backend(&stage.env.lmstudio(), other);
    let words = "--sizes 2048,4096 --runs 1 --apply-best";
    let ran = ran(&mut stage.command(words)).exits(1);
    ran.says("Verdict: 4096 is the smallest size within the noise (2.0 %) of the fastest")
        .says(&format!("4096 is set in {other}; it takes effect"))
        .says(&format!("error: not set to 4096: {NAME}: "))
        .says_nothing_of("sets it");
    assert_eq!(stage.chunk(), Some(2048));
    assert_eq!(stage.fake.loaded()[0].chunk, 2048);
}

#[test]
fn after_a_signal_the_best_of_what_is_known_is_not_set() {
    let stage = exact(&[(4096, 40), (3000, 10)]);
    let stage = stage.odd(|odd| odd.fails = Some((8192, Failure::IsSilent)));
    let before = stage.before();
    let child = stage.start("--sizes 3000,4096,8192 --runs 1 --apply-best");
    // A probe; a warm-up and a whole prompt of each size.
    until("the server is silent", || stage.state().chats.len() == 7);
    signal(child.id(), "INT");
    let ran = ended(child).exits(1);
    ran.says("Verdict: of the sizes that could be measured, 3000 is the smallest size within the noise (2.0 %) of the fastest")
        .says("error: stopped before the verdict was settled")
        .says("Every backend is as it was.")
        .says_nothing_of("is set in");
    stage.is_as(&before);
}
