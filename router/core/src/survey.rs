//! What a checkpoint holds, for whoever looks at a data directory offline: put together from its pieces exactly as a start does
//! it, and then counted.

use ahash::RandomState;
use whimbrel_storage::Location;

use crate::ids::PartitionId;
use crate::image::{Images, Restored};

/// A partition as a checkpoint has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionSurvey {
    /// Which.
    pub partition: PartitionId,
    /// The last entry that is in it: index and term.
    pub applied: (u64, u64),
    /// Chats whose partition it is.
    pub chats: u64,
    /// Devices that have an inbox in it.
    pub inboxes: u64,
    /// Messages that wait, counted in each inbox.
    pub waiting: u64,
    /// Places in the log that somebody waits for, each once, in order: payloads that inboxes point to, and commands in outboxes.
    pub places: Vec<Location>,
}

/// The partitions of a checkpoint, from its pieces; `None` if they are not what this version writes.
pub fn survey<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<PartitionSurvey>> {
    let mut images = Images::default();
    for piece in pieces {
        images.take(piece)?;
    }
    // Nothing is asked of the tables but their contents, so their seeds are of no concern.
    let all = images.finish(|_| RandomState::with_seeds(1, 2, 3, 4))?;
    Some(all.into_iter().map(of_partition).collect())
}

fn of_partition(Restored { head, state }: Restored) -> PartitionSurvey {
    let waiting = state.inboxes.iter().map(|inbox| inbox.waiting.len() as u64).sum();
    let outboxes = state.chats.iter().flat_map(|chat| chat.outbox.iter().map(|kept| kept.command));
    let mut places: Vec<Location> =
        state.inboxes.iter().flat_map(|inbox| inbox.waiting.iter().copied()).chain(outboxes).collect();
    places.sort_unstable();
    places.dedup();
    PartitionSurvey {
        partition: head.partition,
        applied: head.applied,
        chats: state.chats.len() as u64,
        inboxes: state.inboxes.len() as u64,
        waiting,
        places,
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_storage::SegmentId;

    use super::*;
    use crate::ids::{DeviceId, UserId, UserIndex};
    use crate::image::{self, Head, Sizes};
    use crate::partition::Inbox;

    fn at(segment: u32, offset: u32) -> Location {
        Location { segment: SegmentId(segment), offset, len: 100 }
    }

    #[test]
    fn places_are_counted_once_and_messages_in_each_inbox() {
        let mut piece = Vec::new();
        let sizes = Sizes { inboxes: 2, ..Sizes::default() };
        let head = Head { partition: PartitionId(5), applied: (9, 2), sizes, ..Head::default() };
        head.put(&mut piece);
        for (place, waiting) in [vec![at(3, 64), at(1, 64)], vec![at(3, 64)]].into_iter().enumerate() {
            let mut inbox = Inbox::new(UserIndex(0), DeviceId(place as u32), 0);
            inbox.waiting = waiting.into();
            image::put_inbox(&mut piece, place, &UserId::new("bob").unwrap(), &inbox);
            image::put_waiting(&mut piece, place, inbox.waiting.range(..));
        }
        let found = survey([&piece[..]]).unwrap();
        let expected = PartitionSurvey {
            partition: PartitionId(5),
            applied: (9, 2),
            chats: 0,
            inboxes: 2,
            waiting: 3,
            places: vec![at(1, 64), at(3, 64)],
        };
        assert_eq!(found, [expected]);
        assert_eq!(survey([&piece[..piece.len() - 1]]), None);
        assert_eq!(survey([]), Some(Vec::new()));
    }
}
