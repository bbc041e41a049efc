//! Measuring what a profile changes here: in each round once without and once with it, now the one first and now the other. In
//! between it is applied and reverted by the same journal as otherwise, so whatever ends a run, `revert` undoes it.

mod bench;
mod counters;
mod probe;
mod stats;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use serde::Serialize;
use whimbrel_tune::apply::{Fate, Step, apply, preview};
use whimbrel_tune::machine::Machine;
use whimbrel_tune::plan::plan;
use whimbrel_tune::profile::Profile;
use whimbrel_tune::revert::{Undone, revert};
use whimbrel_tune::state::{Journal, applied};

pub(crate) use bench::Bench;
use counters::{Counters, add_growth};
use probe::{PROBES, Probe};
pub(crate) use stats::{Compared, Verdict};
use stats::{Pairs, compare};

/// On which side of the comparison a run is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Without,
    With,
}

/// What is to be done.
pub(crate) struct Verify {
    pub(crate) machine: Machine,
    pub(crate) profile: Profile,
    pub(crate) state: PathBuf,
    pub(crate) data: String,
    pub(crate) rounds: u32,
    pub(crate) null: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) profile: String,
    pub(crate) scenario: Option<String>,
    pub(crate) rounds: u32,
    /// Nothing was applied: what is seen is chance.
    pub(crate) null: bool,
    /// What applying it did, the first time.
    pub(crate) settings: Vec<Step>,
    pub(crate) figures: Vec<Compared>,
    /// Growth of the kernel's counters over all rounds without, and with.
    pub(crate) counters: BTreeMap<&'static str, (u64, u64)>,
    /// Keys that would change something here and whose effect nothing here measures alone.
    pub(crate) not_probed: Vec<String>,
    /// Probes that could not be taken, and why.
    pub(crate) not_taken: Vec<(String, String)>,
}

/// The figures of one run by their names, in the order in which they came.
type Figures = Vec<bench::Figure>;

impl Verify {
    /// Measures the whole with a scenario of the bench.
    pub(crate) fn by_bench(&self, bench: &Bench) -> anyhow::Result<Report> {
        let scenario = bench.scenario.file_stem().map(|name| name.to_string_lossy().into_owned());
        self.in_turns(scenario, Vec::new(), Vec::new(), || bench.run(&self.machine))
    }

    /// Measures each key that has a probe.
    pub(crate) fn by_probes(&self) -> anyhow::Result<Report> {
        if !self.machine.is_real() {
            bail!("a tree of files cannot be measured: leave --root away");
        }
        let changing: Vec<String> = preview(&plan(&self.machine, &self.profile, &self.data))
            .into_iter()
            .filter(|step| step.fate == Fate::Planned)
            .map(|step| step.key)
            .collect();
        let is_probed = |key: &String| PROBES.iter().any(|probe| probe.key == key);
        let not_probed = changing.iter().filter(|key| !is_probed(key)).cloned().collect();
        let mut probes: Vec<&Probe> =
            PROBES.iter().filter(|probe| changing.iter().any(|key| key == probe.key)).collect();
        let mut not_taken = Vec::new();
        probes.retain(|probe| match (probe.run)() {
            Ok(_) => true,
            Err(error) => {
                not_taken.push((probe.key.to_owned(), format!("{error:#}")));
                false
            }
        });
        self.in_turns(None, not_probed, not_taken, || probes.iter().map(|probe| take(probe)).collect())
    }

    fn in_turns(
        &self,
        scenario: Option<String>,
        not_probed: Vec<String>,
        not_taken: Vec<(String, String)>,
        measure: impl Fn() -> anyhow::Result<Figures>,
    ) -> anyhow::Result<Report> {
        let before = applied(&self.state)?;
        if !before.is_empty() {
            bail!(
                "{} is applied, so there is nothing to compare with: `whimbrel-tune revert` first",
                before.join(", ")
            );
        }
        let stop = hear_signals()?;
        let mut sides: [(Vec<Figures>, Counters); 2] = Default::default();
        let mut settings = Vec::new();
        for round in 0..self.rounds {
            let order = if round % 2 == 0 { [Side::Without, Side::With] } else { [Side::With, Side::Without] };
            for side in order {
                let (figures, growth, steps) = self.one(side, &measure)?;
                let (all, counters) = &mut sides[side as usize];
                all.push(figures);
                add_growth(counters, &Counters::new(), &growth);
                if settings.is_empty() {
                    settings = steps;
                }
                if stop.load(Ordering::Relaxed) {
                    bail!("a signal: ended after {} of {} rounds, and nothing is left applied", round + 1, self.rounds);
                }
            }
            eprintln!("round {} of {}", round + 1, self.rounds);
        }
        let [(without, counters_without), (with, counters_with)] = sides;
        let pair =
            |(&name, &value): (&&'static str, &u64)| (name, (value, counters_with.get(name).copied().unwrap_or(0)));
        Ok(Report {
            profile: self.profile.name.clone(),
            scenario,
            rounds: self.rounds,
            null: self.null,
            settings,
            figures: compare(pairs(&without, &with)),
            counters: counters_without.iter().map(pair).collect(),
            not_probed,
            not_taken,
        })
    }

    /// One run on one side. The profile is reverted again, also where the measurement fails.
    fn one(
        &self,
        side: Side,
        measure: impl Fn() -> anyhow::Result<Figures>,
    ) -> anyhow::Result<(Figures, Counters, Vec<Step>)> {
        let steps = if side == Side::With && !self.null { self.apply()? } else { Vec::new() };
        let before = counters::read(&self.machine);
        let measured = measure();
        let mut growth = Counters::new();
        add_growth(&mut growth, &before, &counters::read(&self.machine));
        if side == Side::With && !self.null {
            self.revert()?;
        }
        let mut figures = measured?;
        figures.extend(growth.iter().map(|(name, value)| bench::Figure {
            name: (*name).to_owned(),
            unit: "",
            less_is_better: true,
            value: *value as f64,
        }));
        Ok((figures, growth, steps))
    }

    fn apply(&self) -> anyhow::Result<Vec<Step>> {
        let planned = plan(&self.machine, &self.profile, &self.data);
        let mut journal = Journal::open(&self.state).context("apply the profile: run it with sudo")?;
        let steps = apply(&self.machine, &self.profile.name, &planned, &mut journal);
        drop(journal);
        let steps = match steps {
            Ok(steps) => steps,
            Err(error) => {
                self.revert()?;
                return Err(error.into());
            }
        };
        if let Some(step) = steps.iter().find(|step| step.fate == Fate::Denied) {
            self.revert()?;
            bail!("{} was not set: {}", step.key, step.note);
        }
        Ok(steps)
    }

    fn revert(&self) -> anyhow::Result<()> {
        let reversals = revert(&self.machine, Journal::open(&self.state)?)?;
        match reversals.iter().find(|reversal| reversal.undone == Undone::Failed) {
            Some(failed) => bail!("{} was not put back: {}", failed.place, failed.note),
            None => Ok(()),
        }
    }
}

fn take(probe: &Probe) -> anyhow::Result<bench::Figure> {
    let value = (probe.run)().with_context(|| format!("the probe of {}", probe.key))?;
    let name = format!("{}: {}", probe.key, probe.what);
    Ok(bench::Figure { name, unit: probe.unit, less_is_better: probe.less_is_better, value })
}

/// Figures that every run has, without those that are 0 throughout.
fn pairs(without: &[Figures], with: &[Figures]) -> Vec<Pairs> {
    let Some(first) = without.first() else { return Vec::new() };
    let of = |runs: &[Figures], name: &str| -> Option<Vec<f64>> {
        runs.iter().map(|run| run.iter().find(|figure| figure.name == name).map(|figure| figure.value)).collect()
    };
    let pair = |figure: &bench::Figure| {
        Some(Pairs {
            name: figure.name.clone(),
            unit: figure.unit,
            less_is_better: figure.less_is_better,
            without: of(without, &figure.name)?,
            with: of(with, &figure.name)?,
        })
    };
    let tells = |pairs: &Pairs| pairs.without.iter().chain(&pairs.with).any(|&figure| figure != 0.0);
    first.iter().filter_map(pair).filter(tells).collect()
}

/// A signal ends the run after the measurement that is on the way, with nothing left applied.
fn hear_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("handle signals")?;
    }
    Ok(stop)
}
