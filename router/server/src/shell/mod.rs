//! The shell: everything between the kernel and the core. One pinned glommio executor a shard, in which one task owns the shard,
//! its ring and its connections.
//!
//! - [`turn`] is the loop; [`conn`] the sockets, [`queue`] what they are sent, [`lane`] what shards tell each other,
//!   [`segments`] the files of the log, and [`keeper`] what takes long with them.
//! - [`ring`] and [`buffers`] speak io_uring, [`sleep`] lends glommio the ring's eventfd. Only these three have unsafe code.
//! - [`scrub`] is the thread that reads what nobody looks at, and [`trouble`] how damage is told.
//! - [`stats`] is what the shards publish for the admin thread. [`control`] is what the main thread and the shards tell each other.

mod buffers;
mod conn;
mod control;
mod keeper;
mod lane;
mod own_time;
mod queue;
mod removals;
mod ring;
mod scrub;
mod segments;
mod sleep;
mod stats;
#[cfg(test)]
mod tests;
mod trouble;
mod turn;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use glommio::{BuilderErrorKind, GlommioError, LocalExecutorBuilder, Placement, ReactorErrorKind};
use socket2::Socket;
use whimbrel_core::Shard;
use whimbrel_core::ids::ShardId;
use whimbrel_core::io::ShardConfig;
use whimbrel_storage::{FileDisk, LogOptions, Recovered, Truncated};

pub(crate) use self::control::Told;
use self::control::{Clock, Control, Marks};
use self::lane::{Lanes, Mesh};
use self::ring::Ring;
use self::segments::Segments;
use self::sleep::{Sleeper, Waker};
use self::stats::Stats;
pub(crate) use self::stats::{Board, Chore, Snapshot, Stage};
use self::turn::{Parts, Shell};
use crate::aside::Aside;
use crate::memory;

/// Memory that glommio registers with each of its three rings.
const IO_MEMORY_BYTES: usize = 1 << 20;

/// What to do where memory cannot be locked.
pub(crate) const MEMLOCK_REMEDY: &str = "the limit of locked memory is too low: a shard needs about 1.2 MiB of it. Raise it \
    (`ulimit -l`, systemd: LimitMEMLOCK=infinity), give the program CAP_IPC_LOCK, or start fewer shards (--shards)";

/// After which time glommio would have the shard's task make way for others: never, for there are no others. And its timer must
/// not ring: if it does between glommio's look at its rings and the first task, which on an overloaded core it did once in a
/// thousand starts with a timer of 10 ms, glommio 0.9.0 (`run_task_queues`, which returns false then) sleeps over the tasks
/// that are queued, and with nothing on its way to wake it, for ever. Whoever gives an executor more tasks has to solve that
/// first.
const PREEMPT: Duration = Duration::from_secs(365 * 86_400);

/// What one shard starts from.
pub(crate) struct ShardStart {
    pub(crate) config: ShardConfig,
    pub(crate) log: LogOptions,
    pub(crate) disk: FileDisk,
    /// Bound, and not listening.
    pub(crate) listener: Socket,
    /// The core that it is pinned to.
    pub(crate) cpu: Option<usize>,
    /// Where its other threads go.
    pub(crate) aside: Aside,
    /// Places for sockets.
    pub(crate) slots: u32,
}

/// The shards of a node, running.
pub(crate) struct Shards {
    marks: Arc<Marks>,
    mesh: Arc<Mesh>,
    board: Arc<Board>,
    told: Receiver<Told>,
    teller: Sender<Told>,
}

impl Shards {
    /// Starts a thread for each. How it went is told.
    pub(crate) fn start(starts: Vec<ShardStart>) -> anyhow::Result<Shards> {
        let (teller, told) = mpsc::channel();
        let marks = Arc::new(Marks::default());
        let wakers = starts.iter().map(|_| Waker::new()).collect::<io::Result<Vec<_>>>().context("make an eventfd")?;
        let mesh = Arc::new(Mesh::new(wakers));
        let board = Arc::new(Board::new(mesh.clone()));
        let clock = Clock::start();
        for start in starts {
            let id = start.config.shard;
            let control = Control::new(marks.clone(), teller.clone());
            let (mesh, board, teller) = (mesh.clone(), board.clone(), teller.clone());
            let placement = start.cpu.map_or(Placement::Unbound, Placement::Fixed);
            let executor = LocalExecutorBuilder::new(placement)
                .name(&format!("shard-{id}"))
                .io_memory(IO_MEMORY_BYTES)
                .preempt_timer(PREEMPT)
                .spawn(move || async move { run_shard(start, mesh, board, control, clock).await });
            let executor = executor.map_err(from_glommio).with_context(|| format!("start the thread of shard {id}"))?;
            // Whatever ends a shard, a panic too, is told.
            thread::Builder::new().name(format!("join-{id}")).spawn(move || {
                let result = executor.join().map_err(from_glommio).and_then(|result| result);
                let _ = teller.send(Told::Ended(id, result.with_context(|| format!("shard {id}"))));
            })?;
        }
        Ok(Shards { marks, mesh, board, told, teller })
    }

    /// Something by which others tell the main thread.
    pub(crate) fn teller(&self) -> Sender<Told> {
        self.teller.clone()
    }

    /// What they publish of themselves.
    pub(crate) fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// What is told next; `None` if nothing is for so long.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Told> {
        match timeout {
            None => self.told.recv().ok(),
            Some(timeout) => self.told.recv_timeout(timeout).ok(),
        }
    }

    /// Lets all of them accept connections.
    pub(crate) fn accept(&self) {
        self.marks.accept.store(true, Ordering::Release);
        self.mesh.wake_all();
    }

    /// Lets all of them stop.
    pub(crate) fn stop(&self) {
        self.marks.stop.store(true, Ordering::Release);
        self.mesh.wake_all();
    }

    /// Lets their threads end.
    pub(crate) fn end(&self) {
        self.marks.end.store(true, Ordering::Release);
        self.mesh.wake_all();
    }
}

/// What the start found, for who looks after the machine.
fn tell_recovered(shard: ShardId, found: &Recovered) {
    let Recovered { segments, records, checkpoint, truncated, checkpoints_damaged, spares_damaged, .. } = *found;
    tracing::info!(shard = shard.0, segments, records, checkpoint = checkpoint.unwrap_or(0), "opened the log");
    if let Some(Truncated { segment, offset, bytes }) = truncated {
        tracing::warn!(
            shard = shard.0,
            segment = segment.0,
            offset,
            bytes,
            "the last write of the log was torn, by a crash or a loss of power, and its remains are cleared; nothing in it was acknowledged, \
             unless it is damage of the disk to what was written less than 100 ms before the end, or on a full disk: of that nobody can tell"
        );
    }
    if spares_damaged > 0 {
        tracing::error!(
            shard = shard.0,
            damaged = spares_damaged,
            "unused segments are damaged and put aside as .seg.bad; nothing is lost, but check the disk (dmesg, smartctl)"
        );
    }
    if checkpoints_damaged > 0 {
        tracing::error!(
            shard = shard.0,
            damaged = checkpoints_damaged,
            checkpoint = checkpoint.unwrap_or(0),
            "the newest checkpoint is damaged, the one before it served; nothing is lost, but check the disk (dmesg, smartctl)"
        );
    }
}

/// What this start and others put aside takes space until somebody removes it.
fn tell_put_aside(shard: ShardId, disk: &FileDisk) {
    match disk.put_aside() {
        Ok(aside) if aside.is_empty() => {}
        Ok(aside) => {
            let bytes: u64 = aside.iter().map(|it| it.bytes).sum();
            let names: Vec<&str> = aside.iter().map(|it| it.name.as_str()).collect();
            tracing::warn!(
                shard = shard.0,
                bytes,
                files = names.join(" "),
                "damaged files that were put aside lie in the data directory; nothing reads them. Keep them for whoever looks into the \
                 disk, and remove them once `whimbrel log verify` finds no damage"
            );
        }
        Err(error) => tracing::warn!(shard = shard.0, %error, "cannot look for damaged files that were put aside"),
    }
}

async fn run_shard(
    start: ShardStart,
    mesh: Arc<Mesh>,
    board: Arc<Board>,
    control: Control,
    clock: Clock,
) -> anyhow::Result<()> {
    let ShardStart { config, log, mut disk, listener, slots, aside, cpu: _ } = start;
    memory::widen_heap();
    let (id, shards) = (config.shard, config.shards);
    let waker = mesh.waker(id).clone();
    let mut ring = Ring::new(slots).map_err(explain_ring)?;
    ring.register_event(waker.fd()).context("register an eventfd with the ring")?;
    let sleeper = Sleeper::new(&waker).context("make an eventfd")?;
    mesh.set_ring(id, ring.fd());
    let forget_after = Duration::from_micros(config.bounds.forget_after_us);
    let shard = match Shard::open(config.clone(), log, &mut disk) {
        Ok(shard) => {
            tell_recovered(id, shard.recovered());
            tell_put_aside(id, &disk);
            control.tell(Told::Opened(id));
            shard
        }
        Err(error) if error.is_damage() => {
            control.tell(Told::Shut(id, error));
            Shard::shut(config, log).context("start without a log")?
        }
        Err(error) => return Err(error).context("open the log"),
    };
    let segments = Segments::new(id, disk, log.segment_size, forget_after, !shard.is_shut(), waker, &aside)
        .context("start a thread")?;
    let lanes = Lanes::new(mesh, id);
    let stats = Stats::new(board, id);
    Shell::new(Parts { id, shard, ring, lanes, segments, sleeper, listener, control, clock, stats, shards }).run().await
}

/// Whether a ring as the shards' can be made here at all; otherwise what to do about it.
pub(crate) fn check_io_uring() -> anyhow::Result<()> {
    Ring::check().map_err(explain_ring)
}

/// What to do about a ring that cannot be made.
fn explain_ring(error: io::Error) -> anyhow::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOMEM) => MEMLOCK_REMEDY,
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here: `sysctl kernel.io_uring_disabled` must be 0, and a container's seccomp profile must allow \
             io_uring_setup, io_uring_enter and io_uring_register (Docker: --security-opt seccomp=unconfined, or a profile of its own)"
        }
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a container's seccomp profile hides it: Linux 6.1 or newer is needed"
        }
        Some(libc::EINVAL) => "this kernel's io_uring is too old: Linux 6.1 or newer is needed (uname -r)",
        Some(libc::EMFILE | libc::ENFILE) => {
            "the limit of open files is too low: raise it (`ulimit -n`, systemd: LimitNOFILE=)"
        }
        _ => "io_uring is needed, of Linux 6.1 or newer",
    };
    anyhow!(error).context(format!("cannot make an io_uring; {remedy}"))
}

/// An error of an executor; those of its rings are explained like those of ours.
fn from_glommio(error: GlommioError<()>) -> anyhow::Error {
    match error {
        GlommioError::ReactorError(ReactorErrorKind::MemLockLimit(..)) => {
            anyhow!("cannot make an io_uring; {MEMLOCK_REMEDY}")
        }
        GlommioError::BuilderError(error @ BuilderErrorKind::NonExistentCpus { .. }) => {
            anyhow!("{error}; name cores that are there with --cpus, or start with `--cpus none`")
        }
        // On its way through an `io::Error` it keeps only its name.
        GlommioError::IoError(error) if error.to_string().contains("MemLockLimit") => {
            anyhow!("cannot make an io_uring; {MEMLOCK_REMEDY}")
        }
        GlommioError::IoError(error) => explain_ring(error),
        GlommioError::EnhancedIoError { source, .. } => explain_ring(source),
        error => anyhow!("{error}"),
    }
}
