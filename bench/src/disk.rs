//! The disk's own time for a flush, in the same run: without it no latency of a durable message says anything.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::{ReadWriteFlags, pwritev2};

use crate::stats::{Percentiles, Times};

pub(crate) const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 16_384;
/// Of a [`file_of_zeros`].
pub(crate) const FILE_BYTES: u64 = (BLOCKS * BLOCK_BYTES) as u64;

/// As the log's segments: preallocated and filled, so that a write changes no metadata.
pub(crate) fn file_of_zeros(path: &Path) -> anyhow::Result<File> {
    let make = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let zeros = vec![0; BLOCK_BYTES * 256];
        for _ in 0..BLOCKS / 256 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok::<_, std::io::Error>(file)
    };
    make().with_context(|| format!("make {}", path.display()))
}

/// Writes one block after the other, each durable, to a file beside the data.
pub(crate) struct FlushProbe {
    file: File,
    path: PathBuf,
    next: usize,
    times: Times,
}

impl FlushProbe {
    /// In a directory on the disk in question.
    pub(crate) fn new(directory: &Path) -> anyhow::Result<FlushProbe> {
        let path = directory.join("flush-probe");
        let file = file_of_zeros(&path)?;
        Ok(FlushProbe { file, path, next: 0, times: Times::default() })
    }

    /// So many flushes, one after the other.
    pub(crate) fn round(&mut self, flushes: usize) -> anyhow::Result<()> {
        let block = [0xa5; BLOCK_BYTES];
        for _ in 0..flushes {
            let ns = self.write(&block)?;
            self.times.record(ns);
        }
        Ok(())
    }

    /// Writes of so many whole blocks at an even pace for a while, each durable; one that is late goes at once. What is timed is
    /// each write alone.
    pub(crate) fn paced(&mut self, blocks: usize, per_s: f64, length: Duration) -> anyhow::Result<Times> {
        let bytes = vec![0xa5; blocks.clamp(1, BLOCKS) * BLOCK_BYTES];
        let mut times = Times::default();
        let begun = Instant::now();
        let mut due = Duration::ZERO;
        while due < length {
            while begun.elapsed() < due {
                std::hint::spin_loop();
            }
            times.record(self.write(&bytes)?);
            due = (due + Duration::from_secs_f64(1.0 / per_s)).max(begun.elapsed().min(length));
        }
        Ok(times)
    }

    /// The nanoseconds of one write behind the last one.
    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<u64> {
        let blocks = bytes.len() / BLOCK_BYTES;
        if self.next + blocks > BLOCKS {
            self.next = 0;
        }
        let offset = (self.next * BLOCK_BYTES) as u64;
        self.next += blocks;
        let start = Instant::now();
        let written = pwritev2(&self.file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC)
            .with_context(|| format!("write {}", self.path.display()))?;
        if written != bytes.len() {
            bail!("{}: a write was cut short: is the disk full?", self.path.display());
        }
        Ok(start.elapsed().as_nanos() as u64)
    }

    /// Of all rounds.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        self.times.percentiles()
    }
}

impl Drop for FlushProbe {
    fn drop(&mut self) {
        // Left behind it would do no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}
