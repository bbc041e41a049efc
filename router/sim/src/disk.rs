//! The simulated disk of a shard: the storage crate's disk in memory, torn and cut off by chance, with bugs to plant.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, LogWrite, SegmentId, limits::SECTOR_BYTES, verify_checkpoint};

use crate::astray::Astray;
use crate::bottom::Bottom;
use crate::plant::{Fuse, Plant};
use crate::rng::Rng;

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
    /// A segment that was reported although the disk has no bytes for it.
    unbacked: Option<SegmentId>,
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
        SimDisk { shard, ram, lied: false, astray: None, undamaged: None, unbacked: None }
    }

    /// Others take what is left of a disk that has an end, or give back what they have.
    pub(crate) fn share(&mut self, b: &mut Bottom) {
        self.ram.keeps_space = b.weather.keeps_space;
        let all = u64::from(b.weather.space_segments) * u64::from(b.weather.segment_bytes);
        if b.healed || all == 0 {
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
    }

    pub(crate) fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.ram.create(id, size_bytes)
    }

    pub(crate) fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.lose(old);
        self.ram.recycle(old, used, id, size_bytes)
    }

    pub(crate) fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.lose(id);
        self.ram.remove(id)
    }

    /// Writes a batch and flushes it. Of some a block is then on stable storage elsewhere.
    pub(crate) fn write(&mut self, write: &LogWrite, b: &mut Bottom) -> io::Result<()> {
        let before = self.astray.is_some();
        if !before && !b.healed && b.rng.per_million(b.weather.misdirects_per_million) {
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

    /// The first batch that a start reads.
    fn read_from(&mut self) -> u64 {
        let numbers = self.ram.checkpoint_sizes().into_iter().rev().map(|(number, _)| number);
        let newest = numbers.into_iter().find_map(|number| {
            let bytes = self.ram.read_checkpoint(number).ok()?;
            verify_checkpoint(&bytes, self.shard, number).ok().map(|(checkpoint, _)| checkpoint.position.batch)
        });
        newest.unwrap_or(1)
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
