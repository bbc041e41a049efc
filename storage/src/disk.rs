//! The bottom: what the log needs of whatever keeps its segments. [`FileDisk`](crate::FileDisk) are files,
//! [`RamDisk`](crate::ram::RamDisk) is memory that can lose power.

use std::io;

use bytes::Bytes;

use crate::SegmentId;

/// Segments by number. [`Log::open`](crate::Log::open) reads and repairs through it; afterwards the log does no I/O of
/// its own and its owner carries out what [`Log::next_write`](crate::Log::next_write) and
/// [`Log::segment_wanted`](crate::Log::segment_wanted) ask for.
pub trait Disk {
    /// The segments that are there, in any order.
    fn list(&mut self) -> io::Result<Vec<SegmentId>>;

    /// Makes a segment and gives its mapping: preallocated, filled with zeros behind its header page, synced together
    /// with its directory entry. It is there whole or not at all.
    fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes>;

    /// The read-only mapping of a whole segment. What is written later is visible in it at once.
    fn open(&mut self, id: SegmentId) -> io::Result<Bytes>;

    /// Writes bytes in place. They are on stable storage when it returns.
    fn write(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()>;

    /// All that was written to a segment is on stable storage when it returns.
    fn sync(&mut self, id: SegmentId) -> io::Result<()>;
}
