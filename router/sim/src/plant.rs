//! Faults to plant at the bottom, off unless asked for by name. Most are bugs that nothing above can heal, each there to prove
//! that a check can fail; the others must be healed by what is above, each there to prove that it is.

use crate::check::Check;
use crate::rng::Rng;
use crate::trace::Trace;

/// A fault that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The disk says that a write is flushed and it is not; power is gone before the next one is.
    DiskLies,
    /// A bit of a payload is another one when it is read through the mapping.
    DiskFlips,
    /// A bit of a batch turns over on the disk after its flush.
    DiskRots,
    /// A block of the last write before a power cut is on stable storage elsewhere, which passes for a torn write.
    DiskMisdirects,
    /// A scrubber keeps to itself what it found.
    ScrubHides,
    /// The simulator believes that a block of a write lies elsewhere, and it does not.
    DamageHidden,
    /// A segment is reported for which the full disk has no bytes; power takes it along.
    FullLies,
    /// The ring never tells that a log write is flushed.
    FlushSilent,
    /// A bit of a message is another one behind a lane.
    LaneFlips,
    /// A socket carries a delivery twice.
    SocketRepeats,
    /// A socket carries two deliveries in the other order.
    SocketSwaps,
    /// A socket loses a delivery, and carries what comes after it.
    SocketDrops,
    /// The sockets of a device lose its acknowledgements from then on. One alone is made up for by the next.
    AckDrops,
    /// A socket raises an acknowledgement of a client.
    AckJumps,
    /// A lane carries an item twice.
    LaneRepeats,
    /// A lane carries two items in the other order.
    LaneSwaps,
    /// A lane loses an item.
    LaneDrops,
    /// The ring never tells that a send was taken by the socket.
    WrittenDrops,
    /// A checkpoint is written and never answered.
    CheckpointSilent,
    /// A checkpoint is reported, and is not there after all.
    CheckpointLost,
}

/// What is known of a plant.
struct Facts {
    name: &'static str,
    story: &'static str,
    trips: &'static [Check],
}

impl Plant {
    /// All of them.
    pub const ALL: [Plant; 20] = [
        Plant::DiskLies,
        Plant::DiskFlips,
        Plant::DiskRots,
        Plant::DiskMisdirects,
        Plant::ScrubHides,
        Plant::DamageHidden,
        Plant::FullLies,
        Plant::FlushSilent,
        Plant::LaneFlips,
        Plant::SocketRepeats,
        Plant::SocketSwaps,
        Plant::SocketDrops,
        Plant::AckDrops,
        Plant::AckJumps,
        Plant::LaneRepeats,
        Plant::LaneSwaps,
        Plant::LaneDrops,
        Plant::WrittenDrops,
        Plant::CheckpointSilent,
        Plant::CheckpointLost,
    ];

    /// As `--plant` takes it.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// What it does.
    pub fn story(self) -> &'static str {
        self.facts().story
    }

    /// The checks that it may trip; the first is what it is planted for. None for a fault that must be healed.
    pub fn trips(self) -> &'static [Check] {
        self.facts().trips
    }

    /// Nothing that a client sees may come of it.
    pub fn must_be_healed(self) -> bool {
        self.trips().is_empty()
    }

    /// The plant of this name.
    pub fn named(name: &str) -> Option<Plant> {
        Plant::ALL.into_iter().find(|plant| plant.name() == name)
    }

    fn facts(self) -> Facts {
        let (name, story, trips): (_, _, &[Check]) = match self {
            Plant::DiskLies => (
                "disk-lies",
                "the disk reports a flush that it never made, and loses power before the next",
                &[Check::Lost, Check::OutOfOrder, Check::Duplicate, Check::WrongAnswer, Check::Start, Check::Phantom],
            ),
            Plant::DiskFlips => (
                "disk-flips",
                "a bit of a payload is flipped when it is read through the mapping",
                &[Check::Phantom, Check::Start],
            ),
            Plant::DiskRots => (
                "disk-rots",
                "a bit of a batch turns over on the disk after its flush",
                &[Check::Start, Check::Lost, Check::OutOfOrder],
            ),
            Plant::DiskMisdirects => (
                "disk-misdirects",
                "a block of the last write before a power cut lies elsewhere, which passes for a torn write",
                &[Check::Lost, Check::OutOfOrder, Check::Duplicate, Check::WrongAnswer, Check::Start],
            ),
            Plant::ScrubHides => (
                "scrub-hides",
                "a scrubber keeps to itself what it found",
                // Where somebody is given what it found.
                &[Check::Unnoticed, Check::Phantom],
            ),
            Plant::DamageHidden => (
                "damage-hidden",
                "a start is expected to notice a block that lies elsewhere, and there is none",
                &[Check::Unnoticed],
            ),
            Plant::FullLies => (
                "full-lies",
                "a full disk reports a segment that it has no bytes for; power takes it along",
                &[Check::Start, Check::Lost, Check::OutOfOrder, Check::Duplicate, Check::WrongAnswer],
            ),
            Plant::FlushSilent => (
                "flush-silent",
                "the ring never tells that a log write is flushed",
                // Where it was the last one, all that is left of it is that its segment stays. Where something else is damaged the
                // world is asked for what is to be there before it is asked for rest.
                &[Check::Stuck, Check::NotForgotten, Check::Lost],
            ),
            Plant::LaneFlips => {
                ("lane-flips", "a bit of a message is flipped behind a lane", &[Check::Phantom, Check::WrongAnswer])
            }
            Plant::SocketRepeats => ("socket-repeats", "a socket carries a delivery twice", &[Check::Duplicate]),
            Plant::SocketSwaps => {
                ("socket-swaps", "a socket carries two deliveries in the other order", &[Check::OutOfOrder])
            }
            Plant::SocketDrops => {
                ("socket-drops", "a socket loses a delivery and carries what follows", &[Check::Gap, Check::Stuck])
            }
            Plant::AckDrops => {
                ("ack-drops", "a device's acknowledgements get lost from now on", &[Check::InboxNotEmpty, Check::Stuck])
            }
            Plant::AckJumps => (
                "ack-jumps",
                "a socket raises an acknowledgement of a client by one",
                &[Check::Gap, Check::Credit, Check::Lost, Check::WrongAnswer],
            ),
            Plant::LaneRepeats => ("lane-repeats", "a lane carries an item twice", &[]),
            Plant::LaneSwaps => ("lane-swaps", "a lane carries two items in the other order", &[]),
            Plant::LaneDrops => ("lane-drops", "a lane loses an item", &[]),
            Plant::WrittenDrops => ("written-drops", "the ring never tells that a send was taken", &[]),
            Plant::CheckpointSilent => (
                "checkpoint-silent",
                "a checkpoint is written and never answered",
                &[Check::NotForgotten, Check::Stuck],
            ),
            Plant::CheckpointLost => ("checkpoint-lost", "a checkpoint is reported and is not there after all", &[]),
        };
        Facts { name, story, trips }
    }
}

/// A plant fires at most once in so many opportunities.
pub const RARITY: u64 = 200;

/// The same of one that has few of them in a seed, or of which most do no harm.
pub const RARITY_OF_FEW: u64 = 10;

/// Decides when a planted bug fires: first at one of its first [`RARITY`] opportunities, which the seed decides, and never
/// again before as many more.
pub struct Fuse {
    plant: Option<Plant>,
    rarity: u64,
    rng: Rng,
    trace: Trace,
    opportunities: u64,
    fires_at: u64,
    fired: u64,
}

impl Fuse {
    /// A fuse for a run.
    pub fn new(plant: Option<Plant>, mut rng: Rng, trace: Trace) -> Fuse {
        let rarity = match plant {
            Some(Plant::CheckpointSilent | Plant::CheckpointLost | Plant::DiskMisdirects) => RARITY_OF_FEW,
            _ => RARITY,
        };
        let fires_at = rng.below(rarity);
        Fuse { plant, rarity, rng, trace, opportunities: 0, fires_at, fired: 0 }
    }

    /// It is this plant's, so that its opportunities are worth looking for.
    pub fn is_for(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// Here `plant` could fire: does it?
    pub fn fires(&mut self, plant: Plant) -> bool {
        if !self.is_for(plant) {
            return false;
        }
        let fires = self.opportunities == self.fires_at;
        self.opportunities += 1;
        if fires {
            self.fires_at += self.rarity + self.rng.below(self.rarity);
            self.fired += 1;
            self.trace.line(format_args!("planted: {}", plant.story()));
        }
        fires
    }

    /// The same where opportunities are so rare that each is taken.
    pub fn fires_at_once(&mut self, plant: Plant) -> bool {
        let fires = self.is_for(plant);
        if fires {
            self.fired += 1;
            self.trace.line(format_args!("planted: {}", plant.story()));
        }
        fires
    }

    /// How often it fired.
    pub fn fired(&self) -> u64 {
        self.fired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plant_fires_no_oftener_than_it_may() {
        let mut fuse = Fuse::new(Some(Plant::LaneDrops), Rng::new(3), Trace::default());
        let mut last = None;
        for n in 0..20 * RARITY {
            assert!(!fuse.fires(Plant::DiskLies));
            if fuse.fires(Plant::LaneDrops) {
                assert!(last.is_none_or(|last| n - last >= RARITY));
                last = Some(n);
            }
        }
        assert!(fuse.fired() >= 10);
    }

    #[test]
    fn names_are_found_again() {
        for plant in Plant::ALL {
            assert_eq!(Plant::named(plant.name()), Some(plant));
        }
    }
}
