//! The batch without records that is written behind the last one once the log rests. Only what was written later says of a batch that it
//! was durable: without it a bit that turns over in the last one is taken for a write that was cut short, and what it
//! holds is cut off. With it that is rot. Damage of a batch without records loses nothing.
//!
//! None follows another, and nobody who asks what the log holds is told of one.

use super::Log;
use crate::LogWrite;
use crate::checkpoint::Position;
use crate::layout::FIRST_BATCH_OFFSET;
use crate::limits::PAGE_BYTES;

/// What the last batch is.
#[derive(Clone, Copy)]
pub(super) enum Last {
    /// It was there when the log was opened.
    Found,
    /// It has records, and is durable.
    Records,
    /// It has none, lies here, and is written or on its way. So it stays until one with records is durable.
    Empty(Position),
}

impl Log {
    /// Whether [`Log::write_empty`] gives a batch: the last one that was written has records, nothing is on its way, and there is
    /// a place for it.
    pub fn takes_empty(&self) -> bool {
        let is_full = self.options.segment_size - self.tail_offset < PAGE_BYTES;
        let segment = if is_full { self.tail_segment.next() } else { self.tail_segment };
        matches!(self.last, Last::Records)
            && self.staged.is_empty()
            && !self.poisoned
            && self.segments.get(segment).is_some()
            && self.pool.available() > 0
    }

    /// A batch without records, to be written behind the last one. It is answered as any other.
    pub fn write_empty(&mut self) -> Option<LogWrite> {
        if !self.takes_empty() {
            return None;
        }
        self.begin_batch(0).ok()?;
        self.close_gathering();
        self.last = Last::Empty(self.position());
        self.next_write()
    }

    /// Whether anything but a batch without records lies behind this place, or the log went on to another segment since.
    pub fn has_grown_since(&self, position: Position) -> bool {
        let now = self.position();
        let is_before_empty = matches!(self.last, Last::Empty(at) if at == position && at.segment == now.segment);
        position != now && !is_before_empty
    }

    /// The batch before which all records lie that are on stable storage: for [`CheckpointWriter::end`](crate::CheckpointWriter::end). One
    /// without records behind them does not count, for a log that lost it has lost nothing.
    pub fn through(&self) -> u64 {
        match self.last {
            Last::Empty(at) => at.batch,
            Last::Found | Last::Records => self.position().batch,
        }
    }

    /// Where that begins in the segment that is written which makes it worth being closed.
    pub(super) fn content_begins(&self) -> u32 {
        match self.last {
            Last::Empty(at) if at.segment == self.tail_segment && at.offset == FIRST_BATCH_OFFSET => {
                FIRST_BATCH_OFFSET + PAGE_BYTES
            }
            Last::Empty(_) | Last::Found | Last::Records => FIRST_BATCH_OFFSET,
        }
    }
}
