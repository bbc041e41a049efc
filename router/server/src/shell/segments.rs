//! A shard's segment files: the one that is being written, and a thread that makes new ones and removes old ones. Files that could not be
//! removed are tried again. What else is done with them [`keeper`](super::keeper) and [`scrub`] do.

#![forbid(unsafe_code)]

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_core::Input;
use whimbrel_core::ids::ShardId;
use whimbrel_storage::{ColdWork, FileDisk, Position, Retired, SegmentId, SegmentIs, ZEROS_BYTES};

use super::keeper::{Keeper, Keeping};
use super::scrub::{self, Scrubbing};
use super::sleep::Waker;

/// One in so many failures in a row is logged.
pub(super) const LOGGED: u32 = 60;

/// How long the thread that makes segments sleeps at most after a piece of one. Written at once the zeros of a segment keep the disk
/// busy for 50 ms, in which no batch of the log gets there.
const PIECE_PAUSE_MAX: Duration = Duration::from_millis(16);

/// A segment is made within this part of the time that the log took for the last one: three quarters.
const MAKING: (u32, u32) = (3, 4);

/// And within this part of the time within which dead bytes have to be gone: one that is used again may have some, and none is
/// closed before the next is there.
const MAKING_OF_FORGETTING: u32 = 64;

/// A log that fills one within this time wants the next at once. Made in pieces it takes several times as much CPU, which such a
/// log has no share of to spare: at 50 MB a second it was a third of a core.
const HURRIED: Duration = Duration::from_secs(2);

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

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
struct Pacing {
    /// The newest segment that the log has begun to write.
    begun: Arc<AtomicU32>,
    /// After each piece, if it is not to be made at once.
    pause: Option<Duration>,
    /// For a whole segment at most.
    pauses_max: Duration,
    /// When one was asked for last.
    asked: Option<Instant>,
}

impl Pacing {
    /// One is asked for.
    fn asked(&mut self, size_bytes: u32) {
        let now = Instant::now();
        let lasted = self.asked.replace(now).map_or(Duration::ZERO, |asked| now.duration_since(asked));
        self.pause = pause(lasted, self.pauses_max, size_bytes);
    }

    /// After a piece of a segment.
    fn pause(&self, segment: SegmentId) -> Option<Duration> {
        // In the last but one that stands ahead of this sends are refused for want of it.
        self.pause.filter(|_| self.begun.load(Ordering::Relaxed) + 2 < segment.0)
    }
}

/// After each piece of a segment, if the one before it was asked for so long ago.
fn pause(lasted: Duration, pauses_max: Duration, size_bytes: u32) -> Option<Duration> {
    let (part, of) = MAKING;
    let pieces = size_bytes.div_ceil(ZEROS_BYTES as u32).max(1);
    (lasted >= HURRIED).then(|| ((lasted * part / of).min(pauses_max) / pieces).min(PIECE_PAUSE_MAX))
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
    ) -> io::Result<Segments> {
        let (making, jobs) = mpsc::channel();
        let (results, done) = mpsc::channel();
        let (worker, wake, tell) = (disk.clone(), waker.clone(), results.clone());
        let begun = Arc::new(AtomicU32::new(0));
        let serves = Arc::new(AtomicBool::new(false));
        let node_serves = Arc::clone(&serves);
        let pauses_max = forget_after / MAKING_OF_FORGETTING;
        let mut pacing = Pacing { begun: Arc::clone(&begun), pause: None, pauses_max, asked: None };
        thread::Builder::new().name(format!("segments-{shard}")).spawn(move || {
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
        let scrubbing = scrub::start(shard, disk.clone(), results.clone(), waker.clone())?;
        let (keeping, jobs) = mpsc::channel();
        let reserve_bytes = u64::from(size_bytes) / RESERVE_PART;
        let mut keeper = Keeper::new(disk.clone(), reserve_bytes, making.clone());
        thread::Builder::new().name(format!("keeper-{shard}")).spawn(move || {
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

fn make(disk: &FileDisk, job: Making, size_bytes: u32, pacing: &Pacing, failures: &mut u32) -> Option<Done> {
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
    let pause = || pacing.pause(segment);
    let made = match reuse {
        Some(Retired { id: old, mapping, used }) => {
            // Before its bytes change.
            drop(mapping);
            disk.recycle_segment(old, used, segment, size_bytes, pause)
        }
        None => match disk.create_segment(segment, size_bytes, pause) {
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

/// Files that nobody needs and that could not be removed: what was delivered may still stand in them.
struct Removals {
    disk: FileDisk,
    /// When they are tried again, while there are some.
    due: Option<Instant>,
    /// Those of which it was told that they are there.
    told: BTreeSet<PathBuf>,
    /// Jobs that wait for segments to be made: a checkpoint lets go of several at once, and to remove one takes up to 50 ms.
    waiting: VecDeque<Making>,
}

impl Removals {
    /// What a start found is removed from then on.
    fn new(disk: FileDisk, from: Instant) -> Removals {
        Removals { disk, due: Some(from), told: BTreeSet::new(), waiting: VecDeque::new() }
    }

    /// The next job, or `None` once the shard is gone. Segments are made first, unless there is `no_space`: then what is removed is what
    /// they are made of. Until there is a job what could not be removed is tried again, and before one too if it is time.
    fn next_job(&mut self, jobs: &Receiver<Making>, no_space: bool) -> Option<Making> {
        loop {
            let now = Instant::now();
            if self.disk.leftovers() == 0 {
                self.due = None;
            } else if no_space || *self.due.get_or_insert(now) <= now {
                self.again();
                self.due = Some(Instant::now() + RETRY);
            }
            if no_space && let Some(job) = self.waiting.pop_front() {
                return Some(job);
            }
            while let Ok(job) = jobs.try_recv() {
                if !no_space && matches!(job, Making::Prepare(..)) {
                    return Some(job);
                }
                self.waiting.push_back(job);
            }
            if let Some(job) = self.waiting.pop_front() {
                return Some(job);
            }
            let next = match self.due {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => jobs.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match next {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Tries each again. It is told once that one cannot be removed, and then when it was.
    fn again(&mut self) {
        for (path, removed) in self.disk.remove_leftovers() {
            match removed {
                Err(error) if !self.told.contains(&path) => {
                    tracing::warn!(
                        path = %path.display(), %error,
                        "cannot remove a file of the log that nobody needs; it is tried again every second. What was delivered may still \
                         stand in it: see that the directory can be written to (owner, lsattr, mount), or remove the file"
                    );
                    self.told.insert(path);
                }
                Err(_) => {}
                Ok(()) if self.told.remove(&path) => {
                    tracing::info!(path = %path.display(), "a file of the log that could not be removed is gone");
                }
                Ok(()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use whimbrel_storage::Disk;

    use super::*;

    #[test]
    fn the_file_of_a_segment_that_nobody_needs_any_more_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path(), 0).unwrap();
        let (id, size) = (SegmentId(1), 8192);
        let mapping = disk.create_segment(id, size, || None).unwrap();
        let waker = Waker::new().unwrap();
        let mut segments = Segments::new(ShardId(0), disk, size, Duration::MAX, true, waker).unwrap();
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
        assert_eq!(pause(HURRIED - Duration::from_millis(1), most, size), None);
        let paused = pause(Duration::from_secs(2), most, size).unwrap() * pieces;
        assert!(paused <= Duration::from_millis(1500) && paused > Duration::from_millis(1400), "{paused:?}");
        assert_eq!(pause(Duration::from_secs(3600), most, size), Some(PIECE_PAUSE_MAX));
        assert_eq!(pause(Duration::from_secs(3), most, 1), Some(PIECE_PAUSE_MAX), "one that is smaller than a piece");
    }

    #[test]
    fn where_bytes_have_to_be_gone_soon_a_segment_is_made_soon() {
        let most = Duration::from_secs(1) / MAKING_OF_FORGETTING;
        let paused = pause(Duration::from_secs(3600), most, 64 << 20).unwrap() * 256;
        assert!(paused <= most && paused > most / 2, "{paused:?}");
    }

    #[test]
    fn nobody_pauses_when_the_log_is_in_the_last_segment_but_one_ahead() {
        let begun = Arc::new(AtomicU32::new(6));
        let pacing =
            Pacing { begun: Arc::clone(&begun), pause: Some(PIECE_PAUSE_MAX), pauses_max: Duration::MAX, asked: None };
        assert_eq!(pacing.pause(SegmentId(9)), Some(PIECE_PAUSE_MAX));
        begun.store(7, Ordering::Relaxed);
        assert_eq!(pacing.pause(SegmentId(9)), None);
        assert_eq!(pacing.pause(SegmentId(8)), None, "nor when it has not even that");
    }

    /// A segment that cannot be removed, for a directory stands in its place, and where its file is meanwhile.
    fn irremovable(dir: &Path) -> (FileDisk, Retired, PathBuf) {
        let mut disk = FileDisk::open(dir, 0).unwrap();
        let (id, used) = (SegmentId(1), 8192);
        let mapping = disk.create(id, used).unwrap();
        let hidden = dir.join("hidden");
        fs::rename(disk.path(id), &hidden).unwrap();
        fs::create_dir(disk.path(id)).unwrap();
        (disk, Retired { id, mapping, used }, hidden)
    }

    #[test]
    fn what_could_not_be_removed_is_tried_again_between_jobs_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, retired, hidden) = irremovable(dir.path());
        let path = disk.path(retired.id);
        let pacing = Pacing { begun: Arc::default(), pause: None, pauses_max: Duration::MAX, asked: None };
        assert!(make(&disk, Making::Remove(retired), 8192, &pacing, &mut 0).is_none());
        assert_eq!(disk.leftovers(), 1);
        let (making, jobs) = mpsc::channel();
        let mut removals = Removals::new(disk.clone(), Instant::now());
        // It is tried before the next job, however many there are.
        making.send(Making::Leftovers).unwrap();
        assert!(matches!(removals.next_job(&jobs, false), Some(Making::Leftovers)));
        assert_eq!((removals.told.len(), disk.leftovers()), (1, 1));
        fs::remove_dir(&path).unwrap();
        fs::rename(&hidden, &path).unwrap();
        // And where there is none; the thread ends only with the shard.
        let thread = thread::spawn(move || removals.next_job(&jobs, false).is_none());
        let begun = Instant::now();
        while path.exists() || disk.leftovers() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "it is not tried again");
            thread::yield_now();
        }
        drop(making);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn no_segment_is_made_later_because_others_are_removed_unless_space_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path(), 0).unwrap();
        let order = |no_space| {
            let (making, jobs) = mpsc::channel();
            for id in (1..=3).map(SegmentId) {
                making.send(Making::Remove(Retired { id, mapping: Bytes::new(), used: 8192 })).unwrap();
            }
            making.send(Making::Prepare(SegmentId(9), None)).unwrap();
            drop(making);
            let mut removals = Removals::new(disk.clone(), Instant::now());
            let jobs = std::iter::from_fn(|| removals.next_job(&jobs, no_space));
            let name = |job| match job {
                Making::Prepare(id, _) | Making::Remove(Retired { id, .. }) => id.0,
                Making::Leftovers | Making::Close(_) => 0,
            };
            jobs.map(name).collect::<Vec<_>>()
        };
        assert_eq!(order(false), [9, 1, 2, 3]);
        assert_eq!(order(true), [1, 2, 3, 9]);
    }
}
