//! What a figure is worth depends on where it was measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::process::last_lines;
use crate::report::Environment;
use crate::scenario::Scenario;

/// This machine, this build, these settings.
pub(crate) fn environment(scenario: &Scenario, commands: &[(String, String)]) -> anyhow::Result<Environment> {
    let scenario = serde_json::to_value(scenario).context("the scenario as JSON")?;
    let mut settings = BTreeMap::from([("scenario".to_owned(), scenario)]);
    // It has a share in what the sockets cost, the floor's as well.
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    settings.insert("tcp_congestion_control".to_owned(), congestion.trim().into());
    settings.extend(commands.iter().map(|(name, line)| (name.clone(), line.as_str().into())));
    let name = rustix::system::uname();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Ok(Environment {
        kernel: name.release().to_string_lossy().into_owned(),
        cpu: cpu_model(&cpuinfo).unwrap_or_default(),
        // Not what this thread may use: it is pinned to one of them.
        cores: cores(&cpuinfo),
        commit: env!("WHIMBREL_COMMIT").to_owned(),
        settings,
    })
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn cores(cpuinfo: &str) -> usize {
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count()
}

/// Where the servers that are started keep their data. It is removed at the end.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Below `named`, else below the build's directory, so that it is on a disk and not in memory as /tmp may be. What runs
    /// left behind that were killed is removed.
    pub(crate) fn new(named: Option<&Path>) -> anyhow::Result<Scratch> {
        let base = match named {
            Some(path) => path.to_owned(),
            None => default_base(&std::env::current_exe().context("find this program's file")?),
        };
        let make = || {
            fs::create_dir_all(&base)?;
            for left in fs::read_dir(&base)?.flatten() {
                if left.file_name().to_str().and_then(run_of).is_some_and(has_ended) {
                    fs::remove_dir_all(left.path())?;
                }
            }
            let path = base.join(format!("{RUN}{}", std::process::id()));
            fs::create_dir(&path)?;
            Ok::<_, std::io::Error>(path)
        };
        let path = make().with_context(|| format!("make a directory for this run in {}", base.display()))?;
        Ok(Scratch { path })
    }

    /// An error with the ends of the logs of servers that lie here, for they go with it.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|file| file.path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let ends: String = logs.map(|path| last_lines(&path)).collect();
        anyhow::anyhow!("{error:#}{ends}")
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is at the start of the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

const RUN: &str = "run-";

/// The process whose run a directory is.
fn run_of(directory: &str) -> Option<u32> {
    directory.strip_prefix(RUN)?.parse().ok()
}

fn has_ended(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

/// `target/bench-data` for `target/release/whimbrel-bench`.
fn default_base(program: &Path) -> PathBuf {
    program.parent().and_then(Path::parent).unwrap_or(Path::new(".")).join("bench-data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named_and_counted() {
        assert_eq!(cores("processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\n"), 2);
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }

    #[test]
    fn a_run_removes_its_data_and_that_of_a_run_that_was_killed() {
        let base = tempfile::tempdir().unwrap();
        // Above the largest number of a process.
        let killed = base.path().join("run-4294967295");
        let foreign = base.path().join("run-away");
        fs::create_dir(&killed).unwrap();
        fs::create_dir(&foreign).unwrap();
        let scratch = Scratch::new(Some(base.path())).unwrap();
        let own = scratch.path().to_owned();
        assert!(own.exists() && foreign.exists() && !killed.exists());
        drop(scratch);
        assert!(!own.exists() && foreign.exists());
    }

    #[test]
    fn data_lies_beside_the_build() {
        assert_eq!(default_base(Path::new("/w/target/release/whimbrel-bench")), Path::new("/w/target/bench-data"));
    }
}
