//! What a partition holds: chats, and users with their devices' inboxes. This part is the same on every replica: it
//! changes at apply only, from the state and the entry alone. What only a leader knows is marked as soft.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use whimbrel_storage::Location;

use crate::ids::{ChatId, ChatSeq, ClientSeq, ConnId, DeviceId, InboxId, InboxSeq, PartitionId, UserId, UserIndex};
use crate::limits;

/// A chat's sequence, its members and what is on its way to them.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) id: ChatId,
    pub(crate) group: bool,
    pub(crate) title: String,
    /// Sorted. Shared, for who asks for a chat is given them, on whatever shard.
    pub(crate) members: Arc<[UserId]>,
    pub(crate) made_ms: u64,
    pub(crate) last_seq: ChatSeq,
    pub(crate) senders: Vec<Sender>,
    pub(crate) targets: Vec<Target>,
    /// Places that some target has not confirmed, ascending and dense up to `last_seq`.
    pub(crate) outbox: VecDeque<OutboxPlace>,
    /// Soft: the last checkpoint that it is in, or is not to be in.
    pub(crate) imaged: u32,
}

/// A place of a chat: its command in the log, and when it was stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxPlace {
    pub(crate) command: Location,
    pub(crate) time_ms: u64,
}

/// A device that has sent to a chat: what P3 needs to know a resent message again, for ever.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    /// The highest `client_seq` stored.
    pub(crate) watermark: ClientSeq,
    /// The last [`limits::ANSWERS_KEPT`], ascending.
    pub(crate) answers: VecDeque<Answered>,
}

/// The answer to a send, kept to be repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) client_seq: ClientSeq,
    pub(crate) chat_seq: ChatSeq,
    pub(crate) time_ms: u64,
    pub(crate) mark: PayloadMark,
}

/// Tells a resent payload from another one under the same number: length and CRC-32C. The one who could forge it would
/// fool only the own device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PayloadMark(u64);

impl PayloadMark {
    pub(crate) fn of(payload: &[u8]) -> PayloadMark {
        PayloadMark((payload.len() as u64) << 32 | u64::from(crc32c::crc32c(payload)))
    }

    pub(crate) fn to_u64(self) -> u64 {
        self.0
    }

    pub(crate) fn from_u64(mark: u64) -> PayloadMark {
        PayloadMark(mark)
    }
}

/// A partition that has members of a chat. While membership does not change every place goes to every target.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) partition: PartitionId,
    /// Applied there, by what is committed here.
    pub(crate) confirmed: ChatSeq,
    /// Soft: applied there, by what it said. At least `confirmed`.
    pub(crate) heard: ChatSeq,
    /// Soft: on its way. At least `heard`.
    pub(crate) sent: ChatSeq,
    /// Soft: when `heard` last rose, sending began or it was asked, on the monotone clock.
    pub(crate) progress_us: u64,
    /// Soft: when it is due among [`Watched`](crate::outbox::Watched), if it is one of them.
    pub(crate) watched_us: Option<u64>,
    /// Soft: how often in turn it did not answer for long, up to [`limits::OUTBOX_RETRY_DOUBLINGS`]. As long as it is silent it is
    /// sent nothing, and asked for less and less often whether it would take it.
    pub(crate) silent: u8,
    /// Soft: in the queue of those that wait for a lane.
    pub(crate) blocked: bool,
    /// Soft: in the list of what to confirm next.
    pub(crate) dirty: bool,
    /// Soft: waits for a segment to be read in.
    pub(crate) cold: bool,
}

/// One device's inbox: what it has not acknowledged.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) owner: UserIndex,
    pub(crate) device: DeviceId,
    pub(crate) token_epoch: u32,
    /// All up to here is acknowledged, committed.
    pub(crate) floor: InboxSeq,
    /// Commands of fan-out entries; the first has place `floor + 1`.
    pub(crate) waiting: VecDeque<Location>,
    /// Soft: acknowledged, received. At least `floor`.
    pub(crate) acked: InboxSeq,
    /// Soft: `acked` waits to be proposed.
    pub(crate) ack_dirty: bool,
    /// Soft: the newest connection of the device.
    pub(crate) attached: Option<ConnId>,
    /// Soft: how often the device attached since the start.
    pub(crate) generation: u64,
    /// Soft: as [`Chat::imaged`]. What waits follows it into the image in pieces.
    pub(crate) imaged: u32,
    /// Soft: the places that are still to follow, from the one behind the first up to the second.
    pub(crate) to_image: (InboxSeq, InboxSeq),
    /// That of the owner's next device, if there is one.
    next: Option<InboxId>,
}

impl Inbox {
    pub(crate) fn new(owner: UserIndex, device: DeviceId, token_epoch: u32) -> Inbox {
        Inbox {
            owner,
            device,
            token_epoch,
            floor: InboxSeq(0),
            waiting: VecDeque::new(),
            acked: InboxSeq(0),
            ack_dirty: false,
            attached: None,
            generation: 0,
            imaged: 0,
            to_image: (InboxSeq(0), InboxSeq(0)),
            next: None,
        }
    }

    /// The newest place.
    pub(crate) fn head(&self) -> InboxSeq {
        InboxSeq(self.floor.0 + self.waiting.len() as u64)
    }

    /// An idle device holds no memory for what it does not have.
    pub(crate) fn give_back(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }

    /// That of the owner's next device, if there is one.
    pub(crate) fn next(&self) -> Option<InboxId> {
        self.next
    }

    /// Where the command of a place above the floor is.
    pub(crate) fn location(&self, place: InboxSeq) -> Option<Location> {
        let index = place.0.checked_sub(self.floor.0 + 1)?;
        self.waiting.get(usize::try_from(index).ok()?).copied()
    }
}

/// A chat as a partition of members knows it.
#[derive(Debug)]
pub(crate) struct LocalChat {
    pub(crate) id: ChatId,
    /// Fan-out records are applied up to here.
    pub(crate) applied: ChatSeq,
    /// Soft: proposed up to here. At least `applied`.
    pub(crate) proposed: ChatSeq,
    /// The chat's members that live in this partition. By their numbers: each record of the chat goes to all of them, and a name
    /// would have to be looked up each time.
    pub(crate) members: Vec<UserIndex>,
    /// The chat's own partition.
    pub(crate) source: PartitionId,
    /// Soft: as [`Chat::imaged`].
    pub(crate) imaged: u32,
}

/// A user who lives in a partition, or is to: one may be named before a device of it is registered.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: UserId,
    /// That of the first device. The others follow from it.
    first: Option<InboxId>,
}

/// The replicated state of one partition.
#[derive(Debug)]
pub(crate) struct PartitionState {
    pub(crate) chats: Vec<Chat>,
    chat_index: HashMap<ChatId, u32, RandomState>,
    pub(crate) inboxes: Vec<Inbox>,
    pub(crate) users: Vec<User>,
    user_index: HashMap<UserId, UserIndex, RandomState>,
    pub(crate) locals: Vec<LocalChat>,
    local_index: HashMap<ChatId, u32, RandomState>,
}

impl PartitionState {
    pub(crate) fn new(hash: RandomState) -> PartitionState {
        PartitionState {
            chats: Vec::new(),
            chat_index: HashMap::with_hasher(hash.clone()),
            inboxes: Vec::new(),
            users: Vec::new(),
            user_index: HashMap::with_hasher(hash.clone()),
            locals: Vec::new(),
            local_index: HashMap::with_hasher(hash),
        }
    }

    /// Of all that waits in it.
    pub(crate) fn places(&self) -> impl Iterator<Item = Location> {
        let outboxes = self.chats.iter().flat_map(|chat| &chat.outbox).map(|place| place.command);
        outboxes.chain(self.inboxes.iter().flat_map(|inbox| &inbox.waiting).copied())
    }

    pub(crate) fn chat_index(&self, chat: ChatId) -> Option<usize> {
        self.chat_index.get(&chat).map(|index| *index as usize)
    }

    pub(crate) fn add_chat(&mut self, chat: Chat) -> usize {
        let index = self.chats.len();
        self.chat_index.insert(chat.id, index as u32);
        self.chats.push(chat);
        index
    }

    /// The index of a chat as this partition of members knows it; one it has not heard of is empty.
    pub(crate) fn local(&mut self, chat: ChatId, source: impl FnOnce() -> PartitionId) -> usize {
        match self.local_index(chat) {
            Some(index) => index,
            None => self.add_local(LocalChat {
                id: chat,
                source: source(),
                applied: ChatSeq(0),
                proposed: ChatSeq(0),
                members: Vec::new(),
                imaged: 0,
            }),
        }
    }

    pub(crate) fn local_index(&self, chat: ChatId) -> Option<usize> {
        self.local_index.get(&chat).map(|index| *index as usize)
    }

    pub(crate) fn add_local(&mut self, local: LocalChat) -> usize {
        let index = self.locals.len();
        self.local_index.insert(local.id, index as u32);
        self.locals.push(local);
        index
    }

    /// The same, if it has heard of it.
    pub(crate) fn local_if_known(&self, chat: ChatId) -> Option<&LocalChat> {
        self.local_index(chat).map(|index| &self.locals[index])
    }

    /// The number of a user, who gets one if it is not known.
    pub(crate) fn user(&mut self, name: &UserId) -> UserIndex {
        let next = UserIndex(self.users.len() as u32);
        let index = *self.user_index.entry(*name).or_insert(next);
        if index == next {
            self.users.push(User { name: *name, first: None });
        }
        index
    }

    pub(crate) fn name(&self, user: UserIndex) -> &UserId {
        &self.users[user.0 as usize].name
    }

    /// The inboxes of a user's devices, in the order in which they were registered.
    pub(crate) fn inboxes_of(&self, user: UserIndex) -> impl Iterator<Item = (InboxId, &Inbox)> {
        let mut next = self.users[user.0 as usize].first;
        std::iter::from_fn(move || {
            let id = next?;
            let inbox = &self.inboxes[id.0 as usize];
            next = inbox.next;
            Some((id, inbox))
        })
    }

    /// That of the user's first device, if there is one.
    pub(crate) fn first_inbox(&self, user: UserIndex) -> Option<InboxId> {
        self.users[user.0 as usize].first
    }

    /// Whether a device of the user is registered.
    pub(crate) fn has_device(&self, name: &UserId) -> bool {
        self.user_index.get(name).is_some_and(|user| self.first_inbox(*user).is_some())
    }

    pub(crate) fn inbox_of(&self, name: &UserId, device: DeviceId) -> Option<InboxId> {
        let user = *self.user_index.get(name)?;
        self.inboxes_of(user).find(|(_, inbox)| inbox.device == device).map(|(id, _)| id)
    }

    /// Puts an inbox behind those that are there. They keep their order, and with it their numbers.
    pub(crate) fn add_inbox(&mut self, inbox: Inbox) -> InboxId {
        let id = InboxId(self.inboxes.len() as u32);
        let last = self.inboxes_of(inbox.owner).last().map(|(last, _)| last);
        match last {
            Some(last) => self.inboxes[last.0 as usize].next = Some(id),
            None => self.users[inbox.owner.0 as usize].first = Some(id),
        }
        self.inboxes.push(inbox);
        id
    }
}

impl Target {
    pub(crate) fn new(partition: PartitionId) -> Target {
        Target {
            partition,
            confirmed: ChatSeq(0),
            heard: ChatSeq(0),
            sent: ChatSeq(0),
            progress_us: 0,
            watched_us: None,
            silent: 0,
            blocked: false,
            dirty: false,
            cold: false,
        }
    }
}

impl Chat {
    pub(crate) fn is_member(&self, user: &UserId) -> bool {
        self.members.binary_search(user).is_ok()
    }

    /// The last place that is confirmed by all targets and no longer kept.
    pub(crate) fn outbox_floor(&self) -> ChatSeq {
        ChatSeq(self.last_seq.0 - self.outbox.len() as u64)
    }

    pub(crate) fn outbox_place(&self, place: ChatSeq) -> Option<OutboxPlace> {
        let index = place.0.checked_sub(self.outbox_floor().0 + 1)?;
        self.outbox.get(usize::try_from(index).ok()?).copied()
    }

    /// Places that some target has not been heard to have applied.
    pub(crate) fn unconfirmed(&self) -> u64 {
        let heard = self.targets.iter().map(|target| target.heard).min().unwrap_or(self.last_seq);
        self.last_seq.0 - heard.0
    }

    pub(crate) fn sender(&self, user: &UserId, device: DeviceId) -> Option<&Sender> {
        self.senders.iter().find(|sender| sender.device == device && sender.user == *user)
    }

    pub(crate) fn sender_mut(&mut self, user: &UserId, device: DeviceId) -> &mut Sender {
        let found = self.senders.iter().position(|sender| sender.device == device && sender.user == *user);
        let index = found.unwrap_or_else(|| {
            let answers = VecDeque::new();
            self.senders.push(Sender { user: *user, device, watermark: ClientSeq(0), answers });
            self.senders.len() - 1
        });
        &mut self.senders[index]
    }
}

impl Sender {
    pub(crate) fn remember(&mut self, answered: Answered) {
        if self.answers.len() == limits::ANSWERS_KEPT {
            self.answers.pop_front();
        }
        self.answers.push_back(answered);
        self.watermark = answered.client_seq;
    }

    /// The answer that was given to this number, and whether older ones were forgotten.
    pub(crate) fn answered(&self, client_seq: ClientSeq) -> Option<Answered> {
        let index = self.answers.binary_search_by_key(&client_seq, |answered| answered.client_seq).ok()?;
        Some(self.answers[index])
    }

    /// Whether this number is older than all answers kept, of which the oldest ones were let go.
    pub(crate) fn is_forgotten(&self, client_seq: ClientSeq) -> bool {
        self.answers.len() == limits::ANSWERS_KEPT && self.answers.front().is_some_and(|a| client_seq < a.client_seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inboxes_of_a_user_are_found_in_the_order_in_which_they_came() {
        let name = |name: &str| UserId::new(name).unwrap();
        let mut state = PartitionState::new(RandomState::with_seed(7));
        let (alice, bob) = (name("alice"), name("bob"));
        // Named before any device is there, as a chat's member.
        let of_bob = state.user(&bob);
        assert!(!state.has_device(&bob) && !state.has_device(&alice));
        assert_eq!(state.first_inbox(of_bob), None);
        let of_alice = state.user(&alice);
        for (owner, device) in [(of_bob, 9), (of_alice, 1), (of_bob, 2), (of_bob, 5)] {
            state.add_inbox(Inbox::new(owner, DeviceId(device), 0));
        }
        assert_eq!((state.user(&alice), state.user(&bob)), (of_alice, of_bob));
        let devices = |user| state.inboxes_of(user).map(|(id, inbox)| (id.0, inbox.device.0)).collect::<Vec<_>>();
        assert_eq!(devices(of_bob), [(0, 9), (2, 2), (3, 5)]);
        assert_eq!(devices(of_alice), [(1, 1)]);
        assert_eq!(state.inbox_of(&bob, DeviceId(5)), Some(InboxId(3)));
        assert_eq!(state.inbox_of(&alice, DeviceId(5)), None);
        assert_eq!(state.inbox_of(&name("carol"), DeviceId(5)), None);
        assert!(state.inboxes.iter().all(|inbox| *state.name(inbox.owner) == bob || inbox.device == DeviceId(1)));
    }
}
