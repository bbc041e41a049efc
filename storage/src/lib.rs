//! The append log of a shard: records into checksummed batches, batches into preallocated segments, one write in flight.
//!
//! It knows records and positions, and gives no meaning to either. README.md draws the format.
//!
//! - [`Log`] is a state machine without I/O: it stages, numbers and places batches, and says what is durable.
//! - A [`Checkpoint`] lets a start read the log from a place on, and what nobody needs before it go.
//! - [`Disk`] is the bottom: [`FileDisk`] are files, [`ram::RamDisk`] is memory that can lose power.
//! - [`DataDir`] is the directory of a node: its lock, its identity, the place of its shards' logs.

#![deny(unsafe_code)]

mod checkpoint;
mod datadir;
mod disk;
mod file;
mod layout;
pub mod limits;
mod location;
mod log;
mod mapping;
pub mod ram;
mod recover;
mod rot;
mod scrub;
mod segments;
mod staging;

pub use checkpoint::{
    BadCheckpoint, CHECKPOINT_MAGIC, Checkpoint, CheckpointWriter, Pieces, Position, verify as verify_checkpoint,
};
pub use datadir::{Asked, DATA_FORMAT, DATA_FORMAT_OLDEST, DataDir, DataDirError, Identity, Shape, write_atomic};
pub use disk::Disk;
pub use file::FileDisk;
pub use layout::{BATCH_HEADER_BYTES, FORMAT_VERSION, RECORD_HEADER_BYTES, record_bytes};
pub use location::{Location, Mark, RecordHeader, RecordKind, SegmentId, WriteId};
pub use log::{AppendError, Log, LogOptions, LogWrite, Wanted};
pub use mapping::read_in;
pub use recover::{OpenError, Recovered, Rotten, Truncated};
pub use rot::{Loss, Rot, RotReason};
pub use scrub::{Checked, FileSource, Memory, SegmentIs, Source, check_segment};
pub use segments::Retired;
pub use staging::Batch;
