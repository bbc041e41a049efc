//! Replication: commands are gathered into entries of their partition's Raft group, entries into the log, and what is
//! committed goes back up as applied. A lone node is a group of one through the same code.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::prelude::{Entry, Message, MessageType};
use raft::{Config, RawNode, StateRole};
use whimbrel_storage::{LogWrite, Mark, RecordHeader, RecordKind, Wanted};
use whimbrel_wire::{Code, EntryWriter};

use crate::ids::{ClientSeq, ConnId, InboxId};
use crate::io::{Effect, Effects};
use crate::lane::Asker;
use crate::limits;
use crate::partition::PartitionState;
use crate::repair::Repair;
use crate::shard::Shard;
use crate::store::{LogStore, Stored};

/// This node's id in its groups.
pub(crate) const SELF: u64 = 1;

/// Commands gathered for one partition are closed into an entry at this size, so that with the largest command it still
/// fits a batch of the log.
pub(crate) const ENTRY_CLOSE_BYTES: usize = 128 * 1024;

/// While a write is in flight commands gather until all partitions together have this many bytes.
pub(crate) const GATHER_BYTES: usize = 256 * 1024;

/// Who waits for a command to be applied.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    Nobody,
    Login(ConnId),
    /// For a message under this number.
    Ask(Asker, ClientSeq),
}

/// An entry that was proposed here and is not applied yet.
#[derive(Debug)]
struct Proposed {
    index: u64,
    term: u64,
    origins: Vec<Origin>,
}

/// One partition: its group, its state, and what is gathered for it.
pub(crate) struct Partition {
    pub(crate) state: PartitionState,
    pub(crate) group: RawNode<LogStore>,
    pub(crate) gather: EntryWriter,
    pub(crate) origins: Vec<Origin>,
    closed: VecDeque<(EntryWriter, Vec<Origin>)>,
    proposed: VecDeque<Proposed>,
    /// Applied the first entry of the own term: only then does a leader serve.
    pub(crate) serving: bool,
    /// Something of it is lost: it takes no part in anything.
    pub(crate) repair: Option<Repair>,
    /// In the shard's list of groups to look at.
    dirty: bool,
    /// The newest time that an entry was stamped with.
    pub(crate) wall_ms: u64,
    /// Devices whose first login is proposed and not applied.
    pub(crate) registering: usize,
    /// Inboxes whose acknowledgements wait to be proposed.
    pub(crate) acks: Vec<InboxId>,
}

impl Partition {
    /// As a checkpoint has it, or empty. Its group begins with [`Partition::start`].
    pub(crate) fn new(state: PartitionState, wall_ms: u64) -> raft::Result<Partition> {
        Ok(Partition {
            state,
            group: group(LogStore::new(SELF))?,
            gather: EntryWriter::default(),
            origins: Vec::new(),
            closed: VecDeque::new(),
            proposed: VecDeque::new(),
            serving: false,
            repair: None,
            dirty: false,
            wall_ms,
            registering: 0,
            acks: Vec::new(),
        })
    }

    /// Its group goes on from what was read.
    pub(crate) fn start(&mut self, store: LogStore, election_ticks: usize, campaigns: bool) -> raft::Result<()> {
        self.group = group(store)?;
        self.group.raft.set_randomized_election_timeout(10 + election_ticks % 10);
        if campaigns { self.group.campaign() } else { Ok(()) }
    }

    /// Why it does not serve.
    pub(crate) fn why_not(&self) -> Code {
        if self.repair.is_some() { Code::InRepair } else { Code::NotReady }
    }

    /// Forgets what was to be replicated, and gives those who wait for it and the bytes that were gathered.
    pub(crate) fn give_up(&mut self) -> (Vec<Origin>, usize) {
        let bytes = self.gather.len_bytes() + self.closed.iter().map(|(gather, _)| gather.len_bytes()).sum::<usize>();
        let mut origins = std::mem::take(&mut self.origins);
        origins.extend(self.closed.drain(..).flat_map(|(_, origins)| origins));
        origins.extend(self.proposed.drain(..).flat_map(|proposed| proposed.origins));
        self.gather = EntryWriter::default();
        self.registering = 0;
        (origins, bytes)
    }

    /// Nothing of it is on its way to being replicated.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.serving
            && self.gather.is_empty()
            && self.closed.is_empty()
            && self.proposed.is_empty()
            && self.acks.is_empty()
    }
}

fn group(store: LogStore) -> raft::Result<RawNode<LogStore>> {
    let config = Config {
        id: SELF,
        election_tick: 10,
        heartbeat_tick: 3,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        // What a start has read is applied.
        applied: store.applied().0,
        check_quorum: true,
        pre_vote: true,
        // Above what the staging ring can hold, so that the ring's own bound is the one that is met.
        max_uncommitted_size: 64 << 20,
        max_committed_size_per_ready: 1 << 20,
        ..Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    RawNode::new(&config, store, &logger)
}

impl Shard {
    /// Called after a command was added to a partition's gather, with the bytes that it had before.
    pub(crate) fn gathered(&mut self, p: usize, origin: Origin, before: usize) {
        if self.gathered_bytes == 0 {
            self.gathering_since_us = self.now.mono_us;
        }
        self.pace.count(self.now.mono_us);
        let partition = &mut self.partitions[p];
        partition.origins.push(origin);
        self.gathered_bytes += partition.gather.len_bytes() - before;
        if partition.gather.len_bytes() >= self.entry_close_bytes {
            let gather = partition.gather.close();
            partition.closed.push_back((gather, std::mem::take(&mut partition.origins)));
        }
        self.mark_dirty(p);
    }

    pub(crate) fn mark_dirty(&mut self, p: usize) {
        if !self.partitions[p].dirty {
            self.partitions[p].dirty = true;
            self.dirty.push(p);
        }
    }

    /// Proposes what is gathered, moves entries into the log, applies what is committed, and asks for the log write.
    pub(crate) fn replicate(&mut self, fx: &mut Effects, more: bool) {
        // One round appends, a second applies what that made committed; then nothing is left but what waits for the disk.
        while !self.dirty.is_empty() {
            let propose = self.may_propose(more);
            let mut dirty = std::mem::take(&mut self.dirty);
            for &p in &dirty {
                self.partitions[p].dirty = false;
                self.drive(fx, p);
                if propose {
                    self.propose(fx, p);
                }
                let partition = &self.partitions[p];
                if !partition.gather.is_empty() || !partition.closed.is_empty() {
                    self.waiting_to_propose.push(p);
                }
            }
            dirty.clear();
            if self.dirty.is_empty() {
                self.dirty = dirty;
            }
        }
        for p in std::mem::take(&mut self.waiting_to_propose) {
            self.mark_dirty(p);
        }
        self.write_log(fx);
    }

    /// Whether what is gathered is proposed now. While a write is in flight more gathers; so it does while more inputs wait
    /// or other shards are at work, for a little: a busy shard that wrote at once would write a few commands at a time, and
    /// pay for the write what they cost together. An idle one never waits.
    fn may_propose(&self, more: bool) -> bool {
        if self.gathered_bytes >= GATHER_BYTES {
            return true;
        }
        let patience_us = match more {
            _ if self.stopping => 0,
            true => limits::BUSY_GATHER_US,
            false if self.is_among_busy() => limits::LANE_GATHER_US,
            false => 0,
        };
        let patient = self.now.mono_us < self.gathering_since_us + patience_us;
        !self.log.is_writing() && !patient
    }

    /// Other shards were heard of since the last write, and there is much to do.
    fn is_among_busy(&self) -> bool {
        self.lane_heard && self.pace.per_ms(self.now.mono_us) >= limits::LANE_PACE
    }

    /// How long inputs may gather before the shard is woken for the first of them, in microseconds; 0 if it should be at once.
    /// A shard that works hand in hand with others at a high pace does more in fewer turns. While a write is in flight what comes
    /// can only gather: so it does in one turn, for up to half as long as writes take.
    pub fn rest_us(&self) -> u64 {
        match self.is_among_busy() {
            true => limits::LANE_REST_US,
            false if self.log.is_writing() => (self.writes.mean_us / 2).min(limits::WRITE_REST_US),
            false => 0,
        }
    }

    /// Whether so much is gathered, and can be written, that the turn should end now rather than take in more.
    pub fn is_full(&self) -> bool {
        self.gathered_bytes >= GATHER_BYTES && self.log.has_room(self.gathered_bytes)
    }

    /// Proposes what is gathered for a partition, as far as the staging ring has room, and appends each entry at once.
    fn propose(&mut self, fx: &mut Effects, p: usize) {
        let partition = &mut self.partitions[p];
        if partition.group.raft.state != StateRole::Leader || partition.repair.is_some() {
            return;
        }
        if !partition.gather.is_empty() {
            let gather = partition.gather.close();
            partition.closed.push_back((gather, std::mem::take(&mut partition.origins)));
        }
        while self.propose_one(p) {
            self.drive(fx, p);
        }
    }

    fn propose_one(&mut self, p: usize) -> bool {
        let partition = &mut self.partitions[p];
        let Some((writer, _)) = partition.closed.front() else { return false };
        if !self.log.has_room(writer.len_bytes()) {
            return false;
        }
        let Some((mut writer, origins)) = partition.closed.pop_front() else { return false };
        self.gathered_bytes -= writer.len_bytes();
        // Time within a partition never goes back, whatever the machine's clock does.
        partition.wall_ms = partition.wall_ms.max(self.now.wall_ms);
        let entry = Entry { data: Bytes::from(writer.take(partition.wall_ms)), ..Entry::default() };
        let message = Message {
            msg_type: MessageType::MsgPropose,
            from: SELF,
            entries: vec![entry].into(),
            ..Message::default()
        };
        partition
            .group
            .step(message)
            .expect("a leader whose uncommitted bytes the staging ring bounds takes proposals");
        let index = partition.group.raft.raft_log.last_index();
        partition.proposed.push_back(Proposed { index, term: partition.group.raft.term, origins });
        true
    }

    /// Carries out what the group's engine has ready, until there is no more.
    fn drive(&mut self, fx: &mut Effects, p: usize) {
        while self.partitions[p].repair.is_none() && self.partitions[p].group.has_ready() {
            if !self.log.has_room(0) {
                self.waiting_to_propose.push(p);
                return;
            }
            let mut ready = self.partitions[p].group.ready();
            debug_assert!(ready.messages().is_empty() && ready.persisted_messages().is_empty(), "a group of one");
            let committed = ready.take_committed_entries();
            self.append(p, ready.take_entries(), ready.hs().cloned());
            let number = ready.number();
            self.partitions[p].group.advance_append_async(ready);
            self.persisting.push_back(Persisting { mark: self.log.appended(), partition: p, number });
            for entry in committed {
                self.apply_entry(fx, p, &entry);
                if self.partitions[p].repair.is_some() {
                    return;
                }
            }
            self.persisted();
        }
    }

    fn append(&mut self, p: usize, entries: Vec<Entry>, hard_state: Option<raft::prelude::HardState>) {
        let store = self.partitions[p].group.mut_store();
        let partition = self.config.partition_at(p).0;
        if let Some(hard_state) = hard_state {
            let old = store.hard_state();
            // A commit index alone is not worth a record: it is found again from what is on the disk.
            if (old.term, old.vote) != (hard_state.term, hard_state.vote) {
                let header = RecordHeader { kind: RecordKind::HardState, partition, term: hard_state.term, index: 0 };
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&hard_state.vote.to_le_bytes());
                bytes[8..].copy_from_slice(&hard_state.commit.to_le_bytes());
                self.log.append(&header, &bytes).expect("drive and propose saw room");
            }
            store.set_hard_state(hard_state);
        }
        for entry in entries {
            let header = RecordHeader { kind: RecordKind::Entry, partition, term: entry.term, index: entry.index };
            let location = self.log.append(&header, &entry.data).expect("drive and propose saw room");
            store.append(entry.index, Stored { term: entry.term, data: entry.data, location });
        }
    }

    /// Tells the engines which of their entries are on stable storage.
    pub(crate) fn persisted(&mut self) {
        let durable = self.log.durable();
        while self.persisting.front().is_some_and(|front| front.mark <= durable) {
            let Some(done) = self.persisting.pop_front() else { return };
            if self.partitions[done.partition].repair.is_some() {
                continue;
            }
            self.partitions[done.partition].group.on_persist_ready(done.number);
            self.mark_dirty(done.partition);
        }
    }

    fn apply_entry(&mut self, fx: &mut Effects, p: usize, entry: &Entry) {
        self.counters.entries += 1;
        let partition = &mut self.partitions[p];
        let raft = &partition.group.raft;
        let leads = raft.state == StateRole::Leader;
        let term = raft.term;
        let mut origins = Vec::new();
        if let Some(front) = partition.proposed.front()
            && front.index == entry.index
            && let Some(proposed) = partition.proposed.pop_front()
            && proposed.term == entry.term
        {
            origins = proposed.origins;
        }
        if !entry.data.is_empty() {
            let location = partition.group.store().location(entry.index);
            self.apply_commands(fx, p, &entry.data, location, &origins);
        }
        let partition = &mut self.partitions[p];
        partition.group.advance_apply_to(entry.index);
        partition.group.mut_store().forget_through(entry.index);
        if leads && !partition.serving && entry.term == term {
            // All that waits in it is known from here on.
            if let Some((why, rot)) = self.lost_at_start(p) {
                rot.into_iter().for_each(|rot| self.note(rot));
                return self.begin_repair(fx, p, why, rot);
            }
            self.partitions[p].serving = true;
            self.begin_serving(fx, p);
        }
    }

    /// Asks for a segment where one is wanted, and for the next write where none is in flight.
    fn write_log(&mut self, fx: &mut Effects) {
        while let Some(Wanted { id, reuse }) = self.log.segment_wanted() {
            self.counters.zeroed_bytes += reuse.as_ref().map_or(0, |retired| u64::from(retired.used));
            fx.list.push(Effect::PrepareSegment { segment: id, reuse });
        }
        while let Some(retired) = self.log.segment_unwanted() {
            fx.list.push(Effect::RemoveSegment(retired));
        }
        if let Some(write) = self.log.next_write() {
            self.lane_heard = false;
            self.write(fx, write);
        }
    }

    fn write(&mut self, fx: &mut Effects, write: LogWrite) {
        self.counters.writes += 1;
        self.writes.begun_us = self.now.mono_us;
        fx.list.push(Effect::WriteLog(write));
    }

    /// When a batch without records is written behind the last one, on the monotone clock, if nothing happens before. One for each
    /// rest. On a disk that is full, or may be, what room there is is for what was accepted.
    pub(crate) fn empty_due_us(&self) -> Option<u64> {
        let rests = self.gathered_bytes == 0 && self.persisting.is_empty() && !self.stopping;
        (rests && self.log.takes_empty() && !self.is_scarce()).then_some(self.writes.ended_us + limits::EMPTY_BATCH_US)
    }

    /// At the end of a turn: writes it, if it is due.
    pub(crate) fn write_empty(&mut self, fx: &mut Effects) {
        if self.empty_due_us().is_some_and(|due_us| due_us <= self.now.mono_us)
            && let Some(write) = self.log.write_empty()
        {
            self.write(fx, write);
        }
    }
}

/// How long writes of the log take.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// When the last one was asked for.
    begun_us: u64,
    /// When the last one was over.
    ended_us: u64,
    /// Of the last ones, in microseconds.
    mean_us: u64,
}

impl Writes {
    /// The last one is over.
    pub(crate) fn ended(&mut self, now_us: u64) {
        self.ended_us = now_us;
        let took_us = now_us.saturating_sub(self.begun_us);
        self.mean_us = (self.mean_us * 7 + took_us) / 8;
    }
}

/// Commands in each millisecond.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    ms: u64,
    count: u32,
    /// Of the millisecond before.
    before: u32,
}

impl Pace {
    fn count(&mut self, now_us: u64) {
        let ms = now_us / limits::MS;
        if ms != self.ms {
            self.before = if ms == self.ms + 1 { self.count } else { 0 };
            (self.ms, self.count) = (ms, 0);
        }
        self.count = self.count.saturating_add(1);
    }

    /// Of this millisecond or the one before, whichever had more.
    fn per_ms(&self, now_us: u64) -> u32 {
        match (now_us / limits::MS).saturating_sub(self.ms) {
            0 => self.count.max(self.before),
            1 => self.count,
            _ => 0,
        }
    }
}

/// A ready of a group whose records are appended up to a mark.
#[derive(Debug)]
pub(crate) struct Persisting {
    mark: Mark,
    partition: usize,
    number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_writes_follows_them() {
        let mut writes = Writes::default();
        for write in 0..64 {
            writes.begun_us = write * 1000;
            writes.ended(write * 1000 + 120);
        }
        assert!((100..=120).contains(&writes.mean_us), "{}", writes.mean_us);
        for write in 0..64 {
            writes.begun_us = write * 1000;
            writes.ended(write * 1000 + 8);
        }
        assert!(writes.mean_us <= 8, "a quick disk is not waited for: {}", writes.mean_us);
    }
}
