//! Starts after a crash, against reading alone what such a start has to read; and starts after a clean shutdown.
//!
//! The log is made by a server that is loaded and makes no checkpoint, but for the one of a clean shutdown half way; a part of
//! the messages goes to devices that are away, so that every segment has something that waits. Then, in turn and with nothing of the data
//! directory in the page cache: all of the log behind the checkpoint is read once, as `cat` does it; a server is started, and
//! killed once it serves; and the same is read while as much CPU time is used as the last start used: the [floor]. A start adds a few
//! records to what the next one reads.

mod floor;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{Advice, fadvise};

use crate::connect::allow_descriptors;
use crate::cpu::{Disturbance, MachineTicks};
use crate::drain::Inboxes;
use crate::environment::{Scratch, environment};
use crate::load::{Faults, PairsLoad, Plan, users};
use crate::measure::{Load, drain};
use crate::metrics::Metrics;
use crate::process::{Server, Start, find_whimbrel};
use crate::report::Report;
use crate::ring::Waits;
use crate::run::{OTHER_DESCRIPTORS, Options, Target};
use crate::scenario::Scenario;
use crate::stats::median;
use crate::token::Minter;

/// Settings with which a server makes a checkpoint only when it is stopped.
const NO_CHECKPOINTS: [(&str, &str); 2] =
    [("WHIMBREL_STORAGE_CHECKPOINT_SEGMENTS", "1000000"), ("WHIMBREL_STORAGE_FORGET_AFTER", "365d")];

/// So much of the log is written by pairs before the devices that are away are sent something again.
const LAYER_BYTES: f64 = 32e6;

/// What `cat` reads at once.
const READ_BYTES: usize = 128 << 10;

const PAGE_BYTES: u64 = 4096;

/// See the [module](self).
pub(crate) fn run(options: &Options) -> anyhow::Result<Report> {
    let Target::Spawn { whimbrel, data } = &options.target else {
        bail!("a recovery scenario starts and kills servers on data of its own: use --spawn");
    };
    allow_descriptors(u64::from(options.scenario.connections_max()) + OTHER_DESCRIPTORS)?;
    let whimbrel = find_whimbrel(whimbrel.as_deref())?;
    let scratch = Scratch::new(data.as_deref())?;
    measure(&options.scenario, &whimbrel, scratch.path()).map_err(|error| scratch.explain(error))
}

fn measure(scenario: &Scenario, whimbrel: &Path, scratch: &Path) -> anyhow::Result<Report> {
    let data = scratch.join("server");
    let mut settings = scenario.environment.clone();
    settings.extend(NO_CHECKPOINTS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let start = Start {
        program: whimbrel,
        data: &data,
        shards: scenario.shards,
        cpus: &scenario.server_cpus,
        environment: &settings,
    };
    let half_bytes = f64::from(scenario.log_mib) / 2.0 * f64::from(1 << 20);
    let server = Server::whimbrel(&start)?;
    let mut faults = grow(scenario, &server, &data, half_bytes)?;
    server.stop()?;
    let server = Server::whimbrel(&start)?;
    faults = faults.plus(grow(scenario, &server, &data, half_bytes)?);
    drop(server);

    let before = MachineTicks::read();
    let mut report =
        Report::new(&scenario.name, environment(scenario, &[("server".to_owned(), start.command_line())])?);
    let parts = Part::behind_checkpoints(&data)?;
    let bytes = parts.iter().map(|part| part.bytes).sum::<u64>();
    let (mut starts, mut reads, mut cpus, mut floors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut steals, mut floor_cpu_ms) = (Vec::new(), 0.0);
    let by_shard: Vec<_> =
        parts.chunk_by(|one, other| one.path.parent() == other.path.parent()).map(Part::reading).collect();
    for round in 1..=scenario.rounds {
        // None always follows the same, but in the first round the start has to come before its floor.
        for turn in 0..3 {
            leave_the_cache(&data)?;
            let begun = Instant::now();
            match (round + turn) % 3 {
                1 => {
                    parts.iter().try_for_each(|part| part.read(&mut || {}))?;
                    reads.push(ms(begun.elapsed()));
                }
                2 => {
                    let server = Server::whimbrel(&start)?;
                    starts.push(ms(begun.elapsed()));
                    cpus.push(server.clock().now_ns()? as f64 / 1e6);
                    drop(server);
                }
                _ => {
                    floor_cpu_ms = *cpus.last().context("a start before its floor")?;
                    let least = floor::run(&by_shard, (floor_cpu_ms * 1e6) as u64)?;
                    floors.push(ms(least.elapsed));
                    steals.push(least.steal_share);
                }
            }
        }
        let last = |of: &[f64]| of.last().copied().unwrap_or_default();
        let (start, read) = (last(&starts), last(&reads));
        eprintln!(
            "round {round}: {} MiB read in {read:.0} ms, a start after a crash takes {start:.0} ms, {:.0} ms of CPU, {:.2}; to read \
             them and use {floor_cpu_ms:.0} ms of CPU takes {:.0} ms",
            bytes >> 20,
            last(&cpus),
            start / read,
            last(&floors)
        );
    }
    report.recovery_ratio_to_floor = Some(median(&starts) / median(&floors));
    report.detail.recovery_floor_rounds_ms = floors;
    report.detail.recovery_floor_steal_share = Some(median(&steals));
    report.recovery_ratio_to_read = Some(median(&starts) / median(&reads));
    report.detail.recovery_rounds_ms = starts;
    report.detail.read_rounds_ms = reads;
    report.detail.recovery_cpu_rounds_ms = cpus;
    report.detail.read_bytes = Some(bytes);

    Server::whimbrel(&start)?.stop()?;
    report.detail.log_bytes = Some(segments(&data)?.iter().map(|(_, _, bytes)| bytes).sum());
    let mut opens = Vec::new();
    for round in 1..=scenario.rounds {
        leave_the_cache(&data)?;
        let begun = Instant::now();
        let server = Server::whimbrel(&start)?;
        opens.push(ms(begun.elapsed()));
        server.stop()?;
        eprintln!("round {round}: a start after a clean shutdown takes {:.0} ms", opens[opens.len() - 1]);
    }
    report.clean_open_ms = Some(median(&opens));
    report.detail.clean_open_rounds_ms = opens;
    let Disturbance { steal_share, others_share } = MachineTicks::read().disturbance(before);
    report.detail.steal_share = steal_share;
    // Of the servers that ended nothing is known any more, so that their own time is among it.
    let _ = others_share;
    report.lost = Some(faults.lost);
    report.duplicated = Some(faults.duplicated);
    report.reordered = Some(faults.reordered);
    Ok(report)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Loads a server until its log has grown by so much.
fn grow(scenario: &Scenario, server: &Server, data: &Path, bytes: f64) -> anyhow::Result<Faults> {
    let minter = Minter::load(data)?;
    let plan = Plan {
        pairs: users::pairs(scenario.pairs),
        in_flight: scenario.in_flight,
        payload_bytes: scenario.payload_bytes,
        waits: Waits::Asleep,
    };
    let mut load = PairsLoad::start(server.address(), &minter, &plan)?;
    let away = users::pairs_from(scenario.pairs, scenario.devices);
    let mut inboxes = Inboxes::new(&away, scenario, server, minter)?;
    let written = || Metrics::read(data)?.sum("whimbrel_log_written_bytes_total");
    let (begun, mut told) = (Instant::now(), Instant::now());
    let mut now = written()?;
    while now < bytes {
        let layer = now;
        load.resume();
        while now < bytes.min(layer + LAYER_BYTES) {
            let asked = Instant::now();
            while asked.elapsed() < Duration::from_millis(150) {
                load.turn()?;
            }
            now = written()?;
        }
        load.pause();
        drain(&mut load)?;
        if load.outstanding() > 0 {
            let (stuck, unusual) = (load.first_outstanding(), Metrics::read(data)?.unusual());
            bail!("{} messages are not done, 20 s after the last that was: {stuck}; {unusual}", load.outstanding());
        }
        inboxes.fill()?;
        now = written()?;
        if told.elapsed() > Duration::from_secs(2) {
            told = Instant::now();
            let (mib, all) = (now / f64::from(1 << 20), bytes / f64::from(1 << 20));
            eprintln!("log: {mib:.0} of {all:.0} MiB after {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    Ok(load.faults())
}

/// All segments below a data directory: the directory of their shard, their number and their size.
fn segments(data: &Path) -> anyhow::Result<Vec<(PathBuf, u32, u64)>> {
    let mut found = Vec::new();
    for shard in list(data)? {
        if !shard.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shard-")) {
            continue;
        }
        for path in list(&shard)? {
            if let Some(number) = numbered(&path, "seg") {
                let bytes = path.metadata().with_context(|| format!("look at {}", path.display()))?.len();
                found.push((shard.clone(), number, bytes));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn list(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The number in the name of a file with this extension.
fn numbered(path: &Path, extension: &str) -> Option<u32> {
    let is_one = path.extension().is_some_and(|it| it == extension);
    path.file_stem().filter(|_| is_one)?.to_str()?.parse().ok()
}

/// A part of a segment.
struct Part {
    path: PathBuf,
    offset: u64,
    bytes: u64,
}

impl Part {
    /// What lies behind the newest checkpoint of each shard, up to the last batch.
    fn behind_checkpoints(data: &Path) -> anyhow::Result<Vec<Part>> {
        let mut from = BTreeMap::new();
        let mut parts = Vec::new();
        for (shard, number, bytes) in segments(data)? {
            if !from.contains_key(&shard) {
                from.insert(shard.clone(), newest_checkpoint(&shard)?);
            }
            let (segment, offset) = from[&shard];
            let path = shard.join(format!("{number:010}.seg"));
            let offset = if number == segment { u64::from(offset) } else { 0 };
            let end = if number < segment { 0 } else { end_of_batches(&path, bytes)? };
            if end > offset.max(PAGE_BYTES) {
                parts.push(Part { path, offset, bytes: end - offset });
            }
        }
        Ok(parts)
    }

    /// Reads these.
    fn reading(parts: &[Part]) -> impl Fn(&mut dyn FnMut()) -> anyhow::Result<()> + Sync {
        |each: &mut dyn FnMut()| parts.iter().try_for_each(|part| part.read(each))
    }

    /// `each` is called after each piece of [`READ_BYTES`].
    fn read(&self, each: &mut dyn FnMut()) -> anyhow::Result<()> {
        let mut read = || {
            let file = File::open(&self.path)?;
            fadvise(&file, 0, None, Advice::Sequential)?;
            let mut buffer = vec![0; READ_BYTES];
            let mut at = self.offset;
            let end = self.offset + self.bytes;
            while at < end {
                let count = READ_BYTES.min((end - at) as usize);
                file.read_exact_at(&mut buffer[..count], at)?;
                at += count as u64;
                each();
            }
            Ok::<_, std::io::Error>(())
        };
        read().with_context(|| format!("read {}", self.path.display()))
    }
}

/// Segment and offset from which the log goes on behind the newest checkpoint of a shard: see storage/README.md.
fn newest_checkpoint(shard: &Path) -> anyhow::Result<(u32, u32)> {
    let newest = list(shard)?.into_iter().filter_map(|path| Some((numbered(&path, "ckpt")?, path))).max();
    let (_, path) = newest.with_context(|| format!("{} has no checkpoint", shard.display()))?;
    let mut head = [0; 64];
    File::open(&path).and_then(|mut file| file.read_exact(&mut head)).with_context(|| path.display().to_string())?;
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Ok((u32_at(40), u32_at(44)))
}

/// Behind the last page of a segment that is not zeros.
fn end_of_batches(path: &Path, bytes: u64) -> anyhow::Result<u64> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut page = [0; PAGE_BYTES as usize];
    let mut end = bytes;
    while end > 0 {
        file.read_exact_at(&mut page, end - PAGE_BYTES).with_context(|| format!("read {}", path.display()))?;
        if page.iter().any(|&byte| byte != 0) {
            break;
        }
        end -= PAGE_BYTES;
    }
    Ok(end)
}

/// Has the files of a data directory, of which no server runs, leave the page cache.
pub(crate) fn leave_the_cache(data: &Path) -> anyhow::Result<()> {
    for path in list(data)? {
        if path.is_dir() {
            leave_the_cache(&path)?;
            continue;
        }
        let leave = || {
            let file = File::open(&path)?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
            Ok::<_, std::io::Error>(())
        };
        leave().with_context(|| format!("let {} leave the page cache", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_a_checkpoint_is_found() {
        let data = tempfile::tempdir().unwrap();
        let shard = data.path().join("shard-0");
        fs::create_dir(&shard).unwrap();
        let segment = |number: u32, pages: usize, of: usize| {
            let mut bytes = vec![7; pages * 4096];
            bytes.resize(of * 4096, 0);
            fs::write(shard.join(format!("{number:010}.seg")), bytes).unwrap();
        };
        // One before it, the one it names, a full one, one that is begun, a spare.
        [(1, 4), (2, 4), (3, 4), (4, 2), (5, 1)].iter().for_each(|&(number, pages)| segment(number, pages, 4));
        let mut head = [0_u8; 64];
        head[40] = 2;
        head[44..48].copy_from_slice(&8192_u32.to_le_bytes());
        fs::write(shard.join("0000000001.ckpt"), [0; 64]).unwrap();
        fs::write(shard.join("0000000002.ckpt"), head).unwrap();
        let parts = Part::behind_checkpoints(data.path()).unwrap();
        let found: Vec<_> = parts.iter().map(|it| (numbered(&it.path, "seg").unwrap(), it.offset, it.bytes)).collect();
        assert_eq!(found, [(2, 8192, 8192), (3, 0, 16_384), (4, 0, 8192)]);
        parts.iter().for_each(|part| part.read(&mut || {}).unwrap());
        leave_the_cache(data.path()).unwrap();
        assert_eq!(segments(data.path()).unwrap().len(), 5);
    }
}
