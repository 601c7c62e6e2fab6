//! What is typed as a value, in whatever command.

use crate::patch::settings::SIZES;

/// A chunk size in tokens: plain decimal digits, or with a `k` for 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("give plain digits such as 4096, or 4k".to_owned());
    }
    let number = digits.parse::<u64>().ok();
    let size = number.and_then(|number| number.checked_mul(unit));
    let (least, most) = (SIZES.start(), SIZES.end());
    let why = || format!("the size must be from {least} to {most} tokens");
    size.filter(|size| SIZES.contains(size)).ok_or_else(why)
}
