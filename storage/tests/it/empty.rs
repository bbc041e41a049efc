//! The batch without records that a log writes which rests: one, where there is room for it, and nothing else changes by it.

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Checkpoint, Disk, LogOptions, Memory, SegmentId, check_segment};

use crate::rig::{OPTIONS, Rig, open};

/// Segments of three pages behind the first, and no spare one unless it is made by hand.
const SMALL: LogOptions =
    LogOptions { segment_size: 16 << 10, batch_max: 4096, staging_max: 16 << 10, spares: 0, ..OPTIONS };

/// A checkpoint of all that is durable, in its place.
fn checkpoint(rig: &mut Rig) -> Checkpoint {
    let writer = rig.log.begin_checkpoint(rig.log.position()).unwrap();
    let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
    writer.begin(&mut bytes);
    writer.end(rig.log.through(), &mut bytes);
    rig.disk.put_checkpoint(checkpoint.number, bytes, 0).unwrap();
    rig.log.checkpoint_written(checkpoint);
    checkpoint
}

/// The disk after a loss of power.
fn after_power_loss(rig: &Rig) -> RamDisk {
    rig.disk.crash(&mut |_, _| false)
}

#[test]
fn one_follows_records_and_none_follows_another() {
    let mut rig = Rig::new(OPTIONS);
    assert!(!rig.rest(), "nothing is there that it would follow");
    for _ in 0..3 {
        rig.batch(&[100]);
        let (durable, before) = (rig.log.durable(), rig.log.position());
        assert!(rig.rest());
        assert_eq!((rig.log.durable(), rig.log.appended(), rig.log.staged_bytes()), (durable, durable, 0));
        let after = rig.log.position();
        assert_eq!((after.batch, after.offset), (before.batch + 1, before.offset + 4096));
        assert!(!rig.rest() && !rig.rest());
        assert_eq!(rig.log.position(), after);
    }
    rig.check_reads();
    // It is there after a start, and none follows it until something was written.
    let recovered = rig.reopen(after_power_loss(&rig)).unwrap();
    assert_eq!((recovered.batches, recovered.records, recovered.truncated), (6, 3, None));
    assert!(recovered.rot.is_empty() && !rig.rest());
    rig.append(5).unwrap();
    rig.settle();
    assert!(rig.rest());
}

#[test]
fn none_is_written_while_something_is_on_its_way() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[10]);
    rig.append(10).unwrap();
    assert!(!rig.rest(), "it gathers");
    rig.prepare();
    assert!(rig.submit());
    assert!(!rig.log.takes_empty() && rig.log.write_empty().is_none(), "it is written");
    rig.append(10).unwrap();
    assert!(rig.complete());
    assert!(!rig.rest(), "the next one gathers");
    rig.settle();
    assert!(rig.rest());
}

#[test]
fn what_is_appended_while_it_is_written_goes_behind_it() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[10]);
    let write = rig.log.write_empty().unwrap();
    rig.append(20).unwrap();
    assert!(rig.log.next_write().is_none(), "one write at a time");
    rig.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
    let id = write.id;
    drop(write);
    assert_eq!(rig.log.written(id), rig.log.durable());
    assert_eq!(rig.log.durable().0 + 1, rig.log.appended().0);
    rig.settle();
    rig.check_reads();
    let recovered = rig.reopen(after_power_loss(&rig)).unwrap();
    assert_eq!((recovered.batches, recovered.records), (3, 2));
}

#[test]
fn none_is_written_where_there_is_no_room_or_after_a_failure() {
    let mut rig = Rig::new(SMALL);
    (0..3).for_each(|_| rig.batch(&[100]));
    assert!(!rig.rest(), "the segment is full, and there is no other");
    let wanted = LogOptions { spares: 1, ..SMALL };
    let mut rig = Rig::new(wanted);
    (0..3).for_each(|_| rig.batch(&[100]));
    assert!(rig.rest(), "in the next one");
    assert_eq!((rig.log.position().segment, rig.log.position().offset), (SegmentId(2), 8192));
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100]);
    let views: Vec<_> = (0..4)
        .map(|_| {
            rig.append(7000).unwrap();
            let view = rig.log.read(rig.kept.last().unwrap().location).unwrap();
            rig.settle();
            view
        })
        .collect();
    assert!(!rig.rest(), "all of the staging memory is looked at");
    drop(views);
    assert!(rig.rest());
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100]);
    let write = rig.log.write_empty().unwrap();
    rig.log.failed(write.id);
    assert!(rig.log.is_poisoned() && !rig.log.takes_empty());
}

#[test]
fn it_is_nothing_that_a_checkpoint_is_made_for_or_a_segment_is_closed_for() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100]);
    rig.prepare();
    let before = checkpoint(&mut rig);
    assert_eq!(rig.log.end(), Some(before.position));
    assert!(rig.log.can_seal() && rig.rest());
    assert!(!rig.log.has_grown_since(before.position) && rig.log.can_seal());
    assert_eq!(rig.log.end(), None, "a mark of a clean end says where the log ends");
    assert_eq!(rig.log.through(), before.position.batch);
    let after = checkpoint(&mut rig);
    assert!(!rig.log.has_grown_since(after.position) && !rig.log.has_grown_since(before.position));
    assert_eq!(rig.log.end(), Some(after.position));
    // The segment is closed: what the older checkpoint needs lies in it.
    rig.log.seal();
    assert!(rig.log.has_grown_since(after.position) && rig.log.has_grown_since(before.position));
    let closed = checkpoint(&mut rig);
    assert!(!rig.log.has_grown_since(closed.position) && !rig.log.can_seal());

    // Alone in a segment it is nothing to close that for; a record behind it is.
    rig.batch(&[100]);
    rig.log.seal();
    rig.prepare();
    let closed = checkpoint(&mut rig);
    assert!(rig.rest() && !rig.log.can_seal() && !rig.log.has_grown_since(closed.position));
    assert_eq!(rig.log.position().offset, 8192);
    rig.append(10).unwrap();
    assert!(rig.log.can_seal());
    rig.settle();
    assert!(rig.log.can_seal() && rig.log.has_grown_since(closed.position));
    assert_eq!(rig.log.through(), rig.log.position().batch);
}

#[test]
fn a_segment_with_some_is_whole_to_whoever_reads_it() {
    let mut rig = Rig::new(OPTIONS);
    for _ in 0..2 {
        rig.batch(&[100]);
        assert!(rig.rest());
    }
    let bytes = rig.disk.contents(SegmentId(1)).unwrap();
    let is = rig.log.segment_is(SegmentId(1)).unwrap();
    let checked = check_segment(&is, &mut Memory(&bytes));
    assert_eq!((checked.batches, checked.end, &checked.rot[..]), (4, 20_480, &[][..]));
    let mut disk = after_power_loss(&rig);
    let (log, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!((found.len(), recovered.batches, log.position().batch), (2, 4, 5));
}
