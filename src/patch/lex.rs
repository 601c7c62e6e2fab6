//! PURE: the bytes of Python source: what each may begin, and where what it begins ends.
//!
//! Bytes from 0x80 on are taken as letters, whatever the encoding.

use std::ops::Range;

use memchr::{memchr2, memchr2_iter};

/// What a byte may begin or end, as bits of which a byte may have several.
pub type Class = u16;

/// A space, a tab or a form feed.
pub const BLANK: Class = 1;
/// The end of a line, or the first byte of it.
pub const NEWLINE: Class = 1 << 1;
/// The first quote of a string.
pub const QUOTE: Class = 1 << 2;
/// The start of a comment.
pub const COMMENT: Class = 1 << 3;
/// A backslash, which hides the end of a line.
pub const BACKSLASH: Class = 1 << 4;
/// Any of `()[]{}`.
pub const BRACKET: Class = 1 << 5;
/// `:`, alone or in `:=`.
pub const COLON: Class = 1 << 6;
/// `=`, alone or in another operator.
pub const EQUALS: Class = 1 << 7;
/// `,`.
pub const COMMA: Class = 1 << 8;
/// `;`.
pub const SEMICOLON: Class = 1 << 9;
/// The rarest letter of `lambda`, by which that word is found between others.
pub const LAMBDA: Class = 1 << 10;
/// A letter or an underscore.
pub const LETTER: Class = 1 << 11;
/// A digit.
pub const DIGIT: Class = 1 << 12;
/// Everything else: operators, and what no Python source has.
pub const OTHER: Class = 1 << 13;

static CLASSES: [Class; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "it is carried out by the compiler")]
const fn classes() -> [Class; 256] {
    let mut classes = [OTHER; 256];
    let mut byte = u8::MAX;
    loop {
        classes[byte as usize] = class_of(byte);
        if byte == 0 {
            return classes;
        }
        byte -= 1;
    }
}

const fn class_of(byte: u8) -> Class {
    match byte {
        b' ' | b'\t' | b'\x0c' => BLANK,
        b'\n' | b'\r' => NEWLINE,
        b'"' | b'\'' => QUOTE,
        b'#' => COMMENT,
        b'\\' => BACKSLASH,
        b'(' | b')' | b'[' | b']' | b'{' | b'}' => BRACKET,
        b':' => COLON,
        b'=' => EQUALS,
        b',' => COMMA,
        b';' => SEMICOLON,
        b'b' => LETTER | LAMBDA,
        b'_' | b'A'..=b'Z' | b'a'..=b'z' | 0x80.. => LETTER,
        b'0'..=b'9' => DIGIT,
        _ => OTHER,
    }
}

/// Whether the byte is of one of these classes.
#[must_use]
pub fn is(byte: u8, classes: Class) -> bool {
    CLASSES
        .get(usize::from(byte))
        .is_some_and(|class| class & classes != 0)
}

/// The next byte of one of these classes, `from` on.
#[must_use]
pub fn next(source: &[u8], from: usize, classes: Class) -> Option<(usize, u8)> {
    let rest = source.get(from..)?;
    let skipped = rest.iter().position(|byte| is(*byte, classes))?;
    Some((from + skipped, *rest.get(skipped)?))
}

/// The end of the name or number that starts at `from`.
#[must_use]
pub fn word_end(source: &[u8], from: usize) -> usize {
    let rest = source.get(from..).unwrap_or_default();
    rest.iter()
        .position(|byte| !is(*byte, LETTER | DIGIT))
        .map_or(source.len(), |length| from + length)
}

/// Where the `lambda` starts that the letter at `at` is in, if it is in one.
#[must_use]
pub fn lambda_start(source: &[u8], at: usize) -> Option<usize> {
    let start = at.checked_sub(3)?;
    let is_in_name = |at: usize| source.get(at).is_some_and(|byte| is(*byte, LETTER | DIGIT));
    let is_whole = source.get(start..start + 6)? == b"lambda" && !is_in_name(start + 6);
    (is_whole && !start.checked_sub(1).is_some_and(is_in_name)).then_some(start)
}

/// The name in front of `at`, filler between them left out.
#[must_use]
pub fn word_before(source: &[u8], at: usize) -> Option<Range<usize>> {
    let before = source.get(..at)?;
    let is_filler = |byte: &u8| is(*byte, BLANK | NEWLINE | BACKSLASH);
    let end = before.iter().rposition(|byte| !is_filler(byte))? + 1;
    let name = before.get(..end)?;
    let start = name
        .iter()
        .rposition(|byte| !is(*byte, LETTER | DIGIT))
        .map_or(0, |other| other + 1);
    (start < end).then_some(start..end)
}

/// Whether the `=` at `at` is part of `==`, `<=`, `+=`, `->=` or the like.
#[must_use]
pub fn is_in_longer_operator(source: &[u8], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| source.get(before));
    source.get(at + 1) == Some(&b'=') || before.is_some_and(|byte| b"=!<>:+-*/%&|^@".contains(byte))
}

/// Whether an operator like `+=` or `**=` starts at `at`.
#[must_use]
pub fn is_augmented(source: &[u8], at: usize) -> bool {
    let rest = match source.get(at..).unwrap_or_default() {
        [first @ (b'*' | b'/' | b'<' | b'>'), second, rest @ ..] if first == second => rest,
        [
            b'+' | b'-' | b'*' | b'/' | b'%' | b'&' | b'|' | b'^' | b'@',
            rest @ ..,
        ] => rest,
        _ => return false,
    };
    rest.first() == Some(&b'=')
}

/// The end of the comment, or of the line end behind a backslash, that starts at `at`; where neither does, none.
#[must_use]
pub fn hidden_end(source: &[u8], at: usize) -> Option<usize> {
    match source.get(at..)? {
        [b'#', rest @ ..] => {
            Some(memchr2(b'\n', b'\r', rest).map_or(source.len(), |length| at + 1 + length))
        }
        [b'\\', ..] => newline_end(source, at + 1),
        _ => None,
    }
}

/// The end of a line end, `\n`, `\r` or `\r\n`, if there is one at `at`.
#[must_use]
pub fn newline_end(source: &[u8], at: usize) -> Option<usize> {
    match source.get(at..)? {
        [b'\r', b'\n', ..] => Some(at + 2),
        [b'\r' | b'\n', ..] => Some(at + 1),
        _ => None,
    }
}

/// The end of the string whose first quote is at `at`, if it ends.
///
/// Strings end where Python's do: a backslash takes the next character with it, also in raw strings, and only triple
/// quotes go over a line end.
#[must_use]
pub fn string_end(source: &[u8], at: usize) -> Option<usize> {
    let rest = source.get(at..)?;
    match rest {
        [b'"', b'"', b'"', ..] | [b'\'', b'\'', b'\'', ..] => triple_end(rest),
        _ => plain_end(rest),
    }
    .map(|length| at + length)
}

fn triple_end(string: &[u8]) -> Option<usize> {
    let quote = *string.first()?;
    let mut content = 3;
    for at in memchr2_iter(quote, b'\\', string) {
        if at < content {
            continue;
        }
        match string.get(at..)? {
            [b'\\', ..] => content = at + 2,
            [_, second, third, ..] if *second == quote && *third == quote => return Some(at + 3),
            _ => {}
        }
    }
    None
}

fn plain_end(string: &[u8]) -> Option<usize> {
    let quote = *string.first()?;
    let mut at = 1;
    loop {
        let (found, byte) = next(string, at, QUOTE | BACKSLASH | NEWLINE)?;
        at = match byte {
            b'\\' => newline_end(string, found + 1).unwrap_or(found + 2),
            b'\n' | b'\r' => return None,
            _ if byte == quote => return Some(found + 1),
            _ => found + 1,
        };
    }
}

/// The end of the blanks, comments and line ends that start at `from`; inside of brackets they mean nothing.
#[must_use]
pub fn filler_end(source: &[u8], from: usize) -> usize {
    let mut at = from;
    loop {
        at = match hidden_end(source, at) {
            Some(end) => end,
            None if source
                .get(at)
                .is_some_and(|byte| is(*byte, BLANK | NEWLINE)) =>
            {
                at + 1
            }
            None => return at,
        };
    }
}

/// What `text` says, without the filler around it.
#[must_use]
pub fn trimmed(text: &[u8]) -> Range<usize> {
    let start = filler_end(text, 0);
    let (mut at, mut end) = (start, start);
    while at < text.len() {
        let next = filler_end(text, at);
        if next > at {
            at = next;
            continue;
        }
        at = match text.get(at) {
            Some(b'"' | b'\'') => string_end(text, at).unwrap_or(text.len()),
            _ => at + 1,
        };
        end = at.min(text.len());
    }
    start..end
}

/// Where the integer literal stands that `text` is, in any number of parentheses, and what it says.
#[must_use]
pub fn integer_in(text: &[u8]) -> Option<(Range<usize>, u64)> {
    let mut start = filler_end(text, 0);
    let mut depth = 0_usize;
    while text.get(start) == Some(&b'(') {
        depth += 1;
        start = filler_end(text, start + 1);
    }
    let end = word_end(text, start);
    let value = integer(text.get(start..end)?)?;
    let mut rest = filler_end(text, end);
    while text.get(rest) == Some(&b')') {
        depth = depth.checked_sub(1)?;
        rest = filler_end(text, rest + 1);
    }
    (depth == 0 && rest == text.len()).then_some((start..end, value))
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
    let grouped = if radix == 10 {
        digits.to_owned()
    } else {
        format!("0{digits}")
    };
    let misplaced = grouped.starts_with('_') || grouped.ends_with('_') || grouped.contains("__");
    let plain = grouped.replace('_', "");
    // Python has no 0123: only zero itself may start with a zero.
    let padded = radix == 10 && plain.starts_with('0') && plain.bytes().any(|digit| digit != b'0');
    if misplaced || padded || digits.is_empty() || !plain.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return None;
    }
    u64::from_str_radix(&plain, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_where_pythons_do() {
        for (text, end) in [
            (r#""" x"#, 2),
            (r#""a'b" "#, 5),
            (r#""a\"b" "#, 6),
            (r#""a\\" ""#, 5),
            (r#"""""""x"#, 6),
            ("'''a''b\n''' '", 11),
            (r"'''\''''x", 8),
            ("'a\\\r\nb'", 7),
            (r#"""""a"""" "#, 8),
        ] {
            assert_eq!(string_end(text.as_bytes(), 0), Some(end), "{text}");
        }
        for open in [
            "\"",
            "'a\n'",
            "'a\\'",
            "'''a''",
            "'''a\\'''",
            "'a\\",
            "\"\"\"\"",
        ] {
            assert_eq!(string_end(open.as_bytes(), 0), None, "{open}");
        }
    }

    #[test]
    fn a_lambda_is_told_from_names_like_it() {
        let starts = |text: &str| {
            (0..text.len())
                .filter_map(|at| lambda_start(text.as_bytes(), at))
                .collect::<Vec<_>>()
        };
        // It is found by the fourth of its letters alone.
        assert_eq!(starts("(lambda: 0) and lambda x: 1"), [1, 16]);
        assert_eq!(
            starts("lambda_ xlambda 5lambda élambda Lambda lamb"),
            [0; 0]
        );
    }

    #[test]
    fn an_equals_sign_is_told_from_operators_with_one() {
        for longer in ["==", "<=", ">=", "!=", "+=", ":=", "@="] {
            assert!(
                is_in_longer_operator(longer.as_bytes(), longer.len() - 1),
                "{longer}"
            );
        }
        assert!(
            is_in_longer_operator(b"==", 0)
                && !is_in_longer_operator(b"a=b", 1)
                && !is_in_longer_operator(b"=", 0)
        );
        let augmented = [
            "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "@=", "**=", "//=", "<<=", ">>=",
        ];
        assert!(
            augmented
                .iter()
                .all(|operator| is_augmented(operator.as_bytes(), 0))
        );
        assert!(
            ["==", "<=", ">=", "!=", ":=", "=", "<", "+", ""]
                .iter()
                .all(|other| !is_augmented(other.as_bytes(), 0))
        );
    }

    #[test]
    fn a_value_is_what_stands_between_the_filler() {
        let value = |text: &str| {
            text.get(trimmed(text.as_bytes()))
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!(value(" \\\n a + '#' # b\n"), "a + '#'");
        assert_eq!(value("# only a comment"), "");
        assert_eq!(integer_in(b" (\n ( 2_048 ) # 1\n)\t"), Some((6..11, 2048)));
        for other in [
            "(1",
            "1)",
            "(1))",
            "()",
            "1 1",
            "1.0",
            "1e5",
            "1j",
            "-1",
            "'1'",
            "1if a else 2",
            "(1,)",
            "",
        ] {
            assert_eq!(integer_in(other.as_bytes()), None, "{other}");
        }
    }
}
