//! The walk through the batches of a log that is opened, from the newest checkpoint's position on, and the judgement of what lies
//! behind the last of them: see [`crate::recover`].

use std::ops::Range;

use bytes::Bytes;

use crate::layout::SegmentHeader;
use crate::layout::{self, BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH_OFFSET};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::recover::{Opened, Recovered, Rotten, Tail, Truncated, Views, not_written};
use crate::rot::{Loss, Part, Rot, RotReason, look_into};
use crate::scrub::{Partly, unreadable};
use crate::{Arriving, Disk, Location, OpenError, RecordHeader, SegmentId};

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

pub(crate) struct Walk {
    segments: Views,
    /// How far they are read in.
    arriving: Arriving,
    /// Pages that the disk does not give, with the index of their segment, of which the view is a copy then: in it they are zeros.
    unreadable: Vec<(usize, Range<u32>)>,
    /// Segments that are zeros behind a first page that does not hold.
    headless: Vec<SegmentId>,
    /// Where it began in the first one.
    began: u32,
    /// Where the next batch would begin, and its number.
    at: At,
    next_batch: u64,
    /// Place and length of the last one that was accepted.
    last: Option<(At, u32)>,
    /// How much rot was found before it.
    rot_before: usize,
    records: u64,
    rot: Vec<Rotten>,
    /// Nothing more is accepted: what lies behind was looked through.
    is_over: bool,
    /// From this place on, in all segments behind the headers', a look for batches found zeros.
    zeros_from: (usize, u32),
}

impl Walk {
    /// Begins in the first of these segments.
    pub(crate) fn new(views: Opened, arriving: Arriving, offset: u32, next_batch: u64) -> Walk {
        let Opened { views: segments, headless } = views;
        let at = At { segment: 0, offset };
        Walk {
            segments,
            arriving,
            unreadable: Vec::new(),
            headless,
            began: offset,
            at,
            next_batch,
            last: None,
            rot_before: 0,
            records: 0,
            rot: Vec::new(),
            is_over: false,
            zeros_from: (usize::MAX, 0),
        }
    }

    /// Accepts the next batch, if what is there is what belongs there, and gives out its records.
    pub(crate) fn step(&mut self, on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes)) -> bool {
        if !self.is_over {
            self.is_over = !self.accept(on_record);
        }
        !self.is_over
    }

    fn accept(&mut self, on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes)) -> bool {
        loop {
            let at = self.at;
            match self.look(at) {
                Next::Batch(header) => {
                    self.emit(at, &header, true, on_record);
                    self.pass(&header);
                    self.last = Some((at, layout::padded(header.length)));
                    self.rot_before = self.rot.len();
                    return true;
                }
                Next::Torn(header) => {
                    let behind = At { offset: at.offset + layout::padded(header.length), ..at };
                    if self.find(behind, self.next_batch + 1).is_none() {
                        return false;
                    }
                    self.emit(at, &header, false, on_record);
                    self.pass(&header);
                    return true;
                }
                Next::Absent | Next::Misplaced => match self.next_segment(at).or_else(|| self.jump(at)) {
                    Some(next) => self.at = next,
                    None => return false,
                },
            }
        }
    }

    fn pass(&mut self, header: &BatchHeader) {
        self.at.offset += layout::padded(header.length);
        self.next_batch += 1;
    }

    /// The first bytes of its first segment.
    pub(crate) fn beginning(&mut self, len: u32) -> Partly {
        self.wait(0, len as usize);
        let unreadable =
            self.unreadable.iter().filter(|(index, _)| *index == 0).map(|(_, page)| page.clone()).collect();
        Partly { bytes: self.segments[0].0.slice(..len as usize), unreadable }
    }

    /// Judges what lies behind the batches that were accepted, and makes them durable. Says where the log goes on, and adds spare
    /// segments that are damaged to those to be put aside.
    pub(crate) fn end(
        mut self,
        disk: &mut dyn Disk,
        through: u64,
        report: &mut Recovered,
        aside: &mut Vec<SegmentId>,
    ) -> Result<Tail, OpenError> {
        let tail = self.at;
        if self.next_batch < through {
            // The checkpoint has what stood here: it was durable.
            return Err(self.rot(tail, RotReason::BatchMissing));
        }
        let Behind { torn, spares } = self.judge_tail(tail)?;
        if let Some((at, bytes)) = torn {
            // Behind the last whole batch something is damaged, and only this torn one says that it was durable: with its remains
            // zeroed the next start would take what is damaged for the torn one, and cut it off.
            if let Some(Rotten { rot, .. }) = self.rot.get(self.rot_before) {
                return Err(OpenError::Rot { segment: rot.segment, offset: rot.offset, reason: rot.reason });
            }
            let segment = self.segments[at.segment].1.id;
            disk.write(segment, at.offset, &vec![0; bytes as usize])
                .map_err(not_written("zero the torn batch of", segment))?;
            report.truncated = Some(Truncated { segment, offset: at.offset, bytes });
        }
        if let Some((at, bytes)) = self.last {
            // Each batch names the one before it as durable; of the last one nobody knows. After a kill it may be in the page
            // cache only, and after a failed write-back the cache may even pass for clean, so it is not synced but written.
            let (mapping, header) = &self.segments[at.segment];
            let batch = mapping[at.offset as usize..(at.offset + bytes) as usize].to_vec();
            disk.write(header.id, at.offset, &batch).map_err(not_written("rewrite the last batch of", header.id))?;
        }
        report.records = self.records;
        aside.extend(self.headless.iter().copied().chain(spares.iter().map(|spare| spare.segment)));
        // Of first pages it is known already, and so is of what lies before.
        let begins = |index: usize| if index == 0 { self.began } else { FIRST_BATCH_OFFSET };
        let pages =
            self.unreadable.iter().filter(|(index, page)| page.start >= begins(*index) && *index <= tail.segment);
        let pages = pages.map(|(index, page)| unreadable(self.segments[*index].1.id, page));
        let behind = pages
            .chain(spares.into_iter().filter(|rot| rot.offset >= FIRST_BATCH_OFFSET))
            .map(|rot| Rotten { rot, after: Some(self.records) });
        report.rot.extend(self.rot.iter().copied().chain(behind));
        report.rot.sort_by_key(|it| (it.rot.segment, it.rot.offset));
        let segment = self.segments[tail.segment].1.id;
        Ok(Tail { segment, offset: tail.offset, batch: self.next_batch })
    }

    /// The next valid batch from a place on, with at least this number. None was ever written at its place but that one.
    fn find(&mut self, from: At, number: u64) -> Option<(At, BatchHeader)> {
        let mut all_zeros = true;
        for index in from.segment..self.segments.len() {
            let start = if index == from.segment { from.offset } else { FIRST_BATCH_OFFSET };
            for offset in (start..self.segments[index].1.size_bytes).step_by(PAGE_BYTES as usize) {
                self.wait(index, (offset + PAGE_BYTES) as usize);
                let (mapping, segment) = &self.segments[index];
                let rest = &mapping[offset as usize..];
                if layout::is_zero(&rest[..PAGE_BYTES as usize]) {
                    continue;
                }
                all_zeros = false;
                if let Some(header) = belonging(segment, rest, offset)
                    && header.number >= number
                {
                    return Some((At { segment: index, offset }, header));
                }
            }
        }
        if all_zeros {
            self.zeros_from = (from.segment, from.offset);
        }
        None
    }

    /// Goes on at the next valid batch, if there is one. What is lost until there is rot.
    fn jump(&mut self, from: At) -> Option<At> {
        let (to, header) = self.find(from, self.next_batch)?;
        let (reason, loss) = match header.number == self.next_batch {
            true => (RotReason::Stray, Loss::Nothing),
            false if BatchHeader::decode(&self.segments[from.segment].0[from.offset as usize..]).is_some() => {
                (RotReason::BatchMisplaced, Loss::Unknown)
            }
            false if header.number == self.next_batch + 1 && self.was_empty(from) => (RotReason::Batch, Loss::Nothing),
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

    /// Whether the next batch was here, and had no records, though its header does not hold any more.
    fn was_empty(&self, at: At) -> bool {
        let (mapping, segment) = &self.segments[at.segment];
        let page = mapping.get(at.offset as usize..(at.offset + PAGE_BYTES) as usize);
        page.is_some_and(|page| layout::is_nearly_empty_batch(page, self.next_batch, segment.generation, at.offset))
    }

    fn found(&mut self, rot: Rot) {
        self.rot.push(Rotten { rot, after: Some(self.records) });
    }

    /// What lies at this place. Only a batch's header ever lies there, so a valid one that is not the next is misplaced.
    fn look(&mut self, at: At) -> Next {
        self.wait(at.segment, at.offset as usize + BATCH_MAX_BYTES as usize);
        let (mapping, segment) = &self.segments[at.segment];
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
    fn next_segment(&mut self, at: At) -> Option<At> {
        let next = At { segment: at.segment + 1, offset: FIRST_BATCH_OFFSET };
        if self.segments.get(next.segment)?.1.id != self.segments[at.segment].1.id.next() {
            return None;
        }
        self.wait(next.segment, next.offset as usize + BATCH_HEADER_BYTES as usize);
        let (mapping, segment) = &self.segments[next.segment];
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

    /// Judges all that lies behind the accepted batches: nothing, the remains of one torn batch, rot of spare segments, or rot.
    fn judge_tail(&mut self, tail: At) -> Result<Behind, OpenError> {
        let torn = match self.look(tail) {
            Next::Torn(header) => Some(layout::padded(header.length)),
            Next::Misplaced => return Err(self.rot(tail, RotReason::BatchMisplaced)),
            Next::Batch(_) | Next::Absent => None,
        };
        if let Some(missing) = self.missing_from(tail.segment) {
            return Err(OpenError::Rot { segment: missing, offset: 0, reason: RotReason::SegmentMissing });
        }
        let mut spares = self.judge_unreadable(tail)?;
        let tail_id = self.segments[tail.segment].1.id;
        if let Some(&segment) = self.headless.iter().find(|id| **id <= tail_id) {
            return Err(OpenError::Rot { segment, offset: 0, reason: RotReason::SegmentHeader });
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
        let explained = |walk: &Walk, strays: &[(usize, Range<u32>)]| match strays {
            [(segment, stray)] => walk.torn_reach(tail, torn, *segment).is_some_and(|end| stray.end <= end),
            _ => false,
        };
        // In a spare segment a few bits that turned over are no part of a batch. Where there is something behind the last batch
        // they are all the same taken for what they may be: a block of that one, in the wrong place.
        if !explained(self, &strays) && strays.first().is_some_and(|(first, _)| *first > tail.segment) && torn.is_none()
        {
            spares.extend(strays.extract_if(.., |(segment, stray)| self.is_flipped(*segment, stray)).map(
                |(segment, stray)| {
                    let (segment, offset, bytes) = (self.segments[segment].1.id, stray.start, stray.end - stray.start);
                    Rot { segment, offset, bytes, reason: RotReason::Stray, loss: Loss::Nothing }
                },
            ));
        }
        let Some((segment, stray)) = strays.first().cloned() else {
            return Ok(Behind { torn: None, spares });
        };
        let start = At { segment, offset: stray.start };
        if !explained(self, &strays) {
            return Err(self.rot(start, RotReason::Stray));
        }
        Ok(Behind { torn: Some((start, stray.end - stray.start)), spares })
    }

    /// Whether what lies in a segment is what zeros are of which a few bits turned over.
    fn is_flipped(&self, segment: usize, stray: &Range<u32>) -> bool {
        layout::is_nearly_zero(&self.segments[segment].0[stray.start as usize..stray.end as usize])
    }

    /// Judges the pages behind the accepted batches that cannot be read: gives those of spare segments in which the log certainly
    /// did not go on. It begins a segment with its first batch and goes on without a gap, so that there is none behind one that
    /// has no first one.
    fn judge_unreadable(&mut self, tail: At) -> Result<Vec<Rot>, OpenError> {
        // With them all views are what can be read.
        (tail.segment..self.segments.len()).for_each(|segment| self.wait(segment, usize::MAX));
        let mut spares = Vec::new();
        for (segment, page) in &self.unreadable {
            let at = At { segment: *segment, offset: page.start };
            let may_begin = *segment == tail.segment + 1 && page.contains(&FIRST_BATCH_OFFSET);
            let may_go_on = *segment == tail.segment && page.end > tail.offset.max(FIRST_BATCH_OFFSET);
            let is_spare = *segment > tail.segment;
            // Beside anything else it might be more of that.
            let is_else = is_spare && !layout::is_zero(&self.segments[*segment].0[FIRST_BATCH_OFFSET as usize..]);
            if may_go_on || may_begin || is_else {
                return Err(self.rot(at, RotReason::Unreadable));
            }
            if is_spare {
                spares.push(unreadable(self.segments[*segment].1.id, page));
            }
        }
        Ok(spares)
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
        if self.zeros_from <= (segment, from) {
            return Ok(None);
        }
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

    /// Waits until a segment is read in up to an offset, or whole. Its view may be another one then.
    fn wait(&mut self, segment: usize, offset: usize) {
        let Walk { segments, unreadable, arriving, .. } = self;
        let offset = offset.min(segments[segment].0.len());
        arriving.wait(segment, offset, &mut |index, partly| {
            segments[index].0 = partly.bytes;
            unreadable.extend(partly.unreadable.into_iter().map(|page| (index, page)));
        });
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

/// What lies behind the last batch.
struct Behind {
    /// What is left of a torn one: its place and length.
    torn: Option<(At, u32)>,
    /// Damage of spare segments.
    spares: Vec<Rot>,
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
