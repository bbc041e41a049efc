//! Everything that happens because time passed, and when the next of it is due.

use std::collections::VecDeque;

use crate::ids::ConnId;
use crate::io::Effects;
use crate::limits;
use crate::shard::Shard;

/// When things are due, on the monotone clock.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Raft's tick.
    pub(crate) tick_us: u64,
    /// The oldest acknowledgement received has to be proposed.
    pub(crate) acks_us: Option<u64>,
    /// The oldest confirmation heard has to be proposed.
    pub(crate) confirms_us: Option<u64>,
    /// Connections that have to log in, in the order of their deadlines.
    pub(crate) logins: VecDeque<(u64, ConnId)>,
    /// Connections in the order in which they have to be looked at for their keepalive; a connection that was heard of
    /// since goes to the back with its new deadline.
    pub(crate) keepalives: VecDeque<(u64, ConnId)>,
    /// Connections to which something was sent, in the order in which it is looked whether that was taken.
    pub(crate) ages: VecDeque<(u64, ConnId)>,
}

impl Shard {
    pub(crate) fn on_timeout(&mut self, fx: &mut Effects) {
        let now_us = self.now.mono_us;
        if now_us >= self.timers.tick_us {
            self.timers.tick_us = now_us + limits::RAFT_TICK_US;
            for p in 0..self.partitions.len() {
                if self.partitions[p].repair.is_none() && self.partitions[p].group.tick() {
                    self.mark_dirty(p);
                }
            }
            // What was released since the last checkpoint may be all that kept a segment.
            self.retire();
            self.scrub(fx);
            self.forget_stale_creations(fx);
            self.say_no_space(fx);
        }
        if self.stopping || self.timers.acks_us.is_some_and(|due| now_us >= due) {
            self.commit_acks();
        }
        if !self.stopping && self.timers.confirms_us.is_some_and(|due| now_us >= due) {
            self.commit_confirms();
        }
        self.close_silent(fx);
        self.close_stuck(fx);
    }

    pub(crate) fn next_wake_us(&self) -> u64 {
        let mut due = self.timers.tick_us;
        let queues = [self.timers.logins.front(), self.timers.keepalives.front(), self.timers.ages.front()];
        let firsts = queues.into_iter().flatten().map(|(due, _)| *due);
        // A node that stops leaves them: it would be woken for them for ever.
        let confirms_us = self.timers.confirms_us.filter(|_| !self.stopping);
        for other in firsts.chain(self.watched.next_due_us()).chain(self.timers.acks_us).chain(confirms_us) {
            due = due.min(other);
        }
        if self.gathered_bytes > 0 && !self.log.is_writing() {
            // What `may_propose` waits for. In the past: something else is waited for, and brings its own input.
            let end_us = self.gathering_since_us + limits::BUSY_GATHER_US.max(limits::LANE_GATHER_US);
            if end_us > self.now.mono_us {
                due = due.min(end_us);
            }
        }
        for at_us in [self.checkpoint_wake_us(), self.empty_due_us()].into_iter().flatten() {
            due = due.min(at_us);
        }
        if !self.to_deliver.is_empty() || self.cold.is_ready() {
            due = self.now.mono_us;
        }
        if !self.lanes.is_empty() {
            due = due.min(self.now.mono_us + limits::MS);
        }
        due
    }
}
