//! What the node's main thread and its shards tell each other, and the clock that they share.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use whimbrel_core::ids::ShardId;
use whimbrel_core::{Now, OpenError};

/// What the main thread hears.
#[derive(Debug)]
pub(crate) enum Told {
    /// The shard's log was read.
    Opened(ShardId),
    /// The shard's log does not open, for it is damaged: none of its partitions serves.
    Shut(ShardId, OpenError),
    /// The shard can serve.
    Ready(ShardId),
    /// The shard accepts connections.
    Listening(ShardId),
    /// The shard has nothing left to write or to send.
    Stopped(ShardId),
    /// The shard's thread has ended, as it should or not.
    Ended(ShardId, anyhow::Result<()>),
    /// A signal asks the process to end.
    Signal,
}

/// Marks that the main thread sets. A shard looks at them at the start of each turn, and is woken for it.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) accept: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) end: AtomicBool,
}

/// A shard's end.
#[derive(Clone, Debug)]
pub(super) struct Control {
    marks: Arc<Marks>,
    teller: Sender<Told>,
}

impl Control {
    pub(super) fn new(marks: Arc<Marks>, teller: Sender<Told>) -> Control {
        Control { marks, teller }
    }

    /// All shards can serve.
    #[inline]
    pub(super) fn may_accept(&self) -> bool {
        self.marks.accept.load(Ordering::Acquire)
    }

    /// The node is to stop.
    #[inline]
    pub(super) fn must_stop(&self) -> bool {
        self.marks.stop.load(Ordering::Acquire)
    }

    /// All shards have stopped.
    pub(super) fn must_end(&self) -> bool {
        self.marks.end.load(Ordering::Acquire)
    }

    pub(super) fn tell(&self, told: Told) {
        // Nobody listens any more when the process ends.
        let _ = self.teller.send(told);
    }
}

/// Time since the start of the node, and the time of day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    pub(super) fn start() -> Clock {
        Clock { started: Instant::now() }
    }

    /// Both clocks, read once a turn.
    #[inline]
    pub(super) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_us: self.started.elapsed().as_micros() as u64, wall_ms: wall.as_millis() as u64 }
    }
}
