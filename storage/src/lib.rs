//! The append log of a shard: records into checksummed batches, batches into preallocated segments, one write in flight.
//!
//! It knows records and positions, and gives no meaning to either. README.md draws the format.
//!
//! - [`Log`] is a state machine without I/O: it stages, numbers and places batches, and says what is durable.
//! - A [`Checkpoint`] lets a start read the log from a place on, and what nobody needs before it go.
//! - [`ColdWork`] moves what waits long out of segments whose rest is to go.
//! - [`Disk`] is the bottom: [`FileDisk`] are files, [`ram::RamDisk`] is memory that can lose power.
//! - [`DataDir`] is the directory of a node: its lock, its identity, the place of its shards' logs.
//! - [`Verifier`] and [`inspect`] look at the bytes of a log that nobody has open; [`Look`] reads them.

#![deny(unsafe_code)]

mod arrive;
mod checkpoint;
mod cold;
mod datadir;
mod disk;
mod end;
mod erase;
mod file;
mod finding;
pub mod inspect;
mod layout;
mod leftovers;
pub mod limits;
mod location;
mod log;
mod look;
mod mapping;
mod open_error;
mod options;
mod pages;
mod partitions;
pub mod ram;
mod recover;
mod rot;
mod scrub;
mod segments;
mod staging;
mod unlinked;
mod verify;
mod walk;

pub use arrive::Arriving;
pub use checkpoint::{
    BadCheckpoint, CHECKPOINT_MAGIC, Checkpoint, CheckpointWriter, Pieces, Position, verify as verify_checkpoint,
};
pub use cold::{ColdDone, ColdWork, Copied, Copy as ColdCopy, Kept, Sort as ColdSort};
pub use datadir::{Asked, DATA_FORMAT, DATA_FORMAT_OLDEST, DataDir, DataDirError, Identity, Shape, write_atomic};
pub use disk::Disk;
pub use erase::Erase as ColdErase;
pub use file::{FileDisk, ZEROS_BYTES};
pub use finding::{Finding, Place, Reason, Severity};
pub use layout::{BATCH_HEADER_BYTES, FORMAT_VERSION, RECORD_HEADER_BYTES, record_bytes};
pub use location::{Location, Mark, RecordHeader, RecordKind, SegmentId, WriteId};
pub use log::{AppendError, Log, LogWrite, Wanted};
pub use look::{Look, LookError, PutAside, SegmentFile, ShardFiles, put_aside};
pub use mapping::read_in;
pub use open_error::OpenError;
pub use options::LogOptions;
pub use partitions::PartitionFound;
pub use recover::{Recovered, Replay, Rotten, Truncated};
pub use rot::{Loss, Rot, RotReason};
pub use scrub::{Checked, FileSource, Memory, Partly, SegmentIs, Source, check_segment};
pub use segments::Retired;
pub use staging::Batch;
pub use unlinked::{GIVE_BACK_BYTES, GIVE_BACK_PAUSE, GaveBack, Unlinked};
pub use verify::{Report, SegmentFound, Unreadable, Verifier};
