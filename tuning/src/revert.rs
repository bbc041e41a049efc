//! Undoing all that the journal tells of: the first original of each place, and the files as they were before.

#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use crate::apply::{place_name, read_place, restore};
use crate::machine::Machine;
use crate::persist::write_file;
use crate::plan::Place;
use crate::state::{Journal, Noted, Record, StateError, sync_directory};
use crate::value::{chosen, shown};

/// How a place fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Undone {
    /// It was put back.
    Restored,
    /// What was there before stood there already.
    Unchanged,
    /// A file that had not been there was removed.
    Removed,
    /// The machine was started anew since, and it is not ours any more.
    LeftAlone,
    /// It could not be put back.
    Failed,
}

/// What was done for one place.
#[derive(Clone, Debug, Serialize)]
pub struct Reversal {
    /// The profile's key, or the file.
    pub key: String,
    /// Where.
    pub place: String,
    /// How it fared.
    pub undone: Undone,
    /// What stands there now.
    pub now: String,
    /// Why, and what helps.
    pub note: String,
}

/// One place with its first original, and what was last written there.
struct First<'a> {
    noted: &'a Noted,
    key: &'a str,
    place: &'a Place,
    original: &'a str,
    last_wrote: Option<&'a str>,
}

/// Puts back all that was changed, the last first. The journal is removed if nothing failed, and stays whole otherwise.
///
/// # Errors
/// The journal could not be removed.
pub fn revert(machine: &Machine, journal: Journal) -> Result<Vec<Reversal>, StateError> {
    let noted = journal.noted().to_vec();
    let firsts = firsts(&noted);
    let originals: Vec<_> = firsts.iter().map(|first| (first.place.clone(), first.original.to_owned())).collect();
    let mut reversals: Vec<Reversal> =
        firsts.iter().rev().map(|first| undo_change(machine, first, &originals)).collect();
    reversals.extend(undo_files(machine, &noted));
    if reversals.iter().all(|reversal| reversal.undone != Undone::Failed) {
        journal.finish()?;
    }
    Ok(reversals)
}

fn firsts(noted: &[Noted]) -> Vec<First<'_>> {
    let mut firsts: Vec<First<'_>> = Vec::new();
    for entry in noted {
        let Record::Change { key, place, original, wrote } = &entry.record else { continue };
        match firsts.iter_mut().find(|first| first.place == place) {
            Some(first) => first.last_wrote = wrote.as_deref().or(first.last_wrote),
            None => firsts.push(First { noted: entry, key, place, original, last_wrote: wrote.as_deref() }),
        }
    }
    firsts
}

fn undo_change(machine: &Machine, first: &First<'_>, originals: &[(Place, String)]) -> Reversal {
    let reversal = |undone, note: String| {
        let now = read_place(machine, first.place).map(|text| shown(chosen(&text))).unwrap_or_default();
        Reversal { key: first.key.to_owned(), place: place_name(first.place), undone, now, note }
    };
    let is_network = matches!(first.place, Place::File(path) if path.starts_with("/proc/sys/net/"));
    let rebooted = first.noted.boot_id != machine.boot_id();
    let elsewhere = is_network && first.noted.network_namespace != machine.network_namespace();
    if elsewhere && !rebooted {
        let namespace = &first.noted.network_namespace;
        let note = format!(
            "it was set in the network namespace {namespace}: revert there (nsenter --net); if that is gone, remove the journal"
        );
        return reversal(Undone::Failed, note);
    }
    if rebooted {
        let now = read_place(machine, first.place).ok();
        let is_ours = now
            .as_deref()
            .is_some_and(|now| first.last_wrote.is_some_and(|wrote| crate::apply::is_same(first.place, wrote, now)));
        if !is_ours {
            return reversal(
                Undone::LeftAlone,
                "the machine was started since, and this value is not what was set".into(),
            );
        }
    }
    match restore(machine, first.place, first.original, originals) {
        Ok(true) => reversal(Undone::Restored, String::new()),
        Ok(false) => reversal(Undone::Unchanged, String::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            reversal(Undone::LeftAlone, "it is not there any more".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            reversal(Undone::Failed, "only root may: run it with sudo".to_owned())
        }
        Err(error) => reversal(Undone::Failed, format!("{error}; revert again when that is mended")),
    }
}

/// Of each file what it was before the first record of it; then the folders that were made, if they are empty.
fn undo_files(machine: &Machine, noted: &[Noted]) -> Vec<Reversal> {
    let mut reversals = Vec::new();
    let mut done: Vec<&str> = Vec::new();
    for entry in noted {
        let Record::File { path, original, mode } = &entry.record else { continue };
        if done.contains(&path.as_str()) {
            continue;
        }
        done.push(path);
        let result = undo_file(&machine.path(path), original.as_deref(), *mode);
        let (undone, note) = match result {
            Ok(undone) => (undone, String::new()),
            Err(error) => (Undone::Failed, format!("{error}; revert again when that is mended")),
        };
        reversals.push(Reversal { key: path.clone(), place: path.clone(), undone, now: String::new(), note });
    }
    for entry in noted.iter().rev() {
        let Record::Folder { path } = &entry.record else { continue };
        // Others may have put something there.
        let _ = fs::remove_dir(machine.path(path));
    }
    reversals
}

fn undo_file(path: &Path, original: Option<&str>, mode: Option<u32>) -> io::Result<Undone> {
    let now = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match (original, now) {
        (None, None) => Ok(Undone::Unchanged),
        (Some(original), Some(now)) if original == now => Ok(Undone::Unchanged),
        (None, Some(_)) => {
            fs::remove_file(path)?;
            sync_directory(path.parent().unwrap_or(Path::new("/")))?;
            Ok(Undone::Removed)
        }
        (Some(original), _) => {
            write_file(path, original)?;
            if let Some(mode) = mode {
                fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
            }
            Ok(Undone::Restored)
        }
    }
}
