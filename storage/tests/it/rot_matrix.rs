//! The rot matrix: every bit of a batch of each kind, of a segment's first page and of a checkpoint turned over, and 100,000 bits
//! of a log of several segments, each through a whole recovery. Not one is accepted in silence.
//!
//! What the last batch allows is said where it is tested: damage in it looks like what a crash leaves, unless something that was
//! written later says that it was durable.

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{Log, LogOptions, OpenError, RecordHeader, RecordKind, Recovered, SegmentId};

use crate::rig::{Kept, OPTIONS, Random, Rig};

/// Flips in the whole of a log.
const FLIPS: u64 = 100_000;

/// Segments of three pages, so that a start costs little.
const SMALL: LogOptions =
    LogOptions { segment_size: 16 << 10, batch_max: 4096, staging_max: 16 << 10, spares: 1, ..OPTIONS };

/// How damage was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// As damage.
    Rot,
    /// As the last batch, torn by a crash.
    Torn,
    /// A checkpoint was not used, and the one before it was.
    OlderCheckpoint,
    /// Not at all.
    Nothing,
}

/// The one place where these tests know how recovery tells of damage.
fn detected(result: &Result<Recovered, OpenError>) -> Met {
    match result {
        Err(OpenError::Rot { .. } | OpenError::Foreign { .. } | OpenError::Format { .. }) => Met::Rot,
        Err(OpenError::Checkpoint { .. } | OpenError::CheckpointIo { .. }) => Met::Rot,
        Err(error @ (OpenError::Io { .. } | OpenError::End { .. } | OpenError::Options(_))) => {
            panic!("the disk in memory works: {error}")
        }
        Ok(recovered) if !recovered.rot.is_empty() => Met::Rot,
        Ok(recovered) if recovered.truncated.is_some() => Met::Torn,
        Ok(recovered) if recovered.checkpoints_damaged > 0 => Met::OlderCheckpoint,
        Ok(_) => Met::Nothing,
    }
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

    /// Opens it. Whatever is given out is a record that was written, as it was written.
    fn open(&mut self) -> (Met, usize) {
        let (kept, mut found) = (&self.kept, 0);
        let mut seen: Option<usize> = None;
        let result = Log::open_with(self.options, &mut self.disk, &mut |_| {}, &mut |header, location, payload| {
            let at = seen.map_or_else(|| kept.iter().position(|it| it.location == location), |last| Some(last + 1));
            let same = at
                .and_then(|at| kept.get(at))
                .is_some_and(|it| it.header == *header && it.location == location && it.payload == payload[..]);
            assert!(same, "a record is given out that is not as it was written: {header:?}");
            seen = at;
            found += 1;
        });
        (detected(&result.map(|(_, recovered)| recovered)), found)
    }

    /// Turns a bit over, opens, and puts the disk back as it was.
    fn flip(&mut self, segment: SegmentId, offset: u32, bit: u8) -> (Met, usize) {
        self.disk.flip_bit(segment, offset, bit).unwrap();
        let met = self.open();
        if met.0 == Met::Rot {
            self.disk.flip_bit(segment, offset, bit).unwrap();
        } else {
            self.disk = self.base.crash(&mut |_, _| false);
        }
        met
    }

    /// The same in a checkpoint.
    fn flip_checkpoint(&mut self, number: u64, bit: usize) -> (Met, usize) {
        self.disk.flip_checkpoint_bit(number, bit);
        let met = self.open();
        self.disk = self.base.crash(&mut |_, _| false);
        met
    }

    /// Every bit of these bytes of a segment, `met` each time.
    fn every_bit(&mut self, segment: SegmentId, bytes: std::ops::Range<u32>, expected: Met) {
        for offset in bytes {
            for bit in 0..8 {
                assert_eq!(self.flip(segment, offset, bit).0, expected, "bit {bit} of byte {offset} of {segment}");
            }
        }
        assert_eq!(self.open().0, Met::Nothing, "nothing is left of them");
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
    still.every_bit(SegmentId(1), 0..4096, Met::Rot);
    still.every_bit(SegmentId(2), 0..4096, Met::Rot);
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
    assert_eq!(still.open(), (Met::Nothing, 1));
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
            assert_eq!(still.flip(SegmentId(1), offset, bit), (Met::Torn, 3), "bit {bit} of byte {offset}");
        }
    }
    assert_eq!(still.open(), (Met::Nothing, 5));
}

/// The same batch, known to have been durable: a checkpoint that goes on before it was ended after it.
#[test]
fn every_bit_of_the_last_batch_is_met_as_rot_where_a_checkpoint_says_that_it_was_durable() {
    let mut rig = Rig::new(SMALL);
    rig.batch(&[40, 0, 1701]);
    with_checkpoints(&mut rig);
    let last = rig.kept.last().unwrap().location;
    let start = last.offset - 64 - 32;
    Still::new(rig).every_bit(last.segment, start..start + 4096, Met::Rot);
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
    let (intact, all) = still.open();
    assert_eq!(intact, Met::Nothing);
    let mut random = Random(seed);
    let mut torn = 0;
    for _ in 0..FLIPS {
        let segment = SegmentId(from.0 + random.below(u64::from(segments + 1 - from.0)) as u32);
        let offset = random.below(u64::from(OPTIONS.segment_size)) as u32;
        let bit = random.below(8) as u8;
        let (met, found) = still.flip(segment, offset, bit);
        let place = || format!("bit {bit} of byte {offset} of {segment}");
        match met {
            Met::Rot => {}
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
    assert_eq!(still.open(), (Met::Nothing, all));
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
    // Before the place of the newest checkpoint nothing is read at a start. In its own segment only the first page is.
    let mut still = Still::new(rig);
    let (met, _) = still.flip(from, 5000, 0);
    assert_eq!(met, Met::Nothing, "what a start does not look at, it does not find");
    random_bits(still, from.next(), 29);
}
