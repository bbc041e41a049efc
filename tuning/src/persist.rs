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

/// Lines for each file.
#[derive(Default)]
struct Lines {
    sysctl: Vec<String>,
    tmpfiles: Vec<String>,
    udev: Vec<String>,
    limits: Vec<String>,
    service: Vec<String>,
    modprobe: Vec<String>,
    left_out: Vec<(String, String)>,
}

/// The files for what was planned.
#[must_use]
pub fn files(machine: &Machine, profile: &str, plan: &[Planned]) -> Kept {
    let mut lines = Lines::default();
    for planned in plan {
        match &planned.found {
            Found::Targets(targets) => targets.iter().for_each(|target| lines.target(planned, target)),
            Found::Service { current, .. } => lines.service(machine, planned, current),
            Found::Missing(_) => {}
            Found::Advice { met: true, .. } => {}
            Found::Advice { remedy, .. } => lines.left_out.push((planned.setting.key.clone(), remedy.clone())),
            Found::Unreadable(why) => lines.left_out.push((planned.setting.key.clone(), why.clone())),
        }
    }
    lines.files(profile)
}

impl Lines {
    fn target(&mut self, planned: &Planned, target: &Target) {
        let (key, value) = (&planned.setting.key, shown(&target.write));
        match (&target.place, planned.setting.known.means) {
            (Place::File(_), Means::Sysctl) => self.sysctl.push(format!("{key} = {value}")),
            (Place::File(_), Means::Module(module, name)) => {
                self.modprobe.push(format!("options {module} {name}={value}"))
            }
            (Place::File(_), Means::IrqAffinity) => {
                let why = "numbers of interrupts change from start to start: apply it again at each".to_owned();
                if !self.left_out.iter().any(|(left, _)| left == key) {
                    self.left_out.push((key.clone(), why));
                }
            }
            (Place::File(path), Means::Scheduler | Means::Queues(_)) => {
                let subsystem = if path.starts_with("/sys/block/") { "block" } else { "net" };
                let (device, attribute) = match subsystem {
                    "block" => (path.split('/').nth(3), path.splitn(5, '/').nth(4)),
                    _ => (path.split('/').nth(4), path.splitn(6, '/').nth(5)),
                };
                if let (Some(device), Some(attribute)) = (device, attribute) {
                    self.udev.push(format!("{}, ATTR{{{attribute}}}=\"{value}\"", udev_match(subsystem, device)));
                }
            }
            (Place::File(path), _) => self.tmpfiles.push(format!("w {path} - - - - {value}")),
            (Place::Ring(nic, direction), _) => {
                let run = format!("/usr/sbin/ethtool -G {nic} {direction} {value}");
                self.udev.push(format!("{}, RUN+=\"{run}\"", udev_match("net", nic)));
            }
        }
    }

    fn service(&mut self, machine: &Machine, planned: &Planned, current: &str) {
        let (key, value) = (&planned.setting.key, write_for(planned.setting.known, current, &planned.wanted));
        if key == "limit.nofile"
            && let Some(why) = more_than_permitted(machine, &value)
        {
            self.left_out.push((key.clone(), why));
            return;
        }
        self.service.extend(service_lines(key, &value));
        self.limits.extend(limit_lines(key, &value));
    }

    fn files(self, profile: &str) -> Kept {
        let head =
            format!("# Written by `whimbrel-tune apply {profile} --persist`; `whimbrel-tune revert` takes it back.\n");
        let mut files = Vec::new();
        let mut file = |path: String, lines: &[String], before: &str, reader| {
            if !lines.is_empty() {
                files.push(NewFile { path, text: format!("{head}{before}{}\n", lines.join("\n")), reader });
            }
        };
        let sysctl = "systemd-sysctl or `sysctl --system`, at each start of the machine";
        file(format!("/etc/sysctl.d/60-whimbrel-{profile}.conf"), &self.sysctl, "", sysctl);
        let tmpfiles = "systemd-tmpfiles, at each start of the machine";
        file(format!("/etc/tmpfiles.d/60-whimbrel-{profile}.conf"), &self.tmpfiles, "", tmpfiles);
        let udev = "udev, when the device comes up";
        file(format!("/etc/udev/rules.d/90-whimbrel-{profile}.rules"), &self.udev, "", udev);
        let limits = "pam_limits, at the next login";
        file(format!("/etc/security/limits.d/60-whimbrel-{profile}.conf"), &self.limits, "", limits);
        let service = "systemd, after `systemctl daemon-reload` and at the next start of whimbrel.service";
        let path = format!("/etc/systemd/system/whimbrel.service.d/60-whimbrel-{profile}.conf");
        file(path, &self.service, "[Service]\n", service);
        let modprobe = "modprobe, when the module is loaded";
        file(format!("/etc/modprobe.d/60-whimbrel-{profile}.conf"), &self.modprobe, "", modprobe);
        Kept { files, left_out: self.left_out }
    }
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

/// What systemd has for a limit or a control group's setting.
#[must_use]
pub fn service_lines(key: &str, value: &str) -> Vec<String> {
    let endless = if matches!(value, "unlimited" | "max") { "infinity" } else { value };
    match key {
        "limit.nofile" => vec![format!("LimitNOFILE={endless}")],
        "limit.memlock" => vec![format!("LimitMEMLOCK={endless}")],
        // An assignment of nothing takes back what other files said.
        "cgroup.cpu.max" if endless == "infinity" => vec!["CPUQuota=".to_owned()],
        "cgroup.memory.high" => vec![format!("MemoryHigh={endless}")],
        _ => Vec::new(),
    }
}

fn limit_lines(key: &str, value: &str) -> Vec<String> {
    let (item, value) = match key {
        "limit.nofile" => ("nofile", value.to_owned()),
        // Here in KiB.
        "limit.memlock" => {
            ("memlock", value.parse::<u64>().map_or(value.to_owned(), |bytes| (bytes / 1024).to_string()))
        }
        _ => return Vec::new(),
    };
    // `*` is everybody but root.
    ["*", "root"].map(|who| format!("{who} - {item} {value}")).to_vec()
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
