//! The reference model: what every device was told, and what it must have been told. It knows nothing of shards, partitions,
//! logs or lanes; it sees only what goes over the clients' ends of the sockets, and what their programs then show a person.
//!
//! Invariant: each place of a chat holds one thing, the same for all who look at it, and each thing holds one place.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Check, Violation};

/// Index of a device in the world.
pub(crate) type DeviceIndex = usize;
/// Index of a person in the world.
pub(crate) type UserIndex = usize;

/// A message that a device wants to be stored.
pub(crate) struct Message {
    pub(crate) sender: DeviceIndex,
    pub(crate) chat: u128,
    pub(crate) client_seq: u64,
    pub(crate) payload: Vec<u8>,
    /// The model's time at which it can first have reached the node.
    pub(crate) tried_at: u64,
    pub(crate) fate: Fate,
    /// Where it is in its chat, as soon as anybody was told.
    pub(crate) chat_seq: Option<u64>,
}

/// What the sender knows of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Unknown,
    Acknowledged,
    /// Refused for good: it must not be stored.
    Refused,
}

/// A chat that somebody wants to be made.
pub(crate) struct Wish {
    pub(crate) maker: DeviceIndex,
    pub(crate) group: bool,
    pub(crate) title: String,
    /// Sorted by name, without repeats, the maker among them.
    pub(crate) members: Vec<UserIndex>,
    pub(crate) tried_at: u64,
    pub(crate) chat: Option<u128>,
}

/// What a place of a chat holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Created { maker: DeviceIndex },
    Message(usize),
}

struct Place {
    held: Held,
    time_ms: u64,
}

pub(crate) struct Chat {
    pub(crate) group: bool,
    pub(crate) members: Vec<UserIndex>,
    pub(crate) title: String,
    /// When it was first asked for.
    tried_at: u64,
    places: BTreeMap<u64, Place>,
}

pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) devices: Vec<DeviceIndex>,
}

#[derive(Default)]
struct Device {
    user: UserIndex,
    number: u32,
    /// The model's time of the first `Hello` that reached a node, and of the first `Welcome` that came back.
    hello_at: Option<u64>,
    welcome_at: Option<u64>,
    attachment: Option<Attachment>,
    /// The highest floor that it ever claimed.
    claimed: u64,
    /// What its person saw: the last `inbox_seq`, and of each chat the places.
    shown: u64,
    chats: BTreeMap<u128, BTreeSet<u64>>,
}

/// What a device was told since its last `Welcome`.
struct Attachment {
    next: u64,
    missing: BTreeSet<u64>,
    acked: u64,
    credit: u64,
}

/// A `Deliver` as it came.
pub(crate) struct Delivery<'a> {
    pub(crate) inbox_seq: u64,
    pub(crate) chat: u128,
    pub(crate) chat_seq: u64,
    pub(crate) time_ms: u64,
    pub(crate) sender: &'a str,
    pub(crate) sender_device: u32,
    /// Members and title of a chat that was made; none for a message.
    pub(crate) created: Option<(Vec<&'a str>, &'a str)>,
    pub(crate) payload: &'a [u8],
}

/// What a `Welcome` says that the model checks.
pub(crate) struct Greeting {
    pub(crate) hello_floor: u64,
    pub(crate) head: u64,
    pub(crate) floor: u64,
    pub(crate) credit_messages: u64,
}

type Checked = Result<(), Violation>;

fn violated(check: Check, text: String) -> Checked {
    Err(Violation { check, text })
}

/// See the head of the file.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) users: Vec<User>,
    devices: Vec<Device>,
    pub(crate) messages: Vec<Message>,
    pub(crate) wishes: Vec<Wish>,
    pub(crate) chats: BTreeMap<u128, Chat>,
    by_client_seq: BTreeMap<(DeviceIndex, u64), usize>,
    time: u64,
    pub(crate) delivered: u64,
    pub(crate) acknowledged: u64,
}

impl Model {
    pub(crate) fn add_user(&mut self, name: String) -> UserIndex {
        self.users.push(User { name, devices: Vec::new() });
        self.users.len() - 1
    }

    pub(crate) fn add_device(&mut self, user: UserIndex, number: u32) -> DeviceIndex {
        self.devices.push(Device { user, number, ..Device::default() });
        self.users[user].devices.push(self.devices.len() - 1);
        self.devices.len() - 1
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    // ---- what devices try ----

    pub(crate) fn hello(&mut self, device: DeviceIndex, floor: u64) {
        let now = self.tick();
        let device = &mut self.devices[device];
        device.hello_at.get_or_insert(now);
        device.claimed = device.claimed.max(floor);
    }

    pub(crate) fn wish(&mut self, maker: DeviceIndex, group: bool, title: &str, members: Vec<UserIndex>) -> usize {
        let tried_at = self.tick();
        self.wishes.push(Wish { maker, group, title: title.to_owned(), members, tried_at, chat: None });
        self.wishes.len() - 1
    }

    pub(crate) fn send(&mut self, sender: DeviceIndex, chat: u128, client_seq: u64, payload: &[u8]) {
        let tried_at = self.tick();
        let payload = payload.to_vec();
        self.by_client_seq.insert((sender, client_seq), self.messages.len());
        self.messages.push(Message { sender, chat, client_seq, payload, tried_at, fate: Fate::Unknown, chat_seq: None });
    }

    pub(crate) fn acked(&mut self, device: DeviceIndex, floor: u64) {
        let device = &mut self.devices[device];
        device.claimed = device.claimed.max(floor);
        if let Some(attachment) = &mut device.attachment {
            attachment.acked = attachment.acked.max(floor);
        }
    }

    // ---- what devices are told ----

    pub(crate) fn welcome(&mut self, device: DeviceIndex, greeting: &Greeting) -> Checked {
        let now = self.tick();
        let name = self.name(device);
        let it = &mut self.devices[device];
        it.welcome_at.get_or_insert(now);
        let Greeting { hello_floor, head, floor, credit_messages } = *greeting;
        let start = hello_floor.max(floor);
        it.attachment = Some(Attachment { next: start + 1, missing: BTreeSet::new(), acked: start, credit: credit_messages });
        if head < hello_floor {
            return violated(Check::Lost, format!("{name} has kept all up to {hello_floor}; the node's inbox ends at {head}"));
        }
        if floor > it.claimed {
            return violated(Check::Lost, format!("{name} never acknowledged more than {}; the node goes on above {floor}", it.claimed));
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
            Some(missing) => {
                violated(Check::Gap, format!("{} was sent inbox_seq {} but never {missing}", self.name(device), attachment.next - 1))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn deliver(&mut self, device: DeviceIndex, it: &Delivery<'_>) -> Checked {
        self.delivered += 1;
        self.numbered(device, it.inbox_seq)?;
        let name = self.name(device);
        let held = self.recognise(device, it)?;
        let what = format!("{name} is sent {}/{} as inbox_seq {}", short(it.chat), it.chat_seq, it.inbox_seq);
        self.place(it.chat, it.chat_seq, it.time_ms, held, &what)
    }

    fn numbered(&mut self, device: DeviceIndex, inbox_seq: u64) -> Checked {
        let name = self.name(device);
        let Some(attachment) = &mut self.devices[device].attachment else {
            return violated(Check::Phantom, format!("{name} is sent inbox_seq {inbox_seq} before its Welcome"));
        };
        if inbox_seq >= attachment.next {
            attachment.missing.extend(attachment.next..inbox_seq);
            attachment.next = inbox_seq + 1;
        } else if attachment.missing.remove(&inbox_seq) {
            let after = attachment.next - 1;
            return violated(Check::OutOfOrder, format!("{name} is sent inbox_seq {inbox_seq} after {after}"));
        } else {
            return violated(Check::Duplicate, format!("{name} is sent inbox_seq {inbox_seq} again on one connection"));
        }
        if inbox_seq > attachment.acked + attachment.credit {
            let (acked, credit) = (attachment.acked, attachment.credit);
            return violated(Check::Credit, format!("{name} is sent {inbox_seq}, acknowledged {acked} and gave credit for {credit}"));
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
        let found = if it.payload.is_empty() { self.find_empty(sender, it.chat, it.chat_seq) } else { self.find_payload(it.payload) };
        let Some(index) = found else {
            return Err(phantom(format!("nobody sent these {} bytes", it.payload.len())));
        };
        let message = &self.messages[index];
        if message.payload != it.payload {
            return Err(phantom(format!("the payload of message {index} is another one")));
        }
        if (message.sender, message.chat) != (sender, it.chat) {
            return Err(phantom(format!("message {index} is of {} for {}", self.name(message.sender), short(message.chat))));
        }
        if message.fate == Fate::Refused {
            return Err(phantom(format!("message {index} was refused for good")));
        }
        Ok(Held::Message(index))
    }

    fn recognise_chat(&mut self, maker: DeviceIndex, id: u128, members: &[&str], title: &str) -> Result<(), String> {
        let members = members.iter().map(|name| self.users.iter().position(|user| user.name == *name)).collect::<Option<Vec<_>>>();
        let members = members.ok_or("a member is nobody")?;
        let same = |wish: &Wish| wish.maker == maker && wish.title == title && wish.members == members && wish.chat.is_none_or(|c| c == id);
        let wish = self.wishes.iter().position(same).ok_or("nobody asked for such a chat")?;
        self.found(wish, id)
    }

    /// The wish became this chat.
    pub(crate) fn found(&mut self, wish: usize, id: u128) -> Result<(), String> {
        let wish = &mut self.wishes[wish];
        if wish.chat.is_some_and(|known| known != id) {
            return Err("one wish became two chats".into());
        }
        wish.chat = Some(id);
        let (group, members, title, tried_at) = (wish.group, wish.members.clone(), wish.title.clone(), wish.tried_at);
        let chat = self.chats.entry(id).or_insert(Chat { group, members, title, tried_at, places: BTreeMap::new() });
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
        let mine = |m: &&usize| {
            let m = &self.messages[**m];
            m.chat == chat && m.payload.is_empty() && m.fate != Fate::Refused && m.chat_seq.is_none_or(|seq| seq == chat_seq)
        };
        let range = self.by_client_seq.range((sender, 0)..=(sender, u64::MAX));
        let known = range.clone().map(|(_, m)| m).find(|m| self.messages[**m].chat_seq == Some(chat_seq));
        known.or_else(|| range.map(|(_, m)| m).find(mine)).copied()
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
                return violated(Check::Phantom, format!("{what}: others were told the time {}, not {time_ms}", place.time_ms));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let earlier = places.range(..chat_seq).next_back().is_none_or(|(_, place)| place.time_ms <= time_ms);
        let later = places.range(chat_seq..).next().is_none_or(|(_, place)| place.time_ms >= time_ms);
        places.insert(chat_seq, Place { held, time_ms });
        if !(earlier && later) {
            return violated(Check::OutOfOrder, format!("{what}: its time {time_ms} does not lie between its neighbours'"));
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
                return violated(Check::OutOfOrder, format!("{what}: message {other} of the same device is at {other_seq}"));
            }
        }
        Ok(())
    }

    /// A `Sent` came.
    pub(crate) fn sent(&mut self, device: DeviceIndex, chat: u128, client_seq: u64, place: Option<(u64, u64)>) -> Checked {
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
            Some((chat_seq, time_ms)) if self.chats.contains_key(&chat) => {
                self.place(chat, chat_seq, time_ms, Held::Message(index), &format!("{what} at {}/{chat_seq}", short(chat)))
            }
            Some(_) => violated(Check::Phantom, format!("{what}: nobody was told of the chat {}", short(chat))),
            None => Ok(()),
        }
    }

    /// A send was refused for good.
    pub(crate) fn refused(&mut self, device: DeviceIndex, client_seq: u64, why: &str) -> Checked {
        let name = self.name(device);
        let Some(&index) = self.by_client_seq.get(&(device, client_seq)) else {
            return violated(Check::WrongAnswer, format!("{name} is refused the send {client_seq} ({why}), which it never sent"));
        };
        let user = self.devices[device].user;
        let message = &mut self.messages[index];
        let fate = std::mem::replace(&mut message.fate, Fate::Refused);
        let member = self.chats.get(&message.chat).is_some_and(|chat| chat.members.contains(&user));
        if member || fate == Fate::Acknowledged || message.chat_seq.is_some() {
            return violated(Check::WrongAnswer, format!("{name} is refused its send {client_seq} for good ({why}); it was {fate:?}"));
        }
        Ok(())
    }

    /// A chat was refused for want of a user: then somebody asked for must have no device yet.
    pub(crate) fn user_unknown(&self, wish: usize) -> Checked {
        let wish = &self.wishes[wish];
        let before = |device: &DeviceIndex| self.devices[*device].welcome_at.is_some_and(|at| at < wish.tried_at);
        let all_there = wish.members.iter().all(|&user| self.users[user].devices.iter().any(before));
        if all_there || wish.chat.is_some() {
            let name = self.name(wish.maker);
            return violated(Check::WrongAnswer, format!("{name} is refused the chat '{}' although all its users have devices", wish.title));
        }
        Ok(())
    }

    /// A chat was made: then all its users must have a device.
    pub(crate) fn users_known(&self, wish: usize) -> Checked {
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
    pub(crate) fn shown(&mut self, device: DeviceIndex, inbox_seq: u64, chat: u128, chat_seq: u64) -> Checked {
        let name = self.name(device);
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

    // ---- the end ----

    /// Everybody has seen all there was: is it what they had to see?
    pub(crate) fn complete(&self) -> Checked {
        for (&id, chat) in &self.chats {
            let top = chat.places.last_key_value().map_or(0, |(seq, _)| *seq);
            if let Some(missing) = (1..=top).find(|seq| !chat.places.contains_key(seq)) {
                return violated(Check::Gap, format!("{} has a place {top} and nobody was told of {missing}", short(id)));
            }
            for &device in chat.members.iter().flat_map(|&user| &self.users[user].devices) {
                self.complete_for(device, id, chat)?;
            }
        }
        Ok(())
    }

    fn complete_for(&self, device: DeviceIndex, id: u128, chat: &Chat) -> Checked {
        let it = &self.devices[device];
        let none = BTreeSet::new();
        let shown = it.chats.get(&id).unwrap_or(&none);
        let first = shown.first().copied().unwrap_or(u64::MAX);
        for (&seq, place) in &chat.places {
            let (own, tried_at) = match place.held {
                Held::Created { maker } => (maker == device, chat.tried_at),
                Held::Message(index) => (self.messages[index].sender == device, self.messages[index].tried_at),
            };
            let there_before = it.welcome_at.is_some_and(|at| at < tried_at);
            if !shown.contains(&seq) && !own && (there_before || seq > first) {
                let name = self.name(device);
                return violated(Check::Lost, format!("{name} never got {}/{seq} ({:?})", short(id), place.held));
            }
        }
        Ok(())
    }

    /// Highest `inbox_seq` that a device's person saw.
    pub(crate) fn shown_up_to(&self, device: DeviceIndex) -> u64 {
        self.devices[device].shown
    }

    pub(crate) fn message_of(&self, device: DeviceIndex, client_seq: u64) -> Option<&Message> {
        self.by_client_seq.get(&(device, client_seq)).map(|&index| &self.messages[index])
    }

    pub(crate) fn user_of(&self, device: DeviceIndex) -> UserIndex {
        self.devices[device].user
    }

    pub(crate) fn name(&self, device: DeviceIndex) -> String {
        let it = &self.devices[device];
        format!("{}/{}", self.users[it.user].name, it.number)
    }
}

/// The first digits of a chat's id.
pub(crate) fn short(chat: u128) -> String {
    format!("{:06x}", chat >> 104)
}

/// A payload of about `len` bytes that names the message it belongs to. Filled so that any two differ nearly everywhere.
pub(crate) fn payload(message: usize, len: usize, out: &mut Vec<u8>) {
    out.clear();
    if len == 0 {
        return;
    }
    out.extend_from_slice(&(message as u64).to_le_bytes());
    let mut x = message as u64 ^ 0x5851_f42d_4c95_7f2d;
    while out.len() < len {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let take = (len - out.len()).min(8);
        out.extend_from_slice(&x.to_be_bytes()[..take]);
    }
}
