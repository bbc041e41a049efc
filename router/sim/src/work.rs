//! What a device's person wants: chats, messages; and what its program does that a program should not have to: sending again
//! what was answered.

use std::collections::BTreeSet;

use whimbrel_client::ChatKind;
use whimbrel_wire::{Code, SendFields, fb, limits};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::client::{Asked, Client};
use crate::model::{self, Model, UserIndex};

/// Requests that the session does not know of carry correlations from here on.
pub(crate) const PROBES: u64 = 1 << 60;

/// Answers that a node keeps for a device and a chat; older ones it may have forgotten.
const ANSWERS_KEPT: usize = 64;

impl Client {
    /// Now and then something new.
    pub(crate) fn work(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        let wishes = if self.kept.chats.is_empty() { 200 } else { 8 };
        if self.session.unanswered_requests() < 2 && b.rng.per_mille(wishes) {
            self.wish(b, model);
        }
        if self.session.unanswered_requests() < 4 && b.rng.per_mille(500) {
            self.look_up(b, model);
        }
        // Who sees that nobody reads writes less.
        let burst = if b.waiting > b.weather.unread_max { 0 } else { b.weather.burst };
        for _ in 0..burst {
            if self.session.unanswered_sends() < b.weather.in_flight && b.rng.per_mille(b.weather.send_per_mille) {
                self.send(b, model)?;
            }
        }
        Ok(())
    }

    /// Wants a chat with somebody, who may have no device yet.
    fn wish(&mut self, b: &mut Bottom, model: &mut Model) {
        let own = model.user_of(self.device);
        let mut members: BTreeSet<UserIndex> = [own].into();
        // What is sent to a group goes to more shards than one.
        let group = b.rng.per_mille(750);
        let others = if group { b.rng.between(1, 2 * model.users.len() as u64) } else { 1 };
        for _ in 0..others {
            members.insert(b.rng.index(model.users.len()));
        }
        if !group && members.len() < 2 {
            members.insert((own + 1) % model.users.len());
        }
        // Names rise with their indices, so the set is sorted by name as the node sorts it.
        let members: Vec<UserIndex> = members.into_iter().collect();
        let title = if group { format!("group {}", model.wishes.len()) } else { String::new() };
        let wish = model.wish(self.device, group, &title, members.clone());
        let names: Vec<&str> =
            members.iter().filter(|&&user| user != own).map(|&user| model.users[user].name.as_str()).collect();
        let kind = if group { ChatKind::Group } else { ChatKind::Direct };
        let correlation = self.session.create_chat(kind, &names, &title, b.rng.next());
        self.asked.insert(correlation, Asked::Wish(wish));
    }

    /// Asks about a chat that it knows by name only.
    fn look_up(&mut self, b: &mut Bottom, model: &Model) {
        let asked =
            |chat: &u128| self.asked.values().any(|it| matches!(it, Asked::Info { chat: other, .. } if other == chat));
        let unknown: Vec<u128> =
            self.kept.chats.iter().copied().filter(|chat| !self.ready_chats.contains(chat) && !asked(chat)).collect();
        if unknown.is_empty() && (self.kept.chats.is_empty() || !b.rng.per_mille(10)) {
            return;
        }
        let all: Vec<u128> = self.kept.chats.iter().copied().collect();
        let chat = b.rng.pick(if unknown.is_empty() { &all } else { &unknown });
        let (last_seq, last_client_seq) = model.known_of(chat, self.device);
        let correlation = self.session.chat_info(chat);
        self.asked.insert(correlation, Asked::Info { chat, last_seq, last_client_seq });
    }

    fn send(&mut self, b: &mut Bottom, model: &mut Model) -> Result<(), Violation> {
        if self.ready_chats.is_empty() {
            return Ok(());
        }
        let chat = b.rng.pick(&self.ready_chats);
        let len = match b.rng.below(1000) {
            0..10 => 0,
            10..12 => limits::PAYLOAD_MAX_BYTES as u64,
            12..700 => b.rng.between(8, 64),
            _ => b.rng.between(8, b.weather.payload_max),
        };
        let mut payload = Vec::new();
        model::payload(model.messages.len(), len as usize, &mut payload);
        let sent = self.session.send(chat, &payload);
        let number = sent.map_err(|error| {
            Violation::new(Check::WrongAnswer, format!("the session does not take a message: {error}"))
        })?;
        self.kept.pending.insert(number.client_seq, (chat, number, model.messages.len()));
        self.kept.next_client_seq = number.client_seq + 1;
        b.trace.line(format_args!(
            "{} sends {} after {} to {}",
            model.name(self.device),
            number.client_seq,
            number.prev,
            model::short(chat)
        ));
        model.send(self.device, chat, number.client_seq, &payload);
        Ok(())
    }

    /// Sends again what was answered already, the same or something else under its number.
    pub(crate) fn probe(&mut self, b: &mut Bottom, model: &Model, said: &mut Vec<u8>) {
        if b.healed || !self.session.is_ready() || self.kept.answered.is_empty() || !b.rng.per_mille(10) {
            return;
        }
        let index = b.rng.pick(&self.kept.answered);
        let message = &model.messages[index];
        let other = b.rng.per_mille(300);
        let correlation = self.next_probe;
        self.next_probe += 1;
        self.probes.insert(correlation, (index, other));
        let mut payload = message.payload.clone();
        if other {
            match payload.last_mut() {
                Some(last) => *last ^= 1,
                None => payload.push(0),
            }
        }
        b.stats.probes += 1;
        // Whatever it names as the one before: what is stored is answered by its number alone.
        let prev = b.rng.below(message.client_seq);
        let fields = SendFields { correlation, chat: message.chat, client_seq: message.client_seq, prev };
        self.builder.send(said, &fields, &payload);
    }

    pub(crate) fn probe_sent(&mut self, it: &fb::Sent<'_>, model: &Model) -> Result<(), Violation> {
        let Some((index, other)) = self.probes.remove(&it.correlation()) else { return Ok(()) };
        let message = &model.messages[index];
        let right = match it.status() {
            fb::SentStatus::Repeated => !other && message.chat_seq.is_none_or(|known| known == it.chat_seq()),
            // Only what lies behind so many later ones may be forgotten.
            fb::SentStatus::AlreadyStored => it.chat_seq() == 0 && model.sends_after(index) >= ANSWERS_KEPT,
            _ => false,
        };
        if right {
            return Ok(());
        }
        let payload = if other { "another" } else { "the same" };
        let text = format!(
            "{} sends {} again with {payload} payload and is told {:?} at {}; it was stored at {:?}",
            model.name(self.device),
            message.client_seq,
            it.status(),
            it.chat_seq(),
            message.chat_seq
        );
        Err(Violation::new(Check::Duplicate, text))
    }

    pub(crate) fn probe_refused(&mut self, it: &fb::Error<'_>, model: &Model) -> Result<(), Violation> {
        let Some((_, other)) = self.probes.remove(&it.correlation()) else { return Ok(()) };
        match Code::from_u16(it.code()) {
            Some(Code::PayloadMismatch) if other => Ok(()),
            Some(
                Code::InRepair
                | Code::Overloaded
                | Code::NotReady
                | Code::StorageFull
                | Code::TooManyInFlight
                | Code::ShuttingDown,
            ) => Ok(()),
            code => self.wrong(model, format!("{code:?} for a send that is stored")).map(|_| ()),
        }
    }
}
