//! The demo's server: this same program as a process of its own, which can be killed for real.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;

use anyhow::{Context, bail};

use crate::cli::demo::Patience;

/// A server process. It ends with this value, and with the process that holds it.
pub(super) struct ServerProcess {
    child: Child,
    pub(super) address: String,
}

impl ServerProcess {
    /// Starts one with two shards on the data in `dir` and waits until it serves.
    pub(super) fn start(dir: &Path, listen: &str, patience: &Patience) -> anyhow::Result<ServerProcess> {
        let log = open_log(dir)?;
        let program = std::env::current_exe().context("find this program's file")?;
        let mut child = Command::new(&program)
            .args([
                "serve",
                "--dev",
                "--die-with-parent",
                "--shards",
                "2",
                "--cpus",
                "none",
                "--listen",
                listen,
                "--data",
            ])
            .arg(data_dir(dir))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let output = child.stdout.take().context("the server's output is piped")?;
        // From here on the process ends with the value, whatever happens.
        let mut server = ServerProcess { child, address: String::new() };
        server.address = server.wait_until_ready(&first_line(output), patience)?;
        Ok(server)
    }

    /// Process number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: the process gets no chance to write anything any more.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the killed server")?;
        Ok(())
    }

    /// SIGTERM, and its exit code.
    pub(super) fn stop(mut self, patience: &Patience) -> anyhow::Result<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("ask the server to end")?;
        loop {
            if let Some(status) = self.child.try_wait().context("wait for the server")? {
                return status.code().context("the server was killed by a signal");
            }
            patience.pause("the server to end")?;
        }
    }

    fn wait_until_ready(&mut self, line: &Receiver<String>, patience: &Patience) -> anyhow::Result<String> {
        loop {
            match line.recv_timeout(Patience::STEP) {
                Ok(line) => {
                    let address = line.strip_prefix("ready ").and_then(|rest| rest.split(' ').next());
                    return Ok(address.with_context(|| format!("the server said `{line}`"))?.to_owned());
                }
                Err(RecvTimeoutError::Timeout) => patience.check("the server to get ready")?,
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().context("wait for the server")?;
                    bail!("the server ended before it was ready: {status}");
                }
            }
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the server keeps its data.
pub(super) fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// Where all servers of a demo log to.
pub(super) fn log_path(dir: &Path) -> PathBuf {
    dir.join("server.log")
}

fn open_log(dir: &Path) -> anyhow::Result<File> {
    let path = log_path(dir);
    OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
}

/// The first line of an output; the rest is read and left, so that its writer never blocks.
fn first_line(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Only the first finds somebody who listens.
            let _ = sender.send(line);
        }
    });
    receiver
}
