//! Whether a profile is met on this machine. For `whimbrel-tune check`, and for a server that is told its profile.

#![forbid(unsafe_code)]

use serde::Serialize;

use crate::machine::Machine;
use crate::plan::{Found, Planned, plan};
use crate::profile::Profile;
use crate::table::Severity;
use crate::value::shown;

/// How a setting stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is enough.
    Met,
    /// It is not.
    Short,
    /// This kernel, namespace or machine does not have it.
    Missing,
    /// It cannot be read.
    Unreadable,
}

/// One setting.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Its key.
    pub key: String,
    /// How it stands.
    pub standing: Standing,
    /// How bad it is if it is not met.
    pub severity: Severity,
    /// What the profile wants here.
    pub wanted: String,
    /// What is so; of several places, in one that is not enough.
    pub current: String,
    /// In how many places it stands.
    pub places: usize,
    /// What mends it, or why it is missing.
    pub remedy: String,
}

/// A profile on a machine.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileState {
    /// Its name.
    pub profile: String,
    /// Settings that are met.
    pub met: usize,
    /// Settings that are not.
    pub short: usize,
    /// Settings that do not exist here.
    pub missing: usize,
    /// Each of them.
    pub settings: Vec<Checked>,
}

/// Checks a profile. `data` is where the server's data lie.
#[must_use]
pub fn check(machine: &Machine, profile: &Profile, data: &str) -> ProfileState {
    let plan = plan(machine, profile, data);
    let settings: Vec<Checked> = plan.iter().map(|planned| checked(&profile.named, planned)).collect();
    let count = |standing| settings.iter().filter(|checked| checked.standing == standing).count();
    let short = count(Standing::Short) + count(Standing::Unreadable);
    ProfileState {
        profile: profile.name.clone(),
        met: count(Standing::Met),
        short,
        missing: count(Standing::Missing),
        settings,
    }
}

fn checked(profile: &str, planned: &Planned) -> Checked {
    let key = &planned.setting.key;
    let apply = format!("whimbrel-tune apply {profile} --only {key}");
    let (standing, current, remedy) = match &planned.found {
        Found::Targets(targets) => {
            let worst = targets.iter().find(|target| !target.met);
            let shown = worst.or(targets.first()).map(|target| target.current_text(planned.setting.known));
            (standing(worst.is_none()), shown.unwrap_or_default(), apply)
        }
        Found::Service { current, met } => {
            (standing(*met), current.clone(), format!("{apply} --persist, then start the server anew"))
        }
        Found::Advice { current, met, remedy } => (standing(*met), current.clone(), remedy.clone()),
        Found::Missing(why) => (Standing::Missing, String::new(), why.clone()),
        Found::Unreadable(why) => (Standing::Unreadable, String::new(), format!("{why}: run it as root")),
    };
    let places = if let Found::Targets(targets) = &planned.found { targets.len() } else { 1 };
    Checked {
        key: key.clone(),
        standing,
        severity: planned.setting.known.severity,
        wanted: shown(&planned.wanted),
        current,
        places,
        remedy: if standing == Standing::Met { String::new() } else { remedy },
    }
}

fn standing(met: bool) -> Standing {
    if met { Standing::Met } else { Standing::Short }
}

impl ProfileState {
    /// What is not met, the worst first.
    #[must_use]
    pub fn shortfalls(&self) -> Vec<&Checked> {
        let is_short = |checked: &&Checked| matches!(checked.standing, Standing::Short | Standing::Unreadable);
        let mut short: Vec<&Checked> = self.settings.iter().filter(is_short).collect();
        short.sort_by_key(|checked| std::cmp::Reverse(checked.severity));
        short
    }
}
