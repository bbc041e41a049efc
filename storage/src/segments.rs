//! The segments of a log in memory: their mappings, who holds on to what is in them, and which of them nobody needs.
//!
//! Marks: `floor` is the segment from which the older of the two kept checkpoints needs the log. One below it that holds
//! nothing that is still wanted is retired; once no view of its mapping is left its file may become another segment.
//!
//! A closed segment is warm, which is to say taken to be in memory, from when it was written to its end or read in until there are
//! more of these than there may be and it has been so for longest.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoint::Checkpoint;
use crate::cold::{Cold, Copy, Source};
use crate::{Location, LogOptions, SegmentId};

/// A segment that is there and mapped.
pub(crate) struct Segment {
    /// What readers get slices of.
    view: Bytes,
    /// The mapping below it, which outlives all views, so that none of them has to unmap it on a core.
    mapping: Bytes,
    pins: Arc<()>,
    pub(crate) generation: u64,
    warmth: Warmth,
    /// Bytes from its start behind which it is zeros, as far as is known.
    pub(crate) used: u32,
    /// Where its last batch ends, once it is known and nobody writes it any more.
    pub(crate) end: Option<u32>,
    /// Pages that the disk did not give when they were last read, ascending and apart: nobody looks at them.
    unreadable: Vec<Range<u32>>,
}

/// Whether a look at a segment waits for the disk, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warmth {
    Cold,
    /// It is written, or is a spare one that was made or looked through: it is in memory, and not in [`Segments::warm`].
    Open,
    /// Its place in [`Segments::warm`].
    Since(u64),
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
    /// One that is in memory is taken for one that is written until [`Segments::warm_up`] says that it is not.
    pub(crate) fn new(mapping: Bytes, generation: u64, is_warm: bool) -> Segment {
        let warmth = if is_warm { Warmth::Open } else { Warmth::Cold };
        let pins = Arc::new(());
        let view = Bytes::from_owner(Pinned { mapping: mapping.clone(), _pin: Arc::clone(&pins) });
        let used = mapping.len() as u32;
        Segment { view, mapping, pins, generation, warmth, used, end: None, unreadable: Vec::new() }
    }

    /// Looking at it does not wait for the disk, as far as is known.
    #[inline]
    pub(crate) fn is_warm(&self) -> bool {
        self.warmth != Warmth::Cold
    }

    /// It is written, or a spare one.
    pub(crate) fn is_open(&self) -> bool {
        self.warmth == Warmth::Open
    }

    pub(crate) fn view(&self) -> &Bytes {
        &self.view
    }

    /// The disk does not give these pages. Whether that is news.
    pub(crate) fn lose(&mut self, pages: Range<u32>) -> bool {
        let first = self.unreadable.partition_point(|it| it.end < pages.start);
        let behind = self.unreadable.partition_point(|it| it.start <= pages.end);
        let near = &self.unreadable[first..behind];
        if near.iter().any(|it| it.start <= pages.start && pages.end <= it.end) {
            return false;
        }
        let start = near.first().map_or(pages.start, |it| it.start.min(pages.start));
        let end = near.last().map_or(pages.end, |it| it.end.max(pages.end));
        self.unreadable.splice(first..behind, std::iter::once(start..end));
        true
    }

    /// All of it before this place was read, and of that the disk does not give these pages.
    pub(crate) fn was_read(&mut self, before: u32, unreadable: &[Range<u32>]) {
        for it in &mut self.unreadable {
            it.start = it.start.max(before);
        }
        self.unreadable.retain(|it| it.start < it.end);
        unreadable.iter().for_each(|pages| _ = self.lose(pages.clone()));
    }

    /// These pages were written, and are in memory.
    pub(crate) fn was_written(&mut self, pages: Range<u32>) {
        let rest = |it: Range<u32>| [it.start..it.end.min(pages.start), it.start.max(pages.end)..it.end];
        self.unreadable = self.unreadable.drain(..).flat_map(rest).filter(|it| !it.is_empty()).collect();
    }

    /// Whether a look at these bytes would be one at a page that the disk does not give.
    pub(crate) fn is_unreadable(&self, bytes: Range<u32>) -> bool {
        let first = self.unreadable.partition_point(|it| it.end <= bytes.start);
        self.unreadable.get(first).is_some_and(|it| it.start < bytes.end)
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
    /// Bytes from its start that may be other than zero.
    pub used: u32,
}

/// One that waits for the last view of it to go.
struct Leaving {
    id: SegmentId,
    mapping: Bytes,
    pins: Arc<()>,
    used: u32,
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
    /// What waited in these was moved: they are needed until both checkpoints are this one or younger.
    emptied: BTreeMap<SegmentId, u64>,
    /// Closed segments that are warm, the one that has been so for longest first.
    warm: BTreeMap<u64, SegmentId>,
    /// How often one became so.
    warmings: u64,
    pub(crate) cold: Cold,
}

impl Segments {
    /// Of a log that begins with this segment.
    pub(crate) fn new(first: SegmentId, cold: Cold) -> Segments {
        Segments {
            first,
            list: VecDeque::new(),
            holds: VecDeque::new(),
            holds_from: first,
            leaving: VecDeque::new(),
            emptied: BTreeMap::new(),
            warm: BTreeMap::new(),
            warmings: 0,
            cold,
        }
    }

    /// Adds the next one. Between it and the last there may be some that are not there any more.
    pub(crate) fn push(&mut self, id: SegmentId, segment: Segment) {
        while self.next() < id {
            self.list.push_back(None);
        }
        assert_eq!(id, self.next(), "segments come in their order");
        self.list.push_back(Some(segment));
    }

    /// Forgets this one and all behind it. There are some before it, and nobody looks at those that go.
    pub(crate) fn cut(&mut self, from: SegmentId) {
        assert!(from > self.first, "a log has a segment");
        self.list.truncate((from.0 - self.first.0) as usize);
    }

    /// The number behind the last one.
    pub(crate) fn next(&self) -> SegmentId {
        SegmentId(self.first.0 + self.list.len() as u32)
    }

    #[inline]
    pub(crate) fn get(&self, id: SegmentId) -> Option<&Segment> {
        if id.is_cold() {
            return self.cold.get(id);
        }
        self.list.get(id.0.checked_sub(self.first.0)? as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: SegmentId) -> Option<&mut Segment> {
        if id.is_cold() {
            return self.cold.get_mut(id);
        }
        self.list.get_mut(id.0.checked_sub(self.first.0)? as usize)?.as_mut()
    }

    /// All of this one was written or read just now, and nobody writes it any more.
    pub(crate) fn warm_up(&mut self, id: SegmentId) {
        let since = Warmth::Since(self.warmings);
        let Some(segment) = self.get_mut(id) else { return };
        if let Warmth::Since(before) = std::mem::replace(&mut segment.warmth, since) {
            self.warm.remove(&before);
        }
        self.warm.insert(self.warmings, id);
        self.warmings += 1;
    }

    /// Lets those count as warm no longer that have been so for longest, until there are no more than this.
    pub(crate) fn cool(&mut self, most: usize) {
        while self.warm.len() > most
            && let Some((_, id)) = self.warm.pop_first()
        {
            let segment = self.get_mut(id).expect("one that is not there any more is not warm");
            segment.warmth = Warmth::Cold;
        }
    }

    /// How many closed ones are warm.
    pub(crate) fn warm(&self) -> usize {
        self.warm.len()
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
        self.list.iter().flatten().count() + self.leaving.len() + self.cold.count()
    }

    #[inline]
    pub(crate) fn hold(&mut self, id: SegmentId) {
        if id.is_cold() {
            return self.cold.hold(id);
        }
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
        if id.is_cold() {
            return self.cold.release(id);
        }
        let held = id.0.checked_sub(self.holds_from.0).and_then(|index| self.holds.get_mut(index as usize));
        let held = held.filter(|held| **held > 0).expect("what is released was held");
        *held -= 1;
    }

    /// How many places point into a segment.
    pub(crate) fn holds(&self, id: SegmentId) -> u32 {
        if id.is_cold() {
            return self.cold.holds(id);
        }
        let index = id.0.checked_sub(self.holds_from.0);
        index.and_then(|index| self.holds.get(index as usize)).copied().unwrap_or(0)
    }

    /// How many places point into all of them.
    pub(crate) fn held(&self) -> u64 {
        self.holds.iter().map(|held| u64::from(*held)).sum::<u64>() + self.cold.held()
    }

    /// The last hot one that is pointed into.
    pub(crate) fn newest_held(&self) -> Option<SegmentId> {
        let newest = self.holds.iter().rposition(|held| *held > 0)?;
        Some(SegmentId(self.holds_from.0 + newest as u32))
    }

    /// The first segment that is pointed to and is not there.
    pub(crate) fn missing(&self) -> Option<SegmentId> {
        let ids = (self.holds_from.0..).map(SegmentId);
        let hot = ids.zip(&self.holds).find(|(id, held)| **held > 0 && self.get(*id).is_none()).map(|(id, _)| id);
        hot.or_else(|| self.cold.missing())
    }

    /// Those below `end` that are pointed into.
    pub(crate) fn held_below(&self, end: SegmentId) -> impl Iterator<Item = SegmentId> {
        let ids = (self.holds_from.0..end.0).map(SegmentId);
        ids.zip(&self.holds).filter(|(id, held)| **held > 0 && self.get(*id).is_some()).map(|(id, _)| id)
    }

    /// See [`crate::Log::plan_copy`].
    pub(crate) fn plan_copy(&mut self, options: &LogOptions, places: &mut VecDeque<Location>) -> Option<Copy> {
        let Segments { first, list, cold, .. } = self;
        cold.plan_copy(options, places, |id| {
            let slot = id.0.checked_sub(first.0)? as usize;
            list.get(slot)?.as_ref().map(|segment| Source::of(id, segment))
        })
    }

    /// What waits in these has moved, as checkpoint `number` and all after it have it.
    pub(crate) fn emptied(&mut self, id: SegmentId, number: u64) {
        self.emptied.insert(id, number);
    }

    /// The same for all that lie before a checkpoint, as far as anybody knows.
    pub(crate) fn emptied_before(&mut self, newest: Checkpoint) {
        let hot = (self.first.0..newest.position.segment.0).map(SegmentId);
        let ids: Vec<SegmentId> = hot.chain(self.cold.ids()).filter(|id| self.get(*id).is_some()).collect();
        self.emptied.extend(ids.into_iter().map(|id| (id, newest.number)));
    }

    /// Whether a checkpoint that is kept may point to what was moved out of this one.
    pub(crate) fn is_emptied(&self, id: SegmentId) -> bool {
        self.emptied.contains_key(&id)
    }

    /// Whether some are only kept for checkpoints that are to go.
    pub(crate) fn awaits_checkpoints(&self) -> bool {
        self.emptied.keys().any(|id| self.holds(*id) == 0 && self.get(*id).is_some())
    }

    /// Lets go of what is below `floor`, or cold, and held by nobody. `oldest` is the number of the older checkpoint.
    pub(crate) fn retire_below(&mut self, floor: SegmentId, oldest: u64) {
        self.emptied.retain(|_, number| *number > oldest);
        for id in (self.first.0..floor.0.min(self.next().0)).map(SegmentId) {
            if self.holds(id) > 0 || self.emptied.contains_key(&id) {
                continue;
            }
            let slot = (id.0 - self.first.0) as usize;
            let segment = self.list[slot].take();
            self.leave(id, segment);
        }
        for id in self.cold.unheld() {
            if !self.emptied.contains_key(&id) {
                let segment = self.cold.take(id);
                self.leave(id, segment);
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

    fn leave(&mut self, id: SegmentId, segment: Option<Segment>) {
        if let Some(Segment { view, mapping, pins, used, warmth, .. }) = segment {
            if let Warmth::Since(since) = warmth {
                self.warm.remove(&since);
            }
            drop(view);
            self.leaving.push_back(Leaving { id, mapping, pins, used });
        }
    }

    /// A retired segment that nobody looks at any more.
    pub(crate) fn take_retired(&mut self) -> Option<Retired> {
        // `get_mut` and not the count: it orders what a reader on another thread did before what is written to the file next.
        let free = self.leaving.iter_mut().position(|leaving| Arc::get_mut(&mut leaving.pins).is_some())?;
        self.leaving.remove(free).map(|Leaving { id, mapping, used, .. }| Retired { id, mapping, used })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(ids: &[u32]) -> Segments {
        let mut segments = Segments::new(SegmentId(ids[0]), Cold::new(Vec::new(), 64));
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
        it.retire_below(SegmentId(4), 0);
        assert!(it.get(SegmentId(1)).is_none() && it.get(SegmentId(3)).is_none());
        assert!(it.get(SegmentId(2)).is_some() && it.get(SegmentId(4)).is_some());
        assert_eq!(it.next(), SegmentId(5));
        it.release(SegmentId(2));
        it.retire_below(SegmentId(4), 0);
        assert!(it.get(SegmentId(2)).is_some());
        it.release(SegmentId(2));
        it.retire_below(SegmentId(4), 0);
        assert!(it.get(SegmentId(2)).is_none());
        assert_eq!(it.count(), 4, "three wait to be taken");
        let mut taken = [0; 3].map(|_| it.take_retired().unwrap().id.0);
        taken.sort_unstable();
        assert_eq!((taken, it.take_retired().is_none(), it.next()), ([1, 2, 3], true, SegmentId(5)));
    }

    #[test]
    fn one_that_goes_makes_room_for_another_that_stays_warm() {
        let mut it = segments(&[1, 2, 3, 4]);
        (1..4).for_each(|id| it.warm_up(SegmentId(id)));
        it.hold(SegmentId(1));
        it.retire_below(SegmentId(3), 0);
        assert_eq!(it.warm(), 2);
        it.cool(2);
        assert!(it.get(SegmentId(1)).unwrap().is_warm() && it.get(SegmentId(3)).unwrap().is_warm());
    }

    #[test]
    fn one_that_is_looked_at_is_not_given_away() {
        let mut it = segments(&[7, 8]);
        let slice = it.get(SegmentId(7)).unwrap().view().slice(3..9);
        it.retire_below(SegmentId(8), 0);
        assert!(it.take_retired().is_none() && it.count() == 2, "it waits for the slice to go");
        assert_eq!(slice, [7; 6][..]);
        let clone = slice.clone();
        drop(slice);
        assert!(it.take_retired().is_none());
        drop(clone);
        assert_eq!(it.take_retired().unwrap().id, SegmentId(7));
    }

    #[test]
    fn one_that_is_erased_is_not_given_away_though_nobody_looks_at_it() {
        let mut it = segments(&[1, 2]);
        let source = Source::of(SegmentId(1), it.get(SegmentId(1)).unwrap());
        it.retire_below(SegmentId(2), 0);
        assert!(it.take_retired().is_none(), "what is written by its name would go into what its file has become");
        drop(source);
        assert_eq!(it.take_retired().unwrap().id, SegmentId(1));
    }

    #[test]
    fn which_pages_are_unreadable_is_known_until_they_are_read() {
        let mut segment = Segment::new(Bytes::from(vec![1; 64]), 1, true);
        let mut seed = 5u64;
        let mut below = |bound: u32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u32 % bound
        };
        let mut known = [false; 64];
        for _ in 0..3000 {
            let from = below(60);
            let pages = from..from + 1 + below(4);
            let here = pages.start as usize..pages.end as usize;
            if below(8) == 0 {
                let before = below(64);
                segment.was_read(before, &[]);
                known[..before as usize].fill(false);
            } else {
                assert_eq!(segment.lose(pages.clone()), known[here.clone()].contains(&false));
                known[here].fill(true);
            }
            for from in 0..60 {
                assert_eq!(segment.is_unreadable(from..from + 3), known[from as usize..][..3].contains(&true));
            }
            assert!(
                segment.unreadable.windows(2).all(|pair| pair[0].end < pair[1].start),
                "no more than there are gaps"
            );
        }
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
