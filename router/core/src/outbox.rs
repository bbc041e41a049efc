//! The outbox: a chat's places on their way to the partitions that have members, each with a cursor of its own, and the
//! lanes between shards. A full lane is never waited for: fan-out stays at its cursor, answers wait in a bounded backlog.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::{ChatSeq, ShardId};
use crate::io::{Effect, Effects};
use crate::lane::{Confirm, FanOut, LaneItem};
use crate::limits;
use crate::partition::Target;
use crate::repair::Why;
use crate::shard::Shard;

/// A target of a chat: ranks and places in this shard's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TargetRef {
    pub(crate) p: usize,
    pub(crate) chat: usize,
    pub(crate) target: usize,
}

/// What waits for the lanes to other shards, by the number of the shard.
#[derive(Debug)]
pub(crate) struct Lanes {
    backlog: Vec<VecDeque<LaneItem>>,
    blocked: Vec<VecDeque<TargetRef>>,
}

impl Lanes {
    pub(crate) fn new(shards: u16) -> Lanes {
        let each = || (0..shards).map(|_| VecDeque::new()).collect();
        Lanes { backlog: each(), blocked: (0..shards).map(|_| VecDeque::new()).collect() }
    }

    /// Whether the lane takes new work now.
    pub(crate) fn is_open(&self, fx: &Effects, to: ShardId) -> bool {
        let to = usize::from(to.0);
        self.backlog[to].is_empty() && fx.lane_room.get(to).is_some_and(|room| *room > 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.backlog.iter().all(VecDeque::is_empty) && self.blocked.iter().all(VecDeque::is_empty)
    }
}

/// Targets that were sent something, and when to see whether they have it. One queue for each time to wait: who comes into a queue
/// later is due later.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    by_silence: [VecDeque<(u64, TargetRef)>; 1 + limits::OUTBOX_RETRY_DOUBLINGS as usize],
}

impl Watched {
    /// When it is due: the target has to know, for one that answers is put in anew, and what is found of it under another time counts no more.
    fn push(&mut self, now_us: u64, silent: u8, at: TargetRef) -> Option<u64> {
        let due_us = now_us + retry_us(silent);
        self.by_silence[usize::from(silent)].push_back((due_us, at));
        Some(due_us)
    }

    fn pop_due(&mut self, now_us: u64) -> Option<(u64, TargetRef)> {
        let due = |queue: &mut VecDeque<(u64, TargetRef)>| queue.pop_front_if(|(due_us, _)| *due_us <= now_us);
        self.by_silence.iter_mut().find_map(due)
    }

    /// All that are in it, with when they are due.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(u64, TargetRef)> {
        self.by_silence.iter().flatten()
    }

    /// When the first of them is due.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.by_silence.iter().filter_map(VecDeque::front).map(|(due_us, _)| *due_us).min()
    }
}

/// How long a target that was silent so often has to answer.
fn retry_us(silent: u8) -> u64 {
    limits::OUTBOX_RETRY_US << silent
}

impl Shard {
    /// Tells another shard, or this one later in the turn.
    pub(crate) fn tell(&mut self, fx: &mut Effects, to: ShardId, item: LaneItem) {
        if to == self.config.shard {
            self.local.push_back(item);
            return;
        }
        let index = usize::from(to.0);
        if self.lanes.is_open(fx, to) {
            fx.lane_room[index] -= 1;
            fx.list.push(Effect::Lane { to, item });
        } else if self.lanes.backlog[index].len() < self.config.bounds.lane_backlog
            || matches!(item, LaneItem::Answer(_))
        {
            // Answers are kept: a session counts each of its requests until its answer comes, so that there are never more
            // of them than sessions may have unanswered, and one that was dropped would be missing from its count for good.
            self.lanes.backlog[index].push_back(item);
        } else {
            // Whoever waits for it asks again: clients by their request, outboxes by their watch.
            self.counters.lane_dropped += 1;
        }
    }

    /// Uses the room that the lanes have now: first the backlog, then the outboxes that were held up.
    pub(crate) fn refill_lanes(&mut self, fx: &mut Effects) {
        if self.lanes.is_empty() {
            return;
        }
        for index in 0..self.lanes.backlog.len() {
            let to = ShardId(index as u16);
            while fx.lane_room.get(index).is_some_and(|room| *room > 0) {
                let Some(item) = self.lanes.backlog[index].pop_front() else { break };
                fx.lane_room[index] -= 1;
                fx.list.push(Effect::Lane { to, item });
            }
            let held_up = self.lanes.blocked[index].len();
            for _ in 0..held_up {
                if !self.lanes.is_open(fx, to) {
                    break;
                }
                let Some(at) = self.lanes.blocked[index].pop_front() else { break };
                self.partitions[at.p].state.chats[at.chat].targets[at.target].blocked = false;
                self.pump_outbox(fx, at);
            }
        }
    }

    /// A place was applied to a chat. Targets that are up to date get it from memory, the others from the log later.
    pub(crate) fn fan_out(&mut self, fx: &mut Effects, p: usize, chat: usize, command: &Bytes, time_ms: u64) {
        for target in 0..self.partitions[p].state.chats[chat].targets.len() {
            let at = TargetRef { p, chat, target };
            let now_us = self.now.mono_us;
            let it = &mut self.partitions[p].state.chats[chat];
            let place = it.last_seq;
            let cursor = &mut it.targets[target];
            if cursor.silent > 0 {
                let to = self.config.shard_of(cursor.partition);
                let may_ask = to == self.config.shard || self.lanes.is_open(fx, to);
                if may_ask && cursor.progress_us + limits::OUTBOX_RETRY_US <= now_us {
                    cursor.progress_us = now_us;
                    cursor.watched_us = self.watched.push(now_us, cursor.silent, at);
                    self.ask(fx, at);
                }
                continue;
            }
            let next = cursor.sent.0 + 1 == place.0;
            if next && !cursor.blocked && place.0 - cursor.heard.0 <= limits::OUTBOX_WINDOW as u64 {
                self.send_place(fx, at, place, command.clone(), time_ms);
            }
        }
    }

    /// Sends what a target has not been sent, as far as its window and the lane go. How many places that were.
    pub(crate) fn pump_outbox(&mut self, fx: &mut Effects, at: TargetRef) -> usize {
        let mut sent = 0;
        while self.partitions[at.p].repair.is_none() {
            let chat = &self.partitions[at.p].state.chats[at.chat];
            let target = &chat.targets[at.target];
            let place = ChatSeq(target.sent.0 + 1);
            let is_held = target.blocked || target.silent > 0;
            if is_held || place > chat.last_seq || place.0 - target.heard.0 > limits::OUTBOX_WINDOW as u64 {
                return sent;
            }
            let kept = chat.outbox_place(place).expect("what is not confirmed is kept");
            if !self.log.is_warm(kept.command) {
                self.wait_to_fan_out(at, kept.command);
                return sent;
            }
            let command = self.log.read(kept.command);
            let Some(command) = command.filter(|command| self.verifier.command_at(command).is_ok()) else {
                self.begin_repair(fx, at.p, Why::Waiting, self.rot_at(kept.command));
                return sent;
            };
            if !self.send_place(fx, at, place, command, kept.time_ms) {
                return sent;
            }
            sent += 1;
        }
        sent
    }

    fn send_place(&mut self, fx: &mut Effects, at: TargetRef, place: ChatSeq, command: Bytes, time_ms: u64) -> bool {
        let source = self.config.partition_at(at.p);
        let now_us = self.now.mono_us;
        let chat = &mut self.partitions[at.p].state.chats[at.chat];
        let id = chat.id;
        let target = &mut chat.targets[at.target];
        let to = self.config.shard_of(target.partition);
        let here = to == self.config.shard;
        if !here && !self.lanes.is_open(fx, to) {
            target.blocked = true;
            self.lanes.blocked[usize::from(to.0)].push_back(at);
            return false;
        }
        if target.sent == target.heard {
            target.progress_us = now_us;
        }
        target.sent = place;
        if target.watched_us.is_none() {
            target.watched_us = self.watched.push(now_us, 0, at);
        }
        let prev = ChatSeq(place.0 - 1);
        let fan_out = FanOut { source, target: target.partition, chat: id, chat_seq: place, prev, command, time_ms };
        if here {
            self.on_fan_out(fx, &fan_out);
        } else {
            self.tell(fx, to, LaneItem::FanOut(fan_out));
        }
        true
    }

    pub(crate) fn on_confirm(&mut self, fx: &mut Effects, confirm: Confirm) {
        let p = self.rank(confirm.source);
        if self.partitions[p].repair.is_some() {
            return;
        }
        let now_us = self.now.mono_us;
        let state = &mut self.partitions[p].state;
        let Some(chat) = state.chat_index(confirm.chat) else { return };
        let it = &mut state.chats[chat];
        let Some(target) = it.targets.iter().position(|target| target.partition == confirm.target) else { return };
        let at = TargetRef { p, chat, target };
        let last = it.last_seq;
        let cursor = &mut it.targets[target];
        let applied = confirm.applied.min(last);
        if std::mem::take(&mut cursor.silent) > 0 && cursor.watched_us.is_some() {
            // What it is sent now is not waited for as long as it was silent.
            cursor.watched_us = self.watched.push(now_us, 0, at);
        }
        if applied > cursor.heard {
            cursor.heard = applied;
            cursor.sent = cursor.sent.max(applied);
            cursor.progress_us = now_us;
            if !cursor.dirty {
                cursor.dirty = true;
                self.confirms.push(at);
                self.timers.confirms_us.get_or_insert(now_us + limits::CONFIRM_GATHER_US);
            }
        }
        if confirm.rewind && applied >= cursor.heard {
            cursor.sent = cursor.heard;
            self.counters.resent += 1;
        }
        if it.outbox.len() > limits::OUTBOX_MAX / 2 {
            self.timers.confirms_us = Some(now_us);
        }
        self.pump_outbox(fx, at);
    }

    /// Proposes the confirmations heard, one command a partition.
    pub(crate) fn commit_confirms(&mut self) {
        self.timers.confirms_us = None;
        let mut confirms = std::mem::take(&mut self.confirms);
        confirms.sort_unstable_by_key(|at| (at.p, at.chat, at.target));
        let mut marks = Vec::new();
        // A chunk keeps one command well below the size of an entry.
        for group in confirms.chunk_by(|a, b| a.p == b.p).flat_map(|group| group.chunks(2048)) {
            let p = group[0].p;
            marks.clear();
            for at in group {
                let chat = &mut self.partitions[p].state.chats[at.chat];
                let target = &mut chat.targets[at.target];
                target.dirty = false;
                marks.push((chat.id.0, target.partition.0, target.heard.0));
            }
            let partition = &mut self.partitions[p];
            let before = partition.gather.len_bytes();
            partition.gather.outbox_confirm(&mut self.commands, &marks);
            self.gathered(p, crate::replicate::Origin::Nobody, before);
        }
    }

    /// Goes back to what was confirmed where that was long ago: the target refused what it was sent, or the answer was lost. All of
    /// it is sent again once the target says that it takes it: it may be in repair for days, and what waits may be cold.
    pub(crate) fn ask_again(&mut self, fx: &mut Effects) {
        let now_us = self.now.mono_us;
        let (mut looks, mut asked) = (0, 0);
        while looks < limits::WATCHED_LOOKS_MAX
            && asked < limits::QUESTIONS_MAX
            && let Some((due_us, at)) = self.watched.pop_due(now_us)
        {
            looks += 1;
            let is_in_repair = self.partitions[at.p].repair.is_some();
            let target = &mut self.partitions[at.p].state.chats[at.chat].targets[at.target];
            if target.watched_us != Some(due_us) {
                continue;
            }
            if (target.sent == target.heard && target.silent == 0) || is_in_repair {
                // Who is in repair asks nobody.
                (target.watched_us, target.silent) = (None, 0);
                continue;
            }
            let to = self.config.shard_of(target.partition);
            // By a lane that is full nobody is asked, and nobody's answer is missed: it is looked at soon again.
            let may_ask = to == self.config.shard || self.lanes.is_open(fx, to);
            let is_silent = may_ask && target.progress_us + retry_us(target.silent) <= now_us;
            if is_silent {
                target.progress_us = now_us;
                target.sent = target.heard;
                target.silent = (target.silent + 1).min(limits::OUTBOX_RETRY_DOUBLINGS);
            }
            target.watched_us = self.watched.push(now_us, if may_ask { target.silent } else { 0 }, at);
            if is_silent {
                asked += 1;
                self.ask(fx, at);
            }
        }
    }

    /// Asks a target that has not confirmed all whether it would take the next place.
    fn ask(&mut self, fx: &mut Effects, at: TargetRef) {
        self.counters.asked += 1;
        let chat = &self.partitions[at.p].state.chats[at.chat];
        let Target { partition, heard, .. } = chat.targets[at.target];
        let question = FanOut {
            source: self.config.partition_at(at.p),
            target: partition,
            chat: chat.id,
            chat_seq: ChatSeq(heard.0 + 1),
            prev: heard,
            command: Bytes::new(),
            time_ms: 0,
        };
        self.tell(fx, self.config.shard_of(partition), LaneItem::FanOut(question));
    }

    /// A partition begins to serve: what its chats' targets have not confirmed is sent again.
    pub(crate) fn begin_serving(&mut self, fx: &mut Effects, p: usize) {
        for chat in 0..self.partitions[p].state.chats.len() {
            for target in 0..self.partitions[p].state.chats[chat].targets.len() {
                self.pump_outbox(fx, TargetRef { p, chat, target });
            }
        }
    }
}
