//! What enters a shard and what leaves it: two closed sets. The shell and the simulator both speak only these.
//!
//! One mutation, then all its effects, then the next input. A shell calls [`Shard::handle`](crate::Shard::handle) for each
//! input of a turn and closes the turn with [`Input::TurnEnd`]; only that one proposes, delivers and asks for the log write.

use bytes::Bytes;
use whimbrel_storage::{Checked, ColdDone, ColdWork, LogWrite, Retired, SegmentId, SegmentIs, WriteId};

use crate::ids::{ConnId, PartitionId, ShardId};
use crate::lane::LaneItem;
use crate::repair::Trouble;
use crate::session::Login;

/// The two clocks, read by the caller once a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds of a clock that never goes back. Deadlines are in it.
    pub mono_us: u64,
    /// Milliseconds since 1970. Only entries are stamped with it; it may jump.
    pub wall_ms: u64,
}

/// What a shard can be told.
#[derive(Debug)]
pub enum Input<'a> {
    /// A socket was accepted.
    Connected {
        /// Its name from now on.
        conn: ConnId,
    },
    /// Bytes arrived. They are borrowed for the call only.
    Received {
        /// From where.
        conn: ConnId,
        /// Any piece of the byte stream.
        bytes: &'a [u8],
    },
    /// Bytes of earlier [`Effect::Send`]s were taken by the socket.
    Written {
        /// Where.
        conn: ConnId,
        /// How many, frames' heads and payloads together.
        bytes: u32,
    },
    /// The socket is gone: closed by the peer, failed, or closed after [`Effect::Close`]. The slot may be given anew.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// After [`Effect::Detach`]: no more bytes will be received here and none are being sent.
    Detached {
        /// Which.
        conn: ConnId,
    },
    /// A connection that another shard moved here, with what it brings.
    Adopted {
        /// Its name here.
        conn: ConnId,
        /// From [`Effect::Move`].
        moving: Box<Moving>,
    },
    /// An item of the lane from another shard of this node, in that lane's order.
    Lane {
        /// The shard that sent it.
        from: ShardId,
        /// What it sent.
        item: LaneItem,
    },
    /// The write of [`Effect::WriteLog`] is on stable storage.
    LogWritten {
        /// Which.
        write: WriteId,
    },
    /// The write of [`Effect::WriteLog`] failed, or its flush did. The log is poisoned.
    LogFailed {
        /// Which.
        write: WriteId,
    },
    /// The segment of [`Effect::PrepareSegment`] is on disk, zero-filled, and mapped.
    SegmentReady {
        /// Which.
        segment: SegmentId,
        /// The whole of its read-only mapping; each clone of it holds the segment.
        mapping: Bytes,
    },
    /// The segment of [`Effect::PrepareSegment`] could not be made; most likely the disk is full.
    SegmentFailed {
        /// Which.
        segment: SegmentId,
    },
    /// The bytes of [`Effect::Checkpoint`] were taken, and more may follow.
    CheckpointTaken {
        /// Of which.
        number: u64,
    },
    /// The checkpoint is on stable storage and was read back.
    CheckpointWritten {
        /// Which.
        number: u64,
    },
    /// The checkpoint could not be written. Nothing of it counts.
    CheckpointFailed {
        /// Which.
        number: u64,
    },
    /// The segment of [`Effect::ReadIn`] is in memory, as far as the disk gives it.
    ReadIn {
        /// What was found in it.
        checked: Checked,
    },
    /// The segment of [`Effect::Scrub`] was read.
    Scrubbed {
        /// What was found in it.
        checked: Checked,
    },
    /// The work of [`Effect::Cold`] is done, and on stable storage.
    ColdDone(Box<ColdDone>),
    /// The work of [`Effect::Cold`] failed. Nothing of it counts.
    ColdFailed,
    /// The time of [`Effect::WakeAt`] has come.
    Timeout,
    /// Shut down: refuse what is new, tell the clients, flush, then [`Effect::Stopped`].
    Stop,
    /// All inputs of this turn have been handled.
    TurnEnd {
        /// More inputs wait already: the shard is busy, and another turn follows at once.
        more: bool,
    },
}

/// What a shard can want done.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame, or the head of one, on a connection, after all that was sent before.
    Send {
        /// Where.
        conn: ConnId,
        /// The bytes, a range of [`Effects::bytes`].
        head: std::ops::Range<usize>,
        /// Bytes that follow at once: a payload straight from the log.
        payload: Option<Bytes>,
    },
    /// Close a connection once all that was sent to it is written; answered by [`Input::Disconnected`].
    Close {
        /// Which.
        conn: ConnId,
    },
    /// Stop receiving on a connection that will move, and let what was sent be written; answered by [`Input::Detached`]
    /// (or [`Input::Disconnected`]).
    Detach {
        /// Which.
        conn: ConnId,
    },
    /// Give the connection's socket to another shard of this node, where it enters as [`Input::Adopted`]. The name here
    /// is free once this is emitted.
    Move {
        /// Which.
        conn: ConnId,
        /// To whom.
        to: ShardId,
        /// What goes along.
        moving: Box<Moving>,
    },
    /// Put an item into the lane to another shard of this node. There is room: [`Effects::lane_room`] said so.
    Lane {
        /// To whom.
        to: ShardId,
        /// What.
        item: LaneItem,
    },
    /// Write a batch at its place and flush it; answered by [`Input::LogWritten`] or [`Input::LogFailed`].
    WriteLog(LogWrite),
    /// Make the segment file in the background: preallocated, zero-filled, synced, mapped.
    PrepareSegment {
        /// Which.
        segment: SegmentId,
        /// Of the file of this one, if of any; its mapping is to be dropped first.
        reuse: Option<Retired>,
    },
    /// Remove the file of a segment that nobody needs, in the background; there is no answer.
    RemoveSegment(Retired),
    /// Add bytes to a checkpoint in the background, answered by [`Input::CheckpointTaken`]; with the last ones it is put in
    /// its place, answered by [`Input::CheckpointWritten`]. When anything fails: [`Input::CheckpointFailed`], once.
    Checkpoint {
        /// Of which.
        number: u64,
        /// What follows.
        bytes: Vec<u8>,
        /// The last bytes: checkpoints with a number below this one may go once it is in its place.
        last: Option<u64>,
    },
    /// Read a segment in, in the background, so that looking at it does not wait for the disk, and look whether it is as it was
    /// written; answered by [`Input::ReadIn`].
    ReadIn {
        /// Which, and what it has to be.
        is: SegmentIs,
        /// Its mapping.
        mapping: Bytes,
    },
    /// Carry it out in the background, with [`ColdWork::run`]; answered by [`Input::ColdDone`] or [`Input::ColdFailed`]. One at a
    /// time.
    Cold(ColdWork),
    /// Look whether a segment is as it was written on the disk, in the background and at leisure; answered by
    /// [`Input::Scrubbed`].
    Scrub {
        /// Which, and what it has to be.
        is: SegmentIs,
        /// Its mapping: while it is held nobody uses the file for something else.
        mapping: Bytes,
    },
    /// Tell whoever looks after the machine; there is no answer.
    Tell(Trouble),
    /// Call again with [`Input::Timeout`] at this time of the monotonic clock, if not earlier. The latest one counts.
    WakeAt {
        /// In microseconds.
        mono_us: u64,
    },
    /// After [`Input::Stop`]: nothing is left to write or to send.
    Stopped,
    /// End the process now: going on would break a promise.
    Fatal(Fatal),
}

/// Why a process ends itself. Each has its own exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// A log write or its flush failed: what is on the disk is not known any more until the next start reads it.
    LogPoisoned,
}

impl Fatal {
    /// The exit code of a process that ends for this reason.
    pub fn exit_code(self) -> i32 {
        match self {
            Fatal::LogPoisoned => 74,
        }
    }

    /// What to tell the operator.
    pub fn text(self) -> &'static str {
        match self {
            Fatal::LogPoisoned => {
                "a write or flush of the log failed; nothing more is acknowledged. Check the disk (dmesg), then start again: \
                 the start verifies the log"
            }
        }
    }
}

/// What a connection that moves takes along: the login that was verified and the bytes that were read after it.
#[derive(Debug)]
pub struct Moving {
    /// The verified `Hello`.
    pub login: Login,
    /// Bytes received after the `Hello`, not looked at yet.
    pub unread: Vec<u8>,
}

/// Where a shard puts its effects, and the bytes that they name. The caller clears it once it has carried them out.
#[derive(Debug, Default)]
pub struct Effects {
    /// In the order in which they are to be carried out.
    pub list: Vec<Effect>,
    /// Frames of [`Effect::Send`].
    pub bytes: Vec<u8>,
    /// Items that each lane still takes, by the number of the shard it leads to. The caller sets it before
    /// [`Input::TurnEnd`] at the latest; the shard counts it down.
    pub lane_room: Vec<usize>,
}

impl Effects {
    /// Forgets all effects and their bytes; keeps the room of the lanes and the memory.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes.clear();
        if self.bytes.capacity() > 2 * crate::limits::TURN_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }
}

/// How a shard is set up. Same for all shards of a node but for `shard`.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// This shard.
    pub shard: ShardId,
    /// Shards of this node.
    pub shards: u16,
    /// Partitions of the cluster. Partition p belongs to shard p % shards.
    pub partitions: u16,
    /// Ed25519 public key that verifies tokens.
    pub token_key: [u8; 32],
    /// Seeds hash tables and election timeouts; different for each shard and start.
    pub seed: u64,
    /// Bounds that a test or an operator may tighten.
    pub bounds: crate::limits::Bounds,
}

impl ShardConfig {
    /// The shard that holds a partition.
    pub fn shard_of(&self, partition: PartitionId) -> ShardId {
        shard_of(partition, self.shards)
    }

    /// The partition at a rank among those of this shard.
    pub(crate) fn partition_at(&self, rank: usize) -> PartitionId {
        PartitionId(self.shard.0 + rank as u16 * self.shards)
    }

    /// The rank of a partition among those of its shard.
    pub(crate) fn rank_of(&self, partition: PartitionId) -> usize {
        usize::from(partition.0 / self.shards)
    }
}

/// The shard that a partition belongs to on a node of so many shards.
pub fn shard_of(partition: PartitionId, shards: u16) -> ShardId {
    ShardId(partition.0 % shards)
}
