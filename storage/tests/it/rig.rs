//! A log over a disk in memory, beside a plain list of what was appended, which it is compared with.

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    AppendError, Disk, Location, Log, LogOptions, LogWrite, OpenError, RecordHeader, RecordKind, Recovered, Retired,
    SegmentId, Wanted,
};

/// Small enough that a few dozen records roll through several segments.
pub(crate) const OPTIONS: LogOptions = LogOptions {
    shard: 3,
    segment_size: 28 << 10,
    batch_max: 8 << 10,
    staging_max: 32 << 10,
    spares: 2,
    spares_max: 4,
    warm_max: 1 << 30,
};

/// A record as it was appended, or as it was found.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) header: RecordHeader,
    pub(crate) location: Location,
    pub(crate) payload: Vec<u8>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:?}", self.header.index, self.location)
    }
}

pub(crate) struct Rig {
    pub(crate) options: LogOptions,
    pub(crate) disk: RamDisk,
    pub(crate) log: Log,
    /// All that was appended and not lost since.
    pub(crate) kept: Vec<Kept>,
    /// How many of them are durable.
    pub(crate) durable: usize,
    /// How many of them were there when the log was opened.
    opened_with: usize,
    pub(crate) in_flight: Option<LogWrite>,
    next_index: u64,
}

impl Rig {
    pub(crate) fn new(options: LogOptions) -> Rig {
        let mut disk = RamDisk::new(options.shard, 7);
        let (log, recovered) = Log::open(options, &mut disk, &mut |_, _, _| panic!("a new log is empty")).unwrap();
        assert_eq!((recovered.batches, recovered.segments), (0, 1));
        Rig { options, disk, log, kept: Vec::new(), durable: 0, opened_with: 0, in_flight: None, next_index: 0 }
    }

    pub(crate) fn append(&mut self, payload_bytes: usize) -> Result<(), AppendError> {
        self.next_index += 1;
        let index = self.next_index;
        let kind = if index.is_multiple_of(5) { RecordKind::HardState } else { RecordKind::Entry };
        let header = RecordHeader { kind, partition: index as u16 % 16, term: index / 9, index };
        let mut random = Random(index);
        let payload: Vec<u8> = (0..payload_bytes).map(|_| random.next() as u8).collect();
        let location = self.log.append(&header, &payload)?;
        self.kept.push(Kept { header, location, payload });
        Ok(())
    }

    /// Makes the segments that are wanted.
    pub(crate) fn prepare(&mut self) {
        while let Some(Wanted { id, reuse }) = self.log.segment_wanted() {
            let mapping = match reuse {
                Some(Retired { id: old, mapping, used }) => {
                    drop(mapping);
                    self.disk.recycle(old, used, id, self.options.segment_size).unwrap()
                }
                None => self.disk.create(id, self.options.segment_size).unwrap(),
            };
            self.log.segment_ready(id, mapping);
        }
    }

    /// Writes the next batch without a flush.
    pub(crate) fn submit(&mut self) -> bool {
        let Some(write) = self.log.next_write() else {
            return false;
        };
        assert!(self.in_flight.is_none(), "one write at a time");
        let bytes = write.batch.as_ref();
        assert!(bytes.len().is_multiple_of(4096) && (bytes.as_ptr() as usize).is_multiple_of(4096));
        self.disk.write_unflushed(write.segment, write.offset as u32, bytes).unwrap();
        self.in_flight = Some(write);
        true
    }

    /// Flushes the write in flight and says so to the log.
    pub(crate) fn complete(&mut self) -> bool {
        let Some(write) = self.in_flight.take() else {
            return false;
        };
        let offset = write.offset as u32;
        self.disk.flush(write.segment, offset..offset + write.batch.as_ref().len() as u32).unwrap();
        let id = write.id;
        drop(write);
        let mark = self.log.written(id);
        assert_eq!(mark, self.log.durable());
        self.durable = self.opened_with + mark.0 as usize;
        true
    }

    /// Writes and flushes all that is staged.
    pub(crate) fn settle(&mut self) {
        self.prepare();
        while self.complete() || self.submit() {
            self.prepare();
        }
        assert_eq!(self.durable, self.kept.len());
        assert_eq!(self.log.staged_bytes(), 0);
    }

    /// Writes the batch without records that a log writes which rests; false if it does not.
    pub(crate) fn rest(&mut self) -> bool {
        let takes = self.log.takes_empty();
        let Some(write) = self.log.write_empty() else {
            assert!(!takes, "what it takes it gives");
            return false;
        };
        assert!(takes && write.batch.as_ref().len() == 4096);
        self.in_flight = Some(write);
        let write = self.in_flight.as_ref().expect("it was given just now");
        self.disk.write_unflushed(write.segment, write.offset as u32, write.batch.as_ref()).unwrap();
        self.complete()
    }

    /// Appends records and writes them as one batch of its own.
    pub(crate) fn batch(&mut self, payloads: &[usize]) {
        for &payload_bytes in payloads {
            self.append(payload_bytes).unwrap();
        }
        self.settle();
    }

    /// Every record reads back as it was appended.
    pub(crate) fn check_reads(&self) {
        for kept in &self.kept {
            assert_eq!(self.log.read(kept.location).expect("it was appended"), kept.payload);
        }
    }

    /// Goes on from what a disk holds. What was not durable may be lost, in a tail; nothing else may differ.
    pub(crate) fn reopen(&mut self, mut disk: RamDisk) -> Result<Recovered, OpenError> {
        let submitted = self.submitted();
        let (log, recovered, found) = open(self.options, &mut disk)?;
        assert!(found.len() >= self.durable, "a durable record is lost");
        assert!(found.len() <= submitted, "a record that was never written is there");
        assert_eq!(found, self.kept[..found.len()], "a record is not as it was appended");
        self.durable = found.len();
        self.opened_with = found.len();
        self.kept.truncate(found.len());
        self.in_flight = None;
        self.log = log;
        self.disk = disk;
        Ok(recovered)
    }

    /// How many records are durable or in the write in flight.
    fn submitted(&self) -> usize {
        let Some(write) = &self.in_flight else {
            return self.durable;
        };
        let end = write.offset as u32 + write.batch.as_ref().len() as u32;
        let inside = |kept: &&Kept| (kept.location.segment, kept.location.offset) < (write.segment, end);
        self.kept.iter().take_while(inside).count()
    }
}

/// Three segments with batches and two spares; the power is off.
pub(crate) fn three_segments() -> (Rig, RamDisk) {
    let mut rig = Rig::new(OPTIONS);
    for round in 0..4 {
        rig.batch(&[40, 300 * round, 700]);
        rig.batch(&[3000, 2500]);
        rig.batch(&[5]);
    }
    assert_eq!(rig.kept.last().unwrap().location.segment, SegmentId(3));
    rig.prepare();
    let disk = rig.disk.crash(&mut |_, _| false);
    (rig, disk)
}

/// Opens the log of a disk and lists what it holds.
pub(crate) fn open(options: LogOptions, disk: &mut dyn Disk) -> Result<(Log, Recovered, Vec<Kept>), OpenError> {
    let mut found = Vec::new();
    let (log, recovered) = Log::open(options, disk, &mut |header, location, payload| {
        found.push(Kept { header: *header, location, payload: payload.to_vec() });
    })?;
    assert_eq!(recovered.records, found.len() as u64);
    for kept in &found {
        assert_eq!(log.read(kept.location).expect("it was recovered"), kept.payload);
    }
    Ok((log, recovered, found))
}

/// All bytes of all segments.
pub(crate) fn image(disk: &mut RamDisk) -> Vec<Vec<u8>> {
    let mut ids = disk.list().unwrap();
    ids.sort_unstable();
    ids.into_iter().map(|id| disk.contents(id).unwrap()).collect()
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
