//! Connections whose socket does not take what is sent on them. What waits there may be slices of the log, and such a slice holds its
//! segment with all that is dead in it: so it may not wait for ever, however lively the other way is.
//!
//! A connection to which something was sent is looked at after a step, and then again for as long as something waits. What
//! waited at a look and still waits [`limits::QUEUE_AGE_LOOKS`] looks later is too old. So nothing becomes older than
//! [`Bounds::queue_age_us`](limits::Bounds::queue_age_us), and who takes all within two thirds of it is never closed, however much
//! waits. One that keeps up costs a place in a queue for each step in which something is sent to it.

use crate::conn::Stage;
use crate::ids::ConnId;
use crate::io::Effects;
use crate::limits;
use crate::shard::Shard;
use whimbrel_wire::Code;

/// Of what waits on one connection, how much is how old.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// Bytes that waited at the last look, the one before, and so on, and still wait. Falling.
    waited: [u32; limits::QUEUE_AGE_LOOKS],
    /// It stands in the shard's list of those to look at.
    listed: bool,
}

impl Ages {
    /// Something was sent: whether the connection is to be put into the list.
    #[inline]
    #[must_use]
    pub(crate) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.listed, true)
    }

    /// The socket took so many, the oldest first.
    #[inline]
    pub(crate) fn taken(&mut self, bytes: u32) {
        for waited in &mut self.waited {
            *waited = waited.saturating_sub(bytes);
        }
    }

    /// At a look, with so many bytes waiting: whether some of them wait for too long.
    fn look(&mut self, queued_bytes: u32) -> bool {
        let [.., oldest] = self.waited;
        self.waited.rotate_right(1);
        self.waited[0] = queued_bytes;
        oldest > 0
    }

    /// Whether this can be what is known where so many bytes wait.
    pub(crate) fn fits(&self, queued_bytes: u32) -> bool {
        let [newest, ..] = self.waited;
        newest <= queued_bytes
            && self.waited.is_sorted_by(|newer, older| newer >= older)
            && (queued_bytes == 0 || self.listed)
    }
}

impl Shard {
    /// Puts a connection of which [`Ages::begin`] said so into the list.
    pub(crate) fn list_age(&mut self, conn: ConnId) {
        self.timers.ages.push_back((self.next_look_us(), conn));
    }

    /// A step from now, a sixteenth of it less at most: many are looked at together, and the shard wakes for few of them.
    fn next_look_us(&self) -> u64 {
        let step_us = self.config.bounds.queue_age_us() / (limits::QUEUE_AGE_LOOKS as u64 + 1);
        let grain_us = (step_us / 16).max(1);
        (self.now.mono_us / grain_us + 16) * grain_us
    }

    /// Closes connections on which something waits for too long.
    pub(crate) fn close_stuck(&mut self, fx: &mut Effects) {
        let now_us = self.now.mono_us;
        while let Some((_, conn)) = self.timers.ages.pop_front_if(|(due, _)| *due <= now_us) {
            let Some(it) = self.conn(conn) else { continue };
            it.ages.listed = false;
            if matches!(it.stage, Stage::Closing) {
                continue;
            }
            if it.ages.look(it.queued_bytes) {
                // Not another word: nobody takes it.
                self.counters.refuse(Code::SlowReader);
                self.close(fx, conn);
            } else if it.queued_bytes > 0 {
                it.ages.listed = true;
                self.list_age(conn);
            }
        }
        // As long as after all came at once it need not stay.
        if self.timers.ages.len() < self.timers.ages.capacity() / 8 {
            self.timers.ages.shrink_to(self.timers.ages.len() * 2);
        }
    }
}
