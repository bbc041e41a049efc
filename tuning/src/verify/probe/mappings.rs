//! How many mappings a process can make.

#![forbid(unsafe_code)]

use std::io;

use memmap2::{Mmap, MmapMut};

/// More are not tried: each costs kernel memory.
const MOST: usize = 150_000;

/// One byte is one page.
const LENGTH: usize = 1;

/// Neighbours with other rights are not merged into one.
#[expect(dead_code, reason = "held so that they stay mapped")]
enum Held {
    Writable(MmapMut),
    ReadOnly(Mmap),
}

fn map(index: usize) -> io::Result<Held> {
    let page = MmapMut::map_anon(LENGTH)?;
    if index.is_multiple_of(2) { Ok(Held::Writable(page)) } else { page.make_read_only().map(Held::ReadOnly) }
}

pub(super) fn most() -> anyhow::Result<f64> {
    let held: Vec<Held> = (0..MOST).map_while(|index| map(index).ok()).collect();
    Ok(held.len() as f64)
}
