//! What a person sees of a chat: lines above the one being typed, or plain lines where the output is no terminal.

use rustyline::ExternalPrinter;

use crate::cli::output::Out;

/// Where lines appear.
pub(super) enum Screen {
    /// Above the line that is being typed.
    Terminal(Box<dyn ExternalPrinter + Send>),
    /// One after the other.
    Plain(Out),
}

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Somebody else's words.
    Theirs,
    /// The words of who sits here.
    Own,
    /// The program's.
    Notice,
}

impl Screen {
    /// Whether a person sits before it.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Screen::Terminal(_))
    }

    /// Shows one line. Its text must have been made harmless.
    pub(super) fn show(&mut self, tone: Tone, line: &str) -> anyhow::Result<()> {
        match self {
            Screen::Plain(out) => out.line(line),
            Screen::Terminal(printer) => Ok(printer.print(format!("{}\n", painted(tone, line)))?),
        }
    }
}

/// Dim for the program's own words, so that people's stand out; nothing where the environment asks for no colours.
fn painted(tone: Tone, line: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match tone {
        Tone::Theirs if !plain => format!("\u{1b}[1m{line}\u{1b}[0m"),
        Tone::Notice if !plain => format!("\u{1b}[2m{line}\u{1b}[0m"),
        _ => line.to_owned(),
    }
}

/// Hours and minutes of a time, as the clock on the wall shows them; with the day where that is another one.
pub(super) fn clock(time_ms: u64, now: &jiff::ZonedDateTime) -> String {
    let Ok(ms) = i64::try_from(time_ms) else { return "??:??".to_owned() };
    let Ok(time) = jiff::Timestamp::from_millisecond(ms) else { return "??:??".to_owned() };
    let time = time.to_zoned_datetime(now.time_zone().clone());
    let format = if time.date() == now.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    time.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_day_is_named() {
        let now: jiff::ZonedDateTime = "2026-03-01T10:00[UTC]".parse().unwrap();
        let ms = now.timestamp().as_millisecond() as u64;
        assert_eq!(clock(ms, &now), "10:00");
        assert_eq!(clock(ms - 11 * 3_600_000, &now), "2026-02-28 23:00");
        assert_eq!(clock(u64::MAX, &now), "??:??");
    }
}
