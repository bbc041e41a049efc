//! Opening a log: which batches are there, what a crash tore, what rotted.
//!
//! The rule: batches are numbered densely and one is written at a time, so only the last may be torn. It is torn if its
//! damage, or what is left of it without a header, lies where it began and nothing valid follows: then it is zeroed and
//! reported. Anything else that is not as it was written is rot, and the disk is left alone. With a valid batch behind it the log
//! goes on there, and it is told what is lost; without one nobody knows where the log ended, and it does not open.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::checkpoint::{self, BadCheckpoint, Checkpoint, Position};
use crate::layout::{self, BATCH_HEADER_BYTES, BadSegment, BatchHeader, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::rot::{Loss, Part, Rot, RotReason, look_into};
use crate::scrub::{self, Memory, SegmentIs};
use crate::segments::Segment;
use crate::{Arriving, Disk, Location, LogOptions, OpenError, RecordHeader, SegmentId, end};

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Segments, unused spares included.
    pub segments: u32,
    /// Batches that were accepted.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// The torn last batch, if there was one.
    pub truncated: Option<Truncated>,
    /// The checkpoint that the log was read from.
    pub checkpoint: Option<u64>,
    /// Newer checkpoints that do not hold: the one before them served.
    pub checkpoints_damaged: u32,
    /// What is not as it was written, in the log's order. It was left as it is.
    pub rot: Vec<Rotten>,
}

/// Rot that was found where the log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotten {
    /// What is wrong, and where.
    pub rot: Rot,
    /// How many records were given out before it. `None` of what lies before the checkpoint's position, where none are given
    /// out: it matters to who waits for something there.
    pub after: Option<u64>,
}

/// The remains of a last batch that a crash tore. They are zeros now. Nothing in it was ever acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Where it lay.
    pub segment: SegmentId,
    /// Where what was zeroed begins.
    pub offset: u32,
    /// How many bytes were zeroed.
    pub bytes: u32,
}

/// What [`Log::open`](crate::Log::open) goes on from.
pub(crate) struct Found {
    pub(crate) segments: Vec<(SegmentId, Segment)>,
    /// No part of the log: nothing in them was looked at.
    pub(crate) cold: Vec<(SegmentId, Segment)>,
    pub(crate) next_batch: u64,
    pub(crate) tail_segment: SegmentId,
    pub(crate) tail_offset: u32,
    pub(crate) report: Recovered,
}

/// A place in the log.
#[derive(Clone, Copy)]
struct At {
    /// Index in the list of segments.
    segment: usize,
    offset: u32,
}

/// What lies where the next batch would.
enum Next {
    Batch(BatchHeader),
    /// Its header is valid, its records are not.
    Torn(BatchHeader),
    /// A valid header that is not the next batch's.
    Misplaced,
    Absent,
}

/// Which checkpoints there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    /// The older and the newer one that are kept. Both hold.
    pub(crate) kept: [Option<Checkpoint>; 2],
    /// The number of the next one.
    pub(crate) next: u64,
    /// All that is in the newer one is in batches before this.
    through: u64,
    /// Those that do not hold, or cannot be read.
    pub(crate) damaged: Vec<u64>,
}

impl Start {
    pub(crate) fn newest(&self) -> Option<Checkpoint> {
        self.kept[1]
    }

    /// Damaged ones are put aside: were one of them read again after the log has gone on from another, it would lead astray.
    pub(crate) fn set_aside(&self, disk: &mut dyn Disk) -> Result<(), OpenError> {
        for &number in &self.damaged {
            disk.set_aside_checkpoint(number).map_err(|source| OpenError::CheckpointIo { number, source })?;
        }
        Ok(())
    }
}

/// Finds the newest checkpoint that holds and gives out its pieces, and the one before it.
pub(crate) fn newest_checkpoint(
    options: &LogOptions,
    disk: &mut dyn Disk,
    on_piece: &mut dyn FnMut(&[u8]),
) -> Result<Start, OpenError> {
    let mut numbers = disk.checkpoints().map_err(|source| OpenError::CheckpointIo { number: 0, source })?;
    numbers.sort_unstable();
    let mut start = Start { next: numbers.last().map_or(1, |newest| newest + 1), ..Start::default() };
    let mut first_bad = None;
    for number in numbers.into_iter().rev() {
        let bytes = match disk.read_checkpoint(number) {
            Ok(bytes) => bytes,
            // Rot shows as an error of the device more often than as other bytes.
            Err(source) => {
                start.damaged.push(number);
                first_bad.get_or_insert(OpenError::CheckpointIo { number, source });
                continue;
            }
        };
        match checkpoint::verify(&bytes, options.shard, number) {
            Ok((newest, pieces)) if start.kept[1].is_none() => {
                start.kept[1] = Some(newest);
                start.through = pieces.through();
                pieces.for_each(&mut *on_piece);
            }
            Ok((older, _)) => {
                start.kept[0] = Some(older);
                break;
            }
            // Another program's is not damaged, and what follows it in the log is not for this one either.
            Err(reason @ BadCheckpoint::Format(_)) => return Err(OpenError::Checkpoint { number, reason }),
            Err(reason) => {
                start.damaged.push(number);
                first_bad.get_or_insert(OpenError::Checkpoint { number, reason });
            }
        }
    }
    match first_bad {
        Some(error) if start.kept[1].is_none() => Err(error),
        _ => Ok(start),
    }
}

pub(crate) fn recover(
    options: &LogOptions,
    disk: &mut dyn Disk,
    start: &Start,
    on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
) -> Result<Found, OpenError> {
    let from = start.newest().map(|newest| newest.position);
    let walked_from = from.map_or(SegmentId::FIRST, |position| position.segment);
    let mut heads = Vec::new();
    let (held, segments, cold) = open_segments(options, disk, from.map(|position| position.segment), &mut heads)?;
    let behind = segments.partition_point(|(_, header)| header.id < walked_from);
    let (begin, first_batch) = match from {
        Some(position) => {
            let header = &segments[behind].1;
            if header.generation != position.generation || position.offset > header.size_bytes {
                let reason = RotReason::NotTheCheckpoints;
                return Err(OpenError::Rot { segment: header.id, offset: 0, reason });
            }
            (At { segment: 0, offset: position.offset }, position.batch)
        }
        None => (At { segment: 0, offset: FIRST_BATCH_OFFSET }, 1),
    };
    let mut rot = heads;
    let walked = &segments[behind..];
    if from.is_some() {
        // What waits there is not cold, and nobody looks at its checksums any more.
        let (mapping, header) = &segments[behind];
        let SegmentHeader { shard, id, size_bytes, generation } = *header;
        let is = SegmentIs { shard, id, size_bytes, generation: Some(generation) };
        rot.extend(scrub::check_before(&is, &mut Memory(mapping), begin.offset));
    }
    let rot: Vec<Rotten> = rot.into_iter().map(|rot| Rotten { rot, after: None }).collect();
    if from.is_some() && ends_at(options, disk, from, begin, walked)? {
        let report = Recovered { segments: segments.len() as u32, rot, ..Recovered::default() };
        let tail_segment = walked[0].1.id;
        return Ok(Found {
            next_batch: first_batch,
            tail_segment,
            tail_offset: begin.offset,
            report,
            segments: held,
            cold,
        });
    }
    let arriving = disk.read_ahead(walked.iter().map(|(mapping, _)| mapping.clone()).collect());
    let arriving = RefCell::new(arriving.map_err(failed("read", walked_from))?);
    let mut walk = Walk { segments: walked, arriving, next_batch: first_batch, records: 0, rot };
    let (last, tail) = walk.accept(begin, on_record);
    if walk.next_batch < start.through {
        // The checkpoint has what stood here: it was durable.
        return Err(walk.rot(tail, RotReason::BatchMissing));
    }
    let remains = walk.judge_tail(tail)?;
    let (walked, next_batch, records, rot) = (walk.segments, walk.next_batch, walk.records, walk.rot);

    let mut truncated = None;
    if let Some((at, bytes)) = remains {
        let segment = walked[at.segment].1.id;
        disk.write(segment, at.offset, &vec![0; bytes as usize]).map_err(failed("zero the torn batch of", segment))?;
        truncated = Some(Truncated { segment, offset: at.offset, bytes });
    }
    if let Some((at, bytes)) = last {
        // Each batch names the one before it as durable; of the last one nobody knows. After a kill it may be in the page
        // cache only, and after a failed write-back the cache may even pass for clean, so it is not synced but written.
        let (mapping, header) = &walked[at.segment];
        let batch = mapping[at.offset as usize..(at.offset + bytes) as usize].to_vec();
        disk.write(header.id, at.offset, &batch).map_err(failed("rewrite the last batch of", header.id))?;
    }
    let report = Recovered {
        segments: (segments.len() + cold.len()) as u32,
        batches: next_batch - first_batch,
        records,
        truncated,
        rot,
        ..Recovered::default()
    };
    let tail_segment = walked[tail.segment].1.id;
    Ok(Found { next_batch, tail_segment, tail_offset: tail.offset, report, segments: held, cold })
}

/// What holds segments.
type Held = Vec<(SegmentId, Segment)>;

/// Whether the mark of a clean end is there and says that the log ends at the position of the newest checkpoint, and nothing
/// lies there: then nothing was ever written behind it.
fn ends_at(
    options: &LogOptions,
    disk: &mut dyn Disk,
    position: Option<Position>,
    at: At,
    walked: &[(Bytes, SegmentHeader)],
) -> Result<bool, OpenError> {
    let mark = disk.read_end().map_err(|source| OpenError::End { source })?;
    let end = mark.and_then(|mark| end::decode(&mark, options.shard));
    let page = walked[at.segment].0.get(at.offset as usize..).unwrap_or_default();
    let page = &page[..page.len().min(PAGE_BYTES as usize)];
    Ok(end.is_some() && end == position && layout::is_zero(page))
}

/// Views of segments, with their headers.
type Views = Vec<(Bytes, SegmentHeader)>;

/// All segments, in order, with their headers checked: what holds them, and their views, and apart from them the cold ones. From
/// the one that a checkpoint names on, or the first, none is missing; of
/// those before it some may be gone, for nobody needed them. A log without any, and without a checkpoint, gets its first.
fn open_segments(
    options: &LogOptions,
    disk: &mut dyn Disk,
    from: Option<SegmentId>,
    heads: &mut Vec<Rot>,
) -> Result<(Held, Views, Held), OpenError> {
    let walked_from = from.unwrap_or(SegmentId::FIRST);
    let missing = |segment| OpenError::Rot { segment, offset: 0, reason: RotReason::SegmentMissing };
    let mut ids = disk.list().map_err(failed("list", SegmentId(0)))?;
    ids.sort_unstable();
    let cold_ids = ids.split_off(ids.partition_point(|id| !id.is_cold()));
    let mut cold = Vec::with_capacity(cold_ids.len());
    for id in cold_ids {
        let mapping = disk.open(id).map_err(failed("open", id))?;
        let header = check_segment(options, id, &mapping, heads)?;
        cold.push((id, Segment::new(mapping, header.generation, false)));
    }
    if ids.is_empty() && from.is_none() {
        let id = SegmentId::FIRST;
        let mapping = disk.create(id, options.segment_size).map_err(failed("make", id))?;
        let header = check_segment(options, id, &mapping, heads)?;
        let segment = Segment::new(mapping, header.generation, true);
        let view = segment.view().clone();
        return Ok((vec![(id, segment)], vec![(view, header)], cold));
    }
    let mut held = Vec::with_capacity(ids.len());
    let mut segments = Vec::with_capacity(ids.len());
    let mut expected = walked_from;
    for id in ids {
        if id >= walked_from {
            // Those that are missing between others are what the walk misses.
            if expected == walked_from && id != expected {
                return Err(missing(expected));
            }
            expected = id.next();
        }
        let mapping = disk.open(id).map_err(failed("open", id))?;
        let header = check_segment(options, id, &mapping, heads)?;
        // Who is given records looks at views, which are counted.
        let segment = Segment::new(mapping, header.generation, id >= walked_from);
        segments.push((segment.view().clone(), header));
        held.push((id, segment));
    }
    if expected == walked_from {
        return Err(missing(walked_from));
    }
    Ok((held, segments, cold))
}

fn check_segment(
    options: &LogOptions,
    id: SegmentId,
    mapping: &Bytes,
    heads: &mut Vec<Rot>,
) -> Result<SegmentHeader, OpenError> {
    let reason = RotReason::SegmentHeader;
    let rot = OpenError::Rot { segment: id, offset: 0, reason };
    let header = match SegmentHeader::decode(mapping) {
        Ok(header) => header,
        Err(BadSegment::Damaged) => {
            // All that it says is known otherwise, if there is a batch.
            let size_bytes = options.segment_size;
            let first = FIRST_BATCH_OFFSET as usize;
            let generation = mapping.get(first..first + PAGE_BYTES as usize).and_then(scrub::generation_of);
            let Some(generation) = generation.filter(|_| mapping.len() == size_bytes as usize) else { return Err(rot) };
            heads.push(Rot { segment: id, offset: 0, bytes: PAGE_BYTES, reason, loss: Loss::Nothing });
            return Ok(SegmentHeader { shard: options.shard, id, size_bytes, generation });
        }
        Err(BadSegment::Version(found)) => {
            return Err(OpenError::Format { segment: id, found, known: layout::FORMAT_VERSION });
        }
    };
    let expected = (options.shard, options.segment_size);
    if (header.shard, header.size_bytes) != expected {
        return Err(OpenError::Foreign {
            segment: id,
            shard: header.shard,
            size_bytes: header.size_bytes,
            expected_shard: options.shard,
            expected_size_bytes: options.segment_size,
        });
    }
    // A file of another number, or of another length than its header says.
    if header.id != id || mapping.len() != options.segment_size as usize {
        return Err(rot);
    }
    Ok(header)
}

struct Walk<'a> {
    segments: &'a [(Bytes, SegmentHeader)],
    /// How far they are read in.
    arriving: RefCell<Arriving>,
    next_batch: u64,
    records: u64,
    rot: Vec<Rotten>,
}

impl Walk<'_> {
    /// Accepts batches for as long as they are what belongs there. Gives place and length of the last one, and where the
    /// next one would begin.
    fn accept(
        &mut self,
        mut at: At,
        on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
    ) -> (Option<(At, u32)>, At) {
        let mut last = None;
        loop {
            match self.look(at) {
                Next::Batch(header) => {
                    self.emit(at, &header, true, on_record);
                    let bytes = layout::padded(header.length);
                    last = Some((at, bytes));
                    at.offset += bytes;
                    self.next_batch += 1;
                }
                Next::Torn(header) => {
                    let behind = At { offset: at.offset + layout::padded(header.length), ..at };
                    if self.find(behind, self.next_batch + 1).is_none() {
                        return (last, at);
                    }
                    self.emit(at, &header, false, on_record);
                    at = behind;
                    self.next_batch += 1;
                }
                Next::Absent | Next::Misplaced => match self.next_segment(at).or_else(|| self.jump(at)) {
                    Some(next) => at = next,
                    None => return (last, at),
                },
            }
        }
    }

    /// The next valid batch from a place on, with at least this number. None was ever written at its place but that one.
    fn find(&self, from: At, number: u64) -> Option<(At, BatchHeader)> {
        let first = FIRST_BATCH_OFFSET;
        (from.segment..self.segments.len()).find_map(|index| {
            let (mapping, segment) = &self.segments[index];
            let start = if index == from.segment { from.offset } else { first };
            (start..segment.size_bytes).step_by(PAGE_BYTES as usize).find_map(|offset| {
                let header = belonging(segment, &mapping[offset as usize..], offset)?;
                (header.number >= number).then_some((At { segment: index, offset }, header))
            })
        })
    }

    /// Goes on at the next valid batch, if there is one. What is lost until there is rot.
    fn jump(&mut self, from: At) -> Option<At> {
        let (to, header) = self.find(from, self.next_batch)?;
        let (reason, loss) = match header.number == self.next_batch {
            true => (RotReason::Stray, Loss::Nothing),
            false if BatchHeader::decode(&self.segments[from.segment].0[from.offset as usize..]).is_some() => {
                (RotReason::BatchMisplaced, Loss::Unknown)
            }
            false => (RotReason::BatchMissing, Loss::Unknown),
        };
        for index in from.segment..=to.segment {
            let (_, segment) = &self.segments[index];
            let (id, size) = (segment.id, segment.size_bytes);
            let start = if index == from.segment { from.offset } else { FIRST_BATCH_OFFSET };
            let end = if index == to.segment { to.offset } else { size };
            if end > start {
                self.found(Rot { segment: id, offset: start, bytes: end - start, reason, loss });
            }
            let next = self.segments.get(index + 1).filter(|_| index < to.segment).map(|(_, next)| next.id);
            for segment in (id.0 + 1..next.map_or(0, |next| next.0)).map(SegmentId) {
                self.found(Rot { segment, offset: 0, bytes: size, reason: RotReason::SegmentMissing, loss });
            }
        }
        self.next_batch = header.number;
        Some(to)
    }

    fn found(&mut self, rot: Rot) {
        self.rot.push(Rotten { rot, after: Some(self.records) });
    }

    /// What lies at this place. Only a batch's header ever lies there, so a valid one that is not the next is misplaced.
    fn look(&self, at: At) -> Next {
        let (mapping, segment) = &self.segments[at.segment];
        self.wait(at.segment, at.offset as usize + BATCH_MAX_BYTES as usize);
        let rest = &mapping[at.offset as usize..];
        if BatchHeader::decode(rest).is_none() {
            return Next::Absent;
        }
        let belongs = belonging(segment, rest, at.offset).filter(|header| header.number == self.next_batch);
        let Some(header) = belongs else { return Next::Misplaced };
        let whole = records_hold(&rest[..layout::padded(header.length) as usize], &header);
        if whole { Next::Batch(header) } else { Next::Torn(header) }
    }

    /// The start of the next segment, if the log goes on there: this one is full, or the next batch is there, torn or not.
    fn next_segment(&self, at: At) -> Option<At> {
        let next = At { segment: at.segment + 1, offset: FIRST_BATCH_OFFSET };
        let (mapping, segment) = self.segments.get(next.segment)?;
        if segment.id != self.segments[at.segment].1.id.next() {
            return None;
        }
        self.wait(next.segment, next.offset as usize + BATCH_HEADER_BYTES as usize);
        let header = BatchHeader::decode(&mapping[next.offset as usize..]);
        let goes_on =
            header.is_some_and(|header| header.generation == segment.generation && header.number == self.next_batch);
        // Behind a full segment there is nowhere else to go on.
        let full = at.offset == self.segments[at.segment].1.size_bytes;
        let rest = &self.segments[at.segment].0[at.offset as usize..];
        // With bytes in between it is not gone on to but found.
        ((goes_on || full) && layout::is_zero(rest)).then_some(next)
    }

    /// Gives out the records of a batch that are as they were written: if it is `whole`, as was seen, all of them.
    fn emit(
        &mut self,
        at: At,
        header: &BatchHeader,
        whole: bool,
        on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
    ) {
        let (mapping, segment) = &self.segments[at.segment];
        let batch = &mapping[at.offset as usize..(at.offset + layout::padded(header.length)) as usize];
        let (records, rot) = (&mut self.records, &mut self.rot);
        let each = &mut |part: Part| {
            if let Part::Record(record, from, len) = part {
                let offset = at.offset + from;
                let location = Location { segment: segment.id, offset, len };
                on_record(&record, location, mapping.slice(offset as usize..(offset + len) as usize));
                *records += 1;
            } else {
                rot.extend(part.rot(segment.id, header).map(|rot| Rotten { rot, after: Some(*records) }));
            }
        };
        if whole {
            for_each_record(batch, header, each);
        } else {
            look_into(batch, header, each);
        }
    }

    /// Judges all that lies behind the accepted batches: nothing, the remains of one torn batch (their place and length),
    /// or rot.
    fn judge_tail(&self, tail: At) -> Result<Option<(At, u32)>, OpenError> {
        let torn = match self.look(tail) {
            Next::Torn(header) => Some(layout::padded(header.length)),
            Next::Misplaced => return Err(self.rot(tail, RotReason::BatchMisplaced)),
            Next::Batch(_) | Next::Absent => None,
        };
        if let Some(missing) = self.missing_from(tail.segment) {
            return Err(OpenError::Rot { segment: missing, offset: 0, reason: RotReason::SegmentMissing });
        }
        let missing = if torn.is_some() { RotReason::Batch } else { RotReason::BatchMissing };
        // Pages that are not zeros, per segment: first and end.
        let mut strays: Vec<(usize, Range<u32>)> = Vec::new();
        for segment in tail.segment..self.segments.len() {
            let from = if segment == tail.segment { tail.offset } else { FIRST_BATCH_OFFSET };
            let after = if segment == tail.segment { tail.offset + torn.unwrap_or(0) } else { from };
            if let Some(stray) = self.scan(segment, from, after).map_err(|Valid| self.rot(tail, missing))? {
                strays.push((segment, stray));
            }
        }
        let Some((segment, stray)) = strays.first().cloned() else {
            return Ok(None);
        };
        let start = At { segment, offset: stray.start };
        let explained = strays.len() == 1 && self.torn_reach(tail, torn, segment).is_some_and(|end| stray.end <= end);
        if !explained {
            return Err(self.rot(start, RotReason::Stray));
        }
        Ok(Some((start, stray.end - stray.start)))
    }

    /// Up to where the remains of the next batch may reach in a segment, if it may have begun there: behind the last batch, or
    /// in the segment after that, for it did not fit or the one before was sealed.
    fn torn_reach(&self, tail: At, torn: Option<u32>, segment: usize) -> Option<u32> {
        let size = self.segments[tail.segment].1.size_bytes;
        if segment == tail.segment {
            return Some(size.min(tail.offset.saturating_add(torn.unwrap_or(BATCH_MAX_BYTES))));
        }
        let rolled = torn.is_none() && segment == tail.segment + 1;
        rolled.then(|| size.min(FIRST_BATCH_OFFSET + BATCH_MAX_BYTES))
    }

    /// The extent of pages from `from` on that are not zeros, or [`Valid`] if one from `after` on starts with a batch's header.
    fn scan(&self, segment: usize, from: u32, after: u32) -> Result<Option<Range<u32>>, Valid> {
        let (mapping, header) = &self.segments[segment];
        self.wait(segment, mapping.len());
        let mut stray: Option<Range<u32>> = None;
        for offset in (from..header.size_bytes).step_by(PAGE_BYTES as usize) {
            let page = &mapping[offset as usize..(offset + PAGE_BYTES) as usize];
            if layout::is_zero(page) {
                continue;
            }
            let batch = BatchHeader::decode(page);
            if offset >= after && batch.is_some_and(|batch| batch.generation == header.generation) {
                return Err(Valid);
            }
            let start = stray.map_or(offset, |stray| stray.start);
            stray = Some(start..offset + PAGE_BYTES);
        }
        Ok(stray)
    }

    /// Waits until a segment is read in up to an offset, or whole.
    fn wait(&self, segment: usize, offset: usize) {
        self.arriving.borrow_mut().wait(segment, offset.min(self.segments[segment].0.len()));
    }

    /// The first segment that is missing behind this one, before another that is there.
    fn missing_from(&self, index: usize) -> Option<SegmentId> {
        let pairs = self.segments[index..].windows(2).map(|pair| (pair[0].1.id, pair[1].1.id));
        pairs.into_iter().find(|(id, next)| id.next() != *next).map(|(id, _)| id.next())
    }

    fn rot(&self, at: At, reason: RotReason) -> OpenError {
        OpenError::Rot { segment: self.segments[at.segment].1.id, offset: at.offset, reason }
    }
}

/// A valid batch header lies where none may.
struct Valid;

/// The header of a batch at this place of a segment, if it is valid and was written for it.
fn belonging(segment: &SegmentHeader, rest: &[u8], offset: u32) -> Option<BatchHeader> {
    let header = BatchHeader::decode(rest)?;
    let belongs = header.durable == header.number.wrapping_sub(1)
        && header.generation == segment.generation
        && header.offset == offset
        && (BATCH_HEADER_BYTES..=BATCH_MAX_BYTES).contains(&header.length)
        && layout::padded(header.length) as usize <= rest.len();
    belongs.then_some(header)
}

/// Whether all records of a batch are as they were written, and the padding behind them.
fn records_hold(batch: &[u8], header: &BatchHeader) -> bool {
    let seed = layout::record_seed(header.number);
    let (records, padding) = batch.split_at(header.length as usize);
    let mut at = BATCH_HEADER_BYTES as usize;
    for _ in 0..header.records {
        let offset = header.offset + at as u32;
        let Some((_, payload_bytes)) = layout::decode_record(&records[at..], seed, offset) else {
            return false;
        };
        at += layout::record_bytes(payload_bytes);
    }
    at == records.len() && layout::is_zero(padding)
}

/// Goes through the records of a batch that holds.
fn for_each_record(batch: &[u8], header: &BatchHeader, each: &mut dyn FnMut(Part)) {
    let mut at = BATCH_HEADER_BYTES as usize;
    for _ in 0..header.records {
        let (record, payload_bytes) =
            layout::record_unchecked(&batch[at..]).expect("the batch was checked just before");
        each(Part::Record(record, at as u32 + layout::RECORD_HEADER_BYTES, payload_bytes as u32));
        at += layout::record_bytes(payload_bytes);
    }
}

fn failed(doing: &'static str, segment: SegmentId) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, segment, source }
}
