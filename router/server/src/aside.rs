//! Threads beside the shards leave them their cores, or what of them a shard wants just now.

use std::io;
use std::sync::Arc;
use std::thread;

use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// How nice a thread is to a shard beside which it has to be, if it has the time.
const NICE: i32 = 10;

/// The cores that no shard is pinned to. There may be none.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    cpus: Arc<[usize]>,
}

impl Aside {
    pub(crate) fn new(cpus: Vec<usize>) -> Aside {
        Aside { cpus: cpus.into() }
    }

    /// This thread goes there, or gives way to the shards.
    pub(crate) fn step(&self) {
        let placed = if self.cpus.is_empty() { setpriority_process(None::<Pid>, NICE) } else { self.leave() };
        self.told(placed.map_err(io::Error::from));
    }

    /// A thread for the work of a shard, whose core it would else have for its own: it goes aside, and where it is woken it waits until the
    /// shard sleeps or its time is up. Woken as threads usually are it takes the core from a shard in the midst of a turn.
    pub(crate) fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let aside = self.clone();
        let begin = move || {
            if !aside.cpus.is_empty() {
                aside.told(aside.leave().map_err(io::Error::from));
            }
            if let Err(error) = wait_for_others() {
                tracing::debug!(%error, "a thread beside the shards cannot be one of those that wait for others");
            }
            work();
        };
        thread::Builder::new().name(name).spawn(begin).map(drop)
    }

    fn leave(&self) -> rustix::io::Result<()> {
        let mut set = CpuSet::new();
        self.cpus.iter().for_each(|&cpu| set.set(cpu));
        sched_setaffinity(None, &set)
    }

    fn told(&self, placed: io::Result<()>) {
        if let Err(error) = placed {
            tracing::warn!(%error, cpus = ?self.cpus, "a thread cannot leave the shards' cores; it goes on beside them");
        }
    }
}

/// `SCHED_BATCH`: a thread of it that is woken does not take the core from another. It has its share of it all the same.
fn wait_for_others() -> io::Result<()> {
    // SAFETY: all its fields are numbers, of which 0 is one.
    let parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: it reads what it is given, and 0 is this thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Where a thread may run, and how it is scheduled.
    fn of_spawned(aside: &Aside) -> (CpuSet, libc::c_int) {
        let (sender, receiver) = mpsc::channel();
        let tell = move || {
            let set = rustix::thread::sched_getaffinity(None).unwrap();
            // SAFETY: it is given a number, and 0 is this thread.
            sender.send((set, unsafe { libc::sched_getscheduler(0) })).unwrap();
        };
        aside.spawn("aside".to_owned(), tell).unwrap();
        receiver.recv().unwrap()
    }

    #[test]
    fn a_thread_beside_the_shards_runs_where_none_of_them_does_and_takes_no_core_from_one() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|&cpu| allowed.is_set(cpu)).unwrap();
        let (set, policy) = of_spawned(&Aside::new(vec![last]));
        assert!(set.is_set(last) && set.count() == 1);
        assert_eq!(policy, libc::SCHED_BATCH);
        let (set, policy) = of_spawned(&Aside::new(Vec::new()));
        assert_eq!((set, policy), (allowed, libc::SCHED_BATCH), "there is no other core");
    }
}
