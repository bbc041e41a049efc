//! The turn of a shard: reap completions, handle each, drain lanes, look at timers, end the shard's turn, carry out what it
//! wants, one send a connection, one system call; and if nothing is left to do, sleep. It lives on the shard's core.
//!
//! The shell decides nothing: it turns completions into [`Input`]s and [`Effect`]s into requests.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::Socket;
use whimbrel_core::ids::{ConnId, ShardId};
use whimbrel_core::io::Moving;
use whimbrel_core::{Counters, Effect, Effects, Input, Now, Shard};
use whimbrel_storage::{LogWrite, WriteId};
use whimbrel_wire::Code;

use super::conn::{Conns, News};
use super::control::{Clock, Control, Told};
use super::lane::{Arrival, Lanes};
use super::own_time::OwnTime;
use super::ring::{Completion, Ring, RingCounters, Wait};
use super::segments::Segments;
use super::sleep::Sleeper;
use super::stats::{Chore, Sources, Stage, Stats};
use super::trouble;

/// Completions that one turn handles at most, so that its effects stay bounded.
const COMPLETIONS_MAX: usize = 4096;

/// How long a shard waits in its ring before it sleeps by glommio: longer than a flush of the log takes on a good disk. A wait
/// there is one system call, a sleep by glommio is six (with 100 connections one in flight, 300 µs instead of 100 saved a
/// tenth of the CPU); glommio's other tasks wait as long.
const SHORT_WAIT: Duration = Duration::from_micros(300);

/// How long a busy shard keeps its core while a write of the log is in flight.
const YIELD_US: u64 = 100;

/// How often a lane that was full is looked at.
const STUCK_US: u64 = 1_000;

/// When accepting failed, most likely since all slots are in use, it is tried again after this time.
const ACCEPT_RETRY_US: u64 = 100_000;

/// How long connections that close have once everything else has stopped.
const LAST_LINGER_US: u64 = 300_000;

/// Connections listening for.
const BACKLOG: i32 = 4096;

/// What the shell of a shard counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShellCounters {
    pub(crate) turns: u64,
    pub(crate) sleeps: u64,
    pub(crate) received: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) log_writes: u64,
    pub(crate) log_bytes: u64,
    pub(crate) accepted: u64,
    pub(crate) accept_failed: u64,
    pub(crate) moved_out: u64,
    pub(crate) moved_in: u64,
    pub(crate) move_failed: u64,
    pub(crate) lane_items: u64,
    pub(crate) segments_begun: u64,
    pub(crate) segments_made: u64,
    pub(crate) segments_reused: u64,
    pub(crate) cold_reads: u64,
}

/// Accepting, as far as it is.
#[derive(Debug)]
enum Listening {
    /// Bound, so that nobody else takes the address; connections are refused.
    Bound(Socket),
    Accepting(Socket),
    /// It failed, and is tried again at this time.
    Pausing(Socket, u64),
    Ended,
}

/// A socket that has a slot here, or a state; the one that comes second finds the other.
#[derive(Debug)]
enum Half {
    Slot(u32),
    State(Box<Moving>),
}

/// What a shell is made of.
pub(super) struct Parts {
    pub(super) id: ShardId,
    pub(super) shard: Shard,
    pub(super) ring: Ring,
    pub(super) lanes: Lanes,
    pub(super) segments: Segments,
    pub(super) sleeper: Sleeper,
    pub(super) listener: Socket,
    pub(super) control: Control,
    pub(super) clock: Clock,
    pub(super) stats: Stats,
    pub(super) shards: u16,
}

/// See the [module](self).
pub(super) struct Shell {
    id: ShardId,
    shard: Shard,
    effects: Effects,
    ring: Ring,
    conns: Conns,
    lanes: Lanes,
    segments: Segments,
    sleeper: Sleeper,
    listening: Listening,
    control: Control,
    clock: Clock,
    stats: Stats,
    wake_at_us: Option<u64>,
    /// When it slept last, or let others have the core.
    yielded_us: u64,
    /// Log writes that failed before they were begun.
    failed_writes: Vec<WriteId>,
    /// Connections on their way to another shard, by slot.
    leaving: HashMap<u32, (ShardId, Arrival)>,
    /// Connections of which one half has come from another shard, by number of the move.
    coming: HashMap<u64, Half>,
    moves: u64,
    /// Whether the shard was told anything since its turn ended.
    heard: bool,
    ready: bool,
    stopping: bool,
    stopped: bool,
    /// When the last connections that close are given up, after everything has stopped.
    give_up_us: Option<u64>,
    counters: ShellCounters,
}

impl Shell {
    pub(super) fn new(parts: Parts) -> Shell {
        let Parts { id, shard, ring, lanes, segments, sleeper, listener, control, clock, stats, shards } = parts;
        Shell {
            id,
            shard,
            effects: Effects { lane_room: vec![0; usize::from(shards)], ..Effects::default() },
            ring,
            conns: Conns::default(),
            lanes,
            segments,
            sleeper,
            listening: Listening::Bound(listener),
            control,
            clock,
            stats,
            // A shard may want to be called before anything happens to it.
            wake_at_us: Some(0),
            yielded_us: 0,
            failed_writes: Vec::new(),
            leaving: HashMap::new(),
            coming: HashMap::new(),
            // The upper half of a move's number names the shard that it came from.
            moves: u64::from(id.0) << 32,
            heard: false,
            ready: false,
            stopping: false,
            stopped: false,
            give_up_us: None,
            counters: ShellCounters::default(),
        }
    }

    /// Turns until the node stops.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let now = self.turn()?;
            if self.is_done(now) {
                break;
            }
            self.publish();
            self.rest().await?;
        }
        if let Some(end) = self.shard.log_end() {
            self.segments.mark_end(end);
        }
        let RingCounters { enters, completions, sends, vectored, receives } = self.ring.counters();
        tracing::debug!(
            shard = self.id.0, enters, completions, sends, vectored, receives, wakes = self.lanes.wakes,
            counters = ?self.counters, core = ?self.shard.counters(), "what it did"
        );
        let Counters { logins, stored, delivered, acknowledged, .. } = self.shard.counters();
        let refused = refusals(self.shard.counters());
        tracing::info!(shard = self.id.0, logins, stored, delivered, acknowledged, refused, "stopped");
        let Shell { stats, shard, counters, ring, segments, .. } = self;
        stats.publish_last(&Sources {
            stage: Stage::Ended,
            shard: &shard,
            shell: counters,
            ring: ring.counters(),
            leftovers: segments.leftovers(),
        });
        Ok(())
    }

    /// Tells the admin thread, if it asked.
    fn publish(&mut self) {
        let stage = match &self.listening {
            _ if self.stopping => Stage::Stopping,
            Listening::Bound(_) => Stage::Starting,
            Listening::Accepting(_) | Listening::Pausing(..) => Stage::Accepting,
            Listening::Ended => Stage::Stopping,
        };
        let (shard, ring, segments) = (&self.shard, &self.ring, &self.segments);
        self.stats.publish(|| Sources {
            stage,
            shard,
            shell: self.counters,
            ring: ring.counters(),
            leftovers: segments.leftovers(),
        });
    }

    /// One turn, without a wait.
    fn turn(&mut self) -> anyhow::Result<Now> {
        let now = self.clock.now();
        self.stats.turns.began(now.mono_us);
        self.counters.turns += 1;
        // A lane that has room again is news: what waits for it goes with the end of a turn.
        self.heard |= self.lanes.room(&mut self.effects.lane_room);
        self.obey(now)?;
        self.reap(now);
        self.tell_news(now);
        self.drain_lanes(now);
        while let Some(done) = self.segments.done() {
            self.stats.turns.did(match &done {
                Input::ReadIn { .. } => Chore::ColdRead,
                Input::ColdDone(_) | Input::ColdFailed => Chore::Move,
                Input::SegmentReady { .. } | Input::SegmentFailed { .. } => Chore::Segment,
                _ => Chore::Checkpoint,
            });
            self.counters.segments_made += u64::from(matches!(&done, Input::SegmentReady { .. }));
            let begun = OwnTime::begin();
            self.tell(now, done);
            self.stats.turns.chore_since(begun);
        }
        if self.wake_at_us.is_some_and(|at_us| at_us <= now.mono_us) {
            self.wake_at_us = None;
            self.tell(now, Input::Timeout);
        }
        if self.heard {
            let more = self.ring.has_news();
            if self.shard.is_imaging() {
                self.stats.turns.did(Chore::Checkpoint);
            }
            self.shard.turn_end_of_messages(now, more, &mut self.effects);
            if self.shard.has_chores() {
                let begun = OwnTime::begin();
                self.shard.turn_end_of_chores(&mut self.effects);
                self.stats.turns.chore_since(begun);
            } else {
                let began = Instant::now();
                self.shard.turn_end_of_chores(&mut self.effects);
                self.stats.turns.chores_since(began);
            }
            self.heard = false;
            self.carry_out(now);
            if cfg!(debug_assertions) {
                self.shard.invariants();
            }
            if !self.ready && self.shard.is_ready() {
                self.ready = true;
                self.control.tell(Told::Ready(self.id));
            }
        }
        self.conns.expire(now.mono_us, &mut self.ring);
        self.conns.flush(&mut self.ring);
        self.lanes.send(&mut self.ring);
        Ok(now)
    }

    #[inline]
    fn tell(&mut self, now: Now, input: Input<'_>) {
        self.heard = true;
        self.shard.handle(now, input, &mut self.effects);
    }

    /// Does what the node's main thread asks.
    fn obey(&mut self, now: Now) -> anyhow::Result<()> {
        match &self.listening {
            Listening::Bound(_) if self.control.may_accept() && !self.stopping => self.listen()?,
            Listening::Pausing(_, until_us) if *until_us <= now.mono_us => self.accept_again(),
            _ => {}
        }
        if self.control.must_stop() && !self.stopping {
            self.stopping = true;
            match std::mem::replace(&mut self.listening, Listening::Ended) {
                Listening::Accepting(socket) => {
                    self.ring.cancel_accept();
                    self.listening = Listening::Accepting(socket);
                }
                Listening::Bound(_) | Listening::Pausing(..) | Listening::Ended => {}
            }
            self.tell(now, Input::Stop);
        }
        Ok(())
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        if let Listening::Bound(socket) = std::mem::replace(&mut self.listening, Listening::Ended) {
            socket.listen(BACKLOG).context("listen for connections")?;
            self.ring.accept(socket.as_raw_fd());
            self.listening = Listening::Accepting(socket);
            self.control.tell(Told::Listening(self.id));
            self.segments.node_serves();
        }
        Ok(())
    }

    fn accept_again(&mut self) {
        if let Listening::Pausing(socket, _) = std::mem::replace(&mut self.listening, Listening::Ended) {
            self.ring.accept(socket.as_raw_fd());
            self.listening = Listening::Accepting(socket);
        }
    }

    fn reap(&mut self, now: Now) {
        for _ in 0..COMPLETIONS_MAX {
            let Some(completion) = self.ring.next() else { return };
            match completion {
                Completion::Received { slot, filled, more } => {
                    if let Some(conn) = self.conns.received(slot, more, &mut self.ring) {
                        let bytes = self.ring.bytes(&filled);
                        self.counters.received += 1;
                        self.counters.received_bytes += bytes.len() as u64;
                        self.heard = true;
                        self.shard.handle(now, Input::Received { conn, bytes }, &mut self.effects);
                    }
                    self.ring.give_back(filled);
                    if self.shard.is_full() {
                        return;
                    }
                }
                Completion::Sent { slot, queue, result } => {
                    if let Some((conn, bytes)) = self.conns.sent(slot, queue, result, &mut self.ring) {
                        self.counters.sent_bytes += u64::from(bytes);
                        self.tell(now, Input::Written { conn, bytes });
                    }
                }
                Completion::ReceiveEnded { slot, errno } => {
                    self.conns.receive_ended(slot, errno, now.mono_us, &mut self.ring);
                }
                Completion::Shut { slot } => self.conns.was_shut(slot, &mut self.ring),
                Completion::LogWritten { write, result: Ok(()) } => self.tell(now, Input::LogWritten { write }),
                Completion::LogWritten { write, result: Err(error) } => {
                    tracing::error!(shard = self.id.0, %error, "a write of the log failed");
                    self.tell(now, Input::LogFailed { write });
                }
                Completion::Accepted { result, more } => self.accepted(now, result, more),
                Completion::MovedOut { slot, result } => self.moved_out(slot, result),
                Completion::MovedIn { id, slot } => self.half_came(now, id, Half::Slot(slot)),
                Completion::Woken => {}
                Completion::NotWoken { errno } => {
                    let error = io::Error::from_raw_os_error(errno);
                    tracing::warn!(shard = self.id.0, %error, "cannot wake a shard through its ring; all are woken another way");
                    self.lanes.wake_all();
                }
                Completion::Failed { what, errno } => {
                    let error = io::Error::from_raw_os_error(errno);
                    tracing::warn!(shard = self.id.0, %error, "cannot {what}");
                }
            }
        }
    }

    fn accepted(&mut self, now: Now, result: Result<u32, i32>, more: bool) {
        match result {
            Ok(slot) => {
                self.counters.accepted += 1;
                let conn = self.conns.open(slot, &mut self.ring);
                self.tell(now, Input::Connected { conn });
            }
            Err(libc::ECANCELED) if self.stopping => {}
            Err(errno) => {
                if self.counters.accept_failed == 0 {
                    let error = io::Error::from_raw_os_error(errno);
                    tracing::warn!(
                        shard = self.id.0, %error,
                        "cannot accept a connection; it goes on, but all its places for connections may be in use (limits.connections)"
                    );
                }
                self.counters.accept_failed += 1;
            }
        }
        if more {
            return;
        }
        if let Listening::Accepting(socket) = std::mem::replace(&mut self.listening, Listening::Ended)
            && !self.stopping
        {
            let pause_us = if result.is_ok() { 0 } else { ACCEPT_RETRY_US };
            self.listening = Listening::Pausing(socket, now.mono_us + pause_us);
        }
    }

    /// The descriptor is in the other shard's ring: now the state follows. It went the other way round if the state could be
    /// there without a descriptor ever coming.
    fn moved_out(&mut self, slot: u32, result: Result<(), i32>) {
        let (to, arrival) = self.leaving.remove(&slot).expect("a connection moves once");
        match result {
            Ok(()) => {
                self.counters.moved_out += 1;
                self.lanes.push_arrival(to, arrival);
            }
            // The client finds its connection closed and comes again.
            Err(errno) => self.move_failed(to, &io::Error::from_raw_os_error(errno).to_string()),
        }
        self.conns.moved(slot, &mut self.ring);
    }

    fn move_failed(&mut self, to: ShardId, error: &str) {
        if self.counters.move_failed == 0 {
            tracing::warn!(
                shard = self.id.0,
                to = to.0,
                error,
                "cannot move a connection to its shard; it goes on, but all places for connections there may be in use (limits.connections)"
            );
        }
        self.counters.move_failed += 1;
    }

    fn half_came(&mut self, now: Now, id: u64, half: Half) {
        let (slot, moving) = match (self.coming.remove(&id), half) {
            (Some(Half::Slot(slot)), Half::State(moving)) | (Some(Half::State(moving)), Half::Slot(slot)) => {
                (slot, moving)
            }
            (_, half) => {
                self.coming.insert(id, half);
                return;
            }
        };
        self.counters.moved_in += 1;
        let conn = self.conns.open(slot, &mut self.ring);
        self.tell(now, Input::Adopted { conn, moving });
    }

    /// What came of the last turn's effects, and of this turn's completions.
    fn tell_news(&mut self, now: Now) {
        while let Some(news) = self.conns.news.pop_front() {
            self.tell(
                now,
                match news {
                    News::Disconnected(conn) => Input::Disconnected { conn },
                    News::Detached(conn) => Input::Detached { conn },
                },
            );
        }
        for write in std::mem::take(&mut self.failed_writes) {
            self.tell(now, Input::LogFailed { write });
        }
    }

    fn drain_lanes(&mut self, now: Now) {
        for from in (0..self.effects.lane_room.len()).map(|from| ShardId(from as u16)) {
            if from == self.id {
                continue;
            }
            while let Some(mut batch) = self.lanes.pop(from) {
                let count = batch.items.len();
                self.counters.lane_items += count as u64;
                for item in batch.items.drain(..) {
                    self.tell(now, Input::Lane { from, item });
                }
                self.lanes.done(from, count, batch.items);
                for Arrival { id, moving } in batch.arrivals {
                    self.half_came(now, id, Half::State(moving));
                }
            }
        }
    }

    fn carry_out(&mut self, now: Now) {
        let mut list = std::mem::take(&mut self.effects.list);
        for effect in list.drain(..) {
            match effect {
                Effect::Send { conn, head, payload } => self.conns.send(conn, &self.effects.bytes[head], payload),
                Effect::Close { conn } => self.conns.close(conn, now.mono_us, &mut self.ring),
                Effect::Detach { conn } => self.conns.detach(conn, &mut self.ring),
                Effect::Move { conn, to, moving } => self.move_out(conn, to, moving),
                Effect::Lane { to, item } => self.lanes.push(to, item),
                Effect::WriteLog(write) => self.write_log(write),
                Effect::PrepareSegment { segment, reuse } => {
                    self.counters.segments_reused += u64::from(reuse.is_some());
                    self.chore(Chore::Segment, |segments| segments.prepare(segment, reuse));
                }
                Effect::RemoveSegment(retired) => self.chore(Chore::Segment, |segments| segments.remove(retired)),
                Effect::Checkpoint { number, bytes, last } => {
                    self.chore(Chore::Checkpoint, |segments| segments.checkpoint(number, bytes, last));
                }
                Effect::ReadIn { is, mapping } => {
                    self.counters.cold_reads += 1;
                    self.chore(Chore::ColdRead, |segments| segments.read_in(is, mapping));
                }
                Effect::Cold(work) => self.chore(Chore::Move, |segments| segments.cold(work)),
                Effect::Scrub { is, mapping } => self.segments.scrub(is, mapping),
                Effect::Tell(trouble) => trouble::tell(self.id, &trouble),
                Effect::WakeAt { mono_us } => self.wake_at_us = Some(mono_us),
                Effect::Stopped => {
                    self.stopped = true;
                    self.control.tell(Told::Stopped(self.id));
                }
                Effect::Fatal(fatal) => {
                    tracing::error!(shard = self.id.0, "{}", fatal.text());
                    std::process::exit(fatal.exit_code());
                }
            }
        }
        self.effects.list = list;
        self.effects.clear();
    }

    fn write_log(&mut self, write: LogWrite) {
        let began = Instant::now();
        match self.segments.file(write.segment) {
            Ok((file, is_first)) => {
                if is_first {
                    self.counters.segments_begun += 1;
                    self.stats.turns.did(Chore::Segment);
                    self.stats.turns.chores_since(began);
                }
                self.counters.log_writes += 1;
                self.counters.log_bytes += write.batch.as_ref().len() as u64;
                self.ring.write_log(file, write);
            }
            Err(error) => {
                tracing::error!(shard = self.id.0, segment = write.segment.0, %error, "cannot open a segment of the log");
                self.failed_writes.push(write.id);
            }
        }
    }

    /// Gives work on the log's files to the threads that do it.
    fn chore(&mut self, chore: Chore, give: impl FnOnce(&mut Segments)) {
        let begun = OwnTime::begin();
        give(&mut self.segments);
        self.stats.turns.did(chore);
        self.stats.turns.chore_since(begun);
    }

    fn move_out(&mut self, conn: ConnId, to: ShardId, moving: Box<Moving>) {
        // It broke in this very turn, before the shard was told: then there is nothing to hand over any more.
        if !self.conns.begin_move(conn) {
            return;
        }
        let Some(ring) = self.lanes.ring(to) else {
            self.move_failed(to, "the shard has no ring");
            self.conns.moved(conn.slot, &mut self.ring);
            return;
        };
        self.moves += 1;
        let arrival = Arrival { id: self.moves, moving };
        self.ring.move_out(conn.slot, ring, arrival.id);
        self.leaving.insert(conn.slot, (to, arrival));
    }

    /// Whether everything has ended, or has had its time.
    fn is_done(&mut self, now: Now) -> bool {
        if !self.stopped || !self.control.must_end() {
            return false;
        }
        let give_up_us = *self.give_up_us.get_or_insert(now.mono_us + LAST_LINGER_US);
        self.conns.open_count() == 0 || give_up_us <= now.mono_us
    }

    /// Submits what the turn has to do, and waits until there is something for the next one.
    async fn rest(&mut self) -> io::Result<()> {
        let now_us = self.clock.now().mono_us;
        let until_us = self.next_time_us(now_us);
        let busy = self.ring.has_completions()
            || !self.conns.news.is_empty()
            || !self.failed_writes.is_empty()
            || until_us.is_some_and(|until_us| until_us <= now_us);
        if busy || !self.lanes.fall_asleep() {
            self.ring.enter(Wait::No)?;
            // A busy shard keeps its core until the scheduler's next tick, some milliseconds, and the worker that writes the log
            // has its turn there as well: once to write, once to flush, once to tell.
            if self.ring.is_writing_log() && now_us >= self.yielded_us + YIELD_US {
                self.yielded_us = now_us;
                std::thread::yield_now();
            }
        } else {
            self.stats.turns.ended(now_us);
            self.sleep(now_us, until_us).await?;
            self.lanes.wake_up();
            self.yielded_us = self.clock.now().mono_us;
        }
        glommio::executor().yield_if_needed().await;
        Ok(())
    }

    /// Submits, and waits for a completion: a moment in the ring, then, if it must be, by glommio.
    async fn sleep(&mut self, now_us: u64, until_us: Option<u64>) -> io::Result<()> {
        let left = Duration::from_micros(until_us.map_or(u64::MAX, |until_us| until_us - now_us));
        let time = left.min(SHORT_WAIT);
        let gather_us = u32::try_from(self.shard.rest_us()).unwrap_or(0);
        let quiet = self.ring.enter(if gather_us > 0 { Wait::Gather(time, gather_us) } else { Wait::UpTo(time) })?;
        if quiet && left > SHORT_WAIT {
            if let Some(until_us) = until_us {
                self.ring.alarm(now_us, until_us);
            }
            self.ring.notify(true);
            if self.ring.enter(Wait::Look)? {
                self.counters.sleeps += 1;
                self.sleeper.sleep().await?;
            }
            self.ring.notify(false);
        }
        Ok(())
    }

    /// When there is something to do even if nothing comes.
    fn next_time_us(&self, now_us: u64) -> Option<u64> {
        let stuck = self.lanes.is_stuck(&self.effects.lane_room).then(|| now_us + STUCK_US);
        let accept = match &self.listening {
            Listening::Pausing(_, until_us) => Some(*until_us),
            Listening::Bound(_) | Listening::Accepting(_) | Listening::Ended => None,
        };
        [self.wake_at_us, self.conns.next_deadline_us(), self.give_up_us, stuck, accept].into_iter().flatten().min()
    }
}

/// Refusals by reason, those that there were.
fn refusals(counters: &Counters) -> String {
    let count = |code: &Code| {
        (counters.refused_for(*code) > 0).then(|| format!("{}={}", code.name(), counters.refused_for(*code)))
    };
    Code::ALL.iter().filter_map(count).collect::<Vec<_>>().join(" ")
}
