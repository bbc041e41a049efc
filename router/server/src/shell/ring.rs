//! A shard's own io_uring: sockets, the log's writes, messages to other shards' rings. Made, used and dropped on the shard's
//! thread.
//!
//! Invariant of the unsafe code here: memory that the kernel may read belongs to the ring from the submission of a request to
//! its completion ([`Ring::flights`], [`Ring::log`]); what it reads only while a request is submitted lies in
//! [`Scratch`], which is not touched before the submission queue is empty.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use whimbrel_storage::{LogWrite, WriteId};

use super::buffers::{Buffers, Filled, GROUP};
use super::queue::SendQueue;

/// Requests that are submitted at once at most.
pub(super) const SUBMISSIONS: u32 = 1024;

/// Completions that wait at most before the kernel keeps them elsewhere: one for each connection that is busy, twice.
const COMPLETIONS: u32 = 8192;

/// A buffer holds a few frames of a chat. A larger frame comes in several, which costs one completion each.
const BUFFER_BYTES: u32 = 2048;

/// So many connections can be received from in one turn without arming their receives again.
const BUFFERS: u16 = 1024;

/// Pieces of one send; what is left goes with the next.
const PIECES_MAX: usize = 64;

/// Sends in pieces between two submissions.
const VECTORED_MAX: usize = 256;

/// The kernel runs 20 pieces of deferred work an enter. It is entered again until so many completions are there, for a turn that
/// handles more pays its log write and its sends only once.
const GATHER: usize = 512;

// A turn that gathers does not run out of buffers, and neither its completions nor those of what it sends overflow.
const _: () = assert!(GATHER * 2 <= BUFFERS as usize && BUFFERS as u32 * 4 <= COMPLETIONS);

/// What a ring tells.
#[derive(Debug)]
pub(super) enum Completion {
    /// A socket was accepted into the slot, or `accept` failed. Without `more` it has to be asked for again.
    Accepted { result: Result<u32, i32>, more: bool },
    /// Bytes came. Without `more` the receive has to be asked for again.
    Received { slot: u32, filled: Filled, more: bool },
    /// No bytes will come until the receive is asked for again: 0 is the end of the stream, else the error.
    ReceiveEnded { slot: u32, errno: i32 },
    /// The socket took so many bytes of a queue, or will take none any more.
    Sent { slot: u32, queue: Box<SendQueue>, result: Result<u32, i32> },
    /// The peer of the slot was told that nothing more will come, or could not be told.
    Shut { slot: u32 },
    /// The socket's descriptor is in the other ring, or the error.
    MovedOut { slot: u32, result: Result<(), i32> },
    /// A socket came from another ring into the slot.
    MovedIn { id: u64, slot: u32 },
    /// A batch of the log is on stable storage, or not.
    LogWritten { write: WriteId, result: Result<(), String> },
    /// The time of [`Ring::alarm`] has come, another shard has something, or nothing has happened.
    Woken,
    /// Another shard could not be woken through its ring.
    NotWoken { errno: i32 },
    /// A request of which only the failure is told has failed.
    Failed { what: &'static str, errno: i32 },
}

/// What a request is for, in the uppermost byte of its user data; below it are the slot or the number of a move.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Accept = 1,
    Receive = 2,
    Send = 3,
    MoveOut = 4,
    MoveIn = 5,
    Log = 6,
    Alarm = 7,
    Wake = 8,
    Cancel = 9,
    Close = 10,
    Shutdown = 11,
    AlarmUpdate = 12,
}

const TAG_SHIFT: u32 = 56;

impl Tag {
    fn with(self, number: u64) -> u64 {
        debug_assert!(number >> TAG_SHIFT == 0);
        u64::from(self as u8) << TAG_SHIFT | number
    }

    fn of(user_data: u64) -> Option<Tag> {
        const ALL: [Tag; 12] = [
            Tag::Accept,
            Tag::Receive,
            Tag::Send,
            Tag::MoveOut,
            Tag::MoveIn,
            Tag::Log,
            Tag::Alarm,
            Tag::Wake,
            Tag::Cancel,
            Tag::Close,
            Tag::Shutdown,
            Tag::AlarmUpdate,
        ];
        let index = usize::from((user_data >> TAG_SHIFT) as u8).checked_sub(1)?;
        ALL.get(index).copied()
    }
}

/// How long [`Ring::enter`] may wait for a completion.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// Not at all, and if there is nothing to do, not even a system call is made.
    No,
    /// Not at all, but what is there is certain afterwards: with [`Ring::notify`] on, what comes later writes the event.
    Look,
    /// Until there is one, or this time is over.
    UpTo(Duration),
    /// As `UpTo`, but at the first completion the shard sleeps on for up to so many microseconds from the beginning, that
    /// others join it. Where the kernel cannot (before 6.12), it is as `UpTo`.
    Gather(Duration, u32),
}

/// What the ring did, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingCounters {
    /// System calls.
    pub(crate) enters: u64,
    /// Completions.
    pub(crate) completions: u64,
    /// Sends, and of these the ones in pieces.
    pub(crate) sends: u64,
    pub(crate) vectored: u64,
    /// Receives armed.
    pub(crate) receives: u64,
}

/// What the kernel reads while it takes a request from the submission queue.
struct Scratch {
    pieces: Vec<libc::iovec>,
    messages: Vec<libc::msghdr>,
    /// Boxed, for they are read where they were when they were pushed.
    #[expect(clippy::vec_box, reason = "the kernel has their addresses")]
    times: Vec<Box<Timespec>>,
}

/// See the [module](self).
pub(super) struct Ring {
    // Before what its requests may read, so that it is closed first.
    uring: IoUring,
    buffers: Buffers,
    /// By slot: what is being sent there.
    flights: Vec<Option<Box<SendQueue>>>,
    /// The batch of the log that is being written, and the file that holds it.
    log: Option<(LogWrite, Rc<File>)>,
    scratch: Scratch,
    /// When the alarm that is armed will ring.
    alarm_us: Option<u64>,
    counters: RingCounters,
}

impl Ring {
    /// Whether such a ring can be made here.
    pub(super) fn check() -> io::Result<()> {
        Self::build().map(drop)
    }

    fn build() -> io::Result<IoUring> {
        IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .dontfork()
            .build(SUBMISSIONS)
    }

    /// A ring with `slots` places for sockets.
    pub(super) fn new(slots: u32) -> io::Result<Ring> {
        let uring = Self::build()?;
        let submitter = uring.submitter();
        submitter.register_files_sparse(slots)?;
        // One log write is in flight, and closing and shutting down block for moments only.
        submitter.register_iowq_max_workers(&mut [2, 2])?;
        let mut buffers = Buffers::new(BUFFERS, BUFFER_BYTES);
        buffers.register(&submitter)?;
        let scratch = Scratch {
            pieces: Vec::with_capacity(VECTORED_MAX * PIECES_MAX),
            messages: Vec::with_capacity(VECTORED_MAX),
            times: Vec::new(),
        };
        let counters = RingCounters::default();
        Ok(Ring { uring, buffers, flights: Vec::new(), log: None, scratch, alarm_us: None, counters })
    }

    /// The descriptor by which other rings send messages to this one.
    pub(super) fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Counts of what it did.
    pub(super) fn counters(&self) -> RingCounters {
        self.counters
    }

    /// Lets `event` be written whenever there is something to reap, while [`Ring::notify`] says so.
    pub(super) fn register_event(&mut self, event: RawFd) -> io::Result<()> {
        self.uring.submitter().register_eventfd(event)?;
        self.notify(false);
        Ok(())
    }

    /// Turns the writing of the event on or off.
    pub(super) fn notify(&mut self, on: bool) {
        let completion = self.uring.completion();
        if on {
            completion.enable_eventfd();
        } else {
            completion.disable_eventfd();
        }
    }

    /// Whether completions are reaped and not handled.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Accepts sockets into slots until it is cancelled or fails.
    pub(super) fn accept(&mut self, listener: RawFd) {
        self.push(
            opcode::AcceptMulti::new(Fd(listener)).allocate_file_index(true).build().user_data(Tag::Accept.with(0)),
        );
    }

    /// Ends [`Ring::accept`]; answered by [`Completion::Accepted`] without `more`.
    pub(super) fn cancel_accept(&mut self) {
        self.cancel(Tag::Accept.with(0));
    }

    /// Receives from a socket until its end, an error, or a cancel.
    #[inline]
    pub(super) fn receive(&mut self, slot: u32) {
        self.counters.receives += 1;
        let entry = opcode::RecvMulti::new(Fixed(slot), GROUP).build();
        self.push(entry.user_data(Tag::Receive.with(u64::from(slot))));
    }

    /// Ends [`Ring::receive`]; answered by [`Completion::ReceiveEnded`].
    pub(super) fn cancel_receive(&mut self, slot: u32) {
        self.cancel(Tag::Receive.with(u64::from(slot)));
    }

    /// Sends what a queue holds, or a part of it. One send is in flight on a slot.
    #[inline]
    pub(super) fn send(&mut self, slot: u32, queue: Box<SendQueue>) {
        let index = slot as usize;
        if index >= self.flights.len() {
            self.flights.resize_with(index + 1, || None);
        }
        self.counters.sends += 1;
        if queue.single().is_none() {
            self.reserve();
        }
        let flight = &mut self.flights[index];
        assert!(flight.is_none(), "one send in flight on a connection");
        // The box keeps the queue where it is: the addresses below stay the same when it is moved into its place.
        let queue: &SendQueue = flight.insert(queue);
        let entry = match queue.single() {
            Some(bytes) => {
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                opcode::Send::new(Fixed(slot), bytes.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
            }
            None => {
                self.counters.vectored += 1;
                let message = self.scratch.message(queue);
                opcode::SendMsg::new(Fixed(slot), message).flags(libc::MSG_NOSIGNAL as u32).build()
            }
        };
        self.push(entry.user_data(Tag::Send.with(u64::from(slot))));
    }

    /// Ends a send that the socket does not take; answered by [`Completion::Sent`].
    pub(super) fn cancel_send(&mut self, slot: u32) {
        self.cancel(Tag::Send.with(u64::from(slot)));
    }

    /// Tells the peer that nothing more will come; answered by [`Completion::Shut`].
    pub(super) fn shutdown(&mut self, slot: u32) {
        let entry = opcode::Shutdown::new(Fixed(slot), libc::SHUT_WR).build();
        self.push(entry.user_data(Tag::Shutdown.with(u64::from(slot))));
    }

    /// Closes a socket on which nothing is in flight. From here on the slot may come with another one.
    pub(super) fn close(&mut self, slot: u32) {
        let entry = opcode::Close::new(Fixed(slot)).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(Tag::Close.with(u64::from(slot))));
    }

    /// Puts a socket into another ring, which is told by [`Completion::MovedIn`] with `id`; answered by
    /// [`Completion::MovedOut`]. It stays in its slot here too.
    pub(super) fn move_out(&mut self, slot: u32, ring: RawFd, id: u64) {
        let told = Tag::MoveIn.with(id);
        let entry = opcode::MsgRingSendFd::new(Fd(ring), Fixed(slot), DestinationSlot::auto_target(), told).build();
        self.push(entry.user_data(Tag::MoveOut.with(u64::from(slot))));
    }

    /// Wakes the shard of another ring.
    pub(super) fn wake(&mut self, ring: RawFd) {
        let entry = opcode::MsgRingData::new(Fd(ring), 0, Tag::Wake.with(0), None).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(Tag::Wake.with(1)));
    }

    /// Writes a batch of the log at its place and flushes it; answered by [`Completion::LogWritten`].
    pub(super) fn write_log(&mut self, file: Rc<File>, write: LogWrite) {
        assert!(self.log.is_none(), "one log write in flight");
        let (write, file) = self.log.insert((write, file));
        let bytes = write.batch.as_ref();
        let len = u32::try_from(bytes.len()).expect("a batch is at most a mebibyte");
        let entry = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), len)
            .offset(write.offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        self.push(entry.user_data(Tag::Log.with(0)));
    }

    /// Whether a write of the log is in flight.
    #[inline]
    pub(super) fn is_writing_log(&self) -> bool {
        self.log.is_some()
    }

    /// Tells by [`Completion::Woken`] when the time `at_us` has come, or earlier. Both times are of the same clock.
    pub(super) fn alarm(&mut self, now_us: u64, at_us: u64) {
        if self.alarm_us.is_some_and(|armed| armed <= at_us) {
            return;
        }
        self.reserve();
        let time = Timespec::from(Duration::from_micros(at_us.saturating_sub(now_us)));
        self.scratch.times.push(Box::new(time));
        let time: *const Timespec = &**self.scratch.times.last().expect("it was pushed just now");
        let armed = Tag::Alarm.with(0);
        let entry = match self.alarm_us {
            None => opcode::Timeout::new(time).build().user_data(armed),
            Some(_) => opcode::TimeoutUpdate::new(armed, time)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(Tag::AlarmUpdate.with(0)),
        };
        self.push(entry);
        self.alarm_us = Some(at_us);
    }

    /// Gives a kernel's thread requests that bring no completion, and then one that does: [`Completion::Woken`].
    #[cfg(test)]
    pub(super) fn murmur(&mut self, count: usize) {
        for _ in 0..count {
            let quiet = squeue::Flags::ASYNC | squeue::Flags::SKIP_SUCCESS;
            self.push(opcode::Nop::new().build().flags(quiet).user_data(Tag::Cancel.with(0)));
        }
        self.push(opcode::Nop::new().build().flags(squeue::Flags::ASYNC).user_data(Tag::Wake.with(0)));
    }

    /// The next completion that was reaped.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Completion> {
        let entry = self.uring.completion().next()?;
        self.counters.completions += 1;
        Some(self.read(entry.user_data(), entry.result(), entry.flags()))
    }

    /// The bytes of a completion.
    #[inline]
    pub(super) fn bytes(&self, filled: &Filled) -> &[u8] {
        self.buffers.bytes(filled)
    }

    /// Lets the kernel receive into the buffer again.
    #[inline]
    pub(super) fn give_back(&mut self, filled: Filled) {
        self.buffers.give_back(filled);
    }

    /// Submits all requests and reaps what is there. Whether nothing is: then it may be slept.
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<bool> {
        let mut reaped = self.uring.completion().len();
        let mut result = match wait {
            Wait::UpTo(time) if reaped == 0 => {
                self.counters.enters += 1;
                let time = Timespec::from(time);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            Wait::Gather(time, gather_us) if reaped == 0 => {
                self.counters.enters += 1;
                let time = Timespec::from(time);
                let args = SubmitArgs::new().timespec(&time);
                if self.uring.params().is_feature_min_timeout() {
                    self.uring.submitter().submit_with_args(GATHER, &args.min_wait_usec(gather_us))
                } else {
                    self.uring.submitter().submit_with_args(1, &args)
                }
            }
            // To ask for as many completions as there can be makes the kernel run all of its deferred work, also what brings
            // no completion; what it left would never write the event. Without time to wait for them it does not wait.
            Wait::Look => {
                self.counters.enters += 1;
                let time = Timespec::new();
                self.uring.submitter().submit_with_args(COMPLETIONS as usize, &SubmitArgs::new().timespec(&time))
            }
            _ if !self.has_work() => return Ok(reaped == 0),
            _ => self.enter_once(),
        };
        loop {
            match result.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) | Err((Some(libc::ETIME | libc::EINTR), _)) => {}
                // Too many completions wait: they are handled first, what was not submitted goes with the next turn.
                Err((Some(libc::EBUSY | libc::EAGAIN), _)) => return Ok(false),
                Err((_, error)) => return Err(error),
            }
            if self.uring.submission().is_empty() {
                self.scratch.clear();
            }
            let before = std::mem::replace(&mut reaped, self.uring.completion().len());
            // Without progress the mark of deferred work is a stale one: another core that adds work sets it last.
            if reaped == before || reaped >= GATHER || !self.has_work() {
                return Ok(reaped == 0 && self.uring.submission().is_empty());
            }
            result = self.enter_once();
        }
    }

    /// Whether completions wait, or work of the kernel's that will most likely bring some.
    pub(super) fn has_news(&mut self) -> bool {
        self.has_completions() || self.uring.submission().taskrun()
    }

    /// Whether requests wait to be submitted or, most likely, work of the kernel's to be run.
    fn has_work(&mut self) -> bool {
        let submissions = self.uring.submission();
        !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    /// Submits, runs the kernel's deferred work, and does not wait.
    fn enter_once(&mut self) -> io::Result<usize> {
        self.counters.enters += 1;
        let pending = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed, and the entries are good, as `push` says.
        unsafe { self.uring.submitter().enter::<libc::sigset_t>(pending, 0, EnterFlags::GETEVENTS.bits(), None) }
    }

    fn read(&mut self, user_data: u64, result: i32, flags: u32) -> Completion {
        let number = user_data & ((1 << TAG_SHIFT) - 1);
        let slot = number as u32;
        let outcome = if result < 0 { Err(-result) } else { Ok(result as u32) };
        let failed = |what| Completion::Failed { what, errno: -result };
        match Tag::of(user_data).expect("all user data comes from this file") {
            Tag::Accept => Completion::Accepted { result: outcome, more: cqueue::more(flags) },
            Tag::Receive => match (outcome, cqueue::buffer_select(flags)) {
                (Ok(len), Some(id)) if len > 0 => {
                    Completion::Received { slot, filled: self.buffers.filled(id, len), more: cqueue::more(flags) }
                }
                (outcome, id) => {
                    if let Some(id) = id {
                        let unused = self.buffers.filled(id, 0);
                        self.buffers.give_back(unused);
                    }
                    Completion::ReceiveEnded { slot, errno: outcome.err().unwrap_or(0) }
                }
            },
            Tag::Send => {
                let queue = self.flights[slot as usize].take().expect("a send completes once");
                Completion::Sent { slot, queue, result: outcome }
            }
            Tag::MoveOut => Completion::MovedOut { slot, result: outcome.map(drop) },
            Tag::MoveIn => Completion::MovedIn { id: number, slot: result as u32 },
            Tag::Log => {
                let (write, _) = self.log.take().expect("a log write completes once");
                let expected = write.batch.as_ref().len();
                let result = match outcome {
                    Ok(written) if written as usize == expected => Ok(()),
                    Ok(written) => Err(format!("{written} of {expected} bytes were written")),
                    Err(errno) => Err(io::Error::from_raw_os_error(errno).to_string()),
                };
                Completion::LogWritten { write: write.id, result }
            }
            Tag::Alarm => {
                self.alarm_us = None;
                Completion::Woken
            }
            Tag::Wake if number == 0 => Completion::Woken,
            // The alarm rang, or what was to be cancelled completed, in the meantime.
            Tag::AlarmUpdate | Tag::Cancel => Completion::Woken,
            Tag::Wake => Completion::NotWoken { errno: -result },
            Tag::Close => failed("close a socket"),
            Tag::Shutdown => Completion::Shut { slot },
        }
    }

    fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(Tag::Cancel.with(0)));
    }

    /// Makes room for one request that points into [`Scratch`], and for what it puts there: between that and its push nothing
    /// may be submitted, for a submission clears the scratch.
    fn reserve(&mut self) {
        while self.uring.submission().is_full() || self.scratch.messages.len() == VECTORED_MAX {
            self.flush();
        }
    }

    #[inline]
    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: every caller puts what the entry points to into `flights`, `log` or `scratch` first, which hold it
            // for as long as the invariant in the head of this file says: what lies in `scratch` was put there after
            // `reserve`, so that this push succeeds at once.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.flush();
        }
    }

    /// Submits what is there, to make room.
    #[cold]
    fn flush(&mut self) {
        self.counters.enters += 1;
        let pending = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed, and the entries are good, as `push` says. Completions are not asked for: they could
        // not be handled here.
        match unsafe { self.uring.submitter().enter::<libc::sigset_t>(pending, 0, 0, None) } {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => panic!("io_uring_enter: {error}"),
        }
        if self.uring.submission().is_empty() {
            self.scratch.clear();
        }
    }
}

impl Scratch {
    /// The header of a send in pieces. There is room: [`Ring::reserve`] comes first.
    fn message(&mut self, queue: &SendQueue) -> *const libc::msghdr {
        let from = self.pieces.len();
        for piece in queue.pieces().take(PIECES_MAX) {
            self.pieces.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
        }
        let count = self.pieces.len() - from;
        // SAFETY: zeros are a valid msghdr: null pointers and lengths of zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces[from..].as_ptr().cast_mut();
        message.msg_iovlen = count;
        // Neither of the two may move while entries that point into it wait to be submitted.
        assert!(self.messages.len() < VECTORED_MAX && self.pieces.len() <= VECTORED_MAX * PIECES_MAX);
        self.messages.push(message);
        self.messages.last().expect("it was pushed just now")
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.messages.clear();
        self.times.clear();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel ends a closed ring in its own time and may read these until then: they are better leaked.
        for flight in self.flights.drain(..).flatten() {
            Box::leak(flight);
        }
        if let Some(write) = self.log.take() {
            std::mem::forget(write);
        }
    }
}
