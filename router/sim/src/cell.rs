//! The simulated shell of one shard: what the server's shell does with a ring, done with the world's clock and chance. It
//! gathers what is ready, feeds the shard in some order, ends the turn, and carries out what the shard wants.

use std::collections::VecDeque;

use whimbrel_core::ids::{ConnId, ShardId};
use whimbrel_core::io::{Effect, Effects, Input, Moving};
use whimbrel_core::lane::LaneItem;
use whimbrel_core::{Shard, Trouble};
use whimbrel_storage::{ColdWork, LogWrite, SegmentId};
use whimbrel_wire::Code;

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::chores::Chores;
use crate::conns::{Conns, Detach, News};
use crate::disk::{Crash, SimDisk};
use crate::lanes::{InTransit, Shared};
use crate::plant::Plant;
use crate::socket::SocketIndex;
use crate::stats::Stats;
use crate::tell;

/// Items of one lane, and pieces of one connection, that a turn takes at most.
const SHARE_OF_TURN: usize = 16;

/// Time between two turns once all faults have ended: long enough for several things to come together.
const HEALED_TURN_US: u64 = 12_000;

/// Something that a shard can be told now.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Arrival,
    Adoption,
    Conn(ConnId, News),
    Lane(ShardId),
    Flushed,
    Segment,
    Chore,
    Timer,
    Stop,
}

struct Flush {
    due_us: u64,
    fails: bool,
    write: LogWrite,
}

pub(crate) struct Cell {
    pub(crate) id: ShardId,
    pub(crate) shard: Shard,
    pub(crate) disk: SimDisk,
    pub(crate) arrivals: VecDeque<SocketIndex>,
    pub(crate) stop_at_us: Option<u64>,
    pub(crate) stopped: bool,
    /// The shard wants the process to end at once.
    pub(crate) ended: bool,
    /// Power is gone.
    pub(crate) power_fails: bool,
    flush_failed: bool,
    pub(crate) next_turn_us: u64,
    booted_us: u64,
    conns: Conns,
    effects: Effects,
    flush: Option<Flush>,
    chores: Chores,
    wake_at_us: Option<u64>,
    /// Lanes that were full when they were looked at, or are since, by the number of the shard they lead to.
    lanes_full: Vec<bool>,
    received: Vec<u8>,
}

impl Cell {
    pub(crate) fn new(id: ShardId, shard: Shard, disk: SimDisk, shards: u16, booted_us: u64) -> Cell {
        Cell {
            id,
            shard,
            disk,
            arrivals: VecDeque::new(),
            stop_at_us: None,
            stopped: false,
            ended: false,
            power_fails: false,
            flush_failed: false,
            next_turn_us: 0,
            booted_us,
            conns: Conns::default(),
            effects: Effects { lane_room: vec![0; usize::from(shards)], ..Effects::default() },
            flush: None,
            chores: Chores::default(),
            // A shard may want to be called before anything happens to it.
            wake_at_us: Some(0),
            lanes_full: vec![false; usize::from(shards)],
            received: Vec::new(),
        }
    }

    /// When the shard has something to do, if it has.
    pub(crate) fn ready_at(&self, b: &Bottom, shared: &Shared) -> Option<u64> {
        if self.stopped || self.ended {
            return None;
        }
        // A lane that has room again is news: what waits for it goes with the end of a turn.
        let mut to_others = (0..).map(ShardId).zip(&self.lanes_full);
        let has_room = |(to, was_full): (ShardId, &bool)| *was_full && shared.lanes.room(self.id, to) > 0;
        let mut first = to_others.any(has_room).then_some(0);
        self.each_ready(b, shared, &mut |_, at_us| first = Some(first.map_or(at_us, |first: u64| first.min(at_us))));
        first.map(|first| first.max(self.next_turn_us))
    }

    fn each_ready(&self, b: &Bottom, shared: &Shared, each: &mut impl FnMut(Ready, u64)) {
        for _ in &self.arrivals {
            each(Ready::Arrival, 0);
        }
        for transit in shared.moving.iter().filter(|transit| transit.to == self.id) {
            each(Ready::Adoption, transit.due_us);
        }
        for conn in self.conns.iter() {
            conn.news_at(b, &mut |news, at_us| each(Ready::Conn(conn.id, news), at_us));
        }
        for from in (0..self.lanes_full.len() as u16).map(ShardId) {
            for _ in 0..shared.lanes.len(from, self.id).min(SHARE_OF_TURN) {
                each(Ready::Lane(from), 0);
            }
        }
        if let Some(flush) = &self.flush {
            each(Ready::Flushed, flush.due_us);
        }
        if let Some(due_us) = self.chores.segment_due() {
            each(Ready::Segment, due_us);
        }
        if let Some(due_us) = self.chores.other_due() {
            each(Ready::Chore, due_us);
        }
        if let Some(at_us) = self.wake_at_us {
            each(Ready::Timer, at_us);
        }
        if let Some(at_us) = self.stop_at_us {
            each(Ready::Stop, at_us);
        }
    }

    /// One turn: some of what is ready, in some order.
    pub(crate) fn turn(&mut self, b: &mut Bottom, shared: &mut Shared) -> Result<(), Violation> {
        let mut ready = Vec::new();
        let now_us = b.now_us;
        self.each_ready(b, shared, &mut |what, at_us| {
            if at_us <= now_us {
                ready.push(what);
            }
        });
        b.rng.shuffle(&mut ready);
        let waiting = ready.len();
        if !b.healed {
            ready.truncate(b.rng.between(1, b.weather.turn_inputs) as usize);
        }
        let more = ready.len() < waiting;
        self.look_at_lanes(b, shared);
        // A shell may carry out what a shard wants after each input or once at the turn's end.
        let eager = b.rng.per_mille(200);
        for what in ready {
            self.feed(what, b, shared)?;
            if eager {
                self.carry_out(b, shared)?;
            }
        }
        self.handle(Input::TurnEnd { more }, b);
        b.stats.imaging_turns += u64::from(self.shard.is_imaging());
        self.carry_out(b, shared)?;
        self.conns.send(b);
        self.next_turn_us = b.now_us + if b.healed { HEALED_TURN_US } else { b.rng.around(b.weather.turn_us) };
        Ok(())
    }

    fn look_at_lanes(&mut self, b: &mut Bottom, shared: &Shared) {
        for (to, room) in self.effects.lane_room.iter_mut().enumerate() {
            *room = shared.lanes.room(self.id, ShardId(to as u16));
            self.lanes_full[to] = *room == 0;
            b.stats.full_lanes += u64::from(*room == 0);
        }
    }

    fn handle(&mut self, input: Input<'_>, b: &mut Bottom) {
        b.stats.steps += 1;
        b.stats.load_steps += u64::from(matches!(input, Input::Received { .. } | Input::Lane { .. }));
        b.trace.line(format_args!("s{} <- {}", self.id, tell::Told(&input)));
        let before = self.shard.waiting();
        self.shard.handle(b.now(self.booted_us), input, &mut self.effects);
        // A build with debug assertions has looked itself.
        if !cfg!(debug_assertions) {
            self.shard.invariants();
        }
        b.waiting = b.waiting + self.shard.waiting() as u64 - before as u64;
    }

    fn feed(&mut self, what: Ready, b: &mut Bottom, shared: &mut Shared) -> Result<(), Violation> {
        match what {
            Ready::Arrival => {
                if let Some(socket) = self.arrivals.pop_front() {
                    let conn = self.conns.open(socket);
                    self.handle(Input::Connected { conn }, b);
                }
            }
            Ready::Adoption => self.adopt(b, shared),
            Ready::Conn(conn, news) => self.hear(conn, news, b),
            Ready::Lane(from) => {
                if let Some(item) = shared.lanes.take(from, self.id) {
                    if b.fuse.fires(Plant::LaneRepeats) {
                        self.handle(Input::Lane { from, item: item.clone() }, b);
                    }
                    self.handle(Input::Lane { from, item }, b);
                }
            }
            Ready::Flushed => self.flushed(b)?,
            // These flush as well.
            Ready::Segment | Ready::Chore if self.disk.lied => self.power_fails = true,
            Ready::Segment | Ready::Chore => {
                let done = match what {
                    Ready::Segment => self.chores.make_segment(&mut self.disk, b),
                    _ => self.chores.do_other(&mut self.disk, b),
                };
                let told =
                    done.map_err(|error| Violation::new(Check::Start, format!("the simulated disk: {error}")))?;
                let Some(input) = told else { return Ok(()) };
                let read = match &input {
                    Input::ReadIn { checked } => Some((checked.segment, self.disk.ram.contents(checked.segment))),
                    Input::Scrubbed { checked } => Some((checked.segment, self.disk.ram.on_disk(checked.segment))),
                    _ => None,
                };
                self.handle(input, b);
                return read.map_or(Ok(()), |(segment, bytes)| self.has_noticed(segment, &bytes.unwrap_or_default()));
            }
            Ready::Timer => {
                self.wake_at_us = None;
                self.handle(Input::Timeout, b);
            }
            Ready::Stop => {
                self.stop_at_us = None;
                self.handle(Input::Stop, b);
            }
        }
        Ok(())
    }

    fn adopt(&mut self, b: &mut Bottom, shared: &mut Shared) {
        let due = |transit: &InTransit| transit.to == self.id && transit.due_us <= b.now_us;
        let Some(index) = shared.moving.iter().position(due) else { return };
        let transit = shared.moving.remove(index);
        let conn = self.conns.open(transit.socket);
        b.stats.moves += 1;
        self.handle(Input::Adopted { conn, moving: transit.moving }, b);
    }

    /// Tells the shard what a connection has. It may have changed in this very turn, so it is looked at once more.
    fn hear(&mut self, id: ConnId, news: News, b: &mut Bottom) {
        let Some(conn) = self.conns.get(id) else { return };
        let mut still = false;
        conn.news_at(b, &mut |other, at_us| still |= other == news && at_us <= b.now_us);
        if !still {
            return;
        }
        match news {
            News::Bytes => {
                let socket = conn.socket;
                let mut received = std::mem::take(&mut self.received);
                // A ring reports each buffer that it filled; a turn finds one or several.
                loop {
                    received.clear();
                    b.sockets[socket].node_reads(&mut b.rng, &mut received);
                    self.handle(Input::Received { conn: id, bytes: &received }, b);
                    if !b.sockets[socket].node_has_next_piece() || b.rng.per_mille(200) {
                        break;
                    }
                }
                self.received = received;
            }
            News::Written => {
                let bytes = conn.written().unwrap_or(0);
                if bytes > 0 && !b.fuse.fires(Plant::WrittenDrops) {
                    self.handle(Input::Written { conn: id, bytes }, b);
                }
            }
            News::Gone => {
                let socket = conn.socket;
                self.conns.release(id);
                b.stats.cut_frames += u64::from(b.sockets[socket].of_device && b.sockets[socket].is_mid_frame());
                if !b.sockets[socket].client_closed() {
                    let arriving = b.arriving(b.sockets[socket].on_the_way_down());
                    b.socket(socket).node_closes(arriving);
                }
                self.handle(Input::Disconnected { conn: id }, b);
            }
            News::Detached => {
                conn.detach = Detach::Done;
                self.handle(Input::Detached { conn: id }, b);
            }
        }
    }

    fn flushed(&mut self, b: &mut Bottom) -> Result<(), Violation> {
        if self.disk.lied {
            self.power_fails = true;
            return Ok(());
        }
        let Some(Flush { fails, write, .. }) = self.flush.take() else { return Ok(()) };
        if fails {
            b.stats.failed_writes += 1;
            self.flush_failed = true;
            let _ = self.disk.write_unfinished(&write, &mut b.rng);
            self.handle(Input::LogFailed { write: write.id }, b);
            return Ok(());
        }
        self.disk
            .write(&write, b)
            .map_err(|error| Violation::new(Check::Start, format!("the simulated disk: {error}")))?;
        if !b.fuse.fires(Plant::FlushSilent) {
            self.handle(Input::LogWritten { write: write.id }, b);
        }
        Ok(())
    }

    fn carry_out(&mut self, b: &mut Bottom, shared: &mut Shared) -> Result<(), Violation> {
        let mut list = std::mem::take(&mut self.effects.list);
        for effect in list.drain(..) {
            b.trace.line(format_args!("s{} -> {}", self.id, tell::Wanted(&effect, &self.effects.bytes)));
            self.carry_out_one(effect, b, shared)?;
        }
        self.effects.list = list;
        self.effects.clear();
        Ok(())
    }

    fn carry_out_one(&mut self, effect: Effect, b: &mut Bottom, shared: &mut Shared) -> Result<(), Violation> {
        let wants_disk = matches!(
            effect,
            Effect::WriteLog(_)
                | Effect::PrepareSegment { .. }
                | Effect::RemoveSegment(_)
                | Effect::Checkpoint { .. }
                | Effect::Scrub { .. }
                | Effect::Cold(_)
                | Effect::ReadIn { .. }
        );
        if self.disk.shut && wants_disk {
            let text = format!("shard {} has no log, and wants something of its disk", self.id);
            return Err(Violation::new(Check::Start, text));
        }
        match effect {
            Effect::Send { conn, head, payload } => {
                let mut bytes = self.effects.bytes[head].to_vec();
                bytes.extend_from_slice(payload.as_deref().unwrap_or(&[]));
                if let Some(conn) = self.conns.get(conn) {
                    conn.queue(b, bytes);
                }
            }
            Effect::Close { conn } => {
                if let Some(conn) = self.conns.get(conn) {
                    conn.close(b);
                }
            }
            Effect::Detach { conn } => {
                let quiet_at_us = b.now_us + if b.healed { 10 } else { b.rng.around(200) };
                if let Some(conn) = self.conns.get(conn) {
                    conn.detach = Detach::Wanted { quiet_at_us };
                }
            }
            Effect::Move { conn, to, moving } => return self.hand_over(conn, to, moving, b, shared),
            Effect::Lane { to, item } => return self.put_into_lane(to, item, b, shared),
            Effect::WriteLog(write) => {
                let slow_us = slow_us(b);
                b.stats.slow_flushes += u64::from(slow_us > 0);
                let due_us = b.now_us + slow_us + if b.healed { 50 } else { b.rng.around(b.weather.flush_us) };
                let fails = !b.healed && b.rng.per_million(b.weather.flush_fails_per_million);
                if self.flush.replace(Flush { due_us, fails, write }).is_some() {
                    return Err(Violation::new(Check::Panic, "two log writes in flight"));
                }
            }
            Effect::PrepareSegment { segment, reuse } => self.chores.prepare(chore_due(b), segment, reuse),
            Effect::RemoveSegment(retired) => self.chores.remove(chore_due(b), retired),
            Effect::Checkpoint { number, bytes, last } => self.chores.checkpoint(chore_due(b), number, bytes, last),
            Effect::Scrub { is, mapping } => self.chores.scrub(chore_due(b), is, mapping),
            Effect::Tell(trouble) => return self.hear_of(&trouble, b),
            Effect::Cold(work) => {
                let takes_us = if matches!(work, ColdWork::Sort(_)) && !b.healed { b.weather.sort_us } else { 0 };
                self.chores.cold(chore_due(b) + takes_us, work);
            }
            Effect::ReadIn { is, mapping } => self.chores.read_in(chore_due(b), is, mapping),
            Effect::WakeAt { mono_us } => self.wake_at_us = Some(mono_us.saturating_add(self.booted_us)),
            Effect::Stopped => self.stopped = true,
            Effect::Fatal(fatal) => {
                self.ended = true;
                if !self.flush_failed {
                    return Err(Violation::new(Check::Panic, fatal.text()));
                }
            }
        }
        Ok(())
    }

    /// A segment was read, and had these bytes: whoever has lost something that he waits for is in repair.
    fn has_noticed(&self, segment: SegmentId, bytes: &[u8]) -> Result<(), Violation> {
        let damage = self.disk.damage.as_ref().filter(|damage| damage.segment == segment && damage.is_in(bytes));
        match damage.and_then(|damage| damage.is_ignored_by(&self.shard)) {
            None => Ok(()),
            Some(partition) => {
                let text = format!(
                    "shard {} has read segment {segment}, and partition {partition} serves although it lost something",
                    self.id
                );
                Err(Violation::new(Check::Unnoticed, text))
            }
        }
    }

    /// The shard tells of damage, or of who is in repair by it.
    fn hear_of(&mut self, trouble: &Trouble, b: &mut Bottom) -> Result<(), Violation> {
        if !self.disk.damage.as_mut().is_some_and(|damage| damage.explains(trouble)) {
            let text = format!("shard {} finds damage where there is none: {trouble:?}", self.id);
            return Err(Violation::new(Check::Start, text));
        }
        if let Trouble::Repair(repair) = trouble {
            b.stats.repairs += 1;
            b.rots.in_repair.insert(repair.partition.0);
            b.rots.ever.insert(repair.partition.0);
        }
        Ok(())
    }

    fn hand_over(
        &mut self,
        conn: ConnId,
        to: ShardId,
        moving: Box<Moving>,
        b: &mut Bottom,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        // It broke in this very turn, before the shard was told: then there is nothing to hand over any more.
        let Some(gone) = self.conns.release(conn) else { return Ok(()) };
        if gone.detach != Detach::Done || !gone.is_idle() {
            return Err(Violation::new(Check::Panic, format!("{conn:?} is moved while bytes are on their way")));
        }
        let due_us = b.now_us + if b.healed { 10 } else { b.rng.around(100) };
        shared.moving.push(InTransit { due_us, to, socket: gone.socket, moving });
        Ok(())
    }

    fn put_into_lane(
        &mut self,
        to: ShardId,
        item: LaneItem,
        b: &mut Bottom,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        b.stats.fan_outs += u64::from(matches!(item, LaneItem::FanOut(_)));
        if !shared.lanes.put(self.id, to, item, &mut b.fuse) {
            let text = format!("the lane from {} to {to} is full, and it was said so", self.id);
            return Err(Violation::new(Check::Panic, text));
        }
        self.lanes_full[usize::from(to.0)] = shared.lanes.room(self.id, to) == 0;
        Ok(())
    }

    /// Adds what the shard has counted since its start.
    pub(crate) fn tally(&self, stats: &mut Stats) {
        let counters = self.shard.counters();
        stats.replaced += counters.refused_for(Code::Replaced);
        stats.slow_closed += counters.refused_for(Code::SlowReader);
        stats.overloaded += counters.refused_for(Code::Overloaded);
        stats.storage_full += counters.refused_for(Code::StorageFull);
        stats.too_many_in_flight += counters.refused_for(Code::TooManyInFlight);
        stats.rewinds += counters.resent;
        stats.questions += counters.asked;
    }

    /// Sockets of this shard, whatever state they are in.
    pub(crate) fn sockets(&self) -> Vec<SocketIndex> {
        self.conns.iter().map(|conn| conn.socket).chain(self.arrivals.iter().copied()).collect()
    }

    /// Nothing of the shell's own is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.flush.is_none() && self.chores.is_empty() && self.arrivals.is_empty()
    }

    /// The node ends here, in the middle of whatever it was doing.
    pub(crate) fn crash(mut self, how: Crash, b: &mut Bottom) -> SimDisk {
        self.tally(&mut b.stats);
        let end = self.shard.log_end().filter(|_| self.stopped);
        // What looked at segments is gone with the process.
        drop(self.shard);
        let chores = std::mem::take(&mut self.chores);
        if !self.disk.lied {
            chores.crash(&mut self.disk, b);
        }
        if let Some(flush) = self.flush.take() {
            let _ = self.disk.write_unfinished(&flush.write, &mut b.rng);
        }
        // Only where the one before it is there to serve.
        if let [.., _, (newest, len)] = self.disk.ram.checkpoint_sizes()[..]
            && b.rng.per_mille(b.weather.checkpoint_rots_per_mille)
        {
            self.disk.ram.flip_checkpoint_bit(newest, b.rng.index(len * 8));
            b.stats.checkpoints_rotten += 1;
        }
        let comes_back = end.is_none() && b.rots.rng.per_mille(END_COMES_BACK_PER_MILLE);
        if let Some(end) = end {
            self.disk.ram.mark_end(end);
        }
        if how == Crash::Killed {
            self.disk.killed();
        } else {
            let remains = self.disk.power_cut(b).expect("a disk in memory takes what is written");
            b.trace.line(format_args!(
                "s{} of what was not flushed {} sectors stay, {} go",
                self.id, remains.kept, remains.lost
            ));
            b.stats.lost_writes += u64::from(remains.lost > 0);
            b.stats.torn += u64::from(remains.kept > 0 && remains.lost > 0);
        }
        // Not where a block lies elsewhere as well: with two lies at once a log that has gone on looks like one that has ended.
        if comes_back && self.disk.undamaged.is_none() {
            b.stats.ends_back += u64::from(self.disk.ram.bring_end_back());
        }
        self.disk
    }
}

/// How often the mark of a clean end that a start removed is there again after the next crash.
const END_COMES_BACK_PER_MILLE: u64 = 200;

/// When something is done off the core that is begun now.
fn chore_due(b: &mut Bottom) -> u64 {
    let slow_us = slow_us(b);
    b.stats.slow_chores += u64::from(slow_us > 0);
    b.now_us + slow_us + if b.healed { 500 } else { b.rng.around(b.weather.prepare_us) }
}

/// What something on the disk takes longer than it should: mostly nothing, sometimes seconds.
fn slow_us(b: &mut Bottom) -> u64 {
    if b.healed || !b.rng.per_mille(b.weather.slow_disk_per_mille) {
        return 0;
    }
    b.rng.pick(&[300_000, 1_000_000, 2_000_000])
}
