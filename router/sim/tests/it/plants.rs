//! Planted faults: most are caught by a seed that was known to do so when this was written, or by one soon after it. All of
//! them, from seed 0 on and within 1,000, are `whimbrel-sim plants`.

use whimbrel_sim::plant::Plant;
use whimbrel_sim::{DEFAULT_STEPS, Run, Trace, failure, hunt, run};

/// Seeds after the known one. Any change of what is under test changes what happens under every seed.
const WITHIN: u64 = 200;

fn caught(plant: Plant, known: u64) {
    let catch = hunt(plant, known..known + WITHIN, DEFAULT_STEPS);
    assert!(catch.is_right(), "{}: {} in {} seeds: {:?}", plant.name(), catch.verdict(), catch.seeds, catch.caught);
    let (what, violation) = catch.caught.expect("what is right is caught");
    let outcome = run(what, Trace::default());
    assert_eq!(outcome.violation.as_ref(), Some(&violation), "it can be repeated");
    let told = failure(&what, &violation, &outcome.story);
    assert!(told.ends_with(&format!("repeat: {}\n", what.command())), "{told}");
    // The same seed without the fault finds nothing, so it is the fault that was found.
    assert_eq!(run(Run { plant: None, ..what }, Trace::default()).violation, None);
}

#[test]
fn a_disk_that_lies_rots_or_flips_bits_is_caught() {
    caught(Plant::DiskLies, 21);
    caught(Plant::DiskRots, 16);
    caught(Plant::DiskFlips, 34);
}

#[test]
fn a_write_that_goes_astray_and_a_full_disk_that_lies_are_caught() {
    caught(Plant::DiskMisdirects, 21);
    caught(Plant::DamageHidden, 26);
    caught(Plant::FullLies, 1);
}

#[test]
fn a_checkpoint_that_is_never_answered_keeps_what_should_be_forgotten() {
    caught(Plant::CheckpointSilent, 204);
}

#[test]
fn a_ring_that_forgets_a_flush_and_a_lane_that_flips_a_bit_are_caught() {
    caught(Plant::FlushSilent, 21);
    caught(Plant::LaneFlips, 20);
}

#[test]
fn a_socket_that_repeats_swaps_drops_or_raises_is_caught() {
    caught(Plant::SocketRepeats, 5);
    caught(Plant::SocketSwaps, 5);
    caught(Plant::SocketDrops, 5);
    caught(Plant::AckDrops, 260);
    caught(Plant::AckJumps, 14);
}

#[test]
fn what_must_be_healed_is_healed() {
    for plant in Plant::ALL.into_iter().filter(|plant| plant.must_be_healed()) {
        // Checkpoints are rarer than items of lanes.
        let seeds = if plant == Plant::CheckpointLost { 168..170 } else { 0..5 };
        let catch = hunt(plant, seeds, DEFAULT_STEPS);
        assert!(catch.is_right(), "{}: fired {}, {:?}", plant.name(), catch.fired, catch.caught);
    }
}
