//! Every bound of the log, with its reason.

/// Unit in which batches are placed and padded: a page, so that a write never shares one with the batch before it.
pub const PAGE_BYTES: u32 = 4096;

/// The piece that a disk writes whole or not at all. Tests and the simulator tear writes along it.
pub const SECTOR_BYTES: u32 = 512;

/// Size of a segment file. Large enough that rolling is rare, small enough to be emptied in seconds.
pub const SEGMENT_BYTES: u32 = 64 << 20;

/// Size of a segment file in development and in tests, where a data directory should be made at once.
pub const SEGMENT_DEV_BYTES: u32 = 4 << 20;

/// What one batch may gather while the one before it is being written. More would not make the flush cheaper.
pub const BATCH_BYTES: u32 = 256 << 10;

/// No batch was or will ever be larger, whatever the options say: recovery searches so far for what a torn one left.
pub const BATCH_MAX_BYTES: u32 = 1 << 20;

/// More batches than any log will ever have, at a million a second for a hundred thousand years: a number at or above it is not
/// one, and those below it can be counted on.
pub const BATCHES_MAX: u64 = 1 << 62;

/// Memory for batches that are gathering, queued, being written, or still viewed.
pub const STAGING_BYTES: u32 = 8 << 20;

/// Prepared segments kept ahead of the one being filled: two for what was accepted, should the disk turn out to be full, and one
/// that the log goes on in until that is known of the next.
pub const SPARES: u32 = 3;

/// Retired segments are made into spares as long as there are fewer of them: about what a checkpoint lets go of at once.
pub const SPARES_MAX: u32 = 6;

/// Closed segments that count as in memory, where whoever opens the log does not say how much memory there is.
pub const WARM_BYTES: u64 = 4 << 30;

/// So many of them may always count so: one that several readers are in the middle of is not read in anew for each of them.
pub const WARM_SEGMENTS_MIN: u64 = 4;

/// Files that could not be removed and are tried again; a directory in which nothing can be removed has more. With segments of the
/// usual size these are 64 GiB.
pub const LEFTOVERS_MAX: usize = 1024;

/// Largest segment: an offset and a length within it are `u32`.
pub const SEGMENT_MAX_BYTES: u32 = 1 << 30;

const _: () = {
    assert!(PAGE_BYTES.is_multiple_of(SECTOR_BYTES));
    assert!(BATCH_BYTES.is_multiple_of(PAGE_BYTES) && BATCH_MAX_BYTES.is_multiple_of(PAGE_BYTES));
    assert!(BATCH_BYTES <= BATCH_MAX_BYTES);
    // One batch in flight, one gathering, and as many again that a slow reader still looks at.
    assert!(STAGING_BYTES >= 4 * BATCH_BYTES);
    assert!(BATCH_MAX_BYTES + PAGE_BYTES <= SEGMENT_DEV_BYTES);
    assert!(SPARES <= SPARES_MAX);
    assert!(WARM_SEGMENTS_MIN * SEGMENT_MAX_BYTES as u64 <= WARM_BYTES);
    assert!(SEGMENT_BYTES <= SEGMENT_MAX_BYTES && SEGMENT_DEV_BYTES <= SEGMENT_BYTES);
};
