//! What a verified log has of each partition, and whether its entries follow each other: index after index, in rising terms.

use std::collections::BTreeMap;

use crate::RecordKind;
use crate::finding::{Finding, Reason};
use crate::inspect::RecordFound;

/// What was found of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionFound {
    /// Entries.
    pub entries: u64,
    /// Terms, votes and commit indexes.
    pub hard_states: u64,
    /// Records that were forgotten in place.
    pub erased: u64,
    /// Pieces of entries in cold segments.
    pub moved: u64,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
    /// The index of the first entry and of the last one.
    pub indexes: Option<(u64, u64)>,
    /// The term of the last entry.
    pub term: u64,
}

/// Of all partitions of a log.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    found: BTreeMap<u16, PartitionFound>,
    last: BTreeMap<u16, Last>,
    /// What the newest checkpoint has, until the log reaches its position.
    applied: Vec<(u16, u64, u64)>,
    /// Places of findings that may have taken records with them.
    damages: Vec<usize>,
}

/// The last entry of a partition.
#[derive(Clone, Copy, Debug)]
struct Last {
    index: u64,
    term: u64,
    /// How many damages there had been.
    damages: usize,
    /// It is what a checkpoint has: entries before it may come again.
    from_checkpoint: bool,
}

impl Partitions {
    pub(crate) fn applied(&mut self, partition: u16, index: u64, term: u64) {
        self.applied.push((partition, index, term));
    }

    /// What follows is behind the position of the newest checkpoint.
    pub(crate) fn reach_checkpoint(&mut self) {
        for (partition, index, term) in std::mem::take(&mut self.applied) {
            let damages = self.damages.len();
            self.last.entry(partition).or_insert(Last { index, term, damages, from_checkpoint: true });
        }
    }

    /// Segments were let go: nobody knows what was in them.
    pub(crate) fn forget(&mut self) {
        self.last.clear();
    }

    /// A finding took records with it, or may have.
    pub(crate) fn damaged(&mut self, finding: usize) {
        self.damages.push(finding);
    }

    /// Takes the next record. Gives what is wrong with it; entries that damage before it explains are added to that finding.
    pub(crate) fn record(
        &mut self,
        record: &RecordFound<'_>,
        in_order: bool,
        findings: &mut [Finding],
    ) -> Option<Reason> {
        let (partition, index, term) = (record.header.partition, record.header.index, record.header.term);
        let found = self.found.entry(partition).or_default();
        found.payload_bytes += record.payload.len() as u64;
        match record.header.kind {
            RecordKind::Entry => {
                found.entries += 1;
                found.indexes = Some((found.indexes.map_or(index, |(first, _)| first.min(index)), index));
                found.term = term;
            }
            RecordKind::HardState => {
                found.hard_states += 1;
                return None;
            }
            // A piece of an entry that was found where it was written, or is gone from there.
            RecordKind::Moved => {
                found.moved += 1;
                return None;
            }
            // It may have been an entry, which then is no hole.
            RecordKind::Erased => {
                found.erased += 1;
                if let Some(last) = self.last.get_mut(&partition)
                    && index == last.index + 1
                {
                    last.index = index;
                }
                return None;
            }
        }
        if !in_order {
            return None;
        }
        let damages = self.damages.len();
        let now = Last { index, term, damages, from_checkpoint: false };
        let last = self.last.insert(partition, now)?;
        if index <= last.index && last.from_checkpoint {
            // In the checkpoint already. What it has still tells whether anything is missing behind it.
            self.last.insert(partition, Last { damages: last.damages, ..last });
            return None;
        }
        if index > last.index + 1 {
            let (first, last_index) = (last.index + 1, index - 1);
            let since = &self.damages[last.damages..];
            for (nth, &damage) in since.iter().enumerate() {
                findings[damage].partitions.insert(partition);
                if nth == 0 {
                    findings[damage].gone.push((partition, first, last_index));
                }
            }
            return since.is_empty().then_some(Reason::EntryHole { partition, first, last: last_index });
        }
        // Indexes are written again only by a later leader.
        let repeats = index <= last.index && term <= last.term;
        (repeats || term < last.term).then_some(Reason::EntryOrder {
            partition,
            index,
            term,
            before: last.index,
            before_term: last.term,
        })
    }

    pub(crate) fn take(&mut self) -> BTreeMap<u16, PartitionFound> {
        std::mem::take(&mut self.found)
    }
}
