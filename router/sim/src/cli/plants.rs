//! Planting each bug in turn: the proof that the checks can fail.

use std::io::{self, Write};

use serde_json::{Value, json};
use whimbrel_sim::check::{Check, Violation};
use whimbrel_sim::plant::Plant;
use whimbrel_sim::{Run, Trace, run};

/// Checks of which each has to be tripped by some plant.
const PROMISED: [Check; 7] =
    [Check::Lost, Check::Duplicate, Check::Phantom, Check::OutOfOrder, Check::Gap, Check::InboxNotEmpty, Check::Stuck];

/// What became of a planted bug.
struct Catch {
    plant: Plant,
    /// Seeds that were run, the one that caught it among them.
    seeds: u64,
    caught: Option<(Run, Violation)>,
}

/// Plants them all. True if each was caught by a check that is meant to catch it, and every check caught one.
pub(super) fn hunt(within: u64, steps: u64, as_json: bool) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    let mut catches = Vec::new();
    if !as_json {
        writeln!(out, "{:<16} {:<16} {:>6}  repeat", "plant", "check", "seeds")?;
    }
    for plant in Plant::ALL {
        let catch = hunt_one(plant, within, steps);
        if !as_json {
            let (check, command) = match &catch.caught {
                Some((run, violation)) => (violation.check.name(), run.command()),
                None => ("not caught", String::new()),
            };
            writeln!(out, "{:<16} {check:<16} {:>6}  {command}", plant.name(), catch.seeds)?;
        }
        catches.push(catch);
    }
    let tripped = |check: Check| {
        catches.iter().any(|it| it.caught.as_ref().is_some_and(|(_, violation)| violation.check == check))
    };
    let untripped: Vec<_> = PROMISED.into_iter().filter(|&check| !tripped(check)).map(Check::name).collect();
    let wrong = catches.iter().filter(|it| !it.is_right()).count();
    if as_json {
        let list: Vec<_> = catches.iter().map(Catch::json).collect();
        writeln!(
            out,
            "{}",
            json!({ "plants": list, "untripped": untripped, "passed": catches.len() - wrong, "failed": wrong })
        )?;
    } else {
        if !untripped.is_empty() {
            writeln!(out, "no plant tripped: {}", untripped.join(", "))?;
        }
        writeln!(out, "{} passed, {wrong} failed", catches.len() - wrong)?;
    }
    Ok(wrong == 0 && untripped.is_empty())
}

fn hunt_one(plant: Plant, within: u64, steps: u64) -> Catch {
    for seed in 0..within {
        let what = Run { seed, steps, plant: Some(plant) };
        if let Some(violation) = run(what, Trace::default()).violation {
            return Catch { plant, seeds: seed + 1, caught: Some((what, violation)) };
        }
    }
    Catch { plant, seeds: within, caught: None }
}

impl Catch {
    fn is_right(&self) -> bool {
        self.caught.as_ref().is_some_and(|(_, violation)| self.plant.trips().contains(&violation.check))
    }

    fn json(&self) -> Value {
        let (check, text, repeat) = match &self.caught {
            Some((run, it)) => (Some(it.check.name()), Some(it.text.clone()), Some(run.command())),
            None => (None, None, None),
        };
        json!({ "plant": self.plant.name(), "seeds": self.seeds, "check": check, "text": text, "repeat": repeat, "right": self.is_right() })
    }
}
