//! PURE: Python source → every name that is given a value in it.
//!
//! This is a reader of Python's surface, not a Python parser: it knows strings, comments, brackets,
//! logical lines, `def`, `class` and `lambda`, which is exactly what tells a definition (`name=2048` in a
//! parameter list, `name: int = 2048` anywhere, `NAME = 2048` as a statement) from everything that only
//! looks like one (keyword arguments, comparisons, docstrings, slices, dictionary keys).
//! What it cannot read with certainty it refuses; the limits are CPython's own.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use regex::bytes::Regex;

/// Brackets and scopes nested deeper than this are refused; CPython stops at 200 and 100.
const MAX_DEPTH: usize = 200;

/// One name that is given a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Where the name stands, in bytes.
    pub name: Range<usize>,
    /// The scope it belongs to; see [`Module::owner`].
    pub scope: Option<usize>,
    /// How it is written.
    pub place: Place,
    /// What it is given.
    pub value: Value,
}

/// The form of a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A default in the parameter list of a `def` or `lambda`, annotated or not.
    Parameter,
    /// `name: type = value` outside of a parameter list: a variable or a field.
    Annotated,
    /// `name = value` as a statement.
    Assigned,
}

/// The value of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// One integer literal, in whatever base it is written: where it stands, and what it is.
    Integer(Range<usize>, u64),
    /// Anything else: where it stands.
    Other(Range<usize>),
}

/// A source that was read.
#[derive(Debug)]
pub struct Module<'a> {
    source: &'a [u8],
    scopes: Vec<Scope>,
    /// Every definition, in the order in which their values end.
    pub definitions: Vec<Definition>,
}

impl Module<'_> {
    /// The dotted path of a scope, `BatchGenerator.__init__`; `<module>` for none.
    #[must_use]
    pub fn owner(&self, scope: Option<usize>) -> String {
        let mut names: Vec<_> =
            self.enclosing(scope).map(|scope| String::from_utf8_lossy(bytes(self.source, &scope.name))).collect();
        if names.is_empty() {
            return "<module>".to_owned();
        }
        names.reverse();
        names.join(".")
    }

    /// Whether the innermost class around `scope` is called `class`.
    #[must_use]
    pub fn is_in_class(&self, scope: Option<usize>, class: &str) -> bool {
        self.enclosing(scope)
            .find(|scope| scope.is_class)
            .is_some_and(|scope| bytes(self.source, &scope.name) == class.as_bytes())
    }

    fn enclosing(&self, scope: Option<usize>) -> impl Iterator<Item = &Scope> {
        std::iter::successors(scope.and_then(|id| self.scopes.get(id)), |scope| {
            scope.parent.and_then(|id| self.scopes.get(id))
        })
    }
}

/// Why a source could not be read; `offset` is where, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong.
    pub why: Why,
    /// Where it is wrong, in bytes from the start.
    pub offset: usize,
}

/// What makes a source unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A NUL byte, which no Python source has.
    Nul,
    /// A string that does not end.
    UnterminatedString,
    /// A closing bracket without its opening one, or the reverse.
    UnbalancedBracket,
    /// Nested deeper than Python itself allows.
    TooDeep,
    /// The token pattern did not compile: a defect of lmpatch.
    Pattern,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nul => "a NUL byte, so this is not Python source",
            Self::UnterminatedString => "a string that does not end",
            Self::UnbalancedBracket => "unbalanced brackets",
            Self::TooDeep => "nesting deeper than Python allows",
            Self::Pattern => "a defect in lmpatch's own token pattern",
        })
    }
}

/// Reads `source`. Fails on what Python would not read either. Time is linear in the size.
pub fn read(source: &[u8]) -> Result<Module<'_>, Unreadable> {
    let tokens = tokens(source)?;
    let mut reader = Reader::new(source, &tokens);
    for index in 0..tokens.len() {
        reader.step(index)?;
    }
    reader.finish()
}

/// The value of an integer literal as Python writes it (`2048`, `2_048`, `0x800`), if it is one and fits.
#[must_use]
pub fn integer(literal: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(literal).ok()?;
    let (digits, radix) = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (text.get(2..)?, 16),
        Some("0o") => (text.get(2..)?, 8),
        Some("0b") => (text.get(2..)?, 2),
        _ => (text, 10),
    };
    let grouped = if radix == 10 { digits.to_owned() } else { format!("0{digits}") };
    let misplaced = grouped.starts_with('_') || grouped.ends_with('_') || grouped.contains("__");
    let plain = grouped.replace('_', "");
    // Python has no 0123: only zero itself may start with a zero.
    let padded = radix == 10 && plain.starts_with('0') && plain.bytes().any(|digit| digit != b'0');
    if misplaced || padded || digits.is_empty() || !plain.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    u64::from_str_radix(&plain, radix).ok()
}

// ---- tokens ---------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Number,
    String,
    Newline,
    Op,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a [u8],
    start: usize,
}

impl Token<'_> {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.text.len()
    }

    fn is_op(&self, text: &[u8]) -> bool {
        self.kind == Kind::Op && self.text == text
    }
}

// Strings end where Python's do: a backslash takes the next character with it, also in raw strings, and only
// triple quotes go over a line end. Bytes from 0x80 on are taken as letters, whatever the encoding.
static TOKEN: LazyLock<Result<Regex, regex::Error>> = LazyLock::new(|| {
    Regex::new(
        r#"(?sx-u) \A (?:
          [\x20\t\x0c]+ | \\(?:\r\n|[\r\n]) | \#[^\r\n]*
        | \r\n | [\r\n]
        | (?i:[urbft]|br|rb|fr|rf|tr|rt)?
          (?: """(?:[^\\]|\\.)*?""" | '''(?:[^\\]|\\.)*?'''
            | "(?:[^"\\\r\n]|\\(?:\r\n|.))*" | '(?:[^'\\\r\n]|\\(?:\r\n|.))*' )
        | [A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*
        | \.?[0-9](?:[eE][+-][0-9]|[A-Za-z0-9_.])*
        | ==|!=|<=|>=|->|:= | (?:\*\*|//|>>|<<|[-+*/%&|^@])= | \*\*|//|<<|>>|\.\.\.
        | . )"#,
    )
});

fn tokens(source: &[u8]) -> Result<Vec<Token<'_>>, Unreadable> {
    if let Some(offset) = source.iter().position(|byte| *byte == 0) {
        return Err(Unreadable { why: Why::Nul, offset });
    }
    let Ok(pattern) = TOKEN.as_ref() else {
        return Err(Unreadable { why: Why::Pattern, offset: 0 });
    };
    let mut rest = source.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(source);
    let mut tokens = Vec::with_capacity(rest.len() / 4);
    while !rest.is_empty() {
        let start = source.len() - rest.len();
        let length = plain_length(rest).or_else(|| Some(pattern.find(rest)?.len())).unwrap_or(1);
        let (text, behind) = rest.split_at(length);
        if let Some(kind) = kind(text, behind.first(), start)? {
            tokens.push(Token { kind, text, start });
        }
        rest = behind;
    }
    Ok(tokens)
}

/// The length of a piece that its first bytes tell as the pattern would, at a tenth of the pattern's price.
fn plain_length(rest: &[u8]) -> Option<usize> {
    match rest {
        [b' ', ..] => Some(run(rest, |byte| byte == b' ')),
        [b'#', ..] => Some(run(rest, |byte| !matches!(byte, b'\r' | b'\n'))),
        [b'_' | b'A'..=b'Z' | b'a'..=b'z' | 0x80.., ..] => {
            let length = run(rest, |byte| byte == b'_' || byte.is_ascii_alphanumeric() || byte >= 0x80);
            // Before a quote it may be the prefix of a string.
            (!matches!(rest.get(length), Some(b'"' | b'\''))).then_some(length)
        }
        [b'\n' | b'(' | b')' | b'[' | b']' | b'{' | b'}' | b',', ..] => Some(1),
        [b':' | b'=', next, ..] if *next != b'=' => Some(1),
        _ => None,
    }
}

fn run(rest: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    rest.iter().position(|byte| !belongs(*byte)).unwrap_or(rest.len())
}

/// What a piece of source is, told by its first and last byte; `None` for blanks and comments.
fn kind(text: &[u8], next: Option<&u8>, offset: usize) -> Result<Option<Kind>, Unreadable> {
    let (Some(first), Some(last)) = (text.first(), text.last()) else {
        return Ok(None);
    };
    let kind = match first {
        b' ' | b'\t' | b'\x0c' | b'#' => return Ok(None),
        b'\\' if text.len() > 1 => return Ok(None),
        b'\n' | b'\r' => Kind::Newline,
        _ if matches!(last, b'"' | b'\'') => {
            let quotes = text.iter().filter(|byte| *byte == last).count();
            // `"""` whose end is missing comes out as `""` and one quote more.
            let opened_triple = quotes == 2 && text.ends_with(&[*last, *last]) && next == Some(last);
            if quotes < 2 || opened_triple {
                return Err(Unreadable { why: Why::UnterminatedString, offset });
            }
            Kind::String
        }
        b'0'..=b'9' => Kind::Number,
        b'.' if text.get(1).is_some_and(u8::is_ascii_digit) => Kind::Number,
        b'_' | b'A'..=b'Z' | b'a'..=b'z' | 0x80.. => Kind::Name,
        _ => Kind::Op,
    };
    Ok(Some(kind))
}

fn bytes<'a>(source: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    source.get(range.clone()).unwrap_or_default()
}

// ---- definitions ----------------------------------------------------------------------------------------

#[derive(Debug)]
struct Scope {
    name: Range<usize>,
    is_class: bool,
    parent: Option<usize>,
    indent: usize,
}

/// What the reader is inside of; the bottom of the stack is always the block of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    Block,
    Parameters,
    Lambda,
    Bracket(u8),
}

/// How far one statement or one parameter has been read; numbers are token indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Seen `def` or `class`: the name comes next.
    Header {
        is_class: bool,
    },
    /// Seen `def name`: its parameters come next.
    Signature,
    /// A statement that ends in a colon and may have another behind it on the same line.
    Compound,
    Named(usize),
    Annotated(usize),
    Value {
        name: usize,
        first: usize,
        place: Place,
        chained: bool,
    },
    /// Nothing in the rest of this statement or parameter is a definition.
    Skip,
}

struct Reader<'a, 't> {
    tokens: &'t [Token<'a>],
    stack: Vec<(Frame, State, usize)>,
    /// Ids of the scopes that are open, innermost last.
    open: Vec<usize>,
    line_starts: bool,
    indent: usize,
    module: Module<'a>,
}

impl<'a, 't> Reader<'a, 't> {
    fn new(source: &'a [u8], tokens: &'t [Token<'a>]) -> Self {
        Self {
            tokens,
            stack: vec![(Frame::Block, State::Start, 0)],
            open: Vec::new(),
            line_starts: true,
            indent: 0,
            module: Module { source, scopes: Vec::new(), definitions: Vec::new() },
        }
    }

    fn top(&self) -> (Frame, State) {
        self.stack.last().map_or((Frame::Block, State::Skip), |(frame, state, _)| (*frame, *state))
    }

    fn set(&mut self, new: State) {
        if let Some((_, state, _)) = self.stack.last_mut() {
            *state = new;
        }
    }

    fn step(&mut self, index: usize) -> Result<(), Unreadable> {
        let Some(&token) = self.tokens.get(index) else {
            return Ok(());
        };
        if token.kind == Kind::Newline {
            self.newline(index);
            return Ok(());
        }
        if self.line_starts {
            self.start_line(&token);
        }
        match (token.kind, token.text) {
            (Kind::Op, b"(" | b"[" | b"{") => self.open_bracket(&token)?,
            (Kind::Op, b")" | b"]" | b"}") => self.close_bracket(&token, index)?,
            (Kind::Name, b"lambda") => self.push(Frame::Lambda, &token)?,
            (Kind::Op, b":") if self.top().0 == Frame::Lambda => {
                self.end_item(index);
                self.stack.pop();
            }
            (Kind::Op, b",") if matches!(self.top().0, Frame::Parameters | Frame::Lambda) => {
                self.end_item(index);
            }
            (Kind::Op, b";") if self.top().0 == Frame::Block => self.end_item(index),
            _ => self.advance(index, &token)?,
        }
        Ok(())
    }

    fn newline(&mut self, index: usize) {
        if self.stack.len() == 1 {
            self.end_item(index);
            self.line_starts = true;
        }
    }

    fn start_line(&mut self, token: &Token<'_>) {
        self.line_starts = false;
        self.indent = indent(self.module.source, token.start);
        while let Some(scope) = self.open.last().and_then(|id| self.module.scopes.get(*id)) {
            if scope.indent < self.indent {
                break;
            }
            self.open.pop();
        }
    }

    fn push(&mut self, frame: Frame, token: &Token<'_>) -> Result<(), Unreadable> {
        if self.stack.len() > MAX_DEPTH {
            return Err(Unreadable { why: Why::TooDeep, offset: token.start });
        }
        // Whatever was being named before a bracket (`f(`, `x[`) or a lambda is not defined by it.
        match self.top().1 {
            State::Start => self.set(State::Skip),
            State::Named(name) => self.set(self.not_defined(name)),
            _ => {}
        }
        let start = match frame {
            Frame::Bracket(_) => State::Skip,
            _ => State::Start,
        };
        self.stack.push((frame, start, token.start));
        Ok(())
    }

    fn open_bracket(&mut self, token: &Token<'_>) -> Result<(), Unreadable> {
        let closing = match token.text {
            b"(" => b')',
            b"[" => b']',
            _ => b'}',
        };
        if closing == b')' && self.top() == (Frame::Block, State::Signature) {
            self.set(State::Compound);
            return self.push(Frame::Parameters, token);
        }
        self.push(Frame::Bracket(closing), token)
    }

    fn close_bracket(&mut self, token: &Token<'_>, index: usize) -> Result<(), Unreadable> {
        let closed = match self.top().0 {
            Frame::Parameters => b')',
            Frame::Bracket(closing) => closing,
            Frame::Block | Frame::Lambda => 0,
        };
        if token.text.first() != Some(&closed) {
            return Err(Unreadable { why: Why::UnbalancedBracket, offset: token.start });
        }
        self.end_item(index);
        self.stack.pop();
        Ok(())
    }

    /// Ends a statement or a parameter in front of token `end`.
    fn end_item(&mut self, end: usize) {
        let (frame, state) = self.top();
        if let State::Value { name, first, place, chained } = state {
            let value = self.value(first, end, chained);
            self.define(name, place, value);
        }
        let is_list = !matches!(frame, Frame::Bracket(_));
        self.set(if is_list { State::Start } else { State::Skip });
    }

    fn define(&mut self, name: usize, place: Place, value: Value) {
        if let Some(name) = self.tokens.get(name) {
            let scope = self.open.last().copied();
            self.module.definitions.push(Definition { name: name.range(), scope, place, value });
        }
    }

    /// The tokens `first..end` as a value: an integer literal, in any number of parentheses, or something else.
    fn value(&self, first: usize, end: usize, chained: bool) -> Value {
        let mut tokens = trim(self.tokens.get(first..end).unwrap_or_default());
        let whole = match (tokens.first(), tokens.last()) {
            (Some(start), Some(end)) => start.start..end.range().end,
            _ => 0..0,
        };
        while let [open, inner @ .., close] = tokens
            && open.is_op(b"(")
            && close.is_op(b")")
        {
            tokens = trim(inner);
        }
        match tokens {
            [number] if number.kind == Kind::Number && !chained => match integer(number.text) {
                Some(value) => Value::Integer(number.range(), value),
                None => Value::Other(whole),
            },
            _ => Value::Other(whole),
        }
    }

    fn advance(&mut self, index: usize, token: &Token<'_>) -> Result<(), Unreadable> {
        let (frame, state) = self.top();
        if token.is_op(b":=") {
            self.computed(index.saturating_sub(1));
        }
        let in_list = frame != Frame::Block;
        let next = match (state, token.kind, token.text) {
            (State::Start, Kind::Op, b"*" | b"**" | b"/") if in_list => State::Start,
            (State::Start, Kind::Name, word) if !in_list => keyword(word).unwrap_or(State::Named(index)),
            (State::Start, Kind::Name, _) => State::Named(index),
            (State::Header { is_class }, Kind::Name, _) => self.enter(token, is_class)?,
            (State::Named(name), Kind::Op, b":") => State::Annotated(name),
            (State::Named(name), Kind::Op, b"=") => self.start_value(name, index, Place::Assigned),
            (State::Annotated(name), Kind::Op, b"=") => self.start_value(name, index, Place::Annotated),
            (State::Named(name), Kind::Op, op) if is_augmented(op) => {
                self.computed(name);
                State::Skip
            }
            (State::Value { first, .. }, Kind::Op, b"=") if !in_list => self.chain(first, index),
            (State::Compound, Kind::Op, b":") => State::Start,
            (State::Named(name), ..) => self.not_defined(name),
            (State::Annotated(_) | State::Value { .. } | State::Compound | State::Signature, ..) => state,
            _ => State::Skip,
        };
        self.set(next);
        Ok(())
    }

    /// A statement or parameter that starts with a name and gives it no value; `case` is a keyword only here.
    fn not_defined(&self, name: usize) -> State {
        let is_case = self.top().0 == Frame::Block && self.tokens.get(name).is_some_and(|token| token.text == b"case");
        if is_case { State::Compound } else { State::Skip }
    }

    fn start_value(&self, name: usize, equals: usize, place: Place) -> State {
        let place = if self.top().0 == Frame::Block { place } else { Place::Parameter };
        State::Value { name, first: equals + 1, place, chained: false }
    }

    /// `A = B = 512`: what came before this `=` was a target too, and neither is a plain definition.
    fn chain(&mut self, first: usize, equals: usize) -> State {
        if let (_, State::Value { name, .. }) = self.top() {
            self.computed(name);
        }
        State::Value { name: first, first: equals + 1, place: Place::Assigned, chained: true }
    }

    /// Notes that a name is given a value in a way that is never a plain literal.
    fn computed(&mut self, name: usize) {
        if let Some(token) = self.tokens.get(name).filter(|token| token.kind == Kind::Name) {
            self.define(name, Place::Assigned, Value::Other(token.range()));
        }
    }

    fn enter(&mut self, token: &Token<'_>, is_class: bool) -> Result<State, Unreadable> {
        if self.open.len() > MAX_DEPTH {
            return Err(Unreadable { why: Why::TooDeep, offset: token.start });
        }
        let parent = self.open.last().copied();
        self.open.push(self.module.scopes.len());
        self.module.scopes.push(Scope { name: token.range(), is_class, parent, indent: self.indent });
        Ok(if is_class { State::Compound } else { State::Signature })
    }

    fn finish(mut self) -> Result<Module<'a>, Unreadable> {
        if let Some((_, _, offset)) = self.stack.get(1) {
            return Err(Unreadable { why: Why::UnbalancedBracket, offset: *offset });
        }
        self.end_item(self.tokens.len());
        Ok(self.module)
    }
}

/// The tokens without the line ends around them, which mean nothing inside of brackets.
fn trim<'t, 'a>(mut tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    while let [first, rest @ ..] = tokens
        && first.kind == Kind::Newline
    {
        tokens = rest;
    }
    while let [rest @ .., last] = tokens
        && last.kind == Kind::Newline
    {
        tokens = rest;
    }
    tokens
}

/// What a statement that starts with this word is, where the word is one that cannot be a variable.
fn keyword(word: &[u8]) -> Option<State> {
    match word {
        b"def" => Some(State::Header { is_class: false }),
        b"class" => Some(State::Header { is_class: true }),
        b"async" => Some(State::Start),
        b"if" | b"elif" | b"else" | b"for" | b"while" | b"with" | b"try" | b"except" | b"finally" => {
            Some(State::Compound)
        }
        _ => None,
    }
}

fn is_augmented(op: &[u8]) -> bool {
    op.len() > 1 && op.ends_with(b"=") && !matches!(op, b"==" | b"!=" | b"<=" | b">=" | b":=")
}

/// The column of `offset` as Python counts indentation: tabs go to the next multiple of eight.
fn indent(source: &[u8], offset: usize) -> usize {
    let before = source.get(..offset).unwrap_or_default();
    let line = before.rsplit(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    line.iter().fold(0, |column, byte| match byte {
        b'\t' => (column / 8 + 1) * 8,
        b'\x0c' => 0,
        b' ' => column + 1,
        // A byte order mark.
        _ => column,
    })
}

#[cfg(test)]
mod tests {
    use super::{TOKEN, plain_length};

    /// Every text of four of these bytes, which are one or more of each kind that the pattern tells apart.
    #[test]
    fn what_is_told_without_the_pattern_is_what_the_pattern_tells() {
        const BYTES: &[u8] = b" \t\\#\r\n\"'bR_7.=:({,\xc3";
        let pattern = TOKEN.as_ref().unwrap();
        for number in 0..BYTES.len().pow(4) {
            let text: Vec<u8> = (0..4).map(|place| BYTES[number / BYTES.len().pow(place) % BYTES.len()]).collect();
            let Some(length) = plain_length(&text) else { continue };
            let found = pattern.find(&text).map(|found| found.len());
            // A run of blanks may be told in two pieces.
            let is_blank = text[..length].iter().all(|byte| *byte == b' ');
            assert!(found == Some(length) || is_blank && found > Some(length), "{text:?}");
        }
    }
}
