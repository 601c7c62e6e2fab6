//! Which home, which backends, which runtimes.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::home::{
    BackendDir, RUNTIME, SITE_PACKAGES, runtime, select, stock_generate, usual_backend,
};
use crate::support::server::chunk_on_disk;
use crate::support::{Env, amphibian, differences, lines_on_terminal, snapshot};
use serde_json::Value;

const NAME: &str = "app-mlx-generate-mac14-arm64@34";

fn point_to(env: &Env, content: &str) {
    fs::write(env.user().join(".lmstudio-home-pointer"), content).unwrap();
}

fn home_in_use(env: &Env) -> String {
    env.json(["--check"])["home"].as_str().unwrap().to_owned()
}

#[test]
fn the_home_is_the_one_that_lm_studio_uses() {
    let env = Env::new();
    let (pointed, cache, usual) = (
        env.user().join("on disk 2"),
        env.user().join(".cache/lm-studio"),
        env.user().join(".lmstudio"),
    );
    for home in [&pointed, &cache, &usual] {
        usual_backend(home, NAME);
    }
    point_to(&env, &format!("\n  {}  \n", pointed.display()));
    assert_eq!(Path::new(&home_in_use(&env)), pointed);
    env.run(["4096"])
        .exits(0)
        .says_nothing_of("there are backends in");
    assert_eq!(env.json(["--check"])["backends"][0]["chunk"], 4096);
    fs::remove_file(env.user().join(".lmstudio-home-pointer")).unwrap();
    assert_eq!(Path::new(&home_in_use(&env)), cache);
    fs::remove_dir_all(&cache).unwrap();
    assert_eq!(Path::new(&home_in_use(&env)), usual);
    assert_eq!(env.json(["--check"])["backends"][0]["chunk"], 2048);
}

#[test]
fn another_home_is_named_and_never_patched_instead() {
    let env = Env::new();
    fs::create_dir_all(env.user().join(".cache/lm-studio")).unwrap();
    usual_backend(&env.lmstudio(), NAME);
    let before = snapshot(&env.user());
    let named = format!("add `--home '{}'`", env.lmstudio().display());
    for args in ["--check", "4096", "--revert"] {
        env.run([args])
            .exits(1)
            .says("no MLX backend found")
            .says(&named);
    }
    // A directory of backends that holds none is no better.
    fs::create_dir_all(amphibian(&env.user().join(".cache/lm-studio"))).unwrap();
    env.run(["4096"])
        .exits(1)
        .says("no MLX backend found")
        .says(&named);
    fs::remove_dir_all(env.user().join(".cache")).unwrap();
    fs::create_dir(env.user().join(".cache")).ok();
    fs::remove_dir(env.user().join(".cache")).ok();
    assert_eq!(
        differences(&before, &snapshot(&env.user()))
            .into_iter()
            .filter(|path| !path.starts_with(".cache"))
            .collect::<Vec<_>>(),
        [""; 0]
    );
}

#[test]
fn a_pointer_of_no_use_is_an_error_that_names_the_other_home() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    let before = snapshot(&env.lmstudio());
    for (content, said) in [
        ("", "is empty"),
        (" \n", "is empty"),
        ("some/where", "names the relative path"),
        (
            "/nowhere/at/all",
            "LM Studio's home /nowhere/at/all is not there",
        ),
    ] {
        point_to(&env, content);
        for args in ["--check", "4096"] {
            env.run([args]).exits(1).says(said).says("--home");
        }
        assert_eq!(
            fs::read_to_string(env.user().join(".lmstudio-home-pointer")).unwrap(),
            content
        );
    }
    env.run(["--check"])
        .exits(1)
        .says("connect its disk")
        .says("; ~/.lmstudio-home-pointer names it; ")
        .says(&format!("add `--home '{}'`", env.lmstudio().display()));
    assert_eq!(snapshot(&env.lmstudio()), before);
}

#[test]
fn a_pointer_is_trimmed_as_javascript_does() {
    for (before, after) in [
        ("\u{feff}", "\n"),
        ("\u{a0}\t ", "\u{2028}\r\n"),
        ("\u{b}\u{c}", "\u{3000}"),
    ] {
        let env = Env::new();
        let home = env.user().join("moved");
        usual_backend(&home, NAME);
        point_to(&env, &format!("{before}{}{after}", home.display()));
        assert_eq!(Path::new(&home_in_use(&env)), home);
    }
    let env = Env::new();
    // JavaScript does not take these for blanks.
    for kept in ["\u{85}", "\u{200b}"] {
        let home = env.user().join(format!("moved{kept}"));
        usual_backend(&home, NAME);
        point_to(&env, home.to_str().unwrap());
        assert_eq!(Path::new(&home_in_use(&env)), home);
    }
}

#[test]
fn a_home_on_a_disk_that_is_not_connected_is_told_as_that() {
    let env = Env::new();
    symlink("/Volumes/Models/lmstudio", env.lmstudio()).unwrap();
    let told = "is a link to /Volumes/Models/lmstudio, which is not there; is its disk connected?";
    for args in ["--check", "4096", "--revert"] {
        env.run([args])
            .exits(1)
            .says(told)
            .says_nothing_of("install");
    }
    let report = env.json(["--check"]);
    assert_eq!(
        (&report["schema"], &report["exit_code"]),
        (&3.into(), &1.into())
    );
    assert!(report["error"].as_str().unwrap().contains(told));
    fs::remove_file(env.lmstudio()).unwrap();

    point_to(&env, "/Volumes/Models/lmstudio\n");
    env.run(["4096"])
        .exits(1)
        .says("LM Studio's home /Volumes/Models/lmstudio is not there; install LM Studio, connect");

    // Also where only the directory of backends is on such a disk.
    fs::remove_file(env.user().join(".lmstudio-home-pointer")).unwrap();
    fs::create_dir_all(env.amphibian().parent().unwrap()).unwrap();
    symlink("/Volumes/Models/amphibian", env.amphibian()).unwrap();
    env.run(["4096"])
        .exits(1)
        .says("is a link to /Volumes/Models/amphibian, which is not there");
}

#[test]
fn nothing_to_patch_is_no_success() {
    let env = Env::new();
    for args in ["4096", "--check", "--revert"] {
        env.run([args])
            .exits(1)
            .says(".lmstudio is not there")
            .says("install LM Studio, connect its disk, or give its home with --home DIR");
    }
    fs::create_dir_all(
        env.amphibian()
            .join("cpython3.11-mac-arm64@10/lib/python3.11/site-packages"),
    )
    .unwrap();
    env.run(["4096"])
        .exits(1)
        .says("no MLX backend found")
        .says("--home DIR");
    env.run(["4096", "--home", "x"])
        .exits(1)
        .says("LM Studio's home x is not there");
    env.run(["4096", "--home", "."])
        .exits(1)
        .says("_amphibian is not there")
        .says("--home DIR");
    let report = env.json(["4096"]);
    assert_eq!(
        (&report["schema"], &report["exit_code"]),
        (&3.into(), &1.into())
    );
    assert!(
        report["error"]
            .as_str()
            .unwrap()
            .contains("no MLX backend found")
    );
    env.run(["--home=~/x", "--check"])
        .exits(1)
        .says("the ~ in ~/x was not expanded; give the whole path");
}

#[test]
fn only_directories_with_an_mlx_engine_are_backends() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    BackendDir::new(&env.lmstudio(), "app-harmony-mac-arm64@6")
        .write("harmony/generate.py", "prefill_step_size: int = 2048\n");
    fs::write(env.amphibian().join("a file"), "").unwrap();
    fs::create_dir_all(env.amphibian().join("empty@1")).unwrap();
    let before = snapshot(&env.lmstudio());
    let ran = env.run(["4096"]).exits(0).says("1 backend: 1 changed");
    assert!(
        !ran.stdout.contains("harmony") && !ran.stderr.contains("harmony"),
        "{ran:?}"
    );
    let changed = differences(&before, &snapshot(&env.lmstudio()));
    assert!(
        changed.iter().all(|path| path.contains(NAME)),
        "{changed:?}"
    );
}

#[test]
fn a_directory_with_one_package_is_a_backend_with_one_file() {
    let env = Env::new();
    BackendDir::new(&env.lmstudio(), NAME)
        .with_generate(stock_generate())
        .with_record(stock_generate());
    env.run(["4096"]).exits(0);
    let report = env.json(["--check", "4096"]);
    assert_eq!(
        (&report["exit_code"], &report["backends"][0]["stock"]),
        (&0.into(), &2048.into())
    );
    assert_eq!(report["backends"][0]["files"].as_array().unwrap().len(), 1);
    env.run(["2048"]).exits(0);
    assert_eq!(env.json(["--check"])["backends"][0]["state"], "stock");
}

#[test]
fn a_package_without_its_file_is_incomplete_and_left_alone() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    let half = usual_backend(&env.lmstudio(), "app-mlx-generate-mac14-arm64@35");
    fs::remove_file(half.generate()).unwrap();
    let before = snapshot(&half.root);
    env.run(["4096"])
        .exits(0)
        .says("@35: mlx_lm/generate.py: not there")
        .says("1 changed, 1 incomplete");
    assert_eq!(snapshot(&half.root), before);
    env.run(["--check"])
        .exits(0)
        .shows("incomplete")
        .says("let LM Studio finish its update");
    // As for the set: what is unfinished and not in use is no failure.
    env.run(["--check", "4096"]).exits(0);
    env.run(["--check", "4096", "--backend", "*@35"]).exits(3);
    env.run(["4096", "--backend", "*@35"])
        .exits(1)
        .says("let LM Studio finish its update");
}

#[test]
fn backends_are_chosen_by_pattern() {
    let env = Env::new();
    for name in [
        NAME,
        "app-mlx-generate-mac26-arm64@33",
        "app-mlx-generate-mac14-arm64@9",
    ] {
        usual_backend(&env.lmstudio(), name);
    }
    env.run(["4096", "--backend", "app-mlx-generate-mac14-arm64@*"])
        .exits(0)
        .says("2 backends: 2 changed");
    env.run(["--check", "4096", "--backend", "*mac14*"])
        .exits(0);
    env.run(["--check", "4096"]).exits(3);
    env.run(["8192", "--backend", "*@33", "--backend", "*@9"])
        .exits(0)
        .says("2 backends: 2 changed");
    env.run(["8192", "--backend", "*mac15*"])
        .exits(1)
        .says("matches *mac15*")
        .says("--check");
    let names: Vec<_> = env.json(["--check"])["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backend| backend["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "app-mlx-generate-mac14-arm64@9",
            NAME,
            "app-mlx-generate-mac26-arm64@33"
        ]
    );
}

#[test]
fn backups_of_a_backend_are_left_alone() {
    let env = Env::new();
    let backups = [".bak", " copy", "-old"].map(|end| format!("{NAME}{end}"));
    for name in &backups {
        usual_backend(&env.lmstudio(), name);
    }
    let chunks = || -> Vec<_> {
        let chunk = |name: &String| {
            let engine = env.amphibian().join(name).join(SITE_PACKAGES);
            chunk_on_disk(&engine.join("mlx_engine/cache_wrapper.py"))
        };
        backups.iter().map(chunk).collect()
    };
    env.run(["4096"]).exits(1).says("no MLX backend found");
    usual_backend(&env.lmstudio(), NAME);
    // A name without a number is no backup's.
    for name in ["my-engine", "my-engine-fork"] {
        usual_backend(&env.lmstudio(), name);
    }
    env.run(["4096"]).exits(0).says("3 backends: 3 changed");
    assert_eq!(chunks(), [Some(2048); 3]);
    // A runtime uses the first, whatever its name.
    runtime(&env.lmstudio(), "1.11.0", &[&backups[0]]);
    env.run(["4096"]).exits(0).says("1 changed, 3 unchanged");
    assert_eq!(chunks(), [Some(4096), Some(2048), Some(2048)]);
}

#[test]
fn a_backup_of_a_runtime_does_not_stand_in_for_it() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    runtime(
        &env.lmstudio(),
        "1.11.0",
        &["app-mlx-generate-mac14-arm64@33"],
    );
    let backends = env.lmstudio().join("extensions/backends");
    let real = backends.join(format!("{RUNTIME}-1.11.0"));
    fs::rename(&real, backends.join("_old runtime")).unwrap();
    runtime(&env.lmstudio(), "1.11.0", &[NAME]);
    select(&env.lmstudio(), "1.11.0");
    let report = env.json(["--check"]);
    assert_eq!(report["backends"][0]["selected"], true, "{report:#}");
    assert_eq!(report["missing_backends"], Value::Array(vec![]));
    // One that is not there at all is not known.
    select(&env.lmstudio(), "9.9.9");
    env.run(["--check"])
        .exits(0)
        .says("the runtime of LM Studio is unknown: its preferences name one that is not there");
}

#[test]
fn links_to_the_home_the_backends_and_a_backend_are_followed() {
    let env = Env::new();
    let disk = env.user().join("disk");
    usual_backend(&disk.join("home"), NAME);
    let moved = usual_backend(&disk.join("other"), "app-mlx-generate-mac14-arm64@35");
    fs::rename(amphibian(&disk.join("home")), disk.join("backends")).unwrap();
    symlink(disk.join("backends"), amphibian(&disk.join("home"))).unwrap();
    symlink(
        &moved.root,
        disk.join("backends")
            .join("app-mlx-generate-mac14-arm64@35"),
    )
    .unwrap();
    symlink(disk.join("home"), env.lmstudio()).unwrap();
    env.run(["4096"]).exits(0).says("2 backends: 2 changed");
    env.run(["--check", "4096"]).exits(0);
    assert!(
        fs::read_to_string(moved.engine())
            .unwrap()
            .contains("= 4096")
    );
    assert!(fs::symlink_metadata(env.lmstudio()).unwrap().is_symlink());
    env.run(["--revert"]).exits(0);
    assert!(
        fs::read_to_string(moved.engine())
            .unwrap()
            .contains("= 2048")
    );
}

#[test]
fn a_vendor_file_that_is_a_link_out_of_its_backend_is_refused() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let outside = env.user().join("precious.py");
    fs::rename(backend.engine(), &outside).unwrap();
    symlink(&outside, backend.engine()).unwrap();
    let before = snapshot(&env.user());
    env.run(["4096"])
        .exits(1)
        .says("is a link out of its backend")
        .says("precious.py");
    env.run(["--revert"])
        .exits(1)
        .says("is a link out of its backend");
    env.run(["--check"]).exits(1).shows("refused");
    assert_eq!(
        differences(&before, &snapshot(&env.user())),
        Vec::<String>::new()
    );
}

#[test]
fn the_runtime_that_uses_a_backend_is_named_and_the_selected_one_marked() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    usual_backend(&env.lmstudio(), "app-mlx-generate-mac14-arm64@19");
    runtime(&env.lmstudio(), "1.11.0", &[NAME]);
    runtime(&env.lmstudio(), "1.10.2", &[NAME]);
    runtime(
        &env.lmstudio(),
        "1.1.0",
        &["app-mlx-generate-mac14-arm64@19"],
    );
    select(&env.lmstudio(), "1.11.0");
    let report = env.json(["--check"]);
    let backends = report["backends"].as_array().unwrap();
    assert_eq!(
        (&backends[0]["selected"], &backends[1]["selected"]),
        (&false.into(), &true.into())
    );
    assert_eq!(backends[1]["runtimes"][0]["version"], "1.11.0");
    assert_eq!(backends[1]["runtimes"][1]["version"], "1.10.2");
    env.run(["--check"])
        .exits(0)
        .shows("MLX 1.11.0, MLX 1.10.2")
        .shows("yes");
}

#[test]
fn a_backend_that_a_manifest_names_and_that_is_not_there_is_said() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    runtime(
        &env.lmstudio(),
        "1.12.0",
        &["app-mlx-generate-mac14-arm64@36"],
    );
    for args in [vec!["--check"], vec!["4096"], vec!["--revert"]] {
        env.run(args)
            .exits(0)
            .says("MLX 1.12.0 needs app-mlx-generate-mac14-arm64@36, which is not on disk");
    }
    assert_eq!(
        env.json(["--check"])["missing_backends"][0]["name"],
        "app-mlx-generate-mac14-arm64@36"
    );
    // A command that is broken over two lines could not be copied.
    let Some(lines) = lines_on_terminal(&env, &env.command(["--check"])) else {
        return;
    };
    let whole = "`lms runtime remove mlx-llm-mac-arm64-apple-metal-advsimd@1.12.0`";
    let has = |line: &String| line.contains(whole);
    assert!(lines.iter().any(has), "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{lines:#?}"
    );
}

#[test]
fn a_name_is_whole_in_a_narrow_table_however_many_runtimes_use_it() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    for version in ["1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0"] {
        runtime(&env.lmstudio(), version, &[NAME]);
    }
    if let Some(lines) = lines_on_terminal(&env, &env.command(["--check"])) {
        assert!(
            lines.iter().any(|line| line.starts_with(NAME)),
            "{lines:#?}"
        );
        assert!(lines.iter().all(|line| line.chars().count() <= 80));
    }
}

#[test]
fn runtimes_that_are_missing_or_odd_only_make_it_say_less() {
    let env = Env::new();
    usual_backend(&env.lmstudio(), NAME);
    let manifest = env
        .lmstudio()
        .join("extensions/backends/odd/backend-manifest.json");
    let preferences = env.lmstudio().join(".internal/backend-preferences-v1.json");
    fs::create_dir_all(manifest.parent().unwrap()).unwrap();
    fs::create_dir_all(preferences.parent().unwrap()).unwrap();
    for odd in [
        "",
        "{",
        "[]",
        "null",
        "{\"name\": 1}",
        "{\"name\":\"mlx\",\"version\":\"1\",\"vendor_lib_package_names\":{}}",
    ] {
        fs::write(&manifest, odd).unwrap();
        fs::write(&preferences, odd).unwrap();
        env.run(["--check"]).exits(0).shows(NAME).shows("stock");
    }
}

#[test]
fn every_python_3_of_a_backend_is_looked_at() {
    let env = Env::new();
    let backend = usual_backend(&env.lmstudio(), NAME);
    let new = backend.root.join("lib/python3.14");
    fs::rename(backend.root.join("lib/python3.11"), &new).unwrap();
    env.run(["4096"]).exits(0);
    let moved = SITE_PACKAGES.replace("3.11", "3.14");
    let engine =
        fs::read_to_string(backend.root.join(moved).join("mlx_engine/cache_wrapper.py")).unwrap();
    assert!(engine.contains("= 4096"), "{engine}");
}
