//! Planted faults: each is caught within the first seeds, or seen to be healed. All of them at once, with the seeds that caught
//! them, are `whimbrel-sim plants`.

use whimbrel_sim::plant::Plant;
use whimbrel_sim::{DEFAULT_STEPS, Run, Trace, failure, hunt, run};

/// Any change of what is under test changes what happens under each seed. So no seed is named here: a fault is found under one
/// in a few, thirty at most, and within so many always.
const WITHIN: u64 = 300;

fn caught(plant: Plant) {
    let catch = hunt(plant, 0..WITHIN, DEFAULT_STEPS);
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
    caught(Plant::DiskLies);
    caught(Plant::DiskRots);
    caught(Plant::DiskFlips);
}

#[test]
fn a_write_that_goes_astray_and_a_full_disk_that_lies_are_caught() {
    caught(Plant::DiskMisdirects);
    caught(Plant::DamageHidden);
    caught(Plant::FullLies);
}

#[test]
fn a_checkpoint_that_is_never_answered_keeps_what_should_be_forgotten() {
    caught(Plant::CheckpointSilent);
}

#[test]
fn a_ring_that_forgets_a_flush_and_a_lane_that_flips_a_bit_are_caught() {
    caught(Plant::FlushSilent);
    caught(Plant::LaneFlips);
}

#[test]
fn a_socket_that_repeats_swaps_drops_or_raises_is_caught() {
    caught(Plant::SocketRepeats);
    caught(Plant::SocketSwaps);
    caught(Plant::SocketDrops);
    caught(Plant::AckDrops);
    caught(Plant::AckJumps);
}

#[test]
fn what_must_be_healed_is_healed() {
    for plant in Plant::ALL.into_iter().filter(|plant| plant.must_be_healed()) {
        let catch = hunt(plant, 0..5, DEFAULT_STEPS);
        assert!(catch.is_right(), "{}: fired {}, {:?}", plant.name(), catch.fired, catch.caught);
    }
}
