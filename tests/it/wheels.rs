//! The main job on the vendor's real files: published mlx-lm wheels, judged by Python's own `ast`.
//!
//! `.ci/run` fetches the wheels into `target/wheels`; `LMPATCH_WHEELS` names another directory. Without them, or without
//! a python3, the tests say that they were skipped.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::child::has_tool;
use crate::support::home::{BackendDir, SITE_PACKAGES, engine_since_2026, record_row};
use crate::support::{Before, Env, aloud, interpreter, list, skipped, text};
use serde::Deserialize;
use serde_json::{Value, json};

/// Every definition of `prefill_step_size` with an integer default, as `ast` sees it: value, line, start and end in bytes.
const JUDGE: &str = r#"
import ast, json, sys
def defaults(node):
    if isinstance(node, ast.arguments):
        yield from zip(reversed(node.posonlyargs + node.args), reversed(node.defaults))
        yield from zip(node.kwonlyargs, node.kw_defaults)
    elif isinstance(node, ast.AnnAssign):
        yield node.target, node.value
def sites(source):
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in ast.walk(ast.parse(source)):
        for name, value in defaults(node):
            is_setting = "prefill_step_size" in (getattr(name, "arg", None), getattr(name, "id", None))
            if is_setting and isinstance(value, ast.Constant) and type(value.value) is int:
                start = starts[value.lineno - 1] + value.col_offset
                yield [value.value, value.lineno, start, starts[value.end_lineno - 1] + value.end_col_offset]
print(json.dumps({path: sorted(sites(open(path, "rb").read()), key=lambda s: s[2]) for path in sys.argv[1:]}))
"#;

const UNZIP: &str = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])";

#[derive(Debug, Deserialize)]
struct Site {
    value: u64,
    line: usize,
    start: usize,
    end: usize,
}

/// A home whose backends are the real wheels, each with a hand-written engine beside it.
struct Real {
    env: Env,
    /// Each backend's `generate.py`.
    files: Vec<PathBuf>,
}

/// `None`, said aloud, where there is nothing to test on.
fn real() -> Option<Real> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/wheels");
    let directory = std::env::var_os("LMPATCH_WHEELS").map_or(usual, PathBuf::from);
    let listed = fs::read_dir(&directory).into_iter().flatten();
    let mut wheels: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    wheels.retain(|path| path.extension().is_some_and(|end| end == "whl"));
    if wheels.is_empty() {
        let directory = directory.display();
        skipped(&format!("real wheels: none in {directory}; see .ci/run"));
        return None;
    }
    if !has_tool("python3") {
        return None;
    }
    let env = Env::new();
    let unpack = |(index, wheel): (usize, &PathBuf)| {
        let name = format!("app-mlx-generate-mac14-arm64@{}", index + 1);
        let backend = BackendDir::new(&env.lmstudio(), &name);
        let target = backend.root.join(SITE_PACKAGES);
        env.python(interpreter(), UNZIP, &[wheel, &target]);
        backend.with_engine(engine_since_2026("2048")).generate()
    };
    let files = wheels.iter().enumerate().map(unpack).collect();
    Some(Real { env, files })
}

impl Real {
    /// What `ast` sees in each file.
    fn judge(&self) -> Vec<Vec<Site>> {
        let seen = self.env.python(interpreter(), JUDGE, &self.files);
        let mut seen: BTreeMap<PathBuf, _> = serde_json::from_slice(&seen).unwrap();
        let files = self.files.iter();
        files.map(|path| seen.remove(path).unwrap()).collect()
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        let read = |path| fs::read(path).unwrap();
        self.files.iter().map(read).collect()
    }
}

/// The source without the literals at these sites.
fn without(source: &[u8], sites: &[Site]) -> Vec<u8> {
    let mut rest = source.to_vec();
    for site in sites.iter().rev() {
        rest.drain(site.start..site.end);
    }
    rest
}

#[test]
fn only_the_digits_of_the_setting_change_and_all_of_them() {
    let Some(real) = real() else { return };
    let (tree, before, seen) = (Before::of(real.env.user()), real.bytes(), real.judge());
    let count = real.files.len();
    for size in ["64", "1024", "4096", "131072"] {
        let ran = real.env.run([size]).exits(0);
        ran.says(&format!("Backends: {count} changed"));
        let (after, set) = (real.bytes(), real.judge());
        for (index, path) in real.files.iter().enumerate() {
            let (seen, set) = (&seen[index], &set[index]);
            assert!(seen.len() >= 2, "{}", path.display());
            assert_eq!(set.len(), seen.len());
            let is_set = |site: &Site| site.value.to_string() == size;
            assert!(set.iter().all(is_set), "{set:?}");
            let rest = without(&before[index], seen);
            assert_eq!(rest, without(&after[index], set), "{}", path.display());
        }
        real.env.run(["--check", size]).exits(0);
    }
    real.env.run(["--revert"]).exits(0);
    tree.still_holds();
    aloud(&format!("{count} real wheels set and reverted"));
}

#[test]
fn the_sites_are_those_that_python_sees() {
    let Some(real) = real() else { return };
    let report = real.env.json(["--check"]);
    let backends = list(&report, "backends").iter();
    let files = backends.flat_map(|backend| list(backend, "files"));
    let files: Vec<_> = files.collect();
    for (path, seen) in real.files.iter().zip(real.judge()) {
        let is_it = |file: &&&Value| file["path"] == path.to_str().unwrap();
        let file = files.iter().find(is_it).unwrap();
        let shown = |site: &Value| json!([site["line"], site["value"], site["stock"]]);
        let shown: Vec<_> = list(file, "sites").iter().map(shown).collect();
        let stock = |site: &Site| json!([site.line, site.value, site.value]);
        let stock: Vec<_> = seen.iter().map(stock).collect();
        assert_eq!(shown, stock, "{}", path.display());
        assert_eq!(file["state"], "stock", "{}", path.display());
        assert_eq!(file["original"], "release", "{}", path.display());
    }
}

#[test]
fn what_the_bash_patch_did_to_a_real_file_is_undone_to_the_hash_in_record() {
    let Some(real) = real() else { return };
    let before = real.bytes();
    for path in &real.files {
        let at = |size: &str| format!("prefill_step_size: int = {size}");
        let patched = text(path).replace(&at("2048"), &at("4096"));
        fs::write(path, patched.replace(&at("512"), &at("4096"))).unwrap();
    }
    assert_ne!(real.bytes(), before);
    real.env.run(["--revert"]).exits(0);
    assert_eq!(real.bytes(), before);
    for (path, source) in real.files.iter().zip(before) {
        let site_packages = path.ancestors().nth(2).unwrap();
        let listed = fs::read_dir(site_packages).unwrap();
        let mut listed = listed.map(|entry| entry.unwrap().path());
        let info = listed.find(|path| path.extension().is_some_and(|end| end == "dist-info"));
        let record = text(info.unwrap().join("RECORD"));
        let row = record_row("mlx_lm/generate.py", &source);
        assert!(record.contains(&row), "{}", path.display());
    }
}
