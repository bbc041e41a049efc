//! Cold segments: what still waits in a segment whose rest is dead is copied into one of them, once, so that the segment can
//! go. What dies there is overwritten with zeros in place: three days of backlog are not rewritten every ten minutes.
//!
//! They are segments like others, with numbers of their own from [`SegmentId::COLD`] on, and no part of the log: no start
//! reads their records, and nothing is in them but what a checkpoint or a later move points to. Each record is one place
//! that was pointed to, of kind [`RecordKind::Moved`]; its payload is as it was, or zeros. Batches are numbered from 1 in each
//! segment.
//!
//! The work is carried out off the core: [`ColdWork::run`]; overwriting is in `erase.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use bytes::Bytes;

use crate::erase::{Doubt, Erase};
use crate::layout::{self, BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH_OFFSET, RECORD_HEADER_BYTES, SegmentHeader};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::pages::{self, Pages};
use crate::segments::Segment;
use crate::{Disk, Location, LogOptions, RecordHeader, RecordKind, SegmentId};

/// Work on cold segments, for a thread that may wait for the disk.
#[derive(Debug)]
pub enum ColdWork {
    /// See [`Copy`].
    Copy(Copy),
    /// See [`Erase`].
    Erase(Erase),
    /// See [`Sort`].
    Sort(Sort),
}

/// What became of [`ColdWork`].
#[derive(Debug)]
pub enum ColdDone {
    /// All of it is on stable storage.
    Copied(Copied),
    /// A step of it is done. It goes on with the next one, unless it is done.
    Erased(Erase),
    /// Both are ascending, and nothing is in one of them twice.
    Sorted(Sort),
}

/// What stays in a cold segment when what is dead in it is erased.
#[derive(Debug, Default)]
pub struct Kept {
    /// Place and length of each payload, ascending.
    payloads: Vec<(u32, u32)>,
    /// What their records take.
    bytes: u64,
}

impl FromIterator<(u32, u32)> for Kept {
    /// Of places and lengths of payloads, ascending.
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(payloads: I) -> Kept {
        let payloads: Vec<_> = payloads.into_iter().collect();
        let bytes = payloads.iter().map(|(_, len)| layout::record_bytes(*len as usize) as u64).sum();
        Kept { payloads, bytes }
    }
}

impl Kept {
    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    pub(crate) fn payloads(&self) -> &[(u32, u32)] {
        &self.payloads
    }
}

/// Two lists of places that are to be put into order: of many that takes longer than a core may take for it.
#[derive(Debug, Default)]
pub struct Sort {
    /// What waits in segments that are to be emptied.
    pub found: Vec<Location>,
    /// What waits in cold ones, until it is in order.
    pub cold: Vec<Location>,
    /// The same by its segments, ascending, once it is.
    pub kept: Vec<(SegmentId, Kept)>,
}

impl Sort {
    /// How many places are in both.
    pub fn places(&self) -> usize {
        self.found.len() + self.cold.len()
    }

    /// Puts them into order.
    pub fn run(&mut self) {
        for places in [&mut self.found, &mut self.cold] {
            places.sort_unstable();
            places.dedup();
        }
        let payload = |it: &Location| (it.offset, it.len);
        let of_one = self.cold.chunk_by(|a, b| a.segment == b.segment);
        self.kept = of_one.map(|places| (places[0].segment, places.iter().map(payload).collect())).collect();
        self.cold = Vec::new();
    }
}

impl ColdWork {
    /// Carries it out. When it fails nothing of it counts, and it may be tried anew.
    pub fn run(self, disk: &mut dyn Disk) -> io::Result<ColdDone> {
        match self {
            ColdWork::Copy(copy) => copy.run(disk).map(ColdDone::Copied),
            ColdWork::Erase(mut erase) => erase.step(disk).map(|()| ColdDone::Erased(erase)),
            ColdWork::Sort(mut sort) => {
                sort.run();
                Ok(ColdDone::Sorted(sort))
            }
        }
    }
}

/// Places to be copied into a cold segment, in one batch.
#[derive(Debug)]
pub struct Copy {
    /// Ascending.
    places: Vec<Location>,
    /// The segments that they are in, ascending.
    sources: Vec<Source>,
    segment: SegmentId,
    size_bytes: u32,
    /// Of the cold segment; `None` if it has to be made.
    generation: Option<u64>,
    offset: u32,
    batch: u64,
}

/// A segment that is read. Its generation is known from its start on: what its first page says may be damaged.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) id: SegmentId,
    pub(crate) generation: u64,
    /// Not to be looked at, for pages of it may be gone from memory: it is read by its name ([`Pages`]), and this keeps its file from
    /// becoming another one meanwhile.
    view: Bytes,
}

impl Source {
    pub(crate) fn of(id: SegmentId, segment: &Segment) -> Source {
        Source { id, generation: segment.generation, view: segment.view().clone() }
    }

    pub(crate) fn size_bytes(&self) -> u32 {
        self.view.len() as u32
    }
}

/// Copies that are on stable storage.
#[derive(Debug)]
pub struct Copied {
    /// From where to where, ascending. What is missing of the places was not as it had been written, and was not copied.
    pub moved: Vec<(Location, Location)>,
    /// Those.
    pub rotten: Vec<Location>,
    /// Bytes of the records, their headers included.
    pub bytes: u64,
    segment: SegmentId,
    /// Of one that was made.
    mapping: Option<Bytes>,
    /// Bytes of the batch, padding included; 0 if nothing was left to copy.
    pub padded: u32,
}

impl Copy {
    /// How many places.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    fn run(self, disk: &mut dyn Disk) -> io::Result<Copied> {
        let seed = layout::record_seed(self.batch);
        let (mut moved, mut rotten) = (Vec::with_capacity(self.places.len()), Vec::new());
        let mut batch = vec![0; BATCH_HEADER_BYTES as usize];
        for source in &self.sources {
            let from = self.places.partition_point(|place| place.segment < source.id);
            let to = self.places.partition_point(|place| place.segment <= source.id);
            each_payload(&mut Pages::seen(disk, source), &self.places[from..to], |place, found| {
                let Some((record, payload)) = found else { return rotten.push(place) };
                let header = RecordHeader { kind: RecordKind::Moved, ..record };
                let offset = self.offset + batch.len() as u32;
                batch.extend_from_slice(&layout::encode_record(&header, payload, seed, offset));
                batch.extend_from_slice(payload);
                batch.resize(batch.len().next_multiple_of(8), 0);
                let offset = offset + RECORD_HEADER_BYTES;
                moved.push((place, Location { segment: self.segment, offset, len: place.len }));
            })?;
        }
        let (generation, mut mapping) = match self.generation {
            Some(generation) => (generation, None),
            None => {
                let mapping = disk.create(self.segment, self.size_bytes)?;
                let header =
                    SegmentHeader::decode(&mapping).map_err(|_| io::Error::other("a new segment has no header"))?;
                (header.generation, Some(mapping))
            }
        };
        let mut padded = 0;
        let length = batch.len() as u32;
        if !moved.is_empty() {
            let header = BatchHeader {
                number: self.batch,
                durable: self.batch - 1,
                generation,
                offset: self.offset,
                length,
                records: moved.len() as u32,
            };
            layout::put(&mut batch, 0, &header.encode());
            padded = layout::padded(length);
            batch.resize(padded as usize, 0);
            if let Err(error) = disk.write(self.segment, self.offset, &batch) {
                if mapping.take().is_some() {
                    // Nobody knows of it. If it cannot be removed it is found at the next start.
                    let _ = disk.remove(self.segment);
                }
                return Err(error);
            }
        }
        let bytes = u64::from(length - BATCH_HEADER_BYTES);
        Ok(Copied { moved, rotten, bytes, segment: self.segment, mapping, padded })
    }
}

/// Finds these places, which are ascending, in a segment, and gives each with the header of its record and its bytes, if all
/// that the record's checksums cover is as it was written.
fn each_payload(
    pages: &mut Pages<'_>,
    places: &[Location],
    mut each: impl FnMut(Location, Option<(RecordHeader, &[u8])>),
) -> io::Result<()> {
    let mut left = places.iter().copied().peekable();
    // Where the batch ends that was gone through last, or before which there is no header of one that was not.
    let mut done = FIRST_BATCH_OFFSET;
    while let Some(next) = left.next() {
        let Some(header) = batch_around(pages, next, done)? else {
            // Rot, for what waits is in a batch. Up to this page nothing has to be looked for again.
            done = done.max(next.offset / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES);
            each(next, None);
            continue;
        };
        done = header.offset + layout::padded(header.length);
        let mut next = Some(next);
        let mut take =
            |below: u32| next.take_if(|it| it.offset < below).or_else(|| left.next_if(|it| it.offset < below));
        in_batch(pages.at(header.offset..done)?, &header, |record, offset, payload| {
            while let Some(place) = take(offset + payload.map_or(0, <[u8]>::len) as u32) {
                let inside = payload.and_then(|payload| {
                    let start = place.offset.checked_sub(offset)? as usize;
                    payload.get(start..start + place.len as usize)
                });
                each(place, inside.map(|bytes| (record, bytes)));
            }
        });
        while let Some(place) = take(done) {
            each(place, None);
        }
    }
    Ok(())
}

/// The header of the batch that a place lies in, which begins at `done` or behind it: the next one before the place. No payload passes
/// for one, and none is further away than the largest batch is long.
fn batch_around(pages: &mut Pages<'_>, place: Location, done: u32) -> io::Result<Option<BatchHeader>> {
    let last = place.offset / PAGE_BYTES * PAGE_BYTES;
    let first = done.max(last.saturating_sub(BATCH_MAX_BYTES - PAGE_BYTES));
    let mut end = last.saturating_add(PAGE_BYTES);
    while end > first {
        // Piece by piece: most are near.
        let from = first.max(end.saturating_sub(pages::PIECE_BYTES));
        for page in (from..end).step_by(PAGE_BYTES as usize).rev() {
            if let Some(header) = pages.header(from..end, page)? {
                let is_around = header.offset + layout::padded(header.length) > place.offset;
                return Ok(is_around.then_some(header));
            }
        }
        end = from;
    }
    Ok(None)
}

/// Goes through the records of a batch, up to the first one whose header is not as it was written: header, where its payload
/// begins in the segment, and the payload, if it is as it was written.
fn in_batch<'a>(batch: &'a [u8], header: &BatchHeader, mut each: impl FnMut(RecordHeader, u32, Option<&'a [u8]>)) {
    let seed = layout::record_seed(header.number);
    let mut at = BATCH_HEADER_BYTES as usize;
    for _ in 0..header.records {
        let offset = header.offset + at as u32;
        let Some((record, len)) = layout::decode_record_header(&batch[at..], seed, offset) else { return };
        let start = at + RECORD_HEADER_BYTES as usize;
        let payload = &batch[start..start + len];
        let intact = layout::sum_holds(&batch[at..], payload);
        each(record, header.offset + start as u32, intact.then_some(payload));
        at += layout::record_bytes(len);
    }
}

/// A cold segment that is there.
struct ColdSegment {
    segment: Segment,
    /// Behind the last batch. All of a segment that was there at the start.
    end: u32,
    /// Before this nothing lies that is a copy nobody points to yet.
    settled: u32,
    /// Payloads in it that are not zeros, as far as is known.
    payloads: Option<usize>,
    /// Bytes of those that are pointed to, as they were last counted.
    live_bytes: u64,
    doubt: Doubt,
}

impl ColdSegment {
    /// One that is written so far, without anything in it.
    fn new(segment: Segment, end: u32) -> ColdSegment {
        ColdSegment { segment, end, settled: end, payloads: Some(0), live_bytes: 0, doubt: Doubt::Nothing }
    }
}

/// The cold segments of a log in memory.
pub(crate) struct Cold {
    list: BTreeMap<SegmentId, ColdSegment>,
    holds: BTreeMap<SegmentId, u32>,
    /// Where the next batch goes: segment, offset, number.
    tail: Option<(SegmentId, u32, u64)>,
    next: SegmentId,
    copying: bool,
    /// Into one that has to be made.
    making: bool,
}

impl Cold {
    pub(crate) fn new(found: Vec<(SegmentId, Segment)>, size_bytes: u32) -> Cold {
        let next = found.last().map_or(SegmentId::COLD, |(id, _)| id.next());
        let whole = |(id, segment)| {
            let begun = ColdSegment::new(segment, size_bytes);
            (id, ColdSegment { payloads: None, doubt: Doubt::Start, ..begun })
        };
        let list = found.into_iter().map(whole).collect();
        // One that was begun before the start is not gone on with: what a crash left at its end is not looked for.
        Cold { list, holds: BTreeMap::new(), tail: None, next, copying: false, making: false }
    }

    pub(crate) fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.list.get(&id).map(|it| &it.segment)
    }

    pub(crate) fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        self.list.get_mut(&id).map(|it| &mut it.segment)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = SegmentId> {
        self.list.keys().copied()
    }

    /// The first one behind this one to which nothing is added any more.
    pub(crate) fn sealed_behind(&self, id: SegmentId) -> Option<SegmentId> {
        let tail = self.tail.map(|(tail, ..)| tail);
        self.list.range(id.next().max(SegmentId::COLD)..).map(|(id, _)| *id).find(|id| Some(*id) != tail)
    }

    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn hold(&mut self, id: SegmentId) {
        *self.holds.entry(id).or_default() += 1;
    }

    /// # Panics
    /// If nothing held it.
    pub(crate) fn release(&mut self, id: SegmentId) {
        let held = self.holds.get_mut(&id).expect("what is released was held");
        *held -= 1;
        if *held == 0 {
            self.holds.remove(&id);
        }
    }

    pub(crate) fn holds(&self, id: SegmentId) -> u32 {
        self.holds.get(&id).copied().unwrap_or(0)
    }

    pub(crate) fn held(&self) -> u64 {
        self.holds.values().map(|held| u64::from(*held)).sum()
    }

    pub(crate) fn missing(&self) -> Option<SegmentId> {
        self.holds.keys().copied().find(|id| !self.list.contains_key(id))
    }

    /// Takes as many places as fit one batch from the front of `queue`, which is ascending.
    pub(crate) fn plan_copy(
        &mut self,
        options: &LogOptions,
        queue: &mut VecDeque<Location>,
        hot: impl Fn(SegmentId) -> Option<Source>,
    ) -> Option<Copy> {
        if self.copying {
            return None;
        }
        let (mut places, mut sources, mut length) = (Vec::new(), Vec::<Source>::new(), BATCH_HEADER_BYTES);
        while let Some(place) = queue.front().copied() {
            let record = layout::record_bytes(place.len as usize) as u32;
            if length + record > options.batch_max {
                if !places.is_empty() {
                    break;
                }
                // Larger than any batch is now. It stays where it is.
                queue.pop_front();
                continue;
            }
            if sources.last().is_none_or(|source| source.id != place.segment) {
                let cold = self.get(place.segment).map(|segment| Source::of(place.segment, segment));
                let Some(source) = cold.or_else(|| hot(place.segment)) else {
                    // It was let go since, and all that waited there.
                    queue.pop_front();
                    continue;
                };
                sources.push(source);
            }
            length += record;
            places.push(place);
            queue.pop_front();
        }
        if places.is_empty() {
            return None;
        }
        let fits = |(_, offset, _): &(SegmentId, u32, u64)| offset + layout::padded(length) <= options.segment_size;
        let (segment, offset, batch) = match self.tail.filter(fits) {
            Some(tail) => tail,
            None => (self.next, FIRST_BATCH_OFFSET, 1),
        };
        self.copying = true;
        let generation = self.list.get(&segment).map(|it| it.segment.generation);
        self.making = generation.is_none();
        Some(Copy { places, sources, segment, size_bytes: options.segment_size, generation, offset, batch })
    }

    /// # Panics
    /// If they were not asked for.
    pub(crate) fn copied(&mut self, copied: &Copied) {
        assert!(std::mem::take(&mut self.copying), "copies are asked for");
        if let Some(mapping) = &copied.mapping {
            let generation = SegmentHeader::decode(mapping).map_or(0, |header| header.generation);
            let segment = Segment::new(mapping.clone(), generation, false);
            self.list.insert(copied.segment, ColdSegment::new(segment, FIRST_BATCH_OFFSET));
            self.next = copied.segment.next();
            self.tail = Some((copied.segment, FIRST_BATCH_OFFSET, 1));
        }
        if let (Some(it), Some(tail)) = (self.list.get_mut(&copied.segment), &mut self.tail) {
            it.segment.was_written(it.end..it.end + copied.padded);
            it.end += copied.padded;
            it.payloads = it.payloads.map(|payloads| payloads + copied.moved.len());
            tail.1 += copied.padded;
            tail.2 += u64::from(copied.padded > 0);
        }
    }

    /// What was written is not known: the segment is not gone on with, and all of it is looked at when it is erased.
    pub(crate) fn copy_failed(&mut self, size_bytes: u32) {
        if !std::mem::take(&mut self.copying) {
            return;
        }
        if self.making {
            // Perhaps it is there. Nothing was written to the one before.
            self.next = self.next.next();
            return;
        }
        if let Some((segment, ..)) = self.tail.take()
            && let Some(it) = self.list.get_mut(&segment)
        {
            it.end = size_bytes;
            it.payloads = None;
        }
    }

    /// How far each is written.
    pub(crate) fn ends(&self) -> Vec<(SegmentId, u32)> {
        self.list.iter().map(|(id, it)| (*id, it.end)).collect()
    }

    /// All copies before these places are pointed to, if they are wanted.
    pub(crate) fn settle(&mut self, ends: &[(SegmentId, u32)]) {
        for (id, end) in ends {
            if let Some(it) = self.list.get_mut(id) {
                it.settled = it.settled.max(*end);
            }
        }
    }

    /// Whether something in them is not pointed to and not known to be overwritten.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.list.values().any(|it| it.settled < it.end || it.payloads.is_none())
    }

    /// `keep` are all places in a segment that are pointed to, ascending.
    pub(crate) fn plan_erase(&mut self, id: SegmentId, keep: Kept) -> Option<Erase> {
        let it = self.list.get_mut(&id)?;
        it.live_bytes = keep.bytes;
        // What is not settled is among the payloads, and not among those that are kept.
        if it.settled < it.end && it.payloads.is_some() || it.payloads == Some(keep.len()) {
            return None;
        }
        Some(Erase::new(Source::of(id, &it.segment), keep, it.settled, it.doubt))
    }

    pub(crate) fn erased(&mut self, erase: &Erase) {
        let Some(it) = self.list.get_mut(&erase.segment()) else { return };
        it.segment.was_read(erase.below(), erase.unreadable());
        if !erase.unreadable().is_empty() {
            // What could not be read is looked at again.
            it.payloads = None;
            return;
        }
        // All that may not have come to the disk lies before what is settled by now.
        if it.doubt <= erase.doubt() {
            it.doubt = Doubt::Nothing;
        }
        if it.settled == it.end && erase.below() == it.end {
            it.payloads = Some(erase.kept());
        }
    }

    /// After a failed write the page cache may pass for clean although the disk has nothing of it.
    pub(crate) fn erase_failed(&mut self, id: SegmentId) {
        if let Some(it) = self.list.get_mut(&id) {
            (it.payloads, it.doubt) = (None, Doubt::Failure);
        }
    }

    /// Those that nobody points into and nothing is written to.
    pub(crate) fn unheld(&self) -> Vec<SegmentId> {
        let tail = self.tail.map(|(id, ..)| id);
        let is_free = |id: &SegmentId, it: &ColdSegment| {
            Some(*id) != tail && it.settled == it.end && self.holds(*id) == 0 && !self.copying
        };
        self.list.iter().filter(|(id, it)| is_free(id, it)).map(|(id, _)| *id).collect()
    }

    pub(crate) fn take(&mut self, id: SegmentId) -> Option<Segment> {
        self.list.remove(&id).map(|it| it.segment)
    }

    /// Full ones in which little is left that is pointed to.
    pub(crate) fn sparse(&self, size_bytes: u32) -> impl Iterator<Item = SegmentId> {
        let tail = self.tail.map(|(id, ..)| id);
        let is_sparse = move |id: SegmentId, it: &ColdSegment| {
            Some(id) != tail && it.settled == it.end && it.live_bytes > 0 && it.live_bytes < u64::from(size_bytes) / 8
        };
        self.list.iter().filter(move |(id, it)| is_sparse(**id, it)).map(|(id, _)| *id)
    }
}
