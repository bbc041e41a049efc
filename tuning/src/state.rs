//! The journal of what was changed: one JSON object a line, on stable storage before the change that it tells of. So whatever
//! happens in between, what was there first is known: of several records of one place the first counts.
//!
//! A line that was torn by a crash is the last one, and its change was not made: it is cut off.

#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::plan::Place;

/// Where it is kept, unless it is said.
pub const DIRECTORY: &str = "/var/lib/whimbrel-tune";

const FILE: &str = "journal";
const LOCK: &str = "lock";
const SCHEMA: &str = "whimbrel-tune-journal/1";

/// One line of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// An `apply` begins; what follows is its.
    Begin {
        /// The form of this file.
        schema: String,
        /// The profile.
        profile: String,
        /// The kernel's start.
        boot_id: String,
        /// The network namespace.
        network_namespace: String,
    },
    /// A value is about to be changed.
    Change {
        /// The profile's key.
        key: String,
        /// Where.
        place: Place,
        /// What stood there, byte for byte.
        original: String,
        /// What is about to be written. None: the kernel changes it by itself, because of its twin.
        wrote: Option<String>,
    },
    /// A file is about to be written.
    File {
        /// Its place.
        path: String,
        /// What stood there; none if there was no such file.
        original: Option<String>,
        /// Its mode then.
        mode: Option<u32>,
    },
    /// A folder is about to be made.
    Folder {
        /// Its place.
        path: String,
    },
}

/// Why the journal is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or read.
    #[error("cannot keep a journal in {directory}: {source}")]
    Io {
        /// The state's directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else is at it.
    #[error("another whimbrel-tune works with {directory}: wait until it has ended")]
    Busy {
        /// The state's directory.
        directory: PathBuf,
    },
    /// A line that is not of this form.
    #[error(
        "{path}, line {line} is not understood ({source}); nothing was changed. It was written by another version or damaged: \
         restore the values that the lines before it name by hand, then remove the file"
    )]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A later form.
    #[error("{path} has the form {schema}, and this program knows {SCHEMA}: use the whimbrel-tune that wrote it")]
    Schema {
        /// The journal.
        path: PathBuf,
        /// The form that it names.
        schema: String,
    },
}

impl StateError {
    /// Whether it is only that one has to be root.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        let StateError::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// A change together with the run that made it.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The kernel's start when it was noted.
    pub boot_id: String,
    /// The network namespace in which it was noted.
    pub network_namespace: String,
    /// The record.
    pub record: Record,
}

/// A length of the journal.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// The journal, open and locked.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    length: u64,
    noted: Vec<Noted>,
    _lock: File,
}

impl Journal {
    /// Opens the journal, makes it if there is none, and keeps others away from it.
    ///
    /// # Errors
    /// It cannot be made or read, or somebody else has it open.
    pub fn open(directory: &Path) -> Result<Journal, StateError> {
        let wrap = |source| StateError::Io { directory: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(wrap)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK));
        let lock = lock.map_err(wrap)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StateError::Busy { directory: directory.to_owned() }),
            Err(error) => return Err(wrap(error.into())),
        }
        let path = directory.join(FILE);
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(wrap)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(wrap)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(wrap)?;
        file.seek(io::SeekFrom::End(0)).map_err(wrap)?;
        file.sync_all().map_err(wrap)?;
        sync_directory(directory).map_err(wrap)?;
        if let Some(above) = directory.parent().filter(|above| !above.as_os_str().is_empty()) {
            sync_directory(above).map_err(wrap)?;
        }
        let noted = parse(&text[..whole], &path)?;
        Ok(Journal { directory: directory.to_owned(), file, length: whole as u64, noted, _lock: lock })
    }

    /// Notes that an `apply` of this profile begins.
    ///
    /// # Errors
    /// It could not be written.
    pub fn begin(&mut self, profile: &str, machine: &Machine) -> Result<(), StateError> {
        self.note(Noted {
            boot_id: machine.boot_id(),
            network_namespace: machine.network_namespace(),
            record: Record::Begin {
                schema: SCHEMA.to_owned(),
                profile: profile.to_owned(),
                boot_id: machine.boot_id(),
                network_namespace: machine.network_namespace(),
            },
        })
    }

    /// Notes what is about to be done, and returns when that is on stable storage.
    ///
    /// # Errors
    /// It could not be written: then it must not be done.
    pub fn before(&mut self, record: Record) -> Result<(), StateError> {
        let (boot_id, network_namespace) = match self.noted.last() {
            Some(last) => (last.boot_id.clone(), last.network_namespace.clone()),
            None => Default::default(),
        };
        self.note(Noted { boot_id, network_namespace, record })
    }

    fn note(&mut self, noted: Noted) -> Result<(), StateError> {
        let line = serde_json::to_string(&noted.record).map_err(io::Error::other);
        let written = line.and_then(|line| {
            self.file.write_all(format!("{line}\n").as_bytes())?;
            self.file.sync_data()?;
            Ok(line.len() as u64 + 1)
        });
        self.length += written.map_err(|source| StateError::Io { directory: self.directory.clone(), source })?;
        self.noted.push(noted);
        Ok(())
    }

    /// All that was noted, in its order.
    #[must_use]
    pub fn noted(&self) -> &[Noted] {
        &self.noted
    }

    /// How long it is now, for [`Journal::forget_since`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.length)
    }

    /// Forgets what was noted since: all of that is undone, or was never done.
    ///
    /// # Errors
    /// It could not be written.
    pub fn forget_since(self, mark: Mark) -> Result<(), StateError> {
        if mark.0 == 0 {
            return self.finish();
        }
        let cut = self.file.set_len(mark.0).and_then(|()| self.file.sync_all());
        cut.map_err(|source| StateError::Io { directory: self.directory.clone(), source })
    }

    /// Removes the journal: what it told of is undone.
    ///
    /// # Errors
    /// It could not be removed.
    pub fn finish(self) -> Result<(), StateError> {
        let removed = fs::remove_file(self.directory.join(FILE)).and_then(|()| sync_directory(&self.directory));
        removed.map_err(|source| StateError::Io { directory: self.directory.clone(), source })
    }
}

/// Profiles that are applied, in the order in which they were: those of a journal that nobody has reverted.
///
/// # Errors
/// There is a journal, and it cannot be read.
pub fn applied(directory: &Path) -> Result<Vec<String>, StateError> {
    let path = directory.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StateError::Io { directory: directory.to_owned(), source }),
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut profiles: Vec<String> = Vec::new();
    for noted in parse(&text[..whole], &path)? {
        if let Record::Begin { profile, .. } = noted.record
            && !profiles.contains(&profile)
        {
            profiles.push(profile);
        }
    }
    Ok(profiles)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Noted>, StateError> {
    let mut noted: Vec<Noted> = Vec::new();
    let (mut boot, mut namespace) = (String::new(), String::new());
    for (number, line) in (1..).zip(text.lines()) {
        let record = serde_json::from_str(line);
        let record = record.map_err(|source| StateError::Damaged { path: path.to_owned(), line: number, source })?;
        if let Record::Begin { schema, boot_id, network_namespace, .. } = &record {
            if schema != SCHEMA {
                return Err(StateError::Schema { path: path.to_owned(), schema: schema.clone() });
            }
            (boot, namespace) = (boot_id.clone(), network_namespace.clone());
        }
        noted.push(Noted { boot_id: boot.clone(), network_namespace: namespace.clone(), record });
    }
    Ok(noted)
}

/// Puts the names in a folder on stable storage.
///
/// # Errors
/// It cannot be opened or flushed.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
