//! The main job on the vendor's real files: published mlx-lm wheels, judged by Python's own `ast`.
//!
//! `.ci/run` fetches the wheels into `target/wheels`; `LMPATCH_WHEELS` names another directory. Without them, or without
//! a python3, the tests say that they were skipped.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::home::{BackendDir, SITE_PACKAGES, engine_since_2026, record_row};
use crate::support::{Env, aloud, differences, interpreter, skipped, snapshot};
use serde::Deserialize;

/// Every definition of `prefill_step_size` with an integer default, as `ast` sees it, as `[value, start, end]` in bytes.
const JUDGE: &str = r#"
import ast, json, sys
def sites(source):
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    def found(node):
        if isinstance(node, ast.arguments):
            positional = node.posonlyargs + node.args
            pairs = list(zip(positional[len(positional) - len(node.defaults):], node.defaults))
            pairs += zip(node.kwonlyargs, node.kw_defaults)
            return [(a.arg, d) for a, d in pairs if d is not None]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            return [(node.target.id, node.value)]
        return []
    for node in ast.walk(tree):
        for name, value in found(node):
            if name == "prefill_step_size" and isinstance(value, ast.Constant) and type(value.value) is int:
                start = starts[value.lineno - 1] + value.col_offset
                yield [value.value, start, starts[value.end_lineno - 1] + value.end_col_offset]
print(json.dumps({path: sorted(sites(open(path, "rb").read()), key=lambda s: s[1]) for path in sys.argv[1:]}))
"#;

const UNZIP: &str = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])";

#[derive(Debug, Deserialize)]
struct Site(u64, usize, usize);

/// A home whose backends are the real wheels, each with a hand-written engine beside it.
struct Real {
    env: Env,
    backends: Vec<PathBuf>,
}

/// `None`, said aloud, where there is nothing to test on.
fn real(test: &str) -> Option<Real> {
    let directory = std::env::var_os("LMPATCH_WHEELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/wheels"),
        PathBuf::from,
    );
    let wheels: Vec<_> = fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .collect();
    let has_python = Command::new(interpreter())
        .arg("--version")
        .output()
        .is_ok();
    if wheels.is_empty() || !has_python {
        skipped(&format!(
            "{test}: no wheels in {} or no python3; see .ci/run",
            directory.display()
        ));
        return None;
    }
    let env = Env::new();
    let backends = wheels.iter().enumerate().map(|(index, wheel)| {
        let name = format!("app-mlx-generate-mac14-arm64@{}", index + 1);
        let backend =
            BackendDir::new(&env.lmstudio(), &name).with_engine(engine_since_2026("2048"));
        python(&env, UNZIP, &[wheel, &backend.root.join(SITE_PACKAGES)]);
        backend.generate()
    });
    let backends = backends.collect();
    Some(Real { env, backends })
}

fn python(env: &Env, script: &str, arguments: &[&Path]) -> Vec<u8> {
    let mut command = Command::new(interpreter());
    let output = env
        .isolate(&mut command)
        .arg("-c")
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

impl Real {
    /// What `ast` sees in each backend's `generate.py`.
    fn judge(&self) -> Vec<Vec<Site>> {
        let paths: Vec<_> = self.backends.iter().map(PathBuf::as_path).collect();
        let mut seen: BTreeMap<PathBuf, Vec<Site>> =
            serde_json::from_slice(&python(&self.env, JUDGE, &paths)).unwrap();
        paths
            .iter()
            .map(|path| seen.remove(*path).unwrap())
            .collect()
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        self.backends
            .iter()
            .map(|path| fs::read(path).unwrap())
            .collect()
    }
}

/// The source without the literals at these sites.
fn without(source: &[u8], sites: &[Site]) -> Vec<u8> {
    let mut copied = 0;
    let mut rest = Vec::new();
    for Site(_, start, end) in sites {
        rest.extend_from_slice(&source[copied..*start]);
        copied = *end;
    }
    rest.extend_from_slice(&source[copied..]);
    rest
}

#[test]
fn only_the_digits_of_the_setting_change_and_all_of_them() {
    let Some(real) = real("set and revert on real wheels") else {
        return;
    };
    let (tree, before, seen) = (snapshot(&real.env.lmstudio()), real.bytes(), real.judge());
    for size in [64, 1024, 4096, 131_072] {
        real.env
            .run([size.to_string()])
            .exits(0)
            .says(&format!("{0} backends: {0} changed", real.backends.len()));
        let (after, set) = (real.bytes(), real.judge());
        for index in 0..real.backends.len() {
            assert!(seen[index].len() >= 2, "{}", real.backends[index].display());
            assert_eq!(set[index].len(), seen[index].len());
            assert!(
                set[index].iter().all(|site| site.0 == size),
                "{:?}",
                set[index]
            );
            assert_eq!(
                without(&before[index], &seen[index]),
                without(&after[index], &set[index])
            );
        }
        real.env
            .run(["--check".to_owned(), size.to_string()])
            .exits(0);
    }
    real.env.run(["--revert"]).exits(0);
    assert_eq!(
        differences(&tree, &snapshot(&real.env.lmstudio())),
        Vec::<String>::new()
    );
    aloud(&format!(
        "{} real wheels set and reverted",
        real.backends.len()
    ));
}

#[test]
fn the_sites_are_those_that_python_sees() {
    let Some(real) = real("the sites of real wheels") else {
        return;
    };
    let report = real.env.json(["--check"]);
    for (path, seen) in real.backends.iter().zip(real.judge()) {
        let mut files = report["backends"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|b| b["files"].as_array().unwrap());
        let file = files
            .find(|file| file["path"] == path.to_str().unwrap())
            .unwrap();
        let source = fs::read(path).unwrap();
        let line = |site: &Site| {
            1 + source[..site.1]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
        };
        let expected: Vec<_> = seen.iter().map(|site| (line(site), site.0)).collect();
        let sites: Vec<_> = file["sites"].as_array().unwrap().iter().collect();
        let shown: Vec<_> = sites
            .iter()
            .map(|site| {
                (
                    usize::try_from(site["line"].as_u64().unwrap()).unwrap(),
                    site["value"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(shown, expected, "{}", path.display());
        assert!(
            sites.iter().all(|site| site["value"] == site["stock"]),
            "{sites:?}"
        );
        assert_eq!(
            (&file["state"], &file["original"]),
            (&"stock".into(), &"release".into()),
            "{}",
            path.display()
        );
    }
}

#[test]
fn what_the_bash_patch_did_to_a_real_file_is_undone_to_the_hash_in_record() {
    let Some(real) = real("revert after the bash patch") else {
        return;
    };
    let before = real.bytes();
    for path in &real.backends {
        let patched = fs::read_to_string(path).unwrap().replace(
            "prefill_step_size: int = 2048",
            "prefill_step_size: int = 4096",
        );
        fs::write(
            path,
            patched.replace(
                "prefill_step_size: int = 512",
                "prefill_step_size: int = 4096",
            ),
        )
        .unwrap();
    }
    assert_ne!(real.bytes(), before);
    real.env.run(["--revert"]).exits(0);
    assert_eq!(real.bytes(), before);
    for path in &real.backends {
        let site_packages = path.parent().unwrap().parent().unwrap();
        let mut info = fs::read_dir(site_packages)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let info = info
            .find(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "dist-info")
            })
            .unwrap();
        let record = fs::read_to_string(info.join("RECORD")).unwrap();
        assert!(
            record.contains(&record_row("mlx_lm/generate.py", &fs::read(path).unwrap())),
            "{}",
            path.display()
        );
    }
}
