//! An open loop: messages are due at even intervals, whatever has become of those before them. The pairs take turns.

use std::time::Duration;

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    every_ns: f64,
    next_ns: f64,
    next_pair: u32,
}

impl Pace {
    /// So many messages a second, all pairs together; the first at [`Pace::resume`].
    pub(crate) fn new(per_s: f64) -> Pace {
        Pace { every_ns: 1e9 / per_s, next_ns: 0.0, next_pair: 0 }
    }

    /// The next message is due now.
    pub(crate) fn resume(&mut self, now_ns: u64) {
        self.next_ns = now_ns as f64;
    }

    /// Of which of `pairs` a message is due that was not told yet, and since when.
    #[inline]
    pub(crate) fn due(&mut self, now_ns: u64, pairs: u32) -> Option<(u32, u64)> {
        if self.next_ns > now_ns as f64 {
            return None;
        }
        let due = (self.next_pair, self.next_ns as u64);
        self.next_ns += self.every_ns;
        self.next_pair = (self.next_pair + 1) % pairs;
        Some(due)
    }

    /// How long until the next one is due.
    pub(crate) fn until_due(&self, now_ns: u64) -> Duration {
        Duration::from_nanos((self.next_ns - now_ns as f64).max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_even_intervals_and_none_is_left_out_after_a_stall() {
        let mut pace = Pace::new(1e6);
        pace.resume(5_000);
        assert_eq!((pace.due(4_999, 3), pace.until_due(4_000)), (None, Duration::from_micros(1)));
        let mut due = Vec::new();
        while let Some(it) = pace.due(9_500, 3) {
            due.push(it);
        }
        assert_eq!(due, [(0, 5_000), (1, 6_000), (2, 7_000), (0, 8_000), (1, 9_000)]);
        assert_eq!(pace.until_due(9_500), Duration::from_nanos(500));
        assert_eq!(pace.until_due(11_000), Duration::ZERO);
    }
}
