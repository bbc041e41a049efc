//! Batches that follow each other: what is missing between them, and what lies behind the last one.

use super::Verifier;
use crate::SegmentId;
use crate::checkpoint::Checkpoint;
use crate::finding::{Finding, Place, Reason};
use crate::inspect::{BatchFault, BatchFound};
use crate::layout::FIRST_BATCH_OFFSET;
use crate::limits::BATCH_MAX_BYTES;

/// Batches that follow each other.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// The number of the next batch, where the one before it is there.
    pub(super) expected: Option<u64>,
    /// None below it can follow.
    pub(super) at_least: u64,
    /// The number of the next batch behind the last whole one, and where it would begin.
    pub(super) next: Option<u64>,
    pub(super) tail: Option<(SegmentId, u32)>,
    pub(super) pending: Vec<Pending>,
    /// Damage was found behind the last whole batch: it explains numbers that are missing.
    pub(super) explained: bool,
}

/// Damage behind which nothing valid was found yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) segment: SegmentId,
    pub(super) start: u32,
    pub(super) end: u32,
    /// The batch whose header is there.
    pub(super) batch: Option<(u64, BatchFault)>,
    pub(super) partitions: Vec<u16>,
}

impl Verifier {
    /// Judges a batch; gives the records of a whole one.
    pub(super) fn batch(&mut self, sequence: &mut Sequence, id: SegmentId, batch: &BatchFound<'_>) -> u64 {
        let (number, place) = (batch.number, (id, batch.offset));
        let follows = number.checked_sub(1) == Some(batch.durable) && number >= sequence.at_least.max(1);
        if !follows || sequence.expected.is_some_and(|expected| number < expected) {
            self.confirm(sequence, None);
            self.found(Place::Segment(id, batch.offset), Reason::BatchMisplaced(number));
            return 0;
        }
        // It was written once all before it was durable.
        let behind = sequence.pending.last().map(|damage| (damage.batch.is_none(), (damage.segment, damage.end)));
        self.confirm(sequence, Some(number));
        match behind {
            // That explains all that is missing before this one.
            Some((true, _)) => {}
            Some((false, end)) => self.check_gap(sequence, end, place, number),
            None => {
                let tail = sequence.tail.unwrap_or((id, FIRST_BATCH_OFFSET));
                self.check_gap(sequence, tail, place, number);
            }
        }
        sequence.explained = false;
        for at in 0..self.kept.len() {
            let position = self.kept[at].0.position;
            let is_before = place < (position.segment, position.offset);
            if !id.is_cold() && is_before != (number < position.batch) {
                self.checkpoint_misplaced(at);
            }
        }
        sequence.expected = Some(number + 1);
        sequence.at_least = number + 1;
        if let Some(fault) = batch.fault() {
            sequence.pending.push(Pending {
                segment: id,
                start: batch.offset,
                end: batch.end(),
                batch: Some((number, fault)),
                partitions: concerned(batch),
            });
            return 0;
        }
        sequence.next = Some(number + 1);
        sequence.tail = Some((id, batch.end()));
        let main = !id.is_cold();
        if main && self.kept.first().is_some_and(|(newest, _)| number >= newest.position.batch) {
            self.partitions.reach_checkpoint();
        }
        for record in batch.records().flatten() {
            if let Some(reason) = self.partitions.record(&record, main, &mut self.report.findings) {
                self.found(Place::Segment(id, record.offset), reason);
            }
        }
        self.report.batches += 1;
        self.report.records += u64::from(batch.records);
        u64::from(batch.records)
    }

    /// Whether anything is missing between the batch that ends at `tail` and this one.
    fn check_gap(&mut self, sequence: &Sequence, tail: (SegmentId, u32), place: (SegmentId, u32), number: u64) {
        let Some(expected) = sequence.expected.filter(|_| !sequence.explained) else { return };
        // The next one begins where the last one ends, or at the start of the next segment.
        let rolled = place.1 == FIRST_BATCH_OFFSET && place.0.0 <= tail.0.0 + 1;
        if number > expected {
            self.lost(tail, expected, number - 1);
        } else if place != tail && !rolled {
            self.found(Place::Segment(place.0, place.1), Reason::BatchMisplaced(number));
        }
    }

    /// Batches are missing, and nothing is left of them.
    pub(super) fn lost(&mut self, at: (SegmentId, u32), first: u64, last: u64) {
        let reason = Reason::BatchMissing { first: Some(first), last: Some(last) };
        self.found(Place::Segment(at.0, at.1), reason);
        self.partitions.damaged(self.report.findings.len() - 1);
    }

    /// Something valid follows what is pending: it was durable, and is damage. `before` is the number of the batch that follows.
    pub(super) fn confirm(&mut self, sequence: &mut Sequence, before: Option<u64>) {
        let pending = std::mem::take(&mut sequence.pending);
        let mut next = sequence.next;
        for (at, damage) in pending.iter().enumerate() {
            let reason = match &damage.batch {
                Some((number, fault)) => {
                    next = Some(number + 1);
                    Reason::Batch { number: *number, fault: *fault }
                }
                None => {
                    let until =
                        pending[at + 1..].iter().find_map(|later| later.batch.as_ref().map(|(number, _)| *number));
                    let last = until.or(before).map(|until| until.saturating_sub(1));
                    let lost = next.filter(|first| last.is_none_or(|last| *first <= last));
                    match (next, lost) {
                        // No number is missing: nothing was ever written there.
                        (Some(_), None) => Reason::Stray(damage.end - damage.start),
                        _ => Reason::BatchMissing {
                            first: lost.filter(|_| last.is_some()),
                            last: last.filter(|_| lost.is_some()),
                        },
                    }
                }
            };
            let mut finding = Finding::new(Place::Segment(damage.segment, damage.start), reason);
            finding.partitions.extend(&damage.partitions);
            self.report.findings.push(finding);
            self.partitions.damaged(self.report.findings.len() - 1);
        }
    }

    /// Judges what is pending behind the last batch of a sequence: the remains of one torn batch, or damage. As a start does.
    pub(super) fn judge_tail(&mut self, sequence: &mut Sequence, first: SegmentId, newest: Option<Checkpoint>) {
        let (Some(damage), Some(end)) = (sequence.pending.first(), sequence.pending.last()) else { return };
        let mut tail = sequence.tail.unwrap_or((first, FIRST_BATCH_OFFSET));
        let next = sequence.next.or(newest.is_none().then_some(1));
        let is_next = |damage: &Pending| damage.batch.is_none_or(|(number, _)| next.is_none_or(|next| number == next));
        if damage.batch.is_some() && damage.start == FIRST_BATCH_OFFSET && damage.segment == tail.0.next() {
            tail = (damage.segment, damage.start);
        }
        // Its own header is there, so that its length is known.
        let at_tail = damage.batch.is_some() && (damage.segment, damage.start) == tail;
        let torn = at_tail.then_some(damage.end - damage.start);
        let reach = if damage.segment == tail.0 {
            Some(tail.1.saturating_add(torn.unwrap_or(BATCH_MAX_BYTES)))
        } else {
            let rolled = torn.is_none() && damage.segment == tail.0.next();
            rolled.then_some(FIRST_BATCH_OFFSET + BATCH_MAX_BYTES)
        };
        let one = damage.segment == end.segment && reach.is_some_and(|reach| end.end <= reach);
        if one && sequence.pending.iter().all(is_next) {
            let (place, bytes) = (Place::Segment(damage.segment, damage.start), end.end - damage.start);
            self.found(place, Reason::Torn(bytes));
            sequence.pending.clear();
            return;
        }
        for damage in std::mem::take(&mut sequence.pending) {
            let reason = match damage.batch {
                Some((number, fault)) => Reason::Batch { number, fault },
                None => Reason::Stray(damage.end - damage.start),
            };
            let mut finding = Finding::new(Place::Segment(damage.segment, damage.start), reason);
            finding.partitions.extend(&damage.partitions);
            self.report.findings.push(finding);
        }
    }
}

/// The partitions of records of a damaged batch that are damaged, or whose headers alone can be read.
fn concerned(batch: &BatchFound<'_>) -> Vec<u16> {
    let damaged = batch.records().flatten().filter(|record| record.fault.is_some());
    damaged.map(|record| record.header.partition).collect()
}
