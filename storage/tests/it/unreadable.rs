//! Pages that the disk does not give at a start: what was in them is told as other damage is, and nobody takes them for the place
//! where the log ends.

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    Disk, Location, Log, Loss, OpenError, RecordHeader, RecordKind, Recovered, Rot, RotReason, Rotten, SegmentId,
    check_segment,
};

use crate::rig::{Kept, OPTIONS, Rig, image, open, three_segments};

const PAGE: u32 = 4096;

/// The same without a page.
fn without(disk: &RamDisk, segment: SegmentId, page: u32) -> RamDisk {
    let mut lost = disk.crash(&mut |_, _| false);
    lost.lose_page(segment, page * PAGE).unwrap();
    lost.evict(segment);
    lost
}

/// How many pages a segment has up to the end of its last batch.
fn used(disk: &RamDisk, segment: SegmentId) -> u32 {
    let bytes = disk.contents(segment).unwrap();
    let last = bytes.chunks(PAGE as usize).rposition(|page| page.iter().any(|byte| *byte != 0));
    last.map_or(0, |last| last as u32 + 1)
}

/// Whether all that is not given out is told to be lost, in its place.
fn all_is_told(kept: &[Kept], found: &[Kept], rot: &[Rotten]) {
    let mut found = found.iter().peekable();
    let mut given = 0;
    for it in kept {
        if found.next_if(|found| *found == it).is_some() {
            given += 1;
            continue;
        }
        let whole = Location { offset: it.location.offset - 32, len: it.location.len + 32, ..it.location };
        let told = rot.iter().find(|rot| rot.rot.touches(whole));
        let told = told.unwrap_or_else(|| panic!("{it:?} is not there, and nobody says so: {rot:?}"));
        assert_eq!(told.after, Some(given));
        assert!(!matches!(told.rot.loss, Loss::Record(header) if header != it.header));
    }
    assert_eq!(found.next(), None, "something is there that was never appended");
}

fn tells_of(recovered: &Recovered, segment: SegmentId, page: u32) -> bool {
    let is = Rot { segment, offset: page * PAGE, bytes: PAGE, reason: RotReason::Unreadable, loss: Loss::Nothing };
    recovered.rot.iter().any(|rotten| rotten.rot == is)
}

#[test]
fn any_page_of_a_log_is_told_and_nothing_is_cut_off() {
    let (rig, disk) = three_segments();
    let last = SegmentId(3);
    let (mut told, mut refused) = (0, 0);
    for segment in (1..=5).map(SegmentId) {
        for page in 0..OPTIONS.segment_size / PAGE {
            let mut lost = without(&disk, segment, page);
            let before = image(&mut lost);
            let what = format!("page {page} of segment {segment}");
            // The last batch is one page long. There and behind it the log may go on, and in the first page of the next segment.
            let may_end = segment == last && page + 1 >= used(&disk, last) || segment == last.next() && page == 1;
            match open(OPTIONS, &mut lost) {
                Ok((_, recovered, found)) => {
                    assert!(!may_end && tells_of(&recovered, segment, page), "{what}: {:?}", recovered.rot);
                    assert_eq!(recovered.truncated, None);
                    assert_eq!(recovered.spares_damaged, u32::from(segment > last), "{what}");
                    assert!(page > 0 && segment <= last || found == rig.kept, "{what}");
                    all_is_told(&rig.kept, &found, &recovered.rot);
                    let left = image(&mut lost);
                    assert!(left[..] == before[..left.len()] && left.len() >= 3, "{what}: the disk was changed");
                    told += 1;
                }
                Err(OpenError::Rot { segment: at, offset, reason }) => {
                    assert!(may_end, "{what}");
                    assert_eq!((at, offset, reason), (segment, page * PAGE, RotReason::Unreadable));
                    assert!(image(&mut lost) == before, "{what}: the disk was changed");
                    refused += 1;
                }
                Err(other) => panic!("{what}: {other}"),
            }
        }
    }
    assert!(told > 20 && refused > 2, "{told} told, {refused} refused");
}

#[test]
fn with_the_bytes_back_all_of_it_is_there() {
    let (rig, disk) = three_segments();
    let mut lost = without(&disk, SegmentId(2), 2);
    let was = disk.contents(SegmentId(2)).unwrap();
    let (_, recovered, found) = open(OPTIONS, &mut lost).unwrap();
    assert!(tells_of(&recovered, SegmentId(2), 2) && found.len() < rig.kept.len());
    lost.write(SegmentId(2), 2 * PAGE, &was[2 * PAGE as usize..3 * PAGE as usize]).unwrap();
    let (_, recovered, found) = open(OPTIONS, &mut lost).unwrap();
    assert!(recovered.rot.is_empty() && found == rig.kept);
}

/// Writes a checkpoint of all that is there.
fn checkpoint(rig: &mut Rig) {
    let position = rig.log.position();
    let writer = rig.log.begin_checkpoint(position).unwrap();
    let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
    writer.begin(&mut bytes);
    writer.end(position.batch, &mut bytes);
    rig.disk.put_checkpoint(checkpoint.number, bytes, 0).unwrap();
    rig.log.checkpoint_written(checkpoint);
}

#[test]
fn what_lies_before_the_position_is_told_too() {
    let (mut rig, _) = three_segments();
    checkpoint(&mut rig);
    let at = rig.log.position();
    let disk = rig.disk.crash(&mut |_, _| false);
    for page in 0..at.offset / PAGE {
        let mut lost = without(&disk, at.segment, page);
        let (_, recovered, _) = open(OPTIONS, &mut lost).unwrap();
        assert!(tells_of(&recovered, at.segment, page), "page {page}: {:?}", recovered.rot);
        assert!(recovered.rot.iter().all(|rotten| rotten.after.is_none()), "page {page}: {:?}", recovered.rot);
        assert!(page == 0 || recovered.rot.iter().any(|rotten| rotten.rot.loss != Loss::Nothing), "page {page}");
    }
    // Of segments before that a start reads the first page only.
    let mut lost = without(&disk, SegmentId(1), 0);
    let (_, recovered, _) = open(OPTIONS, &mut lost).unwrap();
    assert!(tells_of(&recovered, SegmentId(1), 0));
    assert_eq!(open(OPTIONS, &mut without(&disk, SegmentId(1), 1)).unwrap().1.rot, []);
}

#[test]
fn a_first_page_without_a_batch_behind_it_is_known_by_the_checkpoint_that_goes_on_there() {
    let (mut rig, _) = three_segments();
    rig.log.seal();
    checkpoint(&mut rig);
    let at = rig.log.position();
    assert_eq!((at.segment, at.offset), (SegmentId(4), PAGE));
    let disk = rig.disk.crash(&mut |_, _| false);
    let mut flipped = disk.crash(&mut |_, _| false);
    flipped.flip_bit(at.segment, 26, 3).unwrap();
    for (mut disk, reason) in
        [(without(&disk, at.segment, 0), RotReason::Unreadable), (flipped, RotReason::SegmentHeader)]
    {
        let (log, recovered, _): (Log, _, _) = open(OPTIONS, &mut disk).unwrap();
        let [Rotten { rot, after: None }] = recovered.rot[..] else { panic!("{:?}", recovered.rot) };
        assert_eq!((rot.segment, rot.offset, rot.reason, rot.loss), (at.segment, 0, reason, Loss::Nothing));
        assert_eq!(log.position(), at);
    }
}

#[test]
fn a_page_of_zeros_that_is_lost_is_looked_at_by_nobody_until_it_is_read_again() {
    // Its bytes are known, for the checksum holds with zeros; but its page is not there to be looked at.
    let mut rig = Rig::new(OPTIONS);
    let header = |index| RecordHeader { kind: RecordKind::Entry, partition: 1, term: 1, index };
    let append = |rig: &mut Rig, payload: &[u8]| {
        let location = rig.log.append(&header(rig.kept.len() as u64 + 1), payload).unwrap();
        rig.kept.push(Kept { header: header(rig.kept.len() as u64 + 1), location, payload: payload.to_vec() });
    };
    append(&mut rig, &[5; 100]);
    append(&mut rig, &[0; 7500]);
    rig.settle();
    append(&mut rig, &[6; 100]);
    rig.settle();
    let (small, zeros) = (rig.kept[0].location, rig.kept[1].location);
    let page = 2;
    assert!((zeros.offset..zeros.offset + zeros.len).contains(&(page * PAGE)));
    for is_before_position in [false, true] {
        if is_before_position {
            rig.log.seal();
            checkpoint(&mut rig);
            checkpoint(&mut rig);
        }
        let mut lost = without(&rig.disk.crash(&mut |_, _| false), SegmentId(1), page);
        let (mut log, recovered) = Log::open(OPTIONS, &mut lost, &mut |_, _, _| {}).unwrap();
        if is_before_position {
            // Whoever wants to look there has it read in.
            let is = log.segment_is(SegmentId(1)).unwrap();
            let partly = lost.read_in(SegmentId(1), &log.mapping(SegmentId(1)).unwrap()).unwrap().unwrap();
            let checked = check_segment(&is, &mut { partly });
            assert!(checked.lost(zeros).is_none(), "nothing is lost by it");
            log.was_read(SegmentId(1), &checked.unreadable());
            log.warmed(SegmentId(1), checked.end);
        } else {
            assert!(tells_of(&recovered, SegmentId(1), page), "{:?}", recovered.rot);
        }
        assert!(log.is_warm(zeros) && log.read(zeros).is_none(), "a look at it would end the process");
        assert_eq!(log.read(small).unwrap(), [5; 100][..]);
        log.was_read(SegmentId(1), &[]);
        assert_eq!(log.read(zeros).unwrap(), [0; 7500][..]);
    }
}
