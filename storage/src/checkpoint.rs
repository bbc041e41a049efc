//! Checkpoints: files beside the segments that hold what the log's owner made of the records before a place in the log, so
//! that a start reads the log from there on only, and what lies before it can be let go. What is in them is the owner's
//! affair; here it is pieces of bytes under checksums. Two are kept: the older one until the newer one was read back.
//!
//! All numbers are little-endian; README.md draws the offsets.

use crate::SegmentId;
use crate::layout::{FIRST_BATCH_OFFSET, put, u16_at, u32_at, u64_at};
use crate::limits::{BATCHES_MAX, PAGE_BYTES};

/// Version of the format of checkpoints.
const FORMAT: u32 = 1;

/// What a checkpoint begins with.
pub const CHECKPOINT_MAGIC: &[u8] = b"whmbrlCP";

const MAGIC: u64 = u64::from_le_bytes(*b"whmbrlCP");
const HEADER_BYTES: usize = 64;
const PIECE_HEADER_BYTES: usize = 8;
const END_BYTES: usize = PIECE_HEADER_BYTES + 8;
/// Stands for a length where no piece follows any more.
const END: u32 = u32::MAX;

/// A place between two batches of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The segment in which the next batch begins, unless it is full or does not have room for it.
    pub segment: SegmentId,
    /// Of that segment, so that another one never passes for it.
    pub generation: u64,
    /// Where in it.
    pub offset: u32,
    /// The number of the next batch.
    pub batch: u64,
}

/// A checkpoint that is there: its number, and the place up to which the log is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// 1, 2, 3 … of each log.
    pub number: u64,
    /// Records before it are in the checkpoint. Of those behind it some may be in it too; its owner knows which.
    pub position: Position,
}

/// Why the bytes of a checkpoint were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCheckpoint {
    /// Not what was written: cut short, or damaged.
    #[error("it is cut short or damaged at byte {0}")]
    Damaged(usize),
    /// Written by another version.
    #[error("it has format {0}, this program reads {FORMAT}")]
    Format(u32),
    /// It belongs to another log, or has another number.
    #[error("it is number {number} of shard {shard}")]
    Foreign {
        /// Of the shard that it says.
        shard: u16,
        /// Of the checkpoint that it says.
        number: u64,
    },
}

/// Writes a checkpoint piece by piece, into memory of the caller's.
#[derive(Debug)]
pub struct CheckpointWriter {
    checkpoint: Checkpoint,
    shard: u16,
    pieces: u32,
}

impl CheckpointWriter {
    pub(crate) fn new(shard: u16, checkpoint: Checkpoint) -> CheckpointWriter {
        CheckpointWriter { checkpoint, shard, pieces: 0 }
    }

    /// Which one.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Its first bytes.
    pub fn begin(&self, out: &mut Vec<u8>) {
        let Checkpoint { number, position } = self.checkpoint;
        let mut head = [0; HEADER_BYTES];
        put(&mut head, 0, &MAGIC.to_le_bytes());
        put(&mut head, 8, &FORMAT.to_le_bytes());
        put(&mut head, 12, &self.shard.to_le_bytes());
        put(&mut head, 16, &number.to_le_bytes());
        put(&mut head, 24, &position.generation.to_le_bytes());
        put(&mut head, 32, &position.batch.to_le_bytes());
        put(&mut head, 40, &position.segment.0.to_le_bytes());
        put(&mut head, 44, &position.offset.to_le_bytes());
        let crc = crc32c::crc32c(&head[..60]);
        put(&mut head, 60, &crc.to_le_bytes());
        out.extend_from_slice(&head);
    }

    /// Its next piece.
    pub fn piece(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len < END).expect("a piece is far below 4 GiB");
        let crc = crc32c::crc32c_append(seed(self.checkpoint.number, self.pieces), bytes);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(bytes);
        self.pieces += 1;
    }

    /// Its last bytes: without them it is cut short. What is in it may come from batches behind its position: all of them are
    /// before the batch `through`, and durable.
    pub fn end(self, through: u64, out: &mut Vec<u8>) {
        let through = through.to_le_bytes();
        let crc = crc32c::crc32c_append(seed(self.checkpoint.number, self.pieces), &through);
        out.extend_from_slice(&END.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&through);
    }
}

/// Reads where a checkpoint belongs from its first bytes, without looking at what is in it.
fn head(bytes: &[u8], shard: u16, number: u64) -> Result<Checkpoint, BadCheckpoint> {
    let whole =
        bytes.len() >= HEADER_BYTES && u64_at(bytes, 0) == MAGIC && u32_at(bytes, 60) == crc32c::crc32c(&bytes[..60]);
    if !whole {
        return Err(BadCheckpoint::Damaged(0));
    }
    if u32_at(bytes, 8) != FORMAT {
        return Err(BadCheckpoint::Format(u32_at(bytes, 8)));
    }
    let found = (u16_at(bytes, 12), u64_at(bytes, 16));
    if found != (shard, number) {
        return Err(BadCheckpoint::Foreign { shard: found.0, number: found.1 });
    }
    let position = Position {
        generation: u64_at(bytes, 24),
        batch: u64_at(bytes, 32),
        segment: SegmentId(u32_at(bytes, 40)),
        offset: u32_at(bytes, 44),
    };
    // A checksum says that these are the bytes that were written, and not that it was this program that wrote them.
    let can_be = position.offset >= FIRST_BATCH_OFFSET
        && position.offset.is_multiple_of(PAGE_BYTES)
        && position.segment >= SegmentId::FIRST
        && (1..BATCHES_MAX).contains(&position.batch);
    if !can_be {
        return Err(BadCheckpoint::Damaged(0));
    }
    Ok(Checkpoint { number, position })
}

/// Checks all of a checkpoint. What comes back says where it belongs and goes through its pieces.
pub fn verify(bytes: &[u8], shard: u16, number: u64) -> Result<(Checkpoint, Pieces<'_>), BadCheckpoint> {
    let checkpoint = head(bytes, shard, number)?;
    let (mut at, mut pieces) = (HEADER_BYTES, 0);
    loop {
        let damaged = BadCheckpoint::Damaged(at);
        let rest = &bytes[at..];
        if rest.len() < PIECE_HEADER_BYTES {
            return Err(damaged);
        }
        let (len, crc) = (u32_at(rest, 0), u32_at(rest, 4));
        let seed = seed(number, pieces);
        if len == END {
            let (end, behind) = rest.split_at_checked(END_BYTES).ok_or(damaged)?;
            if crc != crc32c::crc32c_append(seed, &end[PIECE_HEADER_BYTES..]) || behind.iter().any(|byte| *byte != 0) {
                return Err(damaged);
            }
            let through = u64_at(end, PIECE_HEADER_BYTES);
            return Ok((checkpoint, Pieces { rest: &bytes[HEADER_BYTES..at], through }));
        }
        let piece = rest.get(PIECE_HEADER_BYTES..PIECE_HEADER_BYTES + len as usize).ok_or(damaged)?;
        if crc != crc32c::crc32c_append(seed, piece) {
            return Err(damaged);
        }
        at += PIECE_HEADER_BYTES + piece.len();
        pieces += 1;
    }
}

/// The pieces of a checkpoint that holds, in their order.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    through: u64,
}

impl Pieces<'_> {
    /// The batch before which all is that is in them.
    pub fn through(&self) -> u64 {
        self.through
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let len = u32_at(self.rest, 0) as usize;
        let (piece, rest) = self.rest[PIECE_HEADER_BYTES..].split_at(len);
        self.rest = rest;
        Some(piece)
    }
}

/// A piece's checksum starts from its checkpoint and place, so that none passes for another.
fn seed(number: u64, piece: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &piece.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKPOINT: Checkpoint = Checkpoint {
        number: 7,
        position: Position { segment: SegmentId(3), generation: 0x1122_3344_5566_7788, offset: 8192, batch: 99 },
    };

    fn written(pieces: &[&[u8]]) -> Vec<u8> {
        let mut writer = CheckpointWriter::new(2, CHECKPOINT);
        let mut out = Vec::new();
        writer.begin(&mut out);
        for piece in pieces {
            writer.piece(piece, &mut out);
        }
        writer.end(100, &mut out);
        out
    }

    #[test]
    fn what_is_written_is_read() {
        for pieces in [&[][..], &[&b"alice"[..]], &[b"alice", b"", b"bob and carol"]] {
            let bytes = written(pieces);
            let (checkpoint, read) = verify(&bytes, 2, 7).unwrap();
            assert_eq!(checkpoint, CHECKPOINT);
            assert_eq!(read.collect::<Vec<_>>(), pieces);
            assert_eq!(verify(&bytes, 2, 7).unwrap().1.through(), 100);
        }
    }

    #[test]
    fn every_bit_and_every_length_counts() {
        let bytes = written(&[b"alice", b"bob"]);
        for cut in 0..bytes.len() {
            assert!(verify(&bytes[..cut], 2, 7).is_err(), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&other, 2, 7).is_err(), "bit {bit}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(verify(&longer, 2, 7).is_ok(), "zeros may follow: the rest of a file that was longer");
        longer.push(1);
        assert!(verify(&longer, 2, 7).is_err());
        assert_eq!(verify(&bytes, 3, 7).unwrap_err(), BadCheckpoint::Foreign { shard: 2, number: 7 });
        assert_eq!(verify(&bytes, 2, 8).unwrap_err(), BadCheckpoint::Foreign { shard: 2, number: 7 });
    }

    #[test]
    fn pieces_cannot_change_places() {
        let bytes = written(&[b"alice", b"carol"]);
        let (first, second) = (HEADER_BYTES, HEADER_BYTES + PIECE_HEADER_BYTES + 5);
        let mut swapped = bytes.clone();
        swapped[first..second].copy_from_slice(&bytes[second..2 * second - first]);
        swapped[second..2 * second - first].copy_from_slice(&bytes[first..second]);
        assert_eq!(verify(&swapped, 2, 7).unwrap_err(), BadCheckpoint::Damaged(first));
    }

    #[test]
    fn the_bytes_of_format_1_do_not_change() {
        let hex: String = written(&[b"whimbrel"]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "77686d62726c4350010000000200000007000000000000008877665544332211\
             6300000000000000030000000020000000000000000000000000000040b9ea4c\
             080000002eccd5467768696d6272656cfffffffffb68623f6400000000000000"
        );
    }
}
