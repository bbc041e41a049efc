//! Apply: committed commands change the state of their partition, from the state and the entry alone, in the same way on
//! every replica and at every replay. A leader that serves then tells those who wait.

use bytes::Bytes;
use whimbrel_storage::Location;
use whimbrel_wire::command::{Command, CommandAt, Entry};
use whimbrel_wire::{Code, Kind, fb, fb_log};

use crate::chat::Verdict;
use crate::checkpoint::{image_chat, image_inbox, image_local, image_waiting};
use crate::ids::{ChatId, ChatSeq, ClientSeq, DeviceId, InboxId, InboxSeq, PartitionId, UserId, UserIndex};
use crate::io::Effects;
use crate::lane::{Answer, Confirm, Reply, SentStatus};
use crate::partition::{Answered, Chat, Inbox, OutboxPlace, PayloadMark, Target};
use crate::replicate::{Origin, Partition};
use crate::route;
use crate::shard::Shard;

use std::collections::VecDeque;

/// One command and what it comes with.
struct Applying<'a> {
    p: usize,
    /// The entry that it is in, and where.
    data: &'a Bytes,
    offset: u32,
    location: Location,
    time_ms: u64,
    origin: Origin,
    command: &'a Command<'a>,
}

impl Shard {
    pub(crate) fn apply_commands(
        &mut self,
        fx: &mut Effects,
        p: usize,
        data: &Bytes,
        at: Location,
        origins: &[Origin],
    ) {
        let entry = Entry::trusted(data).expect("entries are verified before they are proposed");
        self.apply_verified(fx, p, data, entry, at, origins);
    }

    /// The same of an entry that was verified just now.
    pub(crate) fn apply_verified(
        &mut self,
        fx: &mut Effects,
        p: usize,
        data: &Bytes,
        entry: Entry<'_>,
        at: Location,
        origins: &[Origin],
    ) {
        let time_ms = entry.wall_ms();
        let partition = &mut self.partitions[p];
        partition.wall_ms = partition.wall_ms.max(time_ms);
        for (n, CommandAt { offset, len, command }) in entry.iter().enumerate() {
            self.counters.commands += 1;
            self.apply(
                fx,
                &Applying {
                    p,
                    data,
                    offset,
                    location: at.slice(offset, len),
                    time_ms,
                    origin: origins.get(n).copied().unwrap_or(Origin::Nobody),
                    command: &command,
                },
            );
        }
    }

    fn apply(&mut self, fx: &mut Effects, it: &Applying<'_>) {
        match it.command {
            Command::DeviceRegister(register) => self.apply_register(fx, it, register),
            Command::ChatCreate(create) => self.apply_create(fx, it, create),
            Command::ChatSend(send, payload) => self.apply_send(fx, it, send, payload),
            Command::OutboxConfirm(confirm) => self.apply_confirm(it.p, confirm),
            Command::FanOut(record, _) => self.apply_fan_out(fx, it, record),
            Command::DeviceAck(ack) => self.apply_ack(it.p, ack),
        }
    }

    fn apply_register(&mut self, fx: &mut Effects, it: &Applying<'_>, register: &fb_log::DeviceRegister<'_>) {
        let state = &mut self.partitions[it.p].state;
        let (user, device) = (user_of(register.user()), DeviceId(register.device()));
        match state.inbox_of(&user, device) {
            None => {
                let owner = state.user(&user);
                state.add_inbox(Inbox::new(owner, device, register.token_epoch()));
            }
            Some(inbox) => {
                image_inbox(&mut self.sweep, it.p, state, inbox);
                let inbox = &mut state.inboxes[inbox.0 as usize];
                inbox.token_epoch = inbox.token_epoch.max(register.token_epoch());
            }
        }
        if let Origin::Login(conn) = it.origin {
            let registering = &mut self.partitions[it.p].registering;
            *registering = registering.saturating_sub(1);
            self.registered(fx, conn, it.p);
        }
    }

    fn apply_create(&mut self, fx: &mut Effects, it: &Applying<'_>, create: &fb_log::ChatCreate<'_>) {
        let id = ChatId(whimbrel_wire::chat_id(create.chat()));
        let partitions = self.config.partitions;
        let state = &mut self.partitions[it.p].state;
        let (index, created) = match state.chat_index(id) {
            Some(index) => (index, false),
            None => {
                let members: Vec<UserId> = create.members().iter().map(user_of).collect();
                let mut places: Vec<PartitionId> =
                    members.iter().map(|user| route::partition_of_user(user, partitions)).collect();
                places.sort_unstable();
                places.dedup();
                let chat = Chat {
                    id,
                    group: create.kind() == fb::ChatKind::Group,
                    title: create.title().unwrap_or("").to_owned(),
                    members: members.into(),
                    made_ms: it.time_ms,
                    last_seq: ChatSeq(0),
                    senders: Vec::new(),
                    targets: places.into_iter().map(Target::new).collect(),
                    outbox: VecDeque::new(),
                    imaged: 0,
                };
                (state.add_chat(chat), true)
            }
        };
        if created {
            self.apply_place(fx, it, index);
        }
        let waiting = self.take_creation(id);
        for (n, request) in waiting.iter().enumerate() {
            let chat = &self.partitions[it.p].state.chats[index];
            let facts = chat.facts(&request.user, request.device, created && n == 0);
            self.answer(fx, Answer { asker: request.asker, reply: Reply::Chat(Box::new(facts)) });
        }
    }

    fn apply_send(&mut self, fx: &mut Effects, it: &Applying<'_>, send: &fb_log::ChatSend<'_>, payload: &[u8]) {
        let id = ChatId(whimbrel_wire::chat_id(send.chat()));
        let (user, device) = (user_of(send.sender()), DeviceId(send.device()));
        let (client_seq, prev) = (ClientSeq(send.client_seq()), ClientSeq(send.prev()));
        let mark = PayloadMark::of(payload);
        let state = &mut self.partitions[it.p].state;
        let reply = match state.chat_index(id) {
            None => Reply::refused(Code::ChatUnknown, Kind::Send, client_seq.0, ""),
            Some(index) => match state.chats[index].judge(&user, device, client_seq, prev, mark) {
                Verdict::Before(answered) => {
                    self.counters.repeated += 1;
                    answered.reply(id, SentStatus::Repeated)
                }
                Verdict::LongBefore => Answered::long_before(id, client_seq),
                Verdict::No(code) => Reply::refused(code, Kind::Send, client_seq.0, ""),
                Verdict::New => {
                    image_chat(&mut self.sweep, &mut self.log, it.p, state, index);
                    let chat = &mut state.chats[index];
                    let chat_seq = ChatSeq(chat.last_seq.0 + 1);
                    let answered = Answered { client_seq, chat_seq, time_ms: it.time_ms, mark };
                    chat.sender_mut(&user, device).remember(answered);
                    self.counters.stored += 1;
                    self.apply_place(fx, it, index);
                    answered.reply(id, SentStatus::Stored)
                }
            },
        };
        if let Origin::Ask(asker, _) = it.origin {
            self.answer(fx, Answer { asker, reply });
        }
    }

    /// A chat's next place is this command: it goes into the outbox, and on its way. The chat is imaged or new.
    fn apply_place(&mut self, fx: &mut Effects, it: &Applying<'_>, index: usize) {
        let partition = &mut self.partitions[it.p];
        let chat = &mut partition.state.chats[index];
        chat.last_seq = ChatSeq(chat.last_seq.0 + 1);
        chat.outbox.push_back(OutboxPlace { command: it.location, time_ms: it.time_ms });
        self.log.hold(it.location);
        if partition.serving {
            let from = it.offset as usize;
            let bytes = it.data.slice(from..from + it.location.len as usize);
            self.fan_out(fx, it.p, index, &bytes, it.time_ms);
        }
    }

    fn apply_confirm(&mut self, p: usize, confirm: &fb_log::OutboxConfirm<'_>) {
        let state = &mut self.partitions[p].state;
        for mark in confirm.marks() {
            let Some(index) = state.chat_index(ChatId(whimbrel_wire::chat_id(mark.chat()))) else { continue };
            image_chat(&mut self.sweep, &mut self.log, p, state, index);
            let chat = &mut state.chats[index];
            let partition = PartitionId(mark.partition());
            let Some(target) = chat.targets.iter_mut().find(|target| target.partition == partition) else { continue };
            target.confirmed = target.confirmed.max(ChatSeq(mark.chat_seq()).min(chat.last_seq));
            target.heard = target.heard.max(target.confirmed);
            target.sent = target.sent.max(target.heard);
            let confirmed = chat.targets.iter().map(|target| target.confirmed).min().unwrap_or(chat.last_seq);
            while chat.outbox_floor() < confirmed {
                let Some(place) = chat.outbox.pop_front() else { break };
                self.log.release(place.command);
            }
        }
    }

    fn apply_fan_out(&mut self, fx: &mut Effects, it: &Applying<'_>, record: &fb_log::FanOut<'_>) {
        let id = ChatId(whimbrel_wire::chat_id(record.chat()));
        let (place, prev) = (ChatSeq(record.chat_seq()), ChatSeq(record.prev()));
        let here = self.config.partition_at(it.p);
        let partitions = self.config.partitions;
        let state = &mut self.partitions[it.p].state;
        let index = state.local(id, || route::partition_of_chat(id, partitions));
        let local = &mut state.locals[index];
        if prev != local.applied || place <= local.applied {
            // A copy of a record that came first by another way. Its confirmation was given then.
            local.proposed = local.proposed.max(local.applied);
            return;
        }
        image_local(&mut self.sweep, it.p, state, index);
        let local = &mut state.locals[index];
        local.applied = place;
        local.proposed = local.proposed.max(place);
        if record.event() == fb::Event::ChatCreated
            && let Some(members) = record.members()
        {
            let users = members.iter().map(user_of);
            let here: Vec<UserId> = users.filter(|user| route::partition_of_user(user, partitions) == here).collect();
            state.locals[index].members = here.iter().map(|user| state.user(user)).collect();
        }
        let local = &mut state.locals[index];
        let source = local.source;
        let members = std::mem::take(&mut local.members);
        self.give(it, record, &members);
        let partition = &mut self.partitions[it.p];
        partition.state.locals[index].members = members;
        if partition.serving {
            self.confirm_to(fx, source, Confirm { source, target: here, chat: id, applied: place, rewind: false });
        }
    }

    /// Puts a record into the inbox of every device of these users but the one that it comes from.
    fn give(&mut self, it: &Applying<'_>, record: &fb_log::FanOut<'_>, members: &[UserIndex]) {
        let (sender, device) = (record.sender(), record.sender_device());
        for user in members {
            let state = &self.partitions[it.p].state;
            let own = state.name(*user).is_named(sender);
            let mut next = state.first_inbox(*user);
            while let Some(id) = next {
                let state = &mut self.partitions[it.p].state;
                let inbox = &state.inboxes[id.0 as usize];
                next = inbox.next();
                if own && inbox.device.0 == device {
                    continue;
                }
                image_inbox(&mut self.sweep, it.p, state, id);
                let inbox = &mut state.inboxes[id.0 as usize];
                inbox.waiting.push_back(it.location);
                self.log.hold(it.location);
                self.pointers += 1;
                if let Some(conn) = inbox.attached {
                    self.want_delivery(conn);
                }
            }
        }
    }

    fn apply_ack(&mut self, p: usize, ack: &fb_log::DeviceAck<'_>) {
        let Partition { state, serving, repair, .. } = &mut self.partitions[p];
        // At a replay more will follow of nearly all, and each would have to be given its memory again.
        let is_replay = !*serving && repair.is_none();
        for mark in ack.marks() {
            let id = InboxId(mark.inbox());
            image_waiting(&mut self.sweep, &mut self.log, p, state, id, InboxSeq(mark.floor()));
            let Some(inbox) = state.inboxes.get_mut(id.0 as usize) else { continue };
            let floor = InboxSeq(mark.floor()).min(inbox.head());
            while inbox.floor < floor {
                let Some(location) = inbox.waiting.pop_front() else { break };
                self.log.release(location);
                inbox.floor = InboxSeq(inbox.floor.0 + 1);
                self.pointers -= 1;
                self.counters.acknowledged += 1;
            }
            inbox.acked = inbox.acked.max(inbox.floor);
            if !is_replay {
                inbox.give_back();
            }
        }
    }
}

fn user_of(name: &str) -> UserId {
    UserId::new(name).expect("names are checked before they are proposed")
}
