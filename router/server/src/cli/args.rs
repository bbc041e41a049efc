//! Values on the command line: parsed into what they mean, with an error that says what is expected.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_core::ids::UserId;

/// Where a server listens and a client looks for it.
pub(super) const SERVER: &str = "127.0.0.1:7400";

/// Where a server keeps its data and a client looks for development keys.
pub(super) const DATA: &str = "whimbrel-data";

/// No time on the command line is longer: ten years.
const DURATION_MAX_S: u64 = 3650 * 86_400;

/// Whom a message is for, as it was named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// The 1:1 chat with this user.
    User(String),
    /// This chat, in hexadecimal digits.
    Chat(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::User(user) => f.write_str(user),
            Target::Chat(chat) => write!(f, "chat {chat}"),
        }
    }
}

/// A user's name.
pub(super) fn user(text: &str) -> Result<String, String> {
    match UserId::new(text) {
        Some(user) => Ok(user.as_str().to_owned()),
        None => Err(format!("a user's name is 1 to {} of a-z 0-9 . _ + -", UserId::MAX_BYTES)),
    }
}

/// A chat's id as it is printed: 32 hexadecimal digits.
pub(super) fn chat(text: &str) -> Result<u128, String> {
    if text.len() != 32 {
        return Err(format!("a chat's id is 32 hexadecimal digits, this has {} characters", text.chars().count()));
    }
    if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a chat's id is 32 hexadecimal digits".to_owned());
    }
    u128::from_str_radix(text, 16).map_err(|_| "a chat's id is 32 hexadecimal digits".to_owned())
}

/// An address whose host is looked up later.
pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let is_address = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_address { Ok(text.to_owned()) } else { Err("an address is HOST:PORT, like 127.0.0.1:7401".to_owned()) }
}

/// A time: a number and its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let expected = || "a time is a number and a unit: 500ms, 5s, 15m, 12h, 30d".to_owned();
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let ms = match &text[digits.len()..] {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        "" if number == 0 => Some(0),
        _ => return Err(expected()),
    };
    match ms {
        Some(ms) if ms <= DURATION_MAX_S * 1_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("at most {}d", DURATION_MAX_S / 86_400)),
    }
}

/// What a bench of a disk writes to: a number of bytes and its unit.
pub(super) fn bench_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let expected = || "a size is a number and a unit: 64MiB, 4GiB".to_owned();
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let unit: u64 = match &text[digits.len()..] {
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    let bytes = number.checked_mul(unit).filter(|bytes| (16 << 20..=64 << 30).contains(bytes));
    bytes.ok_or_else(|| "from 16MiB to 64GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_a_bound() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "-5s", "5 s", "5w", "3651d", "99999999999999999999d", "9999999999999999d", "ä"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!([bench_size("16MiB"), bench_size("64GiB")], [Ok(16 << 20), Ok(64 << 30)]);
        for wrong in
            ["", "16", "MiB", "15MiB", "65GiB", "16MB", "-16MiB", "99999999999999999999GiB", "18014398509481985GiB"]
        {
            assert!(bench_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn chats_are_32_digits() {
        assert_eq!(chat("0000000000000000000000000000001f"), Ok(31));
        assert!(chat("1f").is_err());
        assert!(chat("+000000000000000000000000000001f").is_err());
        assert!(chat("0000000000000000000000000000001g").is_err());
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for right in ["127.0.0.1:7401", "[::1]:7401", "node-1:80"] {
            assert_eq!(host_and_port(right), Ok(right.to_owned()));
        }
        for wrong in ["", "7401", ":7401", "node-1", "node-1:", "node-1:http", "node-1:70000"] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn users_are_plain_names() {
        assert_eq!(user("alice.b-1"), Ok("alice.b-1".to_owned()));
        for wrong in ["", "Alice", "a b", "a/b", "ü"] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
    }
}
