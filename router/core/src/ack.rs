//! Acknowledgements: credit comes back on receipt, the floor rises at commit. They are gathered, for one command carries
//! thousands as cheaply as one.

use whimbrel_wire::{Code, Kind};

use crate::ids::{ConnId, InboxId, InboxSeq};
use crate::io::Effects;
use crate::limits;
use crate::replicate::Origin;
use crate::shard::Shard;

/// Marks in one command at most: well below the size of an entry.
const MARKS_MAX: usize = 4096;

impl Shard {
    pub(crate) fn on_ack(&mut self, fx: &mut Effects, conn: ConnId, floor: u64) {
        let Some(session) = self.session(conn) else { return };
        let floor = InboxSeq(floor);
        let (p, id) = (usize::from(session.partition), session.inbox);
        let inbox = &self.partitions[p].state.inboxes[id.0 as usize];
        if floor > inbox.head() {
            return self.close_with_error(fx, conn, Code::AckAboveHead, Kind::Ack);
        }
        if floor <= inbox.acked {
            return;
        }
        let mut returned = 0;
        for place in inbox.acked.0 + 1..=floor.0 {
            returned += inbox.location(InboxSeq(place)).map_or(0, |location| location.len);
        }
        if let Some(session) = self.session(conn) {
            session.in_flight_bytes = session.in_flight_bytes.saturating_sub(returned);
            // What an older connection was sent counts as well: a device persists it and says so on the next one.
            session.sent = session.sent.max(floor);
        }
        self.acknowledge(p, id, floor);
        self.want_delivery(conn);
    }

    /// Notes that a device has all up to `floor`, to be committed with others.
    pub(crate) fn acknowledge(&mut self, p: usize, id: InboxId, floor: InboxSeq) {
        let partition = &mut self.partitions[p];
        let inbox = &mut partition.state.inboxes[id.0 as usize];
        inbox.acked = floor;
        if !inbox.ack_dirty {
            inbox.ack_dirty = true;
            partition.acks.push(id);
            self.timers.acks_us.get_or_insert(self.now.mono_us + limits::ACK_GATHER_US);
        }
    }

    /// Proposes the acknowledgements received.
    pub(crate) fn commit_acks(&mut self) {
        self.timers.acks_us = None;
        for p in 0..self.partitions.len() {
            let acks = std::mem::take(&mut self.partitions[p].acks);
            for chunk in acks.chunks(MARKS_MAX) {
                let partition = &mut self.partitions[p];
                let marks: Vec<_> = chunk
                    .iter()
                    .map(|id| {
                        let inbox = &mut partition.state.inboxes[id.0 as usize];
                        inbox.ack_dirty = false;
                        (id.0, inbox.acked.0)
                    })
                    .collect();
                let before = partition.gather.len_bytes();
                partition.gather.device_ack(&mut self.commands, &marks);
                self.gathered(p, Origin::Nobody, before);
            }
        }
    }
}
