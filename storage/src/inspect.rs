//! What the bytes of one segment hold, part by part, each with its verdict. Pure, and of one segment: whether a batch is the
//! next of its log is for [`Verifier`](crate::Verifier) to say. Nothing is given up at the first damage, so that an operator
//! sees all of it, and whose records are concerned.

use crate::layout::{self, BATCH_HEADER_BYTES, BadSegment, BatchHeader, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::{RECORD_HEADER_BYTES, RecordHeader, SegmentId};

/// What the first page of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Whose log it belongs to.
    pub shard: u16,
    /// Its number.
    pub id: SegmentId,
    /// Bytes of the whole segment.
    pub size_bytes: u32,
    /// New each time the file is made or used anew.
    pub generation: u64,
}

/// Why the first page of a segment says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFacts {
    /// It is not what was written.
    #[error("its header is not valid")]
    Damaged,
    /// Written by another version.
    #[error("it has format {0}, this program reads {format}", format = layout::FORMAT_VERSION)]
    Format(u32),
}

impl SegmentFacts {
    /// Reads them from the bytes of a segment.
    pub fn of(segment: &[u8]) -> Result<SegmentFacts, BadFacts> {
        match SegmentHeader::decode(segment) {
            Ok(SegmentHeader { shard, id, size_bytes, generation }) => {
                Ok(SegmentFacts { shard, id, size_bytes, generation })
            }
            Err(BadSegment::Damaged) => Err(BadFacts::Damaged),
            Err(BadSegment::Version(format)) => Err(BadFacts::Format(format)),
        }
    }

    /// The generation that a segment most likely has whose first page is damaged: that of its first batch which says that it
    /// lies where it does.
    pub fn guess_generation(segment: &[u8]) -> Option<u64> {
        let at = |page: usize| page * PAGE_BYTES as usize;
        (1..segment.len() / PAGE_BYTES as usize).find_map(|page| {
            let header = BatchHeader::decode(&segment[at(page)..])?;
            (header.offset as usize == at(page)).then_some(header.generation)
        })
    }
}

/// A part of a segment behind its first page. Parts follow each other without a gap.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// A batch whose header is valid and belongs to this place of this segment. Its records may not be.
    Batch(BatchFound<'a>),
    /// The valid header of a batch that belongs elsewhere, and what lies behind it of that batch.
    Misplaced {
        /// Where it lies.
        offset: u32,
        /// How much of it.
        bytes: u32,
        /// The number that it says.
        number: u64,
    },
    /// Zeros.
    Unused {
        /// Where they begin.
        offset: u32,
        /// How many.
        bytes: u32,
    },
    /// Pages with bytes in them that are no batch.
    Stray {
        /// Where they begin.
        offset: u32,
        /// How many.
        bytes: u32,
    },
}

/// A batch whose header is valid.
#[derive(Clone, Copy, Debug)]
pub struct BatchFound<'a> {
    /// 1, 2, 3 … over the whole log.
    pub number: u64,
    /// The batch that it says was durable before it.
    pub durable: u64,
    /// Where it lies in its segment.
    pub offset: u32,
    /// Bytes of its header and its records.
    pub length: u32,
    /// How many records it says it has.
    pub records: u32,
    /// Its bytes in the segment, padding included; fewer if the segment ends before.
    bytes: &'a [u8],
}

impl<'a> BatchFound<'a> {
    /// Where it ends, padding included.
    pub fn end(&self) -> u32 {
        self.offset + self.bytes.len() as u32
    }

    /// Its records, up to the first whose header is damaged, for behind that one nobody knows where the next begins.
    pub fn records(&self) -> Records<'a> {
        Records { batch: *self, at: BATCH_HEADER_BYTES as usize, left: self.records, ended: false }
    }

    /// The first thing that is wrong with it.
    pub fn fault(&self) -> Option<BatchFault> {
        let mut end = BATCH_HEADER_BYTES as usize;
        for (nth, record) in self.records().enumerate() {
            let (offset, fault) = match record {
                Ok(RecordFound { fault: Some(fault), offset, .. }) | Err(BadRecord { offset, fault, .. }) => {
                    (offset, fault)
                }
                Ok(record) => {
                    end = record.end(self.offset);
                    continue;
                }
            };
            return Some(BatchFault::Record { nth: nth as u32 + 1, offset, fault });
        }
        if end != self.length as usize {
            return Some(BatchFault::Length);
        }
        let whole = layout::padded(self.length) as usize;
        let padded = self.bytes.len() == whole && layout::is_zero(&self.bytes[end..]);
        (!padded).then_some(BatchFault::Padding)
    }
}

/// What is wrong with a batch whose header is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    /// One of its records is not as it was written.
    #[error("record {nth}, at byte {offset}: {fault}")]
    Record {
        /// Which, from 1.
        nth: u32,
        /// Where in the segment.
        offset: u32,
        /// What of it.
        fault: RecordFault,
    },
    /// Its records do not end where it says, or the segment does before.
    #[error("its records do not end where its header says")]
    Length,
    /// There are bytes behind its records.
    #[error("its padding is not zeros")]
    Padding,
}

/// What of a record is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// Its header: whose it is and how long is not known.
    #[error("its header does not match its checksum")]
    Header,
    /// Its kind is not one that this program knows.
    #[error("its kind {0} is not known")]
    Kind(u8),
    /// Its payload.
    #[error("its payload does not match its checksum")]
    Payload,
    /// The padding behind its payload.
    #[error("its padding is not zeros")]
    Padding,
}

/// A record whose header is valid.
#[derive(Clone, Copy, Debug)]
pub struct RecordFound<'a> {
    /// Where it begins in its segment.
    pub offset: u32,
    /// What it is, and whose.
    pub header: RecordHeader,
    /// Its payload, as it is there.
    pub payload: &'a [u8],
    /// What is wrong with it.
    pub fault: Option<RecordFault>,
}

impl RecordFound<'_> {
    /// Where it ends in its batch, which begins at `batch`.
    fn end(&self, batch: u32) -> usize {
        (self.offset - batch) as usize + layout::record_bytes(self.payload.len())
    }
}

/// A record of which not even the header is valid, and with it all behind it in its batch.
#[derive(Clone, Copy, Debug)]
pub struct BadRecord {
    /// Where it should begin in its segment.
    pub offset: u32,
    /// How many records of the batch cannot be told any more, this one included.
    pub lost: u32,
    /// What is wrong with it.
    pub fault: RecordFault,
}

/// The records of a batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    batch: BatchFound<'a>,
    at: usize,
    left: u32,
    ended: bool,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordFound<'a>, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.left == 0 {
            return None;
        }
        let offset = self.batch.offset + self.at as u32;
        let end = self.batch.bytes.len().min(self.batch.length as usize);
        let found = read_record(self.batch.bytes.get(self.at..end).unwrap_or_default(), self.batch.number, offset);
        let found = found.map_err(|fault| BadRecord { offset, lost: self.left, fault });
        match &found {
            Ok(record) => self.at = record.end(self.batch.offset),
            Err(_) => self.ended = true,
        }
        self.left -= 1;
        Some(found)
    }
}

/// The record at the start of these bytes.
fn read_record(bytes: &[u8], batch: u64, offset: u32) -> Result<RecordFound<'_>, RecordFault> {
    let seed = layout::record_seed(batch);
    let header_bytes = RECORD_HEADER_BYTES as usize;
    if let Some((header, len)) = layout::decode_record(bytes, seed, offset) {
        return Ok(RecordFound { offset, header, payload: &bytes[header_bytes..header_bytes + len], fault: None });
    }
    // Not as it was written: what of it is.
    let whole =
        bytes.len() >= header_bytes && layout::u32_at(bytes, 28) == crc32c::crc32c_append(seed ^ offset, &bytes[..28]);
    if !whole {
        return Err(RecordFault::Header);
    }
    let (header, len) = layout::record_unchecked(bytes).ok_or(RecordFault::Kind(bytes[4]))?;
    let rest = bytes.get(header_bytes..layout::record_bytes(len)).ok_or(RecordFault::Header)?;
    let (payload, padding) = rest.split_at(len);
    let fault = if layout::is_zero(padding) { RecordFault::Payload } else { RecordFault::Padding };
    Ok(RecordFound { offset, header, payload, fault: Some(fault) })
}

/// Goes through all parts of a segment behind its first page.
pub fn parts(segment: &[u8], generation: u64) -> Parts<'_> {
    Parts { segment, generation, at: FIRST_BATCH_OFFSET as usize, expects_batch: true }
}

/// The parts of a segment: [`parts`].
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    segment: &'a [u8],
    generation: u64,
    at: usize,
    /// Nothing but whole batches lies before: a header here was written as one, and is not somebody's payload.
    expects_batch: bool,
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        if self.at >= self.segment.len() {
            return None;
        }
        let part = match self.batch_at(self.at) {
            Some(part) => part,
            None => self.pages(),
        };
        self.expects_batch = matches!(part, Part::Batch(_));
        self.at = match part {
            Part::Batch(batch) => batch.end(),
            Part::Unused { offset, bytes } | Part::Stray { offset, bytes } | Part::Misplaced { offset, bytes, .. } => {
                offset + bytes
            }
        } as usize;
        Some(part)
    }
}

impl<'a> Parts<'a> {
    /// The batch that begins at this page, if one does.
    fn batch_at(&self, at: usize) -> Option<Part<'a>> {
        let rest = &self.segment[at..];
        let header = BatchHeader::decode(rest)?;
        let sound = (BATCH_HEADER_BYTES..=BATCH_MAX_BYTES).contains(&header.length);
        if header.generation == self.generation && header.offset as usize == at && sound {
            let bytes = &rest[..rest.len().min(layout::padded(header.length) as usize)];
            let BatchHeader { number, durable, offset, length, records, .. } = header;
            return Some(Part::Batch(BatchFound { number, durable, offset, length, records, bytes }));
        }
        // A payload can say anything but the generation.
        if !self.expects_batch && header.generation != self.generation {
            return None;
        }
        let whole = if sound { layout::padded(header.length) as usize } else { PAGE_BYTES as usize };
        let bytes = &rest[..rest.len().min(whole)];
        let claimed = BatchFound {
            number: header.number,
            durable: header.durable,
            offset: header.offset,
            length: header.length,
            records: header.records,
            bytes,
        };
        // Only its first page may have been written here; then what lies behind is looked at for itself.
        let is_whole = sound && claimed.offset.checked_add(bytes.len() as u32).is_some() && claimed.fault().is_none();
        let bytes = if is_whole { bytes.len() } else { bytes.len().min(PAGE_BYTES as usize) };
        Some(Part::Misplaced { offset: at as u32, bytes: bytes as u32, number: header.number })
    }

    /// Pages that are all zeros, or all not, up to the next batch.
    fn pages(&self) -> Part<'a> {
        let page = |at: usize| &self.segment[at..self.segment.len().min(at + PAGE_BYTES as usize)];
        let unused = layout::is_zero(page(self.at));
        let mut end = self.at;
        let behind = Parts { expects_batch: false, ..self.clone() };
        while end < self.segment.len()
            && layout::is_zero(page(end)) == unused
            && (unused || behind.batch_at(end).is_none())
        {
            end += page(end).len();
        }
        let (offset, bytes) = (self.at as u32, (end - self.at) as u32);
        if unused { Part::Unused { offset, bytes } } else { Part::Stray { offset, bytes } }
    }
}
