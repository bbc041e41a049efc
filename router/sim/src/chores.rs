//! What the shell of a shard has done off its core: segments made, used again and removed, checkpoints written, segments read
//! in. Segments and the rest each in their order, whenever chance has them done.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use whimbrel_core::io::Input;
use whimbrel_storage::{CHECKPOINT_MAGIC, ColdDone, ColdWork, Disk, Retired, SegmentId, SegmentIs};

use crate::bottom::Bottom;
use crate::disk::SimDisk;
use crate::plant::Plant;

/// Something to be done.
#[derive(Debug)]
enum Chore {
    Remove(Retired),
    Checkpoint { number: u64, bytes: Vec<u8>, last: Option<u64> },
    ReadIn(SegmentIs, Bytes),
    Scrub(SegmentIs, Bytes),
    Cold(ColdWork),
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Chores {
    segments: VecDeque<(u64, SegmentId, Option<Retired>)>,
    others: VecDeque<(u64, Chore)>,
    /// The checkpoint that is being written, as far as it is.
    building: Option<(u64, Vec<u8>)>,
}

impl Chores {
    pub(crate) fn prepare(&mut self, due_us: u64, segment: SegmentId, reuse: Option<Retired>) {
        self.segments.push_back((due_us, segment, reuse));
    }

    pub(crate) fn remove(&mut self, due_us: u64, retired: Retired) {
        self.others.push_back((due_us, Chore::Remove(retired)));
    }

    pub(crate) fn checkpoint(&mut self, due_us: u64, number: u64, bytes: Vec<u8>, last: Option<u64>) {
        self.others.push_back((due_us, Chore::Checkpoint { number, bytes, last }));
    }

    pub(crate) fn read_in(&mut self, due_us: u64, is: SegmentIs, mapping: Bytes) {
        self.others.push_back((due_us, Chore::ReadIn(is, mapping)));
    }

    pub(crate) fn scrub(&mut self, due_us: u64, is: SegmentIs, mapping: Bytes) {
        self.others.push_back((due_us, Chore::Scrub(is, mapping)));
    }

    pub(crate) fn cold(&mut self, due_us: u64, work: ColdWork) {
        self.others.push_back((due_us, Chore::Cold(work)));
    }

    /// When the next segment is made.
    pub(crate) fn segment_due(&self) -> Option<u64> {
        self.segments.front().map(|(due_us, ..)| *due_us)
    }

    /// When the next of the others is done.
    pub(crate) fn other_due(&self) -> Option<u64> {
        self.others.front().map(|(due_us, _)| *due_us)
    }

    /// Nothing is to be done but what goes on for ever.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.others.iter().all(|(_, chore)| matches!(chore, Chore::Scrub(..)))
    }

    /// Makes the next segment, or fails to; what to tell the shard.
    pub(crate) fn make_segment(&mut self, disk: &mut SimDisk, b: &mut Bottom) -> io::Result<Option<Input<'static>>> {
        let Some((_, segment, reuse)) = self.segments.pop_front() else { return Ok(None) };
        let fails = !b.healed && b.rng.per_mille(b.weather.prepare_fails_per_mille);
        let size_bytes = b.weather.segment_bytes;
        disk.share(b);
        let mapping = match reuse.map(forget_mapping) {
            Some((old, _)) if fails => disk.remove(old).map(|()| None)?,
            Some((old, used)) => {
                b.stats.segments_reused += 1;
                Some(disk.recycle(old, used, segment, size_bytes)?)
            }
            None if fails => None,
            None => match disk.create(segment, size_bytes) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    b.stats.segments_without_space += 1;
                    b.fuse
                        .fires_at_once(Plant::FullLies)
                        .then(|| disk.create_unbacked(segment, size_bytes))
                        .transpose()?
                }
                made => Some(made?),
            },
        };
        Ok(Some(match mapping {
            Some(mapping) => Input::SegmentReady { segment, mapping },
            None => Input::SegmentFailed { segment },
        }))
    }

    /// Does the next of the others; what to tell the shard.
    pub(crate) fn do_other(&mut self, disk: &mut SimDisk, b: &mut Bottom) -> io::Result<Option<Input<'static>>> {
        let Some((_, chore)) = self.others.pop_front() else { return Ok(None) };
        match chore {
            Chore::Remove(retired) => disk.remove(forget_mapping(retired).0).map(|()| None),
            Chore::Cold(work) => Ok(Some(cold(work, disk, b))),
            Chore::ReadIn(is, mapping) => {
                b.stats.read_in += 1;
                Ok(Some(Input::ReadIn { checked: disk.read_in(&is, &mapping, b) }))
            }
            Chore::Scrub(is, mapping) => {
                b.stats.scrubbed += 1;
                let mut checked = disk.scrub(&is, &mapping);
                if !checked.rot.is_empty() && b.fuse.fires_at_once(Plant::ScrubHides) {
                    checked.rot.clear();
                }
                Ok(Some(Input::Scrubbed { checked }))
            }
            Chore::Checkpoint { number, bytes, last } => Ok(self.write(number, &bytes, last, disk, b)),
        }
    }

    fn write(
        &mut self,
        number: u64,
        bytes: &[u8],
        last: Option<u64>,
        disk: &mut SimDisk,
        b: &mut Bottom,
    ) -> Option<Input<'static>> {
        let begins = bytes.starts_with(CHECKPOINT_MAGIC);
        if begins {
            self.building = Some((number, Vec::new()));
        }
        // What follows one that failed was on its way already.
        let building = self.building.as_mut().filter(|building| building.0 == number)?;
        building.1.extend_from_slice(bytes);
        if !b.healed && b.rng.per_mille(b.weather.checkpoint_fails_per_mille) {
            self.building = None;
            b.stats.checkpoints_failed += 1;
            return Some(Input::CheckpointFailed { number });
        }
        let Some(keep_from) = last else { return Some(Input::CheckpointTaken { number }) };
        let (_, whole) = self.building.take()?;
        if b.fuse.fires(Plant::CheckpointLost) {
            return Some(Input::CheckpointWritten { number });
        }
        disk.share(b);
        Some(match disk.ram.put_checkpoint(number, whole, keep_from) {
            Ok(()) => {
                b.stats.checkpoints += 1;
                if !b.healed && b.rng.per_mille(b.weather.checkpoint_unsure_per_mille) {
                    b.stats.checkpoints_unsure += 1;
                    return Some(Input::CheckpointFailed { number });
                }
                if b.fuse.fires(Plant::CheckpointSilent) {
                    return None;
                }
                Input::CheckpointWritten { number }
            }
            Err(error) => {
                b.stats.checkpoints_without_space += u64::from(error.kind() == io::ErrorKind::StorageFull);
                Input::CheckpointFailed { number }
            }
        })
    }

    /// The node ends. What was to be done is done just in time, or half, or not at all.
    pub(crate) fn crash(mut self, disk: &mut SimDisk, b: &mut Bottom) {
        while let Some((_, segment, reuse)) = self.segments.pop_front() {
            match reuse.map(forget_mapping) {
                Some((old, _)) if b.rng.per_mille(600) => {
                    let _ = disk.remove(old);
                    if b.rng.per_mille(500) {
                        let _ = disk.create(segment, b.weather.segment_bytes);
                    }
                }
                Some(_) => {}
                None if b.rng.per_mille(300) => {
                    let _ = disk.create(segment, b.weather.segment_bytes);
                }
                None => {}
            }
        }
        while !self.others.is_empty() && b.rng.per_mille(500) {
            let done = self.do_other(disk, b);
            let in_place = matches!(done, Ok(Some(Input::CheckpointWritten { .. })));
            b.stats.checkpoints_unanswered += u64::from(in_place);
        }
        let is_sort = |(_, chore): &&(u64, Chore)| matches!(chore, Chore::Cold(ColdWork::Sort(_)));
        b.stats.sorts_cut += self.others.iter().filter(is_sort).count() as u64;
        if let Some((_, Chore::Cold(work))) = self.others.pop_front()
            && b.rng.per_mille(500)
        {
            // What it writes is not flushed yet.
            let _ = work.run(&mut Unflushed { disk, fails: false });
        }
    }
}

/// What moves, erases or sorts, where disks fail.
const COLD_FAILS_PER_MILLE: u64 = 400;

/// How often a disk that rots does not give a page any more of what is about to be erased.
const ERASED_LOST_PER_MILLE: u64 = 500;

fn cold(work: ColdWork, disk: &mut SimDisk, b: &mut Bottom) -> Input<'static> {
    if let ColdWork::Erase(erase) = &work
        && !b.healed
        && b.weather.rots_per_mille + b.weather.read_fails_per_mille > 0
        && b.rots.rng.per_mille(ERASED_LOST_PER_MILLE)
    {
        disk.lose_cold_page(erase.segment(), b);
    }
    disk.evict(300, b);
    // Most of it comes when all faults have ended: what comes before fails often, where any such chore does.
    let fails_at_all = b.weather.checkpoint_fails_per_mille + b.weather.prepare_fails_per_mille > 0;
    if !b.healed && fails_at_all && b.rng.per_mille(COLD_FAILS_PER_MILLE) {
        // In the middle of what it writes.
        b.stats.sorts_failed += u64::from(matches!(work, ColdWork::Sort(_)));
        let _ = work.run(&mut Unflushed { disk, fails: true });
        b.stats.moves_failed += 1;
        return Input::ColdFailed;
    }
    match work.run(&mut disk.ram) {
        Ok(done) => {
            match &done {
                ColdDone::Copied(copied) => b.stats.moved += copied.moved.len() as u64,
                ColdDone::Erased(erase) => {
                    b.stats.erased += 1;
                    b.stats.erased_beside_lost += u64::from(!erase.unreadable().is_empty());
                }
                ColdDone::Sorted(_) => b.stats.sorted += 1,
            }
            Input::ColdDone(Box::new(done))
        }
        Err(_) => Input::ColdFailed,
    }
}

/// A disk whose writes stay in its cache, or fail in the middle.
struct Unflushed<'a> {
    disk: &'a mut SimDisk,
    fails: bool,
}

impl Disk for Unflushed<'_> {
    fn list(&mut self) -> io::Result<Vec<SegmentId>> {
        self.disk.ram.list()
    }

    fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.disk.ram.create(id, size_bytes)
    }

    fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.disk.ram.recycle(old, used, id, size_bytes)
    }

    fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.disk.ram.remove(id)
    }

    fn open(&mut self, id: SegmentId) -> io::Result<Bytes> {
        self.disk.ram.open(id)
    }

    fn read_pages(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Vec<Range<u32>>> {
        self.disk.ram.read_pages(id, from, bytes)
    }

    fn read_stored(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Option<Vec<Range<u32>>>> {
        self.disk.ram.read_stored(id, from, bytes)
    }

    fn write(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let written = if self.fails { bytes.len() / 2 } else { bytes.len() };
        self.disk.ram.write_unflushed(id, offset, &bytes[..written])?;
        if self.fails { Err(io::Error::other("a planted failure of a write")) } else { Ok(()) }
    }

    fn sync(&mut self, id: SegmentId) -> io::Result<()> {
        self.disk.ram.sync(id)
    }

    fn set_aside(&mut self, id: SegmentId) -> io::Result<()> {
        self.disk.ram.set_aside(id)
    }

    fn checkpoints(&mut self) -> io::Result<Vec<u64>> {
        self.disk.ram.checkpoints()
    }

    fn read_checkpoint(&mut self, number: u64) -> io::Result<Bytes> {
        self.disk.ram.read_checkpoint(number)
    }

    fn set_aside_checkpoint(&mut self, number: u64) -> io::Result<()> {
        self.disk.ram.set_aside_checkpoint(number)
    }
}

/// Nobody looks at it any more: which it was, and how far it was used.
fn forget_mapping(retired: Retired) -> (SegmentId, u32) {
    let Retired { id, mapping, used } = retired;
    drop::<Bytes>(mapping);
    (id, used)
}
