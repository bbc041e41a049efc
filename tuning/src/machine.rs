//! The machine as a tree of files: `/proc`, `/sys` and `/etc` below a root, which tests put elsewhere. Places are named as they are
//! on a machine, whatever the root.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::value::cpu_list;

/// Bytes in a KiB of /proc/meminfo.
const KIB: u64 = 1024;

/// Where ethtool(8) may lie.
const ETHTOOL: [&str; 3] = ["/usr/sbin/ethtool", "/sbin/ethtool", "/usr/bin/ethtool"];

/// A machine, and whose limits count.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    process: String,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine { root: "/".into(), process: "self".to_owned() }
    }
}

impl Machine {
    /// The tree below this root.
    #[must_use]
    pub fn at(root: &Path) -> Machine {
        Machine { root: root.to_owned(), ..Machine::default() }
    }

    /// The same, with the limits of this process and not of the one that asks.
    #[must_use]
    pub fn with_process(mut self, pid: u32) -> Machine {
        self.process = pid.to_string();
        self
    }

    /// Whether it is the machine itself and no tree elsewhere.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The process whose limits count: `self` or a number.
    #[must_use]
    pub fn process(&self) -> &str {
        &self.process
    }

    /// Where a place lies.
    #[must_use]
    pub fn path(&self, place: &str) -> PathBuf {
        self.root.join(place.trim_start_matches('/'))
    }

    /// What stands in a file.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub fn read(&self, place: &str) -> io::Result<String> {
        fs::read_to_string(self.path(place))
    }

    /// Writes to a file that is there, in one write, as the kernel's files want it.
    ///
    /// # Errors
    /// It cannot be opened, or the kernel refuses the value.
    pub fn write(&self, place: &str, text: &str) -> Result<(), WriteError> {
        let file = OpenOptions::new().write(true).truncate(true).open(self.path(place));
        file.map_err(WriteError::Open)?.write_all(text.as_bytes()).map_err(WriteError::Write)
    }

    /// Names in a folder, in their order; numbers by their size. None if it cannot be read.
    #[must_use]
    pub fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_by_cached_key(|name| {
            let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
            (name[..digits].to_owned(), name[digits..].parse::<u64>().unwrap_or(u64::MAX), name.clone())
        });
        names
    }

    /// Cores that are online.
    #[must_use]
    pub fn cpus(&self) -> Vec<usize> {
        self.read("/sys/devices/system/cpu/online").map(|text| cpu_list(&text)).unwrap_or_default()
    }

    /// Network cards: those with a device behind them.
    #[must_use]
    pub fn nics(&self) -> Vec<String> {
        let all = self.names("/sys/class/net");
        all.into_iter().filter(|nic| self.path(&format!("/sys/class/net/{nic}/device")).exists()).collect()
    }

    /// Disks: those with a device behind them.
    #[must_use]
    pub fn disks(&self) -> Vec<String> {
        let all = self.names("/sys/block");
        all.into_iter().filter(|disk| self.path(&format!("/sys/block/{disk}/device")).exists()).collect()
    }

    /// RAM.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let meminfo = self.read("/proc/meminfo").ok()?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * KIB)
    }

    /// A page of the kernel that runs.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    /// The start of the kernel that this is; empty if it does not say.
    #[must_use]
    pub fn boot_id(&self) -> String {
        self.read("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }

    /// The network namespace; empty if it does not say.
    #[must_use]
    pub fn network_namespace(&self) -> String {
        let link = fs::read_link(self.path("/proc/self/ns/net")).unwrap_or_default();
        link.to_string_lossy().into_owned()
    }

    /// ethtool(8) with these arguments, if it is installed.
    #[must_use]
    pub fn ethtool(&self, arguments: &[&str]) -> Option<Command> {
        let path = ETHTOOL.iter().map(|place| self.path(place)).find(|path| path.exists())?;
        let mut command = Command::new(path);
        command.args(arguments);
        Some(command)
    }
}

/// Why a value was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file cannot be opened for writing.
    #[error("{0}")]
    Open(io::Error),
    /// The kernel does not take the value.
    #[error("{0}")]
    Write(io::Error),
}
