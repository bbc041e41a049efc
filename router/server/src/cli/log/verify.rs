//! `whimbrel log verify`: every byte of a data directory, checked offline.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};
use whimbrel_storage::{Finding, Look, Place, Reason, Severity};

use crate::cli::log::VerifyArgs;
use crate::cli::log::progress::{self, Interrupt};
use crate::cli::log::shard::{self, ShardFound};
use crate::cli::log::table::plural;
use crate::cli::output::{Failure, Out};
use crate::cli::status::bytes_text;

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let look = Look::open(&args.data)?;
    let interrupt = Interrupt::listen()?;
    let begun = Instant::now();
    let bar = progress::bytes(look.bytes()?, "verifying");
    let mut verdict = Verdict::default();
    let mut out = Out::stdout();
    let there: BTreeSet<u16> = look.shards()?.into_iter().collect();
    for &number in &there {
        if number >= look.identity().shards {
            verdict.notes.push(format!(
                "shard-{number} is not of this directory, which has {}: nothing looks at it",
                plural(look.identity().shards.into(), "shard")
            ));
            continue;
        }
        let found = shard::read(&look, number, &mut |bytes| {
            bar.inc(bytes);
            !interrupt.asked()
        })?;
        verdict.interrupted |= found.interrupted;
        verdict.take(found);
        if verdict.interrupted {
            break;
        }
    }
    bar.finish_and_clear();
    if !verdict.interrupted {
        verdict.check_shards(look.identity().shards, &there);
    }
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        out.json(&verdict.json(&look, seconds))?;
    } else {
        out.text(&verdict.text(seconds))?;
    }
    let data = args.data.display();
    let damage = verdict.count(Severity::Damage);
    if damage > 0 {
        let what = format!("{data} is damaged: {}, nothing was changed", plural(damage, "finding"));
        return Err(Failure::with_remedy(what, REMEDY).into());
    }
    if verdict.interrupted {
        let what = format!("interrupted: not all of {data} was checked, and of that nothing is damaged");
        return Err(Failure::with_remedy(what, "run it again").into());
    }
    Ok(ExitCode::SUCCESS)
}

const REMEDY: &str = "keep a copy of the directory as it is, and restore it from a backup or another replica; \
     `whimbrel log inspect` shows what is there still";

/// What was found of all shards.
#[derive(Default)]
struct Verdict {
    findings: Vec<(u16, Finding)>,
    notes: Vec<String>,
    /// Which of the shards have nothing, and whether one has been there for long.
    empty: Vec<u16>,
    is_old: bool,
    shards: u64,
    segments: u64,
    checkpoints: u64,
    batches: u64,
    records: u64,
    bytes: u64,
    interrupted: bool,
}

impl Verdict {
    fn take(&mut self, found: ShardFound) {
        let shard = found.shard;
        self.is_old |= !found.files.checkpoints.is_empty();
        if found.is_empty() && !found.interrupted {
            self.empty.push(shard);
        }
        self.shards += 1;
        self.segments += found.report.segments.len() as u64;
        self.checkpoints += found.checkpoints.len() as u64;
        self.batches += found.report.batches;
        self.records += found.report.records;
        self.bytes += found.bytes;
        self.notes.extend(found.notes.into_iter().map(|note| format!("shard {shard}: {note}")));
        self.findings.extend(found.report.findings.into_iter().map(|finding| (shard, finding)));
    }

    /// A shard without a log is one that has none yet, unless others have had theirs for long.
    fn check_shards(&mut self, shards: u16, there: &BTreeSet<u16>) {
        let missing = (0..shards).filter(|shard| !there.contains(shard));
        let empty: BTreeSet<u16> = self.empty.iter().copied().chain(missing).collect();
        for shard in empty {
            if self.is_old {
                self.findings.push((shard, Finding::new(Place::Log, Reason::ShardEmpty)));
            } else {
                self.notes.push(format!("shard {shard}: it has no log yet"));
            }
        }
    }

    fn count(&self, severity: Severity) -> u64 {
        self.findings.iter().filter(|(_, finding)| finding.reason.severity() == severity).count() as u64
    }

    fn text(&self, seconds: f64) -> String {
        let mut text = String::new();
        for (shard, finding) in &self.findings {
            text += &format!("shard {shard}: {finding}\n");
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        let counts = [
            plural(self.shards, "shard"),
            plural(self.segments, "segment"),
            plural(self.checkpoints, "checkpoint"),
            plural(self.batches, "batch"),
            plural(self.records, "record"),
        ];
        let rate = self.bytes as f64 / seconds / 1e6;
        text += &format!("{}; {} in {seconds:.2} s, {rate:.0} MB/s\n", counts.join(", "), bytes_text(self.bytes));
        let torn = self.count(Severity::Torn);
        text += &match (self.count(Severity::Damage), self.interrupted, torn) {
            (0, true, _) => "not all was checked\n".to_owned(),
            (0, false, 0) => "whole\n".to_owned(),
            (0, false, _) => format!("whole, but for {} that a crash tore\n", plural(torn, "last batch")),
            (damage, ..) => format!("damaged: {}\n", plural(damage, "finding")),
        };
        text
    }

    fn json(&self, look: &Look, seconds: f64) -> Value {
        let findings: Vec<Value> = self.findings.iter().map(|(shard, finding)| finding_json(*shard, finding)).collect();
        json!({
            "format": look.identity().format,
            "whole": self.count(Severity::Damage) == 0 && !self.interrupted,
            "interrupted": self.interrupted,
            "damaged": self.count(Severity::Damage),
            "torn": self.count(Severity::Torn),
            "shards": self.shards,
            "segments": self.segments,
            "checkpoints": self.checkpoints,
            "batches": self.batches,
            "records": self.records,
            "bytes": self.bytes,
            "seconds": seconds,
            "bytes_per_second": self.bytes as f64 / seconds,
            "findings": findings,
            "notes": self.notes,
        })
    }
}

pub(super) fn finding_json(shard: u16, finding: &Finding) -> Value {
    let severity = match finding.reason.severity() {
        Severity::Torn => "torn",
        Severity::Damage => "damage",
    };
    let mut json = json!({
        "shard": shard,
        "severity": severity,
        "reason": finding.reason.name(),
        "text": finding.to_string(),
        "partitions": finding.partitions,
    });
    match finding.place {
        Place::Log => {}
        Place::Segment(segment, offset) => (json["segment"], json["offset"]) = (segment.0.into(), offset.into()),
        Place::Checkpoint(number) => json["checkpoint"] = number.into(),
    }
    let gone: Vec<Value> = finding
        .gone
        .iter()
        .map(|(partition, first, last)| json!({ "partition": partition, "first": first, "last": last }))
        .collect();
    if !gone.is_empty() {
        json["gone"] = gone.into();
    }
    json
}
