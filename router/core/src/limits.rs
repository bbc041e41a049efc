//! Every bound of a shard, with its reason. What a test or an operator may tighten is in [`Bounds`].

use whimbrel_wire::limits as wire;

/// Answers kept for resent messages, per device and chat. A client has at most this many sends unanswered in one chat.
pub const ANSWERS_KEPT: usize = 64;

/// Unanswered requests of one session. More are refused: the answers they will need must fit the bound of its queue.
pub const SENDS_IN_FLIGHT_MAX: u32 = 64;

/// Fan-out records of one chat and partition on their way, not confirmed.
pub const OUTBOX_WINDOW: usize = 256;

/// Payloads up to this many bytes are copied behind their frame's head; longer ones go out as a second range straight
/// from the log. Below it a copy (tens of ns) is cheaper than one more range in a sendmsg.
pub const COPY_PAYLOAD_MAX_BYTES: usize = 1024;

/// Microseconds in a millisecond.
pub const MS: u64 = 1000;

/// Places that one turn takes from segments that were read in for outboxes, before what one chat's window lets it take besides: after a start
/// thousands of chats may wait for one segment.
pub const READY_PLACES_MAX: usize = 128;

/// Segments that are read in at a time for those who wait. Fewer than are kept in memory in any case
/// ([`warm_least`](whimbrel_storage::LogOptions::warm_least)), so that one stays there until all have looked who waited for it.
pub const READ_INS_MAX: usize = 2;

/// A message of a chat is refused while this many of the chat's messages wait for some partition of members.
pub const OUTBOX_MAX: usize = 4096;

/// How long an acknowledgement may wait for the others it is committed with. P5 allows one second from its receipt to
/// its commit; a flush that takes as long as this again still keeps it.
pub const ACK_GATHER_US: u64 = 250 * MS;

/// How long confirmations of fan-out records wait for the others they are committed with. They only bound what a restart
/// sends again.
pub const CONFIRM_GATHER_US: u64 = 1000 * MS;

/// A partition that made no progress with a chat's fan-out for so long is asked whether it would take the next place: it had no room, did
/// not serve yet, or its answer was lost. Longer than a flush takes on a healthy disk.
pub const OUTBOX_RETRY_US: u64 = 200 * MS;

/// How often that time doubles for a partition that does not answer, as one in repair or without room, or one that still writes what it was
/// sent: then it is asked every 1.6 s, and when something new comes for it, and so long after it has room again what waits may
/// take to come.
pub const OUTBOX_RETRY_DOUBLINGS: u8 = 3;

/// Partitions that are asked in one turn because they are due: after a start those of all chats may be at once.
pub const QUESTIONS_MAX: usize = 128;

/// Of so many it is seen in one turn whether they are to be asked.
pub const WATCHED_LOOKS_MAX: usize = 8 * QUESTIONS_MAX;

/// How long a busy shard lets commands gather although no write is in flight. With 1,000 messages in flight in a closed loop
/// each waits some 20 ms for its turn anyway, and the writes' share of a message's cost falls from a fifth to a twentieth.
pub const BUSY_GATHER_US: u64 = MS;

/// How long commands gather after another shard was heard of, if they come at a pace of [`LANE_PACE`]: what shards tell each
/// other comes in batches, and a write that is begun for the first of them misses the rest, so that two half-busy shards
/// would write more often than one busy one.
pub const LANE_GATHER_US: u64 = MS;

/// Commands in a millisecond from which a shard among others lets them gather. So many share a write that is put off, which
/// is then a tenth of what they cost; below it nothing waits.
pub const LANE_PACE: u32 = 16;

/// How long a shard among others, at that pace, may let inputs gather before it wakes for them.
pub const LANE_REST_US: u64 = 500;

/// How long inputs gather at most while a write of the log is in flight: shorter than one takes on most disks. At half load, where
/// a message comes each 50 µs, a shard that woke for each of them was busy for .89 of the time instead of .75, and kept the
/// core from the worker that writes.
pub const WRITE_REST_US: u64 = 60;

/// A shard that has written nothing for so long writes a batch without records behind its last one ([`whimbrel_storage::Log::write_empty`]),
/// so that what rots in that one is not taken for a torn write. Much shorter than disks take to rot, and so long that it is one write of a
/// page in each rest: a shard with something to do ten times a second writes none.
pub const EMPTY_BATCH_US: u64 = 100 * MS;

/// Frames that one turn sends before it leaves the other connections to the next: after a restart all devices come at once,
/// and each may be given its credit.
pub const TURN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Deliveries wait when so much is queued on a connection: a socket's own buffer holds more, and of many readers that are
/// gone and not yet known to be each keeps as much memory.
pub const DELIVERIES_QUEUED_BYTES: u32 = 128 * 1024;

/// What was sent on a connection and not taken by its socket waits for no longer: as long as a phone may be without a network, and
/// not so long that what is dead beside it in the log outlives [`Bounds::forget_after_us`]. A slice of the log that waits keeps
/// its whole segment from being used again, and a client that reads nothing can say for ever that it is there.
pub const QUEUE_AGE_MAX_US: u64 = 30_000 * MS;

/// So many looks at what waits have to find it there still before it is too old. With more of them it is known better how old it
/// is, and each costs 4 bytes a connection.
pub const QUEUE_AGE_LOOKS: usize = 3;

/// What an answer needs beside names of members.
pub const ANSWER_MAX_BYTES: usize = 1024;

/// A device may have this part of [`Bounds::inbox_pointers`] waiting when more than half of them are in use.
pub const INBOX_SHARE: usize = 64;

/// Pieces of a checkpoint that were given out and not taken: while there are so many, no more of it is made.
pub const IMAGE_PIECES_MAX: u32 = 4;

/// A checkpoint is not begun for the log's growth before that is so many times what the last one took: a large state is not
/// written over and over.
pub const CHECKPOINT_IMAGES: u64 = 8;

/// One that could not begin is tried again after this time.
pub const CHECKPOINT_SOON_US: u64 = 10 * MS;

/// A checkpoint that failed is tried again after this time.
pub const CHECKPOINT_RETRY_US: u64 = 1000 * MS;

/// Of the time within which dead bytes have to be gone: so often the segment that is written is closed and a checkpoint made. A
/// byte dies, its segment is closed with the next checkpoint ([`EMPTY_AGE_STEPS`] before what waits in it is noted), the one
/// after that points to copies of what waits, and with the one after that the segment goes: five steps. The others are for the
/// work itself.
pub const FORGET_STEPS: u64 = 8;

/// What still waits in a segment is moved when so many of these steps have passed since it was closed: until then most of it
/// has reached its devices, and need not be moved.
pub const EMPTY_AGE_STEPS: u64 = 2;

/// Segments that are emptied at once, and places that are moved out of them: a bound of the memory that lists of them take,
/// some 50 MiB.
pub const EMPTY_SEGMENTS_MAX: usize = 64;

/// See [`EMPTY_SEGMENTS_MAX`].
pub const EMPTY_PLACES_MAX: usize = 2 << 20;

/// So long after a shard said that it has no space the others take nothing new either: a few times as long as it takes to say
/// so again, which it does with Raft's tick.
pub const NO_SPACE_US: u64 = 500 * MS;

/// Where there is no segment to be scrubbed it is looked again after this time, if not earlier.
pub const SCRUB_LOOK_US: u64 = 60_000 * MS;

/// Raft's tick.
pub const RAFT_TICK_US: u64 = 100 * MS;

/// Log room kept back from sends, so that acknowledgements and fan-out of what was accepted still find room.
pub const STAGING_RESERVE_BYTES: usize = 512 * 1024;

/// Bounds that may be set.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections of one shard.
    pub connections: u32,
    /// Deliveries a device may have unacknowledged.
    pub credit_messages: u32,
    /// Payload bytes a device may have unacknowledged. One delivery always goes, however large.
    pub credit_bytes: u32,
    /// Bytes queued on a connection above which it is closed as too slow. It is served from the log when it returns.
    pub queue_max_bytes: u32,
    /// A connection has to log in within this time.
    pub login_us: u64,
    /// A connection from which nothing came for so long is closed. Clients ping at a third of it.
    pub keepalive_us: u64,
    /// Bytes of commands gathered for the log, all partitions together; above it sends are refused.
    pub gather_max_bytes: usize,
    /// Messages waiting in the inboxes of one shard; above it fan-out waits in the outboxes, and these refuse when full.
    pub inbox_pointers: usize,
    /// Items that wait for a full lane; above it all but answers to clients are dropped (they are asked or sent again) and
    /// counted.
    pub lane_backlog: usize,
    /// The least retry time that a refusal for the moment names. Where the node refuses much it names longer ones.
    pub retry_after_ms: u32,
    /// Within this time after the last device's acknowledgement was committed the bytes of a message are gone.
    pub forget_after_us: u64,
    /// Places of an inbox that go into an image at a time; 2,048 are 24 KiB.
    pub image_places: u64,
    /// Objects, or pieces of them, that one turn makes images of at most.
    pub image_objects: u32,
    /// Bytes of an image that one turn makes, about: a small part of the millisecond that a turn may have (`bench/scenarios/stall.toml`).
    pub image_slice_bytes: usize,
    /// Bytes of an image that are written at once.
    pub image_piece_bytes: usize,
    /// So many places of what a checkpoint noted are sorted on the core; of more that takes longer than a turn may.
    pub sorted_places: usize,
    /// A checkpoint is begun when the log has grown by so many segments since the last one, so that what is dead in it is let go
    /// long before its time is up, and a start reads little.
    pub checkpoint_segments: u64,
    /// Within this time every segment that nobody writes any more is read once, to see whether it is as it was written.
    pub scrub_interval_us: u64,
}

impl Bounds {
    /// No older becomes what waits on a connection; see [`QUEUE_AGE_MAX_US`].
    pub fn queue_age_us(&self) -> u64 {
        QUEUE_AGE_MAX_US.min(self.forget_after_us / FORGET_STEPS)
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            connections: 19_000,
            credit_messages: 256,
            credit_bytes: 256 * 1024,
            queue_max_bytes: 1024 * 1024,
            login_us: 10_000 * MS,
            keepalive_us: 90_000 * MS,
            gather_max_bytes: 4 * 1024 * 1024,
            inbox_pointers: 8_000_000,
            lane_backlog: 16_384,
            retry_after_ms: 200,
            forget_after_us: 600_000 * MS,
            image_places: 2048,
            image_objects: 256,
            image_slice_bytes: 32 * 1024,
            image_piece_bytes: 256 * 1024,
            sorted_places: 2048,
            checkpoint_segments: 4,
            scrub_interval_us: 86_400_000 * MS,
        }
    }
}

const _: () = {
    // Facts of chats fill a queue to three quarters at most, deliveries less: all other answers still find room.
    assert!(1024 * 1024 / 4 * 3 + SENDS_IN_FLIGHT_MAX as usize * ANSWER_MAX_BYTES < 1024 * 1024);
    assert!(DELIVERIES_QUEUED_BYTES as usize + wire::FRAME_MAX_BYTES < 1024 * 1024 / 4 * 3);
    // What a client may have unanswered in one chat is found again after a reconnect.
    assert!(SENDS_IN_FLIGHT_MAX as usize <= ANSWERS_KEPT);
    // Commands in hand and their batch find room in the staging ring.
    assert!(4 * 1024 * 1024 + STAGING_RESERVE_BYTES < 8 * 1024 * 1024);
    // The largest frame fits the gather bound many times.
    assert!(wire::FRAME_MAX_BYTES * 16 <= 4 * 1024 * 1024);
    assert!(ACK_GATHER_US * 2 <= 1000 * MS);
    assert!(EMPTY_AGE_STEPS + 3 < FORGET_STEPS);
    assert!(NO_SPACE_US >= 3 * RAFT_TICK_US);
    // With the default time to forget a connection has all of it, and one that is silent as well is not kept for longer.
    assert!(QUEUE_AGE_MAX_US <= 600_000 * MS / FORGET_STEPS && QUEUE_AGE_MAX_US < 90_000 * MS);
};
