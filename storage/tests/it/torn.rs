//! A last batch torn in every way that a loss of power can tear it.

use std::io;

use bytes::Bytes;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, SegmentId};

use crate::rig::{OPTIONS, Random, Rig, image, open};

/// Logs with a batch in flight, at each kind of place that a batch can have, and with the name of the place.
fn places() -> Vec<(&'static str, Rig)> {
    let mut places = Vec::new();
    let mut rig = Rig::new(OPTIONS);
    rig.prepare();
    places.push(("the first of the log", rig));

    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[10, 20]);
    rig.batch(&[4000]);
    places.push(("behind others", rig));

    // 24 KiB for batches: three of 8 KiB fill a segment to its end.
    let mut rig = Rig::new(OPTIONS);
    (0..3).for_each(|_| rig.batch(&[6000]));
    places.push(("the first of a segment after a full one", rig));

    let mut rig = Rig::new(OPTIONS);
    (0..2).for_each(|_| rig.batch(&[6000]));
    rig.batch(&[100]);
    places.push(("the first of a segment after one with an unused end", rig));

    let mut rig = Rig::new(OPTIONS);
    (0..2).for_each(|_| rig.batch(&[6000]));
    places.push(("the last of a segment", rig));

    for (_, rig) in &mut places {
        for payload_bytes in [4500, 300, 0, 1700] {
            rig.append(payload_bytes).unwrap();
        }
        rig.prepare();
        assert!(rig.submit());
    }
    places
}

/// A log with a batch in flight, and what the disk holds if none and if all of it reached it.
struct InFlight {
    place: &'static str,
    rig: Rig,
    without: Vec<Vec<u8>>,
    with: Vec<Vec<u8>>,
}

fn in_flight() -> impl Iterator<Item = InFlight> {
    places().into_iter().map(|(place, rig)| {
        let without = image(&mut rig.disk.crash(&mut |_, _| false));
        let with = image(&mut rig.disk.crash(&mut |_, _| true));
        InFlight { place, rig, without, with }
    })
}

impl InFlight {
    /// Loses power with these sectors of the batch on the disk, and opens: the batch is there whole or not at all.
    fn cut(&self, survives: impl Fn(usize) -> bool) {
        let place = self.place;
        let mut nth = 0;
        let mut disk = self.rig.disk.crash(&mut |_, _| {
            nth += 1;
            survives(nth - 1)
        });
        let torn = image(&mut disk);
        let (_, recovered, found) = open(OPTIONS, &mut disk).unwrap_or_else(|error| panic!("{place}: {error}"));
        if torn == self.with {
            assert_eq!(found, self.rig.kept, "{place}");
            assert_eq!(recovered.truncated, None, "{place}");
        } else {
            assert_eq!(found, self.rig.kept[..self.rig.durable], "{place}");
            assert_eq!(recovered.truncated.is_some(), torn != self.without, "{place}");
            assert!(image(&mut disk) == self.without, "{place}: something of the batch is left");
        }
    }
}

#[test]
fn every_prefix_and_every_suffix_of_a_torn_batch_is_truncated() {
    for log in in_flight() {
        let sectors = log.rig.disk.unflushed().count();
        assert_eq!(sectors, 16);
        for kept in 0..=sectors {
            log.cut(|nth| nth < kept);
            log.cut(|nth| nth >= kept);
        }
    }
}

#[test]
fn every_set_of_sectors_of_a_torn_batch_is_truncated() {
    for log in in_flight() {
        let mut random = Random(11);
        for _ in 0..4_000 {
            let set = random.next();
            log.cut(|nth| set >> nth & 1 == 1);
        }
    }
}

#[test]
fn the_log_goes_on_after_a_torn_batch() {
    for (place, mut rig) in places() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let disk = rig.disk.crash(&mut |_, _| random.below(2) == 0);
            rig.reopen(disk).unwrap_or_else(|error| panic!("{place}: {error}"));
            rig.batch(&[90]);
            for payload_bytes in [random.below(900), 2000, random.below(4000)] {
                rig.append(payload_bytes as usize).unwrap();
            }
            rig.prepare();
            rig.check_reads();
            assert!(rig.submit());
        }
    }
}

/// A disk that dies in the middle of the repair.
struct Dying<'a> {
    disk: &'a mut RamDisk,
    writes_left: u32,
}

impl Disk for Dying<'_> {
    fn list(&mut self) -> io::Result<Vec<SegmentId>> {
        self.disk.list()
    }

    fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.disk.create(id, size_bytes)
    }

    fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.disk.recycle(old, used, id, size_bytes)
    }

    fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.disk.remove(id)
    }

    fn open(&mut self, id: SegmentId) -> io::Result<Bytes> {
        self.disk.open(id)
    }

    fn write(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if self.writes_left == 0 {
            self.disk.write_unflushed(id, offset, bytes)?;
            return Err(io::Error::other("the power goes"));
        }
        self.writes_left -= 1;
        self.disk.write(id, offset, bytes)
    }

    fn sync(&mut self, id: SegmentId) -> io::Result<()> {
        self.disk.sync(id)
    }

    fn set_aside(&mut self, id: SegmentId) -> io::Result<()> {
        self.disk.set_aside(id)
    }

    fn checkpoints(&mut self) -> io::Result<Vec<u64>> {
        self.disk.checkpoints()
    }

    fn read_checkpoint(&mut self, number: u64) -> io::Result<Bytes> {
        self.disk.read_checkpoint(number)
    }

    fn set_aside_checkpoint(&mut self, number: u64) -> io::Result<()> {
        self.disk.set_aside_checkpoint(number)
    }
}

#[test]
fn a_loss_of_power_in_the_middle_of_the_repair_loses_nothing() {
    for (place, rig) in places() {
        for seed in 0..400 {
            let mut random = Random(seed);
            let mut disk = rig.disk.crash(&mut |_, _| random.below(2) == 0);
            let writes_left = random.below(3) as u32;
            let mut dying = Dying { disk: &mut disk, writes_left };
            // It fails, or there was less to repair than it had writes left.
            let _ = open(OPTIONS, &mut dying);
            let mut again = disk.crash(&mut |_, _| random.below(2) == 0);
            let (_, _, found) = open(OPTIONS, &mut again).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert!(found.len() >= rig.durable && found == rig.kept[..found.len()], "{place}");
        }
    }
}
