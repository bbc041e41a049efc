//! The simulated disk of a shard: the storage crate's disk in memory, torn and cut off by chance, with bugs to plant.

use std::collections::{BTreeSet, HashSet};
use std::io;

use bytes::Bytes;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    Checked, Disk, LogWrite, Memory, Position, SegmentId, SegmentIs, check_segment, limits::SECTOR_BYTES,
    verify_checkpoint,
};

use crate::astray::Astray;
use crate::bottom::Bottom;
use crate::plant::{Fuse, Plant};
use crate::rng::Rng;
use crate::rot::{Damage, Partly};

/// Shorter stretches of a batch without zeros may be headers and tables, not payload.
const PAYLOAD_STRETCH_MIN: usize = 64;

/// A place in the header of a batch.
const ROTTEN_OFFSET: u32 = 9;

pub(crate) struct SimDisk {
    shard: u16,
    pub(crate) ram: RamDisk,
    /// It has reported a flush that it never made: it loses power before the next one.
    pub(crate) lied: bool,
    /// A write of which the next power cut shows that a block is elsewhere.
    astray: Option<Astray>,
    /// The disk as it would be without one that was shown: what is restored once it was noticed.
    pub(crate) undamaged: Option<RamDisk>,
    /// Its log did not open at the last start, and its shard is without one.
    pub(crate) shut: bool,
    /// A segment that was reported although the disk has no bytes for it.
    unbacked: Option<SegmentId>,
    /// What is damaged in a segment that nobody writes any more.
    pub(crate) damage: Option<Damage>,
    /// Segments that the shard knows to be in memory: as long as it runs they are read as they were written.
    cached: BTreeSet<SegmentId>,
}

/// How a node ends without meaning to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process is gone; what it wrote is still in the page cache, flushed or not.
    Killed,
    /// The machine is gone: what was not flushed survives by chance, sector by sector.
    PowerCut,
}

/// What became of the bytes that were not flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) kept: usize,
    pub(crate) lost: usize,
}

impl SimDisk {
    pub(crate) fn new(shard: u16, seed: u64) -> SimDisk {
        let ram = RamDisk::new(shard, seed);
        SimDisk {
            shard,
            ram,
            lied: false,
            astray: None,
            undamaged: None,
            shut: false,
            unbacked: None,
            damage: None,
            cached: BTreeSet::new(),
        }
    }

    /// Others take what is left of a disk that has an end, or give back what they have.
    pub(crate) fn share(&mut self, b: &mut Bottom) {
        self.ram.keeps_space = b.weather.keeps_space;
        let all = u64::from(b.weather.space_segments) * u64::from(b.weather.segment_bytes);
        if b.full {
            self.ram.space_bytes = Some(self.ram.used_bytes());
        } else if b.healed || all == 0 {
            self.ram.space_bytes = None;
        } else if self.ram.space_bytes.is_none() || b.rng.per_mille(300) {
            let used = self.ram.used_bytes();
            let left = all.saturating_sub(used);
            self.ram.space_bytes = Some(used + b.rng.pick(&[0, left / 3, left, left]));
        }
    }

    /// Reports a segment for which there is no space.
    pub(crate) fn create_unbacked(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.unbacked = Some(id);
        self.ram.space_bytes = None;
        self.ram.create(id, size_bytes)
    }

    /// A segment is another one from here on, or gone.
    fn lose(&mut self, id: SegmentId) {
        if self.astray.as_mut().is_some_and(|astray| !astray.outlives(id)) {
            self.astray = None;
        }
        self.unbacked = self.unbacked.filter(|unbacked| *unbacked != id);
        self.damage.iter_mut().for_each(|damage| damage.is_gone |= damage.segment == id);
    }

    pub(crate) fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.cached.insert(id);
        self.ram.create(id, size_bytes)
    }

    pub(crate) fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.lose(old);
        self.cached.insert(id);
        self.ram.recycle(old, used, id, size_bytes)
    }

    pub(crate) fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.lose(id);
        self.ram.remove(id)
    }

    /// Writes a batch and flushes it. Of some a block is then on stable storage elsewhere.
    pub(crate) fn write(&mut self, write: &LogWrite, b: &mut Bottom) -> io::Result<()> {
        let before = self.astray.is_some();
        if !before && self.damage.is_none() && !b.healed && b.rng.per_million(b.weather.misdirects_per_million) {
            self.astray = Astray::new(write, &self.ram, &mut b.rng);
        }
        if b.fuse.fires(Plant::DiskMisdirects) {
            self.astray = Astray::new(write, &self.ram, &mut b.rng).map(Astray::nowhere);
            // Power is gone before the next one.
            self.lied = self.astray.is_some();
        }
        self.write_straight(write, &mut b.fuse)?;
        if before
            && !self.lied
            && let Some(astray) = &mut self.astray
        {
            astray.followed_by(write);
        }
        Ok(())
    }

    fn write_straight(&mut self, write: &LogWrite, fuse: &mut Fuse) -> io::Result<()> {
        let (offset, bytes) = (write.offset as u32, write.batch.as_ref());
        if fuse.fires(Plant::DiskLies) {
            self.lied = true;
            return self.ram.write_unflushed(write.segment, offset, bytes);
        }
        self.ram.write(write.segment, offset, bytes)?;
        if fuse.is_for(Plant::DiskFlips)
            && let Some(at) = inside_payload(bytes)
            && fuse.fires(Plant::DiskFlips)
        {
            // Only what is read is another bit; a power cut would show the right one.
            self.ram.write_unflushed(write.segment, offset + at as u32, &[bytes[at] ^ 0x10])?;
        }
        if fuse.fires(Plant::DiskRots) {
            // In its header, which nobody reads before the next start.
            self.ram.flip_bit(write.segment, offset + ROTTEN_OFFSET, 3)?;
        }
        Ok(())
    }

    /// A write that does not come to its end: its first bytes, or all, are in the page cache.
    pub(crate) fn write_unfinished(&mut self, write: &LogWrite, rng: &mut Rng) -> io::Result<()> {
        let bytes = write.batch.as_ref();
        let sectors = bytes.len() / SECTOR_BYTES as usize;
        let written = if rng.per_mille(700) { sectors } else { rng.index(sectors + 1) };
        self.ram.write_unflushed(write.segment, write.offset as u32, &bytes[..written * SECTOR_BYTES as usize])
    }

    /// The first segment in which one of these stands.
    pub(crate) fn find(&self, marks: &HashSet<[u8; 8]>) -> Option<SegmentId> {
        self.ram.segments().find(|id| {
            let bytes = self.ram.contents(*id).unwrap_or_default();
            let pages = bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
            pages.into_iter().any(|(page, _)| {
                // Over its end, for one may stand on both sides of it.
                let end = bytes.len().min((page + 1) * 4096 + 7);
                bytes[page * 4096..end].windows(8).any(|window| marks.contains(window))
            })
        })
    }

    /// Power is gone.
    pub(crate) fn power_cut(&mut self, b: &mut Bottom) -> io::Result<Remains> {
        let remains = self.lose_unflushed(&mut b.rng);
        if let Some(unbacked) = self.unbacked.take() {
            self.ram.lose(unbacked);
        }
        let lied = std::mem::take(&mut self.lied);
        let Some(astray) = self.astray.take() else { return Ok(remains) };
        if b.fuse.is_for(Plant::DiskMisdirects) && lied {
            astray.show(&mut self.ram)?;
        } else if astray.is_followed && astray.batch >= self.read_from() {
            b.stats.misdirected += 1;
            self.undamaged = Some(self.ram.crash(&mut |_, _| true));
            if !b.fuse.fires_at_once(Plant::DamageHidden) {
                astray.show(&mut self.ram)?;
            }
        }
        Ok(remains)
    }

    /// The process is gone, and the next one writes what is last once more.
    pub(crate) fn killed(&mut self) {
        self.astray = None;
    }

    /// A segment that nobody writes any more rots. What is damaged by a write that went astray is looked for by itself.
    pub(crate) fn rot(&mut self, b: &mut Bottom) {
        if self.may_rot() {
            self.damage = Damage::new(&mut self.ram, &mut b.rots.rng);
            self.note_damage(b);
            self.evict(500, b);
        }
    }

    /// The next start does not get a page of what it reads.
    pub(crate) fn lose_page(&mut self, b: &mut Bottom) {
        if self.may_rot() {
            let from = self.newest_position().map_or(SegmentId::FIRST, |position| position.segment);
            self.damage = Damage::of_start(&mut self.ram, &mut b.rots.rng, from);
            self.note_damage(b);
            if let Some(damage) = &self.damage {
                self.ram.evict(damage.segment);
            }
        }
    }

    /// The disk does not give a page of a cold segment any more, in which something is about to be erased.
    pub(crate) fn lose_cold_page(&mut self, id: SegmentId, b: &mut Bottom) {
        if self.may_rot() && !self.cached.contains(&id) {
            self.damage = Damage::of_cold(&mut self.ram, &mut b.rots.rng, id);
            self.note_damage(b);
        }
    }

    pub(crate) fn may_rot(&self) -> bool {
        !self.shut && self.damage.is_none() && self.astray.is_none() && self.undamaged.is_none() && !self.lied
    }

    fn note_damage(&self, b: &mut Bottom) {
        if let Some(damage) = &self.damage {
            b.stats.rots += 1;
            b.stats.pages_unreadable += u64::from(damage.unreadable.is_some());
            b.trace.line(format_args!("s{} {damage}", self.shard));
        }
    }

    /// What is damaged is read as it is on stable storage from now on, perhaps, unless the shard knows that it is in memory.
    pub(crate) fn evict(&mut self, per_mille: u64, b: &mut Bottom) {
        if let Some(damage) = self.damage.as_ref().filter(|damage| !self.cached.contains(&damage.segment))
            && b.rots.rng.per_mille(per_mille)
        {
            self.ram.evict(damage.segment);
        }
    }

    /// The bytes are back.
    pub(crate) fn mend(&mut self, b: &mut Bottom) {
        self.shut = false;
        if let Some(damage) = self.damage.take() {
            b.stats.rots_noticed += u64::from(damage.is_noticed);
            b.stats.rots_gone += u64::from(damage.is_gone);
            b.trace.line(format_args!("s{} what was damaged is as it was", self.shard));
            damage.mend(&mut self.ram);
        }
    }

    /// Reads a segment in.
    pub(crate) fn read_in(&mut self, is: &SegmentIs, mapping: &Bytes, b: &mut Bottom) -> Checked {
        let damage = self.damage.as_ref().filter(|damage| damage.segment == is.id);
        let unreadable = damage.and_then(|damage| damage.unreadable.clone());
        if damage.is_some() {
            self.evict(700, b);
        }
        self.cached.insert(is.id);
        let is_in_memory = self.damage.as_ref().is_none_or(|damage| !damage.is_in(mapping));
        let unreadable = if is_in_memory { None } else { unreadable };
        check_segment(is, &mut Partly { bytes: mapping, unreadable: unreadable.as_slice() })
    }

    /// Reads a segment past the page cache.
    pub(crate) fn scrub(&self, is: &SegmentIs, mapping: &Bytes) -> Checked {
        let damage = self.damage.as_ref().filter(|damage| damage.segment == is.id);
        let unreadable = damage.and_then(|damage| damage.unreadable.clone());
        match damage.and_then(|_| self.ram.on_disk(is.id)) {
            Some(bytes) => check_segment(is, &mut Partly { bytes: &bytes, unreadable: unreadable.as_slice() }),
            None => check_segment(is, &mut Memory(mapping)),
        }
    }

    /// A shard has started from this checkpoint, and has read the log from there on.
    pub(crate) fn started(&mut self, partitions: &[u16], checkpoint: Option<u64>) {
        let from = checkpoint.and_then(|number| self.position(number));
        let from_batch = from.map_or(1, |from| from.batch);
        let from = from.map_or(SegmentId::FIRST, |from| from.segment);
        self.cached = self.ram.segments().filter(|id| *id >= from && !id.is_cold()).collect();
        if let Some(damage) = &mut self.damage {
            damage.met_by_start(&self.ram, partitions, from_batch);
        }
    }

    /// Where the log goes on behind a checkpoint, if it holds.
    fn position(&mut self, number: u64) -> Option<Position> {
        let bytes = self.ram.read_checkpoint(number).ok()?;
        verify_checkpoint(&bytes, self.shard, number).ok().map(|(checkpoint, _)| checkpoint.position)
    }

    /// The first batch that a start reads.
    fn read_from(&mut self) -> u64 {
        self.newest_position().map_or(1, |position| position.batch)
    }

    /// Where the log goes on behind the newest checkpoint that holds.
    pub(crate) fn newest_position(&mut self) -> Option<Position> {
        let numbers = self.ram.checkpoint_sizes().into_iter().rev().map(|(number, _)| number);
        numbers.into_iter().find_map(|number| self.position(number))
    }

    fn lose_unflushed(&mut self, rng: &mut Rng) -> Remains {
        // All of it, none of it, or what chance decides for each sector.
        let survival = rng.pick(&[0, 0, 1000, 100, 500, 900]);
        let mut remains = Remains::default();
        self.ram = self.ram.crash(&mut |_, _| {
            let kept = rng.per_mille(survival);
            *(if kept { &mut remains.kept } else { &mut remains.lost }) += 1;
            kept
        });
        remains
    }
}

/// A place in the middle of the longest stretch that looks like payload, if there is one.
fn inside_payload(bytes: &[u8]) -> Option<usize> {
    let (mut start, mut best) = (0, 0..0);
    for (at, pair) in bytes.windows(2).enumerate() {
        if pair == [0, 0] {
            if at - start > best.len() {
                best = start..at;
            }
            start = at + 1;
        }
    }
    (best.len() >= PAYLOAD_STRETCH_MIN).then(|| best.start + best.len() / 2)
}
