//! PURE: Python source → the integer literals that are the setting, or what was found instead.

use std::fmt;
use std::ops::Range;

use memchr::{memchr_iter, memmem};

use super::python::{self, Definition, Module, Place, Value};
use super::settings::{Form, FormPlace, Setting};

/// One integer literal that is the setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The name that is given the value.
    pub name: &'static str,
    /// The function, method or class it belongs to; `<module>` for a constant.
    pub owner: String,
    /// The line of the literal, from 1.
    pub line: usize,
    /// Where the literal stands, in bytes.
    pub range: Range<usize>,
    /// What it says, in tokens.
    pub value: u64,
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
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// The sites of `setting` in `source`, in the order in which they stand there.
///
/// Fails on source that cannot be read with certainty, on a computed value, on a value that is set a second time in
/// another way, and on fewer or more sites than the form must have.
pub fn locate(setting: &Setting, source: &[u8]) -> Result<Vec<Site>, Refusal> {
    let is_named = |name: &[u8]| {
        setting
            .forms
            .iter()
            .any(|form| form.name.as_bytes() == name)
    };
    let module = python::read(source, is_named)
        .map_err(|e| refusal(Some(line_of(source, e.offset)), format!("{} here", e.why)))?;
    let mut present = setting
        .forms
        .iter()
        .filter(|form| is_present(form, &module, source));
    let Some(form) = present.next() else {
        let names: Vec<_> = setting.forms.iter().map(describe).collect();
        return Err(refusal(
            None,
            format!("no {} with an integer value found", names.join(" and no ")),
        ));
    };
    if let Some(other) = present.next() {
        let what = format!(
            "has both {} and {}, so neither alone decides",
            describe(form),
            describe(other)
        );
        return Err(refusal(None, what));
    }
    sites_of(form, &module, source)
}

fn sites_of(form: &Form, module: &Module<'_>, source: &[u8]) -> Result<Vec<Site>, Refusal> {
    let mut sites = Vec::new();
    for definition in named(form, module, source) {
        match (fits(form, definition, module), &definition.value) {
            (true, Value::Integer(range, value)) => sites.push(Site {
                name: form.name,
                owner: module.owner(definition.scope),
                line: 0,
                range: range.clone(),
                value: *value,
            }),
            (true, Value::Other(range)) if is_unset(form, source, range) => {}
            (true, Value::Other(range)) => return Err(computed(form, source, definition, range)),
            (false, _) if overrides(form, definition) => {
                return Err(set_again(form, source, definition));
            }
            (false, _) => {}
        }
    }
    sites.sort_by_key(|site| site.range.start);
    number_lines(&mut sites, source);
    if form.count.admits(sites.len()) {
        return Ok(sites);
    }
    let lines: Vec<_> = sites
        .iter()
        .take(5)
        .map(|site| site.line.to_string())
        .collect();
    let what = format!(
        "{} is set {} times, in lines {}",
        describe(form),
        sites.len(),
        lines.join(", ")
    );
    Err(refusal(
        None,
        if sites.is_empty() {
            format!("no {} found", describe(form))
        } else {
            what
        },
    ))
}

fn named<'m>(
    form: &Form,
    module: &'m Module<'_>,
    source: &[u8],
) -> impl Iterator<Item = &'m Definition> {
    module
        .definitions
        .iter()
        .filter(|definition| source.get(definition.name.clone()) == Some(form.name.as_bytes()))
}

/// Whether this definition is one that the form means.
fn fits(form: &Form, definition: &Definition, module: &Module<'_>) -> bool {
    match form.place {
        FormPlace::ModuleConstant => {
            definition.place != Place::Parameter && definition.scope.is_none()
        }
        FormPlace::MethodParameter(class) => {
            definition.place == Place::Parameter && module.is_in_class(definition.scope, class)
        }
        FormPlace::AnyDefinition => definition.place != Place::Assigned,
    }
}

/// A form is there where any definition fits it that gives a value; `chunk_size: Optional[int] = None` gives none, and
/// neither does a parameter whose default is the constant of another form.
fn is_present(form: &Form, module: &Module<'_>, source: &[u8]) -> bool {
    named(form, module, source).any(|definition| {
        fits(form, definition, module)
            && match (&definition.value, form.place) {
                (Value::Integer(..), _) => true,
                (Value::Other(_), FormPlace::MethodParameter(_)) => false,
                (Value::Other(range), _) => !is_unset(form, source, range),
            }
    })
}

/// A default of `None` leaves the decision to the caller: nothing is set there.
fn is_unset(form: &Form, source: &[u8], value: &Range<usize>) -> bool {
    form.place != FormPlace::ModuleConstant && source.get(value.clone()) == Some(b"None".as_slice())
}

/// A literal that is assigned to the name elsewhere would decide in place of the sites that are edited.
fn overrides(form: &Form, definition: &Definition) -> bool {
    form.place == FormPlace::ModuleConstant
        || definition.place == Place::Assigned && matches!(definition.value, Value::Integer(..))
}

fn computed(form: &Form, source: &[u8], definition: &Definition, value: &Range<usize>) -> Refusal {
    let text = String::from_utf8_lossy(source.get(value.clone()).unwrap_or_default());
    let line = Some(line_of(source, definition.name.start));
    let shown: String = text.chars().take(40).collect();
    refusal(
        line,
        format!("{} is not a plain number but `{shown}`", form.name),
    )
}

fn set_again(form: &Form, source: &[u8], definition: &Definition) -> Refusal {
    let line = Some(line_of(source, definition.name.start));
    refusal(
        line,
        format!(
            "{} is set here in a way that would override the edit",
            form.name
        ),
    )
}

fn describe(form: &Form) -> String {
    match form.place {
        FormPlace::ModuleConstant => format!("constant {}", form.name),
        FormPlace::MethodParameter(class) => {
            format!("parameter {} of a method of {class}", form.name)
        }
        FormPlace::AnyDefinition => format!("definition of {}", form.name),
    }
}

fn refusal(line: Option<usize>, what: String) -> Refusal {
    Refusal { line, what }
}

/// Gives each site its line, in one pass over the source; the sites are in order.
fn number_lines(sites: &mut [Site], source: &[u8]) {
    let (mut line, mut counted) = (1, 0);
    for site in sites {
        line += line_ends(source, counted..site.range.start);
        counted = site.range.start;
        site.line = line;
    }
}

fn line_of(source: &[u8], offset: usize) -> usize {
    1 + line_ends(source, 0..offset)
}

/// How many lines end within `range`, which does not split a `\r\n`; a lone `\r` ends a line too.
fn line_ends(source: &[u8], range: Range<usize>) -> usize {
    let text = source.get(range).unwrap_or_default();
    let count = |byte| memchr_iter(byte, text).count();
    count(b'\r') + count(b'\n') - memmem::find_iter(text, b"\r\n").count()
}
