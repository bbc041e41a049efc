//! Files that set a profile again after a restart of the machine, each in the form of whoever reads it at boot. They hold what
//! `apply` wrote or found to be enough, so a value that was higher before stays so.

#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;

use crate::machine::Machine;
use crate::plan::{Found, Place, Planned, Target};
use crate::state::{Journal, Record, StateError, sync_directory};
use crate::table::Means;
use crate::value::{shown, write_for};

/// Whoever may read a file of /etc.
const MODE: u32 = 0o644;

/// A file to write.
#[derive(Clone, Debug, Serialize)]
pub struct NewFile {
    /// Its place.
    pub path: String,
    /// What it holds.
    #[serde(skip)]
    pub text: String,
    /// Who reads it, and when what it says counts.
    pub reader: &'static str,
}

/// The files, and what cannot be kept in one: key and reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kept {
    /// The files.
    pub files: Vec<NewFile>,
    /// What is not in them.
    pub left_out: Vec<(String, String)>,
}

/// A line, and its beginning up to the value: a line of an earlier run that begins alike gives way to it.
struct Line {
    identity: String,
    value: String,
}

/// Lines for each file.
#[derive(Default)]
struct Lines {
    sysctl: Vec<Line>,
    tmpfiles: Vec<Line>,
    udev: Vec<Line>,
    limits: Vec<Line>,
    service: Vec<Line>,
    modprobe: Vec<Line>,
    left_out: Vec<(String, String)>,
}

/// Who reads a file, and when what it says counts.
const SYSCTL: (&str, &str) =
    ("/etc/sysctl.d/60-whimbrel.conf", "systemd-sysctl or `sysctl --system`, at each start of the machine");
const TMPFILES: (&str, &str) = ("/etc/tmpfiles.d/60-whimbrel.conf", "systemd-tmpfiles, at each start of the machine");
const UDEV: (&str, &str) = ("/etc/udev/rules.d/90-whimbrel.rules", "udev, when the device comes up");
const LIMITS: (&str, &str) = ("/etc/security/limits.d/60-whimbrel.conf", "pam_limits, at the next login");
const SERVICE: (&str, &str) = (
    "/etc/systemd/system/whimbrel.service.d/60-whimbrel.conf",
    "systemd, after `systemctl daemon-reload` and at the next start of whimbrel.service",
);
const MODPROBE: (&str, &str) = ("/etc/modprobe.d/60-whimbrel.conf", "modprobe, when the module is loaded");

/// Where else a unit's limits may be said: what is higher there stays.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/whimbrel.service",
    "/usr/lib/systemd/system/whimbrel.service",
    "/lib/systemd/system/whimbrel.service",
];
const DROP_INS: &str = "/etc/systemd/system/whimbrel.service.d";

const HEAD: &str = "# Written by `whimbrel-tune apply --persist`; `whimbrel-tune revert` takes it back.";

/// The files for what was planned. What an earlier run wrote of other keys stays in them.
#[must_use]
pub fn files(machine: &Machine, plan: &[Planned]) -> Kept {
    let mut lines = Lines::default();
    for planned in plan {
        match &planned.found {
            Found::Targets(targets) => targets.iter().for_each(|target| lines.target(planned, target)),
            Found::Service { current, .. } => lines.service(machine, planned, current),
            Found::Missing(_) | Found::Advice { met: true, .. } => {}
            Found::Advice { remedy, .. } => lines.left_out.push((planned.setting.key.clone(), remedy.clone())),
            Found::Unreadable(why) => lines.left_out.push((planned.setting.key.clone(), why.clone())),
        }
    }
    lines.files(machine)
}

impl Lines {
    fn target(&mut self, planned: &Planned, target: &Target) {
        let (key, value) = (&planned.setting.key, shown(&target.write));
        match (&target.place, planned.setting.known.means) {
            (Place::File(_), Means::Sysctl) => self.sysctl.push(Line { identity: format!("{key} = "), value }),
            (Place::File(_), Means::Module(module, name)) => {
                self.modprobe.push(Line { identity: format!("options {module} {name}="), value });
            }
            (Place::File(_), Means::IrqAffinity) => {
                let why = "numbers of interrupts change from start to start: apply it again at each".to_owned();
                if !self.left_out.iter().any(|(left, _)| left == key) {
                    self.left_out.push((key.clone(), why));
                }
            }
            (Place::File(path), Means::Scheduler) => self.udev_attribute("block", path, "/sys/block/", value),
            (Place::File(path), Means::Queues(_)) => self.udev_attribute("net", path, "/sys/class/net/", value),
            (Place::File(path), _) => self.tmpfiles.push(Line { identity: format!("w {path} - - - - "), value }),
            (Place::Ring(nic, direction), _) => {
                let identity = format!("{}, RUN+=\"/usr/sbin/ethtool -G {nic} {direction} ", udev_match("net", nic));
                self.udev.push(Line { identity, value: format!("{value}\"") });
            }
        }
    }

    /// A file of a device, such as `/sys/block/DEVICE/ATTRIBUTE`.
    fn udev_attribute(&mut self, subsystem: &str, path: &str, folder: &str, value: String) {
        if let Some((device, attribute)) = path.strip_prefix(folder).and_then(|rest| rest.split_once('/')) {
            let identity = format!("{}, ATTR{{{attribute}}}=", udev_match(subsystem, device));
            self.udev.push(Line { identity, value: format!("\"{value}\"") });
        }
    }

    fn service(&mut self, machine: &Machine, planned: &Planned, current: &str) {
        let (key, known) = (&planned.setting.key, planned.setting.known);
        let Some(name) = service_name(key) else { return };
        let said = said_of_unit(machine, name)
            .into_iter()
            .map(|said| if said == "infinity" { "unlimited".into() } else { said });
        let value = said
            .chain([current.to_owned()])
            .fold(planned.wanted.clone(), |most, other| write_for(known, &other, &most));
        if key == "limit.nofile"
            && let Some(why) = more_than_permitted(machine, &value)
        {
            self.left_out.push((key.clone(), why));
            return;
        }
        if key == "limit.nofile" {
            // `*` is everybody but root. Locked memory of everybody is nothing to give away.
            self.limits.extend(
                ["* - nofile ", "root - nofile "].map(|line| Line { identity: line.into(), value: value.clone() }),
            );
        }
        if let Some((identity, value)) = service_line(key, &value) {
            self.service.push(Line { identity, value });
        }
    }

    fn files(self, machine: &Machine) -> Kept {
        let all = [
            (SYSCTL, self.sysctl, ""),
            (TMPFILES, self.tmpfiles, ""),
            (UDEV, self.udev, ""),
            (LIMITS, self.limits, ""),
            (SERVICE, self.service, "[Service]\n"),
            (MODPROBE, self.modprobe, ""),
        ];
        let file = |((path, reader), lines, section): ((&str, &'static str), Vec<Line>, &str)| {
            let before = machine.read(path).unwrap_or_default();
            let stays = |line: &&str| {
                let is_ours = *line == HEAD || section.trim_end() == *line;
                !is_ours && !lines.iter().any(|new| line.starts_with(&new.identity))
            };
            let mut kept: Vec<String> = before.lines().filter(stays).map(ToOwned::to_owned).collect();
            kept.extend(lines.iter().map(|line| format!("{}{}", line.identity, line.value)));
            let text = format!("{HEAD}\n{section}{}\n", kept.join("\n"));
            (!lines.is_empty()).then(|| NewFile { path: path.to_owned(), text, reader })
        };
        Kept { files: all.into_iter().filter_map(file).collect(), left_out: self.left_out }
    }
}

/// What the unit and its drop-ins say of a limit.
fn said_of_unit(machine: &Machine, name: &str) -> Vec<String> {
    let drop_ins = machine.names(DROP_INS).into_iter().map(|file| format!("{DROP_INS}/{file}"));
    let texts = UNITS.into_iter().map(ToOwned::to_owned).chain(drop_ins).filter_map(|path| machine.read(&path).ok());
    let values = |text: String| {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        // SOFT:HARD, or both in one.
        lines.map(|value| value.rsplit(':').next().unwrap_or_default().trim().to_owned()).collect::<Vec<_>>()
    };
    texts.flat_map(values).filter(|value| value == "infinity" || value.parse::<u64>().is_ok()).collect()
}

fn udev_match(subsystem: &str, device: &str) -> String {
    // A card that is renamed comes again as `move`.
    format!("ACTION==\"add|change|move\", SUBSYSTEM==\"{subsystem}\", KERNEL==\"{device}\"")
}

/// A limit above fs.nr_open in /etc/security would keep everybody from logging in.
fn more_than_permitted(machine: &Machine, value: &str) -> Option<String> {
    let most: u64 = machine.read("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()?;
    let asked: u64 = value.parse().unwrap_or(u64::MAX);
    let why =
        || format!("{value} is above fs.nr_open, {most}, and would keep everybody from logging in: raise that first");
    (asked > most).then(why)
}

/// What systemd calls a limit or a control group's setting.
fn service_name(key: &str) -> Option<&'static str> {
    match key {
        "limit.nofile" => Some("LimitNOFILE"),
        "limit.memlock" => Some("LimitMEMLOCK"),
        "cgroup.cpu.max" => Some("CPUQuota"),
        "cgroup.memory.high" => Some("MemoryHigh"),
        _ => None,
    }
}

/// The line of a unit for it: up to the value, and the value.
#[must_use]
pub fn service_line(key: &str, value: &str) -> Option<(String, String)> {
    let identity = format!("{}=", service_name(key)?);
    match (key, value) {
        // An assignment of nothing takes back what other files said.
        ("cgroup.cpu.max", "max") => Some((identity, String::new())),
        ("cgroup.cpu.max", _) => None,
        (_, "unlimited" | "max") => Some((identity, "infinity".to_owned())),
        (_, value) => Some((identity, value.to_owned())),
    }
}

/// Writes the files; what was there goes into the journal first. Returns those that could not be written, and why.
///
/// # Errors
/// The journal cannot be written.
pub fn write(machine: &Machine, files: &[NewFile], journal: &mut Journal) -> Result<Vec<(String, String)>, StateError> {
    let mut failed = Vec::new();
    for file in files {
        let path = machine.path(&file.path);
        let original = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                failed.push((file.path.clone(), error.to_string()));
                continue;
            }
        };
        if original.as_deref() == Some(file.text.as_str()) {
            continue;
        }
        let mode = fs::metadata(&path).ok().map(|metadata| metadata.mode());
        for folder in missing_folders(machine, &file.path) {
            journal.before(Record::Folder { path: folder })?;
        }
        journal.before(Record::File { path: file.path.clone(), original, mode })?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        if let Err(error) = fs::create_dir_all(folder).and_then(|()| write_file(&path, &file.text)) {
            failed.push((file.path.clone(), error.to_string()));
        }
    }
    Ok(failed)
}

/// Folders above a place that are not there, the outer one first.
fn missing_folders(machine: &Machine, place: &str) -> Vec<String> {
    let above = Path::new(place).ancestors().skip(1).filter_map(|folder| folder.to_str());
    let mut missing: Vec<String> =
        above.filter(|folder| !machine.path(folder).exists()).map(ToOwned::to_owned).collect();
    missing.reverse();
    missing
}

/// Writes a file whole or not at all, on stable storage.
///
/// # Errors
/// The folder cannot be written to.
pub fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".whimbrel-tune-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_directory(folder)
}
