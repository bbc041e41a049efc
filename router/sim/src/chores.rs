//! What the shell of a shard has done off its core: segments made, used again and removed, checkpoints written, segments read
//! in. Segments and the rest each in their order, whenever chance has them done.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use whimbrel_core::io::Input;
use whimbrel_storage::{CHECKPOINT_MAGIC, Memory, Retired, SegmentId, SegmentIs, check_segment};

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
        let mapping = match reuse.map(forget_mapping) {
            Some(old) if fails => disk.remove(old).map(|()| None)?,
            Some(old) => {
                b.stats.segments_reused += 1;
                Some(disk.recycle(old, segment, size_bytes)?)
            }
            None if fails => None,
            None => Some(disk.create(segment, size_bytes)?),
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
            Chore::Remove(retired) => disk.remove(forget_mapping(retired)).map(|()| None),
            Chore::ReadIn(is, mapping) => {
                b.stats.read_in += 1;
                Ok(Some(Input::ReadIn { checked: check_segment(&is, &mut Memory(&mapping)) }))
            }
            Chore::Scrub(is, mapping) => {
                b.stats.scrubbed += 1;
                Ok(Some(Input::Scrubbed { checked: check_segment(&is, &mut Memory(&mapping)) }))
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
        Some(match disk.ram.put_checkpoint(number, whole, keep_from) {
            Ok(()) => {
                b.stats.checkpoints += 1;
                if b.fuse.fires(Plant::CheckpointSilent) {
                    return None;
                }
                Input::CheckpointWritten { number }
            }
            Err(_) => Input::CheckpointFailed { number },
        })
    }

    /// The node ends. What was to be done is done just in time, or half, or not at all.
    pub(crate) fn crash(mut self, disk: &mut SimDisk, b: &mut Bottom) {
        while let Some((_, segment, reuse)) = self.segments.pop_front() {
            match reuse.map(forget_mapping) {
                Some(old) if b.rng.per_mille(600) => {
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
            let _ = self.do_other(disk, b);
        }
    }
}

/// Nobody looks at it any more.
fn forget_mapping(retired: Retired) -> SegmentId {
    let Retired { id, mapping } = retired;
    drop::<Bytes>(mapping);
    id
}
