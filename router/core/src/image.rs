//! The image of a partition in a checkpoint: its replicated state as it was when an entry of its group was applied, object by
//! object. Pure bytes: [`crate::checkpoint`] says when what is written, [`Images`] puts the pieces together at a start.
//!
//! All numbers are little-endian. A partition begins with [`Head`]; then come, in any order, as many chats, inboxes and local
//! chats as it says, each with its place in its table. What waits in an inbox follows it in pieces, in order.

use std::collections::VecDeque;

use ahash::RandomState;
use raft::prelude::HardState;
use whimbrel_storage::{Location, SegmentId};

use crate::ids::{ChatId, ChatSeq, ClientSeq, DeviceId, InboxSeq, PartitionId, UserId};
use crate::limits;
use crate::partition::{Answered, Chat, Inbox, LocalChat, OutboxPlace, PartitionState, PayloadMark, Sender, Target};

const HEAD: u8 = 1;
const CHAT: u8 = 2;
const INBOX: u8 = 3;
const LOCAL: u8 = 4;
const WAITING: u8 = 5;

/// Above all indexes, terms and places that there will ever be.
const NUMBER_MAX: u64 = 1 << 62;

/// What stands at the beginning of a partition's image.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Head {
    pub(crate) partition: PartitionId,
    /// The last entry that is in it: index and term.
    pub(crate) applied: (u64, u64),
    pub(crate) hard_state: HardState,
    pub(crate) wall_ms: u64,
    pub(crate) sizes: Sizes,
}

/// How many objects a partition has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) chats: u32,
    pub(crate) inboxes: u32,
    pub(crate) locals: u32,
}

impl Head {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(HEAD);
        put_u16(out, self.partition.0);
        for number in [self.applied.0, self.applied.1, self.hard_state.term, self.hard_state.vote] {
            put_u64(out, number);
        }
        put_u64(out, self.hard_state.commit.max(self.applied.0));
        put_u64(out, self.wall_ms);
        for number in [self.sizes.chats, self.sizes.inboxes, self.sizes.locals] {
            put_u32(out, number);
        }
    }
}

pub(crate) fn put_chat(out: &mut Vec<u8>, place: usize, chat: &Chat) {
    out.push(CHAT);
    put_u32(out, place as u32);
    out.extend_from_slice(&chat.id.0.to_le_bytes());
    out.push(u8::from(chat.group));
    put_u64(out, chat.made_ms);
    put_u64(out, chat.last_seq.0);
    put_u16(out, chat.title.len() as u16);
    out.extend_from_slice(chat.title.as_bytes());
    put_u32(out, chat.members.len() as u32);
    chat.members.iter().for_each(|user| put_user(out, user));
    put_u32(out, chat.senders.len() as u32);
    for sender in &chat.senders {
        put_user(out, &sender.user);
        put_u32(out, sender.device.0);
        put_u64(out, sender.watermark.0);
        out.push(sender.answers.len() as u8);
        for answer in &sender.answers {
            for number in [answer.client_seq.0, answer.chat_seq.0, answer.time_ms, answer.mark.to_u64()] {
                put_u64(out, number);
            }
        }
    }
    put_u16(out, chat.targets.len() as u16);
    for target in &chat.targets {
        put_u16(out, target.partition.0);
        put_u64(out, target.confirmed.0);
    }
    put_u32(out, chat.outbox.len() as u32);
    for kept in &chat.outbox {
        put_location(out, kept.command);
        put_u64(out, kept.time_ms);
    }
}

pub(crate) fn put_inbox(out: &mut Vec<u8>, place: usize, owner: &UserId, inbox: &Inbox) {
    out.push(INBOX);
    put_u32(out, place as u32);
    put_user(out, owner);
    put_u32(out, inbox.device.0);
    put_u32(out, inbox.token_epoch);
    put_u64(out, inbox.floor.0);
    put_u32(out, inbox.waiting.len() as u32);
}

/// What waits in an inbox, behind what of it was put before.
pub(crate) fn put_waiting<'a>(out: &mut Vec<u8>, place: usize, waiting: impl ExactSizeIterator<Item = &'a Location>) {
    out.push(WAITING);
    put_u32(out, place as u32);
    put_u32(out, waiting.len() as u32);
    waiting.for_each(|location| put_location(out, *location));
}

pub(crate) fn put_local(out: &mut Vec<u8>, place: usize, state: &PartitionState) {
    let local = &state.locals[place];
    out.push(LOCAL);
    put_u32(out, place as u32);
    out.extend_from_slice(&local.id.0.to_le_bytes());
    put_u64(out, local.applied.0);
    put_u16(out, local.source.0);
    put_u32(out, local.members.len() as u32);
    local.members.iter().for_each(|user| put_user(out, state.name(*user)));
}

fn put_user(out: &mut Vec<u8>, user: &UserId) {
    let name = user.as_str();
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

fn put_location(out: &mut Vec<u8>, location: Location) {
    for number in [location.segment.0, location.offset, location.len] {
        put_u32(out, number);
    }
}

fn put_u16(out: &mut Vec<u8>, number: u16) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// A partition as a checkpoint has it.
pub(crate) struct Restored {
    pub(crate) head: Head,
    pub(crate) state: PartitionState,
}

/// What is said of an inbox before what waits in it comes.
struct ReadInbox {
    owner: UserId,
    device: DeviceId,
    token_epoch: u32,
    floor: InboxSeq,
    /// How many places wait in it.
    waiting: u32,
}

/// What is said of a chat as the partition knows it.
struct ReadLocal {
    id: ChatId,
    applied: ChatSeq,
    source: PartitionId,
    members: Vec<UserId>,
}

/// What of a partition has come so far.
struct Partial {
    head: Head,
    chats: Table<Chat>,
    inboxes: Table<ReadInbox>,
    locals: Table<ReadLocal>,
    /// Pieces of what waits, with the inbox that each is of.
    waiting: Vec<(u32, Vec<Location>)>,
}

/// Objects with their places, as they came: mostly in order, for only what changed meanwhile came earlier. So the memory
/// is that of what came, whatever a place says.
struct Table<T>(Vec<(u32, T)>);

impl<T> Table<T> {
    fn put(&mut self, place: u32, object: T) {
        self.0.push((place, object));
    }

    /// All of them by their places, if every place up to `size` has one and no other.
    fn finish(mut self, size: u32) -> Option<impl Iterator<Item = T>> {
        self.0.sort_by_key(|(place, _)| *place);
        let is_whole = self.0.len() == size as usize && (0..size).zip(&self.0).all(|(at, (place, _))| at == *place);
        is_whole.then(|| self.0.into_iter().map(|(_, object)| object))
    }
}

/// Puts partitions together from the pieces of a checkpoint. A piece is a number of whole objects.
#[derive(Default)]
pub(crate) struct Images {
    partials: Vec<Partial>,
}

impl Images {
    /// Takes the next piece; `None` if it is not what was written.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Option<()> {
        let mut read = Reader { rest: piece };
        while !read.rest.is_empty() {
            self.take_object(&mut read)?;
        }
        Some(())
    }

    fn take_object(&mut self, read: &mut Reader<'_>) -> Option<()> {
        let tag = read.u8()?;
        if tag == HEAD {
            let head = read.head()?;
            let empty = (Table(Vec::new()), Table(Vec::new()), Table(Vec::new()));
            let waiting = Vec::new();
            self.partials.push(Partial { head, chats: empty.0, inboxes: empty.1, locals: empty.2, waiting });
            return Some(());
        }
        let partial = self.partials.last_mut()?;
        let place = read.u32()?;
        match tag {
            CHAT => partial.chats.put(place, read.chat()?),
            INBOX => partial.inboxes.put(place, read.inbox()?),
            LOCAL => partial.locals.put(place, read.local()?),
            WAITING => {
                let count = read.u32()? as usize;
                partial.waiting.push((place, read.many(count, Reader::location)?));
            }
            _ => return None,
        }
        Some(())
    }

    /// All partitions, if each has all that its head says.
    pub(crate) fn finish(self, mut hash: impl FnMut(PartitionId) -> RandomState) -> Option<Vec<Restored>> {
        let mut all = Vec::with_capacity(self.partials.len());
        for Partial { head, chats, inboxes, locals, mut waiting } in self.partials {
            let mut state = PartitionState::new(hash(head.partition));
            for chat in chats.finish(head.sizes.chats)? {
                state.add_chat(chat);
            }
            // Of one inbox they stay in order.
            waiting.sort_by_key(|(place, _)| *place);
            let mut waiting = waiting.into_iter().peekable();
            for (place, read) in (0..).zip(inboxes.finish(head.sizes.inboxes)?) {
                let mut inbox = Inbox::new(state.user(&read.owner), read.device, read.token_epoch);
                (inbox.floor, inbox.acked) = (read.floor, read.floor);
                while let Some((_, piece)) = waiting.next_if(|(of, _)| *of == place) {
                    inbox.waiting.extend(piece);
                }
                if inbox.waiting.len() != read.waiting as usize {
                    return None;
                }
                state.add_inbox(inbox);
            }
            if waiting.next().is_some() {
                return None;
            }
            for ReadLocal { id, applied, source, members } in locals.finish(head.sizes.locals)? {
                let members = members.iter().map(|user| state.user(user)).collect();
                state.add_local(LocalChat { id, applied, proposed: applied, members, source, imaged: 0 });
            }
            all.push(Restored { head, state });
        }
        Some(all)
    }
}

/// Reads what was put. `None` where the bytes end too soon or say what cannot be.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// An index, term or place, none of which is ever so high that it cannot be counted on.
    fn number(&mut self) -> Option<u64> {
        self.u64().filter(|number| *number < NUMBER_MAX)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    fn many<T>(&mut self, count: usize, mut each: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        // At least a byte each.
        let mut list = Vec::with_capacity(count.min(self.rest.len()));
        for _ in 0..count {
            list.push(each(self)?);
        }
        Some(list)
    }

    fn user(&mut self) -> Option<UserId> {
        let len = usize::from(self.u8()?);
        UserId::new(std::str::from_utf8(self.bytes(len)?).ok()?)
    }

    fn location(&mut self) -> Option<Location> {
        Some(Location { segment: SegmentId(self.u32()?), offset: self.u32()?, len: self.u32()? })
    }

    fn head(&mut self) -> Option<Head> {
        let partition = PartitionId(self.u16()?);
        let applied = (self.number()?, self.number()?);
        let (term, vote, commit) = (self.number()?, self.u64()?, self.number()?);
        let wall_ms = self.u64()?;
        let sizes = Sizes { chats: self.u32()?, inboxes: self.u32()?, locals: self.u32()? };
        let hard_state = HardState { term, vote, commit, ..HardState::default() };
        // Otherwise the engine takes it for a bug of its own.
        (applied.0 <= commit).then_some(Head { partition, applied, hard_state, wall_ms, sizes })
    }

    fn chat(&mut self) -> Option<Chat> {
        let id = ChatId(self.u128()?);
        let group = self.u8()? != 0;
        let made_ms = self.u64()?;
        let last_seq = ChatSeq(self.number()?);
        let title_len = usize::from(self.u16()?);
        let title = std::str::from_utf8(self.bytes(title_len)?).ok()?.to_owned();
        let count = self.u32()? as usize;
        let members = self.many(count, Self::user)?;
        let count = self.u32()? as usize;
        let senders = self.many(count, Self::sender)?;
        let count = usize::from(self.u16()?);
        let targets = self.many(count, Self::target)?;
        let count = self.u32()? as usize;
        let outbox = VecDeque::from(
            self.many(count, |read| Some(OutboxPlace { command: read.location()?, time_ms: read.u64()? }))?,
        );
        let floor = last_seq.0.checked_sub(outbox.len() as u64)?;
        let kept = targets.iter().all(|target| (floor..=last_seq.0).contains(&target.confirmed.0));
        let members = members.into();
        kept.then_some(Chat { id, group, title, members, made_ms, last_seq, senders, targets, outbox, imaged: 0 })
    }

    fn sender(&mut self) -> Option<Sender> {
        let user = self.user()?;
        let device = DeviceId(self.u32()?);
        let watermark = ClientSeq(self.u64()?);
        let count = usize::from(self.u8()?);
        if count > limits::ANSWERS_KEPT {
            return None;
        }
        let answers = self.many(count, |read| {
            Some(Answered {
                client_seq: ClientSeq(read.u64()?),
                chat_seq: ChatSeq(read.u64()?),
                time_ms: read.u64()?,
                mark: PayloadMark::from_u64(read.u64()?),
            })
        })?;
        Some(Sender { user, device, watermark, answers: answers.into() })
    }

    fn target(&mut self) -> Option<Target> {
        let mut target = Target::new(PartitionId(self.u16()?));
        target.confirmed = ChatSeq(self.u64()?);
        target.heard = target.confirmed;
        target.sent = target.confirmed;
        Some(target)
    }

    fn inbox(&mut self) -> Option<ReadInbox> {
        Some(ReadInbox {
            owner: self.user()?,
            device: DeviceId(self.u32()?),
            token_epoch: self.u32()?,
            floor: InboxSeq(self.number()?),
            waiting: self.u32()?,
        })
    }

    fn local(&mut self) -> Option<ReadLocal> {
        let id = ChatId(self.u128()?);
        let applied = ChatSeq(self.number()?);
        let source = PartitionId(self.u16()?);
        let count = self.u32()? as usize;
        let members = self.many(count, Self::user)?;
        Some(ReadLocal { id, applied, source, members })
    }
}
