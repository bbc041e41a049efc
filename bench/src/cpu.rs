//! CPU time: of whole processes, all their threads included, of this thread, and of each thread for the breakdown.
//!
//! The process clock is what everything here is counted with. It has nanoseconds, where `utime` and `stime` of
//! /proc/PID/stat have ticks of 10 ms; it includes io_uring's workers, which are threads of their process; and a thread that
//! ends leaves its time in it, where /proc/PID/task/*/schedstat forgets it.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;

use anyhow::{Context, bail};

/// The CPU clock of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessClock {
    pid: u32,
    clock: libc::clockid_t,
}

impl ProcessClock {
    /// Of a process that lives.
    pub(crate) fn of(pid: u32) -> anyhow::Result<ProcessClock> {
        let mut clock = 0;
        // SAFETY: the result is written to a variable that lives through the call.
        let code = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
        if code != 0 {
            bail!("the CPU clock of process {pid}: {}", io::Error::from_raw_os_error(code));
        }
        Ok(ProcessClock { pid, clock })
    }

    /// Nanoseconds of CPU that the process has used.
    pub(crate) fn now_ns(&self) -> anyhow::Result<u64> {
        read(self.clock).with_context(|| format!("the CPU clock of process {}: has it ended?", self.pid))
    }
}

/// Nanoseconds of CPU that this thread has used.
pub(crate) fn this_thread_ns() -> anyhow::Result<u64> {
    read(libc::CLOCK_THREAD_CPUTIME_ID).context("this thread's CPU clock")
}

fn read(clock: libc::clockid_t) -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a variable that lives through the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// From now on this thread has its core before all that are not such threads too.
pub(crate) fn come_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives through the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// CPU nanoseconds of the threads of a process that live, summed by name: where the process clock went.
pub(crate) fn by_thread_name(pid: u32) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    // Threads come and go while this reads: one that is gone adds nothing.
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).ok();
        if let (Some(name), Some(run_ns)) = (read("comm"), read("schedstat").as_deref().and_then(schedstat_run_ns)) {
            *sums.entry(thread_kind(name.trim()).to_owned()).or_default() += run_ns;
        }
    }
    sums
}

/// Time on a CPU in nanoseconds, the first of the three numbers of a schedstat file.
fn schedstat_run_ns(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// A thread's name without the numbers that tell its like apart (`iou-wrk-4711` is `iou-wrk`).
fn thread_kind(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_'])
}

/// Ticks of the machine's CPUs, from the first line of /proc/stat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MachineTicks {
    /// All of them.
    total: u64,
    /// Those in which they worked.
    busy: u64,
    /// Taken by other machines on the same hardware.
    steal: u64,
    /// Those of this process and of the children that it waited for.
    own: u64,
}

/// Shares of the machine that were not the bench's or its servers'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Disturbance {
    /// Taken by other machines on the same hardware.
    pub(crate) steal_share: f64,
    /// Taken by other processes of this machine.
    pub(crate) others_share: f64,
}

impl MachineTicks {
    /// Now.
    pub(crate) fn read() -> MachineTicks {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/stat"), &read("/proc/self/stat")).unwrap_or_default()
    }

    fn parse(machine: &str, own: &str) -> Option<MachineTicks> {
        let fields = machine.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
        // user nice system idle iowait irq softirq steal; what follows is contained in the first two.
        let ticks: Vec<u64> = fields.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let &[user, nice, system, _, _, irq, softirq, steal] = ticks.as_slice() else { return None };
        // Behind the name, which may hold anything: utime, stime, cutime and cstime are the 12th to 15th.
        let own: Vec<&str> = own.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(MachineTicks {
            total: ticks.iter().sum(),
            busy: user + nice + system + irq + softirq,
            steal,
            own: own.get(11..15)?.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>().ok()?,
        })
    }

    /// What others took since `earlier`. All children of the time between must have been waited for.
    pub(crate) fn disturbance(&self, earlier: MachineTicks) -> Disturbance {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        let own = self.own.saturating_sub(earlier.own);
        let others = self.busy.saturating_sub(earlier.busy).saturating_sub(own);
        Disturbance {
            steal_share: self.steal.saturating_sub(earlier.steal) as f64 / total,
            others_share: others as f64 / total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_begins_with_the_time_on_a_cpu() {
        assert_eq!(schedstat_run_ns("123456789 2000 17\n"), Some(123_456_789));
        assert_eq!(schedstat_run_ns(""), None);
    }

    #[test]
    fn threads_of_a_kind_share_a_name() {
        assert_eq!(thread_kind("iou-wrk-4711"), "iou-wrk");
        assert_eq!(thread_kind("shard-0"), "shard");
        assert_eq!(thread_kind("whimbrel"), "whimbrel");
    }

    #[test]
    fn stat_names_what_others_took() {
        let machine = "cpu  10 1 20 300 4 0 5 60 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let own = "7 (a b) c) R 1 2 3 4 5 6 7 8 9 10 4 3 2 1 20 0\n";
        let later = MachineTicks::parse(machine, own).unwrap();
        assert_eq!(later, MachineTicks { total: 400, busy: 36, steal: 60, own: 10 });
        let earlier = MachineTicks { total: 200, busy: 20, steal: 50, own: 4 };
        assert_eq!(later.disturbance(earlier), Disturbance { steal_share: 0.05, others_share: 0.05 });
        assert_eq!(MachineTicks::parse("cpu 1 2", own), None);
        assert_eq!(MachineTicks::parse(machine, "7 (x) R 1"), None);
    }

    #[test]
    fn the_clock_of_this_process_has_the_time_of_a_thread_that_ended() {
        let clock = ProcessClock::of(std::process::id()).unwrap();
        let before = clock.now_ns().unwrap();
        let spent = std::thread::spawn(|| {
            while this_thread_ns().unwrap() < 2_000_000 {}
            this_thread_ns().unwrap()
        });
        let spent = spent.join().unwrap();
        assert!(clock.now_ns().unwrap() - before >= spent);
    }
}
