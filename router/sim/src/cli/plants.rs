//! Planting each fault in turn: the proof that the checks can fail, and that what must be healed is.

use std::io::{self, Write};
use std::time::Instant;

use serde_json::{Value, json};
use whimbrel_sim::check::{Check, Violation};
use whimbrel_sim::plant::Plant;
use whimbrel_sim::{Run, Trace, run};

/// Checks of which each has to be tripped by some plant.
const PROMISED: [Check; 7] =
    [Check::Lost, Check::Duplicate, Check::Phantom, Check::OutOfOrder, Check::Gap, Check::InboxNotEmpty, Check::Stuck];

/// A fault that has fired so often without harm counts as healed.
const HEALED_TIMES: u64 = 100;

/// What became of a planted fault.
struct Catch {
    plant: Plant,
    /// Seeds that were run.
    seeds: u64,
    /// How often it fired in them.
    fired: u64,
    /// The run that ended the hunt.
    caught: Option<(Run, Violation)>,
}

/// Plants them all. True if each bug was caught by the check that it is planted for and by none that it must not trip, every
/// promised check caught one, and what must be healed did no harm.
pub(super) fn hunt(within: u64, steps: u64, as_json: bool) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut out = io::stdout().lock();
    let mut catches = Vec::new();
    if !as_json {
        writeln!(out, "{:<16} {:<16} {:>6} {:>6}  repeat", "plant", "check", "seeds", "fired")?;
    }
    for plant in Plant::ALL {
        let catch = hunt_one(plant, within, steps);
        if !as_json {
            let command = catch.caught.as_ref().map_or_else(String::new, |(run, _)| run.command());
            let line = format!(
                "{:<16} {:<16} {:>6} {:>6}  {command}",
                plant.name(),
                catch.verdict(),
                catch.seeds,
                catch.fired
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        catches.push(catch);
    }
    let tripped = |check: Check| catches.iter().any(|it| it.is_right() && it.plant.trips().first() == Some(&check));
    let untripped: Vec<_> = PROMISED.into_iter().filter(|&check| !tripped(check)).map(Check::name).collect();
    let wrong = catches.iter().filter(|it| !it.is_right()).count();
    let (passed, seconds) = (catches.len() - wrong, began.elapsed().as_secs_f64());
    if as_json {
        let list: Vec<_> = catches.iter().map(Catch::json).collect();
        let object = json!({
            "plants": list, "untripped": untripped, "passed": passed, "failed": wrong, "seconds": seconds,
        });
        writeln!(out, "{object}")?;
    } else {
        if !untripped.is_empty() {
            writeln!(out, "no plant tripped: {}", untripped.join(", "))?;
        }
        writeln!(out, "{} plants in {seconds:.1} s", catches.len())?;
        writeln!(out, "{passed} passed, {wrong} failed")?;
    }
    Ok(wrong == 0 && untripped.is_empty())
}

/// Runs seeds until the fault trips what it is planted for, or anything that it must not trip, or has been healed often enough.
fn hunt_one(plant: Plant, within: u64, steps: u64) -> Catch {
    let mut catch = Catch { plant, seeds: 0, fired: 0, caught: None };
    for seed in 0..within {
        let what = Run { seed, steps, plant: Some(plant) };
        let outcome = run(what, Trace::default());
        catch.seeds += 1;
        catch.fired += outcome.fired;
        let by_the_way = |check: Check| plant.trips().iter().skip(1).any(|&it| it == check);
        if let Some(violation) = outcome.violation
            && !by_the_way(violation.check)
        {
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
    fn is_right(&self) -> bool {
        match (&self.caught, self.plant.trips().first()) {
            (None, None) => self.fired > 0,
            (Some((_, violation)), Some(&check)) => violation.check == check,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    fn verdict(&self) -> &'static str {
        match &self.caught {
            Some((_, violation)) => violation.check.name(),
            None if self.plant.must_be_healed() => "healed",
            None => "not caught",
        }
    }

    fn json(&self) -> Value {
        let (text, repeat) = match &self.caught {
            Some((run, it)) => (Some(it.text.clone()), Some(run.command())),
            None => (None, None),
        };
        json!({
            "plant": self.plant.name(), "verdict": self.verdict(), "seeds": self.seeds, "fired": self.fired, "text": text,
            "repeat": repeat, "right": self.is_right(),
        })
    }
}
