//! A machine's disk at a place in the file tree.

#![allow(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use fuser::{BackgroundSession, Config, MountOption};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::fuse::Machine;

/// A mounted disk. It is unmounted with this value; in a namespace of its own also however the process ends.
pub(crate) struct Mounted {
    machine: Machine,
    path: PathBuf,
    session: Option<BackgroundSession>,
}

/// From now on what this thread and those that it starts mount is seen by them and their children only, and is gone with
/// them. Without the right to do so it stays as it is: then a mount outlives a process that was killed.
pub(crate) fn mounts_of_our_own() -> io::Result<()> {
    // SAFETY: no descriptors are unshared, so that no other thread misses one that it has.
    match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) } {
        Ok(()) => {}
        Err(Errno::PERM) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

/// Why nothing can be mounted here, in a few words, if that is so.
pub(crate) fn why_not() -> anyhow::Result<Option<String>> {
    if !Path::new("/dev/fuse").exists() {
        return Ok(Some("there is no /dev/fuse".to_owned()));
    }
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let machine = Machine::new(crate::disk::Disk::new(0, None)).context("make an eventfd")?;
    match Mounted::new(&machine, directory.path()) {
        Ok(mounted) => mounted.unmount().map(|()| None),
        Err(error) => Ok(Some(format!("mounting is not permitted ({error})"))),
    }
}

impl Mounted {
    /// Mounts it on a directory.
    pub(crate) fn new(machine: &Machine, path: &Path) -> io::Result<Mounted> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("whimbrel-powercut".to_owned())];
        let session = fuser::spawn_mount(machine.clone(), path, &config)?;
        Ok(Mounted { machine: machine.clone(), path: path.to_owned(), session: Some(session) })
    }

    /// Takes it out of the tree and waits until the kernel has forgotten it: when nobody has a file of it open any more,
    /// which after a process was killed is when the kernel has ended its rings.
    pub(crate) fn unmount(mut self) -> anyhow::Result<()> {
        self.end().with_context(|| format!("unmount {}", self.path.display()))
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        // Whoever still waits for an answer would keep it from ending.
        self.machine.release();
        rustix::mount::unmount(&self.path, UnmountFlags::DETACH)?;
        match session.join() {
            // The kernel shut it down while its last request was being read; as a rule it says so before or after.
            Err(error) if error.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) => Ok(()),
            ended => ended,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // On the way out of a failure, which is what is told; only a value that was not unmounted comes here.
        if let Err(error) = self.end() {
            eprintln!("whimbrel-powercut: {} stays mounted: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests;
