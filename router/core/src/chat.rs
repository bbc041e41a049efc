//! Chats: a client's requests on the shard of the chat's partition. What is checked here only refuses early; dedup,
//! membership and places are decided at apply.

use bytes::Bytes;
use whimbrel_wire::{
    ChatCreateFields, ChatInfoFields, ChatSendFields, Code, ErrorFields, Kind, SentFields, fb, limits as wire,
};

use crate::ids::{ChatId, ClientSeq, ConnId, Correlation, DeviceId, PartitionId, UserId};
use crate::io::Effects;
use crate::lane::{
    Answer, Ask, AskUsers, Asker, ChatFacts, LaneItem, Reply, Request, SentStatus, UsersFound, UsersKnown,
};
use crate::limits;
use crate::partition::{Answered, Chat, PayloadMark};
use crate::replicate::Origin;
use crate::route;
use crate::shard::Shard;

/// A chat that is not made yet: its users' partitions are asked, or its command is on its way.
#[derive(Debug)]
pub(crate) struct Creating {
    requests: Vec<Request>,
    /// Partitions that have not answered.
    asked: Vec<PartitionId>,
    proposed: bool,
    /// The first answer that is not `All`.
    found: UsersFound,
}

/// Chats being made at a time, and those who wait for each.
const CREATING_MAX: usize = 1024;
const CREATING_ASKERS_MAX: usize = 64;
/// Every question is answered by then, or its asker has to ask again.
const CREATING_US: u64 = 5_000 * limits::MS;

/// What dedup says of a send, from the state of its chat alone.
pub(crate) enum Verdict {
    New,
    Before(Answered),
    LongBefore,
    No(Code),
}

impl Chat {
    /// The rule of P3, without a time window; see the crate's documentation of the protocol.
    pub(crate) fn judge(
        &self,
        user: &UserId,
        device: DeviceId,
        n: ClientSeq,
        prev: ClientSeq,
        mark: PayloadMark,
    ) -> Verdict {
        if !self.is_member(user) {
            return Verdict::No(Code::ChatUnknown);
        }
        let Some(sender) = self.sender(user, device) else {
            return if prev.0 == 0 { Verdict::New } else { Verdict::No(Code::OutOfOrder) };
        };
        if n > sender.watermark {
            return if prev <= sender.watermark { Verdict::New } else { Verdict::No(Code::OutOfOrder) };
        }
        match sender.answered(n) {
            Some(answered) if answered.mark == mark => Verdict::Before(answered),
            Some(_) => Verdict::No(Code::PayloadMismatch),
            None if sender.is_forgotten(n) => Verdict::LongBefore,
            // Within what is kept, and never stored: a number that was passed over is not used again.
            None => Verdict::No(Code::BadClientSeq),
        }
    }

    pub(crate) fn facts(&self, user: &UserId, device: DeviceId, created: bool) -> ChatFacts {
        ChatFacts {
            chat: self.id,
            group: self.group,
            title: self.title.clone(),
            members: self.members.clone(),
            last_seq: self.last_seq,
            last_client_seq: self.sender(user, device).map_or(ClientSeq(0), |sender| sender.watermark),
            created,
            time_ms: self.made_ms,
        }
    }
}

impl Shard {
    pub(crate) fn on_create_chat(&mut self, fx: &mut Effects, conn: ConnId, create: &fb::CreateChat<'_>) {
        let Some(asker) = self.begin_request(fx, conn, create.correlation(), Kind::CreateChat, 0) else { return };
        let Some(session) = self.session(conn) else { return };
        let (user, device) = (session.user, session.device);
        let title = create.title().unwrap_or("");
        let group = create.kind() == fb::ChatKind::Group;
        let refuse = |code| Answer { asker, reply: Reply::refused(code, Kind::CreateChat, 0, "") };
        let mut members = vec![user];
        for name in create.members() {
            match UserId::new(name) {
                Some(member) if member != user => members.push(member),
                // Naming oneself too is no mistake.
                Some(_) => {}
                None => return self.on_answer(fx, &refuse(Code::BadMembers)),
            }
        }
        members.sort_unstable();
        let named = members.len();
        members.dedup();
        let count_ok = if group { (1..=wire::MEMBERS_MAX).contains(&named) } else { named == 2 };
        if named != members.len() || !count_ok || create.kind() > fb::ChatKind::Group {
            return self.on_answer(fx, &refuse(Code::BadMembers));
        }
        if title.len() > if group { wire::TITLE_MAX_BYTES } else { 0 } {
            return self.on_answer(fx, &refuse(Code::BadTitle));
        }
        let chat = match group {
            true => route::group_chat(&user, device, create.nonce()),
            false => route::direct_chat(&members[0], &members[1]),
        };
        let ask = Ask::Create { chat, group, members, title: title.to_owned() };
        self.forward(fx, chat, Request { asker, user, device, ask });
    }

    pub(crate) fn on_chat_info(&mut self, fx: &mut Effects, conn: ConnId, info: &fb::ChatInfo<'_>) {
        let Some(asker) = self.begin_request(fx, conn, info.correlation(), Kind::ChatInfo, 0) else { return };
        let Some(session) = self.session(conn) else { return };
        let (user, device) = (session.user, session.device);
        let chat = ChatId(whimbrel_wire::chat_id(info.chat()));
        self.forward(fx, chat, Request { asker, user, device, ask: Ask::Info { chat } });
    }

    pub(crate) fn on_send(&mut self, fx: &mut Effects, conn: ConnId, send: &fb::Send<'_>, payload: &[u8]) {
        let seq = send.client_seq();
        let Some(asker) = self.begin_request(fx, conn, send.correlation(), Kind::Send, seq) else { return };
        let Some(session) = self.session(conn) else { return };
        let (user, device) = (session.user, session.device);
        let chat = ChatId(whimbrel_wire::chat_id(send.chat()));
        let (client_seq, prev) = (ClientSeq(seq), ClientSeq(send.prev()));
        // The last number is refused because none could follow it.
        if seq == 0 || seq == u64::MAX || prev >= client_seq {
            return self
                .on_answer(fx, &Answer { asker, reply: Reply::refused(Code::BadClientSeq, Kind::Send, seq, "") });
        }
        let partition = route::partition_of_chat(chat, self.config.partitions);
        if self.config.shard_of(partition) == self.config.shard {
            // No copy of the payload but the one into the entry.
            self.store_message(
                fx,
                self.rank(partition),
                Message { asker, user, device, chat, client_seq, prev, payload },
            );
        } else {
            let ask = Ask::Send { chat, client_seq, prev, payload: Bytes::copy_from_slice(payload) };
            self.forward(fx, chat, Request { asker, user, device, ask });
        }
    }

    /// Counts a request of a session in, or refuses it.
    fn begin_request(
        &mut self,
        fx: &mut Effects,
        conn: ConnId,
        correlation: u64,
        kind: Kind,
        seq: u64,
    ) -> Option<Asker> {
        let shard = self.config.shard;
        let session = self.session(conn)?;
        let asker = Asker { shard, conn, correlation: Correlation(correlation) };
        session.requests += 1;
        if session.requests > limits::SENDS_IN_FLIGHT_MAX {
            self.on_answer(fx, &Answer { asker, reply: Reply::refused(Code::TooManyInFlight, kind, seq, "") });
            return None;
        }
        Some(asker)
    }

    fn forward(&mut self, fx: &mut Effects, chat: ChatId, request: Request) {
        let home = self.config.shard_of(route::partition_of_chat(chat, self.config.partitions));
        if home == self.config.shard {
            return self.on_request(fx, request);
        }
        if !self.lanes.is_open(fx, home) {
            return self.refuse(fx, &request, Code::Overloaded, "");
        }
        self.tell(fx, home, LaneItem::Request(request));
    }

    pub(crate) fn on_request(&mut self, fx: &mut Effects, request: Request) {
        let Request { asker, user, device, .. } = request;
        match &request.ask {
            Ask::Send { chat, client_seq, prev, payload } => {
                let (chat, client_seq, prev) = (*chat, *client_seq, *prev);
                let p = self.rank(route::partition_of_chat(chat, self.config.partitions));
                self.store_message(fx, p, Message { asker, user, device, chat, client_seq, prev, payload });
            }
            Ask::Info { chat } => {
                let p = self.rank(route::partition_of_chat(*chat, self.config.partitions));
                let reply = match self.serving_chat(p, *chat) {
                    Err(code) => Reply::refused(code, Kind::ChatInfo, 0, ""),
                    Ok(Some(found)) if found.is_member(&user) => {
                        Reply::Chat(Box::new(found.facts(&user, device, false)))
                    }
                    Ok(_) => Reply::refused(Code::ChatUnknown, Kind::ChatInfo, 0, ""),
                };
                self.answer(fx, Answer { asker, reply });
            }
            Ask::Create { chat, .. } => {
                let chat = *chat;
                let p = self.rank(route::partition_of_chat(chat, self.config.partitions));
                match self.serving_chat(p, chat) {
                    Err(code) => self.refuse(fx, &request, code, ""),
                    // Its id follows from its members or its maker, so who asks for it is one of them.
                    Ok(Some(found)) => {
                        let reply = Reply::Chat(Box::new(found.facts(&user, device, false)));
                        self.answer(fx, Answer { asker, reply });
                    }
                    Ok(None) => self.begin_creation(fx, chat, request),
                }
            }
        }
    }

    fn serving_chat(&self, p: usize, chat: ChatId) -> Result<Option<&Chat>, Code> {
        let partition = &self.partitions[p];
        if !partition.serving {
            return Err(partition.why_not());
        }
        Ok(partition.state.chat_index(chat).map(|index| &partition.state.chats[index]))
    }

    fn store_message(&mut self, fx: &mut Effects, p: usize, message: Message<'_>) {
        let Message { asker, user, device, chat, client_seq, prev, payload } = message;
        let early = match self.serving_chat(p, chat) {
            Err(code) => Err(Reply::refused(code, Kind::Send, client_seq.0, "")),
            Ok(None) => Err(Reply::refused(Code::ChatUnknown, Kind::Send, client_seq.0, "")),
            Ok(Some(found)) => {
                let mark = PayloadMark::of(payload);
                match found.judge(&user, device, client_seq, prev, mark) {
                    Verdict::Before(answered) => Err(answered.reply(chat, SentStatus::Repeated)),
                    Verdict::LongBefore => Err(Answered::long_before(chat, client_seq)),
                    // A send before this one may be on its way: only the apply knows its order.
                    Verdict::No(Code::OutOfOrder) | Verdict::New => match self.refuse_new(found) {
                        Some(code) => Err(Reply::refused(code, Kind::Send, client_seq.0, "")),
                        None => Ok(()),
                    },
                    Verdict::No(code) => Err(Reply::refused(code, Kind::Send, client_seq.0, "")),
                }
            }
        };
        match early {
            Err(reply) => self.answer(fx, Answer { asker, reply }),
            Ok(()) => {
                let fields = ChatSendFields {
                    chat: chat.0,
                    sender: user.as_str(),
                    device: device.0,
                    client_seq: client_seq.0,
                    prev: prev.0,
                };
                let partition = &mut self.partitions[p];
                let before = partition.gather.len_bytes();
                partition.gather.chat_send(&mut self.commands, &fields, payload);
                self.gathered(p, Origin::Ask(asker, client_seq), before);
            }
        }
    }

    /// Why a new message of this chat is refused now, if it is.
    fn refuse_new(&self, chat: &Chat) -> Option<Code> {
        if self.stopping {
            // Another shard's session asks, which is told to go away in a moment.
            return Some(Code::NotReady);
        }
        if let Some(code) = self.refuse_for_space() {
            return Some(code);
        }
        let full = self.gathered_bytes > self.config.bounds.gather_max_bytes
            || !self.log.has_room(limits::STAGING_RESERVE_BYTES);
        if full || chat.unconfirmed() >= limits::OUTBOX_MAX as u64 {
            return Some(Code::Overloaded);
        }
        None
    }

    fn begin_creation(&mut self, fx: &mut Effects, chat: ChatId, request: Request) {
        let Ask::Create { members, .. } = &request.ask else { return };
        if let Some(creating) = self.creating.get_mut(&chat) {
            if creating.requests.len() >= CREATING_ASKERS_MAX {
                return self.refuse(fx, &request, Code::Overloaded, "");
            }
            creating.requests.push(request);
            return;
        }
        if let Some(code) = self.refuse_for_space() {
            return self.refuse(fx, &request, code, "");
        }
        if self.creating.len() >= CREATING_MAX || self.gathered_bytes > self.config.bounds.gather_max_bytes {
            return self.refuse(fx, &request, Code::Overloaded, "");
        }
        let source = route::partition_of_chat(chat, self.config.partitions);
        let mut by_partition: Vec<_> =
            members.iter().map(|user| (route::partition_of_user(user, self.config.partitions), *user)).collect();
        by_partition.sort_unstable();
        let groups: Vec<_> = by_partition.chunk_by(|a, b| a.0 == b.0).collect();
        let asked = groups.iter().map(|users| users[0].0).collect();
        let creating = Creating { requests: vec![request], asked, proposed: false, found: UsersFound::All };
        self.creating.insert(chat, creating);
        self.creating_order.push_back((self.now.mono_us + CREATING_US, chat));
        for users in groups {
            let target = users[0].0;
            let users = users.iter().map(|(_, user)| *user).collect();
            let ask = AskUsers { source, target, chat, users };
            self.tell(fx, self.config.shard_of(target), LaneItem::AskUsers(Box::new(ask)));
        }
    }

    pub(crate) fn on_ask_users(&mut self, fx: &mut Effects, ask: &AskUsers) {
        let partition = &self.partitions[self.rank(ask.target)];
        let unknown = ask.users.iter().copied().find(|user| !partition.state.has_device(user));
        let found = match unknown {
            _ if partition.repair.is_some() => UsersFound::InRepair,
            _ if !partition.serving => UsersFound::NotReady,
            Some(user) => UsersFound::Unknown(user),
            None => UsersFound::All,
        };
        let known = UsersKnown { source: ask.source, target: ask.target, chat: ask.chat, found };
        self.tell(fx, self.config.shard_of(ask.source), LaneItem::UsersKnown(Box::new(known)));
    }

    pub(crate) fn on_users_known(&mut self, fx: &mut Effects, known: &UsersKnown) {
        let Some(creating) = self.creating.get_mut(&known.chat) else { return };
        // By name and not by number: an answer to an earlier creation of the chat, which was given up, may come yet.
        let Some(index) = creating.asked.iter().position(|asked| *asked == known.target) else { return };
        creating.asked.swap_remove(index);
        if creating.found == UsersFound::All {
            creating.found = known.found;
        }
        if !creating.asked.is_empty() || creating.proposed {
            return;
        }
        let refusal = match creating.found {
            UsersFound::All => None,
            UsersFound::Unknown(user) => Some(Reply::user_unknown(&user)),
            UsersFound::NotReady => Some(Reply::refused(Code::NotReady, Kind::CreateChat, 0, "")),
            UsersFound::InRepair => Some(Reply::refused(Code::InRepair, Kind::CreateChat, 0, "")),
        };
        if let Some(reply) = refusal {
            return self.refuse_creation(fx, known.chat, &reply);
        }
        let Some(creating) = self.creating.get_mut(&known.chat) else { return };
        creating.proposed = true;
        let request = creating.requests[0].clone();
        let Ask::Create { chat, group, members, title } = &request.ask else { return };
        let names: Vec<&str> = members.iter().map(UserId::as_str).collect();
        let fields = ChatCreateFields {
            chat: chat.0,
            kind: if *group { fb::ChatKind::Group } else { fb::ChatKind::Direct },
            maker: request.user.as_str(),
            maker_device: request.device.0,
            members: &names,
            title,
        };
        let p = self.rank(known.source);
        let partition = &mut self.partitions[p];
        let before = partition.gather.len_bytes();
        partition.gather.chat_create(&mut self.commands, &fields);
        self.gathered(p, Origin::Nobody, before);
    }

    /// Refuses all who asked for a chat to be made.
    pub(crate) fn refuse_creation(&mut self, fx: &mut Effects, chat: ChatId, reply: &Reply) {
        for request in self.take_creation(chat) {
            self.answer(fx, Answer { asker: request.asker, reply: reply.clone() });
        }
    }

    /// Those who asked for a chat to be made.
    pub(crate) fn take_creation(&mut self, chat: ChatId) -> Vec<Request> {
        self.creating.remove(&chat).map_or(Vec::new(), |creating| creating.requests)
    }

    pub(crate) fn forget_stale_creations(&mut self, fx: &mut Effects) {
        let now_us = self.now.mono_us;
        while let Some((_, chat)) = self.creating_order.pop_front_if(|(due, _)| *due <= now_us) {
            // One that is proposed ends at its apply. A later creation of the same chat may end early: it is asked again.
            if self.creating.get(&chat).is_some_and(|creating| !creating.proposed) {
                self.refuse_creation(fx, chat, &Reply::refused(Code::Overloaded, Kind::CreateChat, 0, ""));
            }
        }
    }

    fn refuse(&mut self, fx: &mut Effects, request: &Request, code: Code, detail: &str) {
        let (kind, seq) = match &request.ask {
            Ask::Create { .. } => (Kind::CreateChat, 0),
            Ask::Info { .. } => (Kind::ChatInfo, 0),
            Ask::Send { client_seq, .. } => (Kind::Send, client_seq.0),
        };
        self.answer(fx, Answer { asker: request.asker, reply: Reply::refused(code, kind, seq, detail) });
    }

    /// Gives an answer to the shard of its connection.
    pub(crate) fn answer(&mut self, fx: &mut Effects, answer: Answer) {
        if answer.asker.shard == self.config.shard {
            self.on_answer(fx, &answer);
        } else {
            self.tell(fx, answer.asker.shard, LaneItem::Answer(answer));
        }
    }

    /// Gives an answer to its connection, if that is still there.
    pub(crate) fn on_answer(&mut self, fx: &mut Effects, answer: &Answer) {
        let conn = answer.asker.conn;
        let Some(session) = self.session(conn) else {
            self.counters.answers_unclaimed += 1;
            return;
        };
        session.requests = session.requests.saturating_sub(1);
        self.say(fx, conn, answer.asker.correlation.0, &answer.reply);
    }

    /// Whether a queue takes these facts beside what deliveries and all other answers may need; an empty one always does.
    fn has_room_for_facts(&mut self, conn: ConnId, facts: &ChatFacts) -> bool {
        let names: usize = facts.members.iter().map(|user| user.as_str().len() + 16).sum();
        let queue_max = self.config.bounds.queue_max_bytes as usize;
        self.conn(conn).is_none_or(|it| {
            let queued = it.queued_bytes as usize;
            queued == 0 || queued + names + limits::ANSWER_MAX_BYTES <= queue_max / 4 * 3
        })
    }

    fn say(&mut self, fx: &mut Effects, conn: ConnId, correlation: u64, reply: &Reply) {
        match reply {
            Reply::Sent { chat, client_seq, chat_seq, time_ms, status } => {
                let fields = SentFields {
                    correlation,
                    chat: chat.0,
                    client_seq: client_seq.0,
                    chat_seq: chat_seq.0,
                    time_ms: *time_ms,
                    durability: fb::Durability::OneNode,
                    status: match status {
                        SentStatus::Stored => fb::SentStatus::Stored,
                        SentStatus::Repeated => fb::SentStatus::Repeated,
                        SentStatus::AlreadyStored => fb::SentStatus::AlreadyStored,
                    },
                };
                self.send_frame(fx, conn, |frames, out| frames.sent(out, &fields));
            }
            Reply::Chat(facts) if !self.has_room_for_facts(conn, facts) => {
                // It would be closed as slow for what it may ask. There is room when it has read what it was sent.
                let reply = Reply::refused(Code::Overloaded, Kind::ChatInfo, 0, "");
                self.say(fx, conn, correlation, &reply);
            }
            Reply::Chat(facts) => {
                let names: Vec<&str> = facts.members.iter().map(UserId::as_str).collect();
                let fields = ChatInfoFields {
                    correlation,
                    chat: facts.chat.0,
                    kind: if facts.group { fb::ChatKind::Group } else { fb::ChatKind::Direct },
                    title: &facts.title,
                    members: &names,
                    last_seq: facts.last_seq.0,
                    last_client_seq: facts.last_client_seq.0,
                    created: facts.created,
                    time_ms: facts.time_ms,
                };
                self.send_frame(fx, conn, |frames, out| frames.chat_info(out, &fields));
            }
            Reply::Refused { code, kind, client_seq, detail } => {
                self.counters.refuse(*code);
                let retry_after_ms = self.retry_after_ms(*code);
                let fields = ErrorFields {
                    correlation,
                    code: *code as u16,
                    retriable: code.retriable(),
                    // To a request the answer never closes; what closes is said by itself.
                    closes: false,
                    retry_after_ms,
                    kind: *kind as u8,
                    client_seq: client_seq.0,
                    detail: if detail.is_empty() { code.text() } else { detail },
                };
                self.send_frame(fx, conn, |frames, out| frames.error(out, &fields));
            }
        }
    }
}

/// A message on its way into its chat.
struct Message<'a> {
    asker: Asker,
    user: UserId,
    device: DeviceId,
    chat: ChatId,
    client_seq: ClientSeq,
    prev: ClientSeq,
    payload: &'a [u8],
}

impl Answered {
    pub(crate) fn reply(&self, chat: ChatId, status: SentStatus) -> Reply {
        Reply::Sent { chat, client_seq: self.client_seq, chat_seq: self.chat_seq, time_ms: self.time_ms, status }
    }

    pub(crate) fn long_before(chat: ChatId, client_seq: ClientSeq) -> Reply {
        Reply::Sent {
            chat,
            client_seq,
            chat_seq: crate::ids::ChatSeq(0),
            time_ms: 0,
            status: SentStatus::AlreadyStored,
        }
    }
}

impl Reply {
    pub(crate) fn refused(code: Code, kind: Kind, client_seq: u64, detail: &str) -> Reply {
        Reply::Refused { code, kind, client_seq: ClientSeq(client_seq), detail: detail.to_owned() }
    }

    fn user_unknown(user: &UserId) -> Reply {
        let detail = format!("user {user} has no device yet; a first login of {user} makes one");
        Reply::refused(Code::UserUnknown, Kind::CreateChat, 0, &detail)
    }
}
