//! The log over real files.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use whimbrel_storage::{ColdDone, ColdWork, Disk, FileDisk, Log, LogOptions, Loss, Rot, Rotten, SegmentId, Wanted};

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
            let made = std::thread::spawn(move || disk.create_segment(id, OPTIONS.segment_size, || None));
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
fn what_a_crash_left_of_a_segment_that_was_being_made_is_removed_and_no_start_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    let made = disk.create(SegmentId(1), 8192).unwrap();
    assert_eq!(made.len(), 8192);
    assert!(made[4096..].iter().all(|&byte| byte == 0));
    let tmp = dir.path().join("shard-0/0000000002.tmp");
    fs::write(&tmp, b"half").unwrap();
    // Of the mark of a clean end: that name is used again when the log ends, whatever was to be removed.
    fs::write(dir.path().join("shard-0/.end.tmp"), b"half").unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    assert_eq!(disk.leftovers(), 1);
    assert_eq!(disk.list().unwrap(), [SegmentId(1)]);
    assert!(matches!(&disk.remove_leftovers()[..], [(path, Ok(()))] if *path == tmp));
    assert_eq!(names(&dir.path().join("shard-0")), ["0000000001.seg"]);
}

#[test]
fn a_segment_that_is_there_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    disk.create(SegmentId(1), 8192).unwrap();
    disk.write(SegmentId(1), 4096, b"kept").unwrap();
    let error = disk.create(SegmentId(1), 8192).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(&disk.open(SegmentId(1)).unwrap()[4096..4100], b"kept");
}

/// The names in the directory of a shard.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// Puts a directory, which is not removed as a file is, in the place of a file, and the file beside it.
fn make_irremovable(path: &Path) -> PathBuf {
    let hidden = path.with_extension("hidden");
    fs::rename(path, &hidden).unwrap();
    fs::create_dir(path).unwrap();
    hidden
}

/// The file is back, and can be removed.
fn make_removable(path: &Path) {
    fs::remove_dir(path).unwrap();
    fs::rename(path.with_extension("hidden"), path).unwrap();
}

#[test]
fn what_could_not_be_removed_is_removed_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    drop(disk.create(SegmentId(1), 8192).unwrap());
    disk.write(SegmentId(1), 4096, b"was delivered").unwrap();
    let path = disk.path(SegmentId(1));
    make_irremovable(&path);
    // By another handle than that of whoever tries again.
    disk.clone().remove_segment(SegmentId(1)).unwrap_err();
    for _ in 0..2 {
        assert_eq!(disk.leftovers(), 1);
        let [(again, Err(_))] = &disk.remove_leftovers()[..] else { panic!("it cannot be removed") };
        assert_eq!(*again, path);
    }
    make_removable(&path);
    assert!(matches!(&disk.remove_leftovers()[..], [(_, Ok(()))]));
    assert_eq!(disk.leftovers(), 0);
    assert!(names(&dir.path().join("shard-0")).is_empty());
}

#[test]
fn what_a_crash_left_and_cannot_be_removed_keeps_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let tmp = dir.path().join("shard-0/0000000002.tmp");
    fs::create_dir_all(&tmp).unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    assert_eq!(disk.leftovers(), 1);
    disk.create(SegmentId(2), 8192).unwrap_err();
    fs::remove_dir(&tmp).unwrap();
    // Whoever makes the segment has the name from then on: what is removed later is not what it makes.
    disk.create(SegmentId(2), 8192).unwrap();
    assert_eq!(disk.leftovers(), 0);
    assert!(disk.remove_leftovers().is_empty());
    assert_eq!(disk.list().unwrap(), [SegmentId(2)]);
}

#[test]
fn of_a_segment_that_is_not_made_of_another_neither_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    let make = |disk: &mut FileDisk, id| {
        drop(disk.create(id, 8192).unwrap());
        disk.write(id, 4096, b"was delivered").unwrap();
    };
    // The name of the new one is taken, or the one that it has until it is whole.
    for (old, in_the_way) in [(1, "0000000009.seg"), (2, "0000000009.tmp")] {
        make(&mut disk, SegmentId(old));
        let in_the_way = dir.path().join("shard-0").join(in_the_way);
        fs::create_dir(&in_the_way).unwrap();
        disk.recycle(SegmentId(old), 8192, SegmentId(9), 8192).unwrap_err();
        assert!(!disk.list().unwrap().contains(&SegmentId(old)), "its bytes are there");
        fs::remove_dir(&in_the_way).unwrap();
    }
    // It cannot be removed either.
    make(&mut disk, SegmentId(3));
    let path = disk.path(SegmentId(3));
    make_irremovable(&path);
    let tmp = dir.path().join("shard-0/0000000009.tmp");
    fs::write(&tmp, "").unwrap();
    disk.recycle(SegmentId(3), 8192, SegmentId(9), 8192).unwrap_err();
    assert_eq!(disk.leftovers(), 1);
    make_removable(&path);
    assert!(matches!(&disk.remove_leftovers()[..], [(gone, Ok(()))] if *gone == path));
    assert!(!path.exists());
}

#[test]
fn what_is_put_aside_never_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    let shard = dir.path().join("shard-0");
    for times in 1..=3 {
        fs::write(shard.join("0000000007.ckpt"), vec![b'c'; times]).unwrap();
        disk.set_aside_checkpoint(7).unwrap();
        // Of spare segments, in which nothing ever was, the first is enough.
        fs::write(shard.join("0000000009.seg"), vec![b's'; times]).unwrap();
        disk.set_aside(SegmentId(9)).unwrap();
    }
    let found: Vec<_> = disk.put_aside().unwrap().into_iter().map(|it| (it.name, it.bytes)).collect();
    let expected = [
        ("0000000007.2.ckpt.bad", 2),
        ("0000000007.3.ckpt.bad", 3),
        ("0000000007.ckpt.bad", 1),
        ("0000000009.seg.bad", 1),
    ];
    assert_eq!(found, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    assert_eq!(names(&shard).len(), 4, "nothing else is there");
    assert!(disk.checkpoints().unwrap().is_empty() && disk.list().unwrap().is_empty(), "none of them counts");
}

#[test]
fn a_segment_made_of_another_has_none_of_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    let old = disk.create(SegmentId(1), 8192).unwrap();
    disk.write(SegmentId(1), 4096, &[b'x'; 4096]).unwrap();
    let header = old[..64].to_vec();
    drop(old);
    let made = disk.recycle(SegmentId(1), 8192, SegmentId(2), 8192).unwrap();
    assert_eq!(disk.list().unwrap(), [SegmentId(2)]);
    let bytes = fs::read(disk.path(SegmentId(2))).unwrap();
    assert_eq!(bytes, made);
    assert!(bytes[64..].iter().all(|byte| *byte == 0), "old bytes are left");
    assert_ne!(bytes[24..32], header[24..32], "its generation is another");
}

/// A log of files with one record, and the bytes of its first checkpoint.
fn with_checkpoint(dir: &std::path::Path) -> (FileDisk, Log, u64, Vec<u8>) {
    let mut disk = FileDisk::open(dir, OPTIONS.shard).unwrap();
    let (mut log, ..) = open(OPTIONS, &mut disk).unwrap();
    fill(&mut log, &disk, 3);
    let mut writer = log.begin_checkpoint(log.position()).unwrap();
    let (number, mut bytes) = (writer.checkpoint().number, Vec::new());
    writer.begin(&mut bytes);
    writer.piece(b"all of it", &mut bytes);
    writer.end(log.position().batch, &mut bytes);
    (disk, log, number, bytes)
}

#[test]
fn a_checkpoint_that_does_not_read_back_as_it_was_written_never_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, _log, number, bytes) = with_checkpoint(dir.path());
    let mut file = disk.begin_checkpoint(number).unwrap();
    file.write_all(&bytes).unwrap();
    disk.finish_checkpoint(&file, number, 0).unwrap();
    assert_eq!(disk.checkpoints().unwrap(), [number]);

    // The next one: a bit of it is another one on the disk than was written.
    let mut file = disk.begin_checkpoint(number + 1).unwrap();
    let mut other = bytes.clone();
    // Its number, and the sum that belongs to it; then a bit of its piece.
    other[16] += 1;
    let crc = crc32c::crc32c(&other[..60]);
    other[60..64].copy_from_slice(&crc.to_le_bytes());
    other[80] ^= 1;
    file.write_all(&other).unwrap();
    let error = disk.finish_checkpoint(&file, number + 1, number + 1).unwrap_err();
    assert!(error.to_string().contains("damaged at byte"), "{error}");
    assert_eq!(disk.checkpoints().unwrap(), [number], "the one before is kept, and no other counts");
    disk.abandon_checkpoint(number + 1);
    // Its bytes on the disk are kept for the next one, and no start reads them.
    let names = fs::read_dir(dir.path().join("shard-3")).unwrap().map(|it| it.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".seg"));
    names.sort_unstable();
    assert_eq!(names, ["0.reserve".to_owned(), format!("{number:010}.ckpt")]);
    let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!((recovered.checkpoint, recovered.checkpoints_damaged, found.len()), (Some(number), 0, 0));
}

/// Writes a checkpoint with one piece of so many bytes.
fn put_checkpoint(log: &mut Log, disk: &FileDisk, bytes: usize) -> u64 {
    let keep_from = log.newest_checkpoint().map_or(0, |newest| newest.number);
    put_checkpoint_beside(log, disk, bytes, keep_from)
}

fn put_checkpoint_beside(log: &mut Log, disk: &FileDisk, bytes: usize, keep_from: u64) -> u64 {
    let mut writer = log.begin_checkpoint(log.position()).unwrap();
    let checkpoint = writer.checkpoint();
    let mut out = Vec::new();
    writer.begin(&mut out);
    writer.piece(&vec![7; bytes], &mut out);
    writer.end(log.position().batch, &mut out);
    let mut file = disk.begin_checkpoint(checkpoint.number).unwrap();
    file.write_all(&out).unwrap();
    disk.finish_checkpoint(&file, checkpoint.number, keep_from).unwrap();
    log.checkpoint_written(checkpoint);
    checkpoint.number
}

#[test]
fn checkpoints_are_written_into_bytes_that_the_disk_keeps_for_them() {
    const KEPT: u64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (mut log, _, _) = open(OPTIONS, &mut disk).unwrap();
    disk.reserve_checkpoint(KEPT).unwrap();
    let folder = dir.path().join("shard-3");
    let facts = |name: String| fs::metadata(folder.join(name)).map(|it| (it.ino(), it.blocks() * 512)).unwrap();
    let mut kept: Vec<_> = (0..3).map(|number| facts(format!("{number}.reserve"))).collect();
    kept.sort_unstable();
    assert!(kept.iter().all(|(_, bytes)| *bytes >= KEPT), "{kept:?}");
    for bytes in [5000, 200_000, 10, 90_000, 3] {
        let number = put_checkpoint(&mut log, &disk, bytes);
        let (inode, blocks) = facts(format!("{number:010}.ckpt"));
        assert!(kept.iter().any(|it| it.0 == inode), "checkpoint {number} has a file of its own");
        assert!(blocks >= KEPT, "checkpoint {number} gave {blocks} bytes back");
    }
    // One that fails gives its bytes back to the next, and so does one that a crash left.
    disk.begin_checkpoint(6).unwrap();
    disk.abandon_checkpoint(6);
    disk.begin_checkpoint(6).unwrap();
    drop(log);
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (mut log, recovered, _) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!((recovered.checkpoint, recovered.checkpoints_damaged), (Some(5), 0));
    let names = || {
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.ends_with(".seg")).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(), ["0.reserve", "0000000004.ckpt", "0000000005.ckpt"]);
    // A crash when the new one was in its place and the oldest was there yet: no other file has bytes for the next.
    put_checkpoint_beside(&mut log, &disk, 10, 0);
    assert_eq!(names(), ["0000000004.ckpt", "0000000005.ckpt", "0000000006.ckpt"]);
    let oldest = facts("0000000004.ckpt".to_owned());
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (_, recovered, _) = open(OPTIONS, &mut disk).unwrap();
    assert_eq!(recovered.checkpoint, Some(6));
    disk.reserve_checkpoint(KEPT).unwrap();
    assert_eq!(names(), ["0.reserve", "0000000005.ckpt", "0000000006.ckpt"]);
    assert_eq!(facts("0.reserve".to_owned()), oldest);
}

#[test]
fn what_cannot_be_read_ends_no_process_that_moves_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), OPTIONS.shard).unwrap();
    let (mut log, _, _) = open(OPTIONS, &mut disk).unwrap();
    let kept = fill(&mut log, &disk, 60);
    let mut places: VecDeque<_> =
        kept.iter().map(|kept| kept.location).filter(|it| it.segment == SegmentId(2)).collect();
    places.iter().for_each(|place| log.hold(*place));
    // A look at a page of the mapping behind the end of the file is a SIGBUS, as one at a page with an error of the device is.
    disk.file(SegmentId(2)).unwrap().set_len(4096).unwrap();
    let copy = log.plan_copy(&mut places).unwrap();
    let error = ColdWork::Copy(copy).run(&mut disk).unwrap_err();
    assert!(error.to_string().contains("0000000002.seg has 4096 bytes"), "{error}");
}

#[test]
fn what_cannot_be_read_any_more_ends_no_process_that_erases_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_size: 4 << 20, batch_max: 256 << 10, staging_max: 1 << 20, ..OPTIONS };
    let mut disk = FileDisk::open(dir.path(), options.shard).unwrap();
    let (mut log, _, _) = open(options, &mut disk).unwrap();
    let mut places = VecDeque::new();
    for index in 0..50 {
        let place = log.append(&header(index), &[7; 50_000]).unwrap();
        log.hold(place);
        places.push_back(place);
        while let Some(write) = log.next_write() {
            disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
            log.written(write.id);
        }
    }
    while let Some(copy) = log.plan_copy(&mut places) {
        let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut disk) else { panic!("it can be written") };
        assert_eq!(copied.rotten, []);
        log.copied(&copied);
    }
    let ends = log.cold_ends();
    log.settle(&ends);
    let [(cold, _)] = ends[..] else { panic!("{ends:?}") };
    let erase = log.plan_erase(cold, whimbrel_storage::Kept::default()).unwrap();
    let Ok(ColdDone::Erased(erase)) = ColdWork::Erase(erase).run(&mut disk) else { panic!("it can be read") };
    assert!(erase.is_begun() && !erase.is_done());
    // What was in memory when it began is not any more.
    disk.file(cold).unwrap().set_len(4096).unwrap();
    let error = ColdWork::Erase(erase).run(&mut disk).unwrap_err();
    assert!(error.to_string().contains("has 4096 bytes"), "{error}");
}

#[test]
fn pages_are_copied_from_memory_and_past_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 0).unwrap();
    disk.create(SegmentId(1), 1 << 20).unwrap();
    let written: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
    disk.write(SegmentId(1), 8192, &written).unwrap();
    for (from, len) in [(0, 4096), (4096, 8192), (8192, 262_144), (12_288, 1 << 19), (0, 1 << 20)] {
        let (mut seen, mut stored) = (vec![1; len], vec![1; len]);
        assert_eq!(disk.read_pages(SegmentId(1), from, &mut seen).unwrap(), []);
        assert_eq!(seen, disk.open(SegmentId(1)).unwrap()[from as usize..from as usize + len]);
        // Not every file system can.
        if let Some(unreadable) = disk.read_stored(SegmentId(1), from, &mut stored).unwrap() {
            assert_eq!(unreadable, []);
            assert!(seen == stored, "{len} bytes from {from} on");
        }
    }
}
