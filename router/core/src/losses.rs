//! Which of many damaged pieces of the log takes bytes of a place: found in the logarithm of their number, for a shard that learns of
//! damage compares all that waits in it with all that is damaged, in one turn.

use std::collections::BTreeSet;

use whimbrel_storage::{Location, Loss, Rot, SegmentId};

/// Damage by which something is lost, by its place.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// With the end of what reaches farthest in its segment, itself and those before it: pieces may lie in each other.
    list: Vec<(Rot, u64)>,
}

impl Losses {
    pub(crate) fn of(rots: &BTreeSet<Rot>) -> Losses {
        let mut list: Vec<(Rot, u64)> = Vec::with_capacity(rots.len());
        for rot in rots.iter().filter(|rot| rot.loss != Loss::Nothing) {
            let before = list.last().filter(|(last, _)| last.segment == rot.segment).map_or(0, |(_, reach)| *reach);
            list.push((*rot, before.max(u64::from(rot.offset) + u64::from(rot.bytes))));
        }
        Losses { list }
    }

    /// The first piece that takes bytes of this place.
    pub(crate) fn at(&self, place: Location) -> Option<Rot> {
        let is_before = |(rot, reach): &(Rot, u64)| -> bool {
            let here: (SegmentId, u64) = (place.segment, u64::from(place.offset));
            (rot.segment, *reach) <= here
        };
        let first = self.list.get(self.list.partition_point(is_before))?;
        Some(first.0).filter(|rot| rot.touches(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_storage::RotReason;

    #[test]
    fn it_finds_what_a_look_at_each_finds() {
        let mut state = 5u64;
        let mut below = |limit: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % limit
        };
        let mut found = 0;
        for round in 0..200 {
            let mut rots = BTreeSet::new();
            for _ in 0..round % 12 {
                let (segment, offset, bytes) = (SegmentId(below(3)), below(60), below(20));
                let loss = if below(4) == 0 { Loss::Nothing } else { Loss::Unknown };
                rots.insert(Rot { segment, offset, bytes, reason: RotReason::Batch, loss });
            }
            let losses = Losses::of(&rots);
            for _ in 0..200 {
                let place = Location { segment: SegmentId(below(3)), offset: below(80), len: below(12) };
                let expected = rots.iter().copied().find(|rot| rot.touches(place));
                assert_eq!(losses.at(place), expected, "{place:?} of {rots:?}");
                found += usize::from(expected.is_some());
            }
        }
        assert!(found > 1000, "{found}");
    }
}
