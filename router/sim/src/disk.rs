//! The simulated disk of a shard: the storage crate's disk in memory, torn and cut off by chance, with bugs to plant.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, LogWrite, SegmentId, limits::SECTOR_BYTES};

use crate::plant::{Fuse, Plant};
use crate::rng::Rng;

/// Shorter stretches of a batch without zeros may be headers and tables, not payload.
const PAYLOAD_STRETCH_MIN: usize = 64;

/// A place in the header of a batch.
const ROTTEN_OFFSET: u32 = 9;

pub(crate) struct SimDisk {
    pub(crate) ram: RamDisk,
    /// It has reported a flush that it never made: it loses power before the next one.
    pub(crate) lied: bool,
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
        SimDisk { ram: RamDisk::new(shard, seed), lied: false }
    }

    pub(crate) fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.ram.create(id, size_bytes)
    }

    pub(crate) fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.ram.recycle(old, used, id, size_bytes)
    }

    pub(crate) fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.ram.remove(id)
    }

    /// Writes a batch and flushes it.
    pub(crate) fn write(&mut self, write: &LogWrite, fuse: &mut Fuse) -> io::Result<()> {
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
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) -> Remains {
        // All of it, none of it, or what chance decides for each sector.
        self.lied = false;
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
