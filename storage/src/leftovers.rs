//! Files that nobody needs any more and that could not be removed, or that a start found and did not wait for. What was delivered may stand in them, so whoever has a disk's files
//! made tries again: [`FileDisk::remove_leftovers`](crate::FileDisk::remove_leftovers).
//!
//! No file of the log that is in use is ever in the list: who makes one takes its name from it first.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits::LEFTOVERS_MAX;

/// Shared by all handles of the files of a shard.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    list: Mutex<BTreeSet<PathBuf>>,
    /// How many are in it, for a core that does not wait for the others.
    count: AtomicUsize,
}

impl Leftovers {
    /// This one is still to be removed. Where there are too many the next start finds it.
    pub(crate) fn note(&self, path: &Path) {
        let mut list = self.lock();
        if list.len() < LEFTOVERS_MAX {
            list.insert(path.to_owned());
        }
        self.counted(&list);
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.lock().iter().cloned().collect()
    }

    /// Takes a path out of the list if `remove` succeeds. `None` if it is not in it any more. Nobody makes a file of this name
    /// meanwhile.
    pub(crate) fn take(&self, path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Option<io::Result<()>> {
        let mut list = self.lock();
        if !list.contains(path) {
            return None;
        }
        let removed = remove(path);
        if removed.is_ok() {
            list.remove(path);
        }
        self.counted(&list);
        Some(removed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self, list: &BTreeSet<PathBuf>) {
        self.count.store(list.len(), Ordering::Relaxed);
    }
}
