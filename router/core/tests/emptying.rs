//! What waits is moved while checkpoints take many turns: whenever the power is lost in between, and whichever of the two
//! checkpoints a start goes on from, all of it is still there.

#![allow(clippy::unwrap_used)]

use whimbrel_core::ids::{ChatId, ConnId, Correlation, DeviceId, InboxSeq, ShardId, UserId};
use whimbrel_core::io::Moving;
use whimbrel_core::limits::Bounds;
use whimbrel_core::session::Login;
use whimbrel_core::{Effect, Effects, Input, Now, Shard, ShardConfig, route};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    Checked, ColdWork, Disk, LogOptions, Loss, Memory, Retired, Rot, RotReason, SegmentId, SegmentIs, check_segment,
};
use whimbrel_wire::{Builder, CreateChatFields, Kind, SendFields, fb};

const SEGMENT_BYTES: u32 = 384 << 10;
const STEP_US: u64 = 1_000_000;

/// A shard over a disk in memory, of which each turn may be the last.
struct Node {
    shard: Shard,
    disk: RamDisk,
    fx: Effects,
    now: Now,
    /// Numbers of the messages that were delivered.
    delivered: Vec<u64>,
    /// How many are stored.
    sent: u64,
    checkpoint: Vec<u8>,
    /// None of them comes into its place.
    checkpoints_fail: bool,
    /// Erasing is slow: a step of it waits in `erasing` for [`Node::erase`].
    erases_slowly: bool,
    erasing: Option<ColdWork>,
    /// Steps of erasing that were done at once.
    erased: u64,
    segment_bytes: u32,
    builder: Builder,
}

impl Node {
    fn start(disk: RamDisk) -> Node {
        let mut node = Node::open(disk);
        for _ in 0..12 {
            node.turn(2000);
        }
        assert!(node.shard.is_ready());
        node
    }

    /// For bob, who is away, twenty messages of alice wait, and the making of their chat.
    fn with_waiting(seed: u64) -> Node {
        let mut node = Node::start(RamDisk::new(0, seed));
        let (alice, bob) = (node.log_in(0, "alice"), node.log_in(1, "bob"));
        (0..20).for_each(|_| node.turn(2000));
        let chat = node.pair(alice, "alice", "bob");
        node.tell(Input::Disconnected { conn: bob });
        for number in 1..=20 {
            node.send(alice, chat, number);
            node.turn(2000);
        }
        node
    }

    /// It has not had a turn yet.
    fn open(disk: RamDisk) -> Node {
        Node::open_with(disk, SEGMENT_BYTES, 1, Bounds { image_places: 1, sorted_places: 1, ..Bounds::default() })
    }

    fn open_with(mut disk: RamDisk, segment_bytes: u32, partitions: u16, bounds: Bounds) -> Node {
        let bounds = Bounds { forget_after_us: 8 * STEP_US, ..bounds };
        let options = LogOptions { segment_size: segment_bytes, ..LogOptions::new(0) };
        let config = ShardConfig { shard: ShardId(0), shards: 1, partitions, token_key: [0; 32], seed: 1, bounds };
        let shard = Shard::open(config, options, &mut disk).unwrap();
        let now = Now { mono_us: 1, wall_ms: 1000 };
        let (fx, builder) = (Effects::default(), Builder::default());
        Node {
            shard,
            disk,
            fx,
            now,
            delivered: Vec::new(),
            sent: 0,
            checkpoint: Vec::new(),
            checkpoints_fail: false,
            erases_slowly: false,
            erasing: None,
            erased: 0,
            segment_bytes,
            builder,
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.fx);
    }

    /// Ends one turn, and does at once what it wants.
    fn turn(&mut self, after_us: u64) {
        self.now.mono_us += after_us;
        self.now.wall_ms += after_us.div_ceil(1000);
        self.fx.lane_room = vec![64];
        self.tell(Input::TurnEnd { more: false });
        let bytes = std::mem::take(&mut self.fx.bytes);
        for effect in std::mem::take(&mut self.fx.list) {
            match effect {
                Effect::Send { conn, head, payload } => {
                    let mut frame = bytes[head].to_vec();
                    frame.extend_from_slice(&payload.unwrap_or_default());
                    self.sent += u64::from(frame[4] == Kind::Sent as u8);
                    if frame[4] == Kind::Deliver as u8 && self.sent > 0 {
                        let (_, number) = frame.split_last_chunk().unwrap();
                        let number = u64::from_le_bytes(*number);
                        assert!(frame.ends_with(&payload_of(number)), "message {number} is not what was sent");
                        self.delivered.push(number);
                    }
                    self.tell(Input::Written { conn, bytes: frame.len() as u32 });
                }
                Effect::WriteLog(write) => {
                    self.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
                    self.tell(Input::LogWritten { write: write.id });
                }
                Effect::PrepareSegment { segment, reuse } => {
                    let old = reuse.map(|Retired { id, mapping: _, used }| (id, used));
                    let mapping = match old {
                        Some((old, used)) => self.disk.recycle(old, used, segment, self.segment_bytes).unwrap(),
                        None => self.disk.create(segment, self.segment_bytes).unwrap(),
                    };
                    self.tell(Input::SegmentReady { segment, mapping });
                }
                Effect::RemoveSegment(Retired { id, mapping, .. }) => {
                    drop(mapping);
                    self.disk.remove(id).unwrap();
                }
                Effect::Checkpoint { number, bytes, last } => {
                    self.checkpoint.extend_from_slice(&bytes);
                    match last {
                        None => self.tell(Input::CheckpointTaken { number }),
                        Some(_) if self.checkpoints_fail => {
                            self.checkpoint.clear();
                            self.tell(Input::CheckpointFailed { number });
                        }
                        Some(keep_from) => {
                            let whole = std::mem::take(&mut self.checkpoint);
                            self.disk.put_checkpoint(number, whole, keep_from).unwrap();
                            self.tell(Input::CheckpointWritten { number });
                        }
                    }
                }
                Effect::ReadIn { is, mapping } => {
                    let checked = match self.disk.read_in(is.id, &mapping).unwrap() {
                        Some(mut partly) => check_segment(&is, &mut partly),
                        None => check_segment(&is, &mut Memory(&mapping)),
                    };
                    drop(mapping);
                    self.tell(Input::ReadIn { checked });
                }
                Effect::Cold(work @ ColdWork::Erase(_)) if self.erases_slowly => {
                    assert!(self.erasing.replace(work).is_none(), "one at a time");
                }
                Effect::Cold(work) => {
                    self.erased += u64::from(matches!(work, ColdWork::Erase(_)));
                    let done = work.run(&mut self.disk).unwrap();
                    self.tell(Input::ColdDone(Box::new(done)));
                }
                Effect::Scrub { is, mapping } => {
                    let checked = check_segment(&is, &mut Memory(&mapping));
                    drop(mapping);
                    self.tell(Input::Scrubbed { checked });
                }
                Effect::WakeAt { .. } | Effect::Close { .. } | Effect::Tell(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// One step of erasing is done, or fails.
    fn erase(&mut self, fails: bool) {
        let Some(work) = self.erasing.take() else { return };
        self.disk.faults.write = fails;
        match work.run(&mut self.disk) {
            Ok(done) => self.tell(Input::ColdDone(Box::new(done))),
            Err(_) => self.tell(Input::ColdFailed),
        }
        self.disk.faults.write = false;
    }

    fn log_in(&mut self, slot: u32, user: &str) -> ConnId {
        let conn = ConnId { slot, generation: 1 };
        let floor = InboxSeq(0);
        let login = Login { correlation: Correlation(1), user: name(user), device: DeviceId(1), token_epoch: 0, floor };
        self.tell(Input::Adopted { conn, moving: Box::new(Moving { login, unread: Vec::new() }) });
        self.turn(2000);
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
        (0..20).for_each(|_| self.turn(2000));
        route::direct_chat(&name(from), &name(to))
    }

    fn send(&mut self, conn: ConnId, chat: ChatId, number: u64) {
        let fields = SendFields { correlation: number, chat: chat.0, client_seq: number, prev: number - 1 };
        self.say(conn, |b, out| b.send(out, &fields, &payload_of(number)));
    }

    /// After a loss of power, with or without the newest checkpoint: a start, to which nothing is lost.
    fn after_crash(&self, newest_rots: bool) -> Node {
        let mut disk = self.disk.crash(&mut |_, _| false);
        if newest_rots && let [_, .., (newest, len)] = disk.checkpoint_sizes()[..] {
            disk.flip_checkpoint_bit(newest, len * 4);
        }
        Node::start(disk)
    }

    /// What a device is given that comes back.
    fn read_all(&mut self) -> &[u64] {
        self.sent = 1;
        let conn = self.log_in(7, "bob");
        let mut seen = 0;
        loop {
            (0..6).for_each(|_| self.turn(2000));
            if self.delivered.len() == seen {
                return &self.delivered;
            }
            seen = self.delivered.len();
            // The making of the chat came first.
            let floor = self.delivered.last().unwrap() + 1;
            self.say(conn, |b, out| b.ack(out, floor));
        }
    }
}

fn name(user: &str) -> UserId {
    UserId::new(user).unwrap()
}

fn payload_of(number: u64) -> [u8; 96] {
    let mut payload = [number as u8 ^ 0x55; 96];
    payload[88..].copy_from_slice(&number.to_le_bytes());
    payload
}

#[test]
fn whenever_the_power_is_lost_while_what_waits_is_moved_all_of_it_is_there() {
    let mut node = Node::start(RamDisk::new(0, 7));
    let (alice, bob) = (node.log_in(0, "alice"), node.log_in(1, "bob"));
    (0..20).for_each(|_| node.turn(2000));
    let chat = node.pair(alice, "alice", "bob");
    node.say(bob, |b, out| b.ack(out, 1));
    (0..600).for_each(|_| node.turn(2000));
    node.tell(Input::Disconnected { conn: bob });
    let mut number = 0;
    for _ in 0..72 {
        for _ in 0..50 {
            number += 1;
            node.send(alice, chat, number);
        }
        node.turn(2000);
        node.turn(2000);
    }
    (0..10).for_each(|_| node.turn(2000));
    assert_eq!(node.sent, number);
    let expected: Vec<u64> = (1..=number).collect();
    let mut step = 0;
    for turns in 1..=90 {
        // A turn in the middle of a checkpoint may as well be one of Raft's ticks.
        let is_imaging = node.shard.is_imaging();
        node.turn(if is_imaging { 110_000 } else { STEP_US / 2 });
        step += u64::from(!is_imaging && node.shard.is_imaging());
        for newest_rots in [false, true] {
            let mut after = node.after_crash(newest_rots);
            assert_eq!(after.shard.waiting() as u64, number, "step {step}, newest rots: {newest_rots}");
            if turns % 15 == 0 {
                assert_eq!(after.read_all(), expected);
            }
        }
    }
    assert!(node.shard.counters().moved >= number && step > 5, "{step}");

    // What is left in a cold segment of which most has died moves once more.
    let bob = node.log_in(2, "bob");
    let moved = node.shard.counters().moved;
    let mut moved_twice = 0;
    for floor in (0..number).step_by(60) {
        if moved_twice == 0 {
            node.say(bob, |b, out| b.ack(out, floor + 1));
        }
        for _ in 0..6 {
            node.turn(if node.shard.is_imaging() { 110_000 } else { STEP_US / 3 });
            for newest_rots in [false, true] {
                let after = node.after_crash(newest_rots);
                assert!((number - floor..=number).contains(&(after.shard.waiting() as u64)), "{floor}");
            }
            moved_twice = node.shard.counters().moved - moved;
            if moved_twice > 0 {
                // What a start does before its first checkpoint is there takes nothing from the two that it found.
                let mut after = node.after_crash(false);
                after.checkpoints_fail = true;
                (0..12).for_each(|_| after.turn(STEP_US / 2));
                let mut again = after.after_crash(true);
                assert_eq!(again.read_all().last().copied().unwrap_or(number), number);
            }
        }
    }
    assert!(moved_twice > 0, "nothing was moved twice");
}

#[test]
fn damage_that_is_found_before_its_partition_serves_is_not_forgotten() {
    let mut node = Node::with_waiting(7);
    (0..60).for_each(|_| node.turn(if node.shard.is_imaging() { 110_000 } else { STEP_US / 2 }));
    let cold = node.disk.segments().find(|id| id.is_cold()).unwrap();
    let bytes = node.disk.contents(cold).unwrap();
    let at = bytes.windows(96).position(|window| window == payload_of(7)).unwrap() as u32;

    for is_damaged in [true, false] {
        let mut disk = node.disk.crash(&mut |_, _| false);
        disk.flip_bit(cold, at, u8::from(is_damaged) + 1).unwrap();
        let is = SegmentIs { shard: 0, id: cold, size_bytes: SEGMENT_BYTES, generation: None };
        let checked = check_segment(&is, &mut Memory(&disk.contents(cold).unwrap()));
        disk.flip_bit(cold, at, u8::from(is_damaged) + 1).unwrap();
        assert_eq!(checked.rot.len(), 1);
        let checked = if is_damaged { checked } else { Checked { rot: Vec::new(), ..checked } };
        // Another partition is served already, and had it read in.
        let mut after = Node::open(disk);
        after.tell(Input::ReadIn { checked });
        (0..12).for_each(|_| after.turn(2000));
        assert!(after.shard.is_ready());
        assert_eq!(after.shard.in_repair().count(), usize::from(is_damaged));
    }
}

#[test]
fn a_table_that_has_changed_on_the_disk_since_it_was_checked_is_not_believed() {
    for bit in [None, Some(6), Some(7)] {
        let mut node = Node::start(RamDisk::new(0, 7));
        let (alice, bob) = (node.log_in(0, "alice"), node.log_in(1, "bob"));
        (0..20).for_each(|_| node.turn(2000));
        let chat = node.pair(alice, "alice", "bob");
        // The making of the chat.
        node.say(bob, |b, out| b.ack(out, 1));
        (0..20).for_each(|_| node.turn(2000));
        node.tell(Input::Disconnected { conn: bob });
        (1..=20).for_each(|number| {
            node.send(alice, chat, number);
            node.turn(2000);
        });
        (0..20).for_each(|_| node.turn(2000));
        // The command by which it came to bob's inbox: its table begins so many bytes before the payload, with where its root is.
        let bytes = node.disk.contents(SegmentId(1)).unwrap();
        let payload = bytes.windows(96).rposition(|window| window == payload_of(7)).unwrap();
        let table_len = |head: usize| u32::from_le_bytes(*bytes[head + 8..].first_chunk().unwrap()) as usize;
        let head = (payload - 256..payload - 16)
            .rev()
            .find(|&head| head + 16 + table_len(head) == payload && bytes[head + 4] == 5);
        if let Some(bit) = bit {
            node.disk.flip_bit(SegmentId(1), head.unwrap() as u32 + 16 + 1, bit).unwrap();
        }
        let expected: Vec<u64> = (1..if bit.is_some() { 7 } else { 21 }).collect();
        node.sent = 1;
        node.log_in(2, "bob");
        (0..12).for_each(|_| node.turn(2000));
        assert_eq!(node.delivered, expected, "{bit:?}");
        assert_eq!(node.shard.in_repair().count(), usize::from(bit.is_some()));
    }
}

#[test]
fn zeros_of_a_page_that_cannot_be_read_do_not_pass_for_what_is_erased() {
    let mut node = Node::with_waiting(7);
    (0..60).for_each(|_| node.turn(if node.shard.is_imaging() { 110_000 } else { STEP_US / 2 }));
    let cold = node.disk.segments().find(|id| id.is_cold()).unwrap();
    let bytes = node.disk.contents(cold).unwrap();
    let at = bytes.windows(96).position(|window| window == payload_of(7)).unwrap() as u32;
    // What a check says of a page if all records hold with zeros there.
    let (reason, loss) = (RotReason::Unreadable, Loss::Nothing);
    for (offset, in_repair) in [(at / 4096 * 4096, 1), (SEGMENT_BYTES - 4096, 0)] {
        let mut after = Node::start(node.disk.crash(&mut |_, _| false));
        let rot = Rot { segment: cold, offset, bytes: 4096, reason, loss };
        after.tell(Input::ReadIn {
            checked: Checked { segment: cold, end: SEGMENT_BYTES, rot: vec![rot], ..Checked::default() },
        });
        assert_eq!(after.shard.in_repair().count(), in_repair, "{rot:?}");
    }
}

#[test]
fn a_segment_that_ends_too_early_before_its_partition_serves_is_not_forgotten() {
    let mut node = Node::with_waiting(8);
    // It is closed, and a checkpoint lies behind it; what waits in it has not moved yet.
    let segment = SegmentId(1);
    let moved = node.shard.counters().moved;
    while node.shard.counters().checkpoints < 2 {
        node.turn(STEP_US / 2);
    }
    assert_eq!(node.shard.counters().moved, moved);
    // Damage that takes nothing, and no batch behind it.
    let rot = Rot { segment, offset: 0, bytes: 4096, reason: RotReason::SegmentHeader, loss: Loss::Nothing };
    for end in [4096, SEGMENT_BYTES] {
        let mut after = Node::open(node.disk.crash(&mut |_, _| false));
        after.tell(Input::ReadIn { checked: Checked { segment, end, rot: vec![rot], ..Checked::default() } });
        (0..12).for_each(|_| after.turn(2000));
        assert!(after.shard.is_ready());
        assert_eq!(after.shard.in_repair().count(), usize::from(end == 4096), "it ends at {end}");
    }
}

/// A payload of many pages, which ends with what [`payload_of`] gives.
fn large(mark: u8, number: u64) -> Vec<u8> {
    let mut payload = vec![mark; 48 << 10];
    payload.extend_from_slice(&payload_of(number));
    payload
}

#[test]
fn erasing_that_outlasts_checkpoints_comes_to_its_end_and_keeps_nothing_from_moving() {
    const LARGE_SEGMENT_BYTES: u32 = 3 << 20;
    let bounds = Bounds { image_places: 64, ..Bounds::default() };
    let mut node = Node::open_with(RamDisk::new(0, 7), LARGE_SEGMENT_BYTES, 1, bounds);
    (0..12).for_each(|_| node.turn(2000));
    let alice = node.log_in(0, "alice");
    let friends = [(1, "bob", b'B'), (2, "carol", b'C')];
    let chats = friends.map(|(slot, friend, _)| {
        let conn = node.log_in(slot, friend);
        (0..20).for_each(|_| node.turn(2000));
        let chat = node.pair(alice, "alice", friend);
        node.say(conn, |b, out| b.ack(out, 1));
        (0..600).for_each(|_| node.turn(2000));
        node.tell(Input::Disconnected { conn });
        chat
    });
    let mut next = [1; 2];
    let mut send = |node: &mut Node, to: usize| {
        let number = next[to];
        next[to] += 1;
        let fields = SendFields { correlation: number, chat: chats[to].0, client_seq: number, prev: number - 1 };
        node.say(alice, |b, out| b.send(out, &fields, &large(friends[to].2, number)));
        (0..3).for_each(|_| node.turn(2000));
    };
    // What is to die and what stays lie beside each other, in several cold segments.
    const EACH: u64 = 120;
    for _ in 0..EACH {
        (0..2).for_each(|to| send(&mut node, to));
    }
    assert_eq!(node.sent, 2 * EACH);
    while node.shard.counters().moved < 2 * EACH {
        node.turn(STEP_US / 2);
    }
    (0..40).for_each(|_| node.turn(STEP_US / 2));
    // How many bytes of those for bob are in the cold segments.
    let of_bob = |node: &Node, id: SegmentId| {
        let bytes = node.disk.contents(id).unwrap();
        bytes.chunks(4096).filter(|page| page[..64] == [b'B'; 64] || page[4032..] == [b'B'; 64]).count()
    };
    let cold: Vec<SegmentId> = node.disk.segments().filter(|id| id.is_cold()).collect();
    assert!(cold.len() >= 4 && cold.iter().all(|id| of_bob(&node, *id) > 0), "{cold:?}");
    node.erases_slowly = true;
    assert_eq!(node.read_all().len() as u64, EACH);

    // From here on one step of it is done between two checkpoints, of which the first fails.
    let moved = node.shard.counters().moved;
    let (mut steps, mut emptied_at) = (0, None);
    let hot = |node: &Node| -> Vec<SegmentId> { node.disk.segments().filter(|id| !id.is_cold()).collect() };
    let before = hot(&node);
    while cold.iter().any(|id| of_bob(&node, *id) > 0) {
        let checkpoints = node.shard.counters().checkpoints;
        while node.shard.counters().checkpoints == checkpoints {
            // Something changes all the time.
            send(&mut node, 1);
            node.turn(STEP_US / 4);
        }
        node.erase(steps == 0);
        steps += 1;
        if emptied_at.is_none() && node.shard.counters().moved > moved {
            emptied_at = Some(steps);
        }
        assert!(steps < 60, "it does not come to its end");
    }
    assert!(emptied_at.is_some_and(|at| at < steps / 2), "moved at step {emptied_at:?} of {steps}");
    assert_eq!(node.shard.counters().moves_failed, 1);
    assert!(!hot(&node).iter().any(|id| before.contains(id)), "all that were there are let go of");
    let mut after = Node::open_with(node.disk.crash(&mut |_, _| false), LARGE_SEGMENT_BYTES, 1, bounds);
    (0..12).for_each(|_| after.turn(2000));
    assert_eq!(after.shard.waiting() as u64, next[1] - 1, "nothing is lost");
}

#[test]
fn what_waits_is_compared_once_with_all_that_is_found_damaged_at_a_time() {
    let mut node = Node::open_with(RamDisk::new(0, 7), SEGMENT_BYTES, 2, Bounds::default());
    (0..40).for_each(|_| node.turn(2000));
    let alice = node.log_in(0, "alice");
    let other = ["carol", "dave", "erin", "frank", "grace"].into_iter().find(|other| {
        let of = |user: &str| route::partition_of_user(&name(user), 2);
        of(other) != of("bob")
    });
    let each = 1000;
    for (slot, friend) in [(1, "bob"), (2, other.unwrap())] {
        let conn = node.log_in(slot, friend);
        (0..20).for_each(|_| node.turn(2000));
        // That there is a chat is delivered before anything is sent.
        node.sent = 0;
        let chat = node.pair(alice, "alice", friend);
        node.tell(Input::Disconnected { conn });
        for number in 1..=each {
            node.send(alice, chat, number);
            if number % 50 == 0 {
                (0..4).for_each(|_| node.turn(2000));
            }
        }
        if friend != "bob" {
            continue;
        }
        // The head of each batch is damaged, and with it all that waits so far.
        let ids: Vec<SegmentId> = node.disk.segments().collect();
        for id in ids {
            for page in (4096..SEGMENT_BYTES).step_by(4096) {
                if node.disk.read(id, page, 1) != Some(vec![0]) {
                    node.disk.flip_bit(id, page, 1).unwrap();
                }
            }
        }
    }
    let places = node.shard.waiting() as u64;
    assert!(places >= 2 * each, "{places} wait");
    let mut compared = 0;
    while node.shard.in_repair().count() == 0 {
        node.turn(STEP_US / 2);
        let before = std::mem::replace(&mut compared, node.shard.compared());
        assert!(compared - before <= places, "{} of {places} at once", compared - before);
    }
    assert!(compared > each && node.shard.in_repair().count() == 1, "whoever lost nothing is compared as well");
    let counters = node.shard.counters();
    assert!(counters.moves_rotten > each / 2, "{}", counters.moves_rotten);
    assert_eq!(counters.rot_found, counters.moves_rotten, "each is told once");
}

#[test]
fn what_is_known_to_be_unreadable_is_compared_once_until_it_was_read_or_is_another() {
    let mut node = Node::open_with(RamDisk::new(0, 7), SEGMENT_BYTES, 1, Bounds::default());
    (0..12).for_each(|_| node.turn(2000));
    let (alice, bob) = (node.log_in(0, "alice"), node.log_in(1, "bob"));
    (0..20).for_each(|_| node.turn(2000));
    let chat = node.pair(alice, "alice", "bob");
    node.tell(Input::Disconnected { conn: bob });
    // More than an eighth of a segment: what is less would move once more.
    for number in 1..=300 {
        node.send(alice, chat, number);
        if number % 50 == 0 {
            (0..4).for_each(|_| node.turn(2000));
        }
    }
    // Several checkpoints, as long as one is wanted.
    let checkpoints = |node: &mut Node| (0..24).for_each(|_| node.turn(STEP_US / 2));
    checkpoints(&mut node);
    checkpoints(&mut node);
    assert_eq!(node.shard.counters().moved, 301);
    let cold: Vec<SegmentId> = node.disk.segments().filter(|id| id.is_cold()).collect();
    let [cold] = cold[..] else { panic!("{cold:?}") };
    // Pages in which nothing is that anybody waits for.
    let unused = SEGMENT_BYTES - 8192;
    let at = |page: u32| vec![(cold, page..page + 4096)];
    // A start does not know where a cold segment ends: all of it is looked at.
    let mut node = Node::open_with(node.disk.crash(&mut |_, _| false), SEGMENT_BYTES, 1, Bounds::default());
    (0..12).for_each(|_| node.turn(2000));
    let mut seen = node.shard.compared();
    for (round, (unreadable, found)) in
        [(at(unused), 1), (at(unused), 1), (at(unused + 4096), 2), (Vec::new(), 2), (at(unused), 2)]
            .into_iter()
            .enumerate()
    {
        node.disk.unreadable = unreadable;
        if round == 4 {
            // It was looked at to its end, and is again when something dies.
            let bob = node.log_in(2, "bob");
            (0..10).for_each(|_| node.turn(2000));
            node.say(bob, |b, out| b.ack(out, 20));
        }
        let erased = node.erased;
        checkpoints(&mut node);
        assert!(node.erased > erased + u64::from(round < 3), "it is looked at in round {round}");
        let compared = node.shard.compared() - std::mem::replace(&mut seen, node.shard.compared());
        let waits = node.shard.waiting() as u64;
        // Of the last one nobody knows that it was so before, for it was read since.
        let is_news = [true, false, true, false, true][round];
        assert_eq!(compared > 0, is_news, "{compared} places in round {round}");
        assert!(compared <= 3 * waits, "{compared} places at once in round {round}, {waits} wait");
        assert_eq!(node.shard.counters().rot_found, found, "each page is told once, round {round}");
        assert_eq!(node.shard.in_repair().count(), 0);
    }
}

#[test]
fn a_message_on_a_page_that_is_known_to_be_unreadable_is_not_looked_at() {
    let mut node = Node::start(RamDisk::new(0, 7));
    let (alice, bob) = (node.log_in(0, "alice"), node.log_in(1, "bob"));
    (0..20).for_each(|_| node.turn(2000));
    let chat = node.pair(alice, "alice", "bob");
    node.tell(Input::Disconnected { conn: bob });
    // With zeros in the place of a page of these its checksum holds: nothing of it is lost.
    let fields = SendFields { correlation: 1, chat: chat.0, client_seq: 1, prev: 0 };
    node.say(alice, |b, out| b.send(out, &fields, &[0; 12 << 10]));
    (0..20).for_each(|_| node.turn(2000));
    let bytes = node.disk.contents(SegmentId(1)).unwrap();
    let zeros = |page: &u32| bytes[*page as usize..][..4096].iter().all(|byte| *byte == 0);
    for (checkpoints, is_lost) in [(0, true), (0, false), (2, true), (2, false)] {
        // Once its segment is behind the position of a checkpoint it is read when somebody wants it, and not by the start.
        while node.shard.counters().checkpoints < checkpoints {
            node.turn(STEP_US / 2);
        }
        // The message is there twice, as it was sent and as it was fanned out; both wait at first.
        let waits = |page: &u32| !node.shard.waiting_in(SegmentId(1), *page..*page + 4096).is_empty();
        let page = (0..SEGMENT_BYTES).step_by(4096).filter(zeros).find(waits).unwrap();
        let mut disk = node.disk.crash(&mut |_, _| false);
        if is_lost {
            disk.lose_page(SegmentId(1), page).unwrap();
        }
        let mut after = Node::start(disk);
        after.log_in(2, "bob");
        (0..10).for_each(|_| after.turn(2000));
        let repairs: Vec<_> = after.shard.in_repair().map(|it| it.rot.map(|rot| (rot.offset, rot.reason))).collect();
        assert_eq!(repairs, if is_lost { vec![Some((page, RotReason::Unreadable))] } else { vec![] });
        assert_eq!(after.shard.counters().delivered == 2, !is_lost, "the making of the chat comes first");
    }
    assert_eq!(node.shard.counters().moved, 0);
}
