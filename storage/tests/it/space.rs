//! Whoever of a node has no space on the disk gets at once what was removed, which else gives its bytes back slowly.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use whimbrel_storage::{Asked, DataDir, FileDisk, SegmentId, Shape};

const SEGMENT_BYTES: u32 = 4 << 20;

/// A file system in memory that has room for three segments and little more, mounted nowhere: it is gone with this value.
struct Small {
    root: OwnedFd,
}

impl Small {
    /// `None`, and says so, without the right to make one.
    fn new() -> Option<Small> {
        let make = || {
            let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&fs, "size", "14m")?;
            fsconfig_create(&fs)?;
            fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        match make() {
            Ok(root) => Some(Small { root }),
            Err(error) => {
                println!("skipped: no small file system can be made here ({error})");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.root.as_raw_fd()).into()
    }

    /// Somebody else's file takes what is left.
    fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        while file.write(&[7; 4096]).is_ok_and(|written| written > 0) {}
    }
}

/// Two shards on a file system that is full but for what the first has removed.
fn full_but_for_what_was_removed(small: &Small) -> (DataDir, [FileDisk; 2]) {
    let shape = Shape { partitions: 16, shards: 2, segment_size: SEGMENT_BYTES };
    let data = DataDir::open(&small.path().join("data"), shape, Asked::default()).unwrap();
    let disks = [data.disk(0).unwrap(), data.disk(1).unwrap()];
    for id in [SegmentId(1), SegmentId(2)] {
        drop(disks[0].create_segment(id, SEGMENT_BYTES, || None).unwrap());
    }
    disks[0].remove_segment(SegmentId(1)).unwrap();
    small.fill();
    assert_eq!(disks[0].unlinked().count(), 1);
    (data, disks)
}

#[test]
fn a_segment_is_made_of_what_another_shard_removed() {
    let Some(small) = Small::new() else { return };
    let (data, [first, second]) = full_but_for_what_was_removed(&small);
    let error = first.create_segment(SegmentId(3), 3 * SEGMENT_BYTES, || None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "so much was not removed");
    drop((data, first, second));

    let Some(small) = Small::new() else { return };
    let (_data, [first, second]) = full_but_for_what_was_removed(&small);
    drop(second.create_segment(SegmentId(1), SEGMENT_BYTES, || None).unwrap());
    assert_eq!(first.unlinked().count(), 0);
    // Now there is nothing that could be given back.
    let error = second.create_segment(SegmentId(2), SEGMENT_BYTES, || None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

#[test]
fn space_for_a_checkpoint_is_kept_of_what_another_shard_removed() {
    let Some(small) = Small::new() else { return };
    let (_data, [first, second]) = full_but_for_what_was_removed(&small);
    // Three of them.
    second.reserve_checkpoint(u64::from(SEGMENT_BYTES) / 4).unwrap();
    assert_eq!(first.unlinked().count(), 0);
    assert_eq!(second.reserve_checkpoint(u64::from(SEGMENT_BYTES)).unwrap_err().kind(), ErrorKind::StorageFull);
}
