//! Erasing: what is dead in a cold segment is overwritten with zeros in place, a step at a time.
//!
//! Nothing is ever deleted because it could not be read: a page that the disk does not give is not written either, for something
//! that is wanted may stand in it. It is told, and looked at again with a later erasing.

use std::io;
use std::ops::Range;

use crate::cold::{Kept, Source};
use crate::layout::{self, BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH_OFFSET, RECORD_HEADER_BYTES};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::pages::Pages;
use crate::{Disk, Loss, Rot, RotReason, SegmentId};

/// Bytes that one step looks at.
const ERASE_STEP_BYTES: u32 = 1 << 20;

/// Whether zeros that are in memory are on the disk. A write that failed leaves some that pass for clean and are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// All that was written to the segment since the start has come there.
    Nothing,
    /// It was there at the start, and nobody knows what failed before. What is on the disk is read, past what is in memory: to write all
    /// dead bytes once more, though nearly always they are zeros for long, would after each start cost as many writes as there are dead
    /// bytes beside what waits, and the reading costs nothing, for all of it is read then anyway. Where memory cannot be passed by all
    /// are written.
    Start,
    /// A write failed: also what the disk itself says of it may be what it had in a cache and lost. All dead bytes are written.
    Failure,
}

/// A cold segment of which all is to be zeros but its headers and what is pointed to.
#[derive(Debug)]
pub struct Erase {
    source: Source,
    keep: Kept,
    /// Where the next step begins, and where it ends.
    next: u32,
    below: u32,
    doubt: Doubt,
    /// Bytes that were written so far.
    written: u64,
    /// What cannot be read, as far as it was looked at, ascending.
    unreadable: Vec<Range<u32>>,
    /// How much of that was told.
    told: usize,
}

impl Erase {
    /// Of what lies in a segment before `below`.
    pub(crate) fn new(source: Source, keep: Kept, below: u32, doubt: Doubt) -> Erase {
        let (next, unreadable) = (FIRST_BATCH_OFFSET, Vec::new());
        Erase { source, keep, next, below, doubt, written: 0, unreadable, told: 0 }
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

    /// What the disk does not give of the segment, as far as it was looked at and not asked for before.
    pub fn take_damage(&mut self) -> Vec<Rot> {
        let (segment, reason, loss) = (self.source.id, RotReason::Unreadable, Loss::Unknown);
        let new = &self.unreadable[std::mem::replace(&mut self.told, self.unreadable.len())..];
        let rot = |pages: &Range<u32>| {
            let (offset, bytes) = (pages.start, pages.end - pages.start);
            Rot { segment, offset, bytes, reason, loss }
        };
        new.iter().map(rot).collect()
    }

    /// How many payloads stay.
    pub(crate) fn kept(&self) -> usize {
        self.keep.len()
    }

    pub(crate) fn doubt(&self) -> Doubt {
        self.doubt
    }

    /// Where it ends.
    pub(crate) fn below(&self) -> u32 {
        self.below
    }

    /// What of it could not be read so far, and may be something that is dead.
    pub fn unreadable(&self) -> &[Range<u32>] {
        &self.unreadable
    }

    pub(crate) fn step(&mut self, disk: &mut dyn Disk) -> io::Result<()> {
        let begun = self.next;
        let until = begun.saturating_add(ERASE_STEP_BYTES).min(self.below);
        let mut pages = match self.doubt {
            Doubt::Nothing | Doubt::Failure => Pages::seen(disk, &self.source),
            Doubt::Start => Pages::stored(disk, &self.source),
        };
        while self.next < until {
            let header = pages.header(self.next..self.next + PAGE_BYTES, self.next)?;
            let len = header.map_or(PAGE_BYTES, |header| layout::padded(header.length));
            if header.is_some() || !self.may_be_of_batch(&mut pages, self.next)? {
                self.erase(&mut pages, self.next..self.next + len, header.as_ref())?;
            }
            self.next += len;
        }
        self.unreadable.extend(pages.unreadable(begun..self.next));
        if self.is_done() && self.doubt == Doubt::Start {
            // Zeros that were there already may be in a cache of the disk.
            disk.sync(self.source.id)?;
        }
        Ok(())
    }

    /// Overwrites what is dead in a batch, or in a page that is not in one.
    fn erase(&mut self, pages: &mut Pages<'_>, range: Range<u32>, header: Option<&BatchHeader>) -> io::Result<()> {
        let stays = self.stays(pages.at(range.clone())?, header);
        if self.changes(pages, &range, &stays).is_empty() {
            return Ok(());
        }
        let mut wanted = pages.get(&range).to_vec();
        if pages.is_stored() && stays.contains(&true) {
            // What stays is written with the very bytes that are read there. On the disk they may have rotted beneath these.
            pages.see(range.start, &mut wanted)?;
        }
        wanted.iter_mut().zip(&stays).filter(|(_, stays)| !**stays).for_each(|(byte, _)| *byte = 0);
        let changes = self.changes(pages, &range, &stays);
        let place = |change: &Range<usize>| (range.start + change.start as u32, &wanted[change.clone()]);
        let writes: Vec<(u32, &[u8])> = changes.iter().map(place).collect();
        pages.disk.write_each(self.source.id, &writes)?;
        self.written += changes.iter().map(|change| change.len() as u64).sum::<u64>();
        Ok(())
    }

    /// The runs of pages that are to be written. What lies between them stays untouched: what is wanted there may be all that there
    /// is of it.
    fn changes(&self, pages: &Pages<'_>, range: &Range<u32>, stays: &[bool]) -> Vec<Range<usize>> {
        let (now, page) = (pages.get(range), PAGE_BYTES as usize);
        let writes_all = match self.doubt {
            Doubt::Nothing => false,
            Doubt::Start => !pages.is_stored(),
            Doubt::Failure => true,
        };
        let is_to_be_written = |from: usize| {
            let mut bytes = now[from..from + page].iter().zip(&stays[from..from + page]);
            let has_dead = bytes.any(|(byte, stays)| !stays && (*byte != 0 || writes_all));
            has_dead && pages.is_readable(range.start + from as u32)
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

    /// Whether a page without the header of a batch may be of one of which something is pointed to: then its header is damaged,
    /// and all of it stays, for with its bytes back what is pointed to is found again.
    fn may_be_of_batch(&self, pages: &mut Pages<'_>, page: u32) -> io::Result<bool> {
        let keep = self.keep.payloads();
        let Some((next, _)) = keep.get(keep.partition_point(|(offset, len)| offset + len <= page)) else {
            return Ok(false);
        };
        if *next >= page.saturating_add(BATCH_MAX_BYTES) {
            return Ok(false);
        }
        for other in (page..=*next).step_by(PAGE_BYTES as usize) {
            if pages.header(page..other + PAGE_BYTES, other)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
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
                    if self.keep.payloads().iter().any(|(place, _)| (offset..end).contains(place)) {
                        stay(at, now.len());
                    }
                    break;
                };
                stay(at, at + RECORD_HEADER_BYTES as usize);
                at += layout::record_bytes(len);
            }
        }
        // Where a header is not what it was, what is pointed to is kept all the same.
        let keep = self.keep.payloads();
        let first = keep.partition_point(|(offset, len)| offset + len <= self.next);
        let end = self.next + now.len() as u32;
        for (offset, len) in keep[first..].iter().take_while(|(offset, _)| offset - RECORD_HEADER_BYTES < end) {
            let from = (offset - RECORD_HEADER_BYTES).saturating_sub(self.next);
            stay(from as usize, (offset + len).saturating_sub(self.next) as usize);
        }
        stays
    }
}
