//! Setting what a profile wants: each original value goes into the journal first, each value is read back, and one that the
//! kernel refuses as such takes all changes of the run with it.

#![forbid(unsafe_code)]

use std::io;

use serde::Serialize;

use crate::machine::{Machine, WriteError};
use crate::plan::{Found, Place, Planned, Target, sysctl_place};
use crate::state::{Journal, Record, StateError};
use crate::table::{KEYS, Means, Severity};
use crate::value::{chosen, fields, plain_mask, shown};

/// How a setting fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was enough already.
    Kept,
    /// It was changed, and read back as it should be.
    Changed,
    /// It would be changed.
    Planned,
    /// This machine does not have it.
    Missing,
    /// It counts for processes that start later: `--persist` writes it.
    Later,
    /// It is its owner's to change.
    Advice,
    /// One has to be root, or /proc/sys is read-only.
    Denied,
    /// The kernel refused it, or holds something else than was written.
    Refused,
}

/// What was done for one setting.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its key.
    pub key: String,
    /// How it fared.
    pub fate: Fate,
    /// How bad it is that it is not met, if it is not.
    pub severity: Severity,
    /// What is there now.
    pub now: String,
    /// What was there before.
    pub before: String,
    /// In how many places it stands.
    pub places: usize,
    /// Why, and what helps.
    pub note: String,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The journal is of no use.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel refuses a value as such.
    #[error(
        "the kernel refuses `{value}` for {key} ({source}); what this run had changed before was put back. Correct the value in the \
         profile"
    )]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a value as such, and something that was changed before could not be put back.
    #[error(
        "the kernel refuses `{value}` for {key}; {place} could not be put back after it ({source}): `whimbrel-tune revert` tries \
         again"
    )]
    Rollback {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What could not be put back.
        place: String,
        /// Why.
        source: io::Error,
    },
}

/// What stands at a place.
///
/// # Errors
/// It is not there or cannot be read.
pub fn read_place(machine: &Machine, place: &Place) -> io::Result<String> {
    match place {
        Place::File(path) => machine.read(path),
        Place::Ring(nic, direction) => {
            let mut command = machine.ethtool(&["-g", nic]).ok_or(io::ErrorKind::NotFound)?;
            let output = command.output()?;
            let sizes = crate::plan::ring_sizes(&String::from_utf8_lossy(&output.stdout), direction);
            let (_, current) =
                sizes.ok_or_else(|| io::Error::other(format!("ethtool -g {nic} names no ring {direction}")))?;
            Ok(format!("{current}\n"))
        }
    }
}

/// Writes to a place.
///
/// # Errors
/// It is not there, or the kernel refuses the value.
pub fn write_place(machine: &Machine, place: &Place, text: &str) -> Result<(), WriteError> {
    match place {
        // A choice is shown with the others around it and set by its word.
        Place::File(path) if text.contains('[') => machine.write(path, &format!("{}\n", chosen(text))),
        Place::File(path) => machine.write(path, text),
        Place::Ring(nic, direction) => {
            let command = machine.ethtool(&["-G", nic, direction, text.trim()]);
            let mut command = command.ok_or_else(|| WriteError::Open(io::ErrorKind::NotFound.into()))?;
            let output = command.output().map_err(WriteError::Open)?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(WriteError::Write(io::Error::other(format!("ethtool -G {nic} {direction}: {said}"))))
        }
    }
}

/// Whether what was read back is what was written.
#[must_use]
pub fn is_same(place: &Place, written: &str, read: &str) -> bool {
    let is_mask = matches!(place, Place::File(path) if path.ends_with("_cpus"));
    written == read
        || fields(written) == fields(read)
        || (read.contains('[') || written.contains('[')) && chosen(written) == chosen(read)
        || is_mask && plain_mask(written) == plain_mask(read)
}

/// For a person.
#[must_use]
pub fn place_name(place: &Place) -> String {
    match place {
        Place::File(path) => path.clone(),
        Place::Ring(nic, direction) => format!("ring {direction} of {nic}"),
    }
}

/// What would be done.
#[must_use]
pub fn preview(plan: &[Planned]) -> Vec<Step> {
    plan.iter().map(|planned| step(planned, |targets| (planned_fate(targets), String::new()))).collect()
}

fn planned_fate(targets: &[Target]) -> Fate {
    if targets.iter().all(|target| target.met) { Fate::Kept } else { Fate::Planned }
}

/// A step of what was planned; `change` does the targets.
fn step(planned: &Planned, change: impl FnOnce(&[Target]) -> (Fate, String)) -> Step {
    let mut step = Step {
        key: planned.setting.key.clone(),
        fate: Fate::Kept,
        severity: planned.setting.known.severity,
        now: String::new(),
        before: String::new(),
        places: 1,
        note: String::new(),
    };
    match &planned.found {
        Found::Targets(targets) => {
            let shown_target = targets.iter().find(|target| !target.met).or(targets.first());
            let (fate, note) = change(targets);
            if let Some(target) = shown_target {
                step.before = target.current_text(planned.setting.known);
                let is_new = matches!(fate, Fate::Changed | Fate::Planned);
                step.now = if is_new { target.write_text(planned.setting.known) } else { step.before.clone() };
            }
            (step.fate, step.note, step.places) = (fate, note, targets.len());
        }
        Found::Service { current, met } => {
            (step.now, step.before) = (current.clone(), current.clone());
            if !met {
                step.fate = Fate::Later;
                step.note = format!("{} counts from a process's start on: `--persist` writes it", planned.wanted);
            }
        }
        Found::Advice { current, met, remedy } => {
            (step.now, step.before) = (current.clone(), current.clone());
            if !met {
                (step.fate, step.note) = (Fate::Advice, format!("not changed here; {remedy}"));
            }
        }
        Found::Missing(why) => (step.fate, step.note) = (Fate::Missing, why.clone()),
        Found::Unreadable(why) => (step.fate, step.note) = (Fate::Denied, format!("{why}: run it as root")),
    }
    step
}

/// How one place fared.
enum Written {
    Changed,
    Denied(String),
    Refused(String),
}

/// What a run has changed so far, with what was there just before it.
#[derive(Default)]
struct Run {
    changed: Vec<(Place, String)>,
}

/// Does what was planned. Whatever ends it, `revert` can undo it.
///
/// # Errors
/// The journal cannot be written; or the kernel refuses a sysctl's value as such, and then nothing is left changed.
pub fn apply(
    machine: &Machine,
    profile: &str,
    plan: &[Planned],
    journal: &mut Journal,
) -> Result<Vec<Step>, ApplyError> {
    journal.begin(profile, machine)?;
    let mut run = Run::default();
    let mut steps = Vec::new();
    for planned in plan {
        let mut failure = None;
        let done = step(planned, |targets| match change_all(machine, planned, targets, journal, &mut run) {
            Ok(fate) => fate,
            Err(error) => {
                failure = Some(error);
                (Fate::Refused, String::new())
            }
        });
        if let Some(error) = failure {
            return Err(roll_back(machine, run, error));
        }
        steps.push(done);
    }
    Ok(steps)
}

fn change_all(
    machine: &Machine,
    planned: &Planned,
    targets: &[Target],
    journal: &mut Journal,
    run: &mut Run,
) -> Result<(Fate, String), ApplyError> {
    let mut worst = (Fate::Kept, String::new());
    for target in targets.iter().filter(|target| !target.met) {
        let fate = match change(machine, planned, target, journal, run)? {
            Written::Changed if worst.0 == Fate::Kept => (Fate::Changed, String::new()),
            Written::Changed => continue,
            Written::Denied(why) => (Fate::Denied, why),
            Written::Refused(why) => (Fate::Refused, why),
        };
        worst = fate;
    }
    Ok(worst)
}

fn change(
    machine: &Machine,
    planned: &Planned,
    target: &Target,
    journal: &mut Journal,
    run: &mut Run,
) -> Result<Written, ApplyError> {
    let key = &planned.setting.key;
    if let Some(twin) = planned.setting.known.twin {
        let place = Place::File(sysctl_place(twin));
        if let Ok(original) = read_place(machine, &place) {
            journal.before(Record::Change { key: twin.to_owned(), place, original, wrote: None })?;
        }
    }
    let (original, wrote) = (target.current.clone(), Some(target.write.clone()));
    journal.before(Record::Change { key: key.clone(), place: target.place.clone(), original, wrote })?;
    run.changed.push((target.place.clone(), target.current.clone()));
    match write_place(machine, &target.place, &target.write) {
        Ok(()) => {}
        Err(error) => return refusal(planned, target, error),
    }
    let read = match read_place(machine, &target.place) {
        Ok(read) => read,
        Err(error) => return Ok(Written::Refused(format!("it cannot be read back: {error}"))),
    };
    if is_same(&target.place, &target.write, &read) {
        return Ok(Written::Changed);
    }
    let (wrote, holds) = (shown(&target.write), shown(chosen(&read)));
    Ok(Written::Refused(format!("the kernel took {wrote} and holds {holds}: raise what bounds it, or expect {holds}")))
}

fn refusal(planned: &Planned, target: &Target, error: WriteError) -> Result<Written, ApplyError> {
    let source = match &error {
        WriteError::Open(source) | WriteError::Write(source) => source,
    };
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => Ok(Written::Denied("only root may: run it with sudo".to_owned())),
        Some(libc::EROFS) => Ok(Written::Denied(
            "it is read-only here, as in a container: set it on the host, or for a container's own network by `docker run --sysctl`"
                .to_owned(),
        )),
        _ => match error {
            WriteError::Write(source) if planned.setting.known.means == Means::Sysctl => {
                Err(ApplyError::Value { key: planned.setting.key.clone(), value: shown(&target.write), source })
            }
            error => Ok(Written::Refused(format!("{}: {error}", place_name(&target.place)))),
        },
    }
}

/// Puts back what this run has changed. What an earlier run had changed stays.
fn roll_back(machine: &Machine, run: Run, error: ApplyError) -> ApplyError {
    let before = run.changed.clone();
    for (place, text) in run.changed.into_iter().rev() {
        if let Err(failed) = restore(machine, &place, &text, &before)
            && let ApplyError::Value { key, value, .. } = error
        {
            return ApplyError::Rollback { key, value, place: place_name(&place), source: failed };
        }
    }
    error
}

/// Writes what was there, unless it is there, and reads it back. Of two twins the one that was not 0 brings back both.
///
/// # Errors
/// It could not be written, or something else stands there now.
pub fn restore(machine: &Machine, place: &Place, original: &str, all: &[(Place, String)]) -> io::Result<bool> {
    if is_restored(original, &read_place(machine, place)?) {
        return Ok(false);
    }
    if original.trim() == "0"
        && let Some(twin) = twin_of(place)
        && let Some((_, of_twin)) = all.iter().find(|(place, _)| *place == twin)
        && of_twin.trim() != "0"
    {
        write_back(machine, &twin, of_twin)?;
        if is_restored(original, &read_place(machine, place)?) {
            return Ok(true);
        }
    }
    write_back(machine, place, original)?;
    let now = read_place(machine, place)?;
    if is_restored(original, &now) {
        return Ok(true);
    }
    Err(io::Error::other(format!("wrote {}, and {} stands there", shown(original), shown(&now))))
}

fn write_back(machine: &Machine, place: &Place, text: &str) -> io::Result<()> {
    write_place(machine, place, text).map_err(|error| match error {
        WriteError::Open(source) | WriteError::Write(source) => source,
    })
}

/// Byte for byte; of a choice, the same one.
fn is_restored(original: &str, now: &str) -> bool {
    original == now || original.contains('[') && chosen(original) == chosen(now)
}

fn twin_of(place: &Place) -> Option<Place> {
    let Place::File(path) = place else { return None };
    let known = KEYS.iter().find(|known| sysctl_place(known.key) == *path)?;
    Some(Place::File(sysctl_place(known.twin?)))
}

impl Step {
    /// Whether something is left that should have been done.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        match self.fate {
            Fate::Denied | Fate::Refused => true,
            Fate::Kept | Fate::Changed | Fate::Planned | Fate::Missing | Fate::Later | Fate::Advice => false,
        }
    }
}
