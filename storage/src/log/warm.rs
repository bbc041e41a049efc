//! What of a log is in memory, as far as is known: whoever is about to look at anything else has it read in first.

use bytes::Bytes;

use super::Log;
use crate::segments::Segment;
use crate::{Location, SegmentId};

impl Log {
    /// Whether these bytes can be looked at without a wait for the disk, as far as is known: they were written, or their
    /// segment was read in, since the log was opened, and [`Log::cool`] has not found too many of these since.
    #[inline]
    pub fn is_warm(&self, location: Location) -> bool {
        self.segments.get(location.segment).is_none_or(Segment::is_warm)
    }

    /// Lets what was written or read in longest ago count as warm no longer, where that is more than [`LogOptions::warm_max`](crate::LogOptions::warm_max).
    /// Its owner says when: not before all have looked who waited for what was read in. Else of several that want more than there
    /// is room for one might never find it.
    #[inline]
    pub fn cool(&mut self) {
        let most = self.options.warm_max / u64::from(self.options.segment_size);
        self.segments.cool(usize::try_from(most).unwrap_or(usize::MAX));
    }

    /// Bytes of closed segments that are warm.
    pub fn warm_bytes(&self) -> u64 {
        self.segments.warm() as u64 * u64::from(self.options.segment_size)
    }

    /// The mapping of a segment, to be read in off the core before [`Log::warmed`].
    pub fn mapping(&self, id: SegmentId) -> Option<Bytes> {
        self.segments.get(id).map(|segment| segment.view().clone())
    }

    /// A segment was read in, and looked at: its last batch ends there.
    pub fn warmed(&mut self, id: SegmentId, end: u32) {
        let Some(segment) = self.segments.get_mut(id) else { return };
        if !id.is_cold() {
            segment.end.get_or_insert(end);
        }
        // One that is written stays warm without that.
        if !segment.is_open() {
            self.segments.warm_up(id);
        }
    }

    /// Segments of which all batches are written are closed. Before that none of them is read in, for it would not be whole.
    pub(super) fn close_written(&mut self) {
        let open = self.position().segment;
        while self.closed < open {
            self.segments.warm_up(self.closed);
            self.closed = self.closed.next();
        }
    }
}
