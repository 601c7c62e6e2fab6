//! What holds for any bytes, and for any Python in which settings and decoys are woven together.

use std::ops::Range;
use std::time::Duration;

use lmpatch::patch::original::{Fingerprint, Proof, parse_record};
use lmpatch::patch::settings::{SETTINGS, SIZES, Setting};
use lmpatch::patch::sites::locate;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::Union;

use crate::support::home::record_row;
use crate::support::{laws, nasty};

/// No regression files: they would appear beside the sources.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        cases: 512,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_read_without_panic(bytes in any_bytes(), size in SIZES) {
        for setting in &SETTINGS {
            laws::set_and_revert(setting, &bytes, size);
        }
    }

    #[test]
    fn the_sites_of_a_constant_are_those_planted(woven in constant_file(), size in SIZES) {
        woven.keeps_the_laws(&SETTINGS[0], size);
    }

    #[test]
    fn the_sites_of_a_method_parameter_are_those_planted(woven in parameter_file(), size in SIZES) {
        woven.keeps_the_laws(&SETTINGS[0], size);
    }

    #[test]
    fn the_sites_of_mlx_lm_are_those_planted(woven in generate_file(), size in SIZES) {
        woven.keeps_the_laws(&SETTINGS[1], size);
    }

    #[test]
    fn a_nul_byte_anywhere_is_refused(woven in generate_file(), at in any::<Index>()) {
        let mut source = woven.source;
        let at = at.index(source.len() + 1);
        source.insert(at, 0);
        let refusal = locate(&SETTINGS[1], &source).unwrap_err();
        prop_assert!(refusal.contains("NUL"), "{}", refusal);
    }

    #[test]
    fn any_bytes_are_a_record_without_panic(bytes in vec(any::<u8>(), 0..500)) {
        prop_assert!(parse_record(&bytes, PATH).is_empty());
    }

    #[test]
    fn a_row_of_a_record_is_found_among_bad_ones(
        before in vec(bad_row(), 0..8),
        after in vec(bad_row(), 0..8),
        content in vec(any::<u8>(), 0..50),
        end in select(vec!["\n", "\r\n", "\r"]),
        is_quoted in any::<bool>(),
    ) {
        let path = if is_quoted { format!("\"{PATH}\"") } else { PATH.to_owned() };
        let good = record_row(&path, &content).into_bytes();
        let rows = [before, vec![good], after].concat();
        let found = parse_record(&rows.join(end.as_bytes()), PATH);
        prop_assert_eq!(found, [(Proof::Record, Fingerprint::of(&content))]);
    }
}

/// `RECORD` proves these, but an edit writes over what the stock values alone do not bring back.
#[test]
fn what_stock_values_do_not_give_back_needs_a_receipt() {
    for source in [
        "def generate_step(prefill_step_size: int = 2_048): pass\n",
        "def generate_step(prefill_step_size: int = 1024): pass\n",
        "def generate_step(prefill_step_size=2048): pass\ndef f(prefill_step_size=512): pass\n",
    ] {
        let evidence = vec![(Proof::Record, Fingerprint::of(source.as_bytes()))];
        let file = laws::understand(&SETTINGS[1], source.as_bytes(), &evidence, None);
        let after = laws::set(&file, 4096);
        let edited = laws::understand(&SETTINGS[1], &after, &evidence, None);
        let is_put_back = laws::revert(&edited).is_ok_and(|bytes| bytes == source.as_bytes());
        assert!(
            is_put_back || file.source().unwrap().needs_receipt,
            "{source}"
        );
    }
}

#[test]
fn nasty_sources_are_read_to_their_end() {
    for (name, source) in nasty::sources(1 << 16) {
        eprintln!("{name}");
        read_and_plan(&source);
    }
}

/// Run it optimised: `cargo test --release --test it properties:: -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, and a long one"]
fn time_is_linear_in_size() {
    if processor_time().is_none() {
        return eprintln!("this system does not say what a thread has had of the processor");
    }
    let mut worse = Vec::new();
    for ((name, quarter), (_, whole)) in nasty::sources(1 << 21)
        .into_iter()
        .zip(nasty::sources(1 << 23))
    {
        let (short, long) = (measure(&quarter), measure(&whole));
        // Below ten milliseconds the source was refused at its start, and a ratio says nothing.
        let ratio = long.as_secs_f64() / short.max(Duration::from_millis(10)).as_secs_f64();
        eprintln!("{name:35} 2 MiB {short:>10.1?}, 8 MiB {long:>10.1?}, ratio {ratio:.1}");
        worse.extend((ratio >= 12.0).then_some(name));
    }
    assert!(
        worse.is_empty(),
        "four times the size takes twelve times as long or more: {worse:?}"
    );
}

fn measure(source: &[u8]) -> Duration {
    let start = processor_time().unwrap();
    read_and_plan(source);
    processor_time().unwrap().saturating_sub(start)
}

/// What this thread has had of the processor: how busy the machine is does not count.
fn processor_time() -> Option<Duration> {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(spent.split(' ').next()?.parse().ok()?))
}

fn read_and_plan(source: &[u8]) {
    for setting in &SETTINGS {
        laws::set_and_revert(setting, source, 4096);
    }
}

// ---- any bytes ------------------------------------------------------------------------------------------

/// Noise, and noise made of what the reader reacts to.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let noise = vec(any::<u8>(), 0..300);
    let words = vec(select(WORDS.to_vec()), 0..60).prop_map(|words| words.concat().into_bytes());
    let both =
        (words.clone(), noise.clone(), words.clone()).prop_map(|(a, b, c)| [a, b, c].concat());
    prop_oneof![noise, words, both]
}

const WORDS: &[&str] = &[
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\n",
    "\r",
    "\r\n",
    " ",
    "    ",
    "\t",
    "\x0c",
    "#",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    ";",
    ",",
    "=",
    "==",
    ":=",
    "+=",
    "->",
    "*",
    "**",
    "/",
    ".",
    "...",
    "@",
    "def ",
    "class ",
    "lambda ",
    "async ",
    "if x: ",
    "else: ",
    "f(",
    "prefill_step_size",
    "chunk_size",
    "PROMPT_PROCESSING_CHUNK_SIZE",
    "CacheWrapper",
    ": int = ",
    "2048",
    "512",
    "2_048",
    "0x800",
    "0",
    "1.5",
    "None",
    "rb'",
    "f\"",
    "\u{feff}",
    "é",
    "\0",
    "def f(prefill_step_size=",
    "class CacheWrapper:\n    def f(self, chunk_size=",
    "PROMPT_PROCESSING_CHUNK_SIZE = 512\n",
    "2048):\n",
    "speculative_generate_step",
];

// ---- woven sources --------------------------------------------------------------------------------------

/// A source, and the literals in it that are the setting.
#[derive(Debug, Clone)]
struct Woven {
    source: Vec<u8>,
    planted: Vec<(Range<usize>, u64)>,
}

impl Woven {
    fn is_located(&self, setting: &'static Setting) {
        let shown = String::from_utf8_lossy(&self.source);
        let sites =
            locate(setting, &self.source).unwrap_or_else(|refusal| panic!("{refusal}:\n{shown}"));
        let found: Vec<_> = sites
            .iter()
            .map(|site| (site.range.clone(), site.value))
            .collect();
        assert_eq!(found, self.planted, "\n{shown}");
        for site in &sites {
            let before = String::from_utf8_lossy(&self.source[..site.range.start]);
            assert_eq!(
                site.line,
                1 + before.replace("\r\n", "\n").matches(['\r', '\n']).count(),
                "\n{shown}"
            );
        }
    }

    /// Also where the size is one that a site has already, in whatever way it is written.
    fn keeps_the_laws(&self, setting: &'static Setting, size: u64) {
        self.is_located(setting);
        laws::set_and_revert(setting, &self.source, size);
        laws::set_and_revert(setting, &self.source, self.planted[0].1);
    }

    /// Takes the marks out of a source: `«0x800|2048»` is a planted literal and its value.
    fn unmark(marked: &str) -> Self {
        let mut parts = marked.split('«');
        let mut source = parts.next().unwrap().as_bytes().to_vec();
        let mut planted = Vec::new();
        for part in parts {
            let (literal, rest) = part.split_once('|').unwrap();
            let (value, rest) = rest.split_once('»').unwrap();
            planted.push((
                source.len()..source.len() + literal.len(),
                value.parse().unwrap(),
            ));
            source.extend_from_slice(literal.as_bytes());
            source.extend_from_slice(rest.as_bytes());
        }
        Self { source, planted }
    }
}

/// A file with the constant, once.
fn constant_file() -> BoxedStrategy<Woven> {
    let name = "PROMPT_PROCESSING_CHUNK_SIZE";
    let decoys = || {
        many(
            wrapped(
                filled(DECOYS, name),
                &["", "if a:\n", "def d():\n", "class D:\n"],
            ),
            0..6,
        )
    };
    let site = wrapped(
        filled(CONSTANTS, name),
        &["", "if a:\n", "try:\n", "for a in b:\n", "with a as b:\n"],
    );
    file((decoys(), site, decoys()).prop_map(|(before, site, after)| before + &site + &after))
}

/// A file of before the constant: the parameter of one method, once, and its name in other classes.
fn parameter_file() -> BoxedStrategy<Woven> {
    let name = "chunk_size";
    let others = [DECOYS, PARAMETERS_OF_OTHERS].concat();
    let outside = || {
        many(
            wrapped(
                unplanted(filled(&others, name)),
                &["", "if a:\n", "class D:\n"],
            ),
            0..4,
        )
    };
    let inside = || {
        many(
            wrapped(filled(DECOYS, name), &["", "if a:\n", "def d(self):\n"]),
            0..4,
        )
    };
    let site = wrapped(filled(PARAMETERS, name), &["", "if a:\n", "try:\n"]);
    let class = (inside(), site, inside()).prop_map(|(before, site, after)| {
        format!(
            "class CacheWrapper(Base, key=1):\n{}",
            indented(&format!("{before}{site}{after}"))
        )
    });
    file((outside(), class, outside()).prop_map(|(before, class, after)| before + &class + &after))
}

/// A file of mlx-lm: one site or more, of any kind, anywhere.
fn generate_file() -> BoxedStrategy<Woven> {
    let name = "prefill_step_size";
    let headers = &[
        "",
        "if a:\n",
        "try:\n",
        "def d(self):\n",
        "async def d():\n",
        "class D(a, b=1):\n",
    ];
    let sites = [PARAMETERS, FIELDS].concat();
    let either = Union::new([
        filled(&[DECOYS, UNSET].concat(), name),
        filled(&sites, name),
    ])
    .boxed();
    let rest = many(wrapped(either, headers), 0..8);
    let site = wrapped(filled(&sites, name), headers);
    file((site, rest).prop_map(|(site, rest)| rest + &site))
}

/// Gives a marked text the line ends, the indentation and the edges that files have.
fn file(marked: impl Strategy<Value = String> + 'static) -> BoxedStrategy<Woven> {
    let start = select(vec![
        "",
        "\u{feff}",
        "\u{feff}# coding: utf-8\n",
        "#!/usr/bin/env python\n",
    ]);
    let line_end = select(vec!["\n", "\r\n", "\r"]);
    let indent = select(vec!["    ", "\t", "  "]);
    (marked, start, line_end, indent, any::<bool>())
        .prop_map(|(text, start, line_end, indent, ends)| {
            let text = format!("{start}{}", text.replace("    ", indent));
            let text = if ends {
                &text
            } else {
                text.trim_end_matches('\n')
            };
            Woven::unmark(&text.replace('\n', line_end))
        })
        .boxed()
}

fn many(text: BoxedStrategy<String>, count: Range<usize>) -> BoxedStrategy<String> {
    vec(text, count).prop_map(|texts| texts.concat()).boxed()
}

/// The text as it is, or as the block of one of the headers.
fn wrapped(text: BoxedStrategy<String>, headers: &[&'static str]) -> BoxedStrategy<String> {
    (text, select(headers.to_vec()))
        .prop_map(|(text, header)| match header {
            "" => text,
            "try:\n" => format!("try:\n{}    pass\nfinally:\n    pass\n", indented(&text)),
            _ => format!("{header}{}    pass\n", indented(&text)),
        })
        .boxed()
}

fn indented(text: &str) -> String {
    text.split_inclusive('\n')
        .flat_map(|line| ["    ", line])
        .collect()
}

/// One of the templates: `@N` stands for the name, `@L` for a planted literal, `@T` for an annotation.
fn filled(templates: &[&'static str], name: &'static str) -> BoxedStrategy<String> {
    (
        select(templates.to_vec()),
        select(ANNOTATIONS.to_vec()),
        literal(),
    )
        .prop_map(move |(template, annotation, literal)| {
            template
                .replace("@T", annotation)
                .replace("@L", &literal)
                .replace("@N", name)
        })
        .boxed()
}

/// The same text, where none of its literals is one that should be found.
fn unplanted(text: BoxedStrategy<String>) -> BoxedStrategy<String> {
    text.prop_map(|text| String::from_utf8(Woven::unmark(&text).source).unwrap())
        .boxed()
}

/// A decimal number, grouped or not, marked.
fn literal() -> BoxedStrategy<String> {
    let value = prop_oneof![Just(512), Just(2048), SIZES, 0..u64::MAX];
    (value, any::<bool>())
        .prop_map(|(value, is_grouped)| match value / 1000 {
            thousands @ 1.. if is_grouped => {
                format!("«{thousands}_{:03}|{value}»", value % 1000)
            }
            _ => format!("«{value}|{value}»"),
        })
        .boxed()
}

const ANNOTATIONS: &[&str] = &[
    "int",
    "Optional[int]",
    "\"int\"",
    "'Optional[int]'",
    "int | None",
    "Annotated[int, Field(gt=0)]",
    "Annotated[int, Field(@N=3)]",
    "Annotated[\n        int,\n        Field(gt=0),  # @N: int = 1\n    ]",
    "Literal[512, 2048]",
    "Callable[[int, int], int]",
    "typing.Union[int, None]",
    "int if a == 2 else str",
    "a[1:2, b]",
];

const CONSTANTS: &[&str] = &[
    "@N = @L\n",
    "@N=@L\n",
    "@N: @T = @L\n",
    "@N\t:\t@T\t=\t@L\t# @N = 4\n",
    "@N = @L; b = 2\n",
    "@N \\\n    = \\\n    @L\n",
];

const PARAMETERS: &[&str] = &[
    "def f(self, @N=@L): return @N\n",
    "def f(self, @N: @T = @L):\n    pass\n",
    "def f(@N: @T = @L, *a, **k) -> @T: pass\n",
    "async def f(a, /, b: int = 3, *, @N: @T = @L) -> dict[str, int]:\n    return {@N: 2048}\n",
    "def f(\n    self,\n    a: dict = {\"@N\": 1, @N: 2},  # @N: int = 3\n    @N: @T = @L,\n):\n    pass\n",
    "def f(\n    self,\n    @N: @T = @L\n) -> None:\n    pass\n",
    "def f(\n    self,\n    @N: @T =\n    @L  # @N=1\n    , a=2):\n    pass\n",
    "@d(@N=3)\n@e\ndef f(self, a=g(@N=4), @N=@L, b=lambda @N2=1: @N2): return @N\n",
    "def f(self, \\\n    @N \\\n    : @T \\\n    = @L): pass\n",
    "def f[X: int](self, @N\t:\t@T\t=\t@L):\n    pass\n",
    "async \\\n def f(@N=@L): pass\n",
];

/// What is a site where every annotated definition is one.
const FIELDS: &[&str] = &[
    "@N: @T = @L\n",
    "class C:\n    a: int = 1\n    @N: @T = @L  # @N: int = 2\n",
];

/// What gives no value, or none that decides.
const UNSET: &[&str] = &[
    "def f(self, @N: @T): pass\n",
    "def f(self, @N: @T = None): pass\n",
    "def f(\n    self, @N: @T = None  # 5\n): pass\n",
    "class C:\n    @N: @T\n",
    "@N: @T = None\n",
];

/// What is no site of a method of `CacheWrapper`.
const PARAMETERS_OF_OTHERS: &[&str] = &[
    "def f(@N: @T = @L): pass\n",
    "class Other:\n    def f(self, @N: @T = @L): pass\n",
    "class CacheWrapperBase:\n    def f(self, @N=@L): pass\n",
    "class C:\n    class CacheWrapper: pass\n    def f(self, @N=@L): pass\n",
    "a = lambda @N=@L: @N\n",
];

const DECOYS: &[&str] = &[
    "# @N = 1\n",
    "# def f(@N: int = 2):\n",
    "\"\"\"def f(@N: int = 3):\n    @N = 4\n\n    @N: int = 5\n\"\"\"\n",
    "a = '''\n@N = 6\n\\'''@N: int = 7\n'''\n",
    "a = '@N = 8\\'; @N = 9'; b = \"\\\\\"\n",
    "a = r'\\'; @N = 10'\n",
    "a = 'b\\\n@N = 11'\n",
    "a = f\"{@N=} {f(@N=12)} {{@N: int = 13}} {a:@N=14}\"\n",
    "a = rb'def f(@N=15)' + Rb\"@N: int = 16\"; b = U'@N = 17'\n",
    "MY_@N = 18; _@N: int = 19; @N_ = 20; @N2: int = 21\n",
    "é@N = 22; @Né: int = 23\n",
    "def f(my_@N=24, @N_max: int = 25, *@N, **@Ns): pass\n",
    "f(@N=26)\n",
    "a = f(1, @N=27)[0](b, @N = (28))\n",
    "f(\n    a,\n    @N=29,\n)\n",
    "class E(f(@N=30), @N=31): pass\n",
    "@d(@N=32)\ndef f(): return f(@N=33)\n",
    "if @N == 34: pass\n",
    "a = @N <= 35 != @N >= 36\n",
    "assert @N > 37, @N\n",
    "while @N != 38: break\n",
    "a = b[@N:39]; c[@N: 40] = 41\n",
    "a[@N] = 42; b[@N:43, @N] = 44\n",
    "a = {@N: 45, '@N': 46, **{@N: 47}}\n",
    "a = {\n    @N: 48,\n    'b': @N,\n}\n",
    "a.@N = 49; a.@N: int = 50; @N.a = 51; @N[0]: int = 52\n",
    "a = lambda b: @N == 53\n",
    "a = lambda: f(@N, 54)\n",
    "a = lambda b=@N, *c: {55: @N}\n",
    "def f(a=@N, b: f(@N=56) = 57) -> f(@N=58): pass\n",
    "def f(a: {@N: 59} = {@N: 60}, b: (lambda x: @N) = 61): pass\n",
    "print(@N, a if @N else 62, [@N for b in @N if @N == 63])\n",
    "a = 64; \\\n    f(@N=65)\n",
    "\x0c\n@N(66)\n",
    "match = {@N: 67}\ncase = a; case[@N:68] = case(@N=69)\n",
    "a = (b, @N, 70)[@N:71]\n",
];

// ---- RECORD ---------------------------------------------------------------------------------------------

const PATH: &str = "mlx_lm/generate.py";

/// A row that is no row, or about another file, or proves nothing.
fn bad_row() -> impl Strategy<Value = Vec<u8>> {
    let good = record_row(PATH, b"a");
    let near = vec![
        String::new(),
        format!("{PATH},,"),
        format!("{PATH},sha256=,1"),
        format!("{PATH},sha256=AAAA,1"),
        good.replace("sha256", "md5"),
        good.replace("sha256=", "sha256:"),
        good.replace(",1", ",one"),
        good.replace(",1", ",-1"),
        good.replace(",1", ",99999999999999999999999"),
        good.replace(",1", ""),
        good.replace("mlx_lm/", "../mlx_lm/"),
        good.replace("mlx_lm/", "\"mlx_lm/"),
        format!("x{good}"),
        format!("{good},"),
        record_row("mlx_lm/other.py", b"a"),
    ];
    prop_oneof![
        vec(any::<u8>(), 0..60),
        select(near).prop_map(String::into_bytes)
    ]
}
