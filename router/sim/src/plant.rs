//! Planted bugs: faults of the bottom that nothing above can heal, or that nothing above may be able to. Each proves that a
//! check can fail. Off unless asked for by name.

use crate::check::Check;
use crate::rng::Rng;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The disk says that a write is flushed; a crash shows that it never was.
    DiskLies,
    /// A bit of a payload is another one when it is read through the mapping.
    DiskFlips,
    /// A lane loses an item.
    LaneDrops,
    /// A socket carries a delivery twice.
    SocketRepeats,
    /// A socket carries two frames in the other order.
    SocketSwaps,
    /// A socket loses a delivery, and carries what comes after it.
    SocketDrops,
    /// A socket loses an acknowledgement of a client.
    AckDrops,
    /// The ring never tells that a send was taken by the socket.
    WrittenDrops,
    /// A connection that moves forgets the bytes that were read after its `Hello`.
    MoveForgets,
}

impl Plant {
    /// All of them.
    pub const ALL: [Plant; 9] = [
        Plant::DiskLies,
        Plant::DiskFlips,
        Plant::LaneDrops,
        Plant::SocketRepeats,
        Plant::SocketSwaps,
        Plant::SocketDrops,
        Plant::AckDrops,
        Plant::WrittenDrops,
        Plant::MoveForgets,
    ];

    /// As `--plant` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Plant::DiskLies => "disk-lies",
            Plant::DiskFlips => "disk-flips",
            Plant::LaneDrops => "lane-drops",
            Plant::SocketRepeats => "socket-repeats",
            Plant::SocketSwaps => "socket-swaps",
            Plant::SocketDrops => "socket-drops",
            Plant::AckDrops => "ack-drops",
            Plant::WrittenDrops => "written-drops",
            Plant::MoveForgets => "move-forgets",
        }
    }

    /// What it does.
    pub fn story(self) -> &'static str {
        match self {
            Plant::DiskLies => "the disk reports a flush that it never made; a crash shows it",
            Plant::DiskFlips => "a bit of a payload is flipped when it is read through the mapping",
            Plant::LaneDrops => "a lane loses an item",
            Plant::SocketRepeats => "a socket carries a delivery twice",
            Plant::SocketSwaps => "a socket carries two deliveries in the other order",
            Plant::SocketDrops => "a socket loses a delivery and carries what follows",
            Plant::AckDrops => "a socket loses an acknowledgement of a client",
            Plant::WrittenDrops => "the ring never tells that a send was taken",
            Plant::MoveForgets => "a connection that moves forgets the bytes read after its Hello",
        }
    }

    /// The checks of which one has to trip; the first is what it is planted for.
    pub fn trips(self) -> &'static [Check] {
        match self {
            Plant::DiskLies => &[Check::Lost, Check::Start],
            Plant::DiskFlips => &[Check::Phantom],
            Plant::LaneDrops => &[Check::Stuck],
            Plant::SocketRepeats => &[Check::Duplicate],
            Plant::SocketSwaps => &[Check::OutOfOrder],
            Plant::SocketDrops => &[Check::Gap],
            Plant::AckDrops => &[Check::InboxNotEmpty],
            Plant::WrittenDrops => &[Check::Stuck],
            Plant::MoveForgets => &[Check::Stuck],
        }
    }

    /// The plant of this name.
    pub fn named(name: &str) -> Option<Plant> {
        Plant::ALL.into_iter().find(|plant| plant.name() == name)
    }
}

/// A plant fires at most once in so many opportunities.
pub const RARITY: u64 = 1000;

/// Decides when a planted bug fires: first at one of its first thousand opportunities, which the seed decides, and never
/// again before a thousand more. Most seeds have fewer opportunities than that, so in most it never does.
#[derive(Debug)]
pub struct Fuse {
    plant: Option<Plant>,
    rng: Rng,
    opportunities: u64,
    fires_at: u64,
    fired: u64,
}

impl Fuse {
    /// A fuse for a run.
    pub fn new(plant: Option<Plant>, mut rng: Rng) -> Fuse {
        let fires_at = rng.below(RARITY);
        Fuse { plant, rng, opportunities: 0, fires_at, fired: 0 }
    }

    /// Here `plant` could fire: does it?
    pub fn fires(&mut self, plant: Plant) -> bool {
        if self.plant != Some(plant) {
            return false;
        }
        let fires = self.opportunities == self.fires_at;
        self.opportunities += 1;
        if fires {
            self.fires_at += RARITY + self.rng.below(RARITY);
            self.fired += 1;
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
    fn a_plant_fires_at_most_once_in_a_thousand_opportunities() {
        let mut fuse = Fuse::new(Some(Plant::LaneDrops), Rng::new(3));
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
