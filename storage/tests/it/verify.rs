//! The offline check: it finds whole what is whole, finds what a start refuses and truncates what a start truncates, and goes on
//! behind damage.

use std::collections::BTreeSet;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    ColdDone, ColdWork, Disk, Finding, Log, Memory, OpenError, Place, Reason, Report, SegmentId, Severity, Unreadable,
    Verifier, check_segment,
};

use crate::rig::{OPTIONS, Random, Rig, open};

/// Verifies what a disk holds.
fn verify(disk: &mut RamDisk) -> Report {
    let mut verifier = Verifier::new(OPTIONS.shard, OPTIONS.segment_size);
    let mut numbers = disk.checkpoints().unwrap();
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        verifier.checkpoint(number, Ok(&disk.read_checkpoint(number).unwrap()));
    }
    let mut ids = disk.list().unwrap();
    ids.sort_unstable();
    for id in ids {
        let bytes = disk.contents(id).unwrap();
        verifier.segment(id, &bytes, bytes.len() as u64, &[]);
    }
    verifier.finish()
}

fn damage(report: &Report) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.reason.severity() == Severity::Damage).collect()
}

/// A log of several segments, with entries of 16 partitions whose indexes are dense as Raft's are; the power is off.
fn log() -> (Rig, RamDisk) {
    let mut rig = Rig::new(OPTIONS);
    for round in 0..5 {
        rig.batch(&[40, 300 * round, 700]);
        rig.batch(&[3000, 2500]);
        rig.batch(&[5]);
    }
    rig.prepare();
    let disk = rig.disk.crash(&mut |_, _| false);
    (rig, disk)
}

/// Where the batches lie: segment, first byte, end.
fn batches(disk: &mut RamDisk) -> Vec<(SegmentId, u32, u32)> {
    let mut batches = Vec::new();
    let mut ids = disk.list().unwrap();
    ids.sort_unstable();
    for id in ids {
        let bytes = disk.contents(id).unwrap();
        for page in (4096..bytes.len()).step_by(4096).filter(|&page| &bytes[page..page + 8] == b"whmbrlBT") {
            let length = u32::from_le_bytes(bytes[page + 36..page + 40].try_into().unwrap());
            batches.push((id, page as u32, page as u32 + length.next_multiple_of(4096)));
        }
    }
    batches
}

#[test]
fn a_whole_log_is_found_whole() {
    let (rig, mut disk) = log();
    let report = verify(&mut disk);
    // The rig's indexes are of no partition's Raft log: only their order is looked at elsewhere.
    let damage: Vec<_> = report.findings.iter().filter(|it| !of_entries(&it.reason)).collect();
    assert!(damage.is_empty(), "{damage:?}");
    assert_eq!(report.records, rig.kept.len() as u64);
    assert_eq!(report.batches as usize, batches(&mut disk).len());
    let entries: u64 = report.partitions.values().map(|found| found.entries + found.hard_states).sum();
    assert_eq!(entries, report.records);
}

fn of_entries(reason: &Reason) -> bool {
    matches!(reason, Reason::EntryHole { .. } | Reason::EntryOrder { .. })
}

/// What a start makes of a disk, and what verifying it says, are the same.
fn agree(disk: &mut RamDisk, what: &str) -> Option<Severity> {
    let mut report = verify(disk);
    report.findings.retain(|it| !of_entries(&it.reason));
    let worst = report.findings.iter().map(|finding| finding.reason.severity()).max();
    let mut copy = disk.crash(&mut |_, _| true);
    match open(OPTIONS, &mut copy) {
        // It gives out what holds of damaged batches, too.
        Ok((_, recovered, found)) if !recovered.rot.is_empty() => {
            assert_eq!(worst, Some(Severity::Damage), "{what}: {:?}: {:?}", recovered.rot, report.findings);
            assert!(report.records <= found.len() as u64, "{what}");
        }
        Ok((_, recovered, found)) => {
            let expected = recovered.truncated.map(|_| Severity::Torn);
            assert_eq!(worst, expected, "{what}: {:?}", report.findings);
            assert_eq!(report.records, found.len() as u64, "{what}");
        }
        Err(OpenError::Rot { segment, offset, reason }) => {
            assert_eq!(worst, Some(Severity::Damage), "{what}: {segment} {offset} {reason:?}: {:?}", report.findings);
        }
        Err(other) => panic!("{what}: {other}"),
    }
    worst
}

#[test]
fn it_agrees_with_recovery_on_every_kind_of_damage() {
    let (_, disk) = log();
    let places = batches(&mut disk.crash(&mut |_, _| false));
    let mut seen = BTreeSet::new();
    let mut random = Random(41);
    for round in 0..6_000 {
        let mut damaged = disk.crash(&mut |_, _| false);
        for _ in 0..1 + random.below(2) {
            let (segment, start, end) = places[random.below(places.len() as u64) as usize];
            let sector = start + random.below(u64::from(end - start) / 512) as u32 * 512;
            match random.below(6) {
                0 => {
                    let segment = SegmentId(1 + random.below(6) as u32);
                    if damaged.contents(segment).is_some() {
                        let offset = random.below(u64::from(OPTIONS.segment_size)) as u32;
                        damaged.flip_bit(segment, offset, random.below(8) as u8).unwrap();
                    }
                }
                1 => damaged.write(segment, sector, &[0; 512]).unwrap(),
                2 => damaged.write(segment, sector, &[0xa7; 512]).unwrap(),
                3 => damaged.write(segment, start, &vec![0; (end - start) as usize]).unwrap(),
                4 => {
                    let (from, source, source_end) = places[random.below(places.len() as u64) as usize];
                    let bytes = damaged.contents(from).unwrap()[source as usize..source_end as usize].to_vec();
                    if start as usize + bytes.len() <= OPTIONS.segment_size as usize {
                        damaged.write(segment, start, &bytes).unwrap();
                    }
                }
                _ => {
                    let &(segment, start, end) = places.last().unwrap();
                    for sector in (start..end).step_by(512) {
                        if random.below(2) == 0 {
                            damaged.write(segment, sector, &[0; 512]).unwrap();
                        }
                    }
                }
            }
        }
        seen.insert(agree(&mut damaged, &format!("round {round}")));
    }
    assert_eq!(seen.len(), 3, "whole, torn and damaged ones were among them");
}

#[test]
fn it_agrees_with_recovery_on_every_torn_batch() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut rig = Rig::new(OPTIONS);
        for _ in 0..random.below(12) {
            rig.batch(&[random.below(3000) as usize, random.below(3000) as usize]);
        }
        rig.append(random.below(7000) as usize).unwrap();
        rig.prepare();
        rig.submit();
        let mut torn = rig.disk.crash(&mut |_, _| random.below(2) == 0);
        assert_ne!(agree(&mut torn, &format!("seed {seed}")), Some(Severity::Damage));
    }
}

#[test]
fn damage_before_the_end_names_the_batch_the_record_and_the_partition() {
    let (rig, disk) = log();
    for kept in &rig.kept[..rig.kept.len() - 3] {
        if kept.payload.is_empty() {
            continue;
        }
        let mut rotten = disk.crash(&mut |_, _| false);
        rotten.flip_bit(kept.location.segment, kept.location.offset, 1).unwrap();
        let report = verify(&mut rotten);
        let found = damage(&report);
        let found = found.iter().find(|it| matches!(it.reason, Reason::Batch { .. })).expect("it is found");
        assert!(found.partitions.contains(&kept.header.partition), "{found}");
        let text = found.to_string();
        assert!(text.contains("its payload does not match its checksum"), "{text}");
        assert!(text.contains(&format!("at byte {}", kept.location.offset - 32)), "{text}");
    }
}

#[test]
fn it_goes_on_behind_damage() {
    let (_, disk) = log();
    let places = batches(&mut disk.crash(&mut |_, _| false));
    let mut rotten = disk.crash(&mut |_, _| false);
    for at in [1, 4, 9] {
        let (segment, start, _) = places[at];
        rotten.write(segment, start, &[0x5a; 64]).unwrap();
    }
    let report = verify(&mut rotten);
    let missing: Vec<_> = damage(&report)
        .iter()
        .filter_map(|it| match it.reason {
            Reason::BatchMissing { first, last } => Some((it.place, first, last)),
            _ => None,
        })
        .collect();
    let expected: Vec<_> = [1, 4, 9]
        .map(|at: usize| (Place::Segment(places[at].0, places[at].1), Some(at as u64 + 1), Some(at as u64 + 1)))
        .to_vec();
    assert_eq!(missing, expected);
    assert_eq!(report.batches as usize, places.len() - 3);
}

#[test]
fn a_damaged_header_of_a_segment_does_not_hide_its_batches() {
    let (rig, disk) = log();
    let mut rotten = disk.crash(&mut |_, _| false);
    rotten.flip_bit(SegmentId(2), 30, 1).unwrap();
    let report = verify(&mut rotten);
    assert_eq!(report.records, rig.kept.len() as u64);
    assert!(damage(&report).iter().any(|it| it.reason == Reason::SegmentHeader));
}

#[test]
fn bytes_that_the_disk_does_not_give_are_named() {
    let (_, mut disk) = log();
    let mut verifier = Verifier::new(OPTIONS.shard, OPTIONS.segment_size);
    let mut ids = disk.list().unwrap();
    ids.sort_unstable();
    for id in ids {
        let mut bytes = disk.contents(id).unwrap();
        let mut unreadable = Vec::new();
        if id == SegmentId(2) {
            bytes[8192..12_288].fill(0);
            unreadable.push(Unreadable { offset: 8192, bytes: 4096, error: "Input/output error".to_owned() });
        }
        let len = bytes.len() as u64;
        verifier.segment(id, &bytes, len, &unreadable);
    }
    let report = verifier.finish();
    let text: Vec<_> = damage(&report).iter().map(ToString::to_string).collect();
    assert!(text[0].starts_with("segment 2, byte 8192: 4096 bytes cannot be read: Input/output error"), "{text:?}");
}

#[test]
fn entries_that_a_lost_batch_took_with_it_are_named() {
    let mut rig = Rig::new(OPTIONS);
    let mut indexes = [0; 3];
    let mut append = |rig: &mut Rig, partition: u16| {
        indexes[usize::from(partition)] += 1;
        let index = indexes[usize::from(partition)];
        let kind = whimbrel_storage::RecordKind::Entry;
        let header = whimbrel_storage::RecordHeader { kind, partition, term: 1, index };
        rig.log.append(&header, &[partition as u8; 100]).unwrap();
    };
    let settle = |rig: &mut Rig| {
        rig.prepare();
        while rig.submit() {
            assert!(rig.complete());
        }
    };
    for batch in [&[0, 1, 2][..], &[0, 1], &[1, 1], &[0, 1, 2]] {
        batch.iter().for_each(|&partition| append(&mut rig, partition));
        settle(&mut rig);
    }
    let mut disk = rig.disk.crash(&mut |_, _| false);
    assert_eq!(verify(&mut disk).findings, []);
    // The headers of the second and third batch, and all behind them.
    disk.write(SegmentId(1), 8192, &[0; 8192]).unwrap();
    let report = verify(&mut disk);
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.gone, [(0, 2, 2), (1, 2, 4)]);
    assert_eq!(
        finding.to_string(),
        "segment 1, byte 8192: batches 2 to 3 are missing, and a later one is there; gone: partition 0 entry 2, \
         partition 1 entries 2 to 4"
    );
}

/// A log with two checkpoints, of which each lets go of what is before the older one.
fn with_checkpoints(seed: u64) -> Rig {
    let mut random = Random(seed);
    let mut rig = Rig::new(OPTIONS);
    for _ in 0..12 {
        for _ in 0..3 {
            rig.batch(&[random.below(3000) as usize, random.below(2000) as usize]);
        }
        checkpoint(&mut rig);
    }
    rig.batch(&[100]);
    rig.batch(&[100]);
    rig
}

fn checkpoint(rig: &mut Rig) {
    let writer = rig.log.begin_checkpoint(rig.log.position()).unwrap();
    let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
    writer.begin(&mut bytes);
    writer.end(rig.log.position().batch, &mut bytes);
    let keep_from = rig.log.newest_checkpoint().map_or(0, |newest| newest.number);
    rig.disk.put_checkpoint(checkpoint.number, bytes, keep_from).unwrap();
    rig.log.checkpoint_written(checkpoint);
    rig.log.retire();
    rig.prepare();
    while let Some(retired) = rig.log.segment_unwanted() {
        drop(retired.mapping);
        rig.disk.remove(retired.id).unwrap();
    }
}

#[test]
fn a_log_with_checkpoints_is_found_whole_and_its_damage_is_found_on_both_sides_of_them() {
    for seed in 0..60 {
        let rig = with_checkpoints(seed);
        let (older, newest) = (rig.log.older_checkpoint().unwrap(), rig.log.newest_checkpoint().unwrap());
        let disk = rig.disk.crash(&mut |_, _| false);
        let mut whole = disk.crash(&mut |_, _| false);
        let report = verify(&mut whole);
        let found: Vec<_> = report.findings.iter().filter(|it| !of_entries(&it.reason)).collect();
        assert!(found.is_empty(), "seed {seed}: {found:?}");
        assert_eq!(report.checkpoints, [newest, older]);
        let places = batches(&mut whole);
        for &(segment, start, _) in &places[..places.len() - 1] {
            let mut rotten = disk.crash(&mut |_, _| false);
            rotten.flip_bit(segment, start + 70, 2).unwrap();
            let report = verify(&mut rotten);
            assert!(
                damage(&report).iter().any(|it| it.place == Place::Segment(segment, start)),
                "seed {seed}: {segment} {start}: {:?}",
                report.findings
            );
        }
        // What a start refuses, this finds.
        for id in disk.segments().collect::<Vec<_>>() {
            let mut lost = disk.crash(&mut |_, _| false);
            lost.lose(id);
            let refused = Log::open(OPTIONS, &mut lost.crash(&mut |_, _| false), &mut |_, _, _| {}).is_err();
            let found = damage(&verify(&mut lost)).iter().any(|it| matches!(it.reason, Reason::SegmentMissing(..)));
            assert!(found || !refused, "seed {seed}: segment {id}");
        }
        let mut lost = disk.crash(&mut |_, _| false);
        lost.lose(older.position.segment);
        assert!(!damage(&verify(&mut lost)).is_empty(), "the older one must be able to serve too");
        let mut bad = disk.crash(&mut |_, _| false);
        bad.flip_checkpoint_bit(newest.number, 66 * 8);
        let report = verify(&mut bad);
        let found: Vec<_> = damage(&report).iter().filter(|it| !of_entries(&it.reason)).map(|it| it.place).collect();
        assert_eq!(found, [Place::Checkpoint(newest.number)], "seed {seed}");
        bad.flip_checkpoint_bit(older.number, 66 * 8);
        assert!(damage(&verify(&mut bad)).iter().any(|it| it.reason == Reason::NoCheckpoint));
    }
}

#[test]
fn what_a_crash_leaves_is_never_taken_for_damage() {
    let mut torn = 0;
    for seed in 0..200 {
        let mut rig = with_checkpoints(seed % 20);
        let mut random = Random(seed);
        if random.below(2) == 0 {
            rig.log.seal();
            checkpoint(&mut rig);
        }
        for _ in 0..random.below(4) {
            rig.batch(&[random.below(3000) as usize]);
        }
        rig.append(random.below(7000) as usize).unwrap();
        rig.prepare();
        rig.submit();
        let mut disk = rig.disk.crash(&mut |_, _| random.below(2) == 0);
        let mut report = verify(&mut disk);
        report.findings.retain(|it| !of_entries(&it.reason));
        assert!(damage(&report).is_empty(), "seed {seed}: {:?}", report.findings);
        torn += report.findings.len();
    }
    assert!(torn > 100, "{torn} torn ones were among them");
}

#[test]
fn a_log_that_ends_before_its_checkpoint_is_damaged_not_torn() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100]);
    rig.batch(&[200]);
    checkpoint(&mut rig);
    let mut disk = rig.disk.crash(&mut |_, _| false);
    disk.flip_bit(SegmentId(1), 8192 + 70, 1).unwrap();
    let report = verify(&mut disk);
    let found: Vec<_> = report.findings.iter().filter(|it| !of_entries(&it.reason)).map(|it| &it.reason).collect();
    assert!(matches!(found[..], [Reason::Batch { number: 2, .. }]), "{found:?}");
    // Nor is one that has lost its header.
    disk.write(SegmentId(1), 8192, &[0x5a; 64]).unwrap();
    let report = verify(&mut disk);
    let found: Vec<_> = report.findings.iter().filter(|it| !of_entries(&it.reason)).map(|it| &it.reason).collect();
    assert_eq!(found, [&Reason::BatchMissing { first: Some(2), last: Some(2) }]);
    disk.write(SegmentId(1), 8192, &[0; 4096]).unwrap();
    let report = verify(&mut disk);
    let reason = Reason::BatchMissing { first: Some(2), last: Some(2) };
    assert!(damage(&report).iter().any(|it| it.reason == reason), "{report:?}");
}

#[test]
fn a_checkpoint_of_another_segment_is_found() {
    let rig = with_checkpoints(1);
    let newest = rig.log.newest_checkpoint().unwrap();
    let mut disk = rig.disk.crash(&mut |_, _| false);
    let segment = newest.position.segment;
    disk.lose(segment);
    disk.create(segment, OPTIONS.segment_size).unwrap();
    let report = verify(&mut disk);
    let found = damage(&report);
    assert!(
        found.iter().any(|it| it.place == Place::Checkpoint(newest.number)
            && matches!(it.reason, Reason::CheckpointPlace { segment: named, .. } if named == segment)),
        "{found:?}"
    );
}

#[test]
fn a_cold_segment_is_a_log_of_its_own() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[1000]);
    rig.batch(&[2000]);
    rig.batch(&[10]);
    let bytes = rig.disk.contents(SegmentId(1)).unwrap();
    let cold = |bytes: &[u8]| {
        let (_, mut main) = log();
        let mut verifier = Verifier::new(OPTIONS.shard, OPTIONS.segment_size);
        let mut ids = main.list().unwrap();
        ids.sort_unstable();
        for id in ids {
            let bytes = main.contents(id).unwrap();
            verifier.segment(id, &bytes, bytes.len() as u64, &[]);
        }
        // Its first page says which one it is.
        let mut bytes = bytes.to_vec();
        bytes[12..16].copy_from_slice(&(SegmentId::COLD.0 + 4).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        verifier.segment(SegmentId(SegmentId::COLD.0 + 4), &bytes, bytes.len() as u64, &[]);
        let mut report = verifier.finish();
        report.findings.retain(|it| !of_entries(&it.reason));
        report.findings
    };
    assert_eq!(cold(&bytes), []);
    let mut rotten = bytes.clone();
    rotten[4096 + 70] ^= 1;
    let found = cold(&rotten);
    assert!(matches!(found[..], [Finding { reason: Reason::Batch { number: 1, .. }, .. }]), "{found:?}");
    // Without its first batch it does not begin as it has to.
    let mut headless = bytes.clone();
    headless[4096..8192].fill(0);
    let found = cold(&headless);
    assert!(matches!(found[..], [Finding { reason: Reason::BatchMissing { .. }, .. }]), "{found:?}");
}

#[test]
fn in_a_cold_segment_what_is_waited_for_counts() {
    let mut rig = Rig::new(OPTIONS);
    for _ in 0..2 {
        rig.batch(&[500, 700, 900, 300]);
    }
    let mut places = Vec::new();
    for half in rig.kept.chunks(4) {
        let mut queue = half.iter().map(|it| it.location).collect();
        let copy = rig.log.plan_copy(&mut queue).unwrap();
        let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut rig.disk) else { panic!("memory takes it") };
        rig.log.copied(&copied);
        places.extend(copied.moved.into_iter().map(|(_, to)| to));
    }
    let cold = places[0].segment;
    let is = rig.log.segment_is(cold).unwrap();
    let was = rig.disk.contents(cold).unwrap();
    let judge = |bytes: &[u8], waited: &[usize]| {
        let mut verifier = Verifier::new(OPTIONS.shard, OPTIONS.segment_size);
        verifier.segment(cold, bytes, bytes.len() as u64, &[]);
        let mut report = verifier.finish();
        let waited: Vec<_> = waited.iter().map(|at| (*at as u16, places[*at])).collect();
        let note = report.judge_cold(&check_segment(&is, &mut Memory(bytes)), &waited);
        let reasons: Vec<_> = report.findings.iter().map(|it| it.reason.name()).collect();
        let partitions: BTreeSet<u16> = report.findings.iter().flat_map(|it| it.partitions.iter().copied()).collect();
        (reasons, partitions, note.is_some())
    };
    let whole = (Vec::new(), BTreeSet::new(), false);
    assert_eq!(judge(&was, &[0, 1, 2, 3, 4, 5, 6, 7]), whole);
    // In the first batch, and in the last one, which looks torn.
    for (damaged, reason) in [(1, "batch"), (6, "torn")] {
        let payload = places[damaged].offset as usize..(places[damaged].offset + places[damaged].len) as usize;
        let mut bytes = was.clone();
        bytes[payload.clone()].fill(0);
        assert_eq!(judge(&bytes, &[0, 2, 3, 4, 5, 7]), whole, "nobody waits for zeros");
        bytes[payload.start + 5] = 1;
        let others: Vec<usize> = (0..8).filter(|at| *at != damaged).collect();
        assert_eq!(judge(&bytes, &others), (Vec::new(), BTreeSet::new(), true), "half of it is overwritten");
        let (reasons, partitions, noted) = judge(&bytes, &[damaged]);
        assert_eq!((&reasons[..], noted), (&[reason, "waited_for"][..], false));
        assert!(partitions.contains(&(damaged as u16)));
        // A record's header is not what a crash leaves in the middle.
        bytes[payload.start - 30] ^= 1;
        let (reasons, _, noted) = judge(&bytes, &[0, 4]);
        assert_eq!((&reasons[..], noted), (if damaged == 1 { &["batch"][..] } else { &[][..] }, damaged != 1));
    }
    // What lies where nothing was written, and is pointed to.
    let mut bytes = was;
    let last = places[7];
    bytes[8192..].fill(0);
    let (reasons, partitions, _) = judge(&bytes, &[1, 7]);
    assert_eq!((&reasons[..], partitions), (&["waited_for"][..], BTreeSet::from([7])), "{last:?}");
}

/// Puts a checkpoint in its place that says what it is told to.
fn put_checkpoint(rig: &mut Rig, position: whimbrel_storage::Position, through: u64) -> u64 {
    let writer = rig.log.begin_checkpoint(position).unwrap();
    let (number, mut bytes) = (writer.checkpoint().number, Vec::new());
    writer.begin(&mut bytes);
    writer.end(through, &mut bytes);
    rig.disk.put_checkpoint(number, bytes, 0).unwrap();
    number
}

#[test]
fn what_a_checkpoint_knows_of_behind_its_position_was_durable_too() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100]);
    let position = rig.log.position();
    rig.batch(&[100]);
    let number = put_checkpoint(&mut rig, position, 3);
    let mut disk = rig.disk.crash(&mut |_, _| false);
    assert!(damage(&verify(&mut disk)).iter().all(|it| of_entries(&it.reason)));
    disk.write(SegmentId(1), 8192, &[0; 4096]).unwrap();
    let report = verify(&mut disk);
    let reason = Reason::LogEndsEarly { ends: 2, checkpoint: number, through: 3 };
    assert!(damage(&report).iter().any(|it| it.reason == reason), "{report:?}");
}

#[test]
fn a_checkpoint_that_names_another_batch_than_lies_at_its_place_is_found() {
    for wrong in [1, 3] {
        let mut rig = Rig::new(OPTIONS);
        rig.batch(&[100]);
        let position = whimbrel_storage::Position { batch: wrong, ..rig.log.position() };
        rig.batch(&[100]);
        let number = put_checkpoint(&mut rig, position, 3);
        let report = verify(&mut rig.disk.crash(&mut |_, _| false));
        let place = Place::Checkpoint(number);
        let found = |it: &&Finding| it.place == place && matches!(it.reason, Reason::CheckpointPlace { .. });
        assert!(damage(&report).iter().any(found), "{wrong}: {report:?}");
    }
}

#[test]
fn a_batch_behind_unused_space_is_found() {
    // Two logs of one seed, so that generations are the same: the second batch of one lies further on than the other ends.
    let history = |sizes: &[usize]| {
        let mut rig = Rig::new(OPTIONS);
        sizes.iter().for_each(|&payload_bytes| rig.batch(&[payload_bytes]));
        rig.disk.crash(&mut |_, _| false)
    };
    let other = history(&[6000, 100]).contents(SegmentId(1)).unwrap();
    let mut disk = history(&[100]);
    disk.write(SegmentId(1), 12_288, &other[12_288..16_384]).unwrap();
    assert_eq!(agree(&mut disk, "behind unused space"), Some(Severity::Damage));
    let report = verify(&mut disk);
    let found = report
        .findings
        .iter()
        .any(|it| (it.place, &it.reason) == (Place::Segment(SegmentId(1), 12_288), &Reason::BatchMisplaced(2)));
    assert!(found, "{report:?}");
}

#[test]
fn entries_follow_each_other_in_each_partition_and_behind_the_checkpoint() {
    let of = |entries: &[(u16, u64, u64)], applied: Option<(u16, u64, u64)>| {
        let mut rig = Rig::new(OPTIONS);
        let position = rig.log.position();
        for &(partition, term, index) in entries {
            let kind = whimbrel_storage::RecordKind::Entry;
            rig.log.append(&whimbrel_storage::RecordHeader { kind, partition, term, index }, &[1; 40]).unwrap();
        }
        rig.prepare();
        while rig.submit() {
            assert!(rig.complete());
        }
        let mut verifier = Verifier::new(OPTIONS.shard, OPTIONS.segment_size);
        let mut disk = rig.disk.crash(&mut |_, _| false);
        if let Some((partition, index, term)) = applied {
            let number = put_checkpoint(&mut rig, position, 2);
            let bytes = rig.disk.read_checkpoint(number).unwrap();
            assert!(verifier.checkpoint(number, Ok(&bytes)).is_some());
            verifier.applied(partition, index, term);
        }
        let bytes = disk.contents(SegmentId(1)).unwrap();
        verifier.segment(SegmentId(1), &bytes, bytes.len() as u64, &[]);
        disk.lose(SegmentId(1));
        let reasons: Vec<Reason> = verifier.finish().findings.into_iter().map(|it| it.reason).collect();
        reasons
    };
    let hole = |partition, first, last| Reason::EntryHole { partition, first, last };
    assert_eq!(of(&[(0, 1, 1), (1, 1, 1), (0, 1, 2), (1, 2, 2), (0, 1, 3)], None), []);
    assert_eq!(of(&[(0, 1, 1), (1, 1, 1), (0, 1, 4), (1, 1, 2)], None), [hole(0, 2, 3)]);
    // A later leader writes over what was not committed; nobody else does, and terms do not go back.
    assert_eq!(of(&[(0, 1, 1), (0, 1, 2), (0, 2, 2), (0, 2, 3)], None), []);
    for wrong in [&[(0, 2, 1), (0, 2, 2), (0, 2, 2)], &[(0, 2, 1), (0, 2, 2), (0, 1, 3)]] {
        assert!(matches!(of(wrong, None)[..], [Reason::EntryOrder { partition: 0, before: 2, .. }]), "{wrong:?}");
    }
    // What is in the checkpoint already may come again, and what follows it may not be missing.
    assert_eq!(of(&[(0, 1, 5), (0, 1, 6), (0, 1, 7), (0, 1, 8)], Some((0, 6, 1))), []);
    assert_eq!(of(&[(0, 1, 9)], Some((0, 6, 1))), [hole(0, 7, 8)]);
}
