//! What the shards of a node have in common: the lanes between them, and connections on their way from one to another.

use std::collections::VecDeque;

use whimbrel_core::ids::ShardId;
use whimbrel_core::io::Moving;
use whimbrel_core::lane::{Ask, LaneItem, Request};

use crate::plant::{Fuse, Plant};
use crate::socket::SocketIndex;

/// What a lane takes at least once all faults have ended.
const HEALED_CAPACITY: usize = 64;

/// A payload so long names its message in its first half, which stays as it is.
const FLIPPED_MIN_BYTES: usize = 16;

/// What the shards of a node have in common.
pub(crate) struct Shared {
    pub(crate) lanes: Lanes,
    pub(crate) moving: Vec<InTransit>,
}

/// A connection between two shards.
pub(crate) struct InTransit {
    pub(crate) due_us: u64,
    pub(crate) to: ShardId,
    pub(crate) socket: SocketIndex,
    pub(crate) moving: Box<Moving>,
}

/// A queue for each ordered pair of shards.
pub(crate) struct Lanes {
    shards: usize,
    capacity: usize,
    queues: Vec<VecDeque<LaneItem>>,
}

impl Lanes {
    pub(crate) fn new(shards: u16, capacity: usize) -> Lanes {
        let shards = usize::from(shards);
        Lanes { shards, capacity, queues: (0..shards * shards).map(|_| VecDeque::new()).collect() }
    }

    /// Items that the lane still takes.
    pub(crate) fn room(&self, from: ShardId, to: ShardId) -> usize {
        self.capacity - self.len(from, to)
    }

    /// Items in the lane.
    pub(crate) fn len(&self, from: ShardId, to: ShardId) -> usize {
        self.queues[self.index(from, to)].len()
    }

    /// Puts an item into the lane. False if there is no room.
    pub(crate) fn put(&mut self, from: ShardId, to: ShardId, item: LaneItem, fuse: &mut Fuse) -> bool {
        let index = self.index(from, to);
        let queue = &mut self.queues[index];
        let room = queue.len() < self.capacity;
        if room {
            carry(queue, item, fuse);
        }
        room
    }

    /// The next item of the lane.
    pub(crate) fn take(&mut self, from: ShardId, to: ShardId) -> Option<LaneItem> {
        let index = self.index(from, to);
        self.queues[index].pop_front()
    }

    fn index(&self, from: ShardId, to: ShardId) -> usize {
        usize::from(from.0) * self.shards + usize::from(to.0)
    }

    /// No faults any more.
    pub(crate) fn heal(&mut self) {
        self.capacity = self.capacity.max(HEALED_CAPACITY);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }
}

/// Puts an item into a lane, or does what a planted fault makes of that.
fn carry(queue: &mut VecDeque<LaneItem>, mut item: LaneItem, fuse: &mut Fuse) {
    if fuse.fires(Plant::LaneDrops) {
        return;
    }
    if let LaneItem::Request(Request { ask: Ask::Send { payload, .. }, .. }) = &mut item
        && payload.len() >= FLIPPED_MIN_BYTES
        && fuse.fires(Plant::LaneFlips)
    {
        let mut bytes = payload.to_vec();
        bytes[payload.len() / 2] ^= 1;
        *payload = bytes.into();
    }
    if !queue.is_empty() && fuse.fires(Plant::LaneSwaps) {
        queue.insert(queue.len() - 1, item);
    } else {
        queue.push_back(item);
    }
}
