//! The whole log of a shard, looked at offline: its checkpoints, then its segments in their order, each as bytes. Pure, and it
//! changes nothing. It judges as a start does (`recover.rs`), but goes on behind damage, and looks before the position of
//! the checkpoints too.
//!
//! Damage is **pending** until something valid follows it. What is still pending at the end may be the last batch, torn.

mod cold;
mod sequence;

use std::collections::BTreeMap;

use self::sequence::{Pending, Sequence};
use crate::SegmentId;
use crate::checkpoint::{self, Checkpoint, Pieces};
use crate::finding::{Finding, Place, Reason};
use crate::inspect::{BadFacts, Part, SegmentFacts, parts};
use crate::layout::FIRST_BATCH_OFFSET;
use crate::partitions::{PartitionFound, Partitions};

/// Bytes of a segment that the disk did not give, and why. They are zeros where they are handed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where they begin.
    pub offset: u32,
    /// How many.
    pub bytes: u32,
    /// Why.
    pub error: String,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFound {
    /// Which.
    pub id: SegmentId,
    /// As its header says, or its batches if that is damaged; 0 if neither does.
    pub generation: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Batches with a valid header.
    pub batches: u64,
    /// The number of the first one and of the last one.
    pub numbers: Option<(u64, u64)>,
    /// Records of whole batches.
    pub records: u64,
    /// Where the last batch ends; the end of the first page if there is none.
    pub used: u32,
}

/// What verifying a log found.
#[derive(Debug, Default)]
pub struct Report {
    /// All that is not as it was written, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// The segments, in their order.
    pub segments: Vec<SegmentFound>,
    /// The checkpoints that hold, the newest first.
    pub checkpoints: Vec<Checkpoint>,
    /// What was found of each partition.
    pub partitions: BTreeMap<u16, PartitionFound>,
    /// Batches that are whole.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Where the next batch would begin: segment and offset.
    pub end: Option<(SegmentId, u32)>,
}

/// Verifies the log of a shard. Checkpoints come first, the newest first ([`Verifier::checkpoint`]), then segments in their
/// order ([`Verifier::segment`]).
#[derive(Debug)]
pub struct Verifier {
    shard: u16,
    segment_size: u32,
    /// Checkpoints that hold with the batch before which all is that is in them, the newest first; at most two.
    kept: Vec<(Checkpoint, u64)>,
    /// Whether there are checkpoints that do not hold.
    some_bad: bool,
    /// Whether the place of a checkpoint was found wanting already.
    misplaced: Vec<bool>,
    main: Sequence,
    /// The segment of the main sequence that came last.
    last: Option<SegmentId>,
    partitions: Partitions,
    report: Report,
}

impl Verifier {
    /// For the log of a shard in a directory of segments of this size.
    pub fn new(shard: u16, segment_size: u32) -> Verifier {
        Verifier {
            shard,
            segment_size,
            kept: Vec::new(),
            some_bad: false,
            misplaced: Vec::new(),
            main: Sequence::default(),
            last: None,
            partitions: Partitions::default(),
            report: Report::default(),
        }
    }

    /// Takes the next checkpoint, the newest first: its bytes, or why they cannot be read. Gives its pieces if it is the newest
    /// that holds.
    pub fn checkpoint<'a>(&mut self, number: u64, bytes: Result<&'a [u8], String>) -> Option<Pieces<'a>> {
        let verified = match bytes {
            Ok(bytes) => checkpoint::verify(bytes, self.shard, number).map_err(Reason::Checkpoint),
            Err(error) => Err(Reason::CheckpointUnreadable(error)),
        };
        match verified {
            Ok((checkpoint, pieces)) => {
                let newest = self.kept.is_empty();
                if self.kept.len() < 2 {
                    self.kept.push((checkpoint, pieces.through()));
                    self.misplaced.push(false);
                }
                self.report.checkpoints.push(checkpoint);
                newest.then_some(pieces)
            }
            Err(reason) => {
                self.some_bad = true;
                self.found(Place::Checkpoint(number), reason);
                None
            }
        }
    }

    /// What the newest checkpoint has of a partition: index and term of its last entry.
    pub fn applied(&mut self, partition: u16, index: u64, term: u64) {
        self.partitions.applied(partition, index, term);
    }

    /// From which segment on none may be missing. `None` where nobody can know, for no checkpoint holds.
    fn needed_from(&self) -> Option<SegmentId> {
        match self.kept.iter().map(|(kept, _)| kept.position.segment).min() {
            None if self.some_bad => None,
            None => Some(SegmentId::FIRST),
            needed => needed,
        }
    }

    /// Takes the next segment: its bytes with zeros where they cannot be read, and the length of its file.
    pub fn segment(&mut self, id: SegmentId, bytes: &[u8], file_bytes: u64, unreadable: &[Unreadable]) {
        let main = !id.is_cold();
        if main {
            self.follows(id);
            self.last = Some(id);
        }
        let mut found = SegmentFound {
            id,
            generation: 0,
            bytes: file_bytes,
            batches: 0,
            numbers: None,
            records: 0,
            used: FIRST_BATCH_OFFSET,
        };
        for Unreadable { offset, bytes, error } in unreadable {
            self.main.explained |= main;
            self.found(Place::Segment(id, *offset), Reason::Unreadable { bytes: *bytes, error: error.clone() });
            self.partitions.damaged(self.report.findings.len() - 1);
        }
        if let Some(generation) = self.header(id, bytes, file_bytes) {
            found.generation = generation;
            self.check_generation(id, generation);
            if main {
                let mut sequence = std::mem::take(&mut self.main);
                self.walk(&mut sequence, bytes, generation, &mut found);
                self.main = sequence;
            } else {
                let mut own = Sequence { expected: Some(1), ..Sequence::default() };
                self.walk(&mut own, bytes, generation, &mut found);
                self.judge_tail(&mut own, id, None);
            }
        } else if main {
            // Whatever is in it cannot be told.
            self.partitions.damaged(self.report.findings.len() - 1);
            self.main.expected = None;
            self.main.explained = true;
        }
        self.report.segments.push(found);
    }

    /// Whether a segment is the next of those that have to be there.
    fn follows(&mut self, id: SegmentId) {
        let next = self.last.map_or(SegmentId::FIRST, SegmentId::next);
        if id <= next {
            if self.last.is_none() {
                self.main.expected = Some(1);
            }
            return;
        }
        self.main.expected = None;
        let needed = self.needed_from().map(|needed| needed.max(next)).filter(|needed| *needed < id);
        if let Some(first) = needed {
            self.missing(first, SegmentId(id.0 - 1));
        }
        if needed != Some(next) {
            // Some were let go, and what follows them need not begin where they began.
            self.partitions.forget();
        }
    }

    fn missing(&mut self, first: SegmentId, last: SegmentId) {
        self.found(Place::Segment(first, 0), Reason::SegmentMissing(first, last));
        self.partitions.damaged(self.report.findings.len() - 1);
        self.main.explained = true;
    }

    /// Checks the first page. Gives the generation of its batches, if they can be looked at.
    fn header(&mut self, id: SegmentId, bytes: &[u8], file_bytes: u64) -> Option<u64> {
        let place = Place::Segment(id, 0);
        match SegmentFacts::of(bytes) {
            Ok(facts) if (facts.shard, facts.id) != (self.shard, id) => {
                self.found(place, Reason::SegmentForeign { shard: facts.shard, id: facts.id });
                None
            }
            Ok(facts) => {
                let (says, expected) = (facts.size_bytes, self.segment_size);
                if u64::from(says) != file_bytes || says != expected {
                    self.found(place, Reason::SegmentLength { found: file_bytes, says, expected });
                }
                Some(facts.generation)
            }
            Err(BadFacts::Format(format)) => {
                self.found(place, Reason::SegmentFormat(format));
                None
            }
            Err(BadFacts::Damaged) => {
                self.found(place, Reason::SegmentHeader);
                SegmentFacts::guess_generation(bytes)
            }
        }
    }

    fn check_generation(&mut self, id: SegmentId, generation: u64) {
        for at in 0..self.kept.len() {
            let position = self.kept[at].0.position;
            if position.segment == id && position.generation != generation {
                self.checkpoint_misplaced(at);
            }
        }
    }

    fn checkpoint_misplaced(&mut self, at: usize) {
        if !std::mem::replace(&mut self.misplaced[at], true) {
            let Checkpoint { number, position } = self.kept[at].0;
            let (segment, batch) = (position.segment, position.batch);
            self.found(Place::Checkpoint(number), Reason::CheckpointPlace { segment, batch });
        }
    }

    fn walk(&mut self, sequence: &mut Sequence, bytes: &[u8], generation: u64, found: &mut SegmentFound) {
        let id = found.id;
        for part in parts(bytes, generation) {
            match part {
                Part::Batch(batch) => {
                    found.batches += 1;
                    found.numbers = Some((found.numbers.map_or(batch.number, |(first, _)| first), batch.number));
                    found.used = batch.end();
                    found.records += self.batch(sequence, id, &batch);
                }
                Part::Misplaced { offset, number, .. } => {
                    self.confirm(sequence, None);
                    self.found(Place::Segment(id, offset), Reason::BatchMisplaced(number));
                    self.partitions.damaged(self.report.findings.len() - 1);
                    sequence.explained = true;
                }
                Part::Unused { .. } => {}
                Part::Stray { offset, bytes } => match sequence.pending.last_mut() {
                    Some(last) if last.segment == id && last.batch.is_none() => last.end = offset + bytes,
                    _ => sequence.pending.push(Pending {
                        segment: id,
                        start: offset,
                        end: offset + bytes,
                        batch: None,
                        partitions: Vec::new(),
                    }),
                },
            }
        }
    }

    /// Gives up before all segments were there: what was found so far.
    pub fn abandon(mut self) -> Report {
        self.report.partitions = self.partitions.take();
        self.report
    }

    /// All segments were there.
    pub fn finish(mut self) -> Report {
        let mut sequence = std::mem::take(&mut self.main);
        let newest = self.kept.first().copied();
        if self.kept.is_empty() && self.some_bad {
            self.found(Place::Log, Reason::NoCheckpoint);
        }
        if let Some((checkpoint, through)) = newest {
            let position = checkpoint.position;
            let at = (position.segment, position.offset);
            if self.last.is_none_or(|last| last < position.segment) {
                let first =
                    self.last.map_or(SegmentId::FIRST, SegmentId::next).max(self.needed_from().unwrap_or_default());
                self.missing(first, position.segment);
            }
            // What lies before the position was durable, whatever follows it.
            let before = sequence.pending.partition_point(|damage| (damage.segment, damage.start) < at);
            let behind = sequence.pending.split_off(before);
            let explained = sequence.explained || !sequence.pending.is_empty();
            self.confirm(&mut sequence, Some(position.batch));
            sequence.pending = behind;
            if let (Some(next), Some(tail), false) = (sequence.next, sequence.tail, explained)
                && next < position.batch
            {
                self.lost(tail, next, position.batch - 1);
            }
            if sequence.tail.is_none_or(|tail| tail < at) {
                sequence.tail = Some(at);
                sequence.next = Some(position.batch);
            }
            let ends = sequence.next.unwrap_or(1);
            if ends < through {
                self.confirm(&mut sequence, Some(through));
                self.found(Place::Log, Reason::LogEndsEarly { ends, checkpoint: checkpoint.number, through });
            }
        }
        let last = sequence.tail.map_or(SegmentId::FIRST, |(segment, _)| segment);
        self.judge_tail(&mut sequence, last, newest.map(|(checkpoint, _)| checkpoint));
        self.report.end = sequence.tail;
        self.report.partitions = self.partitions.take();
        self.report
    }

    fn found(&mut self, place: Place, reason: Reason) {
        self.report.findings.push(Finding::new(place, reason));
    }
}
