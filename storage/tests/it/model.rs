//! Random histories against a list: appends, writes, flushes, kills and losses of power in any order.

use proptest::prelude::*;
use whimbrel_storage::AppendError;

use crate::rig::{OPTIONS, Random, Rig};

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Submit,
    Complete,
    Prepare,
    CheckReads,
    /// The process dies; the page cache stays.
    Kill,
    /// The power goes. Of 8 sectors not flushed, about so many survive.
    PowerCut(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..600).prop_map(Step::Append),
        2 => (600usize..8000).prop_map(Step::Append),
        6 => Just(Step::Submit),
        6 => Just(Step::Complete),
        3 => Just(Step::Prepare),
        1 => Just(Step::CheckReads),
        1 => Just(Step::Kill),
        1 => (any::<u64>(), 0u64..=8).prop_map(|(seed, of_8)| Step::PowerCut(seed, of_8)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_durable_is_there_in_order_and_nothing_that_was_never_written(
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mut rig = Rig::new(OPTIONS);
        for step in steps {
            match step {
                Step::Append(payload_bytes) => {
                    let room = rig.log.has_room(payload_bytes);
                    match rig.append(payload_bytes) {
                        Ok(()) => prop_assert!(room),
                        Err(AppendError::Full) => prop_assert!(!room),
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Submit => { rig.submit(); }
                Step::Complete => { rig.complete(); }
                Step::Prepare => rig.prepare(),
                Step::CheckReads => rig.check_reads(),
                Step::Kill => {
                    let disk = rig.disk.crash(&mut |_, _| true);
                    let recovered = rig.reopen(disk).unwrap();
                    prop_assert_eq!(recovered.truncated, None);
                }
                Step::PowerCut(seed, of_8) => {
                    let mut random = Random(seed);
                    let disk = rig.disk.crash(&mut |_, _| random.below(8) < of_8);
                    rig.reopen(disk).unwrap();
                }
            }
        }
        rig.check_reads();
        rig.settle();
        let disk = rig.disk.crash(&mut |_, _| false);
        let recovered = rig.reopen(disk).unwrap();
        prop_assert_eq!(recovered.truncated, None);
        rig.check_reads();
    }
}

#[test]
fn what_recovery_accepted_after_a_kill_survives_a_loss_of_power() {
    let mut rig = Rig::new(OPTIONS);
    rig.batch(&[100, 200]);
    rig.append(300).unwrap();
    assert!(rig.submit(), "written, and not flushed when the process is killed");
    let mut disk = std::mem::replace(&mut rig.disk, whimbrel_storage::ram::RamDisk::new(0, 0));
    assert!(disk.unflushed().next().is_some());
    let (_, recovered, found) = crate::rig::open(OPTIONS, &mut disk).unwrap();
    assert_eq!((recovered.batches, found.len()), (2, 3));
    let after = disk.crash(&mut |_, _| false);
    rig.durable = found.len();
    assert_eq!(rig.reopen(after).unwrap().records, 3);
}

#[test]
fn an_untouched_spare_is_used_by_the_next_start() {
    let mut rig = Rig::new(OPTIONS);
    rig.prepare();
    let disk = rig.disk.crash(&mut |_, _| false);
    assert_eq!(rig.reopen(disk).unwrap().segments, 3);
    assert!(rig.log.segment_wanted().is_none());
    rig.batch(&[7000]);
    for _ in 0..8 {
        rig.batch(&[7000]);
    }
    assert_eq!(rig.log.bytes_on_disk() / u64::from(OPTIONS.segment_size), 5);
    rig.check_reads();
}
