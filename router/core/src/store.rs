//! What the Raft engine reads back of a group's log: the entries that are not applied yet, in memory, and of those before
//! them only where they end. The bytes themselves are in the storage log.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::prelude::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use whimbrel_storage::Location;

/// An entry and where its data is in the storage log.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) term: u64,
    pub(crate) data: Bytes,
    pub(crate) location: Location,
}

/// One group's log, as the engine sees it.
#[derive(Debug)]
pub(crate) struct LogStore {
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term before the first entry kept.
    before: (u64, u64),
    entries: VecDeque<Stored>,
}

impl LogStore {
    /// An empty log of a group of one.
    pub(crate) fn new(voter: u64) -> LogStore {
        let conf_state = ConfState { voters: vec![voter], ..ConfState::default() };
        LogStore { hard_state: HardState::default(), conf_state, before: (0, 0), entries: VecDeque::new() }
    }

    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// Adds an entry; one at an index that is there takes its place and cuts off what follows, as Raft wants it.
    pub(crate) fn append(&mut self, index: u64, stored: Stored) {
        assert!(index > self.before.0, "entry {index} would replace one that is applied");
        self.entries.truncate((index - self.before.0 - 1) as usize);
        assert_eq!(index, self.last() + 1, "an entry's index follows the one before it");
        self.entries.push_back(stored);
    }

    /// A log that goes on behind an entry, index and term, which is in a checkpoint.
    pub(crate) fn restored(voter: u64, before: (u64, u64), hard_state: HardState) -> LogStore {
        LogStore { before, hard_state, ..LogStore::new(voter) }
    }

    /// Index and term of the last entry that is applied.
    pub(crate) fn applied(&self) -> (u64, u64) {
        self.before
    }

    /// Where the first entry is that is not applied.
    pub(crate) fn first_waiting(&self) -> Option<Location> {
        self.entries.front().map(|stored| stored.location)
    }

    /// Where the data of an entry is.
    pub(crate) fn location(&self, index: u64) -> Location {
        self.entries[(index - self.before.0 - 1) as usize].location
    }

    /// Lets go of entries that are applied. While the group has one voter nobody asks for them again.
    pub(crate) fn forget_through(&mut self, index: u64) {
        while self.before.0 < index {
            let Some(entry) = self.entries.pop_front() else { return };
            self.before = (self.before.0 + 1, entry.term);
        }
    }
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut list = Vec::new();
        for index in low..high {
            let stored = &self.entries[(index - self.before.0 - 1) as usize];
            size += stored.data.len() as u64;
            if size > max_size && !list.is_empty() {
                break;
            }
            list.push(Entry { index, term: stored.term, data: stored.data.clone(), ..Entry::default() });
        }
        Ok(list)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.entries.get((index - self.before.0 - 1) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
