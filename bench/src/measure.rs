//! One window of load on one server, and what it cost.

use std::time::{Duration, Instant};

use crate::cpu::{self, ProcessClock};

/// Something that loads a server from the calling thread.
pub(crate) trait Load {
    /// One turn of its loop: waits at most some milliseconds for something to do.
    fn turn(&mut self) -> anyhow::Result<()>;
    /// Messages (or echoes) done so far.
    fn done(&self) -> u64;
    /// Begins to send.
    fn resume(&mut self);
    /// Sends nothing new.
    fn pause(&mut self);
    /// Begun and not done.
    fn outstanding(&self) -> u64;
    /// How long it was awake with nothing to do.
    fn idle(&self) -> Duration;
    /// The measured part of a window begins or ends.
    fn measured(&mut self, on: bool) {
        let _ = on;
    }
}

/// What a window measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Messages (or echoes) that became done in it.
    pub(crate) done: u64,
    pub(crate) wall_ns: u64,
    pub(crate) server_cpu_ns: u64,
    /// Without what it was awake with nothing to do.
    pub(crate) generator_cpu_ns: u64,
}

impl Sample {
    /// Server CPU for each.
    pub(crate) fn cpu_ns_each(&self) -> f64 {
        self.server_cpu_ns as f64 / self.done.max(1) as f64
    }

    /// Done a second.
    pub(crate) fn per_s(&self) -> f64 {
        self.done as f64 / self.wall_ns.max(1) as f64 * 1e9
    }

    /// Cores that the server kept busy.
    pub(crate) fn server_busy(&self) -> f64 {
        self.server_cpu_ns as f64 / self.wall_ns.max(1) as f64
    }

    /// The share of its core that the generator kept busy.
    pub(crate) fn generator_busy(&self) -> f64 {
        self.generator_cpu_ns as f64 / self.wall_ns.max(1) as f64
    }
}

/// How long a window is, and what runs before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Not measured: the loop gets into its stride.
    pub(crate) warm_up: Duration,
    /// Measured.
    pub(crate) length: Duration,
}

/// What is begun must be done within this time; what is not then is lost.
const DRAIN: Duration = Duration::from_secs(20);

/// Loads a server for one window and lets what was begun end.
pub(crate) fn window(load: &mut dyn Load, clock: &ProcessClock, window: Window) -> anyhow::Result<Sample> {
    load.resume();
    run_for(load, window.warm_up)?;
    let before = reading(load, clock)?;
    load.measured(true);
    run_for(load, window.length)?;
    load.measured(false);
    let after = reading(load, clock)?;
    load.pause();
    drain(load)?;
    Ok(Sample {
        done: after.done - before.done,
        wall_ns: after.at.duration_since(before.at).as_nanos() as u64,
        server_cpu_ns: after.server_ns - before.server_ns,
        generator_cpu_ns: after.generator_ns.saturating_sub(before.generator_ns),
    })
}

/// Turns until nothing is outstanding, or it is clear that it will not come.
pub(crate) fn drain(load: &mut dyn Load) -> anyhow::Result<()> {
    let mut last = (load.done(), Instant::now());
    while load.outstanding() > 0 && last.1.elapsed() < DRAIN {
        load.turn()?;
        if load.done() != last.0 {
            last = (load.done(), Instant::now());
        }
    }
    Ok(())
}

struct Reading {
    done: u64,
    at: Instant,
    server_ns: u64,
    generator_ns: u64,
}

fn reading(load: &dyn Load, clock: &ProcessClock) -> anyhow::Result<Reading> {
    let server_ns = clock.now_ns()?;
    let generator_ns = cpu::this_thread_ns()?.saturating_sub(load.idle().as_nanos() as u64);
    Ok(Reading { done: load.done(), at: Instant::now(), server_ns, generator_ns })
}

fn run_for(load: &mut dyn Load, time: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        load.turn()?;
    }
    Ok(())
}
