//! The reader: which literals are the setting, told with literals.

use lmpatch::patch::settings::{SETTINGS, Setting};
use lmpatch::patch::sites::locate;

const ENGINE: &Setting = &SETTINGS[0];
const GENERATE: &Setting = &SETTINGS[1];

/// Owner, line and value of every site, or the refusal.
fn found(setting: &Setting, source: impl AsRef<[u8]>) -> Result<Vec<(String, usize, u64)>, String> {
    let sites = locate(setting, source.as_ref())?;
    Ok(sites
        .into_iter()
        .map(|site| (site.owner, site.line, site.value))
        .collect())
}

#[track_caller]
fn has(setting: &Setting, source: impl AsRef<[u8]>, expected: &[(&str, usize, u64)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(owner, line, value)| ((*owner).to_owned(), *line, *value))
        .collect();
    let source = source.as_ref();
    assert_eq!(
        found(setting, source),
        Ok(expected),
        "{}",
        String::from_utf8_lossy(source)
    );
}

#[track_caller]
fn refuses(setting: &Setting, source: &str, why: &str) {
    let Err(refusal) = found(setting, source) else {
        panic!("not refused: {source}")
    };
    assert!(
        refusal.contains(why),
        "{refusal:?} has no {why:?}: {source}"
    );
}

#[test]
fn every_annotation_is_read() {
    for annotation in [
        "int",
        "Optional[int]",
        "int | None",
        "\"int\"",
        "'typing.Optional[int]'",
        "Annotated[int, Field(gt=0, le=4)]",
        "Literal[\"a=1\", ':']",
        "dict[str, int]",
        "(int)",
        "Callable[[int], int]",
        "a if b == c else d",
        "int # a comment with = 5\n   ",
    ] {
        has(
            GENERATE,
            format!("def f(prefill_step_size: {annotation} = 2048): pass\n").replace("\n   ", "\n"),
            &[("f", 1 + usize::from(annotation.contains('#')), 2048)],
        );
        if !annotation.contains('#') {
            has(
                GENERATE,
                format!("class C:\n    prefill_step_size: {annotation} = 7\n"),
                &[("C", 2, 7)],
            );
        }
    }
}

#[test]
fn parameters_are_found_wherever_definitions_are() {
    has(
        GENERATE,
        "def f(a, *, prefill_step_size=1): pass",
        &[("f", 1, 1)],
    );
    has(
        GENERATE,
        "async def f(a=(1, 2), /, prefill_step_size=2, **k): pass",
        &[("f", 1, 2)],
    );
    has(
        GENERATE,
        "def f[T: (int, str)](\n  x: T,\n  prefill_step_size = 3,\n): pass",
        &[("f", 3, 3)],
    );
    has(
        GENERATE,
        "class A:\n  class B:\n    def f(self, prefill_step_size=6):\n      def g(prefill_step_size=7): pass\n  def h(self, prefill_step_size=8): pass\nprefill_step_size: int = 9\n",
        &[
            ("A.B.f", 3, 6),
            ("A.B.f.g", 4, 7),
            ("A.h", 5, 8),
            ("<module>", 6, 9),
        ],
    );
}

#[test]
fn look_alikes_are_never_sites() {
    let real = "def f(prefill_step_size: int = 2048): pass\n";
    for decoy in [
        "f(prefill_step_size=1)",
        "f(1, prefill_step_size = 1,)",
        "# prefill_step_size: int = 1",
        "'''prefill_step_size: int = 1\n'''",
        "\"prefill_step_size: int = 1\"",
        "f'{x} prefill_step_size: int = 1'",
        "rb'''\\''' prefill_step_size: int = 1'''",
        "'it\\'s prefill_step_size: int = 1'",
        "x = y[prefill_step_size:1]",
        "x = {prefill_step_size: 1}",
        "if prefill_step_size: x = 1",
        "while prefill_step_size == 1: pass",
        "assert prefill_step_size <= 1 != 2",
        "my_prefill_step_size: int = 1",
        "prefill_step_size_2: int = 1",
        "self.prefill_step_size = 1",
        "self.prefill_step_size: int = 1",
        "prefill_step_size: int",
        "def g(prefill_step_size: int): pass",
        "def g(prefill_step_size: Optional[int] = None): pass",
        "def g(x: f(prefill_step_size=1)): pass",
        "class C(prefill_step_size=1): pass",
        "@deco(prefill_step_size=1)\ndef g(): pass",
        "print(f(x)(prefill_step_size=1))",
        "x = lambda: prefill_step_size == 1",
        "y = map(lambda i: x[prefill_step_size:], z)",
        "y = zeros((prefill_step_size, n), dtype=t)",
    ] {
        has(GENERATE, format!("{real}{decoy}\n"), &[("f", 1, 2048)]);
    }
}

#[test]
fn the_constant_is_found_in_every_form() {
    for (text, line, value) in [
        ("PROMPT_PROCESSING_CHUNK_SIZE = 512\n", 1, 512),
        ("PROMPT_PROCESSING_CHUNK_SIZE=512", 1, 512),
        (
            "PROMPT_PROCESSING_CHUNK_SIZE = 2_048; x = 1  # tokens\n",
            1,
            2048,
        ),
        ("PROMPT_PROCESSING_CHUNK_SIZE: Final[int] = 2048\n", 1, 2048),
        ("PROMPT_PROCESSING_CHUNK_SIZE = \\\n  512\n", 2, 512),
        (
            "try:\n    PROMPT_PROCESSING_CHUNK_SIZE = 512\nfinally:\n    pass\n",
            2,
            512,
        ),
        (
            "'''PROMPT_PROCESSING_CHUNK_SIZE = 1'''\r\nPROMPT_PROCESSING_CHUNK_SIZE = 512\r\n",
            2,
            512,
        ),
        ("# one\r# two\rPROMPT_PROCESSING_CHUNK_SIZE = 512\r", 3, 512),
    ] {
        has(ENGINE, text, &[("<module>", line, value)]);
        has(
            ENGINE,
            [b"\xEF\xBB\xBF", text.as_bytes()].concat(),
            &[("<module>", line, value)],
        );
    }
    has(
        ENGINE,
        b"# caf\xE9\nPROMPT_PROCESSING_CHUNK_SIZE = 512\nx = '\xE9'\n",
        &[("<module>", 2, 512)],
    );
}

#[test]
fn engines_from_before_the_constant_have_a_parameter() {
    let method = |parameter: &str, body: &str| {
        format!("class CacheWrapper:\n    def _prefill(self, {parameter}):\n        {body}\n")
    };
    has(
        ENGINE,
        method("chunk_size: int = 512", "pass"),
        &[("CacheWrapper._prefill", 2, 512)],
    );
    has(
        ENGINE,
        method("chunk_size=512", "current_chunk_size = min(chunk_size, 9)"),
        &[("CacheWrapper._prefill", 2, 512)],
    );
    let elsewhere = "class Other:\n    def f(self, chunk_size: int = 1): pass\ndef g(chunk_size: int = 2): pass\n";
    has(
        ENGINE,
        elsewhere.to_owned() + &method("chunk_size: int = 512", "pass"),
        &[("CacheWrapper._prefill", 5, 512)],
    );
    refuses(
        ENGINE,
        elsewhere,
        "no constant PROMPT_PROCESSING_CHUNK_SIZE and no parameter chunk_size",
    );
    // The engine of 2025-01-23 gave the parameter a value again, so that its default decided nothing.
    refuses(
        ENGINE,
        &method("chunk_size: int = 512", "chunk_size = 512"),
        "line 3: chunk_size is set here in a way",
    );
    refuses(
        ENGINE,
        &(method("chunk_size: int = 512", "pass") + "    def g(self, chunk_size=1): pass\n"),
        "is set 2 times, in lines 2, 4",
    );
}

#[test]
fn the_constant_comes_first_and_must_decide_alone() {
    let with_default = |default: &str| {
        format!(
            "PROMPT_PROCESSING_CHUNK_SIZE = 512\nclass CacheWrapper:\n    def f(self, chunk_size: int = {default}): pass\n"
        )
    };
    has(
        ENGINE,
        with_default("PROMPT_PROCESSING_CHUNK_SIZE"),
        &[("<module>", 1, 512)],
    );
    refuses(ENGINE, &with_default("512"), "has both");
}

#[test]
fn unfamiliar_forms_are_refused_and_named() {
    let constant = "PROMPT_PROCESSING_CHUNK_SIZE = 2048\n";
    for pattern in [
        "(PROMPT_PROCESSING_CHUNK_SIZE)",
        "[PROMPT_PROCESSING_CHUNK_SIZE]",
    ] {
        let source = format!("{constant}match 99:\n  case{pattern}:\n    pass\n");
        refuses(ENGINE, &source, "line 3");
    }
    let hidden = format!("\\\ndef f():\n {constant}");
    refuses(
        ENGINE,
        &hidden,
        "line 1: a line that begins with a backslash",
    );
    for (value, why) in [
        (
            "4 * 512",
            "line 1: PROMPT_PROCESSING_CHUNK_SIZE is not a plain number but `4 * 512`",
        ),
        ("int(x)", "`int(x)`"),
        ("DEFAULT", "`DEFAULT`"),
        ("-512", "`-512`"),
        ("512.0", "`512.0`"),
        ("512 if x else 1", "`512 if x else 1`"),
        ("1, 2", "`1, 2`"),
        ("None", "`None`"),
        ("99999999999999999999", "not a plain number"),
    ] {
        refuses(
            ENGINE,
            &format!("PROMPT_PROCESSING_CHUNK_SIZE = {value}\n"),
            why,
        );
    }
    refuses(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 1\nPROMPT_PROCESSING_CHUNK_SIZE = 2\n",
        "is set 2 times, in lines 1, 2",
    );
    refuses(
        ENGINE,
        "A = PROMPT_PROCESSING_CHUNK_SIZE = 1\n",
        "line 1: PROMPT_PROCESSING_CHUNK_SIZE shares its value with another name: `A = PROMPT_PROCESSING_CHUNK_SIZE = 1`",
    );
    refuses(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 1\nPROMPT_PROCESSING_CHUNK_SIZE *= 2\n",
        "line 2",
    );
    refuses(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 1\nprint(PROMPT_PROCESSING_CHUNK_SIZE := 2)\n",
        "line 2",
    );
    refuses(
        ENGINE,
        "PROMPT_PROCESSING_CHUNK_SIZE = 1\ndef f():\n    PROMPT_PROCESSING_CHUNK_SIZE = 2\n",
        "line 3",
    );
    refuses(
        GENERATE,
        "def f(prefill_step_size: int = 1): pass\ndef g(prefill_step_size=DEFAULT): pass\n",
        "line 2",
    );
    refuses(
        GENERATE,
        "def f(prefill_step_size: int = 1):\n    prefill_step_size = 2\n",
        "line 2",
    );
    refuses(
        GENERATE,
        "f(prefill_step_size=1)\n",
        "no definition of prefill_step_size",
    );
    refuses(GENERATE, "", "no definition of prefill_step_size");
}

#[test]
fn what_python_could_not_read_is_refused() {
    let real = "PROMPT_PROCESSING_CHUNK_SIZE = 512\n";
    for (broken, why) in [
        ("x = 'a\n", "line 2: a string that does not end"),
        ("x = '''a\n", "line 2: a string that does not end"),
        ("x = \"\"\"a \" b\n", "line 2: a string that does not end"),
        ("x = rb'\n", "line 2: a string that does not end"),
        ("x = (1\n", "line 2: unbalanced brackets"),
        ("x = 1)\n", "line 2: unbalanced brackets"),
        ("x = (1]\n", "line 2: unbalanced brackets"),
        ("x = \0\n", "line 2: a NUL byte"),
    ] {
        refuses(ENGINE, &format!("{real}{broken}"), why);
    }
    refuses(
        ENGINE,
        &format!("{real}{}", "(".repeat(10_000)),
        "nesting deeper than Python allows",
    );
}

#[test]
fn every_other_way_of_binding_the_name_is_refused() {
    let real = "def f(prefill_step_size: int = 2048): pass\n";
    for other in [
        "prefill_step_size = 1",
        "prefill_step_size = n // 2",
        "prefill_step_size: int = 0x800",
        "prefill_step_size: int = (2048)",
        "prefill_step_size: int = (\n    2048\n)",
        "prefill_step_size: int = -1",
        "prefill_step_size: int =",
        "prefill_step_size = a = 1",
        "a = prefill_step_size = 1",
        "prefill_step_size += 1",
        "prefill_step_size <<= 1",
        "prefill_step_size //= 2",
        "prefill_step_size, a = 1, 2",
        "a, prefill_step_size = 1, 2",
        "(prefill_step_size) = 1",
        "(prefill_step_size): int = 1",
        "[a, (prefill_step_size, b)] = c",
        "*prefill_step_size, a = b",
        "print(prefill_step_size := 1)",
        "g = lambda prefill_step_size=1: 2",
        "g(lambda x: x, prefill_step_size=1)",
        "def g(a=lambda x: x, prefill_step_size=1): pass",
        "def g(a: lambda b, prefill_step_size: int = 1): pass",
        "def g(prefill_step_size: lambda a, b: 0 = 1): pass",
        "while lambda: prefill_step_size: int = 1",
        "match: prefill_step_size = 1",
        "case [1]: prefill_step_size: int = 1",
        "if x: prefill_step_size: int = 1",
        "class C: prefill_step_size: int = 1",
        "x = 1; prefill_step_size: int = 1",
        "if x: pass\nelse: prefill_step_size = 1",
        "try: prefill_step_size: Callable[[int], int] = 1\nfinally: pass",
        "match a:\n    case -1 | b.c as d: e = 1; prefill_step_size = 1",
        "class C(B, metaclass=M): a = 1; prefill_step_size: int = 1",
        "if\u{e9}: prefill_step_size = 1",
        "type prefill_step_size = int",
        "import prefill_step_size",
        "import a as prefill_step_size",
        "from a import (\n    b,\n    prefill_step_size,\n)",
        "with a as prefill_step_size: pass",
        "with a as (b, prefill_step_size): pass",
        "for prefill_step_size in a: pass",
        "for a, (b, prefill_step_size) in c: pass",
        "for a[0], prefill_step_size in c: pass",
        "for a[b(i, inner)].c, *prefill_step_size in c: pass",
        "a = [0 for prefill_step_size in b]",
        "global prefill_step_size",
        "del prefill_step_size",
        "def prefill_step_size(): pass",
        "class prefill_step_size: pass",
        "prefill_step_size: int = 1; prefill_step_size: int = 2",
        "def g(prefill_step_size=1): prefill_step_size: int = 2",
    ] {
        refuses(GENERATE, &format!("{real}{other}\n"), "line ");
    }
}

#[test]
fn a_refused_value_is_quoted_as_it_is_written() {
    for (source, quoted) in [
        (
            "f(\"a\", b)  # c",
            "is not a plain number but `f(\"a\", b)`",
        ),
        ("(\n    512\n)", "is not a plain number but `(…`"),
        (
            "",
            "has no value behind its `=`: `PROMPT_PROCESSING_CHUNK_SIZE =`",
        ),
        (
            "B = 4096",
            "shares its value with another name: `PROMPT_PROCESSING_CHUNK_SIZE = B = 4096`",
        ),
        ("2048_", "is not a plain number but `2048_`"),
        ("2__048", "is not a plain number but `2__048`"),
        ("0512", "is not a plain number but `0512`"),
    ] {
        let source = format!("PROMPT_PROCESSING_CHUNK_SIZE = {source}\n");
        refuses(ENGINE, &source, quoted);
    }
    let twice = "PROMPT_PROCESSING_CHUNK_SIZE = 512\nPROMPT_PROCESSING_CHUNK_SIZE *= 2\n";
    let whole = "would override the edit: `PROMPT_PROCESSING_CHUNK_SIZE *= 2`";
    refuses(ENGINE, twice, whole);
    let sum = "1 + ".repeat(100);
    let cut = format!("`{}…`", &sum[..120]);
    refuses(
        ENGINE,
        &format!("PROMPT_PROCESSING_CHUNK_SIZE = {sum}1"),
        &cut,
    );
}
