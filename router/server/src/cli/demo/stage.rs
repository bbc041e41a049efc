//! What the demo's devices do and see, told by their threads, and waited for by the one that directs them.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cli::demo::Patience;
use crate::cli::demo::ledger::{Ledger, MessageId, Person};

/// What the demo calls a chat.
pub(super) type ChatName = &'static str;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Stage {
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// Everything the devices have told.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) ledger: Ledger,
    /// When a message was handed to its connection.
    pub(super) sent_at: HashMap<MessageId, Instant>,
    /// From there to the acknowledgement, and to each device that got it.
    pub(super) acknowledged_after: Vec<Duration>,
    pub(super) delivered_after: Vec<Duration>,
    /// Acknowledgements that said the message was there already.
    pub(super) repeated: usize,
    /// Shard that a person is logged in at; `None` while not logged in.
    pub(super) shard: HashMap<Person, Option<u16>>,
    /// Who is not there to get anything.
    pub(super) away: HashSet<Person>,
    /// Chats that a person has learned of.
    pub(super) chats: HashMap<(Person, ChatName), u128>,
    /// Why it cannot go on.
    pub(super) failed: Option<String>,
}

impl Stage {
    /// Tells something.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Reads something.
    pub(super) fn look<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&self.lock())
    }

    /// Waits until something is so.
    pub(super) fn until(&self, patience: &Patience, what: &str, so: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
        let mut seen = self.lock();
        loop {
            if let Some(why) = &seen.failed {
                anyhow::bail!("{why}");
            }
            if so(&seen) {
                return Ok(());
            }
            patience.check(what)?;
            seen = self.changed.wait_timeout(seen, Patience::STEP).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
