//! `whimbrel log inspect --segment`: the records of one segment, one a line. What is in them is shown only when it is asked for.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use whimbrel_storage::inspect::{BatchFound, Part, RecordFound, SegmentFacts, parts};
use whimbrel_storage::{Look, RecordKind, SegmentId};

use crate::cli::log::InspectArgs;
use crate::cli::log::progress::Interrupt;
use crate::cli::log::table::plural;
use crate::cli::output::{Failure, Out, hex};

/// Lines are given out in pieces of about this size.
const PIECE_BYTES: usize = 32 << 10;

pub(super) fn run(args: &InspectArgs, look: &Look, shards: &[u16], id: SegmentId) -> anyhow::Result<ExitCode> {
    let mut with_it = Vec::new();
    let mut others = Vec::new();
    for &shard in shards {
        let segments = look.files(shard)?.segments;
        if segments.contains(&id) {
            with_it.push(shard);
        } else if let (Some(first), Some(last)) = (segments.first(), segments.last()) {
            others.push(format!("shard {shard} has segments from {first} to {last}"));
        }
    }
    if with_it.is_empty() {
        let what = format!("there is no segment {id} in {}", args.data.display());
        let there = if others.is_empty() { "there are no segments at all".to_owned() } else { others.join(", ") };
        return Err(Failure::with_remedy(what, there).into());
    }
    if args.payload {
        eprintln!(
            "whimbrel: what follows has users' messages in it: keep it to yourself, and do not put it into a report"
        );
    }
    let interrupt = Interrupt::listen()?;
    let mut bytes = Vec::new();
    let mut lines = Lines { out: Out::stdout(), text: String::new(), args, shard: 0, id, records: 0 };
    for shard in with_it {
        let unreadable = look.segment(shard, id)?.read(&mut bytes, &mut |_| !interrupt.asked());
        for it in unreadable {
            eprintln!(
                "whimbrel: shard {shard}, segment {id}, byte {}: {} bytes cannot be read: {}",
                it.offset, it.bytes, it.error
            );
        }
        lines.shard = shard;
        lines.segment(&bytes, &interrupt)?;
    }
    lines.flush()?;
    Ok(ExitCode::SUCCESS)
}

struct Lines<'a> {
    out: Out,
    text: String,
    args: &'a InspectArgs,
    shard: u16,
    id: SegmentId,
    records: u64,
}

impl Lines<'_> {
    fn segment(&mut self, bytes: &[u8], interrupt: &Interrupt) -> anyhow::Result<()> {
        let facts = SegmentFacts::of(bytes);
        let (shard, id) = (self.shard, self.id);
        let Some(generation) = facts.map(|it| it.generation).ok().or_else(|| SegmentFacts::guess_generation(bytes))
        else {
            return Err(Failure::with_remedy(
                format!("nothing can be read in segment {id} of shard {shard}"),
                "`whimbrel log verify` says more about it",
            )
            .into());
        };
        if let Err(bad) = facts {
            eprintln!("whimbrel: shard {shard}, segment {id}: {bad}; what follows is as its batches say");
        }
        self.records = 0;
        if !self.args.json {
            let _ = writeln!(self.text, "shard {shard}, segment {id}, generation {generation:016x}");
            let _ = writeln!(
                self.text,
                "{:>8} {:>8} {:>10} {:>10} {:>9} {:>6} {:>10} {:>8}  checksums",
                "record", "batch", "byte", "kind", "partition", "term", "index", "length"
            );
        }
        for part in parts(bytes, generation) {
            if interrupt.asked() {
                self.flush()?;
                return Err(Failure::new("interrupted").into());
            }
            match part {
                Part::Batch(batch) => self.batch(&batch)?,
                Part::Unused { .. } => {}
                Part::Stray { offset, bytes } => self.stray(offset, bytes, "no batch".to_owned())?,
                Part::Misplaced { offset, bytes, number } => {
                    self.stray(offset, bytes, format!("batch {number}, which belongs elsewhere"))?;
                }
            }
        }
        Ok(())
    }

    fn batch(&mut self, batch: &BatchFound<'_>) -> anyhow::Result<()> {
        for record in batch.records() {
            self.records += 1;
            match record {
                Ok(record) => self.record(batch.number, &record)?,
                Err(bad) => {
                    let (number, offset) = (batch.number, bad.offset);
                    let lost = plural(bad.lost.into(), "record");
                    let text = format!("{}: {lost} cannot be told", bad.fault);
                    if self.args.json {
                        let json = json!({
                            "type": "bad_record", "shard": self.shard, "segment": self.id.0, "batch": number, "record": self.records,
                            "offset": offset, "lost": bad.lost, "text": text,
                        });
                        let _ = writeln!(self.text, "{json}");
                    } else {
                        let _ = writeln!(self.text, "{:>8} {number:>8} {offset:>10}  {text}", self.records);
                    }
                    self.records += u64::from(bad.lost) - 1;
                }
            }
        }
        let padding =
            batch.fault().filter(|fault| !matches!(fault, whimbrel_storage::inspect::BatchFault::Record { .. }));
        match padding {
            Some(fault) => {
                self.stray(batch.offset, batch.end() - batch.offset, format!("batch {}: {fault}", batch.number))
            }
            None => self.flush_if_full(),
        }
    }

    fn record(&mut self, batch: u64, record: &RecordFound<'_>) -> anyhow::Result<()> {
        let header = &record.header;
        let kind = kind_text(header.kind);
        let checks = record.fault.map_or("good".to_owned(), |fault| fault.to_string());
        if self.args.json {
            let mut json = json!({
                "type": "record", "shard": self.shard, "segment": self.id.0, "record": self.records, "batch": batch,
                "offset": record.offset, "kind": kind, "partition": header.partition, "term": header.term, "index": header.index,
                "length": record.payload.len(), "good": record.fault.is_none(),
            });
            if let Some(fault) = record.fault {
                json["text"] = fault.to_string().into();
            }
            if self.args.payload {
                json["payload"] = hex(record.payload).into();
            }
            let _ = writeln!(self.text, "{json}");
        } else {
            let _ = writeln!(
                self.text,
                "{:>8} {batch:>8} {:>10} {kind:>10} {:>9} {:>6} {:>10} {:>8}  {checks}",
                self.records,
                record.offset,
                header.partition,
                header.term,
                header.index,
                record.payload.len(),
            );
            if self.args.payload {
                dump(record.payload, &mut self.text);
            }
        }
        self.flush_if_full()
    }

    fn stray(&mut self, offset: u32, bytes: u32, text: String) -> anyhow::Result<()> {
        if self.args.json {
            let json = json!({
                "type": "stray", "shard": self.shard, "segment": self.id.0, "offset": offset, "bytes": bytes, "text": text,
            });
            let _ = writeln!(self.text, "{json}");
        } else {
            let _ = writeln!(self.text, "{:>8} {:>8} {offset:>10}  {bytes} bytes: {text}", "", "");
        }
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> anyhow::Result<()> {
        if self.text.len() < PIECE_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.out.text(&self.text)?;
        self.text.clear();
        Ok(())
    }
}

/// A kind's name.
fn kind_text(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Entry => "entry",
        RecordKind::HardState => "hard_state",
        RecordKind::Erased => "erased",
        RecordKind::Moved => "moved",
    }
}

/// Sixteen bytes a line: in hexadecimal digits, and as letters where they are.
fn dump(payload: &[u8], text: &mut String) {
    for (line, bytes) in payload.chunks(16).enumerate() {
        let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let letter = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let letters: String = bytes.iter().map(letter).collect();
        let _ = writeln!(text, "    {:08x}  {:<47}  |{letters}|", line * 16, digits.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_cannot_write_on_the_terminal() {
        let mut text = String::new();
        dump(b"hello \x1b[2J bird, \xc3\xa9", &mut text);
        assert_eq!(
            text,
            "    00000000  68 65 6c 6c 6f 20 1b 5b 32 4a 20 62 69 72 64 2c  |hello .[2J bird,|\n    \
             00000010  20 c3 a9                                         | ..|\n"
        );
    }
}
