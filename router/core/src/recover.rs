//! What a start finds: the partitions as the newest checkpoint has them, and the entries of the log behind it, which are
//! applied as they are read, batch by batch: nobody is served before all of them are, and what they say is in the cache then.

use ahash::RandomState;
use bytes::Bytes;
use raft::prelude::HardState;
use whimbrel_storage::{Disk, Location, Log, LogOptions, Loss, RecordHeader, RecordKind, Replay, Rot, Rotten};
use whimbrel_wire::command::Verifier;

use crate::ids::PartitionId;
use crate::image::{Images, Restored};
use crate::io::{Effects, ShardConfig};
use crate::partition::{Inbox, PartitionState};
use crate::repair::Why;
use crate::replicate::SELF;
use crate::shard::{OpenError, Shard};
use crate::store::LogStore;

/// A partition as the newest checkpoint has it, or an empty one.
pub(crate) struct Found {
    pub(crate) state: PartitionState,
    pub(crate) wall_ms: u64,
    pub(crate) progress: Progress,
}

/// How far a partition's log is read.
pub(crate) struct Progress {
    hard_state: HardState,
    /// Index of the last entry that is in the checkpoint.
    restored: u64,
    /// Index and term of the last entry that is applied.
    applied: (u64, u64),
    /// The number of the last record that continued its log, or is in the checkpoint, among all that were given.
    last_given: u64,
    /// Entries are missing: the last before the hole, the first behind it, and the number of that record.
    hole: Option<(u64, u64, u64)>,
}

impl Progress {
    fn new(applied: (u64, u64), hard_state: HardState) -> Progress {
        Progress { hard_state, restored: applied.0, applied, last_given: 0, hole: None }
    }
}

/// What of a partition is lost, and by which damage, where that is known.
type Lost = Option<(Why, Option<Rot>)>;

/// Reads the newest checkpoint; the partitions by their rank. The log behind it is to be replayed.
pub(crate) fn begin(
    config: &ShardConfig,
    held: usize,
    options: LogOptions,
    disk: &mut dyn Disk,
    hash: &dyn Fn(u64) -> RandomState,
) -> Result<(Log, Replay, Vec<Found>), OpenError> {
    let (mut images, mut all_taken) = (Images::default(), true);
    let (mut log, replay) =
        Log::begin(options, disk, &mut |piece| all_taken = all_taken && images.take(piece).is_some())?;
    let found = restore(config, held, images, hash).filter(|_| all_taken).ok_or(OpenError::BadCheckpoint)?;
    let last = log.last_segment();
    for place in found.iter().flat_map(|it| it.state.places()) {
        if place.segment > last && !place.segment.is_cold() {
            return Err(OpenError::BadCheckpoint);
        }
        log.hold(place);
    }
    Ok((log, replay, found))
}

fn restore(config: &ShardConfig, held: usize, images: Images, hash: &dyn Fn(u64) -> RandomState) -> Option<Vec<Found>> {
    let all = images.finish(|partition| hash(config.rank_of(partition) as u64))?;
    if all.is_empty() {
        let empty = |rank| Found {
            state: PartitionState::new(hash(rank)),
            wall_ms: 0,
            progress: Progress::new((0, 0), HardState::default()),
        };
        return Some((0..held as u64).map(empty).collect());
    }
    let is_ours = all.iter().enumerate().all(|(rank, it)| it.head.partition == config.partition_at(rank));
    let each = |Restored { head, state }: Restored| Found {
        state,
        wall_ms: head.wall_ms,
        progress: Progress::new(head.applied, head.hard_state),
    };
    (is_ours && all.len() == held).then(|| all.into_iter().map(each).collect())
}

impl Shard {
    /// Applies what the log has behind the newest checkpoint, and starts the groups.
    pub(crate) fn replay(
        &mut self,
        mut replay: Replay,
        disk: &mut dyn Disk,
        mut progress: Vec<Progress>,
    ) -> Result<(), OpenError> {
        // Of what the newest checkpoint points to nothing lies behind the log's end.
        let newest = self.log.newest_held();
        let (mut verifier, mut given, mut failed) = (Verifier::default(), 0, None);
        while failed.is_none()
            && replay.step(&mut |header, location, payload| {
                given += 1;
                if failed.is_none() {
                    failed = self.replay_record(&mut progress, &mut verifier, given, header, location, &payload).err();
                }
            })
        {}
        if let Some(error) = failed {
            return Err(error);
        }
        self.recovered = replay.end(disk, &mut self.log)?;
        if newest.is_some_and(|newest| newest > self.log.position().segment) {
            return Err(OpenError::BadCheckpoint);
        }
        for rot in self.recovered.rot.clone() {
            self.note(rot.rot);
        }
        // Nobody is there yet who would have to be told.
        let mut nothing = Effects::default();
        for (p, it) in progress.into_iter().enumerate() {
            let lost = self.judge(p, &it);
            let commit = if lost.is_some() { it.applied.0 } else { it.hard_state.commit.max(it.applied.0) };
            let store = LogStore::restored(SELF, it.applied, HardState { commit, ..it.hard_state });
            let ticks = (self.config.seed.rotate_right(8) as usize).wrapping_add(p * 7);
            self.partitions[p].state.inboxes.iter_mut().for_each(Inbox::give_back);
            self.partitions[p].start(store, ticks, lost.is_none())?;
            if let Some((why, rot)) = lost {
                self.begin_repair(&mut nothing, p, why, rot);
            }
            self.mark_dirty(p);
        }
        Ok(())
    }

    /// Takes in a record of a batch that holds. In a group of one an entry that is on the disk is committed: nobody else has a
    /// log that could differ, and what is given here is made durable before anybody is served. (With more voters only those up to
    /// the commit index would be.)
    fn replay_record(
        &mut self,
        all: &mut [Progress],
        verifier: &mut Verifier,
        given: u64,
        header: &RecordHeader,
        location: Location,
        payload: &Bytes,
    ) -> Result<(), OpenError> {
        let (config, partition) = (&self.config, PartitionId(header.partition));
        if config.shard_of(partition) != config.shard || header.partition >= config.partitions {
            return Err(OpenError::ForeignPartition(header.partition));
        }
        let rank = config.rank_of(partition);
        let it = &mut all[rank];
        match header.kind {
            // Nothing of it can be used behind a hole.
            _ if it.hole.is_some() => {}
            // In the checkpoint already.
            RecordKind::Entry if header.index <= it.restored => it.last_given = given,
            // A group of one never takes back what it wrote, so that one that was there before is as wrong as one too far.
            RecordKind::Entry if header.index != it.applied.0 + 1 => {
                it.hole = Some((it.applied.0, header.index, given));
            }
            RecordKind::Entry => {
                let entry = match payload.is_empty() {
                    true => None,
                    false => Some(verifier.verify(payload).map_err(|error| OpenError::BadEntry {
                        partition: header.partition,
                        index: header.index,
                        error,
                    })?),
                };
                if header.term > it.hard_state.term {
                    // The record of that vote is lost. A group of one votes for nobody but itself.
                    let commit = it.hard_state.commit;
                    it.hard_state = HardState { term: header.term, vote: SELF, commit, ..HardState::default() };
                }
                it.last_given = given;
                it.applied = (header.index, header.term);
                self.counters.entries += 1;
                if let Some(entry) = entry {
                    // It serves nobody yet, so that nothing follows.
                    self.apply_verified(&mut Effects::default(), rank, payload, entry, location, &[]);
                }
            }
            RecordKind::HardState => {
                let words = payload.first_chunk::<16>().ok_or(OpenError::BadHardState(header.partition))?;
                let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("eight bytes"));
                // One that is older than what the checkpoint has says nothing new.
                if header.term >= it.hard_state.term {
                    let commit = word(8).max(it.hard_state.commit);
                    it.hard_state = HardState { term: header.term, vote: word(0), commit, ..HardState::default() };
                }
            }
            // Its bytes were forgotten on purpose; nothing follows from it.
            RecordKind::Erased | RecordKind::Moved => {}
        }
        Ok(())
    }

    /// Says what of a partition is lost. Damage that names no record may have taken one of any partition, and does not
    /// concern those of which a record behind it shows that nothing is missing: in a group of one, which never truncates, the
    /// next entry. (With more voters only one of the same term would: an entry of a later term may follow others that
    /// replaced those before it.) Of a vote that is lost only an entry behind it tells.
    fn judge(&self, p: usize, it: &Progress) -> Lost {
        let (partition, all) = (self.config.partition_at(p), &self.recovered.rot);
        let lost = match it.hole {
            Some((last, next, at)) => {
                let before =
                    |rotten: &&Rotten| rotten.after.is_some_and(|after| after < at) && rotten.rot.loss != Loss::Nothing;
                Some((Why::Hole { last, next }, all.iter().rev().find(before).map(|it| it.rot)))
            }
            None => all.iter().find_map(|rotten| {
                let is_behind = rotten.after.is_some_and(|after| it.last_given <= after);
                let why = match rotten.rot.loss {
                    Loss::Nothing => None,
                    Loss::Unknown => Some(Why::Unproven),
                    Loss::Record(header) if header.partition != partition.0 => None,
                    Loss::Record(header) => match header.kind {
                        RecordKind::Entry if header.index <= it.restored => None,
                        RecordKind::Entry => Some(Why::Entry(header.index)),
                        RecordKind::HardState => Some(Why::Unproven),
                        RecordKind::Erased | RecordKind::Moved => None,
                    },
                };
                why.filter(|_| is_behind).map(|why| (why, Some(rotten.rot)))
            }),
        };
        // What is committed was durable: a log that ends before it has lost something.
        let (commit, last) = (it.hard_state.commit, it.applied.0);
        lost.or((commit > last).then_some((Why::Hole { last, next: commit + 1 }, None)))
    }
}
