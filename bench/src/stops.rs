//! Times in which the whole machine stood still, as a virtual one does when its hypervisor has given it all that it is to have of a period:
//! no clock of CPU time in it knows of that. A thread on each core that comes before all others looks twice a millisecond. Where all of
//! them come late at the same time nobody ran.
//!
//! What is found is at most what there was: the time between the last look and the stop is not counted. A kernel that keeps all cores
//! from their threads for a millisecond at once, each by work of its own, would pass for a stop; what one core does alone does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};

use crate::cpu;

/// How often each thread looks. It takes a hundredth of its core.
const PERIOD: Duration = Duration::from_micros(500);

/// What is shorter is not told.
const STOP_MIN_US: u64 = 1_000;

/// Microseconds since 1970, from and to.
pub(crate) type Span = (u64, u64);

/// See the [module](self).
pub(crate) struct Stops {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Span>>>,
}

impl Stops {
    /// Looks from now on; `None`, and a warning, where it is not allowed to: what is measured then has the stops in it.
    pub(crate) fn watch_if_allowed(cpus: impl IntoIterator<Item = usize>) -> Option<Stops> {
        let watch = Stops::watch(cpus);
        watch.inspect_err(|error| eprintln!("warning: stops of the machine are not told: {error:#}")).ok()
    }

    fn watch(cpus: impl IntoIterator<Item = usize>) -> anyhow::Result<Stops> {
        let ended = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let start = |cpu| {
            let (ended, tell) = (Arc::clone(&ended), tell.clone());
            let thread = thread::Builder::new().name(format!("stops-{cpu}"));
            let work = move || {
                let ready = crate::process::pin(cpu).and_then(|()| {
                    cpu::come_first().context("come before others on a core (needs root or CAP_SYS_NICE)")
                });
                let is_ready = ready.is_ok();
                // Who asked waits for it.
                let _ = tell.send(ready);
                if is_ready { look(&ended) } else { Vec::new() }
            };
            thread.spawn(work).context("start a thread")
        };
        let threads = cpus.into_iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        // What stands in the way is told before a minute was measured.
        threads
            .iter()
            .try_for_each(|_| told.recv().context("a thread ended")?)
            .context("look for stops of the machine")?;
        Ok(Stops { ended, threads })
    }

    /// All that there were, in their order.
    pub(crate) fn end(self) -> anyhow::Result<Vec<Span>> {
        self.ended.store(true, Ordering::Relaxed);
        let late = self.threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked")));
        let late = late.collect::<anyhow::Result<Vec<_>>>().context("look for stops of the machine")?;
        let mut stops = late.into_iter().reduce(|all, one| in_both(&all, &one)).unwrap_or_default();
        stops.retain(|(from, to)| to - from >= STOP_MIN_US);
        Ok(stops)
    }
}

/// Times in which this core did not come to look. A step of the clock is none of them.
fn look(ended: &AtomicBool) -> Vec<Span> {
    let begun = Instant::now();
    let begun_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let mut late = Vec::new();
    let mut due = begun + PERIOD;
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let came = Instant::now();
        if came > due + PERIOD {
            let at = |time: Instant| begun_us + (time - begun).as_micros() as u64;
            late.push((at(due), at(came)));
        }
        due = came + PERIOD;
    }
    late
}

/// What two lists of spans in their order have in common.
fn in_both(one: &[Span], other: &[Span]) -> Vec<Span> {
    let (mut i, mut j, mut both) = (0, 0, Vec::new());
    while let (Some(&a), Some(&b)) = (one.get(i), other.get(j)) {
        let (from, to) = (a.0.max(b.0), a.1.min(b.1));
        if from < to {
            both.push((from, to));
        }
        if a.1 < b.1 { i += 1 } else { j += 1 }
    }
    both
}

/// How many microseconds of a span lie in these.
pub(crate) fn within(stops: &[Span], (from, to): Span) -> u64 {
    stops.iter().map(|stop| stop.1.min(to).saturating_sub(stop.0.max(from))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_what_all_cores_have_in_common() {
        let both = in_both(&[(10, 20), (30, 60), (70, 71)], &[(5, 12), (15, 18), (19, 40), (50, 80)]);
        assert_eq!(both, [(10, 12), (15, 18), (19, 20), (30, 40), (50, 60), (70, 71)]);
        assert!(in_both(&both, &[]).is_empty());
        assert_eq!(within(&both, (17, 55)), 1 + 1 + 10 + 5);
        assert_eq!(within(&both, (20, 30)), 0);
    }

    #[test]
    fn whoever_looks_ends_when_he_is_told() {
        // Without the right to come first there is an error, and not a run without a word.
        match Stops::watch([0]) {
            Ok(stops) => {
                thread::sleep(Duration::from_millis(5));
                assert!(stops.end().unwrap().iter().all(|(from, to)| to - from >= STOP_MIN_US));
            }
            Err(error) => assert!(format!("{error:#}").contains("CAP_SYS_NICE"), "{error:#}"),
        }
    }
}
