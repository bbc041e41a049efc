//! System calls of a server under load, counted by `strace -c -f`. Being traced slows the server, so nothing else is measured
//! meanwhile.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::measure::{Load, drain};

/// What was counted.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) calls: u64,
    pub(crate) delivered: u64,
    /// The busiest calls and how many.
    pub(crate) by_name: Vec<(String, u64)>,
}

impl Counted {
    /// For each message.
    pub(crate) fn per_delivered(&self) -> f64 {
        self.calls as f64 / self.delivered.max(1) as f64
    }
}

/// Traces all threads of `pid` for `length` under load.
pub(crate) fn count(load: &mut dyn Load, pid: u32, length: Duration, scratch: &Path) -> anyhow::Result<Counted> {
    let report = scratch.join("strace.txt");
    let mut tracer = Command::new("strace")
        .args(["-c", "-f", "-p", &pid.to_string(), "-o"])
        .arg(&report)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start strace: install it (`apt-get install strace`), or leave out --strace")?;
    let errors = tracer.stderr.take().context("strace's stderr is piped")?;
    let (told, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            // Only the first finds somebody who listens.
            let _ = told.send(line);
        }
    });
    load.resume();
    loop {
        match lines.try_recv() {
            Ok(line) if line.contains("attached") => break,
            Ok(line) => bail!("strace said `{line}`: it must be allowed to trace (run as root, or see ptrace_scope)"),
            Err(TryRecvError::Empty) => load.turn()?,
            Err(TryRecvError::Disconnected) => bail!("strace ended before it had attached"),
        }
    }
    let before = load.done();
    let start = Instant::now();
    while start.elapsed() < length {
        load.turn()?;
    }
    kill_process(Pid::from_child(&tracer), Signal::INT).context("end strace")?;
    while tracer.try_wait().context("wait for strace")?.is_none() {
        load.turn()?;
    }
    let delivered = load.done() - before;
    load.pause();
    drain(load)?;
    let text = std::fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    let (calls, by_name) = parse(&text).context("strace printed no summary")?;
    Ok(Counted { calls, delivered, by_name })
}

/// The sum and the counts by name of a `strace -c` summary.
fn parse(text: &str) -> Option<(u64, Vec<(String, u64)>)> {
    let mut by_name = Vec::new();
    for line in text.lines() {
        // % time, seconds, usecs/call, calls, errors (may be left out), syscall. The sum has no usecs/call in older versions.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(&name), true) = (words.last(), words.len() >= 4) else { continue };
        let numbers: Vec<u64> = words[2..words.len() - 1].iter().filter_map(|word| word.parse().ok()).collect();
        if name == "total" {
            let calls = match numbers.as_slice() {
                [calls] => *calls,
                [_, calls, ..] => *calls,
                [] => return None,
            };
            by_name.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
            return Some((calls, by_name));
        }
        if let [_, calls, ..] = numbers.as_slice() {
            by_name.push((name.to_owned(), *calls));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.91    0.500000          50     10000       120 io_uring_enter
  9.09    0.050000           5        50           pwritev2
------ ----------- ----------- --------- --------- ----------------
100.00    0.550000          54     10050       120 total
";

    #[test]
    fn a_summary_is_counted() {
        let (calls, by_name) = parse(SUMMARY).unwrap();
        assert_eq!(calls, 10_050);
        assert_eq!(by_name, [("io_uring_enter".to_owned(), 10_000), ("pwritev2".to_owned(), 50)]);
    }

    #[test]
    fn an_older_sum_has_no_mean() {
        let old = SUMMARY.replace("          54     10050       120 total", "                 10050           total");
        assert_eq!(parse(&old).unwrap().0, 10_050);
        assert!(parse("").is_none());
    }
}
