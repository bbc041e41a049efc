//! The mark of a clean end: it says that the log ends at the newest checkpoint, and that nothing was ever written behind it. A start
//! that finds it need not look there. It is gone, for good, before that start lets anybody write.

use crate::SegmentId;
use crate::checkpoint::Position;
use crate::layout::{put, u32_at, u64_at};

const MAGIC: u64 = u64::from_le_bytes(*b"whmbrlEN");

/// Bytes of the mark.
pub(crate) const END_BYTES: usize = 40;

/// The mark for a log that ends here.
pub(crate) fn encode(position: Position, shard: u16) -> [u8; END_BYTES] {
    let mut bytes = [0; END_BYTES];
    put(&mut bytes, 0, &MAGIC.to_le_bytes());
    put(&mut bytes, 8, &position.generation.to_le_bytes());
    put(&mut bytes, 16, &position.batch.to_le_bytes());
    put(&mut bytes, 24, &position.segment.0.to_le_bytes());
    put(&mut bytes, 28, &position.offset.to_le_bytes());
    put(&mut bytes, 32, &shard.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..36]);
    put(&mut bytes, 36, &crc.to_le_bytes());
    bytes
}

/// Where a mark says that the log ends; `None` if it is not one of this shard's, or damaged.
pub(crate) fn decode(bytes: &[u8], shard: u16) -> Option<Position> {
    let position = Position {
        segment: SegmentId(u32_at(bytes.get(..END_BYTES)?, 24)),
        generation: u64_at(bytes, 8),
        offset: u32_at(bytes, 28),
        batch: u64_at(bytes, 16),
    };
    (bytes == encode(position, shard)).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_mark_counts() {
        let position = Position { segment: SegmentId(3), generation: 0x1122_3344_5566_7788, offset: 8192, batch: 99 };
        let bytes = encode(position, 2);
        assert_eq!(decode(&bytes, 2), Some(position));
        assert_eq!(decode(&bytes, 1), None);
        for cut in 0..END_BYTES {
            assert_eq!(decode(&bytes[..cut], 2), None);
        }
        for bit in 0..END_BYTES * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&other, 2), None, "bit {bit}");
        }
    }
}
