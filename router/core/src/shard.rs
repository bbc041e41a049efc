//! A shard: what one core owns, and the one switch through which everything enters. The stages are in their own files.

use std::collections::{BTreeSet, HashMap, VecDeque};

use ahash::RandomState;
use whimbrel_storage::{Disk, Log, LogOptions, Position, Recovered, Rot};
use whimbrel_wire::command::{CommandError, Verifier};
use whimbrel_wire::{Builder, Code, CommandBuilder};

use crate::chat::Creating;
use crate::checkpoint::{Rounds, Sweep};
use crate::cold::ColdReads;
use crate::conn::{Conn, Stage};
use crate::counters::Counters;
use crate::emptying::Emptying;
use crate::ids::{ChatId, ConnId, PartitionId, ShardId};
use crate::io::{Effect, Effects, Fatal, Input, Now, ShardConfig};
use crate::lane::LaneItem;
use crate::limits;
use crate::outbox::{Lanes, TargetRef, Watched};
use crate::partition::PartitionState;
use crate::recover::{self, Found};
use crate::repair::{Repair, Trouble, Why};
use crate::replicate::{Pace, Partition, Persisting, Writes};
use crate::retry::Retry;
use crate::scrub::Scrub;
use crate::timers::Timers;

/// Why a shard does not open.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] whimbrel_storage::OpenError),
    #[error(
        "the log has a record of partition {0}, which this shard does not hold; was it moved from another data directory?"
    )]
    ForeignPartition(u16),
    #[error("the log's entry {index} of partition {partition} cannot be read: {error}")]
    BadEntry { partition: u16, index: u64, error: CommandError },
    #[error("the log's record of a vote in partition {0} is malformed")]
    BadHardState(u16),
    #[error(
        "the newest checkpoint is not one of this shard's partitions, or was not written by this version of whimbrel; use the \
         version that wrote it"
    )]
    BadCheckpoint,
    #[error("a partition's group does not start: {0}")]
    Group(#[from] raft::Error),
}

impl OpenError {
    /// Whether the disk does not hold, or does not give, what was written: [`Shard::shut`] is for that.
    pub fn is_damage(&self) -> bool {
        matches!(self, OpenError::Log(error) if error.is_damage())
    }
}

/// All that one core owns. Everything enters through [`Shard::handle`].
pub struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) now: Now,
    pub(crate) log: Log,
    pub(crate) recovered: Recovered,
    /// By rank; see [`ShardConfig::rank_of`].
    pub(crate) partitions: Vec<Partition>,
    /// Groups to look at before the turn ends.
    pub(crate) dirty: Vec<usize>,
    pub(crate) waiting_to_propose: Vec<usize>,
    pub(crate) persisting: VecDeque<Persisting>,
    /// Bytes of commands gathered and not proposed.
    pub(crate) gathered_bytes: usize,
    /// When the first of them came.
    pub(crate) gathering_since_us: u64,
    /// By slot.
    pub(crate) conns: Vec<Option<Conn>>,
    pub(crate) connections: u32,
    /// Connections with something to deliver.
    pub(crate) to_deliver: Vec<ConnId>,
    pub(crate) creating: HashMap<ChatId, Creating, RandomState>,
    pub(crate) creating_order: VecDeque<(u64, ChatId)>,
    pub(crate) lanes: Lanes,
    /// Items that this shard told itself.
    pub(crate) local: VecDeque<LaneItem>,
    pub(crate) pace: Pace,
    /// Another shard was heard of since the last write.
    pub(crate) lane_heard: bool,
    /// How long its writes take.
    pub(crate) writes: Writes,
    /// Places that wait to be confirmed, committed.
    pub(crate) confirms: Vec<TargetRef>,
    pub(crate) watched: Watched,
    pub(crate) timers: Timers,
    /// Messages in all inboxes.
    pub(crate) pointers: usize,
    pub(crate) frames: Builder,
    pub(crate) commands: CommandBuilder,
    pub(crate) verifier: Verifier,
    pub(crate) counters: Counters,
    pub(crate) retry: Retry,
    /// See [`crate::replicate::ENTRY_CLOSE_BYTES`].
    pub(crate) entry_close_bytes: usize,
    /// A checkpoint that is being made.
    pub(crate) sweep: Option<Sweep>,
    pub(crate) rounds: Rounds,
    pub(crate) cold: ColdReads,
    pub(crate) emptying: Emptying,
    pub(crate) scrub: Scrub,
    /// What is known not to be as it was written.
    pub(crate) rot: BTreeSet<Rot>,
    /// The same, in segments of which nobody may wait for what it took, for all that partitions know which do not serve yet.
    pub(crate) doubtful: BTreeSet<Rot>,
    /// How many places were compared with damage that was learnt of.
    pub(crate) compared: u64,
    /// What is to be told at the end of the turn.
    pub(crate) trouble: Vec<Trouble>,
    pub(crate) segment_bytes: u32,
    /// A segment that was wanted could not be made, and there are fewer spares than should be. Those that are left are for
    /// acknowledgements, and for the fan-out of what was accepted: nothing new is.
    pub(crate) disk_full: bool,
    /// Until when the same is taken for granted of another shard, on the monotone clock.
    full_until_us: u64,
    /// And that it has too little space for anything new just now.
    scarce_until_us: u64,
    /// Whether there was too little space for anything new at the end of the last turn, and the disk was full.
    space_was: (bool, bool),
    /// Since the start it was seen that there is space for something new, or that the disk is full.
    knows_space: bool,
    pub(crate) stopping: bool,
    stopped: bool,
    /// How many partitions are in repair. Asked in every turn.
    pub(crate) in_repair: usize,
    /// All that waits is known, for all partitions served or are in repair.
    pub(crate) is_whole: bool,
    /// See [`Shard::shut`].
    is_shut: bool,
    told_wake_us: u64,
}

/// How the tables of a shard are hashed, each by a number of its own.
fn hashes(seed: u64) -> impl Fn(u64) -> RandomState {
    move |salt| RandomState::with_seeds(seed, seed.rotate_left(17) ^ salt, 0x9E37_79B9_7F4A_7C15, salt)
}

impl Shard {
    /// Reads the log, applies what it holds, and starts the groups: each serves once it has written the first entry of its term.
    pub fn open(mut config: ShardConfig, options: LogOptions, disk: &mut dyn Disk) -> Result<Shard, OpenError> {
        // What is accepted has to fit what is kept for it on a full disk, also where segments are small.
        config.bounds.gather_max_bytes = config.bounds.gather_max_bytes.min(options.segment_size as usize / 2);
        let held = (config.shard.0..config.partitions).step_by(usize::from(config.shards)).count();
        let hash = hashes(config.seed);
        let (log, replay, found) = recover::begin(&config, held, options, disk, &hash)?;
        let mut partitions = Vec::with_capacity(held);
        let mut progress = Vec::with_capacity(held);
        for Found { state, wall_ms, progress: it } in found {
            partitions.push(Partition::new(state, wall_ms)?);
            progress.push(it);
        }
        let mut shard = Shard::new(config, &options, log, partitions, &hash);
        shard.replay(replay, disk, progress)?;
        Ok(shard)
    }

    /// A shard whose log does not open, for it is damaged ([`OpenError::is_damage`]): all its partitions are in repair, and its disk is
    /// neither read nor written, until a start finds the log whole again. The other shards of the node serve.
    pub fn shut(config: ShardConfig, options: LogOptions) -> Result<Shard, OpenError> {
        let held = (config.shard.0..config.partitions).step_by(usize::from(config.shards)).count();
        let hash = hashes(config.seed);
        let mut partitions = Vec::with_capacity(held);
        for rank in 0..held {
            let mut partition = Partition::new(PartitionState::new(hash(rank as u64)), 0)?;
            partition.repair = Some(Repair { partition: config.partition_at(rank), why: Why::Shut, rot: None });
            partitions.push(partition);
        }
        let mut shard = Shard::new(config, &options, Log::shut(options), partitions, &hash);
        shard.is_shut = true;
        shard.in_repair = held;
        // It stores nothing.
        shard.knows_space = true;
        Ok(shard)
    }

    fn new(
        config: ShardConfig,
        options: &LogOptions,
        log: Log,
        partitions: Vec<Partition>,
        hash: &dyn Fn(u64) -> RandomState,
    ) -> Shard {
        let pointers = partitions.iter().flat_map(|it| &it.state.inboxes).map(|inbox| inbox.waiting.len()).sum();
        // With the largest command behind it an entry still fits a record.
        let largest = whimbrel_wire::limits::FRAME_MAX_BYTES + 1024;
        let entry_close_bytes = crate::replicate::ENTRY_CLOSE_BYTES.min(log.payload_max().saturating_sub(largest));
        Shard {
            now: Now::default(),
            log,
            recovered: Recovered::default(),
            partitions,
            dirty: Vec::new(),
            waiting_to_propose: Vec::new(),
            persisting: VecDeque::new(),
            gathered_bytes: 0,
            gathering_since_us: 0,
            conns: Vec::new(),
            connections: 0,
            to_deliver: Vec::new(),
            creating: HashMap::with_hasher(hash(u64::MAX)),
            creating_order: VecDeque::new(),
            lanes: Lanes::new(config.shards),
            local: VecDeque::new(),
            pace: Pace::default(),
            lane_heard: false,
            writes: Writes::default(),
            confirms: Vec::new(),
            watched: Watched::default(),
            timers: Timers::default(),
            pointers,
            frames: Builder::default(),
            commands: CommandBuilder::default(),
            verifier: Verifier::default(),
            counters: Counters::default(),
            retry: Retry::default(),
            entry_close_bytes,
            sweep: None,
            rounds: Rounds::default(),
            cold: ColdReads::default(),
            emptying: Emptying::default(),
            scrub: Scrub::default(),
            rot: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            compared: 0,
            trouble: Vec::new(),
            segment_bytes: options.segment_size,
            disk_full: false,
            full_until_us: 0,
            scarce_until_us: 0,
            space_was: (false, false),
            knows_space: false,
            stopping: false,
            stopped: false,
            in_repair: 0,
            is_whole: false,
            is_shut: false,
            told_wake_us: 0,
            config,
        }
    }

    /// Takes in one input and says what follows from it.
    pub fn handle(&mut self, now: Now, input: Input<'_>, fx: &mut Effects) {
        self.now = now;
        match input {
            Input::Connected { conn } => self.on_connected(fx, conn),
            Input::Received { conn, bytes } => self.on_received(fx, conn, bytes),
            Input::Written { conn, bytes } => self.on_written(conn, bytes),
            Input::Disconnected { conn } => self.on_disconnected(conn),
            Input::Detached { conn } => self.on_detached(fx, conn),
            Input::Adopted { conn, moving } => self.on_adopted(fx, conn, *moving),
            Input::Lane { from: _, item } => {
                self.lane_heard = true;
                self.on_item(fx, item);
            }
            Input::LogWritten { write } => {
                self.writes.ended(now.mono_us);
                self.log.written(write);
                self.persisted();
            }
            Input::LogFailed { write } => {
                self.log.failed(write);
                fx.list.push(Effect::Fatal(Fatal::LogPoisoned));
            }
            Input::SegmentReady { segment, mapping } => {
                self.log.segment_ready(segment, mapping);
                self.disk_full &= self.log.lacks_spares();
            }
            Input::SegmentFailed { segment } => {
                self.log.segment_failed(segment);
                // One that was only to be used again is not missed.
                self.disk_full |= self.log.lacks_spares();
            }
            Input::CheckpointTaken { number } => self.on_checkpoint_taken(number),
            Input::CheckpointWritten { number } => self.on_checkpoint_written(number),
            Input::CheckpointFailed { number } => self.on_checkpoint_failed(number),
            Input::ReadIn { checked } => self.on_read_in(fx, checked),
            Input::Scrubbed { checked } => self.on_scrubbed(fx, checked),
            Input::ColdDone(done) => self.on_cold_done(fx, *done),
            Input::ColdFailed => self.on_cold_failed(),
            Input::Timeout => {
                // What was told is used up, so that the same time may be told again.
                self.told_wake_us = 0;
                self.on_timeout(fx);
            }
            Input::Stop => self.on_stop(fx),
            Input::TurnEnd { more } => {
                self.turn_end_of_messages(now, more, fx);
                return self.turn_end_of_chores(fx);
            }
        }
        #[cfg(debug_assertions)]
        self.invariants();
    }

    /// [`Input::TurnEnd`] in two parts, for who wants to know how long each takes: this is what is done for messages, and
    /// [`Shard::turn_end_of_chores`] follows at once.
    pub fn turn_end_of_messages(&mut self, now: Now, more: bool, fx: &mut Effects) {
        self.now = now;
        self.on_timeout(fx);
        self.refill_lanes(fx);
        // Behind what has waited for the lanes: whether they have room is known now.
        self.ask_again(fx);
        self.fan_out_ready(fx);
        loop {
            while let Some(item) = self.local.pop_front() {
                self.on_item(fx, item);
            }
            self.replicate(fx, more);
            if self.local.is_empty() {
                break;
            }
        }
        self.look_at_space(fx);
        self.is_whole |= self.is_serving();
        self.deliver_all(fx);
        self.read_in_next(fx);
    }

    /// And this is what is done for the log itself: a slice of a checkpoint, what may leave memory, an empty batch.
    pub fn turn_end_of_chores(&mut self, fx: &mut Effects) {
        // Whoever waited for what was read in has looked, or what they wait for is among the newest ([`crate::cold`]).
        self.log.cool();
        self.checkpoint(fx);
        self.write_empty(fx);
        self.check_stopped(fx);
        fx.list.extend(self.trouble.drain(..).map(Effect::Tell));
        let wake_us = self.next_wake_us();
        if wake_us != self.told_wake_us {
            self.told_wake_us = wake_us;
            fx.list.push(Effect::WakeAt { mono_us: wake_us });
        }
    }

    pub(crate) fn on_item(&mut self, fx: &mut Effects, item: LaneItem) {
        match item {
            LaneItem::Request(request) => self.on_request(fx, request),
            LaneItem::Answer(answer) => self.on_answer(fx, &answer),
            LaneItem::FanOut(fan_out) => self.on_fan_out(fx, &fan_out),
            LaneItem::Confirm(confirm) => self.on_confirm(fx, confirm),
            LaneItem::AskUsers(ask) => self.on_ask_users(fx, &ask),
            LaneItem::UsersKnown(known) => self.on_users_known(fx, &known),
            LaneItem::NoSpace { disk_full } => {
                let until_us = if disk_full { &mut self.full_until_us } else { &mut self.scarce_until_us };
                *until_us = self.now.mono_us + limits::NO_SPACE_US;
            }
        }
    }

    /// Why nothing new is taken now for want of space, here or on another shard, if that is so: what one accepts another may have
    /// to store.
    pub(crate) fn refuse_for_space(&self) -> Option<Code> {
        let now_us = self.now.mono_us;
        let is_full = self.disk_full || now_us < self.full_until_us;
        // The next segment may yet come. It may as well be the one that shows that the disk is full.
        let soon = || (self.is_scarce() || now_us < self.scarce_until_us).then_some(Code::Overloaded);
        if is_full { Some(Code::StorageFull) } else { soon() }
    }

    /// Whether so little space is left that nothing new is taken, whatever is known of the disk: above what is kept for
    /// acknowledgements half a segment is for the fan-out of what was accepted. A log may be filled faster than segments are
    /// made, and a start does not know what space there is: what is taken meanwhile would be missing when it turns out that
    /// there is none.
    pub(crate) fn is_scarce(&self) -> bool {
        !self.is_shut && (self.disk_full || self.room_bytes() < self.scarce_bytes())
    }

    /// With less room than this nothing new is taken.
    pub(crate) fn scarce_bytes(&self) -> u64 {
        u64::from(self.segment_bytes) / 2 * 3
    }

    /// Whether what is kept for acknowledgements is all that is left.
    pub(crate) fn has_only_reserve(&self) -> bool {
        self.room_bytes() < u64::from(self.segment_bytes)
    }

    /// Bytes that the log has room for without another segment, beside what is gathered.
    fn room_bytes(&self) -> u64 {
        self.log.prepared_bytes().saturating_sub(self.gathered_bytes as u64)
    }

    /// The others are told at once when there is too little space, and again with each tick.
    fn look_at_space(&mut self, fx: &mut Effects) {
        let is_scarce = self.is_scarce();
        self.knows_space |= self.disk_full || !is_scarce;
        let space = (is_scarce, self.disk_full);
        if std::mem::replace(&mut self.space_was, space) != space {
            self.say_no_space(fx);
        }
    }

    /// Tells the other shards if there is too little space. Before that is known none of them is asked for anything.
    pub(crate) fn say_no_space(&mut self, fx: &mut Effects) {
        if !self.knows_space || !self.is_scarce() {
            return;
        }
        let own = self.config.shard;
        for to in (0..self.config.shards).map(ShardId).filter(|to| *to != own) {
            // Where it finds no room it is said again with the next tick.
            if self.lanes.is_open(fx, to) {
                self.tell(fx, to, LaneItem::NoSpace { disk_full: self.disk_full });
            }
        }
    }

    fn on_stop(&mut self, fx: &mut Effects) {
        self.stopping = true;
        self.say_go_away(fx);
    }

    fn check_stopped(&mut self, fx: &mut Effects) {
        let nothing_waits = self.gathered_bytes == 0
            && self.log.staged_bytes() == 0
            && self.persisting.is_empty()
            && self.partitions.iter().all(|partition| partition.acks.is_empty());
        // On a full disk what waits may wait for ever. None of it is acknowledged.
        let quiet = self.stopping
            && self.connections == 0
            && !self.log.is_writing()
            && (nothing_waits || self.disk_full && self.log.staged_bytes() > 0);
        // What waits for a lane is no reason to stay: the shard it leads to may have stopped, and all of it is asked or
        // sent again after a start.
        if quiet && !self.stopped && self.last_checkpoint() {
            self.stopped = true;
            fx.list.push(Effect::Stopped);
        }
    }

    /// Whether all partitions serve, or are in repair, and it is known whether there is space for something new. Before that a
    /// server does not accept connections.
    pub fn is_ready(&self) -> bool {
        self.knows_space && self.is_serving()
    }

    fn is_serving(&self) -> bool {
        self.partitions.iter().all(|partition| partition.serving || partition.repair.is_some())
    }

    /// Whether its log did not open: [`Shard::shut`].
    pub fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What was found in the log at the start.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// Messages that wait in inboxes for an acknowledgement to be committed.
    pub fn waiting(&self) -> usize {
        self.pointers
    }

    /// Bytes that the segments of the log have on the disk, spare ones too.
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes_on_disk()
    }

    /// Bytes that the log has written since the start, without padding and with it.
    pub fn log_written_bytes(&self) -> (u64, u64) {
        (self.log.filled_bytes(), self.log.written_bytes())
    }

    /// Bytes of its closed segments that are taken to be in memory: [`Log::warm_bytes`].
    pub fn log_warm_bytes(&self) -> u64 {
        self.log.warm_bytes()
    }

    /// Where the log ends, if a start has nothing to read: what [`Log::end`] says.
    pub fn log_end(&self) -> Option<Position> {
        self.log.end()
    }

    /// Connections open.
    pub fn connections(&self) -> u32 {
        self.connections
    }

    pub(crate) fn rank(&self, partition: PartitionId) -> usize {
        self.config.rank_of(partition)
    }

    /// Asserts what must hold between two inputs. Called after each in debug builds and in the simulator.
    pub fn invariants(&self) {
        assert!(self.log.durable() <= self.log.appended(), "durable ≤ appended");
        let open = self.conns.iter().flatten().count();
        assert_eq!(open, self.connections as usize, "the count of connections is right");
        for conn in self.conns.iter().flatten() {
            let closes = matches!(conn.stage, Stage::Closing);
            assert!(closes || conn.ages.fits(conn.queued_bytes), "what waits on a connection is watched");
        }
        let (mut pointers, mut in_repair, mut cold, mut watched) = (0, 0, 0, 0);
        for partition in &self.partitions {
            assert!(partition.repair.is_none() || partition.is_quiet(), "who is in repair takes no part");
            in_repair += usize::from(partition.repair.is_some());
            for inbox in &partition.state.inboxes {
                assert!(inbox.floor <= inbox.acked && inbox.acked <= inbox.head(), "floor ≤ acked ≤ head");
                pointers += inbox.waiting.len();
            }
            for chat in &partition.state.chats {
                for target in &chat.targets {
                    cold += usize::from(target.cold);
                    watched += usize::from(target.watched_us.is_some());
                    assert!(target.silent == 0 || target.watched_us.is_some(), "who is silent is watched");
                    assert!(target.confirmed <= target.heard, "confirmed ≤ heard");
                    assert!(target.heard <= target.sent && target.sent <= chat.last_seq, "heard ≤ sent ≤ last");
                    assert!(chat.outbox_floor() <= target.confirmed, "what is not confirmed is kept");
                }
            }
        }
        let in_queues: BTreeSet<_> = self
            .watched
            .iter()
            .filter(|(due_us, at)| {
                self.partitions[at.p].state.chats[at.chat].targets[at.target].watched_us == Some(*due_us)
            })
            .map(|(_, at)| at)
            .collect();
        assert_eq!(in_queues.len(), watched, "who is watched is in a queue");
        let waiting = self.conns.iter().flatten().filter(|conn| conn.waits_for_segment).count();
        let is_open =
            |conn: &ConnId| self.conns[conn.slot as usize].as_ref().is_some_and(|it| it.generation == conn.generation);
        let listed = self.cold.conns().filter(|conn| is_open(conn)).count();
        assert_eq!(
            (cold, waiting),
            (self.cold.targets(), listed),
            "whoever waits for a segment is listed with it, once"
        );
        assert_eq!(pointers, self.pointers, "the count of waiting messages is right");
        assert_eq!(in_repair, self.in_repair, "the count of partitions in repair is right");
        let places: usize = self.partitions.iter().flat_map(|it| &it.state.chats).map(|chat| chat.outbox.len()).sum();
        assert_eq!(pointers + places, self.log.held() as usize, "what waits is held, and nothing else");
    }
}
