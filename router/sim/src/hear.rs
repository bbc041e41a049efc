//! What a device hears and says, frame by frame: everything goes past the model before the client's own code sees it, and
//! once more after that code has spoken.

use whimbrel_core::ids::{ChatId, PartitionId, UserId};
use whimbrel_core::route;
use whimbrel_wire::{ClientFrame, Code, Decoder, FrameError, Kind, ServerFrame, chat_id, fb, limits};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::client::{Asked, Client};
use crate::model::{Delivery, Greeting, Model};
use crate::plant::Plant;
use crate::socket::SocketIndex;
use crate::tap::{self, Tap};
use crate::work::PROBES;

/// A device's connection.
pub(crate) struct Line {
    pub(crate) socket: SocketIndex,
    tap: Tap,
    hello_floor: u64,
}

impl Line {
    pub(crate) fn new(socket: SocketIndex) -> Line {
        Line { socket, tap: Tap::default(), hello_floor: 0 }
    }

    pub(crate) fn has_news(&self, b: &Bottom) -> bool {
        let socket = &b.sockets[self.socket];
        socket.client_readable() > 0 || socket.client_sees_end()
    }
}

impl Client {
    /// Receives what there is.
    pub(crate) fn listen(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        let Some(mut line) = self.line.take() else { return Ok(()) };
        let mut heard = Vec::new();
        {
            let Bottom { rng, sockets, .. } = b;
            sockets[line.socket].client_reads(rng, &mut heard);
        }
        line.tap.push(&heard);
        let mut fine = true;
        while let Some(bytes) = line.tap.next() {
            let frame = tap::read(bytes)?;
            b.trace.line(format_args!("{} hears {}", model.name(self.device), Heard(&frame)));
            if !self.hear(line.hello_floor, &frame, b, model)? {
                continue;
            }
            // In two pieces now and then, so that the session's own decoder has something to do.
            let cut = if b.rng.per_mille(100) { b.rng.index(bytes.len()) } else { 0 };
            for piece in [&bytes[..cut], &bytes[cut..]] {
                if let Err(error) = self.session.receive(b.now_ms(), piece) {
                    self.judge(&error)?;
                    fine = false;
                }
            }
        }
        let ended = b.sockets[line.socket].client_sees_end();
        self.line = Some(line);
        if ended || !fine { self.lose(b, model) } else { Ok(()) }
    }

    /// Says what the session has to say.
    pub(crate) fn speak(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        if self.line.is_none() {
            return Ok(());
        }
        let now_ms = b.now_ms();
        if self.session.poll_timeout().is_some_and(|at| at <= now_ms)
            && let Err(error) = self.session.handle_timeout(now_ms)
        {
            self.judge(&error)?;
            return self.lose(b, model);
        }
        let mut said = Vec::new();
        self.session.poll_transmit(now_ms, &mut said);
        self.probe(b, model, &mut said);
        let mut carried = Vec::with_capacity(said.len());
        let mut rest = said.as_slice();
        while let Some(length) = rest.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) {
            let (frame, behind) = rest.split_at(length);
            rest = behind;
            match self.say(frame, model)? {
                Some(_) if self.acks_drop || b.fuse.fires(Plant::AckDrops) => self.acks_drop = true,
                Some(floor) if b.fuse.fires(Plant::AckJumps) => self.builder.ack(&mut carried, floor + 1),
                _ => carried.extend_from_slice(frame),
            }
        }
        if let Some(line) = &self.line
            && !carried.is_empty()
        {
            b.sockets[line.socket].client_writes(&carried);
        }
        Ok(())
    }

    /// Looks at a frame before it goes out. The floor of an acknowledgement.
    fn say(&mut self, bytes: &[u8], model: &mut Model) -> Result<Option<u64>, Violation> {
        let unreadable =
            |error: FrameError| Violation::new(Check::WrongAnswer, format!("the client sends no frame: {error}"));
        let mut decoder = Decoder::default();
        let mut input = bytes;
        let Some(frame) = decoder.decode(&mut input, limits::FRAME_MAX_BYTES).map_err(unreadable)? else {
            return Ok(None);
        };
        let (floor, is_ack) = match ClientFrame::parse(&frame).map_err(unreadable)? {
            ClientFrame::Hello(hello) => {
                if let Some(line) = &mut self.line {
                    line.hello_floor = hello.floor();
                }
                model.hello(self.device, hello.floor());
                (hello.floor(), false)
            }
            ClientFrame::Ack(ack) => {
                model.acked(self.device, ack.floor());
                (ack.floor(), true)
            }
            ClientFrame::Send(send, _) if send.correlation() < PROBES => {
                model.resends += u64::from(send.client_seq() <= self.said);
                self.said = self.said.max(send.client_seq());
                return Ok(None);
            }
            ClientFrame::Ping(_) | ClientFrame::CreateChat(_) | ClientFrame::ChatInfo(_) | ClientFrame::Send(..) => {
                return Ok(None);
            }
        };
        if floor > self.kept.floor {
            let text = format!("{} claims {floor} and has kept {}", model.name(self.device), self.kept.floor);
            return Err(Violation::new(Check::Lost, text));
        }
        Ok(is_ack.then_some(floor))
    }

    /// Looks at a frame before the session does. False if it is not for the session.
    fn hear(
        &mut self,
        hello_floor: u64,
        frame: &ServerFrame<'_>,
        b: &mut Bottom,
        model: &mut Model,
    ) -> Result<bool, Violation> {
        match frame {
            ServerFrame::Welcome(it) => {
                b.stats.logins += 1;
                self.refused = None;
                let credit_messages = u64::from(it.credit_messages());
                model.welcome(
                    self.device,
                    &Greeting { hello_floor, head: it.head(), floor: it.floor(), credit_messages, shard: it.shard() },
                )?;
            }
            ServerFrame::Deliver(it, payload) => self.hear_delivery(it, payload, model)?,
            ServerFrame::Sent(it) if it.correlation() >= PROBES => {
                self.probe_sent(it, model)?;
                return Ok(false);
            }
            ServerFrame::Sent(it) => {
                let place = (it.chat_seq() != 0).then(|| (it.chat_seq(), it.time_ms()));
                if place.is_none() != (it.status() == fb::SentStatus::AlreadyStored)
                    || it.durability() != fb::Durability::OneNode
                {
                    return self.wrong(model, format!("Sent {:?} {:?} at {place:?}", it.status(), it.durability()));
                }
                model.sent(self.device, chat_id(it.chat()), it.client_seq(), place)?;
            }
            ServerFrame::ChatInfo(it) => self.hear_chat(it, model)?,
            ServerFrame::Error(it) if it.correlation() >= PROBES => {
                self.probe_refused(it, model)?;
                return Ok(it.closes());
            }
            ServerFrame::Error(it) => self.hear_error(it, b, model)?,
            ServerFrame::Refused(it) => self.hear_end(it.code(), b, model)?,
            ServerFrame::GoAway(it) => self.hear_end(it.code(), b, model)?,
            ServerFrame::Pong(_) => {}
        }
        Ok(true)
    }

    fn hear_delivery(&mut self, it: &fb::Deliver<'_>, payload: &[u8], model: &mut Model) -> Result<(), Violation> {
        let created = (it.event() == fb::Event::ChatCreated)
            .then(|| (it.members().iter().flatten().collect(), it.title().unwrap_or_default()));
        model.deliver(
            self.device,
            &Delivery {
                inbox_seq: it.inbox_seq(),
                chat: chat_id(it.chat()),
                chat_seq: it.chat_seq(),
                time_ms: it.time_ms(),
                sender: it.sender(),
                sender_device: it.sender_device(),
                created,
                payload,
            },
        )
    }

    fn hear_chat(&mut self, it: &fb::ChatInfo<'_>, model: &mut Model) -> Result<(), Violation> {
        let chat = chat_id(it.chat());
        // An answer to a request from before the program was started again, or one that came twice.
        let Some(asked) = self.asked.get(&it.correlation()).copied() else { return Ok(()) };
        let (last_seq, last_client_seq) = match asked {
            Asked::Wish(wish) => {
                let wrong = |text| Violation::new(Check::Phantom, text);
                model.found(wish, chat).map_err(wrong)?;
                model.users_known(wish)?;
                (1, 0)
            }
            Asked::Info { chat: asked, last_seq, last_client_seq } => {
                if asked != chat {
                    return self.wrong(model, "the facts of another chat".into()).map(|_| ());
                }
                (last_seq, last_client_seq)
            }
        };
        let members: Vec<&str> = it.members().iter().flatten().collect();
        let known = model.chats.get(&chat).is_some_and(|known| {
            let names = known.members.iter().map(|&user| model.users[user].name.as_str());
            names.eq(members.iter().copied())
                && known.title == it.title().unwrap_or_default()
                && known.group == (it.kind() == fb::ChatKind::Group)
        });
        if !known {
            return self
                .wrong(model, format!("other facts of a chat: {members:?} '{}'", it.title().unwrap_or_default()))
                .map(|_| ());
        }
        if it.last_seq() < last_seq || it.last_client_seq() < last_client_seq {
            let told = (it.last_seq(), it.last_client_seq());
            let text = format!(
                "{} asks of a chat that had {:?} and is told {told:?}",
                model.name(self.device),
                (last_seq, last_client_seq)
            );
            return Err(Violation::new(Check::Lost, text));
        }
        Ok(())
    }

    fn hear_error(&mut self, it: &fb::Error<'_>, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        let Some(code) = Code::from_u16(it.code()) else {
            return self.wrong(model, format!("the unknown code {}", it.code())).map(|_| ());
        };
        if (it.retriable(), it.closes()) != (code.retriable(), code.closes()) {
            return self.wrong(model, format!("{} with other flags", code.name())).map(|_| ());
        }
        match code {
            Code::UserUnknown => match self.asked.get(&it.correlation()) {
                Some(&Asked::Wish(wish)) => model.user_unknown(wish),
                Some(Asked::Info { .. }) => self.wrong(model, code.name().into()).map(|_| ()),
                None => Ok(()),
            },
            Code::ChatUnknown if it.kind() == Kind::Send as u8 => {
                model.refused(self.device, it.client_seq(), code.name())
            }
            code if code.closes() => self.hear_end(it.code(), b, model),
            Code::InRepair => self.hear_in_repair(it, b, model),
            code if code.retriable() && code != Code::Internal => Ok(()),
            code => self.wrong(model, code.name().into()).map(|_| ()),
        }
    }

    /// A partition that has to do with a request is in repair, or was.
    fn hear_in_repair(&mut self, it: &fb::Error<'_>, b: &mut Bottom, model: &Model) -> Result<(), Violation> {
        b.stats.in_repair_refused += 1;
        let partitions = b.weather.partitions;
        let is_in_repair = |partition: PartitionId| b.rots.ever.contains(&partition.0);
        let chat = |chat: u128| is_in_repair(route::partition_of_chat(ChatId(chat), partitions));
        let may_be = match (self.kept.pending.get(&it.client_seq()), self.asked.get(&it.correlation())) {
            (Some((id, ..)), _) if it.kind() == Kind::Send as u8 => chat(*id),
            (_, Some(Asked::Info { chat: id, .. })) => chat(*id),
            // Of one that is being made its number is not known, and that of each member may be the reason.
            _ => !b.rots.ever.is_empty(),
        };
        if may_be { Ok(()) } else { self.wrong(model, Code::InRepair.name().into()).map(|_| ()) }
    }

    /// Why a connection of a device that does nothing wrong may end.
    fn hear_end(&mut self, code: u16, b: &mut Bottom, model: &Model) -> Result<(), Violation> {
        self.refused = Code::from_u16(code);
        match self.refused {
            Some(Code::InRepair) if self.is_ever_in_repair(b) => {
                b.stats.in_repair_refused += 1;
                Ok(())
            }
            Some(
                Code::LoginTimeout
                | Code::KeepaliveTimeout
                | Code::Replaced
                | Code::ShuttingDown
                | Code::SlowReader
                | Code::Overloaded
                | Code::NotReady
                | Code::StorageFull
                | Code::TooManyConnections,
            ) => Ok(()),
            Some(code) => self.wrong(model, code.name().into()).map(|_| ()),
            None => self.wrong(model, format!("the unknown code {code}")).map(|_| ()),
        }
    }

    /// Whether the partition of its user was in repair at any time.
    fn is_ever_in_repair(&self, b: &Bottom) -> bool {
        b.rots.ever.contains(&self.partition(b))
    }

    /// The partition of its user.
    pub(crate) fn partition(&self, b: &Bottom) -> u16 {
        let user = UserId::new(&self.name).expect("a short name");
        route::partition_of_user(&user, b.weather.partitions).0
    }

    pub(crate) fn wrong(&self, model: &Model, told: String) -> Result<bool, Violation> {
        Err(Violation::new(Check::WrongAnswer, format!("{} is told {told}", model.name(self.device))))
    }
}

/// A frame of a node in the story.
pub(crate) struct Heard<'a>(pub(crate) &'a ServerFrame<'a>);

impl std::fmt::Display for Heard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = |number: u16| Code::from_u16(number).map_or("unknown", Code::name);
        match self.0 {
            ServerFrame::Welcome(it) => {
                write!(f, "Welcome head {} floor {} shard {}", it.head(), it.floor(), it.shard())
            }
            ServerFrame::Refused(it) => write!(f, "Refused {}", code(it.code())),
            ServerFrame::Pong(_) => f.write_str("Pong"),
            ServerFrame::ChatInfo(it) => {
                write!(
                    f,
                    "ChatInfo {} up to {}, own {}",
                    crate::model::short(chat_id(it.chat())),
                    it.last_seq(),
                    it.last_client_seq()
                )
            }
            ServerFrame::Sent(it) => {
                write!(
                    f,
                    "Sent {} {}/{} {:?}",
                    it.client_seq(),
                    crate::model::short(chat_id(it.chat())),
                    it.chat_seq(),
                    it.status()
                )
            }
            ServerFrame::Deliver(it, payload) => {
                let chat = crate::model::short(chat_id(it.chat()));
                write!(f, "Deliver {} {chat}/{} {} bytes", it.inbox_seq(), it.chat_seq(), payload.len())
            }
            ServerFrame::GoAway(it) => write!(f, "GoAway {}", code(it.code())),
            ServerFrame::Error(it) => write!(f, "Error {} for {} {}", code(it.code()), it.kind(), it.client_seq()),
        }
    }
}
