//! What LM Studio's own files say of runtimes, when they are odd: lmpatch says less, and works as ever.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{NO_FILES, assert_tame};
use crate::support::home::{NAME, RUNTIME};
use crate::support::{Before, Env, text};
use serde_json::{Value, json};

/// A home whose one backend is that of the selected runtime, and the two files that say so.
fn selected() -> (Env, [PathBuf; 2]) {
    let (env, _) = Env::in_use();
    let manifest = format!("extensions/backends/{RUNTIME}-1.12.0/backend-manifest.json");
    let preferences = ".internal/backend-preferences-v1.json";
    let files = [&manifest, preferences].map(|path| env.lmstudio().join(path));
    (env, files)
}

/// JSON that no manifest or preferences should be: too large, broken off, too deep.
fn odd_json(good: &Value) -> Vec<Vec<u8>> {
    let whole = good.to_string();
    let many = |text: &str| text.repeat(100_000);
    let broken_off = (0..whole.len()).step_by(7);
    let broken_off = broken_off.map(|end| whole[..end].to_owned());
    let others = [
        many("["),
        many("[") + &many("]"),
        many("{\"name\":") + "1" + &many("}"),
        whole.clone() + &" ".repeat(17 << 20),
        "\u{feff}".to_owned() + &whole,
        "\0".repeat(4096),
    ];
    let odd = broken_off.chain(others).map(String::into_bytes);
    let no_text = whole.bytes().map(|byte| byte ^ 0x80).collect();
    odd.chain([no_text]).collect()
}

/// `good` with every value, in turn, of every other type or gone; also the whole of it.
fn retyped(good: &Value) -> Vec<Vec<u8>> {
    let values = json!([null, true, -1, 1e308, "", "../../..", [], [[null]], {"a": 1}]);
    let values = values.as_array().unwrap();
    let mut all = values.clone();
    // The object is the file, or the first of its rows.
    let object = if good.is_array() { "/0" } else { "" };
    for key in good.pointer(object).unwrap().as_object().unwrap().keys() {
        for value in values {
            let mut changed = good.clone();
            changed.pointer_mut(object).unwrap()[key] = value.clone();
            if let Some(rows) = changed.as_array_mut() {
                rows.push(value.clone());
            }
            all.push(changed);
        }
        let mut without = good.clone();
        let object = without.pointer_mut(object).unwrap();
        object.as_object_mut().unwrap().remove(key);
        all.push(without);
    }
    all.iter().map(|value| value.to_string().into()).collect()
}

/// Whether name, version and backend can still be read from it, so that the backend may be called the selected one.
fn is_enough(content: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(content) else {
        return false;
    };
    let row = value.get(0).unwrap_or(&value);
    let names = &row["vendor_lib_package_names"];
    row["name"] == RUNTIME
        && row["version"] == "1.12.0"
        && (row["model_format"] == "safetensors" || *names == json!([format!("_amphibian/{NAME}")]))
}

/// With any of `contents` in this file, lmpatch says less and works as ever.
#[track_caller]
fn assert_says_less(env: &Env, path: &Path, contents: &[Vec<u8>]) {
    for content in contents {
        fs::write(path, content).unwrap();
        let what = String::from_utf8_lossy(&content[..content.len().min(300)]);
        let ran = env.run(["--check", "2048"]).exits(0);
        let ran = ran.shows(NAME).says_nothing_of("error");
        assert_tame(&ran);
        assert!(fs::read(path).unwrap() == *content, "{what}");
        let is_less = !ran.stdout.contains("yes");
        assert!(is_less || is_enough(content), "{what}: {ran:#?}");
    }
    let before = Before::of(env.user());
    env.run(["4096"]).exits(0);
    env.run(["--revert"]).exits(0);
    before.still_holds();
}

#[test]
fn odd_manifests_and_preferences_only_make_it_say_less() {
    for file in 0..2 {
        let (env, files) = selected();
        env.run(["--check"]).exits(0).shows("yes");
        let good = serde_json::from_str(&text(&files[file])).unwrap();
        assert_says_less(&env, &files[file], &odd_json(&good));
        assert_says_less(&env, &files[file], &retyped(&good));
    }
}

#[test]
fn manifests_and_preferences_that_are_no_files_only_make_it_say_less() {
    let dangling: fn(&Path) = |path| symlink("nothing", path).unwrap();
    for make in NO_FILES.map(|(_, make)| make).into_iter().chain([dangling]) {
        for file in 0..2 {
            let (env, files) = selected();
            fs::remove_file(&files[file]).unwrap();
            make(&files[file]);
            let ran = env.run(["4096"]).exits(0).shows(NAME);
            let ran = ran.says_nothing_of("error");
            assert!(!ran.stdout.contains("yes"), "{ran:#?}");
        }
    }
}
