//! Links: to other disks they are followed, out of a backend or into an app bundle they are not.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::home::{BackendDir, NAME, engine_since_2026, usual_backend};
use crate::support::server::chunk_on_disk;
use crate::support::{Before, Env, amphibian, text};

const OTHER: &str = "app-mlx-generate-mac14-arm64@35";

#[test]
fn links_to_the_home_the_backends_and_a_backend_are_followed() {
    let env = Env::new();
    let disk = env.user().join("disk");
    usual_backend(&disk.join("home"), NAME);
    let moved = usual_backend(&disk.join("other"), OTHER);
    let backends = disk.join("backends");
    fs::rename(amphibian(&disk.join("home")), &backends).unwrap();
    symlink(&backends, amphibian(&disk.join("home"))).unwrap();
    symlink(&moved.root, backends.join(OTHER)).unwrap();
    symlink(disk.join("home"), env.lmstudio()).unwrap();
    env.run(["4096"]).tells("Backends: 2 changed");
    env.run(["--check", "4096"]).exits(0);
    assert_eq!(chunk_on_disk(&moved.engine()), Some(4096));
    assert!(env.lmstudio().is_symlink());
    env.run(["--revert"]).exits(0);
    assert_eq!(chunk_on_disk(&moved.engine()), Some(2048));
}

#[test]
fn a_vendor_file_that_is_a_link_out_of_its_backend_is_refused() {
    let env = Env::new();
    let backend = env.backend(NAME);
    let outside = env.user().join("precious.py");
    fs::rename(backend.engine(), &outside).unwrap();
    symlink(&outside, backend.engine()).unwrap();
    let before = Before::of(env.user());
    for args in ["4096", "--revert"] {
        env.run([args]).fails("is a link to ").says("precious.py");
    }
    env.run(["--check"]).exits(1).shows("refused");
    before.still_holds();
}

#[test]
fn a_link_within_a_path_is_what_is_wrong_and_not_the_file() {
    let (env, backend) = Env::in_use();
    let other = env.backend(OTHER);
    let package = backend.path("mlx_lm");
    fs::remove_dir_all(&package).unwrap();
    symlink(other.path("mlx_lm"), &package).unwrap();
    let link = format!("{} is a link to ", package.display());
    let target = other.path("mlx_lm");
    env.run(["4096"]).fails(&link).says(&format!(
        "{}, where an edit may leave its backend",
        target.display()
    ));
    // Nor a link in what it leads to.
    fs::rename(target.join("generate.py"), target.join("real.py")).unwrap();
    symlink("real.py", target.join("generate.py")).unwrap();
    env.run(["4096"]).fails(&link);
}

/// The system follows links to a path that is longer than it can name, so what it leads into is unknown.
#[test]
fn a_link_whose_end_cannot_be_named_is_refused() {
    let long: PathBuf = (0..9).map(|_| "d".repeat(200)).collect();
    for is_backend in [true, false] {
        let env = Env::new();
        let mut end = env.user().join("disk");
        fs::create_dir(&end).unwrap();
        for _ in 0..3 {
            fs::create_dir_all(end.join(&long)).unwrap();
            symlink(&long, end.join("link")).unwrap();
            end.push("link");
        }
        let moved = usual_backend(&end.join("Some.app"), NAME);
        let mut link = env.amphibian();
        let mut target = amphibian(&end.join("Some.app"));
        if is_backend {
            link.push(NAME);
            target.push(NAME);
        }
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, &link).unwrap();
        env.run(["4096"]).fails(&link.display().to_string());
        assert_eq!(chunk_on_disk(&moved.engine()), Some(2048));
    }
}

/// Moves `path` into an app bundle and leaves a link to it.
fn move_into_app(env: &Env, path: &Path) {
    let bundle = env.user().join("Applications/LM Studio.app");
    let inside = bundle.join("Contents/Resources");
    fs::create_dir_all(&inside).unwrap();
    let moved = inside.join(path.file_name().unwrap());
    fs::rename(path, &moved).unwrap();
    symlink(&moved, path).unwrap();
}

#[test]
fn a_home_in_an_app_bundle_is_refused() {
    let places: [fn(&Env) -> PathBuf; 3] = [
        Env::lmstudio,
        |env| env.lmstudio().join("extensions"),
        Env::amphibian,
    ];
    for place in places {
        let (env, _) = Env::in_use();
        move_into_app(&env, &place(&env));
        env.fails(&[], &["LM Studio.app", "signature", "remove the link"]);
    }
}

#[test]
fn a_backend_or_vendor_file_in_an_app_bundle_is_refused_and_its_neighbours_done() {
    let places: [fn(&BackendDir) -> PathBuf; 4] = [
        |backend| backend.root.clone(),
        |backend| backend.root.join("lib"),
        |backend| backend.path("mlx_engine"),
        BackendDir::generate,
    ];
    for place in places {
        let (env, backend) = Env::in_use();
        let good = env.backend(OTHER);
        move_into_app(&env, &place(&backend));
        let app = env.user().join("Applications");
        let before = Before::of(&app);
        env.run(["--check"])
            .exits(1)
            .shows("refused")
            .says(&format!("error: {NAME}: "))
            .says("LM Studio.app")
            .says("signature");
        env.run(["4096"])
            .fails("LM Studio.app")
            .says("1 changed, 1 refused");
        let engine = text(good.engine());
        assert_eq!(engine, engine_since_2026("4096"));
        env.run(["--revert"]).fails("1 changed, 1 refused");
        before.still_holds();
    }
}
