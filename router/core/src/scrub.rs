//! When which segment is read to see whether it is as it was written. One after the other, those that nobody writes any more,
//! each once in the interval that is set; what is found goes the way of all damage ([`crate::repair`]).

use whimbrel_storage::{Checked, SegmentId};

use crate::io::{Effect, Effects};
use crate::limits;
use crate::shard::Shard;

/// How far the scrubber is.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// The last segment that was asked for.
    last: SegmentId,
    /// It was not answered yet.
    under_way: bool,
    /// When the next one is due.
    next_us: u64,
}

impl Shard {
    /// Has the next segment read, if its time has come.
    pub(crate) fn scrub(&mut self, fx: &mut Effects) {
        let (now_us, interval_us) = (self.now.mono_us, self.config.bounds.scrub_interval_us);
        if self.scrub.under_way || self.stopping || now_us < self.scrub.next_us {
            return;
        }
        let none = || interval_us.min(limits::SCRUB_LOOK_US);
        let pause_us = interval_us.checked_div(self.log.sealed() as u64).unwrap_or_else(none);
        let is_first = std::mem::replace(&mut self.scrub.next_us, now_us + pause_us) == 0;
        if is_first {
            return;
        }
        let first = || self.log.sealed_behind(SegmentId(0));
        let Some(segment) = self.log.sealed_behind(self.scrub.last).or_else(first) else { return };
        if let (Some(mapping), Some(is)) = (self.log.mapping(segment), self.log.segment_is(segment)) {
            self.scrub.last = segment;
            self.scrub.under_way = true;
            fx.list.push(Effect::Scrub { is, mapping });
        }
    }

    pub(crate) fn on_scrubbed(&mut self, fx: &mut Effects, checked: Checked) {
        assert!(self.scrub.under_way && checked.segment == self.scrub.last, "only what was asked for is answered");
        self.scrub.under_way = false;
        self.counters.scrubbed += 1;
        self.counters.scrubbed_bytes += checked.bytes;
        self.learn(fx, checked);
    }
}
