//! The rot matrix: every bit of a batch of each kind, of a segment's first page and of a checkpoint turned over, and 100,000 bits
//! of a log of several segments, each through a whole recovery. Not one is accepted in silence: nothing is given out that is not
//! as it was written, and whatever is missing lies in what is told.
//!
//! What the last batch allows is said where it is tested: damage in it looks like what a crash leaves, unless something that was
//! written later says that it was durable, as a log that rests sees to.

use std::collections::VecDeque;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    ColdDone, ColdWork, Location, Log, LogOptions, Loss, Memory, OpenError, RecordHeader, RecordKind, Recovered,
    SegmentId, check_segment,
};

use crate::rig::{Kept, OPTIONS, Random, Rig, image};

/// Flips in the whole of a log.
const FLIPS: u64 = 100_000;

/// Segments of three pages, so that a start costs little.
const SMALL: LogOptions =
    LogOptions { segment_size: 16 << 10, batch_max: 4096, staging_max: 16 << 10, spares: 1, ..OPTIONS };

/// How damage was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// As damage, which is told; the log is open, with all the rest.
    Rot,
    /// As damage, and the log does not open.
    Refused,
    /// As the last batch, torn by a crash.
    Torn,
    /// A checkpoint was not used, and the one before it was.
    OlderCheckpoint,
    /// Not at all.
    Nothing,
}

/// What became of an opening.
struct Opened {
    met: Met,
    /// How many records were given out.
    found: usize,
    /// Those that were not, of those that had to be, as indexes in all that was appended. Of a log that did not open none.
    missing: Vec<usize>,
    recovered: Recovered,
}

/// The one place where these tests know which errors damage is.
fn refused(error: &OpenError) -> Met {
    match error {
        OpenError::Rot { .. } | OpenError::Foreign { .. } | OpenError::Format { .. } => Met::Refused,
        OpenError::Checkpoint { .. } | OpenError::CheckpointIo { .. } => Met::Refused,
        OpenError::Io { .. }
        | OpenError::Write { .. }
        | OpenError::CheckpointAside { .. }
        | OpenError::End { .. }
        | OpenError::Options(_) => {
            panic!("the disk in memory works: {error}")
        }
    }
}

fn met(recovered: &Recovered) -> Met {
    match recovered {
        it if !it.rot.is_empty() => Met::Rot,
        it if it.truncated.is_some() => Met::Torn,
        it if it.checkpoints_damaged > 0 => Met::OlderCheckpoint,
        _ => Met::Nothing,
    }
}

/// A record with its header.
fn whole(kept: &Kept) -> Location {
    Location { offset: kept.location.offset - 32, len: kept.location.len + 32, ..kept.location }
}

/// Whether a record that is missing is told of, in its place among those that are given out.
fn is_told(recovered: &Recovered, kept: &Kept, given: usize) -> bool {
    let place = whole(kept);
    let in_rot = |loss: &Loss| !matches!(loss, Loss::Record(header) if *header != kept.header);
    let mut rot = recovered.rot.iter();
    let torn = recovered.truncated.is_some_and(|it| {
        it.segment == place.segment && it.offset < place.offset + place.len && place.offset < it.offset + it.bytes
    });
    torn || rot.any(|it| it.rot.touches(place) && it.after == Some(given as u64) && in_rot(&it.rot.loss))
}

/// A log whose power is off.
struct Still {
    options: LogOptions,
    base: RamDisk,
    disk: RamDisk,
    kept: Vec<Kept>,
}

impl Still {
    fn new(rig: Rig) -> Still {
        assert_eq!(rig.durable, rig.kept.len());
        let base = rig.disk.crash(&mut |_, _| false);
        let disk = base.crash(&mut |_, _| false);
        Still { options: rig.options, base, disk, kept: rig.kept }
    }

    /// Opens it. Whatever is given out is a record that was written, as it was written, in order; and whatever is not is told.
    fn open(&mut self) -> Opened {
        let kept = &self.kept;
        let mut given: Vec<usize> = Vec::new();
        let result = Log::open_with(self.options, &mut self.disk, &mut |_| {}, &mut |header, location, payload| {
            let next = given.last().map_or(0, |last| last + 1);
            let at = (next..kept.len()).find(|at| kept[*at].location == location);
            let same = at.filter(|at| kept[*at].header == *header && kept[*at].payload == payload[..]);
            given.push(same.unwrap_or_else(|| {
                panic!("a record is given out that is not as it was written, or not in its place: {header:?}")
            }));
        });
        let found = given.len();
        let (log, recovered) = match result {
            Ok(opened) => opened,
            Err(error) => {
                return Opened { met: refused(&error), found, missing: Vec::new(), recovered: Recovered::default() };
            }
        };
        assert_eq!(recovered.records, found as u64);
        let from = log.newest_checkpoint().map_or((SegmentId(0), 0), |it| (it.position.segment, it.position.offset));
        let from = kept.partition_point(|it| (it.location.segment, it.location.offset) < from);
        let mut missing = Vec::new();
        let mut next = given.iter().enumerate().peekable();
        for (at, it) in kept.iter().enumerate().skip(from) {
            if next.next_if(|(_, given)| **given == at).is_none() {
                let given = next.peek().map_or(found, |(before, _)| *before);
                assert!(is_told(&recovered, it, given), "{it:?} is missing, and nobody says so: {recovered:?}");
                missing.push(at);
            }
        }
        assert_eq!(next.next(), None, "what lies before the position is not given out");
        Opened { met: met(&recovered), found, missing, recovered }
    }

    /// Opens what was not damaged.
    fn intact(&mut self) -> usize {
        let opened = self.open();
        assert_eq!((opened.met, &opened.missing[..]), (Met::Nothing, &[][..]));
        opened.found
    }

    /// Turns a bit over, opens, and puts the disk back as it was. Where rot is told it is told there, and costs nothing outside
    /// of the batch that the bit is in.
    fn flip(&mut self, segment: SegmentId, offset: u32, bit: u8) -> Opened {
        self.disk.flip_bit(segment, offset, bit).unwrap();
        let opened = self.open();
        match opened.met {
            Met::Rot => {
                let here = |rot: &whimbrel_storage::Rot| {
                    rot.segment == segment && (rot.offset..rot.offset + rot.bytes).contains(&offset)
                };
                let rot = &opened.recovered.rot;
                assert!(rot.iter().any(|it| here(&it.rot)), "bit {bit} of byte {offset} of {segment}: {rot:?}");
                assert_eq!(opened.recovered.truncated, None);
                if opened.recovered.spares_damaged > 0 {
                    assert!(opened.missing.is_empty(), "nothing is in a spare segment");
                    self.disk = self.base.crash(&mut |_, _| false);
                } else {
                    self.disk.flip_bit(segment, offset, bit).unwrap();
                }
            }
            Met::Refused => self.disk.flip_bit(segment, offset, bit).unwrap(),
            Met::Torn | Met::OlderCheckpoint | Met::Nothing => self.disk = self.base.crash(&mut |_, _| false),
        }
        opened
    }

    /// The same in a checkpoint.
    fn flip_checkpoint(&mut self, number: u64, bit: usize) -> (Met, usize) {
        self.disk.flip_checkpoint_bit(number, bit);
        let opened = self.open();
        self.disk = self.base.crash(&mut |_, _| false);
        assert_eq!(opened.missing, [0; 0]);
        (opened.met, opened.found)
    }

    /// Every bit of these bytes of a segment, which are one batch or a page, is met so; and records elsewhere are given out.
    fn every_bit(&mut self, segment: SegmentId, bytes: std::ops::Range<u32>, expected: Met) {
        for offset in bytes.clone() {
            for bit in 0..8 {
                let opened = self.flip(segment, offset, bit);
                assert_eq!(opened.met, expected, "bit {bit} of byte {offset} of {segment}");
                let elsewhere = opened.missing.iter().map(|at| self.kept[*at].location);
                let elsewhere = elsewhere.filter(|it| it.segment != segment || !bytes.contains(&it.offset));
                assert_eq!(elsewhere.count(), 0, "bit {bit} of byte {offset} of {segment} costs what is elsewhere");
            }
        }
        self.is_as_it_was();
    }

    /// What is told or refused is left alone: nothing was written but what was there.
    fn is_as_it_was(&mut self) {
        assert!(image(&mut self.disk) == image(&mut self.base), "the disk was changed");
        self.intact();
    }
}

/// Appends a record of a kind, with a payload that is not a multiple of eight.
fn append(rig: &mut Rig, kind: RecordKind, payload: &[u8]) {
    let header = RecordHeader { kind, partition: 5, term: 3, index: rig.kept.len() as u64 + 1 };
    let location = rig.log.append(&header, payload).unwrap();
    rig.kept.push(Kept { header, location, payload: payload.to_vec() });
}

/// A batch of each kind of record, and one behind them.
fn one_of_each_kind() -> (Rig, [(SegmentId, u32); 3]) {
    let mut rig = Rig::new(SMALL);
    let mut places = [(SegmentId(0), 0); 3];
    for (place, kind) in places.iter_mut().zip([RecordKind::Entry, RecordKind::HardState, RecordKind::Erased]) {
        for payload_bytes in [30, 0, 1701, 8] {
            let byte = if kind == RecordKind::Erased { 0 } else { 0xa5 };
            append(&mut rig, kind, &vec![byte; payload_bytes]);
        }
        rig.settle();
        let first = rig.kept[rig.kept.len() - 4].location;
        *place = (first.segment, first.offset - 64 - 32);
    }
    rig.batch(&[5]);
    (rig, places)
}

#[test]
fn every_bit_of_a_batch_of_entries() {
    let (rig, places) = one_of_each_kind();
    let (segment, start) = places[0];
    Still::new(rig).every_bit(segment, start..start + 4096, Met::Rot);
}

#[test]
fn every_bit_of_a_batch_of_hard_states() {
    let (rig, places) = one_of_each_kind();
    let (segment, start) = places[1];
    Still::new(rig).every_bit(segment, start..start + 4096, Met::Rot);
}

#[test]
fn every_bit_of_a_batch_of_erased_records() {
    let (rig, places) = one_of_each_kind();
    let (segment, start) = places[2];
    Still::new(rig).every_bit(segment, start..start + 4096, Met::Rot);
}

#[test]
fn every_bit_of_the_first_page_of_a_segment() {
    let (rig, _) = one_of_each_kind();
    let mut still = Still::new(rig);
    // All that it says is known by the batches behind it; a spare one is not needed.
    still.every_bit(SegmentId(1), 0..4096, Met::Rot);
    still.every_bit(SegmentId(2), 0..4096, Met::Rot);
    still.every_bit(SegmentId(3), 0..4096, Met::Rot);
}

/// A log with two checkpoints and a batch behind each of them, and the number of its newest one.
fn with_checkpoints(rig: &mut Rig) -> u64 {
    for pieces in [&[&b"alice"[..], b"", b"bob and carol"][..], &[b"alice", b"dave"]] {
        let mut writer = rig.log.begin_checkpoint(rig.log.position()).unwrap();
        let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
        writer.begin(&mut bytes);
        for piece in pieces {
            writer.piece(piece, &mut bytes);
        }
        let keep_from = rig.log.newest_checkpoint().map_or(0, |newest| newest.number);
        // It is ended when what came meanwhile is durable.
        rig.batch(&[70]);
        writer.end(rig.log.position().batch, &mut bytes);
        rig.disk.put_checkpoint(checkpoint.number, bytes, keep_from).unwrap();
        rig.log.checkpoint_written(checkpoint);
    }
    rig.log.newest_checkpoint().unwrap().number
}

#[test]
fn every_bit_of_a_checkpoint() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[300]);
    let newest = with_checkpoints(&mut rig);
    let mut still = Still::new(rig);
    let sizes = still.disk.checkpoint_sizes();
    assert_eq!(sizes.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [newest - 1, newest]);
    let (_, bytes) = sizes[1];
    for bit in 0..bytes * 8 {
        // One of another format is another program's, and is not passed over for an older one.
        let (met, found) = still.flip_checkpoint(newest, bit);
        assert_eq!((met, found), (Met::OlderCheckpoint, 2), "bit {bit}");
    }
    for bit in 0..sizes[0].1 * 8 {
        // The older one does not serve; it is missed and put aside all the same.
        assert_eq!(still.flip_checkpoint(newest - 1, bit), (Met::OlderCheckpoint, 1), "bit {bit} of the older one");
    }
    assert_eq!(still.intact(), 1);
}

/// The last batch of all: nothing was written after it that says that it was durable. A bit of it turned over looks like a
/// write that a loss of power cut short, and is met, and reported, as that.
#[test]
fn every_bit_of_the_last_batch_is_met_as_torn() {
    let mut rig = Rig::new(SMALL);
    rig.batch(&[40, 0, 1701]);
    rig.batch(&[30, 900]);
    let mut still = Still::new(rig);
    for offset in 8192..12_288 {
        for bit in 0..8 {
            let opened = still.flip(SegmentId(1), offset, bit);
            assert_eq!((opened.met, opened.found), (Met::Torn, 3), "bit {bit} of byte {offset}");
        }
    }
    assert_eq!(still.intact(), 5);
}

/// The same batch, known to have been durable: a checkpoint that goes on before it was ended after it. Where the log ended nobody
/// knows.
#[test]
fn every_bit_of_the_last_batch_is_met_as_rot_where_a_checkpoint_says_that_it_was_durable() {
    let mut rig = Rig::new(SMALL);
    rig.batch(&[40, 0, 1701]);
    with_checkpoints(&mut rig);
    let last = rig.kept.last().unwrap().location;
    let start = last.offset - 64 - 32;
    Still::new(rig).every_bit(last.segment, start..start + 4096, Met::Refused);
}

/// And: another batch behind it.
#[test]
fn every_bit_of_the_last_batch_but_one_is_met_as_rot_at_the_end_of_a_segment_too() {
    let mut rig = Rig::new(SMALL);
    (0..3).for_each(|_| rig.batch(&[900]));
    rig.batch(&[10]);
    let [.., before, last] = &rig.kept[..] else { panic!("four records") };
    assert_eq!((before.location.segment, last.location.segment), (SegmentId(1), SegmentId(2)));
    let start = before.location.offset - 64 - 32;
    Still::new(rig).every_bit(SegmentId(1), start..start + 4096, Met::Rot);
}

/// And: one without records behind it, which was written because the log rested.
#[test]
fn every_bit_of_the_last_batch_with_records_is_met_as_rot_where_the_log_has_rested() {
    let mut rig = Rig::new(SMALL);
    rig.batch(&[40, 0, 1701]);
    rig.batch(&[30, 900]);
    assert!(rig.rest());
    let last = rig.kept[3].location;
    Still::new(rig).every_bit(last.segment, last.offset - 96..last.offset - 96 + 4096, Met::Rot);
    // Of several pages.
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[40]);
    rig.batch(&[2900, 2000]);
    assert!(rig.rest());
    let last = rig.kept[1].location;
    Still::new(rig).every_bit(last.segment, last.offset - 96..last.offset - 96 + 8192, Met::Rot);
    // It did not fit in the segment any more, or that was closed.
    for is_closed in [false, true] {
        let mut rig = Rig::new(SMALL);
        (0..if is_closed { 2 } else { 3 }).for_each(|_| rig.batch(&[900]));
        if is_closed {
            rig.log.seal();
        }
        assert!(rig.rest());
        assert_eq!((rig.log.position().segment, rig.log.position().offset), (SegmentId(2), 8192));
        let last = rig.kept.last().unwrap().location;
        Still::new(rig).every_bit(last.segment, last.offset - 96..last.offset - 96 + 4096, Met::Rot);
    }
}

#[test]
fn every_bit_of_a_batch_without_records_at_the_end_is_met_as_torn_and_costs_nothing() {
    let mut rig = Rig::new(SMALL);
    rig.batch(&[40, 0, 1701]);
    assert!(rig.rest());
    // A checkpoint that was begun before it and ended after it does not miss it.
    let mut late = Rig::new(SMALL);
    late.batch(&[40, 0, 1701]);
    let mut writer = late.log.begin_checkpoint(late.log.position()).unwrap();
    let (checkpoint, mut bytes) = (writer.checkpoint(), Vec::new());
    writer.begin(&mut bytes);
    writer.piece(b"alice", &mut bytes);
    assert!(late.rest());
    writer.end(late.log.through(), &mut bytes);
    late.disk.put_checkpoint(checkpoint.number, bytes, 0).unwrap();
    late.log.checkpoint_written(checkpoint);
    for (rig, all) in [(rig, 3), (late, 0)] {
        let mut still = Still::new(rig);
        for offset in 8192..12_288 {
            for bit in 0..8 {
                let opened = still.flip(SegmentId(1), offset, bit);
                let met = (opened.met, opened.found, opened.missing.len());
                assert_eq!(met, (Met::Torn, all, 0), "bit {bit} of byte {offset}");
            }
        }
        assert_eq!(still.intact(), all);
    }
}

/// With a batch behind it, it is known that nothing was in it, whichever bit it is: nobody is suspected of having lost something.
#[test]
fn every_bit_of_a_batch_without_records_in_the_middle_is_met_as_rot_and_costs_nothing() {
    // In the middle of a segment, and at its end.
    for before in [1, 2] {
        let mut rig = Rig::new(SMALL);
        (0..before).for_each(|_| rig.batch(&[900]));
        assert!(rig.rest());
        rig.batch(&[5]);
        let start = 4096 * (before + 1);
        let mut still = Still::new(rig);
        for offset in start..start + 4096 {
            for bit in 0..8 {
                let opened = still.flip(SegmentId(1), offset, bit);
                assert_eq!((opened.met, opened.missing.len()), (Met::Rot, 0), "bit {bit} of byte {offset}");
                let lost = opened.recovered.rot.iter().filter(|it| it.rot.loss != Loss::Nothing).count();
                assert_eq!(lost, 0, "bit {bit} of byte {offset}: {:?}", opened.recovered.rot);
            }
        }
        still.is_as_it_was();
    }
}

/// Four segments with batches and two spares.
fn several_segments() -> Rig {
    let mut rig = Rig::new(OPTIONS);
    for round in 0..5 {
        rig.batch(&[40, 300 * round, 700]);
        rig.batch(&[3000, 2500]);
        append(&mut rig, RecordKind::Erased, &[0; 333]);
        rig.batch(&[5]);
    }
    assert_eq!(rig.kept.last().unwrap().location.segment, SegmentId(4));
    rig.prepare();
    rig
}

/// Where the last batch begins.
fn last_batch(still: &mut Still) -> (SegmentId, u32) {
    let mut last = (SegmentId(0), 0);
    let mut ids: Vec<_> = still.disk.segments().collect();
    ids.sort_unstable();
    for id in ids {
        let bytes = still.disk.contents(id).unwrap();
        let mut starts = (4096..bytes.len()).step_by(4096).filter(|&page| &bytes[page..page + 8] == b"whmbrlBT");
        last = starts.next_back().map_or(last, |page| (id, page as u32));
    }
    last
}

/// Turns random bits over in a log of several segments, from `from` on.
fn random_bits(mut still: Still, from: SegmentId, seed: u64) {
    let (last_segment, last) = last_batch(&mut still);
    let segments = still.disk.segments().max().unwrap().0;
    let in_last =
        still.kept.iter().filter(|it| (it.location.segment, it.location.offset) > (last_segment, last)).count();
    let all = still.intact();
    let mut random = Random(seed);
    let (mut rot, mut torn) = (0, 0);
    for _ in 0..FLIPS {
        let segment = SegmentId(from.0 + random.below(u64::from(segments + 1 - from.0)) as u32);
        let offset = random.below(u64::from(OPTIONS.segment_size)) as u32;
        let bit = random.below(8) as u8;
        let Opened { met, found, .. } = still.flip(segment, offset, bit);
        let place = || format!("bit {bit} of byte {offset} of {segment}");
        match met {
            Met::Rot => rot += 1,
            Met::Refused => panic!("{} keeps the log from opening", place()),
            // What is torn is the last batch, or remains of one behind it, of which nobody was told anything.
            Met::Torn => {
                torn += 1;
                assert!((segment, offset) >= (last_segment, last) && segment <= last_segment.next(), "{}", place());
                let is_in_last = segment == last_segment && found == all - in_last;
                assert!(found == all || is_in_last, "{}: {found} of {all} records", place());
            }
            Met::OlderCheckpoint | Met::Nothing => panic!("{} is not found", place()),
        }
    }
    assert!((1..FLIPS / 2).contains(&torn), "{torn} met as torn");
    assert!(rot > FLIPS / 4, "{rot} told");
    still.is_as_it_was();
}

#[test]
fn any_of_100_000_random_bits_of_a_log_of_several_segments() {
    random_bits(Still::new(several_segments()), SegmentId(1), 23);
}

#[test]
fn any_of_100_000_random_bits_behind_a_checkpoint() {
    let mut rig = several_segments();
    rig.log.seal();
    rig.prepare();
    with_checkpoints(&mut rig);
    let from = rig.log.newest_checkpoint().unwrap().position.segment;
    for round in 0..12 {
        rig.batch(&[40, 300 * round, 6000]);
    }
    rig.prepare();
    // In the position's segment all is looked at, in those before it the first page only.
    let mut still = Still::new(rig);
    let opened = still.flip(from, 5000, 0);
    assert_eq!((opened.met, opened.recovered.rot[0].after, &opened.missing[..]), (Met::Rot, None, &[][..]));
    let before = SegmentId(from.0 - 1);
    assert_eq!(still.flip(before, 5000, 0).met, Met::Nothing, "what a start does not look at, it does not find");
    assert_eq!(still.flip(before, 100, 0).met, Met::Rot);
    random_bits(still, from, 29);
}

/// What was moved to a cold segment is in no log, and no start reads it: it is found where the segment is read alone.
#[test]
fn every_bit_of_a_batch_of_moved_records() {
    let mut rig = Rig::new(SMALL);
    for payload_bytes in [30, 700, 1001, 8] {
        append(&mut rig, RecordKind::Entry, &vec![0xa5; payload_bytes]);
    }
    rig.settle();
    let mut queue: VecDeque<Location> = rig.kept.iter().map(|it| it.location).collect();
    let copy = rig.log.plan_copy(&mut queue).unwrap();
    let Ok(ColdDone::Copied(copied)) = ColdWork::Copy(copy).run(&mut rig.disk) else { panic!("memory takes it") };
    rig.log.copied(&copied);
    rig.log.settle(&rig.log.cold_ends());
    assert_eq!((queue.len(), copied.moved.len()), (0, 4));
    // One of them is not wanted any more, and is zeros.
    let mut places: Vec<Location> = copied.moved.iter().map(|(_, to)| *to).collect();
    let id = places[0].segment;
    let keep = places.iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, it)| (it.offset, it.len)).collect();
    let erase = rig.log.plan_erase(id, keep).unwrap();
    let Ok(ColdDone::Erased(erase)) = ColdWork::Erase(erase).run(&mut rig.disk) else { panic!("memory takes it") };
    assert!(erase.is_done() && erase.written() > 0);
    places.iter_mut().for_each(|it| *it = Location { offset: it.offset - 32, len: it.len + 32, ..*it });

    let is = rig.log.segment_is(id).unwrap();
    let was = rig.disk.contents(id).unwrap();
    let found = check_segment(&is, &mut Memory(&was));
    assert_eq!((found.batches, found.end, &found.rot[..]), (1, 8192, &[][..]));
    let mut bytes = was.clone();
    for at in 0..8192 {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let found = check_segment(&is, &mut Memory(&bytes));
            let here = found.rot.iter().any(|rot| (rot.offset..rot.offset + rot.bytes).contains(&(at as u32)));
            assert!(here, "bit {bit} of byte {at}: {:?}", found.rot);
            for place in &places {
                let range = place.offset as usize..(place.offset + place.len) as usize;
                assert!(
                    bytes[range.clone()] == was[range] || found.lost(*place).is_some(),
                    "bit {bit} of byte {at}: what lies at {place:?} passes for what was written"
                );
            }
            bytes[at] ^= 1 << bit;
        }
    }
}
