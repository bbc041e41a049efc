//! Times and sizes as settings have them: a number and a unit.

#![forbid(unsafe_code)]

use std::time::Duration;

/// Microseconds.
pub(crate) fn duration_us(text: &str) -> Result<u64, String> {
    let expected = || "a time is a number and a unit from 1ms to 365d: 500ms, 90s, 15m, 12h, 30d".to_owned();
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    let ms = number.checked_mul(unit_ms).filter(|ms| (1..=365 * 86_400_000).contains(ms)).ok_or_else(expected)?;
    Ok(Duration::from_millis(ms).as_micros() as u64)
}

/// Bytes of what is counted by `u32`.
pub(crate) fn size(text: &str) -> Result<u32, String> {
    let expected = || "a size is a number and a unit from 1B to 2GiB: 4096, 64KiB, 64MiB".to_owned();
    let size = bytes(text).filter(|bytes| (1..=1 << 31).contains(bytes)).ok_or_else(expected)?;
    u32::try_from(size).map_err(|_| expected())
}

/// A number of bytes, or a number and a unit.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..digits], text[digits..].trim())
}

pub(crate) fn print_us(us: u64) -> String {
    let ms = us / 1000;
    if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

pub(crate) fn print_size(bytes: u64) -> String {
    match bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        bytes => bytes.to_string(),
    }
}
