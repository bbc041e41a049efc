//! The disk's own time for a flush, in the same run: without it no latency of a durable message says anything.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use rustix::io::{ReadWriteFlags, pwritev2};

use crate::stats::{Percentiles, Times};

const BLOCK_BYTES: usize = 4096;
/// As the log's segments: preallocated and filled, so that a write changes no metadata.
const BLOCKS: usize = 1024;

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
        let make = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
            file.write_all(&vec![0; BLOCK_BYTES * BLOCKS])?;
            file.sync_all()?;
            Ok::<_, std::io::Error>(file)
        };
        let file = make().with_context(|| format!("make {}", path.display()))?;
        Ok(FlushProbe { file, path, next: 0, times: Times::default() })
    }

    /// So many flushes, one after the other.
    pub(crate) fn round(&mut self, flushes: usize) -> anyhow::Result<()> {
        let block = [0xa5; BLOCK_BYTES];
        for _ in 0..flushes {
            let offset = (self.next % BLOCKS * BLOCK_BYTES) as u64;
            self.next += 1;
            let start = Instant::now();
            pwritev2(&self.file, &[IoSlice::new(&block)], offset, ReadWriteFlags::DSYNC)
                .with_context(|| format!("write {}", self.path.display()))?;
            self.times.record(start.elapsed().as_nanos() as u64);
        }
        Ok(())
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
