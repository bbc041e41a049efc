//! What takes long and is not to keep a segment from being made: checkpoints are written, segments read in, and what waits is moved
//! out of old ones. A thread of each shard does it.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::Sender;

use bytes::Bytes;
use whimbrel_core::Input;
use whimbrel_storage::{CHECKPOINT_MAGIC, ColdWork, FileDisk, SegmentIs, read_in};

use super::scrub;
use super::segments::{Done, LOGGED, Making};

/// Work for the other thread, which may take long: a segment that is wanted does not wait for it.
pub(super) enum Keeping {
    Checkpoint { number: u64, bytes: Vec<u8>, last: Option<u64> },
    ReadIn(SegmentIs, Bytes),
    Cold(ColdWork),
}

/// Writes checkpoints and reads segments in.
pub(super) struct Keeper {
    disk: FileDisk,
    /// The checkpoint that is being written.
    writing: Option<(u64, File)>,
    /// Bytes of it so far.
    written_bytes: u64,
    /// What is kept for the next one beside the bytes of the last.
    reserve_bytes: u64,
    /// In a row.
    failures: u32,
    /// The same of work on cold segments.
    cold_failures: u32,
    /// For what it cannot remove.
    making: Sender<Making>,
}

impl Keeper {
    /// Beside the bytes of the last checkpoint it keeps so many for the next.
    pub(super) fn new(disk: FileDisk, reserve_bytes: u64, making: Sender<Making>) -> Keeper {
        Keeper { disk, writing: None, written_bytes: 0, reserve_bytes, failures: 0, cold_failures: 0, making }
    }

    pub(super) fn work(&mut self, job: Keeping) -> Option<Done> {
        match job {
            Keeping::ReadIn(is, mapping) => {
                // A look at a page that cannot be read would end the process, and one that was read may be gone again by then: so the
                // file is checked, from memory where it is there. Before it its pages are mapped, for whoever looks next.
                if let Err(error) = read_in(&mapping) {
                    tracing::error!(segment = is.id.0, %error, "cannot read a segment in; check the disk (dmesg, smartctl)");
                }
                let checked = scrub::check(&self.disk, &is, self.disk.cached_source(&is));
                Some(Input::ReadIn { checked })
            }
            Keeping::Cold(work) => Some(match work.run(&mut self.disk) {
                Ok(done) => {
                    self.cold_failures = 0;
                    Input::ColdDone(Box::new(done))
                }
                Err(error) => self.cold_failed(&error),
            }),
            Keeping::Checkpoint { number, bytes, last } => {
                let is_first = self.writing.as_ref().is_none_or(|(writing, _)| *writing != number);
                if is_first && !bytes.starts_with(CHECKPOINT_MAGIC) {
                    // It failed, and was answered so; this was on its way already.
                    return Some(Input::CheckpointTaken { number });
                }
                Some(match self.write(number, &bytes, last) {
                    Ok(()) if last.is_none() => Input::CheckpointTaken { number },
                    Ok(()) => Input::CheckpointWritten { number },
                    Err(error) => {
                        if self.failures.is_multiple_of(LOGGED) {
                            tracing::error!(
                                number, %error,
                                "cannot write a checkpoint; it is tried again every second. Until then the log grows and nothing in it is \
                                 forgotten: make room, or check the disk (dmesg)"
                            );
                        }
                        self.failures += 1;
                        self.disk.unlinked().give_back_for(&error);
                        self.writing = None;
                        self.disk.abandon_checkpoint(number);
                        Input::CheckpointFailed { number }
                    }
                })
            }
        }
    }

    fn cold_failed(&mut self, error: &io::Error) -> Done {
        if self.cold_failures.is_multiple_of(LOGGED) {
            tracing::error!(
                %error,
                "cannot move what waits out of old segments, or overwrite what is delivered there; it is tried again with the \
                 next checkpoint. Until then the log grows: make room, or check the disk (dmesg)"
            );
        }
        self.cold_failures += 1;
        self.disk.unlinked().give_back_for(error);
        if self.disk.leftovers() > 0 {
            // The other thread may have ended, with the shard: then the next start finds what is left.
            let _ = self.making.send(Making::Leftovers);
        }
        Input::ColdFailed
    }

    /// Keeps space for the next checkpoint.
    pub(super) fn reserve(&mut self) {
        let size_bytes = self.written_bytes + self.reserve_bytes;
        let mut kept = self.disk.reserve_checkpoint(size_bytes);
        if kept.is_err() && self.disk.leftovers() > 0 {
            // What a crash left may be all that is in the way. What cannot be removed the other thread tells.
            self.disk.remove_leftovers();
            kept = self.disk.reserve_checkpoint(size_bytes);
        }
        if let Err(error) = kept {
            tracing::warn!(
                %error,
                "no space can be kept for the next checkpoint; without one nothing in the log is forgotten: make room"
            );
        }
    }

    fn write(&mut self, number: u64, bytes: &[u8], last: Option<u64>) -> io::Result<()> {
        if self.writing.as_ref().is_none_or(|(writing, _)| *writing != number) {
            self.writing = Some((number, self.disk.begin_checkpoint(number)?));
            self.written_bytes = 0;
        }
        let Some((_, file)) = &mut self.writing else { return Ok(()) };
        file.write_all(bytes)?;
        self.written_bytes += bytes.len() as u64;
        if let Some(keep_from) = last {
            self.disk.finish_checkpoint(file, number, keep_from)?;
            self.writing = None;
            self.failures = 0;
            self.reserve();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use whimbrel_storage::SegmentId;

    use super::*;

    #[test]
    fn a_segment_that_is_read_in_is_checked_by_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = FileDisk::open(dir.path(), 0).expect("a disk");
        let is = SegmentIs { shard: 0, id: SegmentId(1), size_bytes: 64 << 10, generation: None };
        disk.create_segment(is.id, is.size_bytes, || None).expect("a segment");
        // Nobody looks at what it is given, which stands for pages that are gone again: in them there is no segment.
        let mapping = Bytes::from(vec![0; is.size_bytes as usize]);
        let (making, _jobs) = mpsc::channel();
        let mut keeper = Keeper::new(disk, 0, making);
        let done = keeper.work(Keeping::ReadIn(is, mapping));
        let Some(Input::ReadIn { checked }) = done else { panic!("it is answered") };
        assert_eq!((checked.segment, checked.bytes, &checked.rot[..]), (is.id, u64::from(is.size_bytes), &[][..]));
    }

    #[test]
    fn a_copy_that_cannot_be_removed_is_left_to_the_thread_that_tries_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path(), 0).unwrap();
        std::fs::create_dir(disk.path(SegmentId(1))).unwrap();
        disk.remove_segment(SegmentId(1)).unwrap_err();
        let (making, jobs) = mpsc::channel();
        let mut keeper = Keeper::new(disk, 0, making);
        assert!(matches!(keeper.cold_failed(&io::Error::other("any")), Input::ColdFailed));
        assert!(matches!(jobs.try_recv(), Ok(Making::Leftovers)));
    }
}
