//! PURE: Python source → every name that is given a value in it.
//!
//! This is a reader of Python's surface, not a Python parser: it knows strings, comments, brackets,
//! logical lines, `def`, `class` and `lambda`, which is exactly what tells a definition (`name=2048` in a
//! parameter list, `name: int = 2048` anywhere, `NAME = 2048` as a statement) from everything that only
//! looks like one (keyword arguments, comparisons, docstrings, slices, dictionary keys).
//! It goes from one byte that may make a difference to the next; which those are depends on what it is inside of.
//! What it cannot read with certainty it refuses; the limits are CPython's own.

use std::fmt;
use std::ops::Range;

use memchr::{memchr, memmem};

use super::lex::{
    self, BACKSLASH, BLANK, BRACKET, COLON, COMMA, COMMENT, Class, EQUALS, LAMBDA, LETTER, NEWLINE,
    QUOTE, SEMICOLON,
};

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
        let mut names: Vec<_> = self
            .enclosing(scope)
            .map(|scope| String::from_utf8_lossy(bytes(self.source, &scope.name)))
            .collect();
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
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nul => "a NUL byte, so this is not Python source",
            Self::UnterminatedString => "a string that does not end",
            Self::UnbalancedBracket => "unbalanced brackets",
            Self::TooDeep => "nesting deeper than Python allows",
        })
    }
}

/// Reads `source`; `is_wanted` tells of a name whether its definitions are of interest.
///
/// Fails on what Python would not read either. Time is linear in the size.
pub fn read(source: &[u8], is_wanted: impl Fn(&[u8]) -> bool) -> Result<Module<'_>, Unreadable> {
    if let Some(offset) = memchr(0, source) {
        return Err(Unreadable {
            why: Why::Nul,
            offset,
        });
    }
    let mut reader = Reader::new(source, is_wanted);
    while let Some((at, byte)) = lex::next(source, reader.at, reader.stops()) {
        reader.at = at + 1;
        reader.take(at, byte)?;
    }
    reader.finish()
}

fn bytes<'a>(source: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    source.get(range.clone()).unwrap_or_default()
}

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
    /// With the byte that closes it.
    Bracket(u8),
}

/// How far one statement or one parameter has been read.
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
    Named(Word),
    Annotated(Word),
    Value {
        name: Word,
        first: usize,
        place: Place,
        chained: bool,
    },
    /// Nothing in the rest of this statement or parameter is a definition.
    Skip,
}

impl State {
    /// Whether the next word makes a difference, whatever it is.
    fn awaits_word(self) -> bool {
        matches!(self, Self::Start | Self::Header { .. } | Self::Named(_))
    }
}

/// Where a name stands, in bytes; a `Range` that can be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    start: usize,
    end: usize,
}

impl Word {
    fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// The bytes that may make a difference in this state of this frame.
fn stops(frame: Frame, state: State) -> Class {
    /// Strings and comments have to be passed over, brackets have to match, and a lambda may be anywhere.
    const ANYWHERE: Class = QUOTE | COMMENT | BACKSLASH | BRACKET | LAMBDA;
    let ends = match frame {
        Frame::Block => NEWLINE | SEMICOLON,
        Frame::Parameters => COMMA,
        Frame::Lambda => COMMA | COLON,
        Frame::Bracket(_) => return ANYWHERE,
    };
    match (frame, state) {
        (Frame::Block, state) if state.awaits_word() => !BLANK,
        (_, state) if state.awaits_word() => !(BLANK | NEWLINE),
        (Frame::Block, State::Value { .. }) | (_, State::Annotated(_)) => ANYWHERE | ends | EQUALS,
        (_, State::Compound) => ANYWHERE | ends | COLON,
        _ => ANYWHERE | ends,
    }
}

struct Reader<'a, W> {
    /// Everything in front of it is read.
    at: usize,
    /// What the reader is in, and where that was opened.
    stack: Vec<(Frame, State, usize)>,
    /// Ids of the scopes that are open, innermost last.
    open: Vec<usize>,
    line_starts: bool,
    indent: usize,
    /// [`COLON`] where there is any `:=`, for which every colon has to be looked at.
    walrus: Class,
    is_wanted: W,
    module: Module<'a>,
}

impl<'a, W: Fn(&[u8]) -> bool> Reader<'a, W> {
    fn new(source: &'a [u8], is_wanted: W) -> Self {
        let walrus = if memmem::find(source, b":=").is_some() {
            COLON
        } else {
            0
        };
        Self {
            at: if source.starts_with(b"\xEF\xBB\xBF") {
                3
            } else {
                0
            },
            stack: vec![(Frame::Block, State::Start, 0)],
            open: Vec::new(),
            line_starts: true,
            indent: 0,
            walrus,
            is_wanted,
            module: Module {
                source,
                scopes: Vec::new(),
                definitions: Vec::new(),
            },
        }
    }

    fn top(&self) -> (Frame, State) {
        self.stack
            .last()
            .map_or((Frame::Block, State::Skip), |(frame, state, _)| {
                (*frame, *state)
            })
    }

    fn set(&mut self, new: State) {
        if let Some((_, state, _)) = self.stack.last_mut() {
            *state = new;
        }
    }

    /// At which bytes to look next.
    fn stops(&self) -> Class {
        let (frame, state) = self.top();
        stops(frame, state) | self.walrus
    }

    /// Takes what starts with the byte at `at`.
    fn take(&mut self, at: usize, byte: u8) -> Result<(), Unreadable> {
        if matches!(byte, b'\n' | b'\r') {
            self.newline(at);
            return Ok(());
        }
        if let Some(end) = lex::hidden_end(self.module.source, at) {
            self.at = end;
            return Ok(());
        }
        if self.line_starts {
            self.start_line(at);
        }
        self.take_token(at, byte)
    }

    fn take_token(&mut self, at: usize, byte: u8) -> Result<(), Unreadable> {
        let frame = self.top().0;
        match byte {
            b'"' | b'\'' => self.string(at)?,
            b'(' | b'[' | b'{' => self.open_bracket(at, byte)?,
            b')' | b']' | b'}' => self.close_bracket(at, byte)?,
            b':' if self.module.source.get(at + 1) == Some(&b'=') => self.walrus(at),
            b':' if frame == Frame::Lambda => {
                self.end_item(at);
                self.stack.pop();
            }
            b',' if matches!(frame, Frame::Parameters | Frame::Lambda) => self.end_item(at),
            b';' if frame == Frame::Block => self.end_item(at),
            b':' | b'=' => self.delimit(at, byte),
            _ if lex::is(byte, LETTER) => self.word(at)?,
            _ => self.operator(at, byte),
        }
        Ok(())
    }

    fn newline(&mut self, at: usize) {
        if self.stack.len() == 1 {
            self.end_item(at);
            self.line_starts = true;
        }
    }

    fn start_line(&mut self, at: usize) {
        self.line_starts = false;
        self.indent = indent(self.module.source, at);
        while let Some(scope) = self.open.last().and_then(|id| self.module.scopes.get(*id)) {
            if scope.indent < self.indent {
                break;
            }
            self.open.pop();
        }
    }

    fn string(&mut self, at: usize) -> Result<(), Unreadable> {
        let unterminated = Unreadable {
            why: Why::UnterminatedString,
            offset: at,
        };
        self.at = lex::string_end(self.module.source, at).ok_or(unterminated)?;
        self.define_nothing();
        Ok(())
    }

    fn push(&mut self, frame: Frame, at: usize) -> Result<(), Unreadable> {
        if self.stack.len() > MAX_DEPTH {
            return Err(Unreadable {
                why: Why::TooDeep,
                offset: at,
            });
        }
        // Whatever was being named before a bracket (`f(`, `x[`) or a lambda is not defined by it.
        if matches!(self.top().1, State::Start | State::Named(_)) {
            self.define_nothing();
        }
        let start = match frame {
            Frame::Bracket(_) => State::Skip,
            _ => State::Start,
        };
        self.stack.push((frame, start, at));
        Ok(())
    }

    fn open_bracket(&mut self, at: usize, byte: u8) -> Result<(), Unreadable> {
        let closing = match byte {
            b'(' => b')',
            b'[' => b']',
            _ => b'}',
        };
        if closing == b')' && self.top() == (Frame::Block, State::Signature) {
            self.set(State::Compound);
            return self.push(Frame::Parameters, at);
        }
        self.push(Frame::Bracket(closing), at)
    }

    fn close_bracket(&mut self, at: usize, byte: u8) -> Result<(), Unreadable> {
        let closed = match self.top().0 {
            Frame::Parameters => b')',
            Frame::Bracket(closing) => closing,
            Frame::Block | Frame::Lambda => 0,
        };
        if byte != closed {
            return Err(Unreadable {
                why: Why::UnbalancedBracket,
                offset: at,
            });
        }
        self.end_item(at);
        self.stack.pop();
        Ok(())
    }

    /// Ends a statement or a parameter in front of `end`.
    fn end_item(&mut self, end: usize) {
        let (frame, state) = self.top();
        if let State::Value {
            name,
            first,
            place,
            chained,
        } = state
        {
            self.define(name, place, first..end, chained);
        }
        let is_list = !matches!(frame, Frame::Bracket(_));
        self.set(if is_list { State::Start } else { State::Skip });
    }

    /// Notes the definition of a name that is wanted; `chained` values belong to several names.
    fn define(&mut self, name: Word, place: Place, value: Range<usize>, chained: bool) {
        let source = self.module.source;
        if !(self.is_wanted)(bytes(source, &name.range())) {
            return;
        }
        let text = bytes(source, &value);
        let behind = |range: Range<usize>| value.start + range.start..value.start + range.end;
        let value = match lex::integer_in(text).filter(|_| !chained) {
            Some((range, number)) => Value::Integer(behind(range), number),
            None => Value::Other(behind(lex::trimmed(text))),
        };
        let scope = self.open.last().copied();
        self.module.definitions.push(Definition {
            name: name.range(),
            scope,
            place,
            value,
        });
    }

    /// Notes that a name is given a value in a way that is never a plain literal.
    fn computed(&mut self, name: Word) {
        self.define(name, Place::Assigned, name.range(), true);
    }

    /// A name, a keyword or, between others, a letter of `lambda`.
    fn word(&mut self, at: usize) -> Result<(), Unreadable> {
        let (frame, state) = self.top();
        if !state.awaits_word() {
            return self.lambda_around(at);
        }
        let name = Word {
            start: at,
            end: lex::word_end(self.module.source, at),
        };
        self.at = name.end;
        let text = bytes(self.module.source, &name.range());
        if text == b"lambda" {
            return self.push(Frame::Lambda, at);
        }
        match state {
            State::Start if frame == Frame::Block => {
                self.set(keyword(text).unwrap_or(State::Named(name)))
            }
            State::Start => self.set(State::Named(name)),
            State::Header { is_class } => self.enter(name, is_class)?,
            _ => self.define_nothing(),
        }
        Ok(())
    }

    fn lambda_around(&mut self, at: usize) -> Result<(), Unreadable> {
        let Some(start) = lex::lambda_start(self.module.source, at) else {
            return Ok(());
        };
        self.at = start + b"lambda".len();
        self.push(Frame::Lambda, start)
    }

    /// `name := …` is no plain definition.
    fn walrus(&mut self, at: usize) {
        self.at = at + 2;
        if let Some(name) = lex::word_before(self.module.source, at) {
            self.computed(Word {
                start: name.start,
                end: name.end,
            });
        }
        self.define_nothing();
    }

    /// `:` or `=`, which lead from a name to its annotation and its value.
    fn delimit(&mut self, at: usize, byte: u8) {
        let (frame, state) = self.top();
        let is_list = frame != Frame::Block;
        if byte == b'=' && lex::is_in_longer_operator(self.module.source, at) {
            return self.define_nothing();
        }
        match (state, byte) {
            (State::Named(name), b':') => self.set(State::Annotated(name)),
            (State::Compound, b':') => self.set(State::Start),
            (State::Named(name), b'=') => self.start_value(name, Place::Assigned),
            (State::Annotated(name), b'=') => self.start_value(name, Place::Annotated),
            (State::Value { name, first, .. }, b'=') if !is_list => self.chain(name, first),
            _ => self.define_nothing(),
        }
    }

    fn operator(&mut self, at: usize, byte: u8) {
        let (frame, state) = self.top();
        match state {
            State::Named(name) if lex::is_augmented(self.module.source, at) => {
                self.computed(name);
                self.set(State::Skip);
            }
            // Between parameters they say how those may be passed.
            State::Start if frame != Frame::Block && matches!(byte, b'*' | b'/') => {}
            _ => self.define_nothing(),
        }
    }

    /// Goes on where the statement or parameter gives no value to what it began with; `case` is a keyword only here.
    fn define_nothing(&mut self) {
        let (frame, state) = self.top();
        match state {
            State::Start | State::Header { .. } => self.set(State::Skip),
            State::Named(name) => {
                let is_case =
                    frame == Frame::Block && bytes(self.module.source, &name.range()) == b"case";
                self.set(if is_case {
                    State::Compound
                } else {
                    State::Skip
                });
            }
            _ => {}
        }
    }

    fn start_value(&mut self, name: Word, place: Place) {
        let place = if self.top().0 == Frame::Block {
            place
        } else {
            Place::Parameter
        };
        self.set(State::Value {
            name,
            first: self.at,
            place,
            chained: false,
        });
    }

    /// `A = B = 512`: what came before this `=` was a target too, and neither is a plain definition.
    fn chain(&mut self, name: Word, first: usize) {
        self.computed(name);
        let start = lex::filler_end(self.module.source, first);
        let name = Word {
            start,
            end: lex::word_end(self.module.source, start),
        };
        self.set(State::Value {
            name,
            first: self.at,
            place: Place::Assigned,
            chained: true,
        });
    }

    fn enter(&mut self, name: Word, is_class: bool) -> Result<(), Unreadable> {
        if self.open.len() > MAX_DEPTH {
            return Err(Unreadable {
                why: Why::TooDeep,
                offset: name.start,
            });
        }
        let parent = self.open.last().copied();
        self.open.push(self.module.scopes.len());
        self.module.scopes.push(Scope {
            name: name.range(),
            is_class,
            parent,
            indent: self.indent,
        });
        self.set(if is_class {
            State::Compound
        } else {
            State::Signature
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Module<'a>, Unreadable> {
        if let Some((_, _, offset)) = self.stack.get(1) {
            return Err(Unreadable {
                why: Why::UnbalancedBracket,
                offset: *offset,
            });
        }
        self.end_item(self.module.source.len());
        Ok(self.module)
    }
}

/// What a statement that starts with this word is, where the word is one that cannot be a variable.
fn keyword(word: &[u8]) -> Option<State> {
    match word {
        b"def" => Some(State::Header { is_class: false }),
        b"class" => Some(State::Header { is_class: true }),
        b"async" => Some(State::Start),
        b"if" | b"elif" | b"else" | b"for" | b"while" | b"with" | b"try" | b"except"
        | b"finally" => Some(State::Compound),
        _ => None,
    }
}

/// The column of `offset` as Python counts indentation: tabs go to the next multiple of eight.
fn indent(source: &[u8], offset: usize) -> usize {
    let before = source.get(..offset).unwrap_or_default();
    let line = before
        .rsplit(|byte| matches!(byte, b'\n' | b'\r'))
        .next()
        .unwrap_or_default();
    line.iter().fold(0, |column, byte| match byte {
        b'\t' => (column / 8 + 1) * 8,
        b'\x0c' => 0,
        b' ' => column + 1,
        // A byte order mark.
        _ => column,
    })
}
