//! What the server relies on, through the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::event::{PollFd, PollFlags};
use rustix::io::ReadWriteFlags;

use super::*;
use crate::disk::Disk;
use crate::rng::Rng;
use crate::server::{PATIENCE, wait};

const SEEDS: u64 = 100;

struct Place {
    machine: Machine,
    mounted: Option<Mounted>,
    directory: tempfile::TempDir,
}

impl Place {
    /// `None`, and a line that says why, where nothing can be mounted.
    fn new() -> Option<Place> {
        mounts_of_our_own().unwrap();
        if let Some(reason) = why_not().unwrap() {
            eprintln!("power cuts: skipped, {reason}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::new(Disk::new(1, None)).unwrap();
        let mounted = Some(Mounted::new(&machine, directory.path()).unwrap());
        Some(Place { machine, mounted, directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn create(&self, name: &str) -> File {
        OpenOptions::new().read(true).write(true).create_new(true).open(self.path(name)).unwrap()
    }

    fn sync_names(&self) {
        File::open(self.directory.path()).unwrap().sync_all().unwrap();
    }

    /// In how many of the cuts that could be now the file is there and has these contents.
    fn survives(&self, name: &str, contents: &[u8]) -> u64 {
        let after = |seed| self.machine.look(|disk| disk.after_cut(&mut Rng::new(seed)).0);
        (0..SEEDS).filter(|&seed| after(seed).contents(name).is_ok_and(|found| found == contents)).count() as u64
    }

    fn end(mut self) {
        self.mounted.take().unwrap().unmount().unwrap();
        assert!(!self.path("file").exists(), "it is not mounted any more");
    }
}

/// The segment files are read through such a mapping and written by write(2), with RWF_DSYNC.
#[test]
fn a_shared_mapping_sees_what_is_written() {
    let Some(place) = Place::new() else { return };
    let file = place.create("file");
    file.write_all_at(&[1; 65_536], 0).unwrap();
    // SAFETY: the file is not shortened while it is mapped, and only this thread writes it, between two looks.
    let mapping = unsafe { memmap2::Mmap::map(&File::open(place.path("file")).unwrap()).unwrap() };
    assert!(mapping[..8192].iter().all(|&byte| byte == 1), "read in");
    for (round, offset) in [0_u64, 4096, 300, 40_960].into_iter().enumerate() {
        let bytes = [round as u8 + 2; 5000];
        rustix::io::pwritev2(&file, &[IoSlice::new(&bytes)], offset, ReadWriteFlags::DSYNC).unwrap();
        let offset = offset as usize;
        assert_eq!(&mapping[offset..offset + 5000], &bytes, "at {offset}");
    }
    drop(mapping);
    drop(file);
    place.end();
}

#[test]
fn a_write_with_dsync_is_stable_and_another_is_not() {
    let Some(place) = Place::new() else { return };
    let file = place.create("file");
    file.write_all_at(&[0; 8192], 0).unwrap();
    file.sync_all().unwrap();
    place.sync_names();
    file.write_all_at(&[1; 8192], 0).unwrap();
    let unflushed = place.survives("file", &[1; 8192]);
    assert!(unflushed > 0 && unflushed < SEEDS, "{unflushed} of {SEEDS}");
    rustix::io::pwritev2(&file, &[IoSlice::new(&[2; 8192])], 0, ReadWriteFlags::DSYNC).unwrap();
    assert_eq!(place.survives("file", &[2; 8192]), SEEDS, "RWF_DSYNC");
    let synchronous =
        OpenOptions::new().write(true).custom_flags(rustix::fs::OFlags::DSYNC.bits() as i32).open(place.path("file"));
    let synchronous = synchronous.unwrap();
    synchronous.write_all_at(&[3; 8192], 0).unwrap();
    assert_eq!(place.survives("file", &[3; 8192]), SEEDS, "O_DSYNC");
    file.write_all_at(&[4; 8192], 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(place.survives("file", &[4; 8192]), SEEDS, "fdatasync");
    drop((file, synchronous));
    place.end();
}

#[test]
fn a_name_is_stable_once_its_directory_is_synced() {
    let Some(place) = Place::new() else { return };
    let mut file = place.create("tmp");
    file.write_all(b"hello").unwrap();
    file.sync_all().unwrap();
    fs::rename(place.path("tmp"), place.path("file")).unwrap();
    let unflushed = place.survives("file", b"hello");
    assert!(unflushed > 0 && unflushed < SEEDS, "{unflushed} of {SEEDS}");
    place.sync_names();
    assert_eq!(place.survives("file", b"hello"), SEEDS);
    let names: Vec<_> = fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    let mut text = String::new();
    File::open(place.path("file")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    drop(file);
    place.end();
}

/// Nobody is told anything after the cut, not even of a failure, until he is let go.
#[test]
fn after_the_cut_nothing_is_answered() {
    let Some(place) = Place::new() else { return };
    let file = place.create("file");
    file.write_all_at(&[1; 512], 0).unwrap();
    file.sync_all().unwrap();
    place.machine.fail_after(Some(1));
    let (answered, answer) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || answered.send(file.write_all_at(&[2; 512], 0)).unwrap());
    assert_eq!(wait(&mut [PollFd::new(place.machine.failure(), PollFlags::IN)], PATIENCE).unwrap(), 1);
    assert!(place.machine.has_failed());
    assert!(answer.try_recv().is_err(), "it waits");
    place.machine.release();
    assert!(answer.recv_timeout(PATIENCE).unwrap().is_err(), "let go, with an error");
    writer.join().unwrap();
    let now = place.machine.look(|disk| disk.contents("file").map(<[u8]>::to_vec));
    assert_eq!(now, Ok(vec![2; 512]), "what was under way may have happened");
    place.end();
}
