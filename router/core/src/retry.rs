//! When clients whose requests are refused for the moment are to come back. All that are told the same time come back at once, with all
//! that they have sent meanwhile, and most of them are refused again: so they are told different ones, and the longer a node has refused the later
//! ones.

use whimbrel_wire::Code;

/// Refusals further apart than this have nothing to do with each other.
const CALM_US: u64 = 1_000_000;

/// Times are spread over so many times the least more at most.
const LONGEST: u64 = 20;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Retry {
    /// When the refusals for want of something began that are not over, and when the last of them was, on the monotone clock.
    lasting: Option<(u64, u64)>,
    /// Where in the spread the last one was put, of 2³².
    place: u32,
}

impl Retry {
    /// For a request that is refused now: from `least_ms` to twice that; and if the node has too little of something, then to as much
    /// more as it has refused for that already.
    pub(crate) fn after_ms(&mut self, now_us: u64, code: Code, least_ms: u32) -> u32 {
        let lasted_us = match code {
            Code::Overloaded | Code::StorageFull => {
                let lasting = self.lasting.filter(|(_, last_us)| now_us <= last_us + CALM_US);
                let since_us = lasting.map_or(now_us, |(since_us, _)| since_us);
                self.lasting = Some((since_us, now_us));
                now_us - since_us
            }
            // Of one partition, of a start, or of too many clients.
            Code::NotReady | Code::InRepair | Code::TooManyConnections => 0,
            code if code.retriable() => return least_ms,
            _ => return 0,
        };
        let least = u64::from(least_ms);
        let spread_ms = (least + (lasted_us / 1000).min(least * LONGEST)).min(u64::from(u32::MAX));
        // Steps of the golden ratio: however many there are they lie evenly.
        self.place = self.place.wrapping_add(0x9E37_79B9);
        least_ms.saturating_add(((spread_ms * u64::from(self.place)) >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_many(retry: &mut Retry, now_us: u64) -> Vec<u32> {
        let mut all: Vec<u32> = (0..200).map(|_| retry.after_ms(now_us, Code::Overloaded, 200)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn clients_that_are_refused_at_once_do_not_come_back_at_once() {
        let all = of_many(&mut Retry::default(), 5);
        assert!(all[0] >= 200 && all[199] < 400);
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] <= 3), "they lie evenly: {all:?}");
    }

    #[test]
    fn the_longer_a_node_refuses_the_later_they_come_back_and_after_a_calm_as_before() {
        let mut retry = Retry::default();
        let mut latest = 400;
        for second in 1..=3 {
            // Every half second, so that there is no calm.
            retry.after_ms(second * 1_000_000 - 500_000, Code::Overloaded, 200);
            let all = of_many(&mut retry, second * 1_000_000);
            assert!(all[0] < 250 && all[199] > latest, "in second {second}: {} to {}", all[0], all[199]);
            latest = all[199];
        }
        for second in 4..60 {
            retry.after_ms(second * 1_000_000, Code::Overloaded, 200);
        }
        let all = of_many(&mut retry, 60_000_000);
        assert!((4000..4400).contains(&all[199]), "{}", all[199]);
        assert!(of_many(&mut retry, 70_000_000)[199] < 400);
    }

    #[test]
    fn what_is_not_of_the_node_is_told_the_least_and_what_is_final_nothing() {
        let mut retry = Retry::default();
        for code in Code::ALL {
            let after_ms = retry.after_ms(1, *code, 50);
            assert_eq!(after_ms > 0, code.retriable(), "{code:?}");
            assert!(after_ms < 100);
        }
        assert_eq!(retry.after_ms(2, Code::TooManyInFlight, 50), 50);
    }

    #[test]
    fn what_concerns_one_partition_makes_no_other_wait_longer() {
        let mut retry = Retry::default();
        for half_second in 0..20 {
            retry.after_ms(half_second * 500_000, Code::InRepair, 200);
        }
        assert!(of_many(&mut retry, 10_000_000)[199] < 400);
    }

    #[test]
    fn no_time_is_too_long_for_its_field() {
        for least_ms in [1, 5_000_000, u32::MAX / 2, u32::MAX] {
            let mut retry = Retry::default();
            for second in 0..1000 {
                let after_ms = retry.after_ms(second * 1_000_000, Code::StorageFull, least_ms);
                assert!(after_ms >= least_ms, "{after_ms} of {least_ms}");
            }
        }
    }
}
