//! The end of a log that has rested: behind its last batch with records lies one without. A bit that turns over in the former is
//! never taken for a torn write, and one in the latter costs nothing. Both are tried at starts, on copies of the disk.

use whimbrel_core::Shard;
use whimbrel_core::io::ShardConfig;
use whimbrel_storage::inspect::{BatchFound, Part, SegmentFacts, parts};
use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{LogOptions, SegmentId};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::disk::SimDisk;
use crate::rot::{batches, place_in};

/// How often that is tried, of the starts at which it can be.
const TRIED_PER_MILLE: u64 = 500;

/// Where the last two batches of such a log lie: segment and offset.
#[derive(Clone, Copy)]
struct Ending {
    last: (SegmentId, u32),
    empty: (SegmentId, u32),
}

impl Ending {
    /// Of a log that ends so, with nothing behind it that a crash tore.
    fn of(ram: &RamDisk) -> Option<Ending> {
        let mut places = Vec::new();
        for id in ram.segments().filter(|id| !id.is_cold()) {
            let bytes = ram.contents(id)?;
            let facts = SegmentFacts::of(&bytes).ok()?;
            if parts(&bytes, facts.generation).any(|part| matches!(part, Part::Stray { .. } | Part::Misplaced { .. })) {
                return None;
            }
            places.extend(batches(&bytes).iter().map(|batch| (id, batch.offset)));
        }
        let [.., last, empty] = places[..] else { return None };
        let of = |place| on_batch(ram, place, |batch| (batch.number, batch.records > 0, batch.fault().is_none()));
        let ((before, true, true), (number, false, true)) = (of(last)?, of(empty)?) else { return None };
        (before + 1 == number).then_some(Ending { last, empty })
    }
}

/// Whether the last batch of a log has no records. Those before it may have been let go, and with them it.
pub(crate) fn has_rested(ram: &RamDisk) -> bool {
    let ids: Vec<SegmentId> = ram.segments().filter(|id| !id.is_cold()).collect();
    let last = |id: SegmentId| batches(&ram.contents(id)?).last().map(|batch| batch.records);
    ids.into_iter().rev().find_map(last).is_none_or(|records| records == 0)
}

/// Looks at the batch that begins at a place.
fn on_batch<T>(ram: &RamDisk, place: (SegmentId, u32), look: impl FnOnce(&BatchFound<'_>) -> T) -> Option<T> {
    let bytes = ram.contents(place.0)?;
    batches(&bytes).iter().find(|batch| batch.offset == place.1).map(look)
}

/// Tries both on a disk from which a shard is about to start.
pub(crate) fn try_flips(
    config: &ShardConfig,
    options: LogOptions,
    disk: &mut SimDisk,
    b: &mut Bottom,
) -> Result<(), Violation> {
    if disk.damage.is_some() || !b.rots.rng.per_mille(TRIED_PER_MILLE) {
        return Ok(());
    }
    let Some(Ending { last, empty }) = Ending::of(&disk.ram) else { return Ok(()) };
    let waiting = open(config, options, &disk.ram, None)?.waiting();
    let bit = b.rots.rng.below(8) as u8;
    // What lies in a segment before the newest checkpoint's no start reads, and nothing in it can be cut off.
    if disk.newest_position().is_none_or(|position| position.segment <= last.0)
        && let Some(offset) = on_batch(&disk.ram, last, |batch| place_in(batch, &mut b.rots.rng))
    {
        b.stats.last_flipped += 1;
        let recovered = open(config, options, &disk.ram, Some((last.0, offset, bit)))?.recovered().clone();
        if recovered.rot.is_empty() || recovered.truncated.is_some() {
            let place = format!("bit {bit} of byte {offset} of segment {}", last.0);
            let text = format!("shard {}: {place} turned over in the last records: {recovered:?}", config.shard);
            return Err(Violation::new(Check::Unnoticed, text));
        }
    }
    if let Some(offset) = on_batch(&disk.ram, empty, |batch| place_in(batch, &mut b.rots.rng)) {
        b.stats.empty_flipped += 1;
        let shard = open(config, options, &disk.ram, Some((empty.0, offset, bit)))?;
        if shard.in_repair().next().is_some() || shard.waiting() != waiting {
            let place = format!("bit {bit} of byte {offset} of segment {}", empty.0);
            let text = format!("shard {}: something is lost by {place}, and nothing was there", config.shard);
            return Err(Violation::new(Check::Lost, text));
        }
    }
    Ok(())
}

/// Opens a shard on a copy of a disk in which a bit turned over: it has to open.
fn open(
    config: &ShardConfig,
    options: LogOptions,
    ram: &RamDisk,
    flipped: Option<(SegmentId, u32, u8)>,
) -> Result<Shard, Violation> {
    let start = |text: String| Violation::new(Check::Start, format!("shard {}: {text}", config.shard));
    let mut copy = ram.crash(&mut |_, _| true);
    if let Some((segment, offset, bit)) = flipped {
        copy.flip_bit(segment, offset, bit).map_err(|error| start(format!("the simulated disk: {error}")))?;
    }
    let opened = Shard::open(config.clone(), options, &mut copy);
    opened.map_err(|error| {
        start(format!("it does not start with {flipped:?} turned over in what its log ends with: {error}"))
    })
}
