//! Read-only mappings of segment files, and when the kernel writes their pages.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

/// Work on the pages of a mapping is asked of the kernel in pieces: it keeps others from changing the process's memory map
/// meanwhile, and a core that only wants memory from the allocator would wait for all of a segment.
const PIECE_BYTES: usize = 1 << 20;

struct Mapping(Mmap);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for from in (0..self.0.len()).step_by(PIECE_BYTES) {
            let len = PIECE_BYTES.min(self.0.len() - from);
            // SAFETY: nobody looks at this mapping any more; what its pages have is in the file. Where the kernel refuses, all
            // of them go with the mapping.
            let _ = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, from, len) };
        }
    }
}

/// Maps the whole of a segment file, and shared, so that what is written to the file later is seen; with its pages read in
/// if `populate`. Every clone and slice of the result holds the mapping.
pub(crate) fn map(file: &File, populate: bool) -> io::Result<Bytes> {
    // Bytes change under the mapping, and then nobody has a reference to them:
    // - where a batch is written: nobody reads there before the write has completed;
    // - where a start zeroes what is left of a torn batch: it gave out nothing of it, and its read-ahead is over;
    // - in a cold segment, where `Erase` overwrites in place what nobody points to: whoever delivers reads, and copies at once
    //   (`Log::read`), only what is pointed to, and that stays; and who goes through such a segment as a whole (erasing, copying,
    //   checking) reads its file, or has it read in on the thread that overwrites, while that does not;
    // - in all of it when the file is used for another segment, once nobody holds this mapping any more.
    // What lies beside bytes that are overwritten, in their page, and a last batch that a start writes once more, are written with
    // the very bytes that are there.
    // SAFETY: the file is a segment in a data directory that is locked against other processes; it shrinks only once it has no name and
    // nobody holds this mapping any more (`Retired`, `Unlinked`), so no access is beyond its end. Where bytes change, as said above,
    // nobody has a reference to them.
    let mapping = unsafe { MmapOptions::new().map(file)? };
    if !populate {
        // Its header is wanted first. Left to itself the kernel reads as much around it as its read-ahead may (8 MiB here: half
        // a gibibyte for a log of 64 segments). Where it does not take the advice it does so, and where it cannot read that page
        // whoever wants it is told.
        let _ = mapping.advise(Advice::Random);
        let _ = mapping.advise_range(Advice::PopulateRead, 0, mapping.len().min(crate::limits::PAGE_BYTES as usize));
        let _ = mapping.advise(Advice::Normal);
    }
    let bytes = Bytes::from_owner(Mapping(mapping));
    if populate {
        // It was written just now, and is in memory.
        let _ = read_in(&bytes);
    }
    Ok(bytes)
}

/// The kernel's large pages.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// All bytes of a file, in memory of their own. That of large ones comes in large pages: it would cost as much as the reading to have
/// the kernel find each small one when it is first written to.
pub(crate) fn read_copy(file: &mut File) -> io::Result<Bytes> {
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    if len == 0 {
        return Ok(Bytes::new());
    }
    // Only what is as long as some of them begins where one does.
    let mut copy = MmapOptions::new().len(len.next_multiple_of(LARGE_PAGE_BYTES)).map_anon()?;
    // Where the kernel has none these are small ones.
    let _ = copy.advise(Advice::HugePage);
    file.read_exact(&mut copy[..len])?;
    Ok(Bytes::from_owner(copy).slice(..len))
}

/// Up to here only what is asked for is read in: mostly it is the beginning of a segment, and nobody goes on behind it. Left to itself the
/// kernel reads as much as its read-ahead may (8 MiB here, for which each of two such looks of a clean start waited 13 to 40 ms).
const ALONE_BYTES: usize = 16 << 10;

/// Reads the pages of a mapping in, so that looking at them does not wait for the disk. It blocks: not for a core.
pub fn read_in(mapping: &Bytes) -> io::Result<()> {
    if mapping.is_empty() {
        return Ok(());
    }
    if mapping.len() <= ALONE_BYTES {
        // Where the kernel does not take the advice it reads more.
        let _ = advise(mapping, rustix::mm::Advice::Random);
        let there = read_in_piece(mapping);
        let _ = advise(mapping, rustix::mm::Advice::Normal);
        return there;
    }
    (0..mapping.len())
        .step_by(PIECE_BYTES)
        .try_for_each(|from| read_in_piece(&mapping.slice(from..mapping.len().min(from + PIECE_BYTES))))
}

/// Advice on how to read the pages that these bytes of a mapping, one at least, lie in, or to read them.
fn advise(mapping: &Bytes, advice: rustix::mm::Advice) -> rustix::io::Result<()> {
    let start = mapping.as_ptr();
    let before = start.addr() % crate::limits::PAGE_BYTES as usize;
    // SAFETY: the pages that `mapping` lies in are mapped for as long as it lives, and advice to read them changes no byte: it is
    // given by this file only, and none of it is other advice.
    unsafe {
        let first = start.wrapping_sub(before).cast_mut().cast();
        rustix::mm::madvise(first, before + mapping.len(), advice)
    }
}

fn read_in_piece(mapping: &Bytes) -> io::Result<()> {
    match advise(mapping, rustix::mm::Advice::LinuxPopulateRead) {
        // A kernel before 5.14: then each page is looked at.
        Err(rustix::io::Errno::INVAL) => {
            let sum = mapping.iter().step_by(crate::limits::PAGE_BYTES as usize).fold(0, |sum: u8, byte| sum ^ byte);
            std::hint::black_box(sum);
            Ok(())
        }
        other => other.map_err(Into::into),
    }
}

/// Has a range of a file that was written through the cache written to the disk now, and waits until it is there, perhaps in the
/// disk's own cache: nothing is durable by it. Left to itself the kernel writes all of it at the flush that comes at the end, and
/// every other flush of the disk waits for that.
pub(crate) fn begin_write_back(file: &File, from: u64, len: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: a call with the number of an open file and three numbers; it touches no memory of this process.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), from as i64, len as i64, flags) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A file system that does not know it: the flush at the end does it all.
            error
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::ESPIPE | libc::EINVAL)
                ) =>
            {
                Ok(())
            }
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_copy_has_all_bytes_of_a_file_of_any_length() {
        for len in [0, 1, 4096, (2 << 20) + 17] {
            let mut file = tempfile::tempfile().unwrap();
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            file.write_all(&bytes).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            let copy = read_copy(&mut file).unwrap();
            // They are its own.
            file.set_len(0).unwrap();
            assert!(copy == bytes);
        }
    }
}
