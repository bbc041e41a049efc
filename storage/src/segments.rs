//! The segments of a log in memory: their mappings, who holds on to what is in them, and which of them nobody needs.
//!
//! Marks: `floor` is the segment from which the older of the two kept checkpoints needs the log. One below it that holds
//! nothing that is still wanted is retired; once no view of its mapping is left its file may become another segment.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::SegmentId;

/// A segment that is there and mapped.
pub(crate) struct Segment {
    /// What readers get slices of.
    view: Bytes,
    /// The mapping below it, which outlives all views, so that none of them has to unmap it on a core.
    mapping: Bytes,
    pins: Arc<()>,
    pub(crate) generation: u64,
    /// Its pages were read in or written since the start: looking at it does not wait for the disk.
    pub(crate) is_warm: bool,
    /// Where its last batch ends, once it is known and nobody writes it any more.
    pub(crate) end: Option<u32>,
}

/// What views of a segment hold, beneath all of them.
struct Pinned {
    mapping: Bytes,
    _pin: Arc<()>,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.mapping
    }
}

impl Segment {
    pub(crate) fn new(mapping: Bytes, generation: u64, is_warm: bool) -> Segment {
        let pins = Arc::new(());
        let view = Bytes::from_owner(Pinned { mapping: mapping.clone(), _pin: Arc::clone(&pins) });
        Segment { view, mapping, pins, generation, is_warm, end: None }
    }

    pub(crate) fn view(&self) -> &Bytes {
        &self.view
    }
}

/// A segment that nobody needs and nobody looks at. Its file may be overwritten. The mapping is to be dropped elsewhere than
/// on a core, for that takes a millisecond.
#[derive(Debug)]
pub struct Retired {
    /// Which.
    pub id: SegmentId,
    /// Its mapping, of which this is the last reference.
    pub mapping: Bytes,
}

/// One that waits for the last view of it to go.
struct Leaving {
    id: SegmentId,
    mapping: Bytes,
    pins: Arc<()>,
}

/// All segments of a log, by number.
pub(crate) struct Segments {
    first: SegmentId,
    list: VecDeque<Option<Segment>>,
    /// How many places of state point into each segment, from `holds_from` on; also into those that are gone already, for
    /// what a checkpoint still points to may have been let go later.
    holds: VecDeque<u32>,
    holds_from: SegmentId,
    leaving: VecDeque<Leaving>,
}

impl Segments {
    /// Of a log that begins with this segment.
    pub(crate) fn new(first: SegmentId) -> Segments {
        Segments { first, list: VecDeque::new(), holds: VecDeque::new(), holds_from: first, leaving: VecDeque::new() }
    }

    /// Adds the next one. Between it and the last there may be some that are not there any more.
    pub(crate) fn push(&mut self, id: SegmentId, segment: Segment) {
        while self.next() < id {
            self.list.push_back(None);
        }
        assert_eq!(id, self.next(), "segments come in their order");
        self.list.push_back(Some(segment));
    }

    /// The number behind the last one.
    pub(crate) fn next(&self) -> SegmentId {
        SegmentId(self.first.0 + self.list.len() as u32)
    }

    #[inline]
    pub(crate) fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.list.get(id.0.checked_sub(self.first.0)? as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        self.list.get_mut(id.0.checked_sub(self.first.0)? as usize)?.as_mut()
    }

    /// The first one behind this one that is there.
    pub(crate) fn behind(&self, id: SegmentId) -> Option<SegmentId> {
        let from = id.next().max(self.first);
        (from.0..self.next().0).map(SegmentId).find(|id| self.get(*id).is_some())
    }

    /// How many are there below this one.
    pub(crate) fn below(&self, id: SegmentId) -> usize {
        self.list.iter().take(id.0.saturating_sub(self.first.0) as usize).flatten().count()
    }

    /// How many are there, those that are leaving included.
    pub(crate) fn count(&self) -> usize {
        self.list.iter().flatten().count() + self.leaving.len()
    }

    #[inline]
    pub(crate) fn hold(&mut self, id: SegmentId) {
        while id < self.holds_from {
            self.holds.push_front(0);
            self.holds_from.0 -= 1;
        }
        let index = (id.0 - self.holds_from.0) as usize;
        if index >= self.holds.len() {
            self.holds.resize(index + 1, 0);
        }
        self.holds[index] += 1;
    }

    /// # Panics
    /// If nothing held it: then something is counted wrongly, and a segment would go that is needed.
    #[inline]
    pub(crate) fn release(&mut self, id: SegmentId) {
        let held = id.0.checked_sub(self.holds_from.0).and_then(|index| self.holds.get_mut(index as usize));
        let held = held.filter(|held| **held > 0).expect("what is released was held");
        *held -= 1;
    }

    /// How many places point into a segment.
    pub(crate) fn holds(&self, id: SegmentId) -> u32 {
        let index = id.0.checked_sub(self.holds_from.0);
        index.and_then(|index| self.holds.get(index as usize)).copied().unwrap_or(0)
    }

    /// How many places point into all of them.
    pub(crate) fn held(&self) -> u64 {
        self.holds.iter().map(|held| u64::from(*held)).sum()
    }

    /// The first segment that is pointed to and is not there.
    pub(crate) fn missing(&self) -> Option<SegmentId> {
        let ids = (self.holds_from.0..).map(SegmentId);
        ids.zip(&self.holds).find(|(id, held)| **held > 0 && self.get(*id).is_none()).map(|(id, _)| id)
    }

    /// Lets go of what is below `floor` and held by nobody.
    pub(crate) fn retire_below(&mut self, floor: SegmentId) {
        for id in (self.first.0..floor.0.min(self.next().0)).map(SegmentId) {
            if self.holds(id) > 0 {
                continue;
            }
            let slot = (id.0 - self.first.0) as usize;
            if let Some(Segment { view, mapping, pins, .. }) = self.list[slot].take() {
                drop(view);
                self.leaving.push_back(Leaving { id, mapping, pins });
            }
        }
        // One is kept, so that the number of the next one stays known.
        while self.list.len() > 1 && self.list.front().is_some_and(Option::is_none) {
            self.list.pop_front();
            self.first = self.first.next();
        }
        while self.holds.front() == Some(&0) && self.holds_from < self.first {
            self.holds.pop_front();
            self.holds_from = self.holds_from.next();
        }
    }

    /// A retired segment that nobody looks at any more.
    pub(crate) fn take_retired(&mut self) -> Option<Retired> {
        // `get_mut` and not the count: it orders what a reader on another thread did before what is written to the file next.
        let free = self.leaving.iter_mut().position(|leaving| Arc::get_mut(&mut leaving.pins).is_some())?;
        self.leaving.remove(free).map(|Leaving { id, mapping, .. }| Retired { id, mapping })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(ids: &[u32]) -> Segments {
        let mut segments = Segments::new(SegmentId(ids[0]));
        for &id in ids {
            segments.push(SegmentId(id), Segment::new(Bytes::from(vec![id as u8; 64]), u64::from(id), true));
        }
        segments
    }

    #[test]
    fn what_is_held_stays_and_what_is_not_goes() {
        let mut it = segments(&[1, 2, 3, 4]);
        it.hold(SegmentId(2));
        it.hold(SegmentId(2));
        it.retire_below(SegmentId(4));
        assert!(it.get(SegmentId(1)).is_none() && it.get(SegmentId(3)).is_none());
        assert!(it.get(SegmentId(2)).is_some() && it.get(SegmentId(4)).is_some());
        assert_eq!(it.next(), SegmentId(5));
        it.release(SegmentId(2));
        it.retire_below(SegmentId(4));
        assert!(it.get(SegmentId(2)).is_some());
        it.release(SegmentId(2));
        it.retire_below(SegmentId(4));
        assert!(it.get(SegmentId(2)).is_none());
        assert_eq!(it.count(), 4, "three wait to be taken");
        let mut taken = [0; 3].map(|_| it.take_retired().unwrap().id.0);
        taken.sort_unstable();
        assert_eq!((taken, it.take_retired().is_none(), it.next()), ([1, 2, 3], true, SegmentId(5)));
    }

    #[test]
    fn one_that_is_looked_at_is_not_given_away() {
        let mut it = segments(&[7, 8]);
        let slice = it.get(SegmentId(7)).unwrap().view().slice(3..9);
        it.retire_below(SegmentId(8));
        assert!(it.take_retired().is_none() && it.count() == 2, "it waits for the slice to go");
        assert_eq!(slice, [7; 6][..]);
        let clone = slice.clone();
        drop(slice);
        assert!(it.take_retired().is_none());
        drop(clone);
        assert_eq!(it.take_retired().unwrap().id, SegmentId(7));
    }

    #[test]
    fn a_place_in_a_segment_that_is_gone_is_missed_until_it_is_released() {
        let mut it = segments(&[5, 6]);
        it.hold(SegmentId(2));
        assert_eq!(it.missing(), Some(SegmentId(2)));
        it.release(SegmentId(2));
        assert_eq!(it.missing(), None);
    }

    #[test]
    #[should_panic(expected = "what is released was held")]
    fn nothing_is_released_twice() {
        let mut it = segments(&[1]);
        it.hold(SegmentId(1));
        it.release(SegmentId(1));
        it.release(SegmentId(1));
    }
}
