//! What the commands print, to a reader that may go away.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use serde::Serialize;

/// The reader of standard output is gone. The process ends, and that is no failure.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(super) struct StdoutClosed;

/// How it was called was wrong: calling it again as it was cannot help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// Prints text as it is.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stream = io::stdout().lock();
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("write to standard output")),
    }
}

/// Prints one value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Columns as wide as their widest cell; the last one is not padded, and empty ones are left out.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths).filter(|(_, width)| **width > 0) {
            let padding = width.saturating_sub(cell.chars().count());
            line.push_str(&format!("{cell}{}  ", " ".repeat(padding)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
