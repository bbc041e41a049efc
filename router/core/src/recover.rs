//! What a start finds: the partitions as the newest checkpoint has them, and the entries of the log behind it, which are
//! applied in the first turns.

use std::cell::RefCell;

use ahash::RandomState;
use bytes::Bytes;
use raft::prelude::HardState;
use whimbrel_storage::{Disk, Location, Log, LogOptions, RecordHeader, RecordKind, Recovered};
use whimbrel_wire::command::Entry;

use crate::ids::PartitionId;
use crate::image::{Images, Restored};
use crate::io::ShardConfig;
use crate::partition::PartitionState;
use crate::replicate::SELF;
use crate::shard::OpenError;
use crate::store::{LogStore, Stored};

/// A partition as it was found.
pub(crate) struct Found {
    pub(crate) state: PartitionState,
    pub(crate) store: LogStore,
    pub(crate) wall_ms: u64,
}

/// Reads the newest checkpoint and the log behind it; the partitions by their rank.
pub(crate) fn read_log(
    config: &ShardConfig,
    held: usize,
    options: LogOptions,
    disk: &mut dyn Disk,
    hash: &dyn Fn(u64) -> RandomState,
) -> Result<(Log, Recovered, Vec<Found>), OpenError> {
    let reading =
        RefCell::new(Reading { config, held, hash, images: Images::default(), found: Vec::new(), failed: None });
    let (log, recovered) = Log::open_with(
        options,
        disk,
        &mut |piece| reading.borrow_mut().piece(piece),
        &mut |header, location, payload| reading.borrow_mut().record(header, location, payload),
    )?;
    let mut reading = reading.into_inner();
    reading.restore();
    reading.check_commits();
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

    /// What is committed was durable: a log that ends before it has lost something.
    fn check_commits(&mut self) {
        for (rank, found) in self.found.iter().enumerate() {
            let (commit, last) = (found.store.hard_state().commit, found.store.last());
            if commit > last && self.failed.is_none() {
                let partition = self.config.partition_at(rank).0;
                self.failed = Some(OpenError::CommitLost { partition, commit, last });
            }
        }
    }

    fn restored(&mut self) -> Option<Vec<Found>> {
        let images = std::mem::take(&mut self.images);
        let all = images.finish(|partition| (self.hash)(self.config.rank_of(partition) as u64))?;
        if all.is_empty() {
            let state = |rank| PartitionState::new((self.hash)(rank));
            let empty = |rank| Found { state: state(rank), store: LogStore::new(SELF), wall_ms: 0 };
            return Some((0..self.held as u64).map(empty).collect());
        }
        let is_ours = all.iter().enumerate().all(|(rank, it)| it.head.partition == self.config.partition_at(rank));
        let each = |Restored { head, state }: Restored| Found {
            state,
            store: LogStore::restored(SELF, head.applied, head.hard_state),
            wall_ms: head.wall_ms,
        };
        (is_ours && all.len() == self.held).then(|| all.into_iter().map(each).collect())
    }

    fn take(&mut self, header: &RecordHeader, location: Location, payload: Bytes) -> Result<(), OpenError> {
        let (config, partition) = (self.config, PartitionId(header.partition));
        if config.shard_of(partition) != config.shard || header.partition >= config.partitions {
            return Err(OpenError::ForeignPartition(header.partition));
        }
        let store = &mut self.found[config.rank_of(partition)].store;
        match header.kind {
            // In the checkpoint already.
            RecordKind::Entry if header.index <= store.applied().0 => {}
            RecordKind::Entry => {
                if !payload.is_empty() {
                    Entry::verify(&payload).map_err(|error| OpenError::BadEntry {
                        partition: header.partition,
                        index: header.index,
                        error,
                    })?;
                }
                if header.index > store.last() + 1 {
                    return Err(OpenError::Hole(header.partition, header.index));
                }
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
}
