//! What the devices sent, what the server said about it, and what they were given; and whether that is what was promised.
//! Nothing here comes from the server's own account of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::rng::Rng;

/// A message; its payload begins with it.
pub(crate) type MessageId = u32;

/// Index of a device.
pub(crate) type DeviceId = usize;

/// Bytes of a payload before the ones that chance gives.
const HEAD_BYTES: usize = 4;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something acknowledged, or delivered, is gone.
    Lost,
    /// Something came twice.
    Duplicated,
    /// Something came in another order, or another place, than it has.
    Reordered,
    /// Something came that nobody sent, or to whom it is not for.
    Wrong,
    /// The server refused what it has to take.
    Refused,
    /// The server does not start on what a cut left.
    NoStart,
    /// The server ended, or let a device down, by itself.
    Ended,
    /// The server wrote on in a log of which a write had failed.
    WentOn,
    /// Something takes too long.
    Stuck,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

/// A place of an inbox, as it was given to a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    pub(crate) inbox_seq: u64,
    pub(crate) chat: u128,
    pub(crate) chat_seq: u64,
    /// `None` for what is no message, such as the making of a chat.
    pub(crate) payload: Option<&'a [u8]>,
}

#[derive(Debug)]
struct Sent {
    from: DeviceId,
    client_seq: u64,
    chat: u128,
    recipients: BTreeSet<DeviceId>,
    acknowledged: bool,
    missing: BTreeSet<DeviceId>,
}

/// What a device has had.
#[derive(Debug, Default)]
struct Had {
    head: u64,
    /// Newest place of each chat.
    chats: BTreeMap<u128, u64>,
    /// Newest message of each sender in each chat.
    senders: BTreeMap<(u128, DeviceId), MessageId>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    sent: BTreeMap<MessageId, Sent>,
    by_number: BTreeMap<(DeviceId, u64), MessageId>,
    had: Vec<Had>,
    /// What is in each place of each chat, by whoever knows.
    places: BTreeMap<(u128, u64), Option<MessageId>>,
    /// Places that were given to devices.
    pub(crate) given: u64,
    /// Messages acknowledged.
    pub(crate) acknowledged: u64,
}

impl Kind {
    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Duplicated => "duplicated",
            Kind::Reordered => "reordered",
            Kind::Wrong => "wrong",
            Kind::Refused => "refused",
            Kind::NoStart => "no start",
            Kind::Ended => "ended",
            Kind::WentOn => "went on",
            Kind::Stuck => "stuck",
        }
    }
}

impl Finding {
    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Finding {
        Finding { kind, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.what)
    }
}

impl std::error::Error for Finding {}

impl Ledger {
    pub(crate) fn new(seed: u64, devices: usize) -> Ledger {
        Ledger {
            seed,
            sent: BTreeMap::new(),
            by_number: BTreeMap::new(),
            had: (0..devices).map(|_| Had::default()).collect(),
            places: BTreeMap::new(),
            given: 0,
            acknowledged: 0,
        }
    }

    /// The payload of the next message, with so many bytes or a few more.
    pub(crate) fn next_payload(&self, bytes: usize) -> Vec<u8> {
        payload(self.seed, self.sent.len() as MessageId + 1, bytes)
    }

    /// The message of [`Ledger::next_payload`] was given to a session.
    pub(crate) fn send(
        &mut self,
        from: DeviceId,
        client_seq: u64,
        chat: u128,
        recipients: BTreeSet<DeviceId>,
    ) -> MessageId {
        let id = self.sent.len() as MessageId + 1;
        let missing = recipients.clone();
        self.sent.insert(id, Sent { from, client_seq, chat, recipients, acknowledged: false, missing });
        self.by_number.insert((from, client_seq), id);
        id
    }

    /// The server said that a message is stored, and where unless that is 0.
    pub(crate) fn acknowledge(&mut self, from: DeviceId, client_seq: u64, chat_seq: u64) -> Result<(), Finding> {
        let unknown =
            || Finding::new(Kind::Wrong, format!("device {from} has no send {client_seq}, and it is acknowledged"));
        let id = *self.by_number.get(&(from, client_seq)).ok_or_else(unknown)?;
        let sent = self.sent.get_mut(&id).ok_or_else(unknown)?;
        if !std::mem::replace(&mut sent.acknowledged, true) {
            self.acknowledged += 1;
        }
        let chat = sent.chat;
        if chat_seq == 0 { Ok(()) } else { self.place(chat, chat_seq, Some(id)) }
    }

    /// A device was given a place of its inbox.
    pub(crate) fn give(&mut self, to: DeviceId, given: Given<'_>) -> Result<(), Finding> {
        self.given += 1;
        let had = &mut self.had[to];
        if given.inbox_seq != had.head + 1 {
            let kind = if given.inbox_seq <= had.head { Kind::Duplicated } else { Kind::Lost };
            let what = format!("device {to} had {} places of its inbox, and {} came", had.head, given.inbox_seq);
            return Err(Finding::new(kind, what));
        }
        had.head = given.inbox_seq;
        let last = had.chats.entry(given.chat).or_default();
        if given.chat_seq <= *last {
            let what = format!("device {to}: place {} of chat {:032x} came after {last}", given.chat_seq, given.chat);
            return Err(Finding::new(Kind::Reordered, what));
        }
        *last = given.chat_seq;
        let id = given.payload.map(|payload| self.message(to, given.chat, payload)).transpose()?;
        self.place(given.chat, given.chat_seq, id)
    }

    /// All that was sent is acknowledged.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acknowledged == self.sent.len() as u64
    }

    /// Whether a message has come to all whom it is for.
    pub(crate) fn has_arrived(&self, id: MessageId) -> bool {
        self.sent.get(&id).is_some_and(|sent| sent.missing.is_empty())
    }

    /// The number that the next message has.
    pub(crate) fn next_id(&self) -> MessageId {
        self.sent.len() as MessageId + 1
    }

    /// Whether what is acknowledged of the messages from `first` on has come to these devices, as far as it is for them.
    pub(crate) fn has_come_to(&self, first: MessageId, devices: &BTreeSet<DeviceId>) -> bool {
        self.sent.range(first..).all(|(_, sent)| !sent.acknowledged || sent.missing.is_disjoint(devices))
    }

    /// Messages sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.len() as u64
    }

    /// Newest place of an inbox.
    pub(crate) fn head(&self, device: DeviceId) -> u64 {
        self.had[device].head
    }

    /// All that is acknowledged has come to all whom it is for, and the places of each chat have no gap. To be asked when
    /// something later has come in each chat.
    pub(crate) fn check_arrival(&self) -> Result<(), Finding> {
        for (id, sent) in &self.sent {
            if sent.acknowledged && !sent.missing.is_empty() {
                let Sent { from, client_seq, missing, .. } = sent;
                let what = format!(
                    "message {id} (send {client_seq} of device {from}) was acknowledged and never came to devices {missing:?}"
                );
                return Err(Finding::new(Kind::Lost, what));
            }
        }
        let mut last = (0, 0);
        for &(chat, place) in self.places.keys() {
            let expected = if chat == last.0 { last.1 + 1 } else { 1 };
            if place != expected {
                let what = format!("chat {chat:032x} has a gap: nobody knows what is in place {expected}");
                return Err(Finding::new(Kind::Lost, what));
            }
            last = (chat, place);
        }
        Ok(())
    }

    /// Checks a message that came, and notes that it did.
    fn message(&mut self, to: DeviceId, chat: u128, bytes: &[u8]) -> Result<MessageId, Finding> {
        let wrong = |what: &str| Finding::new(Kind::Wrong, format!("device {to} in chat {chat:032x}: {what}"));
        let id = bytes.first_chunk::<HEAD_BYTES>().map(|head| MessageId::from_le_bytes(*head));
        let id = id.ok_or_else(|| wrong("a message without a number"))?;
        let sent = self.sent.get_mut(&id).ok_or_else(|| wrong(&format!("message {id}, which nobody sent")))?;
        if bytes != payload(self.seed, id, bytes.len()) {
            return Err(wrong(&format!("message {id} with other bytes than were sent")));
        }
        if sent.chat != chat || !sent.recipients.contains(&to) {
            return Err(wrong(&format!("message {id}, which is not for it")));
        }
        if !sent.missing.remove(&to) {
            return Err(Finding::new(Kind::Duplicated, format!("message {id} came to device {to} again")));
        }
        let last = self.had[to].senders.entry((chat, sent.from)).or_default();
        if id <= *last {
            return Err(Finding::new(
                Kind::Reordered,
                format!("message {id} came to device {to} after message {last}"),
            ));
        }
        *last = id;
        Ok(id)
    }

    fn place(&mut self, chat: u128, chat_seq: u64, id: Option<MessageId>) -> Result<(), Finding> {
        let there = *self.places.entry((chat, chat_seq)).or_insert(id);
        if there != id {
            let what = format!("place {chat_seq} of chat {chat:032x} has message {there:?} to one, {id:?} to another");
            return Err(Finding::new(Kind::Reordered, what));
        }
        Ok(())
    }
}

/// A message's number, then bytes that follow from it.
fn payload(seed: u64, id: MessageId, bytes: usize) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    let mut chance = Rng::new(seed ^ u64::from(id) << 32);
    while out.len() < bytes {
        out.extend_from_slice(&chance.next().to_le_bytes());
    }
    out.truncate(bytes.max(HEAD_BYTES));
    out
}

#[cfg(test)]
mod tests;
