//! A shard's sockets: who is open, what waits to be sent, and how each of them ends. It lives on the shard's core.
//!
//! The name of a connection is its slot in the ring's table of descriptors, which the kernel chooses, and a generation. A slot
//! is closed, and so can come again, only when nothing is in flight on it; no completion is ever late for another connection.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use bytes::Bytes;
use whimbrel_core::ids::ConnId;

use super::queue::{QueuePool, SendQueue};
use super::ring::Ring;

/// How long a connection that closes may take to read what was sent to it, and to close its end.
const LINGER_US: u64 = 2_000_000;

/// What happens to a connection while effects are carried out; the shard is told with its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The shard's [`Input::Disconnected`](whimbrel_core::Input::Disconnected).
    Disconnected(ConnId),
    /// The shard's [`Input::Detached`](whimbrel_core::Input::Detached).
    Detached(ConnId),
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The slot has no socket.
    #[default]
    Free,
    /// Both ways are open.
    Open,
    /// It will move: no more is received, and what was sent is being written.
    Detaching,
    /// It may move now.
    Detached,
    /// Its descriptor is on the way to another ring.
    Moving,
    /// What was sent is being written; then it ends. What is received is thrown away.
    Closing,
    /// Whatever is in flight is being cancelled.
    Ending,
}

/// One slot. Small, for there is one for each idle connection.
#[derive(Debug, Default)]
struct Conn {
    /// Sent after what is in flight.
    queue: Option<Box<SendQueue>>,
    generation: u32,
    phase: Phase,
    /// A receive is armed.
    receiving: bool,
    /// A send is in flight.
    sending: bool,
    /// It stands in `dirty`.
    dirty: bool,
    /// The shard knows that it is gone, or will with the next turn.
    told: bool,
    /// The peer was told that nothing more will come, or is being told.
    shut: bool,
    /// The telling is in flight. A kernel's thread does it and looks for the slot's socket then: it must still be this one.
    shutting: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Conns {
    slots: Vec<Conn>,
    /// Sockets that are there, in whatever phase.
    open: usize,
    /// Slots with something to send.
    dirty: Vec<u32>,
    /// Slots whose receive ended since all buffers were in use.
    starved: Vec<u32>,
    /// Slots whose stream ended in this turn.
    ended: Vec<u32>,
    /// Connections that close, each with the time at which its patience ends. All have the same patience, so it is in order.
    lingering: VecDeque<(u64, ConnId)>,
    pool: QueuePool,
    /// For the shard.
    pub(super) news: VecDeque<News>,
}

impl Conns {
    /// A socket came into a slot. Its receive is armed.
    pub(super) fn open(&mut self, slot: u32, ring: &mut Ring) -> ConnId {
        let index = slot as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Conn::default);
        }
        let conn = &mut self.slots[index];
        assert_eq!(conn.phase, Phase::Free, "the kernel gives a slot anew only when it was closed");
        *conn = Conn { generation: conn.generation + 1, phase: Phase::Open, receiving: true, ..Conn::default() };
        self.open += 1;
        ring.receive(slot);
        ConnId { slot, generation: conn.generation }
    }

    /// How many sockets are there.
    pub(super) fn open_count(&self) -> usize {
        self.open
    }

    /// When the patience with a connection that closes ends next.
    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        self.lingering.front().map(|(deadline_us, _)| *deadline_us)
    }

    /// Bytes came on a slot: for whom, if anybody wants them. Without `more` the receive is over.
    #[inline]
    pub(super) fn received(&mut self, slot: u32, more: bool, ring: &mut Ring) -> Option<ConnId> {
        let conn = &mut self.slots[slot as usize];
        let id = ConnId { slot, generation: conn.generation };
        let wanted = matches!(conn.phase, Phase::Open | Phase::Detaching);
        if !more {
            conn.receiving = false;
            if matches!(conn.phase, Phase::Open | Phase::Closing) {
                conn.receiving = true;
                ring.receive(slot);
            } else {
                self.settle(slot, ring);
            }
        }
        wanted.then_some(id)
    }

    /// A receive ended: 0 is the peer's end of the stream.
    pub(super) fn receive_ended(&mut self, slot: u32, errno: i32, now_us: u64, ring: &mut Ring) {
        let conn = &mut self.slots[slot as usize];
        conn.receiving = false;
        match (errno, conn.phase) {
            (libc::ENOBUFS, Phase::Open | Phase::Closing) => self.starved.push(slot),
            (0, Phase::Open | Phase::Detaching) => {
                // The other way may still be open: what the shard said in this turn is written before the socket is closed.
                self.tell_gone(slot);
                self.linger(slot, now_us);
                self.ended.push(slot);
            }
            (0 | libc::ECANCELED | libc::ENOBUFS, _) => self.settle(slot, ring),
            (_, Phase::Ending) => self.settle(slot, ring),
            _ => self.end(slot, ring),
        }
    }

    /// A send completed: for whom it took how many bytes, if the shard still asks.
    #[inline]
    pub(super) fn sent(
        &mut self,
        slot: u32,
        mut queue: Box<SendQueue>,
        result: Result<u32, i32>,
        ring: &mut Ring,
    ) -> Option<(ConnId, u32)> {
        let conn = &mut self.slots[slot as usize];
        conn.sending = false;
        let id = ConnId { slot, generation: conn.generation };
        let Some(bytes) = result.ok().filter(|&bytes| bytes > 0) else {
            self.pool.put(queue);
            if conn.phase == Phase::Ending {
                self.settle(slot, ring);
            } else {
                self.end(slot, ring);
            }
            return None;
        };
        queue.advance(bytes as usize);
        let told = conn.told;
        if queue.left() > 0 && conn.phase != Phase::Ending {
            if let Some(mut behind) = conn.queue.take() {
                queue.append(&mut behind);
                self.pool.put(behind);
            }
            conn.queue = Some(queue);
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push(slot);
            }
        } else {
            self.pool.put(queue);
            if conn.queue.is_some() && !conn.dirty {
                // Put there meanwhile, and passed over by a flush: nothing else may ever look at it again.
                conn.dirty = true;
                self.dirty.push(slot);
            }
            if conn.phase != Phase::Open {
                self.settle(slot, ring);
            }
        }
        (!told).then_some((id, bytes))
    }

    /// The peer was told that nothing more will come; or it was gone already, which does not matter.
    pub(super) fn was_shut(&mut self, slot: u32, ring: &mut Ring) {
        self.slots[slot as usize].shutting = false;
        self.settle(slot, ring);
    }

    /// [`Effect::Send`](whimbrel_core::Effect::Send).
    #[inline]
    pub(super) fn send(&mut self, id: ConnId, head: &[u8], payload: Option<Bytes>) {
        let Some(conn) = self.get(id) else { return };
        if conn.shut || !matches!(conn.phase, Phase::Open | Phase::Detaching | Phase::Closing) {
            return;
        }
        if conn.queue.is_none() {
            let queue = self.pool.take();
            self.slots[id.slot as usize].queue = Some(queue);
        }
        let conn = &mut self.slots[id.slot as usize];
        conn.queue.as_mut().expect("it was put there just now").push(head, payload);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id.slot);
        }
    }

    /// [`Effect::Close`](whimbrel_core::Effect::Close).
    pub(super) fn close(&mut self, id: ConnId, now_us: u64, ring: &mut Ring) {
        let Some(conn) = self.get(id) else { return };
        if matches!(conn.phase, Phase::Open | Phase::Detaching | Phase::Detached) {
            self.linger(id.slot, now_us);
            self.settle(id.slot, ring);
        }
    }

    /// [`Effect::Detach`](whimbrel_core::Effect::Detach).
    pub(super) fn detach(&mut self, id: ConnId, ring: &mut Ring) {
        let Some(conn) = self.get(id) else { return };
        if conn.phase == Phase::Open {
            conn.phase = Phase::Detaching;
            if conn.receiving {
                ring.cancel_receive(id.slot);
            }
            self.settle(id.slot, ring);
        }
    }

    /// [`Effect::Move`](whimbrel_core::Effect::Move): whether the connection is there and quiet. Its end is
    /// [`Conns::moved`].
    pub(super) fn begin_move(&mut self, id: ConnId) -> bool {
        match self.get(id) {
            Some(conn) if conn.phase == Phase::Detached => {
                conn.phase = Phase::Moving;
                true
            }
            _ => false,
        }
    }

    /// The descriptor is in the other ring, or the move failed: either way this ring's is closed.
    pub(super) fn moved(&mut self, slot: u32, ring: &mut Ring) {
        self.free(slot, ring);
    }

    /// Gives up on connections whose time to close is over.
    pub(super) fn expire(&mut self, now_us: u64, ring: &mut Ring) {
        while let Some(&(deadline_us, id)) = self.lingering.front() {
            if deadline_us > now_us {
                return;
            }
            self.lingering.pop_front();
            if self.get(id).is_some_and(|conn| conn.phase == Phase::Closing) {
                self.end(id.slot, ring);
            }
        }
    }

    /// One send for each connection that has something to send and none in flight, and new receives where buffers were
    /// lacking.
    pub(super) fn flush(&mut self, ring: &mut Ring) {
        while let Some(slot) = self.ended.pop() {
            self.settle(slot, ring);
        }
        for slot in self.dirty.drain(..) {
            let conn = &mut self.slots[slot as usize];
            conn.dirty = false;
            if conn.sending {
                // Its completion finds the queue.
                continue;
            }
            if let Some(queue) = conn.queue.take() {
                conn.sending = true;
                ring.send(slot, queue);
            }
        }
        for slot in self.starved.drain(..) {
            let conn = &mut self.slots[slot as usize];
            if !conn.receiving && matches!(conn.phase, Phase::Open | Phase::Closing) {
                conn.receiving = true;
                ring.receive(slot);
            }
        }
    }

    #[inline]
    fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.slots.get_mut(id.slot as usize)?;
        (conn.generation == id.generation && conn.phase != Phase::Free).then_some(conn)
    }

    fn linger(&mut self, slot: u32, now_us: u64) {
        let conn = &mut self.slots[slot as usize];
        conn.phase = Phase::Closing;
        let id = ConnId { slot, generation: conn.generation };
        self.lingering.push_back((now_us + LINGER_US, id));
    }

    /// Whoever is still in flight is cancelled; what waits is thrown away.
    fn end(&mut self, slot: u32, ring: &mut Ring) {
        self.tell_gone(slot);
        let conn = &mut self.slots[slot as usize];
        conn.phase = Phase::Ending;
        if conn.receiving {
            ring.cancel_receive(slot);
        }
        if conn.sending {
            ring.cancel_send(slot);
        }
        if let Some(queue) = conn.queue.take() {
            self.pool.put(queue);
        }
        self.settle(slot, ring);
    }

    fn tell_gone(&mut self, slot: u32) {
        let conn = &mut self.slots[slot as usize];
        if !conn.told {
            conn.told = true;
            self.news.push_back(News::Disconnected(ConnId { slot, generation: conn.generation }));
        }
    }

    /// Takes the next step of a connection that detaches or ends, if nothing stands in its way.
    fn settle(&mut self, slot: u32, ring: &mut Ring) {
        let conn = &mut self.slots[slot as usize];
        let written = !conn.sending && conn.queue.is_none();
        match conn.phase {
            Phase::Detaching if written && !conn.receiving => {
                conn.phase = Phase::Detached;
                self.news.push_back(News::Detached(ConnId { slot, generation: conn.generation }));
            }
            Phase::Closing if written => {
                let receiving = conn.receiving;
                if receiving && !conn.shut {
                    // A socket that is closed with bytes unread tells its peer to forget what it has not read yet. So the
                    // peer is told the end, and has its time to close its own.
                    conn.shut = true;
                    conn.shutting = true;
                    ring.shutdown(slot);
                }
                let free = !receiving && !conn.shutting;
                self.tell_gone(slot);
                if free {
                    self.free(slot, ring);
                }
            }
            Phase::Ending if !conn.receiving && !conn.sending && !conn.shutting => self.free(slot, ring),
            Phase::Free
            | Phase::Open
            | Phase::Detaching
            | Phase::Detached
            | Phase::Moving
            | Phase::Closing
            | Phase::Ending => {}
        }
    }

    fn free(&mut self, slot: u32, ring: &mut Ring) {
        let conn = &mut self.slots[slot as usize];
        assert!(!conn.receiving && !conn.sending && !conn.shutting, "nothing is in flight on a slot that is closed");
        conn.phase = Phase::Free;
        if let Some(queue) = conn.queue.take() {
            self.pool.put(queue);
        }
        self.open -= 1;
        ring.close(slot);
    }
}
