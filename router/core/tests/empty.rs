//! A shard that rests writes one batch without records behind its last one: when it is time and only then, and it does nothing else
//! because of it.

#![allow(clippy::unwrap_used)]

use whimbrel_core::ids::{ConnId, Correlation, DeviceId, InboxSeq, ShardId, UserId};
use whimbrel_core::io::Moving;
use whimbrel_core::limits::{Bounds, EMPTY_BATCH_US, MS, RAFT_TICK_US};
use whimbrel_core::session::Login;
use whimbrel_core::{Effect, Effects, Input, Now, Shard, ShardConfig};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, LogOptions, Retired, SegmentId};

const SEGMENT_BYTES: u32 = 512 << 10;

/// What a write to the disk takes.
const WRITE_US: u64 = 200;

/// A shard over a disk in memory that is called when it wants to be and at no other time.
struct Node {
    shard: Shard,
    disk: RamDisk,
    fx: Effects,
    now_us: u64,
    wake_us: u64,
    turns: u64,
    /// When writes ended, and how many records were in them.
    writes: Vec<(u64, u32)>,
    checkpoint: Vec<u8>,
    checkpoints: Vec<u64>,
    /// Segments are not made, and this one is waited for.
    waits: bool,
    waiting: Option<SegmentId>,
    stopped: bool,
}

impl Node {
    fn new(bounds: Bounds) -> Node {
        Node::on(RamDisk::new(0, 3), bounds, false)
    }

    fn on(mut disk: RamDisk, bounds: Bounds, waits: bool) -> Node {
        let config = ShardConfig { shard: ShardId(0), shards: 1, partitions: 5, token_key: [0; 32], seed: 1, bounds };
        let options = LogOptions { segment_size: SEGMENT_BYTES, ..LogOptions::new(0) };
        let shard = Shard::open(config, options, &mut disk).unwrap();
        Node {
            shard,
            disk,
            fx: Effects { lane_room: vec![0], ..Effects::default() },
            now_us: 1,
            wake_us: 1,
            turns: 0,
            writes: Vec::new(),
            checkpoint: Vec::new(),
            checkpoints: Vec::new(),
            waits,
            waiting: None,
            stopped: false,
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        let now = Now { mono_us: self.now_us, wall_ms: self.now_us / MS };
        self.shard.handle(now, input, &mut self.fx);
    }

    /// Ends a turn, and does what it wants, until it wants nothing but to be called again.
    fn turn(&mut self) {
        let mut again = true;
        while std::mem::take(&mut again) {
            self.turns += 1;
            self.tell(Input::TurnEnd { more: false });
            for effect in std::mem::take(&mut self.fx.list) {
                again |= self.carry_out(effect);
            }
            self.fx.clear();
        }
    }

    /// True if it was answered.
    fn carry_out(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::WriteLog(write) => {
                let batch = write.batch.as_ref();
                let records = u32::from_le_bytes(batch[40..44].try_into().unwrap());
                self.disk.write(write.segment, write.offset as u32, batch).unwrap();
                self.now_us += WRITE_US;
                self.writes.push((self.now_us, records));
                self.tell(Input::LogWritten { write: write.id });
            }
            Effect::PrepareSegment { segment, .. } if self.waits => {
                self.waiting = Some(segment);
                return false;
            }
            Effect::PrepareSegment { segment, reuse } => {
                let old = reuse.map(|Retired { id, mapping: _, used }| (id, used));
                let mapping = match old {
                    Some((old, used)) => self.disk.recycle(old, used, segment, SEGMENT_BYTES),
                    None => self.disk.create(segment, SEGMENT_BYTES),
                };
                self.tell(Input::SegmentReady { segment, mapping: mapping.unwrap() });
            }
            Effect::RemoveSegment(Retired { id, mapping, .. }) => {
                drop(mapping);
                self.disk.remove(id).unwrap();
            }
            Effect::Checkpoint { number, bytes, last } => {
                self.checkpoint.extend_from_slice(&bytes);
                let Some(keep_from) = last else {
                    self.tell(Input::CheckpointTaken { number });
                    return true;
                };
                self.disk.put_checkpoint(number, std::mem::take(&mut self.checkpoint), keep_from).unwrap();
                self.checkpoints.push(self.now_us);
                self.tell(Input::CheckpointWritten { number });
            }
            Effect::WakeAt { mono_us } => {
                self.wake_us = mono_us;
                return false;
            }
            Effect::Stopped => self.stopped = true,
            Effect::Send { .. } | Effect::Close { .. } => return false,
            other => panic!("{other:?}"),
        }
        true
    }

    /// So much time passes in which nothing comes from outside.
    fn pass(&mut self, us: u64) {
        let until_us = self.now_us + us;
        self.turn();
        while self.wake_us <= until_us {
            assert!(self.wake_us > 0, "it is told when it is to be called");
            self.now_us = self.now_us.max(self.wake_us);
            self.tell(Input::Timeout);
            self.turn();
        }
        self.now_us = self.now_us.max(until_us);
    }

    /// Somebody's first login, which is written.
    fn log_in(&mut self, number: u32) {
        let conn = ConnId { slot: number, generation: 1 };
        let login = Login {
            correlation: Correlation(1),
            user: UserId::new(&format!("user-{number}")).unwrap(),
            device: DeviceId(1),
            token_epoch: 0,
            floor: InboxSeq(0),
        };
        self.tell(Input::Adopted { conn, moving: Box::new(Moving { login, unread: Vec::new() }) });
        self.turn();
    }

    /// Writes without records so far.
    fn empty(&self) -> usize {
        self.writes.iter().filter(|(_, records)| *records == 0).count()
    }

    /// The last write had no records, and came when it was time.
    fn has_rested(&self) -> bool {
        let [.., (before_us, before), (last_us, 0)] = self.writes[..] else { return false };
        assert!(before > 0, "none follows another");
        assert_eq!(last_us, before_us + EMPTY_BATCH_US + WRITE_US, "it is called for it");
        true
    }
}

#[test]
fn one_is_written_in_each_rest_and_none_while_there_is_something_to_do() {
    let mut node = Node::new(Bounds::default());
    node.pass(20_000 * MS);
    assert!(node.shard.is_ready() && node.has_rested());
    assert_eq!(node.empty(), 1);
    // It is not called more often than for what goes on for ever.
    let (turns, writes) = (node.turns, node.writes.len());
    node.pass(10_000 * MS);
    assert_eq!(node.writes.len(), writes);
    assert!(node.turns - turns <= 10_000 * MS / RAFT_TICK_US + 2, "{} turns", node.turns - turns);
    // Something comes just before it is time, again and again.
    for number in 0..40 {
        node.log_in(number);
        node.pass(EMPTY_BATCH_US - WRITE_US - 1);
    }
    assert_eq!((node.empty(), node.writes.len()), (1, writes + 40));
    node.pass(1_000 * MS);
    assert!(node.has_rested() && node.empty() == 2);
    node.log_in(40);
    node.pass(1_000 * MS);
    assert!(node.has_rested() && node.empty() == 3);
}

#[test]
fn what_rests_with_it_is_there_after_a_start_and_has_none_behind_it() {
    let mut node = Node::new(Bounds::default());
    node.log_in(1);
    node.pass(1_000 * MS);
    let disk = node.disk.crash(&mut |_, _| false);
    let mut node = Node::on(disk, Bounds::default(), false);
    assert!(node.shard.recovered().rot.is_empty() && node.shard.recovered().truncated.is_none());
    node.pass(1_000 * MS);
    // The first entries of a new term came before.
    assert!(node.has_rested() && node.empty() == 1);
}

#[test]
fn none_is_written_where_there_is_no_room_until_there_is() {
    let mut node = Node::on(RamDisk::new(0, 3), Bounds::default(), true);
    node.pass(1_000 * MS);
    assert!(!node.writes.is_empty() && node.empty() == 0, "the only segment is for what is accepted");
    let turns = node.turns;
    node.pass(1_000 * MS);
    assert!(node.turns - turns <= 12, "it is not called for what it cannot do");
    let segment = node.waiting.take().unwrap();
    node.tell(Input::SegmentFailed { segment });
    node.pass(1_000 * MS);
    assert_eq!(node.empty(), 0, "the disk is full");
    node.waits = false;
    let segment = node.waiting.take().unwrap();
    let mapping = node.disk.create(segment, SEGMENT_BYTES).unwrap();
    node.tell(Input::SegmentReady { segment, mapping });
    node.pass(1_000 * MS);
    assert_eq!((node.empty(), node.writes.last().unwrap().1), (1, 0));
}

#[test]
fn no_checkpoint_is_made_for_it_and_the_last_one_of_a_clean_end_comes_behind_it() {
    // A step is much shorter than a rest: two checkpoints have all, the segment is closed, and it is alone in the next one. And longer.
    for (step_us, behind) in [(EMPTY_BATCH_US / 4, 0), (EMPTY_BATCH_US * 2, 2)] {
        let bounds = Bounds { forget_after_us: step_us * 8, ..Bounds::default() };
        let mut node = Node::new(bounds);
        node.log_in(1);
        node.pass(5_000 * MS);
        assert!(node.has_rested() && node.empty() == 1);
        let (written_us, _) = node.writes[node.writes.len() - 1];
        node.pass(60_000 * MS);
        let later = node.checkpoints.iter().filter(|at_us| **at_us > written_us).count();
        assert_eq!(later, behind, "step {step_us}: written at {written_us}, checkpoints at {:?}", node.checkpoints);
        assert!(node.checkpoints.len() >= 2);
        // Nobody is connected any more, and it stops.
        node.tell(Input::Disconnected { conn: ConnId { slot: 1, generation: 1 } });
        node.tell(Input::Stop);
        node.pass(1_000 * MS);
        assert!(node.stopped && node.shard.log_end().is_some() && node.empty() <= 2);
    }
}

#[test]
fn a_node_that_stops_before_its_spares_are_made_closes_its_segment_while_the_next_start_has_room() {
    let mut node = Node::new(Bounds::default());
    let mut ends = Vec::new();
    // The first has three spares still when it has stopped. Those after it make none, and each end takes one.
    for _ in 0..4 {
        node.pass(2_000 * MS);
        assert!(node.shard.is_ready(), "{ends:?}");
        node.tell(Input::Stop);
        node.pass(1_000 * MS);
        assert!(node.stopped);
        let end = node.shard.log_end().unwrap();
        ends.push((end.segment.0, end.offset == 4096));
        node = Node::on(node.disk, Bounds::default(), true);
    }
    // With two of three the third closes its segment all the same. With one the fourth does not: the next start would have no room.
    assert_eq!(ends, [(2, true), (3, true), (4, true), (4, false)]);
}
