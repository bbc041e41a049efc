//! The append log of one shard: a state machine without I/O of its own. It lives on the shard's core.
//!
//! Records are appended into the batch that gathers. [`Log::next_write`] seals the oldest batch and gives it out, one at a
//! time; [`Log::written`] says up to where all is durable. Marks: `durable ≤ appended`.

mod empty;
mod warm;

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use self::empty::Last;
use crate::checkpoint::{Checkpoint, CheckpointWriter, Position};
use crate::cold::{Cold, Copied, Copy, Kept};
use crate::erase::Erase;
use crate::layout::{self, BATCH_HEADER_BYTES, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::recover::{self, Recovered, Replay, Tail};
use crate::scrub::SegmentIs;
use crate::segments::{Retired, Segment, Segments};
use crate::staging::{Batch, Place, Pool, Staged};
use crate::{Disk, Location, LogOptions, Mark, OpenError, RecordHeader, SegmentId, WriteId};

/// Why a record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// All staging memory is taken by batches not yet written or still viewed. It passes when a write completes.
    #[error("the log's staging memory is full until a write completes")]
    Full,
    /// The record is larger than a batch.
    #[error("a record of {payload_bytes} bytes is above the largest of {max_bytes}")]
    TooLarge {
        /// Of the payload.
        payload_bytes: usize,
        /// [`LogOptions::payload_max`].
        max_bytes: usize,
    },
    /// A write failed: what is on the disk is not known any more, so nothing may follow it.
    #[error("the log is poisoned: a write or flush failed")]
    Poisoned,
}

/// A batch to be written at its place with one synchronous write (`RWF_DSYNC`, or a write and a flush). Tell
/// [`Log::written`] or [`Log::failed`] how it went; a short write is a failed one.
#[derive(Debug)]
pub struct LogWrite {
    /// Names it.
    pub id: WriteId,
    /// Into which segment.
    pub segment: SegmentId,
    /// Bytes from the start of the segment, a multiple of 4 KiB.
    pub offset: u64,
    /// What to write.
    pub batch: Batch,
}

/// A segment to be prepared.
#[derive(Debug)]
pub struct Wanted {
    /// Which.
    pub id: SegmentId,
    /// A segment whose file it may be made of: [`Disk::recycle`]. The new one replaces it, or it is gone.
    pub reuse: Option<Retired>,
}

/// The append log of one shard: it stages, numbers and places batches, and says what is durable. It does no I/O of its own
/// once it is open.
pub struct Log {
    options: LogOptions,
    /// Spares included.
    segments: Segments,
    /// Whether the one after them is being prepared. One at a time, for a crash must not leave a later one without it.
    preparing: bool,
    pool: Pool,
    /// Batches that are not durable, oldest first. Only the last one may still gather.
    staged: VecDeque<Staged>,
    /// Bytes of all `staged`, without padding.
    staged_bytes: usize,
    /// Whether the last of `staged` takes records.
    gathering: bool,
    in_flight: Option<WriteId>,
    poisoned: bool,
    next_batch: u64,
    /// Where the next batch begins.
    tail_segment: SegmentId,
    tail_offset: u32,
    /// All before this one are written to their ends.
    closed: SegmentId,
    last: Last,
    appended: u64,
    durable: u64,
    /// Bytes of batches written, padding included.
    written_bytes: u64,
    /// The same without padding.
    filled_bytes: u64,
    /// The two checkpoints that are kept, the older one first.
    kept: [Option<Checkpoint>; 2],
    next_checkpoint: u64,
}

impl Log {
    /// Opens the log of a disk, or begins one if it holds no segment: [`Log::open_with`] where no checkpoints are made.
    pub fn open(
        options: LogOptions,
        disk: &mut dyn Disk,
        on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
    ) -> Result<(Log, Recovered), OpenError> {
        Log::open_with(options, disk, &mut |_| {}, on_record)
    }

    /// Opens the log of a disk, or begins one if it holds no segment. The pieces of the newest checkpoint that holds are given
    /// to `on_piece`, and then every record from its position on to `on_record`, in order, with a view of its payload. What
    /// was accepted is on stable storage when this returns; a torn last batch was zeroed and is reported. On an error
    /// the disk is as it was.
    pub fn open_with(
        options: LogOptions,
        disk: &mut dyn Disk,
        on_piece: &mut dyn FnMut(&[u8]),
        on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
    ) -> Result<(Log, Recovered), OpenError> {
        let (mut log, mut replay) = Log::begin(options, disk, on_piece)?;
        while replay.step(on_record) {}
        let recovered = replay.end(disk, &mut log)?;
        Ok((log, recovered))
    }

    /// Begins what [`Log::open_with`] does all of: for who is given the records and wants to hold places of the log meanwhile. The
    /// log takes nothing before [`Replay::end`].
    pub fn begin(
        options: LogOptions,
        disk: &mut dyn Disk,
        on_piece: &mut dyn FnMut(&[u8]),
    ) -> Result<(Log, Replay), OpenError> {
        options.check().map_err(OpenError::Options)?;
        let start = recover::newest_checkpoint(&options, disk, on_piece)?;
        let (kept, newest, next_checkpoint) = (start.kept, start.newest(), start.next);
        let begun = recover::begin(&options, disk, start)?;
        let cold = Cold::new(begun.cold, options.segment_size);
        let mut segments = Segments::new(begun.segments.first().map_or(SegmentId::FIRST, |(id, _)| *id), cold);
        for (id, segment) in begun.segments {
            segments.push(id, segment);
        }
        if let Some(newest) = newest {
            // Perhaps what waited in some of them was moved, and only the newest checkpoint has it so: should it be lost, the
            // older one needs them.
            segments.emptied_before(newest);
        }
        let mut log = Log::new(options, segments);
        (log.kept, log.next_checkpoint) = (kept, next_checkpoint);
        log.closed = newest.map_or(SegmentId::FIRST, |newest| newest.position.segment);
        Ok((log, begun.replay))
    }

    /// A log that does not open: nothing is in it, it takes nothing, and it wants nothing of the disk.
    pub fn shut(options: LogOptions) -> Log {
        Log::new(options, Segments::new(SegmentId::FIRST, Cold::new(Vec::new(), options.segment_size)))
    }

    /// Without anything but these segments.
    fn new(options: LogOptions, segments: Segments) -> Log {
        Log {
            segments,
            preparing: false,
            pool: Pool::new(options.batch_max, (options.staging_max / options.batch_max) as usize),
            staged: VecDeque::new(),
            staged_bytes: 0,
            gathering: false,
            in_flight: None,
            // Until it is known where it goes on.
            poisoned: true,
            next_batch: 0,
            tail_segment: SegmentId::FIRST,
            tail_offset: 0,
            closed: SegmentId::FIRST,
            last: Last::Found,
            appended: 0,
            durable: 0,
            written_bytes: 0,
            filled_bytes: 0,
            kept: [None; 2],
            next_checkpoint: 0,
            options,
        }
    }

    /// The spare segments from this one on are not there any more.
    pub(crate) fn cut(&mut self, from: SegmentId) {
        self.segments.cut(from);
    }

    /// The next batch goes here.
    pub(crate) fn goes_on(&mut self, at: Tail) {
        (self.next_batch, self.tail_segment, self.tail_offset) = (at.batch, at.segment, at.offset);
        self.poisoned = false;
        self.close_written();
    }

    /// Copies a record into the batch that gathers. It can be read at once; it is durable when [`Log::written`] gives a mark
    /// at or above [`Log::appended`] as it is after this call.
    #[inline]
    pub fn append(&mut self, header: &RecordHeader, payload: &[u8]) -> Result<Location, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        let total = layout::record_bytes(payload.len());
        if !self.gathering_has(total) {
            self.begin_batch(payload.len())?;
        }
        let batch = self.staged.back_mut().expect("a batch gathers: it had room or was begun just now");
        let offset = batch.push(header, payload);
        let segment = batch.place().segment;
        self.staged_bytes += total;
        self.appended += 1;
        Ok(Location { segment, offset, len: payload.len() as u32 })
    }

    /// Bytes that were appended and are not durable.
    pub fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    /// Whether staging takes this many bytes more: certain for one record with a payload of so many bytes; for more records
    /// an estimate, for a large record may leave the end of a batch unused.
    pub fn has_room(&self, bytes: usize) -> bool {
        let batch_bytes = (self.options.batch_max - BATCH_HEADER_BYTES) as usize;
        let needed = layout::record_bytes(bytes);
        !self.poisoned && (self.gathering_has(needed) || self.pool.available() * batch_bytes >= needed)
    }

    /// Bytes of the largest payload that [`Log::append`] takes.
    pub fn payload_max(&self) -> usize {
        self.options.payload_max()
    }

    /// A view of bytes of the log: of staging until their batch is written, of the segment's mapping afterwards. A view of
    /// staging keeps the whole memory of its batch in use, so it is for a turn or a write, not for a slow connection; a
    /// view of a mapping holds the segment only. Of a cold segment it is a copy, for what dies there is overwritten without
    /// asking who looks at it. `None` if nothing was appended there, or if it lies on a page of which is known that the disk does not
    /// give it: a look at that would end the process.
    pub fn read(&self, location: Location) -> Option<Bytes> {
        if self.is_staged(location) {
            let place = (location.segment, location.offset);
            let after = self.staged.partition_point(|batch| (batch.place().segment, batch.place().offset) <= place);
            let batch = self.staged.get(after.checked_sub(1)?)?;
            if batch.place().segment != location.segment {
                return None;
            }
            return batch.view(location.offset, location.len);
        }
        let segment = self.segments.get(location.segment)?;
        let mapping = segment.view();
        let end = location.offset.checked_add(location.len)?;
        if segment.is_unreadable(location.offset..end) {
            return None;
        }
        if location.segment.is_cold() {
            return mapping.get(location.offset as usize..end as usize).map(Bytes::copy_from_slice);
        }
        let written = match segment.end {
            Some(last) => end <= last,
            None => location.segment < self.tail_segment || end <= self.tail_offset,
        };
        (written && end as usize <= mapping.len()).then(|| mapping.slice(location.offset as usize..end as usize))
    }

    /// The next batch to write, sealed: `None` while one is in flight, when nothing is staged, or when its segment is not
    /// prepared yet.
    pub fn next_write(&mut self) -> Option<LogWrite> {
        if self.poisoned || self.in_flight.is_some() {
            return None;
        }
        let Place { number, segment, offset, .. } = *self.staged.front()?.place();
        let generation = self.segments.get(segment)?.generation;
        if self.gathering && self.staged.len() == 1 {
            self.close_gathering();
        }
        let batch = self.staged.front_mut()?.seal(generation);
        let id = WriteId(number);
        self.in_flight = Some(id);
        Some(LogWrite { id, segment, offset: u64::from(offset), batch })
    }

    /// The write is on stable storage. All records up to the mark are.
    ///
    /// # Panics
    /// If this write is not the one in flight.
    pub fn written(&mut self, id: WriteId) -> Mark {
        assert_eq!(self.in_flight.take(), Some(id), "only the write in flight can complete");
        let batch = self.staged.pop_front().expect("the batch in flight is staged");
        self.durable += u64::from(batch.records());
        if batch.records() > 0 {
            self.last = Last::Records;
        }
        self.staged_bytes -= (batch.filled() - BATCH_HEADER_BYTES) as usize;
        self.written_bytes += u64::from(batch.padded());
        self.filled_bytes += u64::from(batch.filled());
        self.pool.end(batch);
        self.close_written();
        assert!(self.durable <= self.appended);
        self.durable()
    }

    /// The write, or its flush, failed. The log takes and gives out nothing more; only a new start, which reads what is on
    /// the disk, goes on.
    ///
    /// # Panics
    /// If this write is not the one in flight.
    pub fn failed(&mut self, id: WriteId) {
        assert_eq!(self.in_flight.take(), Some(id), "only the write in flight can fail");
        self.poisoned = true;
    }

    /// The last segment that is there, spare ones too.
    pub fn last_segment(&self) -> SegmentId {
        SegmentId(self.segments.next().0 - 1)
    }

    /// The last segment, cold ones apart, that a place of state points into.
    pub fn newest_held(&self) -> Option<SegmentId> {
        self.segments.newest_held()
    }

    /// Everything that was appended.
    pub fn appended(&self) -> Mark {
        Mark(self.appended)
    }

    /// Everything that is on stable storage.
    pub fn durable(&self) -> Mark {
        Mark(self.durable)
    }

    /// Whether a write is given out and not answered.
    pub fn is_writing(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether a write failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// A segment to prepare ([`Disk::create`] or [`Disk::recycle`], off the core), so that spares stand ahead of the one being
    /// filled, and retired ones are used again. One at a time: `None` until [`Log::segment_ready`] or
    /// [`Log::segment_failed`] has answered for the last one.
    pub fn segment_wanted(&mut self) -> Option<Wanted> {
        if self.poisoned || self.preparing {
            return None;
        }
        let (id, spares) = (self.segments.next(), self.spares());
        let reuse = if spares < self.options.spares_max { self.segments.take_retired() } else { None };
        let wanted = spares < self.options.spares || reuse.is_some();
        self.preparing = wanted;
        wanted.then_some(Wanted { id, reuse })
    }

    /// A retired segment that is not needed as a spare: to be removed ([`Disk::remove`], off the core).
    pub fn segment_unwanted(&mut self) -> Option<Retired> {
        if self.poisoned || self.spares() < self.options.spares_max { None } else { self.segments.take_retired() }
    }

    /// The segment is prepared; `mapping` is the whole of it.
    ///
    /// # Panics
    /// If it is not the mapping of the segment that was wanted, as [`Disk::create`] makes it.
    pub fn segment_ready(&mut self, id: SegmentId, mapping: Bytes) {
        assert!(self.preparing && id == self.segments.next(), "segment {id} was not asked for");
        let header = SegmentHeader::decode(&mapping).expect("a segment that was just made has a valid header");
        let expected = (self.options.shard, id, self.options.segment_size);
        assert_eq!((header.shard, header.id, header.size_bytes), expected, "another segment was made than asked for");
        assert_eq!(mapping.len(), self.options.segment_size as usize, "the whole segment is mapped");
        self.segments.push(id, Segment::new(mapping, header.generation, true));
        self.preparing = false;
    }

    /// The segment could not be prepared. The next [`Log::segment_wanted`] asks for it again, so report a failure when it is
    /// time to try again.
    ///
    /// # Panics
    /// If it is not the segment that was wanted.
    pub fn segment_failed(&mut self, id: SegmentId) {
        assert!(self.preparing && id == self.segments.next(), "segment {id} was not asked for");
        self.preparing = false;
    }

    /// Whether fewer spares are there than should be.
    pub fn lacks_spares(&self) -> bool {
        self.spares() < self.options.spares
    }

    /// Segments that are prepared behind the one that is filled.
    pub fn spares(&self) -> u32 {
        self.segments.next().0.saturating_sub(self.tail_segment.0 + 1)
    }

    /// Bytes for batches until another segment is needed: the spares, and the rest of the one that is filled behind what gathers.
    pub fn prepared_bytes(&self) -> u64 {
        let segments = self.segments.next().0.saturating_sub(self.tail_segment.0);
        let gathers = self.staged.back().filter(|_| self.gathering);
        let filled = gathers.map_or(self.tail_offset, |batch| batch.place().offset + batch.padded());
        (u64::from(segments) * u64::from(self.options.segment_size)).saturating_sub(u64::from(filled))
    }

    /// Bytes of all segments that are there.
    pub fn bytes_on_disk(&self) -> u64 {
        self.segments.count() as u64 * u64::from(self.options.segment_size)
    }

    /// Segments that are there, spares included.
    pub fn segments(&self) -> usize {
        self.segments.count()
    }

    /// Bytes of batches written since the log was opened, padding included.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The same without padding.
    pub fn filled_bytes(&self) -> u64 {
        self.filled_bytes
    }

    /// Keeps the segment of a location until it is released as often as it was held. It may be one that is gone already:
    /// what a checkpoint points to may have been released by a record behind it. [`Log::missing`] says so.
    #[inline]
    pub fn hold(&mut self, location: Location) {
        self.segments.hold(location.segment);
    }

    /// Lets go of what [`Log::hold`] kept.
    ///
    /// # Panics
    /// If it was not held.
    #[inline]
    pub fn release(&mut self, location: Location) {
        self.segments.release(location.segment);
    }

    /// How many places are held.
    pub fn held(&self) -> u64 {
        self.segments.held()
    }

    /// A segment that is held and is not there: bytes that somebody waits for are lost.
    pub fn missing(&self) -> Option<SegmentId> {
        self.segments.missing()
    }

    /// What a segment has to be that is on the disk.
    pub fn segment_is(&self, id: SegmentId) -> Option<SegmentIs> {
        let LogOptions { shard, segment_size: size_bytes, .. } = self.options;
        let generation = Some(self.segments.get(id)?.generation);
        Some(SegmentIs { shard, id, size_bytes, generation })
    }

    /// The first segment behind this one that nobody writes any more.
    pub fn sealed_behind(&self, id: SegmentId) -> Option<SegmentId> {
        let hot = if id.is_cold() { None } else { self.segments.behind(id) };
        hot.filter(|id| *id < self.position().segment).or_else(|| self.segments.cold.sealed_behind(id))
    }

    /// How many segments nobody writes any more.
    pub fn sealed(&self) -> usize {
        self.segments.below(self.position().segment) + self.segments.cold.count()
    }

    /// All of a segment was read, and of that the disk does not give these pages: the others can be looked at again.
    pub fn was_read(&mut self, id: SegmentId, unreadable: &[Range<u32>]) {
        if let Some(segment) = self.segments.get_mut(id) {
            segment.was_read(u32::MAX, unreadable);
        }
    }

    /// The disk does not give these pages of a segment. Whether that is news: false too if the segment is gone.
    pub fn lose(&mut self, id: SegmentId, pages: Range<u32>) -> bool {
        self.segments.get_mut(id).is_some_and(|segment| segment.lose(pages))
    }

    /// Where the last batch of a segment ends, if that is known and nobody writes it any more.
    pub fn end_of(&self, id: SegmentId) -> Option<u32> {
        self.segments.get(id)?.end
    }

    /// Whether the segment of a place is there.
    pub fn has_segment(&self, location: Location) -> bool {
        self.segments.get(location.segment).is_some() || self.is_staged(location)
    }

    /// The place of which all before it is on stable storage.
    pub fn position(&self) -> Position {
        let (segment, offset, batch) = match self.staged.front() {
            Some(batch) => (batch.place().segment, batch.place().offset, batch.place().number),
            None => (self.tail_segment, self.tail_offset, self.next_batch),
        };
        // One that begins in a segment that is not prepared yet begins behind the last one that is.
        let generation = self.segments.get(segment).map_or(0, |it| it.generation);
        Position { segment, generation, offset, batch }
    }

    /// Where the log ends, if all of it is durable and in the newest checkpoint: what the mark of a clean end says.
    pub fn end(&self) -> Option<Position> {
        let position = self.position();
        let all = !self.poisoned && self.staged.is_empty() && position.generation != 0;
        (all && self.newest_checkpoint().is_some_and(|newest| newest.position == position)).then_some(position)
    }

    /// Lets the next batch begin in a new segment, if one is prepared and this one has records in it, which then can be let go.
    pub fn seal(&mut self) {
        if self.can_seal() {
            self.close_gathering();
            self.roll();
        }
    }

    /// Whether [`Log::seal`] would do anything.
    pub fn can_seal(&self) -> bool {
        let has_something = self.tail_offset > self.content_begins() || self.gathering;
        !self.poisoned && has_something && self.segments.get(self.tail_segment.next()).is_some()
    }

    /// Begins a checkpoint of what its owner made of all records before a position: [`Log::position`] as it was when that
    /// was the case. `None` if the segment of that position is not there yet.
    pub fn begin_checkpoint(&mut self, position: Position) -> Option<CheckpointWriter> {
        if self.poisoned || position.generation == 0 {
            return None;
        }
        let checkpoint = Checkpoint { number: self.next_checkpoint, position };
        self.next_checkpoint += 1;
        Some(CheckpointWriter::new(self.options.shard, checkpoint))
    }

    /// A checkpoint is on stable storage and was read back. Those before the older of the two that are kept now may go: they
    /// have a number below the one that this gives.
    pub fn checkpoint_written(&mut self, checkpoint: Checkpoint) -> u64 {
        assert!(self.kept[1].is_none_or(|newest| newest.number < checkpoint.number), "checkpoints come in their order");
        self.kept = [self.kept[1], Some(checkpoint)];
        self.kept[0].map_or(0, |older| older.number)
    }

    /// The newest checkpoint.
    pub fn newest_checkpoint(&self) -> Option<Checkpoint> {
        self.kept[1]
    }

    /// The older of the two that are kept.
    pub fn older_checkpoint(&self) -> Option<Checkpoint> {
        self.kept[0]
    }

    /// Retires the segments that neither the older checkpoint needs nor anybody holds. They come out of
    /// [`Log::segment_wanted`] and [`Log::segment_unwanted`] once nobody looks at them any more.
    pub fn retire(&mut self) {
        if let [Some(older), Some(newest)] = self.kept {
            let needed = older.position.segment.min(newest.position.segment);
            self.segments.retire_below(needed.min(self.tail_segment), older.number.min(newest.number));
        }
    }

    /// Segments before a position that are pointed into, oldest first: what waits in them can be moved.
    pub fn held_before(&self, position: Position) -> impl Iterator<Item = SegmentId> {
        self.segments.held_below(position.segment)
    }

    /// Cold segments in which little is left that is pointed to.
    pub fn sparse(&self) -> impl Iterator<Item = SegmentId> {
        self.segments.cold.sparse(self.options.segment_size)
    }

    /// The cold segments that are there.
    pub fn cold_segments(&self) -> impl Iterator<Item = SegmentId> {
        self.segments.cold.ids()
    }

    /// Takes from the front of `places`, which are ascending, as many as are copied at once, to be carried out off the core.
    /// One at a time: `None` until [`Log::copied`] or [`Log::copy_failed`] has answered for the last one.
    pub fn plan_copy(&mut self, places: &mut VecDeque<Location>) -> Option<Copy> {
        if self.poisoned { None } else { self.segments.plan_copy(&self.options, places) }
    }

    /// The copies are there. Their owner lets the places point to them, with [`Log::hold`] and [`Log::release`], and then says
    /// so: [`Log::settle`] and [`Log::emptied`].
    pub fn copied(&mut self, copied: &Copied) {
        self.segments.cold.copied(copied);
    }

    /// The places that were taken could not be copied.
    pub fn copy_failed(&mut self) {
        self.segments.cold.copy_failed(self.options.segment_size);
    }

    /// How far the cold segments are written.
    pub fn cold_ends(&self) -> Vec<(SegmentId, u32)> {
        self.segments.cold.ends()
    }

    /// All copies before these ends, of [`Log::cold_ends`], are pointed to by now, or never will be.
    pub fn settle(&mut self, ends: &[(SegmentId, u32)]) {
        self.segments.cold.settle(ends);
    }

    /// What had to be moved out of a segment is moved, as checkpoint `number` and all that follow it have it. Once there are
    /// two of these, and nobody holds it any more, it is retired.
    pub fn emptied(&mut self, id: SegmentId, number: u64) {
        self.segments.emptied(id, number);
    }

    /// Whether a checkpoint that is kept may point to what was moved out of this segment: nothing in it may be erased yet.
    pub fn is_emptied(&self, id: SegmentId) -> bool {
        self.segments.is_emptied(id)
    }

    /// Whether segments are kept only until there are two checkpoints that do not know them.
    pub fn awaits_checkpoints(&self) -> bool {
        self.segments.awaits_checkpoints()
    }

    /// Whether something in the cold segments is to be settled, or looked at by [`Log::plan_erase`], though nothing is appended.
    pub fn cold_is_unsettled(&self) -> bool {
        self.segments.cold.is_unsettled()
    }

    /// What is to be erased in a cold segment, off the core, if anything is: `keep` are all settled places in it that are
    /// pointed to, ascending: offset and length.
    pub fn plan_erase(&mut self, id: SegmentId, keep: Kept) -> Option<Erase> {
        if self.poisoned { None } else { self.segments.cold.plan_erase(id, keep) }
    }

    /// All of it is erased that could be read: what could not is planned again.
    pub fn erased(&mut self, erase: &Erase) {
        self.segments.cold.erased(erase);
    }

    /// A step of erasing in this segment failed. It is planned again, and then all that is to be zeros is written, whatever is read.
    pub fn erase_failed(&mut self, id: SegmentId) {
        self.segments.cold.erase_failed(id);
    }

    /// The next batch begins in the next segment.
    fn roll(&mut self) {
        if let Some(segment) = self.segments.get_mut(self.tail_segment) {
            segment.used = self.tail_offset;
            segment.end = Some(self.tail_offset);
        }
        self.tail_segment = self.tail_segment.next();
        self.tail_offset = FIRST_BATCH_OFFSET;
        self.close_written();
    }

    fn gathering_has(&self, bytes: usize) -> bool {
        self.gathering && self.staged.back().is_some_and(|batch| batch.room() as usize >= bytes)
    }

    /// Ends the batch that gathers and begins one with room for this payload.
    #[cold]
    fn begin_batch(&mut self, payload_bytes: usize) -> Result<(), AppendError> {
        let max_bytes = self.options.payload_max();
        if payload_bytes > max_bytes {
            return Err(AppendError::TooLarge { payload_bytes, max_bytes });
        }
        if self.pool.available() == 0 {
            return Err(AppendError::Full);
        }
        self.close_gathering();
        let needed = BATCH_HEADER_BYTES + layout::record_bytes(payload_bytes) as u32;
        if needed > self.options.segment_size - self.tail_offset {
            self.roll();
        }
        let place = Place {
            number: self.next_batch,
            segment: self.tail_segment,
            offset: self.tail_offset,
            room: self.options.batch_max.min(self.options.segment_size - self.tail_offset),
        };
        let batch = self.pool.begin(place).ok_or(AppendError::Full)?;
        self.staged.push_back(batch);
        self.gathering = true;
        self.next_batch += 1;
        Ok(())
    }

    /// The batch that gathers, if one does, takes no more: the next one begins behind it.
    fn close_gathering(&mut self) {
        if !self.gathering {
            return;
        }
        self.gathering = false;
        if let Some(batch) = self.staged.back() {
            self.tail_offset = batch.place().offset + batch.padded();
        }
    }

    /// Whether a location lies in or behind the oldest batch that is not durable.
    fn is_staged(&self, location: Location) -> bool {
        let first = self.staged.front().map(Staged::place);
        !location.segment.is_cold()
            && first.is_some_and(|first| (location.segment, location.offset) >= (first.segment, first.offset))
    }
}
