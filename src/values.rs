//! What is typed as a value, in whatever command.

use std::time::Duration;

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

/// A time in seconds, also parts of one; no longer than a day.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "give a number of seconds")?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration > Duration::from_secs(86_400) {
        return Err("at most a day, 86400".to_owned());
    }
    Ok(duration)
}
