//! What a thread takes for something by itself: not while another had the core, nor while the host of a virtual machine had it.
//!
//! The kernel counts a thread's own time without either: without the host's where it was built with `PARAVIRT_TIME_ACCOUNTING` and the host says
//! what it takes, else that is among it. It does not count waits for the disk or a lock either, so that where the
//! thread has waited the time on the wall counts.

use std::time::{Duration, Instant};

/// What takes less is not looked at more closely.
const LOOK: Duration = Duration::from_micros(50);

/// When something began on this thread.
#[derive(Clone, Copy)]
pub(super) struct OwnTime {
    at: Instant,
    own: Duration,
    waits: i64,
}

impl OwnTime {
    pub(super) fn begin() -> OwnTime {
        OwnTime { at: Instant::now(), own: own(), waits: waits() }
    }

    /// How long it has taken since then.
    pub(super) fn took(&self) -> Duration {
        let wall = self.at.elapsed();
        if wall < LOOK || waits() != self.waits { wall } else { wall.min(own().saturating_sub(self.own)) }
    }
}

fn own() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often the thread has waited for something.
fn waits() -> i64 {
    // SAFETY: all its fields are numbers, of which 0 is one.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it writes to what it is given. It cannot fail with these.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nvcsw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_counts_and_work_counts_by_what_the_thread_did() {
        let begun = OwnTime::begin();
        std::thread::sleep(Duration::from_millis(5));
        assert!(begun.took() >= Duration::from_millis(5));
        let wall = Instant::now();
        let begun = OwnTime::begin();
        let before = own();
        while own() - before < Duration::from_millis(3) {}
        let took = begun.took();
        assert!(took >= Duration::from_millis(3) && took <= wall.elapsed(), "{took:?}");
    }
}
