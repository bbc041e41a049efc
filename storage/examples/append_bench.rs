//! What an append costs, and how near the log comes to what the disk can do.
//!
//! ```text
//! cargo run --release -p whimbrel-storage --example append_bench -- DIR
//! ```
//!
//! Prints the CPU time of appends with writes that complete at once, then durable batches of 1, 16 and 256 records: the log
//! through its API, raw `pwritev2(RWF_DSYNC)` of the same payloads that shares no code with it, and stores into a writable
//! mapping (which the log avoids), in alternating rounds on the same file system, and at last a recovery of what was written.
//! The files lie in a directory of their own below DIR and are removed.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::ReadWriteFlags;
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, FileDisk, Log, LogOptions, RecordHeader, RecordKind, SegmentId, Wanted};

const HEADER: RecordHeader = RecordHeader { kind: RecordKind::Entry, partition: 1, term: 1, index: 1 };
const RECORD_BYTES: usize = 160;
const ROUNDS: usize = 8;
const BATCHES: usize = 250;
const RAW_BYTES: u64 = 64 << 20;

fn main() {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: append_bench DIR (on the file system to be measured)");
        std::process::exit(2);
    };
    let dir = dir.join(format!("append-bench-{}", std::process::id()));
    let result = fs::create_dir_all(&dir).and_then(|()| run(&dir));
    let _ = fs::remove_dir_all(&dir);
    if let Err(error) = result {
        eprintln!("append_bench: {error}");
        std::process::exit(1);
    }
}

fn run(dir: &Path) -> io::Result<()> {
    println!("append, in memory (each batch is written at once, without a disk):");
    for payload_bytes in [64, 200, 1000] {
        for per_batch in [16, 256] {
            let ns = append_ns(payload_bytes, per_batch);
            println!("  {payload_bytes:>5} bytes, {per_batch:>3} a batch: {ns:>6.1} ns a record");
        }
    }
    println!("durable batches of {RECORD_BYTES}-byte records, {ROUNDS} rounds of {BATCHES}:");
    println!("  records   raw p50   raw p99     raw/s     log p50   log p99     log/s   log/raw");
    let mut raw = Raw::new(dir)?;
    let mut mapped = Mapped::new(dir)?;
    let mut log = Durable::new(dir)?;
    for per_batch in [1, 16, 256] {
        let (mut raw_times, mut log_times) = (Vec::new(), Vec::new());
        let (mut log_own, mut mapped_own) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            raw.round(per_batch, &mut raw_times)?;
            log.round(per_batch, &mut log_times, &mut log_own)?;
            mapped.round(per_batch, &mut mapped_own)?;
        }
        report(per_batch, &mut raw_times, &mut log_times);
        let log = mean_and_max_us(&log_own);
        let mapped = mean_and_max_us(&mapped_own);
        println!("          on the core, mean and max: log {log}, stores into a writable mapping {mapped}");
    }
    drop(log);
    recovery(dir)
}

/// Opens what the rounds left, the page cache being warm: every checksum is verified.
fn recovery(dir: &Path) -> io::Result<()> {
    let mut disk = FileDisk::open(dir, 0)?;
    let start = Instant::now();
    let mut payload_bytes = 0;
    let (log, recovered) = Log::open(LogOptions::new(0), &mut disk, &mut |_, location, _| {
        payload_bytes += u64::from(location.len);
    })
    .map_err(io::Error::other)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "recovery: {} records in {} batches, {:.0} MiB of payload in {} MiB of segments: {:.0} ms, {:.0} ns a record",
        recovered.records,
        recovered.batches,
        payload_bytes as f64 / f64::from(1 << 20),
        log.bytes_on_disk() >> 20,
        seconds * 1e3,
        seconds * 1e9 / recovered.records as f64
    );
    Ok(())
}

fn report(per_batch: usize, raw: &mut [Duration], log: &mut [Duration]) {
    let records = (ROUNDS * BATCHES * per_batch) as f64;
    let rate = |times: &[Duration]| records / times.iter().sum::<Duration>().as_secs_f64();
    let (raw_rate, log_rate) = (rate(raw), rate(log));
    let quantiles = |times: &mut [Duration]| {
        times.sort_unstable();
        (us(times[times.len() / 2]), us(times[times.len() * 99 / 100]))
    };
    let (raw_p50, raw_p99) = quantiles(raw);
    let (log_p50, log_p99) = quantiles(log);
    let ratio = log_rate / raw_rate;
    print!("  {per_batch:>7} {raw_p50:>7.0}us {raw_p99:>7.0}us {raw_rate:>9.0} ");
    println!("{log_p50:>9.0}us {log_p99:>7.0}us {log_rate:>9.0} {ratio:>9.2}");
}

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn mean_and_max_us(times: &[Duration]) -> String {
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    let max = times.iter().max().copied().unwrap_or_default();
    format!("{:.1} and {:.0} us", us(mean), us(max))
}

/// Nanoseconds a record, everything but the disk included: appends, sealing, marks, and the rolling of segments.
fn append_ns(payload_bytes: usize, per_batch: usize) -> f64 {
    let options = LogOptions::new(0);
    let mut disk = RamDisk::new(0, 1);
    let (mut log, _) = Log::open(options, &mut disk, &mut |_, _, _| {}).expect("memory does not fail");
    let payload = vec![7; payload_bytes];
    let mut round = |batches: usize| {
        for _ in 0..batches {
            for _ in 0..per_batch {
                black_box(log.append(&HEADER, black_box(&payload)).expect("there is room"));
            }
            while let Some(Wanted { id, .. }) = log.segment_wanted() {
                let mapping = disk.create(id, options.segment_size).expect("memory does not fail");
                log.segment_ready(id, mapping);
            }
            while let Some(write) = log.next_write() {
                log.written(write.id);
            }
        }
    };
    let batches = 400_000 / per_batch;
    round(batches / 4);
    let start = Instant::now();
    round(batches);
    start.elapsed().as_nanos() as f64 / (batches * per_batch) as f64
}

/// The log over files.
struct Durable {
    disk: FileDisk,
    log: Log,
    options: LogOptions,
    file: (SegmentId, File),
}

impl Durable {
    fn new(dir: &Path) -> io::Result<Durable> {
        let options = LogOptions::new(0);
        let mut disk = FileDisk::open(dir, 0)?;
        let (log, _) = Log::open(options, &mut disk, &mut |_, _, _| {}).map_err(io::Error::other)?;
        let file = (SegmentId::FIRST, disk.file(SegmentId::FIRST)?);
        Ok(Durable { disk, log, options, file })
    }

    /// Times batches from their first append to the answer that they are durable, and of that what the log itself takes.
    fn round(&mut self, per_batch: usize, times: &mut Vec<Duration>, own: &mut Vec<Duration>) -> io::Result<()> {
        let payload = [7; RECORD_BYTES];
        for _ in 0..BATCHES {
            // Segments are made in the background of a server; here outside of what is timed.
            while let Some(Wanted { id, .. }) = self.log.segment_wanted() {
                let mapping = self.disk.create_segment(id, self.options.segment_size)?;
                self.log.segment_ready(id, mapping);
            }
            let start = Instant::now();
            for _ in 0..per_batch {
                self.log.append(&HEADER, &payload).map_err(io::Error::other)?;
            }
            let write = self.log.next_write().ok_or_else(|| io::Error::other("nothing to write"))?;
            if self.file.0 != write.segment {
                self.file = (write.segment, self.disk.file(write.segment)?);
            }
            let before = Instant::now();
            write_dsync(&self.file.1, write.offset, write.batch.as_ref())?;
            let after = Instant::now();
            self.log.written(write.id);
            times.push(start.elapsed());
            own.push(before - start + after.elapsed());
        }
        Ok(())
    }
}

/// A file of zeros that is written from front to back, and over again.
struct Raw {
    file: File,
    offset: u64,
}

impl Raw {
    fn new(dir: &Path) -> io::Result<Raw> {
        Raw::new_at(dir, "raw")
    }

    fn new_at(dir: &Path, name: &str) -> io::Result<Raw> {
        let mut file = File::create_new(dir.join(name))?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..RAW_BYTES >> 20 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(Raw { file, offset: 0 })
    }

    fn round(&mut self, per_batch: usize, times: &mut Vec<Duration>) -> io::Result<()> {
        let bytes = vec![7; (per_batch * RECORD_BYTES).next_multiple_of(4096)];
        for _ in 0..BATCHES {
            if self.offset + bytes.len() as u64 > RAW_BYTES {
                self.offset = 0;
            }
            let start = Instant::now();
            write_dsync(&self.file, self.offset, &bytes)?;
            times.push(start.elapsed());
            self.offset += bytes.len() as u64;
        }
        Ok(())
    }
}

/// The way that was not taken: batches stored into a writable mapping of a file of zeros, and msync.
struct Mapped {
    mapping: memmap2::MmapMut,
    offset: usize,
}

impl Mapped {
    fn new(dir: &Path) -> io::Result<Mapped> {
        let raw = Raw::new_at(dir, "mapped")?;
        // SAFETY: the file is this program's own and keeps its length for as long as the mapping lives.
        let mapping = unsafe { memmap2::MmapMut::map_mut(&raw.file)? };
        Ok(Mapped { mapping, offset: 0 })
    }

    /// Times the stores, without the msync.
    fn round(&mut self, per_batch: usize, own: &mut Vec<Duration>) -> io::Result<()> {
        let payload = [7; RECORD_BYTES];
        let bytes = (per_batch * RECORD_BYTES).next_multiple_of(4096);
        for _ in 0..BATCHES {
            if self.offset + bytes > self.mapping.len() {
                self.offset = 0;
            }
            let batch = &mut self.mapping[self.offset..self.offset + bytes];
            let start = Instant::now();
            for record in batch.chunks_exact_mut(RECORD_BYTES).take(per_batch) {
                record.copy_from_slice(&payload);
            }
            own.push(start.elapsed());
            self.mapping.flush_range(self.offset, bytes)?;
            self.offset += bytes;
        }
        Ok(())
    }
}

fn write_dsync(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let written = rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC)?;
    if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
