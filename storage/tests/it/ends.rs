//! The mark of a clean end: who finds it need not look behind the newest checkpoint, and nobody believes one that is stale.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use whimbrel_storage::{Disk, FileDisk, Log, OpenError, RecordHeader, RecordKind, Recovered, Wanted};

use crate::rig::OPTIONS;

/// Opens the log of a directory; how many records lie behind its checkpoint.
fn open(dir: &Path) -> (FileDisk, Result<(Log, Recovered, u64), OpenError>) {
    let mut disk = FileDisk::open(dir, OPTIONS.shard).unwrap();
    let mut records = 0;
    let opened = Log::open(OPTIONS, &mut disk, &mut |_, _, _| records += 1);
    (disk, opened.map(|(log, recovered)| (log, recovered, records)))
}

/// Appends and writes so many batches of one record.
fn write(log: &mut Log, disk: &mut FileDisk, batches: u64) {
    for index in 0..batches {
        while let Some(Wanted { id, .. }) = log.segment_wanted() {
            log.segment_ready(id, disk.create_segment(id, OPTIONS.segment_size, || None).unwrap());
        }
        let header = RecordHeader { kind: RecordKind::Entry, partition: 1, term: 1, index };
        log.append(&header, &[7; 900]).unwrap();
        let write = log.next_write().unwrap();
        disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
        log.written(write.id);
    }
}

/// A checkpoint of all that is there, as an owner makes it that stops.
fn checkpoint(log: &mut Log, disk: &FileDisk) {
    let position = log.position();
    let writer = log.begin_checkpoint(position).unwrap();
    let checkpoint = writer.checkpoint();
    let mut bytes = Vec::new();
    writer.begin(&mut bytes);
    writer.end(position.batch, &mut bytes);
    let mut file = disk.begin_checkpoint(checkpoint.number).unwrap();
    file.write_all(&bytes).unwrap();
    disk.finish_checkpoint(&file, checkpoint.number, 0).unwrap();
    log.checkpoint_written(checkpoint);
}

/// A log with a checkpoint at its end, and the mark of a clean one.
fn ended(dir: &Path) -> whimbrel_storage::Position {
    let (mut disk, opened) = open(dir);
    let (mut log, ..) = opened.unwrap();
    write(&mut log, &mut disk, 5);
    assert_eq!(log.end(), None, "no checkpoint has all of it");
    checkpoint(&mut log, &disk);
    let end = log.end().unwrap();
    disk.mark_end(end).unwrap();
    end
}

/// A byte that no batch left, in the last spare segment.
fn rot_a_spare(dir: &Path) {
    let last = fs::read_dir(dir.join("shard-3")).unwrap().map(|it| it.unwrap().path());
    let last = last.filter(|path| path.extension().is_some_and(|it| it == "seg")).max().unwrap();
    fs::File::options().write(true).open(last).unwrap().write_all_at(&[1], 3 * 4096).unwrap();
}

#[test]
fn who_finds_the_mark_looks_no_further_and_goes_on_where_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let end = ended(dir.path());
    // What is not looked at is not found: that shows that it was not read.
    rot_a_spare(dir.path());
    let (mut disk, opened) = open(dir.path());
    let (mut log, recovered, records) = opened.unwrap();
    assert_eq!((recovered.batches, records, recovered.checkpoint), (0, 0, Some(1)));
    assert_eq!(log.position(), end);
    assert_eq!(disk.read_end().unwrap(), None, "it is gone before anything is written");
    // The spares that were made are known and used.
    write(&mut log, &mut disk, 1);
    assert_eq!(log.position().batch, end.batch + 1);
}

#[test]
fn a_start_that_ended_otherwise_leaves_no_mark_and_the_next_one_looks_at_all() {
    let dir = tempfile::tempdir().unwrap();
    ended(dir.path());
    drop(open(dir.path()));
    rot_a_spare(dir.path());
    let (_, opened) = open(dir.path());
    assert_eq!(opened.unwrap().1.spares_damaged, 1, "there is no mark any more");
}

#[test]
fn a_mark_that_came_back_hides_nothing() {
    // As after a loss of power that undid its removal, although that was synced.
    let dir = tempfile::tempdir().unwrap();
    ended(dir.path());
    let mark = dir.path().join("shard-3/end");
    let bytes = fs::read(&mark).unwrap();
    let (mut disk, opened) = open(dir.path());
    let (mut log, ..) = opened.unwrap();
    write(&mut log, &mut disk, 3);
    drop(log);
    fs::write(&mark, &bytes).unwrap();
    let (mut disk, opened) = open(dir.path());
    let (mut log, recovered, records) = opened.unwrap();
    assert_eq!((recovered.batches, records), (3, 3), "there is a batch where it says that the log ends");
    // And with a younger checkpoint than it names.
    checkpoint(&mut log, &disk);
    write(&mut log, &mut disk, 2);
    drop(log);
    fs::write(&mark, &bytes).unwrap();
    let (_, opened) = open(dir.path());
    assert_eq!(opened.unwrap().2, 2);
}

#[test]
fn a_mark_that_came_back_hides_nothing_in_the_next_segment() {
    let dir = tempfile::tempdir().unwrap();
    ended(dir.path());
    let mark = dir.path().join("shard-3/end");
    let bytes = fs::read(&mark).unwrap();
    let (mut disk, opened) = open(dir.path());
    let (mut log, ..) = opened.unwrap();
    // Nothing is written where it says that the log ends.
    log.seal();
    write(&mut log, &mut disk, 1);
    assert_eq!(log.position().segment.0, 2);
    drop(log);
    fs::write(&mark, &bytes).unwrap();
    let (_, opened) = open(dir.path());
    assert_eq!(opened.unwrap().2, 1);
}

#[test]
fn a_damaged_mark_is_none() {
    let dir = tempfile::tempdir().unwrap();
    ended(dir.path());
    rot_a_spare(dir.path());
    let mark = dir.path().join("shard-3/end");
    let mut bytes = fs::read(&mark).unwrap();
    bytes[9] ^= 4;
    fs::write(&mark, bytes).unwrap();
    let (_, opened) = open(dir.path());
    assert_eq!(opened.unwrap().1.spares_damaged, 1);
    // It is still there, under a name by which it does not count.
    let names = fs::read_dir(dir.path().join("shard-3")).unwrap().map(|it| it.unwrap().file_name());
    let aside: Vec<_> = names.filter(|name| name.to_str().is_some_and(|name| name.ends_with(".seg.bad"))).collect();
    assert_eq!(aside.len(), 1);
}
