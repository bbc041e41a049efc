//! Segments that are read in, in their order, by a thread, while a start already goes through those that have come: the disk and
//! the core work at the same time.

use std::io;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::mapping;

/// What is asked of the kernel at once, which reads ahead within it. It is told when all of it is there. (To ask for more ahead with
/// MADV_WILLNEED made it a third slower and cost three times the CPU.)
const PIECE_BYTES: usize = 1 << 20;

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

    /// Begins with the first.
    pub(crate) fn start(segments: Vec<Bytes>) -> io::Result<Arriving> {
        let (tell, news) = mpsc::channel();
        let thread = thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
            for (index, bytes) in segments.iter().enumerate() {
                for from in (0..bytes.len()).step_by(PIECE_BYTES) {
                    let to = bytes.len().min(from + PIECE_BYTES);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_comes_and_nothing_of_it_is_kept() {
        let segments: Vec<Bytes> = (1..=5).map(|pages| Bytes::from(vec![7; pages * PIECE_BYTES - 4096])).collect();
        let mut arriving = Arriving::start(segments.clone()).unwrap();
        for (index, bytes) in segments.iter().enumerate() {
            arriving.wait(index, 1);
            arriving.wait(index, bytes.len());
            assert!(arriving.through >= (index, bytes.len()));
        }
        arriving.wait(5, 0);
        drop(arriving);
        assert!(segments.into_iter().all(|bytes| bytes.is_unique()));
    }

    #[test]
    fn who_has_seen_enough_does_not_wait_for_the_rest() {
        let segments = vec![Bytes::from(vec![7; 64 * PIECE_BYTES])];
        let mut arriving = Arriving::start(segments.clone()).unwrap();
        arriving.wait(0, 1);
        drop(arriving);
        assert!(segments.into_iter().all(|bytes| bytes.is_unique()));
        Arriving::done().wait(usize::MAX, 0);
    }
}
