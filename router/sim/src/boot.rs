//! The start of a shard on its disk: what it has to notice there, and what it has to get over.

use whimbrel_core::io::ShardConfig;
use whimbrel_core::{OpenError, Shard};
use whimbrel_storage::{Disk, LogOptions, RotReason, Rotten};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::disk::SimDisk;
use crate::ending::try_flips;

/// Reads of a start of which one may fail.
const READS: u64 = 8;

/// Opens a shard. A damaged disk is noticed, and then as good as it was; where it cannot be read it can the next time.
pub(crate) fn boot(
    config: &ShardConfig,
    options: LogOptions,
    disk: &mut SimDisk,
    b: &mut Bottom,
) -> Result<Shard, Violation> {
    if let Some(undamaged) = disk.undamaged.take() {
        if !is_noticed(&Shard::open(config.clone(), options, &mut disk.ram)) {
            let text = format!("shard {} starts on a disk of which a block lies elsewhere", config.shard);
            return Err(Violation::new(Check::Unnoticed, text));
        }
        b.stats.misdirected_noticed += 1;
        disk.ram = undamaged;
    }
    try_flips(config, options, disk, b)?;
    let has_end = disk.ram.read_end().is_ok_and(|end| end.is_some());
    if !b.healed && b.rng.per_mille(b.weather.read_fails_per_mille) {
        disk.ram.faults.read = Some(b.rng.below(READS) as u32);
    }
    let opened = Shard::open(config.clone(), options, &mut disk.ram);
    let has_failed = b.weather.read_fails_per_mille > 0 && disk.ram.faults.read.is_none();
    disk.ram.faults.read = None;
    let opened = match opened {
        Err(error) if has_failed && is_unreadable(&error) => {
            b.stats.starts_unreadable += 1;
            Shard::open(config.clone(), options, &mut disk.ram)
        }
        opened => opened,
    };
    let start = |text: String| Violation::new(Check::Start, text);
    let shard = opened.map_err(|error| start(format!("shard {} does not start: {error}", config.shard)))?;
    b.stats.starts_from_end += u64::from(has_end && shard.recovered().batches == 0);
    let unreadable = shard.recovered().rot.iter().any(|it| it.rot.reason == RotReason::Unreadable);
    b.stats.starts_with_lost_pages += u64::from(unreadable);
    let partitions: Vec<u16> = (config.shard.0..config.partitions).step_by(usize::from(config.shards)).collect();
    disk.started(&partitions, shard.recovered().checkpoint);
    for Rotten { rot, .. } in &shard.recovered().rot {
        if !disk.damage.as_mut().is_some_and(|damage| damage.is(rot)) {
            return Err(start(format!("shard {} starts and finds damage where there is none: {rot:?}", config.shard)));
        }
    }
    Ok(shard)
}

/// Whether a start has found out that the disk does not hold what was written.
fn is_noticed(opened: &Result<Shard, OpenError>) -> bool {
    use whimbrel_storage::OpenError as Log;
    match opened {
        Ok(shard) => !shard.recovered().rot.is_empty(),
        Err(error) => matches!(error, OpenError::Log(Log::Rot { .. } | Log::Checkpoint { .. })),
    }
}

/// Whether it may have failed for a read: also where another checkpoint is damaged, and this one would have served.
fn is_unreadable(error: &OpenError) -> bool {
    use whimbrel_storage::OpenError as Log;
    matches!(error, OpenError::Log(Log::Io { .. } | Log::CheckpointIo { .. } | Log::Checkpoint { .. }))
}
