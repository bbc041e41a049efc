//! A real server in a directory of its own, and ways to wait for what it does. Every wait ends by an event; its bound is
//! there only so that a hung test fails instead of hanging.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// Long enough for a busy machine; nothing passes or fails by it but what hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test, in an environment that names no server and no data.
pub(crate) fn whimbrel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WHIMBREL_") {
            command.env_remove(name);
        }
    }
    command.env("COLUMNS", "100").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    whimbrel().args(arguments).output().expect("the program starts")
}

/// What a process wrote, as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running `whimbrel serve`.
pub(crate) struct Server {
    child: Child,
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// Where it listens.
    pub(crate) address: String,
    errors: Receiver<String>,
}

impl Server {
    /// Starts one on a free port with two shards and a development key.
    pub(crate) fn start(data: &Path) -> Server {
        Server::start_on(data, "127.0.0.1:0")
    }

    /// Starts one at an address.
    pub(crate) fn start_on(data: &Path, listen: &str) -> Server {
        Server::start_by(serve(data, listen), data)
    }

    /// Starts one by a command. Where memory cannot be locked at the moment it is tried again: without CAP_IPC_LOCK all
    /// servers of a user share one limit, those of other tests too, and the kernel gives back late what a process had.
    pub(crate) fn start_by(mut command: Command, data: &Path) -> Server {
        let begun = std::time::Instant::now();
        loop {
            match Server::try_start(&mut command, data) {
                Ok(server) => return server,
                Err(errors) if errors.contains("limit of locked memory") && begun.elapsed() < PATIENCE => {
                    std::thread::park_timeout(Duration::from_millis(200));
                }
                Err(errors) => panic!("the server did not get ready; it wrote:\n{errors}"),
            }
        }
    }

    fn try_start(command: &mut Command, data: &Path) -> Result<Server, String> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let ready = lines(child.stdout.take().expect("it is piped"));
        let errors = lines(child.stderr.take().expect("it is piped"));
        let Ok(line) = ready.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(errors.iter().collect::<Vec<_>>().join("\n"));
        };
        let address = line
            .strip_prefix("ready ")
            .and_then(|rest| rest.split(' ').next())
            .expect("a line that says where")
            .to_owned();
        Ok(Server { child, data: data.to_owned(), address, errors })
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started here");
    }

    /// Asks it to end, as an operator does.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        (status, self.errors.iter().collect::<Vec<_>>().join("\n"))
    }

    /// Bytes of memory that it has for itself: heap and stacks, not mapped files.
    pub(crate) fn own_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel says it");
        let kib = line.trim().strip_suffix(" kB").expect("in KiB");
        kib.parse::<u64>().expect("a number") * 1024
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it was started here").is_none()
    }

    /// A client's command against it.
    pub(crate) fn client<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = whimbrel();
        command.args(arguments).env("WHIMBREL_SERVER", &self.address).env("WHIMBREL_DATA", &self.data);
        command
    }

    /// Runs a client's command against it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.client(arguments).output().expect("the program starts")
    }

    /// Runs a client's command that must succeed, and returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// A token of a user's device 1.
    pub(crate) fn token(&self, user: &str) -> String {
        self.ok(&["token", "--user", user]).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that starts a server with two shards.
pub(crate) fn serve(data: &Path, listen: &str) -> Command {
    serve_shards(data, listen, 2)
}

/// The command that starts a server.
pub(crate) fn serve_shards(data: &Path, listen: &str, shards: u16) -> Command {
    let mut command = whimbrel();
    command.args(["serve", "--dev", "--die-with-parent", "--cpus", "none", "--listen", listen]);
    command.args(["--shards", &shards.to_string()]).arg("--data").arg(data);
    command
}

/// Waits for the end of a process.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let pid = rustix::process::Pid::from_child(child);
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("it was started here");
    let mut ended = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec::try_from(PATIENCE).expect("it fits");
    if rustix::event::poll(&mut ended, Some(&patience)).expect("poll") == 0 {
        let _ = child.kill();
        panic!("process {} did not end", child.id());
    }
    child.wait().expect("it was started here")
}

/// Lines of a pipe, as they come.
pub(crate) fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Waits for a line that contains `part`.
pub(crate) fn wait_for(lines: &Receiver<String>, part: &str) -> String {
    let mut before = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(part) => return line,
            Ok(line) => before.push(line),
            Err(_) => panic!("no line with `{part}` came; before it:\n{}", before.join("\n")),
        }
    }
}
