//! Delivery: what waits in an inbox goes to the device's newest connection, in order, within its credit, straight from the
//! log's bytes. Once a turn, so that all that a turn made deliverable leaves in one write a connection.

use bytes::Bytes;
use whimbrel_wire::command::Command;
use whimbrel_wire::{DeliverFields, Payload, fb, fb_log};

use crate::conn::Stage;
use crate::ids::{ConnId, InboxSeq};
use crate::io::{Effect, Effects};
use crate::limits;
use crate::repair::Why;
use crate::shard::Shard;

impl Shard {
    /// Looks at a connection at the end of the turn.
    pub(crate) fn want_delivery(&mut self, conn: ConnId) {
        if let Some(it) = self.conn(conn)
            && !it.to_deliver
        {
            it.to_deliver = true;
            self.to_deliver.push(conn);
        }
    }

    pub(crate) fn deliver_all(&mut self, fx: &mut Effects) {
        let mut list = std::mem::take(&mut self.to_deliver);
        let mut seen = 0;
        for &conn in &list {
            if fx.bytes.len() >= limits::TURN_BYTES_MAX {
                break;
            }
            seen += 1;
            if let Some(it) = self.conn(conn) {
                it.to_deliver = false;
                while self.deliver_next(fx, conn) {}
            }
        }
        self.cold.looked(seen);
        // The others in the next turn, which comes at once.
        list.drain(..seen);
        list.append(&mut self.to_deliver);
        self.to_deliver = list;
    }

    /// Delivers the next message of a connection's inbox, if there is one and credit for it.
    fn deliver_next(&mut self, fx: &mut Effects, conn: ConnId) -> bool {
        let bounds = self.config.bounds;
        let Some(it) = self.conns.get_mut(conn.slot as usize).and_then(Option::as_mut) else { return false };
        let Stage::Open(session) = &mut it.stage else { return false };
        // The rest of the queue is for answers.
        if it.queued_bytes > (bounds.queue_max_bytes / 2).min(limits::DELIVERIES_QUEUED_BYTES) {
            return false;
        }
        let inbox = &self.partitions[usize::from(session.partition)].state.inboxes[session.inbox.0 as usize];
        let place = InboxSeq(session.sent.0 + 1);
        let Some(location) = inbox.location(place) else { return false };
        let in_flight = session.sent.0 - inbox.acked.0;
        if in_flight >= u64::from(bounds.credit_messages)
            || (in_flight > 0 && session.in_flight_bytes + location.len > bounds.credit_bytes)
        {
            return false;
        }
        if !self.log.is_warm(location) {
            self.wait_to_deliver(conn, location);
            return false;
        }
        let Some(command) = self.log.read(location) else {
            let (p, rot) = (usize::from(session.partition), self.rot_at(location));
            self.begin_repair(fx, p, Why::Waiting, rot);
            return false;
        };
        let Ok(Command::FanOut(record, payload)) = self.verifier.command_at(&command) else {
            // It was one when it was written: a page that had left memory has come back as another.
            let (p, rot) = (usize::from(session.partition), self.rot_at(location));
            self.begin_repair(fx, p, Why::Waiting, rot);
            return false;
        };
        session.sent = place;
        session.in_flight_bytes += location.len;
        let apart = payload.len() > limits::COPY_PAYLOAD_MAX_BYTES;
        let start = fx.bytes.len();
        let tail = if apart { Payload::Apart } else { Payload::Inline };
        write(&mut self.frames, &mut fx.bytes, place, &record, payload, tail);
        let head = start..fx.bytes.len();
        it.queued_bytes += (head.len() + if apart { payload.len() } else { 0 }) as u32;
        let list = it.ages.begin();
        let payload: Option<Bytes> = apart.then(|| command.slice_ref(payload));
        fx.list.push(Effect::Send { conn, head, payload });
        self.counters.delivered += 1;
        if list {
            self.list_age(conn);
        }
        true
    }
}

fn write(
    frames: &mut whimbrel_wire::Builder,
    out: &mut Vec<u8>,
    place: InboxSeq,
    record: &fb_log::FanOut<'_>,
    payload: &[u8],
    tail: Payload,
) {
    let members: Vec<&str> = match record.event() {
        fb::Event::Message => Vec::new(),
        _ => record.members().map_or(Vec::new(), |members| members.iter().collect()),
    };
    let fields = DeliverFields {
        inbox_seq: place.0,
        chat: whimbrel_wire::chat_id(record.chat()),
        chat_seq: record.chat_seq(),
        time_ms: record.time_ms(),
        sender: record.sender(),
        sender_device: record.sender_device(),
        event: record.event(),
        members: &members,
        title: record.title().unwrap_or(""),
    };
    frames.deliver(out, &fields, payload, tail);
}
