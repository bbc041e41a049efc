//! A write of which one block lands in another place, as a disk's firmware may have it. The page cache shows the right one, so
//! that it is found out only when the power was gone.

use whimbrel_storage::limits::PAGE_BYTES;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, LogWrite, SegmentId};

use crate::rng::Rng;

const PAGE: usize = PAGE_BYTES as usize;

/// Where the number of a batch stands in its header.
const BATCH_NUMBER: std::ops::Range<usize> = 8..16;

/// A block of a batch that is on stable storage elsewhere.
pub(crate) struct Astray {
    /// The number of its batch.
    pub(crate) batch: u64,
    meant: (SegmentId, u32),
    /// Until something else is written there.
    landed: Option<(SegmentId, u32)>,
    block: Vec<u8>,
    /// What is still where it was meant for.
    before: Vec<u8>,
    /// A later batch is on stable storage. Before that the damage passes for a torn write.
    pub(crate) is_followed: bool,
}

impl Astray {
    /// One of the blocks of a batch that is about to be written, if that makes a difference.
    pub(crate) fn new(write: &LogWrite, ram: &RamDisk, rng: &mut Rng) -> Option<Astray> {
        let bytes = write.batch.as_ref();
        let at = rng.index(bytes.len() / PAGE) * PAGE;
        let meant = (write.segment, (write.offset as usize + at) as u32);
        let block = bytes[at..at + PAGE].to_vec();
        let before = ram.read(meant.0, meant.1, PAGE_BYTES)?;
        let segments: Vec<SegmentId> = ram.segments().collect();
        let other = if rng.per_mille(500) { write.segment } else { rng.pick(&segments) };
        let pages = ram.size_bytes(other)? / PAGE_BYTES;
        let landed = Some((other, rng.index(pages as usize) as u32 * PAGE_BYTES)).filter(|landed| *landed != meant);
        let batch = u64::from_le_bytes(bytes.get(BATCH_NUMBER)?.try_into().ok()?);
        (block != before).then_some(Astray { batch, meant, landed, block, before, is_followed: false })
    }

    /// It is only missing where it was meant for.
    pub(crate) fn nowhere(self) -> Astray {
        Astray { landed: None, ..self }
    }

    /// Another batch is on stable storage.
    pub(crate) fn followed_by(&mut self, write: &LogWrite) {
        let range = write.offset..write.offset + write.batch.as_ref().len() as u64;
        let covers = |place: &(SegmentId, u32)| place.0 == write.segment && range.contains(&u64::from(place.1));
        self.landed = self.landed.filter(|landed| !covers(landed));
        self.is_followed = true;
    }

    /// A segment is another one from here on, or gone. False if nothing is left of the damage.
    pub(crate) fn outlives(&mut self, gone: SegmentId) -> bool {
        self.landed = self.landed.filter(|landed| landed.0 != gone);
        self.meant.0 != gone
    }

    /// What is on stable storage is read from here on.
    pub(crate) fn show(&self, ram: &mut RamDisk) -> std::io::Result<()> {
        ram.write(self.meant.0, self.meant.1, &self.before)?;
        self.landed.map_or(Ok(()), |(segment, offset)| ram.write(segment, offset, &self.block))
    }
}
