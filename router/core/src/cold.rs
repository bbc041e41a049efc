//! What is not in memory: its segment is read in off the core, and whoever waits for it looks again.

use std::collections::{BTreeMap, VecDeque};

use whimbrel_storage::{Checked, Location, SegmentId};

use crate::ids::ConnId;
use crate::io::{Effect, Effects};
use crate::limits;
use crate::outbox::TargetRef;
use crate::shard::Shard;

/// Who waits for segments to be read in.
#[derive(Debug, Default)]
pub(crate) struct ColdReads {
    /// Those that were asked for.
    asked: BTreeMap<SegmentId, Waiting>,
    /// Of them those that are not being read yet. Never more than [`limits::READ_INS_MAX`] are, and none is begun while some have not
    /// looked who waited for the last: what they wait for would have left memory again.
    later: VecDeque<SegmentId>,
    /// Those that are.
    reading: Vec<SegmentId>,
    /// Targets of chats whose segment is there.
    ready: VecDeque<TargetRef>,
    /// So many of those to deliver to, from the first on, have to look before anything else is read in: among them is whoever waited for the
    /// last.
    looking: usize,
}

/// For one segment.
#[derive(Debug, Default)]
struct Waiting {
    conns: Vec<ConnId>,
    targets: Vec<TargetRef>,
}

impl ColdReads {
    /// Whether a turn is wanted.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// So many connections have looked, of those to deliver to.
    pub(crate) fn looked(&mut self, conns: usize) {
        self.looking = self.looking.saturating_sub(conns);
    }

    /// How many targets wait, or are to look again.
    pub(crate) fn targets(&self) -> usize {
        self.asked.values().map(|waiting| waiting.targets.len()).sum::<usize>() + self.ready.len()
    }

    /// Connections that wait, those included that are closed.
    pub(crate) fn conns(&self) -> impl Iterator<Item = &ConnId> {
        self.asked.values().flat_map(|waiting| &waiting.conns)
    }
}

impl Shard {
    /// Whoever waits for what is in this segment, which is read in if nobody did yet.
    fn asked_for(&mut self, segment: SegmentId) -> &mut Waiting {
        let ColdReads { asked, later, .. } = &mut self.cold;
        asked.entry(segment).or_insert_with(|| {
            later.push_back(segment);
            Waiting::default()
        })
    }

    /// Has those read in that may be now: at the end of a turn, when who could look has looked.
    pub(crate) fn read_in_next(&mut self, fx: &mut Effects) {
        while self.cold.ready.is_empty()
            && self.cold.looking == 0
            && self.cold.reading.len() < limits::READ_INS_MAX
            && let Some(segment) = self.cold.later.pop_front()
        {
            match (self.log.mapping(segment), self.log.segment_is(segment)) {
                (Some(mapping), Some(is)) => {
                    self.cold.reading.push(segment);
                    fx.list.push(Effect::ReadIn { is, mapping });
                }
                // What waited there was moved, and the segment let go.
                _ => self.look_again(segment),
            }
        }
    }

    /// Whoever waits for a segment looks again, soon.
    fn look_again(&mut self, segment: SegmentId) {
        let Some(Waiting { conns, targets }) = self.cold.asked.remove(&segment) else { return };
        for conn in conns {
            if let Some(it) = self.conn(conn) {
                it.waits_for_segment = false;
                self.want_delivery(conn);
                self.cold.looking = self.to_deliver.len();
            }
        }
        self.cold.ready.extend(targets);
    }

    /// A connection looks again when this can be delivered.
    pub(crate) fn wait_to_deliver(&mut self, conn: ConnId, location: Location) {
        if let Some(it) = self.conn(conn)
            && !std::mem::replace(&mut it.waits_for_segment, true)
        {
            self.asked_for(location.segment).conns.push(conn);
        }
    }

    /// A target looks again when this can be sent to it.
    pub(crate) fn wait_to_fan_out(&mut self, at: TargetRef, location: Location) {
        let target = &mut self.partitions[at.p].state.chats[at.chat].targets[at.target];
        if !std::mem::replace(&mut target.cold, true) {
            self.asked_for(location.segment).targets.push(at);
        }
    }

    pub(crate) fn on_read_in(&mut self, fx: &mut Effects, checked: Checked) {
        let (segment, end) = (checked.segment, checked.end);
        // What is lost is known before anybody looks.
        self.learn(fx, checked);
        self.log.warmed(segment, end);
        self.cold.reading.retain(|it| *it != segment);
        self.look_again(segment);
    }

    /// Sends to targets whose segment is there: after a start that may be many at once, of which no turn takes more than a few.
    pub(crate) fn fan_out_ready(&mut self, fx: &mut Effects) {
        let mut places = 0;
        while places < limits::READY_PLACES_MAX
            && let Some(at) = self.cold.ready.pop_front()
        {
            self.partitions[at.p].state.chats[at.chat].targets[at.target].cold = false;
            // One that finds nothing to do was looked at all the same.
            places += 1 + self.pump_outbox(fx, at);
        }
    }
}
