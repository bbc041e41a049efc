//! What a shard counts. Plain numbers; whoever reads them copies them between turns.

use whimbrel_wire::Code;

/// Counts since the start of the shard.
#[derive(Clone, Copy, Debug)]
pub struct Counters {
    /// Refusals by reason, in the order of [`Code::ALL`].
    pub refused: [u64; Code::ALL.len()],
    /// Messages stored, first time.
    pub stored: u64,
    /// Sends that were stored before.
    pub repeated: u64,
    /// `Deliver` frames sent.
    pub delivered: u64,
    /// Deliveries acknowledged and committed.
    pub acknowledged: u64,
    /// Logins.
    pub logins: u64,
    /// Hellos whose floor was above the inbox's head: this node has lost what the device had.
    pub inbox_lost: u64,
    /// Items dropped since a lane's backlog was full.
    pub lane_dropped: u64,
    /// Answers whose connection was gone.
    pub answers_unclaimed: u64,
    /// Raft entries applied.
    pub entries: u64,
    /// Commands applied.
    pub commands: u64,
    /// Log writes asked for.
    pub writes: u64,
    /// Times that a partition said from which place on it is to be sent a chat's messages again.
    pub resent: u64,
    /// Times that a partition was asked whether it would take a chat's next place, for it had not confirmed what it was sent.
    pub asked: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Bytes of them.
    pub checkpoint_bytes: u64,
    /// Checkpoints that could not be written.
    pub checkpoints_failed: u64,
    /// Places that wait and were copied to cold segments.
    pub moved: u64,
    /// Bytes of their records.
    pub moved_bytes: u64,
    /// Bytes by which these were filled up to whole pages.
    pub moved_padding: u64,
    /// Places that were not copied, for they are not as they were written.
    pub moves_rotten: u64,
    /// Copying or erasing that failed, and was tried again.
    pub moves_failed: u64,
    /// Bytes of cold segments that were written to overwrite what is dead.
    pub erased_bytes: u64,
    /// Bytes of segments that were overwritten with zeros to be used again.
    pub zeroed_bytes: u64,
    /// Segments that were scrubbed.
    pub scrubbed: u64,
    /// Bytes of them.
    pub scrubbed_bytes: u64,
    /// Pieces of the log that were found not to be what was written, by whatever read them.
    pub rot_found: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            refused: [0; Code::ALL.len()],
            stored: 0,
            repeated: 0,
            delivered: 0,
            acknowledged: 0,
            logins: 0,
            inbox_lost: 0,
            lane_dropped: 0,
            answers_unclaimed: 0,
            entries: 0,
            commands: 0,
            writes: 0,
            resent: 0,
            asked: 0,
            checkpoints: 0,
            checkpoint_bytes: 0,
            checkpoints_failed: 0,
            moved: 0,
            moved_bytes: 0,
            moved_padding: 0,
            moves_rotten: 0,
            moves_failed: 0,
            erased_bytes: 0,
            zeroed_bytes: 0,
            scrubbed: 0,
            scrubbed_bytes: 0,
            rot_found: 0,
        }
    }
}

impl Counters {
    pub(crate) fn refuse(&mut self, code: Code) {
        self.refused[code.index()] += 1;
    }

    /// Refusals for one reason.
    pub fn refused_for(&self, code: Code) -> u64 {
        self.refused[code.index()]
    }
}
