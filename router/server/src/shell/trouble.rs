//! How damage is told to whoever looks after the machine.

#![forbid(unsafe_code)]

use whimbrel_core::ids::ShardId;
use whimbrel_core::{Repair, Trouble};
use whimbrel_storage::Rot;

/// Writes it to the log of the process.
pub(super) fn tell(shard: ShardId, trouble: &Trouble) {
    match trouble {
        Trouble::Rot(Rot { segment, offset, bytes, reason, .. }) => tracing::error!(
            shard = shard.0, segment = segment.0, offset, bytes, %reason,
            "the log is damaged: bytes of this segment are not what was written. Nothing was changed; check the disk (dmesg, smartctl), \
             and stop the server and look with `whimbrel log verify DIR`"
        ),
        Trouble::Repair(Repair { partition, why, rot }) => tracing::error!(
            shard = shard.0, partition = partition.0, %why, segment = rot.map(|rot| rot.segment.0), offset = rot.map(|rot| rot.offset),
            "a partition is in repair: its users and chats are refused (in_repair), all others are served, and while it is so this shard \
             makes no checkpoint and its log only grows. Stop the server, keep a copy of the data directory, and restore the \
             damaged file from a backup, or wait for its repair from replicas where there are some"
        ),
    }
}
