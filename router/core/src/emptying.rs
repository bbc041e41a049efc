//! Emptying: what still waits in a segment whose time has come is moved to cold segments, once, so that the rest of it is
//! forgotten; and what dies in a cold segment is overwritten there.
//!
//! It goes along with the checkpoints, which look at every place that waits anyway:
//!
//! 1. A checkpoint notes all that waits in the segments to be emptied, and in the cold ones.
//! 2. Off the core the former is copied to a cold segment, and what was not noted of the latter is overwritten with zeros.
//! 3. The next checkpoint lets each place point to its copy, just before it goes into the image.
//! 4. Once the one after that is there too, no checkpoint points into the segment, and it goes like any other.
//!
//! Overwriting all of many segments may take longer than the time between two checkpoints. It goes on beside them, one segment
//! after the other, and nothing of the above waits for it.
//!
//! A crash anywhere leaves the original, or both, and copies that nobody points to: the first checkpoint after the start does
//! not note them, so that they are overwritten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use whimbrel_storage::{
    ColdDone, ColdErase, ColdSort, ColdWork, Kept, Location, Log, Loss, Position, Rot, RotReason, SegmentId,
};

use crate::io::{Effect, Effects};
use crate::limits;
use crate::shard::Shard;

/// What a checkpoint in the making notes and changes.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Places and their copies, ascending.
    map: Vec<(Location, Location)>,
    /// Segments that the places are in, ascending.
    mapped: Vec<SegmentId>,
    /// Where in the map the last place was looked for.
    seen: usize,
    /// Segments to be emptied, ascending.
    sources: Vec<SegmentId>,
    /// What waits in them, and in the other cold ones.
    places: ColdSort,
    /// How far the cold ones are written with what is in the map, or was in an earlier one.
    ends: Vec<(SegmentId, u32)>,
    /// Behind this one, if it is not cold, nothing is to be done.
    last_hot: SegmentId,
}

impl Marks {
    /// A place that waits: it points to its copy from now on, if there is one.
    #[inline]
    pub(crate) fn visit(&mut self, log: &mut Log, place: &mut Location) {
        if place.segment.is_cold() || place.segment <= self.last_hot {
            self.look(log, place);
        }
    }

    fn look(&mut self, log: &mut Log, place: &mut Location) {
        self.seen = seek(&self.map, self.seen, place);
        if let Some(&(_, to)) = self.map.get(self.seen).filter(|(from, _)| from == place) {
            log.release(*place);
            log.hold(to);
            *place = to;
        }
        if self.sources.binary_search(&place.segment).is_ok() {
            // What is too much stays, and its segment is emptied later.
            if self.places.found.len() < limits::EMPTY_PLACES_MAX {
                self.places.found.push(*place);
            }
        } else if place.segment.is_cold() {
            self.places.cold.push(*place);
        }
    }
}

/// Where a place is in the map, or would be, looked for in ever longer steps from where the last one was: what waits in one inbox is
/// mostly in the log's order, and a search through all of a long map costs a miss of the cache at each of its steps.
fn seek(map: &[(Location, Location)], from: usize, place: &Location) -> usize {
    let is_before = |(it, _): &(Location, Location)| it < place;
    let (mut step, mut low, mut high) = (1, 0, map.len());
    if map.get(from).is_some_and(is_before) {
        low = from + 1;
        while let Some(it) = map.get(low + step) {
            if !is_before(it) {
                high = low + step;
                break;
            }
            low += step + 1;
            step *= 2;
        }
    } else {
        high = from.min(map.len());
        while let Some(at) = high.checked_sub(step) {
            if is_before(&map[at]) {
                low = at + 1;
                break;
            }
            high = at;
            step *= 2;
        }
    }
    low + map[low..high].partition_point(is_before)
}

/// Work that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnderWay {
    Sort,
    Copy,
    /// A step of it.
    Erase(SegmentId),
}

impl UnderWay {
    /// Whether it has to be done before anything else can be noted that is to be moved.
    fn is_of_a_move(self) -> bool {
        match self {
            UnderWay::Sort | UnderWay::Copy => true,
            UnderWay::Erase(_) => false,
        }
    }

    fn of(work: &ColdWork) -> UnderWay {
        match work {
            ColdWork::Sort(_) => UnderWay::Sort,
            ColdWork::Copy(_) => UnderWay::Copy,
            ColdWork::Erase(erase) => UnderWay::Erase(erase.segment()),
        }
    }
}

/// Between two checkpoints.
#[derive(Debug, Default)]
pub(crate) struct Emptying {
    /// When checkpoints began, and with which segment the log went on: newest last.
    begun: VecDeque<(u64, SegmentId)>,
    /// To be copied, ascending.
    queue: VecDeque<Location>,
    /// Copied: from where to where, ascending.
    copied: Vec<(Location, Location)>,
    /// Out of which segments, ascending.
    copied_from: Vec<SegmentId>,
    /// Each to its end before the next. What one was planned to leave is all that waits there, however late it comes to it: since
    /// then only some of that has died, or has moved, and what was added to the segment lies behind where it ends.
    erasing: VecDeque<ColdErase>,
    /// What the last checkpoint noted, until it is sorted, and which segments it was to empty.
    noted: Option<ColdSort>,
    sources: Vec<SegmentId>,
    /// Given out and not answered.
    under_way: Option<UnderWay>,
    /// Something is to be erased that could not be, or not yet: with the next checkpoint.
    put_off: bool,
}

impl Shard {
    /// What the checkpoint that is begun now is to note and change.
    pub(crate) fn begin_marks(&mut self, position: Position, number: u64) -> Marks {
        let Emptying { begun, queue, copied, copied_from, noted, under_way, .. } = &mut self.emptying;
        let now_us = self.now.mono_us;
        begun.push_back((now_us, position.segment));
        let age_us = self.config.bounds.forget_after_us / limits::FORGET_STEPS * limits::EMPTY_AGE_STEPS;
        let old = begun.partition_point(|(at_us, _)| at_us + age_us <= now_us);
        begun.drain(..old.saturating_sub(1));
        // All that waits is visited once: its list never has to grow, which would copy it in one turn.
        let held = self.log.held() as usize;
        let places = ColdSort {
            found: Vec::with_capacity(held.min(limits::EMPTY_PLACES_MAX)),
            cold: Vec::with_capacity(held),
            ..ColdSort::default()
        };
        let is_idle = queue.is_empty() && noted.is_none() && !under_way.is_some_and(UnderWay::is_of_a_move);
        if !is_idle {
            return Marks { places, ..Marks::default() };
        }
        // Sealed for so long that most of what was on its way is there.
        let before = begun.front().filter(|_| old > 0).map(|(_, segment)| *segment);
        let hot = before.map(|segment| Position { segment, ..position });
        let hot = hot.into_iter().flat_map(|position| self.log.held_before(position));
        // Where there is no space for a cold segment, what is left is for what was accepted; and it goes as its devices come.
        let most = if self.disk_full { 0 } else { limits::EMPTY_SEGMENTS_MAX };
        let sources: Vec<SegmentId> = hot.chain(self.log.sparse()).take(most).collect();
        let (map, mapped) = (std::mem::take(copied), std::mem::take(copied_from));
        // Nothing may point into them before this checkpoint is there, and others still do.
        mapped.iter().for_each(|id| self.log.emptied(*id, number));
        let last_hot = sources.iter().chain(&mapped).copied().filter(|id| !id.is_cold()).max();
        let last_hot = last_hot.unwrap_or(SegmentId(0));
        Marks { map, mapped, seen: 0, sources, places, ends: self.log.cold_ends(), last_hot }
    }

    /// The checkpoint has seen all that waits.
    pub(crate) fn end_marks(&mut self, fx: &mut Effects, marks: Marks) {
        self.log.settle(&marks.ends);
        self.emptying.noted = Some(marks.places);
        // Those of an earlier checkpoint that are being sorted now are theirs still: this one then has none.
        if !self.emptying.under_way.is_some_and(UnderWay::is_of_a_move) {
            self.emptying.sources = marks.sources;
        }
        self.work_on_cold(fx);
    }

    /// What was noted is in order: what of it is copied and what else is erased.
    fn on_sorted(&mut self, ColdSort { found, mut kept, .. }: ColdSort) {
        let sources = std::mem::take(&mut self.emptying.sources);
        if !found.is_empty() {
            self.emptying.copied.reserve(found.len());
            self.emptying.queue = found.into();
        }
        let ids: Vec<SegmentId> = self.log.cold_segments().collect();
        self.emptying.put_off = false;
        self.emptying.erasing.retain(|erase| ids.binary_search(&erase.segment()).is_ok());
        let turns: BTreeMap<SegmentId, usize> =
            self.emptying.erasing.iter().enumerate().map(|(turn, erase)| (erase.segment(), turn)).collect();
        for id in ids.into_iter().filter(|id| sources.binary_search(id).is_err()) {
            if self.log.is_emptied(id) {
                // The checkpoints that are there still point to what was moved.
                self.emptying.put_off = true;
                continue;
            }
            let at = kept.binary_search_by_key(&id, |(segment, _)| *segment).ok();
            let keep = at.map_or(Kept::default(), |at| std::mem::take(&mut kept[at].1));
            let Some(erase) = self.log.plan_erase(id, keep) else { continue };
            match turns.get(&id).map(|turn| &mut self.emptying.erasing[*turn]) {
                // It would never come to its end.
                Some(begun) if begun.is_begun() => {}
                // More has died since, and it keeps its turn.
                Some(planned) => *planned = erase,
                None => self.emptying.erasing.push_back(erase),
            }
        }
    }

    /// The checkpoint is given up. What points to copies already goes on doing so.
    pub(crate) fn abandon_marks(&mut self, marks: Marks) {
        if !marks.map.is_empty() {
            self.emptying.copied = marks.map;
            self.emptying.copied_from = marks.mapped;
        }
    }

    /// Whether a checkpoint is wanted so that emptying goes on, though nothing has happened since the last ones.
    pub(crate) fn wants_marks(&self) -> bool {
        !self.emptying.copied.is_empty()
            || self.emptying.put_off
            || self.log.awaits_checkpoints()
            || self.log.cold_is_unsettled()
            || self.log.held_before(self.log.position()).next().is_some()
    }

    fn work_on_cold(&mut self, fx: &mut Effects) {
        if self.emptying.under_way.is_some() || self.stopping || !self.may_let_go() {
            return;
        }
        // What is left to be copied was noted by the checkpoint before.
        let mut sort = if self.emptying.queue.is_empty() { self.emptying.noted.take() } else { None };
        if let Some(mut few) = sort.take_if(|sort| sort.places() <= self.config.bounds.sorted_places) {
            few.run();
            self.on_sorted(few);
        }
        let copy = |log: &mut Log, queue: &mut VecDeque<Location>| log.plan_copy(queue).map(ColdWork::Copy);
        let work = sort
            .map(ColdWork::Sort)
            .or_else(|| copy(&mut self.log, &mut self.emptying.queue))
            .or_else(|| self.emptying.erasing.pop_front().map(ColdWork::Erase));
        if let Some(work) = work {
            self.emptying.under_way = Some(UnderWay::of(&work));
            fx.list.push(Effect::Cold(work));
        }
    }

    pub(crate) fn on_cold_done(&mut self, fx: &mut Effects, done: ColdDone) {
        self.emptying.under_way = None;
        match done {
            ColdDone::Copied(copied) => {
                self.log.copied(&copied);
                self.counters.moved += copied.moved.len() as u64;
                self.counters.moved_bytes += copied.bytes;
                self.counters.moved_padding += u64::from(copied.padded).saturating_sub(copied.bytes);
                self.counters.moves_rotten += copied.rotten.len() as u64;
                for part in copied.moved.chunk_by(|(a, _), (b, _)| a.segment == b.segment) {
                    let from = part[0].0.segment;
                    if self.emptying.copied_from.last() != Some(&from) {
                        self.emptying.copied_from.push(from);
                    }
                }
                self.emptying.copied.extend(copied.moved);
                self.learn_of_rotten(fx, &copied.rotten);
            }
            ColdDone::Erased(mut erase) => {
                self.learn_of_unreadable(fx, erase.take_damage());
                if erase.is_done() {
                    self.counters.erased_bytes += erase.written();
                    self.log.erased(&erase);
                } else {
                    self.emptying.erasing.push_front(erase);
                }
            }
            ColdDone::Sorted(sort) => self.on_sorted(sort),
        }
        self.work_on_cold(fx);
    }

    /// Places that wait could not be copied, for they are not as they were written.
    fn learn_of_rotten(&mut self, fx: &mut Effects, places: &[Location]) {
        let rot = |place: &Location| {
            let Location { segment, offset, len: bytes } = *place;
            Rot { segment, offset, bytes, reason: RotReason::Batch, loss: Loss::Unknown }
        };
        if !places.is_empty() {
            self.learn_of(fx, &places.iter().map(rot).collect(), |_| None);
        }
    }

    /// Something in a cold segment cannot be read. Whoever waits for it is in repair; where nobody does the disk is to be looked
    /// after all the same. What was known of before is not compared with all that waits again: nothing new waits there.
    fn learn_of_unreadable(&mut self, fx: &mut Effects, rots: Vec<Rot>) {
        let is_news = |rot: &Rot| self.log.lose(rot.segment, rot.offset..rot.offset + rot.bytes);
        let rots: BTreeSet<Rot> = rots.into_iter().filter(is_news).collect();
        if rots.is_empty() {
            return;
        }
        self.learn_of(fx, &rots, |_| None);
        for rot in rots {
            if !self.rot.contains(&rot) {
                self.note(Rot { loss: Loss::Nothing, ..rot });
            }
        }
    }

    /// What is left is tried anew with the next checkpoint.
    pub(crate) fn on_cold_failed(&mut self) {
        match self.emptying.under_way.take() {
            // What else is to be erased is not kept waiting by one that fails each time.
            Some(UnderWay::Erase(segment)) => self.log.erase_failed(segment),
            Some(UnderWay::Copy | UnderWay::Sort) | None => {
                self.emptying.queue.clear();
                self.log.copy_failed();
            }
        }
        self.emptying.put_off = true;
        self.counters.moves_failed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_from_wherever_the_last_one_was() {
        let at = |n: u32| Location { segment: SegmentId(1 + n / 7), offset: n % 7 * 64, len: 9 };
        for len in 0..40 {
            // Every other one, so that there are some between them too.
            let map: Vec<_> = (0..len).map(|n| (at(2 * n + 1), at(0))).collect();
            for from in 0..=map.len() + 2 {
                for n in 0..2 * len + 3 {
                    let place = at(n);
                    let expected = map.partition_point(|(it, _)| *it < place);
                    assert_eq!(seek(&map, from, &place), expected, "{place:?} of {len} from {from}");
                }
            }
        }
    }
}
