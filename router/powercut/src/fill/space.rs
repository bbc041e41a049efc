//! A small file system, and somebody else's file that takes what is left of it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// Bytes of a tmpfs, and its files at most.
const TMPFS: &std::ffi::CStr = c"size=24m,nr_inodes=64,mode=700";

/// Bytes of the image of an ext4. A part is the file system's own.
const EXT4_BYTES: u64 = 32 << 20;

/// Nothing is kept for root, as which this runs; few files; the smallest journal.
const EXT4_OPTIONS: [&str; 11] = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", "64", "-Jsize=4"];

/// What is taken at once, at first and at last.
const PIECE_BYTES: u64 = 1 << 20;
const PIECE_MIN_BYTES: u64 = 4096;

/// How often it is looked for what has become free.
const GREED: Duration = Duration::from_millis(2);

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Memory
    Tmpfs,
    /// An image on a loop device
    Ext4,
}

/// A mounted file system. It is unmounted with this value; in a namespace of its own also however the process ends.
pub(crate) struct Space {
    path: PathBuf,
    is_mounted: bool,
}

impl Kind {
    /// As it is named on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Tmpfs => "tmpfs",
            Kind::Ext4 => "ext4",
        }
    }
}

impl Space {
    /// Makes and mounts one in a directory. An inner error is what is missing here to do that.
    pub(crate) fn new(kind: Kind, directory: &Path) -> anyhow::Result<Result<Space, String>> {
        let path = directory.join("disk");
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let refused = match kind {
            Kind::Tmpfs => match rustix::mount::mount("whimbrel-fulldisk", &path, "tmpfs", MountFlags::NODEV, TMPFS) {
                Ok(()) => None,
                Err(error) => Some(format!("mounting is not permitted ({error}): run it as root")),
            },
            Kind::Ext4 => mount_ext4(&directory.join("image"), &path)?,
        };
        Ok(match refused {
            None => Ok(Space { path, is_mounted: true }),
            Some(reason) => Err(reason),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it out of the tree. It is gone when nobody has a file of it open any more, which after a process was killed is when
    /// the kernel has ended its rings.
    pub(crate) fn unmount(mut self) -> anyhow::Result<()> {
        self.is_mounted = false;
        rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", self.path.display()))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // On the way out of a failure, which is what is told: whoever still has files of it open ends in a moment.
        if self.is_mounted
            && let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
        {
            eprintln!("whimbrel-fulldisk: {} stays mounted: {error}", self.path.display());
        }
    }
}

/// Bytes that are free on the file system of a path.
pub(crate) fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(path).with_context(|| format!("ask what is free on {}", path.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// What is missing, if something is.
fn mount_ext4(image: &Path, path: &Path) -> anyhow::Result<Option<String>> {
    let file = File::create_new(image).with_context(|| format!("make {}", image.display()))?;
    file.set_len(EXT4_BYTES).context("size the image")?;
    if let Some(reason) = run(Command::new("mkfs.ext4").args(EXT4_OPTIONS).arg(image), "install e2fsprogs")? {
        return Ok(Some(reason));
    }
    run(
        Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(path),
        "run it as root, with loop devices",
    )
}

/// Runs a tool. A failure of it is what is missing here, with the remedy.
fn run(command: &mut Command, remedy: &str) -> anyhow::Result<Option<String>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = match command.stdin(Stdio::null()).output() {
        Ok(out) => out,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("there is no {name}: {remedy}")));
        }
        Err(error) => return Err(error).with_context(|| format!("start {name}")),
    };
    let said = String::from_utf8_lossy(&out.stderr);
    let said = said.lines().last().unwrap_or("it said nothing");
    Ok((!out.status.success()).then(|| format!("{name} failed ({said}): {remedy}")))
}

/// What is taken of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// All blocks.
    Bytes,
    /// All names of files.
    Files,
}

/// Somebody who takes all that is there, and all that becomes free, until he is asked to stop.
pub(crate) struct Ballast {
    directory: PathBuf,
    stop: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Ballast {
    /// Begins to take.
    pub(crate) fn new(space: &Path, want: Want) -> anyhow::Result<Ballast> {
        let directory = space.join("ballast");
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let (stop, full) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (to_stop, is_full, place) = (Arc::clone(&stop), Arc::clone(&full), directory.clone());
        let thread = thread::spawn(move || match want {
            Want::Bytes => take_bytes(&place, &to_stop, &is_full),
            Want::Files => take_files(&place, &to_stop, &is_full),
        });
        Ok(Ballast { directory, stop, full, thread: Some(thread) })
    }

    /// Nothing more was to be had, at least once.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Gives all of it back.
    pub(crate) fn release(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stop.store(true, Ordering::Relaxed);
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that fills the disk panicked"))?
            .context("fill the disk")?;
        fs::remove_dir_all(&self.directory).with_context(|| format!("remove {}", self.directory.display()))
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // On the way out of a failure, which is what is told.
        let _ = self.end();
    }
}

fn take_bytes(directory: &Path, stop: &AtomicBool, full: &AtomicBool) -> io::Result<()> {
    // Some systems have no file for it any more: then its blocks are taken by nobody else either.
    let file = loop {
        match File::create(directory.join("bytes")) {
            Err(error) if is_full_error(&error) && !stop.load(Ordering::Relaxed) => thread::sleep(GREED),
            file => break file?,
        }
    };
    let (mut taken, mut piece) = (0, PIECE_BYTES);
    while !stop.load(Ordering::Relaxed) {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), taken, piece) {
            Ok(()) => taken += piece,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC) if piece > PIECE_MIN_BYTES => piece /= 2,
            Err(Errno::NOSPC) => {
                full.store(true, Ordering::Relaxed);
                thread::sleep(GREED);
                piece = PIECE_BYTES;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn take_files(directory: &Path, stop: &AtomicBool, full: &AtomicBool) -> io::Result<()> {
    for number in 0.. {
        while let Err(error) = File::create(directory.join(number.to_string())) {
            if !is_full_error(&error) {
                return Err(error);
            }
            full.store(true, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(GREED);
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    Ok(())
}

fn is_full_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}
