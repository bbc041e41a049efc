//! Medians and percentiles.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The middle one, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// Times in nanoseconds, kept to three digits, up to a minute.
pub(crate) struct Times(Histogram<u64>);

const TIME_MAX_NS: u64 = 60_000_000_000;

impl Default for Times {
    fn default() -> Self {
        Times(
            Histogram::new_with_bounds(1, TIME_MAX_NS, 3)
                .expect("the bounds are in order and three digits are allowed"),
        )
    }
}

impl Times {
    /// One more. Longer than a minute counts as a minute.
    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Adds what another one has.
    pub(crate) fn add(&mut self, other: &Times) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// How many.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The percentiles, or `None` of nothing.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Percentiles {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: us(self.0.max()),
        })
    }
}

/// In microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn percentiles_are_microseconds() {
        let mut times = Times::default();
        assert_eq!(times.percentiles(), None);
        for ms in 1..=1000 {
            times.record(ms * 1_000_000);
        }
        times.record(u64::MAX);
        let p = times.percentiles().unwrap();
        let near = |got: f64, want: f64| assert!((got - want).abs() < want * 0.002, "{got} is not near {want}");
        near(p.p50, 501_000.0);
        near(p.p99, 991_000.0);
        near(p.max, 60_000_000.0);
    }
}
