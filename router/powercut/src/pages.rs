//! Pages of segments that the disk does not give when a server starts: each start goes on, or is refused in so many words; none ends
//! by a signal, as a look at such a page through a mapping does.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};

use crate::disk::{Disk, Facts, ROOT};
use crate::fuse::Machine;
use crate::life::server_log;
use crate::mount::Mounted;
use crate::server::{PATIENCE, Server, Setting, Started, wait};

const SEGMENT_SIZE: &str = "512KiB";
const PAGE_BYTES: u64 = 4096;

/// How long it is until somebody looks again whether a server has made what is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The shard of which pages are lost.
const SHARD: &str = "shard-0";

/// What came of a page.
pub(crate) struct Lost {
    /// Of which file, and which page of it.
    pub(crate) page: String,
    /// The server served without it.
    pub(crate) serves: bool,
    /// But for this shard, whose log does not open.
    pub(crate) shut: bool,
    /// The code that it ended with, if it ended by itself.
    pub(crate) code: Option<i32>,
}

impl Lost {
    /// Whether that is what has to come of it.
    pub(crate) fn is_right(&self) -> bool {
        self.serves || self.code.is_some()
    }
}

/// Starts a server on what another one left, without one page each time: of the first segment, in which the log is, and of a spare one.
pub(crate) fn lose_each(program: &Path, directory: &Path) -> anyhow::Result<Vec<Lost>> {
    let at = Place { program, directory };
    // One behind the next one, so that the log can certainly not go on in it.
    let (left, _) = at.start(Disk::new(1, None), |disk| segments(disk).len() > 2)?;
    let segments = segments(&left);
    let (first, spare) = (segments.first().context("a segment")?, segments.last().context("a segment")?);
    let mut all = Vec::new();
    for (name, facts) in [first, spare] {
        for page in [0, 1, 2, 40, facts.size / PAGE_BYTES - 1] {
            let mut disk = left.clone();
            disk.lose_page(facts.ino, page * PAGE_BYTES);
            let log = server_log(directory);
            let before = std::fs::metadata(&log).context("look at the server's log")?.len() as usize;
            let (_, (serves, code)) = at.start(disk, |_| true)?;
            let said = std::fs::read(&log).context("read the server's log")?;
            let said = String::from_utf8_lossy(said.get(before..).unwrap_or_default());
            let shut = serves && said.contains("the log of a shard does not open");
            all.push(Lost { page: format!("{SHARD}/{} page {page}", name.display()), serves, shut, code });
        }
    }
    Ok(all)
}

/// The segments of the shard.
fn segments(disk: &Disk) -> Vec<(OsString, Facts)> {
    let shard = disk.lookup(ROOT, OsStr::new("data")).and_then(|data| disk.lookup(data.ino, OsStr::new(SHARD)));
    let mut segments = shard.and_then(|shard| disk.names(shard.ino)).unwrap_or_default();
    segments.retain(|(name, _)| name.to_str().is_some_and(|name| name.ends_with(".seg")));
    segments
}

struct Place<'a> {
    program: &'a Path,
    directory: &'a Path,
}

impl Place<'_> {
    /// Starts a server with nothing in the page cache, and kills it once it serves and its disk has what is waited for. Gives what it
    /// left, whether it served, and the code with which it ended by itself.
    fn start(&self, disk: Disk, has_all: impl Fn(&Disk) -> bool) -> anyhow::Result<(Disk, (bool, Option<i32>))> {
        let machine = Machine::new(disk).context("make an eventfd")?;
        let path = self.directory.join("disk");
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        let mounted = Mounted::new(&machine, &path).context("mount a file system")?;
        let log = server_log(self.directory);
        let setting = Setting {
            program: self.program,
            data: &path.join("data"),
            log: &log,
            segment_size: SEGMENT_SIZE,
            forget_after: "10m",
            machine: Some(&machine),
        };
        let mut server = Server::start(&setting)?;
        let serves = matches!(server.wait_until_ready()?, Started::Ready(_));
        let begun = Instant::now();
        while serves && !machine.look(&has_all) {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "the server makes no spare segments");
            let ended = PollFd::new(server.ended(), PollFlags::IN);
            anyhow::ensure!(wait(&mut [ended], LOOK_AGAIN)? == 0, "the server ended");
        }
        let code = server.status()?.and_then(|status| status.code());
        server.kill()?;
        let left = machine.look(Disk::clone);
        mounted.unmount()?;
        Ok((left, (serves, code)))
    }
}
