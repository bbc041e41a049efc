//! Erasing: what is dead in a cold segment is overwritten with zeros in place, a step at a time.
//!
//! Nothing is ever deleted because it could not be read: a page that the disk does not give is not written either, for something
//! that is wanted may stand in it. It is told, and looked at again with a later erasing.

use std::io;
use std::ops::Range;

use crate::cold::Source;
use crate::layout::{self, BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH_OFFSET, RECORD_HEADER_BYTES};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::{Disk, Loss, Rot, RotReason, SegmentId};

/// Bytes that one step looks at.
const ERASE_STEP_BYTES: u32 = 1 << 20;

/// A cold segment of which all is to be zeros but its headers and what is pointed to.
#[derive(Debug)]
pub struct Erase {
    source: Source,
    /// Place and length of each payload that stays, ascending.
    keep: Vec<(u32, u32)>,
    /// Where the next step begins, and where it ends.
    next: u32,
    below: u32,
    /// What is read may not be what is on the disk: all that is to be zeros is written, though it looks as if it were.
    writes_all: bool,
    /// Bytes that were written so far.
    written: u64,
    /// What cannot be read and was not told yet.
    damage: Vec<Rot>,
}

impl Erase {
    /// Of what lies in a segment before `below`.
    pub(crate) fn new(source: Source, keep: Vec<(u32, u32)>, below: u32, writes_all: bool) -> Erase {
        Erase { source, keep, next: FIRST_BATCH_OFFSET, below, writes_all, written: 0, damage: Vec::new() }
    }

    /// Which segment.
    pub fn segment(&self) -> SegmentId {
        self.source.id
    }

    /// Whether a step of it was done.
    pub fn is_begun(&self) -> bool {
        self.next > FIRST_BATCH_OFFSET
    }

    /// Whether nothing is left to be done.
    pub fn is_done(&self) -> bool {
        self.next >= self.below
    }

    /// Bytes that it has written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What the disk does not give of the segment, as far as it was not asked for before.
    pub fn take_damage(&mut self) -> Vec<Rot> {
        std::mem::take(&mut self.damage)
    }

    /// How many payloads stay.
    pub(crate) fn kept(&self) -> usize {
        self.keep.len()
    }

    /// Whether it goes by nothing that is read.
    pub(crate) fn writes_all(&self) -> bool {
        self.writes_all
    }

    /// Where it ends.
    pub(crate) fn below(&self) -> u32 {
        self.below
    }

    /// Whether all of it could be read: else something may be left that is dead.
    pub(crate) fn has_read_all(&self) -> bool {
        self.source.unreadable.iter().all(|pages| pages.start >= self.below)
    }

    pub(crate) fn step(&mut self, disk: &mut dyn Disk) -> io::Result<()> {
        if self.next == FIRST_BATCH_OFFSET {
            self.source.read_in(disk)?;
            self.damage = self.unreadable();
        }
        let until = self.next.saturating_add(ERASE_STEP_BYTES).min(self.below);
        while self.next < until {
            let at = self.next as usize;
            let header = self.header(self.next);
            let len = header.map_or(PAGE_BYTES, |header| layout::padded(header.length)) as usize;
            if header.is_none() && self.may_be_of_batch(self.next) {
                self.next += len as u32;
                continue;
            }
            let now = &self.source.view[at..at + len];
            let stays = self.stays(now, header.as_ref());
            let wanted: Vec<u8> = now.iter().zip(&stays).map(|(byte, stays)| byte * u8::from(*stays)).collect();
            let changes = self.changes(now, &wanted, &stays);
            let place = |change: &Range<usize>| (self.next + change.start as u32, &wanted[change.clone()]);
            let writes: Vec<(u32, &[u8])> = changes.iter().map(place).collect();
            disk.write_each(self.source.id, &writes)?;
            self.written += changes.iter().map(|change| change.len() as u64).sum::<u64>();
            self.next += len as u32;
        }
        Ok(())
    }

    fn unreadable(&self) -> Vec<Rot> {
        let pages = self.source.unreadable.iter().filter(|pages| pages.start < self.below);
        let (segment, reason, loss) = (self.source.id, RotReason::Unreadable, Loss::Unknown);
        let mut damage: Vec<Rot> = Vec::new();
        for pages in pages {
            let (offset, bytes) = (pages.start, pages.end - pages.start);
            match damage.last_mut().filter(|last| last.offset + last.bytes == offset) {
                Some(last) => last.bytes += bytes,
                None => damage.push(Rot { segment, offset, bytes, reason, loss }),
            }
        }
        damage
    }

    /// The runs of pages that are to be written. What lies between them stays untouched: what is wanted there may be all that there
    /// is of it.
    fn changes(&self, now: &[u8], wanted: &[u8], stays: &[bool]) -> Vec<Range<usize>> {
        let page = PAGE_BYTES as usize;
        let is_to_be_written = |from: usize| {
            let range = from..from + page;
            let differs =
                now[range.clone()] != wanted[range.clone()] || self.writes_all && stays[range].contains(&false);
            differs && self.source.is_readable(self.next + from as u32)
        };
        let mut changes: Vec<Range<usize>> = Vec::new();
        for from in (0..now.len()).step_by(page).filter(|from| is_to_be_written(*from)) {
            match changes.last_mut().filter(|last| last.end == from) {
                Some(last) => last.end += page,
                None => changes.push(from..from + page),
            }
        }
        changes
    }

    fn header(&self, at: u32) -> Option<BatchHeader> {
        BatchHeader::at(&self.source.view, at, self.source.generation)
    }

    /// Whether a page without the header of a batch may be of one of which something is pointed to: then its header is damaged,
    /// and all of it stays, for with its bytes back what is pointed to is found again.
    fn may_be_of_batch(&self, page: u32) -> bool {
        let Some((next, _)) = self.keep.get(self.keep.partition_point(|(offset, len)| offset + len <= page)) else {
            return false;
        };
        let mut between = (page..=*next).step_by(PAGE_BYTES as usize);
        *next < page.saturating_add(BATCH_MAX_BYTES) && between.all(|page| self.header(page).is_none())
    }

    /// Which bytes of a batch, or of a page that is not in one, stay. All others are to be zeros.
    fn stays(&self, now: &[u8], header: Option<&BatchHeader>) -> Vec<bool> {
        let mut stays = vec![false; now.len()];
        let mut stay = |from: usize, to: usize| {
            let (from, to) = (from.min(now.len()), to.min(now.len()));
            stays[from..to].fill(true);
        };
        if let Some(header) = header {
            stay(0, BATCH_HEADER_BYTES as usize);
            let seed = layout::record_seed(header.number);
            let mut at = BATCH_HEADER_BYTES as usize;
            for _ in 0..header.records {
                let offset = header.offset + at as u32;
                let Some((_, len)) = layout::decode_record_header(&now[at..], seed, offset) else {
                    // Damaged. Behind it nothing is found before its bytes are back, and then only with all that lies between.
                    let end = self.next + now.len() as u32;
                    if self.keep.iter().any(|(place, _)| (offset..end).contains(place)) {
                        stay(at, now.len());
                    }
                    break;
                };
                stay(at, at + RECORD_HEADER_BYTES as usize);
                at += layout::record_bytes(len);
            }
        }
        // Where a header is not what it was, what is pointed to is kept all the same.
        let first = self.keep.partition_point(|(offset, len)| offset + len <= self.next);
        let end = self.next + now.len() as u32;
        for (offset, len) in self.keep[first..].iter().take_while(|(offset, _)| offset - RECORD_HEADER_BYTES < end) {
            let from = (offset - RECORD_HEADER_BYTES).saturating_sub(self.next);
            stay(from as usize, (offset + len).saturating_sub(self.next) as usize);
        }
        stays
    }
}
