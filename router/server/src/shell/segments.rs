//! A shard's segment files: the one that is being written, and a thread that makes new ones and removes old ones
//! ([`removals`](super::removals)). What else is done with them [`keeper`](super::keeper) and [`scrub`] do.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_core::Input;
use whimbrel_core::ids::ShardId;
use whimbrel_storage::{ColdWork, FileDisk, Position, Retired, SegmentId, SegmentIs, ZEROS_BYTES};

use super::keeper::{Keeper, Keeping};
use super::removals::{InPauses, Removals};
use super::scrub::{self, Scrubbing};
use super::sleep::Waker;
use crate::aside::Aside;

/// One in so many failures in a row is logged.
pub(super) const LOGGED: u32 = 60;

/// How long the thread that makes segments sleeps at most after a piece of one. Written at once the zeros of a segment keep the disk
/// busy for 50 ms, in which no batch of the log gets there.
const PIECE_PAUSE_MAX: Duration = Duration::from_millis(16);

/// The pauses of a segment take this part of the time that the log took for the last ones: a half.
const MAKING: (u32, u32) = (1, 2);

/// And at most this part of the time within which dead bytes have to be gone: one that is used again may have some, and none is
/// closed before the next is there.
const MAKING_OF_FORGETTING: u32 = 32;

/// For a log that fills one within this time pieces are larger: in small ones a segment takes several times as much CPU, which such a
/// log has no share of to spare. At 50 MB a second it was a third of a core.
const HURRIED: Duration = Duration::from_secs(2);

/// So many pieces of zeros are one then.
const HURRIED_PIECES: u32 = 4;

/// How long after a failure it is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// So long the first segment waits at most for the node to serve: what is written meanwhile keeps the starts of other shards from the disk.
/// A log that has too few spares to begin with waits for it.
const START_PATIENCE: Duration = Duration::from_millis(250);

/// Beside the bytes of the last checkpoint this part of a segment is kept for what the next has more.
const RESERVE_PART: u64 = 4;

const ENDS: &str = "the threads end with this value";

/// What was done, and what the shard is to be told of it.
pub(super) type Done = Input<'static>;

/// Work for the thread that makes segments.
pub(super) enum Making {
    Prepare(SegmentId, Option<Retired>),
    Remove(Retired),
    /// Another thread could not remove a file.
    Leftovers,
    /// The core writes to it no more. If it was removed meanwhile its bytes go with this, for which a core waited up to 68 ms.
    Close(File),
}

/// What may be read later.
enum Reading {
    In(SegmentIs, Bytes),
    PastTheCache(SegmentIs, Bytes),
}

/// How fast segments are made: no faster than the log needs them.
pub(super) struct Pacing {
    /// The newest segment that the log has begun to write.
    pub(super) begun: Arc<AtomicU32>,
    /// If it is not to be made at once.
    pub(super) pause: Option<Pause>,
    /// For a whole segment at most.
    pub(super) pauses_max: Duration,
    /// When one was asked for last, and how long before that another.
    pub(super) asked: Option<(Instant, Duration)>,
    /// Pieces since a pause.
    pub(super) pieces: Cell<u32>,
}

/// After so many pieces of a segment, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) every: u32,
    pub(super) length: Duration,
}

impl Pacing {
    /// Without pauses.
    pub(super) fn at_once() -> Pacing {
        Pacing { begun: Arc::default(), pause: None, pauses_max: Duration::MAX, asked: None, pieces: Cell::new(0) }
    }

    /// One is asked for.
    fn asked(&mut self, size_bytes: u32) {
        let now = Instant::now();
        let lasted = self.asked.map_or(Duration::ZERO, |(asked, _)| now.duration_since(asked));
        // One that a checkpoint has closed early follows one that was filled, and a log that was idle becomes busy: the shorter counts.
        let before = self.asked.map_or(Duration::ZERO, |(_, lasted)| lasted);
        self.asked = Some((now, lasted));
        self.pause = pause(lasted.min(before), self.pauses_max, size_bytes);
    }

    /// After a piece of a segment.
    fn pause(&self, segment: SegmentId) -> Option<Pause> {
        // In the last but one that stands ahead of this sends are refused for want of it.
        let pause = self.pause.filter(|_| self.begun.load(Ordering::Relaxed) + 2 < segment.0)?;
        let pieces = self.pieces.get() + 1;
        self.pieces.set(if pieces < pause.every { pieces } else { 0 });
        (pieces >= pause.every).then_some(pause)
    }
}

/// How a segment is made if the ones before it were asked for at such intervals.
fn pause(lasted: Duration, pauses_max: Duration, size_bytes: u32) -> Option<Pause> {
    let (part, of) = MAKING;
    let every = if lasted < HURRIED { HURRIED_PIECES } else { 1 };
    let pauses = size_bytes.div_ceil(ZEROS_BYTES as u32).div_ceil(every).max(1);
    let length = ((lasted * part / of).min(pauses_max) / pauses).min(PIECE_PAUSE_MAX);
    (!length.is_zero()).then_some(Pause { every, length })
}

/// See the [module](self).
pub(super) struct Segments {
    disk: FileDisk,
    current: Option<(SegmentId, Rc<File>)>,
    making: Sender<Making>,
    /// See [`Pacing`].
    begun: Arc<AtomicU32>,
    keeping: Sender<Keeping>,
    scrubbing: Sender<Scrubbing>,
    done: Receiver<Done>,
    /// Work that will be answered.
    outstanding: usize,
    /// Whether the node serves, for the thread that makes segments.
    serves: Arc<AtomicBool>,
    /// Until then: nothing is read but what the starts of its shards wait for.
    held_back: Option<Vec<Reading>>,
}

impl Segments {
    /// Starts the threads, which end with this value. Without a log nothing is written.
    pub(super) fn new(
        shard: ShardId,
        disk: FileDisk,
        size_bytes: u32,
        forget_after: Duration,
        has_log: bool,
        waker: Waker,
        aside: &Aside,
    ) -> io::Result<Segments> {
        let (making, jobs) = mpsc::channel();
        let (results, done) = mpsc::channel();
        let (worker, wake, tell) = (disk.clone(), waker.clone(), results.clone());
        let begun = Arc::new(AtomicU32::new(0));
        let serves = Arc::new(AtomicBool::new(false));
        let node_serves = Arc::clone(&serves);
        let pauses_max = forget_after / MAKING_OF_FORGETTING;
        let mut pacing = Pacing { begun: Arc::clone(&begun), pauses_max, ..Pacing::at_once() };
        aside.spawn(format!("segments-{shard}"), move || {
            let mut failures = 0;
            let started = Instant::now();
            // Other shards still start, and write.
            let mut removals = Removals::new(worker.clone(), Instant::now() + RETRY);
            while let Some(job) = removals.next_job(&jobs, failures > 0) {
                if matches!(job, Making::Prepare(..)) {
                    while !node_serves.load(Ordering::Relaxed) && started.elapsed() < START_PATIENCE {
                        thread::sleep(Duration::from_millis(2));
                    }
                    pacing.asked(size_bytes);
                }
                let Some(result) = make(&worker, job, size_bytes, &pacing, &mut failures) else { continue };
                // The shard is gone: then so is this thread.
                if tell.send(result).is_err() {
                    return;
                }
                wake.wake();
            }
        })?;
        let scrubbing = scrub::start(shard, disk.clone(), results.clone(), waker.clone(), aside)?;
        let (keeping, jobs) = mpsc::channel();
        let reserve_bytes = u64::from(size_bytes) / RESERVE_PART;
        let mut keeper = Keeper::new(disk.clone(), reserve_bytes, making.clone());
        aside.spawn(format!("keeper-{shard}"), move || {
            if has_log {
                keeper.reserve();
            }
            for job in jobs {
                let Some(result) = keeper.work(job) else { continue };
                if results.send(result).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Segments {
            disk,
            current: None,
            making,
            begun,
            keeping,
            scrubbing,
            done,
            outstanding: 0,
            serves,
            held_back: Some(Vec::new()),
        })
    }

    /// The file that was written last is closed, not by the core.
    fn close(&mut self) {
        // One write is on its way at a time, and it is over: none has the file any more.
        if let Some(file) = self.current.take().and_then(|(_, file)| Rc::into_inner(file)) {
            self.making.send(Making::Close(file)).expect(ENDS);
        }
    }

    /// A log that rests may still have the file of a segment open that nobody needs any more. Its bytes are not given back before.
    fn let_go(&mut self, retired: &Retired) {
        if self.current.as_ref().is_some_and(|(current, _)| *current == retired.id) {
            self.close();
        }
    }

    /// Has a segment made.
    pub(super) fn prepare(&mut self, segment: SegmentId, reuse: Option<Retired>) {
        reuse.iter().for_each(|retired| self.let_go(retired));
        self.making.send(Making::Prepare(segment, reuse)).expect(ENDS);
        self.outstanding += 1;
    }

    /// Has a segment removed.
    pub(super) fn remove(&mut self, retired: Retired) {
        self.let_go(&retired);
        self.making.send(Making::Remove(retired)).expect(ENDS);
    }

    /// Has bytes of a checkpoint written.
    pub(super) fn checkpoint(&mut self, number: u64, bytes: Vec<u8>, last: Option<u64>) {
        self.keeping.send(Keeping::Checkpoint { number, bytes, last }).expect(ENDS);
        self.outstanding += 1;
    }

    /// Has a segment read in.
    pub(super) fn read_in(&mut self, is: SegmentIs, mapping: Bytes) {
        self.read(Reading::In(is, mapping));
        self.outstanding += 1;
    }

    /// Has a segment read past the cache.
    pub(super) fn scrub(&mut self, is: SegmentIs, mapping: Bytes) {
        self.read(Reading::PastTheCache(is, mapping));
        self.outstanding += 1;
    }

    fn read(&mut self, reading: Reading) {
        match (&mut self.held_back, reading) {
            (Some(later), reading) => later.push(reading),
            (None, Reading::In(is, mapping)) => self.keeping.send(Keeping::ReadIn(is, mapping)).expect(ENDS),
            (None, Reading::PastTheCache(is, mapping)) => {
                self.scrubbing.send(Scrubbing { is, mapping }).expect(ENDS);
            }
        }
    }

    /// All shards of the node have started.
    pub(super) fn node_serves(&mut self) {
        self.serves.store(true, Ordering::Relaxed);
        self.held_back.take().into_iter().flatten().for_each(|reading| self.read(reading));
    }

    /// Has something done on cold segments.
    pub(super) fn cold(&mut self, work: ColdWork) {
        self.keeping.send(Keeping::Cold(work)).expect(ENDS);
        self.outstanding += 1;
    }

    /// Leaves the mark of a clean end, by which the next start need not look for more.
    pub(super) fn mark_end(&self, end: Position) {
        if let Err(error) = self.disk.mark_end(end) {
            tracing::warn!(%error, "cannot leave the mark of a clean end; nothing is lost, the next start reads a little more");
        }
    }

    /// How many files nobody needs that are not removed yet.
    pub(super) fn leftovers(&self) -> usize {
        self.disk.leftovers()
    }

    /// What was done.
    #[inline]
    pub(super) fn done(&mut self) -> Option<Done> {
        if self.outstanding == 0 {
            return None;
        }
        let done = self.done.try_recv().ok()?;
        self.outstanding -= 1;
        Some(done)
    }

    /// The file of the segment that is being written, and whether it is begun with this. Opened once a segment, which takes
    /// microseconds.
    pub(super) fn file(&mut self, segment: SegmentId) -> io::Result<(Rc<File>, bool)> {
        if let Some((current, file)) = &self.current
            && *current == segment
        {
            return Ok((file.clone(), false));
        }
        let file = Rc::new(self.disk.file(segment)?);
        self.close();
        self.current = Some((segment, file.clone()));
        self.begun.store(segment.0, Ordering::Relaxed);
        Ok((file, true))
    }
}

pub(super) fn make(disk: &FileDisk, job: Making, size_bytes: u32, pacing: &Pacing, failures: &mut u32) -> Option<Done> {
    let (segment, reuse) = match job {
        Making::Prepare(segment, reuse) => (segment, reuse),
        Making::Remove(Retired { id, mapping, .. }) => {
            drop(mapping);
            // It is tried again at once, and told.
            if let Err(error) = disk.remove_segment(id) {
                tracing::debug!(path = %disk.path(id).display(), %error, "cannot remove a segment");
            }
            return None;
        }
        Making::Leftovers => return None,
        Making::Close(file) => {
            drop(file);
            return None;
        }
    };
    let path = disk.path(segment);
    // A failure was told at once, for sends are refused by it; the log has asked again at once.
    if *failures > 0 {
        thread::sleep(RETRY);
    }
    let mut in_pauses = InPauses::of(disk);
    let mut pause = || pacing.pause(segment).map(|pause| in_pauses.at(pause));
    let made = match reuse {
        Some(Retired { id: old, mapping, used }) => {
            // Before its bytes change.
            drop(mapping);
            disk.recycle_segment(old, used, segment, size_bytes, pause)
        }
        None => match disk.create_segment(segment, size_bytes, &mut pause) {
            Err(_) if disk.leftovers() > 0 => {
                // What a crash left may be all that is in the way. What cannot be removed is tried again and told.
                disk.remove_leftovers();
                disk.create_segment(segment, size_bytes, pause)
            }
            made => made,
        },
    };
    Some(match made {
        Ok(mapping) => {
            if std::mem::take(failures) > 0 {
                tracing::info!(path = %path.display(), "segments of the log can be made again");
            }
            Input::SegmentReady { segment, mapping }
        }
        Err(error) => {
            if failures.is_multiple_of(LOGGED) {
                tracing::error!(
                    path = %path.display(), %error,
                    "cannot make a segment of the log; it is tried again every second. Make room: once the spare ones are full, \
                     sends are refused"
                );
            }
            *failures += 1;
            Input::SegmentFailed { segment }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_of_a_segment_that_nobody_needs_any_more_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path(), 0).unwrap();
        let (id, size) = (SegmentId(1), 8192);
        let mapping = disk.create_segment(id, size, || None).unwrap();
        let waker = Waker::new().unwrap();
        let mut segments =
            Segments::new(ShardId(0), disk, size, Duration::MAX, true, waker, &Aside::new(Vec::new())).unwrap();
        drop(segments.file(id).unwrap());
        // The log rests: no other one is begun.
        segments.remove(Retired { id, mapping, used: size });
        let is_open = || {
            let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
            files
                .filter_map(|fd| fs::read_link(fd.path()).ok())
                .any(|file| file.starts_with(dir.path().join("shard-0")))
        };
        let begun = Instant::now();
        while is_open() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it holds its bytes although it has no name any more");
            thread::yield_now();
        }
    }

    #[test]
    fn a_segment_is_made_within_the_time_that_the_log_takes_for_one() {
        let (size, pieces, most) = (64 << 20, 256, Duration::from_secs(10));
        assert_eq!(pause(Duration::ZERO, most, size), None, "the first ones are wanted at once");
        for (lasted_ms, every) in [(100, 4), (1999, 4), (2000, 1), (5000, 1)] {
            let lasted = Duration::from_millis(lasted_ms);
            let pause = pause(lasted, most, size).unwrap();
            let paused = pause.length * (pieces / pause.every);
            assert_eq!(pause.every, every);
            assert!(paused <= lasted / 2 && paused > lasted * 2 / 5, "{paused:?} of {lasted:?}");
        }
        assert_eq!(pause(Duration::from_secs(3600), most, size).unwrap().length, PIECE_PAUSE_MAX);
        assert_eq!(pause(Duration::from_secs(3), most, 1).unwrap().length, PIECE_PAUSE_MAX, "smaller than a piece");
    }

    #[test]
    fn where_bytes_have_to_be_gone_soon_a_segment_is_made_soon() {
        let most = Duration::from_secs(1) / MAKING_OF_FORGETTING;
        let paused = pause(Duration::from_secs(3600), most, 64 << 20).unwrap().length * 256;
        assert!(paused <= most && paused > most / 2, "{paused:?}");
    }

    #[test]
    fn a_log_that_is_filled_fast_is_paused_for_less_often() {
        let length = Duration::from_millis(3);
        let paused = |every| {
            let pacing = Pacing { pause: Some(Pause { every, length }), ..Pacing::at_once() };
            (0..12).filter(|_| pacing.pause(SegmentId(9)).is_some()).count()
        };
        assert_eq!((paused(1), paused(4)), (12, 3));
    }

    #[test]
    fn nobody_pauses_when_the_log_is_in_the_last_segment_but_one_ahead() {
        let pause = Some(Pause { every: 1, length: PIECE_PAUSE_MAX });
        let pacing = Pacing { pause, ..Pacing::at_once() };
        pacing.begun.store(6, Ordering::Relaxed);
        assert!(pacing.pause(SegmentId(9)).is_some());
        pacing.begun.store(7, Ordering::Relaxed);
        assert_eq!(pacing.pause(SegmentId(9)), None);
        assert_eq!(pacing.pause(SegmentId(8)), None, "nor when it has not even that");
    }
}
