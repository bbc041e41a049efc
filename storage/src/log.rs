//! The append log of one shard: a state machine without I/O of its own. It lives on the shard's core.
//!
//! Records are appended into the batch that gathers. [`Log::next_write`] seals the oldest batch and gives it out, one at a
//! time; [`Log::written`] says up to where all is durable. Marks: `durable ≤ appended`.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::layout::{self, BATCH_HEADER_BYTES, FIRST_BATCH_OFFSET, RECORD_HEADER_BYTES, SegmentHeader};
use crate::limits;
use crate::recover::{self, OpenError, Recovered};
use crate::staging::{Batch, Place, Pool, Staged};
use crate::{Disk, Location, Mark, RecordHeader, SegmentId, WriteId};

/// How a log is set up.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// The shard that it belongs to.
    pub shard: u16,
    /// Bytes of a segment. The same for the whole life of a log.
    pub segment_size: u32,
    /// Bytes that a batch may grow to. It bounds the largest record: [`LogOptions::payload_max`].
    pub batch_max: u32,
    /// Bytes of memory for batches that are not written yet, or are still viewed.
    pub staging_max: u32,
    /// Prepared segments kept ahead of the one being filled.
    pub spares: u32,
}

impl LogOptions {
    /// The usual bounds.
    pub fn new(shard: u16) -> LogOptions {
        LogOptions {
            shard,
            segment_size: limits::SEGMENT_BYTES,
            batch_max: limits::BATCH_BYTES,
            staging_max: limits::STAGING_BYTES,
            spares: limits::SPARES,
        }
    }

    /// Bytes of the largest payload that a record can carry.
    pub fn payload_max(&self) -> usize {
        (self.batch_max - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES) as usize
    }

    /// Whether the bounds fit together; otherwise what is wrong with them.
    pub fn check(&self) -> Result<(), &'static str> {
        let page = limits::PAGE_BYTES;
        if self.batch_max < page || self.batch_max > limits::BATCH_MAX_BYTES || !self.batch_max.is_multiple_of(page) {
            return Err("batch_max must be a multiple of 4 KiB from 4 KiB to 1 MiB");
        }
        if self.segment_size > limits::SEGMENT_MAX_BYTES || !self.segment_size.is_multiple_of(page) {
            return Err("segment_size must be a multiple of 4 KiB up to 1 GiB");
        }
        if self.segment_size < FIRST_BATCH_OFFSET + self.batch_max {
            return Err("segment_size must hold its first page and one batch of batch_max");
        }
        if self.staging_max / self.batch_max < 2 {
            return Err("staging_max must hold two batches of batch_max: one being written and one that gathers");
        }
        Ok(())
    }
}

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

/// A segment that is there and mapped.
struct Segment {
    mapping: Bytes,
    generation: u64,
}

/// The append log of one shard: it stages, numbers and places batches, and says what is durable. It does no I/O of its own
/// once it is open.
pub struct Log {
    options: LogOptions,
    /// Segments from [`SegmentId::FIRST`] on, spares included.
    segments: Vec<Segment>,
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
    appended: u64,
    durable: u64,
}

impl Log {
    /// Opens the log of a disk, or begins one if it holds no segment. Every record that is there is given to `on_record`, in
    /// order, with a view of its payload. What was accepted is on stable storage when this returns; a torn last batch was
    /// zeroed and is reported. On an error the disk is as it was.
    pub fn open(
        options: LogOptions,
        disk: &mut dyn Disk,
        on_record: &mut dyn FnMut(&RecordHeader, Location, Bytes),
    ) -> Result<(Log, Recovered), OpenError> {
        options.check().map_err(OpenError::Options)?;
        let found = recover::recover(&options, disk, on_record)?;
        let segments = found
            .segments
            .into_iter()
            .map(|(mapping, header)| Segment { mapping, generation: header.generation })
            .collect();
        let log = Log {
            segments,
            preparing: false,
            pool: Pool::new(options.batch_max, (options.staging_max / options.batch_max) as usize),
            staged: VecDeque::new(),
            staged_bytes: 0,
            gathering: false,
            in_flight: None,
            poisoned: false,
            next_batch: found.next_batch,
            tail_segment: found.tail_segment,
            tail_offset: found.tail_offset,
            appended: 0,
            durable: 0,
            options,
        };
        Ok((log, found.report))
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
    /// view of a mapping holds the segment only. `None` if nothing was appended there.
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
        let mapping = &self.segment(location.segment)?.mapping;
        let end = location.offset.checked_add(location.len)?;
        let written = location.segment < self.tail_segment || end <= self.tail_offset;
        (written && end as usize <= mapping.len()).then(|| mapping.slice(location.offset as usize..end as usize))
    }

    /// The next batch to write, sealed: `None` while one is in flight, when nothing is staged, or when its segment is not
    /// prepared yet.
    pub fn next_write(&mut self) -> Option<LogWrite> {
        if self.poisoned || self.in_flight.is_some() {
            return None;
        }
        let Place { number, segment, offset, .. } = *self.staged.front()?.place();
        let generation = self.segment(segment)?.generation;
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
        self.staged_bytes -= (batch.filled() - BATCH_HEADER_BYTES) as usize;
        self.pool.end(batch);
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

    /// A segment to prepare ([`Disk::create`], off the core), so that spares stand ahead of the one being filled. One at a
    /// time: `None` until [`Log::segment_ready`] or [`Log::segment_failed`] has answered for the last one.
    pub fn segment_wanted(&mut self) -> Option<SegmentId> {
        let id = self.next_segment();
        let wanted = !self.poisoned && !self.preparing && id.0 <= self.tail_segment.0 + self.options.spares;
        self.preparing |= wanted;
        wanted.then_some(id)
    }

    /// The segment is prepared; `mapping` is the whole of it.
    ///
    /// # Panics
    /// If it is not the mapping of the segment that was wanted, as [`Disk::create`] makes it.
    pub fn segment_ready(&mut self, id: SegmentId, mapping: Bytes) {
        assert!(self.preparing && id == self.next_segment(), "segment {id} was not asked for");
        let header = SegmentHeader::decode(&mapping).expect("a segment that was just made has a valid header");
        let expected = (self.options.shard, id, self.options.segment_size);
        assert_eq!((header.shard, header.id, header.size_bytes), expected, "another segment was made than asked for");
        assert_eq!(mapping.len(), self.options.segment_size as usize, "the whole segment is mapped");
        self.segments.push(Segment { mapping, generation: header.generation });
        self.preparing = false;
    }

    /// The segment could not be prepared. The next [`Log::segment_wanted`] asks for it again, so report a failure when it is
    /// time to try again.
    ///
    /// # Panics
    /// If it is not the segment that was wanted.
    pub fn segment_failed(&mut self, id: SegmentId) {
        assert!(self.preparing && id == self.next_segment(), "segment {id} was not asked for");
        self.preparing = false;
    }

    /// Bytes of all segments that are there.
    pub fn bytes_on_disk(&self) -> u64 {
        self.segments.len() as u64 * u64::from(self.options.segment_size)
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
            self.tail_segment = self.tail_segment.next();
            self.tail_offset = FIRST_BATCH_OFFSET;
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
        first.is_some_and(|first| (location.segment, location.offset) >= (first.segment, first.offset))
    }

    /// The one after all that are there.
    fn next_segment(&self) -> SegmentId {
        SegmentId(SegmentId::FIRST.0 + self.segments.len() as u32)
    }

    fn segment(&self, id: SegmentId) -> Option<&Segment> {
        self.segments.get(id.0.checked_sub(SegmentId::FIRST.0)? as usize)
    }
}
