//! A node in a steady state over days of simulated time, to see what forgetting costs: most messages are delivered within a
//! minute, some wait for days beside them, and what waits has to be moved so that the rest can go.
//!
//! One shard of the real core over the real log on a disk in memory, without faults: those are the business of seeds.

use whimbrel_core::ids::{ChatId, ConnId, Correlation, DeviceId, InboxSeq, ShardId, UserId};
use whimbrel_core::io::Moving;
use whimbrel_core::limits::{Bounds, MS};
use whimbrel_core::session::Login;
use whimbrel_core::{Counters, Effect, Effects, Input, Now, Shard, ShardConfig, route};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, LogOptions, Memory, Retired, check_segment};
use whimbrel_wire::{Builder, CreateChatFields, SendFields, fb};

const SECOND_US: u64 = 1000 * MS;

/// One in so many messages goes to a device that is away.
const AWAY_OF: u64 = 20;

/// How often a device that is there acknowledges.
const ACK_S: u64 = 30;

/// How often one that is away comes for a moment.
const VISIT_S: u64 = 600;

/// Turns of one second at most: more would be a shard that never comes to rest.
const TURNS_MAX: u32 = 10_000;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    /// How long a message for a device that is away waits, in days. As long again is measured after it.
    pub wait_days: u64,
    /// Messages a second.
    pub rate: u64,
    /// Bytes of a message.
    pub payload_bytes: usize,
    /// Bytes of a segment.
    pub segment_bytes: u32,
}

/// What was counted while the state was steady.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Messages stored.
    pub messages: u64,
    /// Bytes that the log was first given: records and heads of batches, without padding.
    pub appended_bytes: u64,
    /// Bytes by which its batches were filled up to whole pages.
    pub padding_bytes: u64,
    /// Bytes of records that were moved.
    pub moved_bytes: u64,
    /// Bytes by which they were filled up to whole pages.
    pub moved_padding_bytes: u64,
    /// Bytes written to overwrite what is dead beside what waits.
    pub erased_bytes: u64,
    /// Bytes of segments that were overwritten to be used again.
    pub zeroed_bytes: u64,
    /// Checkpoints.
    pub checkpoint_bytes: u64,
    /// Bytes of all segments at the end.
    pub disk_bytes: u64,
    /// Messages that waited then.
    pub waiting: u64,
}

impl Costs {
    /// Bytes appended or moved, by those appended.
    pub fn amplification(&self) -> f64 {
        (self.appended_bytes + self.moved_bytes) as f64 / self.appended_bytes.max(1) as f64
    }
}

/// Runs it; `progress` is told of each simulated hour: which, and of how many.
pub fn run(steady: Steady, progress: &mut dyn FnMut(u64, u64)) -> Costs {
    let mut node = Node::new(steady);
    let half = steady.wait_days * 86_400;
    let mut from = node.counted();
    for second in 0..2 * half {
        if second == half {
            from = node.counted();
        }
        if second.is_multiple_of(3600) {
            progress(second / 3600, 2 * half / 3600);
        }
        node.second(second);
    }
    let to = node.counted();
    let since = |of: fn(&Counters) -> u64| of(&to.core) - of(&from.core);
    let written = to.written_bytes - from.written_bytes;
    let appended_bytes = to.filled_bytes - from.filled_bytes;
    Costs {
        messages: since(|it| it.stored),
        appended_bytes,
        padding_bytes: written - appended_bytes,
        moved_bytes: since(|it| it.moved_bytes),
        moved_padding_bytes: since(|it| it.moved_padding),
        erased_bytes: since(|it| it.erased_bytes),
        zeroed_bytes: since(|it| it.zeroed_bytes),
        checkpoint_bytes: since(|it| it.checkpoint_bytes),
        disk_bytes: node.shard.log_bytes(),
        waiting: node.shard.waiting() as u64,
    }
}

struct Counted {
    core: Counters,
    written_bytes: u64,
    filled_bytes: u64,
}

struct Receiver {
    name: String,
    chat: ChatId,
    sent: u64,
    /// When each message was sent that is not acknowledged, for the one that is away.
    waits: std::collections::VecDeque<u64>,
    acked: u64,
}

struct Node {
    what: Steady,
    shard: Shard,
    disk: RamDisk,
    effects: Effects,
    now: Now,
    checkpoint: Vec<u8>,
    builder: Builder,
    receivers: Vec<Receiver>,
    count: u64,
    wake_us: u64,
}

const ALICE: ConnId = ConnId { slot: 0, generation: 1 };

impl Node {
    fn new(what: Steady) -> Node {
        let mut disk = RamDisk::new(0, 7);
        let options = LogOptions { segment_size: what.segment_bytes, ..LogOptions::new(0) };
        let bounds = Bounds::default();
        let config = ShardConfig { shard: ShardId(0), shards: 1, partitions: 16, token_key: [0; 32], seed: 1, bounds };
        let shard = Shard::open(config, options, &mut disk).expect("an empty disk is a good one");
        let mut node = Node {
            what,
            shard,
            disk,
            effects: Effects::default(),
            now: Now { mono_us: 1, wall_ms: 1000 },
            checkpoint: Vec::new(),
            builder: Builder::default(),
            receivers: Vec::new(),
            count: 0,
            wake_us: 0,
        };
        for _ in 0..50 {
            node.now.mono_us += 100 * MS;
            node.rest();
        }
        node.log_in(0, "alice");
        for n in 1..=AWAY_OF as u32 {
            let name = format!("bob{n}");
            node.log_in(n, &name);
            node.rest();
            let fields =
                CreateChatFields { correlation: 1, kind: fb::ChatKind::Direct, nonce: 0, members: &[&name], title: "" };
            node.say(ALICE, |b, out| b.create_chat(out, &fields));
            node.rest();
            let chat = route::direct_chat(&user("alice"), &user(&name));
            node.receivers.push(Receiver { name, chat, sent: 0, waits: Default::default(), acked: 0 });
        }
        node.tell(Input::Disconnected { conn: ConnId { slot: AWAY_OF as u32, generation: 1 } });
        node
    }

    fn counted(&self) -> Counted {
        let (filled_bytes, written_bytes) = self.shard.log_written_bytes();
        Counted { core: *self.shard.counters(), written_bytes, filled_bytes }
    }

    fn tell(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.effects);
    }

    fn say(&mut self, conn: ConnId, write: impl FnOnce(&mut Builder, &mut Vec<u8>)) {
        let mut frames = Vec::new();
        write(&mut self.builder, &mut frames);
        self.tell(Input::Received { conn, bytes: &frames });
    }

    fn log_in(&mut self, slot: u32, name: &str) {
        let conn = ConnId { slot, generation: 1 };
        let login = Login {
            correlation: Correlation(1),
            user: user(name),
            device: DeviceId(1),
            token_epoch: 0,
            floor: InboxSeq(0),
        };
        self.tell(Input::Adopted { conn, moving: Box::new(Moving { login, unread: Vec::new() }) });
    }

    /// What happens within a second.
    fn second(&mut self, second: u64) {
        let payload = vec![b'w'; self.what.payload_bytes];
        for _ in 0..self.what.rate {
            let to = (self.count % AWAY_OF) as usize;
            self.count += 1;
            let it = &mut self.receivers[to];
            it.sent += 1;
            if to + 1 == AWAY_OF as usize {
                it.waits.push_back(second);
            }
            let fields = SendFields { correlation: it.sent, chat: it.chat.0, client_seq: it.sent, prev: it.sent - 1 };
            self.say(ALICE, |b, out| b.send(out, &fields, &payload));
        }
        self.rest();
        if second.is_multiple_of(ACK_S) {
            for n in 0..AWAY_OF as usize - 1 {
                // The making of the chat is the first.
                let all = self.receivers[n].sent + 1;
                self.say(ConnId { slot: n as u32 + 1, generation: 1 }, |b, out| b.ack(out, all));
            }
        }
        if second.is_multiple_of(VISIT_S) {
            self.visit(second);
        }
        self.now.mono_us += SECOND_US;
        self.now.wall_ms += 1000;
        self.rest();
    }

    /// The one that is away takes what has waited long enough.
    fn visit(&mut self, second: u64) {
        let slot = AWAY_OF as u32;
        let name = self.receivers[slot as usize - 1].name.clone();
        self.log_in(slot, &name);
        self.rest();
        let conn = ConnId { slot, generation: 1 };
        let it = &mut self.receivers[slot as usize - 1];
        let wait_s = self.what.wait_days * 86_400;
        while it.waits.pop_front_if(|sent| *sent + wait_s <= second).is_some() {
            it.acked += 1;
        }
        let all = it.acked + 1;
        if it.acked > 0 {
            self.say(conn, |b, out| b.ack(out, all));
        }
        self.rest();
        self.tell(Input::Disconnected { conn });
    }

    /// Turns until nothing is left to be done now.
    fn rest(&mut self) {
        for _ in 0..TURNS_MAX {
            self.effects.lane_room = vec![4096; 1];
            self.tell(Input::TurnEnd { more: false });
            let again = self.carry_out();
            if !again && self.wake_us > self.now.mono_us {
                return;
            }
            self.now.mono_us += 10;
        }
        panic!("the shard does not come to rest");
    }

    fn carry_out(&mut self) -> bool {
        let list: Vec<Effect> = self.effects.list.drain(..).collect();
        self.effects.clear();
        let mut again = false;
        for effect in list {
            again |= !matches!(effect, Effect::WakeAt { .. } | Effect::RemoveSegment(_) | Effect::Close { .. });
            match effect {
                Effect::Send { conn, head, payload } => {
                    let bytes = (head.len() + payload.map_or(0, |payload| payload.len())) as u32;
                    self.tell(Input::Written { conn, bytes });
                }
                Effect::Close { conn } => panic!("{conn:?} is closed"),
                Effect::WriteLog(write) => {
                    self.disk.write(write.segment, write.offset as u32, write.batch.as_ref()).expect(GOOD);
                    self.tell(Input::LogWritten { write: write.id });
                }
                Effect::PrepareSegment { segment, reuse } => {
                    let old = reuse.map(|Retired { id, mapping: _, used }| (id, used));
                    let size_bytes = self.what.segment_bytes;
                    let mapping = match old {
                        Some((old, used)) => self.disk.recycle(old, used, segment, size_bytes).expect(GOOD),
                        None => self.disk.create(segment, size_bytes).expect(GOOD),
                    };
                    self.tell(Input::SegmentReady { segment, mapping });
                }
                Effect::RemoveSegment(Retired { id, mapping, .. }) => {
                    drop(mapping);
                    self.disk.remove(id).expect(GOOD);
                }
                Effect::Checkpoint { number, bytes, last } => {
                    self.checkpoint.extend_from_slice(&bytes);
                    match last {
                        None => self.tell(Input::CheckpointTaken { number }),
                        Some(keep_from) => {
                            let whole = std::mem::take(&mut self.checkpoint);
                            self.disk.put_checkpoint(number, whole, keep_from).expect(GOOD);
                            self.tell(Input::CheckpointWritten { number });
                        }
                    }
                }
                Effect::ReadIn { is, mapping } => {
                    let checked = check_segment(&is, &mut Memory(&mapping));
                    drop(mapping);
                    self.tell(Input::ReadIn { checked });
                }
                Effect::Scrub { is, mapping } => {
                    let checked = check_segment(&is, &mut Memory(&mapping));
                    drop(mapping);
                    self.tell(Input::Scrubbed { checked });
                }
                Effect::Tell(trouble) => panic!("{trouble:?}"),
                Effect::Cold(work) => {
                    let done = work.run(&mut self.disk).expect(GOOD);
                    self.tell(Input::ColdDone(Box::new(done)));
                }
                Effect::WakeAt { mono_us } => self.wake_us = mono_us,
                Effect::Detach { .. } | Effect::Move { .. } | Effect::Lane { .. } | Effect::Stopped => {
                    unreachable!("there is one shard, and it does not stop")
                }
                Effect::Fatal(fatal) => panic!("{}", fatal.text()),
            }
        }
        again
    }
}

const GOOD: &str = "a disk in memory without faults";

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a short name")
}
