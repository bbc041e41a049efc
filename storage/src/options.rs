//! How a log is set up.

use crate::layout::{BATCH_HEADER_BYTES, FIRST_BATCH_OFFSET, RECORD_HEADER_BYTES};
use crate::limits;

/// How a log is set up.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// The shard that it belongs to.
    pub shard: u16,
    /// Bytes of a segment. The same for the whole life of a log.
    pub segment_size: u32,
    /// Bytes that a batch may grow to. It bounds the largest record: [`LogOptions::payload_max`].
    pub batch_max: u32,
    /// Bytes of memory for batches that are not written yet, or are still viewed.
    pub staging_max: u32,
    /// Prepared segments kept ahead of the one being filled.
    pub spares: u32,
    /// Retired segments are made into spares as long as there are fewer than so many, and removed otherwise.
    pub spares_max: u32,
    /// Bytes of closed segments that count as in memory. With more of them the one that was written or read in longest ago does
    /// not any more: the kernel may have dropped its pages, and a look at them would wait for the disk. The segment that is
    /// written and the spares are not counted.
    pub warm_max: u64,
}

impl LogOptions {
    /// The usual bounds.
    pub fn new(shard: u16) -> LogOptions {
        LogOptions {
            shard,
            segment_size: limits::SEGMENT_BYTES,
            batch_max: limits::BATCH_BYTES,
            staging_max: limits::STAGING_BYTES,
            spares: limits::SPARES,
            spares_max: limits::SPARES_MAX,
            warm_max: limits::WARM_BYTES,
        }
    }

    /// Bytes of the largest payload that a record can carry.
    pub fn payload_max(&self) -> usize {
        (self.batch_max - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES) as usize
    }

    /// Whether the bounds fit together; otherwise what is wrong with them.
    pub fn check(&self) -> Result<(), &'static str> {
        let page = limits::PAGE_BYTES;
        if self.batch_max < page || self.batch_max > limits::BATCH_MAX_BYTES || !self.batch_max.is_multiple_of(page) {
            return Err("batch_max must be a multiple of 4 KiB from 4 KiB to 1 MiB");
        }
        if self.segment_size > limits::SEGMENT_MAX_BYTES || !self.segment_size.is_multiple_of(page) {
            return Err("segment_size must be a multiple of 4 KiB up to 1 GiB");
        }
        if self.segment_size < FIRST_BATCH_OFFSET + self.batch_max {
            return Err("segment_size must hold its first page and one batch of batch_max");
        }
        if self.staging_max / self.batch_max < 2 {
            return Err("staging_max must hold two batches of batch_max: one being written and one that gathers");
        }
        if self.warm_max < self.warm_least() {
            return Err("warm_max must hold four segments");
        }
        Ok(())
    }

    /// The least that [`LogOptions::warm_max`] may be.
    pub fn warm_least(&self) -> u64 {
        limits::WARM_SEGMENTS_MIN * u64::from(self.segment_size)
    }
}
