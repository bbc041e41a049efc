//! Bounds of memory, views, rolling of segments, and what a failed write does.

use whimbrel_storage::{AppendError, Disk, LogOptions, SegmentId, Wanted, record_bytes};

use crate::rig::{OPTIONS, Rig};

#[test]
fn staging_is_bounded_and_takes_more_once_a_write_completed() {
    let mut rig = Rig::new(OPTIONS);
    rig.prepare();
    let payload_bytes = 3000;
    let mut taken = 0;
    while rig.log.has_room(payload_bytes) {
        rig.append(payload_bytes).unwrap();
        taken += 1;
    }
    assert_eq!(rig.append(payload_bytes), Err(AppendError::Full));
    assert_eq!(taken, 8, "four buffers of two records");
    assert_eq!(rig.log.staged_bytes(), taken * record_bytes(payload_bytes));
    assert!(rig.log.staged_bytes() <= OPTIONS.staging_max as usize);

    assert!(rig.submit());
    assert_eq!(rig.append(payload_bytes), Err(AppendError::Full), "written is not flushed");
    assert!(rig.complete());
    rig.append(payload_bytes).unwrap();
    rig.check_reads();
    rig.settle();
    rig.check_reads();
}

#[test]
fn a_view_of_staging_stays_as_it_is_until_it_is_dropped() {
    let mut rig = Rig::new(OPTIONS);
    rig.prepare();
    let mut views = Vec::new();
    // One view of each buffer is held. With all of them viewed there is no room for another batch.
    for _ in 0..4 {
        rig.append(5000).unwrap();
        let kept = rig.kept.last().unwrap();
        views.push((rig.log.read(kept.location).unwrap(), kept.payload.clone()));
        rig.settle();
    }
    assert!(!rig.log.has_room(1));
    assert_eq!(rig.append(1), Err(AppendError::Full));
    let (view, _) = views.pop().unwrap();
    let part = view.slice(10..20);
    drop(view);
    assert_eq!(rig.append(1), Err(AppendError::Full), "a slice of a view holds it too");
    drop(part);
    for _ in 0..20 {
        rig.append(5000).unwrap();
        rig.settle();
        for (view, payload) in &views {
            assert_eq!(view, payload);
        }
    }
    // After the write a view is one of the segment, and holds no staging.
    let views: Vec<_> = rig.kept.iter().map(|kept| rig.log.read(kept.location).unwrap()).collect();
    assert!(rig.log.has_room(OPTIONS.payload_max()));
    drop(rig);
    assert_eq!(views.last().unwrap().len(), 5000, "a view outlives the log");
}

#[test]
fn a_view_given_early_and_one_given_late_see_the_same_batch() {
    let mut rig = Rig::new(OPTIONS);
    rig.append(100).unwrap();
    let early = rig.log.read(rig.kept[0].location).unwrap();
    rig.append(200).unwrap();
    rig.check_reads();
    assert_eq!(early, rig.kept[0].payload);
    let inner = rig.kept[1].location.slice(50, 20);
    assert_eq!(rig.log.read(inner).unwrap(), rig.kept[1].payload[50..70]);
}

#[test]
fn places_where_nothing_was_appended_read_as_nothing() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100]);
    let mut past = rig.kept[0].location;
    past.len += 4096;
    assert_eq!(rig.log.read(past), None);
    rig.append(100).unwrap();
    let mut staged = rig.kept[1].location;
    staged.len += 1;
    assert!(rig.log.read(staged).is_some() == (staged.len <= 104), "padding belongs to the record");
    staged.len += 8;
    assert_eq!(rig.log.read(staged), None);
    staged.segment = SegmentId(9);
    assert_eq!(rig.log.read(staged), None);
    staged.segment = SegmentId(0);
    assert_eq!(rig.log.read(staged), None);
    staged.offset = u32::MAX;
    assert_eq!(rig.log.read(staged), None);
}

#[test]
fn the_largest_record_fits_and_one_byte_more_is_refused() {
    let mut rig = Rig::new(OPTIONS);
    let max_bytes = rig.log.payload_max();
    assert_eq!(max_bytes, 8192 - 96);
    rig.batch(&[max_bytes]);
    let payload_bytes = max_bytes + 1;
    assert_eq!(rig.append(payload_bytes), Err(AppendError::TooLarge { payload_bytes, max_bytes }));
    rig.batch(&[1]);
    rig.check_reads();
    assert_eq!(LogOptions::new(0).payload_max(), 262_048);
}

#[test]
fn records_gather_while_a_write_is_in_flight() {
    let mut rig = Rig::new(OPTIONS);
    rig.prepare();
    rig.append(10).unwrap();
    assert!(rig.submit());
    for _ in 0..5 {
        rig.append(10).unwrap();
        assert!(!rig.submit(), "one write at a time");
    }
    assert_eq!(rig.log.durable().0, 0);
    assert!(rig.complete());
    assert_eq!((rig.log.durable().0, rig.log.appended().0), (1, 6));
    assert!(rig.submit());
    assert!(rig.complete());
    assert_eq!(rig.log.durable(), rig.log.appended());
    assert!(!rig.submit(), "nothing is staged");
}

#[test]
fn segments_roll_and_are_asked_for_ahead() {
    let mut rig = Rig::new(OPTIONS);
    let mut asked = Vec::new();
    for _ in 0..40 {
        while let Some(Wanted { id, .. }) = rig.log.segment_wanted() {
            asked.push(id.0);
            assert!(rig.log.segment_wanted().is_none(), "one at a time");
            let mapping = rig.disk.create(id, OPTIONS.segment_size).unwrap();
            rig.log.segment_ready(id, mapping);
        }
        rig.append(5000).unwrap();
        assert!(rig.submit() && rig.complete());
    }
    let last = rig.kept.last().unwrap().location.segment.0;
    assert_eq!(last, 14, "three batches of 8 KiB a segment");
    asked.extend(rig.log.segment_wanted().map(|wanted| wanted.id.0));
    assert_eq!(asked, (2..=last + 2).collect::<Vec<_>>());
    rig.check_reads();
    for kept in &rig.kept {
        assert!(kept.location.offset.is_multiple_of(8));
        assert!(kept.location.offset + kept.location.len <= OPTIONS.segment_size);
    }
}

#[test]
fn a_batch_waits_for_its_segment_and_a_failed_segment_is_asked_for_again() {
    let mut rig = Rig::new(OPTIONS);
    for _ in 0..3 {
        rig.append(5000).unwrap();
        assert!(rig.submit() && rig.complete());
    }
    rig.append(5000).unwrap();
    assert!(!rig.submit(), "its segment is not there");
    rig.check_reads();
    rig.disk.faults.create = true;
    for _ in 0..3 {
        let id = rig.log.segment_wanted().unwrap().id;
        assert_eq!(id, SegmentId(2));
        assert!(rig.disk.create(id, OPTIONS.segment_size).is_err());
        rig.log.segment_failed(id);
    }
    rig.disk.faults.create = false;
    rig.settle();
    rig.check_reads();
}

#[test]
fn a_failed_write_poisons_the_log() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[10]);
    rig.append(20).unwrap();
    let write = rig.log.next_write().unwrap();
    rig.append(30).unwrap();
    rig.disk.faults.flush = true;
    assert!(rig.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).is_err());
    rig.log.failed(write.id);
    assert!(rig.log.is_poisoned());
    assert_eq!(rig.append(1), Err(AppendError::Poisoned));
    assert!(!rig.log.has_room(1));
    assert!(rig.log.next_write().is_none());
    assert!(rig.log.segment_wanted().is_none());
    assert_eq!(rig.log.durable().0, 1);
    rig.check_reads();
    // The next start reads what is on the disk: the first record for certain.
    let mut disk = rig.disk.crash(&mut |_, _| false);
    disk.faults.flush = false;
    assert_eq!(rig.reopen(disk).unwrap().records, 1);
}

#[test]
#[should_panic(expected = "only the write in flight can complete")]
fn a_completion_that_was_not_asked_for_is_a_bug() {
    let mut rig = Rig::new(OPTIONS);
    rig.append(1).unwrap();
    let id = rig.log.next_write().unwrap().id;
    rig.log.written(id);
    rig.log.written(id);
}

#[test]
fn bounds_that_do_not_fit_together_are_refused() {
    for options in [
        LogOptions { batch_max: 5000, ..OPTIONS },
        LogOptions { batch_max: 2 << 20, segment_size: 8 << 20, staging_max: 8 << 20, ..OPTIONS },
        LogOptions { segment_size: 8192, ..OPTIONS },
        LogOptions { segment_size: 28_000, ..OPTIONS },
        LogOptions { staging_max: 8192, ..OPTIONS },
        LogOptions { warm_max: 4 * u64::from(OPTIONS.segment_size) - 1, ..OPTIONS },
    ] {
        assert!(options.check().is_err(), "{options:?}");
    }
    assert_eq!(OPTIONS.check(), Ok(()));
    assert_eq!(LogOptions::new(1).check(), Ok(()));
}
