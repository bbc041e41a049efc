//! Commands that change the machine: `diff`, which only says so, `apply`, `revert`.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;
use whimbrel_tune::apply::{ApplyError, Fate, Step, apply as apply_plan, preview};
use whimbrel_tune::export::script;
use whimbrel_tune::persist::{Kept, files as files_of, write as write_files};
use whimbrel_tune::plan::{Planned, plan};
use whimbrel_tune::profile::Profile;
use whimbrel_tune::revert::{Reversal, Undone, revert as revert_all};
use whimbrel_tune::state::Journal;

use super::output::{print, print_json, table as columns};
use super::{ApplyArgs, PlaceArgs, ProfileArgs};

pub(super) fn diff(place: &PlaceArgs, args: &ProfileArgs) -> anyhow::Result<ExitCode> {
    let profile = place.load(args)?;
    let steps = preview(&plan(&place.machine(), &profile, &place.data));
    if place.json {
        print_json(&steps)?;
        return Ok(ExitCode::SUCCESS);
    }
    let changes: Vec<&Step> = steps.iter().filter(|step| step.fate == Fate::Planned).collect();
    let lines = changes.iter().map(|step| format!("-{} = {}\n+{0} = {}\n", step.key, step.before, step.now));
    print(&format!("--- this machine\n+++ {}\n{}", profile.name, lines.collect::<String>()))?;
    Ok(ExitCode::SUCCESS)
}

/// What an `apply` did.
#[derive(Default)]
struct Outcome {
    steps: Vec<Step>,
    kept: Option<Kept>,
    failed_files: Vec<(String, String)>,
    script: Option<String>,
}

pub(super) fn apply(place: &PlaceArgs, args: &ApplyArgs) -> anyhow::Result<ExitCode> {
    let profile = place.load(&args.profile)?;
    let machine = place.machine();
    let planned = plan(&machine, &profile, &place.data);
    let mut outcome = Outcome::default();
    if args.dry_run {
        outcome.steps = preview(&planned);
        outcome.kept = args.persist.then(|| files_of(&machine, &planned));
    } else {
        outcome = apply_for_real(place, &profile, &planned, args.persist)?;
    }
    if outcome.steps.iter().any(|step| step.fate == Fate::Denied) {
        outcome.script = Some(script(&profile, &planned, false));
    }
    let failed = outcome.steps.iter().any(Step::has_failed) || !outcome.failed_files.is_empty();
    if place.json {
        print_json(&json!({
            "profile": profile.name, "dry_run": args.dry_run, "settings": outcome.steps, "persisted": outcome.kept,
            "not_persisted": outcome.failed_files, "script": outcome.script,
        }))?;
    } else {
        print(&apply_text(&profile, &outcome, args.dry_run))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn apply_for_real(place: &PlaceArgs, profile: &Profile, planned: &[Planned], persist: bool) -> anyhow::Result<Outcome> {
    let machine = place.machine();
    let to_do = preview(planned).iter().any(|step| step.fate == Fate::Planned);
    if !to_do && !persist {
        return Ok(Outcome { steps: preview(planned), ..Outcome::default() });
    }
    let mut journal = match Journal::open(&place.state()) {
        Ok(journal) => journal,
        Err(error) if error.is_denied() => return Ok(denied(planned, &error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let mark = journal.mark();
    let steps = match apply_plan(&machine, &profile.name, planned, &mut journal) {
        Ok(steps) => steps,
        Err(error @ ApplyError::Value { .. }) => {
            journal.forget_since(mark)?;
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut outcome = Outcome { steps, ..Outcome::default() };
    if persist {
        // Planned anew: what was raised now bounds what a file may say.
        let kept = files_of(&machine, &plan(&machine, profile, &place.data));
        outcome.failed_files = write_files(&machine, &kept.files, &mut journal)?;
        outcome.kept = Some(kept);
    }
    let untouched = outcome.steps.iter().all(|step| !matches!(step.fate, Fate::Changed | Fate::Refused));
    if untouched && !persist {
        journal.forget_since(mark)?;
    }
    Ok(outcome)
}

/// Without a journal nothing is changed.
fn denied(planned: &[Planned], why: &str) -> Outcome {
    let mut steps = preview(planned);
    for step in &mut steps {
        if step.fate == Fate::Planned {
            (step.fate, step.note) = (Fate::Denied, format!("{why}: run it with sudo"));
            step.now.clone_from(&step.before);
        }
    }
    if !steps.iter().any(|step| step.fate == Fate::Denied)
        && let Some(step) = steps.first_mut()
    {
        (step.fate, step.note) = (Fate::Denied, format!("no files were written: {why}: run it with sudo"));
    }
    Outcome { steps, ..Outcome::default() }
}

fn apply_text(profile: &Profile, outcome: &Outcome, dry_run: bool) -> String {
    let count = |fate| outcome.steps.iter().filter(|step| step.fate == fate).count();
    let done = if dry_run { count(Fate::Planned) } else { count(Fate::Changed) };
    let mut text = format!(
        "{}: {done} {}, {} enough already, {} not here, {} not done\n\n",
        profile.name,
        if dry_run { "would be changed" } else { "changed" },
        count(Fate::Kept),
        count(Fate::Missing),
        count(Fate::Denied) + count(Fate::Refused)
    );
    text.push_str(&columns(&outcome.steps.iter().map(step_row).collect::<Vec<_>>()));
    if let Some(kept) = &outcome.kept {
        text.push('\n');
        let not_written = |path: &str| outcome.failed_files.iter().find(|(failed, _)| failed == path);
        for file in &kept.files {
            let _ = match not_written(&file.path) {
                Some((_, why)) => writeln!(text, "not written {}: {why}", file.path),
                None if dry_run => writeln!(text, "would write {}: read by {}", file.path, file.reader),
                None => writeln!(text, "written {}: read by {}", file.path, file.reader),
            };
        }
        for (key, why) in &kept.left_out {
            let _ = writeln!(text, "in no file: {key}: {why}");
        }
    }
    if let Some(script) = &outcome.script {
        let _ = write!(text, "\nWhat could not be done, as a script for who can:\n\n{script}");
    }
    text
}

fn step_row(step: &Step) -> Vec<String> {
    let place = if step.places > 1 { format!(" ({} places)", step.places) } else { String::new() };
    let values = match step.fate {
        Fate::Changed | Fate::Planned => format!("{} -> {}", step.before, step.now),
        Fate::Kept | Fate::Missing | Fate::Later | Fate::Advice | Fate::Denied | Fate::Refused => step.now.clone(),
    };
    let fate = match step.fate {
        Fate::Kept => "enough",
        Fate::Changed => "changed",
        Fate::Planned => "change",
        Fate::Missing => "not here",
        Fate::Later => "later",
        Fate::Advice => "yours",
        Fate::Denied => "denied",
        Fate::Refused => "refused",
    };
    let severity = if step.has_failed() { format!(" ({:?})", step.severity).to_lowercase() } else { String::new() };
    vec![format!("{fate}{severity}"), format!("{}{place}", step.key), values, step.note.clone()]
}

pub(super) fn revert(place: &PlaceArgs) -> anyhow::Result<ExitCode> {
    let applied = whimbrel_tune::state::applied(&place.state())?;
    let reversals = if applied.is_empty() {
        Vec::new()
    } else {
        match Journal::open(&place.state()) {
            Err(error) if error.is_denied() => bail!("{error}: run it with sudo"),
            journal => revert_all(&place.machine(), journal?)?,
        }
    };
    let failed = reversals.iter().any(|reversal| reversal.undone == Undone::Failed);
    if place.json {
        print_json(&json!({ "profiles": applied, "places": reversals }))?;
    } else if applied.is_empty() {
        print("nothing to revert: no profile is applied\n")?;
    } else {
        print(&revert_text(&applied, &reversals))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn revert_text(applied: &[String], reversals: &[Reversal]) -> String {
    let count = |undone| reversals.iter().filter(|reversal| reversal.undone == undone).count();
    let failed = count(Undone::Failed);
    let rows = reversals.iter().map(|reversal| {
        let undone = match reversal.undone {
            Undone::Restored => "restored",
            Undone::Unchanged => "as before",
            Undone::Removed => "removed",
            Undone::LeftAlone => "left alone",
            Undone::Failed => "failed",
        };
        vec![undone.to_owned(), reversal.place.clone(), reversal.now.clone(), reversal.note.clone()]
    });
    let end = if failed > 0 { "The journal is kept: revert again when that is mended.\n" } else { "" };
    format!(
        "{}: {} restored, {} files removed, {failed} failed\n\n{}{end}",
        applied.join(", "),
        count(Undone::Restored),
        count(Undone::Removed),
        columns(&rows.collect::<Vec<_>>())
    )
}
