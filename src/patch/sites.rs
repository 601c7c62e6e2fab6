//! PURE: Python source → the number literals that are the setting, or a refusal with its line.
//!
//! Regular expressions see code without strings and comments. Any unfamiliar way to bind the name is refused.

use std::mem;
use std::ops::Range;
use std::sync::LazyLock;

use memchr::{memchr, memchr_iter, memchr2, memmem, memrchr};
use regex::bytes::Regex;

use super::settings::FormPlace::{AnyDefinition, MethodParameter, ModuleConstant};
use super::settings::{Form, Setting, Site, number};

type Bindings = Vec<Result<Site, String>>;
const OVERRIDES: &str = "is set here in a way that would override the edit:";

/// The sites of `setting`, in their order. Fails, with the line and what is there, if the source cannot be read with
/// certainty, if the name is bound in any other way, or if there are fewer or more sites than the form must have.
pub fn locate(setting: &Setting, source: &[u8]) -> Result<Vec<Site>, String> {
    let (text, lines) = blank(source)?;
    let read = |form| (form, bindings(form, source, &text, &lines));
    let mut present: Vec<_> = setting.forms.iter().map(read).collect();
    present.retain(|((_, place), found)| {
        let is_optional = matches!(place, MethodParameter(_));
        found.iter().any(Result::is_ok) || !found.is_empty() && !is_optional
    });
    let Some(((name, place), found)) = present.pop() else {
        let (name, _) = setting.forms[0];
        return Err(format!("no definition of {name} with an integer value"));
    };
    if let Some(((other, _), _)) = present.pop() {
        return Err(format!("has both {other} and {name}: ambiguous"));
    }
    let mut sites = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (mut line, mut counted) = (1, 0);
    for site in &mut sites {
        line += line_ends(&source[counted..site.range.start]);
        (site.line, counted) = (line, site.range.start);
        site.stock = (setting.stock)(source, &site.owner);
    }
    if let [_, second, ..] = &sites[..]
        && *place != AnyDefinition
    {
        return Err(format!("line {}: {name} is set again", second.line));
    }
    Ok(sites)
}

pub fn compile_patterns() {
    _ = (&*HEADER, &*DEFINITION, &*ODD, &*ODD_ITEM);
}

fn line_ends(text: &[u8]) -> usize {
    let count = |byte| memchr_iter(byte, text).count();
    count(b'\r') + count(b'\n') - memmem::find_iter(text, b"\r\n").count()
}

fn refusal(source: &[u8], at: usize, what: &str) -> String {
    format!("line {}: {what}", 1 + line_ends(&source[..at]))
}

/// The source with strings, comments and continued line ends blanked, and its logical lines.
fn blank(source: &[u8]) -> Result<(Vec<u8>, Vec<Range<usize>>), String> {
    let refuse = |at, what| Err(refusal(source, at, what));
    if let Some(at) = memchr(0, source) {
        return refuse(at, "a NUL byte, so this is not Python source");
    }
    let (mut text, mut lines, mut open) = (source.to_vec(), Vec::new(), Vec::new());
    let mut start = 3 * usize::from(source.starts_with(b"\xEF\xBB\xBF"));
    let mut end = start;
    let mut specials = [false; 256];
    for byte in b"\"'#\\()[]{}\r\n" {
        specials[usize::from(*byte)] = true;
    }
    let is_special = |byte: &u8| specials[usize::from(*byte)];
    while let Some(skipped) = source[end..].iter().position(is_special) {
        let at = end + skipped;
        let Some(length) = token_length(&source[at..]) else {
            return refuse(at, "a string that does not end");
        };
        end = at + length;
        match source[at] {
            b'"' | b'\'' => text[at..end].fill(b'"'),
            b'\\' if source[start..at].trim_ascii().is_empty() => {
                return refuse(at, "a line that begins with a backslash");
            }
            b'#' | b'\\' => text[at..end].fill(b' '),
            b'\r' | b'\n' if open.is_empty() => lines.push(mem::replace(&mut start, end)..at),
            b'\r' | b'\n' => {}
            b'(' | b'[' | b'{' if open.len() < 200 => open.push(at),
            b'(' | b'[' | b'{' => return refuse(at, "nesting deeper than Python allows"),
            closing => match (open.pop().map(|at| source[at]), closing) {
                (Some(b'('), b')') | (Some(b'['), b']') | (Some(b'{'), b'}') => {}
                _ => return refuse(at, "unbalanced brackets"),
            },
        }
    }
    lines.push(start..source.len());
    let left_open = open.pop().map(|at| refuse(at, "unbalanced brackets"));
    left_open.unwrap_or(Ok((text, lines)))
}

/// The length of the string, comment, continuation, bracket or line end at the start; none for a string without end.
fn token_length(text: &[u8]) -> Option<usize> {
    let quote = text[0];
    match quote {
        b'"' | b'\'' => {}
        b'#' => return memchr2(b'\n', b'\r', text).or(Some(text.len())),
        b'\\' if text.starts_with(b"\\\r\n") => return Some(3),
        b'\\' => return Some(text.len().min(2)),
        _ => return Some(1),
    }
    let is_long = text.starts_with(&[quote; 3]);
    let mut at = if is_long { 3 } else { 1 };
    loop {
        let is_end = |byte: &u8| matches!(*byte, b'\\' | b'\n' | b'\r') || *byte == quote;
        at += match text.get(at..)? {
            rest if is_long => memchr2(quote, b'\\', rest)?,
            rest => rest.iter().position(is_end)?,
        };
        at += match text[at..] {
            [b'\\', b'\r', b'\n', ..] => 3,
            [b'\\', ..] => 2,
            [byte, ..] if byte == quote && !is_long => return Some(at + 1),
            [a, b, c, ..] if [a, b, c] == [quote; 3] => return Some(at + 3),
            _ if is_long => 1,
            _ => return None,
        };
    }
}

fn bindings(form: &Form, source: &[u8], text: &[u8], lines: &[Range<usize>]) -> Bindings {
    let (name, place) = *form;
    let mut mentions = memmem::find_iter(text, name).peekable();
    // The line and those in whose blocks it may be, each with its indentation.
    let (mut open, mut found) = (Vec::<(usize, &[u8])>::new(), Vec::new());
    for line in lines {
        let code = &text[line.clone()];
        let Some(blanks) = code.iter().position(|byte| !byte.is_ascii_whitespace()) else {
            continue;
        };
        // Python refuses indentation in which the width of a tab matters; a form feed starts it anew.
        let indent = blanks - memrchr(b'\x0c', &code[..blanks]).map_or(0, |feed| feed + 1);
        while open.pop_if(|(outer, _)| *outer >= indent).is_some() {}
        open.push((indent, code));
        if mentions.next_if(|at| *at < line.end).is_none() {
            continue;
        }
        while mentions.next_if(|at| *at < line.end).is_some() {}
        let headers = open.iter().filter_map(|(_, code)| HEADER.captures(code));
        let owner = headers.map(|header| String::from_utf8_lossy(&header[2]).into_owned());
        let owner: Vec<_> = owner.collect();
        if !matches!(place, MethodParameter(class) if !owner.contains(&class.to_owned())) {
            found.extend(read_line(form, source, code, line.start, &owner.join(".")));
        }
    }
    found
}

fn read_line(form: &Form, source: &[u8], code: &[u8], start: usize, owner: &str) -> Bindings {
    let (name, place) = *form;
    let end = start + code.len();
    let code = mark(code, name);
    let items = items(&code);
    let refuse = |at, why, quoted: Range<usize>| {
        let what = format!("{name} {why} {}", quote(&source[quoted]));
        Err(refusal(source, at, &what))
    };
    let mut found = Vec::new();
    if let Some(odd) = ODD.find(&code).or_else(|| ODD_ITEM.find(&items)) {
        let at = odd.start() + memchr(0, odd.as_bytes()).unwrap_or(0);
        let before = code[..at].iter().rposition(|byte| *byte != 0);
        let at = start + before.map_or(0, |before| before + 1);
        found.push(if SHARED.is_match(&items) {
            refuse(at, "shares its value with another name:", start..end)
        } else {
            refuse(at, OVERRIDES, at..end)
        });
    }
    for definition in DEFINITION.captures_iter(&items) {
        let is_parameter = definition.name("parameter").is_some();
        let is_definition = is_parameter || definition.name("annotation").is_some();
        let fits = match place {
            ModuleConstant => !is_parameter && owner.is_empty(),
            MethodParameter(_) => is_parameter,
            AnyDefinition => is_definition,
        };
        let part = |name| definition.name(name).map_or(0..0, |part| part.range());
        let (at, value) = (start + part("name").start, part("value"));
        let range = start + value.start..start + value.end;
        let text = String::from_utf8_lossy(&source[range.clone()]);
        found.push(match number(&text) {
            _ if text == "None" && is_definition && place != ModuleConstant => continue,
            _ if text.is_empty() => refuse(at, "has no value behind its `=`:", at..end),
            _ if !fits => refuse(at, OVERRIDES, at..end),
            Some(value) => Ok(Site {
                name,
                owner: if owner.is_empty() { "<module>" } else { owner }.to_owned(),
                line: 0,
                range,
                value,
                stock: 0,
            }),
            _ => refuse(at, "is not a plain number but", range),
        });
    }
    found
}

fn quote(source: &[u8]) -> String {
    let text = String::from_utf8_lossy(source.trim_ascii());
    let line = text.split(['\r', '\n']).next().unwrap_or_default();
    let shown: String = line.chars().take(120).collect();
    let rest = if shown.len() < text.len() { "…" } else { "" };
    format!("`{shown}{rest}`")
}

/// The line with NUL bytes in place of the name, unless it is an attribute, and with `?` for comparisons.
// One pattern then fits every name, and nothing else can match: source with NUL bytes of its own is refused.
fn mark(line: &[u8], name: &str) -> Vec<u8> {
    let mut marked = line.to_vec();
    for end in memchr_iter(b'=', line).filter(|end| *end > 0) {
        if b"=!<>".contains(&line[end - 1]) {
            marked[end - 1..=end].fill(b'?');
        }
    }
    for start in memmem::find_iter(line, name) {
        let (before, end) = (&line[..start], start + name.len());
        let is_attribute = before.trim_ascii_end().last() == Some(&b'.');
        let mut neighbours = before.last().into_iter().chain(line.get(end));
        if !is_attribute && !neighbours.any(|byte| is_word(*byte)) {
            marked[start..end].fill(0);
        }
    }
    marked
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// The line with `\x01` around its own parameters, and `?` for what is in calls, subscripts and other parameters.
fn items(code: &[u8]) -> Vec<u8> {
    let (mut items, mut open) = (code.to_vec(), Vec::new());
    let header = HEADER.captures(code);
    let mut is_def = header.is_some_and(|header| header.get(1).is_some());
    for (at, &byte) in code.iter().enumerate() {
        if b")]}".contains(&byte) && open.pop() == Some(1) {
            items[at] = 1;
        }
        match open.last() {
            Some(b'?') => items[at] = b'?',
            Some(1) if byte == b',' => items[at] = 1,
            _ => {}
        }
        if b"([{".contains(&byte) {
            let before = code[..at].trim_ascii_end().last();
            let is_trailer = before.is_some_and(|b| is_word(*b) || b"\0)]}\"".contains(b));
            let kind = match open.last() {
                None if is_def && byte == b'(' => 1,
                None | Some(b'(') if !is_trailer => b'(',
                _ => b'?',
            };
            if kind == 1 {
                (items[at], is_def) = (kind, false);
            }
            open.push(kind);
        }
    }
    items
}

/// Declares patterns in which `W` stands for a byte of a word, and NUL bytes for the name.
macro_rules! patterns {
    ($($(#[$doc:meta])* $name:ident = $pattern:expr;)+) => {
        $($(#[$doc])* static $name: LazyLock<Regex> = LazyLock::new(|| {
            let pattern = $pattern.replace('W', r"[\w\x80-\xFF]");
            Regex::new(&format!("(?s-u){pattern}")).expect("every pattern is used by the tests")
        });)+
    };
}

patterns! {
    HEADER = r"^\s*(?:async\s+)?(?:(def)|class)\s+((?:W|\x00)+)";
    /// `name: annotation = value` as a whole parameter, or at the start of the line.
    DEFINITION = r"(?:^|(?<parameter>\x01))\s*(?<name>\x00+)\s*(?::(?<annotation>[^=;\x01]*))?=\s*(?<value>[^;\x01\s]*(?:\s+[^;\x01\s]+)*)";
    /// Other ways of binding the name, wherever they stand.
    ODD = concat!(
        r"\x00\s*(?:[-+*/%@&|^:]+=|[<>]\?)|\blambda\b.*\x00\s*=|\b(?:def|class)\s+\x00",
        r"|\b(?:global|nonlocal|del|import)\b[^;]*\x00|\bas\b[^:;]*\x00",
        r"|\bfor\b(?:[^\w\x00;]|\b(?:in\w+|i(?:[\w--n]\w*)?|[\w--i]\w*)\b)*\x00|^\s*case(?:\s+[^=\s]|[(\[]).*\x00.*:"
    );
    /// The same for a second statement in a line, multiple targets, and lambdas, whose commas separate no parameters.
    ODD_ITEM = concat!(
        r"\x00\s*[,)\]=][^;\x01]*=|[^\s\x00\x01]\s*\x00+\s*=|[:;]\s*\x00+\s*:[^;\x01]*=",
        r"|\blambda\b.*\x00\s*[:=]|\x00\s*(?::[^=,;\x01]*)?(?:=\s*)?\blambda\b"
    );
    SHARED = r"=\s*\x00+\s*=|\x00\s*=[^;=\x01]*=";
}
