//! One shard's log read and verified: what storage finds in it, and what the core's image in the newest checkpoint says.

use std::collections::BTreeMap;
use std::time::SystemTime;

use whimbrel_core::ids::{PartitionId, ShardId};
use whimbrel_core::io::shard_of;
use whimbrel_core::survey::{PartitionSurvey, survey};
use whimbrel_storage::{
    Finding, Location, Look, LookError, Memory, Place, Reason, Report, SegmentId, SegmentIs, ShardFiles, Verifier,
    check_segment,
};

use crate::cli::status::bytes_text;

/// What is known of a shard.
pub(super) struct ShardFound {
    pub(super) shard: u16,
    pub(super) files: ShardFiles,
    pub(super) report: Report,
    /// Of all checkpoints, the newest first: number, bytes, when it was written.
    pub(super) checkpoints: Vec<(u64, u64, Option<SystemTime>)>,
    /// What the newest checkpoint that holds has of each partition.
    pub(super) survey: Vec<PartitionSurvey>,
    /// What it waits for in each segment.
    pub(super) live: BTreeMap<SegmentId, Live>,
    /// What is no damage, and worth a line.
    pub(super) notes: Vec<String>,
    /// Bytes read.
    pub(super) bytes: u64,
    /// Not all of it was read, for somebody asked for the end.
    pub(super) interrupted: bool,
}

/// What is waited for in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    /// How many payloads and commands.
    pub(super) places: u64,
    /// Their bytes.
    pub(super) bytes: u64,
}

/// Reads a shard. `each` is told how many bytes were read, and ends it by `false`.
pub(super) fn read(look: &Look, shard: u16, each: &mut dyn FnMut(u64) -> bool) -> Result<ShardFound, LookError> {
    let files = look.files(shard)?;
    let mut verifier = Verifier::new(shard, look.identity().segment_size);
    let mut found = ShardFound {
        shard,
        report: Report::default(),
        checkpoints: Vec::new(),
        survey: Vec::new(),
        live: BTreeMap::new(),
        notes: notes(&files),
        bytes: 0,
        interrupted: false,
        files,
    };
    let mut extra = Vec::new();
    for &number in &found.files.checkpoints {
        let (made, bytes) = look.checkpoint(shard, number);
        let len = bytes.as_ref().map_or(0, Vec::len) as u64;
        found.checkpoints.push((number, len, made));
        found.bytes += len;
        let bytes = bytes.as_deref().map_err(ToString::to_string);
        let Some(pieces) = verifier.checkpoint(number, bytes) else { continue };
        match survey(pieces) {
            Some(survey) => found.survey = survey,
            None => extra.push(Finding::new(Place::Checkpoint(number), Reason::CheckpointContents)),
        }
    }
    for of in &found.survey {
        verifier.applied(of.partition.0, of.applied.0, of.applied.1);
        for place in &of.places {
            let live = found.live.entry(place.segment).or_default();
            live.places += 1;
            live.bytes += u64::from(place.len);
        }
    }
    let (mut segment, mut cold) = (Vec::new(), Vec::new());
    let size_bytes = look.identity().segment_size;
    for &id in &found.files.segments {
        let file = look.segment(shard, id)?;
        let mut goes_on = true;
        let unreadable = file.read(&mut segment, &mut |bytes| {
            found.bytes += bytes;
            goes_on = each(bytes);
            goes_on
        });
        if !goes_on {
            found.interrupted = true;
            break;
        }
        verifier.segment(id, &segment, file.bytes, &unreadable);
        if id.is_cold() && segment.len() == size_bytes as usize {
            let is = SegmentIs { shard, id, size_bytes, generation: None };
            cold.push(check_segment(&is, &mut Memory(&segment)));
        }
    }
    found.report = if found.interrupted { verifier.abandon() } else { verifier.finish() };
    found.report.findings.append(&mut extra);
    if !found.interrupted {
        found.check_what_is_waited_for();
        for checked in cold.iter().filter(|_| !found.survey.is_empty()) {
            let waited: Vec<(u16, Location)> = found
                .survey
                .iter()
                .flat_map(|of| of.places.iter().map(|place| (of.partition.0, *place)))
                .filter(|(_, place)| place.segment == checked.segment)
                .collect();
            found.notes.extend(found.report.judge_cold(checked, &waited));
        }
        found.check_partitions(look);
    }
    Ok(found)
}

fn notes(files: &ShardFiles) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(
        files
            .remains
            .iter()
            .map(|name| format!("{name} was being made when the server ended: it is removed after the next start")),
    );
    notes.extend(
        files
            .put_aside
            .iter()
            .map(|it| {
                let (name, was, bytes) = (&it.name, it.was(), bytes_text(it.bytes));
                format!(
                    "{name} is a damaged {was} of {bytes} that a start put aside: nothing reads it, and it may be removed once no damage \
                     is found here"
                )
            }),
    );
    notes.extend(files.others.iter().map(|name| format!("{name} is no file of a log: nothing looks at it")));
    notes
}

impl ShardFound {
    /// Segments in which something waits, as the newest checkpoint says, have to be there; unless the log behind it let go of them.
    fn check_what_is_waited_for(&mut self) {
        let Some(newest) = self.report.checkpoints.first() else { return };
        let position = newest.position;
        let is_there = |id: &SegmentId| self.report.segments.iter().any(|segment| segment.id == *id);
        let gone: Vec<SegmentId> = self.live.keys().copied().filter(|id| !is_there(id)).collect();
        let reported = |id: SegmentId| {
            let ranges = self.report.findings.iter().filter_map(|finding| match finding.reason {
                Reason::SegmentMissing(first, last) => Some(first..=last),
                _ => None,
            });
            ranges.into_iter().any(|range| range.contains(&id))
        };
        let gone: Vec<SegmentId> = gone.into_iter().filter(|id| !reported(*id)).collect();
        if self.report.end != Some((position.segment, position.offset)) {
            if !gone.is_empty() {
                let list: Vec<String> = gone.iter().map(ToString::to_string).collect();
                self.notes.push(format!(
                    "checkpoint {} points to messages in segments that are not there any more ({}): right if they were \
                     acknowledged since; a start that finds otherwise holds their partitions back, for repair",
                    newest.number,
                    list.join(", ")
                ));
            }
            return;
        }
        for id in gone {
            let mut finding = Finding::new(Place::Segment(id, 0), Reason::SegmentMissing(id, id));
            let waiting = self.survey.iter().filter(|of| of.places.iter().any(|place| place.segment == id));
            finding.partitions.extend(waiting.map(|of| of.partition.0));
            self.report.findings.push(finding);
        }
    }

    /// Records of partitions that are another shard's have no business here.
    fn check_partitions(&mut self, look: &Look) {
        let identity = look.identity();
        let foreign = |partition: u16| {
            partition >= identity.partitions || shard_of(PartitionId(partition), identity.shards) != ShardId(self.shard)
        };
        let foreign: Vec<u16> = self.report.partitions.keys().copied().filter(|&it| foreign(it)).collect();
        for partition in foreign {
            self.report.findings.push(Finding::new(Place::Log, Reason::PartitionForeign(partition)));
        }
    }

    /// Whether there is anything of a log.
    pub(super) fn is_empty(&self) -> bool {
        self.report.batches == 0 && self.files.checkpoints.is_empty() && self.report.findings.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_storage::{Asked, DataDir, Disk, Shape};

    use super::*;

    #[test]
    fn what_was_not_read_to_its_end_is_not_judged() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { partitions: 2, shards: 1, segment_size: 4 << 20 };
        let data = DataDir::open(dir.path(), shape, Asked::default()).unwrap();
        let mut disk = data.disk(0).unwrap();
        // Without the first one, and with bytes in it that are no batch.
        disk.create(SegmentId(2), shape.segment_size).unwrap();
        disk.write(SegmentId(2), 8192, b"stray").unwrap();
        drop(data);
        let look = Look::open(dir.path()).unwrap();
        let mut pieces = 0;
        let found = read(&look, 0, &mut |_| {
            pieces += 1;
            pieces < 3
        });
        let found = found.unwrap();
        assert!(found.interrupted && found.report.findings.is_empty(), "{:?}", found.report.findings);
        let found = read(&look, 0, &mut |_| true).unwrap();
        assert!(!found.interrupted && found.bytes == u64::from(shape.segment_size));
        let reasons: Vec<_> = found.report.findings.iter().map(|it| it.reason.name()).collect();
        assert_eq!(reasons, ["segment_missing", "torn"]);
    }
}
