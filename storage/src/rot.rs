//! Bytes of a log that are not what was written, and whose they were, as far as that can still be known.
//!
//! A record's header has a checksum of its own, tied to its batch and place, so that a record whose payload rotted still says
//! whose it was and where the next one begins. Behind a header that does not hold nothing of the batch is known.

use std::fmt;

use crate::layout::{self, BATCH_HEADER_BYTES, BatchHeader};
use crate::{Location, RecordHeader, SegmentId};

/// Bytes that are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rot {
    /// In which segment.
    pub segment: SegmentId,
    /// Where in it they begin.
    pub offset: u32,
    /// How many of them cannot be trusted.
    pub bytes: u32,
    /// What is wrong there.
    pub reason: RotReason,
    /// What is lost by it.
    pub loss: Loss,
}

/// What rot took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// No record: padding, or a page that says nothing that is not known otherwise.
    Nothing,
    /// One record, of which the header still holds.
    Record(RecordHeader),
    /// Whatever stood there.
    Unknown,
}

/// What rotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RotReason {
    /// The first page of a segment is not one.
    SegmentHeader,
    /// A segment is missing although a later one is there.
    SegmentMissing,
    /// A batch's records do not match their checksums although a later batch is there, which was written only after this
    /// one was on stable storage.
    Batch,
    /// There is no valid batch here although a later one is there.
    BatchMissing,
    /// A valid batch is not the one that belongs here.
    BatchMisplaced,
    /// There are bytes where no batch was ever written.
    Stray,
    /// It is not the segment that the newest checkpoint names.
    NotTheCheckpoints,
    /// The disk does not give the bytes.
    Unreadable,
}

impl Rot {
    /// Whether something is lost by it, and bytes of this location are among them.
    pub fn touches(&self, location: Location) -> bool {
        self.loss != Loss::Nothing && self.overlaps(location)
    }

    /// Whether bytes of this location are among them.
    pub fn overlaps(&self, location: Location) -> bool {
        let (end, location_end) =
            (u64::from(self.offset) + u64::from(self.bytes), u64::from(location.offset) + u64::from(location.len));
        self.segment == location.segment && u64::from(self.offset) < location_end && u64::from(location.offset) < end
    }
}

impl fmt::Display for RotReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RotReason::SegmentHeader => "its header is not valid",
            RotReason::SegmentMissing => "it is missing, and a later one is there",
            RotReason::Batch => "a batch does not match its checksums, and a later one is there",
            RotReason::BatchMissing => "there is no valid batch, and a later one is there",
            RotReason::BatchMisplaced => "a batch lies there that belongs elsewhere",
            RotReason::Stray => "there are bytes where none were written",
            RotReason::NotTheCheckpoints => "it is not the segment that the newest checkpoint goes on from",
            RotReason::Unreadable => "the disk does not give its bytes (an error of the device)",
        })
    }
}

/// What lies in a batch.
pub(crate) enum Part {
    /// A record that holds: where its payload begins in the batch, and its length.
    Record(RecordHeader, u32, u32),
    /// One of which only the header holds: where it begins in the batch, and its length with padding.
    Damaged(RecordHeader, u32, u32),
    /// From here to the end of the batch nothing is known.
    Unknown(u32),
    /// All records are there; behind them, from here on, are bytes that are not zeros.
    Padding(u32),
}

/// Goes through a batch whose header is valid, as it lies in the segment, padding included. True if all of it holds; then only
/// records were given.
pub(crate) fn look_into(batch: &[u8], header: &BatchHeader, each: &mut dyn FnMut(Part)) -> bool {
    let seed = layout::record_seed(header.number);
    let (records, padding) = batch.split_at(header.length as usize);
    let mut at = BATCH_HEADER_BYTES as usize;
    let mut whole = true;
    for _ in 0..header.records {
        let (rest, place) = (&records[at..], header.offset + at as u32);
        let Some((record, payload_bytes)) = layout::decode_record_header(rest, seed, place) else {
            each(Part::Unknown(at as u32));
            return false;
        };
        let bytes = layout::record_bytes(payload_bytes);
        if rest.len() < bytes {
            each(Part::Unknown(at as u32));
            return false;
        }
        if layout::payload_holds(rest, &record, payload_bytes) {
            each(Part::Record(record, at as u32 + layout::RECORD_HEADER_BYTES, payload_bytes as u32));
        } else {
            each(Part::Damaged(record, at as u32, bytes as u32));
            whole = false;
        }
        at += bytes;
    }
    if at != records.len() {
        // Its header and its records do not agree, and both hold: nothing that was written ever does so.
        each(Part::Unknown(at as u32));
        return false;
    }
    if !layout::is_zero(padding) {
        each(Part::Padding(at as u32));
        return false;
    }
    whole
}

impl Part {
    /// The rot that this part of a batch is, if it is.
    pub(crate) fn rot(&self, segment: SegmentId, header: &BatchHeader) -> Option<Rot> {
        let end = layout::padded(header.length);
        let (from, bytes, loss) = match *self {
            Part::Record(..) => return None,
            Part::Damaged(record, from, bytes) => (from, bytes, Loss::Record(record)),
            Part::Unknown(from) => (from, end - from, Loss::Unknown),
            Part::Padding(from) => (from, end - from, Loss::Nothing),
        };
        Some(Rot { segment, offset: header.offset + from, bytes, reason: RotReason::Batch, loss })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_touched_by_rot_that_takes_a_byte_of_it() {
        let rot = Rot { segment: SegmentId(2), offset: 100, bytes: 50, reason: RotReason::Batch, loss: Loss::Unknown };
        let at = |segment, offset, len| Location { segment: SegmentId(segment), offset, len };
        for (location, touched) in [
            (at(2, 0, 100), false),
            (at(2, 0, 101), true),
            (at(2, 149, 8), true),
            (at(2, 150, 8), false),
            (at(2, 110, 1), true),
            (at(3, 110, 1), false),
        ] {
            assert_eq!(rot.touches(location), touched, "{location:?}");
        }
        assert!(!Rot { loss: Loss::Nothing, ..rot }.touches(at(2, 110, 1)));
    }
}
