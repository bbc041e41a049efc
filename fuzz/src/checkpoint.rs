//! A checkpoint's bytes: verified as they are, and then, its pieces under the checksums that belong to them, opened by a shard.
//! A shard refuses what is no image of its partitions, or has exactly what is in it.

use whimbrel_core::ids::ShardId;
use whimbrel_core::limits::Bounds;
use whimbrel_core::{Shard, ShardConfig};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Log, LogOptions, verify_checkpoint};

const OPTIONS: LogOptions = LogOptions {
    shard: 0,
    segment_size: 260 << 10,
    batch_max: 256 << 10,
    staging_max: 512 << 10,
    spares: 2,
    spares_max: 2,
    warm_max: 2 << 20,
};

const HEAD_BYTES: usize = 64;
const PIECE_HEAD_BYTES: usize = 8;

pub(crate) fn run(data: &[u8]) {
    as_it_is(data);
    let pieces = pieces(data);
    let mut disk = RamDisk::new(0, 7);
    let (mut log, _) = Log::open(OPTIONS, &mut disk, &mut |_, _, _| {}).expect("a new log opens");
    let mut writer = log.begin_checkpoint(log.position()).expect("a new log has its segment");
    let (number, mut bytes) = (writer.checkpoint().number, Vec::new());
    writer.begin(&mut bytes);
    for piece in &pieces {
        writer.piece(piece, &mut bytes);
    }
    writer.end(1, &mut bytes);
    let (_, read) = verify_checkpoint(&bytes, 0, number).expect("what the writer wrote holds");
    assert!(read.eq(pieces.iter().copied()), "the pieces are what was written");
    drop(log);
    disk.put_checkpoint(number, bytes, 0).expect("it holds");
    let config = ShardConfig {
        shard: ShardId(0),
        shards: 1,
        partitions: 16,
        token_key: [0; 32],
        seed: 1,
        bounds: Bounds::default(),
    };
    match Shard::open(config, OPTIONS, &mut disk) {
        Ok(shard) => shard.invariants(),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// If the bytes hold, so do they with nothing after them, and with no bit of the last byte another.
fn as_it_is(data: &[u8]) {
    let Some(head) = data.get(..HEAD_BYTES) else {
        assert!(verify_checkpoint(data, 0, 1).is_err());
        return;
    };
    let shard = u16::from_le_bytes([head[12], head[13]]);
    let number = u64::from_le_bytes(head[16..24].try_into().expect("eight bytes"));
    let Ok((checkpoint, pieces)) = verify_checkpoint(data, shard, number) else { return };
    assert_eq!(checkpoint.number, number);
    let bytes: usize = pieces.map(|piece| PIECE_HEAD_BYTES + piece.len()).sum();
    assert_eq!(HEAD_BYTES + bytes + PIECE_HEAD_BYTES + 8, data.len(), "head, pieces and end are all of it");
    let mut other = data.to_vec();
    *other.last_mut().expect("it has a head") ^= 1;
    assert!(verify_checkpoint(&other, shard, number).is_err());
}

/// What would be the pieces, whatever the checksums say.
fn pieces(data: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = data.get(HEAD_BYTES..).unwrap_or_default();
    while let Some((head, behind)) = rest.split_at_checked(PIECE_HEAD_BYTES) {
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if len == u32::MAX {
            break;
        }
        let (piece, behind) = behind.split_at((len as usize).min(behind.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}
