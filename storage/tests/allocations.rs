//! Appending and writing allocate nothing once the buffers are there.

// A failure of a test's own set-up is a failure of the test.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Disk, Log, LogOptions, RecordHeader, RecordKind, Wanted};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything to the system's allocator; the counter is a plain cell of the thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc`, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn appending_and_writing_allocate_nothing_in_steady_state() {
    let options = LogOptions { segment_size: 4 << 20, ..LogOptions::new(0) };
    let mut disk = RamDisk::new(0, 1);
    let (mut log, _) = Log::open(options, &mut disk, &mut |_, _, _| {}).unwrap();
    while let Some(Wanted { id, .. }) = log.segment_wanted() {
        let mapping = disk.create(id, options.segment_size).unwrap();
        log.segment_ready(id, mapping);
    }
    let header = RecordHeader { kind: RecordKind::Entry, partition: 1, term: 1, index: 1 };
    let payload = [7; 200];
    let round = |log: &mut Log| {
        let mut writing = None;
        for _ in 0..100 {
            log.append(&header, &payload).unwrap();
            if writing.is_none() {
                writing = log.next_write();
            }
        }
        let write = writing.take().unwrap();
        log.written(write.id);
        let write = log.next_write().unwrap();
        log.written(write.id);
    };
    (0..3).for_each(|_| round(&mut log));
    let before = ALLOCATIONS.get();
    (0..50).for_each(|_| round(&mut log));
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(log.durable().0, 5_300);
}
