//! What one pair's receiver has seen of its messages: each exactly once and in order, or it is counted what was not.

use std::collections::BTreeSet;

/// Broken promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
}

impl Faults {
    /// Both.
    pub(crate) fn plus(self, other: Faults) -> Faults {
        Faults {
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
        }
    }

    /// Whether there are any.
    pub(crate) fn any(self) -> bool {
        self != Faults::default()
    }
}

/// Messages of a pair are numbered from 1 by the sender; each has a `chat_seq` from the server.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The highest number that came.
    highest: u64,
    /// Below it, what did not come yet.
    missing: BTreeSet<u64>,
    chat_seq: u64,
    duplicated: u64,
    reordered: u64,
}

impl Ledger {
    /// A delivery came.
    #[inline]
    pub(crate) fn delivered(&mut self, number: u64, chat_seq: u64) {
        let rises = chat_seq > self.chat_seq;
        self.chat_seq = self.chat_seq.max(chat_seq);
        if number == self.highest + 1 {
            self.highest = number;
            self.reordered += u64::from(!rises);
        } else if number > self.highest {
            self.missing.extend(self.highest + 1..number);
            self.highest = number;
        } else if self.missing.remove(&number) {
            self.reordered += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// The highest number that came.
    #[inline]
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// What is wrong when nothing more will come of the messages up to `sent`.
    pub(crate) fn faults(&self, sent: u64) -> Faults {
        let lost = self.missing.len() as u64 + sent.saturating_sub(self.highest);
        Faults { lost, duplicated: self.duplicated, reordered: self.reordered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(sent: u64, deliveries: &[(u64, u64)]) -> Faults {
        let mut ledger = Ledger::default();
        for &(number, chat_seq) in deliveries {
            ledger.delivered(number, chat_seq);
        }
        ledger.faults(sent)
    }

    #[test]
    fn each_once_and_in_order_is_no_fault() {
        assert!(!faults(3, &[(1, 2), (2, 3), (3, 4)]).any());
        assert!(!faults(0, &[]).any());
    }

    #[test]
    fn what_did_not_come_is_lost() {
        assert_eq!(faults(4, &[(1, 2), (3, 4)]), Faults { lost: 2, ..Faults::default() });
        assert_eq!(faults(2, &[]), Faults { lost: 2, ..Faults::default() });
    }

    #[test]
    fn what_came_twice_is_duplicated() {
        assert_eq!(faults(2, &[(1, 2), (2, 3), (2, 3), (1, 4)]), Faults { duplicated: 2, ..Faults::default() });
    }

    #[test]
    fn what_came_late_is_reordered_and_not_lost() {
        assert_eq!(faults(3, &[(1, 2), (3, 4), (2, 3)]), Faults { reordered: 1, ..Faults::default() });
        assert_eq!(faults(3, &[(3, 4), (2, 3), (1, 2)]), Faults { reordered: 2, ..Faults::default() });
    }

    #[test]
    fn a_sequence_that_does_not_rise_is_reordered() {
        assert_eq!(faults(2, &[(1, 2), (2, 2)]), Faults { reordered: 1, ..Faults::default() });
    }

    /// Any order with drops and repeats: what is counted is what a plain look at the list says.
    #[test]
    fn a_shuffled_stream_is_counted_right() {
        let mut state = 12345u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..200 {
            let sent = 1 + random(40);
            let mut stream: Vec<u64> = Vec::new();
            for number in 1..=sent {
                for _ in 0..random(3) {
                    let at = stream.len() - random(stream.len().min(4) as u64 + 1) as usize;
                    stream.insert(at, number);
                }
            }
            let distinct: BTreeSet<u64> = stream.iter().copied().collect();
            let mut late = 0;
            let mut seen = BTreeSet::new();
            for &number in &stream {
                late += u64::from(seen.insert(number) && seen.range(number + 1..).next().is_some());
            }
            let deliveries: Vec<_> = stream.iter().map(|&number| (number, number + 1)).collect();
            let expected = Faults {
                lost: sent - distinct.len() as u64,
                duplicated: (stream.len() - distinct.len()) as u64,
                reordered: late,
            };
            assert_eq!(faults(sent, &deliveries), expected, "{stream:?}");
        }
    }
}
