//! A disk in memory that can lose power, for tests and the simulator. It replaces only the bottom: the log above it is
//! the real one.
//!
//! Its memory is what a page cache is: a write is visible in the mappings at once, and on stable storage once flushed.
//! For each sector written and not flushed it keeps what is on stable storage; [`RamDisk::crash`] gives the disk as it
//! is after a loss of power.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;

use crate::layout::SegmentHeader;
use crate::limits::{PAGE_BYTES, SECTOR_BYTES};
use crate::scrub::Partly;
use crate::{Arriving, Disk, Position, SegmentId, end};

const SECTOR: usize = SECTOR_BYTES as usize;

/// What the next operation of a kind does instead of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes fail with an I/O error; nothing is written.
    pub write: bool,
    /// Flushes fail with an I/O error; nothing more is on stable storage.
    pub flush: bool,
    /// Segments are not made, for there is no space.
    pub create: bool,
    /// Of the segments and checkpoints that are read from now on this one, counted from 0, cannot be: once.
    pub read: Option<u32>,
}

/// Beside the bytes of the last checkpoint this part of a segment is kept for the next, as a server does.
const RESERVE_PART: u64 = 4;

/// And so for the two that are kept, before they are there.
const CHECKPOINT_FILES: usize = 3;

/// See the [module](self).
pub struct RamDisk {
    shard: u16,
    seed: u64,
    made: u64,
    segments: BTreeMap<SegmentId, Segment>,
    checkpoints: BTreeMap<u64, Vec<u8>>,
    /// The mark of a clean end.
    end: Option<Vec<u8>>,
    /// The one that was last removed.
    removed_end: Option<Vec<u8>>,
    /// Bytes that are kept for the next checkpoint.
    reserved: u64,
    /// What fails, until it is set otherwise.
    pub faults: Faults,
    /// Bytes that it has for segments and checkpoints; without end if `None`. Others may take some and give them back.
    pub space_bytes: Option<u64>,
    /// It can keep bytes for the next checkpoint, as not every file system can.
    pub keeps_space: bool,
    /// What is on stable storage can be read though something else is in the page cache, as not every file system lets.
    pub passes_cache: bool,
    /// Pages that it does not give for now to whoever reads a segment in: nothing is lost of them.
    pub unreadable: Vec<(SegmentId, Range<u32>)>,
}

struct Segment {
    memory: Arc<Memory>,
    /// Sectors written and not flushed, with what is on stable storage of them.
    unflushed: BTreeMap<u32, [u8; SECTOR]>,
    /// Sectors of which other bytes are on stable storage than were written. What is read is what was.
    rotten: BTreeMap<u32, [u8; SECTOR]>,
    /// Pages that are not on stable storage any more: they cannot be read once they are not in the page cache.
    lost: BTreeSet<u32>,
}

impl Segment {
    fn new(memory: Memory) -> Segment {
        let (unflushed, rotten, lost) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Segment { memory: Arc::new(memory), unflushed, rotten, lost }
    }

    /// Pages that cannot be read, of those that begin in its first bytes. A page that is not on stable storage can be, as long as it
    /// is in the page cache.
    fn unreadable(&self, len: usize, is_cache_passed: bool) -> impl Iterator<Item = Range<u32>> {
        let is_gone = move |page: &u32| is_cache_passed || self.rotten.range(sectors_of(*page)).next().is_none();
        let pages = self.lost.iter().copied().filter(is_gone).map(|page| page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
        pages.filter(move |page| page.end as usize <= len)
    }

    /// Its first bytes, if not all of them can be read.
    fn partly(&self, len: usize) -> Option<Partly> {
        let unreadable: Vec<Range<u32>> = self.unreadable(len, false).collect();
        if unreadable.is_empty() {
            return None;
        }
        let mut bytes = self.memory.all()[..len].to_vec();
        unreadable.iter().for_each(|page| bytes[page.start as usize..page.end as usize].fill(0));
        Some(Partly { bytes: bytes.into(), unreadable })
    }

    /// Puts what is on stable storage, and is not what is read, over bytes from this place on that were read.
    fn pass_cache(&self, from: usize, bytes: &mut [u8]) {
        let sectors = sectors(&(from..from + bytes.len()));
        for (&sector, stable) in self.rotten.range(sectors).filter(|(sector, _)| !self.unflushed.contains_key(sector)) {
            let at = (sector as usize * SECTOR).checked_sub(from);
            if let Some(place) = at.and_then(|at| bytes.get_mut(at..at + SECTOR)) {
                place.copy_from_slice(stable);
            }
        }
    }
}

impl RamDisk {
    /// An empty disk of a shard. The seed gives the generations of its segments.
    pub fn new(shard: u16, seed: u64) -> RamDisk {
        RamDisk {
            shard,
            seed,
            made: 0,
            segments: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            end: None,
            removed_end: None,
            reserved: 0,
            faults: Faults::default(),
            space_bytes: None,
            keeps_space: true,
            passes_cache: true,
            unreadable: Vec::new(),
        }
    }

    /// Bytes of segments and checkpoints, and what is kept for the next one.
    pub fn used_bytes(&self) -> u64 {
        let segments: usize = self.segments.values().map(|segment| segment.memory.all().len()).sum();
        let checkpoints: usize = self.checkpoints.values().map(Vec::len).sum();
        (segments + checkpoints) as u64 + self.reserved
    }

    fn free_bytes(&self) -> u64 {
        self.space_bytes.map_or(u64::MAX, |space| space.saturating_sub(self.used_bytes()))
    }

    /// Keeps as much of what is free for the next checkpoint as it may need.
    fn reserve(&mut self, last_bytes: usize) {
        let segment = self.segments.values().next().map_or(0, |segment| segment.memory.all().len());
        let files = CHECKPOINT_FILES - self.checkpoints.len().min(CHECKPOINT_FILES - 1);
        let wanted = (last_bytes as u64 + segment as u64 / RESERVE_PART) * files as u64;
        self.reserved += wanted.saturating_sub(self.reserved).min(self.free_bytes());
        if !self.keeps_space {
            self.reserved = 0;
        }
    }

    /// Whether the read that begins now fails.
    fn fails_to_read(&mut self) -> bool {
        let left = self.faults.read;
        self.faults.read = left.and_then(|left| left.checked_sub(1));
        left == Some(0)
    }

    /// Writes bytes that are visible at once and on stable storage only after a flush.
    pub fn write_unflushed(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if self.faults.write {
            return Err(eio("write"));
        }
        let segment = segment(&mut self.segments, id)?;
        let range = segment.memory.check(offset as usize, bytes.len())?;
        for sector in sectors(&range) {
            segment.unflushed.entry(sector).or_insert_with(|| segment.memory.sector(sector));
        }
        segment.memory.write(range.start, bytes);
        // What is written whole is there again.
        let page = PAGE_BYTES as usize;
        let whole = (range.start.div_ceil(page) as u32, (range.end / page) as u32);
        segment.lost.retain(|page| !(whole.0..whole.1).contains(page));
        Ok(())
    }

    /// Puts what was written to these bytes of a segment, in whole sectors, on stable storage.
    pub fn flush(&mut self, id: SegmentId, range: Range<u32>) -> io::Result<()> {
        if self.faults.flush {
            return Err(eio("flush"));
        }
        let segment = segment(&mut self.segments, id)?;
        let sectors = sectors(&(range.start as usize..range.end as usize));
        for sector in segment.unflushed.extract_if(sectors, |_, _| true).map(|(sector, _)| sector) {
            segment.rotten.remove(&sector);
        }
        Ok(())
    }

    /// Puts all that was written on stable storage.
    pub fn flush_all(&mut self) -> io::Result<()> {
        if self.faults.flush {
            return Err(eio("flush"));
        }
        let ids: Vec<SegmentId> = self.segments().collect();
        ids.into_iter().try_for_each(|id| self.flush(id, 0..u32::MAX))
    }

    /// Sectors that were written and not flushed, in order.
    pub fn unflushed(&self) -> impl Iterator<Item = (SegmentId, u32)> {
        self.segments.iter().flat_map(|(&id, segment)| segment.unflushed.keys().map(move |&sector| (id, sector)))
    }

    /// The disk after a loss of power. `survives` says of each sector that was written and not flushed whether it has
    /// reached stable storage nevertheless. This one stays as it is, and its mappings too.
    pub fn crash(&self, survives: &mut dyn FnMut(SegmentId, u32) -> bool) -> RamDisk {
        let mut after = RamDisk::new(self.shard, self.seed);
        after.made = self.made;
        after.reserved = self.reserved;
        after.space_bytes = self.space_bytes;
        after.keeps_space = self.keeps_space;
        after.passes_cache = self.passes_cache;
        after.checkpoints = self.checkpoints.clone();
        after.end = self.end.clone();
        after.removed_end = self.removed_end.clone();
        for (&id, segment) in &self.segments {
            let memory = segment.memory.copy();
            let mut rotten = segment.rotten.clone();
            for (&sector, stable) in &segment.unflushed {
                if survives(id, sector) {
                    rotten.remove(&sector);
                } else {
                    memory.write(sector as usize * SECTOR, stable);
                }
            }
            rotten.iter().for_each(|(&sector, stable)| memory.write(sector as usize * SECTOR, stable));
            after.segments.insert(id, Segment { lost: segment.lost.clone(), ..Segment::new(memory) });
        }
        after
    }

    fn map(&mut self, id: SegmentId) -> io::Result<Bytes> {
        let memory = Arc::clone(&segment(&mut self.segments, id)?.memory);
        Ok(Bytes::from_owner(Mapping(memory)))
    }

    /// Turns one bit over, as rot does: in what is read and in what is on stable storage.
    pub fn flip_bit(&mut self, id: SegmentId, offset: u32, bit: u8) -> io::Result<()> {
        let segment = segment(&mut self.segments, id)?;
        let range = segment.memory.check(offset as usize, 1)?;
        let mut sector = segment.memory.sector(offset / SECTOR_BYTES);
        let at = range.start % SECTOR;
        sector[at] ^= 1 << (bit % 8);
        segment.memory.write(range.start, &sector[at..=at]);
        if let Some(stable) = segment.unflushed.get_mut(&(offset / SECTOR_BYTES)) {
            stable[at] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    /// Puts other bytes on stable storage, as rot does beneath a page cache: those that are read are the same until
    /// [`RamDisk::evict`] or a loss of power, and those that are written there again are what is on stable storage.
    pub fn rot(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let segment = segment(&mut self.segments, id)?;
        let range = segment.memory.check(offset as usize, bytes.len())?;
        for (at, byte) in range.zip(bytes) {
            let sector = (at / SECTOR) as u32;
            let stable = || segment.unflushed.get(&sector).copied().unwrap_or_else(|| segment.memory.sector(sector));
            segment.rotten.entry(sector).or_insert_with(stable)[at % SECTOR] = *byte;
        }
        Ok(())
    }

    /// The disk does not give a page any more, from [`RamDisk::evict`] or a loss of power on, if anything but zeros is in it; else
    /// from now on.
    pub fn lose_page(&mut self, id: SegmentId, offset: u32) -> io::Result<()> {
        let page = offset / PAGE_BYTES;
        let bytes = segment(&mut self.segments, id)?.memory.all();
        let all = (page * PAGE_BYTES..(page + 1) * PAGE_BYTES).map(|at| (at, bytes[at as usize]));
        let written: Vec<u32> = all.filter(|(_, byte)| *byte != 0).map(|(at, _)| at).collect();
        written.into_iter().try_for_each(|at| self.rot(id, at, &[0]))?;
        segment(&mut self.segments, id)?.lost.insert(page);
        Ok(())
    }

    /// Nothing of a segment is in the page cache any more but what is to be written: what is on stable storage is read.
    pub fn evict(&mut self, id: SegmentId) {
        if let Some(Segment { memory, unflushed, rotten, .. }) = self.segments.get_mut(&id) {
            for (sector, stable) in rotten.extract_if(.., |sector, _| !unflushed.contains_key(sector)) {
                memory.write(sector as usize * SECTOR, &stable);
            }
        }
    }

    /// All bytes of a segment as somebody reads them who goes past the page cache.
    pub fn on_disk(&self, id: SegmentId) -> Option<Vec<u8>> {
        let segment = self.segments.get(&id)?;
        let mut bytes = segment.memory.all().to_vec();
        segment.pass_cache(0, &mut bytes);
        Some(bytes)
    }

    /// Copies pages, and says which of them cannot be read.
    fn copy_pages(
        &mut self,
        id: SegmentId,
        from: u32,
        bytes: &mut [u8],
        is_cache_passed: bool,
    ) -> io::Result<Vec<Range<u32>>> {
        let segment = segment(&mut self.segments, id)?;
        let range = segment.memory.check(from as usize, bytes.len())?;
        bytes.copy_from_slice(&segment.memory.all()[range.clone()]);
        if is_cache_passed {
            segment.pass_cache(range.start, bytes);
        }
        let refused = self.unreadable.iter().filter(|(segment, _)| *segment == id).map(|(_, pages)| pages.clone());
        let all: BTreeSet<u32> = refused
            .chain(segment.unreadable(range.end, is_cache_passed))
            .flat_map(|pages| pages.step_by(PAGE_BYTES as usize))
            .filter(|page| range.contains(&(*page as usize)))
            .collect();
        for page in &all {
            bytes[(page - from) as usize..][..PAGE_BYTES as usize].fill(0);
        }
        Ok(all.into_iter().map(|page| page..page + PAGE_BYTES).collect())
    }

    /// What rot made of a byte is as it was, if nothing else was written there since; and its page can be read.
    pub fn mend(&mut self, id: SegmentId, offset: u32, was: u8, is: u8) -> io::Result<()> {
        let segment = segment(&mut self.segments, id)?;
        let at = segment.memory.check(offset as usize, 1)?.start;
        segment.rotten.remove(&(offset / SECTOR_BYTES));
        segment.lost.remove(&(offset / PAGE_BYTES));
        if segment.memory.all()[at] == is {
            segment.memory.write(at, &[was]);
        }
        Ok(())
    }

    /// Leaves the mark of a clean end, as a server does that has stopped.
    pub fn mark_end(&mut self, position: Position) {
        self.end = Some(end::encode(position, self.shard).to_vec());
    }

    /// The mark that was last removed is there again, as if that had never been on stable storage. False if there was none.
    pub fn bring_end_back(&mut self) -> bool {
        self.end = self.end.take().or(self.removed_end.take());
        self.end.is_some()
    }

    /// Takes a segment away, as a lost file.
    pub fn lose(&mut self, id: SegmentId) {
        self.segments.remove(&id);
    }

    /// Puts a checkpoint in its place, whole and on stable storage, and removes those with numbers below `keep_from`.
    pub fn put_checkpoint(&mut self, number: u64, bytes: Vec<u8>, keep_from: u64) -> io::Result<()> {
        if self.faults.write {
            return Err(eio("write"));
        }
        crate::verify_checkpoint(&bytes, self.shard, number).map_err(io::Error::other)?;
        let bytes_len = bytes.len();
        if bytes_len as u64 > self.reserved.saturating_add(self.free_bytes()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.reserved = self.reserved.saturating_sub(bytes_len as u64);
        self.checkpoints.insert(number, bytes);
        // The file of one that goes is kept for the next.
        while let Some(old) = self.checkpoints.first_entry().filter(|old| *old.key() < keep_from) {
            self.reserved += old.remove().len() as u64;
        }
        self.reserve(bytes_len);
        Ok(())
    }

    /// Numbers and lengths of the checkpoints that are there.
    pub fn checkpoint_sizes(&self) -> Vec<(u64, usize)> {
        self.checkpoints.iter().map(|(number, bytes)| (*number, bytes.len())).collect()
    }

    /// Turns one bit of a checkpoint over, as rot does.
    pub fn flip_checkpoint_bit(&mut self, number: u64, bit: usize) {
        if let Some(byte) = self.checkpoints.get_mut(&number).and_then(|bytes| bytes.get_mut(bit / 8)) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// The segments that are there.
    pub fn segments(&self) -> impl Iterator<Item = SegmentId> {
        self.segments.keys().copied()
    }

    /// Bytes of a segment as they are read now, if all of them are there.
    pub fn read(&self, id: SegmentId, offset: u32, len: u32) -> Option<Vec<u8>> {
        let bytes = self.segments.get(&id)?.memory.all();
        bytes.get(offset as usize..offset as usize + len as usize).map(<[u8]>::to_vec)
    }

    /// Bytes that a segment has.
    pub fn size_bytes(&self, id: SegmentId) -> Option<u32> {
        self.segments.get(&id).map(|segment| segment.memory.all().len() as u32)
    }

    /// All bytes of a segment as they are read now.
    pub fn contents(&self, id: SegmentId) -> Option<Vec<u8>> {
        self.segments.get(&id).map(|segment| segment.memory.all().to_vec())
    }
}

impl Disk for RamDisk {
    fn list(&mut self) -> io::Result<Vec<SegmentId>> {
        Ok(self.segments.keys().copied().collect())
    }

    fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        if self.faults.create || u64::from(size_bytes) > self.free_bytes() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.segments.contains_key(&id) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.made += 1;
        let generation = mix(self.seed ^ mix(u64::from(self.shard) << 48 ^ self.made));
        let header = SegmentHeader { shard: self.shard, id, size_bytes, generation };
        let memory = Memory::new(size_bytes as usize);
        memory.write(0, &header.encode());
        self.segments.insert(id, Segment::new(memory));
        if self.checkpoints.is_empty() {
            self.reserve(0);
        }
        self.map(id)
    }

    /// # Panics
    /// If somebody still looks at the old segment: its bytes would change under him. If it has other bytes than zeros behind
    /// `used`: they would be in the new one.
    fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        let unused = &segment(&mut self.segments, old)?.memory.all()[used as usize..];
        let is_zero = unused.chunks(PAGE_BYTES as usize).all(crate::layout::is_zero);
        assert!(is_zero, "segment {old} was used behind {used}");
        self.remove(old)?;
        // Nobody else gets its bytes in between.
        let space_bytes = self.space_bytes.take();
        let made = self.create(id, size_bytes);
        self.space_bytes = space_bytes;
        made
    }

    fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        let memory = &segment(&mut self.segments, id)?.memory;
        assert_eq!(Arc::strong_count(memory), 1, "segment {id} is given up while somebody looks at it");
        self.segments.remove(&id);
        Ok(())
    }

    fn open(&mut self, id: SegmentId) -> io::Result<Bytes> {
        if self.fails_to_read() { Err(eio("read")) } else { self.map(id) }
    }

    fn read_ahead(&mut self, segments: Vec<(SegmentId, Bytes)>) -> io::Result<Arriving> {
        let partly = segments
            .iter()
            .enumerate()
            .filter_map(|(index, (id, view))| self.segments.get(id)?.partly(view.len()).map(|partly| (index, partly)));
        Ok(Arriving::partly(partly))
    }

    fn read_in(&mut self, id: SegmentId, view: &Bytes) -> io::Result<Option<Partly>> {
        let lost = segment(&mut self.segments, id)?.partly(view.len());
        let here = self.unreadable.iter().filter(|(segment, _)| *segment == id);
        let refused: Vec<Range<u32>> = here.map(|(_, pages)| pages.clone()).collect();
        if refused.is_empty() {
            return Ok(lost);
        }
        let (mut bytes, mut unreadable) = match lost {
            Some(Partly { bytes, unreadable }) => (bytes.to_vec(), unreadable),
            None => (view.to_vec(), Vec::new()),
        };
        refused.iter().for_each(|pages| bytes[pages.start as usize..pages.end as usize].fill(0));
        unreadable.extend(refused);
        unreadable.sort_by_key(|pages| pages.start);
        Ok(Some(Partly { bytes: bytes.into(), unreadable }))
    }

    fn read_pages(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Vec<Range<u32>>> {
        self.copy_pages(id, from, bytes, false)
    }

    fn read_stored(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Option<Vec<Range<u32>>>> {
        if self.passes_cache { self.copy_pages(id, from, bytes, true).map(Some) } else { Ok(None) }
    }

    fn write(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.write_unflushed(id, offset, bytes)?;
        self.flush(id, offset..offset + bytes.len() as u32)
    }

    fn sync(&mut self, id: SegmentId) -> io::Result<()> {
        self.flush(id, 0..u32::MAX)
    }

    fn set_aside(&mut self, id: SegmentId) -> io::Result<()> {
        self.remove(id)
    }

    fn checkpoints(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.checkpoints.keys().copied().collect())
    }

    fn read_checkpoint(&mut self, number: u64) -> io::Result<Bytes> {
        if self.fails_to_read() {
            return Err(eio("read"));
        }
        self.checkpoints
            .get(&number)
            .map(|bytes| Bytes::from(bytes.clone()))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_aside_checkpoint(&mut self, number: u64) -> io::Result<()> {
        self.checkpoints.remove(&number).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_end(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.end.clone())
    }

    fn remove_end(&mut self) -> io::Result<()> {
        self.removed_end = self.end.take().or(self.removed_end.take());
        Ok(())
    }
}

fn segment(segments: &mut BTreeMap<SegmentId, Segment>, id: SegmentId) -> io::Result<&mut Segment> {
    segments.get_mut(&id).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no segment {id}")))
}

fn sectors_of(page: u32) -> Range<u32> {
    const SECTORS: u32 = PAGE_BYTES / SECTOR_BYTES;
    page * SECTORS..(page + 1) * SECTORS
}

fn sectors(range: &Range<usize>) -> Range<u32> {
    (range.start / SECTOR) as u32..range.end.div_ceil(SECTOR) as u32
}

fn eio(what: &str) -> io::Error {
    io::Error::other(format!("a planted failure of a {what}"))
}

/// Spreads the bits of a number (the finaliser of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The owner of the mapping of a segment.
struct Mapping(Arc<Memory>);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self.0.all()
    }
}

/// Memory that is written while mappings of it exist, as that of a mapped file is. The rule that makes it sound is the same
/// one (`mapping.rs`): nobody has a reference to bytes of a mapping while others are written there. Batches are written where nobody
/// looks yet; what a start zeroes, cold segments have overwritten, and damage is planted in, is written between two looks, for all of it
/// goes through `RamDisk`, on the one thread that looks.
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory without ties to a thread. Writes go through `RamDisk`, which is used from one thread at a time, to
// bytes that no other thread looks at, by the rule above.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(len: usize) -> Memory {
        assert!(len > 0, "a segment is not empty");
        // Not aligned to a page: only so does the allocator hand out untouched pages instead of clearing them.
        let layout = Layout::from_size_align(len, 16).expect("a segment is at most 4 GiB");
        // SAFETY: the layout has a size above zero, as asserted.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Memory { start, layout }
    }

    fn copy(&self) -> Memory {
        let copy = Memory::new(self.layout.size());
        // Zero pages are left untouched, so that the copy of a nearly empty segment costs no memory.
        for (page, bytes) in self.all().chunks(PAGE_BYTES as usize).enumerate() {
            if !crate::layout::is_zero(bytes) {
                copy.write(page * PAGE_BYTES as usize, bytes);
            }
        }
        copy
    }

    fn all(&self) -> &[u8] {
        // SAFETY: initialised (zeroed when made), alive as long as `self`; not written while looked at, by the rule above.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    fn sector(&self, sector: u32) -> [u8; SECTOR] {
        let at = sector as usize * SECTOR;
        self.all()[at..at + SECTOR].try_into().expect("a slice of one sector")
    }

    fn check(&self, offset: usize, len: usize) -> io::Result<Range<usize>> {
        let end = offset + len;
        if end > self.layout.size() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the segment"));
        }
        Ok(offset..end)
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.layout.size());
        // SAFETY: in bounds, as asserted; `copy` allows that `bytes` overlaps.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.start.as_ptr().add(offset), bytes.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from the allocator with this very layout and is freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}
