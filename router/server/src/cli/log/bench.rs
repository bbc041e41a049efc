//! `whimbrel log bench`: the limits that a disk sets to a log on it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::log::BenchArgs;
use crate::cli::log::limit::{self, Flushes, Interrupted, Measured, Way};
use crate::cli::log::progress::{self, Interrupt};
use crate::cli::log::table::{Table, plural};
use crate::cli::output::{Failure, Out};
use crate::cli::status::bytes_text;

/// How wide the longest bar of a histogram is.
const BAR: usize = 40;

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let directory = &args.directory;
    check_directory(directory)?;
    let free = check_room(directory, args.size)?;
    let interrupt = Interrupt::listen()?;
    let time = Duration::from_secs(args.seconds.into());
    let bar = progress::time(time);
    // The time is that of measuring, which begins when the files are there.
    let since = Cell::new(None);
    let goes = |what: &str| {
        if what != limit::MAKING && since.get().is_none() {
            since.set(Some(Instant::now()));
        }
        let done = since.get().map_or(Duration::ZERO, |since| since.elapsed());
        bar.set_position(done.min(time).as_millis() as u64);
        if bar.message() != what {
            bar.set_message(what.to_owned());
        }
        !interrupt.asked()
    };
    let measured = limit::measure(directory, args.size, time, &goes);
    bar.finish_and_clear();
    let measured = measured.map_err(|error| refused(directory, error))?;
    let mut out = Out::stdout();
    let disk = Disk { file_system: file_system(directory), free };
    if args.json {
        out.json(&json_of(&disk, &measured))?;
    } else {
        out.text(&text_of(directory, &disk, &measured))?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Disk {
    file_system: String,
    free: u64,
}

fn check_directory(directory: &Path) -> anyhow::Result<()> {
    let name = directory.display();
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => {
            Err(Failure::with_remedy(format!("{name} is not a directory"), "name one on the disk to be measured")
                .into())
        }
        Err(error) => {
            let what = format!("cannot look at {name}: {error}");
            Err(Failure::with_remedy(
                what,
                "name a directory on the disk to be measured; it need not be a data directory",
            )
            .into())
        }
    }
}

/// Whether there is room, and how much.
fn check_room(directory: &Path, needed: u64) -> anyhow::Result<u64> {
    let found =
        rustix::fs::statvfs(directory).with_context(|| format!("look at the disk of {}", directory.display()))?;
    let free = found.f_bavail * found.f_frsize;
    // Something is left for a server that may run there.
    let wanted = needed + needed / 8;
    if free < wanted {
        let what = format!(
            "{} free on the disk of {}, and this needs {}",
            bytes_text(free),
            directory.display(),
            bytes_text(wanted)
        );
        return Err(Failure::with_remedy(what, "make room, or use less: --size 16MiB").into());
    }
    Ok(free)
}

fn refused(directory: &Path, error: anyhow::Error) -> anyhow::Error {
    if error.is::<Interrupted>() {
        return Failure::with_remedy("interrupted", "its files had no names: nothing remains of them").into();
    }
    let denied = error.downcast_ref::<std::io::Error>().is_some_and(|it| {
        matches!(it.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
    });
    if denied {
        let what = format!("no permission to write in {}", directory.display());
        return Failure::with_remedy(what, "run as the user it belongs to, or name another directory of the same disk")
            .into();
    }
    error
}

/// What kind of file system a directory is on.
fn file_system(directory: &Path) -> String {
    let Ok(found) = rustix::fs::statfs(directory) else { return "unknown".to_owned() };
    match found.f_type as u64 & 0xffff_ffff {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs, which is memory and no disk".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0x6969 => "nfs".to_owned(),
        0x6573_5546 => "fuse".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        other => format!("type {other:#x}"),
    }
}

/// The better of both ways, for each size of batch.
fn best(measured: &Measured) -> Vec<&Flushes> {
    let mut best: Vec<&Flushes> = Vec::new();
    for flushes in &measured.flushes {
        match best.last_mut() {
            Some(last) if last.records == flushes.records => {
                if flushes.records_per_second() > last.records_per_second() {
                    *last = flushes;
                }
            }
            _ => best.push(flushes),
        }
    }
    best
}

fn text_of(directory: &Path, disk: &Disk, measured: &Measured) -> String {
    let mut text = format!(
        "{}: {}, {} free; files of {}\n\nflush of a batch, in µs\n",
        directory.display(),
        disk.file_system,
        bytes_text(disk.free),
        bytes_text(measured.bytes)
    );
    let mut table =
        Table::new(&["records", "bytes", "how", "flushes", "p50", "p90", "p99", "p99.9", "max", "records/s"]);
    for flushes in &measured.flushes {
        let us = |quantile: f64| format!("{:.0}", flushes.times.value_at_quantile(quantile) as f64 / 1e3);
        table.row(vec![
            flushes.records.to_string(),
            flushes.bytes.to_string(),
            flushes.way.name().to_owned(),
            flushes.times.len().to_string(),
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.999),
            format!("{:.0}", flushes.times.max() as f64 / 1e3),
            format!("{:.0}", flushes.records_per_second()),
        ]);
    }
    text += &table.text();
    if let Some(why) = &measured.no_direct {
        let _ = writeln!(text, "  O_DIRECT is not possible here: {why}");
    }
    for flushes in measured.flushes.iter().filter(|flushes| flushes.way == Way::Dsync) {
        text += &histogram_text(flushes);
    }
    text += "\nsequential, in MB/s\n";
    for stream in &measured.streams {
        let _ = writeln!(text, "  {:<24} {:>8.0}", stream.what, stream.bytes as f64 / stream.seconds / 1e6);
    }
    let bytes = measured.giving_back.first().map_or(0, |it| it.bytes);
    let _ = writeln!(text, "\nflush of one record while a file of {} gives its bytes back, in µs", bytes_text(bytes));
    let mut table = Table::new(&["how", "flushes", "p50", "p99", "max"]);
    for it in &measured.giving_back {
        let us = |quantile: f64| format!("{:.0}", it.times.value_at_quantile(quantile) as f64 / 1e3);
        let max = format!("{:.0}", it.times.max() as f64 / 1e3);
        table.row(vec![it.how.to_owned(), it.times.len().to_string(), us(0.5), us(0.99), max]);
    }
    text += &table.text();
    text += "\nintrinsic limit of one shard's log on this disk, records of 160 bytes\n";
    for flushes in best(measured) {
        let batch = if flushes.records == 1 { "1 a batch".to_owned() } else { format!("{} a batch", flushes.records) };
        let _ =
            writeln!(text, "  {batch:<16} {:>8.0} records/s ({})", flushes.records_per_second(), flushes.way.name());
    }
    text
}

/// Counts by powers of two of microseconds, from the first that is not empty to the last.
fn histogram(flushes: &Flushes) -> Vec<(u64, u64)> {
    let mut counts = BTreeMap::new();
    for it in flushes.times.iter_recorded() {
        let us = it.value_iterated_to().div_ceil(1000).max(1);
        *counts.entry(us.next_power_of_two()).or_insert(0) += it.count_since_last_iteration();
    }
    let (Some(first), Some(last)) = (counts.keys().next().copied(), counts.keys().last().copied()) else {
        return Vec::new();
    };
    let bounds = std::iter::successors(Some(first), |bound| bound.checked_mul(2)).take_while(|bound| *bound <= last);
    bounds.map(|bound| (bound, counts.get(&bound).copied().unwrap_or(0))).collect()
}

fn histogram_text(flushes: &Flushes) -> String {
    let counts = histogram(flushes);
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let all = flushes.times.len().max(1);
    let mut text =
        format!("\ntimes of flushes, {} a batch, {}\n", plural(flushes.records.into(), "record"), flushes.way.name());
    for (bound, count) in counts {
        let bar = "#".repeat((count as usize * BAR).div_ceil(most as usize));
        let line = format!("  up to {bound:>7} µs {:>6.2} % {bar}", 100.0 * count as f64 / all as f64);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn json_of(disk: &Disk, measured: &Measured) -> Value {
    let flushes: Vec<Value> = measured.flushes.iter().map(flushes_json).collect();
    let streams: Vec<Value> = measured
        .streams
        .iter()
        .map(|it| json!({ "what": it.what, "bytes": it.bytes, "seconds": it.seconds, "bytes_per_second": it.bytes as f64 / it.seconds }))
        .collect();
    let limits: Vec<Value> = best(measured)
        .into_iter()
        .map(|it| json!({ "records": it.records, "how": it.way.name(), "records_per_second": it.records_per_second() }))
        .collect();
    let giving_back: Vec<Value> = measured
        .giving_back
        .iter()
        .map(|it| {
            let us = |quantile: f64| it.times.value_at_quantile(quantile) as f64 / 1e3;
            let max = it.times.max() as f64 / 1e3;
            json!({ "how": it.how, "bytes": it.bytes, "flushes": it.times.len(), "us": { "p50": us(0.5), "p99": us(0.99), "max": max } })
        })
        .collect();
    json!({
        "giving_back": giving_back,
        "file_system": disk.file_system, "free_bytes": disk.free, "bytes": measured.bytes, "no_direct": measured.no_direct,
        "flushes": flushes, "sequential": streams, "limits": limits,
    })
}

fn flushes_json(flushes: &Flushes) -> Value {
    let us = |quantile: f64| flushes.times.value_at_quantile(quantile) as f64 / 1e3;
    let counts: Vec<Value> =
        histogram(flushes).into_iter().map(|(bound, count)| json!({ "up_to_us": bound, "count": count })).collect();
    json!({
        "records": flushes.records, "batch_bytes": flushes.bytes, "how": flushes.way.name(), "flushes": flushes.times.len(),
        "us": { "p50": us(0.5), "p90": us(0.9), "p99": us(0.99), "p999": us(0.999), "max": flushes.times.max() as f64 / 1e3 },
        "records_per_second": flushes.records_per_second(), "histogram": counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_room_it_says_how_much_there_is_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_room(dir.path(), 1 << 60).unwrap_err();
        let failure = error.downcast_ref::<Failure>().expect("it names a remedy");
        assert!(failure.one_line().contains("and this needs") && failure.one_line().contains("--size"), "{failure:?}");
        assert!(check_room(dir.path(), 0).is_ok());
    }

    #[test]
    fn a_measurement_is_short_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let measured = limit::measure(dir.path(), 16 << 20, Duration::from_millis(10), &|_| true).unwrap();
        assert!((8 << 20..=16 << 20).contains(&measured.bytes));
        let records: Vec<u32> = best(&measured).iter().map(|it| it.records).collect();
        assert_eq!(records, [1, 16, 256]);
        for flushes in &measured.flushes {
            let counts: u64 = histogram(flushes).iter().map(|(_, count)| count).sum();
            assert!(flushes.records_per_second() > 0.0 && counts == flushes.times.len());
        }
        let how: Vec<&str> = measured.giving_back.iter().map(|it| it.how).collect();
        assert_eq!(how, ["all at once", "as the log does"]);
        assert!(measured.giving_back.iter().all(|it| it.bytes >= 1 << 19 && !it.times.is_empty()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let interrupted = limit::measure(dir.path(), 16 << 20, Duration::from_millis(10), &|_| false);
        assert!(interrupted.is_err_and(|error| error.is::<Interrupted>()));
    }
}
