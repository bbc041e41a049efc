//! What is found in a log that is looked at offline: where, what, how bad, and whose it is.

use std::collections::BTreeSet;
use std::fmt;

use crate::inspect::BatchFault;
use crate::{BadCheckpoint, SegmentId};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The last batch, which a crash tore: the next start truncates it. Nothing of it was acknowledged, unless the disk damaged it and
    /// the log had not rested since: of the very last batch nobody can tell.
    Torn,
    /// What was on stable storage is not there any more, or is not what was written.
    Damage,
}

/// Where something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The log as a whole.
    Log,
    /// In a segment, so many bytes from its start.
    Segment(SegmentId, u32),
    /// In a checkpoint.
    Checkpoint(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Log => f.write_str("log"),
            Place::Segment(segment, offset) => write!(f, "segment {segment}, byte {offset}"),
            Place::Checkpoint(number) => write!(f, "checkpoint {number}"),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The first page of a segment is not one.
    #[error("the segment's header is not valid")]
    SegmentHeader,
    /// A segment of a format that this program does not read.
    #[error("the segment has format {0}: use a version of whimbrel that knows it")]
    SegmentFormat(u32),
    /// A segment that belongs elsewhere.
    #[error("the file is segment {id} of shard {shard}: put it back where it belongs")]
    SegmentForeign {
        /// Of the shard that it says.
        shard: u16,
        /// Its number as it says.
        id: SegmentId,
    },
    /// A segment that is not as long as it says, or as the data directory was made for.
    #[error("the file has {found} bytes, its header says {says}, and segments of this directory have {expected}")]
    SegmentLength {
        /// Of the file.
        found: u64,
        /// Of the header.
        says: u32,
        /// Of the directory.
        expected: u32,
    },
    /// Segments are missing that are needed.
    #[error("{} missing", if .0 == .1 { "the segment is".to_owned() } else { format!("segments {} to {} are", .0, .1) })]
    SegmentMissing(SegmentId, SegmentId),
    /// The disk did not give these bytes.
    #[error("{bytes} bytes cannot be read: {error}")]
    Unreadable {
        /// How many.
        bytes: u32,
        /// Why not.
        error: String,
    },
    /// A batch whose records are not as they were written, and a later one is there, which was written only after it was durable.
    #[error("batch {number} is damaged: {fault}")]
    Batch {
        /// Which.
        number: u64,
        /// What is wrong with it.
        fault: BatchFault,
    },
    /// There is no valid batch although later ones are there.
    #[error("{}, and a later one is there", lost(*.first, *.last))]
    BatchMissing {
        /// The first that is missing, if that is known.
        first: Option<u64>,
        /// The last one.
        last: Option<u64>,
    },
    /// A valid batch is not the one that belongs there.
    #[error("batch {0} lies there, which belongs elsewhere")]
    BatchMisplaced(u64),
    /// There are bytes where no batch was ever written.
    #[error("there are {0} bytes where none were written")]
    Stray(u32),
    /// What a crash left of the last batch.
    #[error(
        "the last batch is torn, {0} bytes of it are left: the next start truncates it. Nothing in it was acknowledged, unless it is \
         damage of the disk, which looks the same there"
    )]
    Torn(u32),
    /// Payloads that somebody waits for are lost. So many.
    #[error("payloads that somebody waits for are not as they were written: {0}")]
    WaitedFor(u64),
    /// Entries of a partition are missing although every batch is there.
    #[error("entries {first} to {last} of partition {partition} are missing before it")]
    EntryHole {
        /// Whose.
        partition: u16,
        /// The first that is missing.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// An entry is not one that can follow the one before it.
    #[error("entry {index} of term {term} follows entry {before} of term {before_term} of partition {partition}")]
    EntryOrder {
        /// Whose.
        partition: u16,
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// The index of the one before it.
        before: u64,
        /// The term of that one.
        before_term: u64,
    },
    /// Records of a partition that belongs elsewhere.
    #[error("there are records of partition {0}, which is not one of this shard")]
    PartitionForeign(u16),
    /// A whole log is missing.
    #[error("the shard has no log, and others have one for long")]
    ShardEmpty,
    /// A checkpoint that does not hold.
    #[error("{0}")]
    Checkpoint(BadCheckpoint),
    /// A checkpoint that the disk did not give.
    #[error("it cannot be read: {0}")]
    CheckpointUnreadable(String),
    /// There are checkpoints, and none of them holds.
    #[error("no checkpoint holds: restore the data directory from a backup or another replica")]
    NoCheckpoint,
    /// A checkpoint that holds, and in it is what this program does not write.
    #[error("its checksums hold, and its contents are not what this version of whimbrel writes")]
    CheckpointContents,
    /// The log does not have at its position what a checkpoint says.
    #[error(
        "the log does not go on from it: segment {segment} is not the one that it names, or batch {batch} is not there"
    )]
    CheckpointPlace {
        /// In which it goes on.
        segment: SegmentId,
        /// With which batch.
        batch: u64,
    },
    /// The log ends before the last batch of which something is in a checkpoint.
    #[error("the log ends before batch {ends}, and checkpoint {checkpoint} has what was in those before {through}")]
    LogEndsEarly {
        /// The batch that would be next.
        ends: u64,
        /// Which checkpoint.
        checkpoint: u64,
        /// What it knows.
        through: u64,
    },
}

fn lost(first: Option<u64>, last: Option<u64>) -> String {
    match (first, last) {
        (Some(first), Some(last)) if first == last => format!("batch {first} is missing"),
        (Some(first), Some(last)) => format!("batches {first} to {last} are missing"),
        _ => "there is no valid batch".to_owned(),
    }
}

impl Reason {
    /// Its name, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Reason::SegmentHeader => "segment_header",
            Reason::SegmentFormat(_) => "segment_format",
            Reason::SegmentForeign { .. } => "segment_foreign",
            Reason::SegmentLength { .. } => "segment_length",
            Reason::SegmentMissing(..) => "segment_missing",
            Reason::Unreadable { .. } => "unreadable",
            Reason::Batch { .. } => "batch",
            Reason::BatchMissing { .. } => "batch_missing",
            Reason::BatchMisplaced(_) => "batch_misplaced",
            Reason::Stray(_) => "stray",
            Reason::Torn(_) => "torn",
            Reason::WaitedFor(_) => "waited_for",
            Reason::EntryHole { .. } => "entry_hole",
            Reason::EntryOrder { .. } => "entry_order",
            Reason::PartitionForeign(_) => "partition_foreign",
            Reason::ShardEmpty => "shard_empty",
            Reason::Checkpoint(_) => "checkpoint",
            Reason::CheckpointContents => "checkpoint_contents",
            Reason::CheckpointUnreadable(_) => "checkpoint_unreadable",
            Reason::NoCheckpoint => "no_checkpoint",
            Reason::CheckpointPlace { .. } => "checkpoint_place",
            Reason::LogEndsEarly { .. } => "log_ends_early",
        }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        if let Reason::Torn(_) = self { Severity::Torn } else { Severity::Damage }
    }
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What.
    pub reason: Reason,
    /// Partitions of which it is known that records are concerned. There may be others, if not even the headers of all records
    /// can be read.
    pub partitions: BTreeSet<u16>,
    /// Entries that are known to be gone with it: partition, first and last index.
    pub gone: Vec<(u16, u64, u64)>,
}

impl Finding {
    /// One of which no partition is known.
    pub fn new(place: Place, reason: Reason) -> Finding {
        Finding { place, reason, partitions: BTreeSet::new(), gone: Vec::new() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)?;
        let is_gone = |partition: &u16| self.gone.iter().any(|(gone, ..)| gone == partition);
        let others: Vec<String> = self.partitions.iter().filter(|it| !is_gone(it)).map(u16::to_string).collect();
        if !others.is_empty() {
            write!(f, "; concerns partition{} {}", if others.len() == 1 { "" } else { "s" }, others.join(", "))?;
        }
        for (nth, (partition, first, last)) in self.gone.iter().enumerate() {
            f.write_str(if nth == 0 { "; gone: " } else { ", " })?;
            if first == last {
                write!(f, "partition {partition} entry {first}")?;
            } else {
                write!(f, "partition {partition} entries {first} to {last}")?;
            }
        }
        Ok(())
    }
}
