//! The bottom: what the log needs of whatever keeps its segments. [`FileDisk`](crate::FileDisk) are files,
//! [`RamDisk`](crate::ram::RamDisk) is memory that can lose power.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::scrub::Partly;
use crate::{Arriving, SegmentId};

/// Segments by number. [`Log::open`](crate::Log::open) reads and repairs through it; afterwards the log does no I/O of
/// its own and its owner carries out what [`Log::next_write`](crate::Log::next_write) and
/// [`Log::segment_wanted`](crate::Log::segment_wanted) ask for.
pub trait Disk {
    /// The segments that are there, in any order.
    fn list(&mut self) -> io::Result<Vec<SegmentId>>;

    /// Makes a segment and gives its mapping: preallocated, filled with zeros behind its header page, synced together
    /// with its directory entry. It is there whole or not at all.
    fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes>;

    /// Makes a segment of the file of another, which nobody needs any more and nobody looks at: as [`Disk::create`], with the
    /// old bytes overwritten before it appears under its name. Behind its first `used` bytes the old one is zeros already. When
    /// it fails, the old one is gone.
    fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes>;

    /// Removes a segment that nobody needs any more.
    fn remove(&mut self, id: SegmentId) -> io::Result<()>;

    /// The read-only mapping of a whole segment. What is written later is visible in it at once. Nobody looks at it before
    /// [`Disk::read_in`] or [`Disk::read_ahead`] has read it.
    fn open(&mut self, id: SegmentId) -> io::Result<Bytes>;

    /// Begins to read views of whole segments in, in this order, for somebody who goes through them.
    fn read_ahead(&mut self, segments: Vec<(SegmentId, Bytes)>) -> io::Result<Arriving> {
        // Memory is there already.
        let _ = segments;
        Ok(Arriving::done())
    }

    /// Reads all bytes in of this view of a segment or of its beginning, before somebody looks at them. Where some cannot be read, a
    /// look at the view would end the process: then a copy is given, which says where they are.
    fn read_in(&mut self, id: SegmentId, view: &Bytes) -> io::Result<Option<Partly>> {
        // Memory is there already.
        let _ = (id, view);
        Ok(None)
    }

    /// Copies whole pages of a segment, from this place on, as a look at its view shows them. Gives those that the disk does not: they
    /// are zeros in the copy, and a look at them would end the process.
    fn read_pages(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Vec<Range<u32>>> {
        // Memory is there already.
        let view = self.open(id)?;
        bytes.copy_from_slice(&view[from as usize..from as usize + bytes.len()]);
        Ok(Vec::new())
    }

    /// The same as they are on the disk, whatever is in memory. `None` where that cannot be passed by: then nothing is read.
    fn read_stored(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Option<Vec<Range<u32>>>> {
        let _ = (id, from, bytes);
        Ok(None)
    }

    /// Writes bytes in place. They are on stable storage when it returns.
    fn write(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()>;

    /// Writes all of these in their places, with one flush where that can be. They are on stable storage when it returns.
    fn write_each(&mut self, id: SegmentId, writes: &[(u32, &[u8])]) -> io::Result<()> {
        writes.iter().try_for_each(|(offset, bytes)| self.write(id, *offset, bytes))
    }

    /// All that was written to a segment is on stable storage when it returns.
    fn sync(&mut self, id: SegmentId) -> io::Result<()>;

    /// Puts a damaged segment where it does not count any more, for good, and is not lost.
    fn set_aside(&mut self, id: SegmentId) -> io::Result<()>;

    /// The checkpoints that are there, in any order.
    fn checkpoints(&mut self) -> io::Result<Vec<u64>>;

    /// All bytes of a checkpoint.
    fn read_checkpoint(&mut self, number: u64) -> io::Result<Bytes>;

    /// Puts a damaged checkpoint where it does not count any more, for good, and is not lost.
    fn set_aside_checkpoint(&mut self, number: u64) -> io::Result<()>;

    /// The mark of a clean end, as it was written: [`Log::end`](crate::Log::end).
    fn read_end(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Removes that mark, or makes it none, if it is there. It is gone for good when this returns.
    fn remove_end(&mut self) -> io::Result<()> {
        Ok(())
    }
}
