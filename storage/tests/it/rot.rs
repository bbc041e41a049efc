//! Damage that no crash explains: found, named, and left alone.

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    Disk, Location, LogOptions, Loss, OpenError, RecordHeader, RecordKind, Rot, RotReason, Rotten, SegmentId, Wanted,
};

use crate::rig::{Kept, OPTIONS, Random, Rig, image, open, three_segments};

/// Where the batches lie: segment, first byte, end.
fn batches(disk: &mut RamDisk) -> Vec<(SegmentId, u32, u32)> {
    let mut batches = Vec::new();
    for (segment, bytes) in image(disk).into_iter().enumerate() {
        for page in (4096..bytes.len()).step_by(4096) {
            if &bytes[page..page + 8] == b"whmbrlBT" {
                let length = u32::from_le_bytes(bytes[page + 36..page + 40].try_into().unwrap());
                let end = page as u32 + length.next_multiple_of(4096);
                batches.push((SegmentId(segment as u32 + 1), page as u32, end));
            }
        }
    }
    batches
}

/// Opening is refused and changes nothing.
fn refused(disk: &mut RamDisk) -> (SegmentId, u32, RotReason) {
    let before = image(disk);
    let error = open(OPTIONS, disk).err().expect("it is refused");
    assert!(image(disk) == before, "the disk was changed");
    match error {
        OpenError::Rot { segment, offset, reason } => (segment, offset, reason),
        other => panic!("not rot: {other}"),
    }
}

/// Opening tells of rot and changes nothing; of all that was appended it gives what it does not tell to be lost.
fn rotten(rig: &Rig, options: LogOptions, disk: &mut RamDisk) -> Vec<Rot> {
    let before = image(disk);
    let (_, recovered, found) = open(options, disk).unwrap_or_else(|error| panic!("{error}"));
    assert!(image(disk) == before, "the disk was changed");
    assert_eq!(recovered.truncated, None);
    let mut found = found.into_iter().peekable();
    let mut given = 0;
    for kept in &rig.kept {
        if found.next_if(|it| it == kept).is_some() {
            given += 1;
            continue;
        }
        let Kept { location, .. } = kept;
        let whole = Location { offset: location.offset - 32, len: location.len + 32, ..*location };
        let rot = recovered.rot.iter().find(|it| it.rot.touches(whole));
        let rot = rot.unwrap_or_else(|| panic!("{kept:?} is not there, and nobody says so: {:?}", recovered.rot));
        assert_eq!(rot.after, Some(given), "what is lost is told in its place");
        if let Loss::Record(header) = rot.rot.loss {
            assert_eq!(header, kept.header);
        }
    }
    assert_eq!(found.next(), None, "something is there that was never appended");
    assert!(!recovered.rot.is_empty());
    recovered.rot.into_iter().map(|it| it.rot).collect()
}

/// The same, of which the first is told.
fn first(rig: &Rig, disk: &mut RamDisk) -> (SegmentId, u32, RotReason) {
    let rot = rotten(rig, OPTIONS, disk)[0];
    (rot.segment, rot.offset, rot.reason)
}

#[test]
fn every_bit_of_an_earlier_batch_is_guarded_padding_included() {
    let options = LogOptions { segment_size: 16 << 10, batch_max: 4096, ..OPTIONS };
    let mut rig = Rig::new(options);
    rig.batch(&[40, 0, 1700]);
    rig.batch(&[5]);
    let mut disk = rig.disk.crash(&mut |_, _| false);
    let place = (SegmentId(1), 4096);
    for offset in 4096..8192 {
        for bit in 0..8 {
            disk.flip_bit(place.0, offset, bit).unwrap();
            let rot = rotten(&rig, options, &mut disk)[0];
            let here = rot.segment == place.0 && (place.1..place.1 + 4096).contains(&rot.offset);
            assert!(here, "bit {bit} of byte {offset}: {rot:?}");
            disk.flip_bit(place.0, offset, bit).unwrap();
        }
    }
    open(options, &mut disk).unwrap();
}

#[test]
fn every_bit_of_the_last_batch_is_guarded() {
    let (rig, mut disk) = three_segments();
    let &(segment, start, end) = batches(&mut disk).last().unwrap();
    for offset in start..end {
        let mut torn = disk.crash(&mut |_, _| false);
        torn.flip_bit(segment, offset, (offset % 8) as u8).unwrap();
        // Nothing tells it from a batch that a crash tore, so it is truncated as one.
        let (_, recovered, found) = open(OPTIONS, &mut torn).unwrap();
        assert_eq!(found, rig.kept[..rig.kept.len() - 1]);
        assert_eq!(recovered.truncated.unwrap().segment, segment);
    }
}

#[test]
fn rot_in_any_batch_but_the_last_costs_what_is_in_it_and_is_left_alone() {
    let (rig, disk) = three_segments();
    let mut random = Random(5);
    let places = batches(&mut disk.crash(&mut |_, _| false));
    for &(segment, start, end) in &places[..places.len() - 1] {
        for _ in 0..50 {
            let mut rotten = disk.crash(&mut |_, _| false);
            let offset = start + random.below(u64::from(end - start)) as u32;
            rotten.flip_bit(segment, offset, random.below(8) as u8).unwrap();
            let (at_segment, at_offset, reason) = first(&rig, &mut rotten);
            let here = at_segment == segment && (start..end).contains(&at_offset);
            // The first batch of a segment is missed where it might have been as well: in the unused end before it.
            let before = start == 4096 && reason == RotReason::BatchMissing && at_segment.next() == segment;
            assert!(here || before, "{at_segment} {at_offset} {segment} {start} {reason:?}");
        }
        for sector in (start..end).step_by(512) {
            let mut rotten = disk.crash(&mut |_, _| false);
            let was = rotten.contents(segment).unwrap()[sector as usize..][..512].to_vec();
            if was.iter().all(|&byte| byte == 0) {
                continue;
            }
            rotten.write(segment, sector, &[0; 512]).unwrap();
            first(&rig, &mut rotten);
        }
        let mut lost = disk.crash(&mut |_, _| false);
        lost.write(segment, start, &vec![0; (end - start) as usize]).unwrap();
        let (at_segment, at_offset, reason) = first(&rig, &mut lost);
        assert_eq!(reason, RotReason::BatchMissing);
        assert!((at_segment, at_offset) == (segment, start) || (start == 4096 && at_segment.next() == segment));
    }
}

#[test]
fn any_random_bit_of_the_whole_log_is_found() {
    let (rig, disk) = three_segments();
    let mut random = Random(23);
    let &(last_segment, last, end) = batches(&mut disk.crash(&mut |_, _| false)).last().unwrap();
    for _ in 0..4_000 {
        let mut rotten = disk.crash(&mut |_, _| false);
        let segment = SegmentId(1 + random.below(5) as u32);
        let offset = random.below(u64::from(OPTIONS.segment_size)) as u32;
        rotten.flip_bit(segment, offset, random.below(8) as u8).unwrap();
        match open(OPTIONS, &mut rotten) {
            Err(_) => assert!(segment >= last_segment, "byte {offset} of segment {segment}"),
            Ok((_, recovered, found)) if recovered.spares_damaged > 0 => {
                assert!(segment > last_segment && found == rig.kept, "byte {offset} of segment {segment}");
            }
            Ok((_, recovered, found)) if !recovered.rot.is_empty() => {
                assert_eq!(recovered.truncated, None);
                assert!(found.iter().all(|it| rig.kept.contains(it)));
                assert!(segment < last_segment || segment == last_segment && (offset < last || offset < 4096));
            }
            // In the last batch, or where the next would lie, it is what a torn batch left.
            Ok((_, recovered, found)) => {
                assert!(recovered.truncated.is_some());
                let lost = usize::from(segment == last_segment && (last..end).contains(&offset));
                assert_eq!(found, rig.kept[..rig.kept.len() - lost]);
                let next = segment > last_segment || (segment == last_segment && offset >= last);
                assert!(next, "byte {offset} of segment {segment}");
            }
        }
    }
}

#[test]
fn every_bit_of_a_segments_header_page_is_guarded() {
    let (rig, disk) = three_segments();
    for offset in 0..4096 {
        let mut rotten = disk.crash(&mut |_, _| false);
        rotten.flip_bit(SegmentId(2), offset, (offset % 8) as u8).unwrap();
        // What it says is known by the batches behind it.
        let (_, recovered, found) = open(OPTIONS, &mut rotten).unwrap();
        assert_eq!(found, rig.kept);
        let [Rotten { rot: Rot { segment, offset: 0, reason, loss: Loss::Nothing, .. }, after: None }] =
            recovered.rot[..]
        else {
            panic!("{:?}", recovered.rot)
        };
        assert_eq!((segment, reason), (SegmentId(2), RotReason::SegmentHeader));
        // One in which there are none is not needed.
        let mut spare = disk.crash(&mut |_, _| false);
        spare.flip_bit(SegmentId(4), offset, (offset % 8) as u8).unwrap();
        assert_eq!(put_aside(&rig, spare, SegmentId(4)), (0, RotReason::SegmentHeader));
    }
}

/// A damaged spare segment is put aside, with those behind it, and the log goes on without; where in it the damage is told.
fn put_aside(rig: &Rig, mut disk: RamDisk, spare: SegmentId) -> (u32, RotReason) {
    let before = image(&mut disk);
    let (mut log, recovered, found) = open(OPTIONS, &mut disk).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&found, recovered.truncated, recovered.spares_damaged), (&rig.kept, None, 1));
    let [Rotten { rot: Rot { segment, offset, reason, loss: Loss::Nothing, .. }, .. }] = recovered.rot[..] else {
        panic!("{:?}", recovered.rot)
    };
    assert_eq!(segment, spare);
    assert!(image(&mut disk)[..] == before[..spare.0 as usize - 1], "what is left is as it was");
    // It makes others, and all of it is there after the next start.
    let Wanted { id, .. } = log.segment_wanted().unwrap();
    assert_eq!(id, spare);
    log.segment_ready(id, disk.create(id, OPTIONS.segment_size).unwrap());
    while log.position().segment < spare {
        log.seal();
        let header = RecordHeader { kind: RecordKind::Entry, partition: 1, term: 90, index: 1 };
        log.append(&header, &[7; 3000]).unwrap();
        let write = log.next_write().unwrap();
        disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
        log.written(write.id);
    }
    drop(log);
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert!(recovered.rot.is_empty() && found.len() > rig.kept.len() && found.starts_with(&rig.kept));
    (offset, reason)
}

#[test]
fn what_may_be_part_of_a_batch_is_not_taken_for_a_damaged_spare_segment() {
    let (_, disk) = three_segments();
    let mut first = disk.crash(&mut |_, _| false);
    let (segment, start, _) = batches(&mut first)[0];
    let block = first.contents(segment).unwrap()[start as usize..start as usize + 4096].to_vec();
    // A block of a batch that a disk has put over the first page of a spare segment, or behind it.
    let mut astray = disk.crash(&mut |_, _| false);
    astray.write(SegmentId(5), 0, &block).unwrap();
    assert_eq!(refused(&mut astray), (SegmentId(5), 0, RotReason::SegmentHeader));
    let mut astray = disk.crash(&mut |_, _| false);
    astray.write(SegmentId(5), 8192, &block).unwrap();
    assert_eq!(refused(&mut astray), (SegmentId(5), 8192, RotReason::Stray));
    // Damage of the first page and anything behind it.
    let mut two = disk.crash(&mut |_, _| false);
    two.flip_bit(SegmentId(4), 30, 1).unwrap();
    two.flip_bit(SegmentId(4), 9000, 1).unwrap();
    assert_eq!(refused(&mut two), (SegmentId(4), 0, RotReason::SegmentHeader));
    // A bit in the last spare one, and something behind the last batch: nobody knows that they have nothing to do with each other.
    let mut two = disk.crash(&mut |_, _| false);
    let &(segment, start, _) = batches(&mut two).last().unwrap();
    two.flip_bit(segment, start + 80, 0).unwrap();
    two.flip_bit(SegmentId(5), 9000, 1).unwrap();
    refused(&mut two);
}

#[test]
fn a_lost_segment_costs_what_was_in_it_and_is_refused_where_the_log_may_end_in_it() {
    let (rig, disk) = three_segments();
    for lost in 1..=4 {
        let mut disk = disk.crash(&mut |_, _| false);
        disk.lose(SegmentId(lost));
        if lost == 2 {
            let rot = rotten(&rig, OPTIONS, &mut disk);
            assert!(
                rot.iter().any(|it| (it.segment, it.reason) == (SegmentId(2), RotReason::SegmentMissing)),
                "{rot:?}"
            );
        } else {
            assert_eq!(refused(&mut disk), (SegmentId(lost), 0, RotReason::SegmentMissing));
        }
    }
}

#[test]
fn a_batch_in_the_place_of_another_is_told() {
    let (rig, disk) = three_segments();
    let places = batches(&mut disk.crash(&mut |_, _| false));
    let copy = |source: usize, (segment, offset): (SegmentId, u32)| {
        let (from, start, end) = places[source];
        let mut disk = disk.crash(&mut |_, _| false);
        let bytes = disk.contents(from).unwrap()[start as usize..end as usize].to_vec();
        disk.write(segment, offset, &bytes).unwrap();
        disk
    };
    // Over a batch of the same segment, over one of another, and behind the last.
    let (segment, start, _) = places[2];
    assert_eq!(first(&rig, &mut copy(0, (segment, start))).2, RotReason::BatchMisplaced);
    let &(segment, start, end) = places.last().unwrap();
    assert_eq!(refused(&mut copy(2, (segment, start))).2, RotReason::BatchMisplaced);
    let last = places.len() - 1;
    assert_eq!(refused(&mut copy(last, (segment, end))).2, RotReason::BatchMisplaced);
}

#[test]
fn a_batch_of_another_history_is_told() {
    // Two logs of one seed, so that even the generations are the same: only number and place tell their batches apart.
    let history = |sizes: &[usize]| {
        let mut rig = Rig::new(OPTIONS);
        sizes.iter().for_each(|&payload_bytes| rig.batch(&[payload_bytes]));
        let disk = rig.disk.crash(&mut |_, _| false);
        (rig, disk)
    };
    let other = history(&[6000, 100]).1.contents(SegmentId(1)).unwrap();
    let second = &other[12_288..16_384];
    for (at, sizes) in [(12_288, &[100, 100, 100, 100][..]), (8192, &[100, 100, 100][..])] {
        let (rig, mut disk) = history(sizes);
        disk.write(SegmentId(1), at, second).unwrap();
        assert_eq!(first(&rig, &mut disk), (SegmentId(1), at, RotReason::BatchMisplaced));
    }
}

#[test]
fn bytes_where_nothing_was_written_are_told_and_refused_where_the_log_may_go_on_in_them() {
    let (rig, disk) = three_segments();
    // In a spare in which no torn batch begins, and in the unused end of a segment.
    let mut stray = disk.crash(&mut |_, _| false);
    stray.flip_bit(SegmentId(5), 20_000, 3).unwrap();
    assert_eq!(put_aside(&rig, stray, SegmentId(5)), (16_384, RotReason::Stray));

    let mut rig = Rig::new(OPTIONS);
    for payload_bytes in [6000, 6000, 100, 6000] {
        rig.batch(&[payload_bytes]);
    }
    assert_eq!(rig.kept[3].location.segment, SegmentId(2), "4 KiB of the first are unused");
    let mut unused = rig.disk.crash(&mut |_, _| false);
    unused.flip_bit(SegmentId(1), 25_000, 3).unwrap();
    let [Rot { segment: SegmentId(1), offset: 24_576, reason: RotReason::Stray, loss: Loss::Nothing, .. }] =
        rotten(&rig, OPTIONS, &mut unused)[..]
    else {
        panic!("it costs nothing")
    };

    let mut two = disk.crash(&mut |_, _| false);
    let &(segment, _, end) = batches(&mut two).last().unwrap();
    two.flip_bit(segment, end, 0).unwrap();
    two.flip_bit(segment.next(), 4096, 0).unwrap();
    assert_eq!(refused(&mut two), (segment, end, RotReason::Stray));
}

#[test]
fn a_payload_that_imitates_a_batch_is_only_a_payload() {
    // Somebody sends the bytes of a log as a message, placed so that they start a page of the batch that is torn.
    let (_, other) = three_segments();
    let mut other = other.crash(&mut |_, _| false);
    let (segment, start, _) = batches(&mut other)[1];
    let forged = other.contents(segment).unwrap()[start as usize..start as usize + 3000].to_vec();
    let mut rig = Rig::new(OPTIONS);
    // Segments of the other log have other generations.
    rig.disk = RamDisk::new(OPTIONS.shard, 8);
    rig.log = open(OPTIONS, &mut rig.disk).unwrap().0;
    rig.batch(&[10]);
    let header = rig.kept[0].header;
    let mut payload = vec![1; 4096 - 64 - 32];
    payload.extend_from_slice(&forged);
    rig.log.append(&header, &payload).unwrap();
    let write = rig.log.next_write().unwrap();
    assert_eq!(&write.batch.as_ref()[4096..4104], b"whmbrlBT");
    rig.disk.write_unflushed(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
    // The batch's own header is lost, the forged one survives.
    let mut nth = 0;
    let mut disk = rig.disk.crash(&mut |_, _| {
        nth += 1;
        nth > 1
    });
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!(found, rig.kept);
    assert!(recovered.truncated.is_some());
}

#[test]
fn a_log_of_another_shard_or_size_is_refused_by_name() {
    let (_, mut disk) = three_segments();
    let mut options = OPTIONS;
    options.shard += 1;
    assert!(matches!(open(options, &mut disk), Err(OpenError::Foreign { shard: 3, .. })));
    options = OPTIONS;
    options.segment_size += 4096;
    let error = open(options, &mut disk).err().unwrap();
    assert!(matches!(error, OpenError::Foreign { size_bytes: 28_672, .. }));
    assert!(error.to_string().contains("set segment_size as it was"), "{error}");
}
