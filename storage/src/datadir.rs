//! The directory of a node: its lock and its identity.
//!
//! ```text
//! DIR/lock             held by the running process, which wrote its pid into it
//! DIR/whimbrel.json    what the directory was made with
//! DIR/shard-N/         the log of each shard
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::file::sync_directory;
use crate::unlinked::Unlinked;
use crate::{FileDisk, LogOptions};

/// Format of a data directory. 2 since there are checkpoints, and segments of the log that are not there any more: to a version
/// that knows neither, that would be damage.
pub const DATA_FORMAT: u32 = 2;

/// The oldest that is read. It becomes the newest when it is opened.
pub const DATA_FORMAT_OLDEST: u32 = 1;

const IDENTITY: &str = "whimbrel.json";
pub(crate) const LOCK: &str = "lock";

/// Digits of the largest pid.
const PID_WIDTH: usize = 10;

/// What a data directory is made with and keeps for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Partitions of the cluster.
    pub partitions: u16,
    /// Shards of the node.
    pub shards: u16,
    /// Bytes of a segment of the log.
    pub segment_size: u32,
}

/// What an operator asked for in so many words. A directory that was made otherwise is refused; what is not asked for is as
/// the directory says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Partitions of the cluster.
    pub partitions: Option<u16>,
    /// Shards of the node.
    pub shards: Option<u16>,
    /// Bytes of a segment of the log.
    pub segment_size: Option<u32>,
}

/// The contents of `whimbrel.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of the format of everything in the directory.
    pub format: u32,
    /// A random number in hexadecimal, the same on all nodes of a cluster.
    pub cluster: String,
    /// This node of the cluster.
    pub node: u64,
    /// Partitions of the cluster.
    pub partitions: u16,
    /// Shards of the node.
    pub shards: u16,
    /// Bytes of a segment of the log.
    pub segment_size: u32,
}

impl Identity {
    /// The checksum that stands beside it, of all that it says.
    fn sum(&self) -> String {
        format!("{:08x}", crc32c::crc32c(&serde_json::to_vec(self).expect(IS_JSON)))
    }
}

const IS_JSON: &str = "numbers and a string are always valid JSON";

/// Its name in the file. One that was written before there was any has none.
const SUM: &str = "crc32c";

/// An identity as it is written.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    identity: &'a Identity,
    crc32c: String,
}

/// Why a data directory was not opened. Each names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process holds the lock.
    #[error("{path} is in use by {holder}: stop it, or choose another directory with --data")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// `process 123`, as the lock file says, or `another process`.
        holder: String,
    },
    /// The permissions do not let this process in.
    #[error(
        "no permission to {doing} {path}: run as the user it belongs to, or `chown -R $(id -un)` the data directory \
         (it must be readable and writable by this user and on a writable file system)"
    )]
    Permission {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("no space left to {doing} {path}: make room on its file system, then start again; nothing is lost")]
    Full {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// Another failure of the file system.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path is not a directory.
    #[error("{path} is not a directory: choose another one with --data")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The identity cannot be read.
    #[error(
        "{path} is not a valid identity ({reason}): restore it from a backup; the logs beside it are of no use without"
    )]
    BadIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There are logs, but no identity.
    #[error(
        "{path} has logs but no whimbrel.json: restore that file from a backup, or choose another directory with --data"
    )]
    IdentityMissing {
        /// The directory.
        path: PathBuf,
    },
    /// Made by a version with another format.
    #[error(
        "{path} has format {found}, this program reads {known}: use the version of whimbrel that made it, or a newer one"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Asked for something else than what the directory was made with.
    #[error("{path} was made with {name} = {found}, not {asked}: start with {found}, or with an empty directory")]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// `partitions`, `shards` or `segment_size`.
        name: &'static str,
        /// As it was made.
        found: u32,
        /// As asked for.
        asked: u32,
    },
    /// A new directory was asked for with a shape that cannot be.
    #[error("a data directory cannot have {0}")]
    Shape(&'static str),
}

/// An open data directory. Its lock is held until this is dropped, or the process ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    unlinked: Unlinked,
    _lock: File,
}

impl DataDir {
    /// Locks a data directory and reads its identity. One that is not there, or has no logs yet, is made with `new` where
    /// nothing else is asked for.
    pub fn open(path: &Path, new: Shape, asked: Asked) -> Result<DataDir, DataDirError> {
        make_directory(path)?;
        let lock = lock(path)?;
        let identity = match read_identity(path)? {
            // What follows is not for an older version any more.
            Some(identity) if identity.format < DATA_FORMAT => {
                let identity = Identity { format: DATA_FORMAT, ..identity };
                write_identity(path, &identity)?;
                identity
            }
            Some(identity) => identity,
            None => make_identity(path, new, asked)?,
        };
        // A process that was killed in between may have made names that the directory does not keep.
        sync_directory(path).map_err(|error| failed("sync", path, error))?;
        let known = [
            ("partitions", u32::from(identity.partitions), asked.partitions.map(u32::from)),
            ("shards", u32::from(identity.shards), asked.shards.map(u32::from)),
            ("segment_size", identity.segment_size, asked.segment_size),
        ];
        for (name, found, asked) in known {
            if let Some(asked) = asked.filter(|&asked| asked != found) {
                return Err(DataDirError::Mismatch { path: path.to_owned(), name, found, asked });
            }
        }
        Ok(DataDir { path: path.to_owned(), identity, unlinked: Unlinked::default(), _lock: lock })
    }

    /// What it was made with.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The segment files of a shard.
    pub fn disk(&self, shard: u16) -> io::Result<FileDisk> {
        FileDisk::open(&self.path, shard).map(|disk| disk.with_unlinked(&self.unlinked))
    }

    /// The usual options of a shard's log, with this directory's size of segments.
    pub fn log_options(&self, shard: u16) -> LogOptions {
        LogOptions { segment_size: self.identity.segment_size, ..LogOptions::new(shard) }
    }
}

/// Puts a file in its place whole or not at all, readable by its owner only: written under another name, synced, renamed,
/// and the directory synced.
pub fn write_atomic(directory: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let tmp = directory.join(format!(".{name}.tmp"));
    let written = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&tmp, directory.join(name))
    };
    written().inspect_err(|_| {
        // What cannot be removed now is written over by the next one.
        let _ = fs::remove_file(&tmp);
    })?;
    sync_directory(directory)
}

fn make_directory(path: &Path) -> Result<(), DataDirError> {
    if path.exists() && !path.is_dir() {
        return Err(DataDirError::NotADirectory { path: path.to_owned() });
    }
    let missing: Vec<_> =
        path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).collect();
    fs::DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(|error| failed("make", path, error))?;
    // A directory that was made is on stable storage once the one above it is.
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_directory(above).map_err(|error| failed("sync", above, error))?;
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, DataDirError> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed("open", &path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let holder = holder(&file);
            return Err(DataDirError::Locked { path: directory.to_owned(), holder });
        }
        Err(error) => return Err(failed("lock", &path, error.into())),
    }
    // Over what stood there, and of one length: that needs no space on a disk that has none.
    let pid = format!("{:<PID_WIDTH$}\n", std::process::id());
    match file.write_all_at(pid.as_bytes(), 0) {
        // It is for who finds the directory locked, and no reason not to start.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
        written => written.map_err(|error| failed("write", &path, error))?,
    }
    Ok(file)
}

/// Who holds a lock, in words: the process that the lock file names, if that one is there. Somebody who only looks holds it too,
/// and does not write its name into it.
pub(crate) fn holder(mut lock: &File) -> String {
    let mut pid = String::new();
    let named = lock.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse::<u32>().ok());
    match named.filter(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

pub(crate) fn read_identity(directory: &Path) -> Result<Option<Identity>, DataDirError> {
    let path = directory.join(IDENTITY);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if directory.join("shard-0").exists() {
                Err(DataDirError::IdentityMissing { path: directory.to_owned() })
            } else {
                Ok(None)
            };
        }
        Err(error) => return Err(failed("read", &path, error)),
    };
    let bad = |reason: String| DataDirError::BadIdentity { path: path.clone(), reason };
    // The format first: of another one nothing else is known.
    let mut any: serde_json::Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let format = any.get("format").and_then(serde_json::Value::as_u64);
    let format = format.and_then(|format| u32::try_from(format).ok()).ok_or_else(|| bad("no format".to_owned()))?;
    if !(DATA_FORMAT_OLDEST..=DATA_FORMAT).contains(&format) {
        return Err(DataDirError::Format { path: directory.to_owned(), found: format, known: DATA_FORMAT });
    }
    let sum = any.as_object_mut().and_then(|fields| fields.remove(SUM));
    let identity: Identity = serde_json::from_value(any).map_err(|error| bad(error.to_string()))?;
    if sum.is_some_and(|sum| sum != identity.sum()) {
        return Err(bad("its checksum does not match".to_owned()));
    }
    if identity.has_shape() { Ok(Some(identity)) } else { Err(bad(NO_SHAPE.to_owned())) }
}

const NO_SHAPE: &str = "no shards, or fewer partitions than shards";

impl Identity {
    fn has_shape(&self) -> bool {
        self.shards > 0 && self.partitions >= self.shards
    }
}

fn make_identity(directory: &Path, new: Shape, asked: Asked) -> Result<Identity, DataDirError> {
    let identity = Identity {
        format: DATA_FORMAT,
        cluster: random_name().map_err(|error| failed("read", Path::new("/dev/urandom"), error))?,
        node: 1,
        partitions: asked.partitions.unwrap_or(new.partitions),
        shards: asked.shards.unwrap_or(new.shards),
        segment_size: asked.segment_size.unwrap_or(new.segment_size),
    };
    if !identity.has_shape() {
        return Err(DataDirError::Shape(NO_SHAPE));
    }
    let options = LogOptions { segment_size: identity.segment_size, ..LogOptions::new(0) };
    options
        .check()
        .map_err(|_| DataDirError::Shape("this segment_size: it is a multiple of 4 KiB from 260 KiB to 1 GiB"))?;
    write_identity(directory, &identity)?;
    Ok(identity)
}

fn write_identity(directory: &Path, identity: &Identity) -> Result<(), DataDirError> {
    let written = Written { identity, crc32c: identity.sum() };
    let text = serde_json::to_string_pretty(&written).expect(IS_JSON) + "\n";
    write_atomic(directory, IDENTITY, text.as_bytes())
        .map_err(|error| failed("write", &directory.join(IDENTITY), error))
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> DataDirError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => DataDirError::Permission { doing, path },
        io::ErrorKind::NotADirectory => DataDirError::NotADirectory { path },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DataDirError::Full { doing, path },
        _ => DataDirError::Io { doing, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_identity_counts_and_one_without_a_checksum_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let new = Shape { partitions: 16, shards: 2, segment_size: 4 << 20 };
        let identity = make_identity(dir.path(), new, Asked::default()).unwrap();
        let read = || read_identity(dir.path()).map(|read| read.expect("it is there"));
        assert_eq!(read().unwrap(), identity);
        let file = dir.path().join(IDENTITY);
        let good = fs::read(&file).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, &bytes).unwrap();
            assert!(read().is_err(), "bit {bit} makes it {}", String::from_utf8_lossy(&bytes));
        }
        let text = String::from_utf8(good).unwrap();
        let (before, _) = text.split_once(",\n  \"crc32c\"").unwrap();
        fs::write(&file, format!("{before}\n}}\n")).unwrap();
        assert_eq!(read().unwrap(), identity);
    }

    #[test]
    fn a_refusal_of_the_kernel_names_the_remedy() {
        for errno in [Errno::ACCESS, Errno::PERM, Errno::ROFS] {
            let error = failed("open", Path::new("/data/lock"), errno.into());
            assert!(error.to_string().contains("no permission to open /data/lock: run as"), "{error}");
        }
        let error = failed("write", Path::new("/data/lock"), Errno::NOSPC.into());
        assert!(error.to_string().contains("no space left to write /data/lock: make room"), "{error}");
        let error = failed("write", Path::new("/data/lock"), Errno::IO.into());
        assert!(error.to_string().contains("cannot write /data/lock: Input/output error"), "{error}");
    }
}
