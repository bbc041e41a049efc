//! Segments as files: `DIR/shard-N/NNNNNNNNNN.seg`. Its calls block: they belong at the start or on a background thread.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use crate::layout::{self, SegmentHeader};
use crate::leftovers::Leftovers;
use crate::limits::{LEFTOVERS_MAX, PAGE_BYTES};
use crate::look::{PutAside, put_aside_in};
use crate::scrub::{self, FileSource, Partly, SegmentIs};
use crate::unlinked::Unlinked;
use crate::{Arriving, Disk, Position, SegmentId, end, mapping};

/// Zeros are written in pieces of this size.
pub const ZEROS_BYTES: usize = 256 << 10;

/// And given to the disk at the latest when so many of them are written: with all of a segment written at its end every flush of the
/// log waited for 64 MiB.
const WRITE_BACK_BYTES: u64 = 1 << 20;

/// Files of checkpoints: the two that are kept, and one that is being written.
const CHECKPOINT_FILES: usize = 3;

/// The file of a checkpoint is made shorter only where it has more than this beyond what was written to it.
const CUT_MIN_BYTES: u64 = 256 << 10;

/// What the file of a checkpoint that is being written ends with.
const CHECKPOINT_TMP: &str = ".ckpt.tmp";

/// What the names of damaged files that were put aside end with: of spare segments, and of checkpoints.
pub(crate) const SEGMENT_ASIDE: &str = ".seg.bad";
pub(crate) const CHECKPOINT_ASIDE: &str = ".ckpt.bad";

/// What a start reads of a segment if nothing in it is gone through: its header, and where its first batch would be.
const SEGMENT_LOOK_BYTES: u64 = 2 * PAGE_BYTES as u64;

/// The number in the name of a segment's file has so many digits.
const SEGMENT_DIGITS: usize = 10;

/// The file of the mark of a clean end.
pub(crate) const END: &str = "end";

/// The segment files of one shard. A clone is another handle of the same files, to make segments on another thread:
/// [`FileDisk::create_segment`].
#[derive(Clone, Debug)]
pub struct FileDisk {
    directory: PathBuf,
    shard: u16,
    leftovers: Arc<Leftovers>,
    unlinked: Unlinked,
}

impl FileDisk {
    /// The files of a shard in a data directory. Makes its directory if it is not there. What a crash left of segments that were
    /// being made is among the [leftovers](FileDisk::leftovers): to remove one takes up to 50 ms, for which no start waits. What a start
    /// reads of every log is asked of the disk, so that it comes while other things are done.
    pub fn open(data: &Path, shard: u16) -> io::Result<FileDisk> {
        let directory = data.join(format!("shard-{shard}"));
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // A process that was killed in between may have made names that no directory keeps.
        sync_directory(data)?;
        let disk = FileDisk { directory, shard, leftovers: Arc::default(), unlinked: Unlinked::default() };
        let mut expected = Vec::new();
        for entry in fs::read_dir(&disk.directory)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("tmp") if path.to_str().is_some_and(|path| path.ends_with(CHECKPOINT_TMP)) => {
                    disk.keep_as_reserve(&path)?;
                }
                Some("tmp") if is_segment_tmp(&path) && disk.leftovers.count() < LEFTOVERS_MAX => {
                    disk.leftovers.note(&path);
                }
                Some("tmp") => disk.discard(&path),
                Some("seg") => expected.push((NonZero::new(SEGMENT_LOOK_BYTES), path)),
                Some("ckpt") => expected.push((None, path)),
                _ => {}
            }
        }
        // In the order in which a start reads them: checkpoints first, and the newest first.
        expected.sort_unstable_by(|(a, path), (b, other)| a.cmp(b).then_with(|| other.cmp(path)));
        expect(expected);
        sync_directory(&disk.directory)?;
        Ok(disk)
    }

    /// Makes a segment: see [`Disk::create`]. `pause` is asked after each piece of [`ZEROS_BYTES`]: if it says for how long, the piece
    /// is given to the disk now and so long nothing is done, so that the writes of a log beside it do not wait for all of them.
    pub fn create_segment(
        &self,
        id: SegmentId,
        size_bytes: u32,
        mut pause: impl FnMut() -> Option<Duration>,
    ) -> io::Result<Bytes> {
        let (path, tmp) = self.names_for(id)?;
        let made = self.unlinked.with_space(|| self.fill(&tmp, id, size_bytes, &mut pause));
        let made = made.and_then(|()| fs::rename(&tmp, &path));
        // What was allocated is given back, or a full disk would stay so.
        made.inspect_err(|_| self.discard(&tmp))?;
        // Nobody was given it, so that it can be made again.
        sync_directory(&self.directory).and_then(|()| self.map(id, true)).inspect_err(|_| self.discard(&path))
    }

    /// Makes a segment of another one's file: see [`Disk::recycle`], and [`FileDisk::create_segment`] about `pause`.
    pub fn recycle_segment(
        &self,
        old: SegmentId,
        used: u32,
        id: SegmentId,
        size_bytes: u32,
        pause: impl FnMut() -> Option<Duration>,
    ) -> io::Result<Bytes> {
        let was = self.path(old);
        // Its old name goes first: a crash leaves a file that goes after the next start.
        let named = self.names_for(id).and_then(|(path, tmp)| fs::rename(&was, &tmp).map(|()| (path, tmp)));
        let (path, tmp) = named.inspect_err(|_| self.discard(&was))?;
        sync_directory(&self.directory)
            .and_then(|()| self.overwrite(&tmp, used, id, size_bytes, pause))
            .and_then(|()| fs::rename(&tmp, &path))
            .inspect_err(|_| self.discard(&tmp))?;
        // Nobody was given it, so that it can be made again.
        sync_directory(&self.directory).and_then(|()| self.map(id, true)).inspect_err(|_| self.discard(&path))
    }

    /// The name of a segment that is to be made, and the one that its file has until it is whole.
    fn names_for(&self, id: SegmentId) -> io::Result<(PathBuf, PathBuf)> {
        let path = self.path(id);
        let tmp = path.with_extension("tmp");
        // What was left of one that nobody was given would be taken for it later.
        for left in [&path, &tmp] {
            self.leftovers.take(left, |left| self.remove_file(left)).unwrap_or(Ok(()))?;
        }
        // A segment that is there is never replaced, whatever asked for it.
        if path.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", path.display())));
        }
        Ok((path, tmp))
    }

    /// Removes a segment: see [`Disk::remove`]. If it fails it is among the [leftovers](FileDisk::leftovers). What it takes on the disk is
    /// given back later: [`FileDisk::unlinked`].
    pub fn remove_segment(&self, id: SegmentId) -> io::Result<()> {
        let path = self.path(id);
        // One that does not open gives its bytes back at once.
        let file = self.file(id).ok();
        self.remove_file(&path).inspect_err(|_| self.leftovers.note(&path))?;
        file.into_iter().for_each(|file| self.unlinked.push(file));
        Ok(())
    }

    /// What was removed and still takes space. Whoever finds none here has it give that back.
    pub fn unlinked(&self) -> &Unlinked {
        &self.unlinked
    }

    /// Has what is removed here with what is removed of others of the same disk.
    #[must_use]
    pub fn with_unlinked(self, unlinked: &Unlinked) -> FileDisk {
        FileDisk { unlinked: unlinked.clone(), ..self }
    }

    /// How many files nobody needs that could not be removed, or that a start has found.
    pub fn leftovers(&self) -> usize {
        self.leftovers.count()
    }

    /// Tries again to remove each file that could not be, and says how that went. One that is gone is none of them any more.
    pub fn remove_leftovers(&self) -> Vec<(PathBuf, io::Result<()>)> {
        let again = |path: PathBuf| {
            let removed = self.leftovers.take(&path, |path| self.remove_file(path))?;
            Some((path, removed))
        };
        self.leftovers.paths().into_iter().filter_map(again).collect()
    }

    /// Removes a file that nobody needs, now or later.
    fn discard(&self, path: &Path) {
        if self.remove_file(path).is_err() {
            self.leftovers.note(path);
        }
    }

    /// It is gone for good when this returns, whoever removed it.
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        sync_directory(&self.directory)
    }

    /// Begins the file of a checkpoint, under a name by which it does not count: a reserve becomes it, if there is one.
    pub fn begin_checkpoint(&self, number: u64) -> io::Result<File> {
        let tmp = self.checkpoint_tmp(number);
        let reserve = self.reserves().into_iter().find(|reserve| reserve.exists());
        match reserve {
            Some(reserve) => {
                fs::rename(reserve, &tmp)?;
                OpenOptions::new().write(true).open(tmp)
            }
            None => OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(tmp),
        }
    }

    /// Keeps so many bytes of the disk for the next checkpoint, so that it can be written where no other space is left: then what
    /// it lets go of is space again. Before there are two, which takes two of them, it is kept for these too. Of an open log: what
    /// does not hold is set aside then.
    pub fn reserve_checkpoint(&self, size_bytes: u64) -> io::Result<()> {
        let mut numbers = self.checkpoint_numbers()?;
        numbers.sort_unstable();
        // A crash may leave the one before them, whose file was to become a reserve.
        let needless = numbers.len().saturating_sub(CHECKPOINT_FILES - 1);
        self.release_checkpoints(&numbers[..needless])?;
        let wanted = CHECKPOINT_FILES - (numbers.len() - needless);
        let (there, free): (Vec<_>, Vec<_>) = self.reserves().into_iter().partition(|reserve| reserve.exists());
        self.unlinked
            .with_space(|| there.iter().chain(&free).take(wanted).try_for_each(|reserve| allocate(reserve, size_bytes)))
    }

    /// Puts a checkpoint, all of which is written to its file, in its place: synced, read back from the disk and verified,
    /// renamed, the directory synced. Those with numbers below `keep_from` go; reserves are made of them.
    pub fn finish_checkpoint(&self, file: &File, number: u64, keep_from: u64) -> io::Result<()> {
        let tmp = self.checkpoint_tmp(number);
        end_file(file)?;
        file.sync_all()?;
        // What is read next comes from the disk and not from the cache, where the kernel does as it is asked.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        crate::verify_checkpoint(&fs::read(&tmp)?, self.shard, number).map_err(io::Error::other)?;
        fs::rename(&tmp, self.checkpoint_path(number))?;
        sync_directory(&self.directory)?;
        let mut old = self.checkpoint_numbers()?;
        old.retain(|old| *old < keep_from);
        self.release_checkpoints(&old)
    }

    /// Makes reserves of checkpoints that nobody needs.
    fn release_checkpoints(&self, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            self.keep_as_reserve(&self.checkpoint_path(*number))?;
        }
        if numbers.is_empty() { Ok(()) } else { sync_directory(&self.directory) }
    }

    /// Gives up a checkpoint that was begun.
    pub fn abandon_checkpoint(&self, number: u64) {
        // What cannot be renamed now is at the next start.
        let _ = self.keep_as_reserve(&self.checkpoint_tmp(number));
    }

    /// Damaged files that starts have put aside.
    pub fn put_aside(&self) -> io::Result<Vec<PutAside>> {
        put_aside_in(&self.directory)
    }

    /// Puts a damaged file aside, under a name that none has yet: what was put aside before is not lost.
    fn move_aside(&self, path: &Path, ending: &str) -> io::Result<()> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let first = self.directory.join(format!("{stem}{ending}"));
        let others = (2..).map(|number| self.directory.join(format!("{stem}.{number}{ending}")));
        let free = std::iter::once(first).chain(others).find(|name| !name.exists());
        fs::rename(path, free.expect("there are more numbers than files"))?;
        sync_directory(&self.directory)
    }

    /// Where bytes are kept for checkpoints.
    fn reserves(&self) -> [PathBuf; CHECKPOINT_FILES] {
        std::array::from_fn(|number| self.directory.join(format!("{number}.reserve")))
    }

    /// Makes a reserve of a file that is not needed, or removes it if there are enough. What stands in it is written over: no
    /// payload ever does.
    fn keep_as_reserve(&self, path: &Path) -> io::Result<()> {
        match self.reserves().into_iter().find(|reserve| !reserve.exists()) {
            Some(reserve) => fs::rename(path, reserve),
            None => fs::remove_file(path),
        }
    }

    /// Leaves the mark of a clean end, [`Log::end`](crate::Log::end), for the next start.
    pub fn mark_end(&self, position: Position) -> io::Result<()> {
        crate::write_atomic(&self.directory, END, &end::encode(position, self.shard))
    }

    fn checkpoint_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:010}.ckpt"))
    }

    fn checkpoint_tmp(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:010}{CHECKPOINT_TMP}"))
    }

    fn checkpoint_numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".ckpt"));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// A segment's file, open for writing: for a ring that writes batches on its own.
    pub fn file(&self, id: SegmentId) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(id))
    }

    /// Where a segment's file is.
    pub fn path(&self, id: SegmentId) -> PathBuf {
        self.directory.join(format!("{:010}.seg", id.0))
    }

    /// The bytes of a segment as the disk has them, read at this pace (bytes a second): for
    /// [`check_segment`](crate::check_segment).
    pub fn source(&self, is: &SegmentIs, pace: Option<u64>) -> io::Result<FileSource> {
        FileSource::open(&self.path(is.id), is.size_bytes, pace)
    }

    /// The same through the page cache, in which they stay.
    pub fn cached_source(&self, is: &SegmentIs) -> io::Result<FileSource> {
        FileSource::cached(&self.path(is.id), is.size_bytes)
    }

    /// The beginning of a segment, as far as it can be read through the page cache: what a view of it shows is just that.
    fn copy(&self, id: SegmentId, len: usize) -> io::Result<Partly> {
        let (mut bytes, mut unreadable) = (vec![0; len], Vec::new());
        let file = self.with_bytes(File::open(self.path(id))?, id, len as u64)?;
        for (piece, from) in bytes.chunks_mut(ZEROS_BYTES).zip((0..).step_by(ZEROS_BYTES)) {
            scrub::read_pages(&file, from, piece, &mut unreadable);
        }
        Ok(Partly { bytes: bytes.into(), unreadable })
    }

    /// The file of a segment, if it is as long as that: of one that was cut off it is not pages that are lost.
    fn with_bytes(&self, file: File, id: SegmentId, bytes: u64) -> io::Result<File> {
        let found = file.metadata()?.len();
        if found < bytes {
            let text = format!("{} has {found} bytes", self.path(id).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(file)
    }

    fn map(&self, id: SegmentId, populate: bool) -> io::Result<Bytes> {
        mapping::map(&File::open(self.path(id))?, populate)
    }

    /// Zeros are really written: blocks that are only reserved would be turned into written ones at the first write of each,
    /// with a journal commit in every flush, and a sparse file would answer a full disk with SIGBUS.
    fn fill(
        &self,
        tmp: &Path,
        id: SegmentId,
        size_bytes: u32,
        pause: impl FnMut() -> Option<Duration>,
    ) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(tmp)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, u64::from(size_bytes)) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        self.fill_with_zeros(&file, size_bytes, id, size_bytes, pause)
    }

    /// The blocks are there and in the page cache already, which makes it several times cheaper than a new file.
    fn overwrite(
        &self,
        tmp: &Path,
        used: u32,
        id: SegmentId,
        size_bytes: u32,
        pause: impl FnMut() -> Option<Duration>,
    ) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(tmp)?;
        if file.metadata()?.len() != u64::from(size_bytes) {
            return Err(io::Error::other(format!("{} has another size than a segment", tmp.display())));
        }
        self.fill_with_zeros(&file, used.min(size_bytes), id, size_bytes, pause)
    }

    fn fill_with_zeros(
        &self,
        file: &File,
        zeros_bytes: u32,
        id: SegmentId,
        size_bytes: u32,
        mut pause: impl FnMut() -> Option<Duration>,
    ) -> io::Result<()> {
        let mut behind = 0;
        write_zeros(file, u64::from(zeros_bytes), |from, len| {
            let (pause, end) = (pause(), from + len);
            if pause.is_some() || end - behind >= WRITE_BACK_BYTES {
                mapping::begin_write_back(file, behind, end - behind)?;
                behind = end;
            }
            pause.into_iter().for_each(thread::sleep);
            Ok(())
        })?;
        let generation = random()?;
        let header = SegmentHeader { shard: self.shard, id, size_bytes, generation };
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()
    }
}

impl Disk for FileDisk {
    fn list(&mut self) -> io::Result<Vec<SegmentId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            if let Some(id) =
                number.filter(|number| number.len() == SEGMENT_DIGITS).and_then(|number| number.parse().ok())
            {
                ids.push(SegmentId(id));
            }
        }
        Ok(ids)
    }

    fn create(&mut self, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.create_segment(id, size_bytes, || None)
    }

    fn recycle(&mut self, old: SegmentId, used: u32, id: SegmentId, size_bytes: u32) -> io::Result<Bytes> {
        self.recycle_segment(old, used, id, size_bytes, || None)
    }

    fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.remove_segment(id)
    }

    fn open(&mut self, id: SegmentId) -> io::Result<Bytes> {
        self.map(id, false)
    }

    fn read_ahead(&mut self, segments: Vec<(SegmentId, Bytes)>) -> io::Result<Arriving> {
        let disk = self.clone();
        Arriving::start(segments, move |id, view| {
            // A file that does not even open gives nothing of itself.
            disk.copy(id, view.len()).unwrap_or_else(|_| Partly {
                bytes: vec![0; view.len()].into(),
                unreadable: std::iter::once(0..view.len() as u32).collect(),
            })
        })
    }

    fn read_in(&mut self, id: SegmentId, view: &Bytes) -> io::Result<Option<Partly>> {
        if mapping::read_in(view).is_ok() { Ok(None) } else { self.copy(id, view.len()).map(Some) }
    }

    fn read_pages(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Vec<Range<u32>>> {
        let file = self.with_bytes(File::open(self.path(id))?, id, u64::from(from) + bytes.len() as u64)?;
        let mut unreadable = Vec::new();
        scrub::read_pages(&file, from, bytes, &mut unreadable);
        Ok(unreadable)
    }

    fn read_stored(&mut self, id: SegmentId, from: u32, bytes: &mut [u8]) -> io::Result<Option<Vec<Range<u32>>>> {
        let Some(file) = scrub::open_past_cache(&self.path(id))? else { return Ok(None) };
        let file = self.with_bytes(file, id, u64::from(from) + bytes.len() as u64)?;
        // What is read so has to lie at a page's boundary in memory, too.
        let mut buffer = vec![0; bytes.len() + PAGE_BYTES as usize];
        let at = buffer.as_ptr().align_offset(PAGE_BYTES as usize);
        let (whole, mut unreadable) = (&mut buffer[at..at + bytes.len()], Vec::new());
        scrub::read_pages(&file, from, whole, &mut unreadable);
        bytes.copy_from_slice(whole);
        Ok(Some(unreadable))
    }

    fn write(&mut self, id: SegmentId, offset: u32, bytes: &[u8]) -> io::Result<()> {
        write_durable(&self.file(id)?, u64::from(offset), bytes)
    }

    fn write_each(&mut self, id: SegmentId, writes: &[(u32, &[u8])]) -> io::Result<()> {
        if let [(offset, bytes)] = writes {
            return self.write(id, *offset, bytes);
        }
        let file = self.file(id)?;
        writes.iter().try_for_each(|(offset, bytes)| file.write_all_at(bytes, u64::from(*offset)))?;
        file.sync_data()
    }

    fn sync(&mut self, id: SegmentId) -> io::Result<()> {
        self.file(id)?.sync_data()
    }

    fn set_aside(&mut self, id: SegmentId) -> io::Result<()> {
        let path = self.path(id);
        // No batch was ever in it: one of them is enough for whoever looks into the disk.
        if self.put_aside()?.iter().any(|aside| aside.name.ends_with(SEGMENT_ASIDE)) {
            return self.remove_file(&path);
        }
        self.move_aside(&path, SEGMENT_ASIDE)
    }

    fn checkpoints(&mut self) -> io::Result<Vec<u64>> {
        self.checkpoint_numbers()
    }

    fn read_checkpoint(&mut self, number: u64) -> io::Result<Bytes> {
        mapping::read_copy(&mut File::open(self.checkpoint_path(number))?)
    }

    fn set_aside_checkpoint(&mut self, number: u64) -> io::Result<()> {
        self.move_aside(&self.checkpoint_path(number), CHECKPOINT_ASIDE)
    }

    fn read_end(&mut self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.directory.join(END)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(other.map(Some)?.filter(|mark| !layout::is_zero(mark))),
        }
    }

    /// Zeros written over it take one flush, and its removal two commits of the file system's journal.
    fn remove_end(&mut self) -> io::Result<()> {
        let path = self.directory.join(END);
        let file = match OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // One that cannot be written to can still be removed.
            Err(_) => {
                fs::remove_file(&path)?;
                return sync_directory(&self.directory);
            }
            Ok(file) => file,
        };
        write_durable(&file, 0, &[0; end::END_BYTES])
    }
}

/// Whether a file is a segment that was being made.
fn is_segment_tmp(path: &Path) -> bool {
    path.file_stem()
        .is_some_and(|stem| stem.len() == SEGMENT_DIGITS && stem.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// Asks the disk for the first bytes of files, or for all of them, and does not wait: neither for them nor for the kernel, which first
/// finds memory for all that is asked for.
fn expect(files: Vec<(Option<NonZero<u64>>, PathBuf)>) {
    let ask = move || {
        for (bytes, path) in files {
            // What cannot be asked for is read when it is wanted, and whoever does so says then what is wrong.
            if let Ok(file) = File::open(path) {
                let _ = rustix::fs::fadvise(&file, 0, bytes, rustix::fs::Advice::WillNeed);
            }
        }
    };
    // Without the thread nothing is asked for.
    let _ = thread::Builder::new().name("expect".to_owned()).spawn(ask);
}

/// Makes the disk keep at least so many bytes for a file, which is not longer by that.
fn allocate(path: &Path, size_bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size_bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            let there = file.seek(SeekFrom::End(0))?;
            write_zeros(&file, size_bytes.saturating_sub(there), |_, _| Ok(()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Behind what was written to a file zeros are written over what stood there before. It is made shorter only if that is much, for
/// then it has no bytes of the disk kept any more.
fn end_file(mut file: &File) -> io::Result<()> {
    let (end, length) = (file.stream_position()?, file.metadata()?.len());
    if length > 4 * end + CUT_MIN_BYTES { file.set_len(end) } else { write_zeros(file, length - end, |_, _| Ok(())) }
}

/// Writes zeros from where the file stands on, and calls `after` with where each piece of them begins, counted from there, and its
/// length.
fn write_zeros(mut file: &File, size_bytes: u64, mut after: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    let mut done = 0;
    while done < size_bytes {
        let piece = (size_bytes - done).min(ZEROS_BYTES as u64);
        file.write_all(&zeros[..piece as usize])?;
        after(done, piece)?;
        done += piece;
    }
    Ok(())
}

/// Writes and flushes in one call where the kernel can, in two where it cannot.
fn write_durable(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = [IoSlice::new(&bytes[done..])];
        match rustix::io::pwritev2(file, &rest, offset + done as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                file.write_all_at(&bytes[done..], offset + done as u64)?;
                return file.sync_data();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Names that were made, renamed or removed in a directory are on stable storage when this returns.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A number that nobody can guess.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
