//! What the commands print: to a reader that may go away, of senders that may want to write on somebody else's terminal.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// The reader of standard output is gone. The process ends, and that is no failure.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(super) struct StdoutClosed;

/// An error together with what its reader can do about it.
#[derive(Debug)]
pub(super) struct Failure {
    what: String,
    remedy: Option<String>,
}

impl Failure {
    pub(super) fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), remedy: None }
    }

    pub(super) fn with_remedy(what: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure { what: what.into(), remedy: Some(remedy.into()) }
    }

    /// Both in one line.
    pub(super) fn one_line(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}; {remedy}", self.what),
            None => self.what.clone(),
        }
    }

    /// The command to run or the option to give.
    pub(super) fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}

/// Standard output, flushed at each line: what was printed may be acknowledged after it.
pub(super) struct Out {
    stream: io::Stdout,
}

impl Out {
    pub(super) fn stdout() -> Out {
        Out { stream: io::stdout() }
    }

    /// One line.
    pub(super) fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// One value as a line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    /// Text as it is.
    pub(super) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        let mut stream = self.stream.lock();
        match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            Err(error) => Err(anyhow::Error::new(error).context("write to standard output")),
        }
    }
}

/// A text of somebody else's, such that it can neither move the cursor nor turn the direction of writing: what could is
/// escaped, like line ends, so that one message is one line.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if harmful(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// A payload as a person reads it.
pub(super) fn payload_text(payload: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(payload) {
        Ok(text) => printable(text),
        Err(_) => Cow::Owned(format!("({} bytes that are not text)", payload.len())),
    }
}

/// A chat's id as it is printed and read again.
pub(super) fn chat_text(chat: u128) -> String {
    format!("{chat:032x}")
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_write_on_the_terminal() {
        assert_eq!(printable("plain, ünïcode 🐦"), "plain, ünïcode 🐦");
        assert_eq!(printable("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("two\nlines"), "two\\nlines");
        assert_eq!(printable("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(payload_text(&[0xff, 0xfe]), "(2 bytes that are not text)");
    }
}
