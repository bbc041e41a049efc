//! What a shard says of itself, and how long its turns take.
//!
//! [`Stats`] is the shard's end and lives on its core; the [`Board`] is what all shards of a node share with the admin thread. A
//! shard publishes between two turns, and only if it was asked: else this costs it one load a turn. It never waits for a
//! reader: if one copies at that moment, the shard publishes after its next turn.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use whimbrel_core::ids::ShardId;
use whimbrel_core::{Counters, Shard, States};

use super::lane::Mesh;
use super::own_time::OwnTime;
use super::ring::RingCounters;
use super::turn::ShellCounters;

/// Longest turn that is told from longer ones.
const TURN_MAX_US: u64 = 60_000_000;

/// Digits that count: lengths are right to one in a hundred, and a copy of the counts is 20 KiB.
const TURN_DIGITS: u8 = 2;

/// For turns that take longer it is asked how long the thread was ready and had no core meanwhile.
const LONG_US: u64 = 500;

/// How old the reading before such a turn may be: one takes a microsecond, so that all of them take a thousandth.
const DELAY_AGE_US: u64 = 1_000;

/// Where the kernel says it: time on a core, time ready without one, turns on a core.
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

/// A turn longer than this is counted by what was in it: none should be, because of the log's chores, on an idle machine.
const TOO_LONG_US: u64 = 1_000;

/// What may make a turn long beside the messages in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    /// A segment was begun, was made, or was given away.
    Segment = 1,
    /// A slice of a checkpoint was made, or one was answered.
    Checkpoint = 2,
    /// A segment was to be read in, or was.
    ColdRead = 4,
    /// Something was moved to cold segments or overwritten there, or was to be.
    Move = 8,
}

impl Chore {
    /// Each with its name.
    pub(crate) const ALL: [(Chore, &str); 4] = [
        (Chore::Segment, "segment"),
        (Chore::Checkpoint, "checkpoint"),
        (Chore::ColdRead, "cold_read"),
        (Chore::Move, "move"),
    ];
}

/// Turns above a millisecond, without the time in which there was no core.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LongTurns {
    /// With none of the chores.
    pub(crate) none: u64,
    /// With each of [`Chore::ALL`].
    pub(crate) with: [u64; 4],
}

/// How far a shard has come. Each stage follows the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// It reads its log, and has not turned yet.
    #[default]
    Opening,
    /// Its partitions, or those of other shards, do not serve yet.
    Starting,
    /// It accepts connections.
    Accepting,
    /// It says goodbye to its clients, or waits for other shards that do.
    Stopping,
    /// Its last turn is over.
    Ended,
}

/// All that a shard counts, at one moment between two turns.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) at: Instant,
    pub(crate) stage: Stage,
    pub(crate) core: Counters,
    pub(crate) shell: ShellCounters,
    pub(crate) ring: RingCounters,
    pub(crate) now: Levels,
    pub(crate) turns: Lengths,
}

/// What goes up and down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Levels {
    /// Connections open.
    pub(crate) connections: u64,
    /// Messages that wait in inboxes.
    pub(crate) waiting: u64,
    /// Bytes of the log's segments.
    pub(crate) log_bytes: u64,
    /// Bytes of those of them that are closed and taken to be in memory.
    pub(crate) warm_bytes: u64,
    /// Files that nobody needs and that could not be removed.
    pub(crate) leftovers: u64,
    /// Partitions that do not serve yet.
    pub(crate) starting: u64,
    /// Partitions that serve.
    pub(crate) serving: u64,
    /// Partitions that are in repair.
    pub(crate) in_repair: u64,
}

/// Lengths of turns in microseconds, since the start.
#[derive(Clone, Debug)]
pub(crate) struct Lengths {
    /// From the turn's begin until it waits or the next one begins.
    pub(crate) wall: Histogram<u64>,
    /// The same less the time in which the thread had no core; `None` where the kernel does not say it. What a turn before
    /// it was delayed by less than [`DELAY_AGE_US`] ago may be taken from it too.
    pub(crate) own: Option<Histogram<u64>>,
    /// What of it the log's chores took: of most turns nothing. Copies that a change makes for a checkpoint are not among it.
    pub(crate) chores: Histogram<u64>,
    pub(crate) long: LongTurns,
}

/// What the shards of a node share with whoever wants to know.
pub(crate) struct Board {
    asked: CachePadded<AtomicU64>,
    places: Vec<CachePadded<Place>>,
    mesh: Arc<Mesh>,
}

struct Place {
    /// The newest question that this shard has answered.
    answered: AtomicU64,
    snapshot: Mutex<Snapshot>,
}

impl Board {
    /// One place for each shard of the mesh. The first turn of each is asked for.
    pub(super) fn new(mesh: Arc<Mesh>) -> Board {
        let place = |_| {
            let snapshot = Mutex::new(Snapshot::before_the_first_turn());
            CachePadded::new(Place { answered: AtomicU64::new(0), snapshot })
        };
        Board { asked: CachePadded::new(AtomicU64::new(1)), places: (0..mesh.shards()).map(place).collect(), mesh }
    }

    /// Of shards that never turn.
    #[cfg(test)]
    pub(crate) fn of_sleepers(count: usize) -> Board {
        let wakers = (0..count).map(|_| super::sleep::Waker::new().expect("an eventfd"));
        Board::new(Arc::new(Mesh::new(wakers.collect())))
    }

    /// Asks all shards to publish, and wakes them for it. Returns the number of the question.
    pub(crate) fn ask(&self) -> u64 {
        let question = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.mesh.wake_all();
        question
    }

    /// Whether all shards that turn have answered a question. Those that have not are woken again: one may have found its
    /// place taken by a reader, and sleep.
    pub(crate) fn have_answered(&self, question: u64) -> bool {
        let mut all = true;
        for (shard, place) in (0..).map(ShardId).zip(&self.places) {
            let answered = place.answered.load(Ordering::Acquire);
            if answered != 0 && answered < question {
                all = false;
                self.mesh.waker(shard).wake();
            }
        }
        all
    }

    /// What each shard published last.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let copy = |place: &CachePadded<Place>| place.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.places.iter().map(copy).collect()
    }
}

impl Snapshot {
    pub(crate) fn before_the_first_turn() -> Snapshot {
        Snapshot {
            at: Instant::now(),
            stage: Stage::Opening,
            core: Counters::default(),
            shell: ShellCounters::default(),
            ring: RingCounters::default(),
            now: Levels::default(),
            turns: Lengths::new(true),
        }
    }
}

impl Lengths {
    fn new(own: bool) -> Lengths {
        Lengths {
            wall: new_histogram(),
            own: own.then(new_histogram),
            chores: new_histogram(),
            long: LongTurns::default(),
        }
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, TURN_MAX_US, TURN_DIGITS).expect("its bounds are constants that fit each other")
}

/// What a shard publishes from.
pub(super) struct Sources<'a> {
    pub(super) stage: Stage,
    pub(super) shard: &'a Shard,
    pub(super) shell: ShellCounters,
    pub(super) ring: RingCounters,
    pub(super) leftovers: usize,
}

/// One shard's end.
pub(super) struct Stats {
    board: Arc<Board>,
    shard: usize,
    answered: u64,
    pub(super) turns: Turns,
}

impl Stats {
    /// On the thread of the shard.
    pub(super) fn new(board: Arc<Board>, shard: ShardId) -> Stats {
        Stats { board, shard: usize::from(shard.0), answered: 0, turns: Turns::new(shard) }
    }

    /// Publishes if that was asked for since the last time.
    #[inline]
    pub(super) fn publish<'a>(&mut self, sources: impl FnOnce() -> Sources<'a>) {
        let asked = self.board.asked.load(Ordering::Acquire);
        if asked != self.answered {
            self.answer(asked, &sources());
        }
    }

    #[cold]
    fn answer(&mut self, asked: u64, sources: &Sources<'_>) {
        let place = &self.board.places[self.shard];
        let mut snapshot = match place.snapshot.try_lock() {
            Ok(snapshot) => snapshot,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        sources.copy(&self.turns.lengths, &mut snapshot);
        drop(snapshot);
        place.answered.store(asked, Ordering::Release);
        self.answered = asked;
    }

    /// Publishes the end. Every later question counts as answered.
    pub(super) fn publish_last(self, sources: &Sources<'_>) {
        let place = &self.board.places[self.shard];
        // No turn comes after this, so it may wait for a reader.
        let mut snapshot = place.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        sources.copy(&self.turns.lengths, &mut snapshot);
        drop(snapshot);
        place.answered.store(u64::MAX, Ordering::Release);
    }
}

impl Sources<'_> {
    /// Overwrites a snapshot, whose memory is kept.
    fn copy(&self, lengths: &Lengths, snapshot: &mut Snapshot) {
        snapshot.at = Instant::now();
        snapshot.stage = self.stage;
        snapshot.core = *self.shard.counters();
        snapshot.shell = self.shell;
        snapshot.ring = self.ring;
        let States { starting, serving, repair: in_repair } = self.shard.states();
        snapshot.now = Levels {
            connections: self.shard.connections().into(),
            waiting: self.shard.waiting() as u64,
            log_bytes: self.shard.log_bytes(),
            warm_bytes: self.shard.log_warm_bytes(),
            leftovers: self.leftovers as u64,
            starting,
            serving,
            in_repair,
        };
        let same = "both have the same bounds";
        snapshot.turns.long = lengths.long;
        snapshot.turns.wall.set_to(&lengths.wall).expect(same);
        snapshot.turns.chores.set_to(&lengths.chores).expect(same);
        match (&mut snapshot.turns.own, &lengths.own) {
            (Some(copy), Some(own)) => copy.set_to(own).expect(same),
            (copy, own) => copy.clone_from(own),
        }
    }
}

/// Measures turns by the times that the loop reads anyway: a turn ends where the loop waits, or else where the next one begins,
/// so that the system call by which a busy shard submits is part of it.
pub(super) struct Turns {
    begun_us: Option<u64>,
    /// Of this turn, as a set of [`Chore`], and how long they took.
    chores: u8,
    chores_took: Duration,
    lengths: Lengths,
    delays: Option<Delays>,
}

impl Turns {
    /// On the thread of the shard.
    fn new(shard: ShardId) -> Turns {
        let delays = Delays::open()
            .inspect_err(|error| {
                tracing::info!(shard = shard.0, %error, "{SCHEDSTAT} cannot be read: how long turns waited for a core is not known");
            })
            .ok();
        Turns {
            begun_us: None,
            chores: 0,
            chores_took: Duration::ZERO,
            lengths: Lengths::new(delays.is_some()),
            delays,
        }
    }

    /// A turn begins.
    #[inline]
    pub(super) fn began(&mut self, now_us: u64) {
        self.ended(now_us);
        self.begun_us = Some(now_us);
        if self.delays.as_ref().is_some_and(|delays| now_us - delays.read_us >= DELAY_AGE_US) {
            self.delay_since(now_us);
        }
    }

    /// This turn had that in it.
    #[inline]
    pub(super) fn did(&mut self, chore: Chore) {
        self.chores |= chore as u8;
    }

    /// The log's chores took the time since then.
    #[inline]
    pub(super) fn chores_since(&mut self, since: Instant) {
        self.chores_took += since.elapsed();
    }

    /// A chore took the time since then.
    pub(super) fn chore_since(&mut self, begun: OwnTime) {
        self.chores_took += begun.took();
    }

    /// The turn is over, if it was not yet.
    #[inline]
    pub(super) fn ended(&mut self, now_us: u64) {
        if let Some(begun_us) = self.begun_us.take() {
            let length_us = now_us.saturating_sub(begun_us);
            let delay_us = if length_us >= LONG_US { self.delay_since(now_us) } else { 0 };
            let own_us = length_us.saturating_sub(delay_us);
            self.lengths.wall.saturating_record(length_us);
            if let Some(own) = &mut self.lengths.own {
                own.saturating_record(own_us);
            }
            // What had no core is not theirs either.
            let chores_us = (std::mem::take(&mut self.chores_took).as_micros() as u64).min(own_us);
            self.lengths.chores.saturating_record(chores_us);
            if own_us > TOO_LONG_US {
                self.too_long(length_us, own_us, chores_us);
            }
            self.chores = 0;
        }
    }

    #[cold]
    fn too_long(&mut self, wall_us: u64, own_us: u64, chores_us: u64) {
        let long = &mut self.lengths.long;
        long.none += u64::from(self.chores == 0);
        for ((chore, _), count) in Chore::ALL.iter().zip(&mut long.with) {
            *count += u64::from(self.chores & *chore as u8 != 0);
        }
        let with = Chore::ALL.iter().filter(|(chore, _)| self.chores & *chore as u8 != 0).map(|(_, name)| *name);
        let with = with.collect::<Vec<_>>().join(" ");
        // The bench reads this.
        tracing::debug!(wall_us, own_us, chores_us, with, "a long turn");
    }

    /// How long the thread had no core since it was asked last.
    #[cold]
    fn delay_since(&mut self, now_us: u64) -> u64 {
        let Some(delays) = &mut self.delays else { return 0 };
        match delays.advance(now_us) {
            Ok(delay_us) => delay_us,
            Err(error) => {
                tracing::warn!(%error, "{SCHEDSTAT} can no longer be read: how long turns waited for a core is not known from here on");
                self.delays = None;
                self.lengths.own = None;
                0
            }
        }
    }
}

/// The kernel's count of how long this thread was ready and had no core.
struct Delays {
    file: File,
    delay_ns: u64,
    /// When it was read.
    read_us: u64,
}

impl Delays {
    fn open() -> std::io::Result<Delays> {
        let file = File::open(SCHEDSTAT)?;
        let delay_ns = read_delay(&file)?;
        Ok(Delays { file, delay_ns, read_us: 0 })
    }

    /// Reads it, and says by how much it has grown, in microseconds.
    fn advance(&mut self, now_us: u64) -> std::io::Result<u64> {
        let before_ns = std::mem::replace(&mut self.delay_ns, read_delay(&self.file)?);
        self.read_us = now_us;
        Ok(self.delay_ns.saturating_sub(before_ns) / 1000)
    }
}

fn read_delay(file: &File) -> std::io::Result<u64> {
    let mut text = [0; 96];
    let read = file.read_at(&mut text, 0)?;
    parse_delay(&text[..read]).ok_or_else(|| std::io::Error::other("three numbers were expected"))
}

fn parse_delay(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns() -> Turns {
        Turns { begun_us: None, chores: 0, chores_took: Duration::ZERO, lengths: Lengths::new(true), delays: None }
    }

    #[test]
    fn a_turn_lasts_until_it_waits_or_the_next_begins() {
        let mut turns = turns();
        turns.began(100);
        turns.ended(110);
        turns.began(5_000);
        turns.began(5_300);
        turns.ended(5_301);
        turns.ended(9_000);
        let lengths: Vec<_> = turns.lengths.wall.iter_recorded().map(|it| it.value_iterated_to()).collect();
        assert_eq!(lengths, [1, 10, 301], "waiting is no part of a turn; 300 is counted with 301");
        assert_eq!(turns.lengths.wall.len(), 3);
    }

    #[test]
    fn a_longer_turn_than_any_is_counted_as_the_longest() {
        let mut turns = turns();
        turns.began(0);
        turns.ended(TURN_MAX_US * 1000);
        assert_eq!(turns.lengths.wall.len(), 1);
        assert!(turns.lengths.wall.max() >= TURN_MAX_US);
        new_histogram().set_to(&turns.lengths.wall).expect("a copy takes it too");
    }

    #[test]
    fn long_turns_are_counted_by_what_was_in_them() {
        let mut turns = turns();
        turns.began(0);
        turns.did(Chore::Segment);
        turns.ended(1_000);
        turns.began(2_000);
        turns.ended(3_001);
        turns.began(4_000);
        turns.did(Chore::Checkpoint);
        turns.did(Chore::ColdRead);
        turns.began(9_000);
        turns.ended(11_000);
        let LongTurns { none, with } = turns.lengths.long;
        assert_eq!((none, with), (2, [0, 1, 1, 0]), "what was in one turn is not in the next");
    }

    #[test]
    fn the_kernel_says_how_long_a_thread_had_no_core() {
        assert_eq!(parse_delay(b"123456 789 42\n"), Some(789));
        for wrong in [&b""[..], b"12", b"a b c", b"\xff 1 2"] {
            assert_eq!(parse_delay(wrong), None);
        }
    }

    #[test]
    fn what_had_no_core_is_not_the_turns_own() {
        let mut turns = turns();
        // A file whose delay has grown by 2 ms since it was read.
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"9000000 5000000 3\n").unwrap();
        turns.delays = Some(Delays { file, delay_ns: 3_000_000, read_us: 0 });
        turns.began(10);
        turns.ended(2_510);
        assert_eq!(turns.lengths.wall.max(), turns.lengths.wall.highest_equivalent(2_500));
        let own = turns.lengths.own.as_ref().unwrap();
        assert_eq!(own.max(), own.highest_equivalent(500), "2,500 µs less 2,000 without a core");
        // The next long one was not delayed.
        turns.began(2_600);
        turns.ended(3_600);
        assert_eq!(turns.lengths.own.as_ref().unwrap().max(), own_max(1_000));
    }

    fn own_max(value: u64) -> u64 {
        new_histogram().highest_equivalent(value)
    }

    #[test]
    fn where_the_delay_cannot_be_read_any_more_none_is_made_up() {
        let mut turns = turns();
        turns.delays = Some(Delays { file: tempfile::tempfile().unwrap(), delay_ns: 0, read_us: 0 });
        turns.began(10);
        turns.ended(2_000);
        assert!(turns.lengths.own.is_none() && turns.delays.is_none());
        assert_eq!(turns.lengths.wall.len(), 1);
    }

    #[test]
    fn a_question_waits_for_shards_that_turn() {
        let board = Board::of_sleepers(2);
        let question = board.ask();
        assert!(board.have_answered(question), "no shard has turned yet");
        board.places[0].answered.store(question - 1, Ordering::Release);
        assert!(!board.have_answered(question));
        board.places[0].answered.store(question, Ordering::Release);
        assert!(board.have_answered(question));
        board.places[1].answered.store(u64::MAX, Ordering::Release);
        board.places[0].answered.store(u64::MAX, Ordering::Release);
        assert!(board.have_answered(board.ask()), "shards that have ended answer no more");
    }
}
