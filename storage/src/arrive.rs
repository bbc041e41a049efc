//! Segments that are read in, in their order, by a thread, while a start already goes through those that have come: the disk and
//! the core work at the same time.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::mapping;

/// What is read at once; it is told when all of it is there.
const PIECE_BYTES: usize = 1 << 20;

/// What is read in one call: its copy stays in the core's own cache.
const READ_BYTES: usize = 256 << 10;

/// How far a number of segments is read in.
#[derive(Debug)]
pub struct Arriving {
    /// Of which segment, in the order they were given in, and the first byte that is not there.
    through: (usize, usize),
    news: Receiver<(usize, usize)>,
    thread: Option<JoinHandle<()>>,
}

impl Arriving {
    /// All is there.
    pub fn done() -> Arriving {
        let (_, news) = mpsc::channel();
        Arriving { through: (usize::MAX, 0), news, thread: None }
    }

    /// Begins with the first: segments are given with where their files are.
    pub(crate) fn start(segments: Vec<(PathBuf, Bytes)>) -> io::Result<Arriving> {
        let (tell, news) = mpsc::channel();
        let thread = thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
            let mut buffer = vec![0; READ_BYTES];
            for (index, (path, bytes)) in segments.iter().enumerate() {
                let file = open(path);
                for from in (0..bytes.len()).step_by(PIECE_BYTES) {
                    let to = bytes.len().min(from + PIECE_BYTES);
                    if let Ok(file) = &file {
                        read(file, from..to, &mut buffer);
                    }
                    // What cannot be read is found out by whoever looks at it; and nobody listens any more once all is over.
                    if mapping::read_in(&bytes.slice(from..to)).is_err() || tell.send((index, to)).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(Arriving { through: (0, 0), news, thread: Some(thread) })
    }

    /// Waits until all before this place is there.
    #[inline]
    pub(crate) fn wait(&mut self, segment: usize, offset: usize) {
        while self.through < (segment, offset) {
            // The thread has read all, or cannot: then reading goes on by looking.
            self.through = self.news.recv().unwrap_or((usize::MAX, 0));
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // It ends with the piece that it reads: nobody listens any more. What it holds of the segments goes with it.
        self.news = mpsc::channel().1;
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, what it has not read in is read by whoever looks at it.
            let _ = thread.join();
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential)?;
    Ok(file)
}

/// Has the kernel read a part of a file, and as much ahead as it does for one who reads on. What it gives is thrown away: of pages
/// that are asked for through a mapping alone it reads less ahead, and a disk that reads 2 GiB/s gave a tenth less. (To ask for more
/// ahead with MADV_WILLNEED made it a third slower and cost three times the CPU.)
fn read(file: &File, part: Range<usize>, buffer: &mut [u8]) {
    for from in part.clone().step_by(READ_BYTES) {
        let count = READ_BYTES.min(part.end - from);
        // What cannot be read is found out by whoever looks at it.
        if file.read_exact_at(&mut buffer[..count], from as u64).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of files that are there, and of some that are not.
    fn segments(directory: &Path, pages: &[usize]) -> Vec<(PathBuf, Bytes)> {
        let segment = |(n, pages): (usize, &usize)| {
            let (path, bytes) = (directory.join(n.to_string()), vec![7; pages * PIECE_BYTES - 4096]);
            if n != 2 {
                std::fs::write(&path, &bytes).unwrap();
            }
            (path, Bytes::from(bytes))
        };
        pages.iter().enumerate().map(segment).collect()
    }

    #[test]
    fn all_of_it_comes_and_nothing_of_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let segments = segments(directory.path(), &[1, 2, 3, 4, 5]);
        let mut arriving = Arriving::start(segments.clone()).unwrap();
        for (index, (_, bytes)) in segments.iter().enumerate() {
            arriving.wait(index, 1);
            arriving.wait(index, bytes.len());
            assert!(arriving.through >= (index, bytes.len()));
        }
        arriving.wait(5, 0);
        drop(arriving);
        assert!(segments.into_iter().all(|(_, bytes)| bytes.is_unique()));
    }

    #[test]
    fn who_has_seen_enough_does_not_wait_for_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let segments = segments(directory.path(), &[64]);
        let mut arriving = Arriving::start(segments.clone()).unwrap();
        arriving.wait(0, 1);
        drop(arriving);
        assert!(segments.into_iter().all(|(_, bytes)| bytes.is_unique()));
        Arriving::done().wait(usize::MAX, 0);
    }
}
