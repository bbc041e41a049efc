//! A newtype for each kind of number of the log, and where a record lies.

use std::fmt;

/// A segment file of one shard's log: 1, 2, 3 … without a gap; or from [`SegmentId::COLD`] on a cold one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// The first one of a new log.
    pub const FIRST: SegmentId = SegmentId(1);

    /// The first cold one. Hot ones never come so far: with 64 MiB each that would be 128 PiB.
    pub const COLD: SegmentId = SegmentId(1 << 31);

    /// Whether it is a cold one: no part of the log, but where what waits long was moved to.
    #[inline]
    pub const fn is_cold(self) -> bool {
        self.0 >= SegmentId::COLD.0
    }

    /// The one after it.
    pub fn next(self) -> SegmentId {
        SegmentId(self.0 + 1)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A write that [`Log::next_write`](crate::Log::next_write) gave out: the number of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// How many records were appended since the log was opened. What recovery found lies below all marks and is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u64);

/// Where bytes of a record's payload lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// In which segment.
    pub segment: SegmentId,
    /// Bytes from the start of the segment. A payload starts at a multiple of 8.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

impl Location {
    /// The `len` bytes that start `offset` bytes into this location.
    ///
    /// # Panics
    /// If they do not lie within it: a location that was computed wrongly is a bug.
    pub fn slice(self, offset: u32, len: u32) -> Location {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{offset}+{len} is outside of {self:?}");
        Location { segment: self.segment, offset: self.offset + offset, len }
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// An entry of a partition's Raft log.
    Entry = 1,
    /// A partition's term, vote and commit index.
    HardState = 2,
    /// A record whose payload was forgotten: its header stands, its payload is zeros and its payload checksum is void.
    Erased = 3,
    /// A piece of an entry that was moved to a cold segment, with the partition, term and index of its entry. Its payload is as
    /// it was there, or was forgotten and is zeros.
    Moved = 4,
}

impl RecordKind {
    pub(crate) fn from_u8(kind: u8) -> Option<RecordKind> {
        match kind {
            1 => Some(RecordKind::Entry),
            2 => Some(RecordKind::HardState),
            3 => Some(RecordKind::Erased),
            4 => Some(RecordKind::Moved),
            _ => None,
        }
    }
}

/// What the log keeps beside a payload. It gives no meaning to partition, term and index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// Whose it is.
    pub partition: u16,
    /// Of the entry, or of the hard state.
    pub term: u64,
    /// Of the entry; of a hard state the commit index.
    pub index: u64,
}
