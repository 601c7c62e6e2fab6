//! PURE: Python source → the number literals that are the setting, or a refusal with its line.
//!
//! Strings and comments are blanked, so that regular expressions see code only. In each logical line that mentions a
//! setting they look for the spellings that vendors use; whatever else gives that name a value is refused.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use memchr::{memchr, memmem};
use regex::bytes::Regex;
use serde::Serialize;

use super::lines::{blank, indent, items, line_ends, mark, regex};
use super::settings::{Form, FormPlace, Setting};

/// One number literal that is the setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Site {
    /// The name that is given the value.
    pub name: &'static str,
    /// The function, method or class it belongs to; `<module>` for a constant.
    pub owner: String,
    /// The line of the literal, from 1.
    pub line: usize,
    /// Where the literal stands, in bytes.
    #[serde(skip)]
    pub range: Range<usize>,
    /// What it says, in tokens.
    pub value: u64,
    /// What such a file ships with, in tokens.
    pub stock: u64,
}

/// Why a file was not understood: what was found, and in which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The line, from 1, where one can be named.
    pub line: Option<usize>,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// The sites of `setting` in `source`, in the order in which they stand there.
///
/// Fails on source that cannot be read with certainty, on any other binding of the name that counts, and on fewer or
/// more sites than the form must have.
pub fn locate(setting: &Setting, source: &[u8]) -> Result<Vec<Site>, Refusal> {
    let (text, lines) = blank(source).map_err(|(at, why)| refusal(source, at, why.to_owned()))?;
    let mut present = Vec::new();
    for form in setting.forms {
        let (scopes, sites, refusal) = (Vec::new(), Vec::new(), None);
        let mut reader = Reader {
            form,
            source,
            scopes,
            sites,
            refusal,
        };
        reader.read(&text, &lines);
        let is_optional = matches!(form.place, FormPlace::MethodParameter(_));
        if !reader.sites.is_empty() || reader.refusal.is_some() && !is_optional {
            present.push(reader);
        }
    }
    let whole = |what| Err(Refusal { line: None, what });
    let Some(reader) = present.pop() else {
        let names: Vec<_> = setting.forms.iter().map(Form::to_string).collect();
        return whole(format!(
            "no {} with an integer value found",
            names.join(" and no ")
        ));
    };
    let (form, mut sites) = (reader.form, reader.sites);
    for site in &mut sites {
        site.stock = (setting.stock)(source, &site.owner);
    }
    if let Some(other) = present.pop() {
        let both = format!("has both {} and {form}", other.form);
        return whole(both + ", so neither alone decides");
    }
    if let Some(refusal) = reader.refusal {
        return Err(refusal);
    }
    if form.admits(sites.len()) {
        return Ok(sites);
    }
    let lines: Vec<_> = sites.iter().take(5).map(|s| s.line.to_string()).collect();
    let (times, lines) = (sites.len(), lines.join(", "));
    whole(format!("{form} is set {times} times, in lines {lines}"))
}

fn refusal(source: &[u8], at: usize, what: String) -> Refusal {
    let line = Some(1 + line_ends(&source[..at]));
    Refusal { line, what }
}

/// Collects what gives the form's name a value.
struct Reader<'a> {
    form: &'a Form,
    source: &'a [u8],
    /// Every `def` and `class` that is open: its indentation, whether it is a class, its dotted path.
    scopes: Vec<(usize, bool, String)>,
    sites: Vec<Site>,
    /// Of the first binding that is not understood.
    refusal: Option<Refusal>,
}

impl Reader<'_> {
    fn read(&mut self, text: &[u8], lines: &[Range<usize>]) {
        let finder = memmem::Finder::new(self.form.name);
        for line in lines {
            let code = &text[line.clone()];
            let Some(first) = code.trim_ascii_start().first() else {
                continue;
            };
            let indent = indent(&self.source[line.clone()]);
            while self.scopes.pop_if(|(outer, ..)| *outer >= indent).is_some() {}
            if b"acd".contains(first)
                && let Some(header) = HEADER.captures(code)
            {
                let outer = self.scopes.last().map_or("", |(.., path)| path);
                let path = format!("{outer}.{}", String::from_utf8_lossy(&header[2]));
                self.scopes.push((indent, header.get(1).is_some(), path));
            }
            if finder.find(code).is_some() && self.is_inside() {
                self.read_line(&mark(code, self.form.name), line.start);
            }
        }
    }

    /// Whether the form means what is in the innermost class.
    fn is_inside(&self) -> bool {
        let FormPlace::MethodParameter(wanted) = self.form.place else {
            return true;
        };
        let class = self.scopes.iter().rfind(|(_, is_class, _)| *is_class);
        class.is_some_and(|(.., path)| path.rsplit('.').next() == Some(wanted))
    }

    /// Takes a logical line, in which the name is written in NUL bytes.
    fn read_line(&mut self, code: &[u8], start: usize) {
        let (items, body) = items(code);
        let end = start + code.len();
        if let Some(odd) = ODD.find(code).or_else(|| ODD_ITEM.find(&items)) {
            let at = start + odd.start() + memchr(0, odd.as_bytes()).unwrap_or(0);
            let is_shared = SHARED.is_match(&items);
            let why = if is_shared { SHARES } else { OVERRIDES };
            self.refuse(at, why, if is_shared { start } else { at }..end);
        }
        for (count, definition) in DEFINITION.captures_iter(&items).enumerate() {
            let range = |group| definition.get(group).map_or(0..0, |part| part.range());
            let (name, value) = (range(1), range(3));
            let (at, is_parameter) = (start + name.start, name.start < body);
            let is_definition = is_parameter || definition.get(2).is_some();
            let is_constant = self.form.place == FormPlace::ModuleConstant;
            let fits = match self.form.place {
                FormPlace::ModuleConstant => !is_parameter && self.scopes.is_empty(),
                FormPlace::MethodParameter(_) => is_parameter,
                FormPlace::AnyDefinition => is_definition,
            };
            let value = start + value.start..start + value.end;
            let text = String::from_utf8_lossy(&self.source[value.clone()]);
            match text.replace('_', "").parse() {
                _ if text == "None" && is_definition && !is_constant => {}
                _ if text.is_empty() => self.refuse(at, "has no value behind its `=`:", at..end),
                _ if !fits || count > 0 => self.refuse(at, OVERRIDES, at..end),
                Ok(number) if text.starts_with(char::is_numeric) => self.add(value, number),
                _ => self.refuse(at, "is not a plain number but", value),
            }
        }
    }

    fn add(&mut self, range: Range<usize>, value: u64) {
        let last = self.sites.last();
        let (line, counted) = last.map_or((1, 0), |site| (site.line, site.range.start));
        let innermost = self.scopes.last();
        let owner = innermost.map_or("<module>", |(.., path)| &path[1..]);
        self.sites.push(Site {
            name: self.form.name,
            owner: owner.to_owned(),
            line: line + line_ends(&self.source[counted..range.start]),
            range,
            value,
            stock: 0,
        });
    }

    /// Keeps the first refusal. It quotes the source up to the end of the line, and no more than a line can be.
    fn refuse(&mut self, at: usize, why: &str, quoted: Range<usize>) {
        let text = String::from_utf8_lossy(self.source[quoted].trim_ascii());
        let line = text.split(['\r', '\n']).next().unwrap_or_default();
        let shown: String = line.chars().take(120).collect();
        let rest = if shown.len() < text.len() { "…" } else { "" };
        let what = format!("{} {why} `{shown}{rest}`", self.form.name);
        let (source, first) = (self.source, self.refusal.take());
        self.refusal = first.or_else(|| Some(refusal(source, at, what)));
    }
}

const OVERRIDES: &str = "is set here in a way that would override the edit:";
const SHARES: &str = "shares its value with another name:";

static HEADER: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^\s*(?:async\s+)?(?:(class)|def)\s+(W+)"));
/// `name: annotation = value` as a whole item.
static DEFINITION: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?:^|;)\s*(\x00+)\s*(?::([^=;]*))?=\s*([^;\s]*(?:\s+[^;\s]+)*)"));
/// Other ways of binding the name, wherever they stand.
static ODD: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"\x00\s*(?:[-+*/%@&|^:]+=|[<>]\?)|\blambda\b.*\x00\s*=|\b(?:def|class)\s+\x00",
        r"|\b(?:global|nonlocal|del|import)\b[^;]*\x00|\bas\b[^:;]*\x00",
        r"|\bfor[\s*(\[]+(?:[\w.]+[\s)\]]*,[\s*(\[]*)*\x00|^\s*case\s+[^=\s].*\x00.*:"
    ))
});
/// Targets that are no item of their own, and lambdas whose commas and colons are not those of the items.
static ODD_ITEM: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"\x00\s*[,)\]=][^;]*=|[^;\s\x00]\s*\x00+\s*(?::[^;]*)?=",
        r"|\blambda\b.*\x00\s*[:=]|\x00\s*(?::[^=,;]*)?(?:=\s*)?\blambda\b"
    ))
});
/// `A = B = 4096`.
static SHARED: LazyLock<Regex> = LazyLock::new(|| regex(r"=\s*\x00+\s*=|\x00\s*=[^;=]*="));
