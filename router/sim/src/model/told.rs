//! What devices are told, held against what was tried and what others were told.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Attachment, Chat, Checked, Delivery, DeviceIndex, Fate, Greeting, Held, Model, Place, Wish, short, violated,
};
use crate::check::{Check, Violation};

impl Model {
    pub(crate) fn welcome(&mut self, device: DeviceIndex, greeting: &Greeting) -> Checked {
        let now = self.tick();
        let name = self.name(device);
        let it = &mut self.devices[device];
        it.welcome_at.get_or_insert(now);
        let Greeting { hello_floor, head, floor, credit_messages, shard } = *greeting;
        it.shard = shard;
        let start = hello_floor.max(floor);
        self.waited += head.saturating_sub(start);
        it.attachment =
            Some(Attachment { next: start + 1, missing: BTreeSet::new(), acked: start, credit: credit_messages });
        if head < hello_floor {
            return violated(
                Check::Lost,
                format!("{name} has kept all up to {hello_floor}; the node's inbox ends at {head}"),
            );
        }
        if floor > it.claimed {
            return violated(
                Check::Lost,
                format!("{name} never acknowledged more than {}; the node goes on above {floor}", it.claimed),
            );
        }
        if floor > head {
            return violated(Check::Gap, format!("{name} is told a floor of {floor} above the head {head}"));
        }
        Ok(())
    }

    /// The connection is gone: what was skipped on it will not come any more.
    pub(crate) fn detached(&mut self, device: DeviceIndex) -> Checked {
        let Some(attachment) = self.devices[device].attachment.take() else { return Ok(()) };
        match attachment.missing.first() {
            Some(missing) => violated(
                Check::Gap,
                format!("{} was sent inbox_seq {} but never {missing}", self.name(device), attachment.next - 1),
            ),
            None => Ok(()),
        }
    }

    pub(crate) fn deliver(&mut self, device: DeviceIndex, it: &Delivery<'_>) -> Checked {
        self.delivered += 1;
        self.group_delivered += u64::from(self.chats.get(&it.chat).is_some_and(|chat| chat.group));
        self.numbered(device, it.inbox_seq)?;
        let name = self.name(device);
        let held = self.recognise(device, it)?;
        let what = format!("{name} is sent {}/{} as inbox_seq {}", short(it.chat), it.chat_seq, it.inbox_seq);
        self.place(it.chat, it.chat_seq, it.time_ms, held, &what)
    }

    pub(super) fn numbered(&mut self, device: DeviceIndex, inbox_seq: u64) -> Checked {
        let name = self.name(device);
        let Some(attachment) = &mut self.devices[device].attachment else {
            return violated(Check::Phantom, format!("{name} is sent inbox_seq {inbox_seq} before its Welcome"));
        };
        if inbox_seq >= attachment.next {
            // What it acknowledged on this connection, since it came on an older one, is not sent again.
            attachment.missing.extend(attachment.next.max(attachment.acked + 1)..inbox_seq);
            attachment.next = inbox_seq + 1;
        } else if attachment.missing.remove(&inbox_seq) {
            let after = attachment.next - 1;
            return violated(Check::OutOfOrder, format!("{name} is sent inbox_seq {inbox_seq} after {after}"));
        } else {
            return violated(Check::Duplicate, format!("{name} is sent inbox_seq {inbox_seq} again on one connection"));
        }
        if inbox_seq == attachment.acked + attachment.credit {
            self.credit_used_up += 1;
        }
        if inbox_seq > attachment.acked + attachment.credit {
            let (acked, credit) = (attachment.acked, attachment.credit);
            return violated(
                Check::Credit,
                format!("{name} is sent {inbox_seq}, acknowledged {acked} and gave credit for {credit}"),
            );
        }
        Ok(())
    }

    /// What was sent that looks like this delivery.
    fn recognise(&mut self, device: DeviceIndex, it: &Delivery<'_>) -> Result<Held, Violation> {
        let place = format!("{} is sent {}/{}", self.name(device), short(it.chat), it.chat_seq);
        let phantom = |text: String| Violation::new(Check::Phantom, format!("{place}: {text}"));
        let Some(sender) = self.find(it.sender, it.sender_device) else {
            return Err(phantom(format!("nobody is {} {}", it.sender, it.sender_device)));
        };
        let user = self.devices[device].user;
        if let Some((members, title)) = &it.created {
            self.recognise_chat(sender, it.chat, members, title).map_err(phantom)?;
            let invited = self.chats.get(&it.chat).is_some_and(|chat| chat.members.contains(&user));
            return if invited { Ok(Held::Created { maker: sender }) } else { Err(phantom("it is no member".into())) };
        }
        match self.chats.get(&it.chat) {
            None => return Err(phantom("nobody was told of such a chat".into())),
            Some(chat) if !chat.members.contains(&user) => return Err(phantom("it is no member".into())),
            Some(_) => {}
        }
        let found = if it.payload.is_empty() {
            self.find_empty(sender, it.chat, it.chat_seq)
        } else {
            self.find_payload(it.payload)
        };
        let Some(index) = found else {
            return Err(phantom(format!("nobody sent these {} bytes", it.payload.len())));
        };
        let message = &self.messages[index];
        if message.payload != it.payload {
            return Err(phantom(format!("the payload of message {index} is another one")));
        }
        if (message.sender, message.chat) != (sender, it.chat) {
            return Err(phantom(format!(
                "message {index} is of {} for {}",
                self.name(message.sender),
                short(message.chat)
            )));
        }
        if message.fate == Fate::Refused {
            return Err(phantom(format!("message {index} was refused for good")));
        }
        Ok(Held::Message(index))
    }

    fn recognise_chat(&mut self, maker: DeviceIndex, id: u128, members: &[&str], title: &str) -> Result<(), String> {
        let members = members
            .iter()
            .map(|name| self.users.iter().position(|user| user.name == *name))
            .collect::<Option<Vec<_>>>();
        let members = members.ok_or("a member is nobody")?;
        let same = |wish: &Wish| {
            wish.maker == maker && wish.title == title && wish.members == members && wish.chat.is_none_or(|c| c == id)
        };
        let wish = self.wishes.iter().position(same).ok_or("nobody asked for such a chat")?;
        self.found(wish, id)
    }

    /// The wish became this chat.
    pub(crate) fn found(&mut self, wish: usize, id: u128) -> Result<(), String> {
        let known_at = self.tick();
        let wish = &mut self.wishes[wish];
        if wish.chat.is_some_and(|known| known != id) {
            return Err("one wish became two chats".into());
        }
        wish.chat = Some(id);
        let (group, members, title, tried_at) = (wish.group, wish.members.clone(), wish.title.clone(), wish.tried_at);
        let chat =
            self.chats.entry(id).or_insert(Chat { group, members, title, tried_at, known_at, places: BTreeMap::new() });
        let wish = &self.wishes.iter().find(|wish| wish.chat == Some(id)).expect("it was just set");
        chat.tried_at = chat.tried_at.min(wish.tried_at);
        if chat.members != wish.members || chat.title != wish.title {
            return Err("two wishes became one chat".into());
        }
        Ok(())
    }

    fn find(&self, user: &str, number: u32) -> Option<DeviceIndex> {
        let user = self.users.iter().find(|it| it.name == user)?;
        user.devices.iter().copied().find(|&device| self.devices[device].number == number)
    }

    /// A payload names its message, see [`payload`].
    fn find_payload(&self, payload: &[u8]) -> Option<usize> {
        let index = u64::from_le_bytes(payload.get(..8)?.try_into().ok()?) as usize;
        (index < self.messages.len()).then_some(index)
    }

    /// An empty payload names nothing; a device's messages to a chat are stored in the order in which it sent them.
    fn find_empty(&self, sender: DeviceIndex, chat: u128, chat_seq: u64) -> Option<usize> {
        let of_sender = self.by_client_seq.range((sender, 0)..=(sender, u64::MAX)).map(|(_, index)| *index);
        let to_chat: Vec<usize> = of_sender.filter(|&index| self.messages[index].chat == chat).collect();
        let known = to_chat.iter().find(|&&index| self.messages[index].chat_seq == Some(chat_seq));
        let may_be = |index: &&usize| {
            let message = &self.messages[**index];
            message.payload.is_empty() && message.fate != Fate::Refused && message.chat_seq.is_none()
        };
        known.or_else(|| to_chat.iter().find(may_be)).copied()
    }

    /// Somebody was told what a place holds.
    fn place(&mut self, chat: u128, chat_seq: u64, time_ms: u64, held: Held, what: &str) -> Checked {
        if let Held::Message(index) = held {
            let message = &mut self.messages[index];
            match message.chat_seq {
                Some(known) if known != chat_seq => {
                    return violated(Check::Duplicate, format!("{what}: message {index} is at {known} too"));
                }
                _ => message.chat_seq = Some(chat_seq),
            }
        }
        let is_created = matches!(held, Held::Created { .. });
        if chat_seq == 0 || is_created != (chat_seq == 1) {
            return violated(Check::OutOfOrder, format!("{what}: {held:?} cannot be there"));
        }
        let places = &mut self.chats.get_mut(&chat).expect("the caller looked it up").places;
        match places.get(&chat_seq) {
            Some(place) if place.held != held => {
                return violated(Check::OutOfOrder, format!("{what}: others saw {:?} there, not {held:?}", place.held));
            }
            Some(place) if place.time_ms != time_ms => {
                return violated(
                    Check::Phantom,
                    format!("{what}: others were told the time {}, not {time_ms}", place.time_ms),
                );
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let earlier = places.range(..chat_seq).next_back().is_none_or(|(_, place)| place.time_ms <= time_ms);
        let later = places.range(chat_seq..).next().is_none_or(|(_, place)| place.time_ms >= time_ms);
        places.insert(chat_seq, Place { held, time_ms });
        if !(earlier && later) {
            return violated(
                Check::OutOfOrder,
                format!("{what}: its time {time_ms} does not lie between its neighbours'"),
            );
        }
        self.sender_order(chat, chat_seq, held, what)
    }

    /// A device's messages keep their order: `prev` chains them.
    fn sender_order(&self, chat: u128, chat_seq: u64, held: Held, what: &str) -> Checked {
        let Held::Message(index) = held else { return Ok(()) };
        let message = &self.messages[index];
        for (&other_seq, place) in &self.chats[&chat].places {
            if let Held::Message(other) = place.held
                && self.messages[other].sender == message.sender
                && (other_seq < chat_seq) != (self.messages[other].client_seq < message.client_seq)
                && other != index
            {
                return violated(
                    Check::OutOfOrder,
                    format!("{what}: message {other} of the same device is at {other_seq}"),
                );
            }
        }
        Ok(())
    }

    /// A `Sent` came.
    pub(crate) fn sent(
        &mut self,
        device: DeviceIndex,
        chat: u128,
        client_seq: u64,
        place: Option<(u64, u64)>,
    ) -> Checked {
        let name = self.name(device);
        let what = format!("{name} is told that its send {client_seq} is stored");
        let Some(&index) = self.by_client_seq.get(&(device, client_seq)) else {
            return violated(Check::Phantom, format!("{what}: it never sent it"));
        };
        let message = &mut self.messages[index];
        if message.chat != chat || message.fate == Fate::Refused {
            return violated(Check::Phantom, format!("{what}: in {}, state {:?}", short(message.chat), message.fate));
        }
        if message.fate != Fate::Acknowledged {
            message.fate = Fate::Acknowledged;
            self.acknowledged += 1;
        }
        match place {
            Some((chat_seq, time_ms)) if self.chats.contains_key(&chat) => self.place(
                chat,
                chat_seq,
                time_ms,
                Held::Message(index),
                &format!("{what} at {}/{chat_seq}", short(chat)),
            ),
            Some(_) => violated(Check::Phantom, format!("{what}: nobody was told of the chat {}", short(chat))),
            None => Ok(()),
        }
    }

    /// A send was refused for good.
    pub(crate) fn refused(&mut self, device: DeviceIndex, client_seq: u64, why: &str) -> Checked {
        let name = self.name(device);
        let Some(&index) = self.by_client_seq.get(&(device, client_seq)) else {
            return violated(
                Check::WrongAnswer,
                format!("{name} is refused the send {client_seq} ({why}), which it never sent"),
            );
        };
        let user = self.devices[device].user;
        let message = &mut self.messages[index];
        let fate = std::mem::replace(&mut message.fate, Fate::Refused);
        let member = self.chats.get(&message.chat).is_some_and(|chat| chat.members.contains(&user));
        if member || fate == Fate::Acknowledged || message.chat_seq.is_some() {
            return violated(
                Check::WrongAnswer,
                format!("{name} is refused its send {client_seq} for good ({why}); it was {fate:?}"),
            );
        }
        Ok(())
    }

    /// A chat was refused for want of a user: then somebody asked for must have no device yet.
    pub(crate) fn user_unknown(&mut self, wish: usize) -> Checked {
        self.wishes[wish].open = false;
        let wish = &self.wishes[wish];
        let before = |device: &DeviceIndex| self.devices[*device].welcome_at.is_some_and(|at| at < wish.as_of);
        let all_there = wish.members.iter().all(|&user| self.users[user].devices.iter().any(before));
        // It may have been made since: a request that is not answered in time goes out again, and the first answer counts.
        let same = |chat: &&Chat| !chat.group && !wish.group && chat.members == wish.members;
        let made = self.chats.values().find(same).is_some_and(|chat| chat.known_at < wish.as_of);
        if all_there || made {
            let name = self.name(wish.maker);
            return violated(
                Check::WrongAnswer,
                format!("{name} is refused the chat '{}' although all its users have devices", wish.title),
            );
        }
        Ok(())
    }

    /// A chat was made: then all its users must have a device.
    pub(crate) fn users_known(&mut self, wish: usize) -> Checked {
        self.wishes[wish].open = false;
        let there = |device: &DeviceIndex| self.devices[*device].hello_at.is_some();
        for &user in &self.wishes[wish].members {
            if !self.users[user].devices.iter().any(there) {
                let (maker, user) = (self.name(self.wishes[wish].maker), &self.users[user].name);
                return violated(Check::WrongAnswer, format!("{maker} is given a chat with {user}, who has no device"));
            }
        }
        Ok(())
    }

    /// A device's program kept a delivery and showed it.
    pub(crate) fn shown(&mut self, device: DeviceIndex, inbox_seq: u64, place: (u128, u64), payload: &[u8]) -> Checked {
        let name = self.name(device);
        let (chat, chat_seq) = place;
        let held = self.chats.get(&chat).and_then(|chat| chat.places.get(&chat_seq)).map(|place| place.held);
        let same = match held {
            Some(Held::Message(index)) => self.messages[index].payload == payload,
            Some(Held::Created { .. }) => payload.is_empty(),
            None => false,
        };
        if !same {
            return violated(
                Check::Phantom,
                format!("{name} shows {}/{chat_seq}, which is not what came", short(chat)),
            );
        }
        let it = &mut self.devices[device];
        let before = std::mem::replace(&mut it.shown, inbox_seq);
        if inbox_seq <= before {
            return violated(Check::Duplicate, format!("{name} shows inbox_seq {inbox_seq} after {before}"));
        }
        if inbox_seq != before + 1 {
            return violated(Check::Gap, format!("{name} shows inbox_seq {inbox_seq} after {before}"));
        }
        let places = it.chats.entry(chat).or_default();
        let last = places.last().copied().unwrap_or(0);
        if !places.insert(chat_seq) {
            return violated(Check::Duplicate, format!("{name} shows {}/{chat_seq} twice", short(chat)));
        }
        if chat_seq < last {
            return violated(Check::OutOfOrder, format!("{name} shows {}/{chat_seq} after {last}", short(chat)));
        }
        Ok(())
    }
}
