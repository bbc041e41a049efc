//! Planting a fault and running seeds until something is known of it.

use std::ops::Range;

use crate::check::{Check, Violation};
use crate::plant::Plant;
use crate::run::{Run, run};
use crate::trace::Trace;

/// A fault that has fired so often without harm counts as healed.
const HEALED_TIMES: u64 = 100;

/// What became of a planted fault.
#[derive(Clone, Debug)]
pub struct Catch {
    /// Which.
    pub plant: Plant,
    /// Seeds that were run.
    pub seeds: u64,
    /// How often it fired in them.
    pub fired: u64,
    /// The run that ended the hunt.
    pub caught: Option<(Run, Violation)>,
}

/// Runs these seeds until the fault trips what it is planted for, or anything that it must not trip, or has been healed often
/// enough.
pub fn hunt(plant: Plant, seeds: Range<u64>, steps: u64) -> Catch {
    let mut catch = Catch { plant, seeds: 0, fired: 0, caught: None };
    let by_the_way = |check: Check| plant.trips().iter().skip(1).any(|&it| it == check);
    for seed in seeds {
        let what = Run { seed, steps, plant: Some(plant) };
        let outcome = run(what, Trace::default());
        catch.seeds += 1;
        catch.fired += outcome.fired;
        if let Some(violation) = outcome.violation.filter(|it| !by_the_way(it.check)) {
            catch.caught = Some((what, violation));
            break;
        }
        if plant.must_be_healed() && catch.fired >= HEALED_TIMES {
            break;
        }
    }
    catch
}

impl Catch {
    /// It tripped what it is planted for; or it fired and did no harm, if that is how it must be.
    pub fn is_right(&self) -> bool {
        match (&self.caught, self.plant.trips().first()) {
            (None, None) => self.fired > 0,
            (Some((_, violation)), Some(&check)) => violation.check == check,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// The check that ended the hunt, or why it ended without one.
    pub fn verdict(&self) -> &'static str {
        match &self.caught {
            Some((_, violation)) => violation.check.name(),
            None if self.plant.must_be_healed() => "healed",
            None => "not caught",
        }
    }
}
