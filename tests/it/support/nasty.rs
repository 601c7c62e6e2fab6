//! Sources that would take a careless reader long, each of about `size` bytes.

/// Every nasty source, and what it is.
pub fn sources(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let mut sources: Vec<_> = REPEATED
        .map(|(name, start, unit)| (name, behind(start, unit, size)))
        .into();
    sources.push((
        "balanced brackets, deep",
        behind("", &("(".repeat(150) + &")".repeat(150) + "\n"), size),
    ));
    sources.push((
        "a NUL byte at the end",
        [behind("", "a = 1\n", size), vec![0]].concat(),
    ));
    let classes: Vec<_> = (0..90)
        .map(|depth| " ".repeat(depth) + "class C:\n")
        .collect();
    let field = " ".repeat(90) + "prefill_step_size: int = 2048\n";
    sources.push((
        "many sites in deep classes",
        behind(&classes.concat(), &field, size),
    ));
    sources
}

fn behind(start: &str, unit: &str, size: usize) -> Vec<u8> {
    [start, &unit.repeat(size.div_ceil(unit.len()))]
        .concat()
        .into_bytes()
}

/// What it is, its start, and what is repeated behind that.
const REPEATED: [(&str, &str, &str); 42] = [
    ("opening brackets", "", "("),
    ("closing brackets", "", "]"),
    ("mixed brackets", "", "([{}])"),
    ("lambdas within lambdas", "", "lambda a="),
    ("classes on one line", "", "class A: "),
    ("functions on one line", "", "def f(): "),
    ("conditions on one line", "", "if a: "),
    ("classes, one a line", "", "class A: a = 1\n"),
    ("a chain of assignments", "", "a = "),
    ("statements on one line", "", "a=1;"),
    ("annotations without end", "", "a: "),
    ("one-byte tokens", "", ";"),
    ("names on one line", "", "a "),
    ("one name", "", "a"),
    ("letters beyond ASCII", "", "\u{e9}"),
    ("one number", "prefill_step_size: int = ", "1"),
    ("one grouped number", "prefill_step_size: int = 1", "_1"),
    ("one number with points", "prefill_step_size: int = 1", ".1"),
    ("blanks on one line", "", " "),
    ("blank lines", "", "\n"),
    ("lone carriage returns", "", "\r"),
    ("form feeds", "", "\x0c"),
    ("continued lines", "", "\\\n"),
    ("backslashes", "", "\\"),
    ("comments", "", "# a\n"),
    ("empty strings", "", "\"\" ''"),
    ("strings with prefixes", "", "rb'' f\"\" "),
    ("prefixes without strings", "", "rb "),
    ("many lambdas", "", "a = lambda b=1: 0\n"),
    (
        "one constant many times",
        "",
        "PROMPT_PROCESSING_CHUNK_SIZE = 512\n",
    ),
    (
        "many sites",
        "",
        "def f(prefill_step_size: int = 2048): pass\n",
    ),
    (
        "many sites on one line",
        "",
        "prefill_step_size: int = 2048;",
    ),
    (
        "many defaults that are unset",
        "",
        "def f(prefill_step_size=None, chunk_size=None): pass\n",
    ),
    ("a string without end", "a = '", "a "),
    ("a triple string without end", "a = \"\"\"", "a\n"),
    ("a triple string of its own quotes", "a = \"\"\"", "\"\" "),
    ("a triple string of escapes", "a = '''", "\\'"),
    ("an f-string without end", "f'", "{a!r:"),
    ("one comment", "#", "prefill_step_size: int = 2048 "),
    ("line ends in a bracket", "a = (", "\n"),
    (
        "line ends in a default",
        "def f(prefill_step_size=(",
        "\n\n",
    ),
    ("a sum", "prefill_step_size: int = 1", " + 1"),
];
