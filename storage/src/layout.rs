//! Bytes of a segment: its header page, batch headers, record headers. Pure. All numbers are little-endian; README.md
//! draws the offsets.
//!
//! A record's header checksum starts from the number of its batch and the record's place in the segment, so that a record
//! of another batch or another place never passes for the one that belongs there. A batch header's starts from nothing but
//! holds the segment's generation, a random number that no payload can know: bytes inside a payload never pass for a batch.

use crate::limits::PAGE_BYTES;
use crate::{RecordHeader, RecordKind, SegmentId};

/// Version of the format of segments, batches and records.
pub const FORMAT_VERSION: u32 = 1;

/// Length of a batch's header.
pub const BATCH_HEADER_BYTES: u32 = 64;

/// Length of a record's header.
pub const RECORD_HEADER_BYTES: u32 = 32;

/// Length of a segment's header, the rest of its page being zeros.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;

/// Where the first batch of a segment starts.
pub(crate) const FIRST_BATCH_OFFSET: u32 = PAGE_BYTES;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"whmbrlSG");
const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"whmbrlBT");

/// Bytes that a record of this payload takes in a batch: header, payload, padding to a multiple of 8.
pub const fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES as usize + payload_bytes.next_multiple_of(8)
}

/// Bytes that a batch of this length takes in a segment.
pub(crate) const fn padded(batch_bytes: u32) -> u32 {
    batch_bytes.next_multiple_of(PAGE_BYTES)
}

/// The first page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The shard whose log it belongs to.
    pub(crate) shard: u16,
    /// Its number.
    pub(crate) id: SegmentId,
    /// Bytes of the whole segment, this page included.
    pub(crate) size_bytes: u32,
    /// A random number, new each time the file is made or used anew.
    pub(crate) generation: u64,
}

/// Why the first page of a segment was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSegment {
    Damaged,
    Version(u32),
}

impl SegmentHeader {
    /// The header, to be written at the start of a page of zeros.
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        put(&mut out, 0, &SEGMENT_MAGIC.to_le_bytes());
        put(&mut out, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut out, 12, &self.id.0.to_le_bytes());
        put(&mut out, 16, &self.size_bytes.to_le_bytes());
        put(&mut out, 20, &self.shard.to_le_bytes());
        put(&mut out, 24, &self.generation.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        put(&mut out, 60, &crc.to_le_bytes());
        out
    }

    /// Reads the header from the first page of a segment.
    pub(crate) fn decode(page: &[u8]) -> Result<SegmentHeader, BadSegment> {
        let whole = page.len() >= PAGE_BYTES as usize
            && u64_at(page, 0) == SEGMENT_MAGIC
            && u32_at(page, 60) == crc32c::crc32c(&page[..60]);
        if !whole {
            return Err(BadSegment::Damaged);
        }
        if u32_at(page, 8) != FORMAT_VERSION {
            return Err(BadSegment::Version(u32_at(page, 8)));
        }
        if !is_zero(&page[SEGMENT_HEADER_BYTES..PAGE_BYTES as usize]) {
            return Err(BadSegment::Damaged);
        }
        Ok(SegmentHeader {
            shard: u16_at(page, 20),
            id: SegmentId(u32_at(page, 12)),
            size_bytes: u32_at(page, 16),
            generation: u64_at(page, 24),
        })
    }
}

/// Bits that are others than they were where a few have turned over. A block of a batch that was written to the wrong place
/// has more: if it is the first one its magic alone, and without that one the batch is torn.
const FLIPPED_BITS_MAX: u32 = 8;

const _: () = assert!(BATCH_MAGIC.count_ones() > FLIPPED_BITS_MAX);

/// Whether a first page that does not hold is that of this segment, but for a few bits: no other bytes were written there. What it says
/// of generation and checksum is not looked at, for nobody knows what they were.
pub(crate) fn is_nearly_header(page: &[u8], shard: u16, id: SegmentId, size_bytes: u32) -> bool {
    if page.len() != PAGE_BYTES as usize {
        return false;
    }
    let mut whole = [0; PAGE_BYTES as usize];
    let header = SegmentHeader { shard, id, size_bytes, generation: u64_at(page, 24) };
    whole[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
    whole[60..64].copy_from_slice(&page[60..64]);
    page.iter().zip(&whole).map(|(is, was)| (is ^ was).count_ones()).sum::<u32>() <= FLIPPED_BITS_MAX
}

/// Whether this page is a batch without records that was written here, but for a few bits: all of it is known beforehand.
pub(crate) fn is_nearly_empty_batch(page: &[u8], number: u64, generation: u64, offset: u32) -> bool {
    if page.len() != PAGE_BYTES as usize {
        return false;
    }
    let durable = number.wrapping_sub(1);
    let whole = BatchHeader { number, durable, generation, offset, length: BATCH_HEADER_BYTES, records: 0 }.encode();
    let (head, padding) = page.split_at(whole.len());
    let flipped = head.iter().zip(&whole).map(|(is, was)| (is ^ was).count_ones()).sum::<u32>();
    flipped <= FLIPPED_BITS_MAX && is_nearly_zero(padding)
}

/// Whether bytes are what zeros are of which a few bits turned over.
pub(crate) fn is_nearly_zero(bytes: &[u8]) -> bool {
    bytes.iter().map(|byte| byte.count_ones()).sum::<u32>() <= FLIPPED_BITS_MAX
}

/// The head of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// 1, 2, 3 … over all segments of a log.
    pub(crate) number: u64,
    /// The last batch that was known to be on stable storage when this one was written: with one write in flight, always
    /// the one before.
    pub(crate) durable: u64,
    /// Of its segment.
    pub(crate) generation: u64,
    /// Where it lies in its segment.
    pub(crate) offset: u32,
    /// Bytes from its start to the end of its last record.
    pub(crate) length: u32,
    /// How many records: none in one that was written because the log rested.
    pub(crate) records: u32,
}

impl BatchHeader {
    pub(crate) fn encode(&self) -> [u8; BATCH_HEADER_BYTES as usize] {
        let mut out = [0; BATCH_HEADER_BYTES as usize];
        put(&mut out, 0, &BATCH_MAGIC.to_le_bytes());
        put(&mut out, 8, &self.number.to_le_bytes());
        put(&mut out, 16, &self.durable.to_le_bytes());
        put(&mut out, 24, &self.generation.to_le_bytes());
        put(&mut out, 32, &self.offset.to_le_bytes());
        put(&mut out, 36, &self.length.to_le_bytes());
        put(&mut out, 40, &self.records.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        put(&mut out, 60, &crc.to_le_bytes());
        out
    }

    /// The header of the batch that begins at a place of a segment of this generation and size, by its first bytes, if one does: it
    /// belongs there, and the batch ends within the segment.
    pub(crate) fn of(first: &[u8], offset: u32, generation: u64, size_bytes: u32) -> Option<BatchHeader> {
        let header = BatchHeader::decode(first)?;
        let belongs = header.generation == generation
            && header.offset == offset
            && (BATCH_HEADER_BYTES..=crate::limits::BATCH_MAX_BYTES).contains(&header.length)
            && padded(header.length) <= size_bytes.saturating_sub(offset);
        belongs.then_some(header)
    }

    /// The header at the start of these bytes, if its checksum holds. Whether it belongs there is for the caller to judge.
    pub(crate) fn decode(bytes: &[u8]) -> Option<BatchHeader> {
        let whole = bytes.len() >= BATCH_HEADER_BYTES as usize
            && u64_at(bytes, 0) == BATCH_MAGIC
            && u32_at(bytes, 60) == crc32c::crc32c(&bytes[..60]);
        whole.then(|| BatchHeader {
            number: u64_at(bytes, 8),
            durable: u64_at(bytes, 16),
            generation: u64_at(bytes, 24),
            offset: u32_at(bytes, 32),
            length: u32_at(bytes, 36),
            records: u32_at(bytes, 40),
        })
    }
}

/// What the header checksums of a batch's records start from.
pub(crate) fn record_seed(batch: u64) -> u32 {
    crc32c::crc32c(&batch.to_le_bytes())
}

/// The header of a record that starts at `offset` of its segment.
#[inline]
pub(crate) fn encode_record(
    header: &RecordHeader,
    payload: &[u8],
    seed: u32,
    offset: u32,
) -> [u8; RECORD_HEADER_BYTES as usize] {
    let mut out = [0; RECORD_HEADER_BYTES as usize];
    put(&mut out, 0, &(payload.len() as u32).to_le_bytes());
    out[4] = header.kind as u8;
    put(&mut out, 6, &header.partition.to_le_bytes());
    put(&mut out, 8, &header.term.to_le_bytes());
    put(&mut out, 16, &header.index.to_le_bytes());
    put(&mut out, 24, &crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c_append(seed ^ offset, &out[..28]);
    put(&mut out, 28, &crc.to_le_bytes());
    out
}

/// Reads the record at the start of `bytes`, the rest of its batch; `offset` is its place in the segment. Gives its header
/// and the length of its payload, or `None` if anything of it, padding included, is not what was written.
pub(crate) fn decode_record(bytes: &[u8], seed: u32, offset: u32) -> Option<(RecordHeader, usize)> {
    let (header, payload_bytes) = decode_record_header(bytes, seed, offset)?;
    payload_holds(bytes, &header, payload_bytes).then_some((header, payload_bytes))
}

/// Whether the payload of a record whose header holds is what was written, and the padding behind it.
pub(crate) fn payload_holds(bytes: &[u8], header: &RecordHeader, payload_bytes: usize) -> bool {
    let Some(rest) = bytes.get(RECORD_HEADER_BYTES as usize..record_bytes(payload_bytes)) else { return false };
    let (payload, padding) = rest.split_at(payload_bytes);
    let intact = match header.kind {
        RecordKind::Entry | RecordKind::HardState => sum_holds(bytes, payload),
        RecordKind::Erased => is_zero(payload),
        RecordKind::Moved => sum_holds(bytes, payload) || is_zero(payload),
    };
    intact && is_zero(padding)
}

/// The same for the header alone: the length of the payload lies within `bytes`, whatever is in it.
pub(crate) fn decode_record_header(bytes: &[u8], seed: u32, offset: u32) -> Option<(RecordHeader, usize)> {
    if bytes.len() < RECORD_HEADER_BYTES as usize
        || u32_at(bytes, 28) != crc32c::crc32c_append(seed ^ offset, &bytes[..28])
    {
        return None;
    }
    record_unchecked(bytes).filter(|(_, payload_bytes)| record_bytes(*payload_bytes) <= bytes.len())
}

/// Whether a payload is the one that was written behind this record's header.
pub(crate) fn sum_holds(header: &[u8], payload: &[u8]) -> bool {
    u32_at(header, 24) == crc32c::crc32c(payload)
}

/// Reads a record's header without looking at any checksum: for a batch that was checked already.
pub(crate) fn record_unchecked(bytes: &[u8]) -> Option<(RecordHeader, usize)> {
    let header = RecordHeader {
        kind: RecordKind::from_u8(bytes[4])?,
        partition: u16_at(bytes, 6),
        term: u64_at(bytes, 8),
        index: u64_at(bytes, 16),
    };
    Some((header, u32_at(bytes, 0) as usize))
}

/// Whether these bytes are zeros. By comparison with a page of them: that is a memcmp, quick in every build.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

pub(crate) fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight bytes"))
}

const _: () = {
    assert!(BATCH_HEADER_BYTES.is_multiple_of(8) && RECORD_HEADER_BYTES.is_multiple_of(8));
    assert!(SEGMENT_HEADER_BYTES <= PAGE_BYTES as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RecordHeader = RecordHeader { kind: RecordKind::Entry, partition: 0x0102, term: 3, index: 0x0405 };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_format_1_do_not_change() {
        let segment =
            SegmentHeader { shard: 2, id: SegmentId(7), size_bytes: 4 << 20, generation: 0x1122_3344_5566_7788 };
        assert_eq!(
            hex(&segment.encode()),
            "77686d62726c5347010000000700000000004000020000008877665544332211\
             00000000000000000000000000000000000000000000000000000000b1335689"
        );
        let batch = BatchHeader {
            number: 9,
            durable: 8,
            generation: segment.generation,
            offset: 8192,
            length: 104,
            records: 1,
        };
        assert_eq!(
            hex(&batch.encode()),
            "77686d62726c4254090000000000000008000000000000008877665544332211\
             0020000068000000010000000000000000000000000000000000000008a6e220"
        );
        let record = encode_record(&HEADER, b"whimbrel", record_seed(9), 8192 + 64);
        assert_eq!(hex(&record), "080000000100020103000000000000000504000000000000a9eef3f2d09bd1dd");
    }

    #[test]
    fn a_record_holds_only_in_its_batch_and_at_its_place() {
        let mut bytes = encode_record(&HEADER, b"curlew", record_seed(5), 64).to_vec();
        bytes.extend_from_slice(b"curlew\0\0");
        assert_eq!(decode_record(&bytes, record_seed(5), 64), Some((HEADER, 6)));
        assert_eq!(decode_record(&bytes, record_seed(6), 64), None);
        assert_eq!(decode_record(&bytes, record_seed(5), 72), None);
        for cut in 0..bytes.len() {
            assert_eq!(decode_record(&bytes[..cut], record_seed(5), 64), None);
        }
    }

    #[test]
    fn an_erased_record_holds_if_its_payload_is_zeros() {
        let erased = RecordHeader { kind: RecordKind::Erased, ..HEADER };
        let mut bytes = encode_record(&erased, b"forgotten", record_seed(1), 64).to_vec();
        bytes.extend_from_slice(&[0; 16]);
        assert_eq!(decode_record(&bytes, record_seed(1), 64), Some((erased, 9)));
        bytes[RECORD_HEADER_BYTES as usize] = b'f';
        assert_eq!(decode_record(&bytes, record_seed(1), 64), None);
    }

    #[test]
    fn zeros_are_told_from_anything_else_at_every_place() {
        let mut bytes = vec![0; PAGE_BYTES as usize + 100];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..bytes.len() {
            bytes[at] = 0x10;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
    }
}
