//! A simulated device: the real client library's session, and around it a program that keeps what must outlive it, shows
//! deliveries, acknowledges late, sends, asks twice, loses its connection and starts anew.
//!
//! Invariant: what the program has kept is never behind what it has told the node.

use std::collections::{BTreeMap, BTreeSet};

use whimbrel_client::{ClientError, Config, Content, Delivery, Event, SendNumber, Session};
use whimbrel_wire::{Builder, Code};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::hear::Line;
use crate::model::{DeviceIndex, Model};
use crate::node::Node;
use crate::rng::Rng;
use crate::socket::Socket;
use crate::tokens;
use crate::weather::Weather;

/// Once all faults have ended, a device looks at its socket no oftener.
const HEALED_PAUSE_US: u64 = 2_000;

/// And whose partition is in repair does not try to log in again and again.
const IN_REPAIR_PAUSE_US: u64 = 1_000_000;

/// What a program has on its disk.
#[derive(Default)]
pub(crate) struct Kept {
    /// All deliveries up to this place are kept and were shown.
    pub(crate) floor: u64,
    pub(crate) next_client_seq: u64,
    /// Sends without an answer, and their messages in the model.
    pub(crate) pending: BTreeMap<u64, (u128, SendNumber, usize)>,
    pub(crate) chats: BTreeSet<u128>,
    /// Sends with an answer: messages in the model.
    pub(crate) answered: Vec<usize>,
}

/// What a request was about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    /// A wish of the model.
    Wish(usize),
    /// A chat, and what everybody knew of it then: its newest place, and this device's newest send that was acknowledged.
    Info { chat: u128, last_seq: u64, last_client_seq: u64 },
}

pub(crate) struct Client {
    pub(crate) device: DeviceIndex,
    pub(crate) name: String,
    number: u32,
    pub(crate) session: Session,
    pub(crate) kept: Kept,
    pub(crate) line: Option<Line>,
    pub(crate) builder: Builder,
    /// Chats whose facts the session knows.
    pub(crate) ready_chats: Vec<u128>,
    pub(crate) asked: BTreeMap<u64, Asked>,
    /// Sends that were answered and are sent again, by correlation: the message, and whether under another payload.
    pub(crate) probes: BTreeMap<u64, (usize, bool)>,
    pub(crate) next_probe: u64,
    /// The highest `client_seq` that ever went out.
    pub(crate) said: u64,
    /// A planted fault: none of its acknowledgements arrives.
    pub(crate) acks_drop: bool,
    /// Delivered, not kept yet.
    unkept: Vec<Delivery>,
    connect_at_us: u64,
    read_at_us: u64,
    acted_us: u64,
    next_us: u64,
    /// Why its last login, or the connection after it, came to nothing.
    pub(crate) refused: Option<Code>,
}

impl Client {
    pub(crate) fn new(device: DeviceIndex, name: &str, number: u32, weather: &Weather, rng: &mut Rng) -> Client {
        let kept = Kept { next_client_seq: 1, ..Kept::default() };
        let session = Session::new(config(name, number, &kept));
        // Most devices are there from the start, some come late.
        let connect_at_us =
            if rng.per_mille(300) { rng.around(300 * weather.client_us) } else { rng.around(weather.client_us) };
        Client {
            device,
            name: name.to_owned(),
            number,
            session,
            kept,
            line: None,
            builder: Builder::default(),
            ready_chats: Vec::new(),
            asked: BTreeMap::new(),
            probes: BTreeMap::new(),
            next_probe: crate::work::PROBES,
            said: 0,
            acks_drop: false,
            unkept: Vec::new(),
            connect_at_us,
            read_at_us: 0,
            acted_us: 0,
            next_us: connect_at_us,
            refused: None,
        }
    }

    /// When it does something next.
    pub(crate) fn due_us(&self, b: &Bottom) -> u64 {
        match &self.line {
            // With nothing else to do it waits for its socket, and takes what comes together.
            Some(line) if b.healed && line.has_news(b) => self.acted_us + HEALED_PAUSE_US,
            _ => self.next_us,
        }
    }

    /// Does something.
    pub(crate) fn act(&mut self, b: &mut Bottom, model: &mut Model, node: Option<&mut Node>) -> Result<(), Violation> {
        self.acted_us = b.now_us;
        self.next_us = b.now_us + if b.healed { 50_000 } else { b.rng.around(b.weather.client_us) };
        if self.line.is_none() {
            if b.now_us < self.connect_at_us {
                self.next_us = self.connect_at_us;
                return Ok(());
            }
            self.connect(b, node);
        }
        if b.now_us >= self.read_at_us {
            self.listen(b, model)?;
        }
        self.take_events(model)?;
        self.keep_and_acknowledge(b, model)?;
        if !b.healed {
            self.work(b, model)?;
        }
        self.speak(b, model)?;
        if !b.healed {
            self.misfortune(b, model)?;
        }
        Ok(())
    }

    /// From here on it is there, reads, and has nothing new to say.
    pub(crate) fn heal(&mut self, b: &Bottom) {
        self.connect_at_us = b.now_us;
        self.read_at_us = b.now_us;
        self.next_us = b.now_us;
    }

    /// The same where only some chats are served.
    pub(crate) fn unrest_where(&self, model: &Model, chat: &dyn Fn(u128) -> bool) -> Option<String> {
        let is_served = |asked: &Asked| match asked {
            // A chat that is to be made needs the partitions of all its members.
            Asked::Wish(_) => false,
            Asked::Info { chat: asked, .. } => chat(*asked),
        };
        let waits = self.kept.pending.values().any(|(of, ..)| chat(*of)) || self.asked.values().any(is_served);
        let shown = model.shown_up_to(self.device);
        let rests = self.session.is_ready() && !waits && self.unkept.is_empty() && self.session.floor() >= shown;
        (!rests).then(|| format!("{} waits", model.name(self.device)))
    }

    /// What it still waits for, if it does.
    pub(crate) fn unrest(&self, model: &Model) -> Option<String> {
        let shown = model.shown_up_to(self.device);
        let what = if !self.session.is_ready() {
            "is not logged in".to_owned()
        } else if self.session.unanswered_sends() > 0 {
            format!("has {} sends unanswered", self.session.unanswered_sends())
        } else if self.session.unanswered_requests() > 0 {
            format!("has {} requests unanswered", self.session.unanswered_requests())
        } else if !self.unkept.is_empty() || self.session.floor() < shown {
            format!("has acknowledged {} of {shown}", self.session.floor())
        } else {
            return None;
        };
        Some(format!("{} {what}", model.name(self.device)))
    }

    fn connect(&mut self, b: &mut Bottom, node: Option<&mut Node>) {
        self.connect_at_us = b.now_us + b.rng.around(10 * b.weather.client_us);
        let index = b.sockets.len();
        let (pieces, capacity) = b.weather.connection(&mut b.rng);
        let mut socket = Socket::new(capacity, pieces);
        socket.of_device = true;
        if b.healed {
            socket.heal();
        }
        b.sockets.push(socket);
        if node.is_some_and(|node| node.accept(index, b)) {
            b.trace.line(format_args!("{}/{} connects", self.name, self.number));
            self.line = Some(Line::new(index));
            self.session.connected(b.now_ms());
        }
    }

    /// The connection is of no use any more, or gone.
    pub(crate) fn lose(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        let Some(line) = self.line.take() else { return Ok(()) };
        b.trace.line(format_args!("{}/{} has no connection any more", self.name, self.number));
        if !b.sockets[line.socket].abandoned && !b.sockets[line.socket].client_closed() {
            let arriving = b.arriving(b.sockets[line.socket].on_the_way_up());
            b.socket(line.socket).client_closes(arriving);
        }
        self.session.disconnected();
        self.probes.clear();
        let pause = match self.refused {
            Some(Code::InRepair) if b.healed => IN_REPAIR_PAUSE_US,
            _ if b.healed => 1000,
            _ => b.weather.client_us,
        };
        self.connect_at_us = b.now_us + b.rng.around(pause);
        model.detached(self.device)
    }

    /// The program is started again: it knows what it has kept.
    fn restart(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        b.trace.line(format_args!("{}/{} starts anew", self.name, self.number));
        self.lose(b, model)?;
        self.session = Session::new(config(&self.name, self.number, &self.kept));
        for &(chat, number, message) in self.kept.pending.values() {
            let payload = &model.messages[message].payload;
            let resumed = self.session.resume_send(chat, number, payload);
            resumed.map_err(|error| {
                Violation::new(Check::WrongAnswer, format!("{} cannot resume {number:?}: {error}", self.name))
            })?;
        }
        self.ready_chats.clear();
        self.asked.clear();
        self.unkept.clear();
        Ok(())
    }

    fn take_events(&mut self, model: &mut Model) -> Result<(), Violation> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Welcome(_) | Event::Refused(_) | Event::GoAway(_) | Event::Pong { .. } => {}
                // The tap has seen it too, and the model will say more about it than could be said here.
                Event::Gap { .. } | Event::InboxLost { .. } => {}
                Event::Delivered(delivery) => {
                    self.kept.chats.insert(delivery.chat);
                    self.unkept.push(delivery);
                }
                Event::Sent(receipt) => {
                    if let Some((_, _, message)) = self.kept.pending.remove(&receipt.client_seq) {
                        self.kept.answered.push(message);
                    }
                }
                Event::SendFailed { client_seq, .. } => {
                    self.kept.pending.remove(&client_seq);
                }
                Event::Chat { correlation, facts } => {
                    self.asked.remove(&correlation);
                    self.kept.chats.insert(facts.chat);
                    if !self.ready_chats.contains(&facts.chat) {
                        self.ready_chats.push(facts.chat);
                    }
                }
                Event::RequestFailed { correlation, .. } => {
                    self.asked.remove(&correlation);
                }
            }
        }
        // What the session gives out must be what the tap heard.
        for delivery in &self.unkept {
            if let Content::Unknown { event, .. } = &delivery.content {
                let name = model.name(self.device);
                return Err(Violation::new(Check::Phantom, format!("{name} is sent the unknown event {event}")));
            }
        }
        Ok(())
    }

    fn keep_and_acknowledge(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        if b.healed || b.rng.per_mille(b.weather.keep_per_mille) {
            for delivery in self.unkept.drain(..) {
                let payload = match &delivery.content {
                    Content::Message(payload) => payload.as_slice(),
                    Content::ChatCreated { .. } | Content::Unknown { .. } => &[],
                };
                self.kept.floor = delivery.inbox_seq;
                model.shown(self.device, delivery.inbox_seq, (delivery.chat, delivery.chat_seq), payload)?;
            }
        }
        if b.healed || b.rng.per_mille(b.weather.ack_per_mille) {
            self.session.ack(self.kept.floor);
        }
        Ok(())
    }

    /// What the world does to a device.
    fn misfortune(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        if b.rng.per_mille(b.weather.lazy_per_mille) {
            self.read_at_us = b.now_us + b.rng.around(50 * b.weather.client_us);
        }
        if !b.rng.per_mille(b.weather.break_per_mille) {
            return Ok(());
        }
        match b.rng.below(10) {
            0 => {
                if let Some(line) = &self.line {
                    let until_us = b.now_us + b.rng.around(100 * b.weather.client_us);
                    b.sockets[line.socket].stalled_until_us = until_us;
                }
            }
            1 | 2 => {
                // It goes elsewhere without a word; the node still has its old connection.
                if let Some(line) = &self.line {
                    b.sockets[line.socket].abandoned = true;
                    b.stats.breaks += 1;
                }
                self.lose(b, model)?;
            }
            3 | 4 => self.restart(b, model)?,
            5 => {
                b.stats.breaks += 1;
                self.lose(b, model)?;
                self.connect_at_us = b.now_us + b.rng.around(500 * b.weather.client_us);
            }
            _ => {
                b.stats.breaks += 1;
                self.lose(b, model)?;
            }
        }
        Ok(())
    }

    /// What the session makes of a connection that went wrong.
    pub(crate) fn judge(&self, error: &ClientError) -> Result<(), Violation> {
        match error {
            ClientError::Silent => Ok(()),
            error => Err(Violation::new(
                Check::WrongAnswer,
                format!("the session of {}/{} says: {error}", self.name, self.number),
            )),
        }
    }
}

fn config(name: &str, number: u32, kept: &Kept) -> Config {
    let token = tokens::token(name, number, false);
    Config {
        floor: kept.floor,
        next_client_seq: kept.next_client_seq,
        agent: String::new(),
        ..Config::new(name, number, token)
    }
}
