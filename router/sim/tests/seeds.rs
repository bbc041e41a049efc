//! Seeds that every test run goes through; the long range is for CI, in release (see `.ci/run`).

use whimbrel_sim::plant::Plant;
use whimbrel_sim::{Outcome, Run, Trace, failure, run};

/// Fewer steps than a usual run: this is the build without optimisation.
const STEPS: u64 = 600;

fn sim(seed: u64, plant: Option<Plant>) -> (Run, Outcome) {
    let what = Run { seed, steps: STEPS, plant };
    (what, run(what, Trace::default()))
}

#[test]
fn seeds_find_nothing() {
    for seed in 0..60 {
        let (what, outcome) = sim(seed, None);
        if let Some(violation) = &outcome.violation {
            panic!("{}", failure(&what, violation, &outcome.story));
        }
    }
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in 0..10 {
        let (_, first) = sim(seed, None);
        let (_, second) = sim(seed, None);
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.story, second.story, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
}

#[test]
fn at_least_half_of_the_steps_carry_load() {
    let mut total = whimbrel_sim::Stats::default();
    for seed in 0..40 {
        total.add(&sim(seed, None).1.stats);
    }
    assert!(total.load_share() >= 0.5, "{:.3}", total.load_share());
    assert!(
        total.delivered > 0 && total.crashes > 0 && total.moves > 0 && total.breaks > 0 && total.full_lanes > 0,
        "{total:?}"
    );
}
