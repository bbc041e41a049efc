//! What all parts of the simulated world stand on: time, chance, sockets, the story, the planted bug.

use whimbrel_core::io::Now;

use crate::plant::Fuse;
use crate::rng::Rng;
use crate::socket::{Socket, SocketIndex};
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
    pub(crate) sockets: Vec<Socket>,
    pub(crate) fuse: Fuse,
    pub(crate) trace: Trace,
    pub(crate) weather: Weather,
    /// No faults any more.
    pub(crate) healed: bool,
    pub(crate) stats: Stats,
}

/// What happened in a run, or in several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Inputs that shards were given.
    pub steps: u64,
    /// Those that carried received bytes or a lane's item.
    pub load_steps: u64,
    /// Messages that clients wanted stored.
    pub sent: u64,
    /// Those that were acknowledged.
    pub acknowledged: u64,
    /// Deliveries that reached a client, repeated ones after a reconnect too.
    pub delivered: u64,
    /// Chats that were made.
    pub chats: u64,
    /// Logins that were accepted.
    pub logins: u64,
    /// Crashes of the node.
    pub crashes: u64,
    /// Crashes that left part of a batch on a disk.
    pub torn: u64,
    /// Starts at which recovery cut something off.
    pub truncated: u64,
    /// Graceful stops.
    pub stops: u64,
    /// Log writes that failed.
    pub failed_writes: u64,
    /// Connections that moved to another shard.
    pub moves: u64,
    /// Connections that broke, most in the middle of something.
    pub breaks: u64,
    /// Connections of somebody who means ill.
    pub hostile: u64,
    /// Sends that were sent again although answered.
    pub probes: u64,
    /// Turns that began with a lane full.
    pub full_lanes: u64,
    /// Sends for which a socket had no room.
    pub slow_sends: u64,
}

impl Stats {
    /// Both together.
    pub fn add(&mut self, other: &Stats) {
        for ((_, mine), (_, theirs)) in self.fields_mut().into_iter().zip(other.fields()) {
            *mine += theirs;
        }
    }

    /// By name, in the order in which they are printed.
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        let mut copy = *self;
        copy.fields_mut().into_iter().map(|(name, value)| (name, *value)).collect()
    }

    fn fields_mut(&mut self) -> Vec<(&'static str, &mut u64)> {
        vec![
            ("steps", &mut self.steps),
            ("load_steps", &mut self.load_steps),
            ("sent", &mut self.sent),
            ("acknowledged", &mut self.acknowledged),
            ("delivered", &mut self.delivered),
            ("chats", &mut self.chats),
            ("logins", &mut self.logins),
            ("crashes", &mut self.crashes),
            ("torn", &mut self.torn),
            ("truncated", &mut self.truncated),
            ("stops", &mut self.stops),
            ("failed_writes", &mut self.failed_writes),
            ("moves", &mut self.moves),
            ("breaks", &mut self.breaks),
            ("hostile", &mut self.hostile),
            ("probes", &mut self.probes),
            ("full_lanes", &mut self.full_lanes),
            ("slow_sends", &mut self.slow_sends),
        ]
    }

    /// Share of the steps that carried received bytes or a lane's item.
    pub fn load_share(&self) -> f64 {
        self.load_steps as f64 / self.steps.max(1) as f64
    }
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
