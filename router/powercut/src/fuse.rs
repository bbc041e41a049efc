//! The file system as the kernel sees it: each request goes to the [`Disk`] under one lock, and through the gate of the power
//! supply. After a cut nothing is answered any more, as a machine without power would have it, until whoever waited for the
//! answers is dead: so no process sees an error that no power cut shows. Only a [`Fault`] is one, and of the log's own writes one
//! alone meets it.
//!
//! The kernel caches what is read and writes through: a write(2) fills the pages that a mapping shows and comes here at once
//! (write-back caching is not asked for). A write with RWF_DSYNC or O_DSYNC comes as a write and then a flush, and counts as
//! stable by the flush alone.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::event::EventfdFlags;
use rustix::io::Errno as Refusal;

use crate::disk::{Disk, Facts, Ino};

/// Only the kernel changes anything here, so what it knows stays true.
const KNOWN_FOR: Duration = Duration::from_secs(86_400);

const BLOCK_BYTES: u32 = 4096;

/// Blocks of the file system, all free: a server that looks must find room.
const BLOCKS: u64 = 16 << 20;

/// The file system and the switch of its power. A clone is another handle of the same.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Counts up when the power fails.
    failed: OwnedFd,
    owner: (u32, u32),
}

struct State {
    disk: Disk,
    power: Power,
    /// Requests that change or flush something, since this was made.
    operations: u64,
    fault: Faulty,
}

/// How a write of the log fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its flush answers EIO, and what it was to flush is not stable, or only some of it.
    Flush,
    /// The write answers EIO, and wrote nothing.
    Write,
    /// The write writes half of it, and the next one, of the rest, answers EIO.
    Short,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Fault; 3] = [Fault::Flush, Fault::Write, Fault::Short];

    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Flush => "flush",
            Fault::Write => "write",
            Fault::Short => "short write",
        }
    }
}

enum Faulty {
    No,
    /// The first write or flush of a segment after so many operations fails.
    After(u64, Fault),
    /// Half of a write of this file is done.
    Half(Ino),
    /// It has failed, and whoever writes this log knows.
    Met(Ino),
    /// And wrote to it again.
    WentOn,
}

enum Power {
    On {
        /// It fails at the last of so many operations.
        left: Option<u64>,
    },
    /// Requests without an answer.
    Failed(Vec<Held>),
    /// Nobody is there who could be misled.
    Off,
}

/// Answers a request with an error.
type Held = Box<dyn FnOnce() + Send>;

/// What a request does to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It looks.
    Look,
    /// It changes what is read. When the power fails at it, it has happened, unflushed.
    Change,
    /// It makes something stable. When the power fails at it, it has not happened.
    Flush,
}

impl Machine {
    /// A machine with power, with this disk.
    pub(crate) fn new(disk: Disk) -> rustix::io::Result<Machine> {
        let failed = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let state = State { disk, power: Power::On { left: None }, operations: 0, fault: Faulty::No };
        Ok(Machine(Arc::new(Inner { state: Mutex::new(state), failed, owner })))
    }

    /// The power fails at the last of so many changes and flushes from now on; it does not fail if there is no number.
    /// Does nothing if it has failed already.
    pub(crate) fn fail_after(&self, operations: Option<u64>) {
        if let Power::On { left } = &mut self.state().power {
            *left = operations;
        }
    }

    /// The first write or flush of a log's segment after so many changes and flushes from now on fails in this way.
    pub(crate) fn break_after(&self, operations: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Faulty::After(state.operations + operations, fault);
    }

    /// Whether a write of a log has failed, or has begun to.
    pub(crate) fn has_broken(&self) -> bool {
        matches!(self.state().fault, Faulty::Half(_) | Faulty::Met(_) | Faulty::WentOn)
    }

    /// Whether the log was written although a write of it had failed.
    pub(crate) fn went_on(&self) -> bool {
        matches!(self.state().fault, Faulty::WentOn)
    }

    /// Whether the power has failed.
    pub(crate) fn has_failed(&self) -> bool {
        !matches!(self.state().power, Power::On { .. })
    }

    /// Readable once the power has failed.
    pub(crate) fn failure(&self) -> &OwnedFd {
        &self.0.failed
    }

    /// Lets go of whoever waits for an answer, with an error. Call it when those are killed.
    pub(crate) fn release(&self) {
        let held = std::mem::replace(&mut self.state().power, Power::Off);
        if let Power::Failed(held) = held {
            held.into_iter().for_each(|refuse| refuse());
        }
    }

    /// Changes and flushes so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Looks at the disk, past the kernel.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Disk) -> T) -> T {
        at(&self.state().disk)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve<R: Refuse, T>(
        &self,
        kind: Kind,
        reply: R,
        work: impl FnOnce(&mut Disk) -> Result<T, Refusal>,
        answer: impl FnOnce(R, T),
    ) {
        let mut state = self.state();
        let State { disk, power, operations, fault: _ } = &mut *state;
        match power {
            Power::Off => return reply.refuse(Errno::EIO),
            Power::Failed(held) => return held.push(Box::new(move || reply.refuse(Errno::EIO))),
            Power::On { left } if kind != Kind::Look => {
                *operations += 1;
                *left = left.map(|left| left.saturating_sub(1));
                if *left == Some(0) {
                    if kind == Kind::Change {
                        // An operation that is refused has changed nothing, and nobody will hear of it.
                        let _ = work(disk);
                    }
                    *power = Power::Failed(vec![Box::new(move || reply.refuse(Errno::EIO))]);
                    rustix::io::write(&self.0.failed, &1u64.to_ne_bytes()).expect("a counter at zero takes a one");
                    return;
                }
            }
            Power::On { .. } => {}
        }
        match work(disk) {
            Ok(done) => answer(reply, done),
            Err(refusal) => reply.refuse(Errno::from_i32(refusal.raw_os_error())),
        }
    }

    fn attributes(&self, facts: &Facts) -> FileAttr {
        FileAttr {
            ino: INodeNo(facts.ino),
            size: facts.size,
            blocks: facts.size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if facts.is_directory { FileType::Directory } else { FileType::RegularFile },
            perm: facts.mode as u16,
            nlink: 1,
            uid: self.0.owner.0,
            gid: self.0.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

impl State {
    /// How this write or flush of a file fails, if it is the one.
    fn meets(&mut self, ino: Ino, kind: Kind) -> Option<Fault> {
        if !matches!(self.power, Power::On { .. }) || matches!(self.fault, Faulty::No) {
            return None;
        }
        let log = self.disk.log_of(ino)?;
        let (next, meets) = match (&self.fault, kind) {
            (Faulty::After(from, _), _) if self.operations < *from => return None,
            (Faulty::After(_, fault @ Fault::Flush), Kind::Flush) => (Faulty::Met(log), *fault),
            (Faulty::After(_, fault @ Fault::Write), Kind::Change) => (Faulty::Met(log), *fault),
            (Faulty::After(_, fault @ Fault::Short), Kind::Change) => (Faulty::Half(ino), *fault),
            (Faulty::Half(half), Kind::Change) if *half == ino => (Faulty::Met(log), Fault::Write),
            (Faulty::Met(met), Kind::Change) if *met == log => {
                self.fault = Faulty::WentOn;
                return None;
            }
            _ => return None,
        };
        self.fault = next;
        Some(meets)
    }
}

impl Filesystem for Machine {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = |reply: ReplyEntry, facts| reply.entry(&KNOWN_FOR, &self.attributes(&facts), Generation(0));
        self.serve(Kind::Look, reply, |disk| disk.lookup(parent.0, name), found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = |reply: ReplyAttr, facts| reply.attr(&KNOWN_FOR, &self.attributes(&facts));
        self.serve(Kind::Look, reply, |disk| disk.facts(ino.0), found);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = |disk: &mut Disk| {
            mode.map_or(Ok(()), |mode| disk.set_mode(ino.0, mode))?;
            size.map_or(Ok(()), |size| disk.set_len(ino.0, size))?;
            disk.facts(ino.0)
        };
        let done = |reply: ReplyAttr, facts| reply.attr(&KNOWN_FOR, &self.attributes(&facts));
        self.serve(Kind::Change, reply, set, done);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = |reply: ReplyEntry, facts| reply.entry(&KNOWN_FOR, &self.attributes(&facts), Generation(0));
        self.serve(Kind::Change, reply, |disk| disk.mkdir(parent.0, name, mode & !umask), made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Kind::Change, reply, |disk| disk.unlink(parent.0, name), |reply, ()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = |disk: &mut Disk| match () {
            () if parent != newparent => Err(Refusal::XDEV),
            () if !flags.is_empty() => Err(Refusal::INVAL),
            () => disk.rename(parent.0, name, newname),
        };
        self.serve(Kind::Change, reply, rename, |reply, ()| reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = |reply: ReplyOpen, _| reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        self.serve(Kind::Look, reply, |disk| disk.facts(ino.0), opened);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let made = |reply: ReplyCreate, facts| {
            let attributes = self.attributes(&facts);
            reply.created(&KNOWN_FOR, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        };
        self.serve(Kind::Change, reply, |disk| disk.create(parent.0, name, mode & !umask), made);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = |disk: &mut Disk| disk.read(ino.0, offset, size as usize).map(<[u8]>::to_vec);
        self.serve(Kind::Look, reply, read, |reply, bytes| reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut data = data;
        match self.state().meets(ino.0, Kind::Change) {
            None => {}
            Some(Fault::Short) => data = &data[..data.len() / 2],
            Some(Fault::Write | Fault::Flush) => return reply.error(Errno::EIO),
        }
        let written = |reply: ReplyWrite, ()| reply.written(data.len() as u32);
        self.serve(Kind::Change, reply, |disk| disk.write(ino.0, offset, data), written);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let allocate = |disk: &mut Disk| match mode {
            0 => disk.allocate(ino.0, offset.saturating_add(length)),
            _ => Err(Refusal::OPNOTSUPP),
        };
        self.serve(Kind::Change, reply, allocate, |reply, ()| reply.ok());
    }

    /// A close, which flushes nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.serve(Kind::Look, reply, |_| Ok(()), |reply, ()| reply.ok());
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.state();
        if state.meets(ino.0, Kind::Flush).is_some() {
            // That there is no such file is an error as well.
            let _ = state.disk.fail_fsync(ino.0);
            return reply.error(Errno::EIO);
        }
        drop(state);
        self.serve(Kind::Flush, reply, |disk| disk.fsync(ino.0), |reply, ()| reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        let found = |mut reply: ReplyDirectory, names: Vec<(OsString, Facts)>| {
            for (place, (name, facts)) in (1..).zip(&names).skip(offset as usize) {
                if reply.add(INodeNo(facts.ino), place, self.attributes(facts).kind, name) {
                    break;
                }
            }
            reply.ok();
        };
        self.serve(Kind::Look, reply, |disk| disk.names(ino.0), found);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.serve(Kind::Flush, reply, |disk| disk.fsyncdir(ino.0), |reply, ()| reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let room = |reply: ReplyStatfs, ()| {
            reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK_BYTES, 255, BLOCK_BYTES);
        };
        self.serve(Kind::Look, reply, |_| Ok(()), room);
    }
}

/// An answer that can be an error.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite);
