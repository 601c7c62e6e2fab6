//! Python in which settings and decoys are woven together, and where the settings are.

use std::ops::Range;

use lmpatch::patch::settings::{SIZES, Setting, Site};
use lmpatch::patch::sites::locate;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::laws;

/// A source, and the literals in it that are the setting.
#[derive(Debug, Clone)]
pub struct Woven {
    pub source: Vec<u8>,
    planted: Vec<(Range<usize>, u64)>,
}

impl Woven {
    fn is_located(&self, setting: &'static Setting) {
        let shown = String::from_utf8_lossy(&self.source);
        let sites = locate(setting, &self.source).expect(&shown);
        let place = |site: Site| (site.range, site.value, site.line);
        let found: Vec<_> = sites.into_iter().map(place).collect();
        let line = |at| {
            let before = String::from_utf8_lossy(&self.source[..at]).replace("\r\n", "\n");
            1 + before.matches(['\r', '\n']).count()
        };
        let planted =
            |(range, value): &(Range<usize>, u64)| (range.clone(), *value, line(range.start));
        let wanted: Vec<_> = self.planted.iter().map(planted).collect();
        assert_eq!(found, wanted, "\n{shown}");
    }

    /// Also where the size is one that a site has already, in whatever way it is written.
    pub fn keeps_the_laws(&self, setting: &'static Setting, size: u64) {
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
            let start = source.len();
            source.extend_from_slice(literal.as_bytes());
            planted.push((start..source.len(), value.parse().unwrap()));
            source.extend_from_slice(rest.as_bytes());
        }
        Self { source, planted }
    }
}

/// A file with the constant, once.
pub fn constant_file() -> BoxedStrategy<Woven> {
    let name = "PROMPT_PROCESSING_CHUNK_SIZE";
    let blocks = &["", "if a:\n", "def d():\n", "class D:\n"];
    let decoys = || many(wrapped(filled(DECOYS, name), blocks), 0..6);
    let own_blocks = &["", "if a:\n", "try:\n", "for a in b:\n", "with a as b:\n"];
    let site = wrapped(filled(CONSTANTS, name), own_blocks);
    file(joined([decoys(), site, decoys()]))
}

/// A file of before the constant: the parameter of one method, once, and its name in other classes.
pub fn parameter_file() -> BoxedStrategy<Woven> {
    let name = "chunk_size";
    let others = [DECOYS, PARAMETERS_OF_OTHERS].concat();
    let other = || unplanted(filled(&others, name));
    let outside = || many(wrapped(other(), &["", "if a:\n", "class D:\n"]), 0..4);
    let blocks = &["", "if a:\n", "def d(self):\n"];
    let inside = || many(wrapped(filled(DECOYS, name), blocks), 0..4);
    let site = wrapped(filled(PARAMETERS, name), &["", "if a:\n", "try:\n"]);
    let class = joined([inside(), site, inside()])
        .prop_map(|body| format!("class CacheWrapper(Base, key=1):\n{}", indented(&body)));
    file(joined([outside(), class.boxed(), outside()]))
}

/// A file of mlx-lm: one site or more, of any kind, anywhere.
pub fn generate_file() -> BoxedStrategy<Woven> {
    let name = "prefill_step_size";
    let blocks = &[
        "",
        "if a:\n",
        "try:\n",
        "def d(self):\n",
        "async def d():\n",
        "class D(a, b=1):\n",
    ];
    let sites = [PARAMETERS, FIELDS].concat();
    let site = || filled(&sites, name);
    let no_site = filled(&[DECOYS, UNSET].concat(), name);
    let either = prop_oneof![no_site, site()].boxed();
    let rest = many(wrapped(either, blocks), 0..8);
    file(joined([rest, wrapped(site(), blocks)]))
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

fn joined<const N: usize>(texts: [BoxedStrategy<String>; N]) -> BoxedStrategy<String> {
    Vec::from(texts).prop_map(|texts| texts.concat()).boxed()
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
    let parts = (select(templates.to_vec()), select(ANNOTATIONS), literal());
    parts
        .prop_map(move |(template, annotation, literal)| {
            let text = template.replace("@T", annotation).replace("@L", &literal);
            text.replace("@N", name)
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
