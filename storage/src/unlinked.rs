//! Files that have no name any more give their bytes back to the disk one piece after the other.
//!
//! A file system that is mounted with `discard` tells the disk of all that a removed file had in one request, and until the disk is through
//! with it, it does nothing else: `whimbrel log bench` prints for how long a flush waits for that. A piece is through in the time of a few
//! flushes.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Of so many bytes is the disk told at once.
pub const GIVE_BACK_BYTES: u64 = 4 << 20;

/// How long the disk is left alone after each piece, where there is nothing else to do.
pub const GIVE_BACK_PAUSE: Duration = Duration::from_millis(25);

/// So many files at most still have bytes: where they come faster the oldest gives back all at once.
const FILES_MAX: usize = 32;

/// Files without names that still have bytes, of all shards of a node: whoever of them wants space has it at once. A clone is another handle.
#[derive(Clone, Debug, Default)]
pub struct Unlinked {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: VecDeque<File>,
    /// Before then the disk is left alone.
    rests_until: Option<Instant>,
    /// How often something was given back.
    given: u64,
}

/// What became of a piece that was to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveBack {
    /// It was, and there are more.
    Piece,
    /// Not yet: the disk is left alone, or another thread is at it.
    Later,
    /// There is nothing more.
    All,
}

impl Unlinked {
    /// One that nobody maps, or looks at in any other way.
    pub fn push(&self, file: File) {
        let mut state = self.lock();
        let oldest = if state.files.len() == FILES_MAX { state.files.pop_front() } else { None };
        state.given += u64::from(oldest.is_some());
        state.files.push_back(file);
        drop(state);
        drop(oldest);
    }

    /// Gives back the next piece, from the end of a file, and waits until the file system has noted it; after that the disk is left alone for
    /// as long as `pause` says, whoever asks.
    pub fn give_back(&self, pause: Duration) -> GaveBack {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return GaveBack::Later,
        };
        if state.files.is_empty() {
            return GaveBack::All;
        }
        if state.rests_until.is_some_and(|until| Instant::now() < until) {
            return GaveBack::Later;
        }
        // Whoever wants all of it meanwhile waits for this piece.
        if state.files.front().is_some_and(|file| !matches!(cut(file), Ok(true))) {
            // It has no more, or what cannot be cut off goes with the file.
            state.files.pop_front();
        }
        state.given += 1;
        state.rests_until = Some(Instant::now() + pause);
        if state.files.is_empty() { GaveBack::All } else { GaveBack::Piece }
    }

    /// Gives back all at once, for space is wanted. False if there was nothing.
    pub fn give_back_all(&self) -> bool {
        let mut state = self.lock();
        let any = !state.files.is_empty();
        state.given += u64::from(any);
        state.files.clear();
        any
    }

    /// The same if it is space that was wanted.
    pub fn give_back_for(&self, error: &io::Error) -> bool {
        is_for_space(error) && self.give_back_all()
    }

    /// Does what wants space, and once more if it finds none and there was some that could be given back, by whomever: of two who find none
    /// at the same time one gives back what both need.
    pub(crate) fn with_space<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let before = self.lock().given;
        work().or_else(|error| {
            self.give_back_for(&error);
            if is_for_space(&error) && self.lock().given != before { work() } else { Err(error) }
        })
    }

    /// How many files have bytes.
    pub fn count(&self) -> usize {
        self.lock().files.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_for_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Cuts a piece off; false if there is no more.
fn cut(file: &File) -> io::Result<bool> {
    let found = file.metadata()?;
    if found.nlink() > 0 {
        // It has another name, by which somebody keeps it.
        return Ok(false);
    }
    let rest = found.len().saturating_sub(GIVE_BACK_BYTES);
    file.set_len(rest)?;
    // Noted together with others it would be told together with them.
    file.sync_data()?;
    Ok(rest > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_go_one_piece_after_the_other() {
        let (unlinked, file) = (Unlinked::default(), tempfile::tempfile().unwrap());
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 * GIVE_BACK_BYTES + 4096).unwrap();
        unlinked.push(file.try_clone().unwrap());
        let kept = || file.metadata().unwrap().blocks() * 512;
        for rest in [GIVE_BACK_BYTES + 4096, 4096] {
            assert_eq!(unlinked.give_back(Duration::ZERO), GaveBack::Piece);
            assert!((rest..rest + GIVE_BACK_BYTES / 2).contains(&kept()), "{} for {rest}", kept());
        }
        assert_eq!(unlinked.give_back(Duration::ZERO), GaveBack::All);
        assert_eq!(kept(), 0);
        assert_eq!(unlinked.give_back(Duration::ZERO), GaveBack::All);
        assert!(!unlinked.give_back_all(), "there is nothing more");
    }

    #[test]
    fn after_a_piece_the_disk_is_left_alone_whoever_asks() {
        let (unlinked, file) = (Unlinked::default(), tempfile::tempfile().unwrap());
        file.set_len(3 * GIVE_BACK_BYTES).unwrap();
        unlinked.push(file.try_clone().unwrap());
        assert_eq!(unlinked.give_back(Duration::from_secs(3600)), GaveBack::Piece);
        assert_eq!(unlinked.clone().give_back(Duration::ZERO), GaveBack::Later);
        assert_eq!(file.metadata().unwrap().len(), 2 * GIVE_BACK_BYTES);
        assert!(unlinked.give_back_for(&io::ErrorKind::StorageFull.into()), "but who wants space has it");
        assert_eq!(unlinked.give_back(Duration::ZERO), GaveBack::All);
    }

    #[test]
    fn who_finds_no_space_while_another_gives_it_back_tries_again() {
        let unlinked = Unlinked::default();
        unlinked.push(tempfile::tempfile().unwrap());
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let mut tries = 0;
        let made = unlinked.with_space(|| {
            tries += 1;
            // The other one, in the meantime.
            if tries == 1 && unlinked.give_back_all() { Err(full()) } else { Ok(tries) }
        });
        assert_eq!(made.unwrap(), 2);
        let mut tries = 0;
        let made = unlinked.with_space(|| {
            tries += 1;
            Err::<(), _>(full())
        });
        assert!(made.is_err() && tries == 1, "there was nothing");
        unlinked.push(tempfile::tempfile().unwrap());
        let mut tries = 0;
        let made = unlinked.with_space(|| {
            tries += 1;
            unlinked.give_back_all();
            Err::<(), _>(io::Error::from(rustix::io::Errno::IO))
        });
        assert!(made.is_err() && tries == 1, "it is not space that is missing");
    }

    #[test]
    fn one_that_has_another_name_keeps_its_bytes_and_one_that_cannot_be_cut_gives_all_back() {
        let unlinked = Unlinked::default();
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(2 * GIVE_BACK_BYTES).unwrap();
        unlinked.push(named.reopen().unwrap());
        assert_eq!(unlinked.give_back(Duration::ZERO), GaveBack::All);
        assert_eq!(named.as_file().metadata().unwrap().len(), 2 * GIVE_BACK_BYTES);
        // Not open for writing.
        unlinked.push(File::open(named.path()).unwrap());
        drop(named);
        assert_eq!((unlinked.give_back(Duration::ZERO), unlinked.count()), (GaveBack::All, 0));
    }

    #[test]
    fn where_files_come_faster_than_they_give_back_the_oldest_gives_back_all() {
        let unlinked = Unlinked::default();
        for _ in 0..FILES_MAX + 3 {
            unlinked.push(tempfile::tempfile().unwrap());
        }
        assert_eq!(unlinked.count(), FILES_MAX);
        assert!(unlinked.clone().give_back_all() && unlinked.count() == 0);
    }
}
