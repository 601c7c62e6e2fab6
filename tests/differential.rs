//! The reader against CPython's own parser, over every file of a Python installation and of mlx-lm's wheels.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::print_stderr,
    reason = "says what was compared, and what was skipped"
)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lmpatch::patch::python::{self, Definition, Place, Value};
use serde::Deserialize;

/// Prints one JSON object per file that `ast` parses, and at last how many it does not.
const JUDGE: &str = r#"
import ast, json, os, sys, sysconfig, zipfile

def is_integer(node):
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value < 2**64

def constants(statements):
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and len(targets) == 1:
            # `(name): int = 1` is no definition of a name: Python itself marks it as not simple.
            if isinstance(targets[0], ast.Name) and getattr(statement, "simple", 1):
                yield "constant", targets[0].id, statement.value
        for part in ("body", "orelse", "finalbody"):
            yield from constants(getattr(statement, part, []))
        for part in ("handlers", "cases"):
            for block in getattr(statement, part, []):
                yield from constants(block.body)

def parameters(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            positional = node.posonlyargs + node.args
            defaults = zip(positional[len(positional) - len(node.defaults):], node.defaults)
            for name, value in [*defaults, *zip(node.kwonlyargs, node.kw_defaults)]:
                yield "parameter", name.arg, value

def integers(tree):
    for kind, name, value in [*constants(tree.body), *parameters(tree)]:
        if is_integer(value):
            yield [kind, name, value.lineno, value.col_offset, value.value]

def sources(directories):
    for top in sorted(directories):
        for directory, _, names in os.walk(top):
            yield from (os.path.join(directory, name) for name in names if name.endswith(".py"))

def unpack(wheels, target):
    for name in sorted(os.listdir(wheels)):
        if name.startswith("mlx_lm-") and name.endswith(".whl"):
            zipfile.ZipFile(os.path.join(wheels, name)).extractall(os.path.join(target, name))

directories = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
if len(sys.argv) > 1:
    unpack(sys.argv[1], sys.argv[2])
    directories.add(sys.argv[2])
unparsed = 0
for path in sorted(set(map(os.path.realpath, sources(directories)))):
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except Exception:
        unparsed += 1
        continue
    print(json.dumps({"path": path, "integers": list(integers(tree))}))
print(json.dumps({"unparsed": unparsed}))
"#;

/// A line of the judge.
#[derive(Deserialize)]
#[serde(untagged)]
enum Verdict {
    File {
        path: PathBuf,
        integers: Vec<Integer>,
    },
    End {
        unparsed: usize,
    },
}

/// Kind, name, line and column of the literal, value. The column counts bytes of UTF-8.
type Integer = (String, String, usize, usize, u64);

/// What was compared, and what came of it.
#[derive(Default)]
struct Tally {
    files: usize,
    definitions: usize,
    unparsed: Option<usize>,
    refused: Vec<String>,
    disagreements: Vec<String>,
}

#[test]
fn finds_the_integers_that_cpython_finds() {
    let directory = tempfile::tempdir().unwrap();
    let Some(verdicts) = judge(directory.path()) else {
        return;
    };
    let mut tally = Tally::default();
    for line in verdicts.lines() {
        match serde_json::from_str(line).unwrap() {
            Verdict::File { path, integers } => compare(&path, integers, &mut tally),
            Verdict::End { unparsed } => tally.unparsed = Some(unparsed),
        }
    }
    let Tally {
        files,
        definitions,
        unparsed,
        refused,
        disagreements,
    } = tally;
    let unparsed = unparsed.unwrap_or_else(|| panic!("the judge did not come to its end"));
    eprintln!(
        "compared: {files} files, {definitions} definitions; not Python to ast and left out: {unparsed} files"
    );
    eprintln!("refused: {} files\n{}", refused.len(), refused.join("\n"));
    assert!(
        disagreements.is_empty(),
        "{} disagreements:\n{}",
        disagreements.len(),
        disagreements.join("\n")
    );
    assert!(files > 100 && definitions > 1000, "too little was compared");
    assert!(refused.len() * 200 < files, "too many files are refused");
}

/// What CPython says, a line of JSON per file; `None`, and why on stderr, where there is no CPython.
fn judge(directory: &Path) -> Option<String> {
    let script = directory.join("judge.py");
    fs::write(&script, JUDGE).unwrap();
    let mut python = Command::new("python3");
    python.args(["-I", "-W", "ignore"]).arg(&script);
    match env::var_os("LMPATCH_WHEELS") {
        Some(wheels) => _ = python.arg(wheels).arg(directory.join("wheels")),
        None => {
            eprintln!("skipped: the wheels of mlx-lm; LMPATCH_WHEELS names no directory of them")
        }
    }
    let output = match python.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: python3 does not start: {error}");
            return None;
        }
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

fn compare(path: &Path, expected: Vec<Integer>, tally: &mut Tally) {
    let source = fs::read(path).unwrap();
    tally.files += 1;
    let module = match python::read(&source, |_| true) {
        Ok(module) => module,
        Err(error) => {
            return tally.refused.push(format!(
                "{}, byte {}: {}",
                path.display(),
                error.offset,
                error.why
            ));
        }
    };
    let found = module
        .definitions
        .iter()
        .filter_map(|definition| integer(&source, definition))
        .collect();
    tally.definitions += expected.len();
    // In another encoding than UTF-8 the columns differ, and names too.
    let is_utf8 = std::str::from_utf8(&source).is_ok();
    let (expected, found) = (sorted(expected, is_utf8), sorted(found, is_utf8));
    for (what, these, those) in [
        ("missed", &expected, &found),
        ("made up", &found, &expected),
    ] {
        let of = |list: &[Integer], integer: &Integer| {
            list.iter().filter(|other| *other == integer).count()
        };
        let only = these
            .iter()
            .filter(|integer| of(these, integer) > of(those, integer));
        tally
            .disagreements
            .extend(only.map(|integer| format!("{}: {what}: {integer:?}", path.display())));
    }
}

fn sorted(mut integers: Vec<Integer>, is_utf8: bool) -> Vec<Integer> {
    for (_, name, _, column, _) in &mut integers {
        // CPython gives names in their normal form, which is not how they are written.
        if !name.is_ascii() {
            name.clear();
        }
        if !is_utf8 {
            *column = 0;
        }
    }
    integers.sort();
    integers
}

/// The definition as the judge would print it, if it is one that the judge prints.
fn integer(source: &[u8], definition: &Definition) -> Option<Integer> {
    let Value::Integer(range, value) = &definition.value else {
        return None;
    };
    let kind = match definition.place {
        Place::Parameter => "parameter",
        _ if definition.scope.is_some() => return None,
        _ => "constant",
    };
    let name = String::from_utf8_lossy(&source[definition.name.clone()]).into_owned();
    let (line, column) = line_and_column(source, range.start);
    Some((kind.to_owned(), name, line, column, *value))
}

/// Line from 1 and column from 0 of a byte, as CPython counts them: a byte order mark is not there for it.
fn line_and_column(source: &[u8], offset: usize) -> (usize, usize) {
    let before = &source[..offset];
    let before = before.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(before);
    let unified = String::from_utf8_lossy(before)
        .replace("\r\n", "\n")
        .replace('\r', "\n");
    let line_start = unified.rfind('\n').map_or(0, |end| end + 1);
    (
        1 + unified.matches('\n').count(),
        unified.len() - line_start,
    )
}
