//! Sources that would take a careless reader long, each of about `size` bytes.

const FIELD: &str = "prefill_step_size: int = 2048\n";
const UNSET: &str = "def f(prefill_step_size=None, chunk_size=None): pass\n";

/// Every nasty source, and what it is.
pub fn sources(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let repeated = |start: &str, unit: &str| start.to_owned() + &unit.repeat(size / unit.len() + 1);
    let brackets = "(".repeat(150) + &")".repeat(150) + "\n";
    let classes = (0..90).map(|depth| " ".repeat(depth) + "class C:\n");
    let (classes, field) = (classes.collect::<String>(), " ".repeat(90) + FIELD);
    let mut sources = vec![
        ("balanced brackets, deep", repeated("", &brackets)),
        ("many sites in deep classes", repeated(&classes, &field)),
        ("a NUL byte at the end", repeated("", "a = 1\n") + "\0"),
    ];
    sources.extend(REPEATED.map(|(name, unit)| (name, repeated("", unit))));
    sources.extend(BEHIND_A_START.map(|(name, start, unit)| (name, repeated(start, unit))));
    let bytes = |(name, source): (_, String)| (name, source.into_bytes());
    sources.into_iter().map(bytes).collect()
}

/// What it is, and what is repeated.
const REPEATED: [(&str, &str); 30] = [
    ("opening brackets", "("),
    ("closing brackets", "]"),
    ("mixed brackets", "([{}])"),
    ("lambdas within lambdas", "lambda a="),
    ("classes on one line", "class A: "),
    ("functions on one line", "def f(): "),
    ("conditions on one line", "if a: "),
    ("classes, one a line", "class A: a = 1\n"),
    ("a chain of assignments", "a = "),
    ("statements on one line", "a=1;"),
    ("annotations without end", "a: "),
    ("one-byte tokens", ";"),
    ("names on one line", "a "),
    ("one name", "a"),
    ("letters beyond ASCII", "\u{e9}"),
    ("blanks on one line", " "),
    ("blank lines", "\n"),
    ("lone carriage returns", "\r"),
    ("form feeds", "\x0c"),
    ("continued lines", "\\\n"),
    ("backslashes", "\\"),
    ("comments", "# a\n"),
    ("empty strings", "\"\" ''"),
    ("strings with prefixes", "rb'' f\"\" "),
    ("prefixes without strings", "rb "),
    ("many lambdas", "a = lambda b=1: 0\n"),
    ("many constants", "PROMPT_PROCESSING_CHUNK_SIZE = 512\n"),
    ("many sites", "def f(prefill_step_size: int = 2048): pass\n"),
    ("many sites on one line", "prefill_step_size: int = 2048;"),
    ("many unset defaults", UNSET),
];

/// What it is, its start, and what is repeated behind that.
const BEHIND_A_START: [(&str, &str, &str); 12] = [
    ("one number", "prefill_step_size: int = ", "1"),
    ("one grouped number", "prefill_step_size: int = 1", "_1"),
    ("one number with points", "prefill_step_size: int = 1", ".1"),
    ("a string without end", "a = '", "a "),
    ("a triple string without end", "a = \"\"\"", "a\n"),
    ("a triple string of its own quotes", "a = \"\"\"", "\"\" "),
    ("a triple string of escapes", "a = '''", "\\'"),
    ("an f-string without end", "f'", "{a!r:"),
    ("one comment", "#", "prefill_step_size: int = 2048 "),
    ("line ends in a bracket", "a = (", "\n"),
    ("lines in a default", "def f(prefill_step_size=(", "\n\n"),
    ("a sum", "prefill_step_size: int = 1", " + 1"),
];
