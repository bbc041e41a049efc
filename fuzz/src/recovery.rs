//! Recovery of a log that was edited. The input is a script: which valid log it begins with, and what is done to its bytes,
//! checksums repaired where the script says so. Whatever is there, opening it ends; if it is refused, or nothing was torn, the
//! segments are as they were, but for spare ones that are put aside, in which no batch ever was; if it is not refused, what was found is
//! in order, nothing of it is in what is told to be rotten, it is durable, found again with the same rot, and written on.

use std::sync::OnceLock;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    CheckpointWriter, Disk, Location, Log, LogOptions, OpenError, RecordHeader, RecordKind, Recovered, SegmentId,
    Wanted,
};

const PAGE: u32 = 4096;

/// Bits that may have turned over in a spare segment: fewer than the magic of a batch has.
const FLIPPED_BITS_MAX: u32 = 8;

const OPTIONS: LogOptions = LogOptions {
    shard: 3,
    segment_size: 5 * PAGE,
    batch_max: 2 * PAGE,
    staging_max: 8 * PAGE,
    spares: 1,
    spares_max: 2,
    warm_max: 1 << 20,
};

/// A record as it is given out.
type Found = (RecordHeader, Location, Vec<u8>);

pub(crate) fn run(data: &[u8]) {
    static BASES: OnceLock<[RamDisk; 3]> = OnceLock::new();
    let bases = BASES.get_or_init(|| [log(0), log(1), log(2)]);
    let mut script = Script { rest: data };
    let base = &bases[usize::from(script.byte()) % bases.len()];
    let mut disk = base.crash(&mut |_, _| false);
    while !script.rest.is_empty() {
        edit(&mut disk, &mut script);
    }
    let before = image(&disk);
    let Ok((log, first, found)) = open(&mut disk) else {
        assert!(image(&disk) == before, "a log that is refused was changed");
        return;
    };
    drop(log);
    // Of a log of which nothing is left its first segment is made.
    let (is_new, left) = (before.is_empty(), image(&disk));
    let is_left = |id: &SegmentId| left.iter().any(|(left, _)| left == id);
    let (stays, goes): (Vec<_>, Vec<_>) = before.into_iter().partition(|(id, _)| is_left(id));
    assert!(is_new || first.truncated.is_some() || left == stays, "what rotted was changed");
    assert_eq!(goes.is_empty(), first.spares_damaged == 0, "what goes is told");
    let bits = |bytes: &[u8]| bytes[PAGE as usize..].iter().map(|byte| byte.count_ones()).sum::<u32>();
    assert!(goes.iter().all(|(_, bytes)| bits(bytes) <= FLIPPED_BITS_MAX), "what goes was a spare segment");
    let place = |found: &Found| (found.1.segment, found.1.offset);
    assert!(found.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "records are given out of order");
    for (header, location, _) in &found {
        let rotten = first.rot.iter().find(|it| it.rot.touches(*location));
        assert!(rotten.is_none(), "{header:?} at {location:?} is given out, and told to be lost: {rotten:?}");
    }
    let mut disk = disk.crash(&mut |_, _| false);
    let (mut log, recovered, again) = open(&mut disk).expect("what was opened opens again");
    assert!(again == found, "what was found is not found again");
    assert_eq!((recovered.truncated, recovered.checkpoints_damaged), (None, 0), "it was not repaired for good");
    let rot: Vec<_> = first.rot.iter().copied().filter(|it| goes.iter().all(|(id, _)| *id != it.rot.segment)).collect();
    assert_eq!((recovered.rot, recovered.spares_damaged), (rot, 0), "rot is told each time, and only what is there");
    let all = found.len() + 2;
    for index in [1_000, 1_001] {
        append(&mut log, &mut disk, index, 700);
    }
    drop(log);
    let (_, recovered, again) = open(&mut disk).expect("what was written on opens");
    assert!(recovered.truncated.is_none() && again.len() == all && again.starts_with(&found), "it does not go on");
}

fn open(disk: &mut RamDisk) -> Result<(Log, Recovered, Vec<Found>), OpenError> {
    let mut found = Vec::new();
    let (log, recovered) = Log::open_with(OPTIONS, disk, &mut |_| {}, &mut |header, location, payload| {
        found.push((*header, location, payload.to_vec()));
    })?;
    assert_eq!(recovered.records, found.len() as u64);
    for (_, location, payload) in &found {
        assert!(log.read(*location).is_some_and(|read| read == payload[..]), "what was found is read");
    }
    Ok((log, recovered, found))
}

/// A log of several segments, with so many checkpoints.
fn log(checkpoints: u64) -> RamDisk {
    let mut disk = RamDisk::new(OPTIONS.shard, 7);
    let (mut log, _) = Log::open(OPTIONS, &mut disk, &mut |_, _, _| {}).expect("a new log opens");
    for index in 1..12 {
        append(&mut log, &mut disk, index, (index as usize * 517) % 5000);
        if index == 4 || index == 7 {
            if index / 3 > checkpoints {
                continue;
            }
            let writer = log.begin_checkpoint(log.position()).expect("its segment is there");
            put(&mut disk, &mut log, writer);
        }
    }
    disk
}

fn put(disk: &mut RamDisk, log: &mut Log, mut writer: CheckpointWriter) {
    let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
    writer.begin(&mut bytes);
    writer.piece(b"what it holds", &mut bytes);
    writer.end(log.position().batch, &mut bytes);
    disk.put_checkpoint(checkpoint.number, bytes, 0).expect("it holds");
    log.checkpoint_written(checkpoint);
}

/// Writes a record as a batch of its own.
fn append(log: &mut Log, disk: &mut RamDisk, index: u64, payload_bytes: usize) {
    let kind = [RecordKind::Entry, RecordKind::HardState, RecordKind::Erased][index as usize % 3];
    let byte = if kind == RecordKind::Erased { 0 } else { index as u8 };
    let header = RecordHeader { kind, partition: 1, term: 1, index };
    log.append(&header, &vec![byte; payload_bytes]).expect("there is room");
    while let Some(Wanted { id, reuse }) = log.segment_wanted() {
        let made = match reuse {
            Some(old) => {
                drop(old.mapping);
                disk.recycle(old.id, old.used, id, OPTIONS.segment_size)
            }
            None => disk.create(id, OPTIONS.segment_size),
        };
        log.segment_ready(id, made.expect("memory has room"));
    }
    let write = log.next_write().expect("its segment is there");
    disk.write(write.segment, write.offset as u32, write.batch.as_ref()).expect("memory takes it");
    log.written(write.id);
}

fn image(disk: &RamDisk) -> Vec<(SegmentId, Vec<u8>)> {
    disk.segments().filter_map(|id| Some((id, disk.contents(id)?))).collect()
}

/// What is left of the script. Zeros where it has ended.
struct Script<'a> {
    rest: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *byte
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Small, or anything.
    fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=223 => u64::from(small),
            224..=239 => u64::from(self.word()) * u64::from(PAGE),
            240..=247 => u64::MAX - u64::from(self.byte()),
            _ => u64::from_le_bytes([0; 8].map(|_: u8| self.byte())),
        }
    }

    fn segment(&mut self, disk: &RamDisk) -> Option<SegmentId> {
        let ids: Vec<_> = disk.segments().collect();
        let nth = usize::from(self.byte());
        (!ids.is_empty()).then(|| ids[nth % ids.len()])
    }

    fn page(&mut self) -> u32 {
        u32::from(self.byte()) % (OPTIONS.segment_size / PAGE) * PAGE
    }
}

fn edit(disk: &mut RamDisk, script: &mut Script<'_>) {
    let op = script.byte();
    let Some(id) = script.segment(disk) else {
        script.rest = &[];
        return;
    };
    let page = script.page();
    let mut bytes = disk.contents(id).expect("it is there");
    let within = usize::from(script.word()) % PAGE as usize;
    let at = page as usize + within;
    match op % 12 {
        0 => bytes[at] ^= 1 << (script.byte() % 8),
        1 => {
            let len = usize::from(script.byte() % 32).min(bytes.len() - at);
            bytes[at..at + len].iter_mut().for_each(|byte| *byte = script.byte());
        }
        2 => {
            let sector = at / 512 * 512;
            bytes[sector..sector + 512].fill(0);
        }
        3 => {
            let Some(other) = script.segment(disk) else { return };
            let from = script.page() as usize;
            let other = disk.contents(other).expect("it is there");
            bytes[page as usize..][..PAGE as usize].copy_from_slice(&other[from..][..PAGE as usize]);
        }
        4 => {
            disk.lose(id);
            return;
        }
        5 => repair_head(&mut bytes[page as usize..]),
        6 => repair_records(&mut bytes, page),
        7 => {
            let field = [8..16, 16..24, 24..32, 32..36, 36..40, 40..44][usize::from(script.byte()) % 6].clone();
            let number = script.number().to_le_bytes();
            let len = field.len();
            bytes[page as usize..][field].copy_from_slice(&number[..len]);
            repair_head(&mut bytes[page as usize..]);
        }
        8 => {
            let field = [8..12, 12..16, 16..20, 20..22, 24..32][usize::from(script.byte()) % 5].clone();
            let number = script.number().to_le_bytes();
            let len = field.len();
            bytes[field].copy_from_slice(&number[..len]);
            repair_head(&mut bytes);
        }
        9 => {
            let sizes = disk.checkpoint_sizes();
            if let Some(&(number, len)) = sizes.get(usize::from(script.byte()) % sizes.len().max(1)) {
                disk.flip_checkpoint_bit(number, usize::from(script.word()) % (len * 8));
            }
            return;
        }
        10 => {
            forge_checkpoint(disk, script);
            return;
        }
        _ => {
            let next = SegmentId(disk.segments().max().map_or(1, |last| last.0.wrapping_add(1)));
            // One that is there stays.
            let _ = disk.create(next, OPTIONS.segment_size);
            return;
        }
    }
    disk.write(id, 0, &bytes).expect("memory takes it");
}

/// The checksum of the head of a batch or of a segment.
fn repair_head(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..60]);
    page[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// The checksums of all records of a batch, as far as what their lengths say fits.
fn repair_records(bytes: &mut [u8], page: u32) {
    let head = &bytes[page as usize..][..64];
    let seed = crc32c::crc32c(&head[8..16]);
    let mut at = page as usize + 64;
    while let Some(record) = bytes.get(at..at + 32) {
        let len = u32::from_le_bytes(record[..4].try_into().expect("four bytes")) as usize;
        let Some(payload) = bytes.get(at + 32..at + 32 + len) else { break };
        let crc = crc32c::crc32c(payload);
        bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c_append(seed ^ at as u32, &bytes[at..at + 28]);
        bytes[at + 28..at + 32].copy_from_slice(&crc.to_le_bytes());
        at += 32 + len.next_multiple_of(8);
    }
    repair_head(&mut bytes[page as usize..]);
}

/// A checkpoint under right checksums that says anything about where it belongs.
fn forge_checkpoint(disk: &mut RamDisk, script: &mut Script<'_>) {
    let number = disk.checkpoint_sizes().last().map_or(1, |(number, _)| number + 1);
    let mut bytes = vec![0; 64];
    bytes[..8].copy_from_slice(b"whmbrlCP");
    bytes[8] = 1;
    bytes[12..14].copy_from_slice(&OPTIONS.shard.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    let segment = script.segment(disk).unwrap_or(SegmentId(1));
    let generation = disk.contents(segment).map_or([0; 8], |it| it[24..32].try_into().expect("eight bytes"));
    bytes[24..32].copy_from_slice(&generation);
    bytes[32..40].copy_from_slice(&script.number().to_le_bytes());
    let segment = if script.byte() < 200 { segment.0 } else { script.number() as u32 };
    bytes[40..44].copy_from_slice(&segment.to_le_bytes());
    bytes[44..48].copy_from_slice(&(script.number() as u32).to_le_bytes());
    repair_head(&mut bytes);
    let through = script.number().to_le_bytes();
    let seed = crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &0u32.to_le_bytes());
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c_append(seed, &through).to_le_bytes());
    bytes.extend_from_slice(&through);
    // One that names a place that cannot be is not taken.
    let _ = disk.put_checkpoint(number, bytes, 0);
}
