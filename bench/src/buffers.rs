//! Buffers that the kernel picks for what it receives, shared by all connections of a ring.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering};
use std::{io, slice};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// The only group of buffers of a ring.
pub(crate) const GROUP: u16 = 0;

/// The kernel wants the entries on a page of their own.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A ring of buffers: the kernel takes them from its head, and they are given back at its tail. Its memory is never freed,
/// for the kernel may write to it for a while after a ring is closed, and a ring here lives as long as its process.
pub(crate) struct Buffers {
    entries: *mut BufRingEntry,
    data: *mut u8,
    count: u16,
    size_bytes: u32,
    tail: u16,
}

/// A buffer with what was received in it. It goes back by [`Buffers::give_back`].
#[must_use = "a buffer that is not given back is lost"]
pub(crate) struct Filled {
    id: u16,
    len: u32,
}

impl Buffers {
    /// `count` (a power of two) buffers of `size_bytes`.
    pub(crate) fn new(count: u16, size_bytes: u32) -> Buffers {
        assert!(count.is_power_of_two() && size_bytes > 0, "the kernel asks for it");
        let entries = pages(usize::from(count) * size_of::<BufRingEntry>()).cast();
        let data = pages(usize::from(count) * size_bytes as usize);
        Buffers { entries, data, count, size_bytes, tail: 0 }
    }

    /// Gives all buffers to the kernel.
    pub(crate) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the entries are page-aligned memory of `count` entries that is never freed.
        unsafe { submitter.register_buf_ring_with_flags(self.entries as u64, self.count, GROUP, 0)? };
        for id in 0..self.count {
            self.offer(id);
        }
        self.publish();
        Ok(())
    }

    /// What a completion says that it received.
    #[inline]
    pub(crate) fn filled(&self, id: u16, len: u32) -> Filled {
        assert!(id < self.count && len <= self.size_bytes, "the kernel names buffers that it was given");
        Filled { id, len }
    }

    /// The bytes received.
    #[inline]
    pub(crate) fn bytes(&self, filled: &Filled) -> &[u8] {
        // SAFETY: the buffer lies in `data` (checked in `filled`, the only maker), which is initialised, and the kernel does
        // not write to it between the completion, which gave it to us, and `give_back`, which takes the `Filled`.
        unsafe { slice::from_raw_parts(self.at(filled.id), filled.len as usize) }
    }

    /// Lets the kernel use the buffer again once [`Buffers::publish`] was called.
    #[inline]
    pub(crate) fn give_back(&mut self, filled: Filled) {
        self.offer(filled.id);
    }

    /// Shows the kernel what was given back.
    #[inline]
    pub(crate) fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, in a field that the setters of `offer` do not touch; it is 2-aligned and
        // lives as long as the entries.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    #[inline]
    fn offer(&mut self, id: u16) {
        let address = self.at(id) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is below `count`, and the entry is behind the tail and so not the kernel's: no more buffers than
        // `count` are ever given.
        let entry = unsafe { &mut *self.entries.add(index) };
        entry.set_addr(address);
        entry.set_len(self.size_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline]
    fn at(&self, id: u16) -> *mut u8 {
        // SAFETY: `id` is below `count`, so the result lies in `data`.
        unsafe { self.data.add(usize::from(id) * self.size_bytes as usize) }
    }
}

fn pages(bytes: usize) -> *mut u8 {
    vec![Page([0; 4096]); bytes.div_ceil(4096)].leak().as_mut_ptr().cast()
}
