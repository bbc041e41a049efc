//! The server under test: a process of its own, with its data on the machine's disk.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::fuse::Machine;
use crate::ledger::{Finding, Kind};

/// Long enough for a busy machine: what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a server is started with.
pub(crate) struct Setting<'a> {
    pub(crate) program: &'a Path,
    pub(crate) data: &'a Path,
    /// What it logs to.
    pub(crate) log: &'a Path,
    /// Small, so that many are made.
    pub(crate) segment_size: &'a str,
    pub(crate) forget_after: &'a str,
    /// Whose disk it is, if its power may fail.
    pub(crate) machine: Option<&'a Machine>,
}

/// A running server. It ends with this value.
pub(crate) struct Server {
    child: Child,
    ended: OwnedFd,
    output: ChildStdout,
    machine: Option<Machine>,
}

/// How a start went.
pub(crate) enum Started {
    /// It serves at this address.
    Ready(String),
    /// The power failed first.
    PowerFailed,
    /// It does not serve what it finds.
    Refused(Finding),
}

impl Server {
    /// Starts one with two shards.
    pub(crate) fn start(setting: &Setting<'_>) -> anyhow::Result<Server> {
        let Setting { program, data, log, segment_size, forget_after, machine } = *setting;
        let log =
            File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WHIMBREL_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["serve", "--dev", "--die-with-parent", "--shards", "2", "--cpus", "none"])
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("WHIMBREL_SEGMENT_SIZE", segment_size)
            .env("WHIMBREL_STORAGE_FORGET_AFTER", forget_after)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let output = child.stdout.take().context("the server's output is piped")?;
        let ended = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        match ended {
            Ok(ended) => Ok(Server { child, ended, output, machine: machine.cloned() }),
            Err(error) => {
                // Without a handle on it nothing can be awaited; the child is not left behind.
                child.kill().context("kill the server")?;
                if let Some(machine) = machine {
                    machine.release();
                }
                child.wait().context("wait for the killed server")?;
                Err(error).context("open a handle on the server's process")
            }
        }
    }

    /// Waits until it serves, or does not.
    pub(crate) fn wait_until_ready(&mut self) -> anyhow::Result<Started> {
        let mut said = Vec::new();
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::IN)];
            fds.extend(self.machine.iter().map(|machine| PollFd::new(machine.failure(), PollFlags::IN)));
            if wait(&mut fds, PATIENCE)? == 0 {
                let what = format!("it is not ready {} s after its start", PATIENCE.as_secs());
                return Ok(Started::Refused(Finding::new(Kind::Stuck, what)));
            }
            if self.power_failed() {
                return Ok(Started::PowerFailed);
            }
            let mut piece = [0; 256];
            let count = self.output.read(&mut piece).context("read what the server says")?;
            if count == 0 {
                let status = self.child.wait().context("wait for the server")?;
                if self.power_failed() {
                    return Ok(Started::PowerFailed);
                }
                return Ok(Started::Refused(Finding::new(
                    Kind::NoStart,
                    format!("it ended before it was ready: {status}"),
                )));
            }
            said.extend_from_slice(&piece[..count]);
            if said.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&said);
                let address = line.strip_prefix("ready ").and_then(|rest| rest.split(' ').next());
                return Ok(Started::Ready(address.with_context(|| format!("the server said `{line}`"))?.to_owned()));
            }
        }
    }

    fn power_failed(&self) -> bool {
        self.machine.as_ref().is_some_and(Machine::has_failed)
    }

    /// How it ended, if it has.
    pub(crate) fn status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("ask how the server ended")
    }

    /// Readable once it has ended.
    pub(crate) fn ended(&self) -> &OwnedFd {
        &self.ended
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> anyhow::Result<bool> {
        Ok(wait(&mut [PollFd::new(&self.ended, PollFlags::IN)], Duration::ZERO)? > 0)
    }

    /// SIGKILL, after which nothing of it runs any more.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the server")?;
        // It is dead, but its threads that wait for the disk end when they are answered.
        if let Some(machine) = &self.machine {
            machine.release();
        }
        self.child.wait().context("wait for the killed server")?;
        Ok(())
    }

    /// SIGTERM, and how it ends; `None` if it does not.
    pub(crate) fn ask_to_stop(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).context("ask the server to end")?;
        if wait(&mut [PollFd::new(&self.ended, PollFlags::IN)], PATIENCE)? == 0 {
            return Ok(None);
        }
        self.child.wait().context("wait for the server").map(Some)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.kill();
    }
}

/// Waits until something of these is to be seen. Returns how many; 0 if the time is over.
pub(crate) fn wait(fds: &mut [PollFd<'_>], at_most: Duration) -> anyhow::Result<usize> {
    let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
    loop {
        match rustix::event::poll(fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            found => return found.context("poll"),
        }
    }
}

/// The program to test: the one that was named, or the one beside this.
pub(crate) fn program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => {
            let own = std::env::current_exe().context("find this program's file")?;
            // A test runs one folder further down.
            let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("whimbrel")).find(|it| it.is_file());
            beside.with_context(|| {
                format!(
                    "there is no whimbrel beside {}: build it (cargo build -p whimbrel), or name one with --whimbrel",
                    own.display()
                )
            })?
        }
    };
    path.canonicalize().with_context(|| format!("find {}", path.display()))
}

/// A token for a device, by the development key in `keys`.
pub(crate) fn token(program: &Path, keys: &Path, user: &str, device: u32) -> anyhow::Result<String> {
    let made = Command::new(program)
        .args(["token", "--user", user, "--device", &device.to_string(), "--data"])
        .arg(keys)
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    anyhow::ensure!(made.status.success(), "no token was made: {}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout).context("a token is text")?.trim().to_owned())
}
