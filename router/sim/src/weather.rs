//! What a seed decides before a run starts: how large the world is, how fast its parts are, and how often what breaks.

use whimbrel_core::limits::{Bounds, MS};

use crate::plant::Plant;
use crate::rng::Rng;
use crate::socket::Pieces;

/// In a world that forgets within this time it is waited for that, and looked whether it did.
pub(crate) const FORGETS_SOON_US: u64 = 400 * MS;

/// Drawn once a run.
#[derive(Debug)]
pub(crate) struct Weather {
    pub(crate) shards: u16,
    pub(crate) partitions: u16,
    pub(crate) lane_capacity: usize,
    pub(crate) segment_bytes: u32,
    pub(crate) batch_bytes: u32,
    pub(crate) bounds: Bounds,
    pub(crate) users: usize,
    pub(crate) devices_max: u64,
    /// Mean time between two things that happen anywhere.
    pub(crate) pace_us: u64,
    /// Mean time between two turns of a shard.
    pub(crate) turn_us: u64,
    /// Most inputs of one turn.
    pub(crate) turn_inputs: u64,
    /// Mean time until a socket has taken what is sent.
    pub(crate) send_us: u64,
    pub(crate) flush_us: u64,
    pub(crate) flush_fails_per_million: u64,
    pub(crate) prepare_us: u64,
    pub(crate) prepare_fails_per_mille: u64,
    pub(crate) checkpoint_fails_per_mille: u64,
    /// How often one that is in its place is answered as failed.
    pub(crate) checkpoint_unsure_per_mille: u64,
    /// How often a crash leaves the newest checkpoint damaged.
    pub(crate) checkpoint_rots_per_mille: u64,
    /// Segments for which the disk of a shard has space, all else included; 0 for one without an end.
    pub(crate) space_segments: u32,
    /// It can keep some of it for the next checkpoint.
    pub(crate) keeps_space: bool,
    /// How often the node is killed while the disks stay full, before all faults end.
    pub(crate) full_starts: u64,
    /// How often a flush, a segment or a piece of a checkpoint takes seconds.
    pub(crate) slow_disk_per_mille: u64,
    /// How often a block of a log write is on stable storage elsewhere.
    pub(crate) misdirects_per_million: u64,
    /// How often a segment that nobody writes any more rots, per thing that happens.
    pub(crate) rots_per_mille: u64,
    /// How long it takes to sort a list of what waits, beside what everything takes.
    pub(crate) sort_us: u64,
    /// How often a start finds something that cannot be read, once.
    pub(crate) read_fails_per_mille: u64,
    /// Mean time between two things that one client does.
    pub(crate) client_us: u64,
    pub(crate) payload_max: u64,
    /// Messages that a device has unanswered at most.
    pub(crate) in_flight: usize,
    /// Per thing that a client does: how often it sends, at most so many times, keeps what came, acknowledges what it kept.
    pub(crate) send_per_mille: u64,
    pub(crate) burst: usize,
    /// Nothing new is sent while more than this waits to be read.
    pub(crate) unread_max: u64,
    pub(crate) keep_per_mille: u64,
    pub(crate) ack_per_mille: u64,
    pub(crate) lazy_per_mille: u64,
    pub(crate) break_per_mille: u64,
    pub(crate) crash_per_mille: u64,
    pub(crate) stop_per_mille: u64,
    pub(crate) hostile_per_mille: u64,
    pub(crate) sleep_per_mille: u64,
    pub(crate) wall_jump_per_mille: u64,
    crumbs_per_mille: u64,
    slow_per_mille: u64,
}

impl Weather {
    /// The weather of a run.
    pub(crate) fn new(rng: &mut Rng) -> Weather {
        let shards = rng.pick(&[1, 2, 2, 3, 3, 3, 4, 4]);
        let rough = rng.per_mille(750);
        let calm = |per_mille: u64| if rough { per_mille } else { 0 };
        let bounds = bounds(rng);
        let mut weather = Weather {
            shards,
            partitions: rng.between(4, 16) as u16,
            lane_capacity: rng.pick(&[1, 2, 4, 8, 16, 64, 64, 256]),
            segment_bytes: rng.pick(&[160, 256, 512, 1024]) << 10,
            batch_bytes: rng.pick(&[80, 96, 128]) << 10,
            bounds,
            users: rng.between(5, 9) as usize,
            devices_max: rng.between(1, 3),
            pace_us: rng.pick(&[10, 50, 200, 800]),
            turn_us: rng.pick(&[1000, 3000, 10_000]),
            turn_inputs: rng.pick(&[12, 32, 128]),
            send_us: rng.pick(&[50, 2000, 10_000]),
            flush_us: rng.pick(&[100, 1000, 5000, 20_000]),
            flush_fails_per_million: calm(rng.pick(&[0, 3000, 10_000])),
            prepare_us: rng.pick(&[1_000, 20_000, 500_000]),
            prepare_fails_per_mille: calm(rng.pick(&[0, 100, 500])),
            checkpoint_fails_per_mille: calm(rng.pick(&[0, 50, 300])),
            checkpoint_rots_per_mille: calm(rng.pick(&[0, 0, 200])),
            client_us: rng.pick(&[50, 200, 800]),
            payload_max: rng.pick(&[64, 400, 3000, 60_000]),
            // Most worlds are busy: where one message waits for the answer to the last, shards do little but end turns.
            in_flight: rng.pick(&[1, 8, 24, 80, 80, 80]),
            send_per_mille: rng.pick(&[300, 600, 900]),
            burst: rng.pick(&[1, 2, 4, 20]),
            unread_max: rng.pick(&[30, 100, 300, 1000, 2000]).min(bounds.inbox_pointers as u64 / 2),
            keep_per_mille: rng.pick(&[1000, 500]),
            ack_per_mille: rng.pick(&[1000, 500, 100]),
            lazy_per_mille: calm(rng.pick(&[0, 10, 50])),
            break_per_mille: calm(rng.pick(&[0, 2, 8])),
            crash_per_mille: calm(rng.pick(&[0, 1, 2])),
            stop_per_mille: calm(rng.pick(&[0, 1])),
            hostile_per_mille: calm(rng.pick(&[0, 1, 4])),
            sleep_per_mille: calm(rng.pick(&[0, 0, 1])),
            wall_jump_per_mille: calm(rng.pick(&[0, 5])),
            crumbs_per_mille: calm(rng.pick(&[0, 20, 100])),
            slow_per_mille: calm(rng.pick(&[0, 100, 400])),
            checkpoint_unsure_per_mille: calm(rng.pick(&[0, 0, 200])),
            space_segments: calm(rng.pick(&[0, 0, 0, 6, 10])) as u32,
            keeps_space: rng.per_mille(600),
            slow_disk_per_mille: calm(rng.pick(&[0, 0, 10])),
            misdirects_per_million: calm(rng.pick(&[0, 10_000, 50_000])),
            read_fails_per_mille: calm(rng.pick(&[0, 100, 300])),
            rots_per_mille: 0,
            sort_us: 0,
            full_starts: 0,
        };
        weather.bounds.scrub_interval_us = rng.pick(&[10_000 * MS, 100_000 * MS, Bounds::default().scrub_interval_us]);
        weather.bounds.image_places = rng.pick(&[1, 5, Bounds::default().image_places]);
        weather.slices(rng);
        weather.rots_per_mille = calm(rng.pick(&[0, 0, 0, 0, 1, 2]));
        weather.rotten(rng);
        weather.sort_us = rng.pick(&[0, 0, 0, 20_000, 2_000_000]);
        weather.full_starts = calm(rng.pick(&[0, 0, 0, 0, 0, 3, 6]));
        weather
    }

    /// Where something may rot, all is read within a time that can be waited for.
    fn rotten(&mut self, rng: &mut Rng) {
        if self.rots_per_mille > 0 {
            self.bounds.scrub_interval_us = rng.pick(&[300 * MS, 1_500 * MS, 6_000 * MS]);
        }
    }

    /// How many turns a checkpoint takes, and whether what it noted is sorted in one.
    fn slices(&mut self, rng: &mut Rng) {
        let usual = Bounds::default();
        // Where there is little time to forget, a checkpoint has to be made within an eighth of it.
        let objects = if rng.per_mille(500) { usual.image_objects } else { rng.pick(&[1, 4, 20, 20]) };
        let bounds = &mut self.bounds;
        bounds.image_objects = if bounds.forget_after_us > FORGETS_SOON_US { objects } else { objects.max(20) };
        bounds.image_slice_bytes =
            rng.pick(&[200, usual.image_slice_bytes, usual.image_slice_bytes, usual.image_slice_bytes]);
        bounds.image_piece_bytes = rng.pick(&[300, 5000, usual.image_piece_bytes, usual.image_piece_bytes]);
        bounds.sorted_places = rng.pick(&[0, 5, usual.sorted_places]);
    }

    /// What a planted fault needs to be seen, or must not meet.
    pub(crate) fn suit(&mut self, plant: Plant) {
        match plant {
            // Only a world that is to forget soon is looked at for what it forgot.
            Plant::CheckpointSilent => self.bounds.forget_after_us = FORGETS_SOON_US,
            // With one that is not there, and the one before it damaged, there is none.
            Plant::CheckpointLost => (self.checkpoint_rots_per_mille, self.read_fails_per_mille) = (0, 0),
            Plant::DamageHidden => {
                self.misdirects_per_million = 50_000;
                self.crash_per_mille = self.crash_per_mille.max(1);
            }
            Plant::ScrubHides => {
                self.rots_per_mille = 4;
                self.bounds.scrub_interval_us = 300 * MS;
            }
            _ => {}
        }
    }

    /// How a new connection cuts its bytes, and what its client's kernel holds for it.
    pub(crate) fn connection(&self, rng: &mut Rng) -> (Pieces, usize) {
        let pieces = match rng.below(1000) {
            n if n < self.crumbs_per_mille => Pieces::Crumbs,
            n if n < 800 => Pieces::Some,
            _ => Pieces::Whole,
        };
        let capacity = if rng.per_mille(self.slow_per_mille) { rng.between(1, 2000) } else { 64 * 1024 };
        (pieces, capacity as usize)
    }
}

fn bounds(rng: &mut Rng) -> Bounds {
    let usual = Bounds::default();
    let credit_bytes = rng.pick(&[1000, 20_000, usual.credit_bytes]);
    Bounds {
        connections: rng.pick(&[24, 64, 1000]),
        credit_messages: rng.pick(&[1, 3, 20, usual.credit_messages]),
        credit_bytes,
        // Never so small that one that reads is too slow: a full credit, the largest frame, and answers to all requests.
        queue_max_bytes: rng.pick(&[credit_bytes + (160 << 10), usual.queue_max_bytes]),
        login_us: rng.pick(&[500 * MS, usual.login_us]),
        keepalive_us: rng.pick(&[3_000 * MS, usual.keepalive_us]),
        gather_max_bytes: rng.pick(&[66_000, 200_000, usual.gather_max_bytes]),
        inbox_pointers: rng.pick(&[20, 100, usual.inbox_pointers]),
        lane_backlog: rng.pick(&[16, 256, usual.lane_backlog]),
        retry_after_ms: rng.pick(&[5, usual.retry_after_ms]),
        forget_after_us: rng.pick(&[
            FORGETS_SOON_US,
            4_000 * MS,
            usual.forget_after_us,
            usual.forget_after_us,
            usual.forget_after_us,
        ]),
        ..usual
    }
}
