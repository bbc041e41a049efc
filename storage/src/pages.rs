//! Pages of a segment as whoever works on it off the core reads them: copied, a piece at a time. A look at its view would do while they
//! are in memory; but they may be gone from there again, and at one that the disk does not give a look ends the process.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use crate::cold::Source;
use crate::layout::BatchHeader;
use crate::limits::PAGE_BYTES;
use crate::{Disk, SegmentId};

/// Bytes that are read at once, at least: a batch of the usual size.
pub(crate) const PIECE_BYTES: u32 = 256 << 10;

/// See the [module](self).
pub(crate) struct Pages<'a> {
    pub(crate) disk: &'a mut dyn Disk,
    id: SegmentId,
    generation: u64,
    size_bytes: u32,
    /// They are read as they are on the disk, and not as they are in memory.
    is_stored: bool,
    /// What was read, and where it begins.
    bytes: Vec<u8>,
    from: u32,
    /// Where pages begin that could not be read: in the bytes they are zeros.
    unreadable: BTreeSet<u32>,
}

impl<'a> Pages<'a> {
    /// Of a segment that is held: as whoever looks at it sees them.
    pub(crate) fn seen(disk: &'a mut dyn Disk, source: &Source) -> Pages<'a> {
        let Source { id, generation, .. } = *source;
        let size_bytes = source.size_bytes();
        let (is_stored, bytes, from, unreadable) = (false, Vec::new(), 0, BTreeSet::new());
        Pages { disk, id, generation, size_bytes, is_stored, bytes, from, unreadable }
    }

    /// The same as they are on the disk, where what is in memory can be passed by.
    pub(crate) fn stored(disk: &'a mut dyn Disk, source: &Source) -> Pages<'a> {
        Pages { is_stored: true, ..Pages::seen(disk, source) }
    }

    /// Whether what was read is what is on the disk, and not only what is in memory.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// Whole pages. What was read before them may be given up.
    pub(crate) fn at(&mut self, range: Range<u32>) -> io::Result<&[u8]> {
        debug_assert!(range.start.is_multiple_of(PAGE_BYTES) && range.end.is_multiple_of(PAGE_BYTES));
        let end = self.from + self.bytes.len() as u32;
        if !(self.from..=end).contains(&range.start) {
            self.bytes.clear();
            self.from = range.start;
        }
        if range.end > self.from + self.bytes.len() as u32 {
            self.bytes.drain(..(range.start - self.from) as usize);
            self.from = range.start;
            self.read_on(range.end)?;
        }
        Ok(self.get(&range))
    }

    /// Those that [`Pages::at`] gave last, or some of them.
    pub(crate) fn get(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[(range.start - self.from) as usize..(range.end - self.from) as usize]
    }

    fn read_on(&mut self, end: u32) -> io::Result<()> {
        let from = self.from + self.bytes.len() as u32;
        let end = end.max(from.saturating_add(PIECE_BYTES)).min(self.size_bytes);
        let had = self.bytes.len();
        self.bytes.resize(had + (end - from) as usize, 0);
        let bytes = &mut self.bytes[had..];
        let stored = if self.is_stored { self.disk.read_stored(self.id, from, bytes)? } else { None };
        self.is_stored = stored.is_some();
        let unreadable = match stored {
            Some(unreadable) => unreadable,
            None => self.disk.read_pages(self.id, from, bytes)?,
        };
        self.lose(unreadable);
        Ok(())
    }

    /// Pages as whoever looks at them sees them, into `bytes`.
    pub(crate) fn see(&mut self, from: u32, bytes: &mut [u8]) -> io::Result<()> {
        let unreadable = self.disk.read_pages(self.id, from, bytes)?;
        self.lose(unreadable);
        Ok(())
    }

    fn lose(&mut self, unreadable: Vec<Range<u32>>) {
        self.unreadable.extend(unreadable.into_iter().flat_map(|pages| pages.step_by(PAGE_BYTES as usize)));
    }

    /// Whether the page that begins here is as it was read.
    pub(crate) fn is_readable(&self, page: u32) -> bool {
        !self.unreadable.contains(&page)
    }

    /// Runs of pages among these that could not be read.
    pub(crate) fn unreadable(&self, among: Range<u32>) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for &page in self.unreadable.range(among) {
            match runs.last_mut().filter(|last| last.end == page) {
                Some(last) => last.end += PAGE_BYTES,
                None => runs.push(page..page + PAGE_BYTES),
            }
        }
        runs
    }

    /// The header of the batch that begins at one of these pages, which are read, if one does.
    pub(crate) fn header(&mut self, among: Range<u32>, page: u32) -> io::Result<Option<BatchHeader>> {
        if among.end > self.size_bytes {
            return Ok(None);
        }
        self.at(among)?;
        let first = self.get(&(page..page + PAGE_BYTES));
        Ok(BatchHeader::of(first, page, self.generation, self.size_bytes))
    }
}
