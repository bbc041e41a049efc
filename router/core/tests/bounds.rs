//! Histories in which one client, or one moment, asks for more than its share: what it gets is bounded, and the others go on.

#![allow(clippy::unwrap_used)]

#[path = "bounds/memory.rs"]
mod memory;
#[path = "bounds/silence.rs"]
mod silence;
#[path = "bounds/space.rs"]
mod space;

use std::collections::VecDeque;

use whimbrel_core::ids::{ChatId, ConnId, Correlation, DeviceId, InboxSeq, PartitionId, ShardId, UserId};
use whimbrel_core::io::Moving;
use whimbrel_core::lane::{Ask, Asker, Confirm, FanOut, LaneItem, Request, UsersFound, UsersKnown};
use whimbrel_core::limits::{Bounds, TURN_BYTES_MAX, WRITE_REST_US};
use whimbrel_core::session::Login;
use whimbrel_core::{Effect, Effects, Input, Now, Shard, ShardConfig, route};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, LogOptions, Memory, Retired, SegmentId, check_segment};
use whimbrel_wire::{Builder, ChatInfoFields, Code, CreateChatFields, Kind, SendFields, fb};

const SEGMENT_BYTES: u32 = 4 << 20;

/// A shard over a disk in memory, with sockets that take everything at once.
struct Node {
    shard: Shard,
    options: LogOptions,
    disk: RamDisk,
    effects: Effects,
    now: Now,
    /// What was sent, by connection.
    sent: Vec<(ConnId, Vec<u8>)>,
    closed: Vec<ConnId>,
    /// Its socket takes nothing by itself.
    stuck: Option<ConnId>,
    /// Bytes that it was to take.
    untaken: u32,
    to_lanes: Vec<LaneItem>,
    stopped: bool,
    /// As far as it is written.
    checkpoint: Vec<u8>,
    /// The most bytes of frames that one turn had.
    turn_bytes_max: usize,
    /// Places that went to lanes at the end of one turn, at most.
    fan_outs_max: usize,
    /// The other shard confirms what it is sent.
    confirms: bool,
    lane_room: usize,
    /// No segment can be made.
    disk_full: bool,
    /// Whether one can be made is not known yet: it is not answered.
    disk_waits: bool,
    waiting: Option<SegmentId>,
    /// What was read in, in this order.
    read_in: Vec<SegmentId>,
    builder: Builder,
}

impl Node {
    fn new(shards: u16, bounds: Bounds) -> Node {
        Node::with(shards, bounds, options())
    }

    fn with(shards: u16, bounds: Bounds, options: LogOptions) -> Node {
        let mut disk = RamDisk::new(0, 7);
        let shard = open(shards, bounds, options, &mut disk);
        let mut node = Node {
            shard,
            options,
            disk,
            effects: Effects::default(),
            now: Now { mono_us: 1, wall_ms: 1000 },
            sent: Vec::new(),
            closed: Vec::new(),
            stuck: None,
            untaken: 0,
            to_lanes: Vec::new(),
            stopped: false,
            checkpoint: Vec::new(),
            turn_bytes_max: 0,
            fan_outs_max: 0,
            confirms: false,
            lane_room: 4096,
            disk_full: false,
            disk_waits: false,
            waiting: None,
            read_in: Vec::new(),
            builder: Builder::default(),
        };
        node.turns(50);
        assert!(node.shard.is_ready());
        node
    }

    /// It is killed, and the next one starts.
    fn restart(&mut self, shards: u16) {
        (self.effects, self.waiting) = (Effects::default(), None);
        self.checkpoint.clear();
        self.shard = open(shards, Bounds::default(), self.options, &mut self.disk);
        self.turns(50);
    }

    /// There is no space for what is waited for, nor for anything else.
    fn is_found_full(&mut self) {
        (self.disk_waits, self.disk_full) = (false, true);
        if let Some(segment) = self.waiting.take() {
            self.tell(Input::SegmentFailed { segment });
        }
        self.turns(2);
    }

    fn tell(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.effects);
    }

    fn turns(&mut self, count: u32) {
        for _ in 0..count {
            self.turn();
        }
    }

    /// Ends a turn, and does what it wants until it wants nothing of the disk any more.
    fn turn(&mut self) {
        loop {
            self.now.mono_us += 2000;
            self.now.wall_ms += 2;
            self.effects.lane_room = vec![self.lane_room; 8];
            self.tell(Input::TurnEnd { more: false });
            self.turn_bytes_max = self.turn_bytes_max.max(self.effects.bytes.len());
            assert!(self.shard.log_warm_bytes() <= self.options.warm_max, "more counts as in memory than may");
            let list: Vec<_> = self.effects.list.drain(..).collect();
            let is_place = |it: &&Effect| matches!(it, Effect::Lane { item: LaneItem::FanOut(_), .. });
            self.fan_outs_max = self.fan_outs_max.max(list.iter().filter(is_place).count());
            let bytes = std::mem::take(&mut self.effects.bytes);
            let mut written = Vec::new();
            let mut again = false;
            for effect in list {
                match effect {
                    Effect::Send { conn, head, payload } => {
                        let mut frame = bytes[head].to_vec();
                        frame.extend_from_slice(&payload.unwrap_or_default());
                        written.push((conn, frame.len() as u32));
                        self.sent.push((conn, frame));
                    }
                    Effect::Close { conn } => self.closed.push(conn),
                    Effect::Lane { to, item } => {
                        if let LaneItem::FanOut(FanOut { source, target, chat, chat_seq, ref command, .. }) = item
                            && self.confirms
                            && !command.is_empty()
                        {
                            let confirm = Confirm { source, target, chat, applied: chat_seq, rewind: false };
                            self.tell(Input::Lane { from: to, item: LaneItem::Confirm(confirm) });
                            again = true;
                        }
                        self.to_lanes.push(item);
                    }
                    Effect::WriteLog(write) => {
                        again = true;
                        self.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
                        self.tell(Input::LogWritten { write: write.id });
                    }
                    Effect::PrepareSegment { segment, .. } if self.disk_waits => self.waiting = Some(segment),
                    Effect::PrepareSegment { segment, .. } if self.disk_full => {
                        self.tell(Input::SegmentFailed { segment });
                    }
                    Effect::PrepareSegment { segment, reuse } => {
                        again = true;
                        let old = reuse.map(|Retired { id, mapping: _, used }| (id, used));
                        let mapping = match old {
                            Some((old, used)) => {
                                self.disk.recycle(old, used, segment, self.options.segment_size).unwrap()
                            }
                            None => self.disk.create(segment, self.options.segment_size).unwrap(),
                        };
                        self.tell(Input::SegmentReady { segment, mapping });
                    }
                    Effect::RemoveSegment(Retired { id, mapping, .. }) => {
                        drop(mapping);
                        self.disk.remove(id).unwrap();
                    }
                    Effect::Checkpoint { number, bytes, last } => {
                        again = true;
                        self.checkpoint.extend_from_slice(&bytes);
                        match last {
                            None => self.tell(Input::CheckpointTaken { number }),
                            Some(keep_from) => {
                                let whole = std::mem::take(&mut self.checkpoint);
                                self.disk.put_checkpoint(number, whole, keep_from).unwrap();
                                self.tell(Input::CheckpointWritten { number });
                            }
                        }
                    }
                    Effect::ReadIn { is, mapping } => {
                        again = true;
                        self.read_in.push(is.id);
                        let checked = check_segment(&is, &mut Memory(&mapping));
                        drop(mapping);
                        self.tell(Input::ReadIn { checked });
                    }
                    Effect::Cold(work) => {
                        again = true;
                        let done = work.run(&mut self.disk).unwrap();
                        self.tell(Input::ColdDone(Box::new(done)));
                    }
                    Effect::Scrub { is, mapping } => {
                        again = true;
                        let checked = check_segment(&is, &mut Memory(&mapping));
                        drop(mapping);
                        self.tell(Input::Scrubbed { checked });
                    }
                    Effect::Tell(trouble) => panic!("{trouble:?}"),
                    Effect::Stopped => self.stopped = true,
                    Effect::Detach { .. } | Effect::Move { .. } | Effect::WakeAt { .. } => {}
                    Effect::Fatal(fatal) => panic!("{fatal:?}"),
                }
            }
            for (conn, bytes) in written {
                if self.stuck == Some(conn) {
                    self.untaken += bytes;
                    continue;
                }
                self.tell(Input::Written { conn, bytes });
            }
            if !again {
                return;
            }
        }
    }

    fn log_in(&mut self, slot: u32, user: &str, device: u32) -> ConnId {
        let conn = ConnId { slot, generation: 1 };
        let login = Login {
            correlation: Correlation(1),
            user: name(user),
            device: DeviceId(device),
            token_epoch: 0,
            floor: InboxSeq(0),
        };
        self.tell(Input::Adopted { conn, moving: Box::new(Moving { login, unread: Vec::new() }) });
        conn
    }

    fn say(&mut self, conn: ConnId, write: impl FnOnce(&mut Builder, &mut Vec<u8>)) {
        let mut frames = Vec::new();
        write(&mut self.builder, &mut frames);
        self.tell(Input::Received { conn, bytes: &frames });
    }

    fn pair(&mut self, conn: ConnId, from: &str, to: &str) -> ChatId {
        let fields =
            CreateChatFields { correlation: 1, kind: fb::ChatKind::Direct, nonce: 0, members: &[to], title: "" };
        self.say(conn, |b, out| b.create_chat(out, &fields));
        self.turns(2);
        route::direct_chat(&name(from), &name(to))
    }

    /// The other is of the other shard, which says nothing but that he is there.
    fn pair_away(&mut self, conn: ConnId, from: &str, to: &str) -> ChatId {
        let chat = self.pair(conn, from, to);
        let asked =
            self.to_lanes.drain(..).find_map(|item| if let LaneItem::AskUsers(ask) = item { Some(ask) } else { None });
        let ask = asked.expect("it is asked whether the other is there");
        let known = UsersKnown { source: ask.source, target: ask.target, chat, found: UsersFound::All };
        self.tell(Input::Lane { from: ShardId(1), item: LaneItem::UsersKnown(Box::new(known)) });
        self.turn();
        chat
    }

    fn send(&mut self, conn: ConnId, chat: ChatId, number: u64, payload: &[u8]) {
        let fields = SendFields { correlation: number, chat: chat.0, client_seq: number, prev: number - 1 };
        self.say(conn, |b, out| b.send(out, &fields, payload));
        self.turn();
    }

    /// Sends to these chats in turn, at most so often, until it is refused. What follows in each is raised.
    fn send_until_refused(&mut self, conn: ConnId, next: &mut [(ChatId, u64)], most: usize) {
        for _ in 0..most {
            for (chat, number) in &mut *next {
                let refused = self.count(conn, Kind::Error);
                self.send(conn, *chat, *number, &[7; 30_000]);
                if self.count(conn, Kind::Error) > refused {
                    return;
                }
                *number += 1;
            }
        }
    }

    /// A device that had so many takes what comes, until nothing does, and acknowledges it. How many it has then.
    fn read(&mut self, conn: ConnId, had: usize) -> usize {
        for _ in 0..100 {
            let has = (had + self.count(conn, Kind::Deliver)) as u64;
            self.say(conn, |b, out| b.ack(out, has));
            self.now.mono_us += 50_000;
            self.turns(2);
        }
        had + self.count(conn, Kind::Deliver)
    }

    fn count(&self, conn: ConnId, kind: Kind) -> usize {
        self.sent.iter().filter(|(to, frame)| *to == conn && frame[4] == kind as u8).count()
    }
}

fn options() -> LogOptions {
    LogOptions { segment_size: SEGMENT_BYTES, ..LogOptions::new(0) }
}

fn open(shards: u16, bounds: Bounds, options: LogOptions, disk: &mut RamDisk) -> Shard {
    let config = ShardConfig { shard: ShardId(0), shards, partitions: 16, token_key: [0; 32], seed: 1, bounds };
    Shard::open(config, options, disk).unwrap()
}

/// Three users of whom all is on the first of two shards, the chats of the first with the others too.
fn three_on_one_shard() -> [String; 3] {
    let names: Vec<String> = (0..64).map(|number| format!("user{number}")).collect();
    let names: Vec<String> =
        names.into_iter().filter(|user| route::partition_of_user(&name(user), 16).0.is_multiple_of(2)).collect();
    let is_here = |a: &str, b: &str| {
        a != b && route::partition_of_chat(route::direct_chat(&name(a), &name(b)), 16).0.is_multiple_of(2)
    };
    let first = &names[0];
    let mut others = names.iter().filter(|other| is_here(first, other));
    [first.clone(), others.next().unwrap().clone(), others.next().unwrap().clone()]
}

/// A user of the first of two shards, and others of the second whose chats with that one are on the first.
fn one_here_and_others_away() -> (String, impl Iterator<Item = String>) {
    let is_here = |partition: PartitionId| partition.0.is_multiple_of(2);
    let names = || (0..).map(|number| format!("user{number}"));
    let one = names().find(|user| is_here(route::partition_of_user(&name(user), 16))).unwrap();
    let id = name(&one);
    let others = names().filter(move |user| {
        !is_here(route::partition_of_user(&name(user), 16))
            && is_here(route::partition_of_chat(route::direct_chat(&id, &name(user)), 16))
    });
    (one, others)
}

fn name(user: &str) -> UserId {
    UserId::new(user).unwrap()
}

#[test]
fn who_asks_for_much_is_answered_and_not_closed_as_slow() {
    let mut node = Node::new(1, Bounds::default());
    let names: Vec<String> = (0..1024).map(|number| format!("user-with-a-rather-long-name-{number:010}")).collect();
    for (slot, user) in names.iter().enumerate() {
        node.log_in(slot as u32, user, 1);
    }
    node.turns(2);
    let asker = ConnId { slot: 0, generation: 1 };
    let others: Vec<&str> = names[1..].iter().map(String::as_str).collect();
    let group = CreateChatFields { correlation: 1, kind: fb::ChatKind::Group, nonce: 1, members: &others, title: "t" };
    node.say(asker, |b, out| b.create_chat(out, &group));
    node.turns(3);
    assert_eq!(node.count(asker, Kind::ChatInfo), 1, "the group is made");
    node.sent.clear();
    let chat = route::group_chat(&name(&names[0]), DeviceId(1), 1).0;
    // As many as may be unanswered; the answers would be three times what its queue takes.
    node.say(asker, |b, out| {
        for correlation in 0..64 {
            b.chat_info(out, &ChatInfoFields { correlation, chat, ..ChatInfoFields::default() });
        }
    });
    node.turns(2);
    assert!(!node.closed.contains(&asker));
    let (answered, refused) = (node.count(asker, Kind::ChatInfo), node.count(asker, Kind::Error));
    assert!(answered >= 8 && answered + refused == 64, "{answered} {refused}");
    assert_eq!(node.shard.counters().refused_for(Code::Overloaded), refused as u64);
}

#[test]
fn answers_outlive_a_full_lane() {
    let mut node = Node::new(2, Bounds { lane_backlog: 10, ..Bounds::default() });
    node.lane_room = 0;
    node.turn();
    let user = name("alice");
    for number in 0..100 {
        let asker =
            Asker { shard: ShardId(1), conn: ConnId { slot: 0, generation: 1 }, correlation: Correlation(number) };
        // A chat of a partition that this shard has, which nobody made.
        let chat = (0..)
            .map(|salt| ChatId(u128::from(number) << 64 | salt))
            .find(|chat| route::partition_of_chat(*chat, 16).0.is_multiple_of(2))
            .unwrap();
        let request = Request { asker, user, device: DeviceId(1), ask: Ask::Info { chat } };
        node.tell(Input::Lane { from: ShardId(1), item: LaneItem::Request(request) });
    }
    node.turn();
    assert!(node.to_lanes.is_empty());
    node.lane_room = 4096;
    node.turns(2);
    let answers = node.to_lanes.iter().filter(|item| matches!(item, LaneItem::Answer(_))).count();
    assert_eq!((answers, node.shard.counters().lane_dropped), (100, 0));
}

#[test]
fn devices_that_come_back_together_are_served_in_turns() {
    let mut node = Node::new(1, Bounds::default());
    let alice = node.log_in(0, "alice", 1);
    for device in 1..=200 {
        let conn = node.log_in(device, "bob", device);
        node.turn();
        node.tell(Input::Disconnected { conn });
    }
    let chat = node.pair(alice, "alice", "bob");
    for number in 1..=200 {
        node.send(alice, chat, number, &[7; 900]);
    }
    node.turns(2);
    (node.turn_bytes_max, node.sent) = (0, Vec::new());
    let back: Vec<_> = (1..=200).map(|device| node.log_in(1000 + device, "bob", device)).collect();
    node.turns(50);
    // What one connection may be given comes on top.
    assert!(node.turn_bytes_max < TURN_BYTES_MAX + (1 << 20), "{}", node.turn_bytes_max);
    for conn in back {
        // The making of the chat, and the messages.
        assert_eq!(node.count(conn, Kind::Deliver), 201, "{conn:?}");
    }
}

#[test]
fn a_device_that_never_comes_back_does_not_stop_the_others() {
    let mut node = Node::new(1, Bounds { inbox_pointers: 1000, ..Bounds::default() });
    let users = ["mallory", "gone", "alice", "bob"];
    let [mallory, gone, alice, bob] = [0, 1, 2, 3].map(|slot| node.log_in(slot, users[slot as usize], 1));
    node.turn();
    node.tell(Input::Disconnected { conn: gone });
    let to_gone = node.pair(mallory, "mallory", "gone");
    let to_bob = node.pair(alice, "alice", "bob");
    for number in 1..=1100 {
        node.send(mallory, to_gone, number, b"flood");
    }
    node.sent.clear();
    for number in 1..=200 {
        node.send(alice, to_bob, number, b"hello");
        node.turn();
        // The making of the chat came first.
        node.say(bob, |b, out| b.ack(out, number + 1));
    }
    node.turns(5);
    assert_eq!((node.count(alice, Kind::Sent), node.count(bob, Kind::Deliver)), (200, 200));
}

#[test]
fn a_node_with_confirmations_due_stops() {
    let mut node = Node::new(1, Bounds::default());
    let (alice, bob) = (node.log_in(0, "alice", 1), node.log_in(1, "bob", 1));
    node.turn();
    let chat = node.pair(alice, "alice", "bob");
    node.send(alice, chat, 1, b"last words");
    // Heard and not committed; due long ago when it stops.
    node.now.mono_us += 5_000_000;
    node.tell(Input::Stop);
    node.turns(2);
    assert!(node.closed.contains(&alice) && node.closed.contains(&bob) && !node.stopped);
    for conn in [alice, bob] {
        node.tell(Input::Disconnected { conn });
    }
    node.turns(2);
    assert!(node.stopped);
}

#[test]
fn what_comes_while_the_log_is_written_gathers_for_part_of_that_time() {
    let mut node = Node::new(1, Bounds::default());
    let alice = node.log_in(0, "alice", 1);
    node.log_in(1, "bob", 1);
    node.turns(2);
    let chat = node.pair(alice, "alice", "bob");
    let mut number = 0;
    let mut rests = |node: &mut Node, write_us: u64| {
        number += 1;
        let fields = SendFields { correlation: number, chat: chat.0, client_seq: number, prev: number - 1 };
        node.say(alice, |b, out| b.send(out, &fields, b"m"));
        assert_eq!(node.shard.rest_us(), 0, "nothing is being written");
        node.effects.lane_room = vec![node.lane_room; 8];
        node.tell(Input::TurnEnd { more: false });
        let list = std::mem::take(&mut node.effects.list);
        let write = list.into_iter().find_map(|effect| match effect {
            Effect::WriteLog(write) => Some(write),
            _ => None,
        });
        let write = write.expect("a command is written at once");
        let rest = node.shard.rest_us();
        node.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
        node.now.mono_us += write_us;
        let id = write.id;
        drop(write);
        node.tell(Input::LogWritten { write: id });
        assert_eq!(node.shard.rest_us(), 0, "it is written");
        node.effects.clear();
        node.turn();
        rest
    };
    for _ in 0..64 {
        rests(&mut node, 1000);
    }
    assert_eq!(rests(&mut node, 1000), WRITE_REST_US, "a slow disk is not waited for as long as it takes");
    for _ in 0..64 {
        rests(&mut node, 20);
    }
    assert!(rests(&mut node, 20) <= 10, "nor a quick one longer");
}

/// When a connection that takes nothing, and pings, is closed: at what age of what it does not take.
fn closed_at_us(bounds: Bounds) -> u64 {
    let mut node = Node::new(1, bounds);
    let (alice, bob) = (node.log_in(0, "alice", 1), node.log_in(1, "bob", 1));
    node.turn();
    let chat = node.pair(alice, "alice", "bob");
    node.turns(2);
    // All that it was sent so far it took; this it does not.
    node.stuck = Some(bob);
    let begun_us = node.now.mono_us;
    node.send(alice, chat, 1, &[7; 60_000]);
    node.turn();
    assert!(node.untaken > 60_000);
    while !node.closed.contains(&bob) {
        assert!(node.now.mono_us < begun_us + 2 * bounds.queue_age_us(), "it may wait for ever");
        node.now.mono_us += bounds.queue_age_us() / 100;
        for conn in [alice, bob] {
            node.say(conn, |b, out| b.ping(out, 1));
        }
        node.turn();
    }
    assert!(!node.closed.contains(&alice));
    assert_eq!(node.shard.counters().refused_for(Code::SlowReader), 1);
    // What the device does not have it finds when it comes again.
    node.tell(Input::Disconnected { conn: bob });
    node.stuck = None;
    let bob = node.log_in(2, "bob", 1);
    node.turns(2);
    assert_eq!(node.count(bob, Kind::Deliver), 2);
    node.now.mono_us - begun_us
}

#[test]
fn who_pings_and_takes_nothing_is_closed_before_it_keeps_the_log_for_long() {
    for forget_after_us in [Bounds::default().forget_after_us, 16_000_000] {
        let bounds = Bounds { forget_after_us, ..Bounds::default() };
        let at_us = closed_at_us(bounds);
        let most_us = 30_000_000.min(forget_after_us / 8);
        assert!(at_us >= most_us / 3 * 2 && at_us <= most_us + most_us / 50, "{at_us} of {most_us}");
    }
}

/// A device that takes what it is sent in pieces of all sizes, sooner or later: against a queue of what waits since when.
#[test]
fn a_slow_reader_is_closed_for_the_age_of_what_waits_and_not_for_how_much_it_is() {
    let bounds = Bounds::default();
    let most_us = bounds.queue_age_us();
    let (mut closed, mut kept) = (0, 0);
    for seed in 1..=12u64 {
        let mut random = seed;
        let mut below = |most: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % most
        };
        let mut node = Node::new(1, bounds);
        let (alice, bob) = (node.log_in(0, "alice", 1), node.log_in(1, "bob", 1));
        node.turn();
        let chat = node.pair(alice, "alice", "bob");
        node.turns(2);
        node.stuck = Some(bob);
        // What waits, the oldest first, each with the time since when.
        let mut waits: VecDeque<(u64, u32)> = VecDeque::new();
        // Some are quick enough, and some are not.
        let pace = 10_000 + below(40_000);
        let mut number = 0;
        for step in 1..=150 {
            let until_us = node.now.mono_us + most_us / 24 + below(most_us / 24);
            while node.now.mono_us < until_us {
                node.now.mono_us += most_us / 300;
                node.turn();
            }
            if below(2) == 0 {
                number += 1;
                node.send(alice, chat, number, &vec![7; 1 + below(60_000) as usize]);
            }
            let has = node.count(bob, Kind::Deliver) as u64;
            node.say(bob, |b, out| b.ack(out, has));
            node.say(bob, |b, out| b.ping(out, step));
            node.turn();
            let known: u32 = waits.iter().map(|(_, bytes)| bytes).sum();
            waits.push_back((node.now.mono_us, node.untaken - known));
            let oldest_us = node.now.mono_us - waits[0].0;
            if node.closed.contains(&bob) {
                assert!(oldest_us >= most_us / 3 * 2, "seed {seed}: closed, and nothing is older than {oldest_us} us");
                closed += 1;
                break;
            }
            assert!(oldest_us <= most_us + most_us / 40, "seed {seed}: something is {oldest_us} us old");
            let mut taken = (below(pace) as u32).min(node.untaken);
            node.untaken -= taken;
            node.tell(Input::Written { conn: bob, bytes: taken });
            while taken > 0 || waits.front().is_some_and(|(_, bytes)| *bytes == 0) {
                let part = taken.min(waits[0].1);
                (waits[0].1, taken) = (waits[0].1 - part, taken - part);
                if waits[0].1 == 0 {
                    waits.pop_front();
                }
            }
            kept += u32::from(step == 150);
        }
    }
    assert!(closed >= 3 && kept >= 3, "{closed} closed, {kept} kept: both are to be seen");
}
