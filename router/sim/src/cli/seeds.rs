//! Running seeds and telling what they gave.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whimbrel_sim::check::Violation;
use whimbrel_sim::{Run, Stats, Trace, dying_words, failure, run};

/// Where a line of counts ends.
const LINE_MAX: usize = 100;

/// Failures of a range that are told in full; all are counted.
const TOLD_MAX: usize = 5;

thread_local! {
    static PASSED: Cell<u64> = const { Cell::new(0) };
}

/// A build that aborts on panic can not be asked afterwards: its last act is to tell the seed and how to repeat it.
pub(super) fn tell_aborts() {
    if cfg!(panic = "unwind") {
        return;
    }
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match dying_words(info) {
        Some((_, text)) => {
            println!("{text}{} passed, 1 failed", PASSED.get());
            std::process::exit(1);
        }
        None => others(info),
    }));
}

/// Runs one seed. True if nothing was found.
pub(super) fn one(what: Run, trace: Trace, as_json: bool) -> anyhow::Result<bool> {
    let outcome = run(what, trace.clone());
    trace.finish()?;
    let failed = u64::from(outcome.violation.is_some());
    let mut out = io::stdout().lock();
    if as_json {
        let violations = outcome.violation.iter().map(|violation| violation_json(&what, violation)).collect();
        let mut object = summary_json(1, failed, violations, &outcome.stats, None);
        object["digest"] = Value::from(format!("{:016x}", outcome.digest));
        writeln!(out, "{object}")?;
    } else {
        if let Some(violation) = &outcome.violation {
            write!(out, "{}", failure(&what, violation, &outcome.story))?;
        }
        writeln!(out, "seed {}: trace {:016x}, {}", what.seed, outcome.digest, in_words(&outcome.stats))?;
        writeln!(out, "{} passed, {failed} failed", 1 - failed)?;
    }
    Ok(failed == 0)
}

/// Runs many seeds. True if nothing was found.
pub(super) fn many(seeds: Range<u64>, what: impl Fn(u64) -> Run, as_json: bool) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut progress = Progress::new(seeds.clone());
    let mut total = Stats::default();
    let mut violations = Vec::new();
    let mut out = io::stdout().lock();
    for seed in seeds.clone() {
        let outcome = run(what(seed), Trace::default());
        total.add(&outcome.stats);
        if let Some(violation) = outcome.violation {
            progress.clear();
            if !as_json && violations.len() < TOLD_MAX {
                writeln!(out, "{}", failure(&what(seed), &violation, &outcome.story))?;
            }
            violations.push(violation_json(&what(seed), &violation));
        } else {
            PASSED.set(PASSED.get() + 1);
        }
        progress.show(seed + 1, violations.len());
    }
    progress.clear();
    let (count, failed) = (seeds.end - seeds.start, violations.len() as u64);
    if as_json {
        writeln!(out, "{}", summary_json(count, failed, violations, &total, Some(began.elapsed())))?;
    } else {
        for violation in violations.iter().skip(TOLD_MAX) {
            let text = |key: &str| violation[key].as_str().unwrap_or_default().to_owned();
            writeln!(out, "{}: {}; repeat: {}", text("check"), text("text"), text("repeat"))?;
        }
        writeln!(out, "{count} seeds in {:.1} s: {}", began.elapsed().as_secs_f64(), in_words(&total))?;
        writeln!(out, "{} passed, {failed} failed", count - failed)?;
    }
    Ok(failed == 0)
}

/// Steps and their share of load, and on lines of their own all else that was counted.
fn in_words(stats: &Stats) -> String {
    let mut lines =
        vec![format!("{} steps, load share {:.1} %", stats.steps, 100.0 * stats.load_share()), String::new()];
    for (name, value) in stats.fields().into_iter().filter(|(name, _)| *name != "steps") {
        let count = format!("{} {value}", name.replace('_', " "));
        match lines.last_mut() {
            Some(line) if line.is_empty() => *line = count,
            Some(line) if line.len() + count.len() < LINE_MAX => *line = format!("{line}, {count}"),
            _ => lines.push(count),
        }
    }
    lines.join(",\n    ")
}

fn violation_json(what: &Run, violation: &Violation) -> Value {
    json!({ "seed": what.seed, "check": violation.check.name(), "text": violation.text, "repeat": what.command() })
}

fn summary_json(seeds: u64, failed: u64, violations: Vec<Value>, stats: &Stats, took: Option<Duration>) -> Value {
    let mut object = json!({ "seeds": seeds, "passed": seeds - failed, "failed": failed, "violations": violations });
    for (name, value) in stats.fields() {
        object[name] = Value::from(value);
    }
    object["load_share"] = Value::from(stats.load_share());
    if let Some(took) = took {
        object["seconds"] = Value::from(took.as_secs_f64());
    }
    object
}

/// A line on stderr: redrawn in a terminal, told now and then elsewhere.
pub(super) struct Progress {
    seeds: Range<u64>,
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    pub(super) fn new(seeds: Range<u64>) -> Progress {
        Progress { seeds, terminal: io::stderr().is_terminal(), last: None }
    }

    pub(super) fn show(&mut self, next: u64, failed: usize) {
        let pause = Duration::from_millis(if self.terminal { 100 } else { 15_000 });
        if self.last.get_or_insert_with(Instant::now).elapsed() < pause {
            return;
        }
        self.last = Some(Instant::now());
        let (done, all) = (next - self.seeds.start, self.seeds.end - self.seeds.start);
        let line = format!("{done} of {all} seeds, {failed} failed");
        if self.terminal {
            eprint!("\r\x1b[2K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    pub(super) fn clear(&mut self) {
        if self.terminal && self.last.is_some() {
            eprint!("\r\x1b[2K");
        }
    }
}
