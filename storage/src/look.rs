//! A data directory that is only looked at: nothing in it is made, changed or removed, not even its lock file. Its calls block.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::datadir::{self, DataDirError, Identity};
use crate::file::{CHECKPOINT_ASIDE, END, SEGMENT_ASIDE};
use crate::limits::SEGMENT_MAX_BYTES;
use crate::{SegmentId, Unreadable};

/// Segments are read in pieces of this size, so that progress shows and an end can be asked for.
const PIECE_BYTES: usize = 1 << 20;

/// Where the disk fails to give a piece, it is asked for in these: what drives take for a block.
const BLOCK_BYTES: usize = 4096;

/// Why a data directory is not looked at. Each names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// A server has it.
    #[error(
        "{path} is in use by {holder}: what it writes meanwhile would look damaged. Stop it first (kill -TERM), or look at a \
         snapshot of its file system; what a running server knows is shown by `whimbrel status`"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// `process 123`, or `another process`.
        holder: String,
    },
    /// There is nothing by that name.
    #[error("{path} does not exist: name a data directory, as `whimbrel serve --data` takes it")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A file, or something else.
    #[error("{path} is not a directory: name a data directory, as `whimbrel serve --data` takes it")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A directory without an identity and without logs.
    #[error(
        "{path} is not a data directory, or no server has ever started on it: it has no whimbrel.json. Name one as \
         `whimbrel serve --data` takes it"
    )]
    NoIdentity {
        /// The directory.
        path: PathBuf,
    },
    /// The permissions do not let this process in.
    #[error("no permission to read {path}: run as the user it belongs to, or as root")]
    Permission {
        /// What.
        path: PathBuf,
    },
    /// Its identity is not good.
    #[error("{0}")]
    Identity(DataDirError),
    /// Another failure of the file system.
    #[error("cannot read {path}: {source}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A data directory that is looked at. As long as it is, no server starts on it.
#[derive(Debug)]
pub struct Look {
    path: PathBuf,
    identity: Identity,
    /// Shared with others who look. `None` where there is no lock file, as in a copy: then no server has been there.
    _lock: Option<File>,
}

/// The files of a shard, by what their names say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardFiles {
    /// Segments, in their order.
    pub segments: Vec<SegmentId>,
    /// Checkpoints, the newest first.
    pub checkpoints: Vec<u64>,
    /// What a crash left of files that were being made: they go after the next start, or it keeps their bytes for checkpoints.
    pub remains: Vec<String>,
    /// Damaged checkpoints and spare segments that starts put aside.
    pub put_aside: Vec<PutAside>,
    /// Anything else, but for the mark of a clean end and the bytes that are kept for checkpoints.
    pub others: Vec<String>,
}

/// A damaged file that a start put aside. Nothing reads it: a checkpoint, in the place of which another one served, or a spare segment,
/// in which no batch ever was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutAside {
    /// Of the file, in the directory of its shard.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

impl PutAside {
    /// What it was.
    pub fn was(&self) -> &'static str {
        if self.name.ends_with(SEGMENT_ASIDE) { "spare segment" } else { "checkpoint" }
    }
}

/// What starts have put aside of the log of a shard in a data directory, which a server may have.
pub fn put_aside(data: &Path, shard: u16) -> io::Result<Vec<PutAside>> {
    put_aside_in(&data.join(format!("shard-{shard}")))
}

pub(crate) fn put_aside_in(directory: &Path) -> io::Result<Vec<PutAside>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_aside(&name) {
            match entry.metadata() {
                Ok(metadata) => found.push(PutAside { name, bytes: metadata.len() }),
                // Whoever was told of it has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn is_aside(name: &str) -> bool {
    name.ends_with(CHECKPOINT_ASIDE) || name.ends_with(SEGMENT_ASIDE)
}

impl Look {
    /// Looks at a data directory that no server has.
    pub fn open(path: &Path) -> Result<Look, LookError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(LookError::NotADirectory { path: path.to_owned() }),
            Err(error) => return Err(failed(path, error)),
        }
        let lock = lock_shared(path)?;
        let identity = match datadir::read_identity(path) {
            Ok(Some(identity)) => identity,
            Ok(None) => return Err(LookError::NoIdentity { path: path.to_owned() }),
            Err(DataDirError::Permission { path, .. }) => return Err(LookError::Permission { path }),
            Err(error) => return Err(LookError::Identity(error)),
        };
        Ok(Look { path: path.to_owned(), identity, _lock: lock })
    }

    /// What it was made with.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The numbers of the shards whose directories are there, in their order.
    pub fn shards(&self) -> Result<Vec<u16>, LookError> {
        let names = names(&self.path)?;
        let mut shards: Vec<u16> = names.iter().filter_map(|name| name.strip_prefix("shard-")?.parse().ok()).collect();
        shards.sort_unstable();
        Ok(shards)
    }

    /// The files of a shard.
    pub fn files(&self, shard: u16) -> Result<ShardFiles, LookError> {
        let directory = self.directory(shard);
        let put_aside = put_aside_in(&directory).map_err(|error| failed(&directory, error))?;
        let mut files = ShardFiles { put_aside, ..ShardFiles::default() };
        for name in names(&directory)?.into_iter().filter(|name| !is_aside(name)) {
            let number = |ending: &str| name.strip_suffix(ending).filter(|number| number.len() == 10);
            if let Some(id) = number(".seg").and_then(|number| number.parse().ok()) {
                files.segments.push(SegmentId(id));
            } else if let Some(number) = name.strip_suffix(".ckpt").and_then(|number| number.parse().ok()) {
                files.checkpoints.push(number);
            } else if name.ends_with(".tmp") {
                files.remains.push(name);
            } else if name != END && !name.ends_with(".reserve") {
                files.others.push(name);
            }
        }
        files.segments.sort_unstable();
        files.checkpoints.sort_unstable_by(|one, other| other.cmp(one));
        Ok(files)
    }

    /// Opens a segment for reading; what is read comes from the disk and not from the cache, where the kernel does as it is
    /// asked.
    pub fn segment(&self, shard: u16, id: SegmentId) -> Result<SegmentFile, LookError> {
        let path = self.directory(shard).join(format!("{:010}.seg", id.0));
        let file = File::open(&path).map_err(|error| failed(&path, error))?;
        let bytes = file.metadata().map_err(|error| failed(&path, error))?.len();
        drop_cache(&file);
        Ok(SegmentFile { file, bytes })
    }

    /// The time at which a checkpoint was written, and its bytes.
    pub fn checkpoint(&self, shard: u16, number: u64) -> (Option<std::time::SystemTime>, io::Result<Vec<u8>>) {
        let path = self.directory(shard).join(format!("{number:010}.ckpt"));
        let made = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        // One that cannot be opened cannot be read either, and that is told.
        let _ = File::open(&path).map(|file| drop_cache(&file));
        (made, fs::read(&path))
    }

    /// Bytes of all segments, of all shards.
    pub fn bytes(&self) -> Result<u64, LookError> {
        let mut bytes = 0;
        for shard in self.shards()? {
            let directory = self.directory(shard);
            for name in names(&directory)?.into_iter().filter(|name| name.ends_with(".seg")) {
                let path = directory.join(name);
                bytes += fs::metadata(&path).map_err(|error| failed(&path, error))?.len();
            }
        }
        Ok(bytes)
    }

    fn directory(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard}"))
    }
}

/// A segment that is read.
#[derive(Debug)]
pub struct SegmentFile {
    file: File,
    /// Bytes of the file.
    pub bytes: u64,
}

impl SegmentFile {
    /// Reads it whole into `out`, with zeros for what the disk does not give: that is listed. No more is read than a segment
    /// can have. `each` is told of every piece and ends it by `false`.
    pub fn read(&self, out: &mut Vec<u8>, each: &mut dyn FnMut(u64) -> bool) -> Vec<Unreadable> {
        let len = self.bytes.min(u64::from(SEGMENT_MAX_BYTES)) as usize;
        read_all(&|buf, at| self.file.read_exact_at(buf, at), len, out, each)
    }
}

impl Drop for SegmentFile {
    /// A log is larger than what a machine should forget for its sake.
    fn drop(&mut self) {
        drop_cache(&self.file);
    }
}

fn read_all(
    read: &dyn Fn(&mut [u8], u64) -> io::Result<()>,
    len: usize,
    out: &mut Vec<u8>,
    each: &mut dyn FnMut(u64) -> bool,
) -> Vec<Unreadable> {
    let mut unreadable: Vec<Unreadable> = Vec::new();
    out.clear();
    out.resize(len, 0);
    for start in (0..len).step_by(PIECE_BYTES) {
        let end = len.min(start + PIECE_BYTES);
        if read(&mut out[start..end], start as u64).is_err() {
            for at in (start..end).step_by(BLOCK_BYTES) {
                let block = &mut out[at..end.min(at + BLOCK_BYTES)];
                let bytes = block.len() as u32;
                let Err(error) = read(block, at as u64) else { continue };
                block.fill(0);
                match unreadable.last_mut() {
                    Some(last) if last.offset + last.bytes == at as u32 => last.bytes += bytes,
                    _ => unreadable.push(Unreadable { offset: at as u32, bytes, error: error.to_string() }),
                }
            }
        }
        if !each((end - start) as u64) {
            break;
        }
    }
    unreadable
}

fn drop_cache(file: &File) {
    // Advice: where it is not taken the cache is looked at, which is no worse than what a server sees.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

fn lock_shared(directory: &Path) -> Result<Option<File>, LookError> {
    let path = directory.join(datadir::LOCK);
    let file = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(&path, error.into())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Err(LookError::InUse { path: directory.to_owned(), holder: datadir::holder(&file) }),
        Err(error) => Err(failed(&path, error.into())),
    }
}

fn names(directory: &Path) -> Result<Vec<String>, LookError> {
    let listed = fs::read_dir(directory).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()
    });
    listed.map_err(|error| failed(directory, error))
}

fn failed(path: &Path, source: io::Error) -> LookError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => LookError::Missing { path },
        io::ErrorKind::NotADirectory => LookError::NotADirectory { path },
        io::ErrorKind::PermissionDenied => LookError::Permission { path },
        _ => LookError::Io { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_does_not_give_is_named_and_the_rest_is_read() {
        let len = 2 * PIECE_BYTES + 100;
        let bad = PIECE_BYTES + 3 * BLOCK_BYTES..PIECE_BYTES + 5 * BLOCK_BYTES;
        let read = |buf: &mut [u8], at: u64| {
            let range = at as usize..at as usize + buf.len();
            if range.start < bad.end && bad.start < range.end {
                return Err(io::Error::from(Errno::IO));
            }
            buf.fill(7);
            Ok(())
        };
        let (mut out, mut told) = (vec![1], 0);
        let unreadable = read_all(&read, len, &mut out, &mut |bytes| {
            told += bytes;
            true
        });
        assert_eq!(told, len as u64);
        let [Unreadable { offset, bytes, error }] = &unreadable[..] else { panic!("{unreadable:?}") };
        assert_eq!((*offset as usize, *bytes as usize), (bad.start, bad.len()));
        assert!(error.contains("Input/output error"), "{error}");
        assert!((0..len).all(|at| out[at] == if bad.contains(&at) { 0 } else { 7 }));
    }

    #[test]
    fn reading_ends_when_it_is_asked_to() {
        let mut asked = 0;
        read_all(&|_, _| Ok(()), 10 * PIECE_BYTES, &mut Vec::new(), &mut |_| {
            asked += 1;
            asked < 3
        });
        assert_eq!(asked, 3);
    }
}
