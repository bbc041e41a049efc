//! The start of a shard on its disk: what it has to notice there, and what it has to get over.

use whimbrel_core::io::ShardConfig;
use whimbrel_core::{OpenError, Shard};
use whimbrel_storage::{Disk, LogOptions, RotReason, Rotten, SegmentId};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::disk::SimDisk;
use crate::ending::try_flips;

/// Reads of a start of which one may fail.
const READS: u64 = 8;

/// How often a log does not open where there is rot, beside the logs of other shards.
const SHUT_PER_MILLE: u64 = 60;

/// Opens a shard. A damaged disk is noticed, and then as good as it was, for the next start at the latest; where it cannot be read it
/// can the next time.
pub(crate) fn boot(
    config: &ShardConfig,
    options: LogOptions,
    disk: &mut SimDisk,
    b: &mut Bottom,
) -> Result<Shard, Violation> {
    if let Some(undamaged) = disk.undamaged.take() {
        let opened = Shard::open(config.clone(), options, &mut disk.ram);
        if !is_noticed(&opened) {
            let said = opened.as_ref().map_or_else(ToString::to_string, |shard| format!("{:?}", shard.recovered()));
            let text =
                format!("shard {} starts on a disk of which a block lies elsewhere, and says: {said}", config.shard);
            return Err(Violation::new(Check::Unnoticed, text));
        }
        b.stats.misdirected_noticed += 1;
        disk.ram = undamaged;
    }
    disk.shut = false;
    let may_be_shut = !b.healed && b.weather.rots_per_mille > 0 && config.shards > 1;
    if may_be_shut
        && b.rots.rng.per_mille(SHUT_PER_MILLE)
        && let Some(shard) = shut(config, options, disk, b)?
    {
        return Ok(shard);
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

/// The log has lost where it begins, until the next start: the shard is without it, and its disk stays as it is. `None` where
/// a start would not miss it.
fn shut(
    config: &ShardConfig,
    options: LogOptions,
    disk: &mut SimDisk,
    b: &mut Bottom,
) -> Result<Option<Shard>, Violation> {
    let first = disk.newest_position().map_or(SegmentId::FIRST, |position| position.segment);
    if !disk.may_rot() || disk.ram.segments().all(|id| id != first) {
        return Ok(None);
    }
    let mut damaged = disk.ram.crash(&mut |_, _| true);
    damaged.lose(first);
    let start = |text: String| Violation::new(Check::Start, format!("shard {}: {text}", config.shard));
    match Shard::open(config.clone(), options, &mut damaged) {
        Err(error) if error.is_damage() => {}
        Err(error) => return Err(start(format!("what is lost is not met as damage: {error}"))),
        // Without a checkpoint, and without any segment, it is a new log.
        Ok(shard) if shard.recovered().records == 0 => return Ok(None),
        Ok(_) => return Err(start("starts although its log has no beginning".into())),
    }
    disk.shut = true;
    b.stats.shut += 1;
    let partitions = (config.shard.0..config.partitions).step_by(usize::from(config.shards));
    for partition in partitions {
        b.rots.in_repair.insert(partition);
        b.rots.ever.insert(partition);
    }
    Shard::shut(config.clone(), options).map(Some).map_err(|error| start(error.to_string()))
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
