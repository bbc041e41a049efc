//! The crash matrix: the last batch, of each shape that one can have, with every prefix of its bytes and 100,000 sets of its
//! sectors on the disk. All that was acknowledged is there, nothing that was never written is, and the log goes on.
//!
//! `WHIMBREL_CRASH_SETS` sets how many sets of sectors there are for each shape.

use whimbrel_storage::limits::SECTOR_BYTES;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, Log, LogOptions, RecordHeader, RecordKind, SegmentId, Wanted};

use crate::rig::{Kept, OPTIONS, Random, Rig, image};

/// Sets of sectors for each shape, if nothing else is asked for.
const SETS: u64 = 100_000;

/// After so many sets of sectors the log is written on; after each prefix it is.
const GOES_ON: u64 = 16;

/// Batches of up to 32 KiB, 64 sectors: more sets of them than anybody can try.
const LARGE: LogOptions = LogOptions { segment_size: 36 << 10, batch_max: 32 << 10, staging_max: 64 << 10, ..OPTIONS };

/// A log whose last batch is in flight.
struct Shape {
    name: &'static str,
    options: LogOptions,
    /// Without anything of the batch, as it is given back after each case.
    base: RamDisk,
    disk: RamDisk,
    /// All records from where the log is read, those of the batch included.
    kept: Vec<Kept>,
    /// How many of them are not in the batch.
    durable: usize,
    segment: SegmentId,
    offset: u32,
    /// Of the place of the batch: without it, and with it.
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Shape {
    /// Of a log in which all is durable, with these payloads as the next batch. Of the records, so many are before the
    /// place from which a start reads.
    fn new(name: &'static str, mut rig: Rig, behind: usize, payloads: &[usize]) -> Shape {
        for &payload_bytes in payloads {
            rig.append(payload_bytes).unwrap();
        }
        Shape::of_staged(name, rig, behind)
    }

    fn of_staged(name: &'static str, mut rig: Rig, behind: usize) -> Shape {
        rig.prepare();
        let base = rig.disk.crash(&mut |_, _| false);
        assert!(rig.disk.unflushed().next().is_none(), "{name}: only the last batch is in flight");
        assert!(rig.submit(), "{name}");
        let write = rig.in_flight.take().expect("it was submitted");
        let (segment, offset, new) = (write.segment, write.offset as u32, write.batch.as_ref().to_vec());
        assert!(rig.log.written(write.id) == rig.log.appended(), "{name}: all is in one batch");
        let mut disk = base.crash(&mut |_, _| false);
        let old = disk.open(segment).unwrap()[offset as usize..][..new.len()].to_vec();
        let kept = rig.kept.split_off(behind);
        let durable = rig.durable - behind;
        assert!(durable < kept.len());
        Shape { name, options: rig.options, base, disk, kept, durable, segment, offset, old, new }
    }

    /// The log is opened with this of the batch on the disk, and written on if `goes_on`.
    fn case(&mut self, torn: &[u8], goes_on: bool) {
        let name = self.name;
        self.disk.write(self.segment, self.offset, torn).unwrap();
        let is_whole = torn == self.new;
        let expected = &self.kept[..if is_whole { self.kept.len() } else { self.durable }];
        let mut seen = 0;
        let (log, recovered) = Log::open(self.options, &mut self.disk, &mut |header, location, payload| {
            let same = expected
                .get(seen)
                .is_some_and(|it| it.header == *header && it.location == location && it.payload == payload[..]);
            assert!(same, "{name}: record {seen} is not what was written there");
            seen += 1;
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(seen, expected.len(), "{name}: acknowledged records are lost");
        assert_eq!(recovered.truncated.is_some(), !is_whole && torn != self.old, "{name}: what is reported");
        assert!(self.disk.unflushed().next().is_none(), "{name}: what was accepted is not durable");
        let left = &self.disk.open(self.segment).unwrap()[self.offset as usize..][..self.new.len()];
        assert!(left == if is_whole { &self.new } else { &self.old }, "{name}: something of a torn batch is left");
        if goes_on {
            self.go_on(log, expected.len());
        } else {
            drop(log);
            self.disk.write(self.segment, self.offset, &self.old).unwrap();
        }
    }

    /// Two more batches, and another start.
    fn go_on(&mut self, mut log: Log, found: usize) {
        let mut all = self.kept[..found].to_vec();
        for index in [1_000, 1_001] {
            let header = RecordHeader { kind: RecordKind::Entry, partition: 1, term: 9, index };
            let payload = vec![index as u8; 700];
            let location = log.append(&header, &payload).unwrap();
            all.push(Kept { header, location, payload });
            while let Some(Wanted { id, reuse }) = log.segment_wanted() {
                assert!(reuse.is_none(), "without a checkpoint nothing is retired");
                let made = self.disk.create(id, self.options.segment_size).unwrap();
                log.segment_ready(id, made);
            }
            let write = log.next_write().expect("it has a segment");
            self.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
            log.written(write.id);
        }
        drop(log);
        let (_, recovered, found) = crate::rig::open(self.options, &mut self.disk).unwrap();
        assert_eq!((recovered.truncated, found == all), (None, true), "{}: it does not go on", self.name);
        self.disk = self.base.crash(&mut |_, _| false);
    }

    fn every_prefix(&mut self) {
        for kept in 0..=self.new.len() {
            let torn = [&self.new[..kept], &self.old[kept..]].concat();
            self.case(&torn, true);
        }
    }

    fn random_sets_of_sectors(&mut self) {
        let sets = std::env::var("WHIMBREL_CRASH_SETS").map_or(SETS, |sets| sets.parse().expect("a number of sets"));
        let mut random = Random(11);
        let mut torn = self.new.clone();
        for n in 0..sets {
            // Few, half or most of them survive.
            let (one, other) = (random.next(), random.next());
            let set = [one & other, one, one | other][n as usize % 3];
            for (nth, sector) in torn.chunks_mut(SECTOR_BYTES as usize).enumerate() {
                let from = if set >> (nth % 64) & 1 == 1 { &self.new } else { &self.old };
                sector.copy_from_slice(&from[nth * SECTOR_BYTES as usize..][..sector.len()]);
            }
            self.case(&torn, n.is_multiple_of(GOES_ON));
        }
    }

    /// The whole matrix, and at its end the disk is as it was.
    fn run(mut self) {
        self.every_prefix();
        self.random_sets_of_sectors();
        assert!(image(&mut self.disk) == image(&mut self.base), "{}: bytes elsewhere were changed", self.name);
    }
}

/// A checkpoint of all that is durable, whose place is before what comes next.
fn checkpoint(rig: &mut Rig) {
    let writer = rig.log.begin_checkpoint(rig.log.position()).unwrap();
    let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
    writer.begin(&mut bytes);
    writer.end(rig.log.position().batch, &mut bytes);
    let keep_from = rig.log.newest_checkpoint().map_or(0, |newest| newest.number);
    rig.disk.put_checkpoint(checkpoint.number, bytes, keep_from).unwrap();
    rig.log.checkpoint_written(checkpoint);
}

#[test]
fn of_one_record() {
    let mut rig = Rig::new(OPTIONS);
    rig.prepare();
    Shape::new("the first of the log, one record", rig, 0, &[90]).run();
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[10, 20]);
    rig.batch(&[4000]);
    Shape::new("behind others, one record of a page and a half", rig, 0, &[6000]).run();
}

#[test]
fn of_many_records() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[300]);
    let many: Vec<usize> = (0..60).map(|n| n * 7 % 90).collect();
    Shape::new("sixty records", rig, 0, &many).run();
}

#[test]
fn of_several_pages() {
    let mut rig = Rig::new(LARGE);
    rig.prepare();
    Shape::new("eight pages", rig, 0, &[9000, 0, 11_000, 40, 8000, 3000]).run();
}

#[test]
fn of_pages_of_zeros() {
    let mut rig = Rig::new(LARGE);
    rig.batch(&[1000]);
    for (index, payload) in [vec![0; 5000], vec![7; 30], vec![0; 9000], vec![]].into_iter().enumerate() {
        let header = RecordHeader { kind: RecordKind::Entry, partition: 2, term: 1, index: index as u64 };
        let location = rig.log.append(&header, &payload).unwrap();
        rig.kept.push(Kept { header, location, payload });
    }
    // Where a sector is zeros nobody can tell whether it was written, and nobody has to.
    Shape::of_staged("payloads of zeros", rig, 0).run();
}

#[test]
fn at_the_end_of_a_segment() {
    let mut rig = Rig::new(OPTIONS);
    (0..2).for_each(|_| rig.batch(&[6000]));
    let shape = Shape::new("up to the segment's end", rig, 0, &[5000, 1000]);
    assert_eq!(shape.offset as usize + shape.new.len(), OPTIONS.segment_size as usize);
    shape.run();
}

#[test]
fn at_the_beginning_of_a_segment() {
    let mut rig = Rig::new(OPTIONS);
    (0..3).for_each(|_| rig.batch(&[6000]));
    let shape = Shape::new("the first of a segment after a full one", rig, 0, &[4500, 300, 0, 1700]);
    assert_eq!((shape.segment, shape.offset), (SegmentId(2), 4096));
    shape.run();

    let mut rig = Rig::new(OPTIONS);
    (0..2).for_each(|_| rig.batch(&[6000]));
    rig.batch(&[100]);
    let shape = Shape::new("the first of a segment after an unused end", rig, 0, &[4500, 300, 0, 1700]);
    assert_eq!((shape.segment, shape.offset), (SegmentId(2), 4096));
    shape.run();
}

#[test]
fn after_a_clean_end() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[700, 800]);
    rig.batch(&[900]);
    let disk = rig.disk.crash(&mut |_, _| false);
    assert_eq!(rig.reopen(disk).unwrap().truncated, None);
    Shape::new("the first after a start", rig, 0, &[90, 5000]).run();
}

#[test]
fn with_checkpoints() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[6000]);
    checkpoint(&mut rig);
    rig.batch(&[300]);
    Shape::new("behind a checkpoint and a batch", rig, 1, &[4500, 300]).run();

    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[6000]);
    rig.batch(&[300]);
    checkpoint(&mut rig);
    Shape::new("at the place of a checkpoint", rig, 2, &[4500, 300]).run();

    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[6000]);
    checkpoint(&mut rig);
    rig.log.seal();
    rig.prepare();
    checkpoint(&mut rig);
    let shape = Shape::new("the first behind a segment that was closed", rig, 1, &[4500, 300]);
    assert_eq!((shape.segment, shape.offset), (SegmentId(2), 4096));
    shape.run();
}

/// A log that has gone round: its tail is in a segment that was another one before.
fn gone_round() -> Rig {
    let mut rig = Rig::new(OPTIONS);
    while rig.log.position().segment < SegmentId(9) {
        rig.batch(&[6000]);
        checkpoint(&mut rig);
        rig.log.retire();
        rig.prepare();
    }
    rig.batch(&[200]);
    rig
}

#[test]
fn in_a_segment_that_was_used_before() {
    let rig = gone_round();
    assert!(!rig.disk.segments().any(|id| id == SegmentId(1)), "the first was made another");
    let behind = rig.kept.len() - 1;
    let shape = Shape::new("a segment that was used before", rig, behind, &[4500, 300]);
    assert_eq!(shape.segment, SegmentId(9));
    shape.run();
}

/// Zeros are on the disk before a segment has its new name. Were they not, its old bytes would lie beneath the last batch: then
/// the log may say that it is damaged, and may not make up or lose anything.
#[test]
fn old_bytes_beneath_the_last_batch_never_pass_for_it() {
    let rig = gone_round();
    let behind = rig.kept.len() - 1;
    let mut shape = Shape::new("old bytes beneath", rig, behind, &[4500, 300]);
    // A batch of the same number at the same place, of the segment's earlier generation; and one that is as the new one is,
    // but for its generation.
    let mut other = Rig::new(OPTIONS);
    other.batch(&[6000]);
    other.batch(&[5000, 900]);
    let earlier = other.disk.contents(SegmentId(1)).unwrap()[12_288..][..shape.new.len()].to_vec();
    let mut twin = shape.new.clone();
    twin[24..32].copy_from_slice(&77u64.to_le_bytes());
    let crc = crc32c::crc32c(&twin[..60]);
    twin[60..64].copy_from_slice(&crc.to_le_bytes());
    for old in [earlier, twin] {
        let mut random = Random(5);
        let (mut opened, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let set = random.next();
            let mut torn = shape.new.clone();
            for (nth, sector) in torn.chunks_mut(SECTOR_BYTES as usize).enumerate() {
                if set >> nth & 1 == 1 {
                    sector.copy_from_slice(&old[nth * SECTOR_BYTES as usize..][..SECTOR_BYTES as usize]);
                }
            }
            shape.disk.write(shape.segment, shape.offset, &torn).unwrap();
            match crate::rig::open(shape.options, &mut shape.disk) {
                Ok((_, _, found)) => {
                    opened += 1;
                    // Of the twin, what differs is in the first sector only: with the new one of that it is the new batch.
                    let there = if torn == shape.new { shape.kept.len() } else { shape.durable };
                    assert!(found == shape.kept[..there], "something is lost, or made up of old bytes");
                }
                Err(_) => refused += 1,
            }
            shape.disk = shape.base.crash(&mut |_, _| false);
        }
        assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
    }
}
