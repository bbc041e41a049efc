//! Planting each fault in turn: the proof that the checks can fail, and that what must be healed is.

use std::io::{self, Write};
use std::time::Instant;

use serde_json::{Value, json};
use whimbrel_sim::check::Check;
use whimbrel_sim::plant::Plant;
use whimbrel_sim::{Catch, hunt};

/// Checks of which each has to be tripped by a plant that is there for it.
const PROMISED: [Check; 7] =
    [Check::Lost, Check::Duplicate, Check::Phantom, Check::OutOfOrder, Check::Gap, Check::InboxNotEmpty, Check::Stuck];

/// Plants them all. True if each bug was caught by the check that it is planted for and by none that it must not trip, every
/// promised check caught one, and what must be healed did no harm.
pub(super) fn hunt_all(within: u64, steps: u64, as_json: bool) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut out = io::stdout().lock();
    let mut catches = Vec::new();
    if !as_json {
        writeln!(out, "{:<16} {:<16} {:>6} {:>6}  repeat", "plant", "check", "seeds", "fired")?;
    }
    for plant in Plant::ALL {
        let catch = hunt(plant, 0..within, steps);
        if !as_json {
            writeln!(out, "{}", line(&catch))?;
        }
        catches.push(catch);
    }
    let tripped = |check| catches.iter().any(|it| it.is_right() && it.plant.trips().first() == Some(&check));
    let untripped: Vec<_> = PROMISED.into_iter().filter(|&check| !tripped(check)).map(Check::name).collect();
    let wrong = catches.iter().filter(|it| !it.is_right()).count();
    let (passed, seconds) = (catches.len() - wrong, began.elapsed().as_secs_f64());
    if as_json {
        let list: Vec<_> = catches.iter().map(to_json).collect();
        let object = json!({
            "plants": list, "untripped": untripped, "passed": passed, "failed": wrong, "seconds": seconds,
        });
        writeln!(out, "{object}")?;
    } else {
        for catch in catches.iter().filter(|it| !it.is_right()) {
            let why = catch.caught.as_ref().map_or_else(|| "no check fails".to_owned(), |(_, it)| it.to_string());
            writeln!(out, "{} is wrong: {why}", catch.plant.name())?;
        }
        if !untripped.is_empty() {
            writeln!(out, "no plant tripped: {}", untripped.join(", "))?;
        }
        writeln!(out, "{} plants in {seconds:.1} s", catches.len())?;
        writeln!(out, "{passed} passed, {wrong} failed")?;
    }
    Ok(wrong == 0 && untripped.is_empty())
}

fn line(catch: &Catch) -> String {
    let command = catch.caught.as_ref().map_or_else(String::new, |(run, _)| run.command());
    let (name, verdict) = (catch.plant.name(), catch.verdict());
    let line = format!("{name:<16} {verdict:<16} {:>6} {:>6}  {command}", catch.seeds, catch.fired);
    line.trim_end().to_owned()
}

fn to_json(catch: &Catch) -> Value {
    let (text, repeat) = match &catch.caught {
        Some((run, it)) => (Some(it.text.clone()), Some(run.command())),
        None => (None, None),
    };
    json!({
        "plant": catch.plant.name(), "verdict": catch.verdict(), "seeds": catch.seeds, "fired": catch.fired, "text": text,
        "repeat": repeat, "right": catch.is_right(),
    })
}
