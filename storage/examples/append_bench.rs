//! What an append costs, and how near the log comes to what the disk can do.
//!
//! ```text
//! cargo run --release -p whimbrel-storage --example append_bench -- DIR
//! ```
//!
//! Prints the CPU time of appends with writes that complete at once, then durable batches of 1, 16 and 256 records: the log
//! through its API, raw synchronous writes of the same payloads that share no code with it (buffered with `RWF_DSYNC`, and
//! `O_DIRECT` with it), and stores into a writable mapping (which the log avoids), in alternating rounds on the same file system, and
//! at last a recovery of what was written. The files lie in a directory of their own below DIR and are removed.
//!
//! What is judged is the throughput of batches of 256 over that of the faster way to write raw: the median of the rounds has to be
//! at least [`BAR`]. `--json FILE` writes the figures (`-` is stdout, in place of the text). Exit codes: 0 measured, and at or above
//! the bar; 1 not measured, or below; 2 the command line was not understood.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;
use serde_json::{Value, json};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, FileDisk, Log, LogOptions, RecordHeader, RecordKind, SegmentId, Wanted};

const HEADER: RecordHeader = RecordHeader { kind: RecordKind::Entry, partition: 1, term: 1, index: 1 };
const RECORD_BYTES: usize = 160;
const ROUNDS: usize = 24;
const BATCHES: usize = 100;
const RAW_BYTES: u64 = 64 << 20;

/// Records in the batches that are judged, and the least part of the raw writes' throughput that the log has to reach.
const JUDGED: usize = 256;
const BAR: f64 = 0.8;

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse() else {
        eprintln!(
            "usage: append_bench DIR [--json FILE]   (DIR is on the file system to be measured, which must know O_DIRECT)"
        );
        return ExitCode::from(2);
    };
    let dir = arguments.dir.join(format!("append-bench-{}", std::process::id()));
    let result = fs::create_dir_all(&dir).and_then(|()| run(&dir));
    // What cannot be removed does not change what was measured.
    let _ = fs::remove_dir_all(&dir);
    let judged = result.and_then(|measured| {
        let published = match &arguments.json {
            Some(path) if path == Path::new("-") => writeln!(io::stdout(), "{:#}", measured.json),
            Some(path) => fs::write(path, format!("{:#}\n", measured.json)).and_then(|()| say(&measured.text)),
            None => say(&measured.text),
        };
        published.map(|()| measured.ratio >= BAR)
    });
    match judged {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("append_bench: below the bar of {BAR}");
            ExitCode::FAILURE
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("append_bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

struct Arguments {
    dir: PathBuf,
    json: Option<PathBuf>,
}

impl Arguments {
    fn parse() -> Option<Arguments> {
        let (mut dir, mut json) = (None, None);
        let mut words = std::env::args_os().skip(1);
        while let Some(word) = words.next() {
            if word == "--json" {
                json = Some(PathBuf::from(words.next()?));
            } else if dir.is_none() && !word.to_string_lossy().starts_with('-') {
                dir = Some(PathBuf::from(word));
            } else {
                return None;
            }
        }
        Some(Arguments { dir: dir?, json })
    }
}

struct Measured {
    text: String,
    json: Value,
    /// Of batches of [`JUDGED`], to the faster way to write raw.
    ratio: f64,
}

fn run(dir: &Path) -> io::Result<Measured> {
    let mut text = String::from("append, in memory (each batch is written at once, without a disk):\n");
    for payload_bytes in [64, 200, 1000] {
        for per_batch in [16, 256] {
            let ns = append_ns(payload_bytes, per_batch);
            text += &format!("  {payload_bytes:>5} bytes, {per_batch:>3} a batch: {ns:>6.1} ns a record\n");
        }
    }
    text += &format!(
        "durable batches of {RECORD_BYTES}-byte records, {ROUNDS} rounds of {BATCHES}; ratios are medians of the rounds:\n"
    );
    text += "  records  way          p50       p99  records/s   log to it\n";
    let mut buffered = Raw::new(dir, "buffered", OFlags::empty())?;
    let mut direct = Raw::new(dir, "direct", OFlags::DIRECT)?;
    let mut mapped = Mapped::new(dir)?;
    let mut log = Durable::new(dir)?;
    let (mut rows, mut ratio) = (Vec::new(), f64::NAN);
    for per_batch in [1, 16, JUDGED] {
        eprintln!("durable batches of {per_batch}");
        let (mut log_rounds, mut buffered_rounds, mut direct_rounds) = (Vec::new(), Vec::new(), Vec::new());
        let (mut log_own, mut mapped_own) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            buffered_rounds.push(buffered.round(per_batch)?);
            log_rounds.push(log.round(per_batch, &mut log_own)?);
            direct_rounds.push(direct.round(per_batch)?);
            mapped.round(per_batch, &mut mapped_own)?;
        }
        let ways = [("RWF_DSYNC", &buffered_rounds), ("O_DIRECT", &direct_rounds)];
        let to = ways.map(|(_, rounds)| median(log_rounds.iter().zip(rounds).map(|(log, raw)| sum(raw) / sum(log))));
        // The faster one is that to which the log compares worse.
        let to_faster = to[0].min(to[1]);
        for (at, (name, rounds)) in ways.iter().enumerate() {
            text += &row(per_batch, name, rounds, &format!("{:>11.2}", to[at]));
        }
        text += &row(per_batch, "log", &log_rounds, "");
        let own = mean_and_max_us(&log_own);
        let stores = mean_and_max_us(&mapped_own);
        text += &format!("           on the core, mean and max: log {own}, stores into a writable mapping {stores}\n");
        rows.push(json!({
            "records": per_batch,
            "log_per_s": per_s(per_batch, &log_rounds),
            "raw_dsync_per_s": per_s(per_batch, &buffered_rounds),
            "raw_direct_per_s": per_s(per_batch, &direct_rounds),
            "log_to_raw_dsync": to[0],
            "log_to_raw_direct": to[1],
            "log_to_faster_raw": to_faster,
        }));
        if per_batch == JUDGED {
            ratio = to_faster;
        }
    }
    drop(log);
    text += &recovery(dir)?;
    let verdict = if ratio >= BAR { "reached" } else { "MISSED" };
    text += &format!("batches of {JUDGED}: log to the faster raw way {ratio:.2}, at least {BAR} {verdict}\n");
    let json = json!({
        "schema": "whimbrel-append-bench/1",
        "record_bytes": RECORD_BYTES,
        "batches": rows,
        "log_to_faster_raw": ratio,
        "bar": BAR,
    });
    Ok(Measured { text, json, ratio })
}

fn sum(times: &[Duration]) -> f64 {
    times.iter().sum::<Duration>().as_secs_f64()
}

fn per_s(per_batch: usize, rounds: &[Vec<Duration>]) -> f64 {
    (rounds.len() * BATCHES * per_batch) as f64 / rounds.iter().map(|round| sum(round)).sum::<f64>()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn row(per_batch: usize, name: &str, rounds: &[Vec<Duration>], ratio: &str) -> String {
    let mut times = rounds.concat();
    times.sort_unstable();
    let (p50, p99) = (us(times[times.len() / 2]), us(times[times.len() * 99 / 100]));
    let rate = per_s(per_batch, rounds);
    format!("  {per_batch:>7}  {name:<9} {p50:>6.0}us  {p99:>6.0}us {rate:>10.0} {ratio}\n")
}

/// Opens what the rounds left, the page cache being warm: every checksum is verified.
fn recovery(dir: &Path) -> io::Result<String> {
    let mut disk = FileDisk::open(dir, 0)?;
    let start = Instant::now();
    let mut payload_bytes = 0;
    let (log, recovered) = Log::open(LogOptions::new(0), &mut disk, &mut |_, location, _| {
        payload_bytes += u64::from(location.len);
    })
    .map_err(io::Error::other)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(format!(
        "recovery: {} records in {} batches, {:.0} MiB of payload in {} MiB of segments: {:.0} ms, {:.0} ns a record\n",
        recovered.records,
        recovered.batches,
        payload_bytes as f64 / f64::from(1 << 20),
        log.bytes_on_disk() >> 20,
        seconds * 1e3,
        seconds * 1e9 / recovered.records as f64
    ))
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
    fn round(&mut self, per_batch: usize, own: &mut Vec<Duration>) -> io::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(BATCHES);
        let payload = [7; RECORD_BYTES];
        for _ in 0..BATCHES {
            // Segments are made in the background of a server; here outside of what is timed.
            while let Some(Wanted { id, .. }) = self.log.segment_wanted() {
                let mapping = self.disk.create_segment(id, self.options.segment_size, || None)?;
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
        Ok(times)
    }
}

/// A file of zeros that is written from front to back, and over again.
struct Raw {
    file: File,
    offset: u64,
    memory: PageAligned,
}

/// What `O_DIRECT` asks of memory.
#[repr(align(4096))]
struct PageAligned([u8; 1 << 16]);

impl Raw {
    fn new(dir: &Path, name: &str, flags: OFlags) -> io::Result<Raw> {
        let path = dir.join(name);
        let mut file = File::create_new(&path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..RAW_BYTES >> 20 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        let file = File::options().read(true).write(true).custom_flags(flags.bits() as i32).open(&path)?;
        Ok(Raw { file, offset: 0, memory: PageAligned([7; 1 << 16]) })
    }

    fn round(&mut self, per_batch: usize) -> io::Result<Vec<Duration>> {
        let bytes = &self.memory.0[..(per_batch * RECORD_BYTES).next_multiple_of(4096)];
        let mut times = Vec::with_capacity(BATCHES);
        for _ in 0..BATCHES {
            if self.offset + bytes.len() as u64 > RAW_BYTES {
                self.offset = 0;
            }
            let start = Instant::now();
            write_dsync(&self.file, self.offset, bytes)?;
            times.push(start.elapsed());
            self.offset += bytes.len() as u64;
        }
        Ok(times)
    }
}

/// The way that was not taken: batches stored into a writable mapping of a file of zeros, and msync.
struct Mapped {
    mapping: memmap2::MmapMut,
    offset: usize,
}

impl Mapped {
    fn new(dir: &Path) -> io::Result<Mapped> {
        let raw = Raw::new(dir, "mapped", OFlags::empty())?;
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
