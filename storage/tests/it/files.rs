//! The log over real files.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use whimbrel_storage::{Disk, FileDisk, Log, Loss, Rot, Rotten, SegmentId, Wanted};

use crate::rig::{Kept, OPTIONS, open};

fn header(index: u64) -> whimbrel_storage::RecordHeader {
    whimbrel_storage::RecordHeader { kind: whimbrel_storage::RecordKind::Entry, partition: 1, term: 1, index }
}

/// Appends records of 900 bytes, three a batch, through several segments; segments are made on a thread of their own.
fn fill(log: &mut Log, disk: &FileDisk, records: u64) -> Vec<Kept> {
    let mut kept = Vec::new();
    for index in 0..records {
        let payload = vec![index as u8; 900];
        let location = log.append(&header(index), &payload).unwrap();
        kept.push(Kept { header: header(index), location, payload });
        while let Some(Wanted { id, .. }) = log.segment_wanted() {
            let disk = disk.clone();
            let made = std::thread::spawn(move || disk.create_segment(id, OPTIONS.segment_size));
            log.segment_ready(id, made.join().unwrap().unwrap());
        }
        if index % 3 == 2
            && let Some(write) = log.next_write()
        {
            disk.clone().write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
            log.written(write.id);
        }
    }
    kept
}

#[test]
fn records_written_to_files_are_read_back_through_their_mappings_and_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (mut log, recovered, _) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!((recovered.segments, recovered.records), (1, 0));
    let kept = fill(&mut log, &disk, 60);
    for kept in &kept {
        assert_eq!(log.read(kept.location).unwrap(), kept.payload);
    }
    assert!(kept.last().unwrap().location.segment > SegmentId(2));
    drop(log);

    let path = dir.path().join("shard-3/0000000002.seg");
    assert_eq!(fs::metadata(path).unwrap().len(), u64::from(OPTIONS.segment_size));
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!(found, kept);
    assert_eq!(recovered.truncated, None);
}

#[test]
fn a_torn_batch_in_a_file_is_truncated_and_a_rotten_one_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (mut log, ..) = open(OPTIONS, &mut disk).unwrap();
    let kept = fill(&mut log, &disk, 6);
    drop(log);
    let file = disk.file(SegmentId(1)).unwrap();
    let last = kept[5].location;
    file.write_all_at(&[0xee; 4], u64::from(last.offset) + 100).unwrap();
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!(found, kept[..3]);
    let truncated = recovered.truncated.unwrap();
    assert_eq!((truncated.segment, truncated.offset, truncated.bytes), (SegmentId(1), 8192, 4096));
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!((recovered.truncated, found.len()), (None, 3));

    // Damage in the first batch, with a second one behind it again.
    let (mut log, ..) = open(OPTIONS, &mut disk).unwrap();
    fill(&mut log, &disk, 3);
    drop(log);
    file.write_all_at(&[0xee; 4], u64::from(kept[0].location.offset)).unwrap();
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    let [Rotten { rot: Rot { loss: Loss::Record(lost), .. }, after: Some(0) }] = recovered.rot[..] else {
        panic!("{:?}", recovered.rot)
    };
    assert_eq!((lost, recovered.truncated, found.len()), (kept[0].header, None, 5));
}

#[test]
fn what_a_crash_left_of_a_segment_that_was_being_made_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    let made = disk.create(SegmentId(1), 8192).unwrap();
    assert_eq!(made.len(), 8192);
    assert!(made[4096..].iter().all(|&byte| byte == 0));
    fs::write(dir.path().join("shard-0/0000000002.tmp"), b"half").unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("shard-0")).unwrap().count(), 1);
    assert_eq!(disk.list().unwrap(), [SegmentId(1)]);
}

#[test]
fn a_segment_that_is_there_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    disk.create(SegmentId(1), 8192).unwrap();
    disk.write(SegmentId(1), 4096, b"kept").unwrap();
    let error = disk.create(SegmentId(1), 8192).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(&disk.open(SegmentId(1), true).unwrap()[4096..4100], b"kept");
}
