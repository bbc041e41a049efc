//! Buffers that the kernel picks for what it receives, so that an idle connection holds none. They belong to one ring.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::{io, mem, slice};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// The only group of buffers of a ring.
pub(super) const GROUP: u16 = 0;

/// Where buffers of pages are aligned to.
const PAGE_BYTES: usize = 4096;

/// A ring of buffers: the kernel takes them from its head, and they are given back at its tail.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    data: NonNull<u8>,
    count: u16,
    size_bytes: u32,
    tail: u16,
    /// Whether the kernel knows of it, and may so write to it until the ring is gone.
    registered: bool,
}

/// A buffer with what was received in it. It goes back by [`Buffers::give_back`].
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost"]
pub(super) struct Filled {
    id: u16,
    len: u32,
}

impl Buffers {
    /// `count` buffers of `size_bytes`, all with the kernel after [`Buffers::register`].
    pub(super) fn new(count: u16, size_bytes: u32) -> Buffers {
        assert!(count.is_power_of_two() && size_bytes > 0, "the kernel asks for it");
        let entries = allocate(Self::entries_layout(count)).cast();
        let data = allocate(Self::data_layout(count, size_bytes));
        Buffers { entries, data, count, size_bytes, tail: 0, registered: false }
    }

    /// Gives all buffers to the kernel.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the entries are page-aligned memory of `count` entries. They are freed only if registration failed; see
        // `drop`.
        unsafe { submitter.register_buf_ring_with_flags(self.entries.as_ptr() as u64, self.count, GROUP, 0)? };
        self.registered = true;
        for id in 0..self.count {
            self.offer(id);
        }
        Ok(())
    }

    /// What a completion says that it received: `id` and `len` are the kernel's.
    #[inline]
    pub(super) fn filled(&self, id: u16, len: u32) -> Filled {
        assert!(id < self.count && len <= self.size_bytes, "the kernel names buffers that it was given");
        Filled { id, len }
    }

    /// The bytes received.
    #[inline]
    pub(super) fn bytes(&self, filled: &Filled) -> &[u8] {
        // SAFETY: the buffer lies in `data` (checked in `filled`, the only maker), it is initialised (zeroed when made), and
        // the kernel does not write to it between the completion, which gave it to us, and `give_back`, which takes the
        // `Filled` by value.
        unsafe { slice::from_raw_parts(self.at(filled.id), filled.len as usize) }
    }

    /// Lets the kernel use the buffer again.
    #[inline]
    pub(super) fn give_back(&mut self, filled: Filled) {
        self.offer(filled.id);
    }

    fn offer(&mut self, id: u16) {
        let address = self.at(id) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is below `count`; entries between the kernel's head and the tail are the kernel's, and this one is
        // behind the tail, for no more buffers than `count` are ever given.
        let entry = unsafe { &mut *self.entries.as_ptr().add(index) };
        entry.set_addr(address);
        entry.set_len(self.size_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, in a field that neither `set_addr`, `set_len` nor `set_bid` touches; it is
        // 2-aligned and lives as long as the entries.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    fn at(&self, id: u16) -> *mut u8 {
        // SAFETY: `id` is below `count`, so the result lies in `data`.
        unsafe { self.data.as_ptr().add(usize::from(id) * self.size_bytes as usize) }
    }

    fn entries_layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * mem::size_of::<BufRingEntry>(), PAGE_BYTES)
            .expect("at most a mebibyte, aligned to a page")
    }

    fn data_layout(count: u16, size_bytes: u32) -> Layout {
        Layout::from_size_align(usize::from(count) * size_bytes as usize, PAGE_BYTES)
            .expect("far below the address space")
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.registered {
            // The kernel ends a closed ring in its own time and may write here until then: at the end of a process the memory
            // is better leaked.
            return;
        }
        // SAFETY: both were allocated in `new` with these layouts, and the kernel does not know them.
        unsafe {
            std::alloc::dealloc(self.entries.as_ptr().cast(), Self::entries_layout(self.count));
            std::alloc::dealloc(self.data.as_ptr(), Self::data_layout(self.count, self.size_bytes));
        }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layouts above have a size above zero, for `new` asserts a count and a size above zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
}
