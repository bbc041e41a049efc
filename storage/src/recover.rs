//! Opening a log: which batches are there, what a crash tore, what rotted.
//!
//! The rule: batches are numbered densely and one is written at a time, so only the last may be torn. It is torn if its
//! damage, or what is left of it without a header, lies where it began and nothing valid follows: then it is zeroed and
//! reported. Anything else that is not as it was written is rot, and the disk is left alone. With a valid batch behind it the log
//! goes on there, and it is told what is lost; without one nobody knows where the log ended, and it does not open. A log that rests ends
//! with a batch without records, so that all others have one behind them.

use std::io;

use bytes::Bytes;

use crate::checkpoint::{self, BadCheckpoint, Checkpoint, Position};
use crate::layout::{self, BadSegment, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::limits::PAGE_BYTES;
use crate::rot::{Loss, Rot, RotReason};
use crate::scrub::{self, Partly, SegmentIs};
use crate::segments::Segment;
use crate::walk::Walk;
use crate::{Disk, Location, Log, LogOptions, OpenError, RecordHeader, SegmentId, end, open_error};

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
    /// Spare segments that were damaged, and are put aside. (`rot` says how.) The log makes others.
    pub spares_damaged: u32,
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

/// The remains of a last batch that a crash tore. They are zeros now. Nothing in it was ever acknowledged, unless it was damaged by
/// the disk and not by a crash: of the very last batch, which nothing follows, nobody can tell. Where the log has rested
/// ([`Log::write_empty`]) that one has no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// Where it lay.
    pub segment: SegmentId,
    /// Where what was zeroed begins.
    pub offset: u32,
    /// How many bytes were zeroed.
    pub bytes: u32,
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
            disk.set_aside_checkpoint(number).map_err(|source| OpenError::CheckpointAside { number, source })?;
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

/// The batches of a log behind its newest checkpoint, which are gone through one at a time: [`Log::begin`].
pub struct Replay {
    start: Start,
    /// Segments that are there.
    segments: u32,
    /// `None` if nothing lies behind the checkpoint.
    walk: Option<Walk>,
    /// What was found before it began, but for what lies before the checkpoint's position.
    heads: Vec<Rot>,
    /// The segment of the checkpoint's position, if there is one: what lies before it is looked at in the end.
    before: Option<SegmentIs>,
    /// Its bytes, where it is not gone through.
    beginning: Option<Partly>,
    /// Where it begins.
    first: Tail,
}

/// Where the next batch of a log goes.
#[derive(Clone, Copy)]
pub(crate) struct Tail {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) batch: u64,
}

/// What [`Log::begin`] goes on from.
pub(crate) struct Begun {
    pub(crate) segments: Held,
    /// No part of the log: nothing in them was looked at.
    pub(crate) cold: Held,
    pub(crate) replay: Replay,
}

pub(crate) fn begin(options: &LogOptions, disk: &mut dyn Disk, start: Start) -> Result<Begun, OpenError> {
    let from = start.newest().map(|newest| newest.position);
    let walked_from = from.map_or(SegmentId::FIRST, |position| position.segment);
    let mut heads = Vec::new();
    let (held, mut opened, cold) = open_segments(options, disk, from, &mut heads)?;
    let segments = (opened.views.len() + cold.len()) as u32;
    let walked = opened.views.split_off(opened.views.partition_point(|(_, header)| header.id < walked_from));
    let walked = Opened { views: walked, ..opened };
    let (_, header) = &walked.views[0];
    let (first, before) = match from {
        Some(Position { segment, generation, offset, batch }) => {
            if header.generation != generation || offset > header.size_bytes {
                let reason = RotReason::NotTheCheckpoints;
                return Err(OpenError::Rot { segment: header.id, offset: 0, reason });
            }
            let SegmentHeader { shard, id, size_bytes, generation } = *header;
            let is = SegmentIs { shard, id, size_bytes, generation: Some(generation) };
            (Tail { segment, offset, batch }, Some(is))
        }
        None => (Tail { segment: header.id, offset: FIRST_BATCH_OFFSET, batch: 1 }, None),
    };
    // With a damaged spare segment all of them are looked at.
    let beginning = match from {
        Some(position) if walked.headless.is_empty() => ends_at(options, disk, position, &walked.views)?,
        _ => None,
    };
    let walk = if beginning.is_some() {
        None
    } else {
        let views = walked.views.iter().map(|(mapping, header)| (header.id, mapping.clone())).collect();
        let arriving = disk.read_ahead(views).map_err(failed("read", walked_from))?;
        Some(Walk::new(walked, arriving, first.offset, first.batch))
    };
    let replay = Replay { start, segments, walk, heads, before, beginning, first };
    Ok(Begun { segments: held, cold, replay })
}

impl Replay {
    /// Gives out the records of the next batch that is accepted, in order, with views of their payloads; false if there is none.
    /// All of the batch was checked before the first of them is given. It is durable once [`Replay::end`] has returned.
    pub fn step(&mut self, on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes)) -> bool {
        self.walk.as_mut().is_some_and(|walk| walk.step(on_record))
    }

    /// Judges what lies behind the last batch, makes what was accepted durable, and lets the log go on behind it. What was not
    /// gone through yet is, and given to nobody. On an error the disk is as it was.
    pub fn end(mut self, disk: &mut dyn Disk, log: &mut Log) -> Result<Recovered, OpenError> {
        while self.step(&mut |_, _, _| {}) {}
        let Replay { start, segments, mut walk, mut heads, before, beginning, first } = self;
        let beginning = walk.as_mut().map(|walk| walk.beginning(first.offset)).or(beginning);
        if let (Some(is), Some(mut beginning)) = (before, beginning) {
            // What waits there is not cold, and nobody looks at its checksums any more.
            heads.extend(scrub::check_before(&is, &mut beginning, first.offset));
        }
        let mut report = Recovered {
            segments,
            checkpoint: start.newest().map(|it| it.number),
            checkpoints_damaged: start.damaged.len() as u32,
            rot: heads.into_iter().map(|rot| Rotten { rot, after: None }).collect(),
            ..Recovered::default()
        };
        let mut aside = Vec::new();
        let tail = match walk {
            None => first,
            Some(walk) => walk.end(disk, start.through, &mut report, &mut aside)?,
        };
        // They were gone through in a copy. Whoever looks at the segment later has its view.
        for Rotten { rot, .. } in report.rot.iter().filter(|it| it.rot.reason == RotReason::Unreadable) {
            log.lose(rot.segment, rot.offset..rot.offset + rot.bytes);
        }
        report.batches = tail.batch - first.batch;
        start.set_aside(disk)?;
        set_aside(disk, log, &mut aside, tail)?;
        report.spares_damaged = aside.len() as u32;
        disk.remove_end().map_err(|source| OpenError::End { source })?;
        log.goes_on(tail);
        Ok(report)
    }
}

/// What holds segments.
pub(crate) type Held = Vec<(SegmentId, Segment)>;

/// Whether the mark of a clean end is there and says that the log ends at the position of the newest checkpoint, and nothing
/// lies there, nor where the next segment begins: then nothing was ever written behind it. Gives the segment up to there.
fn ends_at(
    options: &LogOptions,
    disk: &mut dyn Disk,
    position: Position,
    walked: &Views,
) -> Result<Option<Partly>, OpenError> {
    let mark = match disk.read_end() {
        // By one that the disk does not give nothing is known, as by none.
        Err(error) if open_error::is_damage(&error) => None,
        other => other.map_err(|source| OpenError::End { source })?,
    };
    let end = mark.and_then(|mark| end::decode(&mark, options.shard));
    if end != Some(position) {
        return Ok(None);
    }
    let mut up_to_behind = |(mapping, header): &(Bytes, SegmentHeader), offset: u32| {
        let end = mapping.len().min((offset + PAGE_BYTES) as usize);
        let partly = read_in(disk, header.id, &mapping.slice(..end))?;
        let is_read = partly.unreadable.iter().all(|page| page.end <= offset);
        Ok((is_read && layout::is_zero(&partly.bytes[offset as usize..])).then_some(partly))
    };
    // A mark that came back although the log went on is not believed, wherever it did.
    if let Some(next) = walked.get(1)
        && up_to_behind(next, FIRST_BATCH_OFFSET)?.is_none()
    {
        return Ok(None);
    }
    up_to_behind(&walked[0], position.offset)
}

/// A view of a segment or of its beginning, or where it must not be looked at a copy of what there is.
fn read_in(disk: &mut dyn Disk, id: SegmentId, view: &Bytes) -> Result<Partly, OpenError> {
    let copy = disk.read_in(id, view).map_err(failed("read", id))?;
    Ok(copy.unwrap_or_else(|| Partly { bytes: view.clone(), unreadable: Vec::new() }))
}

/// Puts spare segments aside that are damaged. Those behind them, which hold nothing either, go, the last one first: at no time is one
/// missing before another. The log makes others.
fn set_aside(disk: &mut dyn Disk, log: &mut Log, aside: &mut Vec<SegmentId>, tail: Tail) -> Result<(), OpenError> {
    aside.sort_unstable();
    aside.dedup();
    let Some(&first) = aside.first() else { return Ok(()) };
    assert!(first > tail.segment, "the log does not go on in what is put aside");
    log.cut(first);
    let mut ids = disk.list().map_err(failed("list", SegmentId(0)))?;
    ids.retain(|id| !id.is_cold() && *id >= first);
    ids.sort_unstable();
    for id in ids.into_iter().rev() {
        let is_damaged = aside.binary_search(&id).is_ok();
        let (doing, done) = if is_damaged { ("put aside", disk.set_aside(id)) } else { ("remove", disk.remove(id)) };
        done.map_err(not_written(doing, id))?;
    }
    Ok(())
}

/// Views of segments, with their headers.
pub(crate) type Views = Vec<(Bytes, SegmentHeader)>;

/// The segments of a log.
pub(crate) struct Opened {
    /// All of them, in their order.
    pub(crate) views: Views,
    /// Those of them that are zeros behind a first page that does not hold: of these the generation is not known.
    pub(crate) headless: Vec<SegmentId>,
}

/// All segments, in order, with their headers checked: what holds them, and their views, and apart from them the cold ones. From
/// the one that a checkpoint names on, or the first, none is missing; of
/// those before it some may be gone, for nobody needed them. A log without any, and without a checkpoint, gets its first.
fn open_segments(
    options: &LogOptions,
    disk: &mut dyn Disk,
    from: Option<Position>,
    heads: &mut Vec<Rot>,
) -> Result<(Held, Opened, Held), OpenError> {
    let walked_from = from.map_or(SegmentId::FIRST, |position| position.segment);
    let missing = |segment| OpenError::Rot { segment, offset: 0, reason: RotReason::SegmentMissing };
    let mut ids = disk.list().map_err(failed("list", SegmentId(0)))?;
    ids.sort_unstable();
    let cold_ids = ids.split_off(ids.partition_point(|id| !id.is_cold()));
    let mut cold = Vec::with_capacity(cold_ids.len());
    for id in cold_ids {
        let mapping = disk.open(id).map_err(failed("open", id))?;
        let header = check_segment(options, disk, id, &mapping, None, heads)?;
        cold.push((id, Segment::new(mapping, header.generation, false)));
    }
    if ids.is_empty() && from.is_none() {
        let id = SegmentId::FIRST;
        let mapping = disk.create(id, options.segment_size).map_err(not_written("make", id))?;
        let header = check_segment(options, disk, id, &mapping, None, heads)?;
        let segment = Segment::new(mapping, header.generation, true);
        let opened = Opened { views: vec![(segment.view().clone(), header)], headless: Vec::new() };
        return Ok((vec![(id, segment)], opened, cold));
    }
    let mut held = Vec::with_capacity(ids.len());
    let mut opened = Opened { views: Vec::with_capacity(ids.len()), headless: Vec::new() };
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
        let known = from.filter(|position| position.segment == id).map(|position| position.generation);
        let header = match check_segment(options, disk, id, &mapping, known, heads) {
            Err(OpenError::Rot { .. }) if id > walked_from && is_empty(options, disk, id, &mapping, heads)? => {
                opened.headless.push(id);
                // No batch has it, and there is none in it.
                SegmentHeader { shard: options.shard, id, size_bytes: options.segment_size, generation: 0 }
            }
            checked => checked?,
        };
        // Who is given records looks at views, which are counted.
        let segment = Segment::new(mapping, header.generation, id >= walked_from);
        opened.views.push((segment.view().clone(), header));
        held.push((id, segment));
    }
    if expected == walked_from {
        return Err(missing(walked_from));
    }
    Ok((held, opened, cold))
}

/// Whether a segment with a first page that does not hold is zeros behind it, as a spare one is. That page has to be its own, but for a
/// few bits, or not to be read: anything else may be what was meant for the place where the log goes on.
fn is_empty(
    options: &LogOptions,
    disk: &mut dyn Disk,
    id: SegmentId,
    mapping: &Bytes,
    heads: &mut Vec<Rot>,
) -> Result<bool, OpenError> {
    let size_bytes = options.segment_size;
    if mapping.len() != size_bytes as usize {
        return Ok(false);
    }
    let Partly { bytes, unreadable } = read_in(disk, id, mapping)?;
    let (head, rest) = bytes.split_at(FIRST_BATCH_OFFSET as usize);
    let is_lost = unreadable.first().is_some_and(|page| page.start == 0);
    let reason = if is_lost { RotReason::Unreadable } else { RotReason::SegmentHeader };
    let is_own = is_lost || layout::is_nearly_header(head, options.shard, id, size_bytes);
    let is_empty = is_own && unreadable.iter().all(|page| page.start == 0) && layout::is_zero(rest);
    if is_empty {
        heads.push(Rot { segment: id, offset: 0, bytes: PAGE_BYTES, reason, loss: Loss::Nothing });
    }
    Ok(is_empty)
}

/// Checks the first page of a segment. `known` is its generation, if a checkpoint says it.
fn check_segment(
    options: &LogOptions,
    disk: &mut dyn Disk,
    id: SegmentId,
    mapping: &Bytes,
    known: Option<u64>,
    heads: &mut Vec<Rot>,
) -> Result<SegmentHeader, OpenError> {
    let first = FIRST_BATCH_OFFSET as usize;
    let head = read_in(disk, id, &mapping.slice(..mapping.len().min(first)))?;
    let reason = if head.unreadable.is_empty() { RotReason::SegmentHeader } else { RotReason::Unreadable };
    let rot = OpenError::Rot { segment: id, offset: 0, reason };
    let header = match SegmentHeader::decode(&head.bytes) {
        Ok(header) => header,
        Err(BadSegment::Damaged) => {
            // All that it says is known otherwise, if there is a batch.
            let size_bytes = options.segment_size;
            if mapping.len() != size_bytes as usize {
                return Err(rot);
            }
            let both = read_in(disk, id, &mapping.slice(..mapping.len().min(first + PAGE_BYTES as usize)))?;
            let is_own =
                !head.unreadable.is_empty() || layout::is_nearly_header(&head.bytes, options.shard, id, size_bytes);
            let known = known.filter(|_| is_own);
            let generation = both.bytes.get(first..).and_then(scrub::generation_of).or(known);
            let Some(generation) = generation else { return Err(rot) };
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

pub(crate) fn failed(doing: &'static str, segment: SegmentId) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, segment, source }
}

pub(crate) fn not_written(doing: &'static str, segment: SegmentId) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Write { doing, segment, source }
}
