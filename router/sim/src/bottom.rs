//! What all parts of the simulated world stand on: time, chance, sockets, the story, the planted bug.

use whimbrel_core::io::Now;

use crate::plant::Fuse;
use crate::rng::Rng;
use crate::rot::Rots;
use crate::socket::{Socket, SocketIndex};
use crate::stats::Stats;
use crate::trace::Trace;
use crate::weather::Weather;

/// The world's clock starts here: 2026-01-01.
const WALL_START_MS: i64 = 1_767_225_600_000;

/// See the head of the file.
pub(crate) struct Bottom {
    /// Microseconds since the run began.
    pub(crate) now_us: u64,
    /// What the wall clock is off by.
    pub(crate) wall_off_ms: i64,
    pub(crate) rng: Rng,
    pub(crate) rots: Rots,
    pub(crate) sockets: Vec<Socket>,
    pub(crate) fuse: Fuse,
    pub(crate) trace: Trace,
    pub(crate) weather: Weather,
    /// Deliveries that wait in inboxes, all shards together.
    pub(crate) waiting: u64,
    /// No disk has space for anything more, and what a shard gives back others take.
    pub(crate) full: bool,
    /// No faults any more.
    pub(crate) healed: bool,
    pub(crate) stats: Stats,
}

impl Bottom {
    /// What a shard reads off its clocks. The node's monotone clock does not start with the world.
    pub(crate) fn now(&self, booted_us: u64) -> Now {
        let wall_ms = WALL_START_MS + (self.now_us / 1000) as i64 + self.wall_off_ms;
        Now { mono_us: self.now_us - booted_us, wall_ms: wall_ms.max(0) as u64 }
    }

    /// What a client reads off its clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    pub(crate) fn socket(&mut self, index: SocketIndex) -> &mut Socket {
        &mut self.sockets[index]
    }

    /// Time passes.
    pub(crate) fn pass(&mut self, us: u64) {
        self.now_us += us;
        self.trace.at(self.now_us);
    }

    /// Of the bytes on their way when a connection breaks, so many arrive.
    pub(crate) fn arriving(&mut self, of: usize) -> usize {
        if self.healed || self.rng.per_mille(400) { of } else { self.rng.index(of + 1) }
    }
}
