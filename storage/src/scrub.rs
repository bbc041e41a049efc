//! Reading a segment that nobody writes any more, to see whether it is as it was written. Of that segment alone: nothing is
//! taken from what lies before or behind it. It blocks: not for a core.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::OFlags;

use crate::layout::{self, BATCH_HEADER_BYTES, BadSegment, BatchHeader, FIRST_BATCH_OFFSET, SegmentHeader};
use crate::limits::{BATCH_MAX_BYTES, PAGE_BYTES};
use crate::rot::{Loss, Rot, RotReason, look_into};
use crate::{Location, SegmentId};

/// Bytes that are read from a file at once: several of the largest batches.
const READ_BYTES: usize = 4 << 20;

const _: () = assert!(READ_BYTES >= 2 * BATCH_MAX_BYTES as usize && READ_BYTES.is_multiple_of(PAGE_BYTES as usize));

/// What a segment has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentIs {
    /// The shard whose log it belongs to.
    pub shard: u16,
    /// Its number.
    pub id: SegmentId,
    /// Bytes of it.
    pub size_bytes: u32,
    /// The random number that it was made with; `None` if only its own header says it.
    pub generation: Option<u64>,
}

/// What was found in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Which.
    pub segment: SegmentId,
    /// Bytes that were looked at.
    pub bytes: u64,
    /// Batches that are there, with damaged ones.
    pub batches: u64,
    /// Where the last of them ends: nothing that anybody waits for lies behind it.
    pub end: u32,
    /// What is not as it was written, in its order.
    pub rot: Vec<Rot>,
}

impl Checked {
    /// Pages that the disk does not give.
    pub fn unreadable(&self) -> Vec<Range<u32>> {
        let rot = self.rot.iter().filter(|rot| rot.reason == RotReason::Unreadable);
        rot.map(|rot| rot.offset..rot.offset + rot.bytes).collect()
    }

    /// The rot by which bytes of this location are lost, if they are.
    pub fn lost(&self, location: Location) -> Option<Rot> {
        if self.segment != location.segment {
            return None;
        }
        let end = u64::from(location.offset) + u64::from(location.len);
        // Where there are no batches at all there may be nothing but zeros.
        let beyond = || Rot {
            segment: self.segment,
            offset: self.end,
            bytes: (end - u64::from(self.end)) as u32,
            reason: RotReason::BatchMissing,
            loss: Loss::Unknown,
        };
        let touched = self.rot.iter().copied().find(|rot| rot.touches(location));
        touched.or_else(|| (end > u64::from(self.end)).then(beyond))
    }
}

/// Bytes of a segment, wherever they come from.
pub trait Source {
    /// These bytes, at most 1 MiB. Those that cannot be read are zeros, and in [`Source::unreadable`].
    fn at(&mut self, range: Range<u32>) -> &[u8];

    /// Pages that could not be read so far.
    fn unreadable(&self) -> &[Range<u32>];
}

/// A segment in memory.
pub struct Memory<'a>(pub &'a [u8]);

impl Source for Memory<'_> {
    fn at(&mut self, range: Range<u32>) -> &[u8] {
        &self.0[range.start as usize..range.end as usize]
    }

    fn unreadable(&self) -> &[Range<u32>] {
        &[]
    }
}

/// A copy of a segment, or of its beginning, of which the disk did not give all.
#[derive(Clone, Debug)]
pub struct Partly {
    /// Its bytes, with zeros for those.
    pub bytes: Bytes,
    /// Pages that could not be read.
    pub unreadable: Vec<Range<u32>>,
}

impl Source for Partly {
    fn at(&mut self, range: Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn unreadable(&self) -> &[Range<u32>] {
        &self.unreadable
    }
}

/// Looks whether all batches of a segment are as they were written. Their numbers have to be dense among themselves.
pub fn check_segment(is: &SegmentIs, source: &mut dyn Source) -> Checked {
    let mut check = Check { is, source, limit: is.size_bytes, generation: is.generation, rot: Vec::new() };
    check.head();
    let (batches, end) = check.all();
    let mut rot = check.rot;
    rot.extend(source.unreadable().iter().map(|page| unreadable(is.id, page)));
    Checked { segment: is.id, bytes: u64::from(is.size_bytes), batches, end, rot }
}

/// The same of its batches before a place, at which one of them ends. Gives what is rotten there.
pub(crate) fn check_before(is: &SegmentIs, source: &mut dyn Source, limit: u32) -> Vec<Rot> {
    let mut check = Check { is, source, limit, generation: is.generation, rot: Vec::new() };
    let (_, end) = check.all();
    if end < limit && check.rot.last().is_none_or(|rot| rot.offset + rot.bytes < limit) {
        check.found(end..limit, RotReason::BatchMissing, Loss::Unknown);
    }
    let mut rot = check.rot;
    // Of the first page it is known already.
    let before = source.unreadable().iter().filter(|page| (FIRST_BATCH_OFFSET..limit).contains(&page.start));
    rot.extend(before.map(|page| unreadable(is.id, page)));
    rot
}

/// Pages that cannot be read. They are zeros to the checksums: what was lost with them is found by these, and where there were zeros
/// they hold.
pub(crate) fn unreadable(segment: SegmentId, page: &Range<u32>) -> Rot {
    let (offset, bytes) = (page.start, page.end - page.start);
    Rot { segment, offset, bytes, reason: RotReason::Unreadable, loss: Loss::Nothing }
}

struct Check<'a> {
    is: &'a SegmentIs,
    source: &'a mut dyn Source,
    /// Nothing from here on is looked at.
    limit: u32,
    generation: Option<u64>,
    rot: Vec<Rot>,
}

impl Check<'_> {
    /// How many batches there are, and where the last one ends.
    fn all(&mut self) -> (u64, u32) {
        let size = self.limit;
        let (mut at, mut end, mut batches, mut next) = (FIRST_BATCH_OFFSET, FIRST_BATCH_OFFSET, 0, None);
        while at < size {
            if let Some(header) = self.header(at).filter(|header| next.is_none_or(|next| header.number == next)) {
                self.batch(&header);
                batches += 1;
                next = Some(header.number + 1);
                at += layout::padded(header.length);
                end = at;
                continue;
            }
            let Some(from) = self.first_byte(at) else { break };
            let mut behind = (from..size).step_by(PAGE_BYTES as usize).filter(|page| *page > at);
            let Some(found) = behind.find(|page| self.header(*page).is_some()) else {
                self.found(from..size, RotReason::Stray, Loss::Unknown);
                break;
            };
            self.found(at..found, RotReason::BatchMissing, Loss::Unknown);
            next = None;
            at = found;
        }
        (batches, end)
    }

    /// The first page. What it says is known otherwise, but for its generation where nobody told.
    fn head(&mut self) {
        let is = self.is;
        let found = SegmentHeader::decode(self.source.at(0..PAGE_BYTES));
        let holds = match found {
            Ok(header) => {
                self.generation = self.generation.or(Some(header.generation));
                (header.shard, header.id, header.size_bytes) == (is.shard, is.id, is.size_bytes)
                    && self.generation == Some(header.generation)
            }
            Err(BadSegment::Damaged | BadSegment::Version(_)) => false,
        };
        if !holds {
            self.found(0..PAGE_BYTES, RotReason::SegmentHeader, Loss::Nothing);
        }
        if self.generation.is_none() {
            let first = FIRST_BATCH_OFFSET..FIRST_BATCH_OFFSET + PAGE_BYTES;
            self.generation = generation_of(self.source.at(first));
        }
    }

    /// The header of a batch that was written at this place.
    fn header(&mut self, at: u32) -> Option<BatchHeader> {
        let header = BatchHeader::decode(self.source.at(at..at + PAGE_BYTES))?;
        let fits = (BATCH_HEADER_BYTES..=BATCH_MAX_BYTES).contains(&header.length)
            && layout::padded(header.length) <= self.limit - at;
        let belongs = Some(header.generation) == self.generation && header.offset == at;
        (fits && belongs && header.durable == header.number.wrapping_sub(1)).then_some(header)
    }

    fn batch(&mut self, header: &BatchHeader) {
        let bytes = self.source.at(header.offset..header.offset + layout::padded(header.length));
        let (segment, rot) = (self.is.id, &mut self.rot);
        look_into(bytes, header, &mut |part| rot.extend(part.rot(segment, header)));
    }

    /// The first page from here on that is not zeros.
    fn first_byte(&mut self, from: u32) -> Option<u32> {
        let mut pages = (from..self.limit).step_by(PAGE_BYTES as usize);
        pages.find(|page| !layout::is_zero(self.source.at(*page..*page + PAGE_BYTES)))
    }

    fn found(&mut self, range: Range<u32>, reason: RotReason, loss: Loss) {
        let bytes = range.end - range.start;
        self.rot.push(Rot { segment: self.is.id, offset: range.start, bytes, reason, loss });
    }
}

/// The generation of a segment by the page of its first batch, where its own page does not say it. At that place only a batch
/// ever begins, so nobody's payload can imitate one there.
pub(crate) fn generation_of(first_batch: &[u8]) -> Option<u64> {
    let header = BatchHeader::decode(first_batch)?;
    (header.offset == FIRST_BATCH_OFFSET).then_some(header.generation)
}

/// A segment's file, read past the page cache where that can be, so that the disk is seen and nobody's pages are evicted.
pub struct FileSource {
    file: File,
    size_bytes: u32,
    buffer: Vec<u8>,
    /// What is in the buffer.
    holds: Range<u32>,
    /// Where that begins in it: what is read past the cache has to lie at a page's boundary.
    at: usize,
    /// What is read goes through the cache, and has no place there.
    evicts: bool,
    unreadable: Vec<Range<u32>>,
    pace: Option<u64>,
    begun: Instant,
    read_bytes: u64,
}

impl FileSource {
    /// Of a file that is as long as a segment. With a pace reading takes a second for so many bytes, at least.
    pub fn open(path: &Path, size_bytes: u32, pace: Option<u64>) -> io::Result<FileSource> {
        let direct = open_past_cache(path)?;
        let evicts = direct.is_none();
        let file = match direct {
            Some(file) => file,
            None => File::open(path)?,
        };
        FileSource::new(file, path, size_bytes, evicts, pace)
    }

    /// The same through the page cache, in which it stays: for who looks at the segment's view next.
    pub fn cached(path: &Path, size_bytes: u32) -> io::Result<FileSource> {
        FileSource::new(File::open(path)?, path, size_bytes, false, None)
    }

    fn new(file: File, path: &Path, size_bytes: u32, evicts: bool, pace: Option<u64>) -> io::Result<FileSource> {
        let found = file.metadata()?.len();
        if found != u64::from(size_bytes) {
            let text = format!("{} has {found} bytes, a segment has {size_bytes}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let buffer = vec![0; READ_BYTES.min(size_bytes as usize) + PAGE_BYTES as usize];
        let at = buffer.as_ptr().align_offset(PAGE_BYTES as usize);
        let (unreadable, begun) = (Vec::new(), Instant::now());
        Ok(FileSource { file, size_bytes, buffer, holds: 0..0, at, evicts, unreadable, pace, begun, read_bytes: 0 })
    }

    fn read(&mut self, from: u32) {
        let end = from.saturating_add(READ_BYTES as u32).min(self.size_bytes);
        let whole = &mut self.buffer[self.at..self.at + (end - from) as usize];
        read_pages(&self.file, from, whole, &mut self.unreadable);
        self.holds = from..end;
        if self.evicts {
            let len = std::num::NonZeroU64::new(u64::from(end - from));
            // Advice: where it is not taken the pages stay, and nothing else is wrong.
            let _ = rustix::fs::fadvise(&self.file, u64::from(from), len, rustix::fs::Advice::DontNeed);
        }
        self.read_bytes += u64::from(end - from);
        if let Some(pace) = self.pace {
            let due = Duration::from_secs_f64(self.read_bytes as f64 / pace.max(1) as f64);
            thread::sleep(due.saturating_sub(self.begun.elapsed()));
        }
    }
}

/// Opens a segment's file for reading past the page cache, if its file system can.
pub(crate) fn open_past_cache(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads pages that lie within a file. Those that cannot be read are zeros, and added to `unreadable`.
pub(crate) fn read_pages(file: &File, from: u32, bytes: &mut [u8], unreadable: &mut Vec<Range<u32>>) {
    if read_all(file, bytes, from).is_ok() {
        return;
    }
    // A page at a time, to know which of them it is.
    for (page, bytes) in (from..).step_by(PAGE_BYTES as usize).zip(bytes.chunks_mut(PAGE_BYTES as usize)) {
        if read_all(file, bytes, page).is_err() {
            bytes.fill(0);
            unreadable.push(page..page + bytes.len() as u32);
        }
    }
}

fn read_all(file: &File, bytes: &mut [u8], from: u32) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], u64::from(from) + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Source for FileSource {
    fn at(&mut self, range: Range<u32>) -> &[u8] {
        if range.start < self.holds.start || range.end > self.holds.end {
            self.read(range.start);
        }
        let from = self.at + (range.start - self.holds.start) as usize;
        &self.buffer[from..from + (range.end - range.start) as usize]
    }

    fn unreadable(&self) -> &[Range<u32>] {
        &self.unreadable
    }
}
