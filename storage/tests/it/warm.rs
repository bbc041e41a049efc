//! Which segments count as in memory: against a plain list of them, in the order in which they were written or read in.

use whimbrel_storage::{Location, LogOptions, SegmentId};

use crate::rig::{OPTIONS, Random, Rig};

const MOST: usize = 5;

/// What is not written yet may lie in many more segments than that.
const FEW: LogOptions =
    LogOptions { warm_max: MOST as u64 * OPTIONS.segment_size as u64 + 1, staging_max: 512 << 10, ..OPTIONS };

fn is_warm(rig: &Rig, id: SegmentId) -> bool {
    rig.log.is_warm(Location { segment: id, offset: 4096, len: 1 })
}

/// The segments of which all is written.
fn closed(rig: &Rig) -> impl Iterator<Item = SegmentId> {
    (1..rig.log.position().segment.0).map(SegmentId)
}

#[test]
fn those_count_as_in_memory_that_were_written_or_read_in_last() {
    let (mut cooled, mut read_in, mut ahead) = (0, 0, 0);
    for seed in 1..=20 {
        let (mut rig, mut random) = (Rig::new(FEW), Random(seed));
        // The one that is so for longest first.
        let mut warm: Vec<SegmentId> = Vec::new();
        let mut seen = SegmentId(0);
        for _ in 0..1500 {
            match random.below(10) {
                0..=3 => while rig.append(2000).is_ok() && random.below(4) > 0 {},
                4 => rig.prepare(),
                5 | 6 => drop(rig.submit()),
                7 => drop(rig.complete()),
                8 => {
                    let count = closed(&rig).count() as u64;
                    if count > 0 {
                        let id = SegmentId(1 + random.below(count) as u32);
                        read_in += u64::from(!is_warm(&rig, id));
                        rig.log.warmed(id, OPTIONS.segment_size);
                        warm.retain(|it| *it != id);
                        warm.push(id);
                    }
                }
                _ => {
                    rig.log.cool();
                    let many = warm.len().saturating_sub(MOST);
                    cooled += many;
                    warm.drain(..many);
                }
            }
            warm.extend(closed(&rig).filter(|id| *id > seen));
            seen = closed(&rig).last().unwrap_or(seen);
            let last = rig.kept.last().map_or(seen, |kept| kept.location.segment);
            ahead = ahead.max(last.0 - seen.0);
            for id in (1..=rig.log.last_segment().0.max(last.0)).map(SegmentId) {
                assert_eq!(is_warm(&rig, id), warm.contains(&id) || id > seen, "seed {seed}, segment {id}");
            }
            assert_eq!(rig.log.warm_bytes(), warm.len() as u64 * u64::from(OPTIONS.segment_size));
        }
    }
    assert!(cooled > 100 && read_in > 100, "{cooled} cooled, {read_in} read in");
    assert!(ahead as usize > MOST + 2, "the log has begun {ahead} that are not written");
}

#[test]
fn of_what_a_start_has_read_the_last_is_in_memory() {
    let mut rig = Rig::new(FEW);
    while rig.log.position().segment < SegmentId(12) {
        rig.batch(&[2000]);
    }
    let disk = rig.disk.crash(&mut |_, _| false);
    rig.reopen(disk).unwrap();
    assert!(closed(&rig).all(|id| is_warm(&rig, id)));
    rig.log.cool();
    let warm: Vec<u32> = closed(&rig).filter(|id| is_warm(&rig, *id)).map(|id| id.0).collect();
    assert_eq!(warm, [7, 8, 9, 10, 11]);
    assert!(
        (12..=rig.log.last_segment().0).all(|id| is_warm(&rig, SegmentId(id))),
        "what is written, and what is next"
    );
}
