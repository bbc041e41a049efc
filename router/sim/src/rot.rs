//! Rot in segments that nobody writes any more, while the node runs: a bit that turned over, or a block of another write. It is
//! on stable storage; what is in the page cache is as it was, until it is read from the disk again.
//!
//! What is damaged is known here from the bytes alone: which records are lost by it, whose they are, and so who may be in
//! repair, and who has to be once it was read. It stays over starts, until somebody brings the bytes back.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use whimbrel_core::{Shard, Trouble};
use whimbrel_storage::inspect::{BatchFound, Part, RecordFound, SegmentFacts, parts};
use whimbrel_storage::limits::PAGE_BYTES;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    BATCH_HEADER_BYTES, RECORD_HEADER_BYTES, RecordKind, Rot, RotReason, SegmentId, Source, record_bytes,
};

use crate::rng::Rng;

/// Chance for rot, apart from all other so that a seed without it is the same as ever; and what came of it.
pub(crate) struct Rots {
    pub(crate) rng: Rng,
    /// Partitions that are in repair, as the shards tell.
    pub(crate) in_repair: BTreeSet<u16>,
    /// Those that were at any time.
    pub(crate) ever: BTreeSet<u16>,
}

impl Rots {
    pub(crate) fn new(seed: u64) -> Rots {
        Rots { rng: Rng::new(seed ^ 0x726f_7473), in_repair: BTreeSet::new(), ever: BTreeSet::new() }
    }
}

/// Bytes of a segment that are not what was written.
pub(crate) struct Damage {
    pub(crate) segment: SegmentId,
    /// Where, what was there, what is.
    bytes: Vec<(u32, u8, u8)>,
    /// The batch that they are in, or the first page.
    around: Range<u32>,
    /// The number of that batch.
    batch: Option<u64>,
    /// Records that are lost by it: whose, and where.
    lost: Vec<(u16, Range<u32>)>,
    /// The disk does not give this page.
    pub(crate) unreadable: Option<Range<u32>>,
    /// Who has something there, be it zeros: he may be in repair.
    beside: BTreeSet<u16>,
    /// Whose they were is not written anywhere any more.
    is_unknown: bool,
    /// Who else may be in repair since the last start: of whom nothing shows that he lost nothing.
    unproven: BTreeSet<u16>,
    /// It was told.
    pub(crate) is_noticed: bool,
    /// The segment is another one by now, or gone.
    pub(crate) is_gone: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, was, is) = self.bytes[0];
        write!(
            f,
            "{} bytes rot in segment {}, from {offset} on ({was:02x} is {is:02x}); of ",
            self.bytes.len(),
            self.segment
        )?;
        f.debug_list().entries(self.lost.iter().map(|(partition, range)| (partition, range.start))).finish()
    }
}

impl Damage {
    /// Damages a segment that nobody writes any more, if there is one.
    pub(crate) fn new(ram: &mut RamDisk, rng: &mut Rng) -> Option<Damage> {
        let ids: Vec<SegmentId> = ram.segments().filter(|id| is_closed(ram, *id)).collect();
        Damage::of(ram, rng, &ids, 200)
    }

    /// Takes a page away from one that a start reads which goes on from this segment, if there is one.
    pub(crate) fn of_start(ram: &mut RamDisk, rng: &mut Rng, from: SegmentId) -> Option<Damage> {
        let read = |id: &SegmentId| *id >= from && !id.is_cold();
        let ids: Vec<SegmentId> = ram.segments().filter(read).filter(|id| is_closed(ram, *id)).collect();
        Damage::of(ram, rng, &ids, 1000)
    }

    /// Takes a page away from a cold segment that is not in memory.
    pub(crate) fn of_cold(ram: &mut RamDisk, rng: &mut Rng, id: SegmentId) -> Option<Damage> {
        if is_closed(ram, id) { Damage::of(ram, rng, &[id], 1000) } else { None }
    }

    fn of(ram: &mut RamDisk, rng: &mut Rng, ids: &[SegmentId], unreadable_per_mille: u64) -> Option<Damage> {
        if ids.is_empty() {
            return None;
        }
        let segment = rng.pick(ids);
        let good = ram.on_disk(segment)?;
        let batches = batches(&good);
        let batch = batches.get(rng.index(batches.len()))?;
        let mut unreadable = None;
        // A page of a cold one that is in memory would be there again once something beside it is erased.
        let can_lose = !segment.is_cold() || unreadable_per_mille == 1000;
        let bytes = if can_lose && rng.per_mille(unreadable_per_mille) {
            let page =
                batch.offset + rng.below(u64::from((batch.end() - batch.offset) / PAGE_BYTES)) as u32 * PAGE_BYTES;
            unreadable = Some(page..page + PAGE_BYTES);
            // To checksums it is zeros.
            let bytes = (page..).zip(&good[page as usize..]).take(PAGE_BYTES as usize);
            bytes.filter(|(_, was)| **was != 0).map(|(offset, was)| (offset, *was, 0)).collect()
        } else if rng.per_mille(100) {
            vec![flip(&good, rng.below(64) as u32, rng)]
        } else if !segment.is_cold() && rng.per_mille(300) {
            // Cold ones are written in places, so that nobody could say later what a block of another would have been.
            misdirect(ram, &good, batch, rng)?
        } else {
            vec![flip(&good, place_in(batch, rng), rng)]
        };
        if bytes.is_empty() {
            // A page of zeros is as good as it was.
            return None;
        }
        for (offset, _, is) in &bytes {
            ram.rot(segment, *offset, &[*is]).ok()?;
        }
        if let Some(page) = &unreadable {
            ram.lose_page(segment, page.start).ok()?;
            if segment.is_cold() {
                ram.evict(segment);
            }
        }
        let in_head = bytes[0].0 < PAGE_BYTES;
        let around = if in_head { 0..PAGE_BYTES } else { batch.offset..batch.end() };
        let (lost, is_unknown) = if in_head { (Vec::new(), false) } else { losses(batch, &bytes) };
        let on_page = |record: &RecordFound<'_>, page: &Range<u32>| {
            let from = record.offset + RECORD_HEADER_BYTES;
            from < page.end && page.start < from + record.payload.len() as u32
        };
        let page = unreadable.iter();
        let beside = page.flat_map(|page| batch.records().flatten().filter(|record| on_page(record, page)));
        let beside = beside.map(|record| record.header.partition).collect();
        let batch = (!in_head && !segment.is_cold()).then_some(batch.number);
        let unproven = BTreeSet::new();
        let (is_noticed, is_gone) = (false, false);
        Some(Damage {
            segment,
            bytes,
            around,
            batch,
            lost,
            unreadable,
            beside,
            is_unknown,
            unproven,
            is_noticed,
            is_gone,
        })
    }

    /// Whether it is what a shard tells of.
    pub(crate) fn explains(&mut self, trouble: &Trouble) -> bool {
        match trouble {
            Trouble::Rot(rot) => self.is(rot),
            Trouble::Repair(repair) => {
                let partition = repair.partition.0;
                let others = self.unproven.contains(&partition) || self.beside.contains(&partition);
                others || self.lost.iter().any(|(lost, _)| *lost == partition)
            }
        }
    }

    /// Whether it is what was found.
    pub(crate) fn is(&mut self, rot: &Rot) -> bool {
        let is = rot.segment == self.segment
            && rot.offset < self.around.end
            && u64::from(self.around.start) < u64::from(rot.offset) + u64::from(rot.bytes);
        self.is_noticed |= is;
        // A first batch that is not found may have been in the segment before, behind the last one there.
        let is_before = rot.segment.next() == self.segment
            && self.around.start == PAGE_BYTES
            && matches!(rot.reason, RotReason::BatchMissing | RotReason::BatchMisplaced);
        is || is_before
    }

    /// The segment was just read, so that whoever waits for something that is lost has to be in repair.
    pub(crate) fn is_ignored_by(&self, shard: &Shard) -> Option<u16> {
        let in_repair: BTreeSet<u16> = shard.in_repair().map(|it| it.partition.0).collect();
        let waiting = self.lost.iter().flat_map(|(_, range)| shard.waiting_in(self.segment, range.clone()));
        waiting.map(|partition| partition.0).find(|partition| !in_repair.contains(partition))
    }

    /// A start reads the log from this batch on. Where it reads damage that names nobody, it has to see an entry of each partition
    /// behind it to know that it lost none.
    pub(crate) fn met_by_start(&mut self, ram: &RamDisk, partitions: &[u16], from_batch: u64) {
        self.unproven.clear();
        let Some(damaged) = self.batch.filter(|batch| self.is_unknown && *batch >= from_batch) else { return };
        self.unproven.extend(partitions);
        for id in ram.segments().filter(|id| !id.is_cold()) {
            let Some(bytes) = ram.contents(id) else { continue };
            for batch in batches(&bytes).iter().filter(|batch| batch.number > damaged) {
                for record in batch.records().flatten().filter(|it| it.header.kind == RecordKind::Entry) {
                    self.unproven.remove(&record.header.partition);
                }
            }
        }
    }

    /// Whether it is in these bytes of the segment.
    pub(crate) fn is_in(&self, bytes: &[u8]) -> bool {
        self.bytes.iter().any(|(offset, _, is)| bytes.get(*offset as usize) == Some(is))
    }

    /// The bytes are back.
    pub(crate) fn mend(self, ram: &mut RamDisk) {
        for (offset, was, is) in self.bytes.into_iter().filter(|_| !self.is_gone) {
            let _ = ram.mend(self.segment, offset, was, is);
        }
    }
}

/// Bytes of a segment, of which some cannot be read.
pub(crate) struct Partly<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) unreadable: &'a [Range<u32>],
}

impl Source for Partly<'_> {
    fn at(&mut self, range: Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn unreadable(&self) -> &[Range<u32>] {
        self.unreadable
    }
}

/// Whether a later batch is on stable storage than any in this segment: its own are no torn ones, whatever becomes of them.
fn is_closed(ram: &RamDisk, id: SegmentId) -> bool {
    let (next, first) = (id.next(), PAGE_BYTES / whimbrel_storage::limits::SECTOR_BYTES);
    let is_durable = || ram.unflushed().all(|(segment, sector)| segment != next || sector != first);
    let begins = |id: SegmentId| ram.contents(id).is_some_and(|bytes| !batches(&bytes).is_empty());
    // A torn one does not count: what is damaged right before it may be the last that was durable, and then nobody knows where the
    // log ended.
    let is_whole = |id: SegmentId| {
        ram.contents(id).is_some_and(|bytes| batches(&bytes).first().is_some_and(|first| first.fault().is_none()))
    };
    let is_flushed = || ram.unflushed().all(|(segment, _)| segment != id);
    begins(id) && if id.is_cold() { is_flushed() } else { is_whole(next) && is_durable() }
}

/// The batches of a segment.
pub(crate) fn batches(segment: &[u8]) -> Vec<BatchFound<'_>> {
    let Ok(facts) = SegmentFacts::of(segment) else { return Vec::new() };
    let batch = |part| if let Part::Batch(batch) = part { Some(batch) } else { None };
    parts(segment, facts.generation).filter_map(batch).collect()
}

/// A place in a batch, in the head of something as often as anywhere.
pub(crate) fn place_in(batch: &BatchFound<'_>, rng: &mut Rng) -> u32 {
    if rng.per_mille(400) {
        return batch.offset + rng.below(u64::from(batch.end() - batch.offset)) as u32;
    }
    let heads = batch.records().flatten().map(|record| (record.offset, RECORD_HEADER_BYTES));
    let mut heads: Vec<(u32, u32)> = heads.collect();
    heads.push((batch.offset, BATCH_HEADER_BYTES));
    let (offset, bytes) = rng.pick(&heads);
    offset + rng.below(u64::from(bytes)) as u32
}

/// Another bit of a byte, so that there is something: what was overwritten with zeros since is not damaged any more.
fn flip(good: &[u8], offset: u32, rng: &mut Rng) -> (u32, u8, u8) {
    let was = good[offset as usize];
    let bit = 1 << rng.below(8);
    let is = if was == bit { was ^ bit.rotate_left(1) } else { was ^ bit };
    (offset, was, is)
}

/// A block of another batch over one of this.
fn misdirect(ram: &RamDisk, good: &[u8], batch: &BatchFound<'_>, rng: &mut Rng) -> Option<Vec<(u32, u8, u8)>> {
    let page = |range: Range<u32>, rng: &mut Rng| {
        range.start + rng.below(u64::from((range.end - range.start) / PAGE_BYTES)) as u32 * PAGE_BYTES
    };
    let ids: Vec<SegmentId> = ram.segments().collect();
    let from = rng.pick(&ids);
    let other = ram.contents(from)?;
    let others = batches(&other);
    let from = others.get(rng.index(others.len())).map(|other| page(other.offset..other.end(), rng))? as usize;
    let to = page(batch.offset..batch.end(), rng);
    let both = good[to as usize..].iter().zip(&other[from..]).take(PAGE_BYTES as usize);
    let bytes: Vec<(u32, u8, u8)> =
        (to..).zip(both).filter(|(_, (was, is))| was != is).map(|(offset, (was, is))| (offset, *was, *is)).collect();
    (!bytes.is_empty()).then_some(bytes)
}

/// The records of a batch that are lost if these bytes of it are others, and whether it is unknown whose they were: behind a
/// head that does not hold nothing is known.
fn losses(batch: &BatchFound<'_>, bytes: &[(u32, u8, u8)]) -> (Vec<(u16, Range<u32>)>, bool) {
    let touched = |range: Range<u32>| bytes.iter().any(|(offset, ..)| range.contains(offset));
    let mut is_unknown = touched(batch.offset..batch.offset + BATCH_HEADER_BYTES);
    let mut lost = Vec::new();
    for record in batch.records().flatten() {
        let end = record.offset + record_bytes(record.payload.len()) as u32;
        is_unknown |= touched(record.offset..record.offset + RECORD_HEADER_BYTES);
        if is_unknown || touched(record.offset..end) {
            lost.push((record.header.partition, record.offset..end));
        }
    }
    (lost, is_unknown)
}
