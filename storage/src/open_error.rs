//! Why a log does not open. Each says what to do.

use std::io;

use rustix::io::Errno;

use crate::SegmentId;
use crate::checkpoint::BadCheckpoint;
use crate::rot::RotReason;

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Bounds that do not fit together.
    #[error("{0}")]
    Options(&'static str),
    /// The disk refused to give something.
    #[error("cannot {doing} segment {segment}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which segment; 0 if on the directory.
        segment: SegmentId,
        /// Why not.
        source: io::Error,
    },
    /// The disk refused to take something.
    #[error("cannot {doing} segment {segment}: {source}")]
    Write {
        /// What was tried.
        doing: &'static str,
        /// On which segment.
        segment: SegmentId,
        /// Why not.
        source: io::Error,
    },
    /// Bytes that were on stable storage are not what was written. The disk was left as it is.
    #[error(
        "segment {segment} is damaged at byte {offset}: {reason}. Nothing was changed. Keep a copy of the data directory \
         and restore it from a backup or another replica"
    )]
    Rot {
        /// In which segment.
        segment: SegmentId,
        /// Where in it.
        offset: u32,
        /// What is wrong there.
        reason: RotReason,
    },
    /// No checkpoint holds.
    #[error(
        "checkpoint {number} cannot be used ({reason}), and there is none that can. Nothing was changed. Keep a copy of the data \
         directory and restore it from a backup or another replica"
    )]
    Checkpoint {
        /// The newest one.
        number: u64,
        /// What is wrong with it.
        reason: BadCheckpoint,
    },
    /// The disk refused to give a checkpoint.
    #[error("cannot read checkpoint {number}: {source}")]
    CheckpointIo {
        /// Which; 0 if they could not be listed.
        number: u64,
        /// Why not.
        source: io::Error,
    },
    /// A checkpoint that does not hold could not be put aside.
    #[error("cannot put checkpoint {number} aside, which is damaged: {source}")]
    CheckpointAside {
        /// Which.
        number: u64,
        /// Why not.
        source: io::Error,
    },
    /// The disk refused to give the mark of a clean end, or to remove it.
    #[error("cannot read or remove the mark of a clean end (`end`): {source}")]
    End {
        /// Why not.
        source: io::Error,
    },
    /// A segment of a format that this program does not read.
    #[error(
        "segment {segment} has format {found}, this program reads {known}: use a version of whimbrel that knows it"
    )]
    Format {
        /// Which.
        segment: SegmentId,
        /// Its format.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A whole segment that belongs to another log, or was made under other settings.
    #[error(
        "segment {segment} is of shard {shard} and {size_bytes} bytes, not of shard {expected_shard} and \
             {expected_size_bytes}: set segment_size as it was, or put the file back where it belongs"
    )]
    Foreign {
        /// Which.
        segment: SegmentId,
        /// Its shard.
        shard: u16,
        /// Its size.
        size_bytes: u32,
        /// The shard whose log is opened.
        expected_shard: u16,
        /// The size that the options say.
        expected_size_bytes: u32,
    },
}

impl OpenError {
    /// Whether the disk does not hold, or does not give, what was written, so that only other bytes or another disk help: and not
    /// a setting, a right, or a limit. A disk that takes nothing is none for anybody.
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::Rot { .. } => true,
            OpenError::Checkpoint { reason, .. } => !matches!(reason, BadCheckpoint::Format(_)),
            OpenError::Io { source, .. } | OpenError::CheckpointIo { source, .. } => is_damage(source),
            OpenError::Options(_)
            | OpenError::Write { .. }
            | OpenError::CheckpointAside { .. }
            | OpenError::End { .. }
            | OpenError::Format { .. }
            | OpenError::Foreign { .. } => false,
        }
    }
}

/// Whether a disk says that it does not have what it should give.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG))
}
