//! What a start that computes on as many cores takes of this machine's time at the least: what lies behind the checkpoint is read and the
//! same CPU time is used as by a start, at once, and nothing waits for anything else. (A start also reads its spare segments.)
//!
//! Reading and computing are not free of each other where the disk is another thread of the host: while both cores compute, the
//! thread that reads for them gets no more than its share of the cores, and takes it from them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::cpu::{MachineTicks, this_thread_ns};

/// What it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Floor {
    pub(super) elapsed: Duration,
    /// Share of the machine's time that its host took meanwhile.
    pub(super) steal_share: f64,
}

/// How long a thread that computes does so before it says it.
const SLICE: Duration = Duration::from_micros(200);

/// Reads by one thread for each of `readings`, as a start does for each shard, while as many threads compute, until all of them together
/// have used `cpu_ns` and all is read.
pub(super) fn run<R>(readings: &[R], cpu_ns: u64) -> anyhow::Result<Floor>
where
    R: Fn(&mut dyn FnMut()) -> anyhow::Result<()> + Sync,
{
    let used: Vec<AtomicU64> = (0..2 * readings.len()).map(|_| AtomicU64::new(0)).collect();
    let before = MachineTicks::read();
    let begun = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = used
            .iter()
            .enumerate()
            .map(|(index, own)| {
                let used = &used;
                scope.spawn(move || match readings.get(index) {
                    Some(read) => read(&mut || tell(own)),
                    None => compute(used, own, cpu_ns),
                })
            })
            .collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread of the floor panicked")));
        joined.collect::<Vec<_>>().into_iter().try_for_each(|ended| ended?)
    })?;
    let elapsed = begun.elapsed();
    Ok(Floor { elapsed, steal_share: MachineTicks::read().disturbance(before).steal_share })
}

fn tell(own: &AtomicU64) {
    // A clock that cannot be read is told by the thread that computes.
    own.store(this_thread_ns().unwrap_or(0), Ordering::Relaxed);
}

fn compute(used: &[AtomicU64], own: &AtomicU64, cpu_ns: u64) -> anyhow::Result<()> {
    while used.iter().map(|each| each.load(Ordering::Relaxed)).sum::<u64>() < cpu_ns {
        let begun = Instant::now();
        while begun.elapsed() < SLICE {
            std::hint::spin_loop();
        }
        own.store(this_thread_ns()?, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_all_is_read_and_the_cpu_time_is_used() {
        let reads = AtomicU64::new(0);
        let slow = |said: &mut dyn FnMut()| {
            thread::sleep(Duration::from_millis(30));
            said();
            reads.fetch_add(1, Ordering::Relaxed);
            anyhow::Ok(())
        };
        run(&[slow, slow], 1).unwrap();
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        // Two threads use so much in half the time at best.
        let floor = run(&[slow, slow], 200_000_000).unwrap();
        assert!(floor.elapsed >= Duration::from_millis(90), "{floor:?}");
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let fails = |_: &mut dyn FnMut()| Err(anyhow!("no such file"));
        assert_eq!(run(&[fails], 1).unwrap_err().to_string(), "no such file");
    }
}
