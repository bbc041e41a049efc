//! What a start finds: the partitions as the newest checkpoint has them, and the entries of the log behind it, which are
//! applied in the first turns.

use std::cell::RefCell;

use ahash::RandomState;
use bytes::Bytes;
use raft::prelude::HardState;
use whimbrel_storage::{Disk, Location, Log, LogOptions, Loss, RecordHeader, RecordKind, Recovered, Rot, Rotten};
use whimbrel_wire::command::Entry;

use crate::ids::PartitionId;
use crate::image::{Images, Restored};
use crate::io::ShardConfig;
use crate::partition::PartitionState;
use crate::repair::Why;
use crate::replicate::SELF;
use crate::shard::OpenError;
use crate::store::{LogStore, Stored};

/// A partition as it was found.
pub(crate) struct Found {
    pub(crate) state: PartitionState,
    pub(crate) store: LogStore,
    pub(crate) wall_ms: u64,
    /// What of it is lost, if something is: then there are no entries of it.
    pub(crate) repair: Option<(Why, Option<Rot>)>,
}

/// How far what was given of a partition is without a hole.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The number of the last record that continued its log, or is in the checkpoint, among all that were given.
    last_given: u64,
    /// Entries are missing: the last before the hole, the first behind it, and the number of that record.
    hole: Option<(u64, u64, u64)>,
}

/// Reads the newest checkpoint and the log behind it; the partitions by their rank.
pub(crate) fn read_log(
    config: &ShardConfig,
    held: usize,
    options: LogOptions,
    disk: &mut dyn Disk,
    hash: &dyn Fn(u64) -> RandomState,
) -> Result<(Log, Recovered, Vec<Found>), OpenError> {
    let reading = RefCell::new(Reading {
        config,
        held,
        hash,
        images: Images::default(),
        found: Vec::new(),
        seen: vec![Seen::default(); held],
        given: 0,
        failed: None,
    });
    let (log, recovered) = Log::open_with(
        options,
        disk,
        &mut |piece| reading.borrow_mut().piece(piece),
        &mut |header, location, payload| reading.borrow_mut().record(header, location, payload),
    )?;
    let mut reading = reading.into_inner();
    reading.restore();
    reading.judge(&recovered.rot);
    match reading.failed {
        Some(error) => Err(error),
        None => Ok((log, recovered, reading.found)),
    }
}

struct Reading<'a> {
    config: &'a ShardConfig,
    held: usize,
    hash: &'a dyn Fn(u64) -> RandomState,
    /// Complete with the first record, for all pieces come before.
    images: Images,
    found: Vec<Found>,
    /// By rank.
    seen: Vec<Seen>,
    /// Records that were given.
    given: u64,
    /// What went wrong first; nothing is looked at after it.
    failed: Option<OpenError>,
}

impl Reading<'_> {
    fn piece(&mut self, piece: &[u8]) {
        if self.failed.is_none() && self.images.take(piece).is_none() {
            self.failed = Some(OpenError::BadCheckpoint);
        }
    }

    fn record(&mut self, header: &RecordHeader, location: Location, payload: Bytes) {
        self.restore();
        self.given += 1;
        if self.failed.is_none() {
            self.failed = self.take(header, location, payload).err();
        }
    }

    /// Makes the partitions, once: as in the checkpoint, or empty where there is none.
    fn restore(&mut self) {
        if self.failed.is_some() || !self.found.is_empty() {
            return;
        }
        match self.restored() {
            Some(found) => self.found = found,
            None => self.failed = Some(OpenError::BadCheckpoint),
        }
    }

    fn restored(&mut self) -> Option<Vec<Found>> {
        let images = std::mem::take(&mut self.images);
        let all = images.finish(|partition| (self.hash)(self.config.rank_of(partition) as u64))?;
        if all.is_empty() {
            let state = |rank| PartitionState::new((self.hash)(rank));
            let empty = |rank| Found { state: state(rank), store: LogStore::new(SELF), wall_ms: 0, repair: None };
            return Some((0..self.held as u64).map(empty).collect());
        }
        let is_ours = all.iter().enumerate().all(|(rank, it)| it.head.partition == self.config.partition_at(rank));
        let each = |Restored { head, state }: Restored| Found {
            state,
            store: LogStore::restored(SELF, head.applied, head.hard_state),
            wall_ms: head.wall_ms,
            repair: None,
        };
        (is_ours && all.len() == self.held).then(|| all.into_iter().map(each).collect())
    }

    fn take(&mut self, header: &RecordHeader, location: Location, payload: Bytes) -> Result<(), OpenError> {
        let (config, partition) = (self.config, PartitionId(header.partition));
        if config.shard_of(partition) != config.shard || header.partition >= config.partitions {
            return Err(OpenError::ForeignPartition(header.partition));
        }
        let rank = config.rank_of(partition);
        let (store, seen) = (&mut self.found[rank].store, &mut self.seen[rank]);
        match header.kind {
            // Nothing of it can be used behind a hole.
            _ if seen.hole.is_some() => {}
            // In the checkpoint already.
            RecordKind::Entry if header.index <= store.applied().0 => seen.last_given = self.given,
            RecordKind::Entry if header.index > store.last() + 1 => {
                seen.hole = Some((store.last(), header.index, self.given));
            }
            RecordKind::Entry => {
                if !payload.is_empty() {
                    Entry::verify(&payload).map_err(|error| OpenError::BadEntry {
                        partition: header.partition,
                        index: header.index,
                        error,
                    })?;
                }
                if header.term > store.hard_state().term {
                    // The record of that vote is lost. A group of one votes for nobody but itself.
                    let commit = store.hard_state().commit;
                    store.set_hard_state(HardState { term: header.term, vote: SELF, commit, ..HardState::default() });
                }
                seen.last_given = self.given;
                store.append(header.index, Stored { term: header.term, data: payload, location });
            }
            RecordKind::HardState => {
                let words = payload.first_chunk::<16>().ok_or(OpenError::BadHardState(header.partition))?;
                let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("eight bytes"));
                // One that is older than what the checkpoint has says nothing new.
                if header.term >= store.hard_state().term {
                    let commit = word(8).max(store.hard_state().commit);
                    let hard_state = HardState { term: header.term, vote: word(0), commit, ..HardState::default() };
                    store.set_hard_state(hard_state);
                }
            }
            // Its bytes were forgotten on purpose; nothing follows from it.
            RecordKind::Erased | RecordKind::Moved => {}
        }
        Ok(())
    }

    /// Says which partitions lost something. Damage that names no record may have taken one of any partition, and does not
    /// concern those of which a record behind it shows that nothing is missing: in a group of one, which never truncates, the
    /// next entry. (With more voters only one of the same term would: an entry of a later term may follow others that
    /// replaced those before it.) Of a vote that is lost only an entry behind it tells.
    fn judge(&mut self, all: &[Rotten]) {
        for (rank, (found, seen)) in self.found.iter_mut().zip(&self.seen).enumerate() {
            let (partition, applied) = (self.config.partition_at(rank), found.store.applied());
            found.repair = match seen.hole {
                Some((last, next, at)) => {
                    let before =
                        |it: &&Rotten| it.after.is_some_and(|after| after < at) && it.rot.loss != Loss::Nothing;
                    Some((Why::Hole { last, next }, all.iter().rev().find(before).map(|it| it.rot)))
                }
                None => all.iter().find_map(|it| {
                    let is_behind = it.after.is_some_and(|after| seen.last_given <= after);
                    let why = match it.rot.loss {
                        Loss::Nothing => None,
                        Loss::Unknown => Some(Why::Unproven),
                        Loss::Record(header) if header.partition != partition.0 => None,
                        Loss::Record(header) => match header.kind {
                            RecordKind::Entry if header.index <= applied.0 => None,
                            RecordKind::Entry => Some(Why::Entry(header.index)),
                            RecordKind::HardState => Some(Why::Unproven),
                            RecordKind::Erased | RecordKind::Moved => None,
                        },
                    };
                    why.filter(|_| is_behind).map(|why| (why, Some(it.rot)))
                }),
            };
            // What is committed was durable: a log that ends before it has lost something.
            let (commit, last) = (found.store.hard_state().commit, found.store.last());
            if found.repair.is_none() && commit > last {
                found.repair = Some((Why::Hole { last, next: commit + 1 }, None));
            }
            if found.repair.is_some() {
                let hard_state = HardState { commit: applied.0, ..found.store.hard_state().clone() };
                found.store = LogStore::restored(SELF, applied, hard_state);
            }
        }
    }
}
