//! Sends without an answer: their numbers, their order within a chat, and which of them are on the wire.
//!
//! A send names the one before it in its chat (`prev`), and a node takes it only after that one. So when one is refused for
//! now, those behind it are too: the chat goes back to its first unanswered send once the answers to all that are on the
//! wire are there. `prev` is worked out anew at each transmission, for the send before may have been refused for good since.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::event::{SendError, SendNumber};

/// Sends that may wait in a session.
const QUEUED_MAX: usize = 4_096;

/// Payload bytes that may wait in a session.
const QUEUED_MAX_BYTES: usize = 16 << 20;

/// Waiting time where the node names none.
pub(crate) const RETRY_AFTER_MS: u64 = 100;

/// What [`Sends::begin`] tells about a send that goes out.
pub(crate) struct Outgoing<'a> {
    pub(crate) prev: u64,
    pub(crate) payload: &'a [u8],
}

/// All unanswered sends of a session.
#[derive(Debug)]
pub(crate) struct Sends {
    chats: BTreeMap<u128, Chat>,
    /// Number and chat of those that are not on the wire.
    waiting: BTreeSet<(u64, u128)>,
    /// Above every number of this device that is known.
    next: u64,
    count: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Chat {
    /// `prev` of the first unanswered send: the last one that is known to be stored, or 0.
    base: u64,
    /// Unanswered, in the order of their numbers, all above `base`.
    queue: VecDeque<Queued>,
    on_wire: usize,
    /// Nothing goes out until all that is on the wire is answered.
    going_back: bool,
    not_before_ms: u64,
}

#[derive(Debug)]
struct Queued {
    client_seq: u64,
    payload: Vec<u8>,
    /// What it named as the one before it when it last went out.
    prev: u64,
    /// Correlation of the transmission whose answer counts, while it is on the wire.
    wire: Option<u64>,
}

impl Sends {
    pub(crate) fn new(next: u64) -> Sends {
        Sends { chats: BTreeMap::new(), waiting: BTreeSet::new(), next: next.max(1), count: 0, bytes: 0 }
    }

    /// Above every number of this device that is known.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Unanswered.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The node has said what it has of this device in a chat.
    pub(crate) fn learn(&mut self, chat: u128, last_client_seq: u64) {
        let entry = self.chats.entry(chat).or_default();
        if entry.queue.is_empty() {
            entry.base = entry.base.max(last_client_seq);
        }
        self.next = self.next.max(last_client_seq.saturating_add(1));
    }

    /// Takes a new message.
    pub(crate) fn push(&mut self, chat: u128, payload: &[u8]) -> Result<SendNumber, SendError> {
        let prev = self.chats.get(&chat).ok_or(SendError::ChatNotKnown)?.tail();
        let number = SendNumber { client_seq: self.next, prev };
        self.enqueue(chat, number.client_seq, payload)?;
        Ok(number)
    }

    /// Takes a message that an earlier session of this device has given its numbers.
    pub(crate) fn resume(&mut self, chat: u128, number: SendNumber, payload: &[u8]) -> Result<(), SendError> {
        let SendNumber { client_seq, prev } = number;
        let behind = self.chats.get(&chat).and_then(|known| known.queue.back()).map_or(0, |last| last.client_seq);
        if client_seq <= prev || client_seq <= behind || client_seq == u64::MAX {
            return Err(SendError::BadNumber { client_seq, prev });
        }
        self.enqueue(chat, client_seq, payload)?;
        let known = self.chats.entry(chat).or_default();
        if known.queue.len() == 1 {
            known.base = prev;
        }
        Ok(())
    }

    fn enqueue(&mut self, chat: u128, client_seq: u64, payload: &[u8]) -> Result<(), SendError> {
        if self.count == QUEUED_MAX || self.bytes + payload.len() > QUEUED_MAX_BYTES {
            return Err(SendError::QueueFull);
        }
        let queued = Queued { client_seq, payload: payload.to_vec(), prev: 0, wire: None };
        self.chats.entry(chat).or_default().queue.push_back(queued);
        self.waiting.insert((client_seq, chat));
        self.next = self.next.max(client_seq + 1);
        self.count += 1;
        self.bytes += payload.len();
        Ok(())
    }

    /// A send that may go out now: chat and number.
    pub(crate) fn ready(&self, now_ms: u64) -> Option<(u128, u64)> {
        let mut waiting = self.waiting.iter().map(|&(client_seq, chat)| (chat, client_seq));
        waiting.find(|(chat, _)| self.chats.get(chat).is_some_and(|known| known.may_send(now_ms)))
    }

    /// When a chat that waits may send again, if none may now.
    pub(crate) fn ready_at(&self) -> Option<u64> {
        let chats = self.waiting.iter().filter_map(|(_, chat)| self.chats.get(chat));
        chats.filter(|known| !known.held()).map(|known| known.not_before_ms).min()
    }

    /// Puts a send on the wire under a correlation.
    pub(crate) fn begin(&mut self, chat: u128, client_seq: u64, correlation: u64) -> Option<Outgoing<'_>> {
        let known = self.chats.get_mut(&chat)?;
        let index = known.find(client_seq)?;
        self.waiting.remove(&(client_seq, chat));
        let prev = if index == 0 { known.base } else { known.queue[index - 1].client_seq };
        let queued = &mut known.queue[index];
        queued.prev = prev;
        if queued.wire.replace(correlation).is_none() {
            known.on_wire += 1;
        }
        Some(Outgoing { prev, payload: &known.queue[index].payload })
    }

    /// A send is stored. `None` if that was known; else the correlation that it is on the wire with, if it is.
    pub(crate) fn stored(&mut self, chat: u128, client_seq: u64) -> Option<Option<u64>> {
        let index = self.chats.get(&chat)?.find(client_seq)?;
        let wire = self.remove(chat, index);
        if index == 0
            && let Some(known) = self.chats.get_mut(&chat)
        {
            known.base = known.base.max(client_seq);
        }
        Some(wire)
    }

    /// A send is refused for good. False if it is not the transmission whose answer counts.
    pub(crate) fn refused(&mut self, chat: u128, client_seq: u64, correlation: u64) -> bool {
        let Some(index) = self.counts(chat, client_seq, correlation) else { return false };
        self.remove(chat, index);
        true
    }

    /// A send has to go out again: the node asks for that, or its answer is overdue.
    pub(crate) fn again(&mut self, chat: u128, client_seq: u64, correlation: u64, not_before_ms: u64) {
        let Some(index) = self.counts(chat, client_seq, correlation) else { return };
        let Some(known) = self.chats.get_mut(&chat) else { return };
        known.queue[index].wire = None;
        known.on_wire -= 1;
        known.going_back = known.on_wire > 0;
        known.not_before_ms = known.not_before_ms.max(not_before_ms);
        self.waiting.insert((client_seq, chat));
    }

    /// The node misses the send before this one. If it named the base, then that was never stored and never will be, for
    /// nobody sends it any more.
    pub(crate) fn out_of_order(&mut self, chat: u128, client_seq: u64, correlation: u64) {
        if self.counts(chat, client_seq, correlation) == Some(0)
            && let Some(known) = self.chats.get_mut(&chat)
            && known.queue[0].prev == known.base
        {
            known.base = 0;
        }
    }

    /// The connection is gone, and with it all answers.
    pub(crate) fn disconnected(&mut self) {
        for (chat, known) in &mut self.chats {
            known.on_wire = 0;
            known.going_back = false;
            known.not_before_ms = 0;
            for queued in &mut known.queue {
                queued.wire = None;
                self.waiting.insert((queued.client_seq, *chat));
            }
        }
    }

    /// Index in its chat of a send, if this is the transmission whose answer counts.
    fn counts(&self, chat: u128, client_seq: u64, correlation: u64) -> Option<usize> {
        let known = self.chats.get(&chat)?;
        known.find(client_seq).filter(|index| known.queue[*index].wire == Some(correlation))
    }

    fn remove(&mut self, chat: u128, index: usize) -> Option<u64> {
        let known = self.chats.get_mut(&chat)?;
        let queued = known.queue.remove(index)?;
        if queued.wire.is_some() {
            known.on_wire -= 1;
            known.going_back &= known.on_wire > 0;
        }
        self.waiting.remove(&(queued.client_seq, chat));
        self.count -= 1;
        self.bytes -= queued.payload.len();
        queued.wire
    }
}

impl Chat {
    fn tail(&self) -> u64 {
        self.queue.back().map_or(self.base, |last| last.client_seq)
    }

    fn find(&self, client_seq: u64) -> Option<usize> {
        self.queue.binary_search_by_key(&client_seq, |queued| queued.client_seq).ok()
    }

    fn held(&self) -> bool {
        self.going_back && self.on_wire > 0
    }

    fn may_send(&self, now_ms: u64) -> bool {
        !self.held() && self.not_before_ms <= now_ms
    }
}
