//! The reader: which literals are the setting, told with literals. `@N` stands for the setting's name.

use lmpatch::patch::settings::{SETTINGS, Setting};
use lmpatch::patch::sites::locate;

const ENGINE: &Setting = &SETTINGS[0];
const GENERATE: &Setting = &SETTINGS[1];

fn named(setting: &Setting, text: &str) -> String {
    text.replace("@N", setting.forms[0].0)
}

/// Fails unless the sites are these, each with its owner, line and value.
#[track_caller]
fn has(setting: &Setting, source: &str, expected: &[(&str, usize, u64)]) {
    bytes_have(setting, named(setting, source).as_bytes(), expected);
}

#[track_caller]
fn bytes_have(setting: &Setting, source: &[u8], expected: &[(&str, usize, u64)]) {
    let shown = String::from_utf8_lossy(source);
    let sites = locate(setting, source).expect(&shown);
    let found = sites.iter().map(|s| (s.owner.as_str(), s.line, s.value));
    assert_eq!(found.collect::<Vec<_>>(), expected, "{shown}");
}

#[track_caller]
fn refuses(setting: &Setting, source: &str, why: &str) {
    let (source, why) = (named(setting, source), named(setting, why));
    let refusal = locate(setting, source.as_bytes()).expect_err(&source);
    let has_why = refusal.contains(&why);
    assert!(has_why, "{refusal:?} has no {why:?}: {source}");
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
    ] {
        let parameter = format!("def f(@N: {annotation} = 2048): pass\n");
        has(GENERATE, &parameter, &[("f", 1, 2048)]);
        let field = format!("class C:\n    @N: {annotation} = 7\n");
        has(GENERATE, &field, &[("C", 2, 7)]);
    }
    let commented = "def f(@N: int # a comment with = 5\n = 2048): pass\n";
    has(GENERATE, commented, &[("f", 2, 2048)]);
}

#[test]
fn parameters_are_found_wherever_definitions_are() {
    for (source, line, value) in [
        ("def f(a, *, @N=1): pass", 1, 1),
        ("async def f(a=(1, 2), /, @N=2, **k): pass", 1, 2),
        ("def f[T: (int, str)](\n  x: T,\n  @N = 3,\n): pass", 3, 3),
    ] {
        has(GENERATE, source, &[("f", line, value)]);
    }
    has(
        GENERATE,
        "class A:\n  class B:\n    def f(self, @N=6):\n      def g(@N=7): pass\n  def h(self, @N=8): pass\n@N: int = 9\n",
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
    let real = "def f(@N: int = 2048): pass\n";
    for decoy in [
        "f(@N=1)",
        "f(1, @N = 1,)",
        "# @N: int = 1",
        "'''@N: int = 1\n'''",
        "\"@N: int = 1\"",
        "f'{x} @N: int = 1'",
        "rb'''\\''' @N: int = 1'''",
        "'it\\'s @N: int = 1'",
        "x = y[@N:1]",
        "x = {@N: 1}",
        "if @N: x = 1",
        "while @N == 1: pass",
        "assert @N <= 1 != 2",
        "my_@N: int = 1",
        "@N_2: int = 1",
        "self.@N = 1",
        "self.@N: int = 1",
        "@N: int",
        "def g(@N: int): pass",
        "def g(@N: Optional[int] = None): pass",
        "def g(x: f(@N=1)): pass",
        "class C(@N=1): pass",
        "@deco(@N=1)\ndef g(): pass",
        "print(f(x)(@N=1))",
        "x = lambda: @N == 1",
        "y = map(lambda i: x[@N:], z)",
        "y = zeros((@N, n), dtype=t)",
    ] {
        has(GENERATE, &format!("{real}{decoy}\n"), &[("f", 1, 2048)]);
    }
}

#[test]
fn the_constant_is_found_in_every_form() {
    for (text, line, value) in [
        ("@N = 512\n", 1, 512),
        ("@N=512", 1, 512),
        ("@N = 2_048; x = 1  # tokens\n", 1, 2048),
        ("@N: Final[int] = 2048\n", 1, 2048),
        ("@N = \\\n  512\n", 2, 512),
        ("try:\n    @N = 512\nfinally:\n    pass\n", 2, 512),
        ("'''@N = 1'''\r\n@N = 512\r\n", 2, 512),
        ("# one\r# two\r@N = 512\r", 3, 512),
    ] {
        let expected = [("<module>", line, value)];
        has(ENGINE, text, &expected);
        has(ENGINE, &format!("\u{feff}{text}"), &expected);
    }
    let latin_1 = b"# caf\xE9\nPROMPT_PROCESSING_CHUNK_SIZE = 512\nx = '\xE9'\n";
    bytes_have(ENGINE, latin_1, &[("<module>", 2, 512)]);
}

#[test]
fn engines_from_before_the_constant_have_a_parameter() {
    let method = |parameter: &str, body: &str| {
        format!("class CacheWrapper:\n    def _prefill(self, {parameter}):\n        {body}\n")
    };
    let plain = method("chunk_size: int = 512", "pass");
    has(ENGINE, &plain, &[("CacheWrapper._prefill", 2, 512)]);
    let used = method("chunk_size=512", "current_chunk_size = min(chunk_size, 9)");
    has(ENGINE, &used, &[("CacheWrapper._prefill", 2, 512)]);

    let elsewhere = "class Other:\n    def f(self, chunk_size: int = 1): pass\ndef g(chunk_size: int = 2): pass\n";
    let both = elsewhere.to_owned() + &plain;
    has(ENGINE, &both, &[("CacheWrapper._prefill", 5, 512)]);
    let none = "no definition of @N with an integer value";
    refuses(ENGINE, elsewhere, none);

    // The engine of 2025-01-23 gave the parameter a value again, so that its default decided nothing.
    let overridden = method("chunk_size: int = 512", "chunk_size = 512");
    let why = "line 3: chunk_size is set here in a way";
    refuses(ENGINE, &overridden, why);
    let twice = plain + "    def g(self, chunk_size=1): pass\n";
    refuses(ENGINE, &twice, "line 4: chunk_size is set again");
}

#[test]
fn the_constant_comes_first_and_must_decide_alone() {
    let engine = "@N = 512\nclass CacheWrapper:\n    def f(self, chunk_size: int = @N): pass\n";
    has(ENGINE, engine, &[("<module>", 1, 512)]);
    refuses(ENGINE, &engine.replace("= @N)", "= 512)"), "has both");
}

#[test]
fn unfamiliar_forms_are_refused_and_named() {
    for (source, why) in [
        ("@N = 2\nmatch 99:\n  case(@N):\n    pass\n", "line 3"),
        ("@N = 2\nmatch 99:\n  case[@N]:\n    pass\n", "line 3"),
        ("@N = 1\n@N = 2\n", "line 2: @N is set again"),
        ("@N = 1\nprint(@N := 2)\n", "line 2"),
        ("@N = 1\ndef f():\n    @N = 2\n", "line 3"),
    ] {
        refuses(ENGINE, source, why);
    }
    let why = "line 1: a line that begins with a backslash";
    refuses(ENGINE, "\\\ndef f():\n @N = 2048\n", why);
    let why = "line 1: @N shares its value with another name: `A = @N = 1`";
    refuses(ENGINE, "A = @N = 1\n", why);
    let why = "line 2: @N is set here in a way that would override the edit: `@N *= 2`";
    refuses(ENGINE, "@N = 1\n@N *= 2\n", why);
    let why = "line 1: @N is not a plain number but `None`";
    refuses(ENGINE, "@N: int = None\n", why);
    let parameter = "def f(@N: int = 1):";
    let two = format!("{parameter} pass\ndef g(@N=DEFAULT): pass\n");
    for (source, why) in [
        (&*two, "line 2"),
        (&format!("{parameter}\n    @N = 2\n"), "line 2"),
        (&format!("{parameter}\n    @N = None\n"), "line 2"),
        ("f(@N=1)\n", "no definition of @N"),
        ("", "no definition of @N"),
    ] {
        refuses(GENERATE, source, why);
    }
}

#[test]
fn what_python_could_not_read_is_refused() {
    for (broken, why) in [
        ("x = 'a\n", "line 2: a string that does not end"),
        ("x = '''a\n", "line 2: a string that does not end"),
        ("x = \"\"\"a \" b\n", "line 2: a string that does not end"),
        ("x = rb'\n", "line 2: a string that does not end"),
        ("x = (1\n", "line 2: unbalanced brackets"),
        ("x = 1)\n", "line 2: unbalanced brackets"),
        ("x = (1]\n", "line 2: unbalanced brackets"),
        ("x = \0\n", "line 2: a NUL byte"),
        (&"(".repeat(10_000), "nesting deeper than Python allows"),
    ] {
        refuses(ENGINE, &format!("@N = 512\n{broken}"), why);
    }
}

#[test]
fn every_other_way_of_binding_the_name_is_refused() {
    let real = "def f(@N: int = 2048): pass\n";
    for other in [
        "@N = 1",
        "@N = n // 2",
        "@N: int = 0x800",
        "@N: int = (2048)",
        "@N: int = (\n    2048\n)",
        "@N: int = -1",
        "@N: int =",
        "@N = a = 1",
        "a = @N = 1",
        "@N += 1",
        "@N <<= 1",
        "@N //= 2",
        "@N, a = 1, 2",
        "a, @N = 1, 2",
        "(@N) = 1",
        "(@N): int = 1",
        "[a, (@N, b)] = c",
        "*@N, a = b",
        "print(@N := 1)",
        "g = lambda @N=1: 2",
        "g(lambda x: x, @N=1)",
        "def g(a=lambda x: x, @N=1): pass",
        "def g(a: lambda b, @N: int = 1): pass",
        "def g(@N: lambda a, b: 0 = 1): pass",
        "while lambda: @N: int = 1",
        "match: @N = 1",
        "case [1]: @N: int = 1",
        "if x: @N: int = 1",
        "class C: @N: int = 1",
        "x = 1; @N: int = 1",
        "if x: pass\nelse: @N = 1",
        "try: @N: Callable[[int], int] = 1\nfinally: pass",
        "match a:\n    case -1 | b.c as d: e = 1; @N = 1",
        "class C(B, metaclass=M): a = 1; @N: int = 1",
        "if\u{e9}: @N = 1",
        "type @N = int",
        "import @N",
        "import a as @N",
        "from a import (\n    b,\n    @N,\n)",
        "with a as @N: pass",
        "with a as (b, @N): pass",
        "for @N in a: pass",
        "for a, (b, @N) in c: pass",
        "for a[0], @N in c: pass",
        "for a[b(i, inner)].c, *@N in c: pass",
        "a = [0 for @N in b]",
        "global @N",
        "del @N",
        "def @N(): pass",
        "class @N: pass",
        "@N: int = 1; @N: int = 2",
        "def g(@N=1): @N: int = 2",
    ] {
        refuses(GENERATE, &format!("{real}{other}\n"), "line ");
    }
}

#[test]
fn a_refused_value_is_quoted_as_it_is_written() {
    let sum = "1 + ".repeat(100) + "1";
    for (value, quoted) in [
        ("4 * 512", "4 * 512"),
        ("int(x)", "int(x)"),
        ("DEFAULT", "DEFAULT"),
        ("-512", "-512"),
        ("512.0", "512.0"),
        ("512 if x else 1", "512 if x else 1"),
        ("1, 2", "1, 2"),
        ("None", "None"),
        ("99999999999999999999", "99999999999999999999"),
        ("f(\"a\", b)  # c", "f(\"a\", b)"),
        ("(\n    512\n)", "(…"),
        ("2048_", "2048_"),
        ("2__048", "2__048"),
        ("0512", "0512"),
        (&sum, &format!("{}…", &sum[..120])),
    ] {
        let why = format!("line 1: @N is not a plain number but `{quoted}`");
        refuses(ENGINE, &format!("@N = {value}\n"), &why);
    }
    let why = "has no value behind its `=`: `@N =`";
    refuses(ENGINE, "@N = \n", why);
    let why = "shares its value with another name: `@N = B = 4096`";
    refuses(ENGINE, "@N = B = 4096\n", why);
}
