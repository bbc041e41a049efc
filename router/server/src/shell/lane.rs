//! Lanes: a bounded queue for each ordered pair of shards, one batch a turn, and a wake only if the peer sleeps.
//!
//! [`Mesh`] is what the shards of a node share: written by two of them at a time, without a lock. [`Lanes`] is one shard's end
//! and lives on its core.
//!
//! No wake is lost: a shard that will sleep says so first and looks at its lanes then; one that has put a batch into a lane looks
//! afterwards whether its peer sleeps. With a full fence between the two steps of both, at least one sees the other's.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use whimbrel_core::ids::ShardId;
use whimbrel_core::io::Moving;
use whimbrel_core::lane::LaneItem;

use super::ring::Ring;
use super::sleep::Waker;

/// Items that one lane takes, those included that wait here for their turn.
const ITEMS_MAX: usize = 4096;

/// Batches that one lane takes. One that finds no place waits here and grows.
const BATCHES_MAX: usize = 128;

/// No ring yet.
const NO_RING: RawFd = -1;

/// A connection's state on its way to the shard that already has, or will have, its descriptor under the same number.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) id: u64,
    pub(super) moving: Box<Moving>,
}

/// What one turn of a shard has for another.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) items: Vec<LaneItem>,
    pub(super) arrivals: Vec<Arrival>,
}

struct Lane {
    batches: ArrayQueue<Batch>,
    /// Empty vectors on their way back to the sender.
    used: ArrayQueue<Vec<LaneItem>>,
    /// Items in `batches`.
    items: CachePadded<AtomicUsize>,
}

struct Peer {
    sleeping: AtomicBool,
    ring: AtomicI32,
    waker: Waker,
}

/// What the shards of a node share.
pub(super) struct Mesh {
    peers: Vec<CachePadded<Peer>>,
    /// By sender, then by receiver.
    lanes: Vec<Lane>,
}

impl Mesh {
    /// One shard for each waker.
    pub(super) fn new(wakers: Vec<Waker>) -> Mesh {
        let count = wakers.len();
        let peer =
            |waker| CachePadded::new(Peer { sleeping: AtomicBool::new(false), ring: AtomicI32::new(NO_RING), waker });
        let lane = |_| Lane {
            batches: ArrayQueue::new(BATCHES_MAX),
            used: ArrayQueue::new(4),
            items: CachePadded::new(AtomicUsize::new(0)),
        };
        Mesh { peers: wakers.into_iter().map(peer).collect(), lanes: (0..count * count).map(lane).collect() }
    }

    /// Number of shards.
    pub(super) fn shards(&self) -> usize {
        self.peers.len()
    }

    /// Wakes all shards, from any thread.
    pub(super) fn wake_all(&self) {
        for peer in &self.peers {
            peer.waker.wake();
        }
    }

    /// What wakes one.
    pub(super) fn waker(&self, shard: ShardId) -> &Waker {
        &self.peers[usize::from(shard.0)].waker
    }

    /// The ring that others reach a shard by.
    pub(super) fn set_ring(&self, shard: ShardId, ring: RawFd) {
        self.peers[usize::from(shard.0)].ring.store(ring, Ordering::Release);
    }

    /// The ring of a shard, once it has one.
    pub(super) fn ring(&self, shard: ShardId) -> Option<RawFd> {
        let ring = self.peers[usize::from(shard.0)].ring.load(Ordering::Acquire);
        (ring != NO_RING).then_some(ring)
    }

    fn lane(&self, from: usize, to: usize) -> &Lane {
        &self.lanes[from * self.peers.len() + to]
    }
}

/// One shard's end of the mesh.
pub(super) struct Lanes {
    mesh: Arc<Mesh>,
    own: usize,
    /// By receiver: what goes with the end of the turn.
    pending: Vec<Batch>,
    /// Wakes sent.
    pub(super) wakes: u64,
}

impl Lanes {
    pub(super) fn new(mesh: Arc<Mesh>, own: ShardId) -> Lanes {
        let pending = (0..mesh.shards()).map(|_| Batch::default()).collect();
        Lanes { mesh, own: usize::from(own.0), pending, wakes: 0 }
    }

    /// The ring of another shard.
    pub(super) fn ring(&self, to: ShardId) -> Option<RawFd> {
        self.mesh.ring(to)
    }

    /// Items that each lane still takes. Whether one takes some that took none before.
    pub(super) fn room(&self, room: &mut [usize]) -> bool {
        let mut again = false;
        for (to, room) in room.iter_mut().enumerate() {
            let taken = self.mesh.lane(self.own, to).items.load(Ordering::Relaxed) + self.pending[to].items.len();
            let had = std::mem::replace(room, ITEMS_MAX.saturating_sub(taken));
            again |= had == 0 && *room > 0;
        }
        again
    }

    /// An item of this turn.
    pub(super) fn push(&mut self, to: ShardId, item: LaneItem) {
        self.pending[usize::from(to.0)].items.push(item);
    }

    /// A connection of this turn.
    pub(super) fn push_arrival(&mut self, to: ShardId, arrival: Arrival) {
        self.pending[usize::from(to.0)].arrivals.push(arrival);
    }

    /// Puts what the turn has into the lanes and wakes those who sleep.
    pub(super) fn send(&mut self, ring: &mut Ring) {
        for to in 0..self.pending.len() {
            let batch = &mut self.pending[to];
            if batch.items.is_empty() && batch.arrivals.is_empty() {
                continue;
            }
            let lane = self.mesh.lane(self.own, to);
            let count = batch.items.len();
            lane.items.fetch_add(count, Ordering::Relaxed);
            match lane.batches.push(std::mem::take(batch)) {
                Ok(()) => batch.items = lane.used.pop().unwrap_or_default(),
                Err(refused) => {
                    lane.items.fetch_sub(count, Ordering::Relaxed);
                    *batch = refused;
                }
            }
            // Also after a refusal: the peer has much to do, and must not have gone to sleep over it.
            let peer = &self.mesh.peers[to];
            fence(Ordering::SeqCst);
            if peer.sleeping.load(Ordering::Relaxed) && peer.sleeping.swap(false, Ordering::Relaxed) {
                self.wakes += 1;
                match peer.ring.load(Ordering::Acquire) {
                    NO_RING => peer.waker.wake(),
                    fd => ring.wake(fd),
                }
            }
        }
    }

    /// Whether a batch found no place, or a lane had no room at the last look at `room`.
    pub(super) fn is_stuck(&self, room: &[usize]) -> bool {
        room.contains(&0) || self.pending.iter().any(|batch| !batch.items.is_empty() || !batch.arrivals.is_empty())
    }

    /// Wakes all shards by their eventfds, where a ring could not be told.
    pub(super) fn wake_all(&self) {
        self.mesh.wake_all();
    }

    /// The next batch from another shard.
    pub(super) fn pop(&self, from: ShardId) -> Option<Batch> {
        self.mesh.lane(usize::from(from.0), self.own).batches.pop()
    }

    /// A batch was handled: its items make room.
    pub(super) fn done(&self, from: ShardId, count: usize, used: Vec<LaneItem>) {
        let lane = self.mesh.lane(usize::from(from.0), self.own);
        lane.items.fetch_sub(count, Ordering::Relaxed);
        // One too many is freed.
        let _ = lane.used.push(used);
    }

    /// Announces a sleep: false if there is something in a lane, and it must not be slept.
    pub(super) fn fall_asleep(&self) -> bool {
        let own = &self.mesh.peers[self.own];
        own.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let empty = (0..self.mesh.shards()).all(|from| self.mesh.lane(from, self.own).batches.is_empty());
        if !empty {
            own.sleeping.store(false, Ordering::Relaxed);
        }
        empty
    }

    /// The sleep is over.
    pub(super) fn wake_up(&self) {
        self.mesh.peers[self.own].sleeping.store(false, Ordering::Relaxed);
    }
}
