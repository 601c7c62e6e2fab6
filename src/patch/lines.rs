//! PURE: Python source → its logical lines, with strings and comments blanked; and the parts of such a line.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::{memchr, memchr_iter, memchr2, memmem};
use regex::bytes::Regex;

/// Text of the same length as the source, and where its logical lines are in it.
pub type Blanked = (Vec<u8>, Vec<Range<usize>>);

/// The source with strings, comments and continued line ends blanked, and where its logical lines are.
/// Fails with where it cannot be read, in bytes, and why.
pub fn blank(source: &[u8]) -> Result<Blanked, (usize, &'static str)> {
    let refuse = |at, why| Err((at, why));
    if let Some(at) = memchr(0, source) {
        return refuse(at, "a NUL byte, so this is not Python source");
    }
    let mut at = 3 * usize::from(source.starts_with(b"\xEF\xBB\xBF"));
    let (mut text, mut lines, mut start) = (source.to_vec(), Vec::new(), at);
    let mut open: Vec<(u8, usize)> = Vec::new();
    while let Some(skipped) = source[at..].iter().position(is_special) {
        at += skipped;
        let (byte, mut end) = (source[at], at + 1);
        match byte {
            b'#' => {
                end = at + memchr2(b'\n', b'\r', &source[at..]).unwrap_or(source.len() - at);
                text[at..end].fill(b' ');
            }
            b'"' | b'\'' | b'\\' => {
                end += HIDDEN
                    .find(&source[at..])
                    .map_or(0, |hidden| hidden.len() - 1);
                // `""` is also how a triple string starts that does not end.
                let is_string = byte == b'"' || byte == b'\'';
                if is_string && (end == at + 1 || end == at + 2 && source.get(end) == Some(&byte)) {
                    return refuse(at, "a string that does not end");
                }
                text[at..end].fill(if is_string { b'"' } else { b' ' });
            }
            b'(' => open.push((b')', at)),
            b'[' => open.push((b']', at)),
            b'{' => open.push((b'}', at)),
            b')' | b']' | b'}' if open.pop().is_none_or(|(closing, _)| closing != byte) => {
                return refuse(at, "unbalanced brackets");
            }
            b'\n' | b'\r' if open.is_empty() => {
                lines.push(start..at);
                start = end;
            }
            _ => {}
        }
        if open.len() > 200 {
            return refuse(at, "nesting deeper than Python allows");
        }
        at = end;
    }
    lines.push(start..source.len());
    match open.pop() {
        Some((_, at)) => refuse(at, "unbalanced brackets"),
        None => Ok((text, lines)),
    }
}

/// Whether anything may begin or end at this byte.
fn is_special(byte: &u8) -> bool {
    const SPECIAL: [bool; 256] = {
        let (bytes, mut table, mut at) = (b"\"'#\\()[]{}\n\r", [false; 256], 0);
        while at < bytes.len() {
            table[bytes[at] as usize] = true;
            at += 1;
        }
        table
    };
    SPECIAL[usize::from(*byte)]
}

/// How many lines end in `text`; a lone `\r` ends one, too.
pub fn line_ends(text: &[u8]) -> usize {
    let count = |byte| memchr_iter(byte, text).count();
    count(b'\r') + count(b'\n') - memmem::find_iter(text, b"\r\n").count()
}

/// In the patterns `W` stands for a byte of a word, and NUL bytes for the name.
pub fn regex(pattern: &str) -> Regex {
    let pattern = pattern.replace('W', r"[\w\x80-\xFF]");
    Regex::new(&format!("(?s-u){pattern}")).expect("every pattern is used by the tests")
}

/// A string, a comment, or what a backslash takes with it.
static HIDDEN: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r#"^(?:"{3}(?:[^\\]|\\.)*?"{3}|'{3}(?:[^\\]|\\.)*?'{3}|#[^\r\n]*|\\(?:\r\n|.)?"#,
        r#"|"(?:[^"\\\r\n]|\\\r\n|\\.)*"|'(?:[^'\\\r\n]|\\\r\n|\\.)*')"#
    ))
});
/// What may have statements behind its colon.
static COMPOUND: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"^\s*(?:async\s+)?(?:(def)|if|elif|else|for|while|with|try|except|finally|class)",
        r#"(?:[^\w\x80-\xFF]|$)|^\s*case(?:\s*["{-]|\s+W)"#
    ))
});
/// The line with NUL bytes for the name, where it is no attribute, and with `?` for comparisons.
pub fn mark(line: &[u8], name: &str) -> Vec<u8> {
    let mut marked = line.to_vec();
    for end in memchr_iter(b'=', line).filter(|end| *end > 0) {
        if b"=!<>".contains(&line[end - 1]) {
            marked[end - 1..=end].fill(b'?');
        }
    }
    for start in memmem::find_iter(line, name) {
        let (before, after) = (&line[..start], &line[start + name.len()..]);
        let is_whole = !before.last().is_some_and(is_word) && !after.first().is_some_and(is_word);
        if is_whole && before.trim_ascii_end().last() != Some(&b'.') {
            marked[start..start + name.len()].fill(0);
        }
    }
    marked
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii()
}

/// The line with `;` between its parameters and statements, and what is in calls, subscripts and other parameters
/// hidden; and where its statements start.
pub fn items(code: &[u8]) -> (Vec<u8>, usize) {
    let compound = COMPOUND.captures(code);
    let mut is_def = compound.as_ref().is_some_and(|head| head.get(1).is_some());
    let (mut items, mut open, mut before, mut body) = (code.to_vec(), Vec::new(), b' ', 0);
    for (at, &byte) in code.iter().enumerate() {
        if b")]}".contains(&byte) && open.pop() == Some(b';') {
            items[at] = b';';
        }
        match open.last() {
            Some(b'?') => items[at] = b'?',
            Some(b';') if byte == b',' => items[at] = b';',
            None if byte == b':' && body == 0 && compound.is_some() => {
                items[at] = b';';
                body = at + 1;
            }
            _ => {}
        }
        if b"([{".contains(&byte) {
            let is_trailer = is_word(&before) || b"\0)]}\"".contains(&before);
            let is_own = is_def && open.is_empty() && byte == b'(';
            open.push(match open.last() {
                None if is_own => b';',
                None | Some(b'(') if !is_trailer => b'(',
                _ => b'?',
            });
            if is_own {
                (items[at], is_def) = (b';', false);
            }
        }
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
    }
    (items, body)
}

/// The column of the first character as Python counts it: a tab goes to the next multiple of eight, a form feed to 0.
pub fn indent(line: &[u8]) -> usize {
    let blanks = line.iter().take_while(|byte| b" \t\x0c".contains(byte));
    blanks.fold(0, |column, byte| match byte {
        b'\t' => (column / 8 + 1) * 8,
        b'\x0c' => 0,
        _ => column + 1,
    })
}
