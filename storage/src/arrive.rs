//! Segments that are read in, in their order, by a thread, while a start already goes through those that have come: the disk and
//! the core work at the same time.

use std::io;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use crate::scrub::Partly;
use crate::{SegmentId, mapping};

/// What is asked of the kernel at once, which reads ahead within it. It is told when all of it is there. (To ask for more ahead with
/// MADV_WILLNEED made it a third slower and cost three times the CPU.)
const PIECE_BYTES: usize = 1 << 20;

/// How far a number of segments is read in.
#[derive(Debug)]
pub struct Arriving {
    /// Of which segment, in the order they were given in, and the first byte that is not there.
    through: (usize, usize),
    news: Receiver<(usize, News)>,
    thread: Option<JoinHandle<()>>,
}

/// What is told of a segment.
#[derive(Debug)]
enum News {
    /// All before this byte of its view is there.
    Through(usize),
    /// Its view must not be looked at, for the disk does not give all of it: here is what it gives.
    Partly(Partly),
}

impl Arriving {
    /// All is there.
    pub fn done() -> Arriving {
        let (_, news) = mpsc::channel();
        Arriving { through: (usize::MAX, 0), news, thread: None }
    }

    /// All is there, but of some segments, by their place in the order, only a part.
    pub(crate) fn partly(segments: impl IntoIterator<Item = (usize, Partly)>) -> Arriving {
        let (tell, news) = mpsc::channel();
        // The other end is held here, so that nothing sent is lost.
        segments.into_iter().for_each(|(index, partly)| drop(tell.send((index, News::Partly(partly)))));
        Arriving { through: (0, 0), news, thread: None }
    }

    /// Begins with the first. Of one that is not to be had whole `copy` gives what there is.
    pub(crate) fn start(
        segments: Vec<(SegmentId, Bytes)>,
        copy: impl Fn(SegmentId, &Bytes) -> Partly + Send + 'static,
    ) -> io::Result<Arriving> {
        let (tell, news) = mpsc::channel();
        let thread = thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
            for (index, (id, bytes)) in segments.iter().enumerate() {
                for from in (0..bytes.len()).step_by(PIECE_BYTES) {
                    let to = bytes.len().min(from + PIECE_BYTES);
                    let is_there = mapping::read_in(&bytes.slice(from..to)).is_ok();
                    let news = if is_there { News::Through(to) } else { News::Partly(copy(*id, bytes)) };
                    // Nobody listens any more once all is over.
                    if tell.send((index, news)).is_err() {
                        return;
                    }
                    if !is_there {
                        break;
                    }
                }
            }
        })?;
        Ok(Arriving { through: (0, 0), news, thread: Some(thread) })
    }

    /// Waits until all before this place is there. Before it returns `replace` is given what takes the place of a segment's view.
    ///
    /// # Panics
    /// If the thread that reads did: what is not there must not be looked at.
    #[inline]
    pub(crate) fn wait(&mut self, segment: usize, offset: usize, replace: &mut dyn FnMut(usize, Partly)) {
        while self.through < (segment, offset) {
            self.through = match self.news.recv() {
                Ok((index, News::Through(to))) => (index, to),
                Ok((index, News::Partly(partly))) => {
                    let to = partly.bytes.len();
                    replace(index, partly);
                    (index, to)
                }
                // All of it was told.
                Err(_) => {
                    if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                        std::panic::resume_unwind(panic);
                    }
                    (usize::MAX, 0)
                }
            };
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // It ends with the piece that it reads: nobody listens any more. What it holds of the segments goes with it.
        self.news = mpsc::channel().1;
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, nobody looks at what it was to read in any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(segments: &[Bytes]) -> Arriving {
        let segments = segments.iter().map(|bytes| (SegmentId(1), bytes.clone())).collect();
        Arriving::start(segments, |_, _| unreachable!("memory is there")).unwrap()
    }

    fn wait(arriving: &mut Arriving, segment: usize, offset: usize) {
        arriving.wait(segment, offset, &mut |_, _| panic!("all of it is there"));
    }

    #[test]
    fn all_of_it_comes_and_nothing_of_it_is_kept() {
        let segments: Vec<Bytes> = (1..=5).map(|pages| Bytes::from(vec![7; pages * PIECE_BYTES - 4096])).collect();
        let mut arriving = start(&segments);
        for (index, bytes) in segments.iter().enumerate() {
            wait(&mut arriving, index, 1);
            wait(&mut arriving, index, bytes.len());
            assert!(arriving.through >= (index, bytes.len()));
        }
        wait(&mut arriving, 5, 0);
        drop(arriving);
        assert!(segments.into_iter().all(|bytes| bytes.is_unique()));
    }

    #[test]
    fn who_has_seen_enough_does_not_wait_for_the_rest() {
        let segments = vec![Bytes::from(vec![7; 64 * PIECE_BYTES])];
        let mut arriving = start(&segments);
        wait(&mut arriving, 0, 1);
        drop(arriving);
        assert!(segments.into_iter().all(|bytes| bytes.is_unique()));
        wait(&mut Arriving::done(), usize::MAX, 0);
    }

    #[test]
    fn a_copy_of_what_there_is_comes_before_anybody_looks() {
        // Beyond the end of its file a mapping cannot be read, as where the disk does not give the bytes.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        std::fs::write(&path, vec![7; 2 * PIECE_BYTES]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let view = mapping::map(&file, false).unwrap();
        file.set_len(PIECE_BYTES as u64).unwrap();
        let end = PIECE_BYTES as u32..2 * PIECE_BYTES as u32;
        let unreadable = end.clone();
        let copy = move |id, view: &Bytes| {
            assert_eq!((id, view.len()), (SegmentId(4), 2 * PIECE_BYTES));
            Partly { bytes: vec![0; view.len()].into(), unreadable: vec![unreadable.clone()] }
        };
        let last = Bytes::from(vec![7; 4096]);
        let mut arriving = Arriving::start(vec![(SegmentId(4), view), (SegmentId(5), last)], copy).unwrap();
        let mut replaced = Vec::new();
        arriving.wait(0, PIECE_BYTES, &mut |_, _| panic!("the first piece is there"));
        arriving.wait(0, PIECE_BYTES + 1, &mut |index, partly| replaced.push((index, partly.unreadable)));
        assert_eq!(replaced, [(0, vec![end])]);
        wait(&mut arriving, 1, 4096);
    }
}
