//! The sites against CPython's own parser: over mlx-lm's wheels as they are, and over a Python installation whose
//! variables are renamed to those of the settings.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::child::has_tool;
use crate::support::{Env, aloud, interpreter};
use lmpatch::patch::settings::{FormPlace, SETTINGS, Site};
use lmpatch::patch::sites::locate;
use serde::Deserialize;

/// Prints one JSON object per source: what it is of, where it is stored, and every binding of the settings' names.
const JUDGE: &str = r#"
import ast, gc, json, os, random, re, sys, sysconfig, zipfile

NAMES = ["PROMPT_PROCESSING_CHUNK_SIZE", "prefill_step_size", "chunk_size"]
target, wheels, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])

def integer(node):
    is_integer = isinstance(node, ast.Constant) and type(node.value) is int and node.value < 2**64
    return node.value if is_integer else None

class Bindings(ast.NodeVisitor):
    """Kind, name, line and column of the value (or 0), value (or None), the classes and functions around."""

    def __init__(self):
        self.scopes, self.found = [], []

    def add(self, kind, name, value=None):
        if isinstance(name, str):
            place = (value.lineno, value.col_offset) if value is not None else (0, 0)
            self.found.append([kind, name, *place, integer(value), [list(scope) for scope in self.scopes]])

    def add_parameters(self, kind, args):
        positional = args.posonlyargs + args.args
        defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
        for arg, value in [*zip(positional, defaults), *zip(args.kwonlyargs, args.kw_defaults)]:
            self.add(kind, arg.arg, value)
        for arg in filter(None, [args.vararg, args.kwarg]):
            self.add(kind, arg.arg)

    def scope(self, node, is_class):
        self.add("other", node.name)
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.scopes.append((is_class, node.name))
        for child in ast.iter_child_nodes(node):
            if child not in node.decorator_list:
                self.visit(child)
        self.scopes.pop()

    def visit_FunctionDef(self, node): self.scope(node, False)
    def visit_AsyncFunctionDef(self, node): self.scope(node, False)
    def visit_ClassDef(self, node): self.scope(node, True)

    def visit_Lambda(self, node):
        self.add_parameters("lambda", node.args)
        for child in filter(None, [*node.args.defaults, *node.args.kw_defaults, node.body]):
            self.visit(child)

    def visit_arguments(self, node):
        self.add_parameters("parameter", node)
        self.generic_visit(node)

    def visit_Assign(self, node):
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.add("assigned" if len(node.targets) == 1 else "chained", target.id, node.value)
            else:
                self.visit(target)
        self.visit(node.value)

    def visit_AnnAssign(self, node):
        if isinstance(node.target, ast.Name):
            kind = "annotated" if node.simple else "bracketed"
            self.add(kind if node.value else "bare", node.target.id, node.value)
        else:
            self.visit(node.target)
        for child in filter(None, [node.annotation, node.value]):
            self.visit(child)

    def visit_NamedExpr(self, node):
        self.add("walrus", node.target.id, node.value)
        self.visit(node.value)

    def visit_Name(self, node):
        if not isinstance(node.ctx, ast.Load):
            self.add("other", node.id)

    def visit_Constant(self, node): pass

    def generic_visit(self, node):
        for field in ("asname", "rest", "name"):
            self.add("other", getattr(node, field, None))
        if isinstance(node, ast.alias) and not node.asname:
            self.add("other", node.name.split(".")[0])
        for name in node.names if isinstance(node, (ast.Global, ast.Nonlocal)) else []:
            self.add("other", name)
        super().generic_visit(node)

def bindings(source):
    visitor = Bindings()
    visitor.visit(ast.parse(source))
    return visitor.found

def tell(kind, setting, source, found):
    tell.count += 1
    path = os.path.join(target, f"{tell.count}.py")
    with open(path, "wb") as file:
        file.write(source)
    found = [binding for binding in found if binding[1] in NAMES]
    print(json.dumps({"kind": kind, "setting": setting, "path": path, "bindings": found}))
tell.count = 0

def renamed(source, old, new):
    """The source with every word `old` written as `new`, in strings and comments too."""
    return re.sub(rf"\b{old}\b", new, source)

def sources():
    names = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    for name in sorted(names):
        for directory, _, files in os.walk(name):
            yield from (os.path.join(directory, file) for file in sorted(files) if file.endswith(".py"))

def choices(found):
    """Names with integers that fit a setting, and some that are bound in odd ways."""
    fitting, odd = {}, {}
    for kind, name, _, _, value, scopes in found:
        if not name.isascii() or name in ("self", "cls"):
            continue
        classes = [scope[1] for scope in scopes if scope[0]]
        if value is None or kind not in ("parameter", "annotated", "assigned"):
            odd.setdefault(name, (0 if kind != "parameter" else 1, None))
        elif kind == "parameter" and classes:
            fitting.setdefault(("method", name), (0, classes[-1]))
        if value is not None and kind in ("parameter", "annotated"):
            fitting[("any", name)] = (1, None)
        if value is not None and kind == "assigned" and not scopes:
            fitting[("constant", name)] = (0, None)
    for (shape, name), (setting, owner) in random.sample(sorted(fitting.items()), min(4, len(fitting))):
        new = {"method": NAMES[2], "any": NAMES[1], "constant": NAMES[0]}[shape]
        yield setting, name, new, owner
    for name, (setting, _) in random.sample(sorted(odd.items()), min(1, len(odd))):
        yield setting, name, NAMES[setting], None

gc.disable()
random.seed(10)
if os.path.isdir(wheels):
    for wheel in sorted(name for name in os.listdir(wheels) if name.endswith(".whl")):
        with zipfile.ZipFile(os.path.join(wheels, wheel)) as archive:
            for name in archive.namelist():
                if name.endswith(".py"):
                    source = archive.read(name)
                    tell("wheel", 1, source, bindings(source))
paths = list(dict.fromkeys(sources()))
random.shuffle(paths)
for path in paths:
    if tell.count >= wanted:
        break
    try:
        if os.path.getsize(path) > 60_000:
            continue
        with open(path, encoding="utf-8", newline="") as file:
            source = file.read()
        for setting, old, new, owner in choices(bindings(source)):
            text = renamed(source, old, new)
            if owner:
                text = renamed(text, owner, "CacheWrapper")
            tell("renamed", setting, text.encode(), bindings(text))
    except Exception:
        continue
"#;

#[derive(Deserialize)]
struct Source {
    kind: String,
    setting: usize,
    path: PathBuf,
    bindings: Vec<Binding>,
}

/// Kind, name, line and column of the value, the value if it is an integer, the scopes around.
type Binding = (String, String, usize, usize, Option<u64>, Vec<Scope>);

/// Is it a class, and its name.
type Scope = (bool, String);

#[test]
fn the_sites_are_those_that_cpython_sees() {
    if !has_tool("python3") {
        return;
    }
    let env = Env::new();
    let wheels = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/wheels");
    let arguments = [&env.user(), &wheels, Path::new("3158")];
    let printed = env.python(interpreter(), JUDGE, &arguments);
    let mut tally = BTreeMap::<String, usize>::new();
    let mut wrong = Vec::new();
    for line in String::from_utf8(printed).unwrap().lines() {
        let source: Source = serde_json::from_str(line).unwrap();
        let mut count = |what: &str, times| {
            *tally.entry(format!("{} {what}", source.kind)).or_default() += times;
        };
        count("files", 1);
        let text = fs::read(&source.path).unwrap();
        let Ok(sites) = locate(&SETTINGS[source.setting], &text) else {
            count("refused", 1);
            continue;
        };
        count("sites", sites.len());
        let place = |site: &Site| (position(&text, site.range.start), site.value);
        let found: Vec<_> = sites.iter().map(place).collect();
        let (mut fitting, overriding) = judged(&source, sites[0].name);
        fitting.sort_unstable();
        if found != fitting || !overriding.is_empty() {
            let kept = std::env::temp_dir().join(source.path.file_name().unwrap());
            fs::copy(&source.path, &kept).unwrap();
            let judgement = format!("{found:?}, not {fitting:?}; {overriding:?}");
            wrong.push(format!("{kept:?}: {judgement}"));
        }
    }
    aloud(&format!("held against CPython: {tally:?}"));
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
    assert!(tally["renamed files"] >= 2500 && tally["renamed sites"] >= 400);
    // Nearly everything that somebody renames so is something that is refused.
    assert!(tally["renamed refused"] < tally["renamed files"] * 9 / 10);
}

/// The integers that are the setting according to CPython, and the other integers that would decide in their place.
fn judged<'s>(source: &'s Source, name: &str) -> (Vec<((usize, usize), u64)>, Vec<&'s Binding>) {
    let is_constant =
        SETTINGS[source.setting].forms[0].1 == FormPlace::ModuleConstant && name.starts_with('P');
    let (mut fitting, mut overriding) = (Vec::new(), Vec::new());
    for binding in source.bindings.iter().filter(|binding| binding.1 == name) {
        let (kind, _, line, column, value, scopes) = binding;
        let class = scopes.iter().rfind(|(is_class, _)| *is_class);
        let is_inside = class.is_some_and(|(_, class)| class == "CacheWrapper");
        let fits = match (name, kind.as_str()) {
            ("chunk_size", kind) => kind == "parameter" && is_inside,
            ("prefill_step_size", kind) => matches!(kind, "parameter" | "annotated"),
            (_, kind) => matches!(kind, "assigned" | "annotated") && scopes.is_empty(),
        };
        match value {
            Some(value) if fits => fitting.push(((*line, *column), *value)),
            Some(_) if name != "chunk_size" || is_inside => overriding.push(binding),
            None if is_constant && kind != "bare" && !(kind == "parameter" && *line == 0) => {
                overriding.push(binding);
            }
            _ => {}
        }
    }
    (fitting, overriding)
}

/// Line from 1 and column from 0 of a byte, as CPython counts them.
fn position(source: &[u8], offset: usize) -> (usize, usize) {
    let before = String::from_utf8_lossy(&source[..offset]);
    let before = before.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let lines: Vec<_> = before.split(['\r', '\n']).collect();
    (lines.len(), lines[lines.len() - 1].len())
}
