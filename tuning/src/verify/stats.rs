//! Figures measured in pairs, one without and one with in each round: the change and its confidence interval. Pure.

#![forbid(unsafe_code)]

use serde::Serialize;

/// How sure the intervals of one report are together.
const CONFIDENCE: f64 = 0.95;

/// What a figure of pairs says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It is better with the profile.
    Better,
    /// It is worse with it.
    Worse,
    /// The interval contains no change.
    NoEffect,
}

/// One figure without and with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Compared {
    /// Its name.
    pub(crate) name: String,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Of each round.
    pub(crate) without: Vec<f64>,
    /// Of each round.
    pub(crate) with: Vec<f64>,
    /// Median of the rounds.
    pub(crate) without_median: f64,
    /// Median of the rounds.
    pub(crate) with_median: f64,
    /// Change in per cent, the mean over the pairs; of each figure plus 1 where one of them is 0.
    pub(crate) change_percent: f64,
    /// Its interval.
    pub(crate) interval: (f64, f64),
    /// What that says.
    pub(crate) verdict: Verdict,
}

/// A figure's name, unit, whether less of it is better, and its rounds without and with.
pub(crate) struct Pairs {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) less_is_better: bool,
    pub(crate) without: Vec<f64>,
    pub(crate) with: Vec<f64>,
}

/// Compares figures. The more there are, the wider each interval: all of them together are as sure as one would be alone.
pub(crate) fn compare(all: Vec<Pairs>) -> Vec<Compared> {
    let count = all.len().max(1) as f64;
    all.into_iter().map(|pairs| compare_one(pairs, 1.0 - (1.0 - CONFIDENCE) / count)).collect()
}

fn compare_one(pairs: Pairs, confidence: f64) -> Compared {
    let Pairs { name, unit, less_is_better, without, with } = pairs;
    // A counter that is 0 now and then is counted from 1, so that a share can be named.
    let from = if without.iter().chain(&with).all(|&figure| figure > 0.0) { 0.0 } else { 1.0 };
    let changes: Vec<f64> = without.iter().zip(&with).map(|(a, b)| ((b + from) / (a + from)).ln()).collect();
    let (mean, half) = mean_and_half_width(&changes, confidence);
    let percent = |change: f64| change.exp_m1() * 100.0;
    let interval = (percent(mean - half), percent(mean + half));
    let verdict = match (interval.0 > 0.0, interval.1 < 0.0) {
        (true, _) if less_is_better => Verdict::Worse,
        (true, _) => Verdict::Better,
        (_, true) if less_is_better => Verdict::Better,
        (_, true) => Verdict::Worse,
        _ => Verdict::NoEffect,
    };
    Compared {
        without_median: median(&without),
        with_median: median(&with),
        change_percent: percent(mean),
        name,
        unit,
        without,
        with,
        interval,
        verdict,
    }
}

/// The middle one; of an even number the mean of the two.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// Mean, and half the width of its interval by Student's t.
fn mean_and_half_width(figures: &[f64], confidence: f64) -> (f64, f64) {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    if figures.len() < 2 {
        return (mean, f64::INFINITY);
    }
    let variance = figures.iter().map(|figure| (figure - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, t_quantile((1.0 + confidence) / 2.0, figures.len() as u32 - 1) * (variance / count).sqrt())
}

/// The t below which Student's distribution with so many degrees of freedom has this share, which is more than a half.
fn t_quantile(share: f64, degrees: u32) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while 0.5 + t_inner_share(high, degrees) / 2.0 < share {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if 0.5 + t_inner_share(middle, degrees) / 2.0 < share { low = middle } else { high = middle }
    }
    high
}

/// The share of Student's distribution between -t and t: Abramowitz and Stegun, 26.7.3 and 26.7.4.
fn t_inner_share(t: f64, degrees: u32) -> f64 {
    let theta = (t / f64::from(degrees).sqrt()).atan();
    let (sin, cos) = theta.sin_cos();
    let is_odd = degrees % 2 == 1;
    // 1, 2/3 cos², 2·4/(3·5) cos⁴ …, or 1, 1/2 cos², 1·3/(2·4) cos⁴ …
    let (mut term, mut sum, mut k) = (if is_odd { cos } else { 1.0 }, 0.0, if is_odd { 3 } else { 2 });
    while k <= degrees {
        sum += term;
        term *= cos * cos * f64::from(k - 1) / f64::from(k);
        k += 2;
    }
    if is_odd { (theta + sin * sum) * std::f64::consts::FRAC_2_PI } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(less_is_better: bool, without: &[f64], with: &[f64]) -> Compared {
        let (without, with) = (without.to_vec(), with.to_vec());
        compare(vec![Pairs { name: "x".into(), unit: "", less_is_better, without, with }]).remove(0)
    }

    /// Values of the printed tables.
    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (share, degrees, table) in [
            (0.975, 1, 12.706),
            (0.975, 2, 4.303),
            (0.975, 4, 2.776),
            (0.995, 4, 4.604),
            (0.975, 9, 2.262),
            (0.999, 30, 3.385),
            (0.95, 7, 1.895),
        ] {
            assert!(
                (t_quantile(share, degrees) - table).abs() < 0.001,
                "{share} {degrees}: {}",
                t_quantile(share, degrees)
            );
        }
    }

    #[test]
    fn an_effect_is_told_from_chance() {
        let noise = [100.0, 104.0, 97.0, 101.0, 99.0];
        let lower = [89.0, 93.0, 88.0, 90.0, 91.0];
        let found = verdict(true, &noise, &lower);
        assert_eq!(found.verdict, Verdict::Better);
        assert!(found.interval.0 < found.change_percent && found.change_percent < found.interval.1);
        assert_eq!(verdict(false, &noise, &lower).verdict, Verdict::Worse);
        assert_eq!(verdict(true, &noise, &[101.0, 98.0, 103.0, 96.0, 102.0]).verdict, Verdict::NoEffect);
    }

    #[test]
    fn figures_that_do_not_vary_need_no_interval() {
        assert_eq!(verdict(false, &[4097.0; 3], &[8000.0; 3]).verdict, Verdict::Better);
        assert_eq!(verdict(false, &[4097.0; 3], &[4097.0; 3]).verdict, Verdict::NoEffect);
        assert_eq!(verdict(true, &[0.0; 3], &[5.0; 3]).verdict, Verdict::Worse);
    }

    #[test]
    fn a_counter_that_stays_0_with_is_an_effect_and_a_rare_one_is_not() {
        assert_eq!(verdict(true, &[458.0, 120.0, 710.0, 64.0, 335.0], &[0.0; 5]).verdict, Verdict::Better);
        assert_eq!(verdict(true, &[1.0, 0.0, 0.0, 1.0, 2.0], &[0.0, 1.0, 0.0, 0.0, 1.0]).verdict, Verdict::NoEffect);
    }

    #[test]
    fn more_figures_make_wider_intervals() {
        let pairs = || Pairs {
            name: "x".into(),
            unit: "",
            less_is_better: true,
            without: vec![1.0, 2.0, 3.0],
            with: vec![1.1, 2.0, 3.2],
        };
        let width = |compared: &Compared| compared.interval.1 - compared.interval.0;
        assert!(width(&compare(vec![pairs(), pairs()])[0]) > width(&compare(vec![pairs()])[0]));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
