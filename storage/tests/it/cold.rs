//! Moving what waits to cold segments, and overwriting what dies there: what is wanted reads as it was appended through any
//! crash, and what is not wanted is in no segment.

use std::collections::VecDeque;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{ColdDone, ColdWork, Disk, Location, Log, LogOptions, Loss, Rot, RotReason, SegmentId};

use crate::rig::{OPTIONS, Random, Rig};

/// A record that is wanted: what it was appended as, and where it is by now.
struct Wanted {
    at: usize,
    place: Location,
}

struct Owner {
    rig: Rig,
    wanted: Vec<Wanted>,
}

impl Owner {
    /// So many batches of records with payloads of 100 to 2,100 bytes, each starting with a mark; one in three is wanted.
    fn new(seed: u64, batches: u64) -> Owner {
        let mut random = Random(seed);
        let mut owner = Owner { rig: Rig::new(OPTIONS), wanted: Vec::new() };
        for _ in 0..batches {
            for _ in 0..3 {
                owner.rig.append(100 + random.below(2000) as usize).unwrap();
            }
            owner.rig.settle();
        }
        for at in (0..owner.rig.kept.len()).filter(|at| at % 3 == 1) {
            let place = owner.rig.kept[at].location;
            owner.rig.log.hold(place);
            owner.wanted.push(Wanted { at, place });
        }
        owner.rig.log.seal();
        owner
    }

    fn checkpoint(&mut self) -> u64 {
        let position = self.rig.log.position();
        let writer = self.rig.log.begin_checkpoint(position).unwrap();
        let checkpoint = writer.checkpoint();
        let mut bytes = Vec::new();
        writer.begin(&mut bytes);
        writer.end(position.batch, &mut bytes);
        let keep_from = self.rig.log.newest_checkpoint().map_or(0, |newest| newest.number);
        self.rig.disk.put_checkpoint(checkpoint.number, bytes, keep_from).unwrap();
        self.rig.log.checkpoint_written(checkpoint);
        self.rig.log.retire();
        self.rig.prepare();
        while let Some(retired) = self.rig.log.segment_unwanted() {
            drop(retired.mapping);
            self.rig.disk.remove(retired.id).unwrap();
        }
        checkpoint.number
    }

    /// Copies all that is wanted and is not in a cold segment yet. Gives what could not be copied.
    fn copy(&mut self) -> (Vec<(Location, Location)>, Vec<Location>) {
        let mut places: Vec<Location> =
            self.wanted.iter().map(|it| it.place).filter(|it| !it.segment.is_cold()).collect();
        places.sort_unstable();
        let (mut queue, mut moved, mut rotten) = (VecDeque::from(places), Vec::new(), Vec::new());
        while let Some(copy) = self.rig.log.plan_copy(&mut queue) {
            assert!(self.rig.log.plan_copy(&mut queue).is_none(), "one at a time");
            let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut self.rig.disk) else { unreachable!() };
            self.rig.log.copied(&copied);
            moved.extend(copied.moved);
            rotten.extend(copied.rotten);
        }
        assert!(queue.is_empty());
        (moved, rotten)
    }

    /// Lets what is wanted point to its copies, and makes the checkpoint that has it so.
    fn point(&mut self, moved: &[(Location, Location)]) {
        let ends = self.rig.log.cold_ends();
        for it in &mut self.wanted {
            if let Ok(n) = moved.binary_search_by_key(&it.place, |(from, _)| *from) {
                self.rig.log.release(it.place);
                self.rig.log.hold(moved[n].1);
                it.place = moved[n].1;
            }
        }
        let mut sources: Vec<SegmentId> = moved.iter().map(|(from, _)| from.segment).collect();
        sources.dedup();
        self.rig.log.settle(&ends);
        let next = self.rig.log.newest_checkpoint().map_or(1, |newest| newest.number + 1);
        sources.into_iter().for_each(|id| self.rig.log.emptied(id, next));
        assert_eq!(self.checkpoint(), next);
    }

    fn erase(&mut self) {
        let ids: Vec<SegmentId> = self.rig.log.cold_segments().collect();
        for id in ids {
            let here = self.wanted.iter().map(|it| it.place).filter(|it| it.segment == id);
            let mut keep: Vec<(u32, u32)> = here.map(|it| (it.offset, it.len)).collect();
            keep.sort_unstable();
            let Some(mut erase) = self.rig.log.plan_erase(id, keep.into_iter().collect()) else { continue };
            while !erase.is_done() {
                let Ok(ColdDone::Erased(next)) = ColdWork::Erase(erase).run(&mut self.rig.disk) else { unreachable!() };
                erase = next;
            }
            self.rig.log.erased(&erase);
        }
    }

    fn check(&self, log: &Log) {
        for it in &self.wanted {
            assert_eq!(log.read(it.place).expect("it is held"), self.rig.kept[it.at].payload, "{:?}", it.place);
        }
    }

    /// Which records' payloads are in a segment before the last one that is written.
    fn on_disk(&self) -> Vec<usize> {
        let tail = self.rig.log.position().segment;
        let ids: Vec<SegmentId> = self.rig.disk.segments().filter(|id| id.is_cold() || *id < tail).collect();
        let all: Vec<Vec<u8>> = ids.into_iter().map(|id| self.rig.disk.contents(id).unwrap()).collect();
        let is_there = |at: &usize| {
            let mark = &self.rig.kept[*at].payload[..32];
            all.iter().any(|bytes| bytes.windows(32).any(|window| window == mark))
        };
        (0..self.rig.kept.len()).filter(is_there).collect()
    }
}

fn open(disk: &mut RamDisk) -> Log {
    Log::open_with(OPTIONS, disk, &mut |_| {}, &mut |_, _, _| {}).unwrap().0
}

#[test]
fn what_is_wanted_moves_and_the_rest_goes() {
    let mut owner = Owner::new(1, 12);
    let all = owner.rig.kept.len();
    owner.checkpoint();
    owner.checkpoint();
    assert_eq!(owner.on_disk().len(), all, "something is wanted in each segment");
    let (moved, rotten) = owner.copy();
    assert_eq!((moved.len(), rotten.len()), (owner.wanted.len(), 0));
    owner.check(&owner.rig.log);
    owner.point(&moved);
    owner.check(&owner.rig.log);
    assert_eq!(owner.on_disk().len(), all, "the older checkpoint needs what was moved away from");
    assert!(owner.rig.log.awaits_checkpoints());
    owner.checkpoint();
    assert!(!owner.rig.log.awaits_checkpoints());
    owner.check(&owner.rig.log);
    let wanted: Vec<usize> = owner.wanted.iter().map(|it| it.at).collect();
    assert_eq!(owner.on_disk(), wanted);
}

#[test]
fn the_older_checkpoint_serves_until_two_know_of_the_move() {
    let mut owner = Owner::new(2, 12);
    owner.checkpoint();
    owner.checkpoint();
    let before: Vec<Location> = owner.wanted.iter().map(|it| it.place).collect();
    let (moved, _) = owner.copy();
    owner.point(&moved);
    // The newest is lost, and with it all that points to the copies. So it is after a start from it, too.
    for starts in 0..2 {
        let mut disk = owner.rig.disk.crash(&mut |_, _| false);
        for _ in 0..starts {
            let mut log = open(&mut disk);
            log.retire();
            assert!(log.segment_unwanted().is_none());
        }
        let (newest, _) = *disk.checkpoint_sizes().last().unwrap();
        disk.flip_checkpoint_bit(newest, 100);
        let log = open(&mut disk);
        for (it, place) in owner.wanted.iter().zip(&before) {
            assert_eq!(log.read(*place).expect("it is there"), owner.rig.kept[it.at].payload);
        }
    }
}

#[test]
fn what_dies_beside_what_is_wanted_is_overwritten() {
    let mut owner = Owner::new(3, 12);
    owner.checkpoint();
    let (moved, _) = owner.copy();
    owner.point(&moved);
    owner.checkpoint();
    let mut random = Random(5);
    while !owner.wanted.is_empty() {
        for _ in 0..3.min(owner.wanted.len()) {
            let gone = owner.wanted.swap_remove(random.below(owner.wanted.len() as u64) as usize);
            owner.rig.log.release(gone.place);
        }
        owner.erase();
        owner.check(&owner.rig.log);
        let mut wanted: Vec<usize> = owner.wanted.iter().map(|it| it.at).collect();
        wanted.sort_unstable();
        assert_eq!(owner.on_disk(), wanted);
        // A start finds what is left, and that what is erased is in order: nothing of it is taken for rot.
        let mut disk = owner.rig.disk.crash(&mut |_, _| false);
        owner.check(&open(&mut disk));
    }
}

#[test]
fn copies_that_a_crash_leaves_are_overwritten() {
    for survival in [0, 2, 5, 10] {
        let mut owner = Owner::new(4, 12);
        owner.checkpoint();
        owner.checkpoint();
        owner.copy();
        // More of it, torn.
        let cold: Vec<SegmentId> = owner.rig.disk.segments().filter(|id| id.is_cold()).collect();
        let last = *cold.last().unwrap();
        let stray = &owner.rig.kept[0].payload.clone();
        let end = owner.rig.log.cold_ends().iter().find(|(id, _)| *id == last).unwrap().1;
        owner
            .rig
            .disk
            .write_unflushed(last, end.min(OPTIONS.segment_size - 2048), &stray[..stray.len().min(2048)])
            .unwrap();
        let mut random = Random(survival);
        let disk = owner.rig.disk.crash(&mut |_, _| random.below(10) < survival);
        owner.rig.disk = disk;
        owner.rig.log = open(&mut owner.rig.disk);
        owner.wanted.iter().for_each(|it| owner.rig.log.hold(it.place));
        owner.erase();
        owner.check(&owner.rig.log);
        for id in cold {
            let bytes = owner.rig.disk.contents(id).unwrap();
            let payloads = owner.rig.kept.iter().map(|kept| &kept.payload[..32]);
            let found = payloads.filter(|mark| bytes.windows(32).any(|window| window == *mark)).count();
            assert_eq!(found, 0, "a copy that nobody points to is still in {id}");
        }
        // And it is used for something else, or goes, once two checkpoints are there.
        owner.checkpoint();
        owner.checkpoint();
        assert_eq!(owner.rig.disk.segments().filter(|id| id.is_cold()).count(), 0);
    }
}

#[test]
fn every_bit_of_what_is_moved_counts() {
    let mut owner = Owner::new(6, 3);
    owner.wanted.truncate(1);
    let place = owner.wanted[0].place;
    let header = place.offset - whimbrel_storage::RECORD_HEADER_BYTES;
    let record = place.offset + place.len - header;
    for bit in 0..record * 8 {
        let (at, flipped) = (header + bit / 8, (bit % 8) as u8);
        owner.rig.disk.flip_bit(place.segment, at, flipped).unwrap();
        let (moved, rotten) = owner.copy();
        // Nothing is copied that its checksums do not vouch for, or it would pass for good from then on.
        assert_eq!((moved.len(), &rotten[..]), (0, &[place][..]), "bit {bit}");
        owner.rig.disk.flip_bit(place.segment, at, flipped).unwrap();
    }
    let (moved, rotten) = owner.copy();
    assert_eq!((moved.len(), rotten.len()), (1, 0));
    owner.point(&moved);
    owner.check(&owner.rig.log);
}

#[test]
fn one_rotten_record_does_not_keep_the_others_from_moving() {
    let mut owner = Owner::new(7, 12);
    let bad = owner.wanted[3].place;
    owner.rig.disk.flip_bit(bad.segment, bad.offset + 5, 1).unwrap();
    let (moved, rotten) = owner.copy();
    assert_eq!((moved.len(), rotten), (owner.wanted.len() - 1, vec![bad]));
    // Nor does a batch whose header is gone.
    let lost = owner.wanted[9].place;
    owner.rig.disk.flip_bit(lost.segment, lost.offset / 4096 * 4096, 1).unwrap();
    let (moved, rotten) = owner.copy();
    assert!(rotten.contains(&bad) && moved.len() + rotten.len() == owner.wanted.len() && moved.len() > 8, "{rotten:?}");
}

#[test]
fn a_copy_that_fails_is_tried_anew_elsewhere() {
    let mut owner = Owner::new(8, 12);
    let mut places: Vec<Location> = owner.wanted.iter().map(|it| it.place).collect();
    places.sort_unstable();
    for n in 0..3 {
        let mut queue = VecDeque::from(places.clone());
        let copy = owner.rig.log.plan_copy(&mut queue).unwrap();
        (owner.rig.disk.faults.write, owner.rig.disk.faults.create) = (n != 1, n == 1);
        assert!(ColdWork::Copy(copy).run(&mut owner.rig.disk).is_err());
        owner.rig.log.copy_failed();
    }
    owner.rig.disk.faults = Default::default();
    assert_eq!(owner.rig.disk.segments().filter(|id| id.is_cold()).count(), 0, "nothing is left of them");
    let (moved, _) = owner.copy();
    assert_eq!(moved.len(), owner.wanted.len());
    owner.point(&moved);
    owner.check(&owner.rig.log);
}

#[test]
fn what_is_sparse_moves_again() {
    let mut owner = Owner::new(9, 40);
    owner.checkpoint();
    let (moved, _) = owner.copy();
    owner.point(&moved);
    owner.checkpoint();
    let before: Vec<SegmentId> = owner.rig.log.cold_segments().collect();
    assert!(before.len() > 2);
    // One is left in each but the last.
    for id in &before[..before.len() - 1] {
        let mut first = true;
        let log = &mut owner.rig.log;
        owner.wanted.retain(|it| {
            let stays = it.place.segment != *id || std::mem::take(&mut first);
            if !stays {
                log.release(it.place);
            }
            stays
        });
    }
    owner.erase();
    let sparse: Vec<SegmentId> = owner.rig.log.sparse().collect();
    assert!(!sparse.is_empty());
    let places = owner.wanted.iter().map(|it| it.place).filter(|it| sparse.contains(&it.segment));
    let mut queue: VecDeque<Location> = places.collect();
    queue.make_contiguous().sort_unstable();
    let mut moved = Vec::new();
    while let Some(copy) = owner.rig.log.plan_copy(&mut queue) {
        let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut owner.rig.disk) else { unreachable!() };
        owner.rig.log.copied(&copied);
        assert!(copied.rotten.is_empty());
        moved.extend(copied.moved);
    }
    owner.point(&moved);
    owner.checkpoint();
    owner.check(&owner.rig.log);
    let after: Vec<SegmentId> = owner.rig.log.cold_segments().collect();
    assert!(sparse.iter().all(|id| !after.contains(id)), "{sparse:?} of {before:?} are gone: {after:?}");
}

#[test]
fn damage_of_a_first_page_keeps_nothing_from_moving() {
    let mut owner = Owner::new(10, 12);
    let source = owner.wanted[0].place.segment;
    owner.rig.disk.flip_bit(source, 24, 3).unwrap();
    let (moved, rotten) = owner.copy();
    assert_eq!((moved.len(), rotten.len()), (owner.wanted.len(), 0));
    owner.point(&moved);
    owner.check(&owner.rig.log);
}

#[test]
fn erasing_takes_nothing_from_what_is_damaged_and_may_be_mended() {
    let mut owner = Owner::new(11, 6);
    owner.checkpoint();
    let (moved, _) = owner.copy();
    owner.point(&moved);
    owner.checkpoint();
    let cold = owner.wanted[0].place.segment;
    let gone = owner.wanted.remove(1);
    owner.rig.log.release(gone.place);
    owner.wanted.retain(|it| it.place.segment == cold);
    let heads = owner.wanted.iter().chain([&gone]).map(|it| it.place.offset - whimbrel_storage::RECORD_HEADER_BYTES);
    // The first page, the head of the batch, and those of its records.
    let mut damaged: Vec<u32> = heads.chain([24, 4096 + 8, 4096 + 40]).collect();
    damaged.sort_unstable();
    for offset in damaged {
        let before = owner.rig.disk.crash(&mut |_, _| true);
        let mut disk = owner.rig.disk.crash(&mut |_, _| true);
        disk.flip_bit(cold, offset, 1).unwrap();
        owner.rig.disk = disk;
        owner.rig.log = open(&mut owner.rig.disk);
        owner.wanted.iter().for_each(|it| owner.rig.log.hold(it.place));
        owner.erase();
        owner.rig.disk.flip_bit(cold, offset, 1).unwrap();
        // With the bit back all that is wanted is found and can be vouched for, as whoever moves it once more does.
        let mut queue: Vec<Location> = owner.wanted.iter().map(|it| it.place).collect();
        queue.sort_unstable();
        let mut queue = VecDeque::from(queue);
        let wanted = queue.len();
        let copy = owner.rig.log.plan_copy(&mut queue).unwrap();
        let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut owner.rig.disk) else { unreachable!() };
        assert_eq!((copied.moved.len(), copied.rotten.len()), (wanted, 0), "byte {offset}");
        owner.rig.disk = before;
    }
}

/// Batches in which a payload is larger than a page.
const LARGE: LogOptions =
    LogOptions { segment_size: 128 << 10, batch_max: 64 << 10, staging_max: 256 << 10, ..OPTIONS };

/// In one batch of a cold segment: a payload that is wanted, with whole pages in it, between two that are dead, of which the
/// latter has a page of its own as well. Gives the segment.
fn large_beside_dead() -> (Owner, SegmentId) {
    let mut owner = Owner { rig: Rig::new(LARGE), wanted: Vec::new() };
    for (at, bytes) in [500, 20_000, 10_000, 300].into_iter().enumerate() {
        owner.rig.append(bytes).unwrap();
        let place = owner.rig.kept[at].location;
        owner.rig.log.hold(place);
        owner.wanted.push(Wanted { at, place });
    }
    owner.rig.settle();
    owner.rig.log.seal();
    owner.checkpoint();
    let (moved, _) = owner.copy();
    owner.point(&moved);
    owner.checkpoint();
    for at in [2, 0] {
        let gone = owner.wanted.remove(at);
        owner.rig.log.release(gone.place);
    }
    let segment = owner.wanted[0].place.segment;
    assert_eq!(owner.rig.log.cold_ends(), [(segment, 36 << 10)]);
    (owner, segment)
}

#[test]
fn what_cannot_be_read_is_never_overwritten() {
    let page = 4096;
    let mut left = 0;
    for from in (page..36 << 10).step_by(page as usize) {
        let (mut owner, cold) = large_beside_dead();
        let before = owner.rig.disk.contents(cold).unwrap();
        owner.rig.disk.unreadable.push((cold, from..from + page));
        let keep = owner.wanted.iter().map(|it| (it.place.offset, it.place.len)).collect();
        let mut erase = owner.rig.log.plan_erase(cold, keep).unwrap();
        let mut damage = Vec::new();
        while !erase.is_done() {
            let Ok(ColdDone::Erased(next)) = ColdWork::Erase(erase).run(&mut owner.rig.disk) else { unreachable!() };
            erase = next;
            damage.extend(erase.take_damage());
        }
        let rot = Rot { segment: cold, offset: from, bytes: page, reason: RotReason::Unreadable, loss: Loss::Unknown };
        assert_eq!(damage, [rot], "it is told once");
        owner.rig.log.erased(&erase);
        let after = owner.rig.disk.contents(cold).unwrap();
        let unread = from as usize..(from + page) as usize;
        assert_eq!(after[unread.clone()], before[unread.clone()], "page {from}");
        for it in &owner.wanted {
            let place = it.place.offset as usize..(it.place.offset + it.place.len) as usize;
            assert_eq!(after[place.clone()], owner.rig.kept[it.at].payload, "page {from}");
            // Nobody looks at it, for that would end the process.
            let is_hidden = place.start < unread.end && unread.start < place.end;
            assert_eq!(owner.rig.log.read(it.place).is_none(), is_hidden, "page {from}, {:?}", it.place);
        }
        left += usize::from(owner.on_disk() != [1, 3]);
        // It can be read again: now all that is dead goes, and of the rest nothing.
        owner.rig.disk.unreadable.clear();
        assert!(owner.rig.log.cold_is_unsettled(), "it is not taken for done");
        owner.erase();
        assert!(!owner.rig.log.cold_is_unsettled());
        owner.check(&owner.rig.log);
        assert_eq!(owner.on_disk(), [1, 3], "page {from}");
        let mut places: VecDeque<Location> = owner.wanted.iter().map(|it| it.place).collect();
        let copy = owner.rig.log.plan_copy(&mut places).unwrap();
        let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut owner.rig.disk) else { unreachable!() };
        assert_eq!((copied.moved.len(), copied.rotten.len()), (2, 0), "all of it can be vouched for");
    }
    assert!(left > 0, "something that was dead could not be read");
}

/// Segments that are erased in several steps.
const LONG: LogOptions = LogOptions { segment_size: 4 << 20, batch_max: 256 << 10, staging_max: 1 << 20, ..OPTIONS };

#[test]
fn each_step_of_erasing_goes_by_what_it_reads_itself() {
    let mut owner = Owner { rig: Rig::new(LONG), wanted: Vec::new() };
    for at in 0..60 {
        owner.rig.append(50_000).unwrap();
        let place = owner.rig.kept[at].location;
        owner.rig.log.hold(place);
        owner.wanted.push(Wanted { at, place });
        owner.rig.settle();
    }
    owner.rig.log.seal();
    owner.checkpoint();
    let (moved, _) = owner.copy();
    owner.point(&moved);
    let dead: Vec<Wanted> = owner.wanted.extract_if(.., |it| it.at % 3 != 0).collect();
    dead.iter().for_each(|it| owner.rig.log.release(it.place));
    let cold = owner.wanted[0].place.segment;
    let before = owner.rig.disk.contents(cold).unwrap();
    let keep = owner.wanted.iter().map(|it| (it.place.offset, it.place.len)).collect();
    let mut erase = owner.rig.log.plan_erase(cold, keep).unwrap();
    let (mut steps, mut damage) = (0, Vec::new());
    // A page that can be read when it begins, and cannot be any more when its step comes.
    let page = dead[36].place.offset.next_multiple_of(4096);
    assert!((2 << 20..3 << 20).contains(&page), "in the third step");
    while !erase.is_done() {
        let Ok(ColdDone::Erased(next)) = ColdWork::Erase(erase).run(&mut owner.rig.disk) else { unreachable!() };
        erase = next;
        if steps == 0 {
            owner.rig.disk.unreadable.push((cold, page..page + 4096));
        }
        steps += 1;
        damage.extend(erase.take_damage());
    }
    let (reason, loss) = (RotReason::Unreadable, Loss::Unknown);
    assert_eq!((steps, damage), (3, vec![Rot { segment: cold, offset: page, bytes: 4096, reason, loss }]));
    let after = owner.rig.disk.contents(cold).unwrap();
    let unread = page as usize..page as usize + 4096;
    assert_eq!(after[unread.clone()], before[unread.clone()]);
    for it in dead {
        let mut place = it.place.offset as usize..(it.place.offset + it.place.len) as usize;
        assert!(place.all(|at| after[at] == 0 || unread.contains(&at)), "record {} is dead", it.at);
    }
    owner.check(&owner.rig.log);
}

#[test]
fn what_is_wanted_is_found_wherever_it_lies_in_a_batch() {
    const LARGEST: LogOptions =
        LogOptions { segment_size: 3 << 20, batch_max: 1 << 20, staging_max: 4 << 20, ..OPTIONS };
    let mut owner = Owner { rig: Rig::new(LARGEST), wanted: Vec::new() };
    for batch in 0..7 {
        for at in 0..[40, 1, 70, 3, 200, 2, 40][batch] {
            owner.rig.append(700 * (at + batch) % 9_000).unwrap();
        }
        owner.rig.settle();
    }
    let mut places: Vec<(usize, Location)> = owner.rig.kept.iter().map(|kept| kept.location).enumerate().collect();
    places.retain(|(_, place)| place.len > 0);
    // Each alone, and then with ever more of the others left out.
    let alone = places.iter().map(|it| vec![*it]);
    let some = (1..60).map(|nth| places.iter().copied().step_by(nth).collect());
    for wanted in alone.chain(some).collect::<Vec<_>>() {
        let mut queue: VecDeque<Location> = wanted.iter().map(|(_, place)| *place).collect();
        queue.iter().for_each(|place| owner.rig.log.hold(*place));
        let mut found = Vec::new();
        while let Some(copy) = owner.rig.log.plan_copy(&mut queue) {
            let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut owner.rig.disk) else { unreachable!() };
            owner.rig.log.copied(&copied);
            assert_eq!(copied.rotten, []);
            found.extend(copied.moved);
        }
        assert_eq!(found.len(), wanted.len());
        for ((at, place), (from, to)) in wanted.into_iter().zip(found) {
            assert_eq!((from, owner.rig.log.read(to).unwrap()), (place, owner.rig.kept[at].payload.clone().into()));
            owner.rig.log.release(place);
        }
    }
}

/// A start after a kill: what is in memory stays as it was.
fn start_again(owner: &mut Owner) {
    owner.rig.log = Log::open_with(LARGE, &mut owner.rig.disk, &mut |_| {}, &mut |_, _, _| {}).unwrap().0;
    owner.wanted.iter().for_each(|it| owner.rig.log.hold(it.place));
}

/// Erases all that is dead in a segment, in one step. How many pages were written, if anything was to be looked at.
fn erase_in(owner: &mut Owner, cold: SegmentId) -> Option<u64> {
    let keep = owner.wanted.iter().map(|it| (it.place.offset, it.place.len)).collect();
    let erase = owner.rig.log.plan_erase(cold, keep)?;
    let Ok(ColdDone::Erased(erase)) = ColdWork::Erase(erase).run(&mut owner.rig.disk) else { unreachable!() };
    assert!(erase.is_done());
    owner.rig.log.erased(&erase);
    Some(erase.written() / 4096)
}

#[test]
fn zeros_that_are_only_in_memory_at_a_start_are_written() {
    for passes_cache in [true, false] {
        let (mut owner, cold) = large_beside_dead();
        owner.rig.disk.passes_cache = passes_cache;
        let before = owner.rig.disk.contents(cold).unwrap();
        assert_eq!(erase_in(&mut owner, cold), Some(4));
        let after = owner.rig.disk.contents(cold).unwrap();
        // A write-back of one page failed, and nobody was told.
        let changed = (0..before.len()).filter(|at| before[*at] != after[*at]);
        let changed: Vec<usize> = changed.filter(|at| (8 << 10..12 << 10).contains(at) || *at >= 24 << 10).collect();
        for at in &changed {
            owner.rig.disk.rot(cold, *at as u32, &before[*at..=*at]).unwrap();
        }
        let pages: std::collections::BTreeSet<usize> = changed.iter().map(|at| at / 4096).collect();
        assert_eq!(owner.rig.disk.contents(cold).unwrap(), after, "nobody sees it");
        start_again(&mut owner);
        // Nothing else is written, where the disk itself can be asked; and it is asked once. Else all is that does not stay, also behind
        // the last batch, for a start does not know where that is.
        let all = (LARGE.segment_size >> 12) - 1 - 4;
        let written = if passes_cache { pages.len() as u64 } else { u64::from(all) };
        assert_eq!((erase_in(&mut owner, cold), erase_in(&mut owner, cold)), (Some(written), None));
        let disk = owner.rig.disk.crash(&mut |_, _| false);
        assert!(disk.contents(cold).unwrap() == after, "memory is passed: {passes_cache}");
        assert!(!pages.is_empty() && pages.len() < 4, "{pages:?}");
    }
}

#[test]
fn zeros_that_were_not_flushed_before_a_start_are_flushed() {
    let (mut owner, cold) = large_beside_dead();
    let keep = owner.wanted.iter().map(|it| (it.place.offset, it.place.len)).collect();
    let erase = owner.rig.log.plan_erase(cold, keep).unwrap();
    owner.rig.disk.faults.flush = true;
    // It is killed before the flush.
    assert!(ColdWork::Erase(erase).run(&mut owner.rig.disk).is_err());
    owner.rig.disk.faults = Default::default();
    start_again(&mut owner);
    erase_in(&mut owner, cold).unwrap();
    owner.rig.disk = owner.rig.disk.crash(&mut |_, _| false);
    assert_eq!(owner.on_disk(), [1, 3]);
}

#[test]
fn what_rotted_beneath_what_is_wanted_is_not_what_is_written_beside_zeros() {
    let (mut owner, cold) = large_beside_dead();
    start_again(&mut owner);
    // The first and the last byte of what is wanted share a page with something that is dead.
    let place = owner.wanted[0].place;
    for at in [place.offset, place.offset + place.len - 1] {
        let was = owner.rig.disk.read(cold, at, 1).unwrap()[0];
        owner.rig.disk.rot(cold, at, &[was ^ 1]).unwrap();
    }
    erase_in(&mut owner, cold).unwrap();
    owner.check(&owner.rig.log);
    owner.rig.disk = owner.rig.disk.crash(&mut |_, _| false);
    assert_eq!(owner.on_disk(), [1, 3]);
    start_again(&mut owner);
    owner.check(&owner.rig.log);
}

#[test]
fn what_is_erased_is_on_the_disk_though_a_write_of_it_failed_before() {
    let (mut owner, cold) = large_beside_dead();
    let keep = |owner: &Owner| owner.wanted.iter().map(|it| (it.place.offset, it.place.len)).collect();
    let erase = owner.rig.log.plan_erase(cold, keep(&owner)).unwrap();
    owner.rig.disk.faults.flush = true;
    assert!(ColdWork::Erase(erase).run(&mut owner.rig.disk).is_err());
    owner.rig.log.erase_failed(cold);
    owner.rig.disk.faults = Default::default();
    // From here on zeros are read that the disk does not have.
    assert!(owner.rig.disk.unflushed().count() > 0 && owner.rig.log.cold_is_unsettled());
    owner.erase();
    assert!(!owner.rig.log.cold_is_unsettled());
    owner.rig.disk = owner.rig.disk.crash(&mut |_, _| false);
    assert_eq!(owner.on_disk(), [1, 3]);
    owner.rig.log = Log::open_with(LARGE, &mut owner.rig.disk, &mut |_| {}, &mut |_, _, _| {}).unwrap().0;
    owner.check(&owner.rig.log);
}

#[test]
fn only_after_a_failure_is_written_what_is_read_as_zeros_already() {
    let (mut owner, cold) = large_beside_dead();
    let before = owner.rig.disk.contents(cold).unwrap();
    // Once something more has died only its page is written; between those with something dead, four have nothing else than the
    // payload that is wanted.
    for (fails, dies, pages) in
        [(false, false, 4), (false, false, 0), (true, false, 4), (false, false, 0), (false, true, 1)]
    {
        if fails {
            owner.rig.log.erase_failed(cold);
        }
        if dies {
            let gone = owner.wanted.pop().unwrap();
            owner.rig.log.release(gone.place);
        }
        let keep = owner.wanted.iter().map(|it| (it.place.offset, it.place.len)).collect();
        let Some(erase) = owner.rig.log.plan_erase(cold, keep) else {
            assert_eq!(pages, 0);
            continue;
        };
        let Ok(ColdDone::Erased(erase)) = ColdWork::Erase(erase).run(&mut owner.rig.disk) else { unreachable!() };
        assert_eq!((erase.is_done(), erase.written()), (true, pages * 4096));
        owner.rig.log.erased(&erase);
    }
    let after = owner.rig.disk.contents(cold).unwrap();
    let place = owner.wanted[0].place.offset as usize..;
    assert_eq!(after[place.clone()][..20_000], before[place][..20_000]);
}
