//! Where the admin thread listens, and the file in the data directory that says so.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// In the data directory: the address, as text, while the admin thread runs.
const FILE: &str = "admin";

/// In the data directory: the process that holds it, or held it last.
const LOCK: &str = "lock";

/// Writes down where it listens.
pub(crate) fn write(data: &Path, address: SocketAddr) -> anyhow::Result<()> {
    whimbrel_storage::write_atomic(data, FILE, format!("{address}\n").as_bytes())
        .with_context(|| format!("write {}", data.join(FILE).display()))
}

/// Removes what this process, or one before it, wrote down.
pub(crate) fn remove(data: &Path) -> anyhow::Result<()> {
    match fs::remove_file(data.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", data.join(FILE).display()))
        }
        _ => Ok(()),
    }
}

/// Why a data directory does not say where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotWritten {
    #[error("{0} is not there")]
    NoDirectory(PathBuf),
    #[error("{0} is not the data directory of a server")]
    NotData(PathBuf),
    #[error("no server with an admin address runs on {0}")]
    NotRunning(PathBuf),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} says `{text}`, which is no address")]
    NoAddress { path: PathBuf, text: String },
}

/// Where the server of a data directory says that it listens.
pub(crate) fn read(data: &Path) -> Result<SocketAddr, NotWritten> {
    let path = data.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(if !data.exists() {
                NotWritten::NoDirectory(data.to_owned())
            } else if !data.join(LOCK).exists() {
                NotWritten::NotData(data.to_owned())
            } else {
                NotWritten::NotRunning(data.to_owned())
            });
        }
        Err(source) => return Err(NotWritten::Read { path, source }),
    };
    text.trim().parse().map_err(|_| NotWritten::NoAddress { path, text: text.trim().to_owned() })
}

/// The process that holds a data directory, as far as its lock file says.
pub(crate) fn owner(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join(LOCK)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:7401".parse().unwrap();
        write(dir.path(), address).unwrap();
        assert_eq!(read(dir.path()).unwrap(), address);
        remove(dir.path()).unwrap();
        assert!(matches!(read(dir.path()), Err(NotWritten::NotData(_))));
        remove(dir.path()).unwrap();
    }

    #[test]
    fn what_does_not_say_where_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert!(matches!(read(&absent), Err(NotWritten::NoDirectory(_))));
        fs::write(dir.path().join(LOCK), "12\n").unwrap();
        assert!(matches!(read(dir.path()), Err(NotWritten::NotRunning(_))));
        assert_eq!(owner(dir.path()), Some(12));
        let file = dir.path().join(LOCK);
        assert!(matches!(read(&file), Err(NotWritten::NotData(_))), "a file is no directory");
        for text in ["", "nowhere", "127.0.0.1"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert!(matches!(read(dir.path()), Err(NotWritten::NoAddress { .. })), "{text}");
        }
    }
}
