//! What is removed of a shard's segments: by name at once, and its bytes after that, so that the log is written meanwhile. Files that could
//! not be removed are tried again.

#![forbid(unsafe_code)]

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use whimbrel_storage::{FileDisk, GIVE_BACK_BYTES, GIVE_BACK_PAUSE, GaveBack, ZEROS_BYTES};

use super::segments::{Making, Pause, RETRY};

/// What was removed gives back as much as is written while a segment is made, or as much as the pauses between its pieces let it.
pub(super) struct InPauses<'a> {
    disk: &'a FileDisk,
    /// Bytes of zeros that were written since a piece was given back.
    zeros: u64,
}

impl InPauses<'_> {
    pub(super) fn of(disk: &FileDisk) -> InPauses<'_> {
        InPauses { disk, zeros: 0 }
    }

    /// The disk is about to be left alone after some pieces of zeros, for so long.
    pub(super) fn at(&mut self, pause: Pause) -> Duration {
        self.zeros += u64::from(pause.every) * ZEROS_BYTES as u64;
        // Where the disk is left alone just now it is with the next pieces of zeros.
        if self.zeros >= GIVE_BACK_BYTES && self.disk.unlinked().give_back(GIVE_BACK_PAUSE) != GaveBack::Later {
            self.zeros = 0;
        }
        pause.length
    }
}

/// What is to be removed, and files that could not be: what was delivered may still stand in them.
pub(super) struct Removals {
    disk: FileDisk,
    /// When they are tried again, while there are some.
    due: Option<Instant>,
    /// Those of which it was told that they are there.
    told: BTreeSet<PathBuf>,
    /// Jobs that wait for segments to be made: a checkpoint lets go of several at once, and each takes a flush of its directory.
    waiting: VecDeque<Making>,
}

impl Removals {
    /// What a start found is removed from then on.
    pub(super) fn new(disk: FileDisk, from: Instant) -> Removals {
        Removals { disk, due: Some(from), told: BTreeSet::new(), waiting: VecDeque::new() }
    }

    /// The next job, or `None` once the shard is gone. Segments are made first, unless there is `no_space`: then what is removed is what
    /// they are made of. Until there is a job what could not be removed is tried again, and before one too if it is time; and what was
    /// removed gives its bytes back.
    pub(super) fn next_job(&mut self, jobs: &Receiver<Making>, no_space: bool) -> Option<Making> {
        loop {
            let now = Instant::now();
            if self.disk.leftovers() == 0 {
                self.due = None;
            } else if no_space || *self.due.get_or_insert(now) <= now {
                self.again();
                self.due = Some(Instant::now() + RETRY);
            }
            if no_space {
                self.disk.unlinked().give_back_all();
                if let Some(job) = self.waiting.pop_front() {
                    return Some(job);
                }
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
            let due = match self.disk.unlinked().give_back(GIVE_BACK_PAUSE) {
                GaveBack::All => self.due,
                GaveBack::Piece | GaveBack::Later => {
                    let later = Instant::now() + GIVE_BACK_PAUSE;
                    Some(self.due.map_or(later, |due| due.min(later)))
                }
            };
            let next = match due {
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
    use std::sync::mpsc;
    use std::thread;

    use bytes::Bytes;
    use whimbrel_storage::{Disk, Retired, SegmentId};

    use super::*;
    use crate::shell::segments::{Pacing, make};

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
        let pacing = Pacing::at_once();
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

    /// So many files are removed, of so many pieces each.
    fn remove(disk: &FileDisk, files: u32, pieces: u32) {
        for id in (1..=files).map(SegmentId) {
            drop(disk.create_segment(id, pieces * GIVE_BACK_BYTES as u32, || None).unwrap());
            disk.remove_segment(id).unwrap();
        }
    }

    #[test]
    fn what_was_removed_gives_its_bytes_back_where_there_is_no_job_and_at_once_where_space_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path(), 0).unwrap();
        let mut removals = Removals::new(disk.clone(), Instant::now());
        remove(&disk, 2, 3);
        assert_eq!(fs::read_dir(dir.path().join("shard-0")).unwrap().count(), 0);
        let (making, jobs) = mpsc::channel();
        // A job is not kept waiting by them.
        making.send(Making::Leftovers).unwrap();
        assert!(removals.next_job(&jobs, false).is_some());
        assert_eq!(disk.unlinked().count(), 2);
        let other = disk.clone();
        let later = thread::spawn(move || {
            let begun = Instant::now();
            while other.unlinked().count() > 1 {
                assert!(begun.elapsed() < Duration::from_secs(30), "it keeps its bytes");
                thread::yield_now();
            }
            making.send(Making::Leftovers).unwrap();
            making
        });
        assert!(removals.next_job(&jobs, false).is_some());
        let making = later.join().unwrap();
        making.send(Making::Leftovers).unwrap();
        assert!(removals.next_job(&jobs, true).is_some());
        assert_eq!(disk.unlinked().count(), 0);
    }

    #[test]
    fn while_a_segment_is_made_as_much_is_given_back_as_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path(), 0).unwrap();
        remove(&disk, 1, 1);
        let pause = Some(Pause { every: 1, length: Duration::from_micros(1) });
        let pacing = Pacing { pause, ..Pacing::at_once() };
        let prepare = Making::Prepare(SegmentId(7), None);
        let made = make(&disk, prepare, GIVE_BACK_BYTES as u32, &pacing, &mut 0);
        assert!(matches!(made, Some(whimbrel_core::Input::SegmentReady { .. })));
        assert_eq!(disk.unlinked().count(), 0);
    }
}
