//! An io_uring for sockets: multishot accept and receive, provided buffers, SEND, direct descriptors. The floor's server, its
//! load and the load generator all use it, each on one thread of its own.
//!
//! Invariant of the unsafe code here: bytes that the kernel may read belong to the ring ([`Ring::flights`], [`Ring::writing`])
//! from the submission of a request to its completion, or live for ever.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::buffers::{Buffers, Filled, GROUP};

const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 32_768;

/// What a ring tells.
pub(crate) enum Event {
    /// A socket was accepted into the slot, which receives from now on.
    Accepted { slot: u32 },
    /// Bytes came.
    Received { slot: u32, filled: Filled },
    /// Nothing will come any more: the end of the stream (0) or an error.
    Ended { slot: u32, errno: i32 },
    /// All bytes of a [`Ring::send`] were taken; here is their memory again.
    Sent { slot: u32, bytes: Vec<u8> },
    /// A [`Ring::write`] is on stable storage, or the error; here is its memory again.
    Written { bytes: Vec<u8>, result: io::Result<()> },
}

/// How many buffers, and of which size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferShape {
    /// A power of two.
    pub(crate) count: u16,
    pub(crate) size_bytes: u32,
}

const ACCEPT: u64 = 1 << 32;
const RECEIVE: u64 = 2 << 32;
const SEND: u64 = 3 << 32;
const WRITE: u64 = 4 << 32;

/// Requests that are submitted at once at most while a write is in flight: the kernel's worker that writes has the core only
/// between two system calls, and a send is some microseconds.
const PIECE: usize = 8;

/// See the [module](self).
pub(crate) struct Ring {
    // Before the memory that its requests may read, so that it is closed first.
    uring: IoUring,
    buffers: Buffers,
    /// By slot: what is being sent there.
    flights: Vec<Option<Vec<u8>>>,
    /// What is being written, and where.
    writing: Option<(Vec<u8>, Rc<File>)>,
    listener: Option<OwnedFd>,
    slots: u32,
    waits: Waits,
    idle: Duration,
    stalls: Stalls,
}

/// Times in which a ring that waits awake did not come to look: somebody else had its core. With nothing else to run on it that
/// is the hypervisor, which the guest's own clocks of CPU time do not know.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stalls {
    pub(crate) count: u64,
    pub(crate) total: Duration,
    pub(crate) longest: Duration,
}

/// A look takes less than a microsecond: what is longer than this is a stall.
const STALL: Duration = Duration::from_millis(1);

/// How a ring waits when it has nothing to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// It sleeps, and whoever sends to it pays for the interrupt that wakes it.
    Asleep,
    /// It looks again and again: its core does nothing else.
    Awake,
}

impl Ring {
    /// A ring with places for `slots` sockets, owned by the calling thread.
    pub(crate) fn new(slots: u32, shape: BufferShape) -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .dontfork()
            .build(SUBMISSIONS)?;
        let submitter = uring.submitter();
        submitter.register_files_sparse(slots)?;
        let mut buffers = Buffers::new(shape.count, shape.size_bytes);
        buffers.register(&submitter)?;
        uring.submitter().register_ring_fd()?;
        let flights = (0..slots).map(|_| None).collect();
        Ok(Ring {
            uring,
            buffers,
            flights,
            writing: None,
            listener: None,
            slots,
            waits: Waits::Asleep,
            idle: Duration::ZERO,
            stalls: Stalls::default(),
        })
    }

    /// From now on it waits so.
    pub(crate) fn wait_so(&mut self, waits: Waits) {
        self.waits = waits;
    }

    /// Places for sockets.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Accepts into free slots from now on.
    pub(crate) fn listen(&mut self, listener: OwnedFd) {
        self.listener = Some(listener);
        self.accept();
    }

    /// Puts a connected socket into a slot and receives from it.
    pub(crate) fn adopt(&mut self, slot: u32, socket: OwnedFd) -> io::Result<()> {
        self.uring.submitter().register_files_update(slot, &[socket.as_raw_fd()])?;
        self.receive(slot);
        Ok(())
    }

    /// Sends all of `bytes`; answered by [`Event::Sent`]. One such send is in flight on a slot.
    #[inline]
    pub(crate) fn send(&mut self, slot: u32, bytes: Vec<u8>) {
        let flight = &mut self.flights[slot as usize];
        assert!(flight.is_none(), "one send in flight on a connection");
        let bytes = flight.insert(bytes);
        let entry = opcode::Send::new(Fixed(slot), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry.user_data(SEND | u64::from(slot)));
    }

    /// Sends bytes that live for ever. Only a failure is told, as the connection's end.
    #[inline]
    pub(crate) fn send_static(&mut self, slot: u32, bytes: &'static [u8]) {
        let entry = opcode::Send::new(Fixed(slot), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(SEND | u64::from(slot)));
    }

    /// Writes all of `bytes` and flushes them, by one request; answered by [`Event::Written`]. One is in flight.
    pub(crate) fn write(&mut self, file: &Rc<File>, bytes: Vec<u8>, offset: u64) {
        assert!(self.writing.is_none(), "one write in flight");
        let (bytes, file) = self.writing.insert((bytes, file.clone()));
        let entry = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        self.push(entry.user_data(WRITE));
    }

    /// Submits what was asked for and waits for something to tell, at most for `wait`.
    #[inline]
    pub(crate) fn turn(&mut self, wait: Duration) -> io::Result<()> {
        self.buffers.publish();
        while self.writing.is_some() && self.uring.submission().len() > PIECE {
            // SAFETY: no argument is passed, and the entries are good, as `push` says.
            went(unsafe { self.uring.submitter().enter::<libc::sigset_t>(PIECE as u32, 0, 0, None) })?;
        }
        if self.waits == Waits::Awake {
            return self.turn_awake(wait);
        }
        let want = usize::from(self.uring.completion().is_empty());
        let time = Timespec::from(wait);
        went(self.uring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&time)))
    }

    fn turn_awake(&mut self, wait: Duration) -> io::Result<()> {
        let mut idle_since = None;
        let mut looked = Instant::now();
        loop {
            let queue = self.uring.submission();
            let is_due = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
            drop(queue);
            if is_due {
                went(self.uring.submit())?;
            }
            let now = Instant::now();
            let gap = now - std::mem::replace(&mut looked, now);
            if gap > STALL {
                self.stalls.count += 1;
                self.stalls.total += gap;
                self.stalls.longest = self.stalls.longest.max(gap);
            }
            let since = *idle_since.get_or_insert(now);
            if !self.uring.completion().is_empty() || now - since >= wait {
                self.idle += now - since;
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }

    /// How long it was awake with nothing to do.
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }

    /// Takes what was counted since the last call.
    pub(crate) fn take_stalls(&mut self) -> Stalls {
        std::mem::take(&mut self.stalls)
    }

    /// The next thing to tell. What is multishot goes on by itself.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let entry = self.uring.completion().next()?;
            if let Some(event) = self.read(entry.user_data(), entry.result(), entry.flags()) {
                return Some(event);
            }
        }
    }

    /// The bytes of an [`Event::Received`].
    #[inline]
    pub(crate) fn bytes(&self, filled: &Filled) -> &[u8] {
        self.buffers.bytes(filled)
    }

    /// Lets the kernel receive into the buffer again.
    #[inline]
    pub(crate) fn give_back(&mut self, filled: Filled) {
        self.buffers.give_back(filled);
    }

    #[inline]
    fn read(&mut self, user_data: u64, result: i32, flags: u32) -> Option<Event> {
        let slot = user_data as u32;
        match user_data & !u64::from(u32::MAX) {
            RECEIVE => match (result, cqueue::buffer_select(flags)) {
                (1.., Some(id)) => {
                    if !cqueue::more(flags) {
                        self.receive(slot);
                    }
                    Some(Event::Received { slot, filled: self.buffers.filled(id, result as u32) })
                }
                (_, id) => {
                    if let Some(id) = id {
                        let unused = self.buffers.filled(id, 0);
                        self.buffers.give_back(unused);
                    }
                    // All buffers are filled and wait in the completion queue: they come back in this turn.
                    if result == -libc::ENOBUFS {
                        self.receive(slot);
                        return None;
                    }
                    Some(Event::Ended { slot, errno: -result.min(0) })
                }
            },
            SEND => match self.flights[slot as usize].take() {
                Some(bytes) if result as usize == bytes.len() => Some(Event::Sent { slot, bytes }),
                _ => Some(Event::Ended { slot, errno: if result < 0 { -result } else { libc::EPIPE } }),
            },
            WRITE => {
                let (bytes, _) = self.writing.take()?;
                let result = match result {
                    written if written as usize == bytes.len() => Ok(()),
                    written if written >= 0 => Err(io::ErrorKind::WriteZero.into()),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
                Some(Event::Written { bytes, result })
            }
            _ => {
                if !cqueue::more(flags) {
                    self.accept();
                }
                let slot = u32::try_from(result).ok()?;
                self.receive(slot);
                Some(Event::Accepted { slot })
            }
        }
    }

    fn accept(&mut self) {
        if let Some(listener) = &self.listener {
            let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
            self.push(entry.user_data(ACCEPT));
        }
    }

    #[inline]
    fn receive(&mut self, slot: u32) {
        let entry = opcode::RecvMulti::new(Fixed(slot), GROUP).build();
        self.push(entry.user_data(RECEIVE | u64::from(slot)));
    }

    #[inline]
    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what an entry points to is in `flights` or `writing` until its completion or lives for ever, as the head of this file
            // says; the listener's descriptor is held by the ring.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full. Completions are not asked for, so that none is lost; a failure shows at the next turn.
            let pending = self.uring.submission().len() as u32;
            // SAFETY: no argument is passed, and the entries are good, as above.
            let _ = unsafe { self.uring.submitter().enter::<libc::sigset_t>(pending, 0, 0, None) };
        }
    }
}

/// What came of a system call that is made again anyway.
fn went(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel ends a closed ring in its own time and may read these until then: they are better leaked.
        for bytes in self.flights.drain(..).flatten() {
            bytes.leak();
        }
        if let Some((bytes, _)) = self.writing.take() {
            bytes.leak();
        }
    }
}
