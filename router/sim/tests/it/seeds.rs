//! Seeds that every test run goes through, and what must be true of them together. Long ranges are for CI, in release
//! (see `.ci/run` and `.ci/long`).

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use whimbrel_sim::{DEFAULT_STEPS, Outcome, Run, Stats, Trace, failure, run};

/// As many as rare weather needs: a sort of cold segments that fails before all faults have ended comes in one of a hundred.
const SEEDS: u64 = 176;

/// In which something is erased beside a page that the disk does not give, before all faults have ended, and a sort of cold segments is cut
/// off by a crash: a few seeds of a thousand.
const RAREST: u64 = 706;

fn sim(seed: u64) -> Outcome {
    run(Run { seed, steps: DEFAULT_STEPS, plant: None }, Trace::default())
}

#[test]
fn seeds_find_nothing_in_weather_of_every_kind() {
    let mut total = Stats::default();
    let mut each = Vec::new();
    for seed in (0..SEEDS).chain([RAREST]) {
        let outcome = sim(seed);
        if let Some(violation) = &outcome.violation {
            let what = Run { seed, steps: DEFAULT_STEPS, plant: None };
            panic!("{}", failure(&what, violation, &outcome.story));
        }
        total.add(&outcome.stats);
        each.push(outcome.stats);
    }
    assert!(total.load_share() >= 0.5, "steps that carry load: {:.3}", total.load_share());
    assert_eq!(total.sent, total.acknowledged, "whoever writes to a chat of their own is answered");
    for (name, count) in total.fields() {
        assert!(count > 0, "{name} never happened");
    }
    in_groups_across_shards(&each);
}

/// What matters most happens while groups talk across shards, not only where a node is idle or alone.
fn in_groups_across_shards(each: &[Stats]) {
    let among = |name: &str, count: fn(&Stats) -> u64| {
        let seeds = each.iter().filter(|it| it.spread_groups > 0 && it.fan_outs > 0 && count(it) > 0).count();
        assert!(seeds > 0, "{name} in no seed with groups across shards");
    };
    among("a torn batch", |it| it.torn);
    among("a truncation", |it| it.truncated);
    among("lost writes", |it| it.lost_writes);
    among("a full lane", |it| it.full_lanes);
    among("a rewind", |it| it.rewinds);
    among("a slow consumer served from the log", |it| it.slow_served);
    among("a device that waited", |it| it.waited);
    among("a refusal for overload", |it| it.overloaded);
    among("credit used up", |it| it.credit_used_up);
    among("a clean stop", |it| it.clean_stops);
    among("a second login", |it| it.replaced);
    among("an end in the middle of a frame", |it| it.cut_frames);
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in [3, 25] {
        let (first, second) = (told(seed), told(seed));
        assert!(first.len() > 10_000, "a story of {} bytes", first.len());
        // Not assert_eq: nobody wants to read two stories of a megabyte.
        assert!(first == second, "seed {seed} told two stories");
    }
    assert!(told(3) != told(4), "two seeds told one story");
}

/// The whole story of a seed.
fn told(seed: u64) -> Vec<u8> {
    let story = Shared::default();
    let trace = Trace::to_file(Box::new(story.clone()));
    run(Run { seed, steps: DEFAULT_STEPS, plant: None }, trace.clone());
    trace.finish().expect("memory takes it");
    story.0.take()
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
