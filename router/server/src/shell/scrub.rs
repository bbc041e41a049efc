//! The scrubber: a thread that reads segments of the log which nobody looks at, past the page cache and at leisure, to see
//! whether the disk still has what was written. Which, and when, is for the core to say.

#![forbid(unsafe_code)]

use std::io;
use std::sync::mpsc::{self, Sender};

use bytes::Bytes;
use whimbrel_core::Input;
use whimbrel_core::ids::ShardId;
use whimbrel_storage::{Checked, FileDisk, FileSource, Loss, Rot, RotReason, SegmentIs, check_segment};

use super::segments::Done;
use super::sleep::Waker;
use crate::aside::Aside;

/// Bytes a second at most: a small part of what a disk gives, so that the log's own writes hardly notice.
const PACE: u64 = 32 << 20;

/// How nice the thread is to others.
const NICE: i32 = 19;

/// A segment to be read.
pub(super) struct Scrubbing {
    pub(super) is: SegmentIs,
    /// Held until it is done: the file stays what it is.
    pub(super) mapping: Bytes,
}

/// Starts the thread, which ends with the sender.
pub(super) fn start(
    shard: ShardId,
    disk: FileDisk,
    done: Sender<Done>,
    waker: Waker,
    aside: &Aside,
) -> io::Result<Sender<Scrubbing>> {
    let (scrubbing, jobs) = mpsc::channel();
    aside.spawn(format!("scrubber-{shard}"), move || {
        // A thread has a nice value of its own; without it the pace alone keeps it out of the way.
        if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
            tracing::debug!(%error, "cannot make the scrubber nice");
        }
        for Scrubbing { is, mapping } in jobs {
            let mut checked = check(&disk, &is, disk.source(&is, Some(PACE)));
            if !checked.rot.is_empty() {
                // What is there a second time is there.
                checked = check(&disk, &is, disk.source(&is, Some(PACE)));
            }
            drop(mapping);
            if done.send(Input::Scrubbed { checked }).is_err() {
                return;
            }
            waker.wake();
        }
    })?;
    Ok(scrubbing)
}

/// Checks a segment by its file.
pub(super) fn check(disk: &FileDisk, is: &SegmentIs, source: io::Result<FileSource>) -> Checked {
    match source {
        Ok(mut source) => check_segment(is, &mut source),
        Err(error) => {
            tracing::error!(path = %disk.path(is.id).display(), %error, "cannot open a segment of the log to check it");
            let rot = Rot {
                segment: is.id,
                offset: 0,
                bytes: is.size_bytes,
                reason: RotReason::Unreadable,
                loss: Loss::Unknown,
            };
            Checked { segment: is.id, bytes: 0, batches: 0, end: is.size_bytes, rot: vec![rot] }
        }
    }
}
