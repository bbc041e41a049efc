//! The reference model: what every device was told, and what it must have been told. It knows nothing of shards, partitions,
//! logs or lanes; it sees only what goes over the clients' ends of the sockets, and what their programs then show a person.
//!
//! Invariant: each place of a chat holds one thing, the same for all who look at it, and each thing holds one place.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Check, Violation};

mod told;

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
    /// The earliest time of which an answer may be: who asks for a chat that somebody is having made is answered with them.
    pub(crate) as_of: u64,
    /// Not answered yet, as far as anybody knows.
    pub(crate) open: bool,
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
    /// When it was first asked for, and when anybody was first told of it.
    tried_at: u64,
    known_at: u64,
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
    /// Where the node serves it.
    shard: u16,
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
    pub(crate) shard: u16,
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
    pub(crate) group_delivered: u64,
    pub(crate) resends: u64,
    pub(crate) waited: u64,
    pub(crate) credit_used_up: u64,
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
        // A chat of two is the same whoever asks for it; a group is its maker's own.
        let joint = |other: &&Wish| !group && !other.group && other.open && other.members == members;
        let as_of = self.wishes.iter().filter(joint).map(|other| other.tried_at).min().unwrap_or(tried_at);
        let title = title.to_owned();
        self.wishes.push(Wish { maker, group, title, members, tried_at, as_of, open: true, chat: None });
        self.wishes.len() - 1
    }

    pub(crate) fn send(&mut self, sender: DeviceIndex, chat: u128, client_seq: u64, payload: &[u8]) {
        let tried_at = self.tick();
        let payload = payload.to_vec();
        self.by_client_seq.insert((sender, client_seq), self.messages.len());
        self.messages.push(Message {
            sender,
            chat,
            client_seq,
            payload,
            tried_at,
            fate: Fate::Unknown,
            chat_seq: None,
        });
    }

    pub(crate) fn acked(&mut self, device: DeviceIndex, floor: u64) {
        let device = &mut self.devices[device];
        device.claimed = device.claimed.max(floor);
        if let Some(attachment) = &mut device.attachment {
            attachment.acked = attachment.acked.max(floor);
        }
    }

    /// Everybody has seen all there was: is it what they had to see?
    pub(crate) fn complete(&self) -> Checked {
        self.complete_where(&|_| true, &|_| true)
    }

    /// The same of the users and the chats that are served.
    pub(crate) fn complete_where(&self, user: &dyn Fn(UserIndex) -> bool, chat: &dyn Fn(u128) -> bool) -> Checked {
        let is_served = |device: &DeviceIndex| user(self.devices[*device].user);
        for message in
            self.messages.iter().filter(|it| it.fate == Fate::Acknowledged && it.chat_seq.is_none() && chat(it.chat))
        {
            let mut devices = self.chats[&message.chat].members.iter().flat_map(|&user| &self.users[user].devices);
            let there = |&&it: &&DeviceIndex| {
                it != message.sender
                    && is_served(&it)
                    && self.devices[it].welcome_at.is_some_and(|at| at < message.tried_at)
            };
            if let Some(&device) = devices.find(there) {
                let (name, sender) = (self.name(device), self.name(message.sender));
                let text = format!("{name} never got send {} of {sender}, which was acknowledged", message.client_seq);
                return violated(Check::Lost, text);
            }
        }
        for (&id, chat) in self.chats.iter().filter(|(id, _)| chat(**id)) {
            let top = chat.places.last_key_value().map_or(0, |(seq, _)| *seq);
            // Of its beginning only others than its maker are told.
            let all_served = chat.members.iter().all(|&it| user(it));
            let mut missing = (2..=top).filter(|seq| all_served && !chat.places.contains_key(seq));
            // Of a message that is only said to be stored already nobody knows the place, where no device but the sender's is there.
            let is_placeless = |it: &&Message| it.chat == id && it.fate == Fate::Acknowledged && it.chat_seq.is_none();
            if let Some(missing) = missing.nth(self.messages.iter().filter(is_placeless).count()) {
                return violated(
                    Check::Gap,
                    format!("{} has a place {top} and nobody was told of {missing}", short(id)),
                );
            }
            for &device in chat.members.iter().flat_map(|&it| &self.users[it].devices).filter(|it| is_served(it)) {
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
        let made = |wish: &Wish| wish.chat == Some(id) && wish.maker == device;
        if !shown.contains(&1) && it.welcome_at.is_some_and(|at| at < chat.tried_at) && !self.wishes.iter().any(made) {
            return violated(Check::Lost, format!("{} was never told that {} was made", self.name(device), short(id)));
        }
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

    /// Groups in which something was said and whose members were served by different shards.
    pub(crate) fn spread_groups(&self) -> usize {
        let spread = |chat: &&Chat| {
            let devices = chat.members.iter().flat_map(|&user| &self.users[user].devices);
            let mut shards =
                devices.map(|&it| &self.devices[it]).filter(|it| it.welcome_at.is_some()).map(|it| it.shard);
            let first = shards.next();
            chat.group && chat.places.len() > 1 && shards.any(|shard| Some(shard) != first)
        };
        self.chats.values().filter(spread).count()
    }

    /// Highest `inbox_seq` that a device's person saw.
    pub(crate) fn shown_up_to(&self, device: DeviceIndex) -> u64 {
        self.devices[device].shown
    }

    /// Of a chat: the newest place that anybody was told of, and the device's newest send that was acknowledged.
    pub(crate) fn known_of(&self, chat: u128, device: DeviceIndex) -> (u64, u64) {
        let last_seq = self.chats.get(&chat).and_then(|chat| chat.places.last_key_value()).map_or(0, |(seq, _)| *seq);
        let acknowledged =
            |index: &&usize| self.messages[**index].chat == chat && self.messages[**index].fate == Fate::Acknowledged;
        let own =
            self.by_client_seq.range((device, 0)..=(device, u64::MAX)).map(|(_, index)| index).rfind(acknowledged);
        (last_seq, own.map_or(0, |&index| self.messages[index].client_seq))
    }

    /// Sends of the same device to the same chat after this one.
    pub(crate) fn sends_after(&self, index: usize) -> usize {
        let message = &self.messages[index];
        let later = self.by_client_seq.range((message.sender, message.client_seq + 1)..=(message.sender, u64::MAX));
        later.filter(|(_, other)| self.messages[**other].chat == message.chat).count()
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

#[cfg(test)]
mod tests;
