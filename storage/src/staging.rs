//! The staging ring: batches that gather, wait, or are being written, in pooled page-aligned buffers.
//!
//! Invariant of all unsafe code here: the bytes of a buffer are split at the batch's `filled` mark. Below it, behind the
//! room of the header, they never change again and may be viewed; above it, and in the room of the header, only the
//! `Staged` that owns the buffer writes, and nobody else holds a reference. Sealing writes header and padding once,
//! and only then the whole is given to a writer. A buffer goes back into use when its pool holds the only reference.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::cell::RefCell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;

use crate::layout::{self, BATCH_HEADER_BYTES, BatchHeader, RECORD_HEADER_BYTES};
use crate::limits::PAGE_BYTES;
use crate::{RecordHeader, SegmentId};

/// Memory of one batch: page-aligned, zeroed when made, of fixed size.
struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer is plain memory without ties to a thread; who may touch which bytes is the invariant above.
unsafe impl Send for Buffer {}
// SAFETY: as for `Send`; shared references only ever read bytes that no longer change.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(size_bytes: u32) -> Buffer {
        let layout = Layout::from_size_align(size_bytes as usize, PAGE_BYTES as usize)
            .expect("a batch is a whole number of pages, far below the address space");
        assert!(size_bytes > 0, "a batch has at least one page");
        // SAFETY: the layout has a size above zero, as asserted.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Buffer { start, layout }
    }

    /// # Safety
    /// The range lies in the buffer and nobody writes to it while the slice lives.
    unsafe fn bytes(&self, from: u32, to: u32) -> &[u8] {
        debug_assert!(from <= to && to as usize <= self.layout.size());
        // SAFETY: the memory is initialised (zeroed when made) and lives as long as `self`; the rest is asked of the caller.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(from as usize), (to - from) as usize) }
    }

    /// # Safety
    /// `at` and what follows it for the length of `bytes` lie in the buffer, and nobody else reads or writes them.
    unsafe fn put(&self, at: u32, bytes: &[u8]) {
        debug_assert!(at as usize + bytes.len() <= self.layout.size());
        // SAFETY: in bounds and unshared, as asked of the caller; `bytes` is a reference and so cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at as usize), bytes.len());
        }
    }

    /// # Safety
    /// As for [`Buffer::put`], for the range.
    unsafe fn clear(&self, from: u32, to: u32) {
        debug_assert!(from <= to && to as usize <= self.layout.size());
        // SAFETY: in bounds and unshared, as asked of the caller.
        unsafe { std::ptr::write_bytes(self.start.as_ptr().add(from as usize), 0, (to - from) as usize) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: `start` came from the allocator with this very layout and is freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The start of a buffer up to a `filled` mark, as the owner of a [`Bytes`].
struct Filled {
    buffer: Arc<Buffer>,
    filled: u32,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: made only for ranges between the header's room and the filled mark, which do not change again.
        unsafe { self.buffer.bytes(BATCH_HEADER_BYTES, self.filled) }
    }
}

/// A sealed batch on its way to the disk. The memory is page-aligned, its length a whole number of pages, and it stays as
/// it is until this is dropped.
pub struct Batch {
    buffer: Arc<Buffer>,
    len: u32,
}

impl AsRef<[u8]> for Batch {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a sealed batch is not written any more, and its buffer is not used anew while this holds a reference.
        unsafe { self.buffer.bytes(0, self.len) }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Where a batch will lie and which it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    /// Bytes that it may grow to; a whole number of pages.
    pub(crate) room: u32,
}

/// A batch in memory.
pub(crate) struct Staged {
    place: Place,
    seed: u32,
    filled: u32,
    records: u32,
    sealed: bool,
    buffer: Arc<Buffer>,
    /// The last view that was made, from the header's room to where the batch was filled then. Readers get slices of it, so
    /// that a view is allocated once for all records appended in between.
    view: RefCell<Option<Bytes>>,
}

impl Staged {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    /// Bytes of it so far, header included, padding not.
    pub(crate) fn filled(&self) -> u32 {
        self.filled
    }

    /// Bytes that records may still take.
    pub(crate) fn room(&self) -> u32 {
        if self.sealed { 0 } else { self.place.room - self.filled }
    }

    /// Copies a record behind the others and gives the offset of its payload in the segment. The caller has seen that
    /// there is [`Staged::room`].
    #[inline]
    pub(crate) fn push(&mut self, header: &RecordHeader, payload: &[u8]) -> u32 {
        let total = layout::record_bytes(payload.len());
        assert!(total <= self.room() as usize, "a record was pushed into a batch without room for it");
        let offset = self.place.offset + self.filled;
        let head = layout::encode_record(header, payload, self.seed, offset);
        let at = self.filled + RECORD_HEADER_BYTES;
        let end = at + payload.len() as u32;
        let next = self.filled + total as u32;
        // SAFETY: all of it lies between `filled` and the room of the batch, as asserted; nobody else touches that range.
        unsafe {
            self.buffer.put(self.filled, &head);
            self.buffer.put(at, payload);
            self.buffer.clear(end, next);
        }
        self.filled = next;
        self.records += 1;
        offset + RECORD_HEADER_BYTES
    }

    /// A view of bytes of the segment that this batch holds.
    pub(crate) fn view(&self, offset: u32, len: u32) -> Option<Bytes> {
        let from = offset.checked_sub(self.place.offset + BATCH_HEADER_BYTES)?;
        let to = from.checked_add(len)?;
        if to > self.filled - BATCH_HEADER_BYTES {
            return None;
        }
        let mut view = self.view.borrow_mut();
        if view.as_ref().is_none_or(|view| view.len() < to as usize) {
            let filled = Filled { buffer: Arc::clone(&self.buffer), filled: self.filled };
            *view = Some(Bytes::from_owner(filled));
        }
        view.as_ref().map(|view| view.slice(from as usize..to as usize))
    }

    /// Bytes that it takes in its segment, padding included.
    pub(crate) fn padded(&self) -> u32 {
        layout::padded(self.filled)
    }

    /// Writes header and padding and gives the whole to be written. Nothing may be pushed afterwards.
    pub(crate) fn seal(&mut self, generation: u64) -> Batch {
        assert!(!self.sealed, "a batch is written once");
        self.sealed = true;
        let head = BatchHeader {
            number: self.place.number,
            durable: self.place.number - 1,
            generation,
            offset: self.place.offset,
            length: self.filled,
            records: self.records,
        }
        .encode();
        let len = self.padded();
        // SAFETY: the header's room and what lies above `filled` are written by nobody else and not viewed by anyone.
        unsafe {
            self.buffer.put(0, &head);
            self.buffer.clear(self.filled, len);
        }
        Batch { buffer: Arc::clone(&self.buffer), len }
    }
}

/// All buffers of a log. Made on demand up to a bound, then used anew.
pub(crate) struct Pool {
    buffer_bytes: u32,
    max: usize,
    made: usize,
    /// Not in use. The last one returned is used first, for it is still in the cache.
    free: Vec<Arc<Buffer>>,
    /// Written, but perhaps still viewed.
    viewed: Vec<Arc<Buffer>>,
}

impl Pool {
    pub(crate) fn new(buffer_bytes: u32, max: usize) -> Pool {
        Pool { buffer_bytes, max, made: 0, free: Vec::with_capacity(max), viewed: Vec::with_capacity(max) }
    }

    /// How many batches could begin now. Views may end on other threads, so it can be more by the time one does.
    pub(crate) fn available(&self) -> usize {
        let unviewed = self.viewed.iter().filter(|buffer| Arc::strong_count(buffer) == 1).count();
        self.max - self.made + self.free.len() + unviewed
    }

    /// Begins a batch, or not if all buffers are in use.
    pub(crate) fn begin(&mut self, place: Place) -> Option<Staged> {
        assert!(place.room <= self.buffer_bytes && place.room >= BATCH_HEADER_BYTES);
        let buffer = self.take()?;
        Some(Staged {
            place,
            seed: layout::record_seed(place.number),
            filled: BATCH_HEADER_BYTES,
            records: 0,
            sealed: false,
            buffer,
            view: RefCell::new(None),
        })
    }

    /// Takes the buffer of a batch back. It is used anew once nobody views it any more.
    pub(crate) fn end(&mut self, staged: Staged) {
        let Staged { mut buffer, view, .. } = staged;
        drop(view);
        if Arc::get_mut(&mut buffer).is_some() {
            self.free.push(buffer);
        } else {
            self.viewed.push(buffer);
        }
    }

    fn take(&mut self) -> Option<Arc<Buffer>> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        // `get_mut` and not the count: it orders what a reader on another thread did before what is written here next.
        if let Some(at) = self.viewed.iter_mut().position(|buffer| Arc::get_mut(buffer).is_some()) {
            return Some(self.viewed.swap_remove(at));
        }
        if self.made == self.max {
            return None;
        }
        self.made += 1;
        Some(Arc::new(Buffer::new(self.buffer_bytes)))
    }
}
