//! Which partitions damage of the log concerns: those that lost something, and those of which nothing behind it shows that they
//! did not. The others serve, and nothing of the former is written.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use whimbrel_core::ids::ShardId;
use whimbrel_core::limits::Bounds;
use whimbrel_core::{Effect, Effects, Input, Now, OpenError, Shard, ShardConfig, Trouble, Why};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, Location, Log, LogOptions, RecordHeader, RecordKind, SegmentId};

const PARTITIONS: u16 = 5;
const SEGMENT_BYTES: u32 = 512 << 10;
const SEGMENT: SegmentId = SegmentId(1);

fn options() -> LogOptions {
    LogOptions { segment_size: SEGMENT_BYTES, ..LogOptions::new(0) }
}

/// A start, and turns until nothing is left to do. Which partitions are in repair, by what it says and by what it tells.
fn start(disk: &mut RamDisk) -> BTreeSet<u16> {
    let (shard, bounds) = (ShardId(0), Bounds::default());
    let config = ShardConfig { shard, shards: 1, partitions: PARTITIONS, token_key: [0; 32], seed: 1, bounds };
    let mut shard = Shard::open(config, options(), disk).unwrap();
    let mut fx = Effects { lane_room: vec![64], ..Effects::default() };
    let mut told = BTreeSet::new();
    for turn in 1..40 {
        let now = Now { mono_us: turn * 50_000, wall_ms: turn * 50 };
        shard.handle(now, Input::TurnEnd { more: false }, &mut fx);
        for effect in std::mem::take(&mut fx.list) {
            match effect {
                Effect::WriteLog(write) => {
                    disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
                    shard.handle(now, Input::LogWritten { write: write.id }, &mut fx);
                }
                Effect::PrepareSegment { segment, .. } => {
                    let mapping = disk.create(segment, SEGMENT_BYTES).unwrap();
                    shard.handle(now, Input::SegmentReady { segment, mapping }, &mut fx);
                }
                Effect::Tell(Trouble::Repair(repair)) => assert!(told.insert(repair.partition.0), "told once"),
                Effect::Tell(Trouble::Rot(_)) | Effect::WakeAt { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(shard.is_ready(), "all others serve");
    let said: BTreeSet<u16> = shard.in_repair().map(|repair| repair.partition.0).collect();
    assert_eq!(said, told);
    let states = shard.states();
    assert_eq!((states.repair, states.serving), (said.len() as u64, u64::from(PARTITIONS) - said.len() as u64));
    said
}

/// All records of a log that is whole.
fn records(disk: &mut RamDisk) -> Vec<(RecordHeader, Location)> {
    let mut records = Vec::new();
    Log::open(options(), disk, &mut |header, location, _| records.push((*header, location))).unwrap();
    records
}

/// Where batches begin.
fn batches(disk: &RamDisk) -> Vec<u32> {
    let bytes = disk.contents(SEGMENT).unwrap();
    let pages = (4096..bytes.len()).step_by(4096);
    pages.filter(|page| &bytes[*page..page + 8] == b"whmbrlBT").map(|page| page as u32).collect()
}

#[test]
fn whoever_lost_something_is_in_repair_and_whoever_shows_that_he_did_not_serves() {
    let mut disk = RamDisk::new(0, 3);
    for _ in 0..6 {
        assert!(start(&mut disk).is_empty());
    }
    let all = records(&mut disk);
    let places = batches(&disk);
    assert!(places.len() >= 6, "{places:?}");
    let mut sizes = BTreeSet::new();
    let (mut with, mut without) = (0, 0);
    for (n, &batch) in places[..places.len() - 1].iter().enumerate() {
        let end = places[n + 1];
        let last =
            all.iter().filter(|(_, at)| (batch..end).contains(&at.offset)).map(|(_, at)| at.offset + at.len).max();
        // One that was written because the shard rested has none, and nothing is lost with it.
        let has_records = last.is_some();
        (with, without) = (with + u32::from(has_records), without + u32::from(!has_records));
        for offset in (batch..last.unwrap_or(batch + 64)).step_by(5) {
            let mut rotten = disk.crash(&mut |_, _| true);
            rotten.flip_bit(SEGMENT, offset, (offset % 8) as u8).unwrap();
            let repair = start(&mut rotten);
            // A payload costs its own record; a record's head all from there on in the batch, and the batch's head all of it.
            let hit =
                all.iter().find(|(_, at)| (at.offset - 32..at.offset + at.len.next_multiple_of(8)).contains(&offset));
            let named = hit.filter(|(_, at)| offset >= at.offset);
            let lost_from = hit.map_or(batch, |(_, at)| at.offset - 32);
            let lost = |at: &Location| match named {
                Some((_, named)) => at == named,
                None => (lost_from..end).contains(&(at.offset - 32)),
            };
            for partition in 0..PARTITIONS {
                let of_it = all.iter().filter(|(header, _)| header.partition == partition);
                let entry_lost = of_it.clone().any(|(header, at)| header.kind == RecordKind::Entry && lost(at));
                let record_lost = of_it.clone().any(|(_, at)| lost(at));
                let mut behind =
                    of_it.filter(|(header, at)| header.kind == RecordKind::Entry && at.offset > offset && !lost(at));
                let shown = behind.next().is_some();
                let expected = match named {
                    Some(_) => entry_lost || record_lost && !shown,
                    None => entry_lost || !shown && has_records,
                };
                assert_eq!(repair.contains(&partition), expected, "byte {offset} of batch {n}, partition {partition}");
            }
            sizes.insert(repair.len());
            // Nothing of them was written, and with the right byte all is as it was.
            rotten.flip_bit(SEGMENT, offset, (offset % 8) as u8).unwrap();
            let after = records(&mut rotten);
            assert_eq!(after[..all.len()], all[..]);
            assert!(after[all.len()..].iter().all(|(header, _)| !repair.contains(&header.partition)));
            assert!(start(&mut rotten).is_empty(), "byte {offset} of batch {n}");
        }
    }
    assert!(with >= 6 && without >= 5, "{with} batches with records and {without} without");
    assert!(sizes.contains(&0) && sizes.contains(&1) && sizes.contains(&usize::from(PARTITIONS)), "{sizes:?}");
}

#[test]
fn a_partition_in_repair_stays_so_over_starts() {
    let mut disk = RamDisk::new(0, 3);
    for _ in 0..3 {
        start(&mut disk);
    }
    let (_, at) = records(&mut disk)
        .into_iter()
        .find(|(header, _)| header.kind == RecordKind::Entry && header.partition == 2)
        .unwrap();
    disk.flip_bit(SEGMENT, at.offset - 32, 1).unwrap();
    let first = start(&mut disk);
    assert!(first.contains(&2));
    for _ in 0..3 {
        assert_eq!(start(&mut disk), first);
    }
}

#[test]
fn a_shard_whose_log_does_not_open_refuses_and_wants_nothing_of_its_disk() {
    let mut disk = RamDisk::new(0, 3);
    assert!(start(&mut disk).is_empty());
    disk.remove(SEGMENT).unwrap();
    let (shard, bounds) = (ShardId(0), Bounds::default());
    let config = ShardConfig { shard, shards: 1, partitions: PARTITIONS, token_key: [0; 32], seed: 1, bounds };
    let error = Shard::open(config.clone(), options(), &mut disk).err().unwrap();
    assert!(error.is_damage(), "{error}");
    let mut shard = Shard::shut(config, options()).unwrap();
    let mut fx = Effects { lane_room: vec![64], ..Effects::default() };
    for turn in 1..400 {
        let now = Now { mono_us: turn * 50_000, wall_ms: turn * 50 };
        let input = if turn % 2 == 0 { Input::Timeout } else { Input::TurnEnd { more: false } };
        shard.handle(now, input, &mut fx);
        let asked = fx.list.drain(..).find(|effect| !matches!(effect, Effect::WakeAt { .. }));
        assert!(asked.is_none(), "{asked:?}");
    }
    assert!(shard.is_ready(), "the others of its node serve");
    let states = shard.states();
    assert_eq!((states.repair, states.starting, states.serving), (u64::from(PARTITIONS), 0, 0));
    assert!(shard.in_repair().all(|repair| repair.why == Why::Shut));
    let now = Now { mono_us: 30_000_000, wall_ms: 30_000 };
    shard.handle(now, Input::Stop, &mut fx);
    shard.handle(now, Input::TurnEnd { more: false }, &mut fx);
    assert!(fx.list.iter().any(|effect| matches!(effect, Effect::Stopped)));
    assert_eq!(shard.log_end(), None, "there is no end that could be marked");
}

#[test]
fn what_other_bytes_or_another_disk_mend_is_damage_and_what_a_setting_does_is_not() {
    let io = |errno| whimbrel_storage::OpenError::CheckpointIo {
        number: 1,
        source: std::io::Error::from_raw_os_error(errno),
    };
    let is_damage = |error| OpenError::Log(error).is_damage();
    assert!([5, 117, 74].into_iter().all(|errno| is_damage(io(errno))), "EIO, EUCLEAN, EBADMSG");
    assert!(![13, 24, 28].into_iter().any(|errno| is_damage(io(errno))), "EACCES, EMFILE, ENOSPC");
    let (segment, found, known) = (SEGMENT, 9, 1);
    assert!(!is_damage(whimbrel_storage::OpenError::Format { segment, found, known }));
    assert!(!OpenError::BadCheckpoint.is_damage(), "another program wrote it");
}
