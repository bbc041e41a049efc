//! Checkpoints, and what they let go of: what the owner made of the log up to a place and the records behind it are together
//! all that was durable, whatever was lost or retired in between.

use std::collections::BTreeSet;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Checkpoint, Log, OpenError, Recovered, RotReason, SegmentId};

use crate::rig::{OPTIONS, Random, Rig};

/// What an owner knows of its records: the index of each one, whether it still wants it, and where it is.
struct Owner {
    rig: Rig,
    /// Indexes of the log's records that are in it, all of them.
    seen: u64,
    /// Those that are still wanted, with their places.
    wanted: Vec<usize>,
}

impl Owner {
    fn new() -> Owner {
        Owner { rig: Rig::new(OPTIONS), seen: 0, wanted: Vec::new() }
    }

    fn work(&mut self, random: &mut Random) {
        for _ in 0..1 + random.below(6) {
            let bytes = random.below(3000) as usize;
            if self.rig.append(bytes).is_ok() && random.below(4) == 0 {
                let at = self.rig.kept.len() - 1;
                self.rig.log.hold(self.rig.kept[at].location);
                self.wanted.push(at);
            }
        }
        self.rig.settle();
        self.seen = self.rig.kept.len() as u64;
        while !self.wanted.is_empty() && random.below(3) > 0 {
            let at = self.wanted.swap_remove(random.below(self.wanted.len() as u64) as usize);
            self.rig.log.release(self.rig.kept[at].location);
        }
    }

    /// All records seen are its content, in pieces.
    fn checkpoint(&mut self, random: &mut Random) {
        if random.below(3) == 0 {
            self.rig.log.seal();
        }
        let position = self.rig.log.position();
        let Some(mut writer) = self.rig.log.begin_checkpoint(position) else { return };
        let checkpoint = writer.checkpoint();
        let mut bytes = Vec::new();
        writer.begin(&mut bytes);
        writer.piece(&self.seen.to_le_bytes(), &mut bytes);
        writer.piece(b"more", &mut bytes);
        writer.end(self.rig.log.position().batch, &mut bytes);
        let older = self.rig.log.older_checkpoint().map_or(0, |older| older.number);
        let keep_from = self.rig.log.newest_checkpoint().map_or(0, |newest| newest.number);
        assert!(older <= keep_from);
        self.rig.disk.put_checkpoint(checkpoint.number, bytes, keep_from).unwrap();
        assert_eq!(self.rig.log.checkpoint_written(checkpoint), keep_from);
        self.rig.log.retire();
        self.rig.prepare();
        while let Some(retired) = self.rig.log.segment_unwanted() {
            drop(retired.mapping);
            whimbrel_storage::Disk::remove(&mut self.rig.disk, retired.id).unwrap();
        }
    }

    /// What is wanted can be read.
    fn check(&self) {
        for &at in &self.wanted {
            let kept = &self.rig.kept[at];
            assert_eq!(self.rig.log.read(kept.location).expect("it is held"), kept.payload);
        }
        assert_eq!(self.rig.log.missing(), None);
    }
}

/// Opens it; the number in the checkpoint, the records behind it.
fn open(disk: &mut RamDisk) -> Result<(Log, Recovered, u64, Vec<u64>), OpenError> {
    let (mut pieces, mut found) = (Vec::new(), Vec::new());
    let (log, recovered) =
        Log::open_with(OPTIONS, disk, &mut |piece| pieces.push(piece.to_vec()), &mut |header, _, _| {
            found.push(header.index);
        })?;
    let seen = match &pieces[..] {
        [] => 0,
        [seen, more] => {
            assert_eq!(more, b"more");
            u64::from_le_bytes(seen[..].try_into().unwrap())
        }
        other => panic!("{} pieces", other.len()),
    };
    Ok((log, recovered, seen, found))
}

fn grown(seed: u64, rounds: u64) -> Owner {
    let mut random = Random(seed);
    let mut owner = Owner::new();
    for _ in 0..rounds {
        owner.work(&mut random);
        if random.below(2) == 0 {
            owner.checkpoint(&mut random);
        }
        owner.check();
    }
    owner
}

#[test]
fn checkpoint_and_log_are_together_all_that_was_durable() {
    for seed in 0..300 {
        let owner = grown(seed, 30);
        let mut disk = owner.rig.disk.crash(&mut |_, _| false);
        let (log, recovered, seen, found) = open(&mut disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let first = owner.seen - found.len() as u64 + 1;
        assert!(seen + 1 >= first, "seed {seed}: nothing lies between checkpoint and log");
        assert_eq!(found, (first..=owner.seen).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(recovered.checkpoint, owner.rig.log.newest_checkpoint().map(|it| it.number));
        for &at in &owner.wanted {
            let kept = &owner.rig.kept[at];
            assert_eq!(log.read(kept.location).expect("it is held"), kept.payload, "seed {seed}");
        }
    }
}

#[test]
fn segments_are_used_again_and_the_disk_does_not_grow() {
    let mut owner = Owner::new();
    let mut random = Random(5);
    let mut most = 0;
    for _ in 0..400 {
        for _ in 0..4 {
            owner.rig.append(2000).unwrap();
        }
        owner.rig.settle();
        owner.seen = owner.rig.kept.len() as u64;
        owner.checkpoint(&mut random);
        most = most.max(owner.rig.log.segments());
    }
    assert!(owner.rig.log.position().segment > SegmentId(100), "it went through many");
    assert!(most <= 4 + OPTIONS.spares_max as usize, "{most} segments at once");
    assert_eq!(whimbrel_storage::Disk::list(&mut owner.rig.disk).unwrap().len(), owner.rig.log.segments());
}

#[test]
fn a_segment_that_is_used_again_has_nothing_of_its_old_bytes() {
    let mut owner = Owner::new();
    let mut random = Random(9);
    for _ in 0..60 {
        owner.rig.append(2000).unwrap();
        owner.rig.settle();
        owner.seen += 1;
        owner.checkpoint(&mut random);
    }
    let tail = owner.rig.log.position().segment;
    let spares: Vec<_> = (tail.0 + 1..).map(SegmentId).map_while(|id| owner.rig.disk.contents(id)).collect();
    assert!(!spares.is_empty());
    assert!(spares.iter().all(|spare| spare[4096..].iter().all(|byte| *byte == 0)));
}

#[test]
fn the_older_checkpoint_serves_where_the_newer_is_damaged() {
    let mut served = BTreeSet::new();
    for seed in 0..200 {
        let owner = grown(seed, 20);
        let (Some(older), Some(newest)) = (owner.rig.log.older_checkpoint(), owner.rig.log.newest_checkpoint()) else {
            continue;
        };
        let mut random = Random(seed);
        let mut disk = owner.rig.disk.crash(&mut |_, _| false);
        disk.flip_checkpoint_bit(newest.number, random.below((64 + 8 + 8) * 8) as usize);
        let (_, recovered, seen, found) = open(&mut disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!((recovered.checkpoint, recovered.checkpoints_damaged), (Some(older.number), 1));
        let first = owner.seen - found.len() as u64 + 1;
        assert!(seen + 1 >= first && found == (first..=owner.seen).collect::<Vec<_>>(), "seed {seed}");
        served.insert(seed);
        // With that one damaged too nothing is made up.
        disk.flip_checkpoint_bit(older.number, random.below((64 + 8 + 8) * 8) as usize);
        assert!(matches!(open(&mut disk), Err(OpenError::Checkpoint { number, .. }) if number == older.number));
    }
    assert!(served.len() > 50);
}

#[test]
fn a_segment_that_a_checkpoint_names_has_to_be_there() {
    let owner = grown(3, 30);
    let Checkpoint { position, .. } = owner.rig.log.newest_checkpoint().unwrap();
    let mut disk = owner.rig.disk.crash(&mut |_, _| false);
    disk.lose(position.segment);
    let error = open(&mut disk).err().unwrap();
    assert!(
        matches!(error, OpenError::Rot { segment, reason: RotReason::SegmentMissing, .. } if segment == position.segment),
        "{error}"
    );
    // One of the same number, made anew, is not it.
    whimbrel_storage::Disk::create(&mut disk, position.segment, OPTIONS.segment_size).unwrap();
    let error = open(&mut disk).err().unwrap();
    assert!(matches!(error, OpenError::Rot { reason: RotReason::NotTheCheckpoints, .. }), "{error}");
}

#[test]
fn after_a_damaged_checkpoint_the_segment_that_is_written_stays() {
    let mut owner = Owner::new();
    owner.rig.append(1000).unwrap();
    owner.rig.settle();
    let put = |log: &mut Log, disk: &mut RamDisk| {
        let writer = log.begin_checkpoint(log.position()).unwrap();
        let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
        writer.begin(&mut bytes);
        writer.end(log.position().batch, &mut bytes);
        let keep_from = log.newest_checkpoint().map_or(0, |newest| newest.number);
        disk.put_checkpoint(checkpoint.number, bytes, keep_from).unwrap();
        log.checkpoint_written(checkpoint);
        checkpoint
    };
    let first = put(&mut owner.rig.log, &mut owner.rig.disk);
    owner.rig.log.seal();
    let damaged = put(&mut owner.rig.log, &mut owner.rig.disk);
    assert!(first.position.segment < damaged.position.segment);
    // In its end, behind what its head says.
    owner.rig.disk.flip_checkpoint_bit(damaged.number, 66 * 8);
    let mut disk = owner.rig.disk.crash(&mut |_, _| false);
    let (mut log, found) = Log::open_with(OPTIONS, &mut disk, &mut |_| {}, &mut |_, _, _| {}).unwrap();
    assert_eq!((found.checkpoint, found.checkpoints_damaged), (Some(first.number), 1));
    // It goes on where the damaged one said that nothing more would come.
    assert_eq!(log.position().segment, first.position.segment);
    let newest = put(&mut log, &mut disk);
    let (mut log, found) = Log::open_with(OPTIONS, &mut disk, &mut |_| {}, &mut |_, _, _| {}).unwrap();
    assert_eq!((found.checkpoint, found.checkpoints_damaged), (Some(newest.number), 0), "that one is put aside");
    log.retire();
    assert!(log.mapping(log.position().segment).is_some());
}

#[test]
fn a_log_that_lost_all_its_segments_is_not_begun_anew_beside_its_checkpoint() {
    let mut owner = grown(3, 2);
    owner.checkpoint(&mut Random(1));
    let mut disk = owner.rig.disk.crash(&mut |_, _| false);
    for id in disk.segments().collect::<Vec<_>>() {
        disk.lose(id);
    }
    assert!(matches!(open(&mut disk), Err(OpenError::Rot { reason: RotReason::SegmentMissing, .. })));
    assert_eq!(disk.segments().count(), 0, "nothing was changed");
}
