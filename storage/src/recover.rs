//! Opening a log: which batches are there, what a crash tore, what rotted.
//!
//! The rule: batches are numbered densely and one is written at a time, so only the last may be torn. It is torn if its
//! damage, or what is left of it without a header, lies where it began and nothing valid follows: then it is zeroed and
//! reported. Anything else that is not as it was written is rot: the disk is left alone and the log does not open.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::checkpoint::{self, BadCheckpoint, Checkpoint};
use crate::layout::{self, BATCH_HEADER_BYTES, BadSegment, BatchHeader, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::rot::RotReason;
use crate::segments::Segment;
use crate::{Disk, Location, LogOptions, RecordHeader, SegmentId};

/// What opening a log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Bounds that do not fit together.
    #[error("{0}")]
    Options(&'static str),
    /// The disk refused.
    #[error("cannot {doing} segment {segment}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which segment; 0 if on the directory.
        segment: SegmentId,
        /// Why not.
        source: io::Error,
    },
    /// Bytes that were on stable storage are not what was written. The disk was left as it is.
    #[error(
        "segment {segment} is damaged at byte {offset}: {reason}. Nothing was changed. Keep a copy of the data directory \
         and restore it from a backup or another replica"
    )]
    Rot {
        /// In which segment.
        segment: SegmentId,
        /// Where in it.
        offset: u32,
        /// What is wrong there.
        reason: RotReason,
    },
    /// No checkpoint holds.
    #[error(
        "checkpoint {number} cannot be used ({reason}), and there is none that can. Nothing was changed. Keep a copy of the data \
         directory and restore it from a backup or another replica"
    )]
    Checkpoint {
        /// The newest one.
        number: u64,
        /// What is wrong with it.
        reason: BadCheckpoint,
    },
    /// The disk refused to give a checkpoint.
    #[error("cannot read checkpoint {number}: {source}")]
    CheckpointIo {
        /// Which; 0 if they could not be listed.
        number: u64,
        /// Why not.
        source: io::Error,
    },
    /// A segment of a format that this program does not read.
    #[error(
        "segment {segment} has format {found}, this program reads {known}: use a version of whimbrel that knows it"
    )]
    Format {
        /// Which.
        segment: SegmentId,
        /// Its format.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A whole segment that belongs to another log, or was made under other settings.
    #[error(
        "segment {segment} is of shard {shard} and {size_bytes} bytes, not of shard {expected_shard} and \
             {expected_size_bytes}: set segment_size as it was, or put the file back where it belongs"
    )]
    Foreign {
        /// Which.
        segment: SegmentId,
        /// Its shard.
        shard: u16,
        /// Its size.
        size_bytes: u32,
        /// The shard whose log is opened.
        expected_shard: u16,
        /// The size that the options say.
        expected_size_bytes: u32,
    },
}

/// What [`Log::open`](crate::Log::open) goes on from.
pub(crate) struct Found {
    pub(crate) segments: Vec<(SegmentId, Segment)>,
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
    let (held, segments) = open_segments(options, disk, from.map(|position| position.segment))?;
    let behind = segments.partition_point(|(_, header)| header.id < walked_from);
    let (begin, first_batch) = match from {
        Some(position) => {
            let header = &segments[behind].1;
            if header.generation != position.generation {
                let reason = RotReason::NotTheCheckpoints;
                return Err(OpenError::Rot { segment: header.id, offset: 0, reason });
            }
            (At { segment: 0, offset: position.offset }, position.batch)
        }
        None => (At { segment: 0, offset: FIRST_BATCH_OFFSET }, 1),
    };
    let mut walk = Walk { segments: &segments[behind..], next_batch: first_batch, records: 0 };
    let (last, tail) = walk.accept(begin, on_record)?;
    if walk.next_batch < start.through {
        // The checkpoint has what stood here: it was durable.
        return Err(walk.rot(tail, RotReason::BatchMissing));
    }
    let remains = walk.judge_tail(tail)?;
    let (walked, next_batch, records) = (walk.segments, walk.next_batch, walk.records);

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
        segments: segments.len() as u32,
        batches: next_batch - first_batch,
        records,
        truncated,
        ..Recovered::default()
    };
    let tail_segment = walked[tail.segment].1.id;
    Ok(Found { next_batch, tail_segment, tail_offset: tail.offset, report, segments: held })
}

/// Views of segments, with their headers.
type Views = Vec<(Bytes, SegmentHeader)>;

/// All segments, in order, with their headers checked: what holds them, and their views. From the one that a
/// checkpoint names on, or the first, none is missing, and their pages are read in; of
/// those before it some may be gone, for nobody needed them. A log without any, and without a checkpoint, gets its first.
fn open_segments(
    options: &LogOptions,
    disk: &mut dyn Disk,
    from: Option<SegmentId>,
) -> Result<(Vec<(SegmentId, Segment)>, Views), OpenError> {
    let walked_from = from.unwrap_or(SegmentId::FIRST);
    let missing = |segment| OpenError::Rot { segment, offset: 0, reason: RotReason::SegmentMissing };
    let mut ids = disk.list().map_err(failed("list", SegmentId(0)))?;
    ids.sort_unstable();
    if ids.is_empty() && from.is_none() {
        let id = SegmentId::FIRST;
        let mapping = disk.create(id, options.segment_size).map_err(failed("make", id))?;
        let header = check_segment(options, id, &mapping)?;
        let segment = Segment::new(mapping, header.generation, true);
        let view = segment.view().clone();
        return Ok((vec![(id, segment)], vec![(view, header)]));
    }
    let mut held = Vec::with_capacity(ids.len());
    let mut segments = Vec::with_capacity(ids.len());
    let mut expected = walked_from;
    for id in ids {
        if id >= walked_from {
            if id != expected {
                return Err(missing(expected));
            }
            expected = id.next();
        }
        let mapping = disk.open(id, id >= walked_from).map_err(failed("open", id))?;
        let header = check_segment(options, id, &mapping)?;
        // Who is given records looks at views, which are counted.
        let segment = Segment::new(mapping, header.generation, id >= walked_from);
        segments.push((segment.view().clone(), header));
        held.push((id, segment));
    }
    if expected == walked_from {
        return Err(missing(walked_from));
    }
    Ok((held, segments))
}

fn check_segment(options: &LogOptions, id: SegmentId, mapping: &Bytes) -> Result<SegmentHeader, OpenError> {
    let rot = OpenError::Rot { segment: id, offset: 0, reason: RotReason::SegmentHeader };
    let header = match SegmentHeader::decode(mapping) {
        Ok(header) => header,
        Err(BadSegment::Damaged) => return Err(rot),
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
    next_batch: u64,
    records: u64,
}

impl Walk<'_> {
    /// Accepts batches for as long as they are what belongs there. Gives place and length of the last one, and where the
    /// next one would begin.
    fn accept(
        &mut self,
        mut at: At,
        on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
    ) -> Result<(Option<(At, u32)>, At), OpenError> {
        let mut last = None;
        loop {
            match self.look(at)? {
                Next::Batch(header) => {
                    self.emit(at, &header, on_record);
                    let bytes = layout::padded(header.length);
                    last = Some((at, bytes));
                    at.offset += bytes;
                    self.next_batch += 1;
                }
                Next::Torn(_) => return Ok((last, at)),
                Next::Absent => match self.next_segment(at)? {
                    Some(next) => at = next,
                    None => return Ok((last, at)),
                },
            }
        }
    }

    /// What lies at this place. Only a batch's header ever lies there, so a valid one that is not the next is misplaced.
    fn look(&self, at: At) -> Result<Next, OpenError> {
        let (mapping, segment) = &self.segments[at.segment];
        let rest = &mapping[at.offset as usize..];
        let Some(header) = BatchHeader::decode(rest) else {
            return Ok(Next::Absent);
        };
        let belongs = header.number == self.next_batch
            && header.durable == header.number - 1
            && header.generation == segment.generation
            && header.offset == at.offset
            && (BATCH_HEADER_BYTES..=BATCH_MAX_BYTES).contains(&header.length)
            && layout::padded(header.length) as usize <= rest.len();
        if !belongs {
            return Err(self.rot(at, RotReason::BatchMisplaced));
        }
        let whole = records_hold(&rest[..layout::padded(header.length) as usize], &header);
        Ok(if whole { Next::Batch(header) } else { Next::Torn(header) })
    }

    /// The start of the next segment, if the log goes on there: this one is full, or the next batch is there, torn or not.
    fn next_segment(&self, at: At) -> Result<Option<At>, OpenError> {
        let next = At { segment: at.segment + 1, offset: FIRST_BATCH_OFFSET };
        let Some((mapping, segment)) = self.segments.get(next.segment) else {
            return Ok(None);
        };
        let header = BatchHeader::decode(&mapping[next.offset as usize..]);
        let goes_on =
            header.is_some_and(|header| header.generation == segment.generation && header.number == self.next_batch);
        // Behind a full segment there is nowhere else to go on.
        let full = at.offset == self.segments[at.segment].1.size_bytes;
        if !goes_on && !full {
            return Ok(None);
        }
        let rest = &self.segments[at.segment].0[at.offset as usize..];
        if !layout::is_zero(rest) {
            return Err(self.rot(at, RotReason::Stray));
        }
        Ok(Some(next))
    }

    fn emit(&mut self, at: At, header: &BatchHeader, on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes)) {
        let (mapping, segment) = &self.segments[at.segment];
        let batch = &mapping[at.offset as usize..(at.offset + header.length) as usize];
        for_each_record(batch, header, |record, from, len| {
            let offset = at.offset + from;
            let location = Location { segment: segment.id, offset, len };
            on_record(&record, location, mapping.slice(offset as usize..(offset + len) as usize));
        });
        self.records += u64::from(header.records);
    }

    /// Judges all that lies behind the accepted batches: nothing, the remains of one torn batch (their place and length),
    /// or rot.
    fn judge_tail(&self, tail: At) -> Result<Option<(At, u32)>, OpenError> {
        let torn = match self.look(tail)? {
            Next::Torn(header) => Some(layout::padded(header.length)),
            Next::Batch(_) | Next::Absent => None,
        };
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

    fn rot(&self, at: At, reason: RotReason) -> OpenError {
        OpenError::Rot { segment: self.segments[at.segment].1.id, offset: at.offset, reason }
    }
}

/// A valid batch header lies where none may.
struct Valid;

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

/// Goes through the records of a batch that holds: header, where its payload starts in the batch, its length.
fn for_each_record(batch: &[u8], header: &BatchHeader, mut each: impl FnMut(RecordHeader, u32, u32)) {
    let mut at = BATCH_HEADER_BYTES as usize;
    for _ in 0..header.records {
        let (record, payload_bytes) =
            layout::record_unchecked(&batch[at..]).expect("the batch was checked just before");
        each(record, at as u32 + layout::RECORD_HEADER_BYTES, payload_bytes as u32);
        at += layout::record_bytes(payload_bytes);
    }
}

fn failed(doing: &'static str, segment: SegmentId) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, segment, source }
}
