//! What `cargo fuzz run checkpoint` does, a little of it, everywhere.

#[path = "../../../fuzz/src/checkpoint.rs"]
mod checkpoint;
#[path = "../../../fuzz/src/mutate.rs"]
mod mutate;

#[test]
fn checkpoints_under_mutations() {
    mutate::run(&["fuzz/seeds/checkpoint"], 10_000, checkpoint::run);
}
