//! A shard's segment files: the one that is being written, and a thread that makes new ones.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use whimbrel_core::ids::ShardId;
use whimbrel_storage::{FileDisk, SegmentId};

use super::sleep::Waker;

/// One in so many failures in a row is logged.
const LOGGED: u32 = 60;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A segment that was to be made, and its mapping unless that failed.
pub(super) type Made = (SegmentId, Option<Bytes>);

/// See the [module](self).
pub(super) struct Segments {
    disk: FileDisk,
    current: Option<(SegmentId, Rc<File>)>,
    wanted: Sender<SegmentId>,
    made: Receiver<Made>,
    /// Segments that are being made.
    outstanding: usize,
}

impl Segments {
    /// Starts the thread, which ends with this value.
    pub(super) fn new(shard: ShardId, disk: FileDisk, size_bytes: u32, waker: Waker) -> io::Result<Segments> {
        let (wanted, jobs) = mpsc::channel();
        let (results, made) = mpsc::channel();
        let worker = disk.clone();
        thread::Builder::new().name(format!("segments-{shard}")).spawn(move || {
            let mut failures = 0;
            for segment in jobs {
                let mapping = make(&worker, segment, size_bytes, &mut failures);
                // The shard is gone: then so is this thread.
                if results.send((segment, mapping)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Segments { disk, current: None, wanted, made, outstanding: 0 })
    }

    /// Has a segment made.
    pub(super) fn prepare(&mut self, segment: SegmentId) {
        self.wanted.send(segment).expect("the thread ends with this value");
        self.outstanding += 1;
    }

    /// A segment that was made, or was not.
    #[inline]
    pub(super) fn made(&mut self) -> Option<Made> {
        if self.outstanding == 0 {
            return None;
        }
        let made = self.made.try_recv().ok()?;
        self.outstanding -= 1;
        Some(made)
    }

    /// The file of the segment that is being written. Opened once a segment, which takes microseconds.
    pub(super) fn file(&mut self, segment: SegmentId) -> io::Result<Rc<File>> {
        if let Some((current, file)) = &self.current
            && *current == segment
        {
            return Ok(file.clone());
        }
        let file = Rc::new(self.disk.file(segment)?);
        self.current = Some((segment, file.clone()));
        Ok(file)
    }
}

fn make(disk: &FileDisk, segment: SegmentId, size_bytes: u32, failures: &mut u32) -> Option<Bytes> {
    let path = disk.path(segment);
    // A failure was told at once, for sends are refused by it; the log has asked again at once.
    if *failures > 0 {
        thread::sleep(RETRY);
    }
    match disk.create_segment(segment, size_bytes) {
        Ok(mapping) => {
            if std::mem::take(failures) > 0 {
                tracing::info!(path = %path.display(), "segments of the log can be made again");
            }
            Some(mapping)
        }
        Err(error) => {
            if failures.is_multiple_of(LOGGED) {
                tracing::error!(
                    path = %path.display(), %error,
                    "cannot make a segment of the log; it is tried again every second. Make room: once the spare ones are full, \
                     sends are refused"
                );
            }
            *failures += 1;
            None
        }
    }
}
