//! How a shard sleeps: its ring writes an eventfd, and glommio waits for that. Other threads wake it by writing to it too.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use glommio::io::BufferedFile;
use rustix::event::EventfdFlags;

/// Wakes one shard, from any thread.
#[derive(Clone, Debug)]
pub(super) struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// An eventfd that blocks its readers: glommio's ring waits for it without a thread.
    pub(super) fn new() -> io::Result<Waker> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Waker { event: Arc::new(event) })
    }

    /// The shard's sleep ends, or its next one does at once.
    pub(super) fn wake(&self) {
        // It fails only where the counter is full, and then a wake is pending anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// For the ring to write.
    pub(super) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// The sleeping end of a [`Waker`], in a glommio executor.
#[derive(Debug)]
pub(super) struct Sleeper {
    file: BufferedFile,
}

impl Sleeper {
    /// In the executor that will sleep.
    pub(super) fn new(waker: &Waker) -> io::Result<Sleeper> {
        let own = waker.event.try_clone()?.into_raw_fd();
        // SAFETY: the descriptor was duplicated for the file alone, which closes it.
        let file = unsafe { BufferedFile::from_raw_fd(own) };
        Ok(Sleeper { file })
    }

    /// Until the waker wakes, or has since the last time. Other tasks of the executor run meanwhile.
    pub(super) async fn sleep(&self) -> io::Result<()> {
        match self.file.read_at(0, size_of::<u64>()).await {
            Ok(_) => Ok(()),
            Err(
                glommio::GlommioError::IoError(error) | glommio::GlommioError::EnhancedIoError { source: error, .. },
            ) => Err(error),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }
}
