//! What is edited: the settings, where each stands, how many sites are expected, and what the vendor ships.

use std::ops::{Range, RangeInclusive};

use memchr::memmem;
use serde::Serialize;

/// The chunk sizes that can be set, in tokens. Smaller ones only cost speed, larger ones do not fit into memory.
pub const SIZES: RangeInclusive<u64> = 64..=131_072;
/// The chunk size that a bare `lmpatch` sets, in tokens.
pub const DEFAULT_SIZE: u64 = 4096;

/// A chunk size in tokens: plain decimal digits, or with a `k` for 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.strip_suffix(['k', 'K']).unwrap_or(text);
    let unit = if digits == text { 1 } else { 1024 };
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| is_plain);
    let size = number.and_then(|number| number.checked_mul(unit));
    let (least, most) = (SIZES.start(), SIZES.end());
    let why = || format!("give a size such as 4096 or 4k, from {least} to {most}");
    size.filter(|size| SIZES.contains(size)).ok_or_else(why)
}

/// The value of a decimal integer literal of Python's, which may have single underscores between digits.
pub fn number(literal: &str) -> Option<u64> {
    let is_group = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_python = literal == "0" || !literal.starts_with('0');
    let is_number = is_python && literal.split('_').all(is_group);
    literal.replace('_', "").parse().ok().filter(|_| is_number)
}

#[derive(Debug)]
pub struct Setting {
    pub package: &'static str,
    /// The path below `site-packages`, as `RECORD` writes it.
    pub path: &'static str,
    /// Newest engines first; only one of them may be there.
    pub forms: &'static [Form],
    /// The number that the vendor ships, from the source and the owner of the site.
    pub stock: fn(source: &[u8], owner: &str) -> u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Site {
    pub name: &'static str,
    /// The function, method or class it belongs to; `<module>` for a constant.
    pub owner: String,
    /// From 1.
    pub line: usize,
    #[serde(skip)]
    pub range: Range<usize>,
    /// In tokens, as is the stock value.
    pub value: u64,
    pub stock: u64,
}

pub type Form = (&'static str, FormPlace);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormPlace {
    /// The one constant of the module; two would mean that one overrides the other.
    ModuleConstant,
    /// The one default of a parameter of a method of this class.
    MethodParameter(&'static str),
    /// Every parameter default, and every annotated variable or field.
    AnyDefinition,
}

/// The one that governs first. Names, places and stock values hold for every published mlx-engine since 2025-02 and every
/// mlx-lm wheel since 0.22.3: the chunk was 512 until 2026-03-25, when `validate_prefill_step_size` came with 2048; mlx-lm
/// ships 512 for speculative decoding and 2048 for the rest.
pub const SETTINGS: [Setting; 2] = [
    Setting {
        package: "mlx_engine",
        path: "mlx_engine/cache_wrapper.py",
        forms: &[
            ("PROMPT_PROCESSING_CHUNK_SIZE", FormPlace::ModuleConstant),
            // Engines of 2025-02 to 2025-09, before the constant existed.
            ("chunk_size", FormPlace::MethodParameter("CacheWrapper")),
        ],
        stock: |source, _| match memmem::find(source, b"validate_prefill_step_size") {
            Some(_) => 2048,
            None => 512,
        },
    },
    Setting {
        package: "mlx_lm",
        path: "mlx_lm/generate.py",
        forms: &[("prefill_step_size", FormPlace::AnyDefinition)],
        stock: |_, owner| match owner {
            "speculative_generate_step" => 512,
            _ => 2048,
        },
    },
];
