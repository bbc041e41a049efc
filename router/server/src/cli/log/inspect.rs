//! `whimbrel log inspect`: what the logs of a data directory hold, of each shard in tables; of one segment its records.

use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};
use whimbrel_storage::{Look, SegmentFound, SegmentId, Severity};

use crate::cli::log::InspectArgs;
use crate::cli::log::progress::{self, Interrupt};
use crate::cli::log::shard::{self, ShardFound};
use crate::cli::log::table::{Table, plural};
use crate::cli::log::{records, verify};
use crate::cli::output::{Failure, Out, hex};
use crate::cli::status::{bytes_text, time_text};

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let look = Look::open(&args.data)?;
    let mut shards: Vec<u16> = look.shards()?;
    shards.retain(|shard| *shard < look.identity().shards);
    if let Some(only) = args.shard {
        if !shards.contains(&only) {
            let what = format!("{} has no shard {only}", args.data.display());
            let remedy = format!("it has shards 0 to {}: --shard N", look.identity().shards - 1);
            return Err(Failure::with_remedy(what, remedy).into());
        }
        shards = vec![only];
    }
    if let Some(segment) = args.segment {
        return records::run(args, &look, &shards, SegmentId(segment));
    }
    let interrupt = Interrupt::listen()?;
    let bar = progress::bytes(look.bytes()?, "reading");
    let mut out = Out::stdout();
    let mut bad = 0;
    directory(args, &look, &mut out)?;
    for number in shards {
        let found = shard::read(&look, number, &mut |bytes| {
            bar.inc(bytes);
            !interrupt.asked()
        })?;
        if found.interrupted {
            bar.finish_and_clear();
            return Err(Failure::with_remedy("interrupted", "name one shard with --shard N to read less").into());
        }
        bad += found.report.findings.iter().filter(|it| it.reason.severity() == Severity::Damage).count() as u64;
        let print = || if args.json { print_json(&found, &mut out) } else { out.text(&text(&found)) };
        bar.suspend(print)?;
    }
    bar.finish_and_clear();
    if bad > 0 {
        eprintln!(
            "whimbrel: something is damaged ({}): whimbrel log verify {}",
            plural(bad, "finding"),
            args.data.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn directory(args: &InspectArgs, look: &Look, out: &mut Out) -> anyhow::Result<()> {
    let it = look.identity();
    if args.json {
        return out.json(&json!({
            "type": "directory", "format": it.format, "cluster": it.cluster, "node": it.node,
            "partitions": it.partitions, "shards": it.shards, "segment_size": it.segment_size,
        }));
    }
    out.text(&format!(
        "format {}, cluster {}, node {}, {}, {}, segments of {}\n",
        it.format,
        it.cluster,
        it.node,
        plural(it.partitions.into(), "partition"),
        plural(it.shards.into(), "shard"),
        bytes_text(it.segment_size.into())
    ))
}

/// Why a segment is kept.
fn kept_for(found: &ShardFound, segment: &SegmentFound) -> &'static str {
    let tail = found.report.end.map(|(id, _)| id);
    let live = found.live.get(&segment.id).is_some_and(|live| live.places > 0);
    // The log is needed from the older checkpoint on.
    let needed = match &found.report.checkpoints[..] {
        [newest, older, ..] => newest.position.segment.min(older.position.segment),
        _ => SegmentId::FIRST,
    };
    match segment.id {
        id if id.is_cold() => "cold",
        id if segment.batches == 0 && tail.is_none_or(|tail| id > tail) => "spare",
        id if id >= needed => "log",
        _ if live => "messages that wait",
        _ => "nothing: it is used again",
    }
}

fn share(bytes: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { 100.0 * bytes as f64 / of as f64 }
}

/// Bytes of a segment in which batches lie.
fn filled(segment: &SegmentFound) -> u64 {
    u64::from(segment.used.saturating_sub(whimbrel_storage::limits::PAGE_BYTES))
}

fn text(found: &ShardFound) -> String {
    let mut text = format!("\nshard {}: ", found.shard);
    text += &match found.report.end {
        Some((segment, offset)) => format!("the log ends in segment {segment} at byte {offset}\n"),
        None => "no batches\n".to_owned(),
    };
    let mut checkpoints = Table::new(&["checkpoint", "bytes", "segment", "byte", "next batch", "written"]);
    for &(number, bytes, made) in &found.checkpoints {
        let good = found.report.checkpoints.iter().find(|it| it.number == number);
        let position = |of: &dyn Fn(&whimbrel_storage::Position) -> u64| {
            good.map_or("damaged".to_owned(), |good| of(&good.position).to_string())
        };
        checkpoints.row(vec![
            number.to_string(),
            bytes_text(bytes),
            position(&|it| it.segment.0.into()),
            position(&|it| it.offset.into()),
            position(&|it| it.batch),
            age_text(made),
        ]);
    }
    let mut segments =
        Table::new(&["segment", "batches", "records", "filled", "waited for", "live", "generation", "kept for"]);
    for segment in &found.report.segments {
        let live = found.live.get(&segment.id).copied().unwrap_or_default();
        let live_text = match (found.survey.is_empty(), segment.batches) {
            (true, _) | (_, 0) => String::new(),
            _ => format!("{:.1} %", share(live.bytes, filled(segment))),
        };
        segments.row(vec![
            segment.id.to_string(),
            segment.numbers.map_or(String::new(), |(first, last)| format!("{first}-{last}")),
            segment.records.to_string(),
            bytes_text(filled(segment)),
            if found.survey.is_empty() { String::new() } else { live.places.to_string() },
            live_text,
            format!("{:016x}", segment.generation),
            kept_for(found, segment).to_owned(),
        ]);
    }
    let mut partitions = Table::new(&[
        "partition",
        "entries",
        "votes",
        "payload",
        "indexes",
        "term",
        "checkpoint has",
        "messages waiting",
    ]);
    for (partition, of) in partitions_of(found) {
        let survey = found.survey.iter().find(|it| it.partition.0 == partition);
        partitions.row(vec![
            partition.to_string(),
            of.entries.to_string(),
            of.hard_states.to_string(),
            bytes_text(of.payload_bytes),
            of.indexes.map_or(String::new(), |(first, last)| format!("{first}-{last}")),
            if of.entries == 0 { String::new() } else { of.term.to_string() },
            survey.map_or(String::new(), |it| it.applied.0.to_string()),
            survey.map_or(String::new(), |it| it.waiting.to_string()),
        ]);
    }
    let tables: Vec<String> =
        [checkpoints, segments, partitions].iter().map(Table::text).filter(|table| !table.is_empty()).collect();
    text + &tables.join("\n")
}

/// Those with records in the log, and those that only the checkpoint has something of.
fn partitions_of(found: &ShardFound) -> Vec<(u16, whimbrel_storage::PartitionFound)> {
    let mut all = found.report.partitions.clone();
    for of in found.survey.iter().filter(|of| of.applied.0 > 0 || of.inboxes > 0 || of.chats > 0) {
        all.entry(of.partition.0).or_default();
    }
    all.into_iter().collect()
}

fn age_text(made: Option<SystemTime>) -> String {
    match made.and_then(|made| made.elapsed().ok()) {
        Some(age) => format!("{} ago", time_text(age.as_secs())),
        None => "unknown".to_owned(),
    }
}

fn print_json(found: &ShardFound, out: &mut Out) -> anyhow::Result<()> {
    let shard = found.shard;
    let end = found.report.end.map(|(segment, offset)| json!({ "segment": segment.0, "offset": offset }));
    out.json(&json!({
        "type": "shard", "shard": shard, "batches": found.report.batches, "records": found.report.records, "end": end,
    }))?;
    for &(number, bytes, made) in &found.checkpoints {
        let position = found.report.checkpoints.iter().find(|it| it.number == number).map(|it| it.position);
        let position = position.map(|it| {
            json!({ "segment": it.segment.0, "offset": it.offset, "batch": it.batch, "generation": hex(&it.generation.to_be_bytes()) })
        });
        let age = made.and_then(|made| made.elapsed().ok()).map(|age| age.as_secs());
        out.json(&json!({
            "type": "checkpoint", "shard": shard, "checkpoint": number, "bytes": bytes, "age_seconds": age, "position": position,
        }))?;
    }
    for segment in &found.report.segments {
        out.json(&segment_json(found, segment))?;
    }
    for (partition, of) in partitions_of(found) {
        let survey = found.survey.iter().find(|it| it.partition.0 == partition);
        out.json(&json!({
            "type": "partition", "shard": shard, "partition": partition, "entries": of.entries,
            "hard_states": of.hard_states, "erased": of.erased, "moved": of.moved, "payload_bytes": of.payload_bytes,
            "first_index": of.indexes.map(|(first, _)| first), "last_index": of.indexes.map(|(_, last)| last),
            "term": of.term,
            "checkpoint": survey.map(|it| json!({
                "index": it.applied.0, "term": it.applied.1, "chats": it.chats, "inboxes": it.inboxes, "waiting": it.waiting,
            })),
        }))?;
    }
    for finding in &found.report.findings {
        let mut json = verify::finding_json(shard, finding);
        json["type"] = "finding".into();
        out.json(&json)?;
    }
    Ok(())
}

fn segment_json(found: &ShardFound, segment: &SegmentFound) -> Value {
    let live = found.live.get(&segment.id).copied().unwrap_or_default();
    let live = (!found.survey.is_empty()).then(
        || json!({ "places": live.places, "bytes": live.bytes, "share": share(live.bytes, filled(segment)) / 100.0 }),
    );
    json!({
        "type": "segment", "shard": found.shard, "segment": segment.id.0, "generation": hex(&segment.generation.to_be_bytes()),
        "bytes": segment.bytes, "filled": filled(segment), "batches": segment.batches,
        "first_batch": segment.numbers.map(|(first, _)| first), "last_batch": segment.numbers.map(|(_, last)| last),
        "records": segment.records, "live": live, "kept_for": kept_for(found, segment),
    })
}
