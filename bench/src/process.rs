//! Servers as processes of their own: the floor's, and `whimbrel` itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::cpu::ProcessClock;

/// A server that does not say that it is ready within this time has failed.
const READY: Duration = Duration::from_secs(60);

/// A server that does not end within this time after it was asked to is killed.
const STOP: Duration = Duration::from_secs(30);

/// Which server of the bench's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ServerKind {
    /// Two receives and two sends a message, on a raw ring.
    Pairs,
    /// The same, each batch of messages flushed to a file before they are answered.
    Durable,
    /// An echo on a raw ring.
    Echo,
    /// An echo on glommio's `TcpStream`.
    Glommio,
}

/// A server to load. One that was started here ends with this value and with this process.
pub(crate) struct Server {
    child: Option<Child>,
    pid: u32,
    address: SocketAddr,
    clock: ProcessClock,
}

/// How `whimbrel` is started.
#[derive(Clone, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) data: &'a Path,
    pub(crate) shards: u16,
    pub(crate) cpus: &'a str,
    /// On top of this process's.
    pub(crate) environment: &'a BTreeMap<String, String>,
}

impl Start<'_> {
    fn arguments(&self) -> Vec<String> {
        let shards = self.shards.to_string();
        let data = self.data.display().to_string();
        ["serve", "--dev", "--data", &data, "--listen", "127.0.0.1:0", "--shards", &shards, "--cpus", self.cpus]
            .map(str::to_owned)
            .to_vec()
    }

    /// As one would type it.
    pub(crate) fn command_line(&self) -> String {
        let settings = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let words: Vec<String> = settings.chain([self.program.display().to_string()]).chain(self.arguments()).collect();
        words.join(" ")
    }
}

impl Server {
    /// One of the bench's own, on a core.
    pub(crate) fn floor(kind: ServerKind, cpu: usize, slots: u32) -> anyhow::Result<Server> {
        Self::own(kind, cpu, slots, None)
    }

    /// One of the bench's own, on a core, that writes to a file, which it makes.
    pub(crate) fn durable(cpu: usize, slots: u32, log: &Path) -> anyhow::Result<Server> {
        Self::own(ServerKind::Durable, cpu, slots, Some(log))
    }

    fn own(kind: ServerKind, cpu: usize, slots: u32, log: Option<&Path>) -> anyhow::Result<Server> {
        let program = std::env::current_exe().context("find this program's file")?;
        let mut command = Command::new(program);
        let kind = match kind {
            ServerKind::Durable => "durable",
            ServerKind::Pairs => "pairs",
            ServerKind::Echo => "echo",
            ServerKind::Glommio => "glommio",
        };
        command.args(["floor-server", "--kind", kind, "--cpu", &cpu.to_string(), "--slots", &slots.to_string()]);
        if let Some(log) = log {
            command.arg("--log").arg(log);
        }
        Self::start(command, &format!("the floor's server ({kind})"))
    }

    /// A `whimbrel serve --dev`. What it logs goes to DATA.log.
    pub(crate) fn whimbrel(start: &Start<'_>) -> anyhow::Result<Server> {
        let log = start.data.with_extension("log");
        let mut command = Command::new(start.program);
        command.args(start.arguments()).arg("--die-with-parent");
        command.envs(start.environment);
        command.stderr(File::create(&log).with_context(|| format!("make {}", log.display()))?);
        Self::start(command, "whimbrel")
    }

    /// A server that somebody else started; its process is the one that holds the data directory.
    pub(crate) fn running(address: SocketAddr, data: &Path) -> anyhow::Result<Server> {
        let lock = data.join("lock");
        let text = std::fs::read_to_string(&lock).with_context(|| {
            format!("read {}: --data must name the data directory of the server at {address}", lock.display())
        })?;
        let pid = text.trim().parse().with_context(|| format!("the process in {}", lock.display()))?;
        Ok(Server { child: None, pid, address, clock: ProcessClock::of(pid)? })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its CPU is read from.
    pub(crate) fn clock(&self) -> &ProcessClock {
        &self.clock
    }

    /// Process number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        kill_process(Pid::from_child(&child), Signal::TERM).context("ask the server to end")?;
        let (told, ended) = mpsc::channel();
        let pid = Pid::from_child(&child);
        let waiter = thread::spawn(move || {
            let status = child.wait();
            // Nobody listens any more where it was killed below.
            let _ = told.send(());
            status
        });
        if ended.recv_timeout(STOP).is_err() {
            kill_process(pid, Signal::KILL).context("kill the server")?;
        }
        let status = waiter.join().expect("the waiter only waits").context("wait for the server")?;
        if !status.success() {
            bail!("the server did not end as it should: {status}");
        }
        Ok(())
    }

    fn start(mut command: Command, name: &str) -> anyhow::Result<Server> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = unpinned(|| command.spawn())?
            .with_context(|| format!("start {}", Path::new(command.get_program()).display()))?;
        let pid = child.id();
        let output = child.stdout.take().context("the server's output is piped")?;
        let (told, line) = mpsc::channel();
        thread::spawn(move || {
            // All is read, so that its writer never blocks; only the first line finds somebody who listens.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let address = line.recv_timeout(READY).ok().and_then(|line| ready_address(&line));
        let Some(address) = address else {
            let _ = child.kill();
            let status = child.wait().context("wait for the server")?;
            bail!("{name} did not get ready ({status})");
        };
        Ok(Server { child: Some(child), pid, address, clock: ProcessClock::of(pid)? })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `ready ADDRESS …`, the first line of a server that serves.
fn ready_address(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("ready ")?.split(' ').next()?.parse().ok()
}

/// For an error: how a log ends.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // What is indented is a backtrace.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    format!("\nthe end of {}:\n{}", log.display(), last.join("\n"))
}

/// `whimbrel` beside this program, or the one that was named; it must be of this program's commit.
pub(crate) fn find_whimbrel(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("find this program's file")?.with_file_name("whimbrel"),
    };
    if !path.exists() {
        bail!(
            "there is no {}: build it with `cargo build --release --workspace`, or name it with --whimbrel",
            path.display()
        );
    }
    let output =
        Command::new(&path).arg("--version").output().with_context(|| format!("run {} --version", path.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    same_commit(&said, env!("WHIMBREL_COMMIT")).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Whether `version` (`whimbrel 0.1.0 (COMMIT)`) names this commit.
fn same_commit(version: &str, own: &str) -> anyhow::Result<()> {
    let theirs = version.trim().rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or("unknown");
    if theirs != own {
        bail!("it is of commit {theirs}, this bench of {own}: build both with `cargo build --release --workspace`");
    }
    Ok(())
}

/// Keeps this thread, and those that it starts from now on, on one core.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        bail!("there is no core {cpu}");
    }
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("stay on core {cpu}: the bench needs two cores, 0 for the server and 1 for the load"))
}

/// Does something, such as starting a process that inherits it, with leave to run on all cores.
fn unpinned<T>(work: impl FnOnce() -> T) -> anyhow::Result<T> {
    let pinned = rustix::thread::sched_getaffinity(None).context("which cores this thread may run on")?;
    let mut all = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    rustix::thread::sched_setaffinity(None, &all).context("run on all cores")?;
    let result = work();
    rustix::thread::sched_setaffinity(None, &pinned).context("return to the own core")?;
    Ok(result)
}

/// Ends this process when the one that started it ends.
pub(crate) fn die_with_parent() -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the parent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_server_names_its_address() {
        assert_eq!(
            ready_address("ready 127.0.0.1:40123 shards=2 data=/path pid=7"),
            Some("127.0.0.1:40123".parse().unwrap())
        );
        assert_eq!(ready_address("ready 127.0.0.1:1"), Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(ready_address("listening on 127.0.0.1:1"), None);
    }

    #[test]
    fn a_server_of_another_commit_is_refused() {
        assert!(same_commit("whimbrel 0.1.0 (0bc3d15f0a12)\n", "0bc3d15f0a12").is_ok());
        for other in ["whimbrel 0.1.0 (0bc3d15f0a12-dirty)", "whimbrel 0.1.0 (111111111111)", "whimbrel 0.1.0"] {
            let error = same_commit(other, "0bc3d15f0a12").unwrap_err().to_string();
            assert!(error.contains("cargo build --release --workspace"), "{error}");
        }
    }
}
