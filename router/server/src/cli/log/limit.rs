//! What a disk can do, measured by writes that share no code with the log but the sizes of its batches.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use rustix::fs::{Advice, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use whimbrel_storage::{BATCH_HEADER_BYTES, GIVE_BACK_PAUSE, GaveBack, Unlinked, limits, record_bytes};

use crate::cli::output::Failure;

/// Records of a batch, and bytes of a record's payload: what durable figures are given for.
const BATCHES: [u32; 3] = [1, 16, 256];
const PAYLOAD_BYTES: usize = 160;

/// One way is measured for so long before it is another's turn, so that a mood of the disk is shared by all.
const ROUND: Duration = Duration::from_millis(50);

/// Bandwidth is measured in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// What is done before anything is measured.
pub(super) const MAKING: &str = "making the files";

/// Of a slow disk no less is used than this for each of both files.
const FILE_MIN_BYTES: u64 = 4 << 20;

/// A file that gives its bytes back has a part of those of both files, and at most as many as a segment.
const GIVEN_BACK_PART: u64 = 16;
const GIVEN_BACK_MAX_BYTES: u64 = 64 << 20;

/// So long after it the disk may still be busy with it: a file system tells it of them a moment later.
const AFTERMATH: Duration = Duration::from_millis(300);

/// How a batch gets to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache and flushed in one call: as the log does.
    Dsync,
    /// Past the page cache, and flushed in the same call.
    Direct,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Dsync => "RWF_DSYNC",
            Way::Direct => "O_DIRECT",
        }
    }
}

/// Batches of one size written in one way.
pub(super) struct Flushes {
    pub(super) records: u32,
    /// Bytes of a batch as the log would write it, padding included.
    pub(super) bytes: u32,
    pub(super) way: Way,
    /// Nanoseconds from before the write to after its flush.
    pub(super) times: Histogram<u64>,
    total: Duration,
}

impl Flushes {
    /// Records a second, one batch after the other; none if there was no time for one.
    pub(super) fn records_per_second(&self) -> f64 {
        let seconds = self.total.as_secs_f64();
        if seconds > 0.0 { self.times.len() as f64 * f64::from(self.records) / seconds } else { 0.0 }
    }
}

/// A file written or read from its beginning on.
pub(super) struct Stream {
    pub(super) what: &'static str,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// Flushes of one record while a file gives its bytes back to the disk.
pub(super) struct GivingBack {
    pub(super) how: &'static str,
    pub(super) bytes: u64,
    /// As those of [`Flushes`].
    pub(super) times: Histogram<u64>,
}

/// What was measured.
pub(super) struct Measured {
    /// Bytes of both files.
    pub(super) bytes: u64,
    pub(super) streams: Vec<Stream>,
    pub(super) flushes: Vec<Flushes>,
    pub(super) giving_back: Vec<GivingBack>,
    /// Why O_DIRECT could not be measured.
    pub(super) no_direct: Option<String>,
}

/// Told of what is being done, now and then; false ends it.
pub(super) type Goes<'a> = &'a dyn Fn(&str) -> bool;

/// Nobody wants to know any more.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// Measures in a directory for about so long, with files of so many bytes in all.
pub(super) fn measure(directory: &Path, bytes: u64, time: Duration, goes: Goes<'_>) -> anyhow::Result<Measured> {
    let mut files = Files::make(directory, bytes, time, goes)?;
    let no_direct = files.direct().err().map(|error| error.to_string());
    let has_direct = no_direct.is_none();
    let share = time / 10;
    let mut streams = vec![files.write(false, share, goes)?];
    if has_direct {
        streams.push(files.write(true, share, goes)?);
    }
    streams.push(files.read(false, share, goes)?);
    if has_direct {
        streams.push(files.read(true, share, goes)?);
    }
    let flushes = files.flush(has_direct, time * 6 / 10, goes)?;
    let aftermath = share.min(AFTERMATH);
    let giving_back = vec![
        files.give_back(directory, "all at once", aftermath, goes, |file| {
            file.set_len(0)?;
            file.sync_data()
        })?,
        files.give_back(directory, "as the log does", aftermath, goes, |file| {
            let unlinked = Unlinked::default();
            unlinked.push(file);
            while unlinked.give_back(GIVE_BACK_PAUSE) != GaveBack::All {
                thread::sleep(GIVE_BACK_PAUSE);
            }
            Ok(())
        })?,
    ];
    Ok(Measured { bytes: 2 * files.bytes, streams, flushes, giving_back, no_direct })
}

/// Two files without names, filled with zeros as segments are: for each way one, for the page cache of one is in the way of
/// the other.
struct Files {
    buffered: File,
    direct: File,
    /// Of each of them.
    bytes: u64,
    memory: Aligned,
}

impl Files {
    fn make(directory: &Path, bytes: u64, time: Duration, goes: Goes<'_>) -> anyhow::Result<Files> {
        let make =
            || tempfile::tempfile_in(directory).with_context(|| format!("make a file in {}", directory.display()));
        let (mut buffered, mut direct) = (make()?, make()?);
        let zeros = vec![0; PIECE_BYTES];
        let begun = Instant::now();
        let mut filled = 0;
        while filled < bytes / 2 && (filled < FILE_MIN_BYTES || begun.elapsed() < time) {
            for file in [&mut buffered, &mut direct] {
                file.write_all(&zeros).map_err(|error| no_room(directory, error))?;
                // Piece by piece, so that the time is the disk's.
                file.sync_data().map_err(|error| no_room(directory, error))?;
            }
            filled += PIECE_BYTES as u64;
            check(goes, MAKING)?;
        }
        Ok(Files { buffered, direct, bytes: filled, memory: Aligned::new() })
    }

    /// Makes the second file one that is written past the page cache.
    fn direct(&mut self) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&self.direct, rustix::fs::fcntl_getfl(&self.direct)? | OFlags::DIRECT)?;
        write_flushed(&self.direct, 0, &self.memory.slice()[..limits::PAGE_BYTES as usize])
    }

    fn write(&self, direct: bool, time: Duration, goes: Goes<'_>) -> anyhow::Result<Stream> {
        let (what, file) =
            if direct { ("write, O_DIRECT", &self.direct) } else { ("write, fsync at the end", &self.buffered) };
        let begun = Instant::now();
        let mut at = 0;
        while at < self.bytes && begun.elapsed() < time {
            file.write_all_at(self.memory.slice(), at).context("write")?;
            at += PIECE_BYTES as u64;
            check(goes, what)?;
        }
        file.sync_data().context("flush")?;
        Ok(Stream { what, bytes: at, seconds: begun.elapsed().as_secs_f64() })
    }

    fn read(&mut self, direct: bool, time: Duration, goes: Goes<'_>) -> anyhow::Result<Stream> {
        let (what, file) =
            if direct { ("read, O_DIRECT", &self.direct) } else { ("read, cache dropped", &self.buffered) };
        rustix::fs::fadvise(file, 0, None, Advice::DontNeed).context("drop what is in memory of the file")?;
        let begun = Instant::now();
        let mut at = 0;
        while at < self.bytes && begun.elapsed() < time {
            file.read_exact_at(self.memory.slice_mut(), at).context("read")?;
            at += PIECE_BYTES as u64;
            check(goes, what)?;
        }
        Ok(Stream { what, bytes: at, seconds: begun.elapsed().as_secs_f64() })
    }

    fn flush(&mut self, direct: bool, time: Duration, goes: Goes<'_>) -> anyhow::Result<Vec<Flushes>> {
        let ways: &[Way] = if direct { &[Way::Dsync, Way::Direct] } else { &[Way::Dsync] };
        let mut all = Vec::new();
        for records in BATCHES {
            for &way in ways {
                let times = Histogram::new_with_bounds(1, 60_000_000_000, 3).context("a histogram up to a minute")?;
                all.push(Flushes { records, bytes: batch_bytes(records), way, times, total: Duration::ZERO });
            }
        }
        let mut at = vec![0; all.len()];
        let begun = Instant::now();
        while begun.elapsed() < time {
            for (flushes, at) in all.iter_mut().zip(&mut at) {
                let file = if flushes.way == Way::Direct { &self.direct } else { &self.buffered };
                let round = Instant::now();
                while round.elapsed() < ROUND {
                    self.memory.stir();
                    let batch = &self.memory.slice()[..flushes.bytes as usize];
                    let before = Instant::now();
                    write_flushed(file, *at, batch).context("write and flush")?;
                    let took = before.elapsed();
                    flushes.times.saturating_record(took.as_nanos() as u64);
                    flushes.total += took;
                    *at += u64::from(flushes.bytes);
                    if *at + u64::from(flushes.bytes) > self.bytes {
                        *at = 0;
                    }
                    check(goes, "flushing batches")?;
                }
            }
        }
        Ok(all)
    }

    /// Flushes one record after the other while another thread gives the bytes of a file back, which was written before.
    fn give_back(
        &mut self,
        directory: &Path,
        how: &'static str,
        aftermath: Duration,
        goes: Goes<'_>,
        back: impl FnOnce(File) -> io::Result<()> + Send,
    ) -> anyhow::Result<GivingBack> {
        let mut file =
            tempfile::tempfile_in(directory).with_context(|| format!("make a file in {}", directory.display()))?;
        let bytes = (2 * self.bytes / GIVEN_BACK_PART).min(GIVEN_BACK_MAX_BYTES);
        for _ in 0..bytes.div_ceil(PIECE_BYTES as u64) {
            file.write_all(self.memory.slice()).map_err(|error| no_room(directory, error))?;
            check(goes, MAKING)?;
        }
        file.sync_all().context("flush")?;
        let mut times = Histogram::new_with_bounds(1, 60_000_000_000, 3).context("a histogram up to a minute")?;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let given = back(file);
                thread::sleep(aftermath);
                is_over.store(true, Ordering::Relaxed);
                given
            });
            let mut at = 0;
            loop {
                self.memory.stir();
                let before = Instant::now();
                let batch = &self.memory.slice()[..batch_bytes(1) as usize];
                write_flushed(&self.buffered, at, batch).context("write and flush")?;
                times.saturating_record(before.elapsed().as_nanos() as u64);
                at = (at + batch.len() as u64) % self.bytes;
                check(goes, "giving bytes back")?;
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
            thread.join().expect("it does not panic").context("give bytes back")
        })?;
        Ok(GivingBack { how, bytes, times })
    }
}

/// Bytes that a batch of so many records takes in a segment.
pub(super) fn batch_bytes(records: u32) -> u32 {
    (BATCH_HEADER_BYTES + records * record_bytes(PAYLOAD_BYTES) as u32).next_multiple_of(limits::PAGE_BYTES)
}

fn check(goes: Goes<'_>, what: &str) -> Result<(), Interrupted> {
    if goes(what) { Ok(()) } else { Err(Interrupted) }
}

fn no_room(directory: &Path, error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        let what = format!("the disk of {} is full: {error}", directory.display());
        return Failure::with_remedy(what, "make room, or use less: --size 16MiB. Nothing remains of what was written")
            .into();
    }
    anyhow::Error::new(error).context(format!("write to a file in {}", directory.display()))
}

/// One write and its flush, in one call where the kernel can.
fn write_flushed(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    match rustix::io::pwritev2(file, &[IoSlice::new(bytes)], at, ReadWriteFlags::DSYNC) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(bytes, at).and_then(|()| file.sync_data()),
        Err(error) => Err(error.into()),
    }
}

/// Memory that begins at a page, as O_DIRECT wants it, with bytes in it that no disk can make smaller.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    random: u64,
}

impl Aligned {
    fn new() -> Aligned {
        let page = limits::PAGE_BYTES as usize;
        let memory = vec![0; PIECE_BYTES + page];
        let start = memory.as_ptr().align_offset(page);
        let mut aligned = Aligned { memory, start, random: 1 };
        for at in (0..PIECE_BYTES).step_by(8) {
            let word = aligned.next().to_le_bytes();
            aligned.memory[start + at..start + at + 8].copy_from_slice(&word);
        }
        aligned
    }

    fn slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + PIECE_BYTES]
    }

    fn slice_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + PIECE_BYTES]
    }

    /// So that no two writes are of the same bytes.
    fn stir(&mut self) {
        let word = self.next().to_le_bytes();
        self.slice_mut()[..8].copy_from_slice(&word);
    }

    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random ^ (self.random >> 29)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_as_large_as_the_log_writes_them() {
        assert_eq!(BATCHES.map(batch_bytes), [4096, 4096, 53_248]);
    }

    #[test]
    fn memory_for_direct_writes_begins_at_a_page() {
        let mut memory = Aligned::new();
        assert!(memory.slice().as_ptr().addr().is_multiple_of(limits::PAGE_BYTES as usize));
        let before = memory.slice()[..16].to_vec();
        memory.stir();
        assert!(memory.slice()[..8] != before[..8] && memory.slice()[8..16] == before[8..]);
    }
}
